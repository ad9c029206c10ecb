"""What the scripts of a text say about its language, without a model.

Thai, Hangul, Greek and others are the script of one language. A text with kana is Japanese. A text in Han without kana
is Chinese, or Japanese on a Japanese page. Cyrillic, Arabic and Devanagari leave several languages: there the model
decides among them. A text in Latin letters is not Greek or Russian. The script of most letters is that of the text; a
letter of Han or kana counts as several, since it stands for a syllable.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import jit
from pipeline.text.characters import matched_by
from pipeline.text.fasttext_file import CERTAIN, EVIDENCE, PER_LABEL

# Unicode scripts beside Latin, and the languages that are written in them, the most frequent one first (CLDR 46,
# supplementalData/languageData). Names as RE2 knows them.
SCRIPTS = {
    "Cyrillic": "ru uk bg sr mk be kk ky mn tg tt ba cv ce os sah kv myv mhr mrj xal av krc lez tyv bxr rue sh uz az",
    "Arabic": "ar fa ur ps ug ku ckb sd pnb arz azb mzn ks dv",
    "Devanagari": "hi mr ne sa bh mai gom new dty",
    "Bengali": "bn as bpy",
    "Hangul": "ko",
    "Thai": "th",
    "Hebrew": "he yi",
    "Greek": "el",
    "Armenian": "hy hyw",
    "Georgian": "ka xmf",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Sinhala": "si",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Oriya": "or",
    "Ethiopic": "am ti",
    "Khmer": "km",
    "Lao": "lo",
    "Myanmar": "my mnw",
    "Tibetan": "bo dz",
    "Thaana": "dv",
}
ALSO_LATIN = frozenset(
    "az ku sh sr uz bs tt ce".split()
)  # of the languages above, those that are often in Latin letters
HAN, KANA = r"[\p{Han}]", r"[\p{Hiragana}\p{Katakana}ー]"
CHINESE, JAPANESE = "zh", "ja"
_LATIN, _OTHER_LETTERS = r"\p{Latin}", r"[^\P{L}\p{Latin}]"
_SYLLABLES = "|".join(rf"[^\P{{L}}\P{{{name}}}]" for name in ("Han", "Hiragana", "Katakana"))
# Latin letters that say as much as a letter of Han or kana. English titles of Bing's picture of the day have 2.9 times
# as many letters as Chinese ones, both without the credits (`bing_wallpaper` of the test data).
SYLLABLE = 3
ROW_COST = 5  # a text without the kernel costs as much as so many rows of another kernel


class Scripts:
    """The rules for the labels of a model."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._number = {label: number for number, label in enumerate(labels)}
        never = {code for codes in SCRIPTS.values() for code in codes.split()} | {CHINESE, JAPANESE, "yue", "wuu"}
        self._never_latin = np.array([label in never - ALSO_LATIN for label in labels])
        self._of_script = [
            (rf"\p{{{name}}}", [self._number[code] for code in codes.split() if code in self._number])
            for name, codes in SCRIPTS.items()
        ]

    def correct(self, texts: pa.Array, evidence: pa.ListArray, page: pa.StringArray | None = None) -> pa.ListArray:
        """The evidence, with what the scripts of the texts say about it.

        Args:
            texts: as found.
            evidence: of the model.
            page: the language of each text's page, nulls where it is not known; None: of none.
        """
        kernel = jit.kernel("pipeline.text.scripts_kernel", len(texts) * ROW_COST)
        if not kernel:
            return self._correct(texts, evidence, page)
        found = kernel.look(texts, _characters(), SYLLABLE)
        unsure = pa.array(np.flatnonzero(found == kernel.UNSURE))
        pages = None if page is None else page.take(unsure)
        unsure = self._correct(texts.take(unsure), evidence.take(unsure), pages)
        if page is not None and page.null_count < len(page):
            found[(found == kernel.HAN) & np.asarray(pc.equal(page, JAPANESE).fill_null(False))] = kernel.KANA
        return kernel.merge(evidence, found, self._rule, unsure)

    @functools.cached_property
    def _rule(self) -> Any:
        """What the kernel knows of each script."""
        from pipeline.text import scripts_kernel as kernel

        labels: list[list[int]] = [[] for _ in range(kernel.HAN + 1)]
        labels[1 : len(self._of_script) + 1] = [numbers for _, numbers in self._of_script]
        for script, code in ((kernel.KANA, JAPANESE), (kernel.HAN, CHINESE)):
            labels[script] = [self._number[code]] if code in self._number else []
        starts = np.cumsum([0, *map(len, labels)])
        return kernel.Rule(starts, np.array([0, *sum(labels, [])][1:], np.int64), self._never_latin)

    def _correct(self, texts: pa.Array, evidence: pa.ListArray, page: pa.StringArray | None) -> pa.ListArray:
        """`correct` without the kernel."""
        other = np.flatnonzero(~np.asarray(pc.string_is_ascii(texts)))
        other = other[self._mostly(texts.take(pa.array(other)))]
        entries = pa.array(self._of_other_scripts(texts, evidence, page, other), EVIDENCE)
        return _replaced(self._latin(evidence), other, entries)

    def _of_other_scripts(
        self, texts: pa.Array, evidence: pa.ListArray, page: pa.StringArray | None, other: np.ndarray
    ) -> list[list[int]]:
        """The entries of the rows `other`."""
        if not len(other):
            return []
        some = texts.take(pa.array(other))
        counts = np.stack([_count(some, pattern) for pattern, _ in self._of_script])
        kana, han = _count(some, KANA), _count(some, HAN)
        most = counts.argmax(axis=0)
        pages = page.take(pa.array(other)).to_pylist() if page is not None else [None] * len(other)
        entries = evidence.take(pa.array(other)).to_pylist()
        for row, found in enumerate(entries):
            if max(kana[row], han[row]) >= counts[most[row], row]:
                japanese = kana[row] > 0 or pages[row] == JAPANESE
                numbers = [self._number.get(JAPANESE if japanese else CHINESE, -1)]
            else:
                numbers = self._of_script[most[row]][1]
            entries[row] = _among(numbers, found)
        return entries

    def _latin(self, evidence: pa.ListArray) -> pa.ListArray:
        """The evidence without the languages that are never written in Latin letters."""
        entries = np.asarray(evidence.flatten())
        stays = ~self._never_latin[entries // PER_LABEL]
        before = np.concatenate([[0], np.cumsum(stays)])
        offsets = np.asarray(evidence.offsets)
        offsets = before[offsets - offsets[0]].astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(entries[stays]))

    @staticmethod
    def _mostly(texts: pa.Array) -> np.ndarray:
        """True where most letters are not Latin."""
        others = _count(texts, _OTHER_LETTERS) + (SYLLABLE - 1) * _count(texts, _SYLLABLES)
        return (others > 0) & (others >= _count(texts, _LATIN))


