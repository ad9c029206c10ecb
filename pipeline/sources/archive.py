"""Records of web archives: WARC and ARC, uncompressed, gzip, lz4 or zstd. The unit of loss is the record.

Only the record itself is lost if it is cut, damaged or too large. It is counted with a reason in
`ledger.records_dropped`. Reading goes on at the next place that certainly begins a record: a gzip member that inflates
to a record's header, or in an uncompressed file the first line of a header. A file that ends inside a record is noted
as `cut_file`. Damage in a zstd or lz4 file also counts as a lost record (`bad_zstd`, `bad_lz4`). Then reading goes on
at the next frame that opens. If no frame opens, the file counts as cut.

`offset` is the byte where the record's gzip member begins. In an uncompressed file it is the byte of the record. If one
member holds several records, the index in the member is added as index << 40, so that `read_at` finds each of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import mmap
import re
import threading
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pipeline.engine import remote
from pipeline.engine.input_errors import TransferError, UnreadableInputError, is_remote
from pipeline.engine.ledger import Ledger
from pipeline.engine.opening import Opened, of_file, open_copy, open_input, open_seekable
from pipeline.engine.read_ahead import ReadAhead
from pipeline.engine.remote import RemoteSettings
from pipeline.sources import frames, libdeflate
from pipeline.sources.crawl_day import HEAD, first_day

_zlib: Any = zlib
with contextlib.suppress(ImportError):  # twice as fast as the standard library's
    from zlib_ng import zlib_ng as _zlib

MAX_RECORD = 16 << 20  # bytes of a record's block, inflated
MAX_HEADER = 64 << 10  # bytes of a record's header
FAST_MEMBER = 4 << 20  # bytes of an inflated member, at most, that libdeflate reads; zlib reads longer ones
MOST_STREAMS = 16  # remote archives that stay open for their images
TRIES = 6  # streams that are opened for one record, if each finds another version of its archive
MAX_SKIPPED = 4 << 30  # bytes of an oversized member that are inflated only to find its end
CHUNK = 256 << 10
KEPT = 16 << 20  # bytes of a long member that are kept: the search for the next member begins in them after damage
LOOK_BACK = 9 << 10  # bytes of a stream that are searched again with the next bytes: an ARC line and its newlines
MAX_ENCODINGS = 5  # of one body
MAX_MEMBERS = 50  # gzip members of one body
PLACE = 40  # bits of an offset that are the member's position in the file

GZIP = b"\x1f\x8b\x08"
_VERSION = re.compile(rb"WARC/(0\.(1[78]|9)|1\.[01])\r?\n")
_LENGTH = re.compile(rb"\s*(\d{1,18})\s*$")
_NEXT_PLAIN = re.compile(  # the newline before it makes the search fast
    rb"\n(?:WARC/[01]\.\d+\r?\n|[a-z]{2,8}:[^\r\n]{1,8192} [0-9.]{7,15} \d{14} [^\r\n]{0,200}\d\n)"
)
_ARC_LINE = re.compile(rb"([^\r\n]{1,8192}?) ([0-9A-Fa-f.:]{1,45}|-) (\d{8,17}) ([^\r\n]{0,200}?) ?(\d{1,18})\r?\n")
_TELLING = re.compile(rb"\n[ \t]*(warc-type|warc-target-uri|content-length)[ \t]*:([^\n]*)", re.IGNORECASE)

_Errors: tuple[type[Exception], ...] = (zlib.error, _zlib.error)


@dataclasses.dataclass(slots=True)
class Record:
    """One record. `kind` is the WARC-Type in lower case; records of ARC files are responses."""

    offset: int
    kind: str
    url: str
    head: bytes  # the header's lines, each after a newline
    content: bytes  # the block after the header

    @property
    def headers(self) -> dict[str, str]:
        """The fields of the header, keys in lower case, the first of repeated ones. Read anew each time."""
        fields: dict[str, str] = {}
        for line in self.head.split(b"\n"):
            name, colon, value = line.partition(b":")
            if colon:
                fields.setdefault(name.strip().lower().decode("latin-1"), value.strip().decode("utf-8", "replace"))
        return fields


class Response(NamedTuple):
    """An archived HTTP response, its transfer and content encodings undone."""

    status: int
    headers: dict[str, str]  # keys in lower case; of repeated headers all values, comma separated
    body: bytes
    fields: tuple[tuple[str, str], ...] = ()  # the headers one by one, keys in lower case


# ------------------------------------------------------------------------------------------------------- the bytes


class _Mapped:
    """A local file, mapped. The mapping stays valid after the file is closed."""

    raw = True  # positions are bytes of the file itself
    broken = ""  # the reason why the data end before the file ends
    cut = False  # True if the file ends inside a compressed frame

    def __init__(self, opened: Opened) -> None:
        self.size = opened.size or 0
        self.data: Any = mmap.mmap(opened.stream.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        self._inflater: _Inflater | None = None

    def member(self, position: int, limit: int) -> tuple[bytes, int] | None:
        """(content, end) of a sound gzip member of at most `limit` bytes; None where zlib must read it."""
        if self._inflater is None:
            library = libdeflate.functions()
            if library is None:
                return None
            self._inflater = _Inflater(library, self.data, min(limit, FAST_MEMBER))
        return self._inflater.member(position)

    def at(self, position: int, count: int) -> bytes:
        return self.data[position : position + count]

    def find(self, pattern: bytes, position: int) -> int:
        return self.data.find(pattern, position)

    def search(self, position: int) -> int:
        """The next position that may begin a record or a gzip member; -1 if there is none."""
        return _first_place(self.data, position)

    def reaches(self, position: int) -> bool:
        """True if the data are known to reach `position`. No bytes are read or released."""
        return position <= self.size

    def release(self, position: int) -> None:
        """Does nothing: the system reclaims mapped pages."""

    def skip_to(self, position: int) -> None:
        """Does nothing: every position of a mapped file can be read."""

    def window(self, position: int, ahead: int) -> tuple[Any, int, bool]:
        """See `KernelReader.window`."""
        return self.data, 0, True

    def resume(self) -> bool:
        """Goes on after damage, at the same position; False if the data do not go on."""
        return False


class _Inflater:
    """libdeflate on a mapped file. It inflates a member in one call, in half of zlib's time."""

    def __init__(self, library: libdeflate.Functions, data: mmap.mmap, limit: int) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._gunzip = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, size, pointer, size, pointer, pointer)(
            library.gunzip
        )
        self._decompressor = libdeflate.Decompressor(library)
        self._data, self._out = np.frombuffer(data, np.uint8), np.empty(limit, np.uint8)
        self._used, self._written = size(), size()
        self._from, self._to = self._data.ctypes.data, self._out.ctypes.data
        self._sizes = ctypes.addressof(self._used), ctypes.addressof(self._written)

    def member(self, start: int) -> tuple[bytes, int] | None:
        """(content, end) of the member at `start`; None if it is damaged, cut or larger than the limit."""
        source, left, room = self._from + start, len(self._data) - start, len(self._out)
        status = self._gunzip(self._decompressor.address, source, left, self._to, room, *self._sizes)
        if status != libdeflate.OK:
            return None
        return ctypes.string_at(self._to, self._written.value), start + self._used.value


