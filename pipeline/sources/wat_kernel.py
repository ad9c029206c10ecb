"""Reads a whole WAT file in compiled code: gzip members in, rows out. It makes no Python object for a record or a link.

`_run` inflates member after member with libdeflate, walks the JSON once (wat_record_kernel.py), and writes URLs and
alts into Arrow's layout. It stops at an unusual record (escaped keys, odd types, damage, several records in a member).
Then `wat.py` reads this record, and `_run` goes on after it. `wat.fit` decides unusual URLs one by one. So rows and
counts are those of `wat.py`, in the same order, for any bytes. Unused parts of the JSON are checked, too: broken JSON
stops `_run`.

Every access is by address. Three rules make that safe: PADDING bytes follow the inflated data, the capacity is checked
before each write, and the counts are rolled back to the last whole page. tests/sources/test_wat_kernel.py runs mutated
records between guard pages.
"""

from __future__ import annotations

import gzip
import mmap
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.jit import njit
from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES
from pipeline.sources import char_kernel as char
from pipeline.sources import libdeflate, links, wat
from pipeline.sources.archive import MAX_HEADER, MAX_RECORD
from pipeline.sources.json_kernel import UNSURE, ascii, bytes_of, copy, decode, same_folded, trim, valid, word_of
from pipeline.sources.simd_kernel import PADDING, address_of, call_gunzip, load_byte, load_word, store_byte
from pipeline.sources.url_kernel import ABSOLUTE, FOLDER, LEAVE, base_of, bytes_before, classify, is_data
from pipeline.sources.wat_record_kernel import (
    ALT_SPAN,
    FIELDS,
    LINK_PLACES,
    LINKS,
    MAX_SIGNALS,
    NO_ALT,
    NO_LINKS,
    NO_ROOM,
    NO_URL,
    PAGE,
    SIGNAL_KIND,
    SIGNAL_PLACES,
    SIGNAL_SPAN,
    SIGNALS,
    STRINGS,
    URL_SPAN,
    Found,
    span_at,
    walk,
)

END, FULL, ODD = 0, 1, 2  # why `_run` stopped

# Places in `counts`: the numbers written since the last flush. An odd record rolls all of them back.
_ROWS, _PAGES, _SIGNS, _URL_BYTES, _TEXT_BYTES, _PAGE_BYTES, _SIGN_BYTES = range(7)
_IMAGES, _LOST_URL, _LOST_ALT, _EMPTY, _DATA, _RECORDS, _WITHOUT = range(7, 14)
_COUNTS = 14

_MAX_URL, _MAX_TEXT = links.MAX_URL, wat.MAX_TEXT

# The frame of a record.
_OTHER_RECORD, _METADATA_RECORD = 0, 1
_TYPE, _LENGTH, _METADATA = map(bytes_of, "warc-type content-length metadata".split())
_VERSION_0, _VERSION_1 = word_of("WARC/1.0"), word_of("WARC/1.1")
_VERSION_SIZE = 8
_SHORTEST = 16  # bytes of a record that may be one
_LINE_END, _LINES_BEHIND = 2, 4  # bytes of a line end, and of the two after a block
_TWO_LINES, _FOUR_BYTES = word_of("\r\n\r\n"), np.uint64(0xFFFFFFFF)
_MAX_DIGITS = 18  # of a number that fits


class _Source(NamedTuple):
    """A mapped file, and the decompressor that inflates it, as addresses."""

    address: int
    size: int
    gunzip: int
    decompressor: int


class _Out(NamedTuple):
    """The output buffers: string bytes and their ends in Arrow's layout, and the numbers of each row."""

    url_ends: np.ndarray  # int32, like all ends; one more than the number of strings
    urls: np.ndarray
    text_ends: np.ndarray
    texts: np.ndarray
    row_page: np.ndarray  # int32
    row_odd: np.ndarray  # uint8: 1 if the URL is as written and `wat.fit` decides it
    page_ends: np.ndarray  # STRINGS strings a page: url, base, license
    pages: np.ndarray
    page_offset: np.ndarray  # int64
    sign_ends: np.ndarray
    signs: np.ndarray
    sign_page: np.ndarray  # int32
    sign_kind: np.ndarray  # uint8
    scratch: np.ndarray  # one URL, decoded
    counts: np.ndarray  # int64


