"""Tables of (url, text) as candidates: Parquet, CSV, TSV and JSON lines.

Only the needed columns are read, in bounded batches. `offset` is the number of the row in its file. Damage is counted
and never fatal. A bad line loses that line. A damaged page loses the rest of its row group. A cut file loses its end.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import difflib
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.engine.ledger import Ledger
from pipeline.engine.opening import InputError, is_remote, open_seekable, public
from pipeline.sources.base import (
    BATCH_ROWS,
    GZIP,
    Found,
    Input,
    Reader,
    ReadSettings,
    SettingsError,
    candidates_of_pairs,
    file_name,
    for_each,
    open_bytes,
    packed,
)

ROWS_PER_PART = 1_000_000  # a Parquet file with more rows is read in parts, by row groups
DENSE_PAIR = 60  # bytes for each pair, where texts are short
PARQUET = b"PAR1"  # begins a Parquet file
TEXT_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
CSV_BLOCK = 4 << 20  # bytes; also the longest row of a CSV
MAX_LINE = 1 << 20  # bytes of a JSON line
PIECE = 256 << 10  # bytes of a gzip file that are read, and that are inflated, at a time
SAMPLE_LINES = 100  # JSON lines whose keys are taken as the columns
MOST_NAMES = 40  # columns that a message lists

_NAME = re.compile(r"\.(parquet|csv|tsv|jsonl|ndjson)(\.gz|\.zst)?$")

# Other names that datasets use. They are tried in this order if the default name is missing.
URL_NAMES = ("url", "image_url", "img_url", "image", "link", "photo_image_url", "thumbnailurl", "src")
TEXT_NAMES = ("text", "caption", "alt", "alt_text", "alttext", "title", "description", "caption_reference_description")
PAGE_NAMES = ("page_url",)


class ColumnError(SettingsError):
    """A table lacks a column that is asked for, or the column holds no strings."""


class Table(Reader):
    """Parquet, CSV, TSV and JSON lines with a column of URLs and one of texts."""

    name: ClassVar[str] = "table"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", *packed(*TEXT_TABLES, by=(".gz", ".zst")))
    bytes_per_pair: ClassVar[float] = 100
    bytes_per_core_second: ClassVar[float] = 300e6

    def sniff(self, head: bytes) -> bool:
        return head.startswith(PARQUET) or head.lstrip()[:2] in (b'{"', b"{ ")

    def expand(self, found: Found) -> list[Input]:
        return _parquet_parts(found) if self._is_parquet(found) else super().expand(found)

    def _is_parquet(self, found: Found) -> bool:
        name = file_name(found.path)
        if self.claims(name) or is_remote(found.path):
            return name.lower().endswith(".parquet")
        with open(found.path, "rb") as file:
            return file.read(len(PARQUET)) == PARQUET

    def check(self, inputs: Sequence[Input], settings: ReadSettings) -> None:
        """Checks that every table has the columns of url and text."""
        wanted = settings.url_column, settings.text_column, None
        for_each(lambda item: table_columns(item, wanted), {item.path: item for item in inputs}.values())

    def read(
        self, source: Input, *, ledger: Ledger, images: list[pa.RecordBatch], settings: ReadSettings
    ) -> Iterator[pa.RecordBatch]:
        columns = {"url_column": settings.url_column, "text_column": settings.text_column}
        return read_table(source, ledger=ledger, **columns)

    def expected_rows(self, item: Input) -> float:
        return ROWS_PER_PART if item.part is not None else self.size(item) / DENSE_PAIR


def read_table(
    source: Input,
    *,
    ledger: Ledger,
    url_column: str = "url",
    text_column: str = "text",
    page_column: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Batches of CANDIDATES, at most BATCH_ROWS rows each, in the order of the file.

    Counts: records_in and rows_in are the rows read. Rows with a null url or text are drops. Rows that cannot be read
    are lost records.

    Raises:
        ColumnError: a column is missing (the message lists the existing ones) or holds no strings.
        InputError: the file is no table.
    """
    wanted = (url_column, text_column, page_column)
    kind = _kind(source)
    if kind == "parquet":
        rows = _read_parquet(source, wanted, ledger)
    elif kind == "jsonl":
        rows = _read_jsonl(source, wanted, ledger)
    else:
        rows = _read_csv(source, wanted, ledger, delimiter="\t" if kind == "tsv" else ",")
    for (url, text, page), offsets in rows:
        ledger.records_in += len(offsets)
        batch = candidates_of_pairs(url, text, offsets, ledger, page=page)
        if batch.num_rows:
            yield batch


