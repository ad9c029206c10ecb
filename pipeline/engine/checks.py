"""Checks option values against the file system. Each message says what is allowed. `validate` adds the flag."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

from pipeline.engine.cli import MissingInput, UsageError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: path functions turn s3:// into s3:/
STORES = ("s3",)  # schemes of object stores that can be written
SYSTEM_FILES = frozenset((".DS_Store", "lost+found"))  # a folder with nothing else counts as empty


def not_empty(value: str) -> None:
    """Refuses a text without a visible character."""
    if not value.strip():
        raise UsageError("must not be empty")


def readable_file(path: str) -> None:
    """Refuses a path that is not a file, and a file that this process may not read."""
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
        some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        raise UsageError(f"must be empty, new, or the folder of an earlier run; it holds other things ({some})")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError("is not writable: name another folder, or change its permissions")


def _object_folder(url: str) -> None:
    """Refuses a URL that cannot name a folder of objects. Nothing is asked of the store."""
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/]*)(/.*)?", url)
    scheme = found[1].lower() if found else ""
    if scheme not in STORES:
        raise UsageError("must be a folder of this machine, or s3://BUCKET/FOLDER; other stores cannot be written yet")
    if found is None or not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", found[2]):
        raise UsageError("must name a bucket: s3://BUCKET/FOLDER, 3 to 63 of a-z, 0-9, dots and hyphens")
    parts = (found[3] or "").strip("/").split("/")
    if scheme != found[1] or not all(re.fullmatch(r"[A-Za-z0-9!_.*'()-]+", part) for part in parts):
        raise UsageError("must name a folder of the bucket: letters, digits and !_.*'()- with single slashes between")
    if {".", ".."} & set(parts):
        raise UsageError("must not hold . or .. as the name of a folder")


def cache_folder(path: str) -> None:
    """Refuses a folder that cannot be made or written."""
    not_empty(path)
    if URL.match(path):
        raise UsageError("must be a folder of this machine")
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
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def begins_with(path: str, head: bytes) -> bool:
    """True if these are the first bytes of the file."""
    with open(path, "rb") as file:
        return file.read(len(head)) == head
