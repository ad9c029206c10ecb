"""inspect_shards ls: samples, a line each."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pipeline.engine.cli import DONE
from pipeline.inspector.output import count, print_json, print_samples


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    add = parser.add_argument
    add("--limit", type=count, default=20, metavar="N", help="samples; 0: all (default: %(default)s)")
    add("--shard", type=count, metavar="N", help="of this shard only")
    add("--grep", metavar="WORDS", help="whose text holds these words, in upper or lower case")


def run(args: argparse.Namespace) -> int:
    """Samples, a line each."""
    import pyarrow.compute as pc

    from pipeline.inspector.opening import open_pairs

    pairs = open_pairs(args.folder)
    columns = pairs.has("key", "shard", "text", "url", "width", "height", "jpg_size")
    left = args.limit or sys.maxsize
    listed: list[dict[str, Any]] = []
    for table in pairs.tables(columns, shard=args.shard):
        if args.grep is not None:
            table = table.filter(pc.match_substring(table["text"], args.grep, ignore_case=True))
        rows = table.slice(0, left).to_pylist()
        left -= len(rows)
        if args.json:
            listed += rows
        else:
            print_samples(rows)
        if left <= 0:
            break
    return print_json(listed) if args.json else DONE
