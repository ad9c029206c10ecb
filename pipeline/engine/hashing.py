"""Hashes of strings, of pairs and of whole tables. Every choice of the pipeline depends on hashes, none on order.

Three kinds of values come out, all numpy uint64 arrays:

* *content hashes*: xxh3_128 of bytes, as two words (high, low). `digest()` of the reference library is big-endian, so
  the high word is its first eight bytes. A pair's uid is xxh3_128(xxh3_128(url).digest() +
  xxh3_128(text).digest()).digest(): anyone can recompute it with any xxHash library.
* *keyed mixes*: `mix(a, b)`, the splitmix64 finaliser applied twice, for draws that depend on two things (pair and
  query).
* *digests*: order-free sums of row hashes. They tell whether two tables hold the same rows.

The functions here are the reference, in Python and numpy. `hashing_kernel` gives the same values from compiled code.
It is used if kernels are available and the rows are many enough to pay for loading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.engine import jit

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_NULL = np.uint64(0x6E756C6C6E756C6C)  # the hash of a missing value: "nullnull"


class PairKeys(NamedTuple):
    """The keys of a batch of pairs."""

    url_hash: Words  # high word of xxh3_128(url)
    uid: pa.FixedSizeBinaryArray  # binary(16), big-endian digest


def as_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one contiguous array (a chunked one is joined)."""
    if isinstance(column, pa.ChunkedArray):
        chunks = column.chunks or [pa.array([], column.type)]
        return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    return column


def as_batch(table: pa.Table) -> pa.RecordBatch:
    """The table as one record batch, which may be empty."""
    return (table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)])[0]


