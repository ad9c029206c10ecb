"""The files of this machine that stand for objects of a store: whole copies, files that are being written, locks.

    SCRATCH/objects/ab/ab12.../<tag>     a copy of one version of an object; its name is a hash of the URL
    SCRATCH/local/s3/BUCKET/KEY          what only this machine needs: files before the upload, pieces of a fetch, locks

SCRATCH is the folder of `scratch`. Copies that were not used for the longest time go when all of them have more than
OPENWIT_SCRATCH_GB. A copy that was used in the last minute stays, so the bound holds but for the files in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator

from pipeline.engine import files, object_store, scratch, variables
from pipeline.engine.object_store import Version

IN_USE_S = 60.0
EVERY_BYTES = 256 << 20  # new bytes of a process after which it looks for copies to remove
_numbers = itertools.count()
_new_bytes = EVERY_BYTES  # a process looks once when it begins


def local(url: str) -> str:
    """The path of a copy of the object as it is now. It costs one request, and the bytes if they are not here.

    Raises:
        FileNotFoundError: there is no such object.
    """
    folder = _folder(url)
    tags = _tags(folder)
    known = tags[-1] if tags else ""
    name = f"{folder}.tmp{os.getpid()}-{next(_numbers)}"
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    try:
        with files.naming(name):
            tag = object_store.download(url, name, other_than=known)
            if tag is None:
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path := os.path.join(folder, known))
                    return path
                tag = object_store.download(url, name)  # another process has removed the copy
        return _keep(folder, name, str(tag))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def of_version(url: str, tag: str) -> str:
    """The path of a copy of the object that is known to have a tag. It costs a request if no copy is here.

    Raises:
        FileNotFoundError: there is no such object.
    """
    return here(url, tag) or local(url)


def here(url: str, tag: str) -> str | None:
    """The path of a copy of one version; None: this machine has none."""
    path = os.path.join(_folder(url), _name(tag))
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)
        return path
    return None


def keep(url: str, tag: str, data: bytes) -> None:
    """Keeps the bytes of an object that this process has written."""
    with _new(url) as name:
        with open(name, "wb") as file:
            file.write(data)
        _keep(_folder(url), name, tag)


def copy_of(url: str) -> str | None:
    """The path of a copy of the object as it is now; None: this machine has none."""
    found = object_store.head(url) if _tags(_folder(url)) else None
    return here(url, found.tag) if found is not None else None


@contextlib.contextmanager
def temporary(url: str, made: Callable[[Version], None] = lambda version: None) -> Iterator[str]:
    """Yields a name on this machine. When the block ends, the file becomes the object, whole; its bytes stay here.

    `made` is then called with the version of the object.
    """
    with _new(url) as name:
        yield name
        size, tag = os.path.getsize(name), object_store.upload(name, url)
        _keep(_folder(url), name, tag)
        made(Version(size, tag))


@contextlib.contextmanager
def _new(url: str) -> Iterator[str]:
    """Yields the name of a file. What is left of it when the block ends goes."""
    path = scratch.beside(url)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    name = f"{path}.tmp{os.getpid()}-{next(_numbers)}"
    try:
        with files.naming(name):
            yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def drop(url: str) -> None:
    """Removes the copies of an object from this machine."""
    shutil.rmtree(_folder(url), ignore_errors=True)


def _folder(url: str) -> str:
    name = hashlib.sha256(url.encode()).hexdigest()[:40]
    return os.path.join(scratch.folder(), "objects", name[:2], name)


def _name(tag: str) -> str:
    return tag.replace("/", "_")


def _tags(folder: str) -> list[str]:
    """The versions of an object that are here, the newest last."""
    try:
        with os.scandir(folder) as entries:
            return [name for _, name in sorted((entry.stat().st_mtime_ns, entry.name) for entry in entries)]
    except FileNotFoundError:
        return []


def _keep(folder: str, name: str, tag: str) -> str:
    """Moves a file among the copies. Returns its path."""
    global _new_bytes
    path = os.path.join(folder, _name(tag))
    _new_bytes += os.path.getsize(name)
    os.makedirs(folder, exist_ok=True)
    os.replace(name, path)
    os.utime(path)
    for other in _tags(folder)[:-1]:
        if other != os.path.basename(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, other))
    if _new_bytes > EVERY_BYTES:
        _new_bytes = 0
        remove_old(os.path.join(scratch.folder(), "objects"), variables.number(variables.SCRATCH_GB) * 1e9)
    return path


def remove_old(folder: str, most: float) -> None:
    """Removes the copies that were not used for the longest time, until all have at most so many bytes."""
    found, now = [], time.time()
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                state = os.stat(path := os.path.join(parent, name))
                found.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        if total <= most or used > now - IN_USE_S:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
            os.rmdir(os.path.dirname(path))
        total -= size
