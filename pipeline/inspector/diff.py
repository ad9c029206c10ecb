"""inspect_shards diff: what differs between two sets."""

from __future__ import annotations

import argparse
import json

from pipeline.engine.cli import BELOW, DONE
from pipeline.engine.display import sanitize
from pipeline.inspector.output import print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("other", metavar="OTHER", help="folder of another set")


def run(args: argparse.Namespace) -> int:
    """What differs between two sets. Exit code 3 if anything does."""
    from pipeline.dataset.compare import compare
    from pipeline.dataset.open_set import open_set

    found = compare(open_set(args.folder), open_set(args.other))
    same = found["digest"][0] == found["digest"][1]
    if args.json:
        print_json(found)
        return DONE if same else BELOW
    if same:
        print("the sets are the same: their digests are equal")
        return DONE
    pairs = found["pairs"]
    print(f"pairs      {pairs['both']:,} in both, {pairs['gained']:,} gained, {pairs['lost']:,} lost, "
          f"{pairs['changed']:,} with another image or text")  # fmt: skip
    for kind, keys in pairs["keys"].items():
        if keys:
            print(f"{'':<11}{kind}: {', '.join(keys[:3])}{' ...' if pairs[kind] > 3 else ''}")
    for kind, names in found["queries"].items():
        if names:
            some = ", ".join(sanitize(name) for name in names[:10])
            print(f"queries    {len(names):,} {kind}: {some}{' ...' if len(names) > 10 else ''}")
    for name, (before, after) in found["options"].items():
        print(f"option     {name}: {sanitize(json.dumps(before))} -> {sanitize(json.dumps(after))}")
    for stage, values in found["stages"].items():
        for name, (before, after) in values.items():
            print(f"stage      {stage:<13}{sanitize(name):<25}{before or 0:>13,} -> {after or 0:>13,}")
    return BELOW
