"""balance: each query picks at most `cap` of its pairs, by hash. A pair stays if any query picks it.

Source: Radford et al. 2021, section 2.2, "we approximately class balance the results by including up to 20,000
(image, text) pairs per query". `caps` finds the counts and thresholds. Each row is then decided by these alone.
The selected rows are cut by uid, sorted and written. No other rows are copied.

    matched parts + masks --FindCaps--> thresholds --SelectRows--> by uid --SortRows--> part-00000.parquet
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeGuard

import pyarrow as pa

from pipeline.engine import checks, hashing, shuffle_files, storage
from pipeline.engine.cli import UsageError
from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.rows import PARQUET, Rows
from pipeline.engine.shuffle_files import in_pieces
from pipeline.engine.steps import run_exchange, run_task
from pipeline.engine.tasks import Reading
from pipeline.engine.work import Json, StepFolder
from pipeline.schema import SELECTED, fill_texts
from pipeline.stages import caps
from pipeline.stages.base import TABLES, Job, Outputs, Stage, sum_of_ledgers
from pipeline.stages.caps import CapPlan, MatchedRows, Policy
from pipeline.stages.row_pass import ROW_HASH
from pipeline.stages.run import Run, RunSettings
from pipeline.stages.tally import Rejects, Tally, unit_body
from pipeline.stages.user_files import UserFiles, content_of

if TYPE_CHECKING:
    import apache_beam as beam

SELECTED_ROWS = "rows"  # the step that leaves the stage's rows
SELECTED_PART = pa.schema([*SELECTED, ROW_HASH])
# Between the steps `texts` is null where it is `text` alone: it need not be written twice.
UNFILLED_PART = pa.schema([field.with_nullable(True) if field.name == "texts" else field for field in SELECTED_PART])


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
    return Policy(o.balance, o.cap, o.target_pairs, seed, stop, share, o.expected_yield)


@dataclasses.dataclass(frozen=True)
class SelectRows:
    """One unit for each group: writes the selected rows, cut by the first bits of their uid."""

    plan: CapPlan
    rows: Rows
    keep_rejected: str

    @property
    def folder(self) -> StepFolder:
        return self.plan.step("selected")

    def units(self) -> int:
        return self.rows.groups

    def run(self, unit: int) -> dict[str, Any]:
        rejects = Rejects(self.keep_rejected)
        tally = Tally("balance", rejects)
        bits = out_bits(self.plan)
        decide = caps.decider(self.plan, tally, UNFILLED_PART, bits=bits)
        selected = (decide(batch, keep) for part in self.rows.masked(unit) for batch, keep in part)
        parts = 0
        for parts, some in enumerate(in_pieces(selected), 1):
            bucket_of_rows = [hashing.buckets(hashing.uid_words(batch["uid"])[0], bits) for batch in some]
            path = self.folder.file(unit, "rows", parts - 1)
            shuffle_files.write(path, shuffle_files.join(some, bucket_of_rows, 1 << bits))
        return {**unit_body(self.folder, unit, [tally], rejects), "parts": parts}


def out_bits(plan: CapPlan) -> int:
    """The bits of the uid that number the output parts. They depend on the rows, not on workers or inputs."""
    parts = shuffle_files.power_of_two(caps.candidates(plan) / caps.ROWS_PER_PART, max_count=plan.max_parts)
    return parts.bit_length() - 1


@dataclasses.dataclass(frozen=True)
class SortRows:
    """One unit for each output part: its rows from all groups, sorted by uid."""

    plan: CapPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.step(SELECTED_ROWS)

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.step("selected"), "rows")

    def units(self) -> int:
        return 1 << out_bits(self.plan)

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        table = caps.sort_by_uid(shuffle_files.table(messages, UNFILLED_PART))
        texts = fill_texts(hashing.as_array(table["text"]), hashing.as_array(table["texts"]))
        table = table.set_column(SELECTED_PART.names.index("texts"), SELECTED_PART.field("texts"), texts)
        storage.write_table(self.folder.file(unit, "parquet"), table)
        return {"rows": table.num_rows}


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
            policy(run),
            os.path.join(before.folder("match").path, TABLES),
            run.sizes.max_parts,
        )
        return cls(folder, run.keep_rejected, plan, rows, run.exchange)

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        o = run.settings(BalanceSettings)
        decided = {item.name: getattr(o, item.name) for item in dataclasses.fields(BalanceSettings)}
        if _is_file(o.stop_queries):
            decided["stop_queries"] = content_of(STOP_LIST.flag, o.stop_queries)
        return {**decided, "seed": run.settings(RunSettings).seed}

    def expand(self, done: Any) -> beam.PCollection:
        done = caps.find_caps(done, self.caps, exchange=self.exchange)
        done = run_task(done, SelectRows(self.caps, self.rows, self.keep_rejected), max_units=self.rows.groups)
        buckets, groups = self.caps.max_parts, self.rows.groups
        return run_exchange(done, SortRows(self.caps), buckets=buckets, exchange=self.exchange, producers=groups)

    @property
    def output(self) -> Rows:
        return Rows(self.folder.step(SELECTED_ROWS), PARQUET)

    def steps(self) -> tuple[StepFolder, ...]:
        return (*self.caps.steps(), self.folder.step("selected"), self.folder.step(SELECTED_ROWS))

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.folder.step("selected"),)

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
        return [
            Watched(f"balance {name}", self.folder.step(name)) for name in ("counts", "band", "selected", SELECTED_ROWS)
        ]
