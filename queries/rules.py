"""Chooses which counted words, pairs of words and titles become queries, and in what order.

The count of a word covers its upper and lower case. The list gets the lower-case form. It also gets the most frequent
form if that is another one ("london", "London"): `--case exact` of `pipeline.build` tells them apart.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.text.matcher import Matcher
from pipeline.text.normalize import normalize_array
from queries import segment
from queries.counts import COUNTED

SCRIPTS = (
    *("Latin", "Cyrillic", "Greek", "Armenian", "Georgian", "Hebrew", "Arabic", "Devanagari", "Bengali", "Gurmukhi"),
    *("Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar"),
    *("Khmer", "Ethiopic", "Hangul", "Han", "Hiragana", "Katakana"),
)
LEAST_OWN = 0.2  # of the occurrences of a word in other words and alone, in a script without blanks
LEAST_SHARE = 0.01  # of all occurrences; a script with a smaller share is foreign to the language
LONGEST = 256  # bytes of a query

# English words without content of their own: articles, pronouns, prepositions, conjunctions, auxiliary verbs, and
# adverbs that only connect. A pair with one of them ("such as", "according to") is no query.
FUNCTION_WORDS = frozenset(
    """
    a about above across after again against ago all almost along already also although always am among amongst an and
    another any anybody anyone anything anyway are around as at away back be became because become becomes been before
    behind being below beneath beside besides between beyond both but by can cannot could did do does doing done down
    due during each either else enough etc even ever every everybody everyone everything except far few for from
    further furthermore get gets getting got had has have having he hence her here hers herself him himself his how
    however i if in including indeed instead into is it its itself just least less let like likely made make makes
    making many may maybe me meanwhile might mine more moreover most much must my myself near nearly neither never
    nevertheless no nobody none nor not nothing now of off often on once one ones only onto or other others otherwise
    ought our ours ourselves out over own per perhaps quite rather really same shall she should since so some somebody
    someone something sometimes soon still such than that the their theirs them themselves then there thereby therefore
    these they this those though through throughout thus till to together too toward towards under unless until up upon
    us very via was we well were what whatever when where whereas wherever whether which while who whoever whole whom
    whose why will with within without would yes yet you your yours yourself yourselves according especially usually
    """.split()
)
# What normalising makes of "Bono's", "don't", "they'll", "o'clock".
APOSTROPHE_HALVES = frozenset(
    "s t d m ll re ve o don doesn didn isn wasn aren weren hasn haven hadn won wouldn couldn shouldn mustn ain".split()
)
COMMON_SHARE = 0.005  # of all occurrences; in other languages than English a word with more is taken as a function word

_NAMESPACES = (
    "talk|user|wikipedia|wp|project|file|image|media|mediawiki|template|help|category|portal|draft|module|book|special"
    "|timedtext|gadget|topic|education program"
)
NO_TITLE = (
    rf"(?is)^(?:(?:{_NAMESPACES})(?: talk)?:.*"
    r"|(?:lists?|index|outline|deaths|births|table) (?:of|in) .*"
    r"|.* (?:disc|film|bibli|vide)ograph(?:y|ies)(?: .*)?"
    r"|\d{1,4}s?(?: (?:bc|bce|ad|ce))?|\d{3,4}s? in .*"  # years, "2023 in film"
    r"|.*\.(?:jpe?g|png|gif|svg|webp|tiff?|pdf|djvu|og[gvx]|web[am]|mp[34]|php|html?|css|js|xml|json)"
    r"|undefined|null|nan|none|main page|search|\W*)$"
)
_NO_TITLE = re.compile(NO_TITLE)

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
        ("single_letter", lambda t: pc.match_substring_regex(t["query"], segment.NO_WORD)),
        ("foreign_script", _is_foreign),
    ):
        mask = unusable(words) if len(words) else pa.chunked_array([], pa.bool_())
        count = pc.sum(mask).as_py() or 0
        if count:
            dropped[reason] = count
            words = words.filter(pc.invert(mask))
    return words.combine_chunks(), dropped


def without_parts(words: pa.Table) -> tuple[pa.Table, int]:
    """The words but those that are mostly parts of other words, and the number of these. For scripts without blanks.

    There a query is found as a substring. So it should be a word of its own in LEAST_OWN of the places where it stands.
    """
    has = pc.match_substring_regex(words["query"], f"^(?:{segment.LETTER})+$")
    some = words.filter(has).combine_chunks()
    if not len(some):
        return words, 0
    queries, counts = some["query"].combine_chunks(), some["count"].to_numpy()
    found = Matcher.build(queries).match(queries.cast(pa.large_string()))
    everywhere = np.bincount(
        found.flatten().to_numpy(), np.repeat(counts, pc.list_value_length(found).to_numpy()), minlength=len(some)
    )
    parts = some["query"].filter(pa.array(counts < LEAST_OWN * everywhere))
    return words.filter(pc.invert(pc.is_in(words["query"], parts.combine_chunks()))), len(parts)


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


def common_words(words: pa.Table, language: str) -> frozenset[str]:
    """The lower-case words that cannot be part of a pair: function words, and halves of words with an apostrophe.

    For another language than English these are the words with more than COMMON_SHARE of all occurrences, and the single
    Latin letters, such as the French l and d.
    """
    if language in ("en", "simple"):
        return FUNCTION_WORDS | APOSTROPHE_HALVES
    lower, total, _ = by_case(words["query"].combine_chunks(), words["count"].to_numpy())
    common = lower.filter(pa.array(total > COMMON_SHARE * total.sum()))
    return frozenset(common.to_pylist()) | frozenset("abcdefghijklmnopqrstuvwxyz")


def is_title(title: str) -> bool:
    """False for files, lists, years, pages of other namespaces, and the names of errors ("Undefined")."""
    return _NO_TITLE.search(title) is None


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


def keys(queries: pa.StringArray, case: str = "exact") -> pa.StringArray:
    """The normalised form of each query, which `wide` matching looks for; folded with case="fold".

    Queries with equal keys match the same texts. The key of a query that matches nothing is "".
    """
    return normalize_array(queries, case)


def _truth(mask: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.asarray(mask.to_numpy(zero_copy_only=False) if isinstance(mask, pa.Array) else mask.to_numpy(), bool)