class _Streamed:
    """A stream. Only the bytes that may still be needed are held in memory.

    Args:
        file: the stream to read.
        start: the position of its next byte in the whole file.
        size: bytes of the whole file, where known.
    """

    def __init__(self, file: Any, *, start: int = 0, size: int | None = None) -> None:
        self._file, self._held, self._start, self._ended = file, bytearray(), start, False
        self._size = 0 if size is None else size
        self.raw, self.broken, self.cut = True, "", False

    def member(self, position: int, limit: int) -> tuple[bytes, int] | None:
        """Returns None: libdeflate needs the whole member at once."""
        return None

    def _fill(self, end: int) -> None:
        while not self._ended and self._start + len(self._held) < end:
            data = self._file.read(max(CHUNK, end - self._start - len(self._held)))
            self._held += data
            self._ended = not data

    def at(self, position: int, count: int) -> bytes:
        self._fill(position + count)
        first = position - self._start
        return bytes(self._held[first : first + count])

    def find(self, pattern: bytes, position: int) -> int:
        while True:
            found = self._held.find(pattern, position - self._start)
            if found >= 0 or self._ended:
                return -1 if found < 0 else self._start + found
            position = max(position, self._start + len(self._held) - len(pattern) + 1)
            self.release(position - 1)
            self._fill(self._start + len(self._held) + CHUNK)

    def search(self, position: int) -> int:
        while True:
            found = _first_place(self._held, position - self._start)
            if found >= 0 or self._ended:
                return -1 if found < 0 else self._start + found
            position = max(position, self._start + len(self._held) - LOOK_BACK)
            self.release(position - 1)
            self._fill(self._start + len(self._held) + CHUNK)

    def reaches(self, position: int) -> bool:
        return position <= max(self._size, self._start + len(self._held))

    def release(self, position: int) -> None:
        """Releases the bytes before `position`."""
        if position - self._start > CHUNK:
            del self._held[: position - self._start]
            self._start = position

    @property
    def size(self) -> int:
        """Bytes of the whole file; without a known size, those that were read so far."""
        return self._size or self._start + len(self._held)

    def window(self, position: int, ahead: int) -> tuple[Any, int, bool]:
        """See `KernelReader.window`."""
        self.release(position)
        self._fill(position + ahead)
        return self._held, self._start, self._ended

    def skip_to(self, position: int) -> None:
        """Reads on to `position` without holding the bytes before it."""
        while self.at(self._start + len(self._held), 1) or self.resume():
            if self._start + len(self._held) > position:
                break
            self.release(self._start + len(self._held) - 1)

    def resume(self) -> bool:
        return False


