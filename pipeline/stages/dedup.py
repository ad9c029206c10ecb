"""dedup: drops duplicates by key. One of equal pairs stays. The richest text of a URL stays. Placeholders go.

An image with many texts is a placeholder. A text with many images is boilerplate. All their rows go. The variants of a
URL (`text.image_variants`) count as one image.

No row is copied. A key of 57 bytes a row goes from the matched parts to buckets of images. For each *dropped* row
(part, row, reason) comes back. `selection.find_duplicates` holds the rules, `dedup_exchange` the exchange.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from pipeline.engine.options import option
from pipeline.engine.rows import Rows
from pipeline.engine.work import Json
from pipeline.sources import READERS
from pipeline.stages.base import Job, Outputs
from pipeline.stages.dedup_exchange import DedupPlan, DedupStage
from pipeline.stages.run import Run

ALIGN_BOUND = 10  # images of a text: Jia et al. 2021, section 3, exclude alt-texts of more than 10 images


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupSettings:
    """The options that say which URLs are placeholders, and which texts are boilerplate."""

    title: ClassVar[str] = "dedup"

    placeholder_bound: int = option(
        8, help="a URL with more texts than this is a placeholder and goes; 0: off", within="[0, 1e9]"
    )
    common_text_bound: int | None = option(
        None,
        help="a text with more images than this is boilerplate and goes; 0: off",
        default_text=f"{ALIGN_BOUND} for archives, 0 for tables",
        metavar="N",
        within="[0, 1e9]",
    )


def common_text_bound(run: Run) -> int:
    """The bound on the images of a text. Without the option: that of ALIGN if an input has pages, else none."""
    given = run.settings(DedupSettings).common_text_bound
    if given is not None:
        return given
    return ALIGN_BOUND if any(READERS[item.format].knows_pages for item in run.inputs) else 0


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
        )

    @property
    def duplicates(self) -> DedupPlan:
        return DedupPlan(
            self.folder,
            self.matched,
            self.key_bits,
            placeholder_bound=self.placeholder_bound,
            common_text_bound=self.common_text_bound,
            keep_rejected=self.keep_rejected,
        )

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        bound = run.settings(DedupSettings).placeholder_bound
        return {"placeholder_bound": bound, "common_text_bound": common_text_bound(run)}
