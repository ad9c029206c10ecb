"""`selection` in compiled code: the same functions over the same arrays. Each goes over the rows once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.engine.hashing import Words
from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit
from pipeline.engine.mixing_kernel import GOLDEN, finalise, hash_lists
from pipeline.stages.matches import Counts, Keys, Mask, Matches, Thresholds

U = np.uint64
_KEEP, _SAME_PAIR, _OTHER_TEXT, _PLACEHOLDER_URL, _COMMON_TEXT = (np.uint8(code) for code in range(5))
_EMPTY = np.int32(-1)


class _Rows(NamedTuple):
    """The rows of a `Matches` in the kernels' types."""

    pair_high: npt.NDArray[np.uint64]
    pair_low: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    keep: npt.NDArray[np.bool_]  # empty: all


class _Window(NamedTuple):
    """For each query: its key, its window of hashes (`caps.CapWindows`), and whether it has none since it picks all."""

    keys: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    high: npt.NDArray[np.uint64]
    all: npt.NDArray[np.bool_]  # most queries: small, so that it stays in the processor's cache


class _Tuples(NamedTuple):
    """What `_band` fills: a tuple for each match in its window, then `below` by query and `may` by row."""

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
    """Fills `out`, a _Tuples; returns how many tuples there are."""
    pair_high, pair_low, offsets, ids, keep = rows
    keys, low, high, picks_all = window
    query, hashes, ties, below, may = out
    count = 0
    for row in range(len(offsets) - 1):
        may[row] = False
        if len(keep) and not keep[row]:
            continue
        mixed = finalise(pair_high[row] + GOLDEN)
        for place in range(offsets[row], offsets[row + 1]):
            q = ids[place]
            if picks_all[q]:
                may[row] = True
                continue
            if high[q] == 0:  # a stop query
                continue
            h = _draw(mixed, keys[q])
            if h > high[q]:
                continue
            may[row] = True
            if h < low[q]:
                below[q] += 1
            else:
                query[count], hashes[count], ties[count] = q, h, pair_low[row]
                count += 1
    return count


@njit
def _pick(rows, keys, tau, out):
    """Fills `out`, a _Picked, by the thresholds `tau` (hash, tie, sure); returns the number of selected rows."""
    pair_high, pair_low, offsets, ids, keep = rows
    tau_hash, tau_tie, sure = tau
    selected, ends, picked = out
    n_selected = count = 0
    for row in range(len(offsets) - 1):
        selected[row] = False
        if len(keep) and not keep[row]:
            continue
        before = count
        mixed = finalise(pair_high[row] + GOLDEN)
        for place in range(offsets[row], offsets[row + 1]):
            q = ids[place]
            if len(sure) and sure[q]:
                picked[count] = q
                count += 1
                continue
            h = _draw(mixed, keys[q])
            if h < tau_hash[q] or (h == tau_hash[q] and pair_low[row] <= tau_tie[q]):
                picked[count] = q
                count += 1
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


def band_tuples(matches: Matches, keys: Words, low: Words, high: Words, stop: Mask) -> tuple[Any, ...]:
    """The fields of a `Band`."""
    rows = _rows(matches, len(keys))
    room = int(rows.offsets[-1] - rows.offsets[0])
    picks_all = (high == 0) & ~stop
    window = _Window(frozen(keys, np.uint64), frozen(low, np.uint64), frozen(high, np.uint64), _mask(picks_all))
    query, hashes, ties = np.empty(room, np.int32), np.empty(room, np.uint64), np.empty(room, np.uint64)
    below, may_be_picked = np.zeros(len(keys), np.int64), np.empty(len(rows.offsets) - 1, np.bool_)
    count = _band(rows, window, _Tuples(query, hashes, ties, below, may_be_picked))
    return query[:count].copy(), hashes[:count].copy(), ties[:count].copy(), below, may_be_picked


def pick(matches: Matches, keys: Words, tau: Thresholds) -> tuple[Any, ...]:
    """The fields of a `Picks`."""
    rows = _rows(matches, len(keys))
    n_rows, room = len(rows.offsets) - 1, int(rows.offsets[-1] - rows.offsets[0])
    selected, ends = np.empty(n_rows, np.bool_), np.zeros(n_rows + 1, np.int32)
    picked = np.empty(room, np.int32)
    thresholds = frozen(tau.hash, np.uint64), frozen(tau.tie, np.uint64), _mask(tau.sure)
    count = _pick(rows, frozen(keys, np.uint64), thresholds, _Picked(selected, ends[1:], picked))
    ends = ends[: count + 1].copy()
    return selected, ends, picked[: ends[-1]].copy()


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
    band_tuples(matches, one, one, one, np.zeros(1, np.bool_))
    pick(matches, one, Thresholds(one, one))
    survival(offsets, ids, np.ones(1))
    hash_lists(offsets, ids)
