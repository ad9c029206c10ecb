"""README.md of a published set: its card for the Hugging Face Hub, with the answers of a datasheet.

The sections follow Gebru et al., "Datasheets for Datasets" (arXiv 1803.09010): what it is for, composition, collection,
selection, uses, rights, distribution and maintenance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.dataset import croissant
from pipeline.dataset.croissant import NAME, About
from pipeline.dataset.pages import template
from pipeline.dataset.summary import Summary, top
from pipeline.engine import rights_ledger
from pipeline.engine.display import sanitize

# Options that the card shows. The manifest has all options.
OPTIONS = (
    "match case languages placeholder_bound common_text_bound balance cap target_pairs seed keep captions "
    "min_image_side max_aspect image_size phash_distance keep_personal"
).split()
FROM_TABLES = "table"  # of text_source: the pair is a row of a table


def card(facts: Mapping[str, Any], *, about: About, ledger: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
    """README.md, with the YAML header that the Hub reads."""
    s: Summary = facts["s"]
    named = language_counts(s)
    reasons = [", ".join(f"{reason} {count:,}" for reason, count in sorted(row["dropped"].items())) for row in ledger]
    return template("card.md.j2").render(
        **{"damaged": [], "overlap": {}, **facts},
        about=about,
        name=NAME,
        languages=languages_of(s),
        language_rows=named,
        size_category=size_category(s.samples),
        ledger=[row | {"dropped": reason} for row, reason in zip(ledger, reasons, strict=True)],
        options=[
            (name.replace("_", " "), f"`{sanitize(_format_value(options[name])).replace('`', '')}`")
            for name in OPTIONS
            if options.get(name) not in (None, (), [], "", False)
        ],
        image_size=options.get("image_size", 256),
        pattern=pattern(facts["shards"]),
        licensed=s.licensed,
        balanced=options.get("balance") != "none",
        respects=options.get("respect_opt_out", True),
        ignored=options.get("ignore_rights") or (),
        protocols=protocols(ledger, options),
        limits=[*croissant.LIMITS, *croissant.BIASES, *croissant.PERSONAL],
    )


def language_counts(s: Summary) -> list[tuple[str, int]]:
    """(code, pairs) of the most frequent languages."""
    return [(code, count) for code, count in top(s.languages, 20) if re.fullmatch("[a-z]{2,3}", code)]


def languages_of(s: Summary) -> list[str]:
    """The codes of the languages of at least one text in a hundred."""
    return [code for code, count in language_counts(s) if count * 100 >= s.samples]


def sources_of(s: Summary) -> str:
    """Where the pairs come from, in words."""
    tables = s.text_sources.get(FROM_TABLES, 0)
    if not tables:
        return "web archives"
    return "tables of URLs and texts" if tables == s.samples else "web archives and tables of URLs and texts"


def protocols(ledger: list[dict[str, Any]], options: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """(protocol, pairs that were asked, pairs that were refused) on pages and images, by name."""
    found = rights_ledger.of_stages(ledger, options)
    names = sorted({*found["pages"], *found["images"]})
    counts = [(name, [found[part].get(name, {}) for part in ("pages", "images")]) for name in names]
    return [(name, *(sum(one.get(what, 0) for one in some) for what in ("seen", "pairs"))) for name, some in counts]  # type: ignore[misc]


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def pattern(tars: Sequence[str]) -> str:
    """The names of all shards in WebDataset's brace notation. If numbers are missing, a POSIX shell must expand it."""
    if len(tars) < 2:
        return tars[0] if tars else "shards/*.tar"
    first, last = (path.removeprefix("shards/").removesuffix(".tar") for path in (tars[0], tars[-1]))
    if int(last) - int(first) == len(tars) - 1:
        return f"shards/{{{first}..{last}}}.tar"
    return "shards/{$(cd shards && ls *.tar | paste -sd, -)}"


def size_category(samples: int) -> str:
    """The Hub's tag for a number of samples."""
    bounds = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    for power, bound in enumerate(bounds, start=3):
        if samples < 10**power:
            return f"n<{bound}" if power == 3 else f"{bounds[power - 4]}<n<{bound}"
    return "n>1T"
