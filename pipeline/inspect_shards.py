"""Inspects the folder of a run: what it is, what it holds, and whether all of it is sound.

    python -m pipeline.inspect_shards info OUT               stages, ledger, shards, sizes
    python -m pipeline.inspect_shards ls OUT                 samples: key, size, text
    python -m pipeline.inspect_shards show KEY OUT           everything known of one sample; --image FILE saves it
    python -m pipeline.inspect_shards stats OUT              languages, hosts, sizes, queries
    python -m pipeline.inspect_shards queries OUT            pairs of each query before and after the cap; --why QUERY
    python -m pipeline.inspect_shards find OUT --url U       where a pair is, or at which stage it fell, and why
    python -m pipeline.inspect_shards sample OUT             random samples, of a query or a language; --seed
    python -m pipeline.inspect_shards diff OUT OTHER         options, counts, queries and pairs of two sets
    python -m pipeline.inspect_shards verify OUT             every checksum and count; exit code 3 if there is a fault
    python -m pipeline.inspect_shards verify OUT --stages    the files that the stages keep, too
    python -m pipeline.inspect_shards rights OUT             who refused AI training: protocols, hosts, evidence
    python -m pipeline.inspect_shards rows OUT --stage match --to rows.parquet
    python -m pipeline.inspect_shards forgotten OUT --url U  was it forgotten? exit code 3 if not

Needs neither Beam nor torch. Texts from the web are printed without control characters.
"""

from __future__ import annotations

from pipeline.engine import interrupts

if __name__ == "__main__":
    interrupts.install("pipeline.inspect_shards")  # before the imports, which take a second

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from pipeline import __version__
from pipeline.dataset.errors import Ambiguous, Damaged, NotFound
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
from pipeline.engine.display import sanitize, size

FAULT = BELOW  # exit code of `verify` on a folder that is not sound


# ----------------------------------------------------------------------------------------------------- the commands


def info(args: argparse.Namespace) -> int:
    """What the folder is."""
    from pipeline.dataset import open_set, shards

    folder = args.folder
    published = os.path.exists(os.path.join(folder, "manifest.json"))
    manifest = open_set.read_manifest(folder) if published else None
    stages = open_set.stages_of(folder)
    if manifest is None and not stages:
        raise NotFound(f"{folder!r} holds neither manifest.json nor stages/: is it the --output of a run?")
    facts: dict[str, Any] = {"folder": folder, "published": manifest is not None, "stages": stages}
    if manifest is not None:
        entries = manifest["files"]
        tars = [entry for entry in entries if entry["path"].endswith(".tar")]
        facts |= {name: manifest.get(name) for name in ("digest", "queries", "ledger", "options", "versions")}
        facts |= {name: manifest[name] for name in ("damaged_inputs",) if name in manifest}
        facts |= {
            "shards": len(tars),
            "ranges": open_set.count_of_ranges(manifest),
            "rows": sum(entry["rows"] for entry in tars),
            "bytes": sum(entry["bytes"] for entry in entries),
        }
    elif os.path.exists(os.path.join(folder, "queries.parquet")):
        queries = open_set.read_queries(folder)["query"].to_pylist()
        facts["queries"] = {"rows": len(queries), "digest": shards.digest_of_queries(queries)}
    if args.json:
        return print_json(facts)
    print_info(facts)
    return DONE