def choose_columns(
    names: Sequence[str], wanted: tuple[str, str, str | None], source_name: str
) -> tuple[str, str, str | None]:
    """The columns to read as url, text and page: the names of the user, else the first usual name that exists.

    A usual name may replace a default name, but not a name that the user chose.

    Raises:
        ColumnError: no column fits, or two columns have its name.
    """
    by_lower = {name.lower(): name for name in reversed(names)}

    def choose(name: str, usual: tuple[str, ...], option: str) -> str:
        if name in names:
            return name
        if name == usual[0]:
            for other in usual:
                if other in by_lower:
                    return by_lower[other]
        near = difflib.get_close_matches(name.lower(), by_lower, n=1)
        hint = f"did you mean {option} {by_lower[near[0]]}?" if near else f"name it with {option}"
        raise ColumnError(
            f"{source_name!r} has no column {name!r} for the {usual[0]}: its columns are {_listed(names)}; {hint}"
        )

    url = choose(wanted[0], URL_NAMES, "--url-column")
    text = choose(wanted[1], TEXT_NAMES, "--text-column")
    for name in (url, text):
        if names.count(name) > 1:
            raise ColumnError(f"{source_name!r} has several columns {name!r}: its columns are {_listed(names)}")
    page = wanted[2]
    if page is None:
        page = next((by_lower[name] for name in PAGE_NAMES if name in by_lower), None)
    elif page not in names:
        raise ColumnError(f"{source_name!r} has no column {page!r} for the page: its columns are {_listed(names)}")
    return url, text, page


def _listed(names: Sequence[str]) -> str:
    """The first names, quoted, and the number of the others."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(repr, names[:MOST_NAMES])) + more


def table_columns(
    source: Input, wanted: tuple[str, str, str | None] = ("url", "text", None)
) -> tuple[str, str, str | None]:
    """The columns that `read_table` reads. A check before the run calls it, so that it can refuse the table early.

    Raises:
        ColumnError, InputError: as `read_table`.
    """
    kind = _kind(source)
    if kind == "parquet":
        with _parquet(source) as file:
            schema = file.schema_arrow
            chosen = choose_columns(schema.names, wanted, source.name)
            for name in filter(None, chosen):
                _check_strings(schema.field(name).type, name, source.name)
            return chosen
    if kind == "jsonl":
        return choose_columns(_json_keys(source), wanted, source.name)
    return choose_columns(_csv_header(source, "\t" if kind == "tsv" else ","), wanted, source.name)


def _kind(source: Input) -> str:
    """parquet, jsonl, tsv or csv: by name, else by the first bytes."""
    match = _NAME.search(file_name(source.path).lower())
    if match:
        return "jsonl" if match[1] == "ndjson" else match[1]
    with open_bytes(source.path) as file:
        if file.read(len(PARQUET)) == PARQUET:
            return "parquet"
    with _stream(source) as stream:
        line = stream.readline(MAX_LINE)
    if line.lstrip()[:1] == b"{":
        return "jsonl"
    return "tsv" if b"\t" in line else "csv"


# ---- columns -> candidates

_Columns = tuple[pa.Array, pa.Array, pa.Array | None]


def _as_strings(column: pa.Array, name: str, source_name: str, ledger: Ledger) -> pa.Array:
    """A column as valid UTF-8 strings; raises ColumnError if it holds other values."""
    _check_strings(column.type, name, source_name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.string())
    if not _is_text(kind):
        return column.cast(pa.string())
    try:
        if kind == pa.string():
            column.validate(full=True)  # Parquet readers do not check that strings are UTF-8
            return column
        return column.cast(pa.binary() if pa.types.is_fixed_size_binary(kind) else pa.string()).cast(pa.string())
    except (pa.ArrowInvalid, UnicodeDecodeError):
        values = [None if value is None else bytes(value) for value in column.cast(pa.binary()).to_pylist()]
        fixed = [None if value is None else value.decode("utf-8", "replace") for value in values]
        ledger.notes["invalid_utf8_replaced"] += sum(
            1 for value, text in zip(values, fixed, strict=True) if text is not None and text.encode() != value
        )
        return pa.array(fixed, pa.string())


def _check_strings(kind: pa.DataType, name: str, source_name: str) -> None:
    """Raises ColumnError for a column that cannot be converted to strings."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (_is_text(kind) or numbers or pa.types.is_null(kind)):
        raise ColumnError(f"the column {name!r} of {source_name!r} holds {kind}, not strings: name another column")


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


