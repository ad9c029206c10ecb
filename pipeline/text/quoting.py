"""Rows of a delimited text whose quotes may be wrong: a quote that never closes costs no other row.

A field is quoted as in RFC 4180 if a quote begins it, and the next quote that is not doubled stands before a delimiter
or a line end. Captions of the web begin with lone quotes, too. A reader that trusts each of them takes all lines up to
the next quote for one field. Here a quote that begins a field is text in these cases:

- other text follows its closing quote;
- nothing closes it within MAX_ROW bytes, or to the end of the file;
- its field holds a line break, and the row would have another number of cells than the header;
- its field holds a line that is a whole row of the table, and the first line of the row is one, too. A whole row has as
  many cells as the header, and a URL in the column of URLs.

`repair` writes a block of lines anew so that each quote is right. It looks only at lines with suspicious quotes one by
one. The work is linear: the search for a closing quote ends at the next quote that opens a field, and the lines of a
row that failed are then read without line breaks in fields.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np

MAX_ROW = 1 << 20  # bytes of a row with line breaks in its fields
_NEWLINE, _RETURN, _QUOTE = 10, 13, 34
_LINE_END = np.array([_NEWLINE], np.uint8)
_URL = re.compile(rb'"?\s*(?:https?:)?//', re.IGNORECASE)
_INSIDE = re.compile(rb'[^"]*+(?:""[^"]*+)*+')  # what stands between an opening and a closing quote
_LONE_RETURN = re.compile(rb"\r(?!\n|\Z)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a row looks like: the delimiter, the number of cells, and the number of the cell with a URL, if one has."""

    delimiter: bytes
    width: int
    url_at: int | None = None


class Row(NamedTuple):
    """One row.

    Attributes:
        cells: the values, quoting undone.
        end: the position after its line end.
        breaks: line breaks in its fields.
        literal: cells that begin with a quote which is text.
        odd: further cells with quotes that RFC 4180 does not allow.
        decisive: quoted cells that hold a delimiter, a line break or a doubled quote.
        tried: where the attempt to read it with line breaks ended, if that failed.
    """

    cells: list[bytes]
    end: int
    breaks: int = 0
    literal: int = 0
    odd: int = 0
    decisive: int = 0
    tried: int = 0


class Repaired(NamedTuple):
    """A block with right quotes.

    Attributes:
        data: its rows.
        quoted: it holds quotes that are syntax.
        rows: the number of rows, without blank lines.
        used: bytes of the block that became rows. The next bytes decide about the rest.
        literal: cells that begin with a quote which is text.
    """

    data: bytes
    quoted: bool
    rows: int
    used: int
    literal: int = 0


def without_lone_returns(data: bytes) -> bytes:
    """The lines with a blank for each carriage return inside a line: it ends no row."""
    return data if b"\r" not in data or data.count(b"\r") == data.count(b"\r\n") else _LONE_RETURN.sub(b" ", data)


def count_rows(data: bytes) -> int:
    """The number of lines that are not blank."""
    array = np.frombuffer(data, np.uint8)
    return len(_bounds(array)) - 1 - len(_blank(array, _bounds(array)))


def repair(data: bytes, shape: Shape, *, at_end: bool) -> Repaired:
    """The rows of a block, with quotes that are all syntax and right.

    Args:
        data: whole lines without lone returns. The first one begins a row.
        shape: of the table.
        at_end: no bytes follow the block.
    """
    array = np.frombuffer(data, np.uint8)
    bounds = _bounds(array)
    blank = _blank(array, bounds)
    quotes = np.flatnonzero(array == _QUOTE)
    if not len(quotes):
        return Repaired(data, False, len(bounds) - 1 - len(blank), len(data))
    suspects = bounds[_suspicious_lines(array, bounds, quotes, ord(shape.delimiter))]
    out: list[bytes] = []
    done, literal, joined, failed, used = 0, 0, 0, 0, len(data)
    for start in suspects.tolist():
        if start < done:
            continue  # the line stands inside a field of the row before it
        row = read_row(data, start, shape, at_end=at_end, multiline=start >= failed)
        if row is None:
            used = start
            break
        out += [data[done:start], written(row.cells, shape.delimiter)]
        done, literal, failed = row.end, literal + row.literal, max(failed, row.tried)
        if row.breaks:
            inside = np.searchsorted(blank, [start, row.end])
            joined += row.breaks - int(inside[1] - inside[0])
    out.append(data[done:used])
    lines = np.searchsorted(bounds, used) - np.searchsorted(blank, used)
    return Repaired(b"".join(out), True, int(lines) - joined, used, literal)


