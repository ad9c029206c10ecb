"""Counts the words and pairs of words of texts, whole columns at a time.

Profile `wit` splits texts into tokens with the matcher's normaliser (`wide`). `segment` finds the words of scripts
without blanks. Profile `metaclip1` splits texts as wikipedia-word-frequency does, because MetaCLIP uses its counts.
Arrow's dictionary numbers the tokens. A pair is one number: first * K + second, where K is the size of the vocabulary.
Memory grows with the vocabulary, not with the text.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.text.normalize import normalize_array
from queries import segment

WORDS = pa.schema(
    [
        pa.field("word", pa.string(), False),  # as written
        pa.field("count", pa.int64(), False),  # occurrences of this form
        pa.field("articles", pa.int64(), False),  # with any form; only the row of the lower-case form has them
    ]
)
PAIRS = pa.schema([pa.field("pair", pa.int64(), False), pa.field("count", pa.int64(), False)])

LONGEST_WORD = 64  # bytes
_MOST_PENDING = 1 << 22  # rows that are held before they are added up

# A pair does not cross a break. Brackets and quotes are breaks, hyphens are not.
_BREAK = r"[.!?;:,()\[\]\"“”„«»…。、，！？；：（）「」]+(?:\s|$)|\s[(\[\"“„«]|[\n。、，！？；：（）「」]"
_NOT_OF_A_WORD = r"[^\pL\pN_\-']"
_LISTED = r"^[\pL\pN_](?:.*[\pL\pN_])?$"  # wikipedia-word-frequency: begins and ends with a letter, has no digit
_LETTER = r"\pL"


class Tokens(NamedTuple):
    """The tokens of some texts. `ids` are positions in `words`; -1 marks a token that is no word."""

    words: pa.StringArray
    ids: npt.NDArray[np.int64]
    text: npt.NDArray[np.int64]  # of each token: the number of its text
    segment: npt.NDArray[np.int64]  # of each token: the number of its stretch without a break

    def pairs(self) -> npt.NDArray[np.bool_]:
        """True where a token and the next one are a pair: both are words, and no break lies between them."""
        words = self.ids >= 0
        return words[:-1] & words[1:] & (self.segment[:-1] == self.segment[1:])


def tokenize(texts: pa.LargeStringArray, profile: str = "wit", *, segmenter: str = "", language: str = "") -> Tokens:
    """The tokens of some texts, in order.

    Args:
        texts: any.
        profile: wit or metaclip1.
        segmenter: what finds the words in scripts without blanks (`segment.SEGMENTERS`); "": each letter is a token.
        language: of the texts, for the segmenter.
    """
    rows = pc.split_pattern_regex(texts, _BREAK if profile == "wit" else r"\n")
    segments, text_of_segment = rows.values, pc.list_parent_indices(rows).to_numpy()
    if segmenter:
        found, segment_of = segment.tokens(segments, segmenter, language)
    else:
        if profile == "wit":
            cells = pc.split_pattern(normalize_array(segments), " ")
        else:
            straight = pc.replace_substring(pc.replace_substring(segments, "–", "-"), "’", "'")
            cells = pc.split_pattern_regex(pc.utf8_lower(straight), _NOT_OF_A_WORD)
        found, segment_of = cells.values, pc.list_parent_indices(cells).to_numpy()
    encoded = found.dictionary_encode()
    words = encoded.dictionary.cast(pa.string())
    number = _numbers(_is_word(words, profile))
    ids = number[encoded.indices.to_numpy()]
    if profile != "wit":  # metaclip1: a token that is no word does not separate its neighbours
        here = ids >= 0
        ids, segment_of = ids[here], segment_of[here]
    return Tokens(words.filter(pa.array(number >= 0)), ids, text_of_segment[segment_of], segment_of)


def _is_word(words: pa.StringArray, profile: str) -> pa.BooleanArray:
    fits = pc.less_equal(pc.binary_length(words), LONGEST_WORD)
    if profile == "wit":
        return pc.and_(fits, pc.match_substring_regex(words, _LETTER))
    digits = pc.match_substring_regex(words, r"\p{Nd}")
    return pc.and_(fits, pc.and_(pc.match_substring_regex(words, _LISTED), pc.invert(digits)))


def _numbers(mask: pa.BooleanArray) -> npt.NDArray[np.int64]:
    """0, 1, 2 ... where the mask is true, -1 where it is not."""
    chosen = np.asarray(mask)
    return np.where(chosen, np.cumsum(chosen) - 1, -1)


def count_words(tokens: Tokens) -> pa.Table:
    """Counts the words of some texts. Returns WORDS in no order."""
    words = tokens.words
    here = tokens.ids >= 0
    ids = tokens.ids[here]
    counts = np.bincount(ids, minlength=len(words))
    lower = pc.utf8_lower(words).dictionary_encode()
    size = max(1, len(lower.dictionary))
    of_article = tokens.text[here] * size + lower.indices.to_numpy().astype(np.int64)[ids]
    once = pa.array(of_article).unique().to_numpy()
    articles = np.bincount(once % size, minlength=len(lower.dictionary))
    forms = [words, lower.dictionary]
    nothing = [np.zeros(len(form), np.int64) for form in forms]
    return pa.table(
        [
            pa.concat_arrays(forms),
            np.concatenate([counts, nothing[1]]),
            np.concatenate([nothing[0], articles]),
        ],
        schema=WORDS,
    )


def count_pairs(tokens: Tokens, vocabulary: pa.StringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts the pairs of the vocabulary's words. Returns (pairs, counts), sorted by pair.

    A pair is coded as first * len(vocabulary) + second.
    """
    found = pc.fill_null(pc.index_in(tokens.words, vocabulary), -1).to_numpy().astype(np.int64)
    known = np.append(found, -1)[tokens.ids]  # an id of -1 (no word) reads the appended -1
    both = tokens.pairs() & (known[:-1] >= 0) & (known[1:] >= 0)
    return np.unique(known[:-1][both] * len(vocabulary) + known[1:][both], return_counts=True)


