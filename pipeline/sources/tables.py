"""Tables of (url, text) as candidates: Parquet, CSV, TSV and JSON.

Only the needed columns are read, in bounded batches. `offset` is the number of the row in its file. Damage is counted
and never fatal. A bad line loses that line. A damaged page loses the rest of its row group. A cut file loses its end.
`delimited.py` reads CSV and TSV, `json_rows.py` JSON lines and arrays of objects.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.display import sanitize
from pipeline.engine.input_errors import InputError, UnreadableInputError, is_remote, public
from pipeline.engine.ledger import Ledger
from pipeline.engine.opening import open_seekable
from pipeline.sources import delimited, json_rows
from pipeline.sources.base import (
    BATCH_ROWS,
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
    read_head,
)
from pipeline.sources.pieces import Piece, cut_text
from pipeline.sources.text_stream import describe_head, open_text

ROWS_PER_PART = 1_000_000  # a Parquet file with more rows is read in parts, by row groups
DENSE_PAIR = 60  # bytes for each pair, where texts are short
PARQUET = b"PAR1"  # begins a Parquet file
SLICES = 8  # of a row group in a piece of a sample
TEXT_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
DELIMITERS = {"csv": b",", "tsv": b"\t"}  # by kind, if the first line holds them
MOST_NAMES = 40  # columns that a message lists

_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\[\s*)?\{\s*["}]')  # an object, or an array of objects
_KEY = re.compile(rb'"([A-Za-z_]{1,40})"\s*:')  # of an object
_NAME = re.compile(r"\.(parquet|csv|tsv|jsonl|ndjson)(\.gz|\.zst)?$")

# Other names that datasets use. They are tried in this order if the default name is missing.
URL_NAMES = ("url", "image_url", "img_url", "image", "link", "photo_image_url", "thumbnailurl", "src")
TEXT_NAMES = ("text", "caption", "alt", "alt_text", "alttext", "title", "description", "caption_reference_description")
PAGE_NAMES = ("page_url",)


class ColumnError(SettingsError):
    """A table lacks a column that is asked for, or the column holds no strings."""


class Table(Reader):
    """Parquet, CSV, TSV and JSON with a column of URLs and one of texts."""

    name: ClassVar[str] = "table"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", *packed(*TEXT_TABLES, by=(".gz", ".zst")))
    vague_suffixes: ClassVar[tuple[str, ...]] = packed(".json", by=(".gz", ".zst"))
    bytes_per_pair: ClassVar[float] = 100
    is_general: ClassVar[bool] = True
    piece_bytes: ClassVar[int] = 1 << 20

    def sniff(self, head: bytes) -> bool:
        return head.startswith(PARQUET) or _JSON.match(head) is not None or _names_columns(head) or _begins_row(head)

    def holds_pairs(self, head: bytes) -> bool:
        keys = {key.decode().lower() for key in _KEY.findall(head)}
        return _JSON.match(head) is not None and not (keys.isdisjoint(URL_NAMES) or keys.isdisjoint(TEXT_NAMES))

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
        files = {item.path: item for item in inputs}
        for_each(lambda item: table_columns(item, wanted, given=settings.columns), files.values())

    def read(
        self, source: Input, *, ledger: Ledger, images: list[pa.RecordBatch], settings: ReadSettings
    ) -> Iterator[pa.RecordBatch]:
        columns = {"url_column": settings.url_column, "text_column": settings.text_column}
        return read_table(source, ledger=ledger, given=settings.columns, **columns)

    def unit(self, item: Input) -> str:
        return "rows" if self._is_parquet(_found(item)) else "bytes"

    def amount(self, item: Input) -> float | None:
        if self.unit(item) == "bytes":
            return item.bytes
        if is_remote(item.path):
            return None
        with _parquet(item) as file:
            return sum(sizes_of_groups(file.metadata, item.part))

    def slots(self, item: Input, size: int) -> int:
        return -(-self.size(item) // size)

    def cut(self, item: Input, slot: int, size: int, target: str, settings: ReadSettings) -> Piece:
        if self.unit(item) == "bytes":
            return cut_text(item.path, slot, size, target, has_names=not settings.columns)
        return _cut_parquet(item, slot, size, target, (settings.url_column, settings.text_column, None))

    def expected_rows(self, item: Input) -> float:
        return ROWS_PER_PART if item.part is not None else self.size(item) / DENSE_PAIR


def _found(item: Input) -> Found:
    return item.found or Found(item.name, item.path, "", item.bytes)


def _names_columns(head: bytes) -> bool:
    """True if the first line holds one of the usual names for URLs, and one for texts."""
    line = head.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0].decode("utf-8", "replace").lower()
    names = {cell.strip('" \r') for cell in re.split("[,;|\t]", line)}
    return not names.isdisjoint(URL_NAMES) and not names.isdisjoint(TEXT_NAMES)


def _begins_row(head: bytes) -> bool:
    """True if the first line is a row of a table without names: one cell is a web address, and another one is not."""
    line = head.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0]
    return any(0 < sum(map(_is_address, cells)) < len(cells) for cells in (line.split(sign) for sign in (b"\t", b",")))


def _is_address(cell: bytes) -> bool:
    return cell.strip(b'" \r').lower().startswith((b"http://", b"https://"))


def read_table(
    source: Input,
    *,
    ledger: Ledger,
    url_column: str = "url",
    text_column: str = "text",
    page_column: str | None = None,
    given: Sequence[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Batches of CANDIDATES, at most BATCH_ROWS rows each, in the order of the file.

    Counts: records_in and rows_in are the rows read. Rows with a null url or text are drops. Rows that cannot be read
    are lost records. `given` names the columns of a CSV or TSV that has no line with their names.

    Raises:
        ColumnError: a column is missing (the message lists the existing ones) or holds no strings.
        InputError: the file is no table.
    """
    wanted = (url_column, text_column, page_column)
    kind = _kind(source)
    if kind == "parquet":
        rows = _read_parquet(source, wanted, ledger)
    elif kind == "json":
        rows = _read_json(source, wanted, ledger)
    else:
        rows = _read_delimited(source, wanted, ledger, kind, given)
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
    source: Input, wanted: tuple[str, str, str | None] = ("url", "text", None), *, given: Sequence[str] = ()
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
    with _text(source) as stream:
        if kind == "json":
            return choose_columns(json_rows.keys_of(stream, source.name), wanted, source.name)
        made = delimited.layout(stream, source.name, DELIMITERS[kind], given)
        return _columns_of(made, wanted, source.name)


