"""One try to read a remote file: an answer of a web server, or an open file of an fsspec store.

A failure is one of three kinds. `Missing`: the file is not there. `Refused`: asking again gives the same answer.
`Broken`: it may pass. `remote` decides what follows. Common Crawl's CDN throttles with 403 (cc-downloader issue 29,
2026-06), so a 403 is `Broken` if the CDN sent it, if it names a time to wait, or if the file was readable before.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Protocol

from pipeline.engine import display
from pipeline.engine.http_dates import retry_after
from pipeline.engine.input_errors import is_http, one_line

TIMEOUT = 60  # seconds without a byte from a web server
SLOW_S, SLOW_BYTES = 60.0, 10_000  # after so many seconds of waiting, fewer bytes a second count as a break
PASSING = (408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 525, 526, 527, 529, 530)
MISSING = (404, 410)
STORE_BLOCK = 8 << 20  # bytes that a client of a store asks for at a time, about
_S3 = ("s3", "s3a")
# Errors of the clients of stores that stay until the user does something.
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
MAX_ERROR_BODY = 64 << 10  # bytes of an error page that are looked at
# What the error pages of CDNs that throttle say. S3 itself answers AccessDenied for a key that is not there.
_THROTTLED = re.compile(rb"request blocked|rate.?limit|too many requests|slow ?down|throttl|request could not be", re.I)
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Missing(Exception):
    """The file is not there."""


class Refused(Exception):
    """The file cannot be read, and asking again changes nothing."""


class Broken(Exception):
    """The try failed; another one may succeed. `wait` is the time in seconds that the server asks for."""

    def __init__(self, cause: object, wait: float = 0.0) -> None:
        super().__init__(display.sanitize(one_line(cause) if isinstance(cause, Exception) else cause))
        self.wait = wait


class Answer(Protocol):
    """Bytes of a file from a place on.

    Attributes:
        start: the place of the first byte that `read` gives. It may lie before the place that was asked for.
        end: the place behind the last byte of the answer; None: not known.
        size: of the whole file; None: not known.
        ranges: any place can be asked for.
        version: differs if the file has another content; "": not known.
    """

    start: int
    end: int | None
    size: int | None
    ranges: bool
    version: str

    def read(self, most: int) -> bytes:
        """At most so many bytes; b"" at the end of the answer. It raises `Broken`."""
        ...

    def close(self) -> None: ...


def ask(
    url: str, place: int, window: int, version: str, *, known: bool, pace: Callable[[], None] = lambda: None
) -> Answer:
    """Asks for a file from a place on.

    Args:
        url: of a web server or a store.
        place: of the first byte.
        window: bytes to ask for; 0: all that follow.
        version: of an earlier answer. A server whose file has another version should send the whole file.
        known: the file was readable before, so a missing or refused file is a passing state of the server.
        pace: waits until a further request may be sent, where one answer needs several. The caller paced the first.

    Raises:
        Missing, Refused, Broken: see above.
    """
    if is_http(url):
        return HttpAnswer(url, place, window, version, known=known)
    return StoreAnswer(url, place, known=known, pace=pace)


class HttpAnswer:
    """One answer of a web server."""

    def __init__(self, url: str, place: int, window: int, version: str, *, known: bool) -> None:
        self._waited, self._got = 0.0, 0
        span = f"bytes={place}-{place + window - 1 if window else ''}"
        self._answer = _request(url, {"Range": span, **({"If-Range": version} if version else {})}, known=known)
        headers = self._answer.headers
        tag = headers.get("ETag", "")
        self.version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
        self.start, self.end, self.size, self.ranges = 0, self._answer.length, self._answer.length, False
        if self._answer.status != 200:
            found = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if self._answer.status != 206 or found is None or int(found[1]) != place or int(found[2]) < place:
                self.close()
                raise Broken(f"the server answered {self._answer.status} with another range than the one requested")
            self.start, self.end, self.ranges = place, int(found[2]) + 1, True
            self.size = None if found[3] == "*" else int(found[3])
            sent = self._answer.length
            if (sent is not None and sent != self.end - place) or (self.size is not None and self.end > self.size):
                self.close()
                raise Broken("the server's Content-Range does not fit its answer")

    def read(self, most: int) -> bytes:
        start = time.monotonic()
        try:
            data = self._answer.read1(most)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Broken(error) from error
        self._waited += time.monotonic() - start
        self._got += len(data)
        if self._waited > SLOW_S and self._got < SLOW_BYTES * self._waited:
            raise Broken(f"the server sent only {self._got:,} bytes in {self._waited:.0f} s")
        return data

    def close(self) -> None:
        self._answer.close()


def _request(url: str, headers: dict[str, str], *, known: bool) -> http.client.HTTPResponse:
    try:
        asked = urllib.request.Request(url, headers={"User-Agent": "OpenWIT (archive reader)", **headers})
        return urllib.request.build_opener(_Redirects).open(asked, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise _failure(error, known=known) from None
    except http.client.InvalidURL as error:  # such as a port that is no number
        raise Refused(error) from error
    except (OSError, http.client.HTTPException) as error:
        raise Broken(getattr(error, "reason", None) or error) from error
    except ValueError as error:
        raise Refused(str(error)) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to other web servers, and nowhere else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_http(newurl):
            raise urllib.error.HTTPError(req.full_url, code, "and leads to no web server", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _failure(error: urllib.error.HTTPError, *, known: bool) -> Exception:
    """What an error of a server means."""
    wait = retry_after(error.headers.get("Retry-After")) or 0.0
    said = f"HTTP {error.code} {_reason(error)}"
    if error.code in PASSING:
        return Broken(said, wait)
    if error.code == 403 and (wait or known or _of_a_cdn(error)):
        return Broken(f"{said} (throttled?)", wait)
    if error.code == 416:
        return EmptyFile(said)
    if error.code in MISSING:
        return Broken(said, wait) if known else Missing(f"HTTP {error.code}")
    return Refused(said)


def _reason(error: urllib.error.HTTPError) -> str:
    """The words of a server, or of urllib, on one line."""
    said = str(error.reason)
    return "and redirects without end" if "infinite loop" in said else display.sanitize(said)


class EmptyFile(Exception):
    """The server has no byte from this place on. A file that was not read before is empty."""


def _of_a_cdn(error: urllib.error.HTTPError) -> bool:
    """True if a CDN refused the request, and not the store behind it."""
    try:
        body = error.read(MAX_ERROR_BODY)
    except (OSError, http.client.HTTPException):
        body = b""
    if b"<Code>AccessDenied</Code>" in body:
        return False
    cdn = " ".join(error.headers.get(name, "") for name in ("Server", "Via", "X-Cache")).lower()
    return _THROTTLED.search(body) is not None or "error from cloudfront" in cdn or "cloudfront" in cdn


class StoreAnswer:
    """A file of an fsspec store. Stores raise errors of many classes, so all are caught."""

    def __init__(self, url: str, place: int, *, known: bool, pace: Callable[[], None]) -> None:
        self._pace, self._paid = pace, place
        try:
            system, path = store(url)
            if known:
                system.invalidate_cache()  # a listing may be older than the file
            self._file: Any = system.open(path, "rb", block_size=STORE_BLOCK)
        except Exception as error:
            raise store_failure(error, known=known) from error
        size = getattr(self._file, "size", None)
        self.size = self.end = size if isinstance(size, int) else None
        try:
            self.ranges = self.size is not None and bool(self._file.seekable())  # without a size it may be wrong
            self.start, self.version = (place if self.ranges else 0), self._version()
            self._place = self._paid = self.start
        except Exception as error:
            self.close()
            raise Broken(said(error)) from error

    def _version(self) -> str:
        details = getattr(self._file, "details", None)
        return str(details.get("ETag") or details.get("etag") or "") if isinstance(details, dict) else ""

    def read(self, most: int) -> bytes:
        if self._place >= self._paid:  # the client asks for a block
            self._pace()
            self._paid = self._place + STORE_BLOCK
        try:
            if self.ranges and self._file.tell() != self._place:  # readers of memory:// share one position
                self._file.seek(self._place)
            data = self._file.read(most)
        except Exception as error:
            raise Broken(said(error)) from error
        self._place += len(data)
        return data

    def close(self) -> None:
        try:
            self._file.close()
        except Exception:
            return  # nothing was written


def store_failure(error: Exception, *, known: bool) -> Exception:
    """What an error means that a store raised. `known`: the file was readable before."""
    if isinstance(error, (ValueError, ImportError)) or type(error).__name__ in _CREDENTIALS:
        return Refused(said(error))
    if known:
        return Broken(said(error))
    if isinstance(error, FileNotFoundError):
        return Missing(said(error))
    return Refused(said(error)) if isinstance(error, PermissionError) else Broken(said(error))


def said(error: Exception) -> str:
    """What a store answered, as "HTTP 503 SlowDown: Please reduce your request rate"; else what the client says.

    s3fs makes an errno of the code of an answer: EBUSY of SlowDown. The number tells a person nothing.
    """
    answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    answer = answer if isinstance(answer, dict) else {}
    found = answer.get("Error")
    if isinstance(found, dict) and found.get("Code"):
        status, code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode"), str(found["Code"])
        words = ["HTTP", *([str(status)] if status else []), *([code] if code != str(status) else [])]
        return " ".join(words) + (f": {found['Message']}" if found.get("Message") else "")
    return _ERRNO.sub("", one_line(error))


def store(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Its client makes one try: `remote` asks again, at its own pace."""
    import fsspec

    protocol = url.partition("://")[0].lower()
    if protocol not in _S3:
        return fsspec.core.url_to_fs(url)
    given = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    system, path = fsspec.core.url_to_fs(url, config_kwargs={**given, "retries": {"total_max_attempts": 1}})
    system.retries = 1
    return system, path


class Positioned(io.RawIOBase):
    """A readable stream with a position and a size."""

    def __init__(self) -> None:
        super().__init__()
        self.position = 0
        self.size: int | None = None

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if not self.seekable() or self.size is None:
            raise io.UnsupportedOperation("the stream cannot seek")
        self.position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence])
        return self.position
