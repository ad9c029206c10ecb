"""dedup: drops duplicates by key. One of equal pairs stays. One text of a URL stays. All rows of a placeholder go.

No row is copied. A key of 44 bytes a row goes from the matched parts to buckets of URLs. For each *dropped* row
(part, row, reason) comes back. `selection.find_duplicates` holds the rules, `dedup_exchange` the exchange.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.work import Json, StepFolder
from pipeline.stages.base import Job, Outputs, Stage
from pipeline.stages.dedup_exchange import DedupPlan, drop_duplicates
from pipeline.stages.run import Run

if TYPE_CHECKING:
    import apache_beam as beam


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupSettings:
    """The options that say which URLs are placeholders."""

    title: ClassVar[str] = "dedup"

    placeholder_bound: int = option(
        50, help="a URL with more texts than this is a placeholder and goes; 0: off", within="[0, 1e9]"
    )


@dataclasses.dataclass(frozen=True)
class Dedup(Stage):
    """The stage."""

    name: ClassVar[str] = "dedup"
    job: ClassVar[Job] = "select"
    options: ClassVar[type] = DedupSettings

    duplicates: DedupPlan
    exchange: str

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        folder, rows = before.plan(run, cls), before.rows("match")
        bound = run.settings(DedupSettings).placeholder_bound
        duplicates = DedupPlan(
            folder, rows, run.sizes.key_bits, placeholder_bound=bound, keep_rejected=run.keep_rejected
        )
        return cls(folder, run.keep_rejected, duplicates, run.exchange)

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        return {"placeholder_bound": run.settings(DedupSettings).placeholder_bound}

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
