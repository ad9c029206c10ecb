"""A set in English, German and Chinese: which list each text meets, the caps, and equal digests in another order.

    python benchmarks/three_languages.py ../shared/data/captions

20,000 captions each of Multi30K in English, German, French and Czech, and the alts of a Chinese blog
(web_alt_pages.parquet, page_alt:houbb). The lists are that of the project, and the 3,000 most frequent German words and
pairs of Chinese letters of these texts. The set is built twice: with one worker, and with two workers and the inputs in
another order. The table has the language of the list for the texts of each source.
"""

from __future__ import annotations

import collections
import json
import re
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import build
from pipeline.dataset import exports
from queries import load

CAPTIONS, WORDS = 20_000, 3_000


def main(captions: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = write_inputs(captions, folder)
        inputs = [str(folder / "one.parquet"), str(folder / "two.parquet")]
        ways = ((inputs, "1"), (inputs[::-1], "2"))
        for number, (given, workers) in enumerate(ways):
            argv = ["--input", *given, "--output", str(folder / f"out{number}"), "--workers", workers]
            if build.main([*argv, "--queries", str(folder / "lists"), "--cap", "300", "--stages", "gather..balance"]):
                raise SystemExit("the build failed")
        infos = [json.loads((folder / f"out{number}/stages/balance/info.json").read_text()) for number in range(2)]
        print("equal digests:", infos[0]["digest"] == infos[1]["digest"], " caps:", infos[0]["caps"])
        exports.write_rows(str(folder / "out0"), "match", str(folder / "rows.parquet"))
        rows = pq.read_table(folder / "rows.parquet")
        pairs = zip(map(sources.get, rows["url"].to_pylist()), rows["language"].to_pylist(), strict=True)
        for (source, language), count in sorted(collections.Counter(pairs).items()):
            print(f"{source:<20}{language:<4}{count:>8,}")


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
    for code, source, word in (("de", "multi30k_de", r"\w{3,}"), ("zh", "houbb.github.io", "[\u4e00-\u9fff]{2}")):
        found = collections.Counter(match for text in texts[source] for match in re.findall(word, text.lower()))
        (folder / "lists" / f"{code}.txt").write_text("\n".join(word for word, _ in found.most_common(WORDS)), "utf-8")
    return dict(zip(urls, (source for source, _ in rows), strict=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
