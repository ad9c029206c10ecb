"""The bytes of a text table (CSV, TSV, JSON) as UTF-8. gzip, zstd, UTF-16 and UTF-32 are undone.

A compressed file that is cut or damaged ends with its last whole line before the damage; `damage` then says why.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

from pipeline.sources.base import GZIP, file_name, open_bytes

MAX_LINE = 1 << 20  # bytes of a JSON line, and of a quoted field of a CSV
PIECE = 256 << 10  # bytes of a gzip file that are read, and that are inflated, at a time

# UTF-32 stands first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x80-\xff]")  # in no ASCII text


@contextlib.contextmanager
def open_text(path: str, *, named: bool) -> Iterator[io.BufferedReader]:
    """The text of a file, without a byte order mark. `named`: the name tells the compression, else the first bytes do.

    Raises:
        InputError, OSError: the file cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        raw: Any = stack.enter_context(open_bytes(path))
        compression = _compression(path, raw.peek(512)[:512], named)
        stream: Any = stack.enter_context(pa.PythonFile(raw, "r"))
        if compression == "gzip":
            stream = _Pieces(_inflated(raw))
        elif compression:
            packed = stack.enter_context(pa.CompressedInputStream(stream, compression))
            stream = _Pieces(iter(lambda: packed.read(64 << 10), b""))  # a read that fails loses its bytes
        plain = io.BufferedReader(stream, 1 << 20)
        head = plain.peek(4)[:4]
        if head.startswith(codecs.BOM_UTF8):
            plain.read(len(codecs.BOM_UTF8))
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), None)
        if encoding:
            plain = io.BufferedReader(_Pieces(_recoded(plain, encoding), below=stream), 1 << 20)
        head = plain.peek(1)
        if b"\r" in head and b"\n" not in head:  # a file of an old Mac
            lines = iter(functools.partial(_read_returns, plain), b"")
            plain = io.BufferedReader(_Pieces(lines, below=plain.raw), 1 << 20)
        yield stack.enter_context(plain)


def damage(stream: io.BufferedReader) -> Exception | None:
    """The error at which a stream ended; None without damage."""
    return getattr(stream.raw, "error", None)


def _compression(path: str, head: bytes, named: bool) -> str | None:
    """gzip, zstd or None: by name, else by the first bytes. Some servers unpack a file and keep its name."""
    name = file_name(path).lower()
    if name.endswith((".gz", ".zst")):
        packing = "gzip" if name.endswith(".gz") else "zstd"
        return packing if not head or head.startswith(GZIP) or _CONTROLS.search(head) else None
    return "gzip" if not named and head.startswith(GZIP) else None


def _read_returns(stream: IO[bytes]) -> bytes:
    return stream.read(PIECE).replace(b"\r", b"\n")


def _inflated(file: IO[bytes]) -> Iterator[bytes]:
    """The content of a gzip file's members, in non-empty pieces of at most PIECE bytes.

    Raises:
        zlib.error, OSError: the file is damaged or cut. The content before the damage was yielded.
    """
    inflater = zlib.decompressobj(31)
    begun = False
    while data := file.read(PIECE):
        while data:
            begun = True
            if part := inflater.decompress(data, PIECE):
                yield part
            data = inflater.unconsumed_tail
            if inflater.eof:
                data, begun = inflater.unused_data.lstrip(b"\0"), False  # zeros: padding between members
                inflater = zlib.decompressobj(31)
    while part := inflater.decompress(inflater.unconsumed_tail, PIECE):
        yield part
    if begun and not inflater.eof:
        raise OSError("the file is cut")


def _recoded(stream: IO[bytes], encoding: str) -> Iterator[bytes]:
    """A text of another Unicode encoding as UTF-8. Its byte order mark is taken off."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while data := stream.read(PIECE):
        if text := decoder.decode(data):
            yield text.encode()
    if text := decoder.decode(b"", True):
        yield text.encode()


class _Pieces(io.RawIOBase):
    """A stream of pieces. It ends with the last whole line before damage. `error` then holds the cause.

    Args:
        source: the pieces.
        below: the stream that the pieces come from, if its damage counts as damage of this one.
    """

    def __init__(self, source: Iterator[bytes], below: object = None) -> None:
        super().__init__()
        self._source, self._ready, self._line, self._ended = source, b"", b"", False
        self._error: Exception | None = None
        self._below = below

    @property
    def error(self) -> Exception | None:
        return self._error or getattr(self._below, "error", None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            self._read()
        part, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _read(self) -> None:
        try:
            data = next(self._source, b"")
        except (pa.ArrowException, OSError, zlib.error) as error:
            self._error, self._ended = OSError(str(error)), True
            return
        self._ended = not data
        text = self._line + data
        end = text.rfind(b"\n") + 1 if data and len(text) < MAX_LINE else len(text)
        self._ready, self._line = text[:end], text[end:]


WEB_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml", b"<!--")
LFS_POINTER = b"version https://git-lfs.github.com/"


def describe_head(head: bytes) -> str:
    """What a file that is not of its format seems to be, as a part of a sentence; "" if nothing is known.

    Args:
        head: its first bytes, compression undone.
    """
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()[:64].lower()
    if not head:
        return "it is empty"
    if text.startswith(WEB_PAGES):
        return "it is a web page: the server may have sent an error page in its place"
    if text.startswith(LFS_POINTER):
        return "it is a pointer of Git LFS: fetch the file itself with git lfs pull"
    if not head.strip(b"\0"):
        return "it begins with zeros only"
    return ""
