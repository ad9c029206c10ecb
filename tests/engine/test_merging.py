"""Exchanges in two levels: each bucket has the rows of an exchange without a merge, in their order."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import merging, shuffle_files, storage
from pipeline.engine.merging import Merge, Shape
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StepFolder, run_unit

SCHEMA = pa.schema([pa.field("n", pa.int64(), False), pa.field("text", pa.string())])


@dataclasses.dataclass(frozen=True)
class Take:
    """A task that is given buckets."""

    root: str
    buckets: int

    @property
    def folder(self) -> StepFolder:
        return StepFolder(f"{self.root}/stages/after/take", "f")

    @property
    def reads(self) -> Reading:
        return Reading(StepFolder(f"{self.root}/stages/before/give", "f"), "rows")

    def units(self) -> int:
        return self.buckets

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        raise NotImplementedError


def give(task: Take, parts: list[int]) -> None:
    """Bucket files of units with so many parts. Each row tells where it comes from."""
    for unit, count in enumerate(parts):
        for part in range(count):
            numbers = [(unit * 10 + part) * 100 + row for row in range(2 * task.buckets)]
            batch = pa.RecordBatch.from_pylist([{"n": n, "text": str(n)} for n in numbers], SCHEMA)
            bucket = np.array(numbers) * 7919 % (task.buckets + 1)  # some buckets are empty
            keep = bucket < task.buckets
            cut = shuffle_files.cut(batch.filter(pa.array(keep)), bucket[keep], task.buckets)
            shuffle_files.write(task.reads.folder.file(unit, "rows", part), cut)
        task.reads.folder.write_manifest(unit, {"parts": count})


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(1, 9))
def test_a_merged_bucket_has_the_rows_of_all_producers_in_order(parts: list[int], buckets: int) -> None:
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "MOST_READS", 0)
        task = Take(root, buckets)
        give(task, parts)
        merge = Merge(task)
        for unit in range(merge.units()):
            run_unit(merge.folder, unit, merge.run)
        for bucket in range(buckets):
            direct = shuffle_files.table(task.reads.bucket(bucket), SCHEMA)
            assert shuffle_files.table(merge.bucket(bucket), SCHEMA).equals(direct)
        assert len(merge.folder.manifests()) == merge.units()


def test_few_reads_are_not_merged(tmp_path) -> None:
    task = Take(str(tmp_path), 4)
    give(task, [1, 1])
    assert Merge(task).units() == 0
    assert Merge(task).bucket(1) == task.reads.bucket(1)


def test_the_exchanges_of_a_crawl_are_small() -> None:
    """90,000 units and 4,096 buckets: 369 million reads."""
    shape = Shape(90_000, 4_096)
    reads = shape.producers * shape.ranges + shape.groups * shape.buckets
    assert reads < 7_100_000
    assert (shape.together, shape.width, shape.units()) == (300, 64, 19_200)


def test_neighbouring_buckets_come_in_one_piece_and_damage_is_seen(tmp_path) -> None:
    task = Take(str(tmp_path), 6)
    give(task, [1])
    path = task.reads.folder.file(0, "rows", 0)
    every = [shuffle_files.read(path, bucket) for bucket in range(6)]
    assert shuffle_files.read_range(path, 2, 5) == every[2:5]
    whole = (tmp_path / "stages/before/give/00000-000.rows").read_bytes()
    (tmp_path / "stages/before/give/00000-000.rows").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert shuffle_files.read_range(path, 0, 2) == every[:2]
    with pytest.raises(storage.DamagedError):
        shuffle_files.read_range(path, 2, 6)
    (tmp_path / "stages/before/give/00000-000.rows").write_bytes(whole[:-1])
    with pytest.raises(storage.DamagedError, match="should lie at"):
        shuffle_files.read_range(path, 0, 6)
