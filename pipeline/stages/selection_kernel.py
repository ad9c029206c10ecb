"""`selection` in compiled code: the same functions over the same arrays. Each goes over the rows once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.engine.hashing import Words
from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit
from pipeline.engine.mixing_kernel import GOLDEN, finalise, hash_lists
from pipeline.stages.matches import Counts, Few, Keys, Mask, Matches, Thresholds

U = np.uint64
_KEEP, _SAME_PAIR, _OTHER_TEXT, _PLACEHOLDER_URL, _COMMON_TEXT = (np.uint8(code) for code in range(5))
_EMPTY = np.int32(-1)
_MOST = 2**64 - 1


class _Rows(NamedTuple):
    """The rows of a `Matches` in the kernels' types."""

    pair_high: npt.NDArray[np.uint64]
    pair_low: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    keep: npt.NDArray[np.bool_]  # empty: all


class _Window(NamedTuple):
    """The key of each query and its window of hashes (`caps.CapWindows`), in tables of a `Few`.

    Place 0 stands for all queries that pick all of their matches. No hash lies in its window.
    """

    place: npt.NDArray[np.int32]
    keys: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    high: npt.NDArray[np.uint64]


class _Limit(NamedTuple):
    """The key of each query and its threshold, in tables of a `Few`. Each hash lies below that of place 0."""

    place: npt.NDArray[np.int32]
    keys: npt.NDArray[np.uint64]
    hash: npt.NDArray[np.uint64]
    tie: npt.NDArray[np.uint64]


class _Tuples(NamedTuple):
    """What `_band` fills: a tuple for each match in its window, then `below` by place and `may` by row."""

    query: npt.NDArray[np.int32]
    hashes: npt.NDArray[np.uint64]
    ties: npt.NDArray[np.uint64]
    below: npt.NDArray[np.int64]
    may: npt.NDArray[np.bool_]


class _Picked(NamedTuple):
    """What `_pick` fills: `selected` by row, `ends` by selected row, `picked` by draw."""

    selected: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.int32]
    picked: npt.NDArray[np.int32]


@njit
def _draw(mixed_pair, key):
    """`selection.draw`. `mixed_pair` depends on the row alone, so all queries of a row share it."""
    return max(finalise(mixed_pair ^ key), U(1))


@njit
def _is_better_copy(keys, row, other):
    """True if `row` stays rather than `other`, which has the same image and text and comes first."""
    if keys.size[row] != keys.size[other]:
        return keys.size[row] > keys.size[other]
    if keys.provenance[row] != keys.provenance[other]:
        return keys.provenance[row] < keys.provenance[other]
    if keys.pair_high[row] != keys.pair_high[other]:
        return keys.pair_high[row] < keys.pair_high[other]
    return keys.pair_low[row] < keys.pair_low[other]


@njit
def _mark_equal_pairs(keys, table, codes):
    """Marks all but one row of each (image, text). The hash table uses open addressing by rank."""
    mask = U(len(table) - 1)
    for row in range(len(keys.rank)):
        place = (finalise(keys.rank[row]) >> U(20)) & mask
        other = table[place]
        while other != _EMPTY and (keys.rank[other] != keys.rank[row] or keys.image[other] != keys.image[row]):
            place = (place + U(1)) & mask
            other = table[place]
        codes[row] = _KEEP
        if other == _EMPTY:
            table[place] = row
        elif _is_better_copy(keys, row, other):
            table[place] = row
            codes[other] = _SAME_PAIR
        else:
            codes[row] = _SAME_PAIR


@njit
def _image_place(image, row, table):
    """The place of a row's image in the table, or the free place for it."""
    mask = U(len(table) - 1)
    place = (finalise(image[row]) >> U(20)) & mask
    while table[place] != _EMPTY and image[table[place]] != image[row]:
        place = (place + U(1)) & mask
    return place


@njit
def _is_richer(keys, row, best):
    """True if the text of `row` stays rather than that of `best`, which has the same image."""
    if keys.common[row] != keys.common[best]:
        return keys.common[best]
    if keys.words[row] != keys.words[best]:
        return keys.words[row] > keys.words[best]
    return keys.rank[row] < keys.rank[best]


@njit
def _mark_other_texts(keys, table, texts, codes):
    """Marks all distinct texts of an image but the richest, and the common texts. `texts` counts the texts."""
    for row in range(len(keys.image)):
        if codes[row] != _SAME_PAIR:
            place = _image_place(keys.image, row, table)
            texts[place] += 1
            best = table[place]
            if best == _EMPTY:
                table[place] = row
            elif _is_richer(keys, row, best):
                table[place] = row
                codes[best] = _OTHER_TEXT
            else:
                codes[row] = _OTHER_TEXT
    for row in range(len(keys.image)):
        if keys.common[row]:
            codes[row] = _COMMON_TEXT


