"""inspect_shards columns: what each column of the tables means."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.engine.cli import DONE, UsageError, suggestion
from pipeline.engine.display import sanitize
from pipeline.inspector import output
from pipeline.inspector.opening import is_ours
from pipeline.inspector.output import print_json

if TYPE_CHECKING:
    import pyarrow as pa

SCORE = "a score of the user (--scores)"
OTHERS = "a column of the other tool"
# Of files of other tools: what differs from the published tables.
FOREIGN = {
    "key": "name of the sample: of its members in the tar, or number of the file and row",
    "text": "the caption",
    "caption_from": "the member that holds the caption: txt or json",
    "url": "of the image, as the tool wrote it",
    "width": "as the tool wrote it",
    "height": "as the tool wrote it",
    "original_width": "as the tool wrote it",
    "original_height": "as the tool wrote it",
    "shard": "number of the tar, in the order of the paths",
    "jpg_offset": "where the image lies in the tar",
    "jpg_size": "of the image",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--table", metavar="NAME", help="of this table only")


def run(args: argparse.Namespace) -> int:
    """What each column of the tables means, with its type, its unit, and what a null stands for."""
    from pipeline.dataset.columns import TABLES

    if args.table is not None and args.table not in TABLES:
        raise UsageError(f"--table {args.table}: must be one of {', '.join(TABLES)}{suggestion(args.table, TABLES)}")
    ours = is_ours(args.folder)
    described = {
        table: list(_described(table, schema, ours=ours))
        for table, schema in _schemas(args.folder).items()
        if args.table in (None, table) and (ours or table == "pairs")
    }
    if args.json:
        return print_json(described)
    for table, columns in described.items():
        print(table if table == next(iter(described)) else f"\n{table}")
        for column in columns:
            _print(column)
    return DONE


def _print(column: dict[str, Any]) -> None:
    more = [column["type"], column["unit"], f"null: {column['null']}" if column["null"] else ""]
    head = f"  {sanitize(column['name']):<18}"
    text = f"{sanitize(column['meaning'])} ({', '.join(sanitize(part) for part in more if part)})"
    lines = textwrap.wrap(text, max(20, output.columns() - len(head) - 1))
    print("\n".join([head + lines[0], *(" " * 20 + line for line in lines[1:])]))


def _schemas(folder: str) -> dict[str, pa.Schema]:
    """The schema of each table. That of the pairs is the folder's own."""
    from pipeline import schema
    from pipeline.dataset.open_set import NO_QUERIES
    from pipeline.inspector.opening import open_pairs

    pairs = open_pairs(folder)
    others = {
        "rejected": schema.PUBLISHED_REJECTED,
        "duplicates": schema.DUPLICATES,
        "contamination": schema.CONTAMINATION,
    }
    return {"pairs": pairs.schema, "queries": NO_QUERIES, **others}


def _described(table: str, schema: pa.Schema, *, ours: bool) -> Iterator[dict[str, Any]]:
    from pipeline.dataset.columns import TABLES

    known = {column.name: column for column in TABLES[table]}
    for field in schema:
        column = known.get(field.name)
        facts = {"meaning": SCORE, "unit": "", "null": "the sample has none"}
        if not ours:
            unit = column.unit if column is not None and field.name in FOREIGN else ""
            null = "the sample has none" if field.nullable else ""
            facts = {"meaning": FOREIGN.get(field.name, OTHERS), "unit": unit, "null": null}
        elif column is not None:
            facts = {"meaning": column.meaning, "unit": column.unit, "null": column.null}
        yield {"name": field.name, "type": str(field.type), **facts}
