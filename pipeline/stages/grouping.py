"""Which inputs one unit of gather reads: many small inputs share a unit, a large one has its own.

A unit costs some milliseconds and three files at least, however few rows it has. So small inputs are read together,
where there are many. Which ones depends on the new inputs alone. `InputList` records it: an input that is added later
joins no group that was made before it. No row depends on the groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.sources import READERS
from pipeline.sources.base import Input

FROM_INPUTS = 256  # fewer new inputs have a unit each
MOST_INPUTS = 256  # of a unit: --drop-input of one of them reads the others again
UNIT_S = 1.0  # CPU seconds of a unit, about
INPUT_S = 1e-3  # of an input, beside its bytes and pairs
BYTE_S = 1.6e-8  # of a byte: archives, the slowest
PAIR_S = 4.5e-6  # of a pair


def seconds(item: Input) -> float:
    """A rough CPU time to read an input."""
    reader = READERS[item.format]
    return INPUT_S + reader.size(item) * BYTE_S + reader.expected_rows(item) * PAIR_S


def groups(items: Sequence[tuple[int, Input]]) -> list[list[int]]:
    """The numbers of new inputs, cut into groups of one format. A group costs about UNIT_S at most, or is one input.

    Args:
        items: (number, input), in the order of the list.
    """
    if len(items) < FROM_INPUTS:
        return [[number] for number, _ in items]
    found: list[list[int]] = []
    form, cost = "", 0.0
    for number, item in sorted(items, key=lambda one: one[1].format):
        more = seconds(item)
        if item.format != form or cost + more > UNIT_S or len(found[-1]) == MOST_INPUTS:
            found.append([])
            form, cost = item.format, 0.0
        found[-1].append(number)
        cost += more
    return found


def units(groups: Iterable[Sequence[int]]) -> dict[int, int]:
    """Number of an input -> number of its unit, for groups of several inputs.

    The unit has the number of one of its inputs: another place in each group, so that the numbers are spread evenly
    over the groups of units that later steps make of them (`number % groups`).
    """
    return {
        number: group[place % len(group)] for place, group in enumerate(groups) if len(group) > 1 for number in group
    }