def _among(numbers: list[int], found: list[int]) -> list[int]:
    """The entries of the given labels. Without one, the first label is certain; without a label nothing is known."""
    kept = [entry for entry in found if entry // PER_LABEL in numbers]
    if len(numbers) > 1 and kept:
        return kept
    return [numbers[0] * PER_LABEL + CERTAIN] if numbers and numbers[0] >= 0 else []


def _replaced(evidence: pa.ListArray, rows: np.ndarray, entries: pa.ListArray) -> pa.ListArray:
    """The evidence with other entries in some rows."""
    places = np.arange(len(evidence))
    places[rows] = len(evidence) + np.arange(len(rows))
    return pa.concat_arrays([evidence, entries]).take(pa.array(places))


@functools.lru_cache(maxsize=1)
def _characters() -> npt.NDArray[np.uint8]:
    """What the kernel knows of each character of the Basic Multilingual Plane, as RE2 sees it."""
    from pipeline.text import scripts_kernel as kernel

    characters = np.zeros(0x10000, np.uint8)
    known: list[tuple[Any, str]] = [(number, rf"\p{{{name}}}") for number, name in enumerate(SCRIPTS, 1)]
    known += [(kernel.KANA, KANA), (kernel.HAN, HAN), (kernel.LATIN, _LATIN)]
    known += [(kernel.OTHER, _OTHER_LETTERS), (kernel.SYLLABLE_LETTER, _SYLLABLES)]
    for bits, pattern in known:
        characters[matched_by(pattern)] |= np.uint8(bits)
    return characters


def _count(texts: pa.Array, pattern: str) -> np.ndarray:
    return np.asarray(pc.count_substring_regex(texts, pattern)).astype(np.int64)
