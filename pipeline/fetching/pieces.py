"""The finished images of a call that is under way: a file that grows by checksummed pieces.

    8 bytes   magic
    16 B      xxh3_128 of what was asked for: the rows and the form of the stored image
    ...       pieces, each:
    16 B        xxh3_128 of the options that the outcomes came from
    24 B        bytes of the images, bytes of the table, and the xxh3_64 of the three parts
    ...         the images; then an Arrow IPC record batch message with the outcomes (schema OUTCOMES)

A killed process loses the rows that no piece holds yet: at most ROWS of them, and what was on the wire. The next call
reads the pieces, cuts off a damaged end, and asks for the other rows only. If the process of an ended run still holds
the file, the next call goes on in a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

import pyarrow as pa
import xxhash

from pipeline.engine import files
from pipeline.fetching.errors import OK
from pipeline.fetching.outcome import OUTCOMES, Outcome, batch_of, outcomes_of

ROWS = 100  # of a piece, at most
LARGEST = 8 << 20  # bytes of images after which a piece is written
OLDEST_S = 10.0  # a row waits no longer than this for its piece
SYNC_S = 30.0  # a power cut costs no more than what came in so many seconds

MAGIC = b"OWPIECE3"
HEAD = struct.Struct("<8s16s")
PIECE = struct.Struct("<16sqqQ")


class Pieces:
    """The outcomes and images of one call. Threads may share it.

    Attributes:
        found: the outcomes that an interrupted call left behind, by row.
        confirm: raises an error if the file belongs to another run by now. Each piece is written after it.
    """

    def __init__(
        self, file: IO[bytes], *, asked: bytes, options: bytes, confirm: Callable[[], None] = lambda: None
    ) -> None:
        """Reads the pieces in a file that is open for reading and writing. Other content is cut off.

        Args:
            file: unbuffered.
            asked: describes the rows and the form of the image. A file with another description begins anew.
            options: describes all options. Failures under other options are not read, images are.
            confirm: see `confirm`.
        """
        self._file, self.confirm = file, confirm
        self._options = xxhash.xxh3_128_digest(options)
        self._lock = threading.Lock()
        self._outcomes: dict[int, Outcome] = {}
        self._images: list[bytes] = []
        self._first_s = self._synced_s = time.monotonic()
        self._size = 0  # of the images that no piece holds yet
        self.found: dict[int, Outcome] = {}
        self._end = self._read(HEAD.pack(MAGIC, xxhash.xxh3_128_digest(asked)))
        file.truncate(self._end)

    def add(self, row: int, outcome: Outcome, image: bytes | None) -> None:
        """Keeps a finished row.

        Raises:
            OSError: a piece cannot be written.
        """
        with self._lock:
            if not self._outcomes:
                self._first_s = time.monotonic()
            if image is not None:
                outcome.place = self._end + PIECE.size + self._size
                self._images.append(image)
                self._size += len(image)
            self._outcomes[row] = outcome
            if len(self._outcomes) >= ROWS or self._size >= LARGEST:
                self._write()
        self.write_old()

    def write_old(self) -> None:
        """Writes a piece if its first row has waited for long enough."""
        with self._lock:
            if self._outcomes and time.monotonic() >= self._first_s + OLDEST_S:
                self._write()

    def write(self) -> None:
        """Writes a piece with all rows that no piece holds."""
        with self._lock:
            if self._outcomes:
                self._write()

    def image(self, outcome: Outcome) -> bytes:
        """The image of an outcome that a piece holds."""
        assert outcome.place is not None and outcome.image_bytes is not None
        return os.pread(self._file.fileno(), outcome.image_bytes, outcome.place)

    def _write(self) -> None:
        table = memoryview(batch_of(self._outcomes).serialize())
        images = b"".join(self._images)
        checksum = _checksum(self._options, images, table)
        piece = memoryview(b"".join((PIECE.pack(self._options, len(images), len(table), checksum), images, table)))
        written = 0
        self.confirm()
        while written < len(piece):
            written += os.pwrite(self._file.fileno(), piece[written:], self._end + written)
        self._end += len(piece)
        self._outcomes, self._images, self._size = {}, [], 0
        if time.monotonic() >= self._synced_s + SYNC_S:
            os.fdatasync(self._file.fileno())
            self._synced_s = time.monotonic()

    def _read(self, head: bytes) -> int:
        """Reads the pieces; returns where the last sound one ends."""
        if os.pread(self._file.fileno(), len(head), 0) != head:
            self._file.truncate(0)
            os.pwrite(self._file.fileno(), head, 0)
        at = len(head)
        while (end := self._read_piece(at)) is not None:
            at = end
        return at

    def _read_piece(self, at: int) -> int | None:
        """Reads the piece at a place; returns its end, None if there is no sound piece."""
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        start = at + PIECE.size
        if size < start:
            return None
        options, images, table, checksum = PIECE.unpack(os.pread(descriptor, PIECE.size, at))
        if images < 0 or table < 0 or size < start + images + table:
            return None
        data = memoryview(os.pread(descriptor, images + table, start))
        if _checksum(options, data[:images], data[images:]) != checksum:
            return None
        batch = pa.ipc.read_record_batch(pa.py_buffer(data[images:]), OUTCOMES)
        for row, outcome in outcomes_of(batch):
            if outcome.status == OK or options == self._options:
                self.found[row] = outcome
        return start + images + table


def _checksum(options: bytes, images: bytes | memoryview, table: memoryview) -> int:
    state = xxhash.xxh3_64(struct.pack("<16sqq", options, len(images), len(table)))
    state.update(images)
    state.update(table)
    return state.intdigest()


@contextlib.contextmanager
def opened(path: str | None) -> Iterator[IO[bytes]]:
    """Yields a file for the pieces, unbuffered. It stays when the block ends; without a path it is a temporary one."""
    if path is None:
        import tempfile

        with files.naming(tempfile.gettempdir()), tempfile.TemporaryFile(buffering=0) as temporary:
            yield temporary
        return
    file = _open(path)
    if _held(file):
        file.close()
        with files.temporary(path) as name:
            shutil.copyfile(path, name)
        file = _open(path)
        _held(file)
    with files.naming(path), file:
        yield file


def _open(path: str) -> IO[bytes]:
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)


def _held(file: IO[bytes]) -> bool:
    """True if another open file holds the lock. Else this one holds it until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # this file system has no locks
    return False