# ---- Parquet


def _parquet_parts(found: Found) -> list[Input]:
    """One input, or several parts: consecutive row groups with about ROWS_PER_PART rows together."""
    try:
        with open_seekable(found.path) as opened:
            metadata = pq.read_metadata(opened.stream)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{public(found.path)!r} is no readable Parquet file (cut or damaged?): {error}") from error
    whole = Input(found.name, found.path, Table.name, found.size)
    if metadata.num_rows <= ROWS_PER_PART or metadata.num_row_groups < 2:
        return [whole]
    parts, first, rows = [], 0, 0
    for group in range(metadata.num_row_groups):
        more = metadata.row_group(group).num_rows
        if group > first and rows + more > ROWS_PER_PART:
            parts.append((first, group))
            first, rows = group, 0
        rows += more
    parts.append((first, metadata.num_row_groups))
    return [dataclasses.replace(whole, part=part) for part in parts]


@contextlib.contextmanager
def _parquet(source: Input) -> Iterator[pq.ParquetFile]:
    """The file. Page checksums are verified. Reads use a small buffer and do not hold whole column chunks."""
    with contextlib.ExitStack() as stack:
        where: Any = source.path  # Arrow reads a local file itself
        if is_remote(where):
            where = stack.enter_context(open_seekable(where)).stream
        try:
            file = pq.ParquetFile(where, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{source.name!r} is no readable Parquet file (cut or damaged?): {error}") from error
        yield stack.enter_context(file)


def _read_parquet(
    source: Input, wanted: tuple[str, str, str | None], ledger: Ledger
) -> Iterator[tuple[_Columns, np.ndarray]]:
    with _parquet(source) as file:
        columns = choose_columns(file.schema_arrow.names, wanted, source.name)
        read = list(dict.fromkeys(name for name in columns if name))
        metadata = file.metadata
        first, last = source.part or (0, metadata.num_row_groups)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        runs = list(_runs(sizes, first, last))[::-1]
        at = sum(sizes[:first])
        while runs:
            groups = runs.pop()
            start, end = sum(sizes[: groups[0]]), sum(sizes[: groups[-1] + 1])
            try:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=read, use_threads=False):
                    fresh = batch.slice(min(max(0, at - start), len(batch)))  # without rows read before the damage
                    start += batch.num_rows
                    if fresh.num_rows:
                        yield _pick(fresh, columns, source.name, ledger), np.arange(at, at + fresh.num_rows)
                        at += fresh.num_rows
            except (pa.ArrowException, OSError):
                if len(groups) > 1:
                    runs += [[group] for group in reversed(groups) if sum(sizes[: group + 1]) > at]
                else:
                    ledger.records_in += end - at
                    ledger.lose("damaged_table_page", end - at)
                    at = end


def _runs(sizes: list[int], first: int, last: int) -> Iterator[list[int]]:
    """Row groups that are read together: one that fills a batch, or several small ones."""
    run: list[int] = []
    for group in range(first, last):
        run.append(group)
        if sum(sizes[member] for member in run) >= BATCH_ROWS or group == last - 1:
            yield run
            run = []


