"""inspect_shards queries: how many pairs hold each query, before and after the cap."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.dataset.errors import NotFound
from pipeline.engine.cli import DONE
from pipeline.engine.display import sanitize
from pipeline.inspector.output import count, print_json, print_table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    add = parser.add_argument
    add(
        "--sort",
        default="pairs",
        choices=("pairs", "picked", "kept", "published", "count", "query"),
        help="by this column, the largest first (default: %(default)s)",
    )
    add("--head", type=count, default=20, metavar="N", help="queries; 0: all (default: %(default)s)")
    add("--tail", type=count, default=0, metavar="N", help="so many of the other end")
    add("--language", metavar="CODE", help="of this language only")
    add("--grep", metavar="WORDS", help="that hold these letters, in upper or lower case")
    add("--why", metavar="QUERY", help="everything known of one query")


def run(args: argparse.Namespace) -> int:
    """How many pairs hold each query, before and after the cap. A run that has reached match is enough."""
    import pyarrow.compute as pc

    from pipeline.dataset import query_counts

    table = query_counts.table(args.folder)
    if args.why is not None:
        return why(args, table.filter(pc.equal(pc.utf8_lower(table["query"]), args.why.lower())).to_pylist())
    if args.language is not None:
        if "language" not in table.column_names:
            raise NotFound(f"the query list of {args.folder!r} has no languages: an older version wrote it")
        table = table.filter(pc.equal(table["language"], args.language))
    if args.grep is not None:
        table = table.filter(pc.match_substring(table["query"], args.grep, ignore_case=True))
    order = "ascending" if args.tail or args.sort == "query" else "descending"
    known = [name for name in (args.sort, "published", "count") if table[name].null_count < table.num_rows]
    table = table.take(pc.sort_indices(table, [(name, order) for name in known[:1]] + [("query", "ascending")]))
    limit = args.tail or args.head
    shown = (table.slice(0, limit) if limit else table).to_pylist()
    if args.json:
        return print_json(shown)
    print_queries(shown)
    if len(shown) < table.num_rows:
        print(f"... {table.num_rows - len(shown):,} more: --head 0 shows all")
    return DONE


def print_queries(rows: list[dict[str, Any]]) -> None:
    """Prints a line for each query."""
    from pipeline.dataset.query_counts import COUNTED

    print_table(
        ["id", *COUNTED, "query"], [[str(row["id"]), *(row[name] for name in COUNTED), row["query"]] for row in rows]
    )


def why(args: argparse.Namespace, found: list[dict[str, Any]]) -> int:
    """Everything known of a query, in words."""
    from pipeline.dataset.query_counts import COUNTED

    if not found:
        raise NotFound(f"no query of this run is {args.why!r}: try --grep")
    if args.json:
        return print_json(found)
    for row in found:
        for name, value in row.items():
            meaning = f"  {COUNTED[name]}" if name in COUNTED else ""
            shown = "-" if value is None else f"{value:,}" if name in COUNTED else sanitize(value)
            print(f"{name:<12}{shown:<20}{meaning}".rstrip())
        if row["pairs"] and row["cap"] is not None:
            share = min(1.0, row["cap"] / row["pairs"])
            print(f"{'':<12}the query picks a pair with probability {share:.4g}; other queries may pick it, too")
    return DONE