class _Memory(NamedTuple):
    """The memory of one call of `_run`."""

    buffer: np.ndarray  # uint8: one member, inflated
    sizes: np.ndarray  # int64: the bytes of a member, packed and inflated
    saved: np.ndarray  # int64: the counts before a record
    found: Found
    out: _Out


class _Link(NamedTuple):
    """The outcome of a link. Its URL is `before` bytes of the base, `slash` slashes, and the text from start to end."""

    outcome: int
    before: int
    slash: int  # 1 for a slash
    start: int
    end: int


# Outcomes of a link. The other outcomes are drops: their places in `counts`.
_WHOLE_URL, _ODD_URL, _NO_TEXT = -1, -2, -3


# ---- rows


@njit
def _write_page(offset, found, out):
    """Writes the strings of a page: PAGE, NO_ROOM, or UNSURE."""
    counts = out.counts
    page, size = counts[_PAGES], counts[_PAGE_BYTES]
    if page >= out.page_offset.shape[0]:
        return NO_ROOM
    for i in range(STRINGS):
        text = span_at(found.fields, 3 * i)
        if size + text.end - text.start > out.pages.shape[0] - PADDING:
            return NO_ROOM
        if text.end > text.start:
            written = decode(text.start, text.end, text.escaped, address_of(out.pages) + size)
            if written < 0:
                return UNSURE
            size += written
        out.page_ends[page * STRINGS + i + 1] = size
    out.page_offset[page] = offset
    counts[_PAGES], counts[_PAGE_BYTES] = page + 1, size
    return PAGE


@njit
def _write_signals(found, out):
    """Writes the signals of the page that was written last: PAGE, NO_ROOM, or UNSURE."""
    counts = out.counts
    page = counts[_PAGES] - 1
    for i in range(found.fields[SIGNALS]):
        signal, sign, size = found.signals[i], counts[_SIGNS], counts[_SIGN_BYTES]
        text = span_at(signal, SIGNAL_SPAN)
        if size + text.end - text.start > out.signs.shape[0] - PADDING or sign >= out.sign_page.shape[0]:
            return NO_ROOM
        written = decode(text.start, text.end, text.escaped, address_of(out.signs) + size)
        if written < 0:
            return UNSURE
        out.sign_page[sign], out.sign_kind[sign] = page, signal[SIGNAL_KIND]
        out.sign_ends[sign + 1] = size + written
        counts[_SIGNS], counts[_SIGN_BYTES] = sign + 1, size + written
    return PAGE


@njit
def _base_of_page(out):
    """The base URL of the page that was written last: its <base>, or its own URL."""
    first = (out.counts[_PAGES] - 1) * STRINGS
    start, end, end_of_base = out.page_ends[first], out.page_ends[first + 1], out.page_ends[first + 2]
    if end_of_base > end:
        start, end = end, end_of_base
    return base_of(address_of(out.pages) + start, end - start)


