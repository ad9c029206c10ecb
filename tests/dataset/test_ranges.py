"""The shard rule: floor(uid * S / 2^128). It is exact at every border. Names and bytes follow from it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset import shards
from pipeline.dataset.ranges import MOST, Ranges, recorded
from pipeline.engine import hashing
from tests import samples

COUNTS = (1, 2, 3, 7, 10, 64, 1000, 4097, 65_536, 99_999, 100_000, 100_001, 999_983, MOST)
TOP = 1 << 128


def of(ranges: Ranges, uids: list[int]) -> list[int]:
    column = pa.array([uid.to_bytes(16, "big") for uid in uids], pa.binary(16))
    return ranges.of(*hashing.uid_words(column)).tolist()


@pytest.mark.parametrize("count", COUNTS)
def test_the_range_is_that_of_whole_numbers(count: int) -> None:
    rng = random.Random(count)
    numbers = [0, 1, count // 2, count - 1, count, *(rng.randrange(count + 1) for _ in range(200))]
    borders = [-(-number * TOP // count) for number in numbers]  # the first uid of each range
    words = [0, 1, (1 << 64) - 1, 1 << 64, (1 << 96) - 1, TOP - 1, *(rng.randrange(TOP) for _ in range(200))]
    uids = [uid for border in borders for uid in (border - 1, border, border + 1) if 0 <= uid < TOP] + words
    assert of(Ranges(count), uids) == [uid * count // TOP for uid in uids]


@pytest.mark.parametrize("count", COUNTS)
def test_a_range_begins_at_its_first_key(count: int) -> None:
    ranges = Ranges(count)
    for number in {0, count // 3, count - 1}:
        first = int(ranges.first_key(number), 16)
        assert of(ranges, [first]) == [number] and (first == 0 or of(ranges, [first - 1]) == [number - 1])
    assert ranges.first_key(count) > f"{TOP - 1:032x}"


def test_the_order_of_the_names_is_that_of_the_numbers() -> None:
    for count in COUNTS:
        numbers = sorted({0, 9, 10, 99_998 % count, 99_999 % count, 100_000 % count, count - 1})
        names = [shards.tar_path(number, Ranges(count).digits) for number in numbers if number < count]
        assert names == sorted(names) and len(set(map(len, names))) == 1
    assert [Ranges(count).digits for count in (1, 100_000, 100_001, MOST)] == [5, 5, 6, 6]


def test_no_rows_have_no_range() -> None:
    assert np.array_equal(Ranges(5).of(np.zeros(0, np.uint64), np.zeros(0, np.uint64)), np.zeros(0, np.int64))


@pytest.mark.parametrize("count", [0, -1, MOST + 1])
def test_a_number_of_ranges_is_bounded(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000000"):
        Ranges(count)


def test_what_a_manifest_records() -> None:
    assert recorded({"shards": {"ranges": 17}}) == Ranges(17) and recorded({}) is None
    for wrong in (17, {}, {"ranges": "17"}, {"ranges": 0}, {"ranges": True}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            recorded({"shards": wrong})


def changed(rows: pa.Table) -> pa.Table:
    """The same rows with other values in the columns that depend on other rows."""
    more = {"keep_probability": pa.array([0.125] * len(rows), pa.float32()), "kept_by": pa.array([[7]] * len(rows))}
    for name, column in more.items():
        at = rows.column_names.index(name)
        rows = rows.set_column(at, rows.field(at), column.cast(rows.field(at).type))
    return rows


@pytest.mark.parametrize("seed", range(12))
def test_more_pairs_elsewhere_leave_a_shard_as_it_is(tmp_path: Path, seed: int) -> None:
    """Publishes a set, and the same set with more pairs: a shard with the same rows has the same tar."""
    rng = random.Random(seed)
    per_shard = rng.choice((4, 12, 30))
    ranges = samples.ranges_of(per_shard)
    few = sorted(rng.sample(range(150), rng.randrange(1, 40)))
    many = sorted({*few, *rng.sample(range(150), rng.randrange(1, 12))})
    tars: list[dict[int, tuple[list[str], bytes, bytes]]] = []
    for name, numbers in (("few", few), ("many", many)):
        found = {}
        for shard in sorted({number // per_shard for number in numbers}):
            mine = [number for number in numbers if number // per_shard == shard]
            rows = samples.fetched_of(mine) if name == "few" else changed(samples.fetched_of(mine))

            def put(row: int, place: memoryview, mine: list[int] = mine) -> None:
                place[:] = samples.jpeg(mine[row])

            info, table = shards.write_shard(str(tmp_path / name), shard, rows, put, ranges=ranges)
            tar, metadata = ((tmp_path / name / entry.path).read_bytes() for entry in info.files)
            found[shard] = table["key"].to_pylist(), tar, metadata
        tars.append(found)
    before, after = tars
    assert set(before) <= set(after)
    for shard, (keys, tar, metadata) in before.items():
        assert (after[shard][0] == keys) == (after[shard][1] == tar)
        assert after[shard][2] != metadata  # the metadata has the probabilities
