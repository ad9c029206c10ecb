"""Bucket files: what goes in comes out, cut in one piece or in several."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline import buckets, hashing

SCHEMA = pa.schema([pa.field("n", pa.int64(), False), pa.field("text", pa.string())])


def rows(numbers: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"n": n, "text": str(n) if n % 3 else None} for n in numbers], SCHEMA)


def test_a_bucket_comes_back_from_the_file(tmp_path):
    path = str(tmp_path / "one.rows")
    messages = buckets.cut(rows([5, 1, 4, 2]), np.array([2, 0, 2, 0]), 4)
    assert buckets.write(path, messages) == (tmp_path / "one.rows").stat().st_size
    found = [buckets.table([buckets.read(path, bucket)], SCHEMA)["n"].to_pylist() for bucket in range(4)]
    assert found == [[1, 2], [], [5, 4], []]
    assert [bucket for bucket, _ in buckets.read_all(path)] == [0, 2]
    (tmp_path / "one.rows").write_bytes((tmp_path / "one.rows").read_bytes()[:-1])
    with pytest.raises(OSError, match="is cut: bucket 2"):
        buckets.read(path, 2)


def test_batches_that_are_cut_already_are_joined():
    """As if all rows had been one batch: the same rows in the same order in each bucket."""
    random = np.random.default_rng(0)
    batches, numbers, places = [], [], []
    for size in (0, 1, 30, 200):
        values, bucket = random.integers(0, 1000, size), random.integers(0, 7, size)
        order, _ = hashing.partition(bucket, 8)
        batches.append(rows(values[order].tolist()))
        numbers.append(bucket[order])
        places.append((values, bucket))
    whole = rows(np.concatenate([values for values, _ in places]).tolist())
    expected = buckets.cut(whole, np.concatenate([bucket for _, bucket in places]), 8)
    found = buckets.join(batches, numbers, 8)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or buckets.table([one], SCHEMA).equals(buckets.table([other], SCHEMA))
    assert buckets.join([], [], 2) == [None, None]