class _Unpacked(_Streamed):
    """The content of a zstd or lz4 file. Positions count in the content. It ends at damage, and `resume` goes on."""

    def __init__(self, content: frames.Frames) -> None:
        super().__init__(content)
        self._content, self.raw = content, False

    def _fill(self, end: int) -> None:
        super()._fill(end)
        if self._ended:
            self.broken, self.cut = self._content.broken, self._content.cut

    def resume(self) -> bool:
        if self._content.resume():
            self._ended, self.broken = False, ""
        return not self._ended


def _is_packed(data: _Mapped | _Streamed) -> frames.Format | None:
    """The compression of an archive: zstd, lz4, or None if a record or a gzip member comes before any frame."""
    head = data.at(0, CHUNK)
    if _begins(head) or head.startswith(GZIP) or not any(known.magic in head for known in frames.FORMATS):
        return None
    place = _first_place(head, 0)
    known = frames.format_of(data.at(0, frames.PROBE))
    return known if known and (place < 0 or head.find(known.magic) < place) else None


def _is_one_record(data: bytes) -> bool:
    return _NEXT_PLAIN.search(data) is None


def _first_place(data: Any, position: int) -> int:
    """The index in `data` where the next gzip member or uncompressed record may begin; -1 if there is none."""
    packed = data.find(GZIP, position)
    found = _NEXT_PLAIN.search(data, max(0, position - 1), packed if packed >= 0 else len(data)) if data else None
    return packed if found is None else found.start() + 1


@contextlib.contextmanager
def _opened(source: str | BinaryIO, *, ahead: bool = False) -> Iterator[_Mapped | _Streamed]:
    """The bytes of a path, a URL or an open file. With `ahead`, a remote one is read while the parser works.

    Raises:
        InputError: a remote input is empty, or its transfer breaks.
    """
    with contextlib.ExitStack() as stack:
        opened = open_input(source) if isinstance(source, str) else of_file(source)
        if isinstance(source, str):
            if ahead and not opened.local:
                stream: Any = ReadAhead(opened.stream)  # its thread closes the stream, which may wait for a server
                opened = dataclasses.replace(opened, stream=stream)
            stack.enter_context(opened)
        data = _bytes_of(opened)
        if isinstance(source, str) and is_remote(source) and not data.at(0, 1):
            raise UnreadableInputError(f"{opened.name!r} is empty: the server sent 0 bytes")
        known = _is_packed(data)
        if known is None:
            yield data
        else:
            yield _Unpacked(frames.Frames(data, known, _is_one_record))


def _bytes_of(opened: Opened) -> _Mapped | _Streamed:
    return _Mapped(opened) if opened.local else _Streamed(opened.stream, size=opened.size)


# ------------------------------------------------------------------------------------------- any place of an archive

_distant_lock = threading.Lock()


