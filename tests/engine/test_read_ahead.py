"""Reading ahead changes no byte, holds a bounded number of them, and raises errors in their place."""

from __future__ import annotations

import io
import random
import time

import pytest

from pipeline.engine import read_ahead
from pipeline.engine.input_errors import TransferError
from pipeline.engine.read_ahead import ReadAhead

CONTENT = random.Random(5).randbytes(300_000)


class Source(io.RawIOBase):
    """A stream that counts what was taken, and may break at a place."""

    def __init__(self, breaks_at: int | None = None, pause: float = 0.0) -> None:
        super().__init__()
        self._data, self.taken, self._breaks_at, self._pause = io.BytesIO(CONTENT), 0, breaks_at, pause

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        time.sleep(self._pause)
        if self._breaks_at is not None and self.taken + size > self._breaks_at:
            raise TransferError("it broke off")
        data = self._data.read(min(size, 7_000))
        self.taken += len(data)
        return data


@pytest.mark.parametrize("seed", range(3))
def test_the_bytes_are_those_of_the_stream(seed: int) -> None:
    rng, parts = random.Random(seed), []
    with ReadAhead(Source()) as ahead:  # type: ignore[arg-type]
        while data := ahead.read(rng.choice((1, 900, 10_000, 400_000))):
            parts.append(data)
        assert ahead.read(5) == b""
    assert b"".join(parts) == CONTENT


def test_all_of_it_and_into_a_buffer() -> None:
    assert ReadAhead(Source()).read() == CONTENT  # type: ignore[arg-type]
    buffer = bytearray(10)
    assert 0 < ReadAhead(Source()).readinto(buffer) <= 10 and buffer.startswith(CONTENT[:1])  # type: ignore[arg-type]


def test_an_error_comes_behind_the_bytes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "PIECE", 1_000)
    ahead = ReadAhead(Source(breaks_at=50_000))  # type: ignore[arg-type]
    got = b""
    with pytest.raises(TransferError, match="it broke off"):
        while True:
            got += ahead.read(3_000)
    assert got == CONTENT[: len(got)] and len(got) > 45_000
    with pytest.raises(TransferError):
        ahead.read(1)


def test_it_reads_ahead_and_not_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "AHEAD", 60_000)
    source = Source()
    with ReadAhead(source) as ahead:  # type: ignore[arg-type]
        deadline = time.monotonic() + 60
        while source.taken < 60_000 and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.05)
        assert 60_000 <= source.taken <= 68_000  # before anybody reads
        assert ahead.read(10) == CONTENT[:10]


def test_closing_ends_the_thread_and_the_stream() -> None:
    source = Source(pause=0.005)
    ahead = ReadAhead(source)  # type: ignore[arg-type]
    ahead.read(1)
    ahead.close()
    ahead._thread.join(60)
    assert source.closed and not ahead._thread.is_alive()
