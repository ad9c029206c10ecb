"""inspect_shards sample: random samples."""

from __future__ import annotations

import argparse

from pipeline.engine.cli import BELOW, DONE
from pipeline.inspector import choice
from pipeline.inspector.output import print_json, print_samples


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    choice.random_arguments(parser, default=10)
    choice.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Random samples. The same seed shows the same ones. Exit code 3 if there is none."""
    from pipeline.inspector.opening import open_pairs

    pairs = open_pairs(args.folder)
    columns = pairs.has("key", "shard", "text", "url", "width", "height", "jpg_size", "language", "query_ids")
    rows = choice.random_rows(pairs, choice.Choice.of(args, pairs), columns, args.count, args.seed)
    if args.json:
        print_json(rows)
        return DONE if rows or not args.count else BELOW
    print_samples(rows)
    if not rows and args.count:
        print("no sample is such a one: `stats` shows the languages and hosts, `queries` the queries")
        return BELOW
    return DONE
