"""Merges equal queries of a list: those of one language that the matcher cannot distinguish.

A query's identity is (language, form). `matcher.forms_of` makes the form. With case="exact", a string takes its place:
of the strings with an equal form, the first by its bytes. Balancing uses the hash of the identity. Of the
merged strings, the one with the highest count in the list is shown. No hash depends on it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.text import folding
from pipeline.text.matcher import forms_of
from queries.load import QUERIES, QueryList, with_language

_LARGEST = 2.0**62  # larger sums may not fit into 64 bits


@dataclasses.dataclass(frozen=True)
class UsedQueries:
    """A query list as a run uses it.

    Attributes:
        table: rows of QUERIES in the order of their identities, each query once.
        identities: a string for each query. Balancing uses its hash.
        mode, case: how texts are matched.
        given: the list as it was read.
        dropped: the number of queries of `given` without a token. No text can match them.
    """

    table: pa.Table
    identities: pa.StringArray
    mode: str
    case: str
    given: QueryList
    dropped: int

    @property
    def digest(self) -> str:
        """The digest of the list as it was read. Together with mode and case it decides which queries are used."""
        return self.given.digest

    def lists(self) -> tuple[tuple[str, int, int], ...]:
        """(language, first, last) of each list: `table` holds the queries of a language one after the other."""
        column = self.table["language"].combine_chunks()
        encoded = column.dictionary_encode()
        numbers = encoded.indices.to_numpy()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        ends = [*starts[1:], len(numbers)]
        return tuple((column[first].as_py(), first, last) for first, last in zip(starts, ends, strict=True))

    def counts(self) -> dict[str, int]:
        """Counts: given queries = used + merged into another one + dropped. Lines that are no query are extra."""
        merged = len(self.given) - self.dropped - self.table.num_rows
        return {
            "queries": self.table.num_rows,
            "queries_given": len(self.given),
            "queries_merged": merged,
            "queries_dropped": self.dropped,
            "lines_left_out": self.given.invalid + self.given.too_long,
        }


def merge_queries(given: QueryList, *, mode: str, case: str) -> UsedQueries:
    """The list with equal queries merged, and without queries that have no token.

    Raises:
        ValueError: no query is left.
    """
    table = given.table.combine_chunks()
    forms = _forms(table["query"].combine_chunks(), table["language"].combine_chunks(), mode=mode, case=case)
    alive = np.flatnonzero(np.asarray(pc.not_equal(forms, ""))) if mode == "wide" else np.arange(len(forms))
    if not len(alive):
        raise ValueError(f"none of its {len(given)} queries holds a letter, a digit or a symbol")
    table, forms = table.take(pa.array(alive)), forms.take(pa.array(alive))
    query, in_language = (table[name].combine_chunks() for name in ("query", "language"))

    group = with_language(forms, in_language).dictionary_encode().indices.to_numpy()
    counts = table["count"].to_numpy()
    order = np.lexsort((np.arange(len(group)), ~counts, group))  # in a group: the highest count first, then by string
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    shown = order[starts]
    first = pa.array(np.minimum.reduceat(order, starts))  # the table is sorted by string
    identities = with_language(forms if case == "fold" else query, in_language).take(first)

    place = pc.sort_indices(identities)
    columns = {name: table[name].take(pa.array(shown)).take(place) for name in ("query", "source", "language", "flags")}
    columns["id"] = pa.array(np.arange(len(place), dtype=np.int32))
    columns["count"] = pa.array(_sums(counts[order], starts)).take(place)
    return UsedQueries(
        pa.table([columns[name] for name in QUERIES.names], schema=QUERIES),
        identities.take(place),
        mode,
        case,
        given,
        dropped=len(given) - len(alive),
    )


def _forms(queries: pa.StringArray, languages: pa.StringArray, *, mode: str, case: str) -> pa.Array:
    """The form of each query, by the rules of its own language."""
    special = [code for code in pc.unique(languages).to_pylist() if code in folding.DOTLESS]
    forms = forms_of(queries, mode=mode, case=case)
    for code in special:
        mine = pc.equal(languages, code)
        own = forms_of(queries.filter(mine), mode=mode, case=case, language=code)
        forms = pc.replace_with_mask(forms, mine, own.cast(forms.type))
    return forms


def _sums(counts: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The sum of each group, or its first count if the sum may not fit into 64 bits."""
    rough = np.add.reduceat(counts.astype(np.float64), starts)
    return np.where(np.abs(rough) < _LARGEST, np.add.reduceat(counts, starts), counts[starts])
