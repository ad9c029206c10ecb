"""Bucket files: the rows of a unit, cut by bucket, so that a reader of one bucket takes one read from each unit.

    8 bytes   magic
    8 bytes   number of buckets B                          little-endian int64, like what follows
    8 (B+1)   where in the file each bucket begins, and the end of the last
    ...       per bucket one Arrow IPC record batch message (empty: no bytes)

The schema is not in the file: both sides know it. The messages are also what travels where the engine's own shuffle
carries the exchange, so that both ways move the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine import files
from pipeline.engine.hashing import partition

MAGIC = b"OWBUCK01"


def cut(batch: pa.RecordBatch, bucket_of_row: npt.NDArray[np.int64], count: int) -> list[pa.Buffer | None]:
    """One IPC message a bucket, None where it has no row. Rows keep their order within a bucket."""
    order, starts = partition(bucket_of_row, count)
    ordered = batch.take(pa.array(order))
    return [
        ordered.slice(start, end - start).serialize() if end > start else None
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]


def join(
    batches: list[pa.RecordBatch], bucket_of_rows: list[npt.NDArray[np.int64]], count: int
) -> list[pa.Buffer | None]:
    """As `cut` for the rows of several batches, each of which has its rows by bucket already."""
    bounds = [np.searchsorted(ascending, np.arange(count + 1)).tolist() for ascending in bucket_of_rows]
    messages: list[pa.Buffer | None] = []
    for bucket in range(count):
        cuts = [(batch, at[bucket], at[bucket + 1]) for batch, at in zip(batches, bounds, strict=True)]
        slices = [batch.slice(start, end - start) for batch, start, end in cuts if end > start]
        messages.append(pa.concat_batches(slices).serialize() if slices else None)
    return messages


def write(path: str, messages: list[pa.Buffer | None]) -> int:
    """Writes a bucket file atomically; returns its size in bytes."""
    sizes = [0 if message is None else message.size for message in messages]
    head = 16 + 8 * (len(sizes) + 1)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype("<i8") + head
    with files.writing(path) as file:
        file.write(MAGIC + np.int64(len(sizes)).astype("<i8").tobytes() + offsets.tobytes())
        for message in messages:
            if message is not None:
                file.write(message)
    return int(offsets[-1])


def read(path: str, bucket: int) -> bytes:
    """The message of one bucket: two small reads, whatever the size of the file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        start, end = np.frombuffer(os.pread(descriptor, 16, 16 + 8 * bucket), "<i8").tolist()
        data = os.pread(descriptor, end - start, start) if end > start else b""
    finally:
        os.close(descriptor)
    if len(data) != end - start:
        raise OSError(f"{path} is cut: bucket {bucket} should have {end - start} bytes and has {len(data)}")
    return data


def read_all(path: str) -> Iterator[tuple[int, bytes]]:
    """(bucket, message) of the buckets that have rows: for an engine's shuffle, one pass over the unit's own file."""
    with open(path, "rb") as file:
        if file.read(8) != MAGIC:
            raise OSError(f"{path} is not a bucket file")
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        offsets = np.frombuffer(file.read(8 * (count + 1)), "<i8").tolist()
        for bucket, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
            if end > start:
                yield bucket, file.read(end - start)


def table(messages: list[bytes], schema: pa.Schema) -> pa.Table:
    """The rows of several messages, in their order."""
    batches = [pa.ipc.read_record_batch(pa.py_buffer(message), schema) for message in messages if message]
    return pa.Table.from_batches(batches, schema).combine_chunks()


def power_of_two(wanted: float, *, least: int = 1, most: int = 4096) -> int:
    """The smallest power of two that is at least `wanted`, within bounds."""
    bits = max(0, int(np.ceil(np.log2(max(wanted, 1.0)))))
    return min(most, max(least, 1 << bits))