@njit
def _write_rows(found, out):
    """Writes the links of the page that was written last: PAGE, NO_ROOM, or UNSURE."""
    counts, links = out.counts, found.links
    base = _base_of_page(out)
    row, url_at, text_at = counts[_ROWS], counts[_URL_BYTES], counts[_TEXT_BYTES]
    for i in range(found.fields[LINKS]):
        link, alt = _resolved(span_at(links[i], URL_SPAN), base, out.scratch), span_at(links[i], ALT_SPAN)
        if link.outcome == _NO_TEXT:
            return UNSURE
        if link.outcome >= 0:
            counts[link.outcome] += 1
            if not valid(alt.start, alt.end):
                return UNSURE
            continue
        if row >= out.row_page.shape[0]:
            return NO_ROOM
        if url_at + link.before + 1 + link.end - link.start > out.urls.shape[0] - PADDING:
            return NO_ROOM
        if text_at + alt.end - alt.start > out.texts.shape[0] - PADDING:
            return NO_ROOM
        url_at += _write_url(link, base, address_of(out.urls) + url_at)
        written = decode(alt.start, alt.end, alt.escaped, address_of(out.texts) + text_at)
        if written < 0 or written > _MAX_TEXT:
            return UNSURE
        text_at += written
        out.row_page[row], out.row_odd[row] = counts[_PAGES] - 1, link.outcome == _ODD_URL
        row += 1
        out.url_ends[row], out.text_ends[row] = url_at, text_at
    counts[_ROWS], counts[_URL_BYTES], counts[_TEXT_BYTES] = row, url_at, text_at
    return PAGE


@njit
def _decoded_url(url, scratch):
    """(start, end) of the URL without escapes, in the record or in `scratch`; (UNSURE, 0) if it is no valid text."""
    if not url.escaped:
        return (url.start, url.end) if valid(url.start, url.end) else (UNSURE, 0)
    if url.end - url.start > scratch.shape[0] - PADDING:
        return UNSURE, 0
    start = address_of(scratch)
    size = decode(url.start, url.end, url.escaped, start)
    return (start, start + size) if size >= 0 else (UNSURE, 0)


@njit
def _resolved(url, base, scratch):
    """The outcome of a link's URL, as a _Link."""
    start, end = _decoded_url(url, scratch)
    if start < 0:
        return _Link(_NO_TEXT, 0, 0, 0, 0)
    bare, bare_end = trim(start, end)
    if bare == bare_end:
        return _Link(_EMPTY, 0, 0, 0, 0)
    if is_data(bare, bare_end):
        return _Link(_DATA, 0, 0, 0, 0)
    kind = classify(start, end - start) if end - start <= _MAX_URL else LEAVE
    before = bytes_before(kind, base)
    outcome = _WHOLE_URL if before or kind == ABSOLUTE else _ODD_URL
    slash = 0
    if kind == FOLDER and before > 0 and base.folder == base.origin:
        slash = 1
    return _Link(outcome, before, slash, start, end)


@njit
def _write_url(link, base, to):
    """Writes the URL of a link; returns its length."""
    copy(to, base.address, link.before)
    size = link.before
    if link.slash:
        store_byte(to + size, char.SLASH)
        size += 1
    copy(to + size, link.start, link.end - link.start)
    return size + link.end - link.start


# ---- the file


@njit
def _ends_line(p):
    """True if there is a line end at p."""
    return load_byte(p) == char.CARRIAGE_RETURN and load_byte(p + 1) == char.LINE_FEED


@njit
def _header_line(p, limit):
    """(end of the line at p, place of its colon or 0); (UNSURE, 0) if it is continued or has an odd name."""
    start, colon = p, 0
    while p < limit and load_byte(p) != char.CARRIAGE_RETURN and load_byte(p) != char.LINE_FEED:
        if load_byte(p) == char.COLON and colon == 0:
            colon = p
        p += 1
    if load_byte(start) <= char.BLANK or (colon and load_byte(colon - 1) <= char.BLANK):
        return UNSURE, 0
    return p, colon


@njit
def _kind_of_record(start, end):
    """The kind of record that a WARC-Type names, or UNSURE."""
    start, end = trim(start, end)
    if not ascii(start, end):
        return UNSURE
    return _METADATA_RECORD if same_folded(start, end, _METADATA) else _OTHER_RECORD


