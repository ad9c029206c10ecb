"""Writes and reads tar files for WebDataset.

The format is USTAR. Every field is fixed except name and size: equal members give equal bytes on every machine and in
every run. A file consists of 512-byte blocks. Each member has a header, the data, and zeros up to the next block. Two
zero blocks end the file.

    write_shard:  TarWriter.append(headers, JSON, text ..., room for an image)
    readers:      walk(data) -> Member(name, offset, size) ...          (raises TarFault at the first broken header)
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

BLOCK = 512
MOST_NAME = 99  # bytes of a name: a NUL must end it for every reader
MOST_BYTES = 8**11 - 1  # the largest number of eleven octal digits
FLUSH = 1 << 20  # bytes that are hashed and written together, while they are still in the processor's cache
ALIGN = 1 << 16  # writes begin at multiples of this: whole pages of the file system's cache

_ZEROS = bytes(BLOCK)
_AFTER_NAME = b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid
_AFTER_SIZE = b"00000000000\0"  # mtime
_AFTER_SUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(BLOCK - 265)  # a file; no link; magic, version; no owner's name
_BLANK_SUM = b" " * 8  # the checksum counts itself as blanks
_FIXED_SUM = sum(_AFTER_NAME) + sum(_AFTER_SIZE) + sum(_AFTER_SUM) + sum(_BLANK_SUM)

_FOUR_DIGITS = np.frombuffer(b"".join(b"%04o" % number for number in range(8**4)), np.uint32)


class TarFault(ValueError):
    """`TarWriter` did not write this file, or it is damaged. `offset` is the byte where the bad header starts."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset, self.reason = offset, reason


class Member(NamedTuple):
    """One file in a tar. Its data starts at `offset`, its header 512 bytes earlier."""

    name: str
    offset: int
    size: int


def header(name: bytes, size: int) -> bytes:
    """The 512 bytes before a member's data.

    Raises:
        ValueError: the name is empty or too long for the format, or the data is too large.
    """
    if not 0 < len(name) <= MOST_NAME:
        raise ValueError(f"a name in a tar has 1 to {MOST_NAME} bytes, this one has {len(name)}: {name[:120]!r}")
    if size > MOST_BYTES:
        raise ValueError(f"{name!r} has {size} bytes, a tar's member at most {MOST_BYTES}")
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(name) + sum(digits))
    return b"".join((name.ljust(100, b"\0"), _AFTER_NAME, digits, _AFTER_SIZE, checksum, _AFTER_SUM))


def padding(size: int) -> bytes:
    """The zeros between `size` bytes of data and the next block."""
    return _ZEROS[: -size % BLOCK]


def headers(names: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The headers of many members whose names have the same length.

    Args:
        names: (members, bytes of a name).
        sizes: (members,).

    Returns:
        (members, 512).

    Raises:
        ValueError: as `header`.
    """
    count, width = names.shape
    blocks = np.empty((count, BLOCK), np.uint8)
    blocks[:] = np.frombuffer(header(b"-" * width, int(sizes.max(initial=0))), np.uint8)
    digits = _octal(sizes, 11)
    blocks[:, :width] = names
    blocks[:, 124:135] = digits
    blocks[:, 148:154] = _octal(_FIXED_SUM + names.sum(1, np.int64) + digits.sum(1, np.int64), 6)
    return blocks


def _octal(numbers: npt.NDArray[np.int64], digits: int) -> npt.NDArray[np.uint8]:
    """(numbers, digits): the ASCII octal digits of each number; at most twelve digits."""
    fours = [_FOUR_DIGITS[numbers >> shift & 0xFFF] for shift in (24, 12, 0)]
    return np.stack(fours, axis=1).view(np.uint8)[:, 12 - digits :]


class TarWriter:
    """Writes a tar piece by piece to an open, unbuffered binary file, and computes its sha256 at the same time.

    One buffer collects the bytes. It fits into the processor's cache. An image is read directly into it. The hash and
    the write both read from it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._buffer = memoryview(bytearray(FLUSH))
        self._used = 0  # bytes in the buffer that are not written yet
        self._flushed = 0

    @property
    def size(self) -> int:
        """The bytes that were appended so far, written or not."""
        return self._flushed + self._used

    def append(self, data: bytes | memoryview, more: int = 0) -> memoryview:
        """Appends bytes. The caller passes headers, data and padding in the right order.

        Returns:
            The place of the next `more` bytes. The caller fills it before the next call.
        """
        size = len(data)
        if self._used + size + more > len(self._buffer):
            self._make_room(size + more)
        start = self._used
        middle = start + size
        self._used = middle + more
        self._buffer[start:middle] = data
        return self._buffer[middle : self._used]

    def close(self) -> None:
        """Writes the end of the archive and the rest of the buffer. The file stays open."""
        self.append(_ZEROS * 2)
        self._flush(self._used)

    def sha256(self) -> str:
        """The hexadecimal sha256 of all written bytes. It is final after `close`."""
        return self._hash.hexdigest()

    def _make_room(self, size: int) -> None:
        """Writes the buffer up to the last multiple of ALIGN. Enlarges the buffer if the room is still too small."""
        self._flush(self._used - self._used % ALIGN)
        if self._used + size > len(self._buffer):
            larger = memoryview(bytearray(self._used + size))
            larger[: self._used] = self._buffer[: self._used]
            self._buffer = larger

    def _flush(self, size: int) -> None:
        """Hashes and writes the first `size` bytes of the buffer. The other bytes move to its front."""
        waiting = self._buffer[:size]
        self._hash.update(waiting)
        while waiting:
            waiting = waiting[self._file.write(waiting) :]
        left = self._used - size
        self._buffer[:left] = self._buffer[size : self._used]
        self._flushed += size
        self._used = left


def walk(data: bytes | bytearray | memoryview | mmap.mmap) -> Iterator[Member]:
    """Yields the members of a whole tar (bytes, or a mapped file), in order.

    Raises:
        TarFault: a header is not one of `TarWriter`, the file is cut, or it has bytes after its end. The members before
            the fault are yielded first.
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
    """The name and size in a header. The header must equal `header(name, size)`."""
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