class WordCounter:
    """Adds up tables of WORDS. It holds each word once, and up to _MOST_PENDING rows more."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._pending = 0

    def add(self, table: pa.Table) -> None:
        """Adds a table of WORDS."""
        self._tables.append(table)
        self._pending += len(table)
        if self._pending > _MOST_PENDING:
            self._tables = [add_words(self._tables)]
            self._pending = len(self._tables[0]) // 2  # repeated sums take at most half of the time

    def table(self) -> pa.Table:
        """The sum, sorted by the bytes of the words."""
        return add_words(self._tables).sort_by("word")


def add_words(tables: list[pa.Table]) -> pa.Table:
    """The sum of tables of WORDS, in no order."""
    together = pa.concat_tables([WORDS.empty_table(), *tables])
    summed = together.group_by("word", use_threads=False).aggregate([("count", "sum"), ("articles", "sum")])
    return summed.rename_columns(WORDS.names).cast(WORDS)


class PairCounter:
    """Adds up pairs. It holds each pair once, and up to _MOST_PENDING rows more."""

    def __init__(self) -> None:
        self._pairs: list[npt.NDArray[np.int64]] = []
        self._counts: list[npt.NDArray[np.int64]] = []
        self._pending = 0

    def add(self, pairs: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        """Adds pairs and their counts."""
        self._pairs.append(pairs)
        self._counts.append(counts)
        self._pending += len(pairs)
        if self._pending > _MOST_PENDING:
            pairs, counts = self.sums()
            self._pairs, self._counts, self._pending = [pairs], [counts], len(pairs) // 2

    @property
    def pending(self) -> int:
        """The number of rows that wait to be added up."""
        return self._pending

    def sums(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Returns (pairs, counts), sorted by pair."""
        if not self._pairs:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return add_pairs(np.concatenate(self._pairs), np.concatenate(self._counts))


def add_pairs(
    pairs: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each pair once, sorted, with the sum of its counts."""
    order = np.argsort(pairs, kind="stable")
    pairs, counts = pairs[order], counts[order]
    starts = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1])) if len(pairs) else np.zeros(0, np.int64)
    return pairs[starts], np.add.reduceat(counts, starts) if len(starts) else counts
