"""Chooses which counted words become queries, and in what order.

The count of a word covers its upper and lower case. The list gets the lower-case form. It also gets the most frequent
form if that is another one ("london", "London"), because matching is case-sensitive by default.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.text.normalize import normalize_array
from queries.counts import COUNTED

SCRIPTS = (
    *("Latin", "Cyrillic", "Greek", "Armenian", "Georgian", "Hebrew", "Arabic", "Devanagari", "Bengali", "Gurmukhi"),
    *("Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar"),
    *("Khmer", "Ethiopic", "Hangul", "Han", "Hiragana", "Katakana"),
)
LEAST_SHARE = 0.01  # of all occurrences; a script with a smaller share is foreign to the language
LONGEST = 256  # bytes of a query

_SMASHED = r"0[0-9.,]*0"  # wordfreq writes 0 for every digit of a longer number
_ENDING = r"^(?P<word>.+)['’](?P<ending>.{1,2})$"  # "dog's", "don't": the first part is a word of its own


def usable_words(words: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """The words that can be queries, and the number of the others by reason."""
    dropped: dict[str, int] = {}
    for reason, unusable in (
        ("no_letter", lambda t: pc.invert(pc.match_substring_regex(t["query"], r"\pL"))),
        ("smashed_number", lambda t: pc.match_substring_regex(t["query"], _SMASHED)),
        ("address", lambda t: pc.match_substring_regex(t["query"], r"\w\.\w|^\.|[/@_]")),
        ("too_long", lambda t: pc.greater(pc.binary_length(t["query"]), LONGEST)),
        ("word_and_ending", _is_word_and_ending),
        ("foreign_script", _is_foreign),
    ):
        mask = unusable(words) if len(words) else pa.chunked_array([], pa.bool_())
        count = pc.sum(mask).as_py() or 0
        if count:
            dropped[reason] = count
            words = words.filter(pc.invert(mask))
    return words.combine_chunks(), dropped


def _is_word_and_ending(words: pa.Table) -> pa.ChunkedArray:
    word = pc.struct_field(pc.extract_regex(words["query"], _ENDING), "word")
    return pc.and_(word.is_valid(), pc.is_in(word, words["query"].combine_chunks()))


def _is_foreign(words: pa.Table) -> pa.Array:
    """True for words with a letter of a script that makes up less than LEAST_SHARE of all occurrences."""
    counts = words["count"].to_numpy()
    own, foreign = [], np.zeros(len(words), bool)
    has = {script: _truth(pc.match_substring_regex(words["query"], rf"\p{{{script}}}")) for script in SCRIPTS}
    for script, mask in has.items():
        if counts[mask].sum() >= LEAST_SHARE * counts.sum():
            own.append(script)
        else:
            foreign |= mask
    return pa.array(foreign)


def word_queries(words: pa.Table, *, min_count: int) -> pa.Table:
    """Words with at least `min_count` occurrences in all their cases together, the most frequent first."""
    lower, total, dominant = by_case(words["query"].combine_chunks(), words["count"].to_numpy())
    kept = total >= min_count
    forms = pa.table([words["query"], words["count"]], schema=COUNTED).take(pa.array(dominant[kept]))
    all_cases = pa.table([lower.filter(pa.array(kept)), pa.array(total[kept])], schema=COUNTED)
    other = forms.filter(pc.not_equal(forms["query"], all_cases["query"]))
    return ranked(pa.concat_tables([all_cases, other.filter(pc.greater_equal(other["count"], min_count))]))


def frequent(words: pa.Table, *, min_count: int) -> pa.StringArray:
    """The lower-case words with at least `min_count` occurrences in all their cases together."""
    lower, total, _ = by_case(words["query"].combine_chunks(), words["count"].to_numpy())
    return lower.filter(pa.array(total >= min_count))


def by_case(
    forms: pa.StringArray, counts: npt.NDArray[np.int64]
) -> tuple[pa.StringArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each lower-case form once.

    Returns:
        The lower-case forms, their totals, and the row of the most frequent form of each. Of equally frequent forms the
        first by its bytes is taken.
    """
    encoded = pc.utf8_lower(forms).dictionary_encode()
    group = encoded.indices.to_numpy().astype(np.int64)
    total = np.zeros(len(encoded.dictionary), np.int64)
    np.add.at(total, group, counts)
    rank = np.empty(len(forms), np.int64)
    rank[pc.sort_indices(forms).to_numpy()] = np.arange(len(forms))
    order = np.lexsort((rank, -counts, group))
    first = np.ones(len(order), bool)
    first[1:] = group[order][1:] != group[order][:-1]
    return encoded.dictionary, total, order[first]


def ranked(table: pa.Table) -> pa.Table:
    """The rows by count, the largest first. Rows with equal counts are sorted by the bytes of the query."""
    return table.sort_by([("count", "descending"), ("query", "ascending")]).combine_chunks()


def keys(queries: pa.StringArray) -> pa.StringArray:
    """The normalised form of each query, which `wide` matching looks for.

    Queries with equal keys match the same texts. The key of a query that matches nothing is "".
    """
    return normalize_array(queries)


def _truth(mask: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.asarray(mask.to_numpy(zero_copy_only=False) if isinstance(mask, pa.Array) else mask.to_numpy(), bool)
