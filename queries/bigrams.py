"""Pairs of words that occur together more often than by chance, scored by PMI or NPMI.

PMI = log2(n_xy N / (n_x n_y)), NPMI = PMI / -log2(n_xy / N). The count of a word covers its upper and lower case.
PMI prefers rare pairs, NPMI does not. MetaCLIP keeps all pairs with PMI >= 30, and nearly all of these occur once. A
lower limit for the count and the order of NPMI give "Los Angeles", "Sri Lanka", "hip hop".
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from queries import segment
from queries.counts import COUNTED
from queries.ngrams import add_pairs

LEAST_PMI = 5.0  # of profile wit
METACLIP_PMI = 30.0

SCORED = pa.schema(
    [
        pa.field("query", pa.string(), False),
        pa.field("count", pa.int64(), False),
        pa.field("score", pa.float64(), False),
        pa.field("pair", pa.string(), False),  # in lower case, the same for all forms of a pair
    ]
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words whose pairs are counted. `forms` is sorted. A pair is coded by the places of its words in `forms`."""

    forms: pa.StringArray
    lower: npt.NDArray[np.int64]  # of each form: the position of its lower-case word in `names`
    names: pa.StringArray  # the lower-case words
    total: npt.NDArray[np.int64]  # occurrences of each lower-case word, all forms together
    occurrences: int  # N: of all words, also of those outside the vocabulary

    def to_table(self) -> pa.Table:
        """The vocabulary as a table, which `from_table` reads."""
        counts = self.total[self.lower]
        table = pa.table({"form": self.forms, "count": counts})
        return table.replace_schema_metadata({"occurrences": str(self.occurrences)})

    @classmethod
    def from_table(cls, table: pa.Table) -> Vocabulary:
        """The vocabulary of a table that `to_table` made."""
        forms = table["form"].combine_chunks()
        encoded = pc.utf8_lower(forms).dictionary_encode()
        lower = encoded.indices.to_numpy().astype(np.int64)
        total = np.zeros(len(encoded.dictionary), np.int64)
        total[lower] = table["count"].to_numpy()
        return cls(forms, lower, encoded.dictionary, total, int(table.schema.metadata[b"occurrences"]))

    @classmethod
    def of(
        cls,
        words: pa.Table,
        *,
        min_count: int,
        among: pa.StringArray | None = None,
        without: frozenset[str] = frozenset(),
    ) -> Vocabulary:
        """The words that are frequent enough.

        Args:
            words: COUNTED, a row for each form.
            min_count: the least number of occurrences in all forms together.
            among: the lower-case words that are allowed; None allows all.
            without: lower-case words that are not allowed.
        """
        words = words.filter(pc.greater(words["count"], 0)).sort_by("query").combine_chunks()
        forms, counts = words["query"].combine_chunks(), words["count"].to_numpy()
        encoded = pc.utf8_lower(forms).dictionary_encode()
        lower = encoded.indices.to_numpy().astype(np.int64)
        total = np.zeros(len(encoded.dictionary), np.int64)
        np.add.at(total, lower, counts)
        wanted = total >= min_count
        if among is not None:
            wanted &= np.asarray(pc.is_in(encoded.dictionary, among))
        if without:
            wanted &= ~np.asarray(pc.is_in(encoded.dictionary, pa.array(sorted(without))))
        table = pa.table({"form": forms, "count": total[lower]}).filter(pa.array(wanted[lower]))
        return cls.from_table(table.replace_schema_metadata({"occurrences": str(int(counts.sum()))}))

    def lower_pair(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The code of the lower-case pair for each pair of forms."""
        first, second = np.divmod(pairs, max(1, len(self.forms)))
        return self.lower[first] * len(self.names) + self.lower[second]

    def texts(self, pairs: npt.NDArray[np.int64]) -> pa.StringArray:
        """The pairs as text ("new york"). Scripts without blanks between words get none here."""
        first, second = (self.forms.take(pa.array(place)) for place in np.divmod(pairs, max(1, len(self.forms))))
        ends = pc.match_substring_regex(first, segment.LETTER + "$")
        close = pc.and_(ends, pc.match_substring_regex(second, "^" + segment.LETTER))
        return pc.binary_join_element_wise(first, second, pc.if_else(close, "", " "))


def code(table: pa.Table, vocabulary: Vocabulary) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Codes ready counts of pairs (COUNTED, "new york"). Returns (pairs, counts).

    A word that the vocabulary has in lower case only is taken in lower case. A pair with an unknown word is left out.
    """
    cells = pc.split_pattern(table["query"].combine_chunks(), " ", max_splits=1)
    numbers = pc.index_in(cells.values, vocabulary.forms)
    numbers = pc.coalesce(numbers, pc.index_in(pc.utf8_lower(cells.values), vocabulary.forms))
    known = pc.fill_null(numbers, -1).to_numpy().astype(np.int64).reshape(-1, 2)
    here = (known >= 0).all(axis=1)
    pairs = known[here, 0] * len(vocabulary.forms) + known[here, 1]
    return add_pairs(pairs, table["count"].to_numpy()[here])


def score(
    pairs: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], vocabulary: Vocabulary, *, min_count: int, profile: str
) -> pa.Table:
    """SCORED rows of the pairs whose count and score are high enough.

    `pairs` holds each pair once, and all forms of a lower-case pair. The most frequent form of a pair is taken. The
    lower-case form is taken too if that form alone occurs `min_count` times.
    """
    if not len(pairs):
        return SCORED.empty_table()
    lower = vocabulary.lower_pair(pairs)
    order = np.lexsort((pairs, -counts, lower))
    pairs, counts, lower = pairs[order], counts[order], lower[order]
    starts = np.flatnonzero(np.append(True, lower[1:] != lower[:-1]))
    total = np.add.reduceat(counts, starts)
    first, second = np.divmod(lower[starts], len(vocabulary.names))
    expected = vocabulary.total[first].astype(float) * vocabulary.total[second]
    every = float(max(1, vocabulary.occurrences))
    pmi = np.log2(total * every / expected)
    if profile == "wit":
        value = pmi / np.maximum(1e-9, -np.log2(np.minimum(total / every, 1.0)))
        kept = (total >= min_count) & (pmi >= LEAST_PMI)
    else:
        value, kept = pmi, pmi >= METACLIP_PMI
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(pairs))))
    is_first = np.zeros(len(pairs), bool)
    is_first[starts] = True
    texts = vocabulary.texts(pairs)
    names = pc.utf8_lower(texts)
    in_lower = np.asarray(pc.equal(texts, names)) & (counts >= min_count)
    chosen = kept[group] & (is_first | in_lower)
    table = pa.table([texts, np.where(is_first, total[group], counts), value[group], names], schema=SCORED)
    return table.filter(pa.array(chosen))


