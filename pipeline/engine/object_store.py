"""Objects of an S3 store: read whole or by range, write whole, list, copy, delete. `storage` calls it for URLs.

What a store promises, and what the rest builds on:

    write       an object is whole or absent, and a later read gives it (S3: strong consistency, since 2020-12)
    create      `write(absent=True)` succeeds for one of several writers (If-None-Match, since 2024-08)
    replace     `write(tag=...)` fails if another writer was there (If-Match, since 2024-11)
    rename      none: `copy` on the side of the store, then `delete`
    folders     none: the part of a name before a slash

A request that fails in a way that may pass is sent again for the patience of remote inputs (`remote`). The clients are
those of s3fs, with its variables: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pipeline.engine import remote
from pipeline.engine.input_errors import MissingInputError, one_line

SCHEMES = ("s3", "s3a")
PIECE = 32 << 20  # bytes of a larger file that one request sends; S3 takes at most 10,000 of them
LARGEST_COPY = 5 << 30  # bytes that one request can copy
LISTED = 1000  # names that one request gives or deletes
WINDOW = 64 << 10  # bytes that the first request of an open object asks for at least
READ_BUFFER = 4 << 20  # bytes that a buffered reader asks for


class Conflict(Exception):
    """Another writer was faster: the object exists, or is not that of the tag."""


class Version(NamedTuple):
    """A version of an object: its bytes, and what tells it from others."""

    size: int
    tag: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object as a list shows it."""

    url: str
    size: int
    tag: str
    time: float = 0.0  # when it was written, in seconds since 1970


def is_url(path: str) -> bool:
    """True for the URL of an object or a folder of objects, False for a path of this machine."""
    return "://" in path


def split(url: str) -> tuple[str, str]:
    """(bucket, key) of a URL."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key


# -------------------------------------------------------------------------------------------------------- requests


def _code(error: BaseException) -> str:
    """What the store answered: its code, such as PreconditionFailed; "": it was no answer."""
    answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def _call(url: str, work: Callable[[Any], Any], *, what: str) -> Any:
    """Calls `work` with the client of the store, again after a failure that may pass.

    Raises:
        FileNotFoundError: the object or the bucket does not exist.
        Conflict: a condition of the request does not hold.
        RefusedInputError, TransferError: as `remote.patiently`.
    """

    def once(system: Any, _: str) -> Any:
        try:
            return work(system), None
        except Exception as error:
            code = _code(error)
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "304", "NotModified"):
                return None, Conflict(code)
            if code in ("InvalidRange", "416"):
                return None, EOFError(code)
            if isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
                raise ValueError(one_line(error)) from error  # the same request fails again
            raise

    try:
        value, failure = remote.patiently(url, once, what=what, paced=False)
    except MissingInputError as error:
        raise FileNotFoundError(f"{url}: {error}") from None
    if failure is not None:
        raise failure
    return value


def _send(method: str, given: dict[str, Any], system: Any) -> Any:
    return system.call_s3(method, **given)


def _ask(url: str, method: str, *, what: str = "written", **given: Any) -> Any:
    bucket, key = split(url)
    return _call(url, functools.partial(_send, method, {"Bucket": bucket, "Key": key, **given}), what=what)


# ------------------------------------------------------------------------------------------------------------ reads


def read(url: str) -> bytes:
    """The whole object.

    Raises:
        FileNotFoundError: there is none.
    """
    return read_with_head(url)[0]


def read_with_head(url: str, **given: Any) -> tuple[bytes, dict[str, Any]]:
    """The bytes of an object, and the answer of the store. `given`: of the request."""
    from fsspec.asyn import sync

    bucket, key = split(url)

    async def ask(system: Any) -> tuple[bytes, dict[str, Any]]:
        answer = await system._call_s3("get_object", Bucket=bucket, Key=key, **given)
        async with answer["Body"] as body:
            return await body.read(), answer

    data, answer = _call(url, lambda system: sync(system.loop, ask, system), what="read")
    return data, answer


def read_range(url: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on; fewer if the object ends there."""
    return _range(url, start, size)[0] if size else b""


