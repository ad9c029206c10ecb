"""Builds the index of a set: one pass over its metadata, without its pictures.

    build("OUT", "/cache/0f3a...")

The index is a folder of mapped arrays (`coding`). It holds what the search and the gallery need: the words of all
texts, queries, domains and other columns as codes, perceptual hashes, and the place of each picture in its tar. FTS5 of
SQLite was measured beside it (docs/benchmarks/explore.md): it counts facets over many hits too slowly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.errors import Damaged, NotFound
from pipeline.dataset.summary import NO_VALUE, hosts
from pipeline.engine import hashing, storage
from pipeline.explorer.coding import Coded, Column, invert, mapped, write_numbers, write_strings
from pipeline.inspector.foreign import TarPairs
from pipeline.inspector.opening import open_pairs
from pipeline.inspector.pairs import Pairs, Published
from pipeline.schema import DUPLICATES_FILE
from pipeline.text.normalize import normalize_array

FORM = 1  # raised when the files of an index change: an index of another form is built again
ROWS = 10_000  # that are read at once
SHOWN = 400  # characters of a text that the gallery shows
SEARCHED = 4000  # characters of a text whose words are found
BREAK = "\n"  # stands between the texts of a pair, so that no phrase reaches over it; no word is equal to it
INDEX_FILE = "index.json"
PARTIAL = ".partial-"  # an index that is being built: behind it stands the id of the process

# Columns whose values are facets, with the column of the metadata that each comes from.
FACETS = {
    "language": "language",
    "domain": "url",
    "text_source": "text_source",
    "rights": "rights",
    "license": "license",
    "input": "source_file",
}
NUMBERS: dict[str, tuple[str, Any]] = {
    "shard": ("shard", np.int32),
    "offset": ("jpg_offset", np.int64),
    "bytes": ("jpg_size", np.int64),
    "width": ("width", np.int32),
    "height": ("height", np.int32),
    "side": ("image_side", np.int32),
    "probability": ("keep_probability", np.float32),
    "phash": ("phash", np.uint64),
}
ROW = pa.schema([pa.field("key", pa.string()), pa.field("text", pa.string())])
Progress = Callable[[int, int], None]  # rows that are done, and all rows (0: not known)


@dataclasses.dataclass(frozen=True)
class Source:
    """What is shown: the pairs of a folder, and a digest that changes when they do."""

    folder: str
    pairs: Pairs
    digest: str

    @property
    def rows(self) -> int:
        """The pairs; 0 where only reading all of them would tell."""
        return len(self.pairs.opened) if isinstance(self.pairs, Published) else 0


def open_source(folder: str) -> Source:
    """Opens a published set, or tars that another tool has written.

    Raises:
        NotFound: there is nothing with pictures to show.
        Damaged: a file cannot be read.
    """
    pairs = open_pairs(folder)
    if isinstance(pairs, Published):
        return Source(folder, pairs, pairs.opened.digest)
    if isinstance(pairs, TarPairs):
        return Source(folder, pairs, digest_of_files(pairs.paths))
    if "jpg_size" in pairs.schema.names:
        raise NotFound(f"{folder!r} is {pairs.name}: write it as tars with `inspect_shards export --format webdataset`")
    raise NotFound(f"{folder!r} is a {pairs.name}: it has no pictures yet; `inspect_shards grep` shows its texts")


def digest_of_files(paths: list[str]) -> str:
    """Of the names, sizes and times of files: they have no manifest."""
    found = [(os.path.abspath(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def build(source: Source, folder: str, *, progress: Progress = lambda done, rows: None) -> None:
    """Writes the index of a set as a folder. It appears whole or not at all.

    Args:
        source: the set.
        folder: of the index. One that another process has written meanwhile stays.
        progress: is told how far it is.

    Raises:
        Damaged: the set cannot be read.
    """
    above = os.path.dirname(folder)
    os.makedirs(above, mode=0o700, exist_ok=True)
    remove_partial(above)
    partial = tempfile.mkdtemp(prefix=f"{PARTIAL}{os.getpid()}-", dir=above)
    try:
        _Builder(source, partial).run(progress)
        try:
            os.rename(partial, folder)
        except OSError:
            if not os.path.exists(os.path.join(folder, INDEX_FILE)):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: str) -> None:
    """Removes what processes left that were killed while they built an index."""
    for name in os.listdir(folder):
        found = re.fullmatch(rf"{re.escape(PARTIAL)}(\d+)-\w+", name)
        if found and not os.path.exists(f"/proc/{found[1]}") and os.path.isdir("/proc"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


class _Builder:
    """Writes one index into an empty folder."""

    def __init__(self, source: Source, folder: str) -> None:
        self._source, self._folder, self._rows = source, folder, 0
        has = source.pairs.schema.names
        self._numbers = {name: given for name, given in NUMBERS.items() if given[0] in has}
        self._facets = [name for name, column in FACETS.items() if column in has]
        self._texts = "texts" if "texts" in has else "text"
        self._lists = [name for name in ("query_ids", "kept_by") if name in has]

    def run(self, progress: Progress) -> None:
        """Writes all files. index.json comes last."""
        folder = self._folder
        self._columns = {name: Column(folder, name, kind) for name, (_, kind) in self._numbers.items()}
        self._columns |= {name: Column(folder, name, np.uint64) for name in ("url", "words.starts", "queries.starts")}
        self._columns |= {"queries": Column(folder, "queries", np.uint32)}
        self._coded = {name: Coded(folder, name) for name in (*self._facets, "words")}
        self._picked = np.zeros(self._source.pairs.queries.num_rows, np.int64)
        self._ends = {"words": 0, "queries": 0}
        for name in self._ends:
            self._columns[f"{name}.starts"].add([0])
        with pa.OSFile(os.path.join(folder, "rows.arrow"), "wb") as file, pa.ipc.new_file(file, ROW) as writer:
            for table in self._tables():
                self._add(table, writer)
                progress(self._rows, self._source.rows)
        for column in self._columns.values():
            column.close()
        self._finish()

    def _tables(self) -> Iterator[pa.Table]:
        pairs = self._source.pairs
        columns = [column for column, _ in self._numbers.values()] + [FACETS[name] for name in self._facets]
        columns += [*pairs.has("key", "text", "url", self._texts), *self._lists]
        for table in pairs.tables(list(dict.fromkeys(columns))):
            for first in range(0, table.num_rows, ROWS):
                yield table.slice(first, ROWS)

    def _add(self, table: pa.Table, writer: pa.ipc.RecordBatchFileWriter) -> None:
        names = table.column_names
        for name, (column, kind) in self._numbers.items():
            self._columns[name].add(pc.fill_null(table[column], 0).to_numpy().astype(kind))
        shown = pc.utf8_slice_codeunits(pc.fill_null(_one(table["text"]), ""), 0, SHOWN)
        writer.write_batch(pa.record_batch([_one(table["key"]), shown], schema=ROW))
        for name in self._facets:
            self._coded[name].add(_one(facet(name, table[FACETS[name]])))
        url = pc.fill_null(table["url"], "") if "url" in names else pa.array([""] * table.num_rows)
        self._columns["url"].add(hashing.column_hash(url))
        words, lengths = words_of(_one(table[self._texts]))
        self._coded["words"].add(words)
        self._extend("words", lengths)
        for name in self._lists:
            self._add_queries(name, _one(table[name]))
        if "query_ids" not in self._lists:
            self._extend("queries", np.zeros(table.num_rows, np.int64))
        self._rows += table.num_rows

    def _add_queries(self, name: str, lists: pa.ListArray) -> None:
        """Ids that the list of queries does not have are left out: a damaged table may hold any number."""
        flat = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
        known = (flat >= 0) & (flat < len(self._picked))
        if name == "kept_by":
            self._picked += np.bincount(flat[known], minlength=len(self._picked))
            return
        of_row = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)[known]
        self._columns["queries"].add(flat[known])
        self._extend("queries", np.bincount(of_row, minlength=len(lists)))

    def _extend(self, name: str, lengths: npt.NDArray[np.int64]) -> None:
        ends = self._ends[name] + np.cumsum(lengths)
        self._columns[f"{name}.starts"].add(ends)
        self._ends[name] = int(ends[-1]) if len(ends) else self._ends[name]

    def _finish(self) -> None:
        folder, queries = self._folder, self._source.pairs.queries
        for name, coded in self._coded.items():
            size = len(coded.finish())
            if name == "words":
                invert(folder, name, size)
            else:
                write_numbers(folder, f"{name}.totals", np.bincount(mapped(folder, name, np.uint32), minlength=size))
        invert(folder, "queries", queries.num_rows)
        write_strings(folder, "queries", pa.array(queries["query"].to_pylist(), pa.large_string()))
        write_numbers(folder, "queries.picked", self._picked)
        write_duplicates(self._source, folder)
        with open(os.path.join(folder, INDEX_FILE), "w") as file:
            json.dump(self._facts(), file)

    def _facts(self) -> dict[str, Any]:
        return {
            "form": FORM,
            "digest": self._source.digest,
            "folder": storage.absolute(self._source.folder),
            "rows": self._rows,
            "facets": self._facets,
            "numbers": list(self._numbers),
        }


def facet(name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of a facet, without nulls: the host of a URL in lower case, else the string as it is."""
    if name == "domain":
        return pc.replace_substring_regex(pc.utf8_lower(hosts(pc.fill_null(values, ""))), r"^.*@|:\d*$|\.$", "")
    return pc.fill_null(values.cast(pa.string()), NO_VALUE)


