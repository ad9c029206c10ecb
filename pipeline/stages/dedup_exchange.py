"""Finds duplicates among parts. Keys go to buckets. The places of dropped rows come back as masks beside the parts.

`dedup` does this with URLs and texts before the fetch. `dedup_images` does it with image bytes after the fetch.

    <step>/*.keys --by image--> FindDuplicates --by unit--> MarkDropped: masks/00007-000.mask

With a bound on the images of a text, the texts are counted before:

    <step>/*.keys --CutTexts--> by text --> FindCommonTexts: texts/00007.common
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.steps import run_exchange, run_task
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StageFolder, StepFolder
from pipeline.stages import selection
from pipeline.stages.base import Stage
from pipeline.stages.matches import Keys
from pipeline.stages.row_pass import KEYS, PARTS_OF_UNIT
from pipeline.stages.tally import Rejects, Tally, unit_body

if TYPE_CHECKING:
    import apache_beam as beam

TEXTS = pa.schema([pa.field("text", pa.uint64(), False), pa.field("image", pa.uint64(), False)])
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
        placeholder_bound: all rows of an image with more texts than this are dropped; 0: no bound.
        common_text_bound: all rows of a text with more images than this are dropped; 0: no bound.
        keep_rejected: sample, all or none.
    """

    folder: StageFolder
    rows: Rows
    key_bits: int
    reasons: tuple[str, ...] = selection.DUPLICATE_REASONS
    placeholder_bound: int = 0
    common_text_bound: int = 0
    keep_rejected: str = "sample"

    @property
    def cut_texts(self) -> StepFolder:
        """The texts of the rows with their images, by text."""
        return self.folder.step("cut-texts")

    @property
    def texts(self) -> StepFolder:
        """The texts of too many images."""
        return self.folder.step("texts")

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

    def steps(self) -> tuple[StepFolder, ...]:
        """All steps."""
        texts = (self.cut_texts, self.texts) if self.common_text_bound else ()
        return *texts, self.drops, self.masks

    def watched(self) -> list[Watched]:
        """The steps that the progress shows."""
        name = self.folder.name
        texts = [Watched(f"{name} texts", self.texts)] if self.common_text_bound else []
        drops = Watched(f"{name} drops", self.drops), Watched(f"{name} masks", self.masks, self.rows.groups)
        return [*texts, *drops]


@dataclasses.dataclass(frozen=True)
class CutTexts:
    """One unit for each group: the texts of its rows with their images, cut by text."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.cut_texts

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int) -> dict[str, Any]:
        parts = self.plan.rows.parts
        messages = [
            message
            for source, part, _ in self.plan.rows.parts_of_group(unit)
            for _, message in shuffle_files.read_all(parts.file(source, "keys", part))
        ]
        found = shuffle_files.table(messages, KEYS).select(TEXTS.names)
        batch = found.to_batches()[0] if found.num_rows else pa.RecordBatch.from_pylist([], TEXTS)
        bucket = hashing.buckets(batch["text"].to_numpy(), self.plan.key_bits)
        path = self.folder.file(unit, "texts", 0)
        shuffle_files.write(path, shuffle_files.cut(batch, bucket, 1 << self.plan.key_bits))
        return {"parts": 1, "rows": batch.num_rows}


@dataclasses.dataclass(frozen=True)
class FindCommonTexts:
    """One unit for each bucket of texts: those that stand at too many images."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.texts

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.cut_texts, "texts")

    def units(self) -> int:
        return 1 << self.plan.key_bits

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        found = shuffle_files.table(messages, TEXTS)
        text, image = (found[name].to_numpy() for name in TEXTS.names)
        common = selection.find_common_texts(text, image, self.plan.common_text_bound)
        storage.save_array(self.folder.file(unit, "common"), common)
        return {"texts": len(common)}


@functools.lru_cache(maxsize=2)
def load_common_texts(folder: StepFolder) -> np.ndarray:
    """The texts of too many images, ascending."""
    arrays = [storage.map_array(folder.file(unit, "common")) for unit, _ in folder.manifests()]
    return np.sort(np.concatenate(arrays)) if arrays else np.zeros(0, np.uint64)