def _bounds(array: np.ndarray) -> np.ndarray:
    """The positions where the lines begin, and the end of the last one."""
    ends = np.flatnonzero(array == _NEWLINE) + 1
    whole = not len(array) or (len(ends) and ends[-1] == len(array))
    return np.concatenate([[0], ends] if whole and len(array) else [[0], ends, [len(array)]] if len(array) else [[0]])


def _blank(array: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The positions of blank lines."""
    starts, sizes = bounds[:-1], np.diff(bounds)
    first = array[starts] if len(starts) else array
    return starts[((sizes == 1) & ((first == _NEWLINE) | (first == _RETURN))) | ((sizes == 2) & (first == _RETURN))]


def _suspicious_lines(array: np.ndarray, bounds: np.ndarray, quotes: np.ndarray, delimiter: int) -> np.ndarray:
    """The numbers of the lines whose quotes do not pair up as those of quoted fields on one line do."""
    line = np.searchsorted(bounds, quotes, side="right") - 1
    number = np.arange(len(quotes))
    first = np.searchsorted(line, line)  # the first quote of the same line
    opens = (number - first) % 2 == 0
    padded = np.concatenate([_LINE_END, array, _LINE_END])
    before, after = padded[quotes], padded[quotes + 2]
    behind_quote = np.concatenate([[False], np.diff(quotes) == 1])
    before_quote = np.concatenate([behind_quote[1:], [False]])
    right = np.where(
        opens,
        (before == delimiter) | (before == _NEWLINE) | (behind_quote & (number > first)),
        (after == delimiter) | (after == _NEWLINE) | (after == _RETURN) | before_quote,
    )
    last_of_line = np.concatenate([line[1:] != line[:-1], [True]])
    right &= ~(last_of_line & opens)  # else the line has an odd number of quotes
    return np.unique(line[~right])


def read_row(data: bytes, start: int, shape: Shape, *, at_end: bool, multiline: bool = True) -> Row | None:
    """The row that begins at `start`; None if bytes after `data` decide where it ends."""
    row = _RowReader(data, start, shape, at_end=at_end, multiline=multiline).read()
    if row is None or len(row.cells) == shape.width:
        return row
    tried = 0
    if row.breaks:
        tried = row.end
        row = _RowReader(data, start, shape, at_end=at_end, multiline=False).read()
        assert row is not None
    if len(row.cells) != shape.width:
        cells = _cells_after_blanks(data[start : _line_end(data, start)], shape.delimiter)
        row = row._replace(cells=cells, literal=0) if len(cells) == shape.width else row
    return row._replace(tried=tried)


_UNDECIDED, _NONE = -2, -1


class _RowReader:
    """Reads one row from left to right."""

    def __init__(self, data: bytes, start: int, shape: Shape, *, at_end: bool, multiline: bool) -> None:
        self.data, self.start, self.shape = data, start, shape
        self.at_end, self.multiline = at_end, multiline
        self.line_end = _line_end(data, start)
        self.first_is_row: bool | None = None

    def read(self) -> Row | None:
        data, delimiter = self.data, self.shape.delimiter
        cells: list[bytes] = []
        at, breaks, literal, odd, decisive = self.start, 0, 0, 0, 0
        lenient = True  # until no closing quote was found on the line: then none is there for the next field, either
        while True:
            end = _NONE
            if data.startswith(b'"', at):
                end = self._closing(at)
                if end == _UNDECIDED:
                    return None
                if end >= 0:
                    inside = data[at + 1 : end]
                    cells.append(inside.replace(b'""', b'"'))
                    decisive += delimiter in inside or b"\n" in inside or b'""' in inside
                    if b"\n" in inside:
                        breaks += inside.count(b"\n")
                        self.line_end = _line_end(data, end)
                elif lenient and (close := _closing_on_line(delimiter).search(data, at + 1, self.line_end)):
                    end, odd = close.start(), odd + 1
                    cells.append(data[at + 1 : end])
                else:
                    lenient, literal = False, literal + 1
            if end < 0:
                stop = data.find(delimiter, at, self.line_end)
                end = (stop if stop >= 0 else self.line_end) - 1
                cells.append(data[at : end + 1])
                odd += cells[-1].find(b'"', 1) >= 0
            at = end + 1
            if at == self.line_end or (breaks and len(cells) > self.shape.width):
                return Row(cells, _next_line(data, at), breaks, literal, odd, decisive)
            at += 1

    def _closing(self, at: int) -> int:
        """The position of the quote that closes the field at `at`; _NONE: the quote at `at` is text; or _UNDECIDED."""
        data = self.data
        stop = max(self.line_end, min(len(data), self.start + MAX_ROW)) if self.multiline else self.line_end
        inside = _INSIDE.match(data, at + 1, stop)
        assert inside is not None
        end = inside.end()
        open_ended = stop == len(data) and not self.at_end and self.multiline
        if end >= stop:
            return _UNDECIDED if open_ended else _NONE
        after = data[end + 1 : end + 2]
        if after == b"" and open_ended:
            return _UNDECIDED
        if after not in (b"", b"\n", b"\r", self.shape.delimiter):
            return _NONE
        return _NONE if end > self.line_end and self._swallows(at, end) else end

    def _swallows(self, at: int, end: int) -> bool:
        """True if the field from `at` to `end` holds whole rows."""
        if self.first_is_row is None:
            self.first_is_row = _is_row(self.data[self.start : _line_end(self.data, self.start)], self.shape)
        if not self.first_is_row:
            return False
        after = self.data.find(b"\n", at, end) + 1
        return any(_is_row(line, self.shape) for line in self.data[after : _line_end(self.data, end)].split(b"\n"))


def _is_row(line: bytes, shape: Shape) -> bool:
    cells = line.split(shape.delimiter)
    if len(cells) != shape.width:
        return False
    return shape.url_at is None or _URL.match(cells[shape.url_at]) is not None


def _line_end(data: bytes, at: int) -> int:
    r"""The position of the line end from `at` on: of its \r, if it has one."""
    end = data.find(b"\n", at)
    end = len(data) if end < 0 else end
    return end - 1 if end > at and data[end - 1] == _RETURN else end


def _next_line(data: bytes, at: int) -> int:
    end = data.find(b"\n", at)
    return len(data) if end < 0 else end + 1


def _cells_after_blanks(line: bytes, delimiter: bytes) -> list[bytes]:
    """The cells of a line whose quoted fields may stand after blanks."""
    cells, at = [], 0
    while at <= len(line):
        found = _quoted_after_blanks(delimiter).match(line, at)
        stop = line.find(delimiter, at)
        end = found.end() if found else stop if stop >= 0 else len(line)
        cells.append(found[1].replace(b'""', b'"') if found else line[at:end])
        at = end + 1
    return cells


@functools.cache
def _closing_on_line(delimiter: bytes) -> re.Pattern[bytes]:
    return re.compile(rb'"(?=%b|\Z)' % re.escape(delimiter))


@functools.cache
def _quoted_after_blanks(delimiter: bytes) -> re.Pattern[bytes]:
    return re.compile(rb' *+"(%b)" *+(?=%b|\Z)' % (_INSIDE.pattern, re.escape(delimiter)))


def written(cells: list[bytes], delimiter: bytes) -> bytes:
    """A row as RFC 4180 writes it."""
    return delimiter.join(_quoted(cell) if _needs_quotes(cell, delimiter) else cell for cell in cells) + b"\n"


def _quoted(cell: bytes) -> bytes:
    return b'"%b"' % cell.replace(b'"', b'""')


def _needs_quotes(cell: bytes, delimiter: bytes) -> bool:
    return b'"' in cell or b"\n" in cell or b"\r" in cell or delimiter in cell


def uses_quotes(sample: bytes, shape: Shape) -> bool:
    """True if the rows of a sample are quoted as RFC 4180 writes them. Without a proof they are not.

    A proof is a quoted cell that would be another one without quoting. Quotes that are text speak against it.

    Args:
        sample: whole lines without lone returns, the header first.
        shape: of the table.
    """
    decisive = against = at = failed = 0
    while at < len(sample):
        end = _next_line(sample, at)
        if sample.find(b'"', at, end) < 0:
            at = end
            continue
        row = read_row(sample, at, shape, at_end=True, multiline=at >= failed)
        assert row is not None
        decisive, against = decisive + row.decisive, against + row.literal + row.odd
        at, failed = row.end, max(failed, row.tried)
    return decisive > 10 * against
