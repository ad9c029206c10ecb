"""Reads large files in pieces. Any worker reads any piece, and every record is read once.

A piece of a bz2 file owns the blocks that begin in its range of bytes. A block begins at any bit, with a mark of 48
bits. The reader turns each block into a small bz2 stream and decompresses it. A record belongs to the piece that owns
the first byte of the delimiter before it. So a piece may have to read on into the blocks of the next piece. A gzip file
is one piece.
"""

from __future__ import annotations

import bz2
import codecs
import collections
import dataclasses
import itertools
import os
import zlib
from collections import Counter
from collections.abc import Iterator

BLOCK, END = 0x314159265359, 0x177245385090  # marks of a block and of the end of a stream
FILE_END = 0
PIECE = 16 << 20  # bytes of a piece of a bz2 file; a piece of plain text has four times as many
RECORD = 64 << 20  # bytes of the longest record
_CHUNK = 1 << 20
_SCAN = 4 << 20
_LONGEST_BLOCK = 8 * 2_000_000  # bits; a packed block of 900,000 bytes is shorter


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a file."""

    path: str
    start: int
    end: int
    packing: str  # bz2 | gzip | none
    encoding: str = "utf-8"


def pieces(path: str) -> list[Piece]:
    """The pieces of a file. They depend on the file alone."""
    size = os.path.getsize(path)
    packing = packing_of(path)
    encoding = encoding_of(first_bytes(path))
    if packing == "gzip" or encoding != "utf-8":
        return [Piece(path, 0, size, packing, encoding)]
    step = PIECE if packing == "bz2" else 4 * PIECE
    return [Piece(path, at, min(at + step, size), packing) for at in range(0, size, step)]


def packing_of(path: str) -> str:
    """bz2, gzip or none, as the first bytes show."""
    with open(path, "rb") as file:
        head = file.read(4)
    return "bz2" if head[:3] == b"BZh" else "gzip" if head[:2] == b"\x1f\x8b" else "none"


def first_bytes(path: str, size: int = 1 << 16) -> bytes:
    """The first `size` bytes of a file, unpacked. A damaged file may give fewer bytes, or none."""
    found = b""
    for chunk, _ in chunks(Piece(path, 0, 1, packing_of(path)), Counter()):
        found += chunk
        if len(found) >= size:
            break
    return found[:size]


def encoding_of(head: bytes) -> str:
    """utf-16 if the file begins with its byte order mark, else utf-8."""
    return "utf-16" if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"


def records(piece: Piece, delimiter: bytes, tally: Counter[str]) -> Iterator[bytes]:
    """Yields the records that the piece owns: the bytes between two delimiters.

    The first piece also owns the bytes before the first delimiter.

    Args:
        piece: where to read.
        delimiter: the bytes before each record. They are not part of it.
        tally: counts damage by name.
    """
    buffer, base, border = b"", 0, -1  # base: offset of the buffer; border: offset of the piece's end
    inside = piece.start == 0  # a record of ours is open
    for chunk, ours in chunks(piece, tally):
        if border < 0 and not ours:
            border = base + len(buffer)
        buffer += chunk
        at = 0
        while (found := buffer.find(delimiter, at)) >= 0:
            if inside:
                yield buffer[at:found]
            inside = border < 0 or base + found < border
            if not inside:
                return
            at = found + len(delimiter)
        if inside and len(buffer) - at > RECORD:
            tally["record_too_long"] += 1
            inside = False
        if not inside:  # keep only what may begin a delimiter
            at = max(at, len(buffer) - len(delimiter) + 1)
            if 0 <= border <= base + at:
                return
        buffer, base = buffer[at:], base + at
    if inside and buffer:
        yield buffer


def line_blocks(piece: Piece, tally: Counter[str]) -> Iterator[bytes]:
    """Yields the lines that the piece owns, many at a time. A block has no newline at its end."""
    rest: list[bytes] = []
    inside = piece.start == 0
    for chunk, ours in chunks(piece, tally):
        if not inside:
            _, newline, chunk = chunk.partition(b"\n")
            if not ours or not newline:
                if ours:
                    continue
                return
            inside = True
        if ours:
            head, newline, tail = chunk.rpartition(b"\n")
            if newline:
                yield b"".join([*rest, head])
                rest = [tail]
            else:
                rest.append(tail)
            if sum(map(len, rest)) > RECORD:
                tally["record_too_long"] += 1
                rest, inside = [], False
        else:
            head, newline, _ = chunk.partition(b"\n")
            rest.append(head)
            if newline:
                break
    if inside and (last := b"".join(rest)):
        yield last


def _decoded(piece: Piece, tally: Counter[str]) -> Iterator[tuple[bytes, bool]]:
    """Yields the chunks of a file that is not UTF-8, converted to UTF-8."""
    decoder = codecs.getincrementaldecoder(piece.encoding)(errors="replace")
    for chunk, ours in _READERS[piece.packing](piece, tally):
        yield decoder.decode(chunk).encode("utf-8", "replace"), ours


def chunks(piece: Piece, tally: Counter[str]) -> Iterator[tuple[bytes, bool]]:
    """Yields (bytes, whether the piece owns them). After its own bytes come those that follow in the file."""
    if piece.encoding != "utf-8":
        return _decoded(piece, tally)
    return _READERS[piece.packing](piece, tally)


def _plain_chunks(piece: Piece, tally: Counter[str]) -> Iterator[tuple[bytes, bool]]:
    with open(piece.path, "rb") as file:
        file.seek(piece.start)
        left = piece.end - piece.start
        while left and (chunk := file.read(min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk, True
        while chunk := file.read(_CHUNK):
            yield chunk, False


def _gzip_chunks(piece: Piece, tally: Counter[str]) -> Iterator[tuple[bytes, bool]]:
    """Yields the bytes of all members of a gzip file. The bytes before a damaged place are kept."""
    with open(piece.path, "rb") as file:
        inflate, open_member = zlib.decompressobj(31), False
        try:
            while data := file.read(_CHUNK):
                while data:
                    out, open_member = inflate.decompress(data), True
                    if out:
                        yield out, True
                    data = inflate.unused_data
                    if inflate.eof:
                        inflate, open_member = zlib.decompressobj(31), False
                        data = data.lstrip(b"\0")
            if open_member:
                tally["gzip_truncated"] += 1
        except zlib.error:
            tally["gzip_damaged"] += 1


def _bz2_chunks(piece: Piece, tally: Counter[str]) -> Iterator[tuple[bytes, bool]]:
    for start, data in _bz2_blocks(piece.path, piece.start, tally):
        yield data, start < 8 * piece.end


def _bz2_blocks(path: str, start: int, tally: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """Yields (first bit, contents) of each block from byte `start` on."""
    marks = _marks(path, start)
    ahead = collections.deque(itertools.islice(marks, 3))
    while len(ahead) > 1:
        begin, kind = ahead.popleft()
        ahead.extend(itertools.islice(marks, 1))
        if kind != BLOCK:
            continue
        # The block ends at the next mark. If that one is in its data by chance (once in 2^48 bits), try the one after.
        for number, (end, _) in enumerate(itertools.islice(ahead, 2)):
            data = _unpack(path, begin, end)
            if data is not None:
                for _ in range(number):
                    ahead.popleft()
                yield begin, data
                break
        else:
            tally["bz2_truncated" if ahead[0][1] == FILE_END else "bz2_block_damaged"] += 1


def _marks(path: str, start: int) -> Iterator[tuple[int, int]]:
    """Yields (bit, kind) of every mark from byte `start` on. The last one is the end of the file."""
    with open(path, "rb") as file:
        file.seek(start)
        data, base = b"", start
        while chunk := file.read(_SCAN):
            data += chunk
            found = sorted(
                (8 * (base + at) + shift, kind)
                for kind in (BLOCK, END)
                for shift, patterns in enumerate(_PATTERNS[kind])
                for at in _find_mark(data, shift, *patterns)
            )
            yield from found
            kept = data[-7:]  # a cut mark has at most seven bytes; a whole one at their start was found
            base += len(data) - len(kept)
            data = kept
            if found and found[-1][0] >= 8 * base:  # do not find it twice
                data, base = b"", base + len(kept)
        yield 8 * os.path.getsize(path), FILE_END


def _pattern(mark: int, shift: int) -> tuple[int, bytes, int]:
    """A mark that begins at bit `shift` of a byte: the end of that byte, the whole bytes, the top of the last byte."""
    whole = 6 if shift == 0 else 5
    middle = (mark >> shift) & ((1 << (8 * whole)) - 1)
    first = mark >> (40 + shift) if shift else 0
    return first, middle.to_bytes(whole, "big"), mark & ((1 << shift) - 1)


_PATTERNS = {mark: [_pattern(mark, shift) for shift in range(8)] for mark in (BLOCK, END)}


def _find_mark(data: bytes, shift: int, first: int, middle: bytes, last: int) -> Iterator[int]:
    """Yields the bytes in which a mark begins at bit `shift`."""
    at = data.find(middle)
    while at >= 0:
        if not shift:
            yield at
        elif at and at + 5 < len(data):
            if data[at - 1] & ((1 << (8 - shift)) - 1) == first and data[at + 5] >> (8 - shift) == last:
                yield at - 1
        at = data.find(middle, at + 1)


def _unpack(path: str, begin: int, end: int) -> bytes | None:
    """Decompresses the block between two bits as a bz2 stream of its own. Returns None if it is no block."""
    if end - begin < 80 or end - begin > _LONGEST_BLOCK:
        return None
    with open(path, "rb") as file:
        file.seek(begin // 8)
        data = file.read(-(-end // 8) - begin // 8)
    bits = int.from_bytes(data, "big") >> (-end % 8)
    bits &= (1 << (end - begin)) - 1
    checksum = (bits >> (end - begin - 80)) & 0xFFFFFFFF
    length = end - begin + 80
    padding = -length % 8
    stream = ((((bits << 48) | END) << 32) | checksum) << padding
    try:
        return bz2.decompress(b"BZh9" + stream.to_bytes((length + padding) // 8, "big"))
    except (OSError, ValueError, EOFError):
        return None


_READERS = {"bz2": _bz2_chunks, "gzip": _gzip_chunks, "none": _plain_chunks}
