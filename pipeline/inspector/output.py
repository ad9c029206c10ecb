"""How the commands print: JSON, tables and bars that fit the width of the terminal. Imports neither Arrow nor numpy."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engine.cli import DONE
from pipeline.engine.display import cut, sanitize, size, width

BAR, LEAST_BAR = 40, 8  # characters of the longest bar, and of the narrowest terminal's longest bar
LABEL = 36  # characters of the label of a bar
LEAST = 8  # columns of the terminal that a column of a table needs
GAP = 2  # blanks between two columns


def columns() -> int:
    """The width of the terminal; 120 where there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def print_json(value: Any) -> int:
    """Prints one document on stdout. It is ASCII, so that no text from the web reaches the terminal unescaped."""
    print(json.dumps(value, indent=1))
    return DONE


def print_samples(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line for each sample: key, width x height and size of the image where they are known, and the text."""
    for row in rows:
        line = sanitize(row["key"])
        if row.get("width") is not None and row.get("height") is not None:
            line += f"  {row['width']:>4}x{row['height']:<4}"
        if row.get("jpg_size") is not None:
            line += f"  {size(row['jpg_size']):>7}"
        room = max(20, columns() - width(line) - 3)
        print(f"{line}  {cut(sanitize(row['text'] or ''), room)}")


def print_bars(title: str, rows: Sequence[tuple[str, int]]) -> None:
    """Prints a bar for each row. The longest fills the terminal, up to BAR characters."""
    mark = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    most = max((count for _, count in rows), default=0) or 1
    label = min(LABEL, max(12, columns() - 17 - LEAST_BAR))
    longest = max(LEAST_BAR, min(BAR, columns() - label - 17))
    print(f"\n{title}")
    for name, count in rows:
        bar = mark * max(1 if count else 0, round(longest * count / most))
        shown = cut(sanitize(name), label)
        print(f"  {shown}{' ' * (label - width(shown))}{count:>13,}  {bar}".rstrip())


def print_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table that fits the terminal: the widest columns of text are cut. Numbers stand on the right.

    Where there are too many columns, each row is printed as lines of a name and a value.

    Args:
        names: of the columns.
        rows: a value for each column; None is shown as a dash.
    """
    shown = [[_cell(value) for value in row] for row in rows]
    right = [
        bool(rows) and all(isinstance(row[at], (int, float, type(None))) for row in rows) for at in range(len(names))
    ]
    widths = [max(width(line[at]) for line in [list(names), *shown]) for at in range(len(names))]
    room = columns() - GAP * (len(names) - 1) - 1
    if sum(min(most, LEAST) for most in widths) > room:
        return _print_records(names, shown)
    while sum(widths) > room and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1
    for line in [list(names), *shown]:
        cells = []
        for text, most, numbers in zip(line, widths, right, strict=True):
            text = cut(text, most)
            blanks = " " * (most - width(text))
            cells.append(blanks + text if numbers else text + blanks)
        print((" " * GAP).join(cells).rstrip())


def _print_records(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    label = max(map(width, names))
    for number, row in enumerate(rows):
        print("" if number == 0 else "\n", end="")
        for name, text in zip(names, row, strict=True):
            print(f"{name}{' ' * (label - width(name))}  {cut(text, max(LEAST, columns() - label - GAP - 1))}".rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return sanitize(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def count(text: str) -> int:
    """A number that is not negative, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)