@contextlib.contextmanager
def _opened_at(path: str, place: int) -> Iterator[_Mapped | _Streamed]:
    """The bytes of an archive from `place` on. Bytes before `place` may be missing."""
    if not is_remote(path):
        with _opened(path) as data:
            data.skip_to(place)
            yield data
        return
    with _distant_lock:  # all threads share one stream
        opened = _distant(path, remote.settings())
        if opened.local:
            data = _bytes_of(opened)
            known = _is_packed(data)
            data = _Unpacked(frames.Frames(data, known, _is_one_record)) if known else data
            data.skip_to(place)
            yield data
        else:
            opened.stream.seek(place)
            try:
                yield _Streamed(opened.stream, start=place, size=opened.size)
            finally:
                opened.stream.seek(0)  # closes the connection: an idle one would be closed by the server


_streams: dict[tuple[str, RemoteSettings], Opened] = {}  # remote archives that are open, the oldest first


def _distant(path: str, how: RemoteSettings) -> Opened:
    """A remote archive that stays open for its images. A zstd or lz4 file is copied: each image needs all before it.

    The caller holds the lock.
    """
    if (path, how) not in _streams:
        while len(_streams) >= MOST_STREAMS:
            _streams.pop(next(iter(_streams))).stream.close()
        opened = open_seekable(path)
        if not opened.local and _is_packed(_bytes_of(opened)) is not None:
            opened.stream.close()
            opened = open_copy(path)
        _streams[path, how] = opened
    return _streams[path, how]


def close_distant() -> None:
    """Closes the remote archives that are open for their images. They are opened again when they are needed."""
    with _distant_lock:
        while _streams:
            _streams.popitem()[1].stream.close()


# ------------------------------------------------------------------------------------------------------ the records


def read_records(
    source: str | BinaryIO,
    *,
    ledger: Ledger,
    kinds: frozenset[str] = frozenset({"response"}),
    max_record: int = MAX_RECORD,
    expected_bytes: int | None = None,
) -> Iterator[Record]:
    """The records of the wanted kinds, in the order of the file.

    Args:
        source: path, URL or open binary file.
        ledger: counts records in, and lost ones with a reason.
        kinds: WARC types in lower case.
        max_record: bytes of a block; a longer record is lost as `too_large`.
        expected_bytes: size of the file, if a listing gave it. A shorter file is noted as cut.
    """
    with _opened(source, ahead=True) as data:
        _note_day(data, ledger)
        reader = _Reader(data, ledger, max_record)
        for record in reader.records():
            if record.kind in kinds:
                ledger.records_in += 1
                yield record
        if expected_bytes is not None and data.raw and reader.position < expected_bytes:
            reader.cut()


def _note_day(data: _Mapped | _Streamed, ledger: Ledger) -> None:
    """Counts the day on which an archive was crawled, if it is told."""
    day = first_day(data.at(0, HEAD))
    if day:
        ledger.crawled[day] += 1


def understands(path: str) -> bool:
    """True if an archive begins with the header of a record, or holds a whole record anywhere.

    Raises:
        InputError, OSError: the archive cannot be opened.
    """
    with _opened(path) as data:
        reader = _Reader(data, Ledger(), MAX_RECORD)
        return reader.begins_at(0) or next(reader.records(), None) is not None


def read_at(path: str, offset: int, *, max_record: int = MAX_RECORD) -> Record | None:
    """The record that `read_records` found at `offset`, or None if it is no longer there.

    Raises:
        InputError: a remote archive cannot be read now.
    """
    for left in reversed(range(TRIES)):
        try:
            return _read_at(path, offset, max_record)
        except TransferError as error:
            close_distant()  # a stream that broke is not used again
            if not (error.changed and left):  # servers behind one name may give one file different ETags
                raise
    return None


def _read_at(path: str, offset: int, max_record: int) -> Record | None:
    place = offset & ((1 << PLACE) - 1)
    with _opened_at(path, place) as data:
        reader = _Reader(data, Ledger(), max_record)
        reader.position = place
        for record in reader.records():
            if record.offset == offset:
                return record
            if record.offset & ((1 << PLACE) - 1) != place:
                break
    return None