def string_buffers(column: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of a string or binary column and the n + 1 offsets into them, without a copy of the bytes.

    Slices are handled. Nulls are refused: the caller decides what a missing string means.
    """
    array = as_array(column)
    if array.null_count:
        raise ValueError(f"{array.null_count} nulls in a column of strings that must have none")
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        width: type = np.int32
    elif pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type):
        width = np.int64
    else:
        raise TypeError(f"expected strings or binary, got {array.type}")
    _, offset_buffer, data_buffer = array.buffers()
    if len(array) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(offset_buffer, width)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    data = np.zeros(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    return data, offsets


def hash_strings(column: pa.Array | pa.ChunkedArray) -> Words:
    """xxh3_128 of every value of a string or binary column, as an (n, 2) array of [high, low] words."""
    data, offsets = string_buffers(column)
    kernel = _kernel(len(offsets) - 1)
    return kernel.hash_strings(data, offsets) if kernel else _hash_strings(data, offsets)


def pair_keys(urls: pa.Array | pa.ChunkedArray, texts: pa.Array | pa.ChunkedArray) -> PairKeys:
    """URL hash and uid of every (url, text) pair."""
    if len(urls) != len(texts):
        raise ValueError(f"{len(urls)} URLs but {len(texts)} texts")
    kernel = _kernel(len(urls))
    if kernel:
        url_hash, words = kernel.pair_keys(*string_buffers(urls), *string_buffers(texts))
    else:
        url_words, text_words = _hash_strings(*string_buffers(urls)), _hash_strings(*string_buffers(texts))
        digests = np.ascontiguousarray(np.hstack([url_words, text_words]).astype(">u8")).view(np.uint8).ravel()
        words = _hash_strings(digests, np.arange(0, len(digests) + 1, 32))
        url_hash = url_words[:, 0].copy()
    return PairKeys(url_hash, uids(words))


def uids(words: Words) -> pa.FixedSizeBinaryArray:
    """(n, 2) [high, low] words as binary(16) values, big-endian as in `digest()`; the inverse of `uid_words`."""
    data = pa.py_buffer(words.astype(">u8").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(words), [None, data])


def uid_words(uid: pa.Array | pa.ChunkedArray) -> tuple[Words, Words]:
    """The (high, low) words of a column of uids."""
    array = as_array(uid)
    if array.type != pa.binary(16):
        raise TypeError(f"expected binary(16), got {array.type}")
    if len(array) == 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    words = np.frombuffer(array.buffers()[1], ">u8")[2 * array.offset : 2 * (array.offset + len(array))]
    return words[0::2].astype(np.uint64), words[1::2].astype(np.uint64)


def finalise(values: npt.ArrayLike) -> Words:
    """The splitmix64 finaliser: a bijection of 64-bit words. Each input bit changes about half of the output bits."""
    x = _words(values)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def mix(a: npt.ArrayLike, b: npt.ArrayLike) -> Words:
    """A 64-bit hash of two words: finalise(finalise(a + golden ratio) ^ b). Arrays and numbers broadcast.

    For a fixed `b` it is a bijection of `a`. For a fixed `a` it is a bijection of `b`. Numbers are taken modulo 2^64.
    """
    with np.errstate(over="ignore"):
        return finalise(finalise(_words(a) + _GOLDEN) ^ _words(b))


def query_keys(queries: pa.Array | pa.ChunkedArray, seed: int = 0) -> Words:
    """One key a query, from its string (ids may change from list to list) and the seed of the run."""
    return mix(hash_strings(queries)[:, 0], seed)


def provenance_hash(
    page_urls: pa.Array | pa.ChunkedArray, source_names: Words, offsets: npt.ArrayLike, *codes: npt.ArrayLike
) -> Words:
    """A hash of where a pair was found: the tie-break between equal pairs.

    It depends on names, never on numbers that change when a file is renamed or the input is split in another way.

    Args:
        page_urls: the pages.
        source_names: for each row the hash of the *name* of its input file.
        offsets: where in the file the record starts.
        codes: further columns of numbers that tell rows apart (text_source, url_source, a hash of the text as found).
    """
    key = mix(mix(hash_strings(page_urls)[:, 0], source_names), _integers(offsets))
    for code in codes:
        key = mix(key, _integers(code))
    return key


def column_hash(column: pa.Array | pa.ChunkedArray) -> Words:
    """A 64-bit hash of every value of any Arrow column: numbers, booleans, strings, binary, times, lists, structs.

    Equal values have equal hashes in every width of their type (int8 and int64, string and large_string). A null has a
    hash of its own. -0.0 equals 0.0, and every NaN equals every other.
    """
    array = as_array(column)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return column_hash(array.dictionary_decode())
    if pa.types.is_null(kind):
        return np.full(len(array), _NULL, np.uint64)
    if not array.null_count:
        return _hash_values(array, kind)
    if 2 * array.null_count > len(array):  # most values are missing
        hashes = np.full(len(array), _NULL, np.uint64)
        if array.null_count < len(array):
            hashes[np.asarray(array.is_valid())] = _hash_values(array.drop_null(), kind)
        return hashes
    hashes = _hash_values(array, kind)
    hashes[np.asarray(array.is_null())] = _NULL
    return hashes


def row_hash(*columns: npt.ArrayLike) -> Words:
    """One hash a row from columns of 64-bit hashes; the order of the columns matters."""
    row = finalise(_words(columns[0]) + _words(len(columns)))
    for column in columns[1:]:
        row = mix(row, column)
    return row


def row_digest(*columns: npt.ArrayLike) -> int:
    """An order-free digest of rows: the sum of the row hashes modulo 2^64. Digests of parts add up."""
    return int(row_hash(*columns).sum(dtype=np.uint64))


def sums_of_lists(values: Words, lists: pa.ListArray) -> Words:
    """For each row the sum (modulo 2^64) of values[id] over its ids: a hash of the set of ids."""
    offsets = np.asarray(lists.offsets)
    ids = np.asarray(lists.values) if len(lists.values) else np.zeros(0, np.int32)
    kernel = _kernel(len(lists))
    if kernel:
        return kernel.sums_of_lists(values, offsets, ids)
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values[ids[offsets[0] : offsets[-1]]])])
    return running[offsets[1:] - offsets[0]] - running[offsets[:-1] - offsets[0]]


def table_digest(table: pa.RecordBatch | pa.Table, columns: Sequence[str] | None = None) -> int:
    """The `row_digest` of the named columns (all of them by default), taken in the order given."""
    names = table.schema.names if columns is None else columns
    return row_digest(*[column_hash(table.column(name)) for name in names]) if table.num_rows and names else 0


def add_digests(*digests: int) -> int:
    """The digest of the rows of several tables together."""
    return sum(digests) % 2**64


def buckets(hashes: Words, bits: int) -> npt.NDArray[np.int64]:
    """The top `bits` bits of each hash as a bucket number in 0 .. 2^bits - 1."""
    if not 0 <= bits <= 32:
        raise ValueError(f"{bits} bits of buckets: 0 to 32 are possible")
    return (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(hashes), np.int64)


def partition(bucket_of_row: npt.NDArray[np.int64], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows by bucket: (order, starts). The rows of bucket b are order[starts[b]:starts[b + 1]], in their old order."""
    kernel = _kernel(len(bucket_of_row))
    if kernel:
        return kernel.partition(bucket_of_row, count)
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(bucket_of_row, minlength=count), out=starts[1:])
    return np.argsort(bucket_of_row, kind="stable"), starts


