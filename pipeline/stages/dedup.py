"""dedup: drops duplicates by key. One of equal pairs stays. The richest text of a URL stays. Placeholders go.

The row that stays takes the URL of the largest variant of its image. With `--captions N` it takes the next texts too.
An image with many texts is a placeholder. A text with many images is boilerplate. All their rows go. The variants of a
URL (`text.image_variants`) count as one image.

No row is copied. A key of 57 bytes a row goes from the matched parts to buckets of images. For each *dropped* row
(part, row, reason) comes back. `selection.find_duplicates` holds the rules, `dedup_exchange` the exchange.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from pipeline.engine.rows import Rows
from pipeline.engine.work import Json
from pipeline.sources import READERS
from pipeline.stages.base import Job, Outputs
from pipeline.stages.dedup_exchange import DedupPlan, DedupStage
from pipeline.stages.dedup_settings import ALIGN_BOUND, DedupSettings
from pipeline.stages.run import Run


def common_text_bound(run: Run) -> int:
    """The bound on the images of a text. Without the option: that of ALIGN if an input has pages, else none."""
    given = run.settings(DedupSettings).common_text_bound
    if given is not None:
        return given
    return ALIGN_BOUND if any(READERS[item.format].knows_pages for item in run.inputs) else 0


def exempt_units(run: Run) -> tuple[int, ...]:
    """The tables, whose texts the default bound does not count, where archives are read beside them."""
    if run.settings(DedupSettings).common_text_bound is not None or not common_text_bound(run):
        return ()
    first = {unit: run.input_list.units[members[0]] for unit, members in run.input_list.members.items()}
    return tuple(unit for unit, item in first.items() if not READERS[item.format].knows_pages)


@dataclasses.dataclass(frozen=True)
class Dedup(DedupStage):
    """The stage."""

    name: ClassVar[str] = "dedup"
    job: ClassVar[Job] = "select"
    options: ClassVar[type] = DedupSettings

    matched: Rows
    key_bits: int
    placeholder_bound: int
    common_text_bound: int
    exempt: tuple[int, ...]
    captions: int

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        return cls(
            before.plan(run, cls),
            run.keep_rejected,
            run.exchange,
            before.rows("match"),
            run.sizes.key_bits,
            run.settings(DedupSettings).placeholder_bound,
            common_text_bound(run),
            exempt_units(run),
            run.settings(DedupSettings).captions,
        )

    @property
    def duplicates(self) -> DedupPlan:
        return DedupPlan(
            self.folder,
            self.matched,
            self.key_bits,
            placeholder_bound=self.placeholder_bound,
            common_text_bound=self.common_text_bound,
            exempt=self.exempt,
            keep_rejected=self.keep_rejected,
            captions=self.captions,
        )

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        o = run.settings(DedupSettings)
        bounds = {"placeholder_bound": o.placeholder_bound, "common_text_bound": common_text_bound(run)}
        bounds |= {"tables_are_exempt": True} if exempt_units(run) else {}
        return {**bounds, "captions": o.captions}
