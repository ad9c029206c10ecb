"""Reads a query list in any of its formats into one sorted table with a digest.

A list has one of these formats, each also as .gz:

- text: one query a line;
- JSON: a list, as MetaCLIP's metadata.json, or an object query -> count;
- TSV or CSV: the first column, or the column `query`; columns source, count, language and flags beside it are kept;
- Parquet: the column `query`, or the first text column.

Order, repeats and line ends of the file have no effect. The table is sorted by the UTF-8 bytes of language and query.
It has each query of a language once, and the position of a query is its id. So equal lists have equal ids and an equal
digest. For a list without languages, `LC_ALL=C sort -u list.txt | sha256sum` prints the digest.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine import storage
from pipeline.engine.display import sanitize
from pipeline.engine.input_errors import InputError, MissingInputError, is_remote
from pipeline.engine.opening import is_object, open_input
from pipeline.text import quoting

QUERIES = pa.schema(
    [
        pa.field("id", pa.int32(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # "" if the list has none
        pa.field("count", pa.int64(), nullable=False),  # as in the list, e.g. the frequency; 0 if the list has none
        pa.field("language", pa.string(), nullable=False),  # code in lower case; "" if the list has none
        pa.field("flags", pa.string(), nullable=False),  # FLAGS that hold, with blanks between; "" for none
    ]
)

# What `queries.build` writes into the column `flags`. Another list may have other flags; they are kept and ignored.
FLAGS = {
    "name": "a single word that is in no dictionary; another source knows it as a name",
    "slur": "a disparaging name for a group of people",
    "explicit": "an obscene or sexually explicit term",
    "benchmark": "a class name of an evaluation set",
}

_FORMATS = "txt, json, tsv, csv or parquet, each also with .gz"
_LINE_BREAKS = r" *[\t\n\v\f\r]+ *"
_NUMBER = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LANGUAGE = re.compile(r"[a-z]{2,8}(-[a-z0-9]{1,8})*")  # the form of a code in BCP 47
_BLOCK = 65_536  # lines
_LONGEST = 1_000  # bytes of a query; no alt-text holds a longer one, but a file that is no query list may
# Byte order marks. UTF-32 stands first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_Column: TypeAlias = list | pa.Array | pa.ChunkedArray | None


class _Cells(NamedTuple):
    """A list as read. An entry that is not text is a null query."""

    query: pa.StringArray
    source: pa.StringArray
    count: pa.Int64Array
    language: pa.StringArray
    flags: pa.StringArray


class QueryError(ValueError):
    """A query list that cannot be used. The message names the file, the cause and what to do."""

    def __init__(self, path: str, cause: str, remedy: str) -> None:
        super().__init__(f"query list {path}: {cause}. {remedy}")


@dataclass(frozen=True)
class QueryList:
    """A query list, and the numbers of entries that were left out.

    `table` has the schema QUERIES. For a repeated query, the first entry in the file gives source and count.
    """

    table: pa.Table
    digest: str
    empties: int
    duplicates: int
    invalid: int  # lines that are not UTF-8, entries that are not text
    too_long: int = 0  # of more than 1,000 bytes

    @property
    def queries(self) -> pa.StringArray:
        return self.table.column("query").combine_chunks()

    def __len__(self) -> int:
        return self.table.num_rows


def load_queries(path: str) -> QueryList:
    """Reads the query list at `path`, a local file or a URL.

    Raises:
        QueryError: the file cannot be read, or holds no usable query.
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")
    reader = _READERS.get(kind)
    if reader is None:
        if not _is_there(path):
            raise QueryError(path, "is not there", "Check the path.")
        raise QueryError(path, f"has an unknown format by its name ({kind or 'no suffix'})", f"Name it {_FORMATS}.")
    data = _read_bytes(path, unzip=suffixes[-1] == ".gz")
    try:
        return _assemble(path, reader(data if kind == ".parquet" else _as_utf8(data)))
    except _INVALID as error:
        why = sanitize(str(error).strip())  # messages of Arrow hold line breaks and bytes of the file
        raise QueryError(path, f"is not valid {kind[1:]} ({why})", f"Write it again, or use {_FORMATS}.") from error
    except (pa.ArrowCapacityError, MemoryError) as error:
        raise QueryError(path, "is too large for one list", "Keep the queries with the highest counts.") from error


