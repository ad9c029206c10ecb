"""Shards on an object store or a web server. Whole shards are downloaded into a local folder of bounded size.

Random access over a network costs one request per sample, a whole shard costs one request. `ShardCache` downloads the
shards of a window before they are needed and removes them after it, so that the size of the folder stays bounded. The
processes of a host share the files: one process downloads a file, and the last user removes it. The order of the
samples is that of a local folder with the same window.

Any URL of fsspec works (s3:// and gs:// need the extras). http(s) uses the standard library.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import http.client
import json
import os
import re
import stat
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from clip_train.errors import InputMissing, Interrupted, TrainError, UsageError

DEFAULT_WINDOW = 8  # shards, if --data is a URL and --window is not given
DEFAULT_CACHE_GB = 20.0
DOWNLOADS = 4  # at a time, in each process
TRIES = 4  # for each file; the wait doubles each time
MAX_MANIFEST_BYTES = 1 << 28
_WAIT = 1.0  # seconds before the second try
_BLOCK = 1 << 22  # bytes per write
_REQUEST = 1 << 24  # bytes per request to an object store
_TIMEOUT = 60  # seconds to wait for a web server
_LOCKS = 64  # lock files for downloads
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def is_url(data: str) -> bool:
    """True for a URL, False for a path on this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", data) is not None


