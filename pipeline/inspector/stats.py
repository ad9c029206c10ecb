"""inspect_shards stats: what is in a set, counted."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline.engine.cli import DONE
from pipeline.engine.display import amount, size
from pipeline.inspector.output import print_bars, print_json

if TYPE_CHECKING:
    import pyarrow as pa

PLACES = ("key", "shard", "jpg_offset")  # columns for pictures, which are not counted
ROWS_TOGETHER = 100_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    del parser


def run(args: argparse.Namespace) -> int:
    """What is in the set, counted. Of a run that is not published: what is in the rows of its last stage."""
    from pipeline.dataset import summary
    from pipeline.inspector.opening import open_pairs

    pairs = open_pairs(args.folder)
    columns = pairs.has(*(name for name in summary.COLUMNS if name not in PLACES))
    s = summary.summarise(ahead(together(with_languages(pairs.tables(columns)))))
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


def ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The tables. The next one is read while one is counted."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = pool.submit(next, tables, None)
            yield table


def together(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Small tables of one schema as larger ones, which are counted faster."""
    import pyarrow as pa

    held, rows = list[pa.Table](), 0
    for table in tables:
        if held and (rows >= ROWS_TOGETHER or held[0].schema != table.schema):
            yield pa.concat_tables(held)
            held, rows = [], 0
        held.append(table)
        rows += table.num_rows
    if held:
        yield pa.concat_tables(held)


def with_languages(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The tables with the likeliest language of each text, where they do not have one."""
    for table in tables:
        if "language" not in table.column_names:
            from pipeline.text.language import LanguageModel

            table = table.append_column("language", LanguageModel.load().predict(table["text"])[0])
        yield table
