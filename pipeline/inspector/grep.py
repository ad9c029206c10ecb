"""inspect_shards grep: the samples whose text, URL or page holds words."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import Any

from pipeline.dataset.errors import NotFound
from pipeline.engine.cli import BELOW, DONE, UsageError
from pipeline.engine.display import cut, sanitize, width
from pipeline.inspector import choice
from pipeline.inspector.output import columns, count, print_json

FIELDS = ("text", "url", "page_url")
BEFORE = 20  # columns that stay before the words, where the text is longer than the line
MARK, END = "\x1b[1;31m", "\x1b[0m"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("pattern", metavar="WORDS", help="what the text holds, in upper or lower case")
    add = parser.add_argument
    add("--in", dest="field", default="text", choices=(*FIELDS, "all"), help="where (default: %(default)s)")
    add("--regex", action="store_true", help="WORDS is a regular expression (RE2)")
    add("--word", action="store_true", help="whole words only")
    add("--case", action="store_true", help="upper and lower case differ")
    add("--total", action="store_true", help="print their number only")
    add("--limit", type=count, default=20, metavar="N", help="samples; 0: all (default: %(default)s)")
    choice.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Samples whose text (or URL, or page) holds words or matches a regular expression. Exit code 3 if none does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.inspector.opening import open_pairs

    if not args.pattern.strip():
        raise UsageError("WORDS: must hold a character that is no blank")
    pairs = open_pairs(args.folder)
    fields = pairs.has(*(FIELDS if args.field == "all" else (args.field,)))
    if not fields:
        raise NotFound(f"the pairs have no column {args.field!r}")
    pattern = expression(args.pattern, regex=args.regex, word=args.word, case=args.case)
    shown = pairs.has("key", "shard", *FIELDS, "language", "width", "height", "jpg_size")
    total, left, rows = 0, args.limit or sys.maxsize, list[dict[str, Any]]()
    try:
        for table in choice.chosen(pairs, choice.Choice.of(args, pairs), shown):
            masks = [pc.fill_null(pc.match_substring_regex(table[name], pattern), False) for name in fields]
            found = table.filter(functools.reduce(pc.or_, masks))
            total += found.num_rows
            rows += [] if args.total else found.slice(0, left - len(rows)).to_pylist()
            if len(rows) >= left and not args.json:
                break
    except pa.ArrowInvalid as error:
        raise UsageError(f"--regex {args.pattern!r}: must be a regular expression of RE2 ({error})") from None
    if args.json:
        print_json({"total": total, "rows": rows})
        return DONE if total else BELOW
    if args.total:
        print(f"{total:,}")
        return DONE
    for row in rows:
        print_match(row, fields, pattern)
    if not total:
        print("no sample holds this")
        return BELOW
    if len(rows) == left:
        print("... there may be more: --limit 0 shows all, --total counts them")
    return DONE


def expression(words: str, *, regex: bool, word: bool, case: bool) -> str:
    """The regular expression of RE2 for some words."""
    pattern = words if regex else _quoted(words)
    pattern = rf"(?:^|[^\pL\pN_])(?:{pattern})(?:$|[^\pL\pN_])" if word else pattern
    return pattern if case else f"(?i){pattern}"


def _quoted(words: str) -> str:
    """Words as an expression that matches them alone. A run of blanks stands for any run of blanks."""
    return r"\s+".join("".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in part) for part in words.split())


def print_match(row: dict[str, Any], fields: list[str], pattern: str) -> None:
    """Prints the key and the text of a sample, and where it matches; the match has a colour on a terminal."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in fields:
        value = row[name] or ""
        parts = pc.extract_regex(pa.array([value]), f"(?P<before>(?s:.*?))(?P<match>{pattern})")[0].as_py()
        if parts is not None:
            break
    else:
        return
    key = sanitize(row["key"])
    before, match = sanitize(parts["before"]), sanitize(parts["match"])
    after = sanitize(value[len(parts["before"]) + len(parts["match"]) :])
    room = max(20, columns() - width(key) - 3)
    if width(before + match + after) > room and width(before) > BEFORE:
        before = "…" + before[-BEFORE:]
    line = cut(before + match + after, room)
    if _is_coloured() and line.startswith(before + match):
        line = f"{before}{MARK}{match}{END}{line[len(before + match) :]}"
    print(f"{key}  {line}")


def _is_coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