class _Reader:
    """Reads a file record by record. `position` is the byte after the last one read."""

    def __init__(self, data: _Mapped | _Streamed, ledger: Ledger, max_record: int) -> None:
        self._data, self._ledger, self._max = data, ledger, max_record
        self.position = 0
        self._was_cut = False
        self.lost = 0

    def lose(self, reason: str) -> None:
        self.lost += 1
        self._ledger.records_in += 1
        self._ledger.lose(reason)

    def cut(self) -> None:
        """Notes, once, that the file ends too early."""
        if not self._was_cut:
            self._was_cut = True
            self._ledger.notes["cut_file"] += 1

    def records(self) -> Iterator[Record]:
        while True:
            torn = False  # True if the data end inside a record; that record is counted already
            while self._data.at(self.position, 1):
                lost = self.lost
                yield from self.step()
                torn = self.lost > lost
            if not self._data.broken:
                break
            if not torn:
                self.lose(self._data.broken)
            if not self._data.resume():
                self.cut()
                break
        if self._data.cut:
            self.cut()

    def step(self) -> Iterator[Record]:
        """The records of the member at `position`, or the uncompressed record there. `position` moves past it."""
        self._data.release(self.position)
        head = self._data.at(self.position, 3)
        if head == GZIP:
            yield from self._member()
        elif head[:1] in b"\r\n":
            self.position += 1
        elif len(head) < 3 and GZIP.startswith(head):
            self._end_in("cut_record")
            self.position += len(head)
        else:
            yield from self._uncompressed()

    def _end_in(self, reason: str) -> None:
        """Counts a record in which the file ends or is damaged."""
        self.lose(self._data.broken or reason)
        if not self._data.broken:
            self.cut()

    # ---- gzip

    def _member(self) -> Iterator[Record]:
        """The records of the gzip member at `position`. `position` moves past it."""
        start = self.position
        inflated, state = self._inflate(start)
        if state == "long":
            yield from self._long_member(start)
            return
        found = list(_records_in(inflated, start, self._max))
        good = [item for item in found if isinstance(item, Record)]
        if state == "whole":
            for item in found:
                if isinstance(item, Record):
                    yield item
                else:
                    self.lose(item)
            return
        following = self._next_record(start + 1)
        state = self._believed(state, following)
        if len(good) > 1 or (good and state == "cut"):  # records that end before the damage are kept
            yield from good
        self._lose_rest(state, torn=not good or len(good) < len(found))
        self.position = following

    def _believed(self, state: str, following: int) -> str:
        """The state, corrected: a member with a damaged length is "bad", not "cut", if another member follows it."""
        return "bad" if state == "cut" and self._data.at(following, 1) else state

    def _lose_rest(self, state: str, *, torn: bool) -> None:
        """Counts the loss in a member that did not inflate to its end; `torn`: the file ended inside a record."""
        if state != "cut":
            self.lose("bad_gzip" if state == "bad" else "too_large")
        elif torn or self._data.broken:
            self._end_in("cut_record")
        else:
            self.cut()

    def _inflate(self, start: int) -> tuple[bytes, str]:
        """(inflated bytes, state) of a member: whole, cut (the file ends), bad, or long (longer than a record)."""
        if found := self._data.member(start, self._max + MAX_HEADER):
            content, self.position = found
            return content, "whole"
        inflater, position = _zlib.decompressobj(31), start
        parts: list[bytes] = []
        total = 0
        size = 4096
        while not inflater.eof:
            data = inflater.unconsumed_tail
            if not data:
                data = self._data.at(position, size)
                position += len(data)
                size = CHUNK
            if not data:
                return b"".join(parts), "cut"
            try:
                part = inflater.decompress(data, self._max + MAX_HEADER - total + 1)
            except _Errors:
                return b"".join(parts), "bad"
            parts.append(part)
            total += len(part)
            if total > self._max + MAX_HEADER:
                return b"".join(parts), "long"
        self.position = position - len(inflater.unused_data)
        return b"".join(parts), "whole"

    def _long_member(self, start: int) -> Iterator[Record]:
        """Reads a member of many records, or of one that is too large. It yields records while it inflates."""
        stream = _Inflating(self._data, start)
        inner = _Reader(_Streamed(stream), self._ledger, self._max)
        place = 0
        for record in inner.records():
            record.offset = start + (place << PLACE)
            place += 1
            yield record
        self.position = stream.position
        if stream.state != "whole":
            following = self._next_record(max(start + 1, stream.position - KEPT))
            if stream.state != "endless" or not inner.lost:  # else the endless record is counted already
                self._lose_rest(self._believed(stream.state, following), torn=False)
            self.position = following

    def _next_record(self, position: int) -> int:
        """The next member that inflates to the header of a record; the end of the file if there is none."""
        while True:
            position = self._data.find(GZIP, position)
            if position < 0:
                return self._end()
            if self._begins_at(position):
                return position
            position += 1

    def begins_at(self, position: int) -> bool:
        """True if a record begins at `position`, or in the gzip member there."""
        head = self._data.at(position, 4096)
        return self._begins_at(position) if head.startswith(GZIP) else _begins(head)

    def _begins_at(self, position: int) -> bool:
        """True if the gzip member at `position` inflates to the header of a record."""
        with contextlib.suppress(*_Errors):
            return _begins(_zlib.decompressobj(31).decompress(self._data.at(position, 4096), 9000))
        return False

    def _end(self) -> int:
        position = self.position
        while True:
            more = len(self._data.at(position, CHUNK))
            if not more:
                return position
            position += more
            self._data.release(position)

    # ---- uncompressed

    def _uncompressed(self) -> Iterator[Record]:
        """The record at `position`. If there is none, `position` moves to the next record."""
        start = self.position
        head = self._data.at(start, MAX_HEADER)
        parsed = _parse_header(head, start)
        if isinstance(parsed, str):
            following = self._resync(start + 1)
            if _is_cut_header(head) and not self._data.at(following, 1):
                self._end_in("cut_record")
            else:
                self.lose(parsed)
            self.position = following
            return
        record, header, length = parsed
        if length > self._max:
            self.lose("too_large")
            end = start + header + length
            if self._data.reaches(end):
                self._data.skip_to(end)
                self.position = end
            else:
                self.position = self._resync(start + header)
            return
        content = self._data.at(start + header, length)
        after = self._data.at(start + header + length, 8)
        if len(content) < length or not _ends_well(after):
            following = self._resync(start + header)
            at_end = not self._data.at(following, 1)
            if at_end and (len(content) < length or self._data.broken):
                self._end_in("cut_record")
            else:
                self.lose("wrong_length")
            self.position = following
            return
        record.content = content
        self.position = start + header + length
        if record.kind != "filedesc":
            yield record

    def _resync(self, position: int) -> int:
        """The next position in an uncompressed file (or in junk between members) where a record begins."""
        while True:
            position = self._data.search(position)
            if position < 0:
                return self._end()
            if self._data.at(position, 3) != GZIP or self._begins_at(position):
                return position
            position += 1