def default_list() -> str:
    """The path of the English list that comes with the project."""
    return str(Path(__file__).parent / "data" / "default.parquet")


def _is_there(path: str) -> bool:
    """True for a file or a folder that exists, or whose server cannot tell without sending it."""
    if is_remote(path) and not is_object(path):
        return True
    try:
        return storage.exists(path)
    except InputError as error:
        raise QueryError(path, f"cannot be read ({error})", "Check the path and its permissions.") from error


def _read_bytes(path: str, *, unzip: bool) -> bytes:
    try:
        with open_input(path) as opened:
            data = opened.stream.read()
    except (FileNotFoundError, MissingInputError) as error:
        raise QueryError(path, "is not there", "Check the path.") from error
    except (OSError, InputError) as error:
        cause = getattr(error, "strerror", None) or error
        raise QueryError(path, f"cannot be read ({cause})", "Check the path and its permissions.") from error
    try:
        return gzip.decompress(data) if unzip else data
    except (OSError, EOFError, zlib.error) as error:
        raise QueryError(path, f"is damaged or not gzip ({error})", "Fetch the file again.") from error


def _assemble(path: str, cells: _Cells) -> QueryList:
    tidy = _tidy(cells.query)
    is_text = _truth(pc.invert(pc.match_substring(tidy, "\0")))
    is_empty = is_text & _truth(pc.equal(tidy, ""))
    is_long = is_text & _truth(pc.greater(pc.binary_length(tidy), _LONGEST))
    rows = np.flatnonzero(is_text & ~is_empty & ~is_long)
    invalid, empties, too_long = (int(np.count_nonzero(mask)) for mask in (~is_text, is_empty, is_long))
    if not len(rows):
        left_out = f"{empties} empty, {invalid} not UTF-8" + (f", {too_long} too long" if too_long else "")
        cause = f"holds no usable query ({left_out})" if len(tidy) else "is empty"
        remedy = "Give a list with one query a line, or one of the other formats."
        if invalid > empties + too_long:
            remedy = "Convert it with iconv -f ENCODING -t UTF-8."
        raise QueryError(path, cause, remedy)

    language = _languages(path, cells.language)
    lines = with_language(tidy, language).take(pa.array(rows))
    encoded = lines.dictionary_encode()  # each query once, in the order of the file
    numbers = encoded.indices.to_numpy()
    first = np.empty(len(encoded.dictionary), np.int64)
    first[numbers[::-1]] = rows[::-1]  # reversed: the last write wins, so it is the query's first place
    order = pc.sort_indices(encoded.dictionary)  # binary order
    at = pa.array(first).take(order)
    columns = [
        pa.array(np.arange(len(at), dtype=np.int32)),
        tidy.take(at),
        pc.fill_null(cells.source, "").take(at),
        pc.fill_null(cells.count, 0).take(at),
        language.take(at),
        _flags(cells.flags).take(at),
    ]
    table = pa.table(columns, schema=QUERIES)
    return QueryList(table, _digest_of(encoded.dictionary.take(order)), empties, len(rows) - len(at), invalid, too_long)


def _digest_of(lines: pa.StringArray) -> str:
    """The SHA-256 of the lines, each with a line break, in blocks: a list may have ten million."""
    state = hashlib.sha256()
    for start in range(0, len(lines), _BLOCK):
        state.update("\n".join([*lines.slice(start, _BLOCK).to_pylist(), ""]).encode())
    return state.hexdigest()


