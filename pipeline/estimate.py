"""Estimates the rows, time and disk of a run from the size of its input, for `--plan`.

The rates were measured on one core of a 2026 server (docs/benchmarks). The readers say what reading takes. The shares
are those of a raw web crawl: half of the alt-texts contain a query, balancing keeps a tenth of the pairs, and two
thirds of the images are still there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from pipeline.options import Options
from pipeline.sources import READERS
from pipeline.stages import continuing
from pipeline.stages.base import Stage
from pipeline.stages.run import Run

SELECT_SECONDS = 4.5e-6  # CPU a pair: match, dedup, balance
FETCH_SECONDS = 6e-3  # CPU an image: fetch, decode, encode
MATCHED, SELECTED, ALIVE = 0.5, 0.1, 0.65
MATCHED_BYTES = 310  # of scratch for a matched pair: its row and its key
IMAGE_BYTES = 26_000  # of a stored image of 256 pixels; publishing holds it twice


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Rough figures. `core_hours` is the CPU time of the requested stages."""

    pairs: int
    matched: int
    selected: int
    published: int
    core_hours: float
    scratch_bytes: int
    published_bytes: int


def estimate(sizes: dict[str, int], *, fetches: bool, target_pairs: int | None) -> Estimate:
    """Estimates a run from the bytes of its input.

    Args:
        sizes: bytes of the input by format, a key of `READERS`.
        fetches: images are fetched and published.
        target_pairs: the wanted number of selected pairs, if the user gave one.
    """
    pairs = round(sum(size / READERS[kind].bytes_per_pair for kind, size in sizes.items()))
    matched = round(pairs * MATCHED)
    selected = min(matched, target_pairs or round(pairs * SELECTED))
    published = round(selected * ALIVE) if fetches else 0
    seconds = sum(size / READERS[kind].bytes_per_core_second for kind, size in sizes.items()) + pairs * SELECT_SECONDS
    seconds += selected * FETCH_SECONDS if fetches else 0.0
    images = published * IMAGE_BYTES
    return Estimate(pairs, matched, selected, published, seconds / 3600, matched * MATCHED_BYTES + images, images)


def print_plan(run: Run, stages: Sequence[Stage], options: Options, *, as_json: bool) -> None:
    """Prints what a run would read and do, and roughly the time and disk it would take.

    The inputs are checked as a run checks them.

    Args:
        run: with its inputs looked up.
        stages: all stages, planned.
        options: of the run.
        as_json: print JSON.

    Raises:
        UsageError, MissingInput: a run would refuse the inputs.
    """
    continuing.check_inputs(list(stages), run)
    sizes: dict[str, int] = {}
    for item in {item.path: item for item in run.inputs}.values():  # the parts of a file count once
        sizes[item.format] = sizes.get(item.format, 0) + READERS[item.format].size(item)
    target = options.target_pairs and round(options.target_pairs / options.expected_yield)  # to be fetched
    figures = estimate(sizes, fetches="fetch" in options.stages, target_pairs=target)
    asked = [stage for stage in stages if stage.name in options.stages]
    left = continuing.to_do(list(stages), run)
    states = {stage.name: "to do" if stage in left else "done" for stage in asked}
    refused = continuing.refusal(list(stages), run)
    facts = {
        "inputs": len(run.inputs),
        "bytes": sizes,
        "robots_archives": len(run.robots_archives),
        "queries": len(run.queries.table),
        "estimate": dataclasses.asdict(figures),
        "stages": states,
        "refused": refused,
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    listed = ", ".join(f"{size / 1e9:.2f} GB {kind}" for kind, size in sizes.items())
    print(f"inputs       {len(run.inputs):,}, {listed}")
    if run.robots_archives:
        print(f"robots.txt   {len(run.robots_archives):,} archives")
    print(f"queries      {len(run.queries.table):,}")
    print(f"pairs        about {figures.pairs:,} read, {figures.matched:,} with a query, {figures.selected:,} selected")
    print(f"published    about {figures.published:,} images, {figures.published_bytes / 1e9:.1f} GB")
    disk = figures.scratch_bytes / 1e9
    print(f"takes        about {figures.core_hours:.2f} core-hours, {disk:.1f} GB of disk during the run")
    print(f"stages       {', '.join(f'{name} ({state})' for name, state in states.items())}")
    if refused:
        print(f"refused      {refused}")
    print("These are rough figures from the size of the input. The inputs were only checked, and nothing was written.")
