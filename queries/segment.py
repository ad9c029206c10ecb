"""Finds the words of texts in scripts without blanks: Chinese, Japanese, Thai, Lao, Khmer, Burmese.

A list of such a language needs words. Without them, counts give letters and half-syllables, and pairs that cross words.
ICU's dictionaries find the words (Unicode Standard Annex 29, section 4.1; data of Unicode's ICU, package icu4py).
Texts whose words another program has set apart by blanks need no dictionary.

Only lists are segmented. `pipeline.text.matcher` finds a query of these scripts as a substring of a text.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.text.characters import LAYOUT, WITHOUT_BLANKS
from pipeline.text.normalize import normalize_array

SEGMENTERS = ("icu", "blanks")
# Wikipedia's codes of the languages that write no blanks between words. ICU has dictionaries for Chinese, Japanese,
# Thai, Lao, Khmer and Burmese. In Tibetan it finds the syllables, which a mark separates.
LANGUAGES = frozenset("zh yue wuu gan lzh zh-yue zh-classical ja th lo km my mnw shn bo dz".split())

# A letter of these scripts, and the marks on it, as RE2 knows them.
LETTER = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Tibetan}\p{Myanmar}\p{Khmer}]\pM*"
# A letter alone that is no word: a kana, or a consonant without its vowel. A single Han letter may be a word.
NO_WORD = r"^[\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Tibetan}\p{Myanmar}\p{Khmer}]$"

_BLOCKS = "".join(f"{chr(first)}-{chr(last)}" for first, last in WITHOUT_BLANKS)
_RUN = re.compile(f"[{_BLOCKS}\u0300-\u036f\u3099\u309a]+")
_MAYBE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Tibetan}\p{Myanmar}\p{Khmer}]"
_WORD = f"^(?:{LETTER} )+{LETTER}$"  # of a word in normalised form, with a blank between its letters
_ZERO_WIDTH_SPACE = "\u200b"  # the border of a word: Khmer and Thai pages use it


def is_needed(language: str) -> bool:
    """True for a language without blanks between words."""
    return language in LANGUAGES or language.split("-")[0] in ("zh", "ja", "th") and language != "zh-min-nan"


def is_installed() -> bool:
    """True if ICU is there."""
    return importlib.util.find_spec("icu4py") is not None


def version() -> str:
    """The version of ICU, which decides what its words are."""
    import icu4py

    return icu4py.icu_version


def tokens(
    stretches: pa.LargeStringArray, segmenter: str, language: str
) -> tuple[pa.LargeStringArray, npt.NDArray[np.int64]]:
    """The normalised tokens of stretches of text; a word in a script without blanks is one token.

    Args:
        stretches: texts without breaks.
        segmenter: "icu": its dictionaries find the words. "blanks": the texts have blanks between words.
        language: Wikipedia's code; ICU's dictionaries depend on the script alone.

    Returns:
        The tokens in order, and the number of the stretch of each.
    """
    pieces = pc.split_pattern(_apart(stretches, segmenter, language), " ")
    parents = pc.list_parent_indices(pieces).to_numpy()
    encoded = pieces.values.dictionary_encode()
    forms = normalize_array(encoded.dictionary)
    forms = pc.if_else(pc.match_substring_regex(forms, _WORD), pc.replace_substring(forms, " ", ""), forms)
    found = pc.split_pattern(forms, " ").take(encoded.indices)
    words = found.flatten()
    of_stretch = parents[pc.list_parent_indices(found).to_numpy()]
    is_token = pc.not_equal(words, "")
    return words.filter(is_token), of_stretch[np.asarray(is_token)]


def _apart(texts: pa.LargeStringArray, segmenter: str, language: str) -> pa.LargeStringArray:
    """The texts with blanks between the words of the scripts without blanks."""
    concerned = pc.match_substring_regex(texts, _MAYBE)
    found = [_words_apart(text, segmenter, language) for text in texts.filter(concerned).to_pylist()]
    return pc.replace_with_mask(texts, concerned, pa.array(found, texts.type))


def _words_apart(text: str, segmenter: str, language: str) -> str:
    text = LAYOUT.sub("", text.replace(_ZERO_WIDTH_SPACE, " "))
    if segmenter == "blanks":
        return _RUN.sub(lambda run: f" {run[0]} ", text)
    return _RUN.sub(lambda run: f" {' '.join(_icu_words(run[0], language))} ", text)


def _icu_words(run: str, language: str) -> Iterator[str]:
    from icu4py.breakers import WordBreaker

    return iter(WordBreaker(run, language))