def _kind(source: Input) -> str:
    """parquet, json, tsv or csv: by name, else by the first bytes."""
    match = _NAME.search(file_name(source.path).lower())
    if match:
        return "json" if match[1] in ("jsonl", "ndjson") else match[1]
    with open_bytes(source.path) as file:
        if file.read(len(PARQUET)) == PARQUET:
            return "parquet"
    with _text(source) as stream:
        head = stream.peek(1).lstrip()
    if head.startswith((b"{", b"[")):
        return "json"
    return "tsv" if b"\t" in head.split(b"\n", 1)[0] else "csv"


def _text(source: Input) -> contextlib.AbstractContextManager[io.BufferedReader]:
    return open_text(source.path, named=_NAME.search(file_name(source.path).lower()) is not None)


def _columns_of(
    made: delimited.Layout, wanted: tuple[str, str, str | None], source_name: str
) -> tuple[str, str, str | None]:
    """The columns of a delimited text.

    Raises:
        ColumnError: also if the first line is a row and names no columns.
    """
    try:
        return choose_columns(made.names, wanted, source_name)
    except ColumnError as error:
        if not made.unread and any(name.lower().startswith(("http://", "https://")) for name in made.names):
            names = ",".join("url" if "://" in name else "text" for name in made.names)
            raise ColumnError(
                f"{source_name!r} begins with a row, not with the names of its columns: name them, as in "
                f"--columns {names}"
            ) from error
        raise


def _read_json(
    source: Input, wanted: tuple[str, str, str | None], ledger: Ledger
) -> Iterator[tuple[_Columns, np.ndarray]]:
    with _text(source) as stream:
        columns = choose_columns(json_rows.keys_of(stream, source.name), wanted, source.name)
    with _text(source) as stream:
        yield from json_rows.read_rows(stream, columns, ledger)


