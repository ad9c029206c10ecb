"""inspect_shards summary: the summary of training content for the EU's AI Act."""

from __future__ import annotations

import argparse
import os

from pipeline.dataset.errors import NotFound
from pipeline.engine.cli import DONE, UsageError
from pipeline.engine.display import sanitize
from pipeline.inspector.opening import exists
from pipeline.inspector.output import print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument(
        "--small", action="store_true", help="for a small or medium enterprise: fewer domains are named"
    )
    parser.add_argument("--to", metavar="FILE", help="Markdown file to write, new (default: standard output)")


def run(args: argparse.Namespace) -> int:
    """The summary of training content that Article 53(1)(d) of the EU's AI Act asks for, as Markdown or JSON."""
    from pipeline.dataset import training_summary
    from pipeline.dataset.open_set import open_set

    if not exists(os.path.join(args.folder, "manifest.json")):
        raise NotFound(f"{args.folder!r} holds no published set: the summary needs its manifest.json")
    if args.to is not None and os.path.exists(args.to):
        raise UsageError(f"--to {args.to}: must not exist")
    found = training_summary.summarise(open_set(args.folder), small=args.small)
    if args.json and args.to is None:
        return print_json(found)
    text = training_summary.markdown(found)
    if args.to is None:
        print(text, end="")
        return DONE
    with open(args.to, "x", encoding="utf-8") as file:
        file.write(text)
    if args.json:
        return print_json(found)
    domains = found["2_list_of_data_sources"]["2.3_data_crawled_and_scraped"]["domains"]
    print(f"{domains['listed']:,} of {domains['counted']:,} domains are named: {sanitize(args.to)}")
    return DONE