class _Inflating:
    """A gzip member as a stream. It never raises: the stream ends, and `state` holds the reason."""

    def __init__(self, data: _Mapped | _Streamed, start: int) -> None:
        self._data, self.position, self._inflater = data, start, _zlib.decompressobj(31)
        self._given, self.state = 0, "open"

    def read(self, count: int) -> bytes:
        while self.state == "open":
            data = self._inflater.unconsumed_tail
            if not data:
                data = self._data.at(self.position, CHUNK)
                self.position += len(data)
                self._data.release(self.position - KEPT)
            if not data:
                self.state = "cut"
                break
            try:
                part = self._inflater.decompress(data, CHUNK)
            except _Errors:
                self.state = "bad"
                break
            if self._inflater.eof:
                self.state = "whole"
                self.position -= len(self._inflater.unused_data)
            self._given += len(part)
            if self._given > MAX_SKIPPED:
                self.state = "endless"
            if part:
                return part
        return b""


def _begins(data: bytes) -> bool:
    """True if the bytes begin a record."""
    return data.startswith(b"WARC/") or _ARC_LINE.match(data) is not None


def _ends_well(after: bytes) -> bool:
    """True if `after` may follow a record: two blank lines, or without them the next record, a member or nothing."""
    if after.startswith(b"\r\n\r\n"):
        return True
    rest = after.lstrip(b"\r\n")
    if not rest or rest.startswith((GZIP[: len(rest)], b"WARC/"[: len(rest)])):
        return True
    return re.match(rb"[a-z]{2,8}:|filedesc", rest) is not None


