"""dedup: by keys. Of equal pairs one stays, of the texts of one URL one stays, a placeholder's URL goes altogether.

No row is moved: 44 bytes a row cross from the matched parts to buckets of URLs, and (part, row, reason) of the
*dropped* rows come back. The rules are `selection.find_duplicates`; the exchange is `dropping`.
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam

from pipeline.engine.work import StepFolder, Work
from pipeline.stages.dedup_exchange import DropDuplicates, Dropping, RemainingRows, complete

__all__ = ["Dedup", "complete", "dropping", "remaining"]


def dropping(
    work: Work, matched: StepFolder, *, key_bits: int, groups: int, placeholder_bound: int, keep_rejected: str
) -> Dropping:
    """The stage's plan."""
    return Dropping(
        work,
        "dedup",
        matched,
        key_bits,
        groups,
        placeholder_bound=placeholder_bound,
        keep_rejected=keep_rejected,
    )


def remaining(plan: Dropping) -> RemainingRows:
    """The rows that the stage leaves in."""
    return RemainingRows(plan.parts, plan.masks, plan.groups)


class Dedup(beam.PTransform):
    """matched | Dedup(plan, way=...): masks beside the matched parts."""

    def __init__(self, plan: Dropping, *, way: str) -> None:
        super().__init__("Dedup")
        self._plan, self._way = plan, way

    def expand(self, matched: Any) -> beam.PCollection:
        return matched | DropDuplicates(self._plan, way=self._way)
