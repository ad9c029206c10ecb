"""inspect_shards forgotten: whether something was forgotten."""

from __future__ import annotations

import argparse

from pipeline.dataset.errors import Damaged
from pipeline.engine.cli import BELOW, DONE, UsageError
from pipeline.engine.display import sanitize
from pipeline.inspector.output import print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    for flag in ("url", "domain", "page-domain", "uid", "sha256"):
        parser.add_argument(f"--{flag}", action="append", default=[], help="may be repeated")


def run(args: argparse.Namespace) -> int:
    """Says of URLs, domains, keys and images whether they were forgotten."""
    from pipeline.dataset.tombstones import KINDS, Tombstones, normalise
    from pipeline.engine import storage

    try:
        stones = Tombstones.load(args.folder)
    except storage.DamagedError as error:
        raise Damaged(str(error)) from error
    asked = [(kind, value) for kind in KINDS for value in getattr(args, kind)]
    if not asked:
        raise UsageError("forgotten needs one of " + ", ".join("--" + kind.replace("_", "-") for kind in KINDS))
    answers = []
    for kind, value in asked:
        try:
            known = normalise(kind, value)
        except ValueError as error:
            raise UsageError(f"--{kind.replace('_', '-')}: {error}") from None
        answers.append({"kind": kind, "value": value, "forgotten": stones is not None and stones.covers(kind, known)})
    if args.json:
        print_json(answers)
    for answer in [] if args.json else answers:
        print(
            f"{'forgotten' if answer['forgotten'] else 'not forgotten':<15}{answer['kind']} {sanitize(answer['value'])}"
        )
    return DONE if all(answer["forgotten"] for answer in answers) else BELOW
