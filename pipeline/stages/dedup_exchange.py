"""Finds duplicates among parts. Keys go to buckets. The places of dropped rows come back as masks beside the parts.

`dedup` does this with URLs and texts before the fetch. `dedup_images` does it with image bytes after the fetch.

    <step>/*.keys --by key--> FindDuplicates --by unit--> MarkDropped: masks/00007-000.mask
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.steps import run_exchange
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StageFolder, StepFolder
from pipeline.stages import selection
from pipeline.stages.base import Stage
from pipeline.stages.row_pass import KEYS, PARTS_OF_UNIT
from pipeline.stages.tally import Rejects, Tally, unit_body

if TYPE_CHECKING:
    import apache_beam as beam

DROPS = pa.schema(
    [pa.field("part", pa.int32(), False), pa.field("row", pa.int32(), False), pa.field("reason", pa.uint8(), False)]
)


@dataclasses.dataclass(frozen=True)
class DedupPlan:
    """The exchange of one stage.

    Attributes:
        folder: of the stage.
        rows: the parts with their `.keys`.
        key_bits: the keys are cut into 2 ** key_bits buckets.
        reasons: the drop reason for each code of `selection.find_duplicates`.
        placeholder_bound: all rows of a URL with more texts than this are dropped; 0: no bound.
        keep_rejected: sample, all or none.
    """

    folder: StageFolder
    rows: Rows
    key_bits: int
    reasons: tuple[str, ...] = selection.DUPLICATE_REASONS
    placeholder_bound: int = 0
    keep_rejected: str = "sample"

    @property
    def drops(self) -> StepFolder:
        """The dropped rows, by group."""
        return self.folder.step("drops")

    @property
    def masks(self) -> StepFolder:
        """One mask for each part (0: the row stays)."""
        return self.folder.step("masks")

    def remaining(self) -> Rows:
        """The rows that the stage does not drop."""
        return dataclasses.replace(self.rows, masks=self.masks)

    def watched(self) -> list[Watched]:
        """The steps that the progress shows."""
        name = self.folder.name
        return [Watched(f"{name} drops", self.drops), Watched(f"{name} masks", self.masks, self.rows.groups)]


def find_drops(keys: pa.Table, *, placeholder_bound: int = 0) -> pa.RecordBatch:
    """KEYS -> DROPS: the place of each dropped row, and its code (selection.DUPLICATE_REASONS).

    `keys` holds either all rows of a URL or none of them.
    """
    names = ("url_hash", "pair_high", "pair_low", "provenance")
    columns = [keys[name].to_numpy() for name in names]
    codes = selection.find_duplicates(*columns, placeholder_bound=placeholder_bound)
    drop = np.flatnonzero(codes)
    return pa.RecordBatch.from_arrays(
        [pa.array(keys[name].to_numpy()[drop]) for name in ("part", "row")] + [pa.array(codes[drop])], schema=DROPS
    )


@dataclasses.dataclass(frozen=True)
class FindDuplicates:
    """One unit for each bucket of keys."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.drops

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.rows.parts, "keys")

    def units(self) -> int:
        return 1 << self.plan.key_bits

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        keys = shuffle_files.table(messages, KEYS)
        drops = find_drops(keys, placeholder_bound=self.plan.placeholder_bound)
        group = drops["part"].to_numpy().astype(np.int64) // PARTS_OF_UNIT % self.plan.rows.groups
        shuffle_files.write(self.folder.file(unit, "drops", 0), shuffle_files.cut(drops, group, self.plan.rows.groups))
        return {"parts": 1, "keys": keys.num_rows, "drops": drops.num_rows}


@dataclasses.dataclass(frozen=True)
class MarkDropped:
    """One unit for each group: writes a mask (0: stays) beside each part, counts the rows, samples the dropped ones."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.masks

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.drops, "drops")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        drops = shuffle_files.table(messages, DROPS)
        order = np.argsort(drops["part"].to_numpy(), kind="stable")
        part_of_drop, row, reason = (drops[name].to_numpy()[order] for name in DROPS.names)
        rejects = Rejects(self.plan.keep_rejected)
        tally = Tally(self.plan.folder.name, rejects)
        for source, part, rows in self.plan.rows.parts_of_group(unit):
            number = source * PARTS_OF_UNIT + part
            first, last = np.searchsorted(part_of_drop, [number, number + 1])
            mask = np.zeros(rows, np.uint8)
            mask[row[first:last]] = reason[first:last]
            storage.write_bytes(self.folder.file(source, "mask", part), mask.tobytes())
            count_part(self.plan.rows.parts.file(source, "arrow", part), mask, tally, self.plan.reasons)
        return unit_body(self.folder, unit, [tally], rejects)


def count_part(path: str, mask: np.ndarray, tally: Tally, reasons: tuple[str, ...]) -> None:
    """Adds one part to the stage's ledger and digest, and offers its dropped rows to the rejects."""
    hashes = np.concatenate([batch["row_hash"].to_numpy() for batch in storage.read_batches(path, ["row_hash"])])
    tally.ledger.rows_in += len(mask)
    tally.passed(hashes[mask == 0])
    for code in np.unique(mask[mask > 0]).tolist():
        rows = np.flatnonzero(mask == code)
        tally.ledger.drop(reasons[code], len(rows))
        if tally.rejects.keep == "sample" and len(rows) > tally.rejects.limit:  # so that few rows are read below
            high = np.concatenate([hashing.uid_words(batch["uid"])[0] for batch in storage.read_batches(path, ["uid"])])
            rows = np.sort(rows[np.argpartition(high[rows], tally.rejects.limit - 1)[: tally.rejects.limit]])
        if tally.rejects.keep != "none":
            _reject(path, rows, reasons[code], tally)


def _reject(path: str, rows: np.ndarray, reason: str, tally: Tally) -> None:
    """Offers the given rows of a part to the rejects."""
    first = 0
    for batch in storage.read_batches(path):  # all columns: so the file is mapped; selected columns would be copied
        inside = rows[(rows >= first) & (rows < first + batch.num_rows)] - first
        if len(inside):
            taken = batch.take(pa.array(inside))
            hashes = hashing.uid_words(taken["uid"])[0]
            tally.rejects.add(tally.stage, reason, taken["url"], taken["text"], hashes)
        first += batch.num_rows


def drop_duplicates(done: Any, plan: DedupPlan, *, exchange: str) -> beam.PCollection:
    """Appends to `done` the steps that write a mask beside each part."""
    done = run_exchange(done, FindDuplicates(plan), buckets=1 << plan.key_bits, exchange=exchange)
    return run_exchange(done, MarkDropped(plan), buckets=plan.rows.groups, exchange=exchange)


@dataclasses.dataclass(frozen=True)
class DedupStage(Stage):
    """A stage that drops duplicates. Its rows are the parts that it reads, under the masks that it writes."""

    exchange: str

    @property
    @abc.abstractmethod
    def duplicates(self) -> DedupPlan:
        """The exchange that finds the duplicates."""

    def expand(self, done: Any) -> beam.PCollection:
        return drop_duplicates(done, self.duplicates, exchange=self.exchange)

    @property
    def output(self) -> Rows:
        return self.duplicates.remaining()

    def steps(self) -> tuple[StepFolder, ...]:
        return self.duplicates.drops, self.duplicates.masks

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.duplicates.masks,)

    def watched(self) -> list[Watched]:
        return self.duplicates.watched()
