"""inspect_shards show: everything known of one sample."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from pipeline.dataset.errors import Damaged, NotFound
from pipeline.engine.cli import DONE
from pipeline.engine.display import sanitize
from pipeline.inspector import picture
from pipeline.inspector.output import print_json

if TYPE_CHECKING:
    from pipeline.dataset.open_set import OpenSet
    from pipeline.inspector.pairs import Pairs

MOST_DUPLICATES = 100  # that are shown


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    add = parser.add_argument
    add("--image", metavar="FILE", help="save the JPEG there")
    add("--picture", choices=("auto", *picture.KINDS), default="auto", help="how a terminal draws it (default: auto)")
    add("--no-picture", action="store_true", help="draw no picture")


def run(args: argparse.Namespace) -> int:
    """Everything known of one sample: picture, fields, queries, where it was found, and what it stands for."""
    from pipeline.inspector.opening import open_pairs

    pairs = open_pairs(args.folder)
    row = pairs.row(args.key)
    facts = facts_of(pairs, row)
    if args.image is not None:
        _save(pairs, row, args.image)
    if args.json:
        return print_json(facts)
    if not args.no_picture:
        _draw(pairs, row, args.picture)
    for name, value in facts.items():
        if name == "phash" and value is not None:
            value = f"{value:016x}"
        if name == "duplicates":
            value = [f"{item['key']} ({item['kind']}, {item['distance']} bits)" for item in value]
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        print(f"{name:<18}{'' if value is None else sanitize(value)}")
    if args.image is not None:
        print(f"{'image':<18}{sanitize(args.image)}")
    return DONE


def facts_of(pairs: Pairs, row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row, its queries by name, and the pairs that it stands for."""
    from pipeline.inspector.pairs import Published

    facts = named(pairs, row)
    if isinstance(pairs, Published):
        facts["duplicates"] = duplicates(pairs.opened, row["key"])
    return facts


def named(pairs: Pairs, row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row, and its queries by name."""
    facts = {
        name: value.hex() if isinstance(value, bytes) else value for name, value in row.items() if name != "_image"
    }
    queries = pairs.queries["query"]
    for column, name in (("query_ids", "queries"), ("kept_by", "kept_by_queries")):
        if column in row:
            facts[name] = [queries[one].as_py() if one < len(queries) else str(one) for one in row[column]]
    return facts


def _save(pairs: Pairs, row: dict[str, Any], path: str) -> None:
    """Saves the image; that of a published set is checked."""
    from pipeline.engine import storage
    from pipeline.inspector.pairs import Published

    if not pairs.image_columns:
        raise NotFound(f"a {pairs.name} has no images")
    image = pairs.opened.sample(row["key"]).image if isinstance(pairs, Published) else pairs.image(row)
    storage.write_plain(path, image)


def duplicates(pairs: OpenSet, key: str) -> list[dict[str, Any]]:
    """The pairs that were dropped because this one shows the same: key, kind and distance of each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.engine import storage
    from pipeline.schema import DUPLICATES_FILE

    path = os.path.join(pairs.root, DUPLICATES_FILE)
    if not storage.exists(path):
        return []
    try:
        table = storage.read_published(path)
    except (pa.ArrowException, storage.DamagedError, OSError, ValueError) as error:
        raise Damaged(f"{DUPLICATES_FILE} cannot be read: {error}") from error
    found = table.filter(pc.equal(table["keeper"], key)).select(["key", "kind", "distance"])
    return found.slice(0, MOST_DUPLICATES).to_pylist()


def _draw(pairs: Pairs, row: dict[str, Any], kind: str) -> None:
    """Draws the picture, where stdout can show one."""
    way = picture.kind_of_terminal() if kind == "auto" else kind
    if way is None or not pairs.image_columns:
        return
    room = shutil.get_terminal_size()
    try:
        text = picture.draw(pairs.image(row), way, columns=room.columns - 1, rows=max(4, room.lines - 4))
    except ValueError as error:
        print(f"{'picture':<18}{sanitize(error)}", file=sys.stderr)
        return
    sys.stdout.write(text)