def public(url: str) -> str:
    """A URL without user, password and query, for messages."""
    return re.sub(r"[?#].*", "", re.sub(r"://[^/@]*@", "://", url))


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL."""

    url: str
    size: int = -1  # bytes; -1: not known
    sha256: str | None = None
    version: str = ""  # changes with the file, if the store tells


@dataclasses.dataclass(frozen=True)
class RemoteShards:
    """The shards of an index, and the folder for them."""

    files: tuple[RemoteFile, ...]
    folder: Path
    limit: int  # bytes


# --- stores -----------------------------------------------------------------------------------------------------------


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _web(url: str, method: str = "GET") -> Any:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, method=method, headers={"User-Agent": "OpenWIT (clip_train)"})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(f"HTTP {error.code}") from None
        raise OSError(f"HTTP {error.code} {error.reason}") from None


def _system(url: str) -> tuple[Any, str]:
    """The file system of fsspec for a URL, and the path within it."""
    import fsspec

    protocol = url.partition("://")[0].lower()
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install openwit[{extra}]" if extra else str(error)
        raise TrainError(f"{public(url)}: {protocol}:// needs a package that is not installed: {remedy}") from error
    except ValueError as error:
        raise UsageError(f"{public(url)}: the protocol {protocol}:// is unknown ({error})") from error


def open_url(url: str) -> IO[bytes]:
    """Opens a URL for reading from its first byte."""
    if _is_web(url):
        return _web(url)
    system, path = _system(url)
    return system.open(path, "rb", block_size=_REQUEST)


def _check_whole(source: Any) -> None:
    """Raises OSError if a web server's answer, read to its end, is shorter than its Content-Length.

    `read(n)` of http.client takes a connection that breaks off for the end.
    """
    missing = getattr(source, "length", None) if isinstance(source, http.client.HTTPResponse) else None
    if missing:
        raise OSError(f"is cut, {missing} bytes are missing")


def describe(url: str) -> RemoteFile:
    """Size and version of a file. InputMissing if there is none."""

    def ask() -> RemoteFile:
        if _is_web(url):
            with _web(url, "HEAD") as answer:
                stamp = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
                return RemoteFile(url, int(answer.headers.get("Content-Length") or -1), version=stamp)
        system, path = _system(url)
        info = system.info(path)
        return RemoteFile(url, -1 if info.get("size") is None else int(info["size"]), version=str(system.ukey(path)))

    return retried(ask, url)


def list_tars(url: str) -> list[str]:
    """The .tar files below a URL, sorted."""
    if _is_web(url):
        raise UsageError(f"{public(url)}: a web server does not list files: name the shards, as in a-{{000..012}}.tar")
    system, path = _system(url)
    try:
        found = retried(lambda: system.find(path), url)
    except InputMissing:
        found = []
    return [system.unstrip_protocol(name) for name in sorted(found) if name.endswith(".tar")]


def retried(work: Callable[[], Any], url: str, *, stop: threading.Event | None = None) -> Any:
    """Calls `work` again a few times after a failure. A missing file or a full disk is not tried again.

    Clients of stores raise errors of their own classes, so all are caught. The TrainError has the last one.
    """
    for attempt in range(TRIES):
        try:
            return work()
        except TrainError:
            raise
        except FileNotFoundError as error:
            raise InputMissing(f"{public(url)} does not exist ({error})") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE):
                raise TrainError(f"download of {public(url)}: {error}; see --cache and --cache-gb") from error
            if attempt == TRIES - 1:
                raise TrainError(f"{public(url)}: {error} (tried {TRIES} times)") from error
            if stop is not None and stop.wait(_WAIT * 2**attempt):
                raise Interrupted(f"{public(url)}: stopped") from error
            if stop is None:
                time.sleep(_WAIT * 2**attempt)
    raise AssertionError("the last try returns or raises")


def read_small(url: str) -> bytes:
    """Reads a file of at most MAX_MANIFEST_BYTES."""

    def work() -> bytes:
        with open_url(url) as source:
            found = source.read(MAX_MANIFEST_BYTES + 1)
            if len(found) <= MAX_MANIFEST_BYTES:
                _check_whole(source)
            return found

    data = retried(work, url)
    if len(data) > MAX_MANIFEST_BYTES:
        raise TrainError(f"{public(url)} has more than {MAX_MANIFEST_BYTES} bytes")
    return data


def fetch(file: RemoteFile, path: Path, *, stop: threading.Event | None = None) -> int:
    """Downloads a file under another name, checks it and renames it to `path`. Returns its descriptor, with a lock.

    Raises:
        InputMissing: the file does not exist.
        TrainError: every try failed or gave another length or sha256.
    """
    return retried(lambda: _fetch_once(file, path, stop), file.url, stop=stop)


def _fetch_once(file: RemoteFile, path: Path, stop: threading.Event | None) -> int:
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # on the file under any name, so that no process removes it as unused
        received, digest = 0, hashlib.sha256()
        with open_url(file.url) as source:
            while block := source.read(_BLOCK):
                if stop is not None and stop.is_set():
                    raise Interrupted(f"{public(file.url)}: stopped")
                received += len(block)
                if 0 <= file.size < received:
                    break
                if file.sha256:
                    digest.update(block)
                _write(descriptor, block)
            if file.size < 0:
                _check_whole(source)
        if file.size >= 0 and received != file.size:
            fault = "is cut, it comes back" if received < file.size else "has grown, it comes back"
            raise OSError(f"{fault} with {received} bytes or more, not {file.size}: has the set been written anew?")
        if file.sha256 and digest.hexdigest() != file.sha256:
            raise OSError("comes back with another sha256 than the manifest's: has the set been written anew?")
        try:
            os.replace(partial, path)
        except FileNotFoundError:
            raise OSError(f"{partial} was removed by another process") from None
        return descriptor
    except BaseException:
        os.close(descriptor)
        partial.unlink(missing_ok=True)
        raise


def _write(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


# --- the folder -------------------------------------------------------------------------------------------------------


def cache_folder(chosen: str | None) -> Path:
    """The folder for downloads: below --cache, or one per user below the system's temporary folder."""
    folder = Path(chosen) / "clip_train" if chosen else Path(tempfile.gettempdir()) / f"clip_train-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise UsageError(f"--cache {folder}: {error}") from error
    if not chosen and (not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid()):
        raise TrainError(f"{folder} belongs to another user: name another folder with --cache")
    return folder


def set_name(files: Sequence[RemoteFile]) -> str:
    """A name for a set of files. It changes when one of the files changes."""
    marks = [(file.url, file.size, file.sha256, file.version) for file in files]
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]


