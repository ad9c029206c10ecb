"""Opens, writes, maps and lists the files of a run. No other module does. Every reader checks the bytes that it reads.

A file that a later stage reads has a checksum (xxh3, 64 bits). The checksum of the whole file is checked before Arrow,
Parquet or numpy gets any byte of it:

    Arrow IPC, Parquet      bytes | seal | footer        readers find the footer from the end, and skip the seal
    .npy, masks, vectors    bytes | seal                 np.load stops before the seal
    JSON                    a field "checksum" of the object
    bucket files            one checksum for each bucket (see shuffle_files)
    raw images              stored_xxh3 in the row of each image
    files that users read (queries.parquet, recipe.yaml)        listed in checksums.json in the same folder

    seal                    8 bytes: xxh3_64 of all other bytes, little-endian; then b"OWXXH3 1"

Published files have no seal: manifest.json has their sha256. Files are written atomically.

A path is one of this machine (`files`), or the URL of an object (`object_store`). Each function here takes both, and
nobody else tells them apart. What both promise: a reader sees a whole file or none, and `write_json` of a manifest
commits what was written before it. What only a folder of this machine has: a rename that cannot be seen half done, and
a folder that goes at once. On a store `move` copies, then deletes; `remove` deletes the commit marks of a folder first.
A file that is mapped, or read whole by Arrow or Parquet, is a copy on this machine there (`object_cache`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import mmap
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedReader
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.engine import files, object_cache, object_store, object_view, parquet_footer, scratch
from pipeline.engine.files import flush_folders
from pipeline.engine.object_store import ObjectFile, Version, is_url
from pipeline.engine.object_view import Listing

__all__ = ["flush_folders", "is_url"]

MARK = b"OWXXH3 1"
SEAL = 8 + len(MARK)
CHECKSUM = "checksum"  # the field of a JSON object
CHECKSUMS = "checksums.json"  # lists files that cannot hold a checksum of their own
CHUNK = 256 << 10  # bytes that are read and hashed together: they fit into the processor's cache
SMALL = 4 << 20  # bytes of an object that is fetched whole: they take about as long as a further request
MARKS = ("/COMPLETED", "/info.json", ".json")  # ends of the names of files that commit others, the first to go first
OPEN_FILES = 64  # image files that a worker keeps open
_FIELD = re.compile(rb'^ "checksum": "([0-9a-f]{16})"', re.MULTILINE)  # one blank: a field of the outermost object
_ZEROS = b"0" * 16
_sound: dict[str, tuple[int, ...]] = {}  # path -> the state of the file when this process checked it


class DamagedError(Exception):
    """A file is not as it was written. The message begins with its path."""

    @classmethod
    def of(cls, path: str, why: str = "its checksum does not fit") -> DamagedError:
        """The usual message."""
        return cls(f"{path} is damaged ({why})")


# ------------------------------------------------------------------------------------------------- files and folders


def absolute(path: str | os.PathLike[str]) -> str:
    """The absolute path, or the URL without a slash at its end."""
    path = os.fspath(path)
    return path.rstrip("/") if is_url(path) else os.path.abspath(path)


def beside(path: str) -> str:
    """Where a file lies that only this machine needs: the path itself, or a place in the scratch folder for a URL."""
    return scratch.beside(path) if is_url(path) else path


def exists(path: str) -> bool:
    """True if the file or folder exists."""
    if is_url(path):
        return is_file(path) or is_folder(path)
    return os.path.exists(path)


def is_file(path: str) -> bool:
    """True if the file exists. On a store it takes one request; `exists` takes two if there is nothing."""
    return object_view.head(path) is not None if is_url(path) else os.path.isfile(path)


def is_folder(path: str) -> bool:
    """True if the folder exists. On a store it exists while something lies in it."""
    if not is_url(path):
        return os.path.isdir(path)
    folder, name = object_view.split(path)
    found = object_view.listing(folder)
    return object_store.has_objects(path) if found is None else name in found.folders


def is_link(path: str) -> bool:
    """True for a symbolic link."""
    return not is_url(path) and os.path.islink(path)


def size(path: str) -> int:
    """The bytes of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_url(path):
        return os.stat(path).st_size
    found = object_view.head(path)
    if found is None:
        raise FileNotFoundError(path)
    return found.size


