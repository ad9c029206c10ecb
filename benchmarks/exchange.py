"""What an exchange by files costs, with and without a merge: CPU, reads and bytes.

    python benchmarks/exchange.py [--producers 600] [--buckets 512] [--rows 24]

Keys of dedup, `--rows` in each bucket of each producer, go from files to buckets. Either each bucket is read from the
file of each producer, or the files are merged first (`pipeline.engine.merging`). Times are CPU seconds of this process.
The files are in the cache of the system. The rows of a bucket must be the same both ways.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engine import merging, shuffle_files
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StepFolder, run_unit
from pipeline.stages.row_pass import KEYS


@dataclasses.dataclass(frozen=True)
class Take:
    """The step that reads the buckets."""

    root: str
    buckets: int

    @property
    def folder(self) -> StepFolder:
        return StepFolder(f"{self.root}/stages/dedup/drops", "f")

    @property
    def reads(self) -> Reading:
        return Reading(StepFolder(f"{self.root}/stages/match/parts", "f"), "keys")

    def units(self) -> int:
        return self.buckets

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        raise NotImplementedError


def give(task: Take, producers: int, rows: int) -> int:
    """Writes the files of the producers. Returns their bytes."""
    random, size = np.random.default_rng(0), 0
    bucket = np.repeat(np.arange(task.buckets), rows)
    for unit in range(producers):
        columns = [random.integers(0, 200, len(bucket)).astype(field.type.to_pandas_dtype()) for field in KEYS]
        batch = pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=KEYS)
        cut = shuffle_files.cut(batch, bucket, task.buckets)
        size += shuffle_files.write(task.reads.folder.file(unit, "keys", 0), cut)
        task.reads.folder.write_manifest(unit, {"parts": 1})
    return size


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


def read(task: Take, bucket_of: Callable[[int], list[bytes]]) -> list[int]:
    """A sum over the rows of each bucket."""
    tables = (shuffle_files.table(bucket_of(bucket), KEYS) for bucket in range(task.buckets))
    return [table.num_rows + int(table["image"].to_numpy().sum()) for table in tables]


def main() -> None:
    """Prints one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("producers", 600), ("buckets", 512), ("rows", 24)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as root:
        task = Take(root, given.buckets)
        size = give(task, given.producers, given.rows)
        direct, found = seconds(lambda: read(task, task.reads.bucket))
        reads = given.producers * given.buckets
        each = direct / reads * 1e6
        print(f"direct   {reads:,} reads of {size // reads:,} bytes: {direct:.1f} CPU s, {each:.0f} us each")
        merging.MOST_READS = 0
        merge = merging.Merge(task)
        shape = merge.shape()
        first, _ = seconds(lambda: [run_unit(merge.folder, unit, merge.run) for unit in range(merge.units())])
        second, again = seconds(lambda: read(task, merge.bucket))
        assert again == found
        ranges, buckets = shape.producers * shape.ranges, shape.groups * shape.buckets
        print(f"merging  {ranges:,} reads, {shape.units():,} units and {2 * shape.units():,} files: {first:.1f} CPU s")
        print(f"merged   {buckets:,} reads: {second:.1f} CPU s; {size / 1e6:,.0f} MB are written and read once more")


if __name__ == "__main__":
    main()
