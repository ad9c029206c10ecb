"""inspect_shards stats: what is in a set, counted."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.engine.cli import DONE
from pipeline.engine.display import amount, size
from pipeline.inspector.output import print_bars, print_json

if TYPE_CHECKING:
    import pyarrow as pa


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    del parser


def run(args: argparse.Namespace) -> int:
    """What is in the set, counted. Of a run that is not published: what is in the rows of its last stage."""
    from pipeline.dataset import summary
    from pipeline.inspector.opening import open_pairs

    pairs = open_pairs(args.folder)
    s = summary.summarise(with_languages(pairs.tables(pairs.has(*summary.COLUMNS))))
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
    counted = [(s.samples, "pairs"), (len(s.hosts), "hosts"), (len(s.matched), "queries met")]
    shown = [amount(number, None, noun) for number, noun in counted if number or noun == "pairs"]
    print(f"{pairs.name}: {', '.join(shown)}{jpeg}")
    for title, rows in charts:
        if rows:
            print_bars(title, rows)
    return DONE


def with_languages(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The tables with the likeliest language of each text, where they do not have one."""
    for table in tables:
        if "language" not in table.column_names:
            from pipeline.text.language import LanguageModel

            table = table.append_column("language", LanguageModel.load().predict(table["text"])[0])
        yield table
