"""Takes rows out of a published folder. The shards without such rows keep their bytes, and most are not even read.

    metadata/00007.parquet, shards/00007.tar --without the rows--> the same files as `write_shard` would write them
    summaries of all shards --merge--> README.md, croissant.json, report/index.html, then manifest.json

A shard that loses its last row loses its files. All new files are part of one change (`engine.journal`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.dataset import report, report_facts, shards, summary
from pipeline.dataset.errors import Damaged
from pipeline.dataset.ranges import Ranges, recorded
from pipeline.dataset.shards import FileEntry, ShardInfo
from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.journal import Change

SUMMARIES = "stages/publish/shards"  # the counts of each shard, where the stages are still there
SECTIONS = 3  # of a summary, after the buckets of names

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published folder as its manifest lists it.

    Attributes:
        root: OUT.
        manifest: its content.
        ranges: of the uids.
        infos: the shards, by number.
    """

    root: str
    manifest: Mapping[str, Any]
    ranges: Ranges
    infos: Mapping[int, ShardInfo]

    @classmethod
    def of(cls, root: str, manifest: Mapping[str, Any]) -> Published:
        """The folder of a manifest.

        Raises:
            Damaged: another version wrote it.
        """
        ranges = recorded(manifest)
        if manifest.get("format") != shards.FORMAT or ranges is None:
            raise Damaged(
                f"manifest.json has format {manifest.get('format')!r} and this version changes {shards.FORMAT} only: "
                "publish the set anew with --redo publish"
            )
        entries = {entry["path"]: FileEntry(**entry) for entry in manifest["files"]}
        infos = {}
        for path, entry in entries.items():
            if path.endswith(".tar"):
                number = int(os.path.basename(path).removesuffix(".tar"))
                table = entries[shards.metadata_path(number, ranges.digits)]
                infos[number] = ShardInfo(number, entry.rows, (entry, table))
        return cls(root, manifest, ranges, dict(sorted(infos.items())))

    def metadata(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a shard."""
        return storage.read_published(os.path.join(self.root, self.infos[number].files[1].path), columns)

    def more(self) -> list[pa.Field]:
        """The columns of the metadata behind those of METADATA, such as scores."""
        number = next(iter(self.infos), None)
        if number is None:
            return []
        with storage.published(os.path.join(self.root, self.infos[number].files[1].path)) as file:
            return [field for field in file.schema_arrow if field.name not in shards.METADATA.names]

    def numbers_of(self, uids: Iterable[bytes]) -> list[int]:
        """The sorted numbers of the shards in whose range a uid lies."""
        words = pa.array(sorted(uids), pa.binary(16))
        if not len(words):
            return []
        return [n for n in np.unique(self.ranges.of(*hashing.uid_words(words))).tolist() if n in self.infos]


@dataclasses.dataclass
class Shrunk:
    """What leaves the published folder.

    Attributes:
        infos: the shards that stay, by number.
        tables: the metadata of the shards that changed, by number; None: the shard is gone.
        gone: the metadata rows that go, a table for each changed shard.
    """

    infos: dict[int, ShardInfo]
    tables: dict[int, pa.Table | None]
    gone: list[pa.Table]

    @property
    def rows(self) -> int:
        """The number of rows that go."""
        return sum(table.num_rows for table in self.gone)


def find(published: Published, numbers: Iterable[int], covers: Callable[[pa.Table], Mask]) -> dict[int, int]:
    """The number of rows that go, by shard. Only the given shards are looked at."""
    found = {number: int(covers(published.metadata(number, ["key"])).sum()) for number in numbers}
    return {number: count for number, count in found.items() if count}


def shrink(
    change: Change,
    published: Published,
    numbers: Iterable[int],
    covers: Callable[[pa.Table], Mask],
    without: Callable[[pa.Table], pa.Table | None] = lambda table: None,
) -> Shrunk:
    """Prepares the files of the shards that lose rows, or texts of rows.

    Args:
        change: of the folder.
        published: the folder.
        numbers: the shards that are looked at. The others have no such row.
        covers: rows with the column key -> the rows that go.
        without: rows -> the rows with fewer texts; None: they stay as they are.
    """
    shrunk = Shrunk(dict(published.infos), {}, [])
    for number in numbers:
        table = published.metadata(number)
        gone = covers(table)
        kept = table.filter(pa.array(~gone))
        fewer = without(kept)
        if not gone.any() and fewer is None:
            continue
        shrunk.gone.append(table.filter(pa.array(gone)))
        kept = kept if fewer is None else fewer
        tar, metadata = (entry.path for entry in published.infos[number].files)
        if kept.num_rows == 0:
            change.remove(tar)
            change.remove(metadata)
            del shrunk.infos[number]
            shrunk.tables[number] = None
            continue
        images = _Images(os.path.join(published.root, tar), kept)
        top = change.place("")
        shrunk.infos[number], shrunk.tables[number] = shards.rewrite_shard(
            top, number, kept, images, ranges=published.ranges
        )
    return shrunk


class _Images:
    """The images of rows, in their tar."""

    def __init__(self, path: str, rows: pa.Table) -> None:
        self._path, self._offsets = path, rows["jpg_offset"].to_pylist()

    def __call__(self, row: int, place: memoryview) -> None:
        storage.read_into(self._path, self._offsets[row], place)


def publish(change: Change, published: Published, shrunk: Shrunk, ledger: list[dict[str, Any]]) -> dict[str, Any]:
    """Prepares the pages and the manifest. Returns the manifest.

    Args:
        change: with the shards and the tables of rejected rows.
        published: the folder as it was.
        shrunk: what leaves it.
        ledger: of the new manifest.
    """
    top, old = change.place(""), published.manifest
    pick = summary.Pick(report.PICTURES)
    counted = _counts(change, published, shrunk, pick)
    picked = pick.table()
    shown = set() if picked is None else set(picked["shard"].to_pylist())
    _link(change, [published.infos[number].files[0].path for number in sorted(shown)])
    tables = ["queries.parquet", "contamination.parquet", "duplicates.parquet", storage.CHECKSUMS]
    _link(change, [*tables, *_rejected(change)])
    keepers = {published.ranges.of_key(key) for key, _ in report_facts.duplicate_keys(top)}
    _link(change, [file.path for number in sorted(keepers & set(shrunk.infos)) for file in shrunk.infos[number].files])
    return report.finish(
        top,
        list(shrunk.infos.values()),
        ranges=published.ranges,
        summary=counted,
        pick=pick,
        ledger=ledger,
        options=old["options"],
        versions=old["versions"],
        damaged=old.get("damaged_inputs", {}),
        evaluation=old.get("contamination", {}),
        more=published.more(),
        balancing=old.get("balancing"),
        crawled=old.get("crawled"),
    )


def _rejected(change: Change) -> list[str]:
    names = storage.names(os.path.join(change.root, "rejected"))
    return [path for name in names if not change.removes(path := f"rejected/{name}")]


def _link(change: Change, paths: Iterable[str]) -> None:
    """Makes files that do not change readable among the new ones."""
    for path in paths:
        change.link(path)


def _counts(change: Change, published: Published, shrunk: Shrunk, pick: summary.Pick) -> summary.Summary:
    """The counts of the new set: from the packed counts of its shards, or from all metadata if these are not there."""
    folder = os.path.join(change.root, SUMMARIES)
    units = [name.removesuffix(".json") for name in storage.names(folder) if name.endswith(".json")]
    paths, buckets = [], None
    for unit in units:
        body = storage.read_json(os.path.join(folder, f"{unit}.json")) or {}
        if not body.get("rows"):
            continue
        path = f"{SUMMARIES}/{unit}.summary"
        buckets = _buckets(os.path.join(change.root, path)) - SECTIONS
        numbers = [info["number"] for info in body["shards"]]
        if any(number in shrunk.tables for number in numbers):
            body = _count_again(change, published, shrunk, unit, body, numbers, buckets)
        if body["rows"]:
            paths.append(change.current(path))
    if buckets is None:
        tables = (_columns(published, shrunk, number) for number in shrunk.infos)
        return summary.summarise(tables, pick=pick)
    return summary.merge(paths, buckets, pick)


def _count_again(
    change: Change,
    published: Published,
    shrunk: Shrunk,
    unit: str,
    body: dict[str, Any],
    numbers: list[int],
    buckets: int,
) -> dict[str, Any]:
    """Writes the packed counts and the manifest of a unit of publish. Returns the manifest."""
    left = [number for number in numbers if number in shrunk.infos]
    pick = summary.Pick(report.PICTURES)
    counted = summary.summarise((_columns(published, shrunk, number) for number in left), pick=pick)
    shuffle_files.write(change.place(f"{SUMMARIES}/{unit}.summary"), summary.pack(counted, pick, buckets))
    infos = [shrunk.infos[number] for number in left]
    body = {**body, "rows": sum(info.rows for info in infos), "shards": [dataclasses.asdict(info) for info in infos]}
    storage.write_json(change.place(f"{SUMMARIES}/{unit}.json"), body)
    return body


def _columns(published: Published, shrunk: Shrunk, number: int) -> pa.Table:
    table = shrunk.tables.get(number)
    return published.metadata(number, summary.COLUMNS) if table is None else table.select(summary.COLUMNS)


def _buckets(path: str) -> int:
    return shuffle_files.HEAD.unpack(storage.read_range(path, 0, shuffle_files.HEAD.size))[1]
