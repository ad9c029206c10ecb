"""Opens a published folder for reading: rows as Arrow tables, samples by key, the ledger.

    pairs = open_set("OUT")
    for table in pairs.rows(["key", "text"]):       a pyarrow.Table a shard
        ...
    sample = pairs.sample("0001f3")                 image, text, JSON and row of one sample

A set needs no closing: no file stays open. At most the metadata of one shard is kept in memory. The manifest names all
files; the folder is never listed. Needs neither Beam nor torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import ranges, shards, verify
from pipeline.dataset.errors import Ambiguous, Damaged, NotFound
from pipeline.dataset.verify import Fault
from pipeline.engine import storage, work
from pipeline.engine.cli import UsageError
from pipeline.schema import STAGES

NO_QUERIES = pa.schema(
    [
        *(("id", pa.int32()), ("query", pa.string()), ("source", pa.string()), ("count", pa.int64())),
        *(("language", pa.string()), ("flags", pa.string())),
    ]
)
SHOWN = 5  # keys that a message names
LEDGER = ("stage", "rows_in", "rows_out", "dropped")
METADATA_NAME = re.compile(r"metadata/(\d{5,9})\.parquet")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One tar and its table, as paths below the folder."""

    number: int
    rows: int
    tar: str
    metadata: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """One pair.

    Attributes:
        key: its name in the tar: the uid in hexadecimal.
        image: the bytes of the JPEG. Their sha256 is in the row.
        text: the text of the pair.
        json: the JSON member of the tar. docs/architecture.md lists its keys.
        row: the row of the metadata, by column.
    """

    key: str
    image: bytes = dataclasses.field(repr=False)
    text: str
    json: Mapping[str, Any] = dataclasses.field(repr=False)
    row: Mapping[str, Any] = dataclasses.field(repr=False)


def open_set(folder: str | os.PathLike[str]) -> OpenSet:
    """Opens a published folder. It may come from an older version.

    Args:
        folder: the OUT of a run that finished `publish`, or a copy of the published files.

    Raises:
        NotFound: there is no such folder, or the folder has no manifest.
        Damaged: the manifest cannot be read, or a newer version wrote it.
    """
    root = storage.absolute(folder)
    manifest = read_manifest(root)
    form = manifest.get("format", shards.FORMAT)
    if not isinstance(form, int) or form > shards.FORMAT:
        raise Damaged(
            f"manifest.json has format {form!r} and this version reads {shards.FORMAT}: "
            "open it with a newer version of OpenWIT"
        )
    return OpenSet(root, manifest)