def state(path: str) -> tuple[Any, ...] | None:
    """Differs after the file was replaced; None: there is no file."""
    if is_url(path):
        entry = object_view.head(path)
        return None if entry is None else (entry.tag,)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def changed(folder: str) -> int | None:
    """A number that changes when files are added to the folder or removed; None if the folder is missing."""
    if is_url(folder):
        found = _listing(folder)
        return found.number if found else None
    return files.changed(folder)


def names(folder: str) -> list[str]:
    """The sorted names in a folder; an empty list if there is no such folder."""
    if is_url(folder):
        return _listing(folder).names()
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith(files.STILL_OPEN))
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk(folder: str) -> Iterator[str]:
    """Yields the paths of all files and symbolic links below a folder."""
    if is_url(folder):
        known = object_view.below(folder)
        yield from (entry.url for entry in object_store.below(folder)) if known is None else known
        return
    for parent, folders, found in os.walk(folder):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted([*found, *links]):
            if not name.startswith(files.STILL_OPEN):
                yield os.path.join(parent, name)


def sizes(folder: str) -> Iterator[tuple[str, int]]:
    """Yields the path and the bytes of each file below a folder, in the order of `walk`. Broken links are left out."""
    if is_url(folder):
        yield from ((entry.url, entry.size) for entry in object_store.below(folder))
        return
    for path in walk(folder):
        if os.path.isfile(path):
            yield path, os.path.getsize(path)


def _listing(folder: str) -> Listing:
    found = object_view.listing(folder)
    return object_view.list_now(folder) if found is None else found


@contextlib.contextmanager
def looking_at(folder: str) -> Iterator[None]:
    """The block looks at what lies right in a folder, more than once. On a store it is listed once."""
    with object_view.looking_at(folder) if is_url(folder) else contextlib.nullcontext():
        yield


def times(folder: str) -> Iterator[float]:
    """Yields when each file below a folder was written, in seconds since 1970."""
    if is_url(folder):
        yield from (entry.time for entry in object_store.below(folder))
        return
    yield from (os.lstat(path).st_mtime for path in walk(folder))


def make_folder(folder: str) -> None:
    """Makes a folder. A store needs none."""
    if not is_url(folder):
        os.makedirs(folder, exist_ok=True)


def remove(path: str) -> None:
    """Removes a file or a folder tree, if it exists.

    On this machine it is renamed first, so that a crash leaves no half of a tree. On a store the marks that commit
    something go first, so that a crash leaves nothing that counts.
    """
    if not is_url(path):
        files.remove(path)
        return
    delete([path])
    files.remove(beside(path))


def delete(paths: Sequence[str]) -> None:
    """Removes files and folders of a store, in few requests. What is not there is left out."""
    found = [url for path in paths for url in _objects(path)]
    groups: list[list[str]] = [[] for _ in (*MARKS, "others")]
    for url in dict.fromkeys(found):
        groups[next((at for at, end in enumerate(MARKS) if url.endswith(end)), len(MARKS))].append(url)
    object_store.delete(*groups)
    for path in paths:
        object_view.removed(path)
    for url in found:
        object_cache.drop(url)


def _objects(path: str) -> Iterator[str]:
    """The objects that a path may stand for: of its name, and below it."""
    folder, name = object_view.split(path)
    known = object_view.listing(folder)
    if known is None or name in known.files:
        yield path
    if known is None or name in known.folders:
        yield from walk(path)


def remove_stale_files(folder: str) -> int:
    """Removes all temporary files and folders below `folder`. Returns their number.

    It also removes temporary files of processes that still run: call it when all writers have ended.
    """
    return files.remove_stale_files(beside(folder))