def among(words: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """True for each word that is in an ascending array."""
    if len(ascending) == 0:
        return np.zeros(len(words), np.bool_)
    place = np.minimum(np.searchsorted(ascending, words), len(ascending) - 1)
    return ascending[place] == words


def find_codes(keys: pa.Table, *, placeholder_bound: int = 0, common: np.ndarray | None = None) -> np.ndarray:
    """The code of each row of KEYS (selection.DUPLICATE_REASONS).

    Args:
        keys: all rows of an image, or none of them.
        placeholder_bound: see DedupPlan.
        common: the texts of too many images, ascending.
    """
    columns = {name: keys[name].to_numpy() for name in KEYS.names}
    text, _, _ = (columns.pop(name) for name in ("text", "part", "row"))
    is_common = among(text, np.zeros(0, np.uint64) if common is None else common)
    found = Keys(rank=hashing.mix(columns["image"], text), common=is_common, **columns)
    return selection.find_duplicates(found, placeholder_bound=placeholder_bound)


def drops_of(part: np.ndarray, row: np.ndarray, codes: np.ndarray) -> pa.RecordBatch:
    """DROPS: the place and the code of each row whose code is not 0."""
    drop = np.flatnonzero(codes)
    columns = part[drop], row[drop], codes[drop].astype(np.uint8)
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=DROPS)


def write_drops(folder: StepFolder, unit: int, drops: pa.RecordBatch, rows: Rows) -> None:
    """Writes DROPS as a bucket file, cut by the group of their part."""
    group = drops["part"].to_numpy().astype(np.int64) // PARTS_OF_UNIT % rows.groups
    shuffle_files.write(folder.file(unit, "drops", 0), shuffle_files.cut(drops, group, rows.groups))


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
        common = load_common_texts(self.plan.texts) if self.plan.common_text_bound else None
        codes = find_codes(keys, placeholder_bound=self.plan.placeholder_bound, common=common)
        drops = drops_of(keys["part"].to_numpy(), keys["row"].to_numpy(), codes)
        write_drops(self.folder, unit, drops, self.plan.rows)
        return {"parts": 1, "keys": keys.num_rows, "drops": drops.num_rows, **self.extra(unit, keys, codes)}

    def extra(self, unit: int, keys: pa.Table, codes: np.ndarray) -> dict[str, Any]:
        """Writes what else a stage wants of a bucket. Returns further entries of the manifest."""
        return {}


@dataclasses.dataclass(frozen=True)
class MarkDropped:
    """One unit for each group: writes a mask (0: stays) beside each part, counts the rows, samples the dropped ones.

    Attributes:
        plan: of the exchange.
        last: the step whose drops are read; None: that of FindDuplicates.
        earlier: a step of the same groups that holds more drops of each; None: there are no more.
    """

    plan: DedupPlan
    last: StepFolder | None = None
    earlier: StepFolder | None = None

    @property
    def folder(self) -> StepFolder:
        return self.plan.masks

    @property
    def reads(self) -> Reading:
        return Reading(self.last or self.plan.drops, "drops")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        drops = shuffle_files.table(messages, DROPS)
        if self.earlier is not None:
            drops = pa.concat_tables([storage.read_table(self.earlier.file(unit, "earlier")), drops])
        rejects = Rejects(self.plan.keep_rejected)
        tally = Tally(self.plan.folder.name, rejects)
        for source, part, mask in masks_of_group(self.plan.rows, unit, drops):
            storage.write_bytes(self.folder.file(source, "mask", part), mask.tobytes())
            count_part(self.plan.rows.parts.file(source, "arrow", part), mask, tally, self.plan.reasons)
        return unit_body(self.folder, unit, [tally], rejects)


def masks_of_group(rows: Rows, group: int, drops: pa.Table) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (unit, part, code of each row) for each part of a group. `drops` are DROPS of the group."""
    order = np.argsort(drops["part"].to_numpy(), kind="stable")
    part_of_drop, row, reason = (drops[name].to_numpy()[order] for name in DROPS.names)
    for source, part, count in rows.parts_of_group(group):
        number = source * PARTS_OF_UNIT + part
        first, last = np.searchsorted(part_of_drop, [number, number + 1])
        mask = np.zeros(count, np.uint8)
        mask[row[first:last]] = reason[first:last]
        yield source, part, mask


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
    if plan.common_text_bound:
        done = run_task(done, CutTexts(plan), max_units=plan.rows.groups)
        done = run_exchange(done, FindCommonTexts(plan), buckets=1 << plan.key_bits, exchange=exchange)
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
        return self.duplicates.steps()

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.duplicates.masks,)

    def watched(self) -> list[Watched]:
        return self.duplicates.watched()
