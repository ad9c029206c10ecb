"""The rule of languages on real pages: what it keeps of English pages, and how much of what it keeps is foreign.

    git clone https://github.com/adbar/trafilatura && git clone https://github.com/mozilla/readability
    python benchmarks/languages.py trafilatura/tests readability/test --model lid.176 [--model FILE.ftz] [--model A+B]

The pages are those with which two extractors are tested: some 1,100 pages, most of them German or English. A page is
English if its `lang` attribute says so, unless its name stands in WRONG: on these pages we read another language. Texts
of formulas are left out. Of the other pages 250 alts were labelled by hand (language_labels.tsv; at most two of a page,
drawn at random from the pages whose name has an odd CRC): foreign, or neutral (a name, English). The thresholds
of the rule were chosen on these collections, with the figures of both halves in view. The table has those of odd CRCs.

    page    the rule as for archives: the other texts of the page are known
    text    the rule as for tables

`A+B` is the mean of the scores of two models. The last column is the CPU time of a text, features and page included.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources import html
from pipeline.text import clean, language
from pipeline.text.fasttext_file import PER_LABEL
from pipeline.text.language import LanguageModel

LABELS = Path(__file__).parent / "language_labels.tsv"
# Pages that say "en" and are not, or that mix languages: parts of their names.
WRONG = (
    "befifty simplyscience 100noticias 24ora ahlen diario1 djz.de elenacional elfaro feuerwehrtaucher fischundfang "
    "groove helge.at hoy.com lexikon lokalo madame.lef mitvergn presse-ausb spontis ukbdnews ultimasnot vergleich "
    "volksblatt wildundhund wolfgangschm liberation-1 murdeltas springer.com-pro dw.com lenouvell kbs.co boxen1 "
    "archive.org.dzs"
).split()
_LANG = re.compile(rb"<html[^>]*\blang=[\"']?([A-Za-z]{2})")
Columns = tuple[pa.Array, npt.NDArray[np.int64], list[str], list[str]]  # texts, page, its language, its name


def read_pages(folders: list[str]) -> Columns:
    """The distinct clean alts of each page, with the number, the language and the name of the page."""
    found: dict[tuple[int, str], tuple[str, str]] = {}
    paths = [
        path for folder in folders for path in sorted(Path(folder).rglob("*.html")) if path.name != "expected.html"
    ]
    for number, path in enumerate(paths):
        body = path.read_bytes()
        said = _LANG.search(body[:5000])
        code = said[1].decode().lower() if said else ""
        for text in html.extract_pairs(body, f"http://page.example/{number}").texts:
            found.setdefault((number, text), (code, path.as_posix()))
    texts, reasons = clean.clean_text(pa.array([text for _, text in found], pa.string()))
    rows = np.flatnonzero((reasons == 0) & ~np.asarray(pc.match_substring_regex(texts, r"[\\{]")))
    page = np.array([number for number, _ in found])[rows]
    about = [*found.values()]
    return texts.take(pa.array(rows)), page, [about[row][0] for row in rows], [about[row][1] for row in rows]


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known of the texts of `read_pages`, on the pages whose name has an odd CRC.

    Attributes:
        english, other: of all texts: those of English pages, those of pages in another language.
        rows: the texts that were labelled by hand; foreign: their labels.
    """

    english: npt.NDArray[np.bool_]
    other: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]
    foreign: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, texts: pa.Array, code: list[str], name: list[str]) -> Truth:
        odd = np.array([zlib.crc32(key(path).encode()) % 2 == 1 for path in name])
        other = np.array([one not in ("en", "") for one in code])
        with LABELS.open(encoding="utf-8", newline="") as file:
            lines = [line.rstrip("\n").split("\t") for line in file][1:]
        paths = [key(path).partition("/")[2] for path in name]
        place = {pair: row for row, pair in enumerate(zip(paths, texts.to_pylist(), strict=True))}
        labels = [(place[path, text], is_foreign == "1") for path, is_foreign, text in lines if (path, text) in place]
        rows, foreign = (np.array([label[at] for label in labels]) for at in (0, 1))
        return cls(says_english(code, name) & odd, other & odd, rows.astype(np.int64), foreign.astype(bool))

    def figures(self, kept: npt.NDArray[np.bool_]) -> tuple[float, float, float, float]:
        """The shares that are kept of English, of foreign and of neutral texts, and the foreign share of kept texts."""
        labelled = kept[self.rows]
        estimate = self.other.sum() * (labelled & self.foreign).mean()
        share = estimate / (self.other.sum() * labelled.mean() + kept[self.english].sum())
        return kept[self.english].mean(), labelled[self.foreign].mean(), labelled[~self.foreign].mean(), share


