"""The options of `dedup`. `dedup-images` reads them too: the texts of merged images join one sample as well."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from pipeline.engine.cli import UsageError
from pipeline.engine.options import option

PLACEHOLDER_BOUND = 8  # texts of an image
ALIGN_BOUND = 10  # images of a text: Jia et al. 2021, section 3, exclude alt-texts of more than 10 images


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupSettings:
    """The options that say which URLs are placeholders, and which texts are boilerplate."""

    title: ClassVar[str] = "dedup"

    placeholder_bound: int = option(
        PLACEHOLDER_BOUND,
        help="a URL with more texts than this is a placeholder and goes; 0: off",
        within="[0, 1e9]",
    )
    captions: int = option(
        1,
        help="texts of an image that are kept, in one sample; balanced by the queries of all of them",
        unit="texts",
        within=f"[1, {PLACEHOLDER_BOUND}]",
    )
    common_text_bound: int | None = option(
        None,
        help="a text with more images than this is boilerplate and goes; 0: off",
        default_text=f"{ALIGN_BOUND} for the texts of archives, none for those of tables",
        metavar="N",
        within="[0, 1e9]",
    )

    @staticmethod
    def check_together(o: Any) -> None:
        """Refuses more captions than the texts that an image may have."""
        if o.placeholder_bound and o.captions > o.placeholder_bound:
            raise UsageError(
                f"--captions {o.captions}: must be at most --placeholder-bound {o.placeholder_bound}, "
                "since an image with more texts goes"
            )
