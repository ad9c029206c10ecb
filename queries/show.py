"""Shows the figures of a query list, and how the list matches a corpus.

    python -m queries.show english
    python -m queries.show english --against alt-texts/*.parquet

With --against it shows how many texts match, and the head and the tail of the queries. The head holds the queries with
the most texts. It also shows how many pairs balancing would leave for each of many caps. MetaCLIP 2 chooses the cap of
each language so that the tail has the same share of all matches as in English. --tail-share finds that cap.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import __version__
from pipeline.engine.cli import DONE, INTERRUPTED, MISSING, USAGE, MissingInput, Parser, UsageError, check_flags, fail
from pipeline.text.matcher import MODES, Matcher, default_case
from queries import load

CAPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 170_000, 200_000)
HEAD = 20
TAIL_SHARE = 0.06  # of all matches: English at MetaCLIP's cap (20,000 for 1.6 billion pairs)
STOP_SHARE = 0.05  # of the texts; a query in more texts says little
BATCH = 65_536


@dataclasses.dataclass(frozen=True)
class Matches:
    """Which queries each text of a corpus holds."""

    offsets: npt.NDArray[np.int64]  # where the queries of each text begin in `ids`
    ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]  # number of texts of each query

    @property
    def texts(self) -> int:
        """The number of texts."""
        return len(self.offsets) - 1


def find_list(path: str | None) -> str:
    """The file of a list. A folder stands for its queries.parquet, None for the project's own list.

    Raises:
        MissingInput: there is no such file.
    """
    if path is None:
        return load.default_list()
    file = os.path.join(path, "queries.parquet") if os.path.isdir(path) else path
    if not os.path.exists(file):
        raise MissingInput(
            f"{file}: no such file; make a list with `python -m queries.build --output {shlex.quote(path)} ...`"
        )
    return file


def read_texts(path: str, column: str) -> Iterator[pa.Array]:
    """The texts of a table (Parquet, CSV, TSV) or of a plain text file, in batches.

    Raises:
        MissingInput: the file cannot be read, or has no such column.
    """
    try:
        if path.endswith(".parquet"):
            file = pq.ParquetFile(path)
            _check_column(path, column, file.schema_arrow.names)
            tables: Any = file.iter_batches(BATCH, columns=[column])
        elif path.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
            options = pa.csv.ParseOptions(delimiter="\t" if ".tsv" in path else ",", newlines_in_values=True)
            table = pa.csv.read_csv(path, parse_options=options)
            _check_column(path, column, table.column_names)
            tables = table.to_batches(BATCH)
        else:
            with open(path, encoding="utf-8", errors="replace") as lines:
                table = pa.table({column: pa.array([line.rstrip("\n") for line in lines], pa.string())})
            tables = table.to_batches(BATCH)
        for batch in tables:
            yield batch[column].cast(pa.large_string()).fill_null("")
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise MissingInput(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error


def _check_column(path: str, column: str, names: list[str]) -> None:
    if column not in names:
        raise MissingInput(f"{path}: no column {column!r} among {', '.join(names)}: give another --text-column")


def match(queries: pa.StringArray, texts: Iterator[pa.Array], *, mode: str, case: str) -> Matches:
    """Matches all texts with the queries."""
    matcher = Matcher.build(queries, mode=mode, case=case)
    lengths, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for batch in texts:
        found = matcher.match(batch)
        lengths.append(np.asarray(pc.list_value_length(found)).astype(np.int64))
        ids.append(found.values.to_numpy())
    all_ids = np.concatenate(ids)
    offsets = np.append(0, np.cumsum(np.concatenate(lengths)))
    return Matches(offsets, all_ids, np.bincount(all_ids, minlength=len(queries)).astype(np.int64))


def expected_size(matches: Matches, cap: float) -> float:
    """The expected number of texts after balancing.

    A query keeps each of its texts with probability cap/count.
    """
    if not len(matches.ids):
        return 0.0
    share = np.minimum(1.0, cap / np.maximum(matches.counts, 1))[matches.ids]
    kept_surely = share >= 1.0
    missed = np.where(kept_surely, -np.inf, np.log1p(-np.where(kept_surely, 0.0, share)))
    starts = matches.offsets[:-1][np.diff(matches.offsets) > 0]
    return float((1.0 - np.exp(np.add.reduceat(missed, starts))).sum())


def tail_share(counts: npt.NDArray[np.int64], cap: float) -> float:
    """The share of all matches that belongs to queries with fewer than `cap` texts."""
    return float(counts[counts < cap].sum() / max(1, counts.sum()))


def cap_of_share(counts: npt.NDArray[np.int64], share: float) -> int:
    """The cap whose tail share is nearest to `share`. MetaCLIP 2 finds the cap of each language by this rule."""
    hit = np.sort(counts[counts > 0])
    if not len(hit):
        return 0
    sums = np.cumsum(hit) / hit.sum()
    return int(hit[np.abs(sums - share).argmin()])


def describe(listed: load.QueryList, path: str) -> dict[str, Any]:
    """The figures of the list itself."""
    table = listed.table
    sources: dict[str, Any] = {}
    for row in table.group_by("source").aggregate([("id", "count"), ("count", "sum")]).sort_by("source").to_pylist():
        sources[row["source"]] = {"queries": row["id_count"], "occurrences": row["count_sum"]}
    words = pc.add(pc.count_substring(table["query"], " "), 1)
    most = table.sort_by([("count", "descending"), ("query", "ascending")]).slice(0, HEAD)
    return {
        "list": path,
        "queries": len(listed),
        "digest": listed.digest,
        "sources": sources,
        "words_a_query": round(float(pc.mean(words).as_py()), 2),
        "dead": {mode: len(Matcher.build(listed.queries, mode=mode).dead) for mode in MODES},
        "duplicates": listed.duplicates,
        "most_counted": most.select(["query", "source", "count"]).to_pylist(),
    }


def against(
    listed: load.QueryList, matches: Matches, *, share: float = TAIL_SHARE, rows: int | None = None
) -> dict[str, Any]:
    """The figures of the list in a corpus.

    With `rows`, caps and sizes are for a corpus of that many texts of the same kind.
    """
    table, counts = listed.table, matches.counts
    scale = 1.0 if not rows or not matches.texts else rows / matches.texts
    names = np.asarray(table["source"].to_pylist(), dtype=object)
    rows_of_head = np.lexsort((np.arange(len(counts)), -counts))[:HEAD]
    matched = int((np.diff(matches.offsets) > 0).sum())
    total = max(1, int(counts.sum()))
    by_source = {
        name: {
            "matches": int(counts[names == name].sum()),
            "share": round(float(counts[names == name].sum() / total), 4),
            "queries_hit": int((counts[names == name] > 0).sum()),
        }
        for name in sorted(set(names))
    }
    return {
        "texts": matches.texts,
        "matched": matched,
        "matched_share": round(matched / max(1, matches.texts), 4),
        "matches": int(counts.sum()),
        "matches_a_text": round(float(counts.sum() / max(1, matches.texts)), 3),
        "by_source": by_source,
        "never": int((counts == 0).sum()),
        "histogram": histogram(counts),
        "head": [
            {"query": table["query"][at].as_py(), "source": names[at], "texts": int(counts[at])}
            for at in rows_of_head.tolist()
        ],
        "stop_queries": int((counts > STOP_SHARE * max(1, matches.texts)).sum()),
        "rows": rows or matches.texts,
        "sizes": [
            {
                "cap": cap,
                "expected_pairs": round(expected_size(matches, cap / scale) * scale),
                "tail_share": round(tail_share(counts, cap / scale), 4),
            }
            for cap in CAPS
        ],
        "tail_share": share,
        "cap_of_tail_share": round(cap_of_share(counts, share) * scale),
    }


def histogram(counts: npt.NDArray[np.int64]) -> list[dict[str, int]]:
    """The number of queries and of their matches, for queries in 0, 1, 2-9, 10-99 ... texts."""
    edges = [0, 1, 2, *(10**power for power in range(1, 12))]
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        here = (counts >= low) & (counts < high)
        rows.append({"least": low, "most": high - 1, "queries": int(here.sum()), "matches": int(counts[here].sum())})
    while len(rows) > 1 and not rows[-1]["queries"]:
        rows.pop()
    return rows


# --------------------------------------------------------------------------------------------------- command line


def text(found: dict[str, Any]) -> str:
    """The figures as text for the terminal."""
    lines = [f"{found['list']}: {found['queries']:,} queries, digest {found['digest'][:16]}", ""]
    lines.append(f"{'source':<14}{'queries':>12}{'occurrences':>18}")
    for name, row in found["sources"].items():
        lines.append(f"{name or '-':<14}{row['queries']:>12,}{row['occurrences']:>18,}")
    lines.append("")
    lines.append("dead: " + ", ".join(f"{number:,} in {mode} mode" for mode, number in found["dead"].items()))
    if "against" in found:
        lines += _against_lines(found["against"])
    else:
        head = ", ".join(row["query"] for row in found["most_counted"])
        lines += [f"most counted: {head}", "", "next: --against TABLE shows its head and tail in a corpus"]
    return "\n".join(lines)


def _against_lines(row: dict[str, Any]) -> list[str]:
    lines = ["", f"{row['texts']:,} texts, {row['matched']:,} match ({row['matched_share']:.1%}), "]
    lines[-1] += f"{row['matches_a_text']:.2f} queries a text; {row['stop_queries']:,} queries are in more than 5%"
    lines += ["", f"{'source':<14}{'matches':>14}{'share':>9}{'queries hit':>14}"]
    for name, source in row["by_source"].items():
        lines.append(f"{name or '-':<14}{source['matches']:>14,}{source['share']:>9.1%}{source['queries_hit']:>14,}")
    most = max([1, *(part["queries"] for part in row["histogram"])])
    all_matches = max(1, row["matches"])
    lines += ["", f"{'texts':>16}{'queries':>12}{'of matches':>12}"]
    for part in row["histogram"]:
        span = f"{part['least']:,}" if part["least"] == part["most"] else f"{part['least']:,}-{part['most']:,}"
        bar = "#" * round(40 * part["queries"] / most)
        lines.append(f"{span:>16}{part['queries']:>12,}{part['matches'] / all_matches:>12.1%}  {bar}")
    lines += ["", "head: " + ", ".join(f"{part['query']} {part['texts']:,}" for part in row["head"])]
    lines += ["", f"{'cap':>10}{'expected pairs':>18}{'tail':>8}   of {row['rows']:,} texts"]
    biggest = max([1, *(part["expected_pairs"] for part in row["sizes"])])
    for part in row["sizes"]:
        bar = "#" * round(30 * part["expected_pairs"] / biggest)
        lines.append(f"{part['cap']:>10,}{part['expected_pairs']:>18,}{part['tail_share']:>8.1%}  {bar}")
    lines.append(f"a tail share of {row['tail_share']:.1%} gives the cap {row['cap_of_tail_share']:,}")
    return lines


def show(options: argparse.Namespace) -> dict[str, Any]:
    """The figures that the command line asks for.

    Raises:
        MissingInput: the list or a table is missing.
    """
    path = find_list(options.list)
    try:
        listed = load.load_queries(path)
    except load.QueryError as error:
        raise MissingInput(str(error)) from error
    found = describe(listed, path)
    if options.against:
        tables: list[str] = []
        for pattern in options.against:
            paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
            if not paths:
                raise MissingInput(f"--against {pattern}: no such file")
            tables += paths
        texts = (batch for table in tables for batch in read_texts(table, options.text_column))
        matches = match(listed.queries, texts, mode=options.match, case=options.case or default_case(options.match))
        found["against"] = against(listed, matches, share=options.tail_share, rows=options.rows)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Exit code: 0 done, 2 usage, 4 input missing, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(
        prog="python -m queries.show",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("list", nargs="?", metavar="DIR|FILE", help="folder of queries.build, or a list in any form (default: our own)")
    add("--against", nargs="+", default=[], metavar="TABLE", help="Parquet, CSV or TSV tables, or plain text files")
    add("--text-column", default="text", help="column with the texts (default: %(default)s)")
    add("--match", choices=MODES, default="wide", help="mode of matching (default: %(default)s)")
    add("--case", choices=("exact", "fold"), help="case of letters (default: fold, or exact with --match metaclip)")
    add("--rows", type=int, metavar="N", help="give caps and sizes for a corpus of N such texts")
    add("--tail-share", type=float, default=TAIL_SHARE, metavar="P", help="find its cap (default: %(default)s)")
    add("--json", action="store_true", help="print everything as JSON")
    add("--version", action="version", version=f"openwit {__version__}")
    try:
        check_flags(argv, parser)
        options = parser.parse_args(argv)
        found = show(options)
        print(json.dumps(found, indent=1, ensure_ascii=False) if options.json else text(found))
        return DONE
    except UsageError as error:
        return fail("queries.show", error, USAGE)
    except MissingInput as error:
        return fail("queries.show", error, MISSING)
    except KeyboardInterrupt:
        return fail("queries.show", "interrupted", INTERRUPTED)
    except BrokenPipeError:
        return DONE


if __name__ == "__main__":
    sys.exit(main())
