"""The files of a run: the one place that opens, writes, maps and lists them. Every reader checks what it reads.

A file that a later stage reads carries a checksum (xxh3, 64 bits), and no byte of it reaches Arrow, Parquet or numpy
before the checksum was held against all of them:

    Arrow IPC, Parquet      bytes | seal | footer        the footer is found from the end: any reader passes the seal by
    .npy, masks, vectors    bytes | seal                 np.load stops before it
    JSON                    a field "checksum" of the object
    bucket files            one checksum a bucket (see shuffle_files)
    raw images              stored_xxh3 of each image's row
    what users read as it is (queries.parquet, recipe.yaml)     listed in checksums.json beside it

    seal                    8 bytes: xxh3_64 of all other bytes, little-endian; then b"OWXXH3 1"

Published files have no seal: manifest.json holds their sha256. What is written appears whole or not at all (`files`).
All paths are those of this machine. An object store goes behind these same functions: read whole, read a range, write
at once, list the names in a folder, and a local path where a file is mapped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedReader
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.engine import files, parquet_footer
from pipeline.engine.files import remove, remove_stale_files, temporary, writing

# Without a checksum: for files that are published and files of the user.
__all__ = ["remove", "remove_stale_files", "temporary", "writing"]

MARK = b"OWXXH3 1"
SEAL = 8 + len(MARK)
CHECKSUM = "checksum"  # the field of a JSON object
CHECKSUMS = "checksums.json"  # lists files that cannot hold a checksum of their own
CHUNK = 256 << 10  # bytes that are read and hashed at once: they stay in the cache of the processor
OPEN_FILES = 64  # files of images that a worker keeps open
_FIELD = re.compile(rb'^ "checksum": "([0-9a-f]{16})"', re.MULTILINE)  # one blank: a field of the outermost object
_ZEROS = b"0" * 16
_sound: dict[str, tuple[int, ...]] = {}  # path -> the state in which this process has checked the file


class DamagedError(Exception):
    """A file is not as it was written. The message begins with its path."""

    @classmethod
    def of(cls, path: str, why: str = "its checksum does not fit") -> DamagedError:
        """The usual message."""
        return cls(f"{path} is damaged ({why})")


# ----------------------------------------------------------------------------------------------------- plain bytes


def read(path: str) -> bytes:
    """The whole file, unchecked."""
    with open(path, "rb") as file:
        return file.read()


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """The open file, unbuffered and unchecked.

    Raises:
        DamagedError: it is missing.
    """
    try:
        file = open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    with file:
        yield file


def range_of(file: IO[bytes], start: int, size: int) -> bytes:
    """`size` bytes of an open file from `start` on, unchecked; fewer where the file ends."""
    return os.pread(file.fileno(), size, start)


def read_range(path: str, start: int, size: int) -> bytes:
    """`range_of` a file by its path."""
    with open(path, "rb", buffering=0) as file:
        return range_of(file, start, size)


def read_into(path: str, start: int, place: memoryview) -> None:
    """Fills `place` with the bytes from `start` on, unchecked. The file stays open for the next call.

    Raises:
        DamagedError: the file is missing, or ends before.
    """
    try:
        found = os.stat(path)
        size = os.preadv(_descriptor(path, found.st_ino, found.st_mtime_ns), [place], start)
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    if size != len(place):
        raise DamagedError.of(path, f"it is cut: {len(place)} bytes should lie at {start}")


class _Descriptor(int):
    """A descriptor that closes itself when the cache drops it."""

    def __del__(self) -> None:
        os.close(self)


@functools.lru_cache(maxsize=OPEN_FILES)
def _descriptor(path: str, inode: int, changed: int) -> _Descriptor:
    """The open file; another file that took its place since is opened anew."""
    del inode, changed
    return _Descriptor(os.open(path, os.O_RDONLY))


def reading(path: str) -> BufferedReader:
    """The open file, buffered and unchecked: for a file that is published."""
    return open(path, "rb")


@contextlib.contextmanager
def mapped(path: str) -> Iterator[mmap.mmap]:
    """The bytes of a file that is not empty, mapped, unchecked."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def exists(path: str) -> bool:
    """True if there is such a file or folder."""
    return os.path.exists(path)


def changed(folder: str) -> int | None:
    """A number that differs when files of the folder came or went; None where it is missing."""
    try:
        return os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return None


