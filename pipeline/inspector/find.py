"""inspect_shards find: where pairs are, or at which stage they fell."""

from __future__ import annotations

import argparse
import sys

from pipeline.engine.cli import BELOW, DONE, UsageError
from pipeline.engine.display import sanitize
from pipeline.inspector import forgotten
from pipeline.inspector.output import count, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    forgotten.arguments(parser)
    parser.add_argument("--text", metavar="TEXT", help="what gather makes of this text")
    parser.add_argument("--limit", type=count, default=20, metavar="N", help="pairs; 0: all (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Where pairs are, or at which stage they fell, and why. Exit code 3 if nothing is known of them."""
    from pipeline import find as finding
    from pipeline.dataset.tombstones import KINDS
    from pipeline.forget import Selection

    given = [(kind, value) for kind in KINDS for value in getattr(args, kind)]
    if not given and args.text is None:
        raise UsageError("find needs one of --text, " + ", ".join("--" + kind.replace("_", "-") for kind in KINDS))
    try:
        selection = Selection.of(given)
    except ValueError as error:
        raise UsageError(str(error)) from None
    pairs = finding.find(args.folder, selection, limit=args.limit or sys.maxsize) if given else []
    gone = finding.forgotten(args.folder, selection)
    rule = None if args.text is None else finding.text_reason(args.text)
    if args.json:
        gone_list = [{"kind": kind, "value": value} for kind, value in gone]
        print_json({"pairs": finding.to_json(pairs), "forgotten": gone_list, "text_reason": rule})
        return DONE if pairs or gone or rule is not None else BELOW
    for pair in pairs:
        fell = f"fell in {pair.stage}: {pair.reason}" if pair.reason else pair.stage
        detail = f" ({sanitize(pair.detail)})" if pair.detail else ""
        print(f"{pair.uid or '-':<34}{fell}{detail}\n{'':<34}{sanitize(pair.url)}\n{'':<34}{sanitize(pair.text)}")
    for kind, value in gone:
        print(f"forgotten: {kind} {sanitize(value)}")
    if rule is not None:
        print(f"gather drops this text: {rule}" if rule else "gather would keep this text; match needs a query in it")
    elif not pairs and not gone:
        print("nothing is known of it: it was in no input, or gather or match dropped it and the row was not kept. "
              "Build with --keep-rejected all, or ask with --text TEXT")  # fmt: skip
    return DONE if pairs or gone or rule is not None else BELOW
