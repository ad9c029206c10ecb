"""An index that is open: which pairs answer a search, and how many of them have each value of a facet.

Rows are the numbers of pairs, ascending as in the set. A set of rows is a sorted array; None means all rows. Every step
is a pass of numpy over mapped arrays, so that a set of 10 million pairs answers in a fraction of a second.
"""

from __future__ import annotations

import bisect
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.errors import NotFound
from pipeline.engine.hashing import column_hash
from pipeline.explorer.building import FORM, INDEX_FILE, NUMBERS
from pipeline.explorer.coding import mapped, read_strings, release
from pipeline.explorer.words import Term

Rows = npt.NDArray[np.uint32]
COUNTED = 100_000  # rows that a facet is counted over. Beyond, it is estimated from so many of them
SHORT = 64  # a list that is so many times shorter is looked up in the longer one
PHRASE_ROWS = 1 << 18  # rows whose words are compared at once
SCANNED = 16  # rows with more than a 16th of all words are not read one by one: all words are
WORDS_AT_ONCE = 1 << 18  # a megabyte: it stays in the cache of the processor


class Index:
    """An index that is open. `build` has written it.

    Attributes:
        folder: of the index.
        facts: of index.json: digest, folder, rows, facets, numbers.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        with open(os.path.join(folder, INDEX_FILE), "rb") as file:
            self.facts: dict[str, Any] = json.load(file)
        if self.facts.get("form") != FORM:
            raise NotFound(f"{folder!r} holds no index of this version")
        self.numbers = {name: mapped(folder, name, NUMBERS[name][1]) for name in self.facts["numbers"]}
        self.facets = {name: mapped(folder, name, np.uint32) for name in self.facts["facets"]}
        self.values = {name: read_strings(folder, name) for name in self.facts["facets"]}
        self.values["query"] = read_strings(folder, "queries")
        self._totals = {name: mapped(folder, f"{name}.totals", np.int64) for name in self.facets}
        self._totals["query"] = np.diff(self._bounds("queries"), axis=0)[0]
        self._file = pa.ipc.open_file(pa.memory_map(os.path.join(folder, "rows.arrow")))
        sizes = [self._batch(number).num_rows for number in range(self._file.num_record_batches)]
        self._ends = np.cumsum(sizes).tolist()

    def __len__(self) -> int:
        """The number of pairs."""
        return self.facts["rows"]

    # ------------------------------------------------------------------------------------------------ single pairs

    @functools.lru_cache(maxsize=4096)  # noqa: B019 (an index lives as long as its server)
    def _batch(self, number: int) -> pa.RecordBatch:
        return self._file.get_batch(number)

    def row(self, row: int) -> dict[str, Any]:
        """Key, text, numbers and facets of a pair."""
        number = bisect.bisect_right(self._ends, row)
        batch = self._batch(number)
        at = row - (self._ends[number - 1] if number else 0)
        found: dict[str, Any] = {"row": row, "key": batch["key"][at].as_py(), "text": batch["text"][at].as_py()}
        found |= {name: values[row].item() for name, values in self.numbers.items()}
        return found | {name: self.values[name][int(codes[row])].as_py() for name, codes in self.facets.items()}

    def has(self, key: str, row: int) -> bool:
        """Whether a row has a key."""
        return row < len(self) and self.row(row)["key"] == key

    def find(self, key: str) -> int | None:
        """The row of a key."""
        for number in self._batches_of(key):
            at = pc.index(self._batch(number)["key"], key).as_py()
            if at >= 0:
                return (self._ends[number - 1] if number else 0) + at
        return None

    def _batches_of(self, key: str) -> Iterator[int]:
        """The batches that may hold a key: one of a published set, whose keys ascend, or all."""
        count = self._file.num_record_batches
        if "phash" not in self.numbers:
            yield from range(count)
            return
        low, high = 0, count
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._batch(middle)["key"][0].as_py() <= key else (low, middle)
        yield from range(low, high)

    def beginning(self, start: str, most: int) -> Rows:
        """The rows of the first batch whose keys begin so. Keys of a published set ascend."""
        found: list[int] = []
        for number in self._batches_of(start):
            at = pc.indices_nonzero(pc.starts_with(self._batch(number)["key"], start)).to_pylist()
            found += [(self._ends[number - 1] if number else 0) + one for one in at]
            if len(found) >= most:
                break
        return np.array(found[:most], np.uint32)

    def of_url(self, url: str) -> Rows:
        """The rows with a URL."""
        return _rows(mapped(self.folder, "url", np.uint64) == column_hash(pa.array([url]))[0])

    def duplicates(self, key: str) -> list[dict[str, Any]]:
        """The pairs that were dropped because this one shows the same: key, kind and distance of each."""
        keepers = mapped(self.folder, "duplicates.keeper", np.uint64).reshape(-1, 2)
        try:
            high, low = int(key[:16], 16), int(key[16:], 16)
        except ValueError:
            return []
        if not len(keepers) or len(key) != 32:
            return []
        first = int(np.searchsorted(keepers[:, 0], np.uint64(high)))
        kinds, found = read_strings(self.folder, "duplicates.kinds").to_pylist(), []
        keys = mapped(self.folder, "duplicates.key", np.uint64).reshape(-1, 2)
        kind, distance = (mapped(self.folder, f"duplicates.{name}", np.uint8) for name in ("kind", "distance"))
        for at in range(first, len(keepers)):
            if int(keepers[at, 0]) != high:
                break
            if int(keepers[at, 1]) == low:
                name = "".join(f"{int(word):016x}" for word in keys[at])
                found.append({"key": name, "kind": kinds[kind[at]], "distance": int(distance[at])})
        return found

    def keys(self) -> Iterator[str]:
        """All keys, in the order of the rows."""
        for number in range(self._file.num_record_batches):
            yield from self._batch(number)["key"].to_pylist()

    def lengths(self, rows: Rows | None) -> npt.NDArray[np.int64]:
        """The words of all texts of each row."""
        starts = mapped(self.folder, "words.starts", np.int64)
        return np.diff(starts) if rows is None else starts[rows + np.uint32(1)] - starts[rows]

    def texts_of_queries(self, row: int) -> list[tuple[int, str]]:
        """(id, query) of each query that a pair holds."""
        starts = mapped(self.folder, "queries.starts", np.uint64)
        ids = mapped(self.folder, "queries", np.uint32)[int(starts[row]) : int(starts[row + 1])]
        return [(int(one), self.values["query"][int(one)].as_py()) for one in ids]

    def picked(self, query: int) -> int:
        """The pairs of the set that a query picked."""
        return int(mapped(self.folder, "queries.picked", np.int64)[query])

    def total(self, name: str, code: int) -> int:
        """The pairs of the whole set with a value of a facet."""
        return int(self._totals[name][code])

    # ------------------------------------------------------------------------------------------------- sets of rows

    def of_terms(self, terms: Sequence[Term]) -> Rows | None:
        """The rows that answer all terms."""
        wanted = [self.of_term(term) for term in terms if not term.is_excluded]
        rows: Rows | None = None
        for some in sorted(wanted, key=len):
            rows = some if rows is None else both(rows, some, len(self))
        for term in terms:
            if term.is_excluded:
                rows = without(rows, self.of_term(term), len(self))
        return rows

    def of_term(self, term: Term) -> Rows:
        """The rows that hold a term."""
        lists = [self._of_code(code) for code in map(self._code, term.words[: len(term.words) - term.is_prefix])]
        ends = self._beginning(term.words[-1]) if term.is_prefix else None
        if ends is not None:
            lists.append(self._of_codes(*ends))
        rows = min(lists, key=len)
        if len(term.words) > 1 and len(rows) * SCANNED > len(self):
            return self._phrase(term, rows, ends)
        for some in sorted(lists, key=len)[1:]:
            rows = both(rows, some, len(self))
        return self._phrase(term, rows, ends) if len(term.words) > 1 and len(rows) else rows

    def _code(self, word: str) -> int:
        """The code of a word, or -1."""
        words = self._words
        at = bisect.bisect_left(words, word.encode(), key=lambda one: one.as_py().encode())
        return at if at < len(words) and words[at].as_py() == word else -1

    def _beginning(self, start: str) -> tuple[int, int]:
        """The codes of the words that begin so: the first, and the one behind the last."""
        words, encoded = self._words, start.encode()
        first = bisect.bisect_left(words, encoded, key=lambda one: one.as_py().encode())
        last = bisect.bisect_right(words, encoded, key=lambda one: one.as_py().encode()[: len(encoded)], lo=first)
        return first, last

    @functools.cached_property
    def _words(self) -> pa.Array:
        return read_strings(self.folder, "words")

    def _bounds(self, name: str) -> npt.NDArray[np.int64]:
        """(2, size) where the rows of each code begin and end."""
        return np.stack([mapped(self.folder, f"{name}.{which}", np.int64) for which in ("first", "last")])

    def _of_code(self, code: int) -> Rows:
        return self._of_codes(code, code + 1) if code >= 0 else np.empty(0, np.uint32)

    def _of_codes(self, first: int, last: int, name: str = "words") -> Rows:
        """The rows that hold one of consecutive codes."""
        if first >= last:
            return np.empty(0, np.uint32)
        starts, ends = (mapped(self.folder, f"{name}.{which}", np.int64) for which in ("first", "last"))
        rows = mapped(self.folder, f"{name}.rows", np.uint32)[int(starts[first]) : int(ends[last - 1])]
        return rows if last - first == 1 else union([rows], len(self))

    def _phrase(self, term: Term, rows: Rows, ends: tuple[int, int] | None) -> Rows:
        """Those of the rows in which the words follow each other."""
        codes = [self._code(word) for word in term.words[: len(term.words) - term.is_prefix]]
        spans = [(code, code + 1) for code in codes] + ([ends] if ends is not None else [])
        if len(rows) * SCANNED > len(self):
            return self._scan(spans)
        parts = [self._follow(spans, rows[at : at + PHRASE_ROWS]) for at in range(0, len(rows), PHRASE_ROWS)]
        return np.concatenate(parts)

    def _scan(self, spans: Sequence[tuple[int, int]]) -> Rows:
        """All rows in which words of the spans follow each other."""
        starts, words = mapped(self.folder, "words.starts", np.int64), mapped(self.folder, "words", np.uint32)
        size, parts = len(spans), [np.empty(0, np.int64)]
        for at in range(0, len(words) - size + 1, WORDS_AT_ONCE):
            some = words[at : at + WORDS_AT_ONCE + size - 1]
            found = np.ones(len(some) - size + 1, bool)
            for shift, (low, high) in enumerate(spans):
                shifted = some[shift : shift + len(found)]
                found &= (shifted == low) if high == low + 1 else (shifted >= low) & (shifted < high)
            parts.append(np.flatnonzero(found) + at)
        release(words)
        places = np.concatenate(parts)
        rows = np.searchsorted(starts, places, "right") - 1
        rows = rows[places + size <= starts[rows + 1]]
        return rows[np.diff(rows, prepend=-1) > 0].astype(np.uint32)

    def _follow(self, spans: Sequence[tuple[int, int]], rows: Rows) -> Rows:
        starts, words = mapped(self.folder, "words.starts", np.uint64), mapped(self.folder, "words", np.uint32)
        begins, finishes = starts[rows].astype(np.int64), starts[rows + np.uint32(1)].astype(np.int64)
        places, owner = _places(begins, finishes - begins)
        found, size = np.ones(len(places), bool), len(spans)
        some = words[places]
        for shift, (low, high) in enumerate(spans):
            fits = np.zeros(len(places), bool)
            fits[: len(places) - shift] = (some[shift:] >= low) & (some[shift:] < high)
            found &= fits
        found &= places + size <= finishes[owner]
        return rows[np.unique(owner[found])]

    def of_values(self, name: str, values: Sequence[str], rows: Rows | None) -> Rows:
        """Those of the rows that have one of the values of a facet. A domain covers those below it."""
        if name == "query":
            return self._of_queries(values, rows)
        vocabulary = self.values[name]
        wanted = pc.is_in(vocabulary, pa.array(list(values), vocabulary.type))
        if name == "domain":
            for value in values:
                wanted = pc.or_(wanted, pc.ends_with(vocabulary, f".{value}"))
        lookup = wanted.to_numpy(zero_copy_only=False)
        codes = self.facets[name]
        return _rows(lookup[codes]) if rows is None else rows[lookup[codes[rows]]]

    def _of_queries(self, values: Sequence[str], rows: Rows | None) -> Rows:
        folded = self._folded_queries
        codes = pc.indices_nonzero(pc.is_in(folded, pa.array([value.lower() for value in values], folded.type)))
        some = union([self._of_codes(code, code + 1, "queries") for code in codes.to_pylist()], len(self))
        return some if rows is None else both(rows, some, len(self))

    @functools.cached_property
    def _folded_queries(self) -> pa.Array:
        return pc.utf8_lower(self.values["query"])

    def at_least(self, name: str, bound: float, rows: Rows | None) -> Rows:
        """Those of the rows whose number is at least the bound."""
        numbers = self.numbers[name]
        return _rows(numbers >= bound) if rows is None else rows[numbers[rows] >= bound]

    def like(self, phash: int, distance: int, rows: Rows | None) -> tuple[Rows, npt.NDArray[np.uint8]]:
        """Those of the rows whose picture has a hash that differs in at most `distance` bits, nearest first.

        Returns:
            The rows, and the distance of each. A picture without a hash (0) is never found.
        """
        hashes = self.numbers["phash"] if rows is None else self.numbers["phash"][rows]
        apart = np.bitwise_count(hashes ^ np.uint64(phash))
        near = np.flatnonzero((apart <= distance) & (hashes != 0))
        near = near[np.argsort(apart[near], kind="stable")]
        return (near.astype(np.uint32) if rows is None else rows[near]), apart[near]

    # ----------------------------------------------------------------------------------------------------- counting

    def counts(self, name: str, rows: Rows | None, most: int, *, grep: str = "") -> tuple[list[tuple[str, int]], bool]:
        """The most frequent values of a facet among the rows.

        Args:
            name: of the facet; `query` too.
            rows: to count over.
            most: values.
            grep: only values that hold these letters.

        Returns:
            (value, count), and whether the counts are estimates.
        """
        counts, share = self._counted(name, rows)
        vocabulary = self.values[name]
        codes = np.flatnonzero(counts)
        if grep:
            held = pc.match_substring(vocabulary, grep, ignore_case=True).to_numpy(zero_copy_only=False)
            codes = codes[held[codes]]
        if len(codes) > most:
            codes = codes[np.argpartition(-counts[codes], most - 1)[:most]]
        codes = codes[np.lexsort((codes, -counts[codes]))]
        return [(vocabulary[int(one)].as_py(), round(int(counts[one]) * share)) for one in codes], share > 1

    def _counted(self, name: str, rows: Rows | None) -> tuple[npt.NDArray[np.int64], float]:
        """The count of each code, and what it must be multiplied with."""
        if rows is None:
            return self._totals[name], 1.0
        share = max(1.0, len(rows) / COUNTED)
        if share > 1:
            rows = rows[(np.arange(COUNTED) * share).astype(np.int64)]
        size = len(self.values[name])
        if name != "query":
            return np.bincount(self.facets[name][rows], minlength=size), share
        starts = mapped(self.folder, "queries.starts", np.uint64)
        begins, ends = starts[rows].astype(np.int64), starts[rows + np.uint32(1)].astype(np.int64)
        places, _ = _places(begins, ends - begins)
        return np.bincount(mapped(self.folder, "queries", np.uint32)[places], minlength=size), share


def both(rows: Rows, others: Rows, size: int) -> Rows:
    """The rows that are in both sorted arrays.

    Args:
        rows, others: each row once.
        size: of the set.
    """
    rows, others = (rows, others) if len(rows) <= len(others) else (others, rows)
    if len(rows) * SHORT > len(others):
        return rows[_mask(others, size)[rows]]
    at = np.searchsorted(others, rows)
    at[at == len(others)] = 0
    return rows[others[at] == rows] if len(others) else rows[:0]


def without(rows: Rows | None, others: Rows, size: int) -> Rows:
    """The rows that are not among the others."""
    mask = _mask(others, size)
    return _rows(~mask) if rows is None else rows[~mask[rows]]


def union(lists: Sequence[Rows], size: int) -> Rows:
    """The rows of any of the arrays, each once."""
    rows = np.concatenate([np.empty(0, np.uint32), *lists])
    return np.unique(rows) if len(rows) * SHORT < size else _rows(_mask(rows, size))


def _mask(rows: Rows, size: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[rows] = True
    return mask


def _rows(mask: npt.NDArray[np.bool_]) -> Rows:
    return np.flatnonzero(mask).astype(np.uint32)


def _places(begins: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Any]:
    """All places of pieces of an array, and the number of the piece of each place."""
    owner = np.repeat(np.arange(len(begins)), lengths)
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - lengths), lengths), owner


def facets_of(index: Index) -> list[str]:
    """The names of the facets that a set has."""
    return [*index.facets, *(["query"] if len(index.values["query"]) else [])]


def open_index(folder: str, digest: str) -> Index | None:
    """The index of a set in a folder; None where there is none, or that of another set or version."""
    try:
        index = Index(folder)
    except (OSError, ValueError, KeyError, NotFound, pa.ArrowException):
        return None
    return index if index.facts["digest"] == digest else None