def _range(url: str, start: int, size: int, tag: str = "") -> tuple[bytes, int, str]:
    """(bytes, size of the whole object, tag)"""
    same = {"IfMatch": tag} if tag else {}
    try:
        data, answer = read_with_head(url, Range=f"bytes={start}-{start + size - 1}", **same)
    except EOFError:
        found = head(url)
        if found is None:
            raise FileNotFoundError(url) from None
        return b"", found.size, found.tag
    whole = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return data, int(whole) if whole.isdigit() else start + len(data), str(answer.get("ETag", ""))


def download(url: str, path: str, *, other_than: str = "") -> str | None:
    """Writes the object to a file of this machine. Returns its tag; None: it has the tag `other_than`.

    Raises:
        FileNotFoundError: there is none.
    """
    from fsspec.asyn import sync

    bucket, key = split(url)
    given = {"IfNoneMatch": other_than} if other_than else {}

    async def ask(system: Any) -> str:
        answer = await system._call_s3("get_object", Bucket=bucket, Key=key, **given)
        with open(path, "wb") as file:
            async with answer["Body"] as body:
                while data := await body.read(1 << 20):
                    file.write(data)
            if file.tell() != answer["ContentLength"]:
                raise OSError(f"the store sent {file.tell():,} of {answer['ContentLength']:,} bytes")
        return str(answer["ETag"])

    try:
        return _call(url, lambda system: sync(system.loop, ask, system), what="read")
    except Conflict:
        return None


def head(url: str) -> Version | None:
    """Size and tag of an object; None: there is none."""
    if not split(url)[1]:
        return None
    try:
        found = _ask(url, "head_object", what="read")
    except FileNotFoundError:
        return None
    return Version(int(found["ContentLength"]), str(found["ETag"]))


