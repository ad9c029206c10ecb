"""Bucket files: the rows of a unit, sorted by bucket. A reader of one bucket reads one range of each unit's file.

    8 bytes   magic
    8 bytes   number of buckets B                          little-endian, like what follows
    24 B      for each bucket: its start, its end, and its checksum
    ...       for each bucket one Arrow IPC record batch message (no bytes if the bucket is empty); in a merged file
              (`merging`) several, one behind the other

The checksum of a bucket is the xxh3_64 of its bytes. Its seed is the xxh3_64 of B, the bucket's number, its start and
its end. So a reader of one bucket checks all bytes that it reads, and reads no others. The schema is not in the file:
writer and reader know it. The engine's own shuffle carries the same messages, so both exchanges move the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipeline.engine import storage
from pipeline.engine.hashing import partition

MAGIC = b"OWBUCK02"
PIECE_BYTES = 64 << 20  # of rows that a unit gathers for a bucket file
HEAD = struct.Struct("<8sq")
ENTRY = struct.Struct("<qqQ")
_PLACE = struct.Struct("<qqqq")


def cut(batch: pa.RecordBatch, bucket_of_row: npt.NDArray[np.int64], count: int) -> list[pa.Buffer | None]:
    """One IPC message for each bucket; None if the bucket has no row. Rows keep their order within a bucket."""
    order, starts = partition(bucket_of_row, count)
    ordered = batch.take(pa.array(order))
    return [
        ordered.slice(start, end - start).serialize() if end > start else None
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]


def in_pieces(batches: Iterable[pa.RecordBatch], *, max_bytes: int = PIECE_BYTES) -> Iterator[list[pa.RecordBatch]]:
    """Batches in lists of about `max_bytes`, so that a unit writes few bucket files. Empty ones are left out."""
    some: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        some.append(batch)
        size += batch.nbytes
        if size >= max_bytes:
            yield some
            some, size = [], 0
    if some:
        yield some


def join(
    batches: list[pa.RecordBatch], bucket_of_rows: list[npt.NDArray[np.int64]], count: int
) -> list[pa.Buffer | None]:
    """The messages of `cut` for the rows of several batches. The rows of each batch must be sorted by bucket."""
    bounds = [np.searchsorted(ascending, np.arange(count + 1)).tolist() for ascending in bucket_of_rows]
    messages: list[pa.Buffer | None] = []
    for bucket in range(count):
        cuts = [(batch, at[bucket], at[bucket + 1]) for batch, at in zip(batches, bounds, strict=True)]
        slices = [batch.slice(start, end - start) for batch, start, end in cuts if end > start]
        messages.append(pa.concat_batches(slices).serialize() if slices else None)
    return messages


def write(path: str, messages: Sequence[pa.Buffer | bytes | None]) -> int:
    """Writes a bucket file atomically. Returns its size in bytes."""
    count, at = len(messages), HEAD.size + ENTRY.size * len(messages)
    head = [HEAD.pack(MAGIC, count)]
    for bucket, message in enumerate(messages):
        data = b"" if message is None else memoryview(message)
        end = at + len(data)
        head.append(ENTRY.pack(at, end, _checksum(data, count, bucket, at, end)))
        at = end
    with storage.writing(path) as file:
        file.write(b"".join(head))
        for message in messages:
            if message is not None:
                file.write(message)
    return at


def read(path: str, bucket: int) -> bytes:
    """The message of one bucket. It takes three reads, for any size of file.

    Raises:
        DamagedError: the bytes that were read are not as they were written.
    """
    with storage.opened(path) as file:
        magic, count = _unpack(path, HEAD, storage.range_of(file, 0, HEAD.size))
        if magic != MAGIC or not 0 <= bucket < count:
            raise storage.DamagedError.of(path, "it is no bucket file of this version")
        entry = storage.range_of(file, HEAD.size + ENTRY.size * bucket, ENTRY.size)
        start, end, checksum = _unpack(path, ENTRY, entry)
        if not 0 <= start <= end <= file.seek(0, 2):
            raise storage.DamagedError.of(path, f"it is cut: bucket {bucket} should lie at {start} to {end}")
        data = storage.range_of(file, start, end - start)
    if _checksum(data, count, bucket, start, end) != checksum:
        raise storage.DamagedError.of(path)
    return data


def read_range(path: str, first: int, last: int) -> list[bytes]:
    """The messages of neighbouring buckets, in three reads.

    Raises:
        DamagedError: the bytes that were read are not as they were written.
    """
    with storage.opened(path) as file:
        magic, count = _unpack(path, HEAD, storage.range_of(file, 0, HEAD.size))
        if magic != MAGIC or not 0 <= first < last <= count:
            raise storage.DamagedError.of(path, "it is no bucket file of this version")
        head = storage.range_of(file, HEAD.size + ENTRY.size * first, ENTRY.size * (last - first))
        if len(head) != ENTRY.size * (last - first):
            raise storage.DamagedError.of(path, "it is cut")
        entries = list(ENTRY.iter_unpack(head))
        begin, at = entries[0][0], entries[0][0]
        data = storage.range_of(file, begin, max(0, entries[-1][1] - begin))
    found = []
    for bucket, (start, end, checksum) in enumerate(entries, first):
        if start != at or not start <= end <= begin + len(data):
            raise storage.DamagedError.of(path, f"bucket {bucket} should lie at {start} to {end}")
        found.append(data[start - begin : end - begin])
        at = end
        if _checksum(found[-1], count, bucket, start, end) != checksum:
            raise storage.DamagedError.of(path)
    return found


def read_all(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (bucket, message) for each bucket with rows. An engine's shuffle reads the file of a unit once with it.

    Raises:
        DamagedError: the file is not as it was written.
    """
    with storage.opened(path) as file:
        magic, count = _unpack(path, HEAD, storage.range_of(file, 0, HEAD.size))
        size, at = file.seek(0, 2), HEAD.size + ENTRY.size * count
        if magic != MAGIC or not 0 <= at <= size:
            raise storage.DamagedError.of(path, "it is no bucket file of this version")
        head = storage.range_of(file, HEAD.size, at - HEAD.size)
        for bucket, (start, end, checksum) in enumerate(ENTRY.iter_unpack(head)):
            if start != at or not start <= end <= size:
                raise storage.DamagedError.of(path, f"bucket {bucket} should lie at {start} to {end}")
            data, at = storage.range_of(file, start, end - start), end
            if _checksum(data, count, bucket, start, end) != checksum:
                raise storage.DamagedError.of(path)
            if data:
                yield bucket, data
        if at != size:
            raise storage.DamagedError.of(path, f"it should end at {at} and has {size} bytes")


