"""inspect_shards export: pairs in another format."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.dataset.errors import Damaged, NotFound
from pipeline.engine.cli import DONE, UsageError
from pipeline.engine.display import amount, sanitize
from pipeline.inspector import choice
from pipeline.inspector.output import print_json

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.inspector.formats import Writer
    from pipeline.inspector.pairs import Pairs

KINDS = ("folder", "hf", "lance", "webdataset", "coco", "csv")
# Columns that say where a sample lies in the tars: they are not true of a copy.
PLACES = {"shard", *(f"{member}_{what}" for member in ("jpg", "json", "txt") for what in ("offset", "size"))}
ROWS_AT_ONCE = 1024


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    add = parser.add_argument
    add("--to", required=True, metavar="PATH", help="what to write; it must not exist, or be an empty folder")
    add(
        "--format",
        required=True,
        choices=KINDS,
        help="folder: images and metadata.jsonl; hf: Parquet with images; lance: a Lance dataset; coco: captions as "
        "JSON; csv: no images",
    )
    choice.arguments(parser)
    choice.random_arguments(parser, default=None)


def run(args: argparse.Namespace) -> int:
    """Writes pairs, or some of them, in another format."""
    from pipeline.inspector.formats import FORMATS
    from pipeline.inspector.opening import is_ours, open_pairs

    pairs = open_pairs(args.folder)
    some = choice.Choice.of(args, pairs)
    kind = FORMATS[args.format]
    if kind.images and not pairs.image_columns:
        raise NotFound(f"a {pairs.name} has no images: --format csv writes the rest")
    path = os.path.abspath(args.to)
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):  # a device would be replaced
        raise UsageError(f"--to {args.to}: must not exist, or must be an empty folder")
    source = os.path.abspath(args.folder)
    if is_ours(source) and os.path.commonpath([path, source]) == source:
        raise UsageError(f"--to {args.to}: must not lie within {args.folder}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unfinished = f"{path}.tmp{os.getpid()}"
    try:
        with contextlib.closing(kind(unfinished, _schema(pairs))) as writer:
            count, left_out = _write(writer, pairs, some, args)
        if not count:
            without = f" with an image ({left_out:,} have none)" if left_out else ""
            raise NotFound(f"no pair is such a one{without}: nothing was written")
        os.replace(unfinished, path)  # an empty folder may be replaced
    except BaseException:
        _remove(unfinished)
        raise
    if args.json:
        return print_json({"pairs": count, "without_image": left_out, "format": args.format, "path": args.to})
    print(f"{amount(count, None, 'pairs')} as {args.format}: {sanitize(args.to)}")
    if left_out:
        print(f"{left_out:,} pairs whose image is missing or is no image were left out")
    return DONE


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.exists(path):
        os.unlink(path)


def _schema(pairs: Pairs) -> pa.Schema:
    """The columns of a copy: all but the places in the tars, and the queries by name."""
    import pyarrow as pa

    fields = [field for field in pairs.schema if field.name not in PLACES]
    if pairs.has("query_ids"):
        fields.append(pa.field("queries", pa.list_(pa.string())))
    return pa.schema(fields)


def _write(writer: Writer, pairs: Pairs, some: choice.Choice, args: argparse.Namespace) -> tuple[int, int]:
    """Returns the number of pairs that were written, and of those without an image, which were not."""
    from pipeline.inspector.formats import is_image

    count = left_out = 0
    for row in _rows(pairs, some, args):
        image = pairs.image(row) if writer.images else b""
        if writer.images and row.get("sha256") and hashlib.sha256(image).hexdigest() != row["sha256"]:
            raise Damaged(f"the image of {row['key']} has another sha256 than the metadata says")
        if writer.images and not is_image(image):
            left_out += 1
            continue
        hidden = PLACES.union(pairs.image_columns) - {"key"}
        writer.add({name: value for name, value in row.items() if name not in hidden}, image)
        count += 1
    writer.finish()
    return count, left_out


def _rows(pairs: Pairs, some: choice.Choice, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    names = pairs.queries["query"].to_pylist() if pairs.has("query_ids") else []
    images = pairs.image_columns if args.format != "csv" else ()
    columns = list(dict.fromkeys([*pairs.schema.names, *images]))
    for table in choice.chosen(pairs, some, columns, number=args.count, seed=args.seed):
        for start in range(0, table.num_rows, ROWS_AT_ONCE):
            for row in table.slice(start, ROWS_AT_ONCE).to_pylist():
                if pairs.has("query_ids"):
                    row["queries"] = [names[one] for one in row["query_ids"] if one < len(names)]
                yield row
