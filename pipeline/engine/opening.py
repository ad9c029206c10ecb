"""Where the bytes of an input come from: this machine, a web server or a store that fsspec knows.

Only this module knows the kind of an input. A reader asks the `Opened` object: is it a local file, how large is it, can
it seek. A transfer that ends before the announced size raises InputError. It never looks like the end of the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import io
import os
import re
import stat
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from typing import IO, Any, BinaryIO

TIMEOUT = 60  # seconds without a byte from a web server
BUFFER = 64 << 10  # bytes that a remote stream reads ahead
WINDOW = 1 << 20  # bytes that the first request after a seek asks for; each request after it asks for twice as many
SKIPPED = 256 << 10  # a seek ahead by at most so many bytes reads and drops them; a longer one is a new request
MAX_COPIES = 8 << 30  # bytes of local copies that a process holds

_REMOTE = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_HTTP = re.compile(r"^https?://", re.IGNORECASE)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class InputError(ValueError):
    """An input cannot be used. The message names the input, the likely cause and the remedy."""


class ReaderError(InputError):
    """A reader failed with an error of its own: it has a bug, or the input is not what it expects."""


class TransferError(InputError):
    """A transfer broke. The input may be read by another try."""


class MissingInputError(InputError):
    """A remote input does not exist."""


class UnreadableInputError(InputError):
    """No byte of an input can be understood. The same bytes fail again."""


@dataclasses.dataclass
class Opened:
    """An input that is open.

    Attributes:
        stream: its bytes, from the first on; `read(n)` gives less than n bytes only at the end.
        name: what messages call it, without credentials.
        local: the stream has the descriptor of a regular file, which can be mapped.
        size: bytes; None if it is not known.
        seekable: `stream.seek` reaches any place without reading what lies before.
    """

    stream: IO[bytes]
    name: str
    local: bool = False
    size: int | None = None
    seekable: bool = False

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def is_remote(path: str) -> bool:
    """True for a URL, False for a path on this machine."""
    return _REMOTE.match(path) is not None


def is_http(path: str) -> bool:
    """True for a URL of a web server."""
    return _HTTP.match(path) is not None


def public(url: str) -> str:
    """A URL without credentials: no user, no query (signatures), no fragment. The published data hold this form."""
    if not is_remote(url):
        return url
    scheme, _, rest = url.partition("://")
    if is_http(url):
        rest = rest.split("?")[0].split("#")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def open_input(path: str) -> Opened:
    """Opens a path, an http(s) URL, an fsspec URL or a member of a WACZ (zip://MEMBER::PACK) for reading.

    Raises:
        MissingInputError: the server or the store reports that the input does not exist.
        InputError: a remote input cannot be opened. Its stream raises this error, too, if the transfer breaks.
        OSError: a local file cannot be opened.
    """
    if not is_remote(path):
        return of_file(open(path, "rb"), path)
    if path.startswith("zip://") and "::" in path:
        return _open_member(path)
    remote: _Remote = _HttpFile(path) if is_http(path) else _StoreFile(path)
    return Opened(io.BufferedReader(remote, BUFFER), public(path), size=remote.size, seekable=remote.seekable())


def of_file(file: IO[bytes] | BinaryIO, name: str = "") -> Opened:
    """An open file of any kind as an input; only an ordinary file on this machine counts as local."""
    about = os.fstat(file.fileno()) if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO) else None
    if about is None or not stat.S_ISREG(about.st_mode):
        return Opened(file, name)
    return Opened(file, name, local=True, size=about.st_size, seekable=True)


def open_seekable(path: str) -> Opened:
    """As `open_input`, for readers that seek. An input that cannot seek is copied to this machine once per process.

    Raises:
        InputError: also if the input has more than MAX_COPIES bytes and cannot seek.
    """
    with _lock:
        held = _copies.get(path)
    if held is not None:
        return held.open()
    opened = open_input(path)
    if opened.local or opened.seekable:
        return opened
    with opened:
        return _copied(path, opened).open()


def open_copy(path: str) -> Opened:
    """A local file with the content of a remote one, for readers that read its beginning several times."""
    with _lock:
        held = _copies.get(path)
    if held is not None:
        return held.open()
    with open_input(path) as opened:
        return _copied(path, opened).open()


# ---- a member of a WACZ


def _open_member(path: str) -> Opened:
    member, _, pack = path.removeprefix("zip://").partition("::")
    opened = open_seekable(pack)
    try:
        archive = zipfile.ZipFile(opened.stream)
        stream: Any = archive.open(member)
    except (zipfile.BadZipFile, NotImplementedError, KeyError) as error:
        opened.stream.close()
        raise InputError(f"{public(path)!r} cannot be opened: {error}") from error
    except BaseException:
        opened.stream.close()
        raise
    return Opened(_Member(stream, opened.stream), public(path), size=archive.getinfo(member).file_size, seekable=True)


class _Member(io.BufferedReader):
    """A member of a zip file. Closing the member closes the zip file."""

    def __init__(self, member: Any, pack: IO[bytes]) -> None:
        super().__init__(member, BUFFER)
        self._pack = pack

    def close(self) -> None:
        super().close()
        self._pack.close()


# ---- remote streams


class _Remote(io.RawIOBase):
    """A stream with a position and a size. A subclass reads at `position` and moves it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.position = url, 0
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

    def broken(self, cause: object) -> TransferError:
        """The error for a transfer that breaks."""
        of = "" if self.size is None else f" of {self.size:,}"
        cause = one_line(cause) if isinstance(cause, Exception) else cause
        return TransferError(f"{public(self.url)!r} broke off after {self.position:,}{of} bytes: {cause}")


class _HttpFile(_Remote):
    """A file of a web server. It asks for ranges. If the server supports none, the file cannot seek."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._answer: http.client.HTTPResponse | None = None
        self._end = 0  # the position in the file where the answer ends; -1: not known
        self._window = 0  # bytes to ask for; 0: all that follow
        self._ranges = False
        self._ask()

    def seekable(self) -> bool:
        return self._ranges and self.size is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        before = self.position
        wanted = super().seek(offset, whence)
        if wanted == before:
            return wanted
        if self._answer is not None and 0 < wanted - before <= SKIPPED:
            self.position = before
            self._skip(wanted)
        else:
            self._drop()
            self._window = WINDOW
        return wanted

    def readinto(self, buffer: Any) -> int:
        if self.size is not None and self.position >= self.size:
            return 0
        if self._answer is None:
            self._ask()
        return self._read(buffer)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, buffer: Any) -> int:
        """More of the answer; 0 at its end.

        Raises:
            InputError: the answer ends before its announced end.
        """
        assert self._answer is not None
        try:
            count = self._answer.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise self.broken(error) from error
        self.position += count
        if count == 0 and len(buffer):
            missing = self._end - self.position
            self._drop()
            if missing > 0:
                raise self.broken("the server closed the connection")
            self.size = self.position
        elif self.position == self._end:
            self._drop()
        return count

    def _skip(self, place: int) -> None:
        """Reads up to a position and drops the bytes."""
        while self.position < place and self.readinto(memoryview(bytearray(min(BUFFER, place - self.position)))):
            continue

    def _ask(self) -> None:
        """Asks for the bytes from `position` on."""
        place, window = self.position, self._window
        self._answer = answer = _request(self.url, f"bytes={place}-{place + window - 1 if window else ''}", place)
        self._window *= 2
        size = self._size_in(answer)
        if self.size is not None and size != self.size:
            self._drop()
            raise self.broken(f"it has changed: the server now announces {size} bytes")
        self.size = size
        if answer.status == 200 and place:  # this time the server sent the whole file
            self.position = 0
            self._skip(place)

    def _size_in(self, answer: http.client.HTTPResponse) -> int | None:
        """The size of the whole file; notes where the answer ends."""
        if answer.status == 200:
            self._end = -1 if answer.length is None else answer.length
            return answer.length
        found = _RANGE.match(answer.headers.get("Content-Range", ""))
        if answer.status != 206 or found is None or int(found[1]) != self.position:
            self._drop()
            raise self.broken(f"the server answered {answer.status} with another range than the one requested")
        self._ranges, self._end = True, int(found[2]) + 1
        return None if found[3] == "*" else int(found[3])

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None


def _request(url: str, span: str, place: int) -> http.client.HTTPResponse:
    """The answer of a server to a request for a range.

    Raises:
        MissingInputError: the server has no such file.
        InputError: the server cannot be reached, or answers with an error.
    """
    headers = {"User-Agent": "OpenWIT (archive reader)", **({"Range": span} if span else {})}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and span and not place:  # an empty file has no range
            return _request(url, "", place)
        if error.code in (404, 410):
            raise MissingInputError(f"{public(url)!r} is not there (HTTP {error.code})") from None
        raise InputError(f"{public(url)!r} cannot be read: HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        raise InputError(f"{public(url)!r} cannot be reached: {cause}") from error


def one_line(error: BaseException) -> str:
    """The first line of a message. For a missing libjvm, Arrow lists a hundred places on lines of their own."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class _StoreFile(_Remote):
    """A file of an fsspec store. Stores raise errors of many classes, so all are caught."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        import fsspec

        try:
            self._file: Any = fsspec.open(url, "rb").open()
        except FileNotFoundError as error:
            raise MissingInputError(f"{public(url)!r} is not there ({error})") from error
        except Exception as error:
            raise InputError(f"{public(url)!r} cannot be opened: {one_line(error)}") from error
        size = getattr(self._file, "size", None)
        self.size = size if isinstance(size, int) else None

    def seekable(self) -> bool:
        return self.size is not None and bool(self._file.seekable())  # without a size `seekable` may be wrong

    def readinto(self, buffer: Any) -> int:
        try:
            if self.seekable() and self._file.tell() != self.position:  # readers of memory:// share one position
                self._file.seek(self.position)
            data = self._file.read(len(buffer))
        except Exception as error:
            raise self.broken(error) from error
        if not data and len(buffer) and self.size is not None and self.position < self.size:
            raise self.broken("the store sent no more")
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


# ---- copies on this machine


class _Copy:
    """A local copy of a remote file. The copy has no name, so it disappears with the process."""

    def __init__(self, opened: Opened) -> None:
        self._name, self.size = opened.name, 0
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(tempfile.TemporaryFile())
            while data := opened.stream.read(1 << 20):
                self.size += len(data)
                if self.size > MAX_COPIES:
                    raise InputError(
                        f"{opened.name!r} has more than {MAX_COPIES >> 30} GiB, and its server supports no ranges: "
                        "copy it first"
                    )
                self._file.write(data)
            self._file.flush()
            stack.pop_all()

    def open(self) -> Opened:
        """The copy as an input, with a position of its own."""
        stream = io.BufferedReader(_CopyFile(os.dup(self._file.fileno()), self.size), BUFFER)
        return Opened(stream, self._name, local=True, size=self.size, seekable=True)

    def close(self) -> None:
        self._file.close()


class _CopyFile(_Remote):
    """One reader of a copy."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__("")
        self._descriptor, self.size = descriptor, size

    def fileno(self) -> int:
        return self._descriptor

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._descriptor, min(len(buffer), 1 << 20), self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


_copies: dict[str, _Copy] = {}  # by path, the oldest first
_lock = threading.Lock()


def _copied(path: str, opened: Opened) -> _Copy:
    """The copy of an input. The oldest copies are removed if all copies have more than MAX_COPIES bytes."""
    with _lock:
        if path not in _copies:
            _copies[path] = _Copy(opened)
            while sum(copy.size for copy in _copies.values()) > MAX_COPIES:
                _copies.pop(next(iter(_copies))).close()
        return _copies[path]
