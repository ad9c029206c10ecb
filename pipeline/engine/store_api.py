"""What a store of objects promises (`Store`), and how its requests are sent. `s3_store` and `gcs_store` hold one each.

Nothing else knows which store it is: `object_store` finds it by the URL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from pipeline.engine import remote
from pipeline.engine.input_errors import MissingInputError

T = TypeVar("T")


class Conflict(Exception):
    """Another writer was faster: the object exists, or is not that of the tag."""


class Version(NamedTuple):
    """A version of an object.

    Attributes:
        size: its bytes.
        tag: tells it from others.
        content: a checksum of its bytes, where another write of the same bytes has another tag; "": it is not known.
    """

    size: int
    tag: str
    content: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object as a list shows it."""

    url: str
    size: int
    tag: str
    time: float = 0.0  # when it was written, in seconds since 1970
    content: str = ""  # as in `Version`

    @property
    def version(self) -> Version:
        return Version(self.size, self.tag, self.content)


class Page(NamedTuple):
    """A part of a list: objects, and the URLs of folders with a slash at the end."""

    entries: list[Entry]
    folders: list[str]


class Store(Protocol):
    """Requests of one kind of store. Objects are named by URLs, versions by tags: texts that nobody looks into.

    An object is whole or absent. A read or a list gives what was written before. A tag differs from those of all other
    contents that the object had. Each method raises FileNotFoundError if there is no such object or bucket (but for
    `delete` and `head`), and the errors of `remote.patiently`.

    Attributes:
        conditions: the names of the conditions of `put`, for messages: of `absent`, of `tag`.
        no_tag: a tag that no object has.
    """

    conditions: tuple[str, str]
    no_tag: str

    def get(self, url: str) -> tuple[bytes, str]:
        """(all bytes, tag)"""
        ...

    def get_range(self, url: str, start: int, size: int, tag: str = "") -> tuple[bytes, int, str]:
        """(bytes from `start` on, size of the whole object, tag); fewer bytes if the object ends there.

        Raises:
            EOFError: it ends at `start`, or before.
            Conflict: it has not the tag.
        """
        ...

    def get_with_age(self, url: str) -> tuple[bytes, str, float]:
        """(all bytes, tag, seconds since the object was written), all of one version, by the clock of the store."""
        ...

    def download(self, url: str, path: str, other_than: str = "") -> str | None:
        """Writes the object to a file of this machine. Returns its tag; None: it has the tag `other_than`."""
        ...

    def head(self, url: str) -> Version | None:
        """The version of the object; None: there is no such object."""
        ...

    def put(self, url: str, data: bytes, *, absent: bool = False, tag: str = "") -> str:
        """Writes an object. Returns its tag. One of several writers with the same condition succeeds.

        Raises:
            Conflict: it is not `absent`, or has not the tag.
        """
        ...

    def put_file(self, path: str, url: str) -> str:
        """Writes a file of this machine of any size. Returns the tag."""
        ...

    def copy(self, source: str, target: str, size: int) -> str:
        """Copies an object of so many bytes within the store. Nothing comes to this machine. Returns the tag."""
        ...

    def delete(self, groups: Sequence[Sequence[str]]) -> None:
        """Deletes objects of one bucket, a group after the other. What is not there is no error."""
        ...

    def pages(self, url: str, *, folders: bool = False, most: int = 0) -> Iterator[Page]:
        """Lists the objects whose URL begins with `url`, sorted.

        Args:
            url: the beginning.
            folders: what lies below a further slash is one folder.
            most: entries of a page; 0: what the store gives.
        """
        ...

    def keeps_versions(self, url: str) -> bool:
        """True if what was deleted in the bucket can be had again, as far as the store tells."""
        ...


def split(url: str) -> tuple[str, str]:
    """(bucket, key) of a URL."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key


def base(url: str) -> str:
    """The URL of the bucket, with a slash at the end."""
    return f"{url.partition('://')[0]}://{split(url)[0]}/"


def call(url: str, work: Callable[[Any], T], *, what: str) -> T:
    """Calls `work` with the client of the store, again after a failure that may pass.

    `work` raises Conflict and EOFError, and ValueError or PermissionError if the same request fails again.

    Raises:
        FileNotFoundError: the object or the bucket does not exist.
        Conflict, EOFError: of `work`.
        RefusedInputError, TransferError: as `remote.patiently`.
    """

    def once(system: Any, _: str) -> tuple[T | None, Exception | None]:
        try:
            return work(system), None
        except (Conflict, EOFError) as error:
            return None, error

    try:
        value, failure = remote.patiently(url, once, what=what, paced=False)
    except MissingInputError as error:
        raise FileNotFoundError(f"{url}: {error}") from None
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]