def print_info(facts: dict[str, Any]) -> None:
    """Prints the facts of a folder on one screen."""
    from pipeline.engine import rights_ledger
    from pipeline.engine.ledger import lines_on_inputs, lines_on_records

    if facts["published"]:
        ranges = facts["ranges"]
        empty = 0 if ranges is None else ranges - facts["shards"]
        gaps = f" ({empty:,} of {ranges:,} ranges are empty)" if empty else ""
        print(f"published: {facts['rows']:,} pairs in {facts['shards']:,} shards{gaps}, {size(facts['bytes'])}")
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
        for line in lines_on_records(row):
            print(f"    {sanitize(line)}")
    if not facts["stages"]:  # a copy of the published files alone
        for line in lines_on_inputs(facts.get("damaged_inputs") or {}):
            print(sanitize(line))
    refused = rights_ledger.lines(rights_ledger.of_stages(rows, facts.get("options")), examples=False)
    for line in ["", *refused] if refused else ():
        print(sanitize(line))
    if facts.get("options"):
        print("\noptions    " + sanitize(json.dumps(facts["options"], ensure_ascii=False, sort_keys=True)))
        print("versions   " + sanitize(json.dumps(facts["versions"], sort_keys=True)))


def ls(args: argparse.Namespace) -> int:
    """Samples, a line each."""
    import pyarrow.compute as pc

    from pipeline.dataset.open_set import open_set

    columns = ("key", "shard", "text", "url", "width", "height", "jpg_size")
    left = args.limit or sys.maxsize
    listed: list[dict[str, Any]] = []
    for table in open_set(args.folder).rows(columns, shard=args.shard):
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
    """Prints a line for each sample: key, width x height, size of the image, text."""
    room = max(20, shutil.get_terminal_size((120, 24)).columns - 54)
    for row in rows:
        text = sanitize(row["text"])
        text = text if len(text) <= room else text[: room - 1] + "…"
        print(f"{row['key']}  {row['width']:>4}x{row['height']:<4}  {size(row['jpg_size']):>7}  {text}")


def show(args: argparse.Namespace) -> int:
    """Everything known of one sample."""
    from pipeline.dataset.open_set import open_set

    pairs = open_set(args.folder)
    try:
        row = pairs.row(args.key)
    except Ambiguous as error:
        raise UsageError(str(error)) from None
    queries = pairs.queries["query"].to_pylist()
    names = {
        column: [queries[number] if number < len(queries) else str(number) for number in row[column]]
        for column in ("query_ids", "kept_by")
    }
    facts = row | {"queries": names["query_ids"], "kept_by_queries": names["kept_by"]}
    if args.image is not None:
        from pipeline.engine import storage

        storage.write_plain(args.image, pairs.sample(row["key"]).image)
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


def stats(args: argparse.Namespace) -> int:
    """What is in the set, counted."""
    from pipeline.dataset import summary
    from pipeline.dataset.open_set import open_set

    pairs = open_set(args.folder)
    s = summary.summarise(pairs.rows(summary.COLUMNS))
    queries = pairs.queries["query"].to_pylist()
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


def queries(args: argparse.Namespace) -> int:
    """How many pairs hold each query, before and after the cap. A run that has reached match is enough."""
    import pyarrow.compute as pc

    from pipeline.dataset import query_counts

    table = query_counts.table(args.folder)
    if args.why is not None:
        return why(args, table.filter(pc.equal(pc.utf8_lower(table["query"]), args.why.lower())).to_pylist())
    if args.language is not None:
        if "language" not in table.column_names:
            raise NotFound(f"the query list of {args.folder!r} has no languages: an older version wrote it")
        table = table.filter(pc.equal(table["language"], args.language))
    if args.grep is not None:
        table = table.filter(pc.match_substring(table["query"], args.grep, ignore_case=True))
    order = "ascending" if args.tail or args.sort == "query" else "descending"
    known = [name for name in (args.sort, "published", "count") if table[name].null_count < table.num_rows]
    table = table.take(pc.sort_indices(table, [(name, order) for name in known[:1]] + [("query", "ascending")]))
    limit = args.tail or args.head
    shown = (table.slice(0, limit) if limit else table).to_pylist()
    if args.json:
        return print_json(shown)
    print_queries(shown)
    if len(shown) < table.num_rows:
        print(f"... {table.num_rows - len(shown):,} more: --head 0 shows all")
    return DONE


