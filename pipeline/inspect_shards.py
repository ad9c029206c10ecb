"""Inspects the folder of a run: what it is, what it holds, and whether all of it is sound.

    python -m pipeline.inspect_shards info OUT               stages, ledger, shards, sizes
    python -m pipeline.inspect_shards ls OUT                 samples: key, size, text
    python -m pipeline.inspect_shards grep OUT WORDS         samples whose text, URL or page holds words
    python -m pipeline.inspect_shards show KEY OUT           everything known of one sample, and its picture
    python -m pipeline.inspect_shards stats OUT              languages, hosts, sizes, queries
    python -m pipeline.inspect_shards columns OUT            what each column of the tables means
    python -m pipeline.inspect_shards queries OUT            pairs of each query before and after the cap; --why QUERY
    python -m pipeline.inspect_shards find OUT --url U       where a pair is, or at which stage it fell, and why
    python -m pipeline.inspect_shards sample OUT             random samples, of a query or a language; --seed
    python -m pipeline.inspect_shards sql OUT "select ..."   DuckDB over pairs, queries, rejected, duplicates, rights
    python -m pipeline.inspect_shards export OUT --to PATH --format folder|hf|lance|csv|coco
    python -m pipeline.inspect_shards diff OUT OTHER         options, counts, queries and pairs of two sets
    python -m pipeline.inspect_shards verify OUT             every checksum and count; exit code 3 if there is a fault
    python -m pipeline.inspect_shards verify OUT --stages    the files that the stages keep, too
    python -m pipeline.inspect_shards rights OUT             who refused AI training: protocols, hosts, evidence
    python -m pipeline.inspect_shards summary OUT          the summary of training content for the EU's AI Act
    python -m pipeline.inspect_shards rows OUT --stage match --to rows.parquet
    python -m pipeline.inspect_shards forgotten OUT --url U  was it forgotten? exit code 3 if not

Needs neither Beam nor torch. Texts from the web are printed without control characters.
"""

from __future__ import annotations

from pipeline.engine import interrupts

if __name__ == "__main__":
    interrupts.install("pipeline.inspect_shards")  # before the imports, which take a second

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from pipeline import __version__
from pipeline.dataset.errors import Ambiguous, Damaged, NotFound
from pipeline.engine import checks, completion
from pipeline.engine.cli import (
    BELOW,
    CRASHED,
    DONE,
    INTERRUPTED,
    MISSING,
    USAGE,
    Parser,
    UsageError,
    check_flags,
    suggestion,
)
from pipeline.engine.display import sanitize
from pipeline.inspector import (
    columns,
    diff,
    export,
    find,
    forgotten,
    grep,
    info,
    ls,
    queries,
    rights,
    rows,
    sample,
    show,
    sql,
    stats,
    summary,
    verify,
)
from pipeline.inspector.opening import absolute, exists, store_of

FAULT = BELOW  # exit code of `verify` on a folder that is not sound
MODULES = (
    info,
    ls,
    grep,
    show,
    stats,
    columns,
    verify,
    rights,
    summary,
    rows,
    queries,
    find,
    sample,
    sql,
    export,
    diff,
    forgotten,
)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}


def parser_of() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the program, and the parser of each command."""
    parser = Parser(
        prog="python -m pipeline.inspect_shards",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"openwit {__version__}")
    completion.add_flag(parser, "openwit-inspect")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, module in COMMANDS.items():
        text = (module.run.__doc__ or "").strip().splitlines()[0]
        parsers[name] = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == "show":
            parsers[name].add_argument("key", metavar="KEY", help="a key, or enough of its beginning")
        parsers[name].add_argument("folder", metavar="OUT", help="folder of a run or of another tool, or a tar")
        parsers[name].add_argument("--json", action="store_true", help="print one JSON document")
        module.arguments(parsers[name])
    return parser, parsers


def settle(folder: str) -> None:
    """Finishes a change of the folder that a crash interrupted."""
    if exists(os.path.join(folder, ".change", "journal.json")):  # so that the common case imports nothing
        from pipeline.engine import work

        try:
            work.settle(absolute(folder))
        except work.Unfinished as error:
            raise NotFound(str(error)) from error
        except work.Busy as error:
            raise NotFound(f"the files of {folder!r} are being changed: {error}") from error


def explain(error: OSError) -> str:
    """The message of a failure to read or write, and what to do about it."""
    remedy = {
        errno.EROFS: "choose a place that can be written to",
        errno.EACCES: "choose another place, or change its permissions",
        errno.EPERM: "choose another place, or change its permissions",
        errno.ENOSPC: "free some space, or choose another disk",
        errno.EDQUOT: "free some space, or choose another disk",
        errno.ENOENT: "choose a place that exists",
    }.get(error.errno or 0)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}: {remedy}" if remedy else str(error)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line. A misspelt command or flag is refused with a suggestion."""
    parser, parsers = parser_of()
    if argv[:1] == [completion.FLAG]:
        return parser.parse_args(argv)  # prints, and exits
    word = next((word for word in argv if not word.startswith("-")), None)
    if word is not None and word not in parsers:
        raise UsageError(f"no command {word!r}{suggestion(word, parsers)} ({', '.join(parsers)})")
    if word is not None:
        check_flags(argv, parsers[word], parser)
    args = parser.parse_args(argv)
    for name in ("to", "image"):
        if path := getattr(args, name, None):
            checks.flag(f"--{name}", path, checks.written_file if args.command == "rows" else checks.local)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 crash, 2 usage, 3 a fault was found, 4 missing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    codes = {UsageError: USAGE, Ambiguous: USAGE, NotFound: MISSING, Damaged: FAULT}
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        with store_of(args.folder):
            if not exists(args.folder):
                raise NotFound(f"there is no folder {args.folder!r}")
            settle(args.folder)
            code = COMMANDS[args.command].run(args)
        sys.stdout.flush()
        return code
    except tuple(codes) as error:
        print(f"pipeline.inspect_shards: {sanitize(error)}", file=sys.stderr)
        return next(code for kind, code in codes.items() if isinstance(error, kind))
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:  # a full disk behind stdout or --to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"pipeline.inspect_shards: {sanitize(explain(error))}", file=sys.stderr)
        return CRASHED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(interrupts.ending(main()))