@njit
def _frame(p, e):
    """Reads the frame of a record that fills its member: (its kind or UNSURE, start and end of its block)."""
    if e - p < _SHORTEST or (load_word(p) != _VERSION_0 and load_word(p) != _VERSION_1):
        return UNSURE, 0, 0
    limit = min(e, p + MAX_HEADER)
    length = kind = UNSURE
    p += _VERSION_SIZE
    while True:  # p is at the line end of the version or of a header line
        if p + 2 * _LINE_END > limit or not _ends_line(p):
            return UNSURE, 0, 0
        p += _LINE_END
        if _ends_line(p):
            p += _LINE_END
            break
        line = p
        p, colon = _header_line(line, limit)
        if p < 0:
            return UNSURE, 0, 0
        if colon and same_folded(line, colon, _LENGTH):
            length = _number(colon + 1, p) if length < 0 else UNSURE
            if length < 0:
                return UNSURE, 0, 0
        elif colon and same_folded(line, colon, _TYPE):
            kind = _kind_of_record(colon + 1, p) if kind < 0 else UNSURE
            if kind < 0:
                return UNSURE, 0, 0
    if length < 0 or kind < 0 or p + length + _LINES_BEHIND != e:
        return UNSURE, 0, 0
    if load_word(e - _LINES_BEHIND) & _FOUR_BYTES != _TWO_LINES:
        return UNSURE, 0, 0
    return kind, p, p + length


@njit
def _number(start, end):
    """A decimal number between blanks, or UNSURE."""
    start, end = trim(start, end)
    if start == end or end - start > _MAX_DIGITS:
        return UNSURE
    value = 0
    for at in range(start, end):
        byte = load_byte(at)
        if byte < char.ZERO or byte > char.NINE:
            return UNSURE
        value = value * 10 + byte - char.ZERO
    return value


@njit
def _record(offset, p, e, memory):
    """Reads and writes one metadata record: PAGE or NO_LINKS when done, NO_ROOM or UNSURE when not."""
    found, out = memory.found, memory.out
    result = walk(p, e, found)
    if result == NO_LINKS:
        out.counts[_WITHOUT] += 1
    elif result == PAGE:
        result = _write_page(offset, found, out)
        if result == PAGE:
            result = _write_signals(found, out)
        if result == PAGE:
            result = _write_rows(found, out)
        fields = found.fields
        out.counts[_IMAGES] += fields[LINKS] + fields[NO_URL] + fields[NO_ALT]
        out.counts[_LOST_URL] += fields[NO_URL]
        out.counts[_LOST_ALT] += fields[NO_ALT]
    out.counts[_RECORDS] += 1
    return result


@njit
def _run(pos, source, memory):
    """Reads members from `pos` on; returns (position, reason): END, FULL buffers, or an ODD member at the position."""
    sizes, saved, counts = memory.sizes, memory.saved, memory.out.counts
    start, room = address_of(memory.buffer), memory.buffer.shape[0] - PADDING
    while pos < source.size:
        packed = (source.address + pos, source.size - pos)
        status = call_gunzip(source.gunzip, source.decompressor, packed, (start, room), address_of(sizes))
        if status != libdeflate.OK:
            return pos, ODD
        end = start + sizes[1]
        for i in range(PADDING):
            store_byte(end + i, 0)
        kind, block, block_end = _frame(start, end)
        if kind < 0:
            return pos, ODD
        if kind == _METADATA_RECORD:
            saved[:] = counts
            result = _record(pos, block, block_end, memory)
            if result < 0 or result == NO_ROOM:
                counts[:] = saved
                return pos, ODD if result < 0 or saved[_PAGES] == 0 else FULL
        pos += sizes[0]
    return pos, END


# ---- Arrow


