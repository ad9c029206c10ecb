"""The kept dropped rows of a stage: the rows decide their order, never the units that dropped them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.engine.work import StepFolder
from pipeline.stages.base import merge_rejected
from pipeline.stages.tally import Rejects, Tally, unit_body

ROWS = [
    (f"http://a.example/{number}.jpg", f"text {number % 3}", ("no_query", "language")[number % 2])
    for number in range(12)
]


def drop(folder: StepFolder, keep: str, units: Iterable[list[int]]) -> pa.Table:
    """The merged rows of units that dropped the given ROWS."""
    for unit, numbers in enumerate(units):
        rejects = Rejects(keep)
        tally = Tally("match", rejects)
        for url, text, reason in (ROWS[number] for number in numbers):
            tally.drop(reason, pa.array([url]), pa.array([text]))
        folder.write_manifest(unit, unit_body(folder, unit, [tally], rejects))
    return merge_rejected("match", [folder], keep=keep)


@pytest.mark.parametrize("keep", ["sample", "all"])
def test_the_order_does_not_tell_the_units(keep: str, tmp_path: Path) -> None:
    found = [
        drop(StepFolder(str(tmp_path / str(number) / "stages/match/parts"), "f"), keep, units)
        for number, units in enumerate(([[*range(12)]], [[*range(6, 12)], [5, 3, 1], [0, 2, 4]]))
    ]
    assert found[0].equals(found[1]) and found[0].num_rows == len(ROWS)
