"""Reads a stream ahead in a thread, so that waiting for a server and parsing take place at the same time."""

from __future__ import annotations

import io
import threading
from collections import deque
from typing import IO, Any

PIECE = 256 << 10
AHEAD = 16 << 20  # bytes that are read ahead, at most


class ReadAhead(io.RawIOBase):
    """A stream that is read ahead, in order and once. It owns the stream: closing it closes both.

    `read(n)` gives what is there, at most n bytes, and waits only if nothing is. An error of the stream is raised where
    its bytes would be.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream
        self._pieces: deque[bytes] = deque()
        self._held, self._ended = 0, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._fill, daemon=True, name="read ahead")
        self._thread.start()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        if size < 0:
            return b"".join(iter(lambda: self.read(PIECE), b""))
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended)
            if not self._pieces:
                if self._error is not None:
                    raise self._error
                return b""
            taken = []
            while self._pieces and size > 0:
                piece = self._pieces.popleft()
                if len(piece) > size:
                    self._pieces.appendleft(piece[size:])
                    piece = piece[:size]
                taken.append(piece)
                size -= len(piece)
            data = taken[0] if len(taken) == 1 else b"".join(taken)
            self._held -= len(data)
            self._changed.notify_all()
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _fill(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._held < AHEAD or self._ended)
                    if self._ended:
                        return
                data = self._stream.read(PIECE)
                with self._changed:
                    if self._ended:
                        return
                    if not data:
                        self._ended = True
                    else:
                        self._pieces.append(data)
                        self._held += len(data)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error, self._ended = error, True
                self._changed.notify_all()
        finally:
            self._stream.close()

    def close(self) -> None:
        """Ends the thread when its read has ended. Nobody waits for it: a server may be silent for a minute."""
        if not self.closed:
            with self._changed:
                self._ended = True
                self._pieces.clear()
                self._changed.notify_all()
        super().close()
