"""balance: each query picks at most `cap` of its pairs, by hash. A pair stays if any query picks it.

Source: Radford et al. 2021, section 2.2, "we approximately class balance the results by including up to 20,000
(image, text) pairs per query". `caps` finds the counts and thresholds. Each row is then decided by these alone.
No row is copied. A mask lies beside each part of match, and a file with the new columns of its picked rows. So a set
that grows by a few rows writes few bytes anew.

    matched parts + masks --FindCaps--> thresholds --SelectRows--> masks/00007-000.mask, overlays/00007-000.overlay
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeGuard

import numpy as np
import pyarrow as pa

from pipeline.engine import checks, hashing, storage
from pipeline.engine.cli import UsageError
from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Masked, Rows
from pipeline.engine.steps import run_task
from pipeline.engine.work import Json, StageFolder, StepFolder
from pipeline.schema import SELECTED
from pipeline.stages import caps
from pipeline.stages.base import TABLES, Job, Outputs, Stage, sum_of_ledgers
from pipeline.stages.caps import CapPlan, Decider, MatchedRows, Policy
from pipeline.stages.row_pass import ROW_HASH
from pipeline.stages.run import Run, RunSettings
from pipeline.stages.tally import Rejects, Tally, unit_body
from pipeline.stages.user_files import UserFiles, content_of, copy_of, write_copy

if TYPE_CHECKING:
    import apache_beam as beam

MASKS, OVERLAYS = "masks", "overlays"  # the steps that leave the stage's rows
EARLIER, OVER_CAP = 1, 2  # codes of a mask: the row did not come in; no query picked it
# What is new of the picked rows of a part. All other columns are as dedup left them.
PICKED = pa.schema(
    [pa.field("row", pa.int32(), False), *(SELECTED.field(name) for name in ("keep_probability", "kept_by")), ROW_HASH]
)
STOP_LIST = UserFiles("--stop-queries")
CAP = 20_000  # of a query (Radford et al. 2021, section 2.2)


def _is_file(stop_queries: str | None) -> TypeGuard[str]:
    return stop_queries is not None and not stop_queries.endswith("%")


def _described(value: str) -> Json:
    return STOP_LIST.described([value])[0] if _is_file(value) else value


def _check_stop_queries(value: str) -> None:
    if _is_file(value):
        checks.readable_file(value)
        return
    try:
        percent = float(value[:-1])
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise UsageError("must be a file, or a share of the texts over 0% and at most 100%")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BalanceSettings:
    """How many pairs a query picks."""

    title: ClassVar[str] = "balance"

    balance: str = option(
        "cap",
        help="cap: each query picks at most --cap pairs, exactly; bernoulli: as MetaCLIP draws",
        choices=("cap", "bernoulli", "none"),
    )
    cap: int = option(CAP, help="pairs that a query may pick", metavar="T", within="[1, 1e12]")
    target_pairs: int | None = option(None, help="solve for the cap that keeps about so many pairs", within="[1, 1e12]")
    expected_yield: float = option(
        1.0,
        help="share of the pairs expected to come through the fetch: so many more are fetched that --cap or "
        "--target-pairs is met after it",
        metavar="FRACTION",
        within="(0, 1]",
    )
    stop_queries: str | None = option(
        None,
        help="queries that never pick a pair alone: a list, or those in more than a share of the texts",
        metavar="FILE|5%",
        check=_check_stop_queries,
        published=_described,
    )

    @staticmethod
    def check_together(o: Any) -> None:
        """Refuses a cap beside the number of pairs that finds the cap."""
        if o.target_pairs is not None and o.cap != CAP:
            raise UsageError(
                f"--target-pairs {o.target_pairs}: must stand without --cap {o.cap}, since it finds the cap"
            )


def policy(run: Run) -> Policy:
    """The rules by which the queries share the pairs."""
    o, seed = run.settings(BalanceSettings), run.settings(RunSettings).seed
    share, stop = None, o.stop_queries
    if stop and not _is_file(stop):
        share, stop = float(stop[:-1]) / 100, None
    numbers = o.balance, o.cap, o.target_pairs, seed
    return Policy(*numbers, stop_list=stop, stop_share=share, expected_yield=o.expected_yield)


def _copy_of_list(run: Run, balance: StageFolder) -> str | None:
    """Where the list of stop queries is copied to, if workers may not see it."""
    path = policy(run).stop_list
    return copy_of(STOP_LIST.flag, path, balance.path) if path and run.workers_elsewhere else None


@dataclasses.dataclass(frozen=True)
class SelectRows:
    """One unit for each group: writes a mask (0: stays) beside each part, and the new values of its picked rows."""

    plan: CapPlan
    rows: Rows
    keep_rejected: str

    @property
    def folder(self) -> StepFolder:
        return self.plan.step(MASKS)

    def units(self) -> int:
        return self.rows.groups

    def run(self, unit: int) -> dict[str, Any]:
        rejects = Rejects(self.keep_rejected)
        tally = Tally("balance", rejects)
        decider = Decider.load(self.plan, tally)
        parts = self.rows.masked(unit, ["uid", "url", "text", "query_ids", "row_hash"])
        for (source, part, _), batches in zip(self.rows.parts_of_group(unit), parts, strict=True):
            self._write(source, part, list(batches), decider)
        return unit_body(self.folder, unit, [tally], rejects)

    def _write(self, source: int, part: int, batches: list[Masked], decider: Decider) -> None:
        codes, picked, first = [np.zeros(0, np.uint8)], [], 0
        for batch, keep in batches:
            choice = decider.choose(batch, keep)
            code = np.where(keep, OVER_CAP, EARLIER).astype(np.uint8)
            code[choice.rows] = 0
            codes.append(code)
            columns = {"row": pa.array((choice.rows + first).astype(np.int32)), **choice.columns}
            picked.append(pa.RecordBatch.from_arrays([columns[name] for name in PICKED.names], schema=PICKED))
            first += batch.num_rows
        storage.write_bytes(self.folder.file(source, "mask", part), np.concatenate(codes).tobytes())
        with storage.writing_batches(self.plan.step(OVERLAYS).file(source, "overlay", part), PICKED) as out:
            out.write_batch(hashing.as_batch(pa.Table.from_batches(picked, PICKED)))


@dataclasses.dataclass(frozen=True)
class Balance(Stage):
    """The stage."""

    name: ClassVar[str] = "balance"
    job: ClassVar[Job] = "select"
    options: ClassVar[type] = BalanceSettings

    caps: CapPlan
    rows: Rows
    exchange: str

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        folder, rows = before.plan(run, cls), before.rows("dedup")
        plan = CapPlan(
            folder,
            MatchedRows(rows),
            dataclasses.replace(policy(run), stop_copy=_copy_of_list(run, folder)),
            os.path.join(before.folder("match").path, TABLES),
        )
        return cls(folder, run.keep_rejected, plan, rows, run.exchange)

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        o = run.settings(BalanceSettings)
        decided = {item.name: getattr(o, item.name) for item in dataclasses.fields(BalanceSettings)}
        if _is_file(o.stop_queries):
            decided["stop_queries"] = content_of(STOP_LIST.flag, o.stop_queries)
        return {**decided, "seed": run.settings(RunSettings).seed, "rows_as": "masks"}

    def settle(self, run: Run) -> None:
        if (copy := self.caps.policy.stop_copy) is not None:
            write_copy(str(self.caps.policy.stop_list), copy)

    def expand(self, done: Any) -> beam.PCollection:
        done = caps.find_caps(done, self.caps, exchange=self.exchange)
        return run_task(done, SelectRows(self.caps, self.rows, self.keep_rejected), max_units=self.rows.groups)

    @property
    def output(self) -> Rows:
        masks, above = self.folder.step(MASKS), self.folder.step(OVERLAYS)
        return dataclasses.replace(self.rows, masks=masks, above=above)

    def steps(self) -> tuple[StepFolder, ...]:
        return (*self.caps.steps(), self.folder.step(MASKS))

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.folder.step(MASKS),)

    def facts(self) -> dict[str, Json]:
        limits = self.caps.step("limits")
        numbers = {name: limits.total(name) for name in ("cap", "head_queries", "stop_queries", "matches")}
        ledger, _ = sum_of_ledgers(self.counted(), self.name)
        target = self.caps.policy.target_pairs
        numbers |= caps.shortfall(self.caps, target, ledger.rows_out)
        numbers |= caps.surplus(self.caps, target, ledger.rows_out)
        numbers |= caps.caps_of_languages(self.caps)
        return {**numbers, "band_tuples": self.caps.step("band").total("tuples")}

    def watched(self) -> list[Watched]:
        return [Watched(f"balance {name}", self.folder.step(name)) for name in ("counts", "band", MASKS)]