def _pick(batch: pa.RecordBatch, columns: tuple[str, str, str | None], source_name: str, ledger: Ledger) -> _Columns:
    url, text, page = (
        None if name is None else _as_strings(batch.column(name), name, source_name, ledger) for name in columns
    )
    assert url is not None and text is not None
    return url, text, page


# ---- CSV, TSV


@contextlib.contextmanager
def _stream(source: Input) -> Iterator[io.BufferedReader]:
    """The bytes of a text table, gzip and zstd undone."""
    compression = _compression(source)
    with contextlib.ExitStack() as stack:
        raw: Any = stack.enter_context(open_bytes(source.path))
        stream: Any = stack.enter_context(pa.PythonFile(raw, "r"))
        if compression == "gzip":
            stream = _UntilDamage(_inflated(raw))
        elif compression:
            packed = stack.enter_context(pa.CompressedInputStream(stream, compression))
            stream = _UntilDamage(iter(lambda: packed.read(64 << 10), b""))  # a read that fails loses its bytes
        yield stack.enter_context(io.BufferedReader(stream, 1 << 20))


def _compression(source: Input) -> str | None:
    """gzip, zstd or None: by name, else by the first bytes."""
    name = file_name(source.path).lower()
    if name.endswith((".gz", ".zst")):
        return "gzip" if name.endswith(".gz") else "zstd"
    if _NAME.search(name):
        return None
    with open_bytes(source.path) as file:
        return "gzip" if file.read(len(GZIP)) == GZIP else None


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


class _UntilDamage(io.RawIOBase):
    """A compressed text that ends with the last whole line before damage. `error` then holds the cause."""

    def __init__(self, source: Iterator[bytes]) -> None:
        super().__init__()
        self._source, self._ready, self._line, self._ended = source, b"", b"", False
        self.error: Exception | None = None

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
            self.error, self._ended = OSError(str(error)), True
            return
        self._ended = not data
        text = self._line + data
        end = text.rfind(b"\n") + 1 if data and len(text) < MAX_LINE else len(text)
        self._ready, self._line = text[:end], text[end:]


def _damage(stream: io.BufferedReader) -> Exception | None:
    """The error at which a stream ended; None without damage."""
    return getattr(stream.raw, "error", None)


def _csv_header(source: Input, delimiter: str) -> list[str]:
    """The names in the first line."""
    try:
        with _stream(source) as stream:
            line = stream.readline(MAX_LINE)
            if not line.strip():
                if error := _damage(stream):
                    raise error
                raise InputError(f"{source.name!r} is empty: it has no line with the names of its columns")
            parse = pyarrow.csv.ParseOptions(delimiter=delimiter)
            return pyarrow.csv.read_csv(io.BytesIO(line.rstrip(b"\r\n") + b"\n"), parse_options=parse).column_names
    except UnicodeDecodeError as error:
        raise InputError(f"{source.name!r} names its columns in another encoding than UTF-8: convert it") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source.name!r} cannot be read as a table: {error}") from error


def _read_csv(
    source: Input, wanted: tuple[str, str, str | None], ledger: Ledger, *, delimiter: str
) -> Iterator[tuple[_Columns, np.ndarray]]:
    columns = choose_columns(_csv_header(source, delimiter), wanted, source.name)
    read = list(dict.fromkeys(name for name in columns if name))
    bad: list[int] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        bad.append(row.number - 2)  # Arrow counts from the header, which is row 1
        return "skip"

    convert = pyarrow.csv.ConvertOptions(
        include_columns=read,
        column_types={name: pa.binary() for name in read},  # so that bad UTF-8 loses one character, not the file
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        check_utf8=False,
    )
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip)
    at = 0
    with _stream(source) as stream:
        try:
            reader = pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK, use_threads=False),
                parse_options=parse,
                convert_options=convert,
            )
            for batch in reader:
                rows, at = _numbers(at, batch.num_rows, bad)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    piece = batch.slice(start, BATCH_ROWS)
                    yield _pick(piece, columns, source.name, ledger), rows[start : start + BATCH_ROWS]
            unread = _damage(stream) is not None
        except (pa.ArrowException, OSError):  # damage, or a row longer than a block (a quote that is never closed)
            unread = True
        if unread:
            ledger.records_in += 1
            ledger.lose("table_rest_unreadable")
    ledger.records_in += len(bad)
    ledger.lose("bad_table_row", len(bad))


