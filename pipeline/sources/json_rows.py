"""JSON objects as rows: JSON lines, an array of objects, or objects one after another.

An object is read as msgspec reads it. What msgspec refuses is read by the standard library, which takes NaN as pandas
writes it. Numbers are texts, as in the other tables. The unit of loss is the object.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.engine.input_errors import UnreadableInputError
from pipeline.engine.ledger import Ledger
from pipeline.sources.base import BATCH_ROWS
from pipeline.sources.text_stream import MAX_LINE, damage, describe_head

SAMPLE = 100  # objects whose keys are taken as the columns
PIECE = 1 << 20  # bytes of an array that are read at a time

Values = tuple[str | None, str | None, str | None]

_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)  # what stands between two quotes
# Text up to a brace, or up to a string that does not end.
_BETWEEN = re.compile(rb'[^"{}]*+(?:"%b"[^"{}]*+)*+' % _STRING.pattern, re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


def keys_of(stream: io.BufferedReader, name: str) -> list[str]:
    """The keys of the first objects, in the order of the file.

    Raises:
        UnreadableInputError: no object is among them.
    """
    keys: dict[str, None] = {}
    head = stream.peek(1)[:MAX_LINE]
    for number, text in enumerate(_objects(stream)):
        if number == SAMPLE:
            break
        row = None if text is None else _load(text)
        keys.update(dict.fromkeys(row if isinstance(row, dict) else ()))
    if not keys:
        if error := damage(stream):
            raise UnreadableInputError(f"{name!r} cannot be read as JSON: {error}")
        seems = f": {seems}" if (seems := describe_head(head)) else ""
        raise UnreadableInputError(f"{name!r} holds no JSON object in its first {SAMPLE} lines{seems}")
    return list(keys)


def read_rows(
    stream: io.BufferedReader, columns: tuple[str, str, str | None], ledger: Ledger
) -> Iterator[tuple[tuple[pa.Array, pa.Array, pa.Array | None], np.ndarray]]:
    """Batches of the wanted columns, and the numbers of their rows: of the line, or of the object in the array."""
    decode = _decoder(columns, ledger)
    rows: list[Values] = []
    numbers: list[int] = []
    for number, text in enumerate(_objects(stream)):
        row = None if text is None else decode(text)
        if row is None:
            if text is None or text.strip():
                ledger.records_in += 1
                ledger.lose("table_line_too_long" if text is None else "bad_table_row")
            continue
        rows.append(row)
        numbers.append(number)
        if len(rows) == BATCH_ROWS:
            yield _arrays(rows, columns), np.array(numbers)
            rows, numbers = [], []
    if rows:
        yield _arrays(rows, columns), np.array(numbers)
    if damage(stream):
        ledger.records_in += 1
        ledger.lose("table_rest_unreadable")


def _arrays(rows: list[Values], columns: Sequence[str | None]) -> tuple[pa.Array, pa.Array, pa.Array | None]:
    url, text, page = (pa.array(values, pa.string()) for values in zip(*rows, strict=True))
    return url, text, page if columns[2] else None


def _decoder(columns: tuple[str, str, str | None], ledger: Ledger) -> Callable[[bytes], Values | None]:
    """A function from an object to (url, text, page). It gives None unless these are texts, numbers or nulls."""
    import msgspec

    fields = list(dict.fromkeys(name for name in columns if name))
    inner = [f"f{index}" for index in range(len(fields))]
    rename = dict(zip(inner, fields, strict=True))
    struct = msgspec.defstruct("Row", [(name, str | None, None) for name in inner], rename=rename, gc=False)
    decoder = msgspec.json.Decoder(struct)
    getters = [None if name is None else f"f{fields.index(name)}" for name in columns]

    def decode(text: bytes) -> Values | None:
        try:
            row = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _values(text, columns, ledger)
        url, alt, page = (None if name is None else getattr(row, name) for name in getters)
        return url, alt, page

    return decode


def _load(text: bytes) -> Any:
    """The value as the standard library reads it, bad UTF-8 replaced; None if it is no JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text.decode("utf-8", "replace").removeprefix("\ufeff"))
    return None


def _values(text: bytes, columns: tuple[str, str, str | None], ledger: Ledger) -> Values | None:
    """The values of an object that msgspec refuses; None if it is no object, or a value is no text."""
    row = _load(text)
    if not isinstance(row, dict):
        return None
    values: list[str | None] = []
    for name in columns:
        value = None if name is None else row.get(name)
        if isinstance(value, float) and math.isnan(value):
            value = None  # as pandas writes a missing value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            return None
        fixed = value and _SURROGATE.sub("\ufffd", value)
        if fixed != value or (fixed and "\ufffd" in fixed and b"\xef\xbf\xbd" not in text):
            ledger.notes["invalid_utf8_replaced"] += 1
        values.append(fixed)
    url, alt, page = values
    return url, alt, page


# ---- objects of a stream


def _objects(stream: io.BufferedReader) -> Iterator[bytes | None]:
    """The bytes of each object; None for one over MAX_LINE bytes. Of JSON lines these are the lines, blank ones too."""
    head = stream.peek(1).lstrip()
    if head.startswith(b"[") or head.split(b"\n", 1)[0].strip() == b"{":
        return _nested(stream)
    return _lines(stream)


def _lines(stream: io.BufferedReader) -> Iterator[bytes | None]:
    while line := stream.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
            yield None
        else:
            yield line


def _nested(stream: io.BufferedReader) -> Iterator[bytes | None]:
    """The outermost objects of a text, wherever they stand. Of a text that is cut, a piece that is no object is last.

    Each byte is looked at once. At most MAX_LINE bytes and a piece are held.
    """
    data, at, begin, depth = b"", 0, 0, 0
    in_string = too_long = False
    last = b""
    while piece := stream.read(PIECE):
        if too_long or not depth:
            begin = at
        data, at, begin = data[begin:] + piece, at - begin, 0
        last = (last + piece)[-64:]
        while at < len(data):
            if in_string:
                at = _end_of(_STRING, data, at)
                if data[at : at + 1] != b'"':
                    break  # the string goes on; a backslash at the end waits for the next byte
                at, in_string = at + 1, False
            at = _end_of(_BETWEEN, data, at)
            sign = data[at : at + 1]
            at += 1
            if sign == b'"':
                in_string = True
            elif sign == b"{":
                begin, depth = (begin, depth + 1) if depth else (at - 1, 1)
            elif sign == b"}" and depth:
                depth -= 1
                if not depth:
                    yield None if too_long or at - begin > MAX_LINE else data[begin:at]
                    too_long = False
        at = min(at, len(data))
        too_long = too_long or (depth > 0 and at - begin > MAX_LINE)
    if depth or not last.rstrip().endswith((b"]", b"}")):
        yield b"{"


def _end_of(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    found = pattern.match(data, at)
    assert found is not None
    return found.end()
