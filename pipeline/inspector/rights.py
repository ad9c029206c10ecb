"""inspect_shards rights: who refused AI training."""

from __future__ import annotations

import argparse

from pipeline.engine.cli import DONE
from pipeline.engine.display import sanitize
from pipeline.inspector.opening import ledger_of
from pipeline.inspector.output import print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Who refused AI training: for each protocol pairs seen and refused, hosts, spared requests, examples, evidence."""
    from pipeline.engine import rights_ledger

    stages, options = ledger_of(args.folder)
    found = rights_ledger.of_stages(stages, options)
    if args.json:
        return print_json(found)
    for line in rights_ledger.lines(found, examples=True) or ["no page, site or image was asked"]:
        print(sanitize(line))
    return DONE