def best(scored: list[pa.Table], max_queries: int) -> pa.Table:
    """COUNTED: the best `max_queries` queries of one or more corpora, the highest score first."""
    found = pa.concat_tables([SCORED.empty_table(), *scored])
    table = found.group_by(["query", "pair"], use_threads=False).aggregate([("count", "sum"), ("score", "max")])
    table = table.rename_columns({"count_sum": "count", "score_max": "score"})
    table = table.sort_by(
        [("score", "descending"), ("pair", "ascending"), ("count", "descending"), ("query", "ascending")]
    )
    return table.select(["query", "count"]).slice(0, max_queries).cast(COUNTED).combine_chunks()


def without_common(pairs: pa.Table, common: frozenset[str]) -> pa.Table:
    """The pairs (COUNTED, "new york") without those that have one of the lower-case words."""
    if not common or not len(pairs):
        return pairs
    words = pc.split_pattern(pc.utf8_lower(pairs["query"].combine_chunks()), " ", max_splits=1)
    is_common = np.asarray(pc.is_in(words.values, pa.array(sorted(common), words.values.type))).reshape(-1, 2)
    return pairs.filter(pa.array(~is_common.any(axis=1)))


def from_counts(
    words: pa.Table, pairs: pa.Table, *, min_word_count: int, min_pair_count: int, profile: str
) -> tuple[pa.Table, int]:
    """SCORED pairs of ready counts, and the number of pairs that hold a word without a count.

    The counts of the words and of the pairs must come from the same texts.
    """
    vocabulary = Vocabulary.of(words, min_count=min_word_count)
    if not len(vocabulary.forms) or not len(pairs):
        return SCORED.empty_table(), len(pairs)
    coded, counts = code(pairs, vocabulary)
    scored = score(coded, counts, vocabulary, min_count=min_pair_count, profile=profile)
    return scored, len(pairs) - len(coded)
