"""Embeddings of pairs from tables of the user: --embeddings. dedup-images finds near-duplicates by them.

A table is Parquet. Its column `key` (or `uid`) has the keys of samples. Its column `embedding` has lists of floats, all
of one width: what `clip_train embed` writes, or any model. All are read twice: to check them before a run, and to write
the arrays that the workers map:

    embeddings/00000.keys      (n,) the keys, sorted
    embeddings/00000.place     (n,) the row of each key in the next two
    embeddings/00000.vectors   (n, width) int16, see `near_vectors`
    embeddings/00000.sieve     (n, 128 or less) int16, the projected vectors
    embeddings/00000.centres   (cells, 128 or less) float32
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine import hashing, storage
from pipeline.engine.options import show
from pipeline.engine.work import StepFolder
from pipeline.stages import near_vectors
from pipeline.stages.user_files import State, UserFiles

KEY_COLUMNS = ("key", "uid")
COLUMN = "embedding"
ROWS = 8192  # of a batch
BATCH_NUMBERS = 1 << 22  # of embeddings in a batch, at most: a batch of wide ones has fewer rows
BUFFER = 1 << 20  # bytes of a column of Parquet that are read at a time

Keys = npt.NDArray[np.bytes_]  # of 16 bytes
TABLES = UserFiles("--embeddings")


@dataclasses.dataclass(frozen=True)
class Tables:
    """How the tables of an option are read.

    Attributes:
        files: of the option.
        key_columns: the names that the column of keys may have.
        parse: (path, column) -> the keys. It raises UsageError for a bad one.
        describe: (keys, row) -> a key for a message.
    """

    files: UserFiles
    key_columns: tuple[str, ...]
    parse: Callable[[str, pa.Array], Any]
    describe: Callable[[Any, Any], str]

    def batches(self, path: str) -> Iterator[tuple[Any, npt.NDArray[Any]]]:
        """Yields the keys and the (n, width) embeddings of a table.

        Raises:
            UsageError: it cannot be read, or it is no table of embeddings.
        """
        try:
            # Without a buffer, the column of a whole row group would be in memory: often that of the whole table.
            with pq.ParquetFile(
                storage.here(path), pre_buffer=False, buffer_size=BUFFER, page_checksum_verification=True
            ) as file:
                names = file.schema_arrow.names
                key = next((name for name in self.key_columns if name in names), None)
                if key is None or COLUMN not in names:
                    some = ", ".join(map(show, names[:8]))
                    raise self.files.refusal(path, f"needs the columns 'key' and 'embedding' (columns: {some})")
                for batch in file.iter_batches(_rows_of_batch(file), columns=[key, COLUMN], use_threads=False):
                    if batch.num_rows:
                        keys = self.parse(path, batch[key])
                        yield keys, self._floats(path, keys, batch[COLUMN])
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise self.files.refusal(path, f"is no Parquet table ({reason})") from None

    def checked(self, paths: Sequence[str]) -> Iterator[tuple[Any, int]]:
        """Reads all tables. Yields the keys of a batch, and the width of its embeddings.

        Raises:
            UsageError: a table has no rows, or an embedding has another width than the others, is zero, or has a number
                that is not finite.
        """
        width, first = 0, ""
        for path in paths:
            for keys, vectors in self.batches(path):
                if width and vectors.shape[1] != width:
                    raise self.files.refusal(
                        path, f"has embeddings of {vectors.shape[1]:,} numbers, and {show(first)} of {width:,}"
                    )
                width, first = vectors.shape[1], first or path
                self._check_numbers(path, keys, vectors)
                yield keys, width
        if not width:
            raise self.files.refusal(", ".join(map(show, paths)), "has no rows")

    def _check_numbers(self, path: str, keys: Any, vectors: npt.NDArray[Any]) -> None:
        infinite, zero = ~np.isfinite(vectors).all(axis=1), ~vectors.any(axis=1)
        for bad, what in ((infinite, "has a number that is not finite"), (zero, "is zero")):
            if bad.any():
                key = self.describe(keys, np.flatnonzero(bad)[0])
                raise self.files.refusal(path, f"the embedding of the key {key} {what}")

    def _floats(self, path: str, keys: Any, column: pa.Array) -> npt.NDArray[Any]:
        """(n, width) floats.

        Raises:
            UsageError: the column has no lists of floats, or lists of different widths.
        """
        kind = column.type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or not pa.types.is_floating(kind.value_type):
            raise self.files.refusal(path, f"'embedding' is of type {kind}: must be lists of floats")
        flat, lengths = column.flatten(), pc.list_value_length(column).fill_null(0).to_numpy()
        other = np.flatnonzero(lengths != lengths[0])
        if len(other):
            row = other[0]
            key = self.describe(keys, row)
            raise self.files.refusal(
                path, f"the embedding of the key {key} has {lengths[row]:,} numbers, and others {lengths[0]:,}"
            )
        if not 0 < lengths[0] <= near_vectors.MOST_WIDTH:
            raise self.files.refusal(
                path, f"has embeddings of {lengths[0]:,} numbers: must be 1 to {near_vectors.MOST_WIDTH:,}"
            )
        if flat.null_count:
            raise self.files.refusal(path, "has empty cells within embeddings")
        return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The size of all tables together."""

    rows: int
    width: int


def check(paths: Sequence[str]) -> Shape:
    """Reads all tables.

    Raises:
        UsageError: a table cannot be read, a key is bad or comes twice, an embedding has another width than the others,
            is zero, or has a number that is not finite.
    """
    return _check(tuple(paths), TABLES.states(paths))


