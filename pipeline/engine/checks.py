"""Checks option values against the file system. Each message says what is allowed. `validate` adds the flag."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.engine.cli import MissingInput, UsageError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: path functions turn s3:// into s3:/
STORES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}  # schemes of object stores that can be written: package, extra
_BUCKETS = {
    "s3": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "3 to 63 of a-z, 0-9, dots and hyphens"),
    "gs": (r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", "3 to 222 of a-z, 0-9, dots, hyphens and underscores"),
}
STORE_PATIENCE_S = 60.0  # for a store that holds what an option names: somebody waits for an answer
SYSTEM_FILES = frozenset((".DS_Store", "lost+found"))  # a folder with nothing else counts as empty


def not_empty(value: str) -> None:
    """Refuses a text without a visible character."""
    if not value.strip():
        raise UsageError("must not be empty")


def is_object(path: str) -> bool:
    """True if the user names something on an object store.

    Raises:
        UsageError: the store is of another kind than those that this version reads, or its package is missing.
    """
    if not URL.match(path):
        return False
    found = re.match(r"([a-z0-9+.-]+)://[^/]+/[^/]", path)
    if found is None or found[1] not in STORES:
        raise UsageError("must be of this machine, or s3://BUCKET/NAME, gs://BUCKET/NAME")
    if needed := missing_package(path):
        raise UsageError(needed)
    return True


def missing_package(url: str) -> str:
    """What the user must install for a store; "": nothing."""
    package, extra = STORES.get(url.partition("://")[0], ("fsspec", ""))
    found = importlib.util.find_spec(package) is not None
    return "" if found else f"needs the package {package}: pip install 'openwit[{extra}]'"


@contextlib.contextmanager
def store_failures(*, patience: float = STORE_PATIENCE_S, writes: bool = False) -> Iterator[None]:
    """Failures of a store that holds what a command names, as those of a missing file.

    Args:
        patience: seconds for which it is asked again.
        writes: the command writes there, too. The message of the store says what it refuses.

    Raises:
        MissingInput: the store is away, refuses, or has no such bucket.
    """
    from pipeline.engine import remote  # here, since most options name files of this machine
    from pipeline.engine.input_errors import InputError

    try:
        with remote.configured(dataclasses.replace(remote.settings(), patience=patience)):
            yield
    except (FileNotFoundError, InputError) as error:
        raise MissingInput(str(error) if writes else f"cannot be read ({error})") from None


def readable_file(path: str) -> None:
    """Refuses a path that is not a file, and a file that this process may not read. It may be an object of a store."""
    if is_object(path):
        from pipeline.engine import storage

        with store_failures():
            if not storage.is_file(path):
                if storage.is_folder(path):
                    raise UsageError("must be a file")
                raise MissingInput("no such file")
        return
    if not os.path.exists(path):
        raise MissingInput("no such file")
    if not os.path.isfile(path):
        raise UsageError("must be a file")
    if not os.access(path, os.R_OK):
        raise MissingInput("cannot be read (Permission denied)")


def output_folder(path: str, *, ours: Callable[[str, list[str]], bool], stores: bool = False) -> None:
    """Refuses a folder that cannot be created or written, and a folder with other files.

    Args:
        path: a folder of this machine.
        ours: takes the folder and the names in it. Returns True if an earlier run made the folder.
        stores: the URL of an object store is allowed. What lies there is not looked at.
    """
    if not path.strip():
        raise UsageError("must be a folder, not an empty name")
    if meant := re.match(rf"({'|'.join(STORES)}):/?(?=[^/])", path, re.IGNORECASE):
        raise UsageError(f"must have two slashes to be a URL: {meant[1].lower()}://{path[meant.end() :]}")
    if URL.match(path):
        if not stores:
            raise UsageError("must be a folder of this machine; object stores are not supported as output yet")
        _object_folder(path)
        return
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError("must be a name in UTF-8, since files of the run hold it") from None
    if not os.path.isdir(path):
        _check_parent(path)
        return
    try:
        names = sorted(set(os.listdir(path)) - SYSTEM_FILES)
    except OSError as error:
        raise UsageError(f"must be a folder that can be read ({error.strerror})") from None
    if names and not ours(path, names):
        raise UsageError(holds_others(names))
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError("is not writable: name another folder, or change its permissions")


def holds_others(names: list[str]) -> str:
    """Why a folder with these names cannot be OUT."""
    some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return f"must be empty, new, or the folder of an earlier run; it holds other things ({some})"


def _object_folder(url: str) -> None:
    """Refuses a URL that cannot name a folder of objects. Nothing is asked of the store."""
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/]*)(/.*)?", url)
    scheme = found[1].lower() if found else ""
    if scheme not in STORES:
        known = "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
        raise UsageError(f"must be a folder of this machine, {known}; other stores cannot be written yet")
    form, said = _BUCKETS[scheme]
    if found is None or not re.fullmatch(form, found[2]):
        raise UsageError(f"must name a bucket: {scheme}://BUCKET/FOLDER, {said}")
    if scheme != found[1]:
        raise UsageError(f"must begin with {scheme}:// in small letters")
    parts = (found[3] or "").strip("/").split("/")
    if parts == [""]:
        raise UsageError(f"must name a folder of the bucket, and not its root: {scheme}://{found[2]}/FOLDER")
    if not all(re.fullmatch(r"[A-Za-z0-9!_.*'()-]+", part) for part in parts):
        raise UsageError("must name a folder of the bucket: letters, digits and !_.*'()- with single slashes between")
    if {".", ".."} & set(parts):
        raise UsageError("must not hold . or .. as the name of a folder")


def local(path: str, what: str = "path") -> None:
    """Refuses a URL where a command writes on this machine alone: a path function would make folders of its parts.

    Args:
        path: what the user names.
        what: must be named, such as "folder".
    """
    if URL.match(path):
        raise UsageError(f"must be a {what} of this machine: nothing is written to a URL here")


def written_file(path: str) -> None:
    """Refuses a URL that is no object of a store to which files can be written. Nothing is asked of the store."""
    if URL.match(path) and not path.startswith(tuple(f"{scheme}://" for scheme in STORES)):
        raise UsageError("must be a file of this machine, or s3://BUCKET/NAME, gs://BUCKET/NAME")
    if URL.match(path):
        is_object(path)


def flag(name: str, value: str, check: Callable[[str], None]) -> None:
    """Checks the value of a flag that is not declared with `option`. The message names both."""
    try:
        check(value)
    except (UsageError, MissingInput) as error:
        raise type(error)(f"{name} {value}: {error}") from None


def cache_folder(path: str) -> None:
    """Refuses a folder that cannot be made or written."""
    not_empty(path)
    local(path, "folder")
    if not os.path.isdir(path):
        _check_parent(path)
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError("is not readable and writable: name another folder, or change its permissions")


def _check_parent(path: str) -> None:
    """Refuses a folder that cannot be created."""
    at = os.path.abspath(path)
    while not os.path.lexists(at):
        at = os.path.dirname(at)
    if not os.path.isdir(at):
        raise UsageError("must be a folder; it is a file or a broken link, or lies below one")
    if not os.access(at, os.W_OK | os.X_OK):
        raise UsageError(f"cannot be made, because {at} is not writable: name another folder")


def read_object(path: str) -> dict[str, Any]:
    """The object in a JSON file; an empty one if the file is missing or holds no object."""
    from pipeline.engine import storage

    try:
        found = json.loads(storage.read(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def begins_with(path: str, head: bytes) -> bool:
    """True if these are the first bytes of the file."""
    from pipeline.engine import storage

    with open(storage.here(path), "rb") as file:
        return file.read(len(head)) == head