def _unpack(path: str, form: struct.Struct, data: bytes) -> tuple[Any, ...]:
    if len(data) != form.size:
        raise storage.DamagedError.of(path, "it is cut")
    return form.unpack(data)


def _checksum(data: bytes | memoryview, *place: int) -> int:
    """The checksum of a message. `place` is (number of buckets, bucket, start, end)."""
    return xxhash.xxh3_64_intdigest(data, xxhash.xxh3_64_intdigest(_PLACE.pack(*place)))


def table(messages: list[bytes], schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """The rows of several buckets, in their order.

    Args:
        messages: of the buckets.
        schema: of the messages.
        columns: of the table. No other one is copied. None: all.
    """
    batches = [batch for message in messages for batch in _batches(message, schema)]
    rows = pa.Table.from_batches(batches, schema)
    return (rows if columns is None else rows.select(columns)).combine_chunks()


def _batches(message: bytes, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a bucket: of one IPC message, or of several, one behind the other."""
    source = pa.BufferReader(message)
    while source.tell() < len(message):
        yield pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)


def power_of_two(wanted: float, *, min_count: int = 1, max_count: int = 4096) -> int:
    """The smallest power of two that is at least `wanted`, limited to `min_count` and `max_count`."""
    bits = max(0, int(np.ceil(np.log2(max(wanted, 1.0)))))
    return min(max_count, max(min_count, 1 << bits))