@njit
def _mark_placeholders(image, table, texts, bound, codes):
    for row in range(len(image)):
        if texts[_image_place(image, row, table)] > bound:
            codes[row] = _PLACEHOLDER_URL


@njit
def _mark_frequent(text, bound, table, counts, out):
    """Marks the rows of texts with more than `bound` rows. `_image_place` finds the place of a text as well."""
    for row in range(len(text)):
        place = _image_place(text, row, table)
        table[place] = row
        counts[place] += 1
    for row in range(len(text)):
        out[row] = counts[_image_place(text, row, table)] > bound


@njit
def _count(offsets, ids, keep, counts):
    for row in range(len(offsets) - 1):
        if len(keep) == 0 or keep[row]:
            for place in range(offsets[row], offsets[row + 1]):
                counts[ids[place]] += 1


@njit
def _band(rows, window, out):
    """Fills `out`, a _Tuples; returns how many tuples there are. Few branches: none could be foretold."""
    pair_high, pair_low, offsets, ids, keep = rows
    places, keys, low, high = window
    query, hashes, ties, below, may = out
    count = 0
    for row in range(len(offsets) - 1):
        may[row] = False
        if len(keep) and not keep[row]:
            continue
        mixed = finalise(pair_high[row] + GOLDEN)
        may_be = False
        for place in range(offsets[row], offsets[row + 1]):
            q = U(places[U(ids[place])])  # unsigned: numba looks for no negative index
            h = _draw(mixed, keys[q])
            is_below = h < low[q]
            below[q] += is_below
            may_be |= (q == 0) | (h <= high[q])
            if (h <= high[q]) & (not is_below):
                query[count], hashes[count], ties[count] = ids[place], h, pair_low[row]
                count += 1
        may[row] = may_be
    return count


@njit
def _pick(rows, limit, out):
    """Fills `out`, a _Picked, by the thresholds; returns the number of selected rows. Few branches, as in `_band`."""
    pair_high, pair_low, offsets, ids, keep = rows
    places, keys, tau_hash, tau_tie = limit
    selected, ends, picked = out
    n_selected = count = 0
    for row in range(len(offsets) - 1):
        selected[row] = False
        if len(keep) and not keep[row]:
            continue
        before = count
        mixed = finalise(pair_high[row] + GOLDEN)
        for place in range(offsets[row], offsets[row + 1]):
            q = U(places[U(ids[place])])  # unsigned: numba looks for no negative index
            h = _draw(mixed, keys[q])
            picked[count] = ids[place]
            count += (h < tau_hash[q]) | ((h == tau_hash[q]) & (pair_low[row] <= tau_tie[q]))
        if count > before:
            selected[row] = True
            ends[n_selected] = count
            n_selected += 1
    return n_selected


@njit
def _survival(offsets, ids, miss, out):
    for row in range(len(offsets) - 1):
        product = 1.0
        for place in range(offsets[row], offsets[row + 1]):
            product *= miss[ids[place]]
            if product == 0.0:
                break
        out[row] = product


def find_duplicates(keys: Keys, placeholder_bound: int) -> npt.NDArray[np.uint8]:
    """See `selection.find_duplicates`."""
    rows = len(keys.image)
    if rows > 2**30:
        raise ValueError(f"one bucket of keys has {rows} rows: use more buckets")
    keys = Keys(*(frozen(column, column.dtype.type) for column in keys))
    codes = np.empty(rows, np.uint8)
    size = 1 << max(4, int(rows * 1.6).bit_length())
    _mark_equal_pairs(keys, np.full(size, _EMPTY), codes)
    table, texts = np.full(size, _EMPTY), np.zeros(size, np.int32)
    _mark_other_texts(keys, table, texts, codes)
    if placeholder_bound:
        _mark_placeholders(keys.image, table, texts, placeholder_bound, codes)
    return codes


def frequent(text: Words, bound: int) -> Mask:
    """True for each row whose text more than `bound` rows have."""
    rows = len(text)
    size = 1 << max(4, int(rows * 1.6).bit_length())
    out = np.empty(rows, np.bool_)
    _mark_frequent(frozen(text, np.uint64), bound, np.full(size, _EMPTY), np.zeros(size, np.int32), out)
    return out


def count_queries(
    offsets: npt.NDArray[np.integer], ids: npt.NDArray[np.int32], keep: Mask | None, n_queries: int
) -> Counts:
    """See `selection.count_queries`."""
    counts = np.zeros(n_queries, np.int64)
    _count(*_lists(offsets, ids, n_queries), _mask(keep), counts)
    return counts


