"""Writes files atomically: under a temporary name, flushed to the disk, then renamed.

A reader never sees half a file, whichever process is killed. Temporary names carry the process id. So a worker that
outlives its parent for a second cannot write into a successor's file. `remove_stale_files` removes what such workers
leave behind. Below the folder of a run, temporary files lie behind its `fence`: a worker whose run has ended cannot
rename them any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import IO

from pipeline.engine import fence

TEMPORARY = re.compile(r"\.tmp\d+-\d+$")
STILL_OPEN = ".nfs"  # begins the name that a client of NFS gives to a file that is removed while it is open
FULL = frozenset((errno.ENOSPC, errno.EDQUOT))  # of a disk, or of what a user may have on it
_ZEROS = bytes(1 << 20)
_flushes = [True]


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """In the block, an error of a full disk names the path that was written. A write alone knows none."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, path) from None
        raise


@contextlib.contextmanager
def unflushed() -> Iterator[None]:
    """The files of the block are not flushed to the disk: files that nobody needs after a power cut."""
    _flushes[0] = False
    try:
        yield
    finally:
        _flushes[0] = True


@contextlib.contextmanager
def temporary(path: str) -> Iterator[str]:
    """Yields a temporary name to write to. It is renamed to `path` when the block ends, and removed if the block fails.

    The file is flushed to the disk before the rename, and its folder after it. So after a power cut the whole file
    exists, or no file.
    """
    name = fence.temporary_name(path)
    folder = os.path.dirname(path) or "."
    if fence.folder_for(path) is None:
        os.makedirs(folder, exist_ok=True)
    try:
        with fence.explaining(path), naming(path):
            yield name
            if _flushes[0]:
                _flush(name)
            fence.confirm(path)  # before a folder is made
            os.makedirs(folder, exist_ok=True)
            _rename(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    if _flushes[0]:
        _flush_folder(folder)


@contextlib.contextmanager
def writing(path: str, *, buffering: int = -1) -> Iterator[IO[bytes]]:
    """Yields an open binary file. It appears under `path` when the block ends without an error."""
    with temporary(path) as name, open(name, "wb", buffering=buffering) as file:
        yield file


def write_bytes(path: str, data: bytes | memoryview) -> None:
    """Writes a small file atomically."""
    with writing(path) as file:
        file.write(data)


def remove_stale_files(folder: str) -> int:
    """Removes all temporary files and folders below `folder`. Returns their number.

    It also removes temporary files of processes that still run: call it when all writers have ended.
    """
    removed = 0
    for parent, folders, names in os.walk(folder):
        for name in filter(TEMPORARY.search, [*folders, *names]):
            with contextlib.suppress(FileNotFoundError):
                _delete(os.path.join(parent, name))
                removed += 1
        folders[:] = [name for name in folders if not TEMPORARY.search(name)]
    return removed


def changed(folder: str) -> int | None:
    """When files were added to a folder or removed, in ns; None: there is no folder.

    The folder is opened: a client of NFS asks the server then, and else answers from memory for up to a minute.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Removes a file or a folder tree, if it exists. It is renamed first, so that a crash leaves no half of a tree.

    Raises:
        FenceError: the run of this process no longer holds the folder.
    """
    with contextlib.suppress(FileNotFoundError), fence.explaining(path):
        name = fence.temporary_name(path)
        try:
            os.rename(path, name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            name = f"{path}{os.path.splitext(name)[1]}"  # another file system is mounted there
            os.rename(path, name)
        _delete(name)


def _rename(name: str, path: str) -> None:
    """Renames a temporary file. Where another file system is mounted below OUT, it is copied there first."""
    try:
        os.replace(name, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = f"{path}{os.path.splitext(name)[1]}"
        shutil.copyfile(name, beside)
        _flush(beside)
        fence.confirm(path)
        os.replace(beside, path)
        os.unlink(name)


def erase(path: str, ranges: Iterable[tuple[int, int]], size: int) -> None:
    """Makes bytes of a file zeros in place, given as (start, length), and cuts it to `size` bytes."""
    with open(path, "r+b", buffering=0) as file:
        file.truncate(min(size, os.fstat(file.fileno()).st_size))
        for start, length in ranges:
            end = min(start + length, size)
            while start < end:
                start += os.pwrite(file.fileno(), memoryview(_ZEROS)[: end - start], start)
        os.fsync(file.fileno())


def flush_folders(folders: Iterable[str]) -> None:
    """Flushes the names in some folders to the disk. A folder that is gone is left out."""
    for folder in folders:
        _flush_folder(folder)


def _delete(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        try:
            shutil.rmtree(path)
        except OSError as error:  # on NFS a process of this host still reads a file: it goes when the process closes it
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                raise
            shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


def _flush_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # some network file systems cannot
        _flush(folder)


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