def names(folder: str) -> list[str]:
    """The sorted names in a folder; none where it is missing."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def walk(folder: str) -> Iterator[str]:
    """The paths of all files and symbolic links below a folder."""
    for parent, folders, found in os.walk(folder):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted([*found, *links]):
            yield os.path.join(parent, name)


def write_plain(path: str, data: bytes) -> None:
    """A small file without a checksum: published, or read by nobody but people."""
    files.write_bytes(path, data)


# ----------------------------------------------------------------------------------------------------------- seals


@contextlib.contextmanager
def sealing(path: str) -> Iterator[str]:
    """A name to write a file to, which then gets its seal and appears under `path`."""
    with temporary(path) as name:
        yield name
        seal(name)


def seal(path: str) -> None:
    """Puts a seal into a file that has just been written and has none."""
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        at = _footer(file.fileno(), size)
        footer = os.pread(file.fileno(), size - at, at)
        file.seek(at)
        file.write(_digest(file.fileno(), [(0, size)]).to_bytes(8, "little") + MARK + footer)


def check(path: str) -> None:
    """Holds a file against its seal: once in this process, as long as the file is not changed.

    It costs 0.05 s a GB that the system's cache holds.

    Raises:
        DamagedError: the seal does not fit or is not there, or the file is missing.
    """
    with opened(path) as file:
        state = _state(file)
        if _sound.get(path) != state:
            _check_seal(path, file.fileno(), os.fstat(file.fileno()).st_size)
            _sound[path] = state


def is_sound(path: str) -> bool:
    """True if the file is there and `check` finds nothing."""
    try:
        check(path)
    except DamagedError:
        return False
    return True


def forget() -> None:
    """All files are checked again when they are read next."""
    _sound.clear()


def _state(file: IO[bytes]) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _check_seal(path: str, descriptor: int, size: int) -> None:
    end = _footer(descriptor, size)
    at = end - SEAL
    if at < 0:
        raise DamagedError.of(path, "it has no checksum")
    found = os.pread(descriptor, SEAL, at)
    if found[8:] != MARK:
        raise DamagedError.of(path, "it has no checksum")
    if _digest(descriptor, [(0, at), (end, size)]) != int.from_bytes(found[:8], "little"):
        raise DamagedError.of(path)


def _footer(descriptor: int, size: int) -> int:
    """Where the footer of an Arrow or Parquet file begins; the end of any other file."""
    tail = os.pread(descriptor, 10, max(0, size - 10))
    if tail.endswith(b"ARROW1"):
        return size - 10 - int.from_bytes(tail[-10:-6], "little")
    if tail.endswith(parquet_footer.MAGIC):
        return size - 8 - int.from_bytes(tail[-8:-4], "little")
    return size


def _digest(descriptor: int, ranges: Iterable[tuple[int, int]]) -> int:
    """xxh3_64 of some ranges of bytes."""
    state, buffer = xxhash.xxh3_64(), memoryview(bytearray(CHUNK))
    for at, end in ranges:
        while at < end:
            count = os.preadv(descriptor, [buffer[: min(CHUNK, end - at)]], at)
            if not count:
                break
            state.update(buffer[:count])
            at += count
    return state.intdigest()


# ------------------------------------------------------------------------------------------------------------ JSON


def write_json(path: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a sorted, indented JSON object with its checksum, atomically. Returns it as it stands in the file.

    The checksum is the xxh3_64 of the file with zeros in the place of the checksum's 16 digits.
    """
    filled = {**data, CHECKSUM: _ZEROS.decode()}
    text = (json.dumps(filled, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    at = next(_FIELD.finditer(text)).start(1)
    digest = xxhash.xxh3_64_hexdigest(text).encode()
    files.write_bytes(path, text[:at] + digest + text[at + 16 :])
    return {**data, CHECKSUM: digest.decode()}


def read_json(path: str, *, sealed: bool = True) -> dict[str, Any] | None:
    """The object in a JSON file, or None where it does not exist.

    Args:
        path: of the file.
        sealed: False: a file without a checksum is taken too, as older versions wrote it. A checksum that is there
            must fit all the same, and is left in the object.

    Raises:
        DamagedError: the file is not as it was written.
    """
    try:
        data = read(path)
    except FileNotFoundError:
        return None
    found = [match.span(1) for match in _FIELD.finditer(data)]
    if sealed and len(found) != 1:
        raise DamagedError.of(path, "it has no checksum")
    for start, end in found[:1]:
        if xxhash.xxh3_64_hexdigest(data[:start] + _ZEROS + data[end:]).encode() != data[start:end]:
            raise DamagedError.of(path)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError.of(path, f"it is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedError.of(path, "it is no JSON object")
    if CHECKSUM in value and not found:
        raise DamagedError.of(path, "its checksum is no number")
    if sealed:
        del value[CHECKSUM]
    return value


def write_list(path: str, items: Sequence[Any]) -> None:
    """Writes a list as an object with a checksum."""
    write_json(path, {"items": items})


def read_list(path: str) -> list[Any]:
    """What `write_list` was given.

    Raises:
        DamagedError: the file is not as it was written, or missing.
    """
    found = read_json(path)
    if found is None:
        raise DamagedError(f"{path} is missing")
    return found["items"]


# --------------------------------------------------------------------------------------------------- listed beside


def list_checksums(folder: str, listed: Iterable[str]) -> None:
    """Writes checksums.json for files that stand in the folder as users read them."""
    write_json(
        os.path.join(folder, CHECKSUMS), {"xxh3_64": {name: _hex(os.path.join(folder, name)) for name in listed}}
    )


def check_listed(path: str) -> None:
    """Holds a file against checksums.json beside it; does nothing where it is not listed.

    Raises:
        DamagedError: the file is not as it was listed.
    """
    folder, name = os.path.split(path)
    listed = (read_json(os.path.join(folder, CHECKSUMS)) or {}).get("xxh3_64", {})
    if name in listed and _hex(path) != listed[name]:
        raise DamagedError.of(path)


def _hex(path: str) -> str:
    with opened(path) as file:
        return f"{_digest(file.fileno(), [(0, os.fstat(file.fileno()).st_size)]):016x}"


# ------------------------------------------------------------------------------------------------- bytes and arrays


def write_bytes(path: str, data: bytes) -> None:
    """Writes bytes with a seal, atomically."""
    files.write_bytes(path, b"".join((data, xxhash.xxh3_64_intdigest(data).to_bytes(8, "little"), MARK)))


def read_bytes(path: str) -> memoryview:
    """What `write_bytes` was given.

    Raises:
        DamagedError: the file is not as it was written.
    """
    check(path)
    return memoryview(read(path))[:-SEAL]


def save_array(path: str, array: np.ndarray) -> None:
    """np.save with a seal, atomically; np.load reads it as any other."""
    with sealing(path) as name, open(name, "wb") as file:
        np.save(file, array)


def map_array(path: str) -> np.ndarray:
    """A saved array, checked and then mapped.

    Raises:
        DamagedError: the file is not as it was written.
    """
    check(path)
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except ValueError:  # an empty array cannot be mapped
        return np.load(path)


# ------------------------------------------------------------------------------------------------------------ tables


def write_table(path: str, table: pa.Table) -> None:
    """Parquet as everywhere in the project, with a seal."""
    with sealing(path) as name:
        _write_parquet(name, table)


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """The rows that `write_table` was given.

    Raises:
        DamagedError: the file is not as it was written.
    """
    check(path)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return _read(file, columns)


def write_published(path: str, table: pa.Table) -> None:
    """Parquet that users read, whose sha256 stands in the manifest or whose checksum in checksums.json."""
    with temporary(path) as name:
        _write_parquet(name, table)


def read_published(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows that `write_published` was given, the checksums of the pages verified.

    Raises:
        DamagedError: checksums.json beside it lists the file with another checksum.
    """
    with published(path) as file:
        return _read(file, columns)


@contextlib.contextmanager
def published(path: str) -> Iterator[pq.ParquetFile]:
    """A published table to be read in pieces, as `read_published` reads it whole."""
    check_listed(path)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


def _write_parquet(path: str, table: pa.Table) -> None:
    """zstd, page checksums, no dictionary (cheaper and here no larger).

    Equal tables give equal bytes, whichever pyarrow writes them (22 to 25 were tried).
    """
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_page_checksum=True,
        row_group_size=65536,
    )
    parquet_footer.set_created_by(path)


def _read(file: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    """All rows. (pq.read_table would import pandas if it is there: 0.2 s.)"""
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


@contextlib.contextmanager
def writing_batches(
    path: str, schema: pa.Schema, *, compression: str | None = None
) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """An Arrow IPC file writer whose file gets a seal and appears under `path` when the block ends well."""
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with sealing(path) as name, pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as out:
        yield out


def read_batches(path: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow IPC file, checked and then mapped; only the named columns are looked at.

    Raises:
        DamagedError: the file is not as it was written.
    """
    check(path)
    with pa.memory_map(path) as source:
        schema = pa.ipc.open_file(source).schema
        fields = [] if columns is None else sorted(schema.get_field_index(name) for name in columns)
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        reader = pa.ipc.open_file(source, options=options)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield batch if columns is None else batch.select(columns)
