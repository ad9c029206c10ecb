"""Reads a WAT file with the compiled kernel where it helps, else record by record (`wat`). Both give the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.engine import jit
from pipeline.engine.ledger import Ledger
from pipeline.sources.archive import GZIP, KernelReader, reading
from pipeline.sources.wat import BATCH_ROWS, Rows

BYTES_PER_ROW = 1_300  # of compressed files; loading the kernel takes half a second and pays after jit.FEW_ROWS rows
WINDOW = 4 << 20  # bytes of a stream that the kernel reads at a time, about; members of a WAT file have 20 kB
_seen = {"bytes": 0}  # bytes of the files that this process has read


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
    with reading(source, ledger) as reader:
        kernel = _kernel_for(source, reader)
        if kernel:
            yield from _read_compiled(reader, kernel, ledger)
        else:
            yield from _read_plain(reader, ledger)
        reader.complete(size)


def _read_plain(reader: KernelReader, ledger: Ledger) -> Iterator[pa.RecordBatch]:
    rows = Rows(ledger)
    for record in reader.records():
        if record.kind == "metadata":
            ledger.records_in += 1
            rows.add(record)
        if len(rows) >= BATCH_ROWS:
            yield rows.batch()
    if len(rows):
        yield rows.batch()


def _kernel_for(source: str | BinaryIO, reader: KernelReader) -> Any:
    """The compiled reader, where it is available and the file is gzip and large enough; else None.

    The sizes of all files so far are added up, since loading pays for many small files, too.
    """
    if not isinstance(source, str) or not reader.size:
        return None
    _seen["bytes"] += reader.size
    kernel = jit.kernel("pipeline.sources.wat_kernel", int(_seen["bytes"] // BYTES_PER_ROW))
    if kernel is None or not kernel.usable():
        return None
    data, start, _ = reader.window(len(GZIP))
    return kernel if data[-start : len(GZIP) - start] == GZIP else None


def _read_compiled(reader: KernelReader, kernel: Any, ledger: Ledger) -> Iterator[pa.RecordBatch]:
    """The rows of a file by the kernel. Records that the kernel leaves out are read here, in the order of the file."""
    scanner = kernel.Scanner(b"", ledger)
    ready: list[pa.RecordBatch] = []
    rows = Rows(ledger)
    going = True
    while going:
        data, start, last = reader.window(WINDOW)
        place, why, batch = scanner.run(reader.position - start, data=data, start=start)
        left = len(data) - place
        reader.position = start + place
        if batch.num_rows and len(rows):
            ready.append(rows.batch())
        ready += [batch] if batch.num_rows else []
        going = not (last and why == kernel.END)
        torn = not last and left < WINDOW // 2  # the member may go on behind the window
        for record in reader.step() if why == kernel.ODD and not torn else ():
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
