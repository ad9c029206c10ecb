"""inspect_shards sql: one query of DuckDB over the tables of a folder."""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.dataset.errors import NotFound
from pipeline.engine.cli import DONE, UsageError
from pipeline.inspector.opening import absolute, exists, is_url
from pipeline.inspector.output import count, print_json, print_table

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SHOWN = 100  # rows of a table on the screen
# Nothing is loaded, installed or read by the name of a Python variable.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
}
OBJECTS = "openwit"  # the scheme under which DuckDB reads the objects of a store
GLOB = set("*?[")  # characters of a path that DuckDB would expand


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("statement", metavar="QUERY", help="a SELECT over the views; `show tables` lists them")
    parser.add_argument(
        "--limit", type=count, default=SHOWN, metavar="N", help="rows on the screen; 0: all (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """A query of DuckDB over the views pairs, queries, rejected, duplicates, contamination, rights and stages."""
    try:
        import duckdb
    except ImportError:
        raise NotFound("sql needs DuckDB: pip install 'openwit[sql]'") from None
    with duckdb.connect(":memory:", config=SETTINGS) as connection, objects_for(connection, args.folder):
        add_views(connection, args.folder)
        try:
            statements = duckdb.extract_statements(args.statement)
            if len(statements) != 1 or statements[0].type.name not in ("SELECT", "EXPLAIN"):
                raise UsageError("sql takes one SELECT: the tables cannot be changed, and no file can be written")
            found = connection.execute(args.statement)
            names = [column[0] for column in found.description or ()]
            rows = found.fetchall() if args.json or not args.limit else found.fetchmany(args.limit + 1)
        except duckdb.Error as error:
            raise UsageError(str(error).partition("\n")[0]) from None
    if args.json:
        return print_json([dict(zip(names, map(_plain, row), strict=True)) for row in rows])
    shown = rows[: args.limit] if args.limit else rows
    print_table(names, [[_plain(value) for value in row] for row in shown])
    if len(shown) < len(rows):
        print("... there are more: --limit 0 shows all")
    return DONE


def _plain(value: Any) -> Any:
    """A value of DuckDB as JSON has it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@contextlib.contextmanager
def objects_for(connection: duckdb.DuckDBPyConnection, folder: str) -> Iterator[None]:
    """While the block runs, the connection reads the objects of a folder on a store by range, under OBJECTS."""
    if not is_url(folder):
        yield
        return
    from pipeline.inspector.objects import Objects

    connection.register_filesystem(Objects(folder.partition("://")[0]))
    try:
        yield
    finally:
        connection.unregister_filesystem(OBJECTS)  # else it outlives the connection


def add_views(connection: duckdb.DuckDBPyConnection, folder: str) -> None:
    """Adds the tables of a folder as views, and closes the connection to all other files.

    Args:
        connection: with SETTINGS.
        folder: a published set, or a run.
    """
    files = _files(absolute(folder))
    for name, paths in files.items():
        listed = ", ".join(map(_quoted, paths))
        connection.execute(f'create view "{name}" as select * from read_parquet([{listed}], union_by_name = true)')
    for name, table in _tables(folder, files).items():
        connection.register(name, table)
    allowed = ", ".join(_quoted(path) for paths in files.values() for path in paths)
    connection.execute("set temp_directory = ''")
    connection.execute(f"set allowed_paths = [{allowed}]")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "''") + "'"


def _files(root: str) -> dict[str, list[str]]:
    """View -> the files of a published table. They are read by DuckDB itself, as far as the query needs them."""
    from pipeline.dataset import open_set
    from pipeline.schema import CONTAMINATION_FILE, DUPLICATES_FILE

    if not exists(os.path.join(root, "manifest.json")) or GLOB & set(root):
        return {}
    opened = open_set.open_set(root)
    listed = [entry["path"] for entry in opened.manifest["files"]]
    found = {
        "pairs": [shard.metadata for shard in opened.shards],
        "queries": [path for path in listed if path == "queries.parquet"],
        "rejected": [path for path in listed if path.startswith("rejected/")],
        "duplicates": [path for path in listed if path == DUPLICATES_FILE],
        "contamination": [path for path in listed if path == CONTAMINATION_FILE],
    }
    top = f"{OBJECTS}://{root.partition('://')[2]}" if is_url(root) else root
    return {name: [os.path.join(top, path) for path in paths] for name, paths in found.items() if paths}


def _tables(folder: str, files: dict[str, list[str]]) -> dict[str, pa.Table]:
    """View -> a table in memory: what no published file holds."""
    import pyarrow as pa

    from pipeline import schema
    from pipeline.dataset import open_set
    from pipeline.inspector.opening import is_ours, ledger_of, open_pairs

    empty = {
        "rejected": schema.PUBLISHED_REJECTED,
        "duplicates": schema.DUPLICATES,
        "contamination": schema.CONTAMINATION,
    }
    found = {name: one.empty_table() for name, one in empty.items()}
    if "pairs" not in files:
        pairs = open_pairs(folder)
        found["pairs"] = pa.concat_tables(
            [pairs.schema.empty_table(), *pairs.tables(pairs.schema.names)],
            promote_options="default",  # other tools say that a column may be null
        )
    found["queries"] = open_set.read_queries(folder)
    ledger, options = ledger_of(folder) if is_ours(folder) else ([], None)
    found |= {"stages": _stages(ledger), "rights": _rights(ledger, options)}
    return {name: table for name, table in found.items() if name not in files}


def _stages(ledger: list[dict[str, Any]]) -> pa.Table:
    """A row for each reason of a drop of each stage, and for the rows that leave it (reason: null)."""
    import pyarrow as pa

    rows: list[tuple[str, str | None, int]] = []
    for row in ledger:
        if "rows_out" in row:
            rows += [(row["stage"], None, row["rows_out"])]
            rows += [(row["stage"], reason, number) for reason, number in sorted(row["dropped"].items())]
    kinds = {"stage": pa.string(), "reason": pa.string(), "rows": pa.int64()}
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, kinds.values(), strict=True)], [*kinds])


def _rights(ledger: list[dict[str, Any]], options: dict[str, Any] | None) -> pa.Table:
    """A row for each protocol that was asked."""
    import pyarrow as pa

    from pipeline.engine import rights_ledger

    found = rights_ledger.of_stages(ledger, options)
    rows = [
        {"of": part, "protocol": protocol} | {name: counted.get(name) for name in rights_ledger.NUMBERS}
        for part in ("pages", "images")
        for protocol, counted in sorted(found[part].items())
    ]
    numbers = [pa.field(name, pa.int64()) for name in rights_ledger.NUMBERS]
    return pa.Table.from_pylist(rows, pa.schema([("of", pa.string()), ("protocol", pa.string()), *numbers]))
