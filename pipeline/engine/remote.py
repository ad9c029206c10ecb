"""Remote files that break, throttle and come back: one stream that asks again until its patience ends.

All remote reads of the pipeline go through `RemoteFile`. After a break it asks for the bytes from where it is, of the
same version (If-Range, RFC 9110, section 13.1.5). If a server then sends the whole file, because it has no ranges or
another version, the bytes that were read before are read again and must be the same. Otherwise the file has changed,
and the stream ends with an error. Pauses grow and are jittered; a server's Retry-After is obeyed.

All processes of a job share one rate of requests (`Pace`). Mirrors take over at the same byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import random
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import xxhash

from pipeline.engine import files, scratch, transfers
from pipeline.engine.input_errors import MissingInputError, RefusedInputError, TransferError, is_remote, public
from pipeline.engine.transfers import Answer, Broken, EmptyFile, Missing, Positioned, Refused

T = TypeVar("T")

WINDOW = 1 << 20  # bytes that the first request after a seek asks for; each request after it asks for twice as many
SKIPPED = 256 << 10  # a seek ahead by at most so many bytes reads and drops them; a longer one is a new request
CHUNK = 64 << 10
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between two tries
REPORTED_PAUSE = 2.0
MOST_TRIES = 100  # without a new byte
TRIES_OF_A_MIRROR = 3  # in a row, before the next one is asked


@dataclasses.dataclass(frozen=True)
class RemoteSettings:
    """How patiently remote inputs are read.

    Attributes:
        patience: seconds of failed tries without a new byte after which an input is given up; 0: one try.
        rate: requests a second of the whole job; 0: no limit.
        pace: a file that all processes of the job can lock. It holds when the next request may be sent. For the URL of
            an object each host has a file of its own, and the rate holds for each host.
        base: the beginning of URLs that have mirrors.
        mirrors: what stands in the place of `base`, in the order in which they are asked; (): `base` alone.
        cache: a folder of this machine that keeps whole inputs (`input_cache`); "": none.
        cache_bytes: the most bytes of all files in it.
        fill: inputs that are read are copied into it. Else only what is there is used.
        of_workers: the patience of the workers of a run that this process plans; None: as `patience`.
    """

    patience: float = 600.0
    rate: float = 0.0
    pace: str = ""
    base: str = ""
    mirrors: tuple[str, ...] = ()
    cache: str = ""
    cache_bytes: int = 0
    fill: bool = False
    of_workers: float | None = None

    def sources(self, url: str) -> list[str]:
        """The URLs at which a file lies, the first one to ask first."""
        if self.base and self.mirrors and url.startswith(self.base):
            return [f"{mirror.rstrip('/')}/{url[len(self.base) :].lstrip('/')}" for mirror in self.mirrors]
        return [url]


_settings = RemoteSettings()
_on_wait: Callable[[str, str], None] | None = None  # it takes a URL and a line


def configure(settings: RemoteSettings, *, on_wait: Callable[[str, str], None] | None = None) -> None:
    """Sets how this process reads remote inputs from now on.

    Args:
        settings: for all files that are opened later.
        on_wait: gets a URL and a line when its first try fails, and before each longer pause.
    """
    global _settings, _on_wait
    _settings, _on_wait = settings, on_wait


def settings() -> RemoteSettings:
    """How this process reads remote inputs."""
    return _settings


def patience_of_workers() -> float:
    """The patience of workers of a run that this process makes, also with the store that holds OUT."""
    return _settings.patience if _settings.of_workers is None else _settings.of_workers


def be_patient(seconds: float) -> None:
    """This process asks for so long from now on."""
    configure(dataclasses.replace(_settings, patience=seconds), on_wait=_on_wait)


def sparingly(say: Callable[[str], None], *, seconds: float = 10.0) -> Callable[[str, str], None]:
    """`on_wait` for people: a line for each host at once, then at most one in so many seconds."""
    said: dict[str, float] = {}
    lock = threading.Lock()

    def on_wait(url: str, line: str) -> None:
        host, now = urllib.parse.urlsplit(public(url)).netloc, time.monotonic()
        with lock:
            if now - said.get(host, -seconds) < seconds:
                return
            said[host] = now
        say(line)

    return on_wait


class Pace:
    """Spreads the requests of all processes that share a file over time. Without a file, those of this process."""

    _lock = threading.Lock()
    _free = 0.0  # when the next request of this process may be sent

    def __init__(self, path: str, rate: float) -> None:
        self._path, self._rate = path, rate

    def wait(self) -> None:
        """Waits until the next request may be sent."""
        if not self._rate:
            return
        with self._lock:
            turn = self._turn_in_file() if self._path else self._turn(Pace._free)
            Pace._free = turn + 1 / self._rate
        time.sleep(max(0.0, turn - time.time()))

    def _turn_in_file(self) -> float:
        path = scratch.beside(self._path) if is_remote(self._path) else self._path
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            held = file.read(8)
            turn = self._turn(struct.unpack("<d", held)[0] if len(held) == 8 else 0.0)
            file.truncate(0)
            file.write(struct.pack("<d", turn + 1 / self._rate))
        return turn

    @staticmethod
    def _turn(free: float) -> float:
        """The time of the next request. A clock that was put back must not stop the job."""
        now = time.time()
        return max(now, free if free < now + 3600 else 0.0)


@dataclasses.dataclass(frozen=True)
class State:
    """What a server said of a file.

    Attributes:
        source: which server.
        bytes: its size; None: not said.
        version: its ETag, or the time of its last change; "": not said.
    """

    source: str
    bytes: int | None
    version: str

    def is_other_than(self, before: State) -> bool:
        """True if the file has changed. Versions of different servers are not compared."""
        sizes = self.bytes, before.bytes
        versions = self.version, before.version
        known = self.source == before.source and "" not in versions
        return (None not in sizes and len(set(sizes)) == 2) or (known and len(set(versions)) == 2)


_seen: dict[str, State] = {}


def seen(url: str) -> State | None:
    """What the newest answer to this process said of a file; None: it was not asked for."""
    return _seen.get(url)


class RemoteFile(Positioned):
    """A remote file as a stream. It can seek if its server has ranges.

    Raises (also `read`):
        MissingInputError: no server has the file.
        TransferError: the patience has ended, or the file has changed.
        RefusedInputError: a server refuses the file.
    """

    def __init__(self, url: str, settings: RemoteSettings | None = None) -> None:
        super().__init__()
        self.url, self._settings = url, settings or _settings
        self.source = ""  # that gave the newest answer: the URL, or its place at a mirror
        self._sources = self._settings.sources(url)
        self._pace = Pace(self._settings.pace, self._settings.rate)
        self._answer: Answer | None = None
        self._place = 0  # of the next byte of the answer: at `position`, or before it
        self._window, self._ranges, self._version = 0, False, ""
        self._hash, self._hashed = xxhash.xxh3_64(), 0  # of the bytes before `_hashed`
        self._tries, self._since = 0, 0.0  # failed tries without a new byte, and the time of the first one
        self._gone: set[str] = set()  # sources that have no such file
        self._known = self._other = False
        self._until_open()

    # ---- a stream

    @property
    def _named(self) -> str:
        """The URL for messages, with the mirrors that were asked in its place."""
        asked = ", ".join(public(source) for source in self._sources if source != self.url)
        return f"{public(self.url)!r} (asked at {asked})" if asked else repr(public(self.url))

    @property
    def version(self) -> str:
        """Of the file, as `source` names it; "": not known."""
        return self._version

    def seekable(self) -> bool:
        return self._ranges and self.size is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        before = self.position
        wanted = super().seek(offset, whence)
        if wanted == before:
            return wanted
        if self._answer is not None and 0 < wanted - before <= SKIPPED:
            self.position = before
            while self.position < wanted and self.readinto(memoryview(bytearray(min(CHUNK, wanted - self.position)))):
                continue
        else:
            self._drop()
            self._window = WINDOW
        return wanted

    def readinto(self, buffer: Any) -> int:
        if not len(buffer):
            return 0
        while self.size is None or self.position < self.size:
            try:
                if self._answer is None:
                    self._open()
                data = self._next(len(buffer))
            except EmptyFile as error:
                if self.size is None:
                    self.size = self.position
                    return 0
                self._after(Broken(error))
                continue
            except (Missing, Refused, Broken) as error:
                self._after(error)
                continue
            if data is None:
                return 0
            buffer[: len(data)] = data
            return len(data)
        return 0

    def close(self) -> None:
        self._drop()
        super().close()

    # ---- answers

    def _until_open(self) -> None:
        while self._answer is None:
            try:
                self._open()
            except EmptyFile:
                self.size = 0
                return
            except (Missing, Refused, Broken) as error:
                self._after(error)

    def _open(self) -> None:
        """Asks for the bytes from `position` on. An answer that begins before it is read up to it."""
        answer = self._ask(self.position, self._window, self._version if self._known else "")
        self._window *= 2
        if self._known and self._is_other(answer):
            answer = self._ask(0, 0, "")  # the whole file, to compare the bytes that were read before
            if answer.start:
                raise Broken("the server sent no whole file")
            self._other = True
        self.size, self._ranges, self._version = answer.size, answer.ranges or self._ranges, answer.version
        self._known = True
        _seen[self.url] = State(self.source, self.size, self._version)
        if self._place < self.position:
            self._read_again()
        self._other = False

    def _ask(self, place: int, window: int, version: str) -> Answer:
        self._drop()
        self._pace.wait()
        self.source = self._source()
        self._answer = answer = transfers.ask(
            self.source, place, window, version, known=self._known, pace=self._pace.wait
        )
        self._place = answer.start
        return answer

    def _is_other(self, answer: Answer) -> bool:
        """True if an answer from a later place is of another version than the answers before.

        Raises:
            TransferError: the file has another size.
        """
        if self.size is not None and answer.size is not None and answer.size != self.size:
            raise self._changed(f"the server now announces {answer.size} bytes")
        changed = bool(self._version and answer.version and answer.version != self._version)
        self._other = changed and len(self._sources) == 1  # each mirror has versions of its own
        return self._other and answer.start > 0

    def _read_again(self) -> None:
        """Reads the bytes before `position` once more. They must be those of the first time."""
        again = xxhash.xxh3_64()
        while self._place < self.position:
            data = self._read(min(CHUNK, self.position - self._place))
            if not data:
                raise Broken("no more bytes came")
            again.update(data)
        if self._hashed == self.position and again.digest() != self._hash.digest():
            raise self._changed("its first bytes are others")
        if self._hashed != self.position and self._other:
            raise self._changed("the server has another version")

    def _next(self, most: int) -> bytes | None:
        """Bytes at `position`; None at the end of the file."""
        assert self._answer is not None
        data = self._read(most)
        if data:
            if self._hashed == self.position:
                self._hash.update(data)
                self._hashed += len(data)
            self.position += len(data)
            self._tries = 0
            if self.position == self._answer.end:
                self._drop()
            return data
        end = self._answer.end
        self._drop()
        if end is not None and self.position < end:
            raise Broken("no more bytes came")
        if end is None or self.size is None:
            self.size = self.position
            return None
        return self._next_answer(most)

    def _next_answer(self, most: int) -> bytes | None:
        """Goes on behind an answer that ended before the file does."""
        if self.size is not None and self.position >= self.size:
            return None
        self._open()
        return self._next(most)

    def _read(self, most: int) -> bytes:
        assert self._answer is not None
        data = self._answer.read(most)
        self._place += len(data)
        return data

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    # ---- failures

    def _source(self) -> str:
        """The URL to ask now: the next mirror after some failures of one."""
        there = [source for source in self._sources if source not in self._gone]
        return there[self._tries // TRIES_OF_A_MIRROR % len(there)]

    def _after(self, error: Missing | Refused | Broken) -> None:
        """Waits for the next try, or raises the error that ends the stream."""
        self._drop()
        source = self._source()
        if isinstance(error, (Missing, Refused)):
            self._gone.add(source)
            if len(self._gone) < len(set(self._sources)):
                return
            if isinstance(error, Missing):
                raise MissingInputError(f"{self._named} is not there ({error})") from None
            raise RefusedInputError(f"{self._named} cannot be read: {error}") from None
        if not self._tries:
            self._since = time.monotonic()
        self._tries += 1
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._tries, 20))
        pause = max(error.wait, random.uniform(0.5, 1.0) * longest)
        waited = time.monotonic() - self._since
        if waited + pause > self._settings.patience or self._tries >= MOST_TRIES:
            raise self._given_up(error, waited) from None
        if _on_wait and (self._tries == 1 or pause >= REPORTED_PAUSE):
            left = f"it is asked again for up to {self._settings.patience - waited:.0f} s"
            _on_wait(self.url, f"{public(self.url)}: {error}; {left} (the next try is in {pause:.1f} s)")
        time.sleep(pause)

    def _given_up(self, cause: object, waited: float) -> TransferError:
        tries = f" ({self._tries} tries in {waited:.0f} s)" if self._tries > 1 else ""
        if not self._known:
            return TransferError(f"{self._named} cannot be reached: {cause}{tries}", reached=False)
        of = "" if self.size is None else f" of {self.size:,}"
        return TransferError(f"{self._named} broke off after {self.position:,}{of} bytes: {cause}{tries}")

    def _changed(self, how: str) -> TransferError:
        self._drop()
        of = "" if self.size is None else f" of {self.size:,}"
        where = f"{self._named} broke off after {self.position:,}{of} bytes"
        return TransferError(f"{where}: it has changed ({how})", changed=True)


def patiently(url: str, work: Callable[[Any, str], T], *, what: str = "listed", paced: bool = True) -> T:
    """Calls `work` with the file system of a store and a path, again after a failure that may pass.

    Args:
        url: of the store.
        work: see above.
        what: is done to the URL, for messages.
        paced: the rate of requests for inputs holds.

    Raises:
        MissingInputError, RefusedInputError, TransferError: as `RemoteFile`.
    """
    start, tries = time.monotonic(), 0
    while True:
        if paced:
            Pace(_settings.pace, _settings.rate).wait()
        try:
            return work(*transfers.store(url))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in files.FULL and error.__cause__ is None:
                raise  # a disk of this machine
            failure = transfers.store_failure(error, known=False)
        if isinstance(failure, Missing):
            raise MissingInputError(f"{public(url)!r} is not there ({failure})") from None
        if isinstance(failure, Refused):
            raise RefusedInputError(f"{public(url)!r} cannot be {what}: {failure}") from None
        tries += 1
        pause = random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(tries, 20))
        waited = time.monotonic() - start
        if waited + pause > _settings.patience or tries >= MOST_TRIES:
            raise TransferError(f"{public(url)!r} cannot be {what}: {failure}", reached=False)
        if _on_wait and (tries == 1 or pause >= REPORTED_PAUSE):
            _on_wait(url, f"{public(url)}: {failure}; it is asked again for up to {_settings.patience - waited:.0f} s")
        time.sleep(pause)


@contextlib.contextmanager
def configured(settings: RemoteSettings) -> Iterator[None]:
    """`configure` for a block."""
    before, on_wait = _settings, _on_wait
    configure(settings)
    try:
        yield
    finally:
        configure(before, on_wait=on_wait)