def move(source: str, target: str) -> None:
    """Gives a file another place, in the place of the file there. Nothing happens if there is no `source`."""
    move_all([(source, target)])


def move_all(pairs: Sequence[tuple[str, str]]) -> None:
    """Moves several files, in their order. On a store all are copied, then their sources are deleted."""
    copied = []
    for source, target in pairs:
        if not is_url(source):
            if os.path.exists(source):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.replace(source, target)
        elif _copy(source, target):
            copied.append(source)
            object_cache.drop(target)
    targets = {target for _, target in pairs}
    gone = [source for source in copied if source not in targets]
    object_store.delete(gone)
    for source in gone:
        object_view.removed(source)
        object_cache.drop(source)


def _copy(source: str, target: str) -> bool:
    """Copies an object. False: there is none."""
    found = object_view.head(source)
    if found is None:
        return False
    object_view.wrote(target, Version(found.size, object_store.copy(source, target, found.size)))
    return True


def link(target: str, path: str) -> None:
    """Makes a file readable under another path: by a symbolic link, or as a copy on a store."""
    if is_url(target):
        if not _copy(target, path):
            raise FileNotFoundError(target)
        return
    remove(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(os.path.abspath(target), path)


def copy(source: str, target: str) -> None:
    """Copies a file, also between this machine and stores. Nothing comes here if both are objects of one store."""
    if is_url(source) and is_url(target) and object_store.same_store(source, target):
        link(source, target)
        return
    with temporary(target) as name:
        shutil.copyfile(here(source), name)


def make_private(path: str) -> None:
    """Lets nobody but its owner read a file. Who reads an object is the matter of the rules of its bucket."""
    if not is_url(path):
        os.chmod(path, 0o600)


def erase(path: str, ranges: Iterable[tuple[int, int]], size: int) -> None:
    """Makes bytes of a file zeros and cuts it: in place, or in a copy that takes the place of an object.

    Nothing happens if there is no such file. A second time gives the same.

    Args:
        path: of the file.
        ranges: (start, length) of the bytes.
        size: the new size of the file, if it is larger.
    """
    if not is_file(path):
        return
    if not is_url(path):
        files.erase(path, ranges, size)
        return
    with temporary(path) as name:
        shutil.copyfile(here(path), name)
        files.erase(name, ranges, size)


# --------------------------------------------------------------------------------------------------- unchecked bytes


def here(path: str) -> str:
    """The path of a file on this machine, unchecked: of a copy if it is an object.

    Raises:
        FileNotFoundError: there is no such object.
    """
    if not is_url(path):
        return path
    known = object_view.known(path)
    return object_cache.local(path) if known is None else object_cache.of_version(path, known.tag)


def _copy_here(path: str) -> str | None:
    """The path of an object's copy on this machine, if it is known to be of the present version. A small one is made.

    Raises:
        FileNotFoundError: there is no such object.
    """
    known = object_view.known(path)
    if known is None:
        return None
    small = known.size <= SMALL
    return object_cache.of_version(path, known.tag) if small else object_cache.here(path, known.tag)


@contextlib.contextmanager
def temporary(path: str) -> Iterator[str]:
    """Yields a name on this machine to write to. The file appears under `path` when the block ends without an error."""
    if is_url(path):
        with object_cache.temporary(path, functools.partial(object_view.wrote, path)) as name:
            yield name
        return
    with files.temporary(path) as name:
        yield name


@contextlib.contextmanager
def writing(path: str, *, buffering: int = -1) -> Iterator[IO[bytes]]:
    """Yields an open binary file. It appears under `path` when the block ends without an error."""
    with temporary(path) as name, open(name, "wb", buffering=buffering) as file:
        yield file


def _write(path: str, data: bytes) -> None:
    if is_url(path):
        tag = object_store.write(path, data)
        object_cache.keep(path, tag, data)
        object_view.wrote(path, Version(len(data), tag))
    else:
        files.write_bytes(path, data)


def read(path: str) -> bytes:
    """The bytes of a file, unchecked."""
    known = object_view.known(path) if is_url(path) else None
    if is_url(path) and known is None:
        return object_store.read(path)
    if known is not None and not object_cache.here(path, known.tag):
        body = object_view.manifest(path, known.tag)
        if body is not None:
            return body
    with open(here(path), "rb") as file:
        return file.read()


@contextlib.contextmanager
def opened(path: str, *, whole: bool = False) -> Iterator[Any]:
    """Yields the open file, unbuffered and unchecked.

    Args:
        path: of the file.
        whole: all of it will be read.

    Raises:
        DamagedError: the file is missing.
    """
    try:
        at = _copy_here(path) if is_url(path) and not whole else here(path)
        file: Any = open(at, "rb", buffering=0) if at else ObjectFile(path, object_view.known(path))
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    with file:
        yield file


def range_of(file: Any, start: int, size: int) -> bytes:
    """`size` bytes of an open file from `start` on, unchecked. Fewer if the file ends there."""
    if isinstance(file, ObjectFile):
        return file.range(start, size)
    return os.pread(file.fileno(), size, start)


def read_range(path: str, start: int, size: int) -> bytes:
    """The bytes of `range_of`, for a path."""
    at = _copy_here(path) if is_url(path) else path
    if at is None:
        return object_store.read_range(path, start, size)
    with open(at, "rb", buffering=0) as file:
        return range_of(file, start, size)


def read_into(path: str, start: int, place: memoryview) -> None:
    """Fills `place` with the bytes from `start` on, unchecked. The file stays open for the next call.

    Raises:
        DamagedError: the file is missing or too short.
    """
    try:
        at = _copy_here(path) if is_url(path) else path
        if at is None:
            data = object_store.read_range(path, start, len(place))
            size = len(data)
            place[:size] = data
        else:
            found = os.stat(at)
            size = os.preadv(_descriptor(at, found.st_ino, found.st_mtime_ns), [place], start)
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
    """The open file. If another file has replaced it, the new file is opened."""
    del inode, changed
    return _Descriptor(os.open(path, os.O_RDONLY))


def reading(path: str) -> BufferedReader:
    """The open file, buffered and unchecked. Use it for published files."""
    if not is_url(path):
        return open(path, "rb")
    known = object_view.known(path)
    at = _copy_here(path) if known else object_cache.copy_of(path)
    return open(at, "rb") if at else io.BufferedReader(ObjectFile(path, known), object_store.READ_BUFFER)


@contextlib.contextmanager
def mapped(path: str) -> Iterator[mmap.mmap]:
    """Yields the mapped bytes of a file, unchecked. The file must not be empty."""
    with open(here(path), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def write_plain(path: str, data: bytes) -> None:
    """Writes a small file without a checksum: a published file, or a file that only people read."""
    _write(path, data)


# ----------------------------------------------------------------------------------------------------------- seals


@contextlib.contextmanager
def sealing(path: str) -> Iterator[str]:
    """Yields a temporary name. When the block ends, the file gets its seal and appears under `path`."""
    with temporary(path) as name:
        yield name
        seal(name)


def seal(path: str) -> None:
    """Adds a seal to a file that has none."""
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        at = _footer(file.fileno(), size)
        footer = os.pread(file.fileno(), size - at, at)
        file.seek(at)
        file.write(_digest(file.fileno(), [(0, size)]).to_bytes(8, "little") + MARK + footer)


def check(path: str) -> str:
    """Checks a file against its seal. Each process checks a file once, and again only after the file was changed.

    Returns the path of the file on this machine. It takes 0.05 s for each GB that is in the system's cache.

    Raises:
        DamagedError: the seal does not fit, the file has no seal, or the file is missing.
    """
    with opened(path, whole=True) as file:
        state = _state(file)
        if _sound.get(path) != state:
            _check_seal(path, file.fileno(), os.fstat(file.fileno()).st_size)
            _sound[path] = state
        return file.name


def is_sound(path: str) -> bool:
    """True if the file exists and its seal fits."""
    try:
        check(path)
    except DamagedError:
        return False
    return True


def forget() -> None:
    """Forgets all checks: every file is checked again at its next read."""
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
    """The place where the footer of an Arrow or Parquet file starts; the end of any other file."""
    tail = os.pread(descriptor, 10, max(0, size - 10))
    if tail.endswith(b"ARROW1"):
        return size - 10 - int.from_bytes(tail[-10:-6], "little")
    if tail.endswith(parquet_footer.MAGIC):
        return size - 8 - int.from_bytes(tail[-8:-4], "little")
    return size


def _digest(descriptor: int, ranges: Iterable[tuple[int, int]]) -> int:
    """xxh3_64 of ranges of bytes, given as (start, end)."""
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
    """Writes a sorted, indented JSON object with its checksum, atomically. Returns the object with its checksum.

    The checksum is the xxh3_64 of the file. For this hash, the 16 digits of the checksum are zeros.
    """
    filled = {**data, CHECKSUM: _ZEROS.decode()}
    text = (json.dumps(filled, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    at = next(_FIELD.finditer(text)).start(1)
    digest = xxhash.xxh3_64_hexdigest(text).encode()
    _write(path, text[:at] + digest + text[at + 16 :])
    return {**data, CHECKSUM: digest.decode()}


def read_json(path: str, *, sealed: bool = True) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing.

    Args:
        path: of the file.
        sealed: False accepts a file of an older version, which has no checksum. A checksum in the file must still fit,
            and stays in the object.

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
        raise DamagedError.of(path, f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedError.of(path, "it is not a JSON object")
    if CHECKSUM in value and not found:
        raise DamagedError.of(path, "its checksum is not a hexadecimal number")
    if sealed:
        del value[CHECKSUM]
    return value


def write_list(path: str, items: Sequence[Any]) -> None:
    """Writes a list as an object with a checksum."""
    write_json(path, {"items": items})


def read_list(path: str) -> list[Any]:
    """Reads the list that `write_list` wrote.

    Raises:
        DamagedError: the file is not as it was written, or it is missing.
    """
    found = read_json(path)
    if found is None:
        raise DamagedError(f"{path} is missing")
    return found["items"]


# --------------------------------------------------------------------------------------------------- listed beside


def list_checksums(folder: str, listed: Iterable[str], *, coming: str = "", into: str | None = None) -> None:
    """Writes checksums.json for files in the folder that cannot hold a checksum, since users read them.

    Args:
        folder: of the files.
        listed: their names. Those that are missing are left out.
        coming: a folder whose files will replace those of the same name.
        into: the path of the list; None: in the folder.
    """
    there = {name: os.path.join(folder, name) for name in listed}
    there |= {name: path for name in listed if coming and exists(path := os.path.join(coming, name))}
    found = {name: _hex(path) for name, path in there.items() if exists(path)}
    write_json(into or os.path.join(folder, CHECKSUMS), {"xxh3_64": found})


def check_listed(path: str) -> None:
    """Checks a file against checksums.json in the same folder. A file that is not listed passes.

    Raises:
        DamagedError: the file does not have the listed checksum.
    """
    folder, name = os.path.split(path)
    listed = (read_json(os.path.join(folder, CHECKSUMS)) or {}).get("xxh3_64", {})
    if name in listed and _hex(path) != listed[name]:
        raise DamagedError.of(path)


def is_listed(path: str) -> bool:
    """True if checksums.json in the same folder lists the file as it is."""
    folder, name = os.path.split(path)
    listed = (read_json(os.path.join(folder, CHECKSUMS)) or {}).get("xxh3_64", {})
    return name in listed and exists(path) and _hex(path) == listed[name]


def _hex(path: str) -> str:
    with opened(path, whole=True) as file:
        return f"{_digest(file.fileno(), [(0, os.fstat(file.fileno()).st_size)]):016x}"


# ------------------------------------------------------------------------------------------------- bytes and arrays


def write_bytes(path: str, data: bytes) -> None:
    """Writes bytes with a seal, atomically."""
    _write(path, b"".join((data, xxhash.xxh3_64_intdigest(data).to_bytes(8, "little"), MARK)))


def read_bytes(path: str) -> memoryview:
    """Reads the bytes that `write_bytes` wrote.

    Raises:
        DamagedError: the file is not as it was written.
    """
    return memoryview(read(check(path)))[:-SEAL]


def save_array(path: str, array: np.ndarray) -> None:
    """Saves an array with a seal, atomically. np.load can read the file."""
    with sealing(path) as name, open(name, "wb") as file:
        np.save(file, array)


def map_array(path: str) -> np.ndarray:
    """Checks a saved array, then maps it.

    Raises:
        DamagedError: the file is not as it was written.
    """
    here = check(path)
    try:
        return np.load(here, mmap_mode="r").view(np.ndarray)
    except ValueError:  # an empty array cannot be mapped
        return np.load(here)


def release(array: np.ndarray) -> None:
    """Gives back the memory of an array of `map_array`. What is used again is read again, from the system's cache."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


# ------------------------------------------------------------------------------------------------------------ tables


def write_table(path: str, table: pa.Table) -> None:
    """Writes a Parquet file with the project's settings and a seal."""
    with sealing(path) as name:
        _write_parquet(name, table)


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """Reads the rows that `write_table` wrote.

    Raises:
        DamagedError: the file is not as it was written.
    """
    with pq.ParquetFile(check(path), page_checksum_verification=True) as file:
        return _read(file, columns)


def write_published(path: str, table: pa.Table) -> None:
    """Writes a Parquet file for users, without a seal. The manifest or checksums.json lists its digest."""
    with temporary(path) as name:
        _write_parquet(name, table)


def read_published(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the rows that `write_published` wrote, and verifies the page checksums.

    Raises:
        DamagedError: checksums.json in the same folder lists another checksum.
    """
    with published(path) as file:
        return _read(file, columns)


@contextlib.contextmanager
def published(path: str) -> Iterator[pq.ParquetFile]:
    """Yields a published table to be read in pieces. The checks are those of `read_published`."""
    check_listed(path)
    with pq.ParquetFile(here(path), page_checksum_verification=True) as file:
        yield file


def _write_parquet(path: str, table: pa.Table) -> None:
    """Writes zstd, page checksums, no dictionary (this is faster, and no larger for these tables).

    Equal tables give equal bytes with every version of pyarrow (tried: 22 to 25).
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
    """Reads all rows. (pq.read_table would import pandas if it is installed: 0.2 s.)"""
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


@contextlib.contextmanager
def writing_batches(
    path: str, schema: pa.Schema, *, compression: str | None = None
) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """Yields a writer of an Arrow IPC file. When the block ends, the file gets its seal and appears under `path`."""
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with sealing(path) as name, pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as out:
        yield out


def batch_names(path: str) -> list[str]:
    """The names of the columns of an Arrow IPC file."""
    with pa.memory_map(check(path)) as source:
        return list(pa.ipc.open_file(source).schema.names)


def read_batches(path: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Checks an Arrow IPC file, maps it, and yields its record batches with the named columns only.

    A file without batches yields an empty one, so that readers may join what they get: `forget` can take out all rows.

    Raises:
        DamagedError: the file is not as it was written.
    """
    with pa.memory_map(check(path)) as source:
        # All columns are mapped, and no byte is read yet. Chosen here (included_fields), Arrow would copy their bytes.
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False))
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield batch if columns is None else batch.select(columns)
        if not reader.num_record_batches:
            batch = pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield batch if columns is None else batch.select(columns)