class KernelReader(_Reader):
    """Reads single records of an archive, for a kernel that reads the others.

    Usage: let the kernel read `window()` from `position` on, set `position`, exhaust `step()` where the kernel stopped.
    """

    def __init__(self, data: _Mapped | _Streamed, ledger: Ledger) -> None:
        super().__init__(data, ledger, MAX_RECORD)

    @property
    def size(self) -> int:
        """Bytes of the file; of one without a known size, those that were read."""
        return self._data.size

    def window(self, ahead: int) -> tuple[Any, int, bool]:
        """(bytes, place of their first one, True if no others follow them).

        The bytes of a stream hold at least `ahead` bytes behind `position`, or all that follow it. They are valid until
        the reader is used again. A local file has one window.
        """
        return self._data.window(self.position, ahead)

    def complete(self, expected_bytes: int | None) -> None:
        """Notes a file that ends before the bytes that a listing gave."""
        if expected_bytes is not None and self._data.raw and self.position < expected_bytes:
            self.cut()


@contextlib.contextmanager
def reading(source: str | BinaryIO, ledger: Ledger) -> Iterator[KernelReader]:
    """An archive to be read from its first byte to its last. A remote one is read ahead.

    Raises:
        InputError: a remote input is empty, or its transfer breaks.
    """
    with _opened(source, ahead=True) as data:
        _note_day(data, ledger)
        yield KernelReader(data, ledger)


def _records_in(data: bytes, start: int, max_record: int) -> Iterator[Record | str]:
    """The records of an inflated member. A bad record yields its reason instead."""
    position, place = 0, 0
    while True:
        while data[position : position + 1] in (b"\r", b"\n"):
            position += 1
        if position >= len(data):
            return
        parsed = _parse_header(data[position : position + MAX_HEADER], start + (place << PLACE))
        if isinstance(parsed, str):
            yield parsed
            return
        record, header, length = parsed
        end = position + header + length
        if length > max_record:
            yield "too_large"
        elif end > len(data) or not _ends_well(data[end : end + 8]):
            yield "wrong_length"
            following = _NEXT_PLAIN.search(data, position + header)
            if following is None:
                return
            end = following.start()
        elif record.kind != "filedesc":
            record.content = data[position + header : end]
            yield record
        if end + 4 == len(data) and data.endswith(b"\r\n\r\n"):  # the usual end of a member
            return
        position, place = end, place + 1


def _parse_header(data: bytes, offset: int) -> tuple[Record, int, int] | str:
    """(record without content, bytes of the header, bytes of the block), or the reason why it is no record."""
    if not data.startswith(b"WARC/"):
        return _parse_arc_line(data, offset)
    version = _VERSION.match(data)
    if version is None:
        return "bad_version"
    end, block = _blank_line(data, version.end() - 2)
    if end < 0:
        return "bad_header"
    head = data[version.end() - 1 : end]
    fields: dict[bytes, bytes] = {}
    for name, value in _TELLING.findall(head):
        fields.setdefault(name.lower(), value.strip())
    length = _LENGTH.match(fields.get(b"content-length", b""))
    if length is None:
        return "bad_length"
    if b"warc-type" not in fields:
        return "bad_header"
    url = fields.get(b"warc-target-uri", b"").decode("utf-8", "replace").strip("<>")
    kind = fields.get(b"warc-type", b"").decode("utf-8", "replace").lower()
    return Record(offset, kind, url, head, b""), block, int(length[1])


def _is_cut_header(data: bytes) -> bool:
    """True if the data are the beginning of a WARC header, without its end."""
    return data[:5] == b"WARC/"[: len(data)] and len(data) < MAX_HEADER and _blank_line(data, 0)[0] < 0


def _blank_line(data: bytes, position: int) -> tuple[int, int]:
    r"""(begin, end) of the first \r?\n\r?\n from `position` on, or (-1, -1). This is much faster than a regex."""
    first = data.find(b"\n\r\n", position)
    bare = data.find(b"\n\n", position, first + 1 if first >= 0 else len(data))
    at, end = (bare, bare + 2) if bare >= 0 else (first, first + 3)
    if at < 0:
        return -1, -1
    return (at - 1 if at > position and data[at - 1] == 13 else at), end


def _parse_arc_line(data: bytes, offset: int) -> tuple[Record, int, int] | str:
    """As `_parse_header` for ARC: one line with URL, address, date, type and length stands before the block."""
    line = _ARC_LINE.match(data)
    if line is None:
        return "bad_header"
    url = line[1].decode("utf-8", "replace")
    kind = "filedesc" if url.startswith("filedesc:") else "response"
    head = b"\ncontent-type:" + line[4] + b"\ndate:" + line[3]
    return Record(offset, kind, url, head, b""), line.end(), int(line[5])


