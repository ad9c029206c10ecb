"""inspect_shards rows: writes the rows of a stage as one Parquet file."""

from __future__ import annotations

import argparse
import os

from pipeline.dataset.errors import Damaged, NotFound
from pipeline.engine.cli import DONE, UsageError
from pipeline.inspector.output import print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--stage", required=True, metavar="NAME", help="gather, match, dedup or balance")
    parser.add_argument("--to", required=True, metavar="FILE", help="Parquet file to write")


def run(args: argparse.Namespace) -> int:
    """Writes the rows of a stage as one Parquet file."""
    from pipeline.dataset import damage, exports
    from pipeline.engine import storage

    if os.path.isdir(args.to):
        raise UsageError(f"--to {args.to}: must be a file; it is a folder")
    try:
        count = exports.write_rows(args.folder, args.stage, args.to)
    except exports.NoRows as error:
        raise NotFound(str(error)) from error
    except storage.DamagedError as error:
        raise Damaged(damage.with_remedy(error)) from error
    if args.json:
        return print_json({"stage": args.stage, "rows": count, "path": args.to})
    print(f"{count:,} rows after {args.stage!r}: {args.to}")
    return DONE
