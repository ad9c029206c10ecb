"""Scores of pairs from tables of the user: --scores. dedup-images decides by them, publish adds them to the metadata.

A table is Parquet or CSV. Its column `key` (or `uid`) has the keys of samples. Each column of numbers, or of true and
false, is a score. Several tables may hold other columns of the same keys, or the same columns of other keys. The
stages keep all of them in one Arrow file, sorted by key. A worker maps this file.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.dataset.shards import JSON_KEYS, METADATA
from pipeline.engine import hashing, storage
from pipeline.engine.cli import UsageError
from pipeline.engine.options import show
from pipeline.engine.work import StageFolder
from pipeline.stages.user_files import State, UserFiles

TABLES = UserFiles("--scores")
KEY_COLUMNS = ("key", "uid")
KEY = pa.field("uid", pa.binary(16), False)
PARQUET = b"PAR1"
EMPTY_CELLS = ["", "null", "NULL", "None", "NA", "N/A", "n/a"]  # of a CSV: no score
# Numeric columns of the set itself that an expression may name. A score cannot have the name of a column of the set.
OWN = ("width", "height", "original_width", "original_height", "language_score")
TAKEN = {*METADATA.names, *JSON_KEYS}

Keys = npt.NDArray[np.bytes_]  # of 16 bytes


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of distinct pairs.

    Attributes:
        uids: (n,) sorted.
        columns: the scores; null: the pair has none.
    """

    uids: Keys
    columns: pa.Table

    def of(self, uids: pa.Array | pa.ChunkedArray) -> pa.Table:
        """The scores of some rows, in their order. A row that no table names has nulls."""
        wanted = _as_keys(hashing.as_array(uids))
        place = np.searchsorted(self.uids, wanted)
        place[place == len(self.uids)] = 0
        found = self.uids[place] == wanted if len(self.uids) else np.zeros(len(wanted), np.bool_)
        return self.columns.take(pa.array(place, mask=~found)).combine_chunks()

    def write(self, path: str) -> None:
        """Writes the file that `load` maps."""
        uids = pa.FixedSizeBinaryArray.from_buffers(KEY.type, len(self.uids), [None, pa.py_buffer(self.uids.tobytes())])
        schema = pa.schema([KEY, *self.columns.schema])
        batch = pa.RecordBatch.from_arrays([uids, *map(hashing.as_array, self.columns.columns)], schema=schema)
        with storage.writing_batches(path, schema) as out:
            out.write_batch(batch)

    @classmethod
    def load(cls, path: str) -> Scores:
        """Maps the file of `write`."""
        (batch,) = storage.read_batches(path)
        table = pa.Table.from_batches([batch])
        return cls(_as_keys(batch["uid"]), table.drop_columns(["uid"]))


def scores_of(stage: StageFolder) -> str:
    """Where the stage dedup-images keeps the scores."""
    return stage.step("scores").file(0, "arrow")


@functools.lru_cache(maxsize=2)
def load_scores(path: str) -> Scores:
    """`Scores.load`, once for each worker."""
    return Scores.load(path)


def _as_keys(uids: pa.Array) -> Keys:
    """A column of uids as keys of numpy, without a copy."""
    data = np.frombuffer(uids.buffers()[1] or b"", "S16")
    return data[uids.offset : uids.offset + len(uids)]


# ------------------------------------------------------------------------------------------------- tables of the user


def column_names(paths: Sequence[str]) -> list[str]:
    """The columns that an expression may name, as far as the heads of the tables tell. Text columns are among them.

    Raises:
        UsageError: a table cannot be read, or has no keys.
    """
    found = [name for path in paths for name in _head(path) if name not in KEY_COLUMNS]
    return sorted({*OWN, *(name for name in found if name not in TAKEN)})


def read_scores(paths: Sequence[str]) -> Scores:
    """Reads and joins the tables. The last result is kept, so that a run that checks them does not read them again.

    Raises:
        UsageError: a table cannot be read, a key is bad or comes twice, or a score is not a finite number.
    """
    return _joined(tuple(paths), TABLES.states(paths))