class OpenSet:
    """A published folder. `open_set` returns it.

    Attributes:
        root: the absolute path of the folder.
        manifest: the object in manifest.json.
        shards: the tars and their tables, sorted by number.
    """

    def __init__(self, root: str, manifest: dict[str, Any]) -> None:
        self.root, self.manifest = root, manifest
        self.shards = _shards(manifest)
        self._first: dict[int, str] = {}  # shard number -> its first key, for shards that were read
        self._last: tuple[int, pa.Table] | None = None  # the metadata of the shard that was read last

    def __len__(self) -> int:
        """The number of samples."""
        return sum(shard.rows for shard in self.shards)

    def __repr__(self) -> str:
        return f"<OpenSet {self.root}: {len(self):,} samples in {len(self.shards):,} shards>"

    @property
    def digest(self) -> str:
        """The digest over all published files. It identifies the set."""
        return self.manifest["digest"]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """`stage`, `rows_in`, `rows_out` and `dropped` (rows by reason) of each stage, in order."""
        return [{name: row[name] for name in LEDGER} for row in self.manifest["ledger"]]

    @property
    def queries(self) -> pa.Table:
        """The query list: id, query, source, count. It is empty where the folder has no queries.parquet.

        Raises:
            Damaged: queries.parquet cannot be read.
        """
        return read_queries(self.root)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the metadata. Those behind the columns of docs/architecture.md are scores.

        Raises:
            Damaged: a file cannot be read.
        """
        if not self.shards:
            return shards.METADATA
        path = self.shards[0].metadata
        try:
            with storage.published(os.path.join(self.root, path)) as file:
                return file.schema_arrow.remove_metadata()
        except (pa.ArrowException, storage.DamagedError, OSError, ValueError) as error:
            raise Damaged(f"{path} cannot be read: {error}") from error

    def rows(self, columns: Sequence[str] | None = None, *, shard: int | None = None) -> Iterator[pa.Table]:
        """Yields the metadata, one table for each shard, in the order of the keys. Page checksums are verified.

        Args:
            columns: names of columns; None: all.
            shard: the number of one shard; None: all shards.

        Raises:
            NotFound: there is no such shard or column.
            Damaged: a file cannot be read.
        """
        wanted = self.shards if shard is None else (self._shard(shard),)
        return (self._read(item, columns) for item in wanted)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The metadata of all shards as one table. It must fit into memory: name the columns that you need.

        Raises:
            NotFound, Damaged: as `rows`.
        """
        tables = list(self.rows(columns))
        if not tables:
            names = shards.METADATA.names if columns is None else columns
            return shards.METADATA.empty_table().select(list(names))
        return pa.concat_tables(tables, promote_options="default")

    def keys(self) -> Iterator[str]:
        """Yields the keys of all samples in ascending order."""
        for table in self.rows(["key"]):
            yield from table["key"].to_pylist()

    def row(self, key: str) -> dict[str, Any]:
        """The metadata of one sample, by column. In a set of a thousand shards, about ten small reads find it.

        Args:
            key: of the sample, or a unique beginning of it.

        Raises:
            NotFound: no key begins with `key`.
            Ambiguous: several keys begin with `key`.
            Damaged: a file cannot be read.
        """
        start, found = key.lower(), list[tuple[Shard, int, str]]()
        first = self._before(start)
        for number, shard in enumerate(self.shards[first:]):
            if number and not self._first_key(shard).startswith(start):
                break
            keys = self._cached(shard)["key"]
            places = pc.indices_nonzero(pc.starts_with(keys, start)).to_pylist()
            found += [(shard, place, keys[place].as_py()) for place in places[: SHOWN + 1]]
            if len(found) > SHOWN:
                break
        if not found:
            raise NotFound(f"no sample has a key that begins with {key!r}")
        if len(found) > 1:
            some = ", ".join(name for _, _, name in found[:SHOWN])
            raise Ambiguous(f"several keys begin with {key!r}: {some}{' ...' if len(found) > SHOWN else ''}")
        shard, place, _ = found[0]
        return self._cached(shard).slice(place, 1).to_pylist()[0]

    def sample(self, key: str) -> Sample:
        """Reads one sample from its place in the tar. Checks the image by its sha256, and the text against the row.

        Args:
            key: of the sample, or a unique beginning of it.

        Raises:
            NotFound, Ambiguous: as `row`.
            Damaged: a file cannot be read, or a member differs from the metadata.
        """
        row = self.row(key)
        image = self.member(row, "jpg")
        if hashlib.sha256(image).hexdigest() != row["sha256"]:
            raise Damaged(
                f"{self._shard(row['shard']).tar}: the image of {row['key']} has another sha256 than the metadata says"
            )
        text = self.member(row, "txt").decode("utf-8", "replace")
        try:
            parsed = json.loads(self.member(row, "json"))
        except ValueError:
            parsed = None
        for name, sound in (("txt", text == row["text"]), ("json", isinstance(parsed, dict))):
            if not sound:
                path = self._shard(row["shard"]).tar
                raise Damaged(f"{path}: the {name} of {row['key']} is not what the metadata says")
        return Sample(row["key"], image, text, parsed, row)

    def member(self, row: Mapping[str, Any], extension: str) -> bytes:
        """The bytes of one member of a sample, as they lie in the tar. Only their place is checked, not their content.

        Args:
            row: of the metadata, with all columns.
            extension: jpg, json or txt.

        Raises:
            Damaged: the tar cannot be read, or ends before the member does.
        """
        path = self._shard(row["shard"]).tar
        offset, size = row[f"{extension}_offset"], row[f"{extension}_size"]
        try:
            with storage.opened(os.path.join(self.root, path)) as file:
                if not 0 <= size <= file.seek(0, os.SEEK_END) - offset:  # a damaged size allocates no memory
                    raise Damaged(f"{path}: the {extension} of {row['key']} is cut off")
                return storage.range_of(file, offset, size)
        except (OSError, storage.DamagedError) as error:
            raise Damaged(f"{path} cannot be read: {error}") from error

    def verify(self, *, quick: bool = False) -> list[Fault]:
        """The faults of the folder. Compares every checksum and count with the manifest. Empty if there is no fault.

        Args:
            quick: check names, sizes and counts, but not the contents.
        """
        return list(verify.verify(self.root, quick=quick))

    def _shard(self, number: int) -> Shard:
        for shard in self.shards:
            if shard.number == number:
                return shard
        raise NotFound(no_shard(number, count_of_ranges(self.manifest), len(self.shards)))

    def _read(self, shard: Shard, columns: Sequence[str] | None) -> pa.Table:
        try:
            table = shards.read_table(os.path.join(self.root, shard.metadata), columns)
        except (pa.ArrowException, storage.DamagedError, OSError, ValueError) as error:
            raise Damaged(f"{shard.metadata} cannot be read: {error}") from error
        missing = [name for name in columns or () if name not in table.column_names]
        if missing:  # an older version did not write the column, or its name is misspelt
            raise NotFound(f"{shard.metadata} has no column {missing[0]!r}")
        if table.num_rows != shard.rows:
            raise Damaged(f"{shard.metadata} has {table.num_rows} rows, the manifest says {shard.rows}")
        return table

    def _cached(self, shard: Shard) -> pa.Table:
        """The metadata of a shard. The metadata of the last shard stays in memory."""
        last = self._last
        if last is None or last[0] != shard.number:
            last = self._last = shard.number, self._read(shard, None)
        return last[1]

    def _before(self, start: str) -> int:
        """The place of the last shard whose first key is at most `start`, or 0. Keys ascend over the shards."""
        low, high = 0, len(self.shards)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._first_key(self.shards[middle]) <= start else (low, middle)
        return low

    def _first_key(self, shard: Shard) -> str:
        if shard.number not in self._first:
            keys = self._read(shard, ["key"])["key"]
            self._first[shard.number] = keys[0].as_py() if len(keys) else ""
        return self._first[shard.number]