def words_of(texts: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The words of each row's texts, one after the other, and their number by row.

    Args:
        texts: a text a row, or a list of texts.
    """
    lists = None
    if pa.types.is_list(texts.type):
        lists, texts = texts, pc.list_flatten(texts)
    texts = pc.utf8_slice_codeunits(pc.fill_null(texts, ""), 0, SEARCHED)
    normal = normalize_array(texts, "fold")
    if lists is not None:
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        normal = pc.binary_join(pa.ListArray.from_arrays(offsets, normal), f" {BREAK} ")
    split = pc.split_pattern(normal, " ")
    return split.flatten(), pc.list_value_length(split).to_numpy(zero_copy_only=False).astype(np.int64)


def write_duplicates(source: Source, folder: str) -> None:
    """Writes the pairs that were dropped for another one, sorted by the pair that stayed."""
    kinds: list[str] = []
    none = np.empty((0, 2), np.uint64), np.empty(0, np.uint8)
    parts: list[tuple[npt.NDArray[Any], ...]] = [(none[0], none[0], none[1], none[1])]
    path = os.path.join(source.folder, DUPLICATES_FILE)
    if isinstance(source.pairs, Published) and storage.exists(path):
        try:
            with storage.published(path) as file:
                for batch in file.iter_batches(ROWS, columns=["key", "keeper", "kind", "distance"], use_threads=False):
                    kinds += [kind for kind in pc.unique(batch["kind"]).to_pylist() if kind not in kinds]
                    parts.append(_duplicates(batch, kinds))
        except (pa.ArrowException, storage.DamagedError, OSError, ValueError) as error:
            raise Damaged(f"{DUPLICATES_FILE} cannot be read: {error}") from error
    keepers, keys, kind, distance = (np.concatenate(some) for some in zip(*parts, strict=True))
    order = np.argsort(keepers[:, 0], kind="stable")
    for name, values in (("keeper", keepers), ("key", keys)):
        write_numbers(folder, f"duplicates.{name}", values[order].ravel())
    for name, small in (("kind", kind), ("distance", distance)):
        write_numbers(folder, f"duplicates.{name}", small[order])
    write_strings(folder, "duplicates.kinds", pa.array(kinds, pa.large_string()))


def _duplicates(batch: pa.RecordBatch, kinds: list[str]) -> tuple[npt.NDArray[Any], ...]:
    """The words of keepers and keys, the number of each kind, and the distances."""
    kind = pc.index_in(batch["kind"], pa.array(kinds, pa.string())).to_numpy(zero_copy_only=False)
    return uid_words(batch["keeper"]), uid_words(batch["key"]), kind.astype(np.uint8), batch["distance"].to_numpy()


def uid_words(keys: pa.Array) -> npt.NDArray[np.uint64]:
    """(n, 2) the high and the low word of hexadecimal keys.

    Raises:
        ValueError: a key is not hexadecimal, or not of 32 digits.
    """
    if not pc.all(pc.equal(pc.binary_length(keys), 32)).as_py():
        raise ValueError("a key is not of 32 digits")
    return np.frombuffer(bytes.fromhex("".join(keys.to_pylist())), ">u8").reshape(-1, 2).astype(np.uint64)


def _one(column: pa.Array | pa.ChunkedArray) -> Any:
    return hashing.as_array(column)
