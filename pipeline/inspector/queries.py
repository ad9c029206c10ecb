"""inspect_shards queries: how many pairs hold each query, before and after the cap."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from pipeline.dataset.errors import NotFound
from pipeline.engine.cli import DONE, UsageError
from pipeline.engine.display import sanitize
from pipeline.inspector.opening import exists, is_ours
from pipeline.inspector.output import count, print_json, print_table

if TYPE_CHECKING:
    import pyarrow as pa


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
    add(
        "--queries",
        action="append",
        default=[],
        metavar="[LANGUAGE=]FILE",
        help="match the texts with this list now: of files of another tool, or to try another list",
    )


def run(args: argparse.Namespace) -> int:
    """How many pairs hold each query, before and after the cap. A run that has reached gather is enough."""
    import pyarrow.compute as pc

    from pipeline.dataset import query_counts

    if args.queries or not is_ours(args.folder):
        table, note = matched_now(args.folder, args.queries)
    else:
        table, note = query_counts.table(args.folder), ""
        if is_before_dedup(args.folder):
            table, note = matched_now(args.folder, [])
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
    if note:
        print(note)
    if len(shown) < table.num_rows:
        print(f"... {table.num_rows - len(shown):,} more: --head 0 shows all")
    return DONE


def is_before_dedup(folder: str) -> bool:
    """True for a run whose dedup is not complete, and that is not published."""
    if exists(os.path.join(folder, "manifest.json")):
        return False
    return not exists(os.path.join(folder, "stages", "dedup", "COMPLETED"))


def matched_now(folder: str, specs: list[str]) -> tuple[pa.Table, str]:
    """The table of `query_counts` with `pairs` alone: the texts are matched here, as --match wide --case fold does.

    Args:
        folder: a set, a run, or files of another tool.
        specs: of the lists; []: the list of the run.

    Returns:
        The table, and a line that says how many texts hold a query.

    Raises:
        NotFound: there is no list.
        UsageError: a list cannot be read.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.dataset.query_counts import COUNTED
    from pipeline.inspector.opening import open_pairs
    from pipeline.text.matcher import Matcher
    from queries.load import QueryError
    from queries.several import load_lists

    pairs = open_pairs(folder)
    try:
        lists = load_lists(specs).table if specs else pairs.queries
    except (QueryError, OSError) as error:
        raise UsageError(f"--queries: {error}") from None
    if not lists.num_rows:
        raise NotFound("there is no query list: name one with --queries LIST")
    matcher = Matcher.build(lists["query"].combine_chunks(), case="fold")
    counts, rows, held = np.zeros(lists.num_rows, np.int64), 0, 0
    for table in pairs.tables(["text"]):
        found = matcher.match(pc.fill_null(table["text"], ""))
        counts += np.bincount(np.asarray(pc.list_flatten(found)), minlength=len(counts))
        held += int(np.count_nonzero(np.asarray(pc.list_value_length(found))))
        rows += table.num_rows
    columns = {name: pa.nulls(lists.num_rows, pa.int64()) for name in COUNTED} | {"pairs": pa.array(counts)}
    for name, column in columns.items():
        lists = lists.append_column(name, column)
    share = f" ({held / rows:.1%})" if rows else ""
    return lists, f"{held:,} of {rows:,} texts hold a query{share}; pairs are of the {pairs.name}, before any dedup"


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
