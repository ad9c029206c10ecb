"""Reads a WAT file with the compiled kernel where it helps, else record by record (`wat`). Both give the same rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.engine import jit
from pipeline.engine.input_errors import is_remote
from pipeline.engine.ledger import Ledger
from pipeline.sources.archive import GZIP, MappedReader, read_records
from pipeline.sources.wat import BATCH_ROWS, Rows

BYTES_PER_ROW = 1_300  # of compressed files; loading the kernel takes half a second and pays after jit.FEW_ROWS rows
_seen = {"bytes": 0}  # bytes of the local files that this process has read


def read_wat(
    source: str | BinaryIO, *, ledger: Ledger, name: str = "", size: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The pairs of a WAT file in batches of CANDIDATES; rows_in = rows + drops holds in `ledger`.

    Args:
        source: path, URL or open file.
        ledger: rows_in counts IMG links.
        name: of the file, for messages.
        size: bytes of the file, if a listing gave them. A shorter file is noted as cut.
    """
    kernel = _kernel_for(source)
    if kernel and isinstance(source, str):
        yield from _read_compiled(source, kernel, ledger=ledger, size=size)
        return
    rows = Rows(ledger)
    for record in read_records(source, ledger=ledger, kinds=frozenset({"metadata"}), expected_bytes=size):
        rows.add(record)
        if len(rows) >= BATCH_ROWS:
            yield rows.batch()
    if len(rows):
        yield rows.batch()


def _kernel_for(source: str | BinaryIO) -> Any:
    """The compiled reader, where it is available and the file is local, gzip and large enough; else None.

    The sizes of all files so far are added up, since loading pays for many small files, too.
    """
    if not isinstance(source, str) or is_remote(source):
        return None
    _seen["bytes"] += os.path.getsize(source)
    kernel = jit.kernel("pipeline.sources.wat_kernel", int(_seen["bytes"] // BYTES_PER_ROW))
    if kernel is None or not kernel.usable():
        return None
    with open(source, "rb") as file:
        return kernel if file.read(len(GZIP)) == GZIP else None


def _read_compiled(path: str, kernel: Any, *, ledger: Ledger, size: int | None) -> Iterator[pa.RecordBatch]:
    """The rows of a file by the kernel. Records that the kernel leaves out are read here, in the order of the file."""
    reader = MappedReader(path, ledger)
    scanner = kernel.Scanner(reader.data, ledger)
    ready: list[pa.RecordBatch] = []
    rows = Rows(ledger)
    why = kernel.FULL
    while why != kernel.END:
        reader.position, why, batch = scanner.run(reader.position)
        if batch.num_rows and len(rows):
            ready.append(rows.batch())
        ready += [batch] if batch.num_rows else []
        for record in reader.step() if why == kernel.ODD else ():
            if record.kind == "metadata":
                ledger.records_in += 1
                rows.add(record)
        if sum(map(len, ready)) + len(rows) >= BATCH_ROWS:
            ready += [rows.batch()] if len(rows) else []
            yield pa.concat_batches(ready)
            ready = []
    ready += [rows.batch()] if len(rows) else []
    if ready:
        yield pa.concat_batches(ready)
    if size is not None and reader.position < size:
        reader.cut()