def count_of_ranges(manifest: Mapping[str, Any]) -> int | None:
    """The number of ranges of a set; None: an older version made the set, and numbered the shards consecutively."""
    found = ranges.recorded(manifest)
    return None if found is None else found.count


def no_shard(number: int, count: int | None, there: int) -> str:
    """The message about a shard number that a set does not have."""
    if count is None:
        return f"there is no shard {number}: the set has {there}"
    if 0 <= number < count:
        return f"there is no shard {number}: no pair of the set lies in this range"
    return f"there is no shard {number}: the set has {count:,} ranges, 0 to {count - 1}"


def _shards(manifest: Mapping[str, Any]) -> tuple[Shard, ...]:
    """The shards that a manifest lists."""
    rows = {entry["path"]: entry["rows"] for entry in manifest["files"]}
    numbers = sorted(int(match[1]) for path in rows if (match := METADATA_NAME.fullmatch(path)))
    found, digits = [], ranges.digits_of(manifest)
    for number in numbers:
        tar, metadata = shards.tar_path(number, digits), shards.metadata_path(number, digits)
        if tar not in rows:
            raise Damaged(f"manifest.json lists {metadata} and no {tar}")
        found.append(Shard(number, rows[metadata], tar, metadata))
    return tuple(found)


# ------------------------------------------------------------------------------------------------- files of a folder


def read_json(folder: str, path: str) -> Any:
    """A JSON file of the folder; None if it is missing.

    Raises:
        Damaged: it is not JSON, or its checksum does not fit.
    """
    try:
        return storage.read_json(os.path.join(folder, path), sealed=False)
    except storage.DamagedError as error:
        raise Damaged(path + str(error).removeprefix(os.path.join(folder, path))) from error
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error}") from error


def read_manifest(folder: str) -> dict[str, Any]:
    """The manifest of a published folder.

    Raises:
        NotFound: there is no such folder, or the folder has no manifest.
        Damaged: the file is not a manifest.
    """
    try:
        there = storage.is_folder(folder)
    except FileNotFoundError as error:
        raise NotFound(str(error)) from error
    if not there:
        raise NotFound(f"there is no folder {folder!r}")
    try:
        work.settle(folder)
    except work.Unfinished as error:
        raise NotFound(str(error)) from error
    except (work.Busy, UsageError, OSError) as error:
        raise NotFound(f"the files of {folder!r} are being changed: {error}") from error
    manifest = read_json(folder, "manifest.json")
    if manifest is None:
        raise NotFound(f"{folder!r} is not a published folder: it has no manifest.json")
    problem = verify.problem_of(manifest)
    if problem:
        raise Damaged(f"manifest.json {problem}")
    return manifest


def stages_of(folder: str) -> list[dict[str, Any]]:
    """The info.json of each stage in the folder, in order. `completed` is True if the stage was finished.

    Raises:
        Damaged: an info.json is not JSON, or its checksum does not fit.
    """
    found = []
    for stage in STAGES:
        path = f"stages/{stage}"
        if storage.is_folder(os.path.join(folder, path)):
            info = read_json(folder, f"{path}/info.json") or {}
            completed = storage.exists(os.path.join(folder, path, "COMPLETED"))
            found.append({"stage": stage, "completed": completed, **info})
    return found


def read_queries(folder: str) -> pa.Table:
    """The query list of a run, in the order of the ids; empty if there is none.

    Raises:
        Damaged: queries.parquet cannot be read.
    """
    path = os.path.join(folder, "queries.parquet")
    if not storage.exists(path):
        return NO_QUERIES.empty_table()
    try:
        return shards.read_table(path)
    except (pa.ArrowException, storage.DamagedError, OSError, ValueError) as error:
        raise Damaged(f"queries.parquet cannot be read: {error}") from error