def assemble(table: pa.Table, *, left_out: Sequence[QueryList] = ()) -> QueryList:
    """The list of rows of QUERIES in any order. Of equal queries of one language the first one stays.

    Args:
        table: the rows; ids are made anew.
        left_out: the lists that they come from, whose numbers of left out entries are added up.
    """
    cells = _Cells(*(table[name].combine_chunks() for name in _Cells._fields))
    made = _assemble("of several files", cells)
    numbers = {name: sum(getattr(given, name) for given in left_out) for name in ("empties", "invalid", "too_long")}
    duplicates = made.duplicates + sum(given.duplicates for given in left_out)
    return dataclasses.replace(made, duplicates=duplicates, **numbers)


def is_language(code: str) -> bool:
    """True if the text has the form of a code in BCP 47, in lower case."""
    return _LANGUAGE.fullmatch(code) is not None


def with_language(texts: pa.Array, language: pa.Array) -> pa.Array:
    """Each text after its language and a tab; unchanged if it has no language."""
    if not pc.any(pc.not_equal(language, "")).as_py():
        return texts
    behind = pc.binary_join_element_wise(language.cast(texts.type), texts, pa.scalar("\t", texts.type))
    return pc.if_else(pc.equal(language, ""), texts, behind)


def _tidy(texts: pa.StringArray) -> pa.StringArray:
    """The texts without line breaks, and without blanks at the ends."""
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, _LINE_BREAKS, " "))


def _languages(path: str, given: pa.StringArray) -> pa.StringArray:
    """The codes in lower case, "" for none; raises QueryError for a value without the form of a code."""
    if given.null_count == len(given):
        return pa.repeat(pa.scalar("", pa.string()), len(given))
    codes = pc.utf8_lower(_tidy(pc.fill_null(given, "")))
    for code in pc.unique(codes).to_pylist():
        if code and not _LANGUAGE.fullmatch(code):
            raise QueryError(path, f"names the language {code[:40]!r}", "Give codes such as en, de or zh-yue.")
    return codes


def _flags(given: pa.StringArray) -> pa.StringArray:
    """The flags of each query in lower case, with single blanks between. Order and repeats stay."""
    if given.null_count == len(given):
        return pa.repeat(pa.scalar("", pa.string()), len(given))
    return pc.utf8_lower(pc.replace_substring_regex(_tidy(pc.fill_null(given, "")), r"[\s,]+", " "))


