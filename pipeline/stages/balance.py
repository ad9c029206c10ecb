"""balance: of the pairs that match each query, at most `cap`, chosen by hash; the union of all queries' picks.

Source: Radford et al. 2021, section 2.2, "we approximately class balance the results by including up to 20,000
(image, text) pairs per query". The counts and thresholds are found in `balancing`; here every row decides by them
alone, and the selected rows, the only ones that are moved whole, are cut by uid, sorted and written.

    matched parts + masks --FindCaps--> thresholds --SelectRows--> by uid --SortRows--> part-00000.parquet
"""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline.engine import files, hashing, shuffle_files
from pipeline.engine.ledger import Ledger
from pipeline.engine.steps import ExchangeStep, Reading, Step
from pipeline.engine.work import StepFolder, Work, stage_info
from pipeline.schema import SELECTED
from pipeline.stages import caps
from pipeline.stages.caps import FindCaps, Plan
from pipeline.stages.dedup_exchange import RemainingRows
from pipeline.stages.row_pass import ROW_HASH, Rejects, Tally, write_rejected

SELECTED_ROWS = "rows"  # the step that leaves the stage's rows
SELECTED_PART = pa.schema([*SELECTED, ROW_HASH])


@dataclasses.dataclass(frozen=True)
class SelectRows:
    """One unit a group: writes the selected rows, cut by the first bits of their uid."""

    plan: Plan
    rows: RemainingRows
    keep_rejected: str

    @property
    def folder(self) -> StepFolder:
        return self.plan.step("selected")

    def units(self) -> int:
        return self.rows.groups

    def run(self, unit: int) -> dict[str, Any]:
        rejects = Rejects(self.keep_rejected)
        tally = Tally("balance", rejects)
        bits, parts = out_bits(self.plan), 0
        decide = caps.decider(self.plan, tally, SELECTED_PART, bits=bits)
        for path, keep in self.rows.parts(unit):
            first, selected = 0, []
            for batch in files.read_batches(path):
                selected.append(decide(batch, keep[first : first + batch.num_rows]))
                first += batch.num_rows
            self._write(unit, parts, selected, bits)
            parts += 1
        rejected = rejects.table()
        if rejected.num_rows:
            files.write_table(self.folder.file(unit, "rejected"), rejected)
        body = {**tally.ledger.to_json(), "digest": tally.digest}
        return {"parts": parts, "balance": body, "rejected": rejected.num_rows}

    def _write(self, unit: int, part: int, selected: list[pa.RecordBatch], bits: int) -> None:
        bucket_of_rows = [hashing.buckets(hashing.uid_words(batch["uid"])[0], bits) for batch in selected]
        shuffle_files.write(self.folder.file(unit, "rows", part), shuffle_files.join(selected, bucket_of_rows, 1 << bits))


def out_bits(plan: Plan) -> int:
    """Bits of the uid that number the output parts: from the rows alone, never from workers or inputs."""
    return (
        shuffle_files.power_of_two(caps.candidates(plan) / caps.ROWS_PER_PART, most=plan.most_parts).bit_length()
        - 1
    )


@dataclasses.dataclass(frozen=True)
class SortRows:
    """One unit an output part: its rows from all groups, by uid."""

    plan: Plan

    @property
    def folder(self) -> StepFolder:
        return self.plan.step(SELECTED_ROWS)

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.step("selected"), "rows")

    def units(self) -> int:
        return 1 << out_bits(self.plan)

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        table = caps.sort_by_uid(shuffle_files.table(messages, SELECTED_PART))
        files.write_table(self.folder.file(unit, "parquet"), table)
        return {"rows": table.num_rows}


class Balance(beam.PTransform):
    """deduplicated | Balance(...): SELECTED parts, sorted by uid."""

    def __init__(self, plan: Plan, rows: RemainingRows, *, keep_rejected: str, way: str) -> None:
        super().__init__("Balance")
        self._plan, self._select, self._way = plan, SelectRows(plan, rows, keep_rejected), way

    def expand(self, deduplicated: Any) -> beam.PCollection:
        work = self._plan.work
        done = deduplicated | FindCaps(self._plan, way=self._way)
        done = done | "Select" >> Step(self._select, work=work, most=self._select.rows.groups)
        return done | "Sort" >> ExchangeStep(
            SortRows(self._plan), work=work, count=self._plan.most_parts, way=self._way
        )


def complete(plan: Plan, keep_rejected: str) -> dict[str, Any]:
    """Ends the stage: rejected rows, info.json, COMPLETED."""
    work: Work = plan.work
    selected, limits = plan.step("selected"), plan.step("limits")
    ledger, digest = Ledger(), 0
    for _, manifest in selected.manifests():
        ledger.add(Ledger.from_json(manifest["balance"]))
        digest = hashing.add_digests(digest, manifest["balance"]["digest"])
    write_rejected(work, "balance", [selected], keep=keep_rejected)
    folders = [plan.step(name) for name in ("counts", "limits", "band", "thresholds", "selected", SELECTED_ROWS)]
    numbers = {name: limits.total(name) for name in ("cap", "head_queries", "stop_queries", "matches")}
    numbers["band_tuples"] = plan.step("band").total("tuples")
    info = stage_info(ledger, digest=digest, folders=folders, **numbers)
    work.complete("balance", info)
    return info