@functools.lru_cache(maxsize=1)
def _joined(paths: tuple[str, ...], states: tuple[State, ...]) -> Scores:
    del states
    tables = [(path, *_read(path)) for path in paths]
    uids: Keys = np.unique(np.concatenate([np.zeros(0, "S16"), *(keys for _, keys, _ in tables)]))
    columns: dict[str, _Column] = {}
    for path, keys, table in tables:
        place = np.searchsorted(uids, keys)
        _check_distinct(path, keys, place)
        for name, column in zip(table.column_names, table.columns, strict=True):
            columns.setdefault(name, _Column(name)).add(path, place, hashing.as_array(column), uids)
    joined = {name: column.joined(len(uids)) for name, column in sorted(columns.items())}
    return Scores(uids, pa.table(joined))


@dataclasses.dataclass
class _Column:
    """A score, from the tables that have it."""

    name: str
    parts: list[tuple[str, npt.NDArray[np.int64], pa.Array]] = dataclasses.field(default_factory=list)

    def add(self, path: str, place: npt.NDArray[np.int64], values: pa.Array, uids: Keys) -> None:
        """Adds the values of a table. `place` of each row in `uids`."""
        for other, places, earlier in self.parts:
            twice = np.intersect1d(places, place)
            if len(twice):
                key = uids[twice[0]].ljust(16, b"\0").hex()
                raise TABLES.refusal(path, f"the key {key} has a {show(self.name)} in {show(other)} too")
            if pa.types.is_boolean(earlier.type) != pa.types.is_boolean(values.type):
                raise TABLES.refusal(path, f"{show(self.name)} has other types of values in {show(other)}")
        self.parts.append((path, place, values))

    def joined(self, rows: int) -> pa.Array:
        """The values in the order of the uids."""
        kinds = {values.type for _, _, values in self.parts}
        kind = kinds.pop() if len(kinds) == 1 else pa.float64()
        places = np.concatenate([place for _, place, _ in self.parts])
        source = np.full(rows, -1)
        source[places] = np.arange(len(places))
        values = pa.concat_arrays([values.cast(kind, safe=False) for _, _, values in self.parts])
        return values.take(pa.array(source, mask=source < 0))


def _check_distinct(path: str, keys: Keys, place: npt.NDArray[np.int64]) -> None:
    twice = np.flatnonzero(np.bincount(place, minlength=1) > 1) if len(place) else place
    if len(twice):
        rows = np.flatnonzero(place == twice[0])[:2] + 1
        key = keys[rows[0] - 1].ljust(16, b"\0").hex()
        raise TABLES.refusal(path, f"the key {key} comes twice (rows {rows[0]:,} and {rows[1]:,})")


def _head(path: str) -> list[str]:
    """The names of the columns of a table.

    Raises:
        UsageError: it cannot be read, or has no keys.
    """
    with _Readable(path):
        if _is_parquet(path):
            names = pq.read_schema(storage.here(path)).names
        else:
            with _open_csv(path) as file:
                line = file.read(1 << 16).split(b"\n")[0]
            # not by Arrow: one of its threads may free the line while a refusal ends the process, which aborts it
            names = next(csv.reader([line.decode("utf-8-sig").rstrip("\r")], delimiter=_delimiter(line)), [])
            if not names:
                raise ValueError("its first line is empty")
    if not set(KEY_COLUMNS) & set(names):
        some = ", ".join(map(show, names[:8]))
        raise TABLES.refusal(path, f"has no column 'key' or 'uid' (columns: {some})")
    return names


