"""Merges equal queries of a list: those of one language that the matcher cannot distinguish.

A query's identity is (language, form). `matcher.forms_of` makes the form. With case="exact", a string takes its place:
of the strings with an equal form, the first by its bytes. Balancing uses the hash of the identity. Of the
merged strings, the one with the highest count in the list is shown. No hash depends on it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.text import folding
from pipeline.text.matcher import forms_of
from queries.load import QUERIES, QueryList, with_language

_AT_ONCE = 1_000  # queries of a list in which one with a token is looked for first
_LARGEST = 2.0**62  # larger sums may not fit into 64 bits


class _Merged(NamedTuple):
    """See `UsedQueries`."""

    table: pa.Table
    identities: pa.StringArray
    dropped: int


@dataclasses.dataclass(frozen=True)
class UsedQueries:
    """A query list as a run uses it. Equal queries are merged when `table` or `identities` is first asked for.

    So a run that continues does not merge them again. Merging takes a second for the list of the project.

    Attributes:
        given: the list as it was read.
        mode, case: how texts are matched.
    """

    given: QueryList
    mode: str
    case: str

    @property
    def digest(self) -> str:
        """The digest of the list as it was read. Together with mode and case it decides which queries are used."""
        return self.given.digest

    @property
    def table(self) -> pa.Table:
        """Rows of QUERIES in the order of their identities, each query once."""
        return self._merged.table

    @property
    def identities(self) -> pa.StringArray:
        """A string for each query. Balancing uses its hash."""
        return self._merged.identities

    @functools.cached_property
    def _merged(self) -> _Merged:
        return _merge(self.given, mode=self.mode, case=self.case)

    @functools.cached_property
    def languages(self) -> tuple[str, ...]:
        """The languages of the queries that a text can match, in the order of `table`; "" for none."""
        codes = pc.unique(self.given.table["language"]).to_pylist()
        return tuple(code for code in codes if self._has_token(code))

    def _has_token(self, language: str) -> bool:
        """True if a given query of the language has a token. Nearly always this is seen at once."""
        rows = self.given.table.filter(pc.equal(self.given.table["language"], language))
        parts = (rows.slice(0, _AT_ONCE), rows.slice(_AT_ONCE)) if self.mode == "wide" else ()
        return not parts or any(map(self._any_form, parts))

    def _any_form(self, rows: pa.Table) -> bool:
        return bool(pc.any(pc.not_equal(_forms(rows, mode=self.mode, case=self.case), "")).as_py())

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
        dropped = self._merged.dropped
        return {
            "queries": self.table.num_rows,
            "queries_given": len(self.given),
            "queries_merged": len(self.given) - dropped - self.table.num_rows,
            "queries_dropped": dropped,
            "lines_left_out": self.given.invalid + self.given.too_long,
        }


def merge_queries(given: QueryList, *, mode: str, case: str) -> UsedQueries:
    """The list with equal queries merged, and without queries that have no token.

    Raises:
        ValueError: no query is left.
    """
    used = UsedQueries(given, mode, case)
    if not used.languages:
        raise ValueError(f"none of its {len(given)} queries holds a letter, a digit or a symbol")
    return used


def _merge(given: QueryList, *, mode: str, case: str) -> _Merged:
    table = given.table.combine_chunks()
    forms = _forms(table, mode=mode, case=case)
    alive = np.flatnonzero(np.asarray(pc.not_equal(forms, ""))) if mode == "wide" else np.arange(len(forms))
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
    merged = pa.table([columns[name] for name in QUERIES.names], schema=QUERIES)
    return _Merged(merged, identities.take(place), len(given) - len(alive))


def _forms(rows: pa.Table, *, mode: str, case: str) -> pa.Array:
    """The form of each query, by the rules of its own language."""
    queries, languages = (rows[name].combine_chunks() for name in ("query", "language"))
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
