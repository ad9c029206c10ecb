"""Where the bytes of an input come from: this machine, a web server or a store that fsspec knows.

Only this module knows the kind of an input. A reader asks the `Opened` object: is it a local file, how large is it, can
it seek. `remote` reads files of web servers and stores. A transfer that breaks never looks like the end of the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import stat
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from pipeline.engine import files, input_cache, object_cache, object_store, remote
from pipeline.engine.input_errors import InputError, MissingInputError, is_remote, public
from pipeline.engine.object_store import Conflict, ObjectFile, Version
from pipeline.engine.remote import Pace, RemoteFile
from pipeline.engine.transfers import Positioned

BUFFER = 64 << 10  # bytes that a remote stream reads ahead
CHECKED_S = 600.0  # a process asks the store again after so many seconds whether an object is the same
MAX_COPIES = 8 << 30  # bytes of local copies that a process holds


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
    settings = remote.settings()
    kept = input_cache.open_kept(path, settings) if settings.cache else None
    if kept is not None and not isinstance(kept, RemoteFile):
        return of_file(kept, public(path))
    return _of_remote(kept or RemoteFile(path))


def _of_remote(file: RemoteFile) -> Opened:
    return Opened(io.BufferedReader(file, BUFFER), public(file.url), size=file.size, seekable=file.seekable())


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
    opened = open_input(path)
    if opened.local:
        return opened
    with opened:
        return _copied(path, opened).open()


# ---- objects of a store


def is_object(path: str) -> bool:
    """True for the URL of an object whose store takes requests for any range: a copy of it may be kept."""
    return path.partition("://")[0] in object_store.STORES


def read_start(path: str, size: int) -> bytes:
    """The first bytes of an input. Of an object no more is sent.

    Raises:
        As `open_input`.
    """
    if is_object(path) and not remote.settings().cache:
        with _naming(path):
            return object_store.read_range(path, 0, size)
    with open_input(path) as opened:
        return opened.stream.read(size)


def open_whole(path: str) -> Opened:
    """The input as a file on this machine. An object comes into the scratch folder: `open_at` may find it there.

    Raises:
        As `open_input`.
    """
    if is_object(path):
        settings = remote.settings()
        kept = input_cache.open_kept(path, settings) if settings.cache else None
        if kept is not None and not isinstance(kept, RemoteFile):
            return of_file(kept, public(path))
        if kept is not None:
            kept.close()
        Pace(settings.pace, settings.rate).wait()
        forget_version(path)
        with _naming(path):
            return of_file(open(object_cache.local(path), "rb"), public(path))
    opened = open_input(path)
    if opened.local:
        return opened
    with opened, tempfile.TemporaryFile() as file:
        shutil.copyfileobj(opened.stream, file, 1 << 20)
        file.flush()
        file.seek(0)
        return of_file(open(os.dup(file.fileno()), "rb"), opened.name)


def open_at(path: str) -> Opened:
    """As `open_seekable`, for one short read. Of an object one request gives it, unless this machine has a copy.

    Raises:
        InputError: a remote input cannot be read now. Its stream raises this error, too.
        OSError: there is no such file or object any more.
    """
    if not is_object(path):
        return open_seekable(path)
    settings = remote.settings()
    kept = input_cache.open_kept(path, dataclasses.replace(settings, fill=False)) if settings.cache else None
    if kept is not None and not isinstance(kept, RemoteFile):
        return of_file(kept, public(path))
    version = _version_of(path)
    here = object_cache.here(path, version.tag)
    if here is not None:
        with contextlib.suppress(FileNotFoundError):  # it went to make room
            return of_file(open(here, "rb"), public(path))
    return Opened(io.BufferedReader(_Object(path, version), BUFFER), public(path), size=version.size, seekable=True)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MissingInputError(f"{public(path)!r} is not there") from error


class _Object(ObjectFile):
    """An object of one version."""

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer)
        except Conflict:
            forget_version(self._url)
            raise FileNotFoundError(f"{public(self._url)!r} was replaced") from None


_asking = threading.Lock()
_versions: dict[str, tuple[float, Version]] = {}  # of objects that images are read from, and when the store said so


def forget_version(path: str) -> None:
    """Lets `open_at` ask the store again which version an object has: it was read whole just now."""
    _versions.pop(path, None)


def _version_of(path: str) -> Version:
    """The version of an object. The store is asked again after CHECKED_S.

    Raises:
        FileNotFoundError: there is no such object.
    """
    with _asking:
        said, version = _versions.get(path, (0.0, None))
        if version is None or time.monotonic() - said > CHECKED_S:
            version = object_store.head(path)
            if version is None:
                _versions.pop(path, None)
                raise FileNotFoundError(path)
            _versions[path] = time.monotonic(), version
        return version


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


class _Damaged(io.RawIOBase):
    """The bytes of a member up to the first one that cannot be unpacked: the reader then sees a cut archive."""

    def __init__(self, member: Any) -> None:
        super().__init__()
        self._member = member
        # One damaged byte must not cost the whole archive. Its records have checksums of their own.
        member._expected_crc = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._member.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._member.seek(offset, whence)
        except (zipfile.BadZipFile, zlib.error, EOFError):
            return self._member.tell()

    def tell(self) -> int:
        return self._member.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._member.read(len(buffer))
        except (zipfile.BadZipFile, zlib.error, EOFError):
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._member.close()
        super().close()


class _Member(io.BufferedReader):
    """A member of a zip file. Closing the member closes the zip file."""

    def __init__(self, member: Any, pack: IO[bytes]) -> None:
        super().__init__(_Damaged(member), BUFFER)
        self._pack = pack

    def close(self) -> None:
        super().close()
        self._pack.close()


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
                with files.naming(tempfile.gettempdir()):
                    self._file.write(data)
            with files.naming(tempfile.gettempdir()):
                self._file.flush()
            stack.pop_all()

    def open(self) -> Opened:
        """The copy as an input, with a position of its own."""
        stream = io.BufferedReader(_CopyFile(os.dup(self._file.fileno()), self.size), BUFFER)
        return Opened(stream, self._name, local=True, size=self.size, seekable=True)

    def close(self) -> None:
        self._file.close()


class _CopyFile(Positioned):
    """One reader of a copy."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__()
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
