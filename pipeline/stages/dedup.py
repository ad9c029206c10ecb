"""dedup: drops duplicates by key. One of equal pairs stays. One text of a URL stays. All rows of a placeholder go.

No row is copied. A key of 44 bytes a row goes from the matched parts to buckets of URLs. For each *dropped* row
(part, row, reason) comes back. `selection.find_duplicates` holds the rules, `dedup_exchange` the exchange.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from pipeline.engine.options import option
from pipeline.engine.rows import Rows
from pipeline.engine.work import Json
from pipeline.stages.base import Job, Outputs
from pipeline.stages.dedup_exchange import DedupPlan, DedupStage
from pipeline.stages.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupSettings:
    """The options that say which URLs are placeholders."""

    title: ClassVar[str] = "dedup"

    placeholder_bound: int = option(
        50, help="a URL with more texts than this is a placeholder and goes; 0: off", within="[0, 1e9]"
    )


@dataclasses.dataclass(frozen=True)
class Dedup(DedupStage):
    """The stage."""

    name: ClassVar[str] = "dedup"
    job: ClassVar[Job] = "select"
    options: ClassVar[type] = DedupSettings

    matched: Rows
    key_bits: int
    placeholder_bound: int

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        matched, bound = before.rows("match"), run.settings(DedupSettings).placeholder_bound
        return cls(before.plan(run, cls), run.keep_rejected, run.exchange, matched, run.sizes.key_bits, bound)

    @property
    def duplicates(self) -> DedupPlan:
        return DedupPlan(
            self.folder,
            self.matched,
            self.key_bits,
            placeholder_bound=self.placeholder_bound,
            keep_rejected=self.keep_rejected,
        )

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        return {"placeholder_bound": run.settings(DedupSettings).placeholder_bound}