def says_english(code: list[str], name: list[str]) -> npt.NDArray[np.bool_]:
    """True for the texts of pages that say "en" and are."""
    wrong = [any(part in path for part in WRONG) for path in name]
    return np.array([one == "en" and not bad for one, bad in zip(code, wrong, strict=True)])


def score(name: str, texts: pa.Array, page: npt.NDArray[np.int64], *, with_page: bool) -> tuple[np.ndarray, float]:
    """The score of each text (row) in each language of ALL (column), and the CPU time."""
    model = LanguageModel.load(name)
    given = pc.utf8_lower(texts) if "und" in model.labels else texts  # the former model knew lower case only
    start = time.process_time()
    evidence, code, share = model.with_pages(given, page)
    took = time.process_time() - start
    labels = {("no" if label == "nb" else label): number for number, label in enumerate(model.labels)}
    sizes = np.diff(np.asarray(evidence.offsets))
    entries = np.asarray(evidence.flatten())
    shares = np.zeros((len(texts), len(model.labels)))
    shares[np.repeat(np.arange(len(sizes)), sizes), entries // PER_LABEL] = entries % PER_LABEL / 1000
    scores = np.log10(shares + language.FLOOR)
    if with_page:
        of_page = np.zeros_like(shares)
        place = pc.index_in(code, value_set=pa.array(model.labels)).fill_null(0).to_numpy()
        of_page[np.arange(len(texts)), place] = share.fill_null(0).to_numpy(zero_copy_only=False)
        scores += language.PAGE_WEIGHT * np.log10(of_page + language.FLOOR)
    columns = np.full((len(texts), len(ALL)), np.log10(language.FLOOR) * (1 + language.PAGE_WEIGHT * with_page))
    for label, number in labels.items():
        if label in ALL:
            columns[:, ALL.index(label)] = scores[:, number]
    return columns, took


ALL: list[str] = []  # the languages of any of the models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--model", action="append", required=True)
    options = parser.parse_args()
    texts, page, code, name = read_pages(options.folders)
    known = {label for one in options.model for part in one.split("+") for label in LanguageModel.load(part).labels}
    ALL.extend(sorted({"no" if label == "nb" else label for label in known}))
    truth = Truth.of(texts, code, name)
    numbers = f"{truth.english.sum():,} alts of English pages, {truth.other.sum():,} of other pages"
    print(f"{numbers}; {len(truth.rows)} labelled, {truth.foreign.sum()} foreign")
    kinds = ("English kept", "foreign kept", "neutral kept", "foreign share")
    print(f"{'model':<22}{'rule':<6}{''.join(f'{kind:>14}' for kind in kinds)}{'us a text':>11}")
    for one in options.model:
        for with_page in (True, False):
            found = [score(part, texts, page, with_page=with_page) for part in one.split("+")]
            scores = np.mean([columns for columns, _ in found], axis=0)
            at = ALL.index("en")
            kept = np.delete(scores, at, 1).max(axis=1) - scores[:, at] <= language.MARGIN
            took = sum(seconds for _, seconds in found) / len(texts) * 1e6
            figures = truth.figures(kept)
            shown = "both" if "+" in one else one.rpartition("/")[2]
            rule = "page" if with_page else "text"
            print(f"{shown:<22}{rule:<6}{''.join(f'{figure:>14.1%}' for figure in figures)}{took:>11.1f}")


def key(path: str) -> str:
    """The name of a page as the labels have it: repository and path."""
    for repository, folder in (("adbar+trafilatura", "tests/"), ("mozilla+readability", "test/test-pages/")):
        if f"/{folder}" in f"/{path}":
            return f"{repository}/{folder}{path.rpartition(folder)[2]}"
    return path


if __name__ == "__main__":
    main()