def band_tuples(matches: Matches, keys: Words, low: Words, high: Words, few: Few) -> tuple[Any, ...]:
    """The fields of a `Band`. `few`: the queries that have a window, and the stop queries."""
    rows = _rows(matches, len(keys))
    room = int(rows.offsets[-1] - rows.offsets[0])
    window = _Window(few.place, *(_table(column, few, at_0=0) for column in (keys, low, high)))
    query, hashes, ties = np.empty(room, np.int32), np.empty(room, np.uint64), np.empty(room, np.uint64)
    of_place, may_be_picked = np.zeros(len(window.keys), np.int64), np.empty(len(rows.offsets) - 1, np.bool_)
    count = _band(rows, window, _Tuples(query, hashes, ties, of_place, may_be_picked))
    below = np.zeros(len(keys), np.int64)
    below[few.queries] = of_place[1:]
    return query[:count].copy(), hashes[:count].copy(), ties[:count].copy(), below, may_be_picked


def pick(matches: Matches, keys: Words, tau: Thresholds) -> tuple[Any, ...]:
    """The fields of a `Picks`. The thresholds have `few`."""
    if tau.few is None:
        raise ValueError("the thresholds do not tell which queries pick all of their matches")
    rows = _rows(matches, len(keys))
    n_rows, room = len(rows.offsets) - 1, int(rows.offsets[-1] - rows.offsets[0])
    selected, ends = np.empty(n_rows, np.bool_), np.zeros(n_rows + 1, np.int32)
    picked = np.empty(room + 1, np.int32)  # a match that is not picked is written, too, and then overwritten
    tables = (_table(column, tau.few, at_0=at_0) for column, at_0 in ((keys, 0), (tau.hash, _MOST), (tau.tie, _MOST)))
    count = _pick(rows, _Limit(tau.few.place, *tables), _Picked(selected, ends[1:], picked))
    ends = ends[: count + 1].copy()
    return selected, ends, picked[: ends[-1]].copy()


def _table(column: Words, few: Few, *, at_0: int) -> Words:
    """The values of the few queries, from place 1 on."""
    return np.concatenate([np.array([at_0], np.uint64), column[few.queries].astype(np.uint64)])


def survival(
    offsets: npt.NDArray[np.integer], ids: npt.NDArray[np.int32], miss: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """For each row the product of `miss` over its queries."""
    out = np.empty(len(offsets) - 1)
    _survival(*_lists(offsets, ids, len(miss)), frozen(miss, np.float64), out)
    return out


def _lists(offsets: npt.NDArray, ids: npt.NDArray, n_queries: int) -> tuple[npt.NDArray, npt.NDArray]:
    """CSR lists in the kernels' types. They are checked here, since compiled code checks no index."""
    offsets, ids = frozen(offsets, np.int64), frozen(ids, np.int32)
    if offsets[0] < 0 or offsets[-1] > len(ids) or (np.diff(offsets) < 0).any():
        raise ValueError("offsets of lists do not ascend within their values")
    inside = ids[offsets[0] : offsets[-1]]
    if len(inside) and not 0 <= int(inside.min()) <= int(inside.max()) < n_queries:
        raise ValueError(f"query ids outside 0 .. {n_queries - 1}")
    return offsets, ids


def _rows(matches: Matches, n_queries: int) -> _Rows:
    """The rows for a kernel."""
    pairs = frozen(matches.pair_high, np.uint64), frozen(matches.pair_low, np.uint64)
    return _Rows(*pairs, *_lists(matches.offsets, matches.ids, n_queries), _mask(matches.keep))


def _mask(mask: Mask | None) -> npt.NDArray[np.bool_]:
    """A mask for a kernel; an empty one stands for None."""
    return frozen(np.zeros(0, np.bool_) if mask is None else mask, np.bool_)


def warm() -> None:
    """Compiles every kernel of this module."""
    one, offsets, ids = np.ones(1, np.uint64), np.array([0, 1], np.int64), np.zeros(1, np.int32)
    matches = Matches(one, one, offsets, ids)
    small = np.ones(1, np.uint8), np.ones(1, np.uint32)
    keys = one, one, *small, one, one, one, np.zeros(1, np.bool_)
    find_duplicates(Keys(*keys), 1)
    frequent(one, 1)
    count_queries(offsets, ids, None, 1)
    few = Few(np.zeros(1, np.int32), np.zeros(0, np.int64))
    band_tuples(matches, one, one, one, few)
    pick(matches, one, Thresholds(one, one, few))
    survival(offsets, ids, np.ones(1))
    hash_lists(offsets, ids)
