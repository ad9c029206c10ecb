"""hashing: the values of the reference library, digests without order, and kernels that agree with the references."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from pipeline.engine import hashing, jit

needs_kernels = pytest.mark.skipif(not jit.available(), reason="numba is not installed or OPENWIT_NO_KERNELS is set")


@pytest.fixture(params=["plain", pytest.param("kernel", marks=needs_kernels)])
def way(request, monkeypatch):
    """Runs a test with the kernels and without them."""
    kernel = request.param == "kernel"
    monkeypatch.setattr(jit, "available", lambda: kernel)
    monkeypatch.setattr(jit, "FEW_ROWS", 0)
    return request.param


def strings_of_all_lengths():
    """Bytes of every length up to 600, and of lengths around the block sizes above."""
    generator = np.random.default_rng(1)
    lengths = [*range(600), 1023, 1024, 1025, 1088, 2047, 2048, 2049, 5000, 10_000]
    return [generator.bytes(length) for length in lengths]


def test_hash_strings_is_the_reference_hash(way):
    values = strings_of_all_lengths()
    words = hashing.hash_strings(pa.array(values, pa.binary()))
    expected = [xxhash.xxh3_128_intdigest(value) for value in values]
    assert [int(high) << 64 | int(low) for high, low in words.tolist()] == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_hash_strings_of_every_type_and_slice(way, kind):
    values = ["", "a", "Grüße", "x" * 300, "猫"]
    whole = hashing.hash_strings(pa.array(values))
    array = pa.array(["before", *values, "after"], kind) if "binary" not in str(kind) else None
    array = array or pa.array([value.encode() for value in ["before", *values, "after"]], kind)
    assert np.array_equal(hashing.hash_strings(array.slice(1, len(values))), whole)
    chunked = pa.chunked_array([array.slice(1, 2), array.slice(3, 3)])
    assert np.array_equal(hashing.hash_strings(chunked), whole)
    assert hashing.hash_strings(array.slice(0, 0)).shape == (0, 2)


def test_hash_strings_refuses_nulls_and_numbers():
    with pytest.raises(ValueError, match="1 nulls"):
        hashing.hash_strings(pa.array(["a", None]))
    with pytest.raises(TypeError, match="int64"):
        hashing.hash_strings(pa.array([1]))


def test_uid_is_what_anyone_can_recompute(way):
    urls, texts = ["http://a.example/1.jpg", "http://b.example/"], ["a cat", "ein Hund"]
    keys = hashing.pair_keys(pa.array(urls), pa.array(texts, pa.large_string()))
    for url, text, uid, url_hash in zip(urls, texts, keys.uid.to_pylist(), keys.url_hash.tolist(), strict=True):
        parts = xxhash.xxh3_128(url.encode()).digest() + xxhash.xxh3_128(text.encode()).digest()
        assert uid == xxhash.xxh3_128(parts).digest()
        assert url_hash == xxhash.xxh3_128_intdigest(url.encode()) >> 64
    high, low = hashing.uid_words(keys.uid.slice(1))
    assert int(high[0]) << 64 | int(low[0]) == int.from_bytes(keys.uid[1].as_py(), "big")
    assert hashing.uids(np.stack(hashing.uid_words(keys.uid), axis=1)).equals(keys.uid)


def test_pair_keys_of_no_rows(way):
    keys = hashing.pair_keys(pa.array([], pa.string()), pa.array([], pa.string()))
    assert len(keys.url_hash) == len(keys.uid) == 0
    assert len(hashing.uid_words(keys.uid)[0]) == 0


def test_a_pair_is_not_its_concatenation(way):
    keys = hashing.pair_keys(pa.array(["ab", "a"]), pa.array(["c", "bc"]))
    assert keys.uid[0] != keys.uid[1]


def test_mix_is_splitmix64():
    """The finaliser over a counter is the splitmix64 generator. Its first values for seed 0 are published."""
    golden = 0x9E3779B97F4A7C15
    values = [int(hashing.finalise(golden * i)) for i in (1, 2, 3)]
    assert values == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert int(hashing.mix(5, 7)) == int(hashing.finalise(int(hashing.finalise(5 + golden)) ^ 7))
    assert hashing.mix(np.arange(4, dtype=np.uint64), -1).shape == (4,)


def test_query_keys_depend_on_string_and_seed():
    keys = hashing.query_keys(pa.array(["cat", "dog"]), seed=1)
    assert np.array_equal(hashing.query_keys(pa.array(["dog", "cat"]), seed=1), keys[::-1])
    assert not np.isin(keys, hashing.query_keys(pa.array(["cat", "dog"]), seed=2)).any()


def test_provenance_hash_tells_rows_apart():
    pages, names = pa.array(["p", "p", "p", "p", "q"]), hashing.mix([1, 1, 1, 2, 1], 0)
    hashes = hashing.provenance_hash(pages, names, [7, 8, 7, 7, 7], np.array([0, 0, 1, 0, 0], np.int8))
    assert len(set(hashes.tolist())) == 5


def make_table(numbers="int64", strings="string", lists=None):
    return pa.table(
        {
            "number": pa.array([1, None, -3, 4], numbers),
            "text": pa.array(["a", "", None, "d"], strings),
            "real": [0.0, float("nan"), None, 2.5],
            "flag": [True, False, None, True],
            "list": pa.array([[1, 2], [], None, [2, 1]], lists or pa.list_(pa.int32())),
            "nested": [[["a"], None], [["b", None]], [], None],
            "uid": pa.array([b"0" * 16] * 4, pa.binary(16)),
            "time": pa.array([1, 2, None, 3], pa.timestamp("us")),
            "record": [{"x": 1, "y": "a"}, {"x": None, "y": ""}, None, {"x": 2, "y": "b"}],
        }
    )


def test_table_digest_has_no_order_and_adds_up(way):
    table = make_table()
    digest = hashing.table_digest(table)
    assert hashing.table_digest(table.take([2, 0, 3, 1])) == digest
    parts = [hashing.table_digest(table.slice(start, 2)) for start in (0, 2)]
    assert hashing.add_digests(*parts) == digest
    assert hashing.table_digest(table.slice(0, 0)) == 0
    assert digest == hashing.table_digest(table.combine_chunks().to_batches()[0])


def test_table_digest_ignores_widths_of_types():
    wide = make_table("int64", "large_string", pa.large_list(pa.int64()))
    assert hashing.table_digest(make_table("int8")) == hashing.table_digest(wide)


@pytest.mark.parametrize("column", make_table().column_names)
def test_table_digest_sees_every_value(column):
    table = make_table()
    hashes = hashing.column_hash(table[column])
    if column != "uid":
        assert len(set(hashes.tolist())) == len(set(map(repr, table[column].to_pylist())))
    at = table.column_names.index(column)
    changed = table.set_column(at, column, table[column].take(pa.array([1, 1, 1, 1])))
    assert (hashing.table_digest(changed) == hashing.table_digest(table)) == (column == "uid")


def test_digest_sees_which_column_and_which_row():
    one, two = pa.array([1, 2]), pa.array([3, 4])
    digests = {
        hashing.table_digest(pa.table({"a": a, "b": b}))
        for a, b in ((one, two), (two, one), (one, two.take([1, 0])), (pa.array([1, 1]), two))
    }
    assert len(digests) == 4
    assert hashing.table_digest(pa.table({"a": [7, 7]})) != hashing.table_digest(pa.table({"a": [9, 9]}))


def test_equal_values_of_floats_hash_alike():
    hashes = hashing.column_hash(pa.array([0.0, -0.0, float("nan"), -float("nan")]))
    assert hashes[0] == hashes[1] and hashes[2] == hashes[3] != hashes[0]


@pytest.mark.parametrize("missing", [0, 2, 4, 5])
def test_nulls_hash_alike_whatever_lies_beside_them(missing):
    """A column with few values and many nulls is hashed by those few values alone."""
    for values in (["a", "b", "", "dä", "e"], [1, 2, 0, 4, 5], [[1], [2, 3], [], [4], [5]]):
        column = pa.array([None] * missing + values[missing:], pa.array(values).type)
        expected = [int(hashing.column_hash(pa.array([value], column.type))[0]) for value in column.to_pylist()]
        assert hashing.column_hash(column).tolist() == expected
        assert hashing.column_hash(column.slice(1, 3)).tolist() == expected[1:4]


def test_hashes_of_lists_of_integers(way):
    """Those of short lists are the same as those of any other list type, whatever lies before and behind them."""
    values = [[0], [], [-1, 2**31 - 1, 7], [7, -1], list(range(50))]
    expected = hashing.column_hash(pa.array(values, pa.large_list(pa.int64()))).tolist()
    lists = pa.array(values, pa.list_(pa.int32()))
    assert hashing.column_hash(lists).tolist() == expected and len(set(expected)) == 5
    assert hashing.column_hash(lists.slice(2, 2)).tolist() == expected[2:4]
    assert hashing.column_hash(lists.slice(1, 0)).tolist() == []
    assert hashing.column_hash(pa.array([[1, None], None], lists.type))[1] == hashing.column_hash(pa.nulls(1))[0]


def test_sums_of_lists(way):
    values = np.array([1, 2**64 - 1, 7], np.uint64)
    lists = pa.array([[0], [], [0, 1, 2], [2, 2]], pa.list_(pa.int32()))
    assert hashing.sums_of_lists(values, lists).tolist() == [1, 0, 7, 14]
    assert hashing.sums_of_lists(values, lists.slice(2)).tolist() == [7, 14]
    assert hashing.sums_of_lists(values, lists.slice(0, 0)).tolist() == []
    with pytest.raises((ValueError, IndexError)):
        hashing.sums_of_lists(values, pa.array([[3]], pa.list_(pa.int32())))


def test_partition_is_stable(way):
    numbers = np.random.default_rng(2).integers(0, 7, 1000)
    order, starts = hashing.partition(numbers, 9)
    assert starts.tolist() == [0, *np.cumsum(np.bincount(numbers, minlength=9)).tolist()]
    assert np.array_equal(order, np.argsort(numbers, kind="stable"))


def test_buckets_are_the_top_bits():
    hashes = np.array([0, 2**63, 2**64 - 1], np.uint64)
    assert hashing.buckets(hashes, 0).tolist() == [0, 0, 0]
    assert hashing.buckets(hashes, 2).tolist() == [0, 2, 3]
    with pytest.raises(ValueError):
        hashing.buckets(hashes, 33)