@functools.lru_cache(maxsize=1)
def _check(paths: tuple[str, ...], states: tuple[State, ...]) -> Shape:
    del states
    batches = list(READ.checked(paths))
    found, width = [keys for keys, _ in batches], batches[0][1]
    keys = np.sort(np.concatenate(found))
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        raise TABLES.refusal(", ".join(map(show, paths)), f"the key {_hex(keys[twice[0]])} comes twice")
    return Shape(len(keys), width)


def write(paths: Sequence[str], folder: StepFolder) -> None:
    """Writes the arrays that `load` maps. A batch is in memory at a time, the sample for the cells, and the keys."""
    shape = check(paths)
    cells, narrow = near_vectors.cells_for(shape.rows), min(shape.width, near_vectors.SIEVE)
    share = min(2**64 - 1, 2**64 * near_vectors.SAMPLE_PER_CELL * cells // shape.rows)
    found, sample = [np.zeros(0, "S16")], [np.zeros((0, narrow), np.float32)]
    with _rows(folder.file(0, "vectors"), shape.width) as vectors, _rows(folder.file(0, "sieve"), narrow) as sieves:
        for keys, floats in (batch for path in paths for batch in READ.batches(path)):
            whole = near_vectors.rounded(floats)
            sieve = near_vectors.projected(whole)
            vectors.append(whole)
            sieves.append(sieve.astype(np.int16))
            sample.append(sieve[_words(keys) <= np.uint64(share)])
            found.append(keys)
    keys = np.concatenate(found)
    order = np.argsort(keys)
    chosen = keys[_words(keys) <= np.uint64(share)]
    centres = near_vectors.centroids(np.concatenate(sample)[np.argsort(_words(chosen), kind="stable")], cells)
    storage.save_array(folder.file(0, "keys"), keys[order])
    storage.save_array(folder.file(0, "place"), order.astype(np.int64))
    storage.save_array(folder.file(0, "centres"), centres)


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The arrays of `write`, mapped."""

    keys: Keys
    place: npt.NDArray[np.int64]
    vectors: near_vectors.Vectors
    sieve: near_vectors.Vectors
    centres: near_vectors.Floats

    def places_of(self, uids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """The row of each uid in `vectors`; -1: it has no embedding."""
        wanted = np.frombuffer(hashing.as_array(uids).buffers()[1] or b"", "S16")
        wanted = wanted[hashing.as_array(uids).offset :][: len(uids)]
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.place[at], -1)

    def release(self) -> None:
        """Gives back the memory of the vectors that were read. Otherwise those of all cells would stay in it."""
        storage.release(self.vectors)


@functools.lru_cache(maxsize=2)
def load(folder: StepFolder) -> Embeddings:
    """Maps the arrays, once for each worker."""
    names = [field.name for field in dataclasses.fields(Embeddings)]
    return Embeddings(*(storage.map_array(folder.file(0, name)) for name in names))


def _rows_of_batch(file: pq.ParquetFile) -> int:
    """The rows that are read at a time. The count of the numbers in the file tells their width."""
    found = file.metadata
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    columns = (group.column(at) for group in groups for at in range(group.num_columns))
    numbers = sum(column.num_values for column in columns if column.path_in_schema.split(".")[0] == COLUMN)
    return max(1, min(ROWS, BATCH_NUMBERS * found.num_rows // max(1, numbers)))


class _Rows:
    """The rows of an array while they are written."""

    def __init__(self, file: Any, width: int) -> None:
        self._file, self._width, self._count = file, width, 0
        self._head()

    def append(self, rows: npt.NDArray[np.int16]) -> None:
        """Writes rows."""
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self._count += len(rows)

    def finish(self) -> None:
        """Writes the head, now that the number of rows is known. numpy leaves room for it."""
        self._file.seek(0)
        self._head()

    def _head(self) -> None:
        said = {"descr": "<i2", "fortran_order": False, "shape": (self._count, self._width)}
        np.lib.format.write_array_header_1_0(self._file, said)


@contextlib.contextmanager
def _rows(path: str, width: int) -> Iterator[_Rows]:
    """A file of `storage.map_array` whose rows are appended."""
    with storage.sealing(path) as name, open(name, "wb") as file:
        rows = _Rows(file, width)
        yield rows
        rows.finish()


def _words(keys: Keys) -> npt.NDArray[np.uint64]:
    """A hash of each key."""
    low: npt.NDArray[np.uint64] = np.frombuffer(keys.tobytes(), "<u8")[1::2]
    return hashing.mix(low, np.uint64(1))


def _hex(key: np.bytes_) -> str:
    return bytes(key).ljust(16, b"\0").hex()


def _parse_keys(path: str, column: pa.Array) -> Keys:
    """The keys as uids.

    Raises:
        UsageError: one is no key of a set.
    """
    if pa.types.is_fixed_size_binary(column.type) and column.type.byte_width == 16 and not column.null_count:
        return np.array(column.to_pylist(), "S16")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    good = pc.match_substring_regex(column, r"^[0-9a-fA-F]{32}$").fill_null(False) if texts else pa.array([False])
    if not pc.all(good).as_py():
        bad = column[good.index(pa.scalar(False)).as_py()].as_py()
        raise TABLES.refusal(path, f"the key {show(str(bad))!r} is no key of a set: must be 32 hexadecimal digits")
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), "S16")


READ = Tables(TABLES, KEY_COLUMNS, _parse_keys, lambda keys, row: _hex(keys[row]))
