"""A folder of this machine that keeps whole remote inputs, for all processes and runs, up to a bound of bytes.

    DIR/<url>-<source>-<version>-<content>-<size>-<name>   a whole input; its name holds what it is checked by
    DIR/<url>.part                                        one that is being copied; it has its full size from the start
    DIR/.lock                                             held while bytes are counted, reserved and removed

<url>, <source> and <version> are hashes of the URL, of the mirror that gave it, and of its ETag. <content> is the
xxh3_128 of the bytes. A file appears by a rename when its size is that of the server, and all of it is on the disk.
It is locked (flock) while a process reads it, so what is removed to make room is never in use. The time of its last
use is its modification time: the one that was not used for the longest time goes first. Locks end with their process,
so a kill leaves at most a part, which the next process removes.

Before a kept file is used, its server is asked for its version (one request for one byte). If the server is away, the
kept file is used. If the file changed there, it is copied again. Whatever fails in the folder itself (no space, no
locks) costs only the cache: the input is streamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from typing import IO

import xxhash

from pipeline.engine import transfers
from pipeline.engine.input_errors import public
from pipeline.engine.remote import Pace, RemoteFile, RemoteSettings
from pipeline.engine.transfers import Broken, EmptyFile, Missing, Refused

CHECKED_S = 600.0  # a process asks the server again after so many seconds
SAME, OTHER, GONE = "same", "other", "gone"  # a kept file, as its server has it now
_PIECE = 1 << 20
_HEX = r"[0-9a-f]"
_ENTRY = re.compile(rf"({_HEX}{{32}})-({_HEX}{{16}})-({_HEX}{{16}})-({_HEX}{{32}})-(\d+)-[\w.%~-]*")
_PART = re.compile(rf"{_HEX}{{32}}\.part")

_asked: dict[str, float] = {}  # when the server of a kept file was asked last, by the name of the file
_hashed: set[tuple[str, int]] = set()  # name and inode of the kept files whose bytes were hashed


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the name of a kept file says."""

    name: str
    source: str
    version: str
    content: str
    size: int

    @classmethod
    def of(cls, name: str) -> Kept | None:
        """None if the name is of another file."""
        found = _ENTRY.fullmatch(name)
        return None if found is None else cls(name, found[2], found[3], found[4], int(found[5]))


def open_kept(url: str, settings: RemoteSettings) -> IO[bytes] | RemoteFile | None:
    """A remote input as a whole file of this machine, if the settings name a folder.

    Args:
        url: of the input.
        settings: with `fill`, an input that is not kept yet is copied first.

    Returns:
        The kept file; the remote file, at its first byte, where it cannot be kept (no known size or version, no room);
        None: the input is not kept, and nobody has asked for it.

    Raises:
        MissingInputError, RefusedInputError, TransferError: as `RemoteFile`, while the input is copied.
    """
    folder = _Folder(settings.cache, settings.cache_bytes)
    try:
        found = _current(folder, url, settings)
        if found is not None or not settings.fill:
            return found
        with folder.part(_key(url)) as part:
            found = _current(folder, url, settings)  # another process may have copied it meanwhile
            return found if found is not None else _copy(folder, part, url, settings)
    except OSError:
        return None