def print_queries(rows: list[dict[str, Any]]) -> None:
    """Prints a line for each query."""
    from pipeline.dataset.query_counts import COUNTED

    print(f"{'id':>8}" + "".join(f"{name:>12}" for name in COUNTED) + "  query")
    for row in rows:
        numbers = "".join(f"{'-' if row[name] is None else format(row[name], ',')!s:>12}" for name in COUNTED)
        print(f"{row['id']:>8}{numbers}  {sanitize(row['query'])}")


def why(args: argparse.Namespace, found: list[dict[str, Any]]) -> int:
    """Everything known of a query, in words."""
    from pipeline.dataset.query_counts import COUNTED

    if not found:
        raise NotFound(f"no query of this run is {args.why!r}: try --grep")
    if args.json:
        return print_json(found)
    for row in found:
        for name, value in row.items():
            meaning = f"  {COUNTED[name]}" if name in COUNTED else ""
            shown = "-" if value is None else f"{value:,}" if name in COUNTED else sanitize(value)
            print(f"{name:<12}{shown:<20}{meaning}".rstrip())
        if row["pairs"] and row["cap"] is not None:
            share = min(1.0, row["cap"] / row["pairs"])
            print(f"{'':<12}the query picks a pair with probability {share:.4g}; other queries may pick it, too")
    return DONE


def find(args: argparse.Namespace) -> int:
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
        forgotten = [{"kind": kind, "value": value} for kind, value in gone]
        print_json({"pairs": finding.to_json(pairs), "forgotten": forgotten, "text_reason": rule})
        return DONE if pairs or gone or rule is not None else FAULT
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
    return DONE if pairs or gone or rule is not None else FAULT


def sample(args: argparse.Namespace) -> int:
    """Random samples. The same seed shows the same ones."""
    import heapq

    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.dataset.open_set import open_set
    from pipeline.engine.hashing import column_hash, mix

    pairs = open_set(args.folder)
    number = None
    if args.query is not None:
        names = pairs.queries["query"]
        number = pc.index(pc.utf8_lower(names), args.query.lower()).as_py()
        if number < 0:
            raise NotFound(f"no query of this set is {args.query!r}: `queries OUT --grep WORDS` finds some")
    columns = ["key", "shard", "text", "url", "width", "height", "jpg_size", "language", "query_ids"]
    best: list[tuple[int, dict[str, Any]]] = []
    for table in pairs.rows(columns):
        if args.language is not None:
            table = table.filter(pc.equal(table["language"], args.language))
        if number is not None:
            lists = table["query_ids"].combine_chunks()
            holds = pc.unique(pc.list_parent_indices(lists).filter(pc.equal(pc.list_flatten(lists), number)))
            table = table.take(holds)
        hashes = pa.array(mix(column_hash(table["key"]), args.seed))
        first = pc.sort_indices(hashes)[: args.count]
        best += zip(hashes.take(first).to_pylist(), table.take(first).to_pylist(), strict=True)
        best = heapq.nsmallest(args.count, best, key=lambda pair: pair[0])
    rows = [row for _, row in best]
    if args.json:
        return print_json(rows)
    print_samples(rows)
    if not rows:
        print("no sample of the set is such a one")
    return DONE


def diff(args: argparse.Namespace) -> int:
    """What differs between two sets. Exit code 3 if anything does."""
    from pipeline.dataset.compare import compare
    from pipeline.dataset.open_set import open_set

    found = compare(open_set(args.folder), open_set(args.other))
    same = found["digest"][0] == found["digest"][1]
    if args.json:
        print_json(found)
        return DONE if same else FAULT
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
    return FAULT


def print_bars(title: str, rows: Sequence[tuple[str, int]], width: int = 40) -> None:
    """Prints a bar for each row. The longest has `width` characters."""
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


