"""zstd and lz4 files, read frame by frame and block by block, so that damage loses as little as possible.

A decoder of a whole file stops at the first damage. Here each frame has its own decoder. It gets one block at a time,
so the output of a call is bounded for any input. The content before the damage is kept, and reading goes on at the next
frame that opens.
Formats: RFC 8878 (zstd), lz4_Frame_format.md (lz4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

HELD = 4 << 20  # bytes of a frame's content that are held until its checksum is checked
KEPT = 16 << 20  # bytes of the file that are kept: a wrong length may skip the next frame, so the search begins in them
ZSTD_HEADER = 18  # bytes, at most
PROBE = (4 << 20) + (64 << 10)  # bytes in which a first frame opens, if there is one: lz4 has blocks of 4 MiB
MAX_WINDOW = 128 << 20  # bytes of memory that a zstd frame may need
_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte from 50 to 5F: a frame without content, in both formats

_Pieces = Iterator[tuple[bytes, bool]]


class Bytes(Protocol):
    """The bytes of a file. Bytes before a released position can no longer be read."""

    def at(self, position: int, count: int) -> bytes: ...
    def find(self, pattern: bytes, position: int) -> int: ...
    def release(self, position: int) -> None: ...


class _Damaged(Exception):
    """The bytes at this position are no sound frame."""


class _Cut(Exception):
    """The file ends inside a frame."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How the frames of a compression are read.

    Attributes:
        magic: the first bytes of a frame.
        decoder: makes a decoder of one frame, with `decompress(bytes)` and `eof`.
        pieces: yields header, blocks and trailer of the frame at a position, each with True for the trailer.
    """

    name: str
    magic: bytes
    decoder: Callable[[], Any]
    pieces: Callable[[Bytes, int], _Pieces]


class Frames:
    """The content of a file of frames as a stream. It never raises, whatever the file holds.

    Args:
        data: the file.
        known: its format.
        is_one: True if the content of a frame is one record. Such a record is lost if the frame's checksum is wrong.
            Of several records all are kept, since the damaged one is not known.

    Attributes:
        broken: the reason if reading stopped at damage; "" at the end of the file.
        cut: True if the file ends inside a frame.
    """

    def __init__(self, data: Bytes, known: Format, is_one: Callable[[bytes], bool] = lambda content: True) -> None:
        self._data, self._format, self._is_one = data, known, is_one
        self._start = self._position = 0  # of the frame; of the next piece
        self._following, self._gave = -1, False  # the frame after the damage; True if the damaged one had content
        self._content = self._read()
        self.broken, self.cut = "", False

    def read(self, count: int = 0) -> bytes:
        """The next piece of the content, of any length; b"" at the end and at damage. `count` is ignored."""
        return next((part for part in self._content if part), b"")

    def resume(self) -> bool:
        """Goes on after the damage; False if no frame opens there."""
        if self._following < 0:
            return False
        self._position, self._following, self.broken = self._following, -1, ""
        self._content = self._read()
        return True

    def _read(self) -> Iterator[bytes]:
        """The content from `_position` to the next damage or to the end."""
        while self._data.at(self._position, 1):
            self._start, self._gave = self._position, False
            try:
                if _is_skippable(self._data.at(self._position, 4)):
                    self._skip()
                else:
                    yield from self._frame()
            except (_Damaged, _Cut) as error:
                self._following = self._next_frame()
                self.cut = isinstance(error, _Cut) and self._following < 0
                self.broken = f"bad_{self._format.name}"
                if self.cut:  # if the cut record has content, the reader counts it
                    self.broken = "" if self._gave else "cut_record"
                return

    def _skip(self) -> None:
        end = self._position + 8 + int.from_bytes(self._data.at(self._position + 4, 4), "little")
        while self._position < end:
            self._position = min(end, self._position + KEPT)
            if not self._data.at(self._position - 1, 1):
                raise _Cut
            self._data.release(self._position - KEPT)

    def _frame(self) -> Iterator[bytes]:
        """The content of the frame at `_position`. `_position` moves past the frame.

        Raises:
            _Damaged, _Cut: after the content before the damage was yielded.
        """
        held, in_trailer, large = bytearray(), False, False
        try:
            for part, is_trailer in self._decoded(self._position):
                in_trailer = is_trailer
                held += part
                self._gave |= bool(part)
                if len(held) > HELD:
                    yield bytes(held)
                    held.clear()
                    large = True
                self._data.release(self._position - KEPT)
        except (_Damaged, _Cut):
            if not in_trailer or large or not self._is_one(bytes(held)):
                yield bytes(held)
            raise
        yield bytes(held)

    def _decoded(self, start: int) -> _Pieces:
        """(content, is trailer) of each piece of the frame at `start`. (b"", True) comes before the trailer is read."""
        decoder = self._format.decoder()
        for piece, is_trailer in self._format.pieces(self._data, start):
            if is_trailer:
                yield b"", True
            try:
                part = decoder.decompress(piece)
            except Exception as error:  # each library raises its own errors
                raise _Damaged from error
            self._position += len(piece)
            yield part, is_trailer
        if not decoder.eof:
            raise _Damaged

    def _next_frame(self) -> int:
        """The next position where a frame opens; -1 if there is none."""
        position = max(self._start + 1, self._position - KEPT)
        while (position := self._data.find(self._format.magic, position)) >= 0 and not self.opens(position):
            position += 1
        return position

    def opens(self, position: int) -> bool:
        """True if a frame begins at `position` and something of it can be decoded."""
        kept = self._position
        try:
            return any(part for part, _ in self._decoded(position))
        except (_Damaged, _Cut):
            return False
        finally:
            self._position = kept


def _is_skippable(head: bytes) -> bool:
    return head[1:] == _SKIPPABLE and head[0] & 0xF0 == 0x50


def _whole(data: Bytes, position: int, count: int) -> bytes:
    found = data.at(position, count)
    if len(found) < count:
        raise _Cut
    return found


def _zstd_decoder() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()


def _zstd_pieces(data: Bytes, position: int) -> _Pieces:
    import zstandard

    head = data.at(position, ZSTD_HEADER)
    try:
        size, parameters = zstandard.frame_header_size(head), zstandard.get_frame_parameters(head)
    except zstandard.ZstdError as error:
        raise (_Damaged if len(head) == ZSTD_HEADER else _Cut) from error
    yield _whole(data, position, size), False
    position += size
    last = False
    while not last:
        head = _whole(data, position, 3)
        bits = int.from_bytes(head, "little")
        last, kind, length = bool(bits & 1), bits >> 1 & 3, bits >> 3
        if kind == 3 or length > zstandard.BLOCKSIZE_MAX:
            raise _Damaged
        block = _whole(data, position, 3 + (1 if kind == 1 else length))  # kind 1: one byte, repeated
        yield block, False
        position += len(block)
    if parameters.has_checksum:
        yield _whole(data, position, 4), True


def _lz4_decoder() -> Any:
    import lz4.frame

    return lz4.frame.LZ4FrameDecompressor()


def _lz4_pieces(data: Bytes, position: int) -> _Pieces:
    head = _whole(data, position, 7)
    if head[:4] != LZ4.magic:
        raise _Damaged
    flags = head[4]
    size = 7 + 8 * (flags >> 3 & 1) + 4 * (flags & 1)
    yield _whole(data, position, size), False
    position += size
    while length := int.from_bytes(_whole(data, position, 4), "little") & 0x7FFFFFFF:  # the highest bit: not compressed
        if length > 4 << 20:
            raise _Damaged
        block = _whole(data, position, 4 + length + 4 * (flags >> 4 & 1))
        yield block, False
        position += len(block)
    yield _whole(data, position, 4 + 4 * (flags >> 2 & 1)), True


def format_of(head: bytes) -> Format | None:
    """The format of the first frame that opens in `head`, the first PROBE bytes of a file; None if there is none.

    The magic alone is not enough, since junk may begin with it.
    """
    places = {}
    for known in FORMATS:
        position = head.find(known.magic)
        while position >= 0 and not Frames(Whole(head), known).opens(position):
            position = head.find(known.magic, position + 1)
        if position >= 0:
            places[position] = known
    return places[min(places)] if places else None


class Whole:
    """Bytes in memory, as `Bytes`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def at(self, position: int, count: int) -> bytes:
        return self._data[position : position + count]

    def find(self, pattern: bytes, position: int) -> int:
        return self._data.find(pattern, position)

    def release(self, position: int) -> None:
        """Does nothing."""


ZSTD = Format("zstd", b"\x28\xb5\x2f\xfd", _zstd_decoder, _zstd_pieces)
LZ4 = Format("lz4", b"\x04\x22\x4d\x18", _lz4_decoder, _lz4_pieces)
FORMATS = (ZSTD, LZ4)
