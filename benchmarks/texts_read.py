"""What became of 500 texts that one of us read and labelled: kept junk and false drops, of the first version and now.

    python -m benchmarks.texts_read [--show] [--data DATA]

`texts_read.tsv` has 300 texts that the first version kept and 200 that it dropped, drawn by seed, the dropped ones by
reason. The sources: pages of trafilatura, readability and newspaper4k, the shared archives, and captions of the test
data. The labels for an English set:

    useful     says something about an image, or may do so (a name, a thing)
    useless    says nothing: a widget, a rating, an identifier, a credit, a formula
    foreign    is in another language
    neutral    a name on a page in another language; it is not counted

`first_version` is "kept", or its reason. `page_language` and `page_share` are those of the other texts of the page. The
text is written as JSON; an address in one of them was changed. The verdict of now is that of `gather` and `match` with
the defaults: cleaning, the rule of languages, the list of the project. `--show` prints what is still wrong. `--data`
counts the distinct texts of the test data in DATA that each reason drops, too: of captions/web_alt_pages,
gcc_validation, amazon_in_products, bing_wallpaper, and of the archives.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import query_list
from pipeline.text.clean import TEXT_REASONS, clean_text
from pipeline.text.language import Choice, LanguageModel
from pipeline.text.matcher import Matcher
from queries import load

TEXTS = Path(__file__).parent / "texts_read.tsv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="also print the texts that are still wrong")
    parser.add_argument("--data", type=Path, help="folder of the test data")
    given = parser.parse_args()
    with TEXTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    now = verdicts(rows)
    before = [row["first_version"] for row in rows]
    print("| texts | first version | now |\n|---|---:|---:|")
    for what, label, kept in (
        ("useless texts that are kept", "useless", True),
        ("foreign texts that are kept", "foreign", True),
        ("useful texts that are dropped", "useful", False),
    ):
        mine = [number for number, row in enumerate(rows) if row["label"] == label]
        counts = [sum((found[number] == "kept") == kept for number in mine) for found in (before, now)]
        print(f"| {what} (of {len(mine)}) | {counts[0]} | {counts[1]} |")
    wrong = [(row["label"], found) for row, found in zip(rows, now, strict=True)]
    reasons = collections.Counter(found for label, found in wrong if label == "useful" and found != "kept")
    print("useful texts that are dropped now, by reason:", dict(reasons))
    for row, found in zip(rows, now, strict=True) if given.show else ():
        if row["label"] != "neutral" and (row["label"] == "useful") != (found == "kept"):
            print(f"{row['label']:<9}{found:<20}{row['text']}")
    if given.data:
        print_drops(given.data)


def print_drops(data: Path) -> None:
    """Prints the number of distinct texts that each reason drops, by source."""
    kinds = ("web_alt_pages", "gcc_validation", "amazon_in_products", "bing_wallpaper")
    paths = [data / f"captions/{kind}.parquet" for kind in kinds]
    texts = {path.stem: pc.unique(pq.read_table(path)["text"]).to_pylist() for path in paths if path.exists()}
    texts["archives"] = sorted({text for _, text in query_list.archive_rows(data)})
    empty = {"page_language": "", "page_share": ""}
    found = {
        kind: collections.Counter(verdicts([{**empty, "text": json.dumps(text)} for text in mine]))
        for kind, mine in texts.items()
    }
    print(f"\n| reason | {' | '.join(f'{kind} ({len(mine):,})' for kind, mine in texts.items())} |")
    print("|---|" + "---:|" * len(texts))
    for reason in ("kept", *filter(None, TEXT_REASONS), "language", "no_query"):
        print(f"| {reason} | " + " | ".join(f"{counts[reason]:,}" for counts in found.values()) + " |")


def verdicts(rows: list[dict[str, str]]) -> list[str]:
    """ "kept", or the reason of the drop, for each row."""
    texts, codes = clean_text(pa.array([json.loads(row["text"]) for row in rows], pa.large_string()))
    model = LanguageModel.load()
    code = pa.array([row["page_language"] or None for row in rows], pa.string())
    share = pa.array([float(row["page_share"]) if row["page_share"] else None for row in rows], pa.float32())
    wanted = Choice(model.labels, ("en",))(model.evidence(texts), code, share) >= 0
    matcher = Matcher.build(load.load_queries(load.default_list()).queries, case="fold")
    matched = np.asarray(pc.greater(pc.list_value_length(matcher.match(texts)), 0))
    found = []
    for number, code_of in enumerate(codes.tolist()):
        last = "kept" if matched[number] else "no_query"
        found.append(TEXT_REASONS[code_of] or ("language" if not wanted[number] else last))
    return found


if __name__ == "__main__":
    main()