class _Buffers:
    """The memory of one reader."""

    def __init__(self, *, record: int = MAX_RECORD, rows: int = wat.BATCH_ROWS, arena: int = 8 << 20) -> None:
        pages = rows
        self.buffer = np.empty(record + PADDING, np.uint8)
        self.sizes = np.zeros(2, np.int64)
        self.links = np.empty((rows, LINK_PLACES), np.int64)
        self.fields = np.zeros(FIELDS, np.int64)
        self.signals = np.empty((MAX_SIGNALS, SIGNAL_PLACES), np.int64)
        self.saved = np.zeros(_COUNTS, np.int64)
        self.out = _Out(
            url_ends=np.zeros(rows + 1, np.int32),
            urls=np.empty(arena + PADDING, np.uint8),
            text_ends=np.zeros(rows + 1, np.int32),
            texts=np.empty(arena + PADDING, np.uint8),
            row_page=np.empty(rows, np.int32),
            row_odd=np.empty(rows, np.uint8),
            page_ends=np.zeros(pages * STRINGS + 1, np.int32),
            pages=np.empty(arena + PADDING, np.uint8),
            page_offset=np.empty(pages, np.int64),
            sign_ends=np.zeros(pages + 1, np.int32),
            signs=np.empty((1 << 20) + PADDING, np.uint8),
            sign_page=np.empty(pages, np.int32),
            sign_kind=np.empty(pages, np.uint8),
            scratch=np.empty(arena + PADDING, np.uint8),
            counts=np.zeros(_COUNTS, np.int64),
        )


class Scanner:
    """Reads a mapped file, or a stream window by window. It leaves odd records to `wat.py`."""

    def __init__(self, data: mmap.mmap | bytes, ledger: Ledger, buffers: _Buffers | None = None) -> None:
        library = libdeflate.functions()
        if library is None:
            raise RuntimeError("libdeflate's functions are not available: call usable() first")
        self._data = data
        self._gunzip = library.gunzip
        self._decompressor = libdeflate.Decompressor(library)
        self._ledger = ledger
        self._memory = buffers or _Buffers()

    def run(self, pos: int, *, data: Any = None, start: int = 0) -> tuple[int, int, pa.RecordBatch]:
        """Reads from `pos` on.

        Args:
            pos: index of the first member in the bytes.
            data: a window of a stream; None: the whole file.
            start: place of the window in its file.

        Returns:
            (index where it stopped, END or FULL or ODD, rows)
        """
        m = self._memory
        content = np.frombuffer(self._data if data is None else data, np.uint8)
        source = _Source(content.ctypes.data, len(content), self._gunzip, self._decompressor.address)
        found = Found(m.fields, m.links, m.signals)
        pos, why = _run(pos, source, _Memory(m.buffer, m.sizes, m.saved, found, m.out))
        m.out.page_offset[: m.out.counts[_PAGES]] += start
        rows = self._rows()
        m.out.counts[:] = 0
        return pos, why, rows

    def _rows(self) -> pa.RecordBatch:
        """The written rows as a batch. The ledger gets the drops."""
        out, counts, ledger = self._memory.out, self._memory.out.counts, self._ledger
        rows, pages = int(counts[_ROWS]), int(counts[_PAGES])
        ledger.records_in += int(counts[_RECORDS])
        ledger.rows_in += int(counts[_IMAGES])
        ledger.notes.update({"no_links": int(counts[_WITHOUT])} if counts[_WITHOUT] else {})
        lost = {"bad_field": _LOST_URL, "no_alt": _LOST_ALT, "empty_url": _EMPTY, "data_url": _DATA}
        for reason, place in lost.items():
            ledger.drop(reason, int(counts[place]))
        strings = _strings(out.page_ends, out.pages, pages * STRINGS)
        page_url, base, license_url = (strings.take(pa.array(np.arange(i, len(strings), STRINGS))) for i in range(3))
        of_row = pa.array(out.row_page[:rows].copy())
        url = _strings(out.url_ends, out.urls, rows)
        text = _strings(out.text_ends, out.texts, rows)
        url, kept = self._decide_odd(url, text, page_url, base)
        columns = [
            url,
            text,
            page_url.take(of_row),
            pa.array(out.page_offset[:pages].copy()).take(of_row),
            pa.array(np.full(rows, wat.ALT, np.int8)),
            pa.array(np.full(rows, wat.SRC, np.int8)),
            self._opt_outs(pages).take(of_row),
            _licenses(license_url, page_url, base).take(of_row),
        ]
        batch = pa.RecordBatch.from_arrays(columns, schema=CANDIDATES)
        return batch if kept is None else batch.filter(kept)

    def _decide_odd(
        self, url: pa.Array, text: pa.Array, page_url: pa.Array, base: pa.Array
    ) -> tuple[pa.Array, pa.Array | None]:
        """(URLs, mask of the rows that stay or None for all). `wat.fit` decides the odd URLs."""
        out = self._memory.out
        odd = np.flatnonzero(out.row_odd[: len(url)])
        if not len(odd):
            return url, None
        fitted, keep = [], np.ones(len(url), bool)
        bases: dict[int, str] = {}
        for row, link in zip(odd.tolist(), url.take(pa.array(odd)).to_pylist(), strict=True):
            page = int(out.row_page[row])
            if page not in bases:
                bases[page] = links.base_of(page_url[page].as_py(), base[page].as_py())
            reason, absolute = wat.fit(bases[page], link, "a text")
            fitted.append(absolute)
            if reason:
                keep[row] = False
                self._ledger.drop(reason)
        url = pc.replace_with_mask(url, pa.array(out.row_odd[: len(url)] > 0), pa.array(fitted, pa.string()))
        return url, None if keep.all() else pa.array(keep)

    def _opt_outs(self, pages: int) -> pa.Array:
        """The opt-outs of each page."""
        out, found = self._memory.out, int(self._memory.out.counts[_SIGNS])
        if not found:
            return pa.nulls(pages, pa.string())
        signals: dict[int, set[str]] = {}
        values = _strings(out.sign_ends, out.signs, found).to_pylist()
        for page, kind, value in zip(
            out.sign_page[:found].tolist(), out.sign_kind[:found].tolist(), values, strict=True
        ):
            if directives := wat.opt_out_directives(kind, value):
                signals.setdefault(page, set()).update(directives)
        column: list[str | None] = [None] * pages
        for page, words in signals.items():
            column[page] = ",".join(sorted(words))
        return pa.array(column, pa.string())


