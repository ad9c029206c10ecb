"""inspect_shards stats: what is in a set, counted."""

from __future__ import annotations

import argparse

from pipeline.engine.cli import DONE
from pipeline.engine.display import size
from pipeline.inspector.output import print_bars, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    del parser


def run(args: argparse.Namespace) -> int:
    """What is in the set, counted. Of a run that is not published: what is in the rows of its last stage."""
    from pipeline.dataset import summary
    from pipeline.inspector.pairs import open_pairs

    pairs = open_pairs(args.folder)
    s = summary.summarise(pairs.tables(pairs.has(*summary.COLUMNS)))
    queries = pairs.queries["query"].to_pylist()
    picked = [
        (queries[number] if number < len(queries) else str(number), count)
        for number, count in summary.top(s.kept_by or s.matched, 20)
    ]
    charts = [*summary.charts(s), ("Queries that picked most pairs" if s.kept_by else "Queries", picked)]
    if args.json:
        totals = {"samples": s.samples, "image_bytes": s.image_bytes, "hosts": len(s.hosts), "queries": len(s.matched)}
        return print_json({"of": pairs.name} | totals | {"charts": {title: dict(rows) for title, rows in charts}})
    jpeg = f", {size(s.image_bytes)} of JPEG" if pairs.image_columns else ""
    print(f"{pairs.name}: {s.samples:,} pairs{jpeg}, {len(s.hosts):,} hosts, {len(s.matched):,} queries met")
    for title, rows in charts:
        if rows:
            print_bars(title, rows)
    return DONE
