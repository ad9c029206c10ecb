"""inspect_shards columns: what each column of the tables means."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.engine.cli import DONE, UsageError, suggestion
from pipeline.engine.display import sanitize
from pipeline.inspector import output
from pipeline.inspector.output import print_json

if TYPE_CHECKING:
    import pyarrow as pa

SCORE = "a score of the user (--scores)"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--table", metavar="NAME", help="of this table only")


def run(args: argparse.Namespace) -> int:
    """What each column of the tables means, with its type, its unit, and what a null stands for."""
    from pipeline.dataset.columns import TABLES

    if args.table is not None and args.table not in TABLES:
        raise UsageError(f"--table {args.table}: must be one of {', '.join(TABLES)}{suggestion(args.table, TABLES)}")
    described = {
        table: list(_described(table, schema))
        for table, schema in _schemas(args.folder).items()
        if args.table in (None, table)
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
    rejected = schema.REJECTED.remove(schema.REJECTED.get_field_index("hash"))
    others = {"rejected": rejected, "duplicates": schema.DUPLICATES, "contamination": schema.CONTAMINATION}
    return {"pairs": pairs.schema, "queries": NO_QUERIES, **others}


def _described(table: str, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    from pipeline.dataset.columns import TABLES

    known = {column.name: column for column in TABLES[table]}
    for field in schema:
        column = known.get(field.name)
        facts = {"meaning": SCORE, "unit": "", "null": "the sample has none"}
        if column is not None:
            facts = {"meaning": column.meaning, "unit": column.unit, "null": column.null}
        yield {"name": field.name, "type": str(field.type), **facts}
