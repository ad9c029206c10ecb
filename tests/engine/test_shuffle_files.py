"""Bucket files: reading gives back the rows that were written, in one piece or in several."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine import hashing, shuffle_files, storage

SCHEMA = pa.schema([pa.field("n", pa.int64(), False), pa.field("text", pa.string())])


def rows(numbers: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"n": n, "text": str(n) if n % 3 else None} for n in numbers], SCHEMA)


def test_a_bucket_comes_back_from_the_file(tmp_path):
    path = str(tmp_path / "one.rows")
    messages = shuffle_files.cut(rows([5, 1, 4, 2]), np.array([2, 0, 2, 0]), 4)
    assert shuffle_files.write(path, messages) == (tmp_path / "one.rows").stat().st_size
    found = [shuffle_files.table([shuffle_files.read(path, bucket)], SCHEMA)["n"].to_pylist() for bucket in range(4)]
    assert found == [[1, 2], [], [5, 4], []]
    assert [bucket for bucket, _ in shuffle_files.read_all(path)] == [0, 2]
    (tmp_path / "one.rows").write_bytes((tmp_path / "one.rows").read_bytes()[:-1])
    with pytest.raises(storage.DamagedError, match="is cut: bucket 2"):
        shuffle_files.read(path, 2)


@pytest.mark.parametrize(("wanted", "found"), [(0, 2), (2, 2), (2.1, 4), (4, 4), (5, 8), (8, 8), (1e9, 8)])
def test_powers_of_two(wanted, found):
    assert shuffle_files.power_of_two(wanted, min_count=2, max_count=8) == found
    assert shuffle_files.power_of_two(wanted / 1e9) == 1


def test_batches_that_are_cut_already_are_joined():
    """Gives the same rows in the same order in each bucket as one batch with all rows."""
    random = np.random.default_rng(0)
    batches, numbers, places = [], [], []
    for size in (0, 1, 30, 200):
        values, bucket = random.integers(0, 1000, size), random.integers(0, 7, size)
        order, _ = hashing.partition(bucket, 8)
        batches.append(rows(values[order].tolist()))
        numbers.append(bucket[order])
        places.append((values, bucket))
    whole = rows(np.concatenate([values for values, _ in places]).tolist())
    expected = shuffle_files.cut(whole, np.concatenate([bucket for _, bucket in places]), 8)
    found = shuffle_files.join(batches, numbers, 8)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or shuffle_files.table([one], SCHEMA).equals(shuffle_files.table([other], SCHEMA))
    assert shuffle_files.join([], [], 2) == [None, None]
