"""Large files in pieces: any worker reads any piece, and every record is read once.

A piece of a bz2 file owns the blocks that begin in its range of bytes. Blocks begin at any bit, with a mark of 48 bits;
each is made into a small stream of its own and decompressed. A record belongs to the piece that owns the first byte of
the delimiter before it, so a piece may have to read on into blocks of the next one. Gzip is read as a whole.
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
PIECE = 16 << 20  # bytes of a piece of a bz2 file; of plain text it is four times as much
RECORD = 64 << 20  # longest record
_CHUNK = 1 << 20
_SCAN = 4 << 20
_LONGEST_BLOCK = 8 * 2_000_000  # bits; 900,000 bytes are packed into less


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a file; `whole` files are not cut."""

    path: str
    start: int
    end: int
    packing: str  # bz2 | gzip | none
    encoding: str = "utf-8"


def pieces(path: str) -> list[Piece]:
    """The pieces of a file; they depend on the file alone."""
    size = os.path.getsize(path)
    packing = packing_of(path)
    encoding = encoding_of(first_bytes(path))
    if packing == "gzip" or encoding != "utf-8":
        return [Piece(path, 0, size, packing, encoding)]
    step = PIECE if packing == "bz2" else 4 * PIECE
    return [Piece(path, at, min(at + step, size), packing) for at in range(0, size, step)]


def packing_of(path: str) -> str:
    """bz2, gzip or none, by the first bytes."""
    with open(path, "rb") as file:
        head = file.read(4)
    return "bz2" if head[:3] == b"BZh" else "gzip" if head[:2] == b"\x1f\x8b" else "none"


def first_bytes(path: str, size: int = 1 << 16) -> bytes:
    """The beginning of a file, unpacked; less of it, or nothing, where it is damaged."""
    found = b""
    for chunk, _ in chunks(Piece(path, 0, 1, packing_of(path)), Counter()):
        found += chunk
        if len(found) >= size:
            break
    return found[:size]


def encoding_of(head: bytes) -> str:
    """utf-8, or utf-16 where a mark says so."""
    return "utf-16" if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"


def records(piece: Piece, delimiter: bytes, tally: Counter[str]) -> Iterator[bytes]:
    """What stands between two delimiters, for each of those that the piece owns; the first piece owns the beginning.

    Args:
        piece: where to read.
        delimiter: what a record begins with; it is not part of the record.
        tally: damage is counted here, by name.
    """
    buffer, base, border = b"", 0, -1  # base: place of the buffer in the piece; border: of what is not ours any more
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
        if not inside:  # only the beginning of a delimiter may matter
            at = max(at, len(buffer) - len(delimiter) + 1)
            if 0 <= border <= base + at:
                return
        buffer, base = buffer[at:], base + at
    if inside and buffer:
        yield buffer


def line_blocks(piece: Piece, tally: Counter[str]) -> Iterator[bytes]:
    """The lines that the piece owns, many at a time, without the last line's end."""
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
    """The chunks of a file that is not UTF-8, as UTF-8."""
    decoder = codecs.getincrementaldecoder(piece.encoding)(errors="replace")
    for chunk, ours in _READERS[piece.packing](piece, tally):
        yield decoder.decode(chunk).encode("utf-8", "replace"), ours


def chunks(piece: Piece, tally: Counter[str]) -> Iterator[tuple[bytes, bool]]:
    """(bytes, whether the piece owns them): first its own, then those that follow, for as long as anybody asks."""
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
    """All members of a gzip file; what comes before a damage is kept."""
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
    """(bit at which it begins, contents) of each block from byte `start` on."""
    marks = _marks(path, start)
    ahead = collections.deque(itertools.islice(marks, 3))
    while len(ahead) > 1:
        begin, kind = ahead.popleft()
        ahead.extend(itertools.islice(marks, 1))
        if kind != BLOCK:
            continue
        # It ends at the next mark; at the one after that if the next is in its data by chance (once in 2^48 bits).
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
    """(bit, kind) of every mark from byte `start` on, and the end of the file as the last."""
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
            kept = data[-7:]  # a mark that is cut takes seven bytes at most; a whole one at their start was found
            base += len(data) - len(kept)
            data = kept
            if found and found[-1][0] >= 8 * base:  # it lies in what is kept: not twice
                data, base = b"", base + len(kept)
        yield 8 * os.path.getsize(path), FILE_END


def _pattern(mark: int, shift: int) -> tuple[int, bytes, int]:
    """The end of the first byte, the whole bytes, and the beginning of the last one, of a mark that begins at a bit."""
    whole = 6 if shift == 0 else 5
    middle = (mark >> shift) & ((1 << (8 * whole)) - 1)
    first = mark >> (40 + shift) if shift else 0
    return first, middle.to_bytes(whole, "big"), mark & ((1 << shift) - 1)


_PATTERNS = {mark: [_pattern(mark, shift) for shift in range(8)] for mark in (BLOCK, END)}


def _find_mark(data: bytes, shift: int, first: int, middle: bytes, last: int) -> Iterator[int]:
    """The bytes in which a mark begins that is shifted by so many bits."""
    at = data.find(middle)
    while at >= 0:
        if not shift:
            yield at
        elif at and at + 5 < len(data):
            if data[at - 1] & ((1 << (8 - shift)) - 1) == first and data[at + 5] >> (8 - shift) == last:
                yield at - 1
        at = data.find(middle, at + 1)


def _unpack(path: str, begin: int, end: int) -> bytes | None:
    """The contents of the block between two bits, as a stream of its own; None if it is none."""
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
