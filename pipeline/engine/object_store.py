"""Objects of a store: read whole or by range, write whole, list, copy, delete. `storage` calls it for URLs.

What `storage` builds on, and each store gives in its own way (`store_api.Store`):

    write       an object is whole or absent, and a later read gives it
    create      `write(absent=True)` succeeds for one of several writers
    replace     `write(tag=...)` fails if another writer was there
    rename      none: `copy` on the side of the store, then `delete`
    folders     none: the part of a name before a slash

A request that fails in a way that may pass is sent again for the patience of remote inputs (`remote`).
"""

from __future__ import annotations

import io
import os
from typing import Any

from pipeline.engine import gcs_store, s3_store
from pipeline.engine.input_errors import RefusedInputError
from pipeline.engine.store_api import Conflict, Entry, Store, Version, split

__all__ = ["Conflict", "Entry", "Version", "split"]

STORES: dict[str, Store] = {"s3": s3_store.S3(), "s3a": s3_store.S3(), "gs": gcs_store.GCS()}  # by scheme
WINDOW = 64 << 10  # bytes that the first request of an open object asks for at least
READ_BUFFER = 4 << 20  # bytes that a buffered reader asks for


def is_url(path: str) -> bool:
    """True for the URL of an object or a folder of objects, False for a path of this machine."""
    return "://" in path


def store_of(url: str) -> Store:
    """The store of a URL.

    Raises:
        RefusedInputError: it is none of those that this version knows.
    """
    scheme = url.partition("://")[0]
    if scheme not in STORES:
        raise RefusedInputError(f"{url}: must begin with {', '.join(f'{name}://' for name in STORES)}")
    return STORES[scheme]


def same_store(one: str, other: str) -> bool:
    """True if an object can be copied from one URL to the other without coming to this machine."""
    return type(store_of(one)) is type(store_of(other))


# ------------------------------------------------------------------------------------------------------------ reads


def read(url: str) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: there is none.
    """
    return store_of(url).get(url)[0]


def read_with_age(url: str) -> tuple[bytes, str, float]:
    """(the whole object, its tag, the seconds since it was written by the clock of the store)

    Raises:
        FileNotFoundError: there is none.
    """
    return store_of(url).get_with_age(url)


def read_range(url: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on; fewer if the object ends there."""
    return _range(url, start, size)[0] if size else b""


def _range(url: str, start: int, size: int, tag: str = "") -> tuple[bytes, int, str]:
    """(bytes, size of the whole object, tag)"""
    try:
        return store_of(url).get_range(url, start, size, tag)
    except EOFError:
        found = head(url)
        if found is None:
            raise FileNotFoundError(url) from None
        return b"", found.size, found.tag


def download(url: str, path: str, *, other_than: str = "") -> str | None:
    """Writes the object to a file of this machine. Returns its tag; None: it has the tag `other_than`.

    Raises:
        FileNotFoundError: there is none.
    """
    return store_of(url).download(url, path, other_than)


def head(url: str) -> Version | None:
    """Size and tag of an object; None: there is none."""
    return store_of(url).head(url) if split(url)[1] else None


class ObjectFile(io.RawIOBase):
    """An object that is open for reading. All reads give bytes of one content.

    Raises (also `range`):
        FileNotFoundError: there is no object.
        Conflict: it was replaced after the first read, and not by the same bytes as far as the store tells.
    """

    def __init__(self, url: str, known: Version | None = None) -> None:
        super().__init__()
        self._url, self._at, self._start, self._held = url, 0, 0, b""
        self._content = known.content if known is not None else ""
        if known is not None:
            self.size, self._tag = known.size, known.tag
        else:
            self._held, self.size, self._tag = _range(url, 0, WINDOW)

    def range(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; fewer if the object ends there."""
        size = max(0, min(size, self.size - start))
        inside = start - self._start
        if not size:
            return b""
        if not 0 <= inside <= len(self._held) - size:
            try:
                self._held = _range(self._url, start, max(size, WINDOW), self._tag)[0]
            except Conflict:
                self._tag = self._tag_of_same_bytes()
                self._held = _range(self._url, start, max(size, WINDOW), self._tag)[0]
            self._start, inside = start, 0
        return self._held[inside : inside + size]

    def _tag_of_same_bytes(self) -> str:
        """The tag that the object has now. A unit that two workers ran is written twice, with the same bytes.

        Raises:
            Conflict: its bytes are others, or it is not known.
        """
        found = head(self._url)
        if found is None or not self._content or (found.size, found.content) != (self.size, self._content):
            raise Conflict(self._url)
        return found.tag

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self.range(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


# ----------------------------------------------------------------------------------------------------------- writes


def write(url: str, data: bytes, *, absent: bool = False, tag: str = "") -> str:
    """Writes an object. Returns its tag.

    Args:
        url: of the object.
        data: its bytes.
        absent: only if there is none.
        tag: only if the object has this tag.

    Raises:
        Conflict: the condition does not hold.
    """
    return store_of(url).put(url, data, absent=absent, tag=tag)


def upload(path: str, url: str) -> str:
    """Writes a file of this machine as one object, in pieces if it is large. Returns its tag."""
    return store_of(url).put_file(path, url)


def copy(source: str, target: str, size: int) -> str:
    """Copies an object of so many bytes within a store. Nothing comes to this machine. Returns the tag of the copy.

    Raises:
        FileNotFoundError: there is no such object.
    """
    return store_of(target).copy(source, target, size)


def delete(*groups: list[str]) -> None:
    """Deletes objects of one bucket, those of a group before those of the next. What is not there is no error."""
    some = [group for group in groups if group]
    if some:
        store_of(some[0][0]).delete(some)


def keeps_versions(url: str) -> bool:
    """True if what was deleted in the bucket can be had again, as far as the store tells."""
    return store_of(url).keeps_versions(url)


# ------------------------------------------------------------------------------------------------------------ lists


def below(folder: str) -> list[Entry]:
    """All objects below a folder, sorted by URL."""
    top = folder.rstrip("/") + "/"
    found = [entry for page in store_of(top).pages(top) for entry in page.entries]
    return sorted(found, key=lambda entry: entry.url)


def within(folder: str) -> tuple[list[Entry], list[str]]:
    """(the objects right in a folder, the names of the folders in it)"""
    top = folder.rstrip("/") + "/"
    found: list[Entry] = []
    folders: list[str] = []
    for page in store_of(top).pages(top, folders=True):
        found += (entry for entry in page.entries if entry.url != top)
        folders += (url[len(top) : -1] for url in page.folders)
    return found, folders


def has_objects(folder: str) -> bool:
    """True if an object lies below the folder.

    Raises:
        FileNotFoundError: there is no such bucket.
    """
    top = folder.rstrip("/") + "/"
    return any(page.entries for page in store_of(top).pages(top, most=1))
