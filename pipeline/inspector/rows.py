"""inspect_shards rows: writes the rows of a stage as one Parquet file."""

from __future__ import annotations

import argparse
import os

from pipeline.dataset.errors import Damaged, NotFound
from pipeline.engine.cli import DONE, UsageError
from pipeline.engine.display import amount
from pipeline.inspector.opening import store_of
from pipeline.inspector.output import print_json

OTHERS = (".csv", ".tsv", ".json", ".jsonl", ".arrow", ".feather", ".txt", ".gz", ".zst")  # names of other formats
MAGIC = b"PAR1"  # begins a Parquet file


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--stage", required=True, metavar="NAME", help="gather, match, dedup or balance")
    parser.add_argument("--to", required=True, metavar="FILE", help="Parquet file to write")


def run(args: argparse.Namespace) -> int:
    """Writes the rows of a stage as one Parquet file."""
    from pipeline.dataset import damage, exports
    from pipeline.engine import storage

    try:
        with store_of(args.to):
            replaces = check_target(args.to)
            count = exports.write_rows(args.folder, args.stage, args.to)
    except exports.NoRows as error:
        raise NotFound(str(error)) from error
    except storage.DamagedError as error:
        raise Damaged(damage.with_remedy(error)) from error
    if args.json:
        return print_json({"stage": args.stage, "rows": count, "path": args.to, "replaced": replaces})
    more = " (it replaces an older file)" if replaces else ""
    print(f"{amount(count, None, 'rows')} after {args.stage!r}: {args.to}{more}")
    return DONE


def check_target(path: str) -> bool:
    """True if the file will replace an older Parquet file.

    Raises:
        UsageError: it is a folder, is named as another format, or would replace a file that is not Parquet.
    """
    from pipeline.engine import storage

    if path.lower().endswith(OTHERS):
        raise UsageError(f"--to {path}: must end with .parquet, since Parquet is written")
    if os.path.isdir(path):
        raise UsageError(f"--to {path}: must be a file; it is a folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"--to {path}: must be a file; it is a device or a pipe")
    if not storage.is_file(path) or not storage.size(path):
        return False
    with storage.opened(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UsageError(f"--to {path}: must not exist, or be a Parquet file, which is replaced")
    return True
