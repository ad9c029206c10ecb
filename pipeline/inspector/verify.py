"""inspect_shards verify: every checksum and count."""

from __future__ import annotations

import argparse
import dataclasses

from pipeline.dataset.errors import NotFound
from pipeline.engine.cli import BELOW, DONE
from pipeline.engine.display import sanitize
from pipeline.inspector.output import print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--quick", action="store_true", help="names, sizes and counts only")
    parser.add_argument("--stages", action="store_true", help="the files that the stages keep, too")


def run(args: argparse.Namespace) -> int:
    """Checks everything."""
    from pipeline.dataset import verify as verifying
    from pipeline.dataset.damage import next_step
    from pipeline.inspector.opening import is_ours

    if not is_ours(args.folder):
        return verify_foreign(args)
    try:
        faults, notes = [], list[str]()
        for fault in verifying.verify(args.folder, quick=args.quick, stages=args.stages, note=notes.append):
            faults.append(fault)
            if not args.json:
                print(": ".join(sanitize(part) for part in (fault.path, fault.key, fault.problem) if part), flush=True)
    except verifying.NothingThere as error:
        raise NotFound(str(error)) from error
    if args.json:
        found = [dataclasses.asdict(fault) for fault in faults]
        print_json({"ok": not faults, "quick": args.quick, "faults": found, "notes": notes})
        return BELOW if faults else DONE
    for line in notes:
        print(f"note: {line}")
    if faults:
        print(f"{len(faults):,} {'fault' if len(faults) == 1 else 'faults'}")
        print(f"next: {next_step(args.folder, (fault.path for fault in faults))}")
    else:
        print("sound: names, sizes and counts agree" if args.quick else "sound: every checksum and count agrees")
    return BELOW if faults else DONE


def verify_foreign(args: argparse.Namespace) -> int:
    """Checks what another tool has written."""
    from pipeline.inspector import foreign_check
    from pipeline.inspector.foreign import open_foreign

    pairs = open_foreign(args.folder)
    found = foreign_check.check(pairs, quick=args.quick)
    fits, why = foreign_check.verdict(pairs, found)
    if args.json:
        print_json({"ok": not found.faults, "clip_train": {"takes": fits, "why": why}} | found.to_json())
        return BELOW if found.faults else DONE
    foreign_check.print_checked(pairs.name, found, fits, why)
    return BELOW if found.faults else DONE