class ObjectFile(io.RawIOBase):
    """An object that is open for reading. All reads give bytes of one version.

    Raises (also `range`):
        FileNotFoundError: there is no object.
        Conflict: it was replaced after the first read.
    """

    def __init__(self, url: str, known: Version | None = None) -> None:
        super().__init__()
        self._url, self._at, self._start, self._held = url, 0, 0, b""
        if known is not None:
            self.size, self._tag = known
        else:
            self._held, self.size, self._tag = _range(url, 0, WINDOW)

    def range(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; fewer if the object ends there."""
        size = max(0, min(size, self.size - start))
        inside = start - self._start
        if not size:
            return b""
        if not 0 <= inside <= len(self._held) - size:
            self._held = _range(self._url, start, max(size, WINDOW), self._tag)[0]
            self._start, inside = start, 0
        return self._held[inside : inside + size]

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
    given = ({"IfNoneMatch": "*"} if absent else {}) | ({"IfMatch": tag} if tag else {})
    return str(_ask(url, "put_object", Body=data, **given)["ETag"])


def upload(path: str, url: str) -> str:
    """Writes a file of this machine as one object, in pieces if it is large. Returns its tag."""
    size = os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        if size <= PIECE:
            return write(url, file.read())

        def send(start: int, end: int, **given: Any) -> str:
            data = os.pread(file.fileno(), end - start, start)
            return str(_ask(url, "upload_part", Body=data, **given)["ETag"])

        return _in_pieces(url, size, max(PIECE, -(-size // 9_999)), send)


def copy(source: str, target: str, size: int) -> str:
    """Copies an object of so many bytes within the store. Nothing comes to this machine. Returns the tag of the copy.

    Raises:
        FileNotFoundError: there is no such object.
    """
    origin = dict(zip(("Bucket", "Key"), split(source), strict=True))
    if size <= LARGEST_COPY:
        return str(_ask(target, "copy_object", CopySource=origin)["CopyObjectResult"]["ETag"])

    def send(start: int, end: int, **given: Any) -> str:
        span = f"bytes={start}-{end - 1}"
        sent = _ask(target, "upload_part_copy", CopySource=origin, CopySourceRange=span, **given)
        return str(sent["CopyPartResult"]["ETag"])

    return _in_pieces(target, size, 1 << 30, send)


def _in_pieces(url: str, size: int, piece: int, send: Callable[..., str]) -> str:
    """Makes one object of pieces. Returns its tag. What was sent goes if it fails.

    Args:
        url: of the object.
        size: of the object.
        piece: bytes of a piece.
        send: sends the bytes from `start` to `end`, with what the request must name. Returns the tag of the piece.
    """
    upload_id = _ask(url, "create_multipart_upload")["UploadId"]
    try:
        parts = []
        for number, start in enumerate(range(0, size, piece), 1):
            tag = send(start, min(size, start + piece), PartNumber=number, UploadId=upload_id)
            parts.append({"PartNumber": number, "ETag": tag})
        done = _ask(url, "complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts})
        return str(done["ETag"])
    except BaseException:
        with contextlib.suppress(Exception):
            _ask(url, "abort_multipart_upload", UploadId=upload_id)
        raise


def delete(urls: list[str]) -> None:
    """Deletes objects of one bucket, in their order. What is not there is no error."""
    for start in range(0, len(urls), LISTED):
        some = urls[start : start + LISTED]
        if len(some) == 1:
            _ask(some[0], "delete_object")
            continue
        bucket = split(some[0])[0]
        keys = {"Objects": [{"Key": split(url)[1]} for url in some], "Quiet": True}
        given = {"Bucket": bucket, "Delete": keys}
        answer = _call(some[0], functools.partial(_send, "delete_objects", given), what="written")
        if answer.get("Errors"):
            raise OSError(f"{some[0]}: cannot be deleted: {answer['Errors'][0].get('Message', 'no reason given')}")


def keeps_versions(url: str) -> bool:
    """True if the bucket keeps older versions of its objects, or some from the time when it did.

    A store that does not tell is taken as one that keeps none.
    """
    with contextlib.suppress(Exception):
        given = {"Bucket": split(url)[0]}
        return "Status" in _call(url, functools.partial(_send, "get_bucket_versioning", given), what="read")
    return False


# ------------------------------------------------------------------------------------------------------------ lists


def _pages(url: str, **given: Any) -> Iterator[dict[str, Any]]:
    """The answers to a list of the objects whose URL begins with `url`."""
    bucket, prefix = split(url)
    more: dict[str, str] = {}
    while True:
        wanted = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": LISTED, **given, **more}
        page = _call(url, functools.partial(_send, "list_objects_v2", wanted), what="listed")
        yield page
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _base(url: str) -> str:
    return f"{url.partition('://')[0]}://{split(url)[0]}/"


def _entries(base: str, page: dict[str, Any]) -> Iterator[Entry]:
    for item in page.get("Contents", ()):
        yield Entry(base + item["Key"], int(item["Size"]), str(item["ETag"]), item["LastModified"].timestamp())


def below(folder: str) -> list[Entry]:
    """All objects below a folder, sorted by URL."""
    top = folder.rstrip("/") + "/"
    found = [entry for page in _pages(top) for entry in _entries(_base(top), page)]
    return sorted(found, key=lambda entry: entry.url)


def within(folder: str) -> tuple[list[Entry], list[str]]:
    """(the objects right in a folder, the names of the folders in it)"""
    top = folder.rstrip("/") + "/"
    at = len(split(top)[1])
    found: list[Entry] = []
    folders: list[str] = []
    for page in _pages(top, Delimiter="/"):
        found += (entry for entry in _entries(_base(top), page) if entry.url != top)
        folders += (item["Prefix"][at:-1] for item in page.get("CommonPrefixes", ()))
    return found, folders


def has_objects(folder: str) -> bool:
    """True if an object lies below the folder.

    Raises:
        FileNotFoundError: there is no such bucket.
    """
    return next(_pages(folder.rstrip("/") + "/", MaxKeys=1)).get("KeyCount", 0) > 0
