"""publish: FETCHED -> the shard folder. Balanced once more after what the fetch lost, then written as tar + Parquet.

    settled parts + masks --FindCaps--> thresholds --CutByShard--> WriteShards: shards/00000.tar, metadata/00000.parquet

A shard owns a range of uids, so the pairs of a site are spread over all shards. The hashes are those of `balance`: a
pair that was picked there and fetched is picked here again.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.dataset import report, shards, summary
from pipeline.engine import files, hashing, shuffle_files
from pipeline.engine.ledger import Ledger
from pipeline.engine.steps import ExchangeStep, Reading, Step
from pipeline.engine.work import STAGES, StepFolder, stage_info
from pipeline.schema import FETCHED, readable
from pipeline.stages import caps
from pipeline.stages.caps import FindCaps, Plan
from pipeline.stages.dedup_exchange import RemainingRows
from pipeline.stages.row_pass import Rejects, Tally, write_rejected

OPEN_FILES = 64  # raw files that a worker keeps open


@dataclasses.dataclass(frozen=True)
class Publishing:
    """The stage's plan.

    Attributes:
        plan: the balancing over what remains (its `work` is the run's folder).
        rows: the settled rows that dedup-images left in.
        schema: of the settled rows.
        raw: fetch's plan: which folder holds a pass's raw files.
        names: the sorted names of the inputs.
        rows_per_shard: about so many, a little fewer.
        keep_rejected: sample, all or none.
    """

    plan: Plan
    rows: RemainingRows
    schema: pa.Schema
    raw: Any  # fetch.Fetching: gives `images(pass)`
    names: tuple[str, ...]
    rows_per_shard: int
    keep_rejected: str

    def count(self) -> int:
        """How many ranges of uids there are: one a shard, but for ranges without a row."""
        return max(1, -(-caps.candidates(self.plan) // self.rows_per_shard))

    def name_buckets(self) -> int:
        """Into how many buckets each shard cuts the names that it counts."""
        return summary.name_buckets(caps.candidates(self.plan))


@dataclasses.dataclass(frozen=True)
class CutByShard:
    """One unit a group: its rows that are picked, cut by range of uids."""

    publishing: Publishing

    @property
    def folder(self) -> StepFolder:
        return self.publishing.plan.step("selected")

    def units(self) -> int:
        return self.publishing.rows.groups

    def run(self, unit: int) -> dict[str, Any]:
        p = self.publishing
        rejects = Rejects(p.keep_rejected)
        tally = Tally("publish", rejects)
        decide = caps.decider(p.plan, tally, p.schema)
        count, parts = p.count(), 0
        sizes = np.zeros(count, np.int64)
        for path, keep in p.rows.parts(unit):
            first, selected = 0, []
            for batch in files.read_batches(path):
                selected.append(decide(batch, keep[first : first + batch.num_rows]))
                first += batch.num_rows
            sizes += self._write(unit, parts, selected, count)
            parts += 1
        caps.write_vector(self.folder.file(unit, "sizes"), sizes)
        rejected = rejects.table()
        if rejected.num_rows:
            files.write_table(self.folder.file(unit, "rejected"), rejected)
        return {
            "parts": parts,
            "counts": {**tally.ledger.to_json(), "digest": tally.digest},
            "rejected": rejected.num_rows,
        }

    def _write(self, unit: int, part: int, selected: list[pa.RecordBatch], count: int) -> np.ndarray:
        schema = self.publishing.schema
        table = pa.Table.from_batches(selected, schema).combine_chunks()
        batch = table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], schema)
        shard = shard_of(hashing.uid_words(batch["uid"])[0], count)
        shuffle_files.write(self.folder.file(unit, "rows", part), shuffle_files.cut(batch, shard, count))
        return np.bincount(shard, minlength=count)


def shard_of(uid_high: np.ndarray, count: int) -> np.ndarray:
    """The range of uids that each row is in: `count` equal ranges of the 128-bit space."""
    return ((uid_high >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class WriteShards:
    """One unit a range of uids: its tar and its metadata. Ranges without rows get no shard and no number."""

    publishing: Publishing

    @property
    def folder(self) -> StepFolder:
        return self.publishing.plan.step("shards")

    @property
    def reads(self) -> Reading:
        return Reading(self.publishing.plan.step("selected"), "rows")

    def units(self) -> int:
        return self.publishing.count()

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        p = self.publishing
        table = caps.sort_by_uid(shuffle_files.table(messages, p.schema))
        if table.num_rows == 0:
            return {"rows": 0}
        rows = readable(table.select(FETCHED.names), list(p.names))
        info, written = shards.write_shard(p.plan.work.root, self._number(unit), rows, RawImages(p.raw.images, table))
        self._summarise(unit, written)
        return {"rows": table.num_rows, "shard": dataclasses.asdict(info)}

    def _summarise(self, unit: int, metadata: pa.Table) -> None:
        """Leaves the numbers of the shard and the pictures that the report may show, beside the unit's manifest."""
        pick = summary.Pick(report.PICTURES)
        counted = summary.summarise([metadata.select(summary.COLUMNS)], pick=pick)
        sections = summary.pack(counted, pick, self.publishing.name_buckets())
        shuffle_files.write(self.folder.file(unit, "summary"), sections)

    def _number(self, unit: int) -> int:
        selected = self.publishing.plan.step("selected")
        sizes = np.zeros(self.units(), np.int64)
        for group, _ in selected.manifests():
            sizes += caps.read_vector(selected.file(group, "sizes"))
        return int(np.count_nonzero(sizes[:unit]))


class RawImages:
    """The stored JPEGs of some rows, in the raw files where the fetch put them."""

    def __init__(self, folder_of: Callable[[int], StepFolder], rows: pa.Table) -> None:
        keys = list(zip(*(rows[name].to_pylist() for name in ("raw_pass", "raw_unit", "raw_part")), strict=True))
        paths = {key: folder_of(key[0]).file(key[1], "raw", key[2]) for key in set(keys)}
        self._paths = [paths[key] for key in keys]
        self._offsets = rows["image_offset"].to_pylist()

    def __call__(self, row: int, place: memoryview) -> None:
        """Fills the place with the image of a row.

        Raises:
            OSError: the file ends before the image does.
        """
        path, offset = self._paths[row], self._offsets[row]
        if os.preadv(_raw_file(path), [place], offset) != len(place):
            raise OSError(f"{path} is cut: {len(place)} bytes should lie at {offset}")


class _RawFile(int):
    """A descriptor that closes itself when the cache drops it."""

    def __del__(self) -> None:
        os.close(self)


@functools.lru_cache(maxsize=OPEN_FILES)
def _raw_file(path: str) -> _RawFile:
    return _RawFile(os.open(path, os.O_RDONLY))


class Publish(beam.PTransform):
    """settled | Publish(publishing, way=...): shards and metadata under their final names."""

    def __init__(self, publishing: Publishing, *, way: str, most_shards: int) -> None:
        super().__init__("Publish")
        self._publishing, self._way, self._most = publishing, way, most_shards

    def expand(self, settled: Any) -> beam.PCollection:
        p = self._publishing
        done = settled | FindCaps(p.plan, way=self._way)
        done = done | "Cut" >> Step(CutByShard(p), work=p.plan.work, most=p.rows.groups)
        return done | "Write" >> ExchangeStep(WriteShards(p), work=p.plan.work, count=self._most, way=self._way)


def complete(publishing: Publishing, *, options: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
    """Ends the stage: rejected rows, the folder's own files, the manifest; then info.json and COMPLETED."""
    plan = publishing.plan
    work, selected = plan.work, plan.step("selected")
    ledger, digest = Ledger(), 0
    for _, manifest in selected.manifests():
        ledger.add(Ledger.from_json(manifest["counts"]))
        digest = hashing.add_digests(digest, manifest["counts"]["digest"])
    write_rejected(work, "publish", [selected], keep=publishing.keep_rejected)
    folders = [plan.step(name) for name in ("counts", "limits", "band", "thresholds", "selected", "shards")]
    info = stage_info(ledger, digest=digest, folders=folders, cap=plan.step("limits").total("cap"))
    before = [work.info(stage) for stage in STAGES[: STAGES.index("publish")]]
    rows = [*(found for found in before if found), {"stage": "publish", **info}]
    copy_rejected(publishing)
    step = plan.step("shards")
    written = {unit: found["shard"] for unit, found in step.manifests() if "shard" in found}
    pick = summary.Pick(report.PICTURES)
    paths = [step.file(unit, "summary") for unit in written]
    manifest = report.finish(
        work.root,
        [shards.ShardInfo.from_json(found) for found in written.values()],
        summary=summary.merge(paths, publishing.name_buckets(), pick),
        pick=pick,
        ledger=[{name: row[name] for name in ("stage", "rows_in", "rows_out", "dropped")} for row in rows],
        options=options,
        versions=versions,
    )
    shards.sweep(work.root, manifest)
    work.complete("publish", info)
    return info


def copy_rejected(publishing: Publishing) -> None:
    """OUT/rejected/<stage>.parquet: what the stages dropped and kept a sample of."""
    work = publishing.plan.work
    files.remove(os.path.join(work.root, "rejected"))
    for stage in STAGES:
        path = os.path.join(work.stage(stage), "rejected.parquet")
        if os.path.exists(path):
            table = files.read_table(path)
            if table.num_rows:
                files.write_table(os.path.join(work.root, "rejected", f"{stage}.parquet"), table.drop_columns(["hash"]))