def _as_utf8(data: bytes) -> bytes:
    """A text as UTF-8, if its byte order mark tells another encoding."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    return data if encoding is None else data.decode(encoding).encode()


def _lines(data: bytes) -> list[str | None]:
    """The lines of the file; None for a line that is not UTF-8."""
    data = data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    if not data:
        return []
    try:
        return list(data.decode().split("\n"))
    except UnicodeDecodeError:
        return [_decode(line) for line in data.split(b"\n")]


def _decode(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _read_text(data: bytes) -> _Cells:
    return _cells(_lines(data))


def _read_json(data: bytes) -> _Cells:
    content = json.loads(data)
    if isinstance(content, dict):
        return _cells([_text(query) for query in content], count=[_integer(value) for value in content.values()])
    if isinstance(content, list):
        return _cells([_text(query) for query in content])
    raise json.JSONDecodeError("neither a list of queries nor query -> count", "", 0)


def _read_tsv(data: bytes) -> _Cells:
    # No quoting: a query may start with a quotation mark.
    return _read_rows(pc.split_pattern(pa.array(_lines(data), pa.string()), "\t"))


def _read_csv(data: bytes) -> _Cells:
    """A quote that is never closed, or that would join whole rows, is a part of its query (`pipeline.text.quoting`)."""
    data = quoting.without_lone_returns(data.removeprefix(codecs.BOM_UTF8))
    delimiter = _delimiter(data)
    first = quoting.read_row(data, 0, quoting.Shape(delimiter, 0), at_end=True, multiline=False)
    width = len(first.cells) if first else 1
    data = quoting.repair(data, quoting.Shape(delimiter, width), at_end=True).data
    lines = _lines(data)
    whole = (f"{line}\n" for line in lines if line is not None)
    rows: list[list[str] | None] = list(csv.reader(whole, delimiter=delimiter.decode()))
    return _read_rows(pa.array(rows + [None] * lines.count(None), pa.list_(pa.string())))


def _delimiter(data: bytes) -> bytes:
    """A comma, unless the first line names columns between other signs."""
    line = data.split(b"\n", 1)[0].lower()
    for sign in (b";", b"\t", b"|"):
        names = {cell.strip(b'" \r') for cell in line.split(sign)}
        if b"query" in names and names & {b"count", b"source", b"language"}:
            return sign
    return b","


def _read_rows(rows: pa.ListArray) -> _Cells:
    """The columns of rows of any length, with or without a header. A row that is not UTF-8 is null."""
    start = next((number for number, row in enumerate(rows) if row.is_valid), 0)
    first: list[str] = rows[start].as_py() or [] if len(rows) else []
    names = [cell.strip().lower() for cell in first]
    at: dict[str, int] = {}
    if "query" in names and sum(name in QUERIES.names for name in names) >= min(2, len(names)):
        at = {name: names.index(name) for name in QUERIES.names[1:] if name in names}
        rows = rows.take(pa.array(np.delete(np.arange(len(rows)), start)))
    else:
        at["query"] = 0
        for number, cell in enumerate(first[1:], 1):
            if not _NUMBER.fullmatch(cell.strip()):
                at.setdefault("source", number)
            elif cell.strip().isdecimal():
                at.setdefault("count", number)
    columns = {name: _column(rows, number) for name, number in at.items()}
    count = columns.pop("count", None)
    if count is not None:
        is_count = pc.match_substring_regex(count, r"^\s*[0-9]{1,18}\s*$")
        count = pc.if_else(is_count, pc.utf8_trim_whitespace(count), "0").cast(pa.int64())
    return _cells(count=count, **columns)


def _column(rows: pa.ListArray, number: int) -> pa.StringArray:
    """Cell `number` of each row; null if the row is null, "" if it is shorter."""
    starts = rows.offsets.to_numpy()[:-1]
    lengths = pc.list_value_length(rows)
    cells = rows.values.take(pa.array(starts + number, mask=~_truth(pc.greater(lengths, number))))
    return pc.if_else(pc.is_valid(lengths), pc.fill_null(cells, ""), pa.scalar(None, pa.string()))


def _truth(mask: pa.BooleanArray) -> np.ndarray:
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def _read_parquet(data: bytes) -> _Cells:
    table = pq.read_table(io.BytesIO(data))
    text = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    name = "query" if "query" in text else next(iter(text), None)
    if name is None:
        raise pa.ArrowInvalid(f"no text column among {table.column_names}")
    others = {at: table.column(at) for at in ("source", "language", "flags") if at in text and at != name}
    if "count" in table.column_names and pa.types.is_integer(table.schema.field("count").type):
        others["count"] = table.column("count")
    return _cells(table.column(name), **others)


def _text(value: Any) -> str | None:
    """The value if it is text that UTF-8 can hold, else None. JSON can hold half of a surrogate pair, UTF-8 cannot."""
    if not isinstance(value, str):
        return None
    return value if value.isascii() or not _SURROGATE.search(value) else None


def _integer(value: Any) -> int:
    return int(value) if isinstance(value, int) and abs(value) < 2**63 else 0


def _cells(
    query: _Column, source: _Column = None, count: _Column = None, language: _Column = None, flags: _Column = None
) -> _Cells:
    """The columns as Arrow arrays of the right type. A missing column is all null."""
    queries = _array(query, pa.string())
    missing = pa.nulls(len(queries))
    return _Cells(
        queries,
        _array(missing if source is None else source, pa.string()),
        _array(missing if count is None else count, pa.int64()),
        _array(missing if language is None else language, pa.string()),
        _array(missing if flags is None else flags, pa.string()),
    )


def _array(values: _Column, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.cast(kind).combine_chunks()
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


# What readers raise for bytes that are no list. Arrow raises OSError for damage; no reader opens a file.
_INVALID = (json.JSONDecodeError, RecursionError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid, OSError)
_READERS = {".txt": _read_text, ".json": _read_json, ".tsv": _read_tsv, ".csv": _read_csv, ".parquet": _read_parquet}
