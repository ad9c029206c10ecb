"""Tar files as WebDataset wants them, written and read by the shortest way.

Plain USTAR with every field fixed but name and size: equal members give equal bytes on every machine and in every run.
A file is a run of 512-byte blocks: a header, the data, zeros up to the next block; two zero blocks end it.

    write_shard:  TarWriter.add(name, data) -> where the data lies      (an index then reads it without the headers)
    verify:       walk(data) -> Member(name, offset, size) ...          (raises TarFault at the first broken header)
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
MOST_NAME = 99  # bytes of a name, so that a NUL ends it for every reader
MOST_BYTES = 8**11 - 1  # what eleven octal digits hold
FLUSH = 1 << 20  # bytes that are gathered before a write

_ZEROS = bytes(BLOCK)
_AFTER_NAME = b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid
_AFTER_SIZE = b"00000000000\0"  # mtime
_AFTER_SUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(BLOCK - 265)  # a file; no link; magic, version; no owner's name
_BLANK_SUM = b" " * 8  # the checksum counts itself as blanks
_FIXED_SUM = sum(_AFTER_NAME) + sum(_AFTER_SIZE) + sum(_AFTER_SUM) + sum(_BLANK_SUM)


class TarFault(ValueError):
    """The file is not what `TarWriter` writes. `offset` is the byte of the header that is wrong."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset, self.reason = offset, reason


class Member(NamedTuple):
    """One file in a tar; its data lies at `offset`, its header 512 bytes before."""

    name: str
    offset: int
    size: int


def header(name: bytes, size: int) -> bytes:
    """The 512 bytes before a member's data.

    Raises:
        ValueError: the name is empty or too long, or the data too large, for the format.
    """
    if not 0 < len(name) <= MOST_NAME:
        raise ValueError(f"a name in a tar has 1 to {MOST_NAME} bytes, this one has {len(name)}: {name[:120]!r}")
    if size > MOST_BYTES:
        raise ValueError(f"{name!r} has {size} bytes, a tar's member at most {MOST_BYTES}")
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(name) + sum(digits))
    return b"".join((name.ljust(100, b"\0"), _AFTER_NAME, digits, _AFTER_SIZE, checksum, _AFTER_SUM))


def padding(size: int) -> bytes:
    """The zeros between the end of `size` bytes of data and the next block."""
    return _ZEROS[: -size % BLOCK]


class TarWriter:
    """Appends members to an open binary file. `close` ends the tar and leaves the file open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.bytes = 0  # written so far, or waiting to be

    def add(self, name: bytes, data: bytes) -> int:
        """Appends a member; returns the offset of its data in the file."""
        size = len(data)
        offset = self.bytes + BLOCK
        self._waiting += (header(name, size), data, padding(size))
        written = BLOCK + size + -size % BLOCK
        self._waiting_bytes += written
        self.bytes += written
        if self._waiting_bytes >= FLUSH:
            self._flush()
        return offset

    def close(self) -> None:
        """Writes the end of the archive."""
        self._waiting.append(_ZEROS * 2)
        self.bytes += 2 * BLOCK
        self._flush()

    def sha256(self) -> str:
        """The digest of everything written, in hexadecimal: final after `close`."""
        return self._hash.hexdigest()

    def _flush(self) -> None:
        chunk = b"".join(self._waiting)
        self._hash.update(chunk)
        self._file.write(chunk)
        self._waiting.clear()
        self._waiting_bytes = 0


def walk(data: bytes | bytearray | memoryview | mmap.mmap) -> Iterator[Member]:
    """The members of a whole tar (bytes, or a mapped file), in order.

    Raises:
        TarFault: a header is not one of ours, or the file is cut, or goes on after its end. Members before that have
            been given.
    """
    view = memoryview(data)
    end, at = len(view), 0
    while True:
        block = bytes(view[at : at + BLOCK])
        if len(block) < BLOCK:
            raise TarFault(at, "the file ends without the end of the archive")
        if block == _ZEROS:
            break
        name, size = _parse(block, at)
        after = at + BLOCK + size + -size % BLOCK
        if after > end:
            raise TarFault(at, f"the member {name!r} is cut")
        yield Member(name, at + BLOCK, size)
        at = after
    if bytes(view[at:]) != _ZEROS * 2:
        raise TarFault(at, "the archive does not end as it should")


def _parse(block: bytes, at: int) -> tuple[str, int]:
    """Name and size out of a header; the header must be exactly what `header` makes of them."""
    name = block[:100].rstrip(b"\0")
    try:
        size = int(block[124:135], 8)
        text = name.decode("ascii")
        ours = header(name, size) == block
    except ValueError:
        ours = False
    if not ours:
        raise TarFault(at, "a broken header")
    return text, size