def _key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def _tag(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _current(folder: _Folder, url: str, settings: RemoteSettings) -> IO[bytes] | None:
    """The kept file, open and locked, if it is whole and its server does not name another version."""
    opened = folder.open(_key(url))
    if opened is None:
        return None
    kept, file = opened
    try:
        state = _state(kept, url, settings)
        if state == SAME and _is_whole(kept, file):
            with contextlib.suppress(OSError):
                os.utime(file.fileno())
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    if state != GONE:
        folder.remove(kept.name)
    return None


def _is_whole(kept: Kept, file: IO[bytes]) -> bool:
    """True if the bytes are those that were copied. Each process looks once."""
    about = os.fstat(file.fileno())
    if about.st_size != kept.size:
        return False
    if (kept.name, about.st_ino) not in _hashed:
        content = xxhash.xxh3_128()
        while data := file.read(_PIECE):
            content.update(data)
        if content.hexdigest() != kept.content:
            return False
        file.seek(0)
        _hashed.add((kept.name, about.st_ino))
    return True


def _state(kept: Kept, url: str, settings: RemoteSettings) -> str:
    """SAME, OTHER if a server has another version, GONE if no server gives the file any more."""
    if time.monotonic() - _asked.get(kept.name, -CHECKED_S) < CHECKED_S:
        return SAME
    for source in settings.sources(url):
        Pace(settings.pace, settings.rate).wait()
        try:
            answer = transfers.ask(source, 0, 1, "", known=False)
        except (Missing, Refused):
            continue
        except Broken:
            return SAME  # as far as anybody can tell now
        except EmptyFile:
            return OTHER
        answer.close()
        other_size = answer.size is not None and answer.size != kept.size
        if other_size or (_tag(source) == kept.source and _tag(answer.version) != kept.version):
            return OTHER
        _asked[kept.name] = time.monotonic()
        return SAME
    return GONE


def _copy(folder: _Folder, part: int, url: str, settings: RemoteSettings) -> IO[bytes] | RemoteFile:
    """Copies an input into the folder. Returns the kept file, or the remote file where it cannot be kept."""
    remote = RemoteFile(url, settings)
    if remote.size is None or not remote.version or not folder.reserve(part, remote.size):
        return remote
    content, place = xxhash.xxh3_128(), 0
    try:
        while data := remote.read(_PIECE):
            content.update(data)
            place += os.pwrite(part, data, place)
        os.fsync(part)
    except OSError:
        remote.close()
        return RemoteFile(url, settings)
    remote.close()
    if place != remote.size:
        return RemoteFile(url, settings)
    tags = f"{_key(url)}-{_tag(remote.source)}-{_tag(remote.version)}-{content.hexdigest()}-{place}"
    kept = Kept.of(f"{tags}-{_shown(url)}")
    assert kept is not None
    file = folder.place(part, kept)
    _asked[kept.name] = time.monotonic()
    _hashed.add((kept.name, os.fstat(file.fileno()).st_ino))
    return file


def _shown(url: str) -> str:
    """The end of a URL as a part of a file name, for people."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", public(url).rstrip("/").rpartition("/")[2])[-80:]


class _Folder:
    """The files of the folder, and their locks."""

    def __init__(self, path: str, bound: int) -> None:
        self._path, self._bound = path, bound

    def open(self, key: str) -> tuple[Kept, IO[bytes]] | None:
        """The newest kept file of a URL, locked against its removal; None if there is none."""
        found = [kept for kept in self._kept() if kept.name.startswith(key)]
        for kept in sorted(found, key=lambda kept: -self._used(kept.name)):
            with contextlib.suppress(FileNotFoundError):
                file = open(self._at(kept.name), "rb")
                if _lock(file.fileno(), fcntl.LOCK_SH) and self._is(file.fileno(), kept.name):
                    return kept, file
                file.close()
        return None

    @contextlib.contextmanager
    def part(self, key: str) -> Iterator[int]:
        """The file that a URL is copied to, held by this process alone. The others wait."""
        os.makedirs(self._path, exist_ok=True)
        name = f"{key}.part"
        while True:
            part = os.open(self._at(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(part, fcntl.LOCK_EX)
                if self._is(part, name):
                    os.ftruncate(part, 0)
                    yield part
                    if self._is(part, name):
                        os.unlink(self._at(name))
                    return
            except BaseException:
                with contextlib.suppress(OSError):
                    if self._is(part, name):
                        os.unlink(self._at(name))
                raise
            finally:
                os.close(part)

    def reserve(self, part: int, size: int) -> bool:
        """Gives a part its full size. Older files that nobody reads make room. False: there is not enough."""
        if size > self._bound:
            return False
        with self._counting():
            held = self._held(but=os.fstat(part).st_ino)
            for kept in sorted(self._kept(), key=lambda kept: (self._used(kept.name), kept.name)):
                if held + size <= self._bound:
                    break
                if self._remove_unused(kept.name):
                    held -= kept.size
            if held + size > self._bound:
                return False
            os.ftruncate(part, size)
            return True

    def place(self, part: int, kept: Kept) -> IO[bytes]:
        """Makes a part a kept file, and opens it. It takes the place of other versions."""
        with self._counting():
            for other in self._kept():
                if other.name[:32] == kept.name[:32]:
                    self._remove_unused(other.name)
            os.rename(self._at(f"{kept.name[:32]}.part"), self._at(kept.name))
            file = open(self._at(kept.name), "rb")
            fcntl.flock(part, fcntl.LOCK_UN)
            _lock(file.fileno(), fcntl.LOCK_SH)
        return file

    def remove(self, name: str) -> None:
        """Removes a file if nobody reads it."""
        with self._counting():
            self._remove_unused(name)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        with open(self._at(".lock"), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _held(self, *, but: int) -> int:
        """Bytes of all kept files and parts, without the part with the inode `but`. Parts of dead processes go."""
        total = sum(kept.size for kept in self._kept())
        for name in filter(_PART.fullmatch, os.listdir(self._path)):
            with contextlib.suppress(FileNotFoundError):
                about = os.stat(self._at(name))
                if about.st_ino != but and not self._remove_unused(name):
                    total += about.st_size
        return total

    def _remove_unused(self, name: str) -> bool:
        try:
            file = os.open(self._at(name), os.O_RDWR | os.O_CLOEXEC)  # NFS: for LOCK_EX
        except FileNotFoundError:
            return True
        try:
            if not _lock(file, fcntl.LOCK_EX):
                return False
            if self._is(file, name):
                os.unlink(self._at(name))
            return True
        finally:
            os.close(file)

    def _kept(self) -> list[Kept]:
        names = os.listdir(self._path) if os.path.isdir(self._path) else []
        return [kept for name in names if (kept := Kept.of(name)) is not None]

    def _used(self, name: str) -> float:
        try:
            return os.stat(self._at(name)).st_mtime
        except FileNotFoundError:
            return 0.0

    def _is(self, file: int, name: str) -> bool:
        """True if the open file still has this name."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._at(name)))
        except FileNotFoundError:
            return False

    def _at(self, name: str) -> str:
        return os.path.join(self._path, name)


def _lock(file: int, kind: int) -> bool:
    """Locks a file, or returns False at once if another one holds it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
