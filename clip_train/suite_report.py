"""The results of a suite as a table for a person, JSON, CSV and a plot (SVG, without a package)."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_train.suite_run import Row, write_whole

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins like this


def summary(suite: str, checkpoint: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The whole result: sets, how many of them have a value, and the mean of those."""
    values = [row["value"] for row in rows if row["status"] == "done"]
    return {
        "suite": suite,
        "checkpoint": checkpoint,
        "mean": sum(values) / len(values) if values else None,
        "done": len(values),
        "failed": sum(row["status"] == "failed" for row in rows),
        "skipped": sum(row["status"] == "skipped" for row in rows),
        "sets": list(rows),
    }


def table(result: dict[str, Any]) -> str:
    """A line for each set that has a value or failed, then the mean. Values are in percent.

    A set that is a shift of another has two more columns: the other's accuracy on the same classes, and the gap.
    """
    rows = [row for row in result["sets"] if row["status"] != "skipped"]
    width = max([len(row["name"]) for row in rows] + [len("mean of 00 of 00 sets")])
    more = f"  {'beside':>6s}  {'gap':>6s}" if any("gap" in row for row in rows) else ""
    lines = [f"{'set':{width}s}  {'metric':18s}  {'%':>6s}  {'images':>8s}{more}"]
    for row in rows:
        shown = f"{100 * row['value']:6.2f}  {row['images']:8,}" if row["status"] == "done" else row["reason"]
        if "gap" in row:
            shown += f"  {100 * row['reference']:6.2f}  {100 * row['gap']:6.2f}"
        lines.append(f"{row['name']:{width}s}  {row['metric']:18s}  {shown}")
    if result["mean"] is not None:
        said = f"mean of {result['done']} of {len(result['sets'])} sets"
        lines.append(f"{said:{width}s}  {'':18s}  {100 * result['mean']:6.2f}")
    return "\n".join(lines)


def to_csv(result: dict[str, Any]) -> str:
    """A line for each set. `skipped` counts images; reference and gap are those of `table`."""
    columns = (
        "name", "kind", "metric", "status", "value", "images", "skipped", "classes", "reason", "reference", "gap",
    )  # fmt: skip
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in result["sets"]:
        cells = [row.get(column, "") for column in columns]
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in cells])
    return buffer.getvalue()


def plot(result: dict[str, Any]) -> str:
    """An SVG with a bar for each set that has a value, and a line at the mean."""
    rows = [row for row in result["sets"] if row["status"] == "done"]
    left, wide, high = 260, 400, 20
    height = 60 + high * len(rows)
    title = html.escape(f"{result['suite']}: {result['checkpoint']}")
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 70}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{title}</text>',
    ]
    for number, row in enumerate(rows):
        y = 36 + high * number
        long = round(wide * row["value"], 1)
        text.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{html.escape(row["name"])}</text>')
        text.append(f'<rect x="{left}" y="{y}" width="{long}" height="{high - 5}" fill="#4878a8"/>')
        text.append(f'<text x="{left + long + 6}" y="{y + 12}">{100 * row["value"]:.1f}</text>')
    if result["mean"] is not None:
        x = left + round(wide * result["mean"], 1)
        text.append(f'<line x1="{x}" x2="{x}" y1="30" y2="{height - 22}" stroke="#b04040" stroke-dasharray="4"/>')
        text.append(f'<text x="{x}" y="{height - 8}" text-anchor="middle">mean {100 * result["mean"]:.1f} %</text>')
    return "\n".join([*text, "</svg>"]) + "\n"


def write_report(folder: Path, result: dict[str, Any]) -> None:
    """Writes results.json, results.csv, results.txt and results.svg."""
    write_whole(folder / "results.json", json.dumps(result, indent=1) + "\n")
    write_whole(folder / "results.csv", to_csv(result))
    write_whole(folder / "results.txt", table(result) + "\n")
    write_whole(folder / "results.svg", plot(result))
