"""Duplicates among parts: keys cross to buckets, the places of the dropped rows come back as masks beside the parts.

`dedup` does so with URLs and texts before the fetch, `dedup_images` with the bytes of the images after it.

    <step>/*.keys --by key--> FindDuplicates --by unit--> MarkDropped: masks/00007-000.mask
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.engine import files, hashing, shuffle_files
from pipeline.engine.ledger import Ledger
from pipeline.engine.steps import ExchangeStep, Reading
from pipeline.engine.work import StepFolder, Work, stage_info
from pipeline.stages import selection
from pipeline.stages.row_pass import KEYS, PARTS_OF_UNIT, Rejects, Tally, write_rejected

DROPS = pa.schema(
    [pa.field("part", pa.int32(), False), pa.field("row", pa.int32(), False), pa.field("reason", pa.uint8(), False)]
)


@dataclasses.dataclass(frozen=True)
class Dropping:
    """Which stage drops what: the parts with their `.keys`, how they are cut, and the words for the reasons."""

    work: Work
    stage: str
    parts: StepFolder
    key_bits: int
    groups: int
    reasons: tuple[str, ...] = selection.DUPLICATE_REASONS
    placeholder_bound: int = 0
    keep_rejected: str = "sample"

    @property
    def masks(self) -> StepFolder:
        return self.work.step(self.stage, "masks")


def find_drops(keys: pa.Table, *, placeholder_bound: int = 0) -> pa.RecordBatch:
    """KEYS of whole URLs -> DROPS: where the rows that go are, and why (selection.DUPLICATE_REASONS)."""
    names = ("url_hash", "pair_high", "pair_low", "provenance")
    columns = [keys[name].to_numpy() for name in names]
    codes = selection.find_duplicates(*columns, placeholder_bound=placeholder_bound)
    drop = np.flatnonzero(codes)
    return pa.RecordBatch.from_arrays(
        [pa.array(keys[name].to_numpy()[drop]) for name in ("part", "row")] + [pa.array(codes[drop])], schema=DROPS
    )


@dataclasses.dataclass(frozen=True)
class FindDuplicates:
    """One unit a bucket of keys."""

    plan: Dropping

    @property
    def folder(self) -> StepFolder:
        return self.plan.work.step(self.plan.stage, "drops")

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.parts, "keys")

    def units(self) -> int:
        return 1 << self.plan.key_bits

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        keys = shuffle_files.table(messages, KEYS)
        drops = find_drops(keys, placeholder_bound=self.plan.placeholder_bound)
        group = drops["part"].to_numpy().astype(np.int64) // PARTS_OF_UNIT % self.plan.groups
        shuffle_files.write(self.folder.file(unit, "drops", 0), shuffle_files.cut(drops, group, self.plan.groups))
        return {"parts": 1, "keys": keys.num_rows, "drops": drops.num_rows}


@dataclasses.dataclass(frozen=True)
class MarkDropped:
    """One unit a group of units: writes a mask (0: stays) beside each part, counts, and samples the dropped."""

    plan: Dropping

    @property
    def folder(self) -> StepFolder:
        return self.plan.masks

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.work.step(self.plan.stage, "drops"), "drops")

    def units(self) -> int:
        return self.plan.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        drops = shuffle_files.table(messages, DROPS)
        order = np.argsort(drops["part"].to_numpy(), kind="stable")
        part_of_drop, row, reason = (drops[name].to_numpy()[order] for name in DROPS.names)
        rejects = Rejects(self.plan.keep_rejected)
        tally = Tally(self.plan.stage, rejects)
        for source, part, rows in parts_of_group(self.plan.parts, unit, self.plan.groups):
            number = source * PARTS_OF_UNIT + part
            first, last = np.searchsorted(part_of_drop, [number, number + 1])
            mask = np.zeros(rows, np.uint8)
            mask[row[first:last]] = reason[first:last]
            files.write_bytes(self.folder.file(source, "mask", part), mask.tobytes())
            count_part(self.plan.parts.file(source, "arrow", part), mask, tally, self.plan.reasons)
        rejected = rejects.table()
        if rejected.num_rows:
            files.write_table(self.folder.file(unit, "rejected"), rejected)
        return {"counts": {**tally.ledger.to_json(), "digest": tally.digest}, "rejected": rejected.num_rows}


def count_part(path: str, mask: np.ndarray, tally: Tally, reasons: tuple[str, ...]) -> None:
    """Adds one part to the stage's ledger and digest, and offers its dropped rows to the rejects."""
    hashes = np.concatenate([batch["row_hash"].to_numpy() for batch in files.read_batches(path, ["row_hash"])])
    tally.ledger.rows_in += len(mask)
    tally.passed(hashes[mask == 0])
    for code in np.unique(mask[mask > 0]).tolist():
        rows = np.flatnonzero(mask == code)
        tally.ledger.drop(reasons[code], len(rows))
        if tally.rejects.keep == "sample" and len(rows) > tally.rejects.limit:  # few of them are read
            high = np.concatenate([hashing.uid_words(batch["uid"])[0] for batch in files.read_batches(path, ["uid"])])
            rows = np.sort(rows[np.argpartition(high[rows], tally.rejects.limit - 1)[: tally.rejects.limit]])
        if tally.rejects.keep != "none":
            _reject(path, rows, reasons[code], tally)