def _numbers(at: int, count: int, bad: list[int]) -> tuple[np.ndarray, int]:
    """The numbers of `count` good rows from row `at` on, and the number after the last."""
    if not bad:
        return np.arange(at, at + count), at + count
    candidates = np.arange(at, at + count + len(bad))
    good = candidates[~np.isin(candidates, bad)][:count]
    return good, int(good[-1]) + 1 if count else at


# ---- JSON lines


def _json_keys(source: Input) -> list[str]:
    """The keys of the first lines, in the order of the file."""
    import msgspec

    keys: dict[str, None] = {}
    try:
        with _stream(source) as stream:
            for _ in range(SAMPLE_LINES):
                line = stream.readline(MAX_LINE)
                if not line:
                    break
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    row = msgspec.json.decode(line.removeprefix(codecs.BOM_UTF8))
                    keys.update(dict.fromkeys(row if isinstance(row, dict) else ()))
            if not keys and (error := _damage(stream)):
                raise error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source.name!r} cannot be read as JSON lines: {error}") from error
    if not keys:
        raise InputError(f"{source.name!r} holds no JSON object in its first {SAMPLE_LINES} lines")
    return list(keys)


def _read_jsonl(
    source: Input, wanted: tuple[str, str, str | None], ledger: Ledger
) -> Iterator[tuple[_Columns, np.ndarray]]:
    columns = choose_columns(_json_keys(source), wanted, source.name)
    decode = _line_decoder(columns)
    rows: list[tuple[str | None, str | None, str | None]] = []
    numbers: list[int] = []
    with _stream(source) as stream:
        for number, line in enumerate(_lines(stream, ledger)):
            row = None if line is None else decode(line)
            if row is None:
                if line is None or line.strip():
                    ledger.records_in += 1
                    ledger.lose("table_line_too_long" if line is None else "bad_table_row")
                continue
            rows.append(row)
            numbers.append(number)
            if len(rows) == BATCH_ROWS:
                yield _from_rows(rows, columns), np.array(numbers)
                rows, numbers = [], []
    if rows:
        yield _from_rows(rows, columns), np.array(numbers)


def _line_decoder(columns: tuple[str, str, str | None]) -> Any:
    """A function from a line to (url, text, page). It gives None unless these are strings or nulls in a JSON object."""
    import msgspec

    fields = list(dict.fromkeys(name for name in columns if name))
    inner = [f"f{index}" for index in range(len(fields))]
    rename = dict(zip(inner, fields, strict=True))
    struct = msgspec.defstruct("Row", [(name, str | None, None) for name in inner], rename=rename, gc=False)
    decoder = msgspec.json.Decoder(struct)
    getters = [None if name is None else f"f{fields.index(name)}" for name in columns]

    def decode(line: bytes) -> tuple[str | None, str | None, str | None] | None:
        try:
            row = decoder.decode(line.removeprefix(codecs.BOM_UTF8))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        url, text, page = (None if name is None else getattr(row, name) for name in getters)
        return url, text, page

    return decode


def _lines(stream: io.BufferedReader, ledger: Ledger) -> Iterator[bytes | None]:
    """The lines; None for a line longer than MAX_LINE. Damage of the stream is counted and ends the lines."""
    while True:
        try:
            line = stream.readline(MAX_LINE)
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE)
                yield None
                continue
        except (pa.ArrowException, OSError):
            ledger.records_in += 1
            ledger.lose("table_rest_unreadable")
            return
        if not line:
            if _damage(stream):
                ledger.records_in += 1
                ledger.lose("table_rest_unreadable")
            return
        yield line


def _from_rows(rows: list[tuple[str | None, str | None, str | None]], columns: tuple[str, str, str | None]) -> _Columns:
    url, text, page = (pa.array(values, pa.string()) for values in zip(*rows, strict=True))
    return url, text, page if columns[2] else None