def _kernel(rows: int) -> Any:
    """The kernel module, or None if it is not available or not worth loading."""
    return jit.kernel("pipeline.engine.hashing_kernel", rows)


def _hash_strings(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Words:
    """`hash_strings` by the xxhash package, with one Python call for each value."""
    view, ends = memoryview(data.data), offsets.tolist()
    digests = [xxhash.xxh3_128_digest(view[ends[i] : ends[i + 1]]) for i in range(len(ends) - 1)]
    return np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)


def _hash_values(array: pa.Array, kind: pa.DataType) -> Words:
    """`column_hash` without nulls: the hash of a null may be any value."""
    if pa.types.is_boolean(kind):
        return finalise(np.asarray(array.fill_null(False)).astype(np.uint64))
    if pa.types.is_integer(kind):
        return finalise(_integers(np.asarray(array.fill_null(0))))
    if pa.types.is_temporal(kind):
        return _hash_values(array.cast(pa.int32() if kind.bit_width == 32 else pa.int64()), pa.int64())
    if pa.types.is_floating(kind):
        values = np.asarray(array.fill_null(0.0)).astype(np.float64) + 0.0
        return finalise(np.where(np.isnan(values), np.nan, values).view(np.uint64))
    if pa.types.is_fixed_size_binary(kind):
        return _hash_values(array.cast(pa.binary()), pa.binary())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return hash_strings(array.fill_null("") if array.null_count else array)[:, 0].copy()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return hash_strings(array.fill_null(b"") if array.null_count else array)[:, 0].copy()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _hash_lists(array)
    if pa.types.is_struct(kind):
        fields = [column_hash(pc.struct_field(array, i)) for i in range(kind.num_fields)]
        return row_hash(*fields) if fields else np.zeros(len(array), np.uint64)
    raise TypeError(f"no hash for columns of type {kind}")


def _hash_lists(array: pa.Array) -> Words:
    """Hashes of lists. Each element hash is mixed with its place; their sum is mixed with the length."""
    if array.type == pa.list_(pa.int32()) and not array.null_count and not array.values.null_count:
        kernel = jit.kernel("pipeline.engine.mixing_kernel", len(array))
        if kernel:
            return kernel.hash_lists(np.asarray(array.offsets), np.asarray(array.values))
    lengths = np.asarray(pc.list_value_length(array).fill_null(0)).astype(np.int64)
    elements = column_hash(array.flatten())  # without the elements under null lists and outside a slice
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(elements), dtype=np.int64) - np.repeat(starts, lengths)
    total = np.zeros(len(elements) + 1, np.uint64)
    np.cumsum(mix(elements, _integers(places)), out=total[1:])
    return mix(total[starts + lengths] - total[starts], _integers(lengths))


def _words(values: npt.ArrayLike | int) -> Words:
    """Numbers as uint64 words, Python ints modulo 2^64."""
    if isinstance(values, int):
        return np.array(values % 2**64, np.uint64)
    return np.asarray(values, np.uint64)


def _integers(values: npt.ArrayLike) -> Words:
    """Integers of any width and sign as words: -1 is 2^64 - 1 whether it was an int8 or an int64."""
    array = np.asarray(values)
    if array.dtype == np.uint64:
        return array
    if array.dtype.kind not in "iu":
        raise TypeError(f"expected integers, got {array.dtype}")
    return array.astype(np.int64).view(np.uint64)
