"""dedup: by keys. Of equal pairs one stays, of the texts of one URL one stays.

No row is moved: 44 bytes a row cross from the matched parts to buckets of URLs, and (part, row, reason) of the *dropped*
rows come back, as a mask beside each part.

    parts/*.keys --by URL--> FindDuplicates --by unit--> MarkDropped: masks/00007-000.mask
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline import buckets, files, hashing, selection
from pipeline.ledger import Ledger
from pipeline.passes import KEYS, PARTS_OF_UNIT, Rejects, Tally, write_rejected
from pipeline.steps import ExchangeStep, Reading
from pipeline.work import StepFolder, Work, stage_info

DROPS = pa.schema(
    [pa.field("part", pa.int32(), False), pa.field("row", pa.int32(), False), pa.field("reason", pa.uint8(), False)]
)


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
    """One unit a bucket of URLs."""

    work: Work
    matched: StepFolder
    count: int  # buckets of keys
    groups: int  # groups of units that the drops go back to
    placeholder_bound: int

    @property
    def folder(self) -> StepFolder:
        return self.work.step("dedup", "drops")

    @property
    def reads(self) -> Reading:
        return Reading(self.matched, "keys")

    def units(self) -> int:
        return self.count

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        keys = buckets.table(messages, KEYS)
        drops = find_drops(keys, placeholder_bound=self.placeholder_bound)
        group = drops["part"].to_numpy().astype(np.int64) // PARTS_OF_UNIT % self.groups
        buckets.write(self.folder.file(unit, "drops", 0), buckets.cut(drops, group, self.groups))
        return {"parts": 1, "keys": keys.num_rows, "drops": drops.num_rows}


@dataclasses.dataclass(frozen=True)
class MarkDropped:
    """One unit a group of matched units: writes a mask (0: stays) beside each part, counts, and samples the dropped."""

    work: Work
    matched: StepFolder
    groups: int
    keep_rejected: str

    @property
    def folder(self) -> StepFolder:
        return self.work.step("dedup", "masks")

    @property
    def reads(self) -> Reading:
        return Reading(self.work.step("dedup", "drops"), "drops")

    def units(self) -> int:
        return self.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        drops = buckets.table(messages, DROPS)
        part_of_drop = drops["part"].to_numpy()
        order = np.argsort(part_of_drop, kind="stable")
        part_of_drop = part_of_drop[order]
        row, reason = drops["row"].to_numpy()[order], drops["reason"].to_numpy()[order]
        rejects = Rejects(self.keep_rejected)
        tally = Tally("dedup", rejects)
        for matched, part, rows in parts_of_group(self.matched, unit, self.groups):
            number = matched * PARTS_OF_UNIT + part
            first, last = np.searchsorted(part_of_drop, [number, number + 1])
            mask = np.zeros(rows, np.uint8)
            mask[row[first:last]] = reason[first:last]
            files.write_bytes(self.folder.file(matched, "mask", part), mask.tobytes())
            count_part(self.matched.file(matched, "arrow", part), mask, tally)
        rejected = rejects.table()
        if rejected.num_rows:
            files.write_table(self.folder.file(unit, "rejected"), rejected)
        return {"dedup": {**tally.ledger.to_json(), "digest": tally.digest}, "rejected": rejected.num_rows}


def count_part(path: str, mask: np.ndarray, tally: Tally) -> None:
    """Adds one part to the stage's ledger and digest, and offers its dropped rows to the rejects."""
    hashes = np.concatenate([batch["row_hash"].to_numpy() for batch in files.read_batches(path, ["row_hash"])])
    tally.ledger.rows_in += len(mask)
    tally.passed(hashes[mask == 0])
    for code in np.unique(mask[mask > 0]).tolist():
        rows = np.flatnonzero(mask == code)
        tally.ledger.drop(selection.DUPLICATE_REASONS[code], len(rows))
        if tally.rejects.keep == "sample" and len(rows) > tally.rejects.limit:  # few of them are read
            high = np.concatenate([hashing.uid_words(batch["uid"])[0] for batch in files.read_batches(path, ["uid"])])
            rows = np.sort(rows[np.argpartition(high[rows], tally.rejects.limit - 1)[: tally.rejects.limit]])
        if tally.rejects.keep != "none":
            _reject(path, rows, selection.DUPLICATE_REASONS[code], tally)


def _reject(path: str, rows: np.ndarray, reason: str, tally: Tally) -> None:
    """Offers the given rows of a part to the rejects."""
    first = 0
    for batch in files.read_batches(path, ["uid", "url", "text"]):
        inside = rows[(rows >= first) & (rows < first + batch.num_rows)] - first
        if len(inside):
            taken = batch.take(pa.array(inside))
            hashes = hashing.uid_words(taken["uid"])[0]
            tally.rejects.add("dedup", reason, taken["url"], taken["text"], hashes)
        first += batch.num_rows


def parts_of_group(matched: StepFolder, group: int, groups: int) -> Iterator[tuple[int, int, int]]:
    """(unit, part, rows) of the parts that a group of units holds."""
    for unit, manifest in matched.manifests():
        if unit % groups == group:
            for part, rows in enumerate(manifest["rows"]):
                yield unit, part, rows


def read_mask(masks: StepFolder, unit: int, part: int) -> np.ndarray:
    """The reasons of a part's rows; 0: the row stays."""
    return np.fromfile(masks.file(unit, "mask", part), np.uint8)


class Dedup(beam.PTransform):
    """matched | Dedup(...): masks beside the matched parts."""

    def __init__(
        self,
        *,
        work: Work,
        matched: StepFolder,
        key_bits: int,
        groups: int,
        placeholder_bound: int,
        keep_rejected: str,
        way: str,
    ) -> None:
        super().__init__("Dedup")
        self._find = FindDuplicates(work, matched, 1 << key_bits, groups, placeholder_bound)
        self._mark = MarkDropped(work, matched, groups, keep_rejected)
        self._way = way

    def expand(self, matched: Any) -> beam.PCollection:
        find, mark = self._find, self._mark
        drops = matched | "Find" >> ExchangeStep(find, work=find.work, count=find.count, way=self._way)
        return drops | "Mark" >> ExchangeStep(mark, work=mark.work, count=mark.groups, way=self._way)


def complete(work: Work, keep_rejected: str) -> dict[str, Any]:
    """Ends the stage: rejected rows, info.json, COMPLETED."""
    masks = work.step("dedup", "masks")
    ledger, digest = Ledger(), 0
    for _, manifest in masks.manifests():
        ledger.add(Ledger.from_json(manifest["dedup"]))
        digest = hashing.add_digests(digest, manifest["dedup"]["digest"])
    write_rejected(work, "dedup", [masks], keep=keep_rejected)
    info = stage_info(ledger, digest=digest, folders=[work.step("dedup", "drops"), masks])
    work.complete("dedup", info)
    return info
