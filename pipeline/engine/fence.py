"""Keeps processes of an ended run out of its folder: the fence of OUT on this machine or on a shared file system.

    OUT/.writing/TOKEN/<name>.tmp<process>-<number>    a file that is being written, before its rename

Each job of a run has a token of its own. Its processes write all their files in the folder of the token first, and
rename them from there. Who locks OUT next removes this folder, and the rename of a process that was left over fails.
So the file system checks the token in the same step as the rename: no moment lies between them. Nothing is read for it.
What was renamed before has a place without a token, and counts for every later run.

On NFS a process of another host knows the folder by its handle, also after the rename. So the folder is not only
renamed: it is emptied until it is gone. If a process of this host has a file open in it, it cannot go. So before each
rename the process asks the server whether the folder has its name (`confirm`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator

FOLDER = ".writing"
REMOVE_S = 5.0  # until a folder that cannot be emptied is left: it was renamed, so only its handle leads to it

_folders: dict[str, str] = {}  # OUT -> the folder of the token with which this process writes
_numbers = itertools.count()
_HERE = f"{secrets.randbelow(10**8):08d}"  # processes on other hosts, or in other containers, may have our process id


class FenceError(RuntimeError):
    """This process works for a run, or for a job of it, that no longer holds the folder, or that it does not see."""


def kept_out(root: str) -> FenceError:
    """Why this process may not write below `root`. The file .lock stays as long as OUT."""
    if os.path.exists(os.path.join(root, ".lock")):
        return FenceError(f"the output folder {root} belongs to another run or job by now; this process has stopped")
    return FenceError(
        f"a worker on {socket.gethostname()} does not see the output folder {root}: all workers must see it, and the "
        "inputs, under the same paths. Put it on a shared file system, or into a bucket (s3://...)"
    )


@contextlib.contextmanager
def raised(root: str) -> Iterator[None]:
    """While the block runs, only this process and those with its token write below `root`; after it nobody does."""
    renew(root)
    try:
        yield
    finally:
        lower(root)


def renew(root: str) -> None:
    """Keeps out all processes with an earlier token. This process gets a new one. The caller holds the lock of OUT."""
    parent = os.path.join(root, FOLDER)
    earlier = os.listdir(parent) if os.path.isdir(parent) else []
    folder = os.path.join(parent, secrets.token_hex(8))
    os.makedirs(folder)
    _folders[root] = folder
    for name in earlier:
        _remove(os.path.join(parent, name))


def next_job(root: str) -> None:
    """`renew`, if this process holds the folder."""
    if token_of(root):
        renew(root)


def lower(root: str) -> None:
    """Keeps out every process with the token of this one, which ends with it."""
    folder = _folders.pop(root, None)
    if folder is not None:
        _remove(folder)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(folder))


def token_of(root: str) -> str:
    """The token with which this process writes below `root`; "": none."""
    return os.path.basename(_folders.get(root, ""))


def enter(root: str, token: str) -> None:
    """This process works for the job with a token.

    Raises:
        FenceError: the job no longer holds the folder.
    """
    if token and token_of(root) != token:
        _folders[root] = os.path.join(root, FOLDER, token)
    if token:
        confirm(root)


def folder_for(path: str) -> str | None:
    """The folder in which a file below OUT is written before its rename; None: this process has no token for it."""
    found = [root for root in list(_folders) if path.startswith(f"{root}{os.sep}")]
    return _folders[max(found, key=len)] if found else None


def temporary_name(path: str) -> str:
    """A name that no other process has, for a file that will be renamed to `path`."""
    folder = folder_for(path)
    beside = path if folder is None else os.path.join(folder, os.path.basename(path))
    return f"{beside}.tmp{os.getpid()}-{_HERE}{next(_numbers)}"


def confirm(path: str) -> None:
    """Checks that the job of this process still holds the folder OUT that `path` is, or lies in.

    Raises:
        FenceError: it does not.
    """
    folder = folder_for(os.path.join(path, ""))
    if folder is not None and not _is_there(folder):
        raise kept_out(os.path.dirname(os.path.dirname(folder)))


def _is_there(folder: str) -> bool:
    """True if the folder exists. A client of NFS asks the server again after it has opened the folder above."""
    try:
        os.close(os.open(os.path.dirname(folder), os.O_RDONLY))
    except OSError:
        return False
    return os.path.isdir(folder)


@contextlib.contextmanager
def explaining(path: str) -> Iterator[None]:
    """In the block, a file that is missing since the folder of the token is gone is a FenceError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            confirm(path)
        raise


def _remove(folder: str) -> None:
    """Renames a folder, then empties it until it is gone."""
    gone, end = f"{folder}.tmp{os.getpid()}-{next(_numbers)}", time.monotonic() + REMOVE_S
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, gone)
    while os.path.lexists(gone):
        shutil.rmtree(gone, ignore_errors=True)
        if time.monotonic() > end:
            return
