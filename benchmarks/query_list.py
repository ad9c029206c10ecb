"""What a query list covers: alt-texts, class names of evaluation sets, and words that no dictionary has.

    python -m benchmarks.query_list --data DATA [--list FILE] [--names FILE] [--dictionary FILE]

DATA is the folder of the test data. Rows whose files are missing are left out:

- `warc` and `captions/web_alt_pages.parquet`: alts of pages in real archives, and of news pages. A page (of news: the
  host of the images) is English if the language model (lid.176) says so of all its alts together, with a
  share of 0.5 or more. The texts are cleaned as gather does it. Each counts once.
- the rest of web_alt_pages: alts of sites, chosen in the same way. Nearly all are documentation of software.
- `captions/gcc_validation.parquet`: cleaned alts (Conceptual Captions).
- `clipeval/CLIP__prompts.md`: class names of CLIP's evaluation sets; `clipeval/MetaCLIP__labels.json`: those of CUB.

`--without SOURCE` leaves the queries of a source out, for instance `label`. `--names` is a second list that is added
for the class names (queries/data/benchmarks.parquet). `--dictionary` is a list of words, such as
/usr/share/dict/american-english-huge of Debian's wamerican-huge. A content word is a query that is not a function word
(`queries.rules`), a number or a single letter. Matching folds case. The figures are in docs/benchmarks/query_list.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine.ledger import Ledger
from pipeline.sources.warc import read_warc
from pipeline.text.clean import clean_text
from pipeline.text.language import LanguageModel
from pipeline.text.matcher import Matcher, forms_of
from queries import load
from queries.rules import FUNCTION_WORDS

NEWS = ("page_alt:goose3/goose3", "page_alt:mozilla/readability", "page_alt:AndyTheFactory/newspaper4k")
LEAST_ALTS, CONTEXT = 3, 4_000  # of a page; characters of its alts that the model reads
LEAST_ENGLISH = 0.5  # the share of English that the model gives
_LETTER, _LATIN = re.compile(r"[^\W\d_]"), re.compile(r"[A-Za-z\u00c0-\u024f]")
SETS = ("imagenet", "Food101", "SUN397", "CUB200", "Birdsnap", "OxfordPets", "Country211", "Flowers102")
SETS += ("DescribableTextures", "FGVCAircraft", "StanfordCars", "EuroSAT", "Caltech101", "UCF101")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--list", default=load.default_list(), help="query list (default: that of the project)")
    parser.add_argument("--without", help="source whose queries are left out")
    parser.add_argument("--names", help="list that is added for the class names")
    parser.add_argument("--dictionary", type=Path, nargs="+", help="lists of words")
    given = parser.parse_args()
    listed = load.load_queries(given.list).table
    if given.without:
        listed = listed.filter(pc.not_equal(listed["source"], given.without))
    print(f"{given.list}: {len(listed):,} queries, {Path(given.list).stat().st_size / 2**20:.2f} MiB\n")
    print("| texts | number | match | by a content word | with a query of several words |\n|---|---:|---:|---:|---:|")
    kinds = (
        ("English pages", english_pages(given.data)),
        ("documentation", english_sites(given.data)),
        ("Conceptual Captions", captions(given.data)),
    )
    for name, texts in kinds:
        if texts is not None:
            print(f"| {name} | {len(texts):,} | " + " | ".join(f"{x:.1%}" for x in coverage(listed, texts)) + " |")
    print("\n| set | class names | in the list" + (" | with --names" if given.names else "") + " |\n|---|---:|---:|")
    lists = [listed, *([pa.concat_tables([listed, load.load_queries(given.names).table])] if given.names else [])]
    for name, names in class_names(given.data).items():
        shares = " | ".join(f"{share(table, names):.1%}" for table in lists)
        print(f"| {name} | {len(names)} | {shares} |")
    if given.dictionary:
        words = single_words(listed, given.dictionary)
        print(f"\nsingle words: {words[0]:,}; in no dictionary: {len(words[1]) / words[0]:.1%} ({len(words[1]):,})")


def english_pages(data: Path) -> pa.Array | None:
    """The cleaned alts of English pages in archives, each once; None without the archives."""
    rows = archive_rows(data)
    table = _web_alts(data)
    if table is not None:
        news = table.filter(pc.is_in(table["source"], pa.array(NEWS))).to_pylist()
        rows += [(urlsplit(row["url"].strip()).hostname or "", row["text"]) for row in news]
    return english(rows) if rows else None


def archive_rows(data: Path) -> list[tuple[str, str]]:
    """(page, text) of the pairs in the archives of the test data, as found."""
    files = sorted(path for path in (data / "warc").rglob("*") if re.search(r"\.w?arc(\.gz)?$", path.name))
    rows: list[tuple[str, str]] = []
    for file in files:
        try:
            for batch in read_warc(str(file), ledger=Ledger()):
                rows += zip(batch["page_url"].to_pylist(), batch["text"].to_pylist(), strict=True)
        except (OSError, ValueError):  # some are damaged on purpose
            continue
    return rows


def english_sites(data: Path) -> pa.Array | None:
    """The cleaned alts of English sites, each once; None without the file."""
    table = _web_alts(data)
    if table is None:
        return None
    table = table.filter(pc.invert(pc.is_in(table["source"], pa.array(NEWS))))
    return english(list(zip(table["source"].to_pylist(), table["text"].to_pylist(), strict=True)))


def _web_alts(data: Path) -> pa.Table | None:
    path = data / "captions/web_alt_pages.parquet"
    return pq.read_table(path) if path.exists() else None


def english(rows: list[tuple[str, str]]) -> pa.Array:
    """The cleaned texts of the English groups among rows of (group, text). Texts in other scripts are left out."""
    cleaned, codes = clean_text(pa.array([text for _, text in rows]))
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for text, code, (group, _) in zip(cleaned.to_pylist(), codes.tolist(), rows, strict=True):
        if not code and 2 * len(_LATIN.findall(text)) >= len(_LETTER.findall(text)):
            groups[group][text] = None
    names = [name for name, texts in groups.items() if len(texts) >= LEAST_ALTS]
    whole = pa.array([" ".join(groups[name])[:CONTEXT] for name in names], pa.string())
    codes, shares = LanguageModel.load().predict(whole)
    is_english = pc.and_(pc.equal(codes, "en"), pc.greater_equal(shares, LEAST_ENGLISH)).to_pylist()
    chosen = [name for name, found in zip(names, is_english, strict=True) if found]
    return pa.array(sorted({text for name in chosen for text in groups[name]}), pa.string())


def captions(data: Path) -> pa.Array | None:
    """The texts of Conceptual Captions, each once; None without the file."""
    path = data / "captions/gcc_validation.parquet"
    return pc.unique(pq.read_table(path)["text"]) if path.exists() else None


def coverage(listed: pa.Table, texts: pa.Array) -> tuple[float, float, float]:
    """The shares of texts with a query, with a content word, and with a query of several words."""
    queries = listed["query"].combine_chunks()
    found = Matcher.build(queries, case="fold").match(texts.cast(pa.large_string()))
    forms = forms_of(queries, mode="wide", case="fold")
    is_content = ~np.asarray(pc.is_in(forms, pa.array(sorted(FUNCTION_WORDS), forms.type)))
    is_content &= ~np.asarray(pc.match_substring_regex(forms, r"^(\d+|\pL)$"))  # numbers and single letters
    is_several = np.asarray(pc.match_substring(forms, " "))
    text = np.repeat(np.arange(len(found)), pc.list_value_length(found).to_numpy())
    ids = found.flatten().to_numpy()
    return tuple(len(np.unique(text[mask[ids]])) / len(texts) for mask in (is_content | True, is_content, is_several))


def class_names(data: Path) -> dict[str, list[str]]:
    """Class names by evaluation set."""
    found: dict[str, list[str]] = {}
    prompts = data / "clipeval/CLIP__prompts.md"
    if prompts.exists():
        for section in prompts.read_text(encoding="utf-8").split("\n## ")[1:]:
            name, _, body = section.partition("\n")
            block = body.partition("classes = [")[2].partition("]")[0]
            found[name.strip()] = [first or second for first, second in re.findall(r"'([^']+)',|\"([^\"]+)\",", block)]
    labels = data / "clipeval/MetaCLIP__labels.json"
    if labels.exists():
        for name, names in json.loads(labels.read_text(encoding="utf-8")).items():
            found.setdefault(name, [entry if isinstance(entry, str) else entry[0] for entry in names])
    return {name: found[name] for name in SETS if found.get(name)}


def share(listed: pa.Table, names: list[str]) -> float:
    """The share of names that are queries."""
    forms = forms_of(listed["query"].combine_chunks(), mode="wide", case="fold")
    wanted = forms_of(pa.array(names), mode="wide", case="fold")
    return pc.mean(pc.is_in(wanted, forms.cast(wanted.type))).as_py()


def single_words(listed: pa.Table, dictionaries: list[Path]) -> tuple[int, list[str]]:
    """The number of single words, and those that no dictionary and not WordNet's part of the list has."""
    lines = (line for path in dictionaries for line in path.read_text(encoding="utf-8").splitlines())
    words = {line.strip().lower() for line in lines}
    rows = zip(listed["query"].to_pylist(), listed["source"].to_pylist(), strict=True)
    single = {query.lower(): source for query, source in rows if re.fullmatch(r"[^\W\d_]+(['’-][^\W\d_]+)*", query)}
    return len(single), [word for word, source in single.items() if source != "wordnet" and word not in words]


if __name__ == "__main__":
    main()
