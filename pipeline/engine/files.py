"""Files that are whole or not there: written under a temporary name, flushed to the disk, renamed.

A reader never sees half a file, whatever was killed when. Temporary names carry the process id, so that a worker which
outlives its parent for a second cannot write into a successor's file; `sweep` removes what such workers left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine import parquet_footer

TEMPORARY = re.compile(r"\.tmp\d+-\d+$")
_numbers = itertools.count()


@contextlib.contextmanager
def temporary(path: str) -> Iterator[str]:
    """A name to write to; renamed to `path` when the block ends well, removed when it does not.

    The file is flushed to the disk before the rename and its folder after it, so that after a power cut either the
    whole file is there or none.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    name = f"{path}.tmp{os.getpid()}-{next(_numbers)}"
    try:
        yield name
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _flush_folder(os.path.dirname(path) or ".")


@contextlib.contextmanager
def writing(path: str) -> Iterator[IO[bytes]]:
    """An open binary file that appears under `path` when the block ends well."""
    with temporary(path) as name, open(name, "wb") as file:
        yield file


def write_bytes(path: str, data: bytes | memoryview) -> None:
    """Writes a small file atomically."""
    with writing(path) as file:
        file.write(data)


def write_json(path: str, data: Any) -> None:
    """Writes sorted, indented JSON atomically."""
    write_bytes(path, (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: str) -> Any:
    """The parsed file, or None where it does not exist."""
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def write_table(path: str, table: pa.Table) -> None:
    """Parquet as everywhere in the project: zstd, page checksums, no dictionary (cheaper and here no larger).

    Equal tables give equal bytes, whichever pyarrow writes them (22 to 25 were tried).
    """
    with temporary(path) as name:
        pq.write_table(
            table,
            name,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_page_checksum=True,
            row_group_size=65536,
        )
        parquet_footer.sign(name)


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file with its page checksums verified (pyarrow does not do so by default)."""
    return pq.read_table(path, columns=columns, page_checksum_verification=True, use_threads=False)


@contextlib.contextmanager
def writing_batches(path: str, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """An Arrow IPC file writer whose file appears under `path` when the block ends well."""
    options = pa.ipc.IpcWriteOptions(use_threads=False)
    with temporary(path) as name, pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as out:
        yield out


def read_batches(path: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow IPC file, mapped; only the named columns are looked at."""
    with pa.memory_map(path) as source:
        schema = pa.ipc.open_file(source).schema
        fields = [] if columns is None else sorted(schema.get_field_index(name) for name in columns)
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        reader = pa.ipc.open_file(source, options=options)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield batch if columns is None else batch.select(columns)


def sweep(folder: str) -> int:
    """Removes what is temporary below `folder` and no process owns any more; returns how many files and folders."""
    removed = 0
    for parent, folders, names in os.walk(folder):
        for name in filter(TEMPORARY.search, [*folders, *names]):
            with contextlib.suppress(FileNotFoundError):
                _delete(os.path.join(parent, name))
                removed += 1
        folders[:] = [name for name in folders if not TEMPORARY.search(name)]
    return removed


def remove(path: str) -> None:
    """Removes a file or a folder tree, if it is there: at once, so that a crash leaves no half of it."""
    with contextlib.suppress(FileNotFoundError):
        name = f"{path}.tmp{os.getpid()}-{next(_numbers)}"
        os.rename(path, name)
        _delete(name)


def _delete(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _flush_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # some network file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