def rights(args: argparse.Namespace) -> int:
    """Who refused AI training: for each protocol pairs seen and refused, hosts, spared requests, examples, evidence."""
    from pipeline.dataset import open_set
    from pipeline.engine import rights_ledger

    stages, options = open_set.stages_of(args.folder), None
    if not stages and os.path.exists(os.path.join(args.folder, "manifest.json")):
        manifest = open_set.read_manifest(args.folder)
        stages, options = manifest.get("ledger") or [], manifest.get("options")
    if not stages:
        raise NotFound(f"{args.folder!r} holds neither manifest.json nor stages/: is it the --output of a run?")
    found = rights_ledger.of_stages(stages, options)
    if args.json:
        return print_json(found)
    for line in rights_ledger.lines(found, examples=True) or ["no page, site or image was asked"]:
        print(sanitize(line))
    return DONE


def rows(args: argparse.Namespace) -> int:
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


def forgotten(args: argparse.Namespace) -> int:
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
    return DONE if all(answer["forgotten"] for answer in answers) else FAULT


def print_json(value: Any) -> int:
    """Prints one document on stdout. It is ASCII, so that no text from the web reaches the terminal unescaped."""
    print(json.dumps(value, indent=1))
    return DONE


# ----------------------------------------------------------------------------------------------------- command line


COMMANDS = {"info": info, "ls": ls, "show": show, "stats": stats, "verify": verify, "rights": rights, "rows": rows}
COMMANDS |= {"queries": queries, "find": find, "sample": sample, "diff": diff, "forgotten": forgotten}


def parser_of() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the program, and the parser of each command."""
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
    add = parsers["queries"].add_argument
    add("--sort", default="pairs", choices=("pairs", "picked", "kept", "published", "count", "query"),
        help="by this column, the largest first (default: %(default)s)")  # fmt: skip
    add("--head", type=count, default=20, metavar="N", help="queries; 0: all (default: %(default)s)")
    add("--tail", type=count, default=0, metavar="N", help="so many of the other end")
    add("--language", metavar="CODE", help="of this language only")
    add("--grep", metavar="WORDS", help="that hold these letters, in upper or lower case")
    add("--why", metavar="QUERY", help="everything known of one query")
    add = parsers["sample"].add_argument
    add("--count", type=count, default=10, metavar="N", help="samples (default: %(default)s)")
    add("--seed", type=count, default=0, metavar="N", help="another seed shows other samples (default: %(default)s)")
    add("--query", metavar="QUERY", help="that hold this query only")
    add("--language", metavar="CODE", help="of this language only")
    parsers["diff"].add_argument("other", metavar="OTHER", help="folder of another set")
    parsers["verify"].add_argument("--quick", action="store_true", help="names, sizes and counts only")
    parsers["verify"].add_argument("--stages", action="store_true", help="the files that the stages keep, too")
    parsers["rows"].add_argument("--stage", required=True, metavar="NAME", help="gather, match, dedup or balance")
    parsers["rows"].add_argument("--to", required=True, metavar="FILE", help="Parquet file to write")
    for flag in ("url", "domain", "page-domain", "uid", "sha256"):
        for name in ("find", "forgotten"):
            parsers[name].add_argument(f"--{flag}", action="append", default=[], help="may be repeated")
    parsers["find"].add_argument("--text", metavar="TEXT", help="what gather makes of this text")
    parsers["find"].add_argument("--limit", type=count, default=20, metavar="N",
                                 help="pairs; 0: all (default: %(default)s)")  # fmt: skip
    return parser, parsers


def settle(folder: str) -> None:
    """Finishes a change of the folder that a crash interrupted."""
    if os.path.exists(os.path.join(folder, ".change", "journal.json")):  # so that the common case imports nothing
        from pipeline.engine import work

        try:
            work.settle(os.path.abspath(folder))
        except work.Busy as error:
            raise NotFound(f"the files of {folder!r} are being changed: {error}") from error


def count(text: str) -> int:
    """A number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line. A misspelt command or flag is refused with a suggestion."""
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
        settle(args.folder)
        code = COMMANDS[args.command](args)
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
        print(f"pipeline.inspect_shards: {sanitize(error)}", file=sys.stderr)
        return CRASHED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
