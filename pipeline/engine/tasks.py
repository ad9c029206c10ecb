"""Tasks: what a step runs on the workers, unit by unit, and what an exchange delivers to a unit. No Beam."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from pipeline.engine import shuffle_files
from pipeline.engine.work import StepFolder

# A step gives so many elements to Beam, at least and at most. Element e stands for every elements-th unit from e on.
FEWEST_ELEMENTS, MOST_ELEMENTS = 64, 1 << 17
UNKNOWN_WORKERS = 1024  # is assumed where the engine decides alone
ELEMENTS_PER_WORKER = 4  # so that a slow element does not hold up the others for long
EXCHANGES = ("files", "shuffle")


def elements_for(workers: int | None) -> int:
    """How many elements a step gives to an engine with so many workers (None: not known). No row depends on it."""
    wanted = (UNKNOWN_WORKERS if workers is None else workers) * ELEMENTS_PER_WORKER
    return min(max(wanted, FEWEST_ELEMENTS), MOST_ELEMENTS)


def units_of_element(task: Task, element: int, elements: int) -> Sequence[int]:
    """The units of one of so many elements, in the order in which they run.

    They are dealt out in the order of `task.numbers()`: so each element gets large and small units, the large ones
    first, and no element is late for a large unit at its end.
    """
    numbers = getattr(task, "numbers", None)
    return (range(task.units()) if numbers is None else numbers())[element::elements]


class Task(Protocol):
    """The units of one step.

    A task may have a method `numbers`, too: its units, those first that take longest. Else they are 0, 1, ...
    """

    @property
    def folder(self) -> StepFolder: ...

    def units(self) -> int:
        """The number of units. It is called on the workers, when the step before has ended."""
        ...

    def run(self, unit: int) -> dict[str, Any]:
        """Runs one unit: writes its files by atomic rename and returns its manifest."""
        ...


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an exchange delivers: the bucket files of `folder` with the ending `kind`, one per part of each unit."""

    folder: StepFolder
    kind: str

    def paths(self) -> Iterator[tuple[tuple[int, int], str]]:
        """((unit, part), path) of every bucket file, by number."""
        for unit, manifest in self.folder.manifests():
            for part in range(manifest["parts"]):
                yield (unit, part), self.folder.file(unit, self.kind, part)

    def bucket(self, bucket: int) -> list[bytes]:
        """The messages of one bucket, read from all files."""
        return [shuffle_files.read(path, bucket) for _, path in self.paths()]


class ExchangeTask(Protocol):
    """The units of a step that reads an exchange: unit b gets bucket b."""

    @property
    def folder(self) -> StepFolder: ...

    @property
    def reads(self) -> Reading: ...

    def units(self) -> int: ...

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]: ...
