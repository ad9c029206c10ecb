"""Looks into the folder of a run: what it is, what lies in it, and whether all of it is sound.

    python -m pipeline.inspect_shards info OUT               stages, ledger, shards, sizes
    python -m pipeline.inspect_shards ls OUT                 samples: key, size, text
    python -m pipeline.inspect_shards show KEY OUT           everything known of one sample; --image FILE saves it
    python -m pipeline.inspect_shards stats OUT              languages, hosts, sizes, queries
    python -m pipeline.inspect_shards verify OUT             every checksum and count; exit code 3 if there is a fault
    python -m pipeline.inspect_shards verify OUT --stages    the files that the stages keep, too
    python -m pipeline.inspect_shards rows OUT --stage match --to rows.parquet

Needs neither Beam nor torch. Texts of strangers are printed without control characters.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.engine.cli import BELOW, DONE, INTERRUPTED, MISSING, USAGE, Parser, UsageError, check_flags, suggestion
from pipeline.engine.display import sanitize, size

if TYPE_CHECKING:
    import pyarrow as pa

FAULT = BELOW  # exit code of `verify` on a folder that is not sound


class NotFound(ValueError):
    """What was named is not there."""


class Damaged(ValueError):
    """A file cannot be read, or is not what it should be."""


# ------------------------------------------------------------------------------------------------------- the folder


def read_json(folder: str, path: str) -> Any:
    """A JSON file of the folder, None where it is missing."""
    from pipeline.engine import storage

    try:
        return storage.read_json(os.path.join(folder, path), sealed=False)
    except storage.DamagedError as error:
        raise Damaged(path + str(error).removeprefix(os.path.join(folder, path))) from error
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error}") from error


def manifest_of(folder: str) -> dict[str, Any]:
    """The manifest of a published folder."""
    manifest = read_json(folder, "manifest.json")
    if manifest is None:
        raise NotFound(f"{folder!r} is not a published folder: it has no manifest.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), list):
        raise Damaged("manifest.json is not a manifest")
    return manifest


def stages_of(folder: str) -> list[dict[str, Any]]:
    """info.json of each stage that there is, in order; `completed` says whether it was finished."""
    from pipeline.schema import STAGES

    found = []
    for stage in STAGES:
        path = f"stages/{stage}"
        if os.path.isdir(os.path.join(folder, path)):
            info = read_json(folder, f"{path}/info.json") or {}
            completed = os.path.exists(os.path.join(folder, path, "COMPLETED"))
            found.append({"stage": stage, "completed": completed, **info})
    return found


def metadata_tables(
    folder: str, columns: Sequence[str] | None = None, *, shard: int | None = None
) -> Iterator[pa.Table]:
    """The metadata, shard by shard, as the manifest lists them; page checksums are verified."""
    import pyarrow as pa

    from pipeline.dataset import shards
    from pipeline.engine import storage

    paths = sorted(entry["path"] for entry in manifest_of(folder)["files"] if entry["path"].startswith("metadata/"))
    if shard is not None:
        wanted = f"metadata/{shard:05d}.parquet"
        if wanted not in paths:
            raise NotFound(f"there is no shard {shard}: the set has {len(paths)}")
        paths = [wanted]
    for path in paths:
        try:
            yield shards.read_table(os.path.join(folder, path), columns)
        except (pa.ArrowException, storage.DamagedError, OSError, ValueError) as error:
            raise Damaged(f"{path} cannot be read: {error}") from error


def query_names(folder: str) -> list[str]:
    """The query of each id, empty where the list is not there."""
    from pipeline.dataset import shards

    path = os.path.join(folder, "queries.parquet")
    return shards.read_table(path, ["query"])["query"].to_pylist() if os.path.exists(path) else []


# ----------------------------------------------------------------------------------------------------- the commands


def info(args: argparse.Namespace) -> int:
    """What the folder is."""
    folder = args.folder
    manifest = manifest_of(folder) if os.path.exists(os.path.join(folder, "manifest.json")) else None
    stages = stages_of(folder)
    if manifest is None and not stages:
        raise NotFound(f"{folder!r} holds neither manifest.json nor stages/: is it the --output of a run?")
    facts: dict[str, Any] = {"folder": folder, "published": manifest is not None, "stages": stages}
    if manifest is not None:
        entries = manifest["files"]
        tars = [entry for entry in entries if entry["path"].endswith(".tar")]
        facts |= {name: manifest.get(name) for name in ("digest", "queries", "ledger", "options", "versions")}
        facts |= {
            "shards": len(tars),
            "rows": sum(entry["rows"] for entry in tars),
            "bytes": sum(entry["bytes"] for entry in entries),
        }
    elif (queries := query_names(folder)) or os.path.exists(os.path.join(folder, "queries.parquet")):
        from pipeline.dataset import shards

        facts["queries"] = {"rows": len(queries), "digest": shards.digest_of_queries(queries)}
    if args.json:
        return print_json(facts)
    print_info(facts)
    return DONE


def print_info(facts: dict[str, Any]) -> None:
    """The folder in a screenful."""
    if facts["published"]:
        print(f"published: {facts['rows']:,} pairs in {facts['shards']:,} shards, {size(facts['bytes'])}")
        print(f"digest     {facts['digest']}")
    else:
        print("a run that is not published (yet)")
    queries = facts.get("queries")
    if queries:
        print(f"queries    {queries['rows']:,}, digest {queries['digest']}")
    rows = facts["stages"] or facts.get("ledger") or []
    if rows:
        print(f"\n{'stage':<14}{'rows in':>15}{'rows out':>15}   CPU s")
    for row in rows:
        if not row.get("completed", True):
            print(f"{row['stage']:<14}not finished")
            continue
        cpu = f"{row['cpu_seconds']:8,.1f}" if "cpu_seconds" in row else ""
        print(f"{row['stage']:<14}{row['rows_in']:>15,}{row['rows_out']:>15,}{cpu}")
        for reason, count in sorted(row["dropped"].items(), key=lambda item: (-item[1], item[0])):
            print(f"    {sanitize(reason):<25}{-count:>15,}")
    if facts.get("options"):
        print("\noptions    " + sanitize(json.dumps(facts["options"], ensure_ascii=False, sort_keys=True)))
        print("versions   " + sanitize(json.dumps(facts["versions"], sort_keys=True)))


def ls(args: argparse.Namespace) -> int:
    """Samples, a line each."""
    import pyarrow.compute as pc

    columns = ("key", "shard", "text", "url", "width", "height", "jpg_size")
    left = args.limit or sys.maxsize
    listed: list[dict[str, Any]] = []
    for table in metadata_tables(args.folder, columns, shard=args.shard):
        if args.grep is not None:
            table = table.filter(pc.match_substring(table["text"], args.grep, ignore_case=True))
        rows = table.slice(0, left).to_pylist()
        left -= len(rows)
        if args.json:
            listed += rows
        else:
            print_samples(rows)
        if left <= 0:
            break
    return print_json(listed) if args.json else DONE


def print_samples(rows: list[dict[str, Any]]) -> None:
    """Key, width x height, size of the image, text."""
    room = max(20, shutil.get_terminal_size((120, 24)).columns - 54)
    for row in rows:
        text = sanitize(row["text"])
        text = text if len(text) <= room else text[: room - 1] + "…"
        print(f"{row['key']}  {row['width']:>4}x{row['height']:<4}  {size(row['jpg_size']):>7}  {text}")


def show(args: argparse.Namespace) -> int:
    """Everything known of one sample."""
    row = find(args.folder, args.key)
    queries = query_names(args.folder)
    names = {
        column: [queries[number] if number < len(queries) else str(number) for number in row[column]]
        for column in ("query_ids", "kept_by")
    }
    facts = row | {"queries": names["query_ids"], "kept_by_queries": names["kept_by"]}
    if args.image is not None:
        save_image(args.folder, row, args.image)
    if args.json:
        return print_json(facts)
    for name, value in facts.items():
        if name == "phash" and value is not None:
            value = f"{value:016x}"
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        print(f"{name:<18}{'' if value is None else sanitize(value)}")
    if args.image is not None:
        print(f"{'image':<18}{sanitize(args.image)}")
    return DONE


def find(folder: str, start: str) -> dict[str, Any]:
    """The only sample whose key begins so."""
    import pyarrow.compute as pc

    from pipeline.dataset import shards

    matches: list[tuple[int, int, str]] = []
    for shard, table in enumerate(metadata_tables(folder, ["key"])):
        rows = pc.indices_nonzero(pc.starts_with(table["key"], start.lower())).to_pylist()
        matches += [(shard, row, table["key"][row].as_py()) for row in rows[:6]]
        if len(matches) > 5:
            break
    if not matches:
        raise NotFound(f"no sample has a key that begins with {start!r}")
    if len(matches) > 1:
        some = ", ".join(key for _, _, key in matches[:5])
        raise UsageError(f"several keys begin with {start!r}: {some}{' ...' if len(matches) > 5 else ''}")
    shard, row, _ = matches[0]
    table = shards.read_table(os.path.join(folder, shards.metadata_path(shard)))
    return table.slice(row, 1).to_pylist()[0]


def save_image(folder: str, row: dict[str, Any], to: str) -> None:
    """Copies the JPEG of a sample out of its tar, if it is the one that the metadata names."""
    from pipeline.dataset import shards
    from pipeline.engine import storage

    path = shards.tar_path(row["shard"])
    try:
        image = storage.read_range(os.path.join(folder, path), row["jpg_offset"], row["jpg_size"])
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(image).hexdigest() != row["sha256"]:
        raise Damaged(f"{path}: the image of {row['key']} has another sha256 than the metadata says; not saved")
    storage.write_plain(to, image)


def stats(args: argparse.Namespace) -> int:
    """What is in the set, counted."""
    from pipeline.dataset import summary

    s = summary.summarise(metadata_tables(args.folder, summary.COLUMNS))
    queries = query_names(args.folder)
    picked = [
        (queries[number] if number < len(queries) else str(number), count)
        for number, count in summary.top(s.kept_by or s.matched, 20)
    ]
    charts = [*summary.charts(s), ("Queries that picked most pairs", picked)]
    if args.json:
        totals = {"samples": s.samples, "image_bytes": s.image_bytes, "hosts": len(s.hosts), "queries": len(s.matched)}
        return print_json(totals | {"charts": {title: dict(rows) for title, rows in charts}})
    print(f"{s.samples:,} pairs, {size(s.image_bytes)} of JPEG, {len(s.hosts):,} hosts, {len(s.matched):,} queries met")
    for title, rows in charts:
        if rows:
            print_bars(title, rows)
    return DONE


def print_bars(title: str, rows: Sequence[tuple[str, int]], width: int = 40) -> None:
    """A bar a row, the longest of `width` characters."""
    mark = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    most = max(count for _, count in rows) or 1
    print(f"\n{title}")
    for label, count in rows:
        bar = mark * max(1 if count else 0, round(width * count / most))
        print(f"  {sanitize(label)[:36]:<36}{count:>13,}  {bar}".rstrip())


def verify(args: argparse.Namespace) -> int:
    """Checks everything."""
    from pipeline.dataset import verify as verifying

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
        return FAULT if faults else DONE
    for line in notes:
        print(f"note: {line}")
    if faults:
        print(f"{len(faults):,} {'fault' if len(faults) == 1 else 'faults'}")
    else:
        print("sound: names, sizes and counts agree" if args.quick else "sound: every checksum and count agrees")
    return FAULT if faults else DONE


def rows(args: argparse.Namespace) -> int:
    """Writes the rows of a stage as one Parquet file."""
    from pipeline.dataset import damage, exports
    from pipeline.engine import storage

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


def print_json(value: Any) -> int:
    """One document on stdout; ASCII, so that no text of a stranger reaches a terminal as it is."""
    print(json.dumps(value, indent=1))
    return DONE


# ----------------------------------------------------------------------------------------------------- command line


COMMANDS = {"info": info, "ls": ls, "show": show, "stats": stats, "verify": verify, "rows": rows}


def parser_of() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and that of each command."""
    parser = Parser(
        prog="python -m pipeline.inspect_shards",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"openwit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, function in COMMANDS.items():
        text = (function.__doc__ or "").strip()
        parsers[name] = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == "show":
            parsers[name].add_argument("key", metavar="KEY", help="a key, or enough of its beginning")
        parsers[name].add_argument("folder", metavar="OUT", help="folder of a run")
        parsers[name].add_argument("--json", action="store_true", help="print one JSON document")
    add = parsers["ls"].add_argument
    add("--limit", type=count, default=20, metavar="N", help="samples; 0: all (default: %(default)s)")
    add("--shard", type=count, metavar="N", help="of this shard only")
    add("--grep", metavar="WORDS", help="whose text holds these words, in upper or lower case")
    parsers["show"].add_argument("--image", metavar="FILE", help="save the JPEG there")
    parsers["verify"].add_argument("--quick", action="store_true", help="names, sizes and counts only")
    parsers["verify"].add_argument("--stages", action="store_true", help="the files that the stages keep, too")
    parsers["rows"].add_argument("--stage", required=True, metavar="NAME", help="gather, match, dedup or balance")
    parsers["rows"].add_argument("--to", required=True, metavar="FILE", help="Parquet file to write")
    return parser, parsers


def count(text: str) -> int:
    """A number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; what is misspelt is refused with a suggestion."""
    parser, parsers = parser_of()
    word = next((word for word in argv if not word.startswith("-")), None)
    if word is not None and word not in parsers:
        raise UsageError(f"no command {word!r}{suggestion(word, parsers)} ({', '.join(parsers)})")
    if word is not None:
        check_flags(argv, parsers[word], parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 crash, 2 usage, 3 a fault was found, 4 missing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    codes = {UsageError: USAGE, NotFound: MISSING, Damaged: FAULT}
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        if not os.path.isdir(args.folder):
            raise NotFound(f"there is no folder {args.folder!r}")
        code = COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except tuple(codes) as error:
        print(f"pipeline.inspect_shards: {sanitize(error)}", file=sys.stderr)
        return next(code for kind, code in codes.items() if isinstance(error, kind))
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