@contextlib.contextmanager
def host_lock(path: Path) -> Iterator[None]:
    """A lock for one thread of one process on this host. The kernel releases it when the process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_unused(folder: Path) -> None:
    """Removes shards, and parts of shards, that no process holds: killed runs left them."""
    for path in [*folder.glob("*.tar"), *folder.glob("*.partial")]:
        with contextlib.suppress(OSError):
            _remove_if_last(os.open(path, os.O_RDWR), path)


def _remove_if_last(descriptor: int, path: Path) -> None:
    """Closes a file and removes it if no other process uses it."""
    try:
        # this releases our shared lock in any case, so the last of several processes succeeds
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                path.unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


class ShardCache:
    """Holds the shards of some windows. One thread calls `want` and `release` in the order of the windows.

    Shards are downloaded in the order of the calls of `want`, each as soon as there is room for it. If the shards of
    one batch fit the bound (`check_fits`), those of the oldest window in use always arrive: earlier windows are
    released, and later ones have not taken their room. For the same reason a shard in two windows counts twice,
    although there is one file.
    """

    def __init__(self, shards: RemoteShards) -> None:
        self.shards = shards
        self._name = set_name(shards.files)
        remove_unused(shards.folder)
        self._windows: dict[int, dict[int, Future[int]]] = {}  # window -> shard -> descriptor
        self._queue: deque[tuple[int, Future[int]]] = deque()  # shards that wait for room
        self._used = 0
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="bring")
        atexit.register(self.close)

    def check_fits(self, shards: Sequence[int]) -> None:
        """UsageError if these shards, which one batch needs, are larger than the bound."""
        needed = sum(self._size(shard) for shard in shards)
        if needed > self.shards.limit:
            raise UsageError(
                f"a batch needs {len(shards)} shards at a time, {needed / 1e9:.3g} GB; --cache-gb allows "
                f"{self.shards.limit / 1e9:.3g}: raise it, or take a smaller --window"
            )

    def want(self, window: int, shards: Sequence[int]) -> None:
        """Requests the shards of a window, once."""
        with self._lock:
            if window in self._windows:
                return
            self._windows[window] = {shard: Future() for shard in shards}
            self._queue.extend(self._windows[window].items())
            self._start()

    def release(self, before: int) -> None:
        """Releases all windows below this number. They may not be read any more."""
        with self._lock:
            for window in [number for number in self._windows if number < before]:
                for shard, file in self._windows.pop(window).items():
                    if (shard, file) in self._queue:
                        self._queue.remove((shard, file))
                    else:
                        file.add_done_callback(functools.partial(self._let_go, shard))
            self._start()

    def read(self, shard: int, offset: int, size: int, window: int = 0) -> bytes:
        """`size` bytes at `offset` of a shard in a requested window. Waits for the download."""
        return os.pread(self._windows[window][shard].result(), size, offset)

    def stop(self) -> None:
        """Ends all downloads. Threads that wait for one get an error."""
        self._stop.set()
        with self._lock:
            for _, file in self._queue:
                file.cancel()
            self._queue.clear()

    def close(self) -> None:
        """Removes all files. No thread may be reading."""
        self.stop()
        self._pool.shutdown(wait=True)
        with self._lock:
            windows, self._windows = self._windows, {}
        for shard, file in [item for window in windows.values() for item in window.items()]:
            if not file.cancelled():
                self._let_go(shard, file)
        atexit.unregister(self.close)

    def _size(self, shard: int) -> int:
        return self.shards.files[shard].size

    def _start(self) -> None:
        """Starts the downloads that have room, in the order of the queue."""
        while self._queue and self._used + self._size(self._queue[0][0]) <= self.shards.limit:
            shard, file = self._queue.popleft()
            self._used += self._size(shard)
            self._pool.submit(self._bring, shard, file)

    def _bring(self, shard: int, result: Future[int]) -> None:
        try:
            result.set_result(self._opened(shard))
        except BaseException as error:
            result.set_exception(error)

    def _opened(self, shard: int) -> int:
        file, path = self.shards.files[shard], self._path(shard)
        with host_lock(self.shards.folder / f"lock-{shard % _LOCKS:02d}"):
            if self._stop.is_set():
                raise Interrupted(f"{public(file.url)}: stopped")
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR)  # of another process; NFS gives no LOCK_EX to one who only reads
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                return descriptor
            return fetch(file, path, stop=self._stop)

    def _let_go(self, shard: int, file: Future[int]) -> None:
        if file.exception() is None:
            _remove_if_last(file.result(), self._path(shard))
        with self._lock:
            self._used -= self._size(shard)
            self._start()

    def _path(self, shard: int) -> Path:
        return self.shards.folder / f"{self._name}-{shard:08d}.tar"