def _read(path: str) -> tuple[Keys, pa.Table]:
    """The keys and the scores of a table."""
    names = _head(path)
    key = next(name for name in KEY_COLUMNS if name in names)
    with _Readable(path):
        table = _read_parquet(path, key) if _is_parquet(path) else _read_csv(path, key)
    keys = _parse_keys(path, hashing.as_array(table[key]))
    if not any(_is_score(table.schema.field(name).type) for name in table.column_names if name not in TAKEN):
        raise TABLES.refusal(path, "has no column of numbers beside the keys and the columns of the set")
    scores = {
        name: _checked(path, name, hashing.as_array(table[name]), keys)
        for name in table.column_names
        if name not in KEY_COLUMNS and name not in TAKEN and _is_score(table.schema.field(name).type)
    }
    return keys, pa.table(scores)


def _is_score(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in tests)


def _checked(path: str, name: str, values: pa.Array, keys: Keys) -> pa.Array:
    """The values in a type that every reader of Parquet knows.

    Raises:
        UsageError: a value is not finite.
    """
    if pa.types.is_floating(values.type):
        bad = pc.invert(pc.is_finite(values)).fill_null(False)
        if pc.any(bad).as_py():
            row = bad.index(pa.scalar(True)).as_py()
            found = values[row].as_py()
            key = keys[row].ljust(16, b"\0").hex()
            raise TABLES.refusal(
                path,
                f"{show(name)} of the key {key} is {found}: must be finite; leave the cell empty, "
                "or the row out, where there is no score",
            )
    kinds = {pa.float16(): pa.float32()}
    kind = pa.float64() if pa.types.is_decimal(values.type) else kinds.get(values.type, values.type)
    return values.cast(kind)


def _read_parquet(path: str, key: str) -> pa.Table:
    schema = pq.read_schema(storage.here(path))
    wanted = [field.name for field in schema if field.name == key or _is_score(field.type)]
    return pq.read_table(storage.here(path), columns=wanted, page_checksum_verification=True, use_threads=False)


def _read_csv(path: str, key: str) -> pa.Table:
    with _open_csv(path) as file:
        delimiter = _delimiter(file.read(1 << 16).split(b"\n")[0])
    convert = pa.csv.ConvertOptions(
        column_types={key: pa.string()},
        null_values=EMPTY_CELLS,
        true_values=["true", "True"],
        false_values=["false", "False"],
    )
    with _open_csv(path) as file:
        parse = pa.csv.ParseOptions(delimiter=delimiter)
        return pa.csv.read_csv(file, parse_options=parse, convert_options=convert)


def _delimiter(line: bytes) -> str:
    return "\t" if line.count(b"\t") > line.count(b",") else ";" if line.count(b";") > line.count(b",") else ","


def _open_csv(path: str) -> Any:
    return pa.input_stream(storage.here(path), compression="gzip" if _begins(path, b"\x1f\x8b") else None)


def _begins(path: str, head: bytes) -> bool:
    with storage.reading(path) as file:
        return file.read(len(head)) == head


def _is_parquet(path: str) -> bool:
    return _begins(path, PARQUET)


class _Readable:
    """Turns what Arrow raises for a bad table into one line."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, (pa.ArrowException, OSError, ValueError)) and not isinstance(error, UsageError):
            reason = " ".join(str(error).split())[:200]
            raise TABLES.refusal(self._path, f"is no Parquet or CSV table ({reason})") from None


def _parse_keys(path: str, column: pa.Array) -> Keys:
    """The keys as uids.

    Raises:
        UsageError: one is no key of a set.
    """
    if pa.types.is_fixed_size_binary(column.type) and column.type.byte_width == 16 and not column.null_count:
        return _as_keys(column).copy()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise TABLES.refusal(path, f"the keys are of type {column.type}: must be texts of 32 hexadecimal digits")
    good = pc.match_substring_regex(column, r"^[0-9a-fA-F]{32}$").fill_null(False)
    if pc.any(pc.invert(good)).as_py():
        row = good.index(pa.scalar(False)).as_py()
        raise TABLES.refusal(
            path,
            f"the key {show(column[row].as_py())!r} (row {row + 1:,}) is no key of a set: must be "
            "32 hexadecimal digits",
        )
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), "S16")
