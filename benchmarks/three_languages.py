"""A set in English, German and Chinese: which list each text meets, exact caps, and equal digests in another order.

    python benchmarks/three_languages.py ../shared/data/captions

20,000 captions each of Multi30K in English, German, French and Czech, and the alts of a Chinese blog
(web_alt_pages.parquet, page_alt:houbb). The lists are that of the project, and two that `queries.build` makes from the
German captions and from the alts of the blog (it needs icu4py). The set is built twice: with one worker, and with two
workers and the inputs in another order. A cap is exact if each query picks min(cap, its pairs after dedup). The table
has the language of the list for the texts of each source.
"""

from __future__ import annotations

import collections
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import build
from pipeline.dataset import exports
from queries import load
from queries.build import build as build_list
from queries.options import Options as ListOptions

CAPTIONS, CAP = 20_000, 300
LISTS = (("de", "multi30k_de", 20), ("zh", "houbb.github.io", 3))  # language, source, least count of a word


def main(captions: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = write_inputs(captions, folder)
        inputs = [str(folder / "one.parquet"), str(folder / "two.parquet")]
        ways = ((inputs, "1"), (inputs[::-1], "2"))
        for number, (given, workers) in enumerate(ways):
            argv = ["--input", *given, "--output", str(folder / f"out{number}"), "--workers", workers]
            argv += ["--queries", str(folder / "lists"), "--cap", str(CAP), "--stages", "gather..balance"]
            if build.main(argv):
                raise SystemExit("the build failed")
        infos = [json.loads((folder / f"out{number}/stages/balance/info.json").read_text()) for number in range(2)]
        print("equal digests:", infos[0]["digest"] == infos[1]["digest"], " caps:", infos[0]["caps"])
        print("queries whose cap is not exact:", inexact(folder, infos[0]["caps"]))
        rows = rows_of(folder, "match")
        pairs = zip(map(sources.get, rows["url"].to_pylist()), rows["language"].to_pylist(), strict=True)
        for (source, language), count in sorted(collections.Counter(pairs).items()):
            print(f"{source:<20}{language:<4}{count:>8,}")


def rows_of(folder: Path, stage: str) -> pa.Table:
    """The rows that leave a stage of the first build."""
    path = folder / f"{stage}.parquet"
    exports.write_rows(str(folder / "out0"), stage, str(path))
    return pq.read_table(path)


def inexact(folder: Path, caps: dict[str, int]) -> str:
    """How many queries picked another number of pairs than the cap allows, of those with more pairs than the cap."""
    listed = pq.read_table(folder / "out0/queries.parquet")
    given, picked = (
        np.bincount(pc.list_flatten(rows_of(folder, stage)[column]).to_numpy(), minlength=len(listed))
        for stage, column in (("dedup", "query_ids"), ("balance", "kept_by"))
    )
    cap = np.array([caps[language] for language in listed["language"].to_pylist()])
    wrong = int(np.count_nonzero(picked != np.minimum(cap, given)))
    return f"{wrong} of {np.count_nonzero(given):,} in use ({np.count_nonzero(given > cap):,} over the cap)"


def write_inputs(captions: Path, folder: Path) -> dict[str, str]:
    """Writes two tables and three lists; returns the source of each URL."""
    texts: dict[str, list[str]] = collections.defaultdict(list)
    for name in ("multi30k_raw.parquet", "web_alt_pages.parquet"):
        table = pq.read_table(captions / name)
        for source, text in zip(table["source"].to_pylist(), table["text"].to_pylist(), strict=True):
            if ("multi30k" in source and len(texts[source]) < CAPTIONS) or source.endswith("houbb/houbb.github.io"):
                texts[source.rpartition("/")[2]].append(text)
    rows = [(source, text) for source, some in texts.items() for text in some]
    urls = [f"https://h{number % 97}.example/{number}.jpg" for number in range(len(rows))]
    table = pa.table({"url": urls, "text": [text for _, text in rows]})
    pq.write_table(table.slice(0, len(rows) // 2), folder / "two.parquet")
    pq.write_table(table.slice(len(rows) // 2), folder / "one.parquet")
    (folder / "lists").mkdir()
    pq.write_table(pq.read_table(load.default_list()), folder / "lists" / "en.parquet")
    for code, source, least in LISTS:
        lines = "\n".join(re.sub(r"\s+", " ", text) for text in texts[source])
        (folder / f"{code}.txt").write_text(lines, "utf-8")
        options = ListOptions(
            output=str(folder / code), language=code, text=(str(folder / f"{code}.txt"),), min_count=least
        )
        made = build_list(options, quiet=True)
        print(f"list {code}: {len(made):,} queries,", made.info["counts"])
        pq.write_table(made.open().table, folder / "lists" / f"{code}.parquet")
    return dict(zip(urls, (source for source, _ in rows), strict=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