def _reject(path: str, rows: np.ndarray, reason: str, tally: Tally) -> None:
    """Offers the given rows of a part to the rejects."""
    first = 0
    for batch in files.read_batches(path):  # mapped, while a choice of columns would be copied: few rows are looked at
        inside = rows[(rows >= first) & (rows < first + batch.num_rows)] - first
        if len(inside):
            taken = batch.take(pa.array(inside))
            hashes = hashing.uid_words(taken["uid"])[0]
            tally.rejects.add(tally.stage, reason, taken["url"], taken["text"], hashes)
        first += batch.num_rows


def parts_of_group(parts: StepFolder, group: int, groups: int) -> Iterator[tuple[int, int, int]]:
    """(unit, part, rows) of the parts that a group of units holds."""
    for unit, manifest in parts.manifests():
        if unit % groups == group:
            for part, rows in enumerate(manifest["rows"]):
                yield unit, part, rows


@dataclasses.dataclass(frozen=True)
class RemainingRows:
    """The rows of parts that their masks leave in: what balancing works on (balancing.Rows)."""

    folder: StepFolder
    masks: StepFolder
    groups: int

    def count(self) -> int:
        return sum(manifest["counts"]["rows_out"] for _, manifest in self.masks.manifests())

    def parts(self, group: int) -> Iterator[tuple[str, np.ndarray]]:
        """(path of the part, which of its rows are in) of a group."""
        for unit, part, _ in parts_of_group(self.folder, group, self.groups):
            yield self.folder.file(unit, "arrow", part), np.fromfile(self.masks.file(unit, "mask", part), np.uint8) == 0

    def matches(self, group: int) -> Iterator[selection.Matches]:
        for path, keep in self.parts(group):
            first = 0
            for batch in files.read_batches(path, ["uid", "query_ids"]):
                inside = keep[first : first + batch.num_rows]
                yield selection.Matches.from_arrow(batch["uid"], batch["query_ids"], inside)
                first += batch.num_rows


class DropDuplicates(beam.PTransform):
    """parts written | DropDuplicates(plan, way=...): masks beside the parts."""

    def __init__(self, plan: Dropping, *, way: str) -> None:
        super().__init__()
        self._plan, self._way = plan, way

    def expand(self, written: Any) -> beam.PCollection:
        plan = self._plan
        find, mark = FindDuplicates(plan), MarkDropped(plan)
        drops = written | "Find" >> ExchangeStep(find, work=plan.work, count=find.units(), way=self._way)
        return drops | "Mark" >> ExchangeStep(mark, work=plan.work, count=plan.groups, way=self._way)


def complete(plan: Dropping) -> dict[str, Any]:
    """Ends the stage: rejected rows, info.json, COMPLETED."""
    ledger, digest = Ledger(), 0
    for _, manifest in plan.masks.manifests():
        ledger.add(Ledger.from_json(manifest["counts"]))
        digest = hashing.add_digests(digest, manifest["counts"]["digest"])
    write_rejected(plan.work, plan.stage, [plan.masks], keep=plan.keep_rejected)
    info = stage_info(ledger, digest=digest, folders=[plan.work.step(plan.stage, "drops"), plan.masks])
    plan.work.complete(plan.stage, info)
    return info