def _read_delimited(
    source: Input, wanted: tuple[str, str, str | None], ledger: Ledger, kind: str, given: Sequence[str]
) -> Iterator[tuple[_Columns, np.ndarray]]:
    with _text(source) as stream:
        made = delimited.layout(stream, source.name, DELIMITERS[kind], given)
        columns = _columns_of(made, wanted, source.name)
        places = [None if name is None else made.names.index(name) for name in columns]
        read = list(dict.fromkeys(place for place in places if place is not None))
        fields = tuple(None if place is None else str(place) for place in places)
        for batch, numbers in delimited.read_rows(stream, made, read, places[0] or 0, ledger):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                piece = batch.slice(start, BATCH_ROWS)
                yield _pick(piece, fields, source.name, ledger), numbers[start : start + BATCH_ROWS]


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
    if pa.types.is_struct(kind) and "bytes" in {field.name for field in kind}:
        raise ColumnError(
            f"the column {name!r} of {source_name!r} holds images, not their URLs: name a column of URLs with "
            "--url-column"
        )
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
        raise _unreadable(found.path, public(found.path), error) from error
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


def sizes_of_groups(metadata: pq.FileMetaData, part: tuple[int, int] | None) -> list[int]:
    """The rows of each row group of a file, or of a part of it."""
    first, last = part or (0, metadata.num_row_groups)
    return [metadata.row_group(group).num_rows for group in range(first, last)]


def _cut_parquet(item: Input, slot: int, size: int, target: str, wanted: tuple[str, str, str | None]) -> Piece:
    """Cuts rows out of a row group: a few slices that lie evenly in it, so that one piece shows the whole group."""
    with _parquet(item) as file:
        sizes = sizes_of_groups(file.metadata, item.part)
        total, first = sum(sizes), (item.part or (0, 0))[0]
        if not total:
            return Piece(0, 0)
        rows = max(1, round(size * file.metadata.num_rows / max(1, item.bytes or size)))
        slots = [(group, place) for group, count in enumerate(sizes) for place in range(-(-count // rows))]
        slot %= len(slots)
        group, place = slots[slot]
        columns = choose_columns(file.schema_arrow.names, wanted, item.name)
        taken = _slices(file, first + group, sizes[group], rows, place, [*dict.fromkeys(filter(None, columns))])
        if taken.num_rows:
            pq.write_table(taken, target)
        return Piece(taken.num_rows, total, slot)


def _slices(file: pq.ParquetFile, group: int, count: int, rows: int, place: int, columns: list[str]) -> pa.Table:
    """Slice `place` of each of SLICES equal ranges of a row group; all its slices together are all its rows."""
    parts = -(-count // rows)
    bounds = [count * number // (SLICES * parts) for number in range(SLICES * parts + 1)]
    wanted = [(bounds[piece * parts + place], bounds[piece * parts + place + 1]) for piece in range(SLICES)]
    taken, at = [], 0
    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
        for low, high in wanted:
            low, high = max(low - at, 0), min(high - at, batch.num_rows)
            if high > low:
                taken.append(batch.slice(low, high - low))
        at += batch.num_rows
        if at >= wanted[-1][1]:
            break
    return pa.Table.from_batches(taken, None if taken else file.schema_arrow.empty_table().select(columns).schema)


def _unreadable(path: str, name: str, error: Exception) -> InputError:
    if isinstance(error, OSError) and error.errno is not None:
        return InputError(f"{name!r} cannot be read: {error}")  # of the system: the file itself may be good
    seems = describe_head(read_head(path))
    why = sanitize(str(error).strip().rstrip("."))  # messages of Arrow hold line breaks and bytes of the file
    return UnreadableInputError(f"{name!r} is no readable Parquet file: {seems or f'cut or damaged? {why}'}")


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
            raise _unreadable(source.path, source.name, error) from error
        yield stack.enter_context(file)


def _read_parquet(
    source: Input, wanted: tuple[str, str, str | None], ledger: Ledger
) -> Iterator[tuple[_Columns, np.ndarray]]:
    with _parquet(source) as file:
        columns = choose_columns(file.schema_arrow.names, wanted, source.name)
        read = list(dict.fromkeys(name for name in columns if name))
        metadata = file.metadata
        first, last = source.part or (0, metadata.num_row_groups)
        sizes = sizes_of_groups(metadata, None)
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


def _pick(batch: pa.RecordBatch, columns: tuple[str | None, ...], source_name: str, ledger: Ledger) -> _Columns:
    url, text, page = (
        None if name is None else _as_strings(batch.column(name), name, source_name, ledger) for name in columns
    )
    assert url is not None and text is not None
    return url, text, page