# ----------------------------------------------------------------------------------------------------- HTTP inside


def http_response(record: Record, *, max_body: int = MAX_RECORD) -> Response | None:
    """The HTTP response in a record's block; None if the block is no response. Never raises.

    Chunked transfer and gzip, deflate, Brotli and zstd encodings are undone. If the archiver cut the body (Common Crawl
    cuts at 1 to 5 MiB), the part that decodes is returned. The body has at most `max_body` bytes.
    """
    content = record.content
    if not content.startswith(b"HTTP/"):
        if record.kind == "resource" or (record.kind == "response" and "date" in record.headers):
            return Response(200, {"content-type": record.headers.get("content-type", "")}, content[:max_body])
        return None
    end = re.compile(rb"\r?\n\r?\n").search(content, 0, MAX_HEADER)
    head = content[: end.start()] if end else content[:MAX_HEADER]
    body = content[end.end() :] if end else b""
    lines = head.split(b"\n")
    status = re.match(rb"HTTP/\S+\s+(\d{3})", lines[0])
    if status is None:
        return None
    found: dict[str, list[str]] = {}
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            key, text = name.strip().lower().decode("latin-1"), value.strip().decode("latin-1")
            found.setdefault(key, []).append(text)
            fields.append((key, text))
    headers = {key: ", ".join(values) for key, values in found.items()}
    transfer = headers.get("transfer-encoding", "").lower()
    if "chunked" in transfer:
        body = unchunk(body)
    encodings = f"{headers.get('content-encoding', '')},{transfer}"
    return Response(int(status[1]), headers, decode_body(body, encodings, max_body), tuple(fields))


def unchunk(body: bytes) -> bytes:
    """The content of a chunked body, up to the first bad chunk. A body without any chunk is returned unchanged."""
    parts: list[bytes] = []
    position = 0
    while True:
        line = re.compile(rb"([0-9A-Fa-f]{1,8})[^\r\n]{0,200}\r?\n").match(body, position)
        if line is None:
            return b"".join(parts) if parts else body
        size = int(line[1], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[line.end() : line.end() + size])
        position = line.end() + size
        while body[position : position + 1] in (b"\r", b"\n"):
            position += 1


def decode_body(body: bytes, encoding: str, max_body: int) -> bytes:
    """A body with its encodings undone, the outermost first. A body that does not decode is returned unchanged.

    A body with more than MAX_ENCODINGS encodings is returned unchanged, too.
    """
    names = [part.strip().lower() for part in encoding.split(",", 4 * MAX_ENCODINGS) if part.strip()]
    limit = max(max_body, MAX_RECORD)  # bytes of the body between two encodings
    for name in reversed(names if len(names) <= MAX_ENCODINGS else []):
        if name in ("gzip", "x-gzip", "deflate"):
            body = _inflate_body(body, name, limit)
        elif name == "br":
            body = _unbrotli(body, limit)
        elif name == "zstd":
            body = _unzstd(body, limit)
    return body[:max_body]


def _inflate_body(body: bytes, name: str, max_body: int) -> bytes:
    for bits in (31,) if "gzip" in name else (15, -15):
        inflater = zlib.decompressobj(bits)
        try:
            out = inflater.decompress(body, max_body)
        except zlib.error:
            continue
        for _ in range(MAX_MEMBERS):  # a gzip body may have several members
            rest, inflater = inflater.unused_data, zlib.decompressobj(bits)
            if not rest.startswith(GZIP) or len(out) >= max_body:
                break
            with contextlib.suppress(zlib.error):
                out += inflater.decompress(rest, max_body)
        return out
    return body


def _unzstd(body: bytes, max_body: int) -> bytes:
    content, parts, size = frames.Frames(frames.Whole(body), frames.ZSTD), [], 0
    while size < max_body and (part := content.read()):
        parts.append(part)
        size += len(part)
    return b"".join(parts) or body


def _unbrotli(body: bytes, max_body: int) -> bytes:
    import brotli

    parts: list[bytes] = []
    decoder, size = brotli.Decompressor(), 0
    try:
        while size < max_body and not decoder.is_finished():
            part = decoder.process(b"" if parts else body, output_buffer_limit=CHUNK)  # a few bytes may hold gigabytes
            if parts and not part:
                break
            parts.append(part)
            size += len(part)
    except brotli.error:
        pass
    return b"".join(parts) or body