def _strings(ends: np.ndarray, data: np.ndarray, count: int) -> pa.Array:
    """The first `count` strings, copied out of the buffers."""
    size = int(ends[count])
    return pa.StringArray.from_buffers(
        count, pa.py_buffer(ends[: count + 1].tobytes()), pa.py_buffer(data[:size].tobytes())
    )


def _licenses(written: pa.Array, page_url: pa.Array, base: pa.Array) -> pa.Array:
    """The license URL of each page."""
    column: list[str | None] = [None] * len(written)
    for page in np.flatnonzero(pc.binary_length(written).to_numpy()).tolist():
        absolute_base = links.base_of(page_url[page].as_py(), base[page].as_py())
        column[page] = wat.license_of(absolute_base, written[page].as_py())
    return pa.array(column, pa.string())


def usable() -> bool:
    """True if libdeflate's functions are available."""
    return libdeflate.functions() is not None


def warm() -> None:
    """Compiles the kernel by reading one small member."""
    if not usable():
        return
    content = (
        b'{"Envelope":{"WARC-Header-Metadata":{"WARC-Target-URI":"http://a.example/"},"Payload-Metadata":'
        b'{"HTTP-Response-Metadata":{"HTML-Metadata":{"Links":[{"path":"IMG@/src","url":"b.png","alt":"b"}]}}}}}'
    )
    head = b"WARC/1.0\r\nWARC-Type: metadata\r\nContent-Length: %d\r\n\r\n" % len(content)
    Scanner(gzip.compress(head + content + b"\r\n\r\n"), Ledger()).run(0)
