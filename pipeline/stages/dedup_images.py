"""dedup-images: of the pairs whose images have the same bytes one stays: the one with the smallest uid.

The rows that the fetch brought are first settled, the failures left out, in parts like those of match; then the steps
are those of `dedup`, with the hash of the image in the place of the URL.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing
from pipeline.engine.steps import Step
from pipeline.engine.work import StepFolder, Work
from pipeline.schema import FETCHED
from pipeline.stages.dedup_exchange import DropDuplicates, Dropping, RemainingRows, complete
from pipeline.stages.row_pass import PROVENANCE, ROW_HASH, URL_HASH, PartWriter

__all__ = ["DedupImages", "SETTLED", "Settle", "complete", "dropping", "remaining"]

REASONS = ("", "same_pair", "same_image", "placeholder_url")

# Where a row's JPEG lies: the raw file of (pass, unit, part) of the fetch, at image_offset.
RAW = (
    pa.field("raw_pass", pa.int16(), False),
    pa.field("raw_unit", pa.int32(), False),
    pa.field("raw_part", pa.int16(), False),
)
SETTLED = pa.schema([*FETCHED, *RAW, ROW_HASH])


@dataclasses.dataclass(frozen=True)
class Settle:
    """One unit a unit of the fetch: its good rows, the last pass's word on each, and their keys."""

    plan: Dropping
    fetched: Any  # fetch.Fetching: gives `rows(unit)` -> (pass, part, table)

    @property
    def folder(self) -> StepFolder:
        return self.plan.parts

    def units(self) -> int:
        return self.fetched.hosts

    def run(self, unit: int) -> dict[str, Any]:
        with PartWriter(self.folder, unit, SETTLED, self.plan.key_bits) as writer:
            for number, part, table in self.fetched.rows(unit):
                writer.write(settle_batch(table, number, unit, part))
        return {"parts": writer.parts, "rows": writer.rows}


def settle_batch(table: pa.Table, number: int, unit: int, part: int) -> pa.RecordBatch:
    """FETCHED rows -> the good ones, with the place of their raw file and their keys (the hash of the image first)."""
    good = table.filter(pc.equal(table["status"], "ok")).combine_chunks()
    rows = good.num_rows
    first = np.frombuffer(b"".join(digest[:8] for digest in good["image_sha256"].to_pylist()), ">u8").astype(np.uint64)
    constants = zip(RAW, (number, unit, part), strict=True)
    columns = [hashing.as_array(good[name]) for name in FETCHED.names]
    columns += [pa.array(np.full(rows, value), field.type) for field, value in constants]
    columns += [hashing.as_array(good["row_hash"]), pa.array(first), pa.array(np.zeros(rows, np.uint64))]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([*SETTLED, URL_HASH, PROVENANCE]))


def dropping(work: Work, *, key_bits: int, groups: int, keep_rejected: str) -> Dropping:
    """The stage's plan."""
    parts = work.step("dedup-images", "parts")
    return Dropping(work, "dedup-images", parts, key_bits, groups, REASONS, keep_rejected=keep_rejected)


def remaining(plan: Dropping) -> RemainingRows:
    """The rows that the stage leaves in."""
    return RemainingRows(plan.parts, plan.masks, plan.groups)


class DedupImages(beam.PTransform):
    """root | DedupImages(plan, fetched, way=...): settled parts and masks beside them."""

    def __init__(self, plan: Dropping, fetched: Any, *, way: str) -> None:
        super().__init__("DedupImages")
        self._plan, self._fetched, self._way = plan, fetched, way

    def expand(self, root: Any) -> beam.PCollection:
        settled = root | "Settle" >> Step(Settle(self._plan, self._fetched), work=self._plan.work)
        return settled | DropDuplicates(self._plan, way=self._way)
