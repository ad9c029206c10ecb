"""dedup-images: of pairs whose images have the same bytes, the one with the smallest uid stays.

First the fetched rows, without the failures, are written as parts like those of match. Then the steps of `dedup`
follow. The hash of the image takes the place of the URL.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.steps import run_task
from pipeline.engine.work import Json, StepFolder
from pipeline.schema import FETCHED
from pipeline.stages.attempts import Attempts
from pipeline.stages.base import Job, Outputs, Stage
from pipeline.stages.dedup_exchange import DedupPlan, drop_duplicates
from pipeline.stages.row_pass import FETCHED_OK, PROVENANCE, RAW, URL_HASH, PartWriter
from pipeline.stages.run import Run

if TYPE_CHECKING:
    import apache_beam as beam

ROWS_PER_GROUP = 250_000
REASONS = ("", "same_pair", "same_image", "placeholder_url")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupImagesSettings:
    """The stage has no options yet."""

    title: ClassVar[str] = "dedup-images"


@dataclasses.dataclass(frozen=True)
class KeepFetched:
    """One unit for each unit of the fetch: writes its good rows and their keys. The newest outcome of a row counts."""

    plan: DedupPlan
    attempts: Attempts

    @property
    def folder(self) -> StepFolder:
        return self.plan.rows.parts

    def units(self) -> int:
        return self.attempts.hosts

    def run(self, unit: int) -> dict[str, Any]:
        with PartWriter(self.folder, unit, FETCHED_OK, self.plan.key_bits) as writer:
            for number, part, table in self.attempts.rows(unit):
                writer.write(keep_fetched(table, number, unit, part))
        return {"parts": writer.parts, "rows": writer.rows}


def keep_fetched(table: pa.Table, number: int, unit: int, part: int) -> pa.RecordBatch:
    """FETCHED rows -> the good ones, with the place of their raw file and their keys (the image hash as URL hash)."""
    good = table.filter(pc.equal(table["status"], "ok")).combine_chunks()
    rows = good.num_rows
    first = np.frombuffer(b"".join(digest[:8] for digest in good["image_sha256"].to_pylist()), ">u8").astype(np.uint64)
    constants = zip(RAW, (number, unit, part), strict=True)
    columns = [hashing.as_array(good[name]) for name in FETCHED.names]
    columns += [pa.array(np.full(rows, value), field.type) for field, value in constants]
    columns += [hashing.as_array(good["row_hash"]), pa.array(first), pa.array(np.zeros(rows, np.uint64))]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([*FETCHED_OK, URL_HASH, PROVENANCE]))


@dataclasses.dataclass(frozen=True)
class DedupImages(Stage):
    """The stage."""

    name: ClassVar[str] = "dedup-images"
    job: ClassVar[Job] = "publish"
    options: ClassVar[type] = DedupImagesSettings

    attempts: Attempts
    exchange: str

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        attempts = Attempts(before.folder("fetch"), before.folder("balance"))
        return cls(before.plan(run, cls), run.keep_rejected, attempts, run.exchange)

    @property
    def duplicates(self) -> DedupPlan:
        """The exchange that finds equal images. The fetch must be done: the number of its rows sizes the exchange."""
        fetched = self.attempts.folder.done()["rows_out"]
        rows = Rows(self.folder.step("parts"), groups=min(1024, max(1, round(fetched / ROWS_PER_GROUP))))
        bits = min(12, max(0, (44 * fetched >> 26).bit_length()))
        return DedupPlan(self.folder, rows, bits, REASONS, keep_rejected=self.keep_rejected)

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        return {}

    def expand(self, done: Any) -> beam.PCollection:
        duplicates = self.duplicates
        done = run_task(done, KeepFetched(duplicates, self.attempts))
        return drop_duplicates(done, duplicates, exchange=self.exchange)

    @property
    def output(self) -> Rows:
        return self.duplicates.remaining()

    def steps(self) -> tuple[StepFolder, ...]:
        return self.duplicates.drops, self.duplicates.masks

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.duplicates.masks,)

    def watched(self) -> list[Watched]:
        return [Watched("dedup-images parts", self.duplicates.rows.parts), *self.duplicates.watched()]
