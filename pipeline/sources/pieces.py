"""Pieces of inputs, for the sample of `--plan`. A reader writes a piece as a small file that it can read itself.

An input has numbered *slots*: windows of equal size that lie one behind the other. A piece holds what begins inside of
a slot. So each record has the same chance to be in a sample of slots, be it short or long.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import IO, NamedTuple, TypeAlias

from pipeline.engine.opening import Opened, open_input

MOST_BEHIND = 8 << 20  # bytes that are read behind a slot to the end of its last record
_GZIP = b"\x1f\x8b\x08"
_PACKED = (b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"BZh", b"\xfd7zXZ")  # zstd, lz4, bzip2, xz
_RECORD = re.compile(rb"WARC/|[a-z]{2,8}:[^\r\n]{1,8192} [0-9A-Fa-f.:]{1,45} \d{14} ")
_PLAIN = re.compile(  # of an archive: the newline before a record
    rb"\n(?=WARC/[01]\.\d+\r?\n|[a-z]{2,8}:[^\r\n]{1,2048} [0-9.]{7,15} \d{14} [^\r\n]{0,200}\d\n)"
)
_NEWLINE = re.compile(rb"\n")

Begins: TypeAlias = Callable[[bytes, int], int]  # (data, place) -> the first start of a record from place on; -1: none


class Piece(NamedTuple):
    """What a piece stands for.

    Attributes:
        amount: of the input that the piece covers, in the unit of the input ("bytes" or "rows"); 0: nothing was cut.
        total: of the whole input, in the same unit.
        slot: the number of the slot that was cut. It is another one than asked for if the input has fewer.
        is_head: the input is longer, but can only be read from its start.
    """

    amount: float
    total: float
    slot: int = 0
    is_head: bool = False


def cut_archive(path: str, slot: int, size: int, target: str) -> Piece:
    """Cuts a slot out of a WARC, ARC or WAT file, at the starts of records. A zstd or lz4 file gives its head.

    Args:
        path: of the archive, or its URL.
        slot: number of the slot.
        size: of a slot, in bytes.
        target: the file to write.

    Raises:
        InputError, OSError: the input cannot be read.
    """
    with open_input(path) as opened:
        head = opened.stream.read(min(size, 64 << 10))
        if head.startswith(_PACKED) or not opened.seekable or opened.size is None:
            return _head(opened, head, size, target)
        begins = _begins_member if head.startswith(_GZIP) else _begins_plain
        return _window(opened, slot, size, target, begins=begins)


def cut_text(path: str, slot: int, size: int, target: str, *, has_names: bool) -> Piece:
    """Cuts a slot out of a CSV, TSV or JSON lines file, at the starts of lines. The names of the columns come first.

    A compressed file, an array of JSON and a text in UTF-16 give their heads.

    Args:
        path, slot, size, target: as `cut_archive`.
        has_names: the first line of a CSV or TSV holds names.

    Raises:
        InputError, OSError: the input cannot be read.
    """
    with open_input(path) as opened:
        head = opened.stream.read(min(size, 64 << 10))
        start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        packed = head.startswith((_GZIP, *_PACKED, b"\xff\xfe", b"\xfe\xff")) or start.startswith(b"[")
        if packed or not opened.seekable or opened.size is None or b"\n" not in head:
            return _head(opened, head, size, target)
        names = b"" if start.startswith(b"{") or not has_names else head[: head.index(b"\n") + 1]
        return _window(opened, slot, size, target, begins=_begins_line, before=names)


def _head(opened: Opened, head: bytes, size: int, target: str) -> Piece:
    """The first bytes of an input."""
    data = head + opened.stream.read(max(0, size - len(head)))
    with open(target, "wb") as file:
        file.write(data)
    whole = len(data) < size
    total = len(data) if whole or opened.size is None else opened.size
    return Piece(len(data), max(total, len(data)), is_head=not whole)


def _window(opened: Opened, slot: int, size: int, target: str, *, begins: Begins, before: bytes = b"") -> Piece:
    """What begins in a slot, with `before` in front of it unless it is the first slot."""
    total = opened.size or 0
    slot %= max(1, -(-total // size))
    first, last = slot * size, min(total, (slot + 1) * size)
    opened.stream.seek(max(0, first - 1))
    data = opened.stream.read(last - max(0, first - 1))
    data = data if first else b"\n" + data  # data[0] is the byte before the slot
    start, end = begins(data, 1) if first else 1, len(data)
    if not 0 <= start < end:
        return Piece(last - first, total, slot)  # nothing begins here, and nothing is written
    if last < total:
        data, end = _with_last_record(opened.stream, data, begins)
    with open(target, "wb") as file:
        file.write((before if first else b"") + data[start:end])
    return Piece(last - first, total, slot)


def _with_last_record(stream: IO[bytes], data: bytes, begins: Begins) -> tuple[bytes, int]:
    """The bytes of a slot with those behind it, and the place where the first record behind it begins."""
    length, end = len(data), -1
    while end < 0 and len(data) < length + MOST_BEHIND:
        more = stream.read(256 << 10)
        data += more
        end = begins(data, length)
        if not more:
            break
    return data, len(data) if end < 0 else end


def _begins_line(data: bytes, place: int) -> int:
    found = _NEWLINE.search(data, place - 1)
    return -1 if found is None else found.end()


def _begins_plain(data: bytes, place: int) -> int:
    found = _PLAIN.search(data, place - 1)
    return -1 if found is None else found.end()


def _begins_member(data: bytes, place: int) -> int:
    """The next gzip member that holds the start of a record."""
    while (place := data.find(_GZIP, place)) >= 0:
        try:
            if _RECORD.match(zlib.decompressobj(31).decompress(data[place : place + 16_384], 9_000)):
                return place
        except zlib.error:
            pass
        place += 1
    return -1
