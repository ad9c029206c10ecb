"""Which rows stay: duplicates by key, and balancing over the queries. All functions are pure. No result depends on the
order of the rows.

**Duplicates.** `find_duplicates` applies all rules at once to a bucket of keys. Of equal pairs, one provenance stays.
Of the texts of one image, the richest stays. An image with many texts is a placeholder, and all its rows go. A text of
many images is boilerplate (`find_common_texts`), and all its rows go. `find_links` says what the row that stays takes
from the others of its image: further texts, and the URL of the largest variant.

**Balancing.** Every (pair, query) match draws h(pair, query) = mix(pair, query), a uniform 64-bit number that depends
on nothing else (the seed is in the query's key). Then

* `cap`: a query picks its min(count, cap) matches with the smallest h. A pair stays if any query picks it. The matches
  are counted first. Then only those in a narrow band around the expected threshold are gathered and sorted:
  count_queries -> band_limits -> band_tuples -> thresholds -> pick. `caps.CapWindows` has a picture of the band.
* `bernoulli`: a query picks every match with h <= cap / count: count_queries -> bernoulli_thresholds -> pick.

Both are nested: with the same counts, a larger cap keeps every pair that a smaller cap keeps. Queries marked `stop` are
counted but pick nothing, so they never keep a pair alone.

h is never 0. Two pairs can have equal h under one query if their uids share the high word. Then the low word decides.
So the order is total, and a query picks exactly min(count, cap) pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.engine import jit
from pipeline.engine.hashing import Words, mix, partition
from pipeline.stages.matches import Band, Counts, Few, Keys, Links, Mask, Matches, Picks, Thresholds

KEEP, SAME_PAIR, OTHER_TEXT, PLACEHOLDER_URL, COMMON_TEXT, JOINED_TEXT = range(6)
JOINED = "joined_text"
DUPLICATE_REASONS = ("", "same_pair", "other_text", "placeholder_url", "common_text", JOINED)

HIGHEST = np.uint64(2**64 - 1)
Cap: TypeAlias = int | Counts  # pairs that a query may pick: one number for all queries, or one for each


class BandError(RuntimeError):
    """A threshold lies outside its band, because the counts are wrong. `queries` holds the ids of the queries."""

    def __init__(self, queries: list[int]):
        super().__init__(f"no threshold within the band for {len(queries)} queries, ids {queries[:10]}")
        self.queries = queries


def find_duplicates(keys: Keys, *, placeholder_bound: int = 0) -> npt.NDArray[np.uint8]:
    """A code for each row, an index into DUPLICATE_REASONS. All rows of an image must be in the same call.

    A row of JOINED_TEXT is an `other_text` here. `find_links` finds it.

    * placeholder_url: the image has more than `placeholder_bound` distinct texts, so all its rows go (0: rule off);
    * common_text: the row is marked in `keys.common`;
    * same_pair: another row has the same image and text. The row with the largest size stays, then the one with the
      smallest provenance, then the one with the smallest uid. If these are equal too, the first row stays;
    * other_text: another text of the image has more words, or as many words and a smaller `rank`.
    """
    rows = len(keys.image)
    kernel = _kernel(rows)
    if kernel:
        return kernel.find_duplicates(keys, placeholder_bound)
    codes = np.zeros(rows, np.uint8)
    if rows == 0:
        return codes
    size, words = ~keys.size.astype(np.uint32), -keys.words.astype(np.int16)
    better = keys.pair_low, keys.pair_high, keys.provenance, size, keys.rank, words, keys.common  # the last first
    order = np.lexsort((*better, keys.image))
    image, rank, common = keys.image[order], keys.rank[order], keys.common[order]
    new_image = np.concatenate([[True], image[1:] != image[:-1]])
    new_text = new_image | np.concatenate([[True], rank[1:] != rank[:-1]])
    kept = np.where(new_image, KEEP, np.where(new_text, OTHER_TEXT, SAME_PAIR))
    codes[order] = np.where(common, COMMON_TEXT, kept)
    if placeholder_bound:
        group = np.cumsum(new_image) - 1
        texts = np.bincount(group, weights=new_text)
        codes[order[texts[group] > placeholder_bound]] = PLACEHOLDER_URL
    return codes


def find_links(keys: Keys, codes: npt.NDArray[np.uint8], captions: int) -> Links:
    """What each kept row takes from the other rows of its image.

    * The richest other texts, so that it has at most `captions` texts. Common texts are not taken.
    * The URL with the largest size, if it is larger than its own. A row of a common text can give it, too.

    Args:
        keys: of all rows of each image.
        codes: of the rows, from `find_duplicates`.
        captions: at least 1.
    """
    kept, other = np.flatnonzero(codes == KEEP), np.flatnonzero((codes == OTHER_TEXT) | (codes == COMMON_TEXT))
    if captions == 1 and len(kept):  # most rows are as large as any, so few are sorted
        other = other[keys.size[other] > keys.size[kept].min()]
    other, target = _with_keepers(keys.image, kept, other)
    some = Keys._make(column[other] for column in keys)
    size, words = ~some.size.astype(np.uint32), -some.words.astype(np.int16)
    better = some.pair_low, some.pair_high, some.provenance, size, some.rank, words, some.common  # the last first
    order = np.lexsort((*better, target))
    other, target, common, size = other[order], target[order], some.common[order], some.size[order]
    is_first = np.concatenate([[True], target[1:] != target[:-1]])[: len(target)]
    starts, group = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    place = np.arange(len(other)) - starts[group] + 1
    number = np.where(common | (place >= captions), 0, place).astype(np.uint8)
    gives_url = np.zeros(len(other), np.bool_)
    if len(other):
        most = np.maximum.reduceat(size, starts)
        largest = np.flatnonzero((size == most[group]) & (size > keys.size[target]))
        gives_url[largest[np.unique(group[largest], return_index=True)[1]]] = True
    taken = (number > 0) | gives_url
    return Links(other[taken], target[taken], number[taken], gives_url[taken])


def _with_keepers(
    image: Words, kept: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Those of the other rows whose image has a kept row, and this kept row."""
    images, number = np.unique(image[other], return_inverse=True)
    if not len(images):
        return other, other
    place = np.minimum(np.searchsorted(images, image[kept]), len(images) - 1)
    has = images[place] == image[kept]
    keeper = np.full(len(images), -1, np.int64)
    keeper[place[has]] = kept[has]
    target = keeper[number]
    return other[target >= 0], target[target >= 0]


def find_common_texts(text: Words, image: Words, bound: int) -> Words:
    """The texts of more than `bound` distinct images, ascending. All rows of a text must be in the same call."""
    kernel = _kernel(len(text))
    if kernel:  # most texts have few rows, and need no sort
        frequent = kernel.frequent(text, bound)
        text, image = text[frequent], image[frequent]
    order = np.lexsort((image, text))
    text, image = text[order], image[order]
    new_text = np.concatenate([[True], text[1:] != text[:-1]])[: len(text)]
    new_pair = new_text | np.concatenate([[True], image[1:] != image[:-1]])[: len(text)]
    images = np.bincount(np.cumsum(new_text) - 1, weights=new_pair)
    return text[new_text][images > bound]


def count_queries(
    offsets: npt.NDArray[np.integer], ids: npt.NDArray[np.int32], keep: Mask | None, n_queries: int
) -> Counts:
    """The number of kept rows that each query matches. Counts of batches can be added."""
    kernel = _kernel(len(offsets) - 1)
    if kernel:
        return kernel.count_queries(offsets, ids, keep, n_queries)
    inside = ids[offsets[0] : offsets[-1]]
    if keep is not None:
        inside = inside[np.repeat(keep, np.diff(offsets))]
    return np.bincount(inside, minlength=n_queries).astype(np.int64)


def band_limits(counts: Counts, cap: Cap, *, stop: Mask | None = None) -> tuple[Words, Words]:
    """For each query the band (low, high) that holds the cap-th smallest of `count` uniform numbers, high included.

    The band runs from cap - 7 sqrt(cap) to cap + 7 sqrt(cap) + 20 expected matches. That is seven standard deviations,
    and 20 for the skew of small caps. A query with at most `cap` matches, or a stop query, has no band: (0, 0).
    """
    head = _head(counts, cap, stop)
    least, most = _window(_cap_of(cap, head))
    low, high = np.zeros(len(counts), np.uint64), np.zeros(len(counts), np.uint64)
    low[head] = _fraction(least, counts[head])
    high[head] = _fraction(most, counts[head])
    return low, high


def band_limits_after(
    counts: Counts, picked: Counts, tau: Words, cap: Cap, *, stop: Mask | None = None
) -> tuple[Words, Words]:
    """`band_limits` for the rows that an earlier balancing left. The fetch may have lost some of them since.

    Their hashes are not uniform. A query's own picks lie below its earlier threshold. The rows that only other queries
    picked lie above it. Within each of the two ranges the hashes are uniform.

    Args:
        counts: matches of each query among the rows that are left.
        picked: those of them whose hash is at most `tau`.
        tau: each query's threshold in the earlier balancing.
        cap, stop: of this balancing.
    """
    head = _head(counts, cap, stop)
    least, most = _window(_cap_of(cap, head))
    low, high = np.zeros(len(counts), np.uint64), np.zeros(len(counts), np.uint64)
    parts = picked[head], (counts - picked)[head], tau[head] / 2.0**64
    low[head] = _quantile(least, *parts)
    high[head] = _quantile(most, *parts)
    return low, high


def band_tuples(matches: Matches, keys: Words, low: Words, high: Words, *, stop: Mask | None = None) -> Band:
    """The matches whose h lies in their query's band, and the number below it. `keys` come from `CapPlan.keys`."""
    kernel = _kernel(len(matches.offsets) - 1)
    if kernel:
        few = few_of((high == 0) & ~_stop(stop, len(keys)))
        return Band(*kernel.band_tuples(matches, keys, low, high, few))
    row, query = _kept_matches(matches)
    h = draw(matches.pair_high[row], keys[query])
    head = high[query] > 0
    under, inside = head & (h < low[query]), head & (h >= low[query]) & (h <= high[query])
    may = under | inside | ~(head | _stop(stop, len(keys))[query])
    may_be_picked = np.zeros(len(matches.offsets) - 1, np.bool_)
    may_be_picked[row[may]] = True
    below = np.bincount(query[under], minlength=len(keys)).astype(np.int64)
    return Band(query[inside], h[inside], matches.pair_low[row[inside]], below, may_be_picked)


def thresholds(
    query: npt.NDArray[np.int32],
    hashes: Words,
    ties: Words,
    *,
    counts: Counts,
    below: Counts,
    cap: Cap,
    stop: Mask | None = None,
    only: Mask | None = None,
) -> Thresholds:
    """The exact threshold of every query from the tuples of all batches.

    Args:
        query, hashes, ties: all tuples of `band_tuples`, in any order.
        counts: matches of each query.
        below: matches of each query below its band, summed over the batches.
        cap: the most picks of a query, or of each query.
        stop: queries that pick nothing.
        only: the queries whose tuples are given, where several calls share the queries. The others come out as if
            they had no band.

    Raises:
        BandError: it names the queries whose threshold is outside the band.
    """
    head = _head(counts, cap, stop)
    if only is not None:
        head &= only
    tau = _without_band(len(counts), stop)
    order, starts = _order_of_tuples(query, hashes, ties, len(counts))
    hashes, ties = hashes[order], ties[order]
    heads = np.flatnonzero(head)
    start, end = starts[heads], starts[heads + 1]
    needed = _cap_of(cap, heads) - below[heads]
    failed = (needed < 1) | (needed > end - start)
    if failed.any():
        raise BandError(heads[failed].tolist())
    tau.hash[heads], tau.tie[heads] = hashes[start + needed - 1], ties[start + needed - 1]
    return tau


def bernoulli_thresholds(counts: Counts, cap: Cap, *, stop: Mask | None = None) -> Thresholds:
    """Thresholds at which a query picks each of its matches with the probability min(1, cap / count)."""
    tau = _without_band(len(counts), stop)
    head = _head(counts, cap, stop)
    tau.hash[head] = _fraction(_cap_of(cap, head) * 1.0, counts[head])
    return tau


def few_of(picks_all: Mask) -> Few:
    """The queries that do not pick all of their matches."""
    queries = np.flatnonzero(~picks_all)
    place = np.zeros(len(picks_all), np.int32)
    place[queries] = np.arange(1, len(queries) + 1)
    return Few(place, queries)


def with_few(tau: Thresholds) -> Thresholds:
    """The thresholds, ready for many calls of `pick`."""
    return tau._replace(few=few_of((tau.hash == HIGHEST) & (tau.tie == HIGHEST)))


def pick(matches: Matches, keys: Words, tau: Thresholds) -> Picks:
    """The rows that at least one query picks, and the queries that picked them."""
    kernel = _kernel(len(matches.offsets) - 1)
    if kernel:
        return Picks(*kernel.pick(matches, keys, tau if tau.few else with_few(tau)))
    row, query = _kept_matches(matches)
    h = draw(matches.pair_high[row], keys[query])
    picked = (h < tau.hash[query]) | ((h == tau.hash[query]) & (matches.pair_low[row] <= tau.tie[query]))
    row, query = row[picked], query[picked]
    per_row = np.bincount(row, minlength=len(matches.offsets) - 1)
    offsets = np.concatenate([[0], np.cumsum(per_row[per_row > 0])]).astype(np.int32)
    return Picks(per_row > 0, offsets, query)


def keep_probability(
    offsets: npt.NDArray[np.integer],
    ids: npt.NDArray[np.int32],
    counts: Counts,
    cap: Cap,
    *,
    stop: Mask | None = None,
) -> npt.NDArray[np.float32]:
    """P(a row is kept) = 1 - product over its queries of (1 - min(1, cap / count)); 0 for a row without queries."""
    return kept_with(offsets, ids, misses(counts, cap, stop=stop))


def misses(counts: Counts, cap: Cap, *, stop: Mask | None = None) -> npt.NDArray[np.float64]:
    """For each query the probability that it does not pick a match of its own."""
    _check_cap(cap)
    miss = 1.0 - np.minimum(1.0, cap / np.maximum(counts, 1))
    miss[_stop(stop, len(counts))] = 1.0
    return miss


def kept_with(
    offsets: npt.NDArray[np.integer], ids: npt.NDArray[np.int32], miss: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """`keep_probability` for many batches: `miss` is what `misses` gave."""
    return (1.0 - _survival(offsets, ids, miss)).astype(np.float32)


def expected_pairs(
    offsets: npt.NDArray[np.integer],
    ids: npt.NDArray[np.int32],
    counts: Counts,
    cap: Cap,
    *,
    stop: Mask | None = None,
) -> float:
    """The expected number of kept rows, the sum of their keep probabilities. Integers make it independent of order."""
    kept = 1.0 - _survival(offsets, ids, misses(counts, cap, stop=stop))
    return int(np.rint(kept * 2.0**32).astype(np.int64).sum()) / 2.0**32


def solve_cap(
    offsets: npt.NDArray[np.integer],
    ids: npt.NDArray[np.int32],
    counts: Counts,
    wanted: float,
    *,
    scale: float = 1.0,
    stop: Mask | None = None,
    caps_of: Callable[[int], Cap] | None = None,
) -> int:
    """The cap whose expected number of kept pairs is nearest to `wanted`; for `--target-pairs`.

    Args:
        offsets, ids: the queries of the deduplicated rows, or of a sample of them chosen by hash (`hash_sample`).
        counts: matches of each query over *all* rows.
        wanted: pairs to keep.
        scale: rows that one row of the sample stands for.
        stop: queries that pick nothing.
        caps_of: the caps of all queries that follow from a cap; None: all queries have the same one.

    Returns:
        A cap from 1 to max(counts). It is one of the two ends where even that end keeps too many or too few pairs.
    """
    low, high = 1, max(1, int(counts.max(initial=1)))  # bisection for the smallest cap that keeps at least `wanted`

    def expected(cap: int) -> float:
        return scale * expected_pairs(offsets, ids, counts, caps_of(cap) if caps_of else cap, stop=stop)

    while low < high:
        middle = (low + high) // 2
        if expected(middle) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low - 1 if low > 1 and wanted - expected(low - 1) < expected(low) - wanted else low


def hash_sample(pair_high: Words, share: float) -> Mask:
    """The rows of a sample of about `share` of all rows. The sample does not depend on how the data are cut."""
    return mix(pair_high, 0x73616D706C65) <= _fraction(share, np.ones(1))


def draw(pair_high: Words, keys: Words) -> Words:
    """h(pair, query): uniform in 1 .. 2^64 - 1. A threshold of 0 therefore picks nothing."""
    return np.maximum(mix(pair_high, keys), np.uint64(1))


def _kernel(rows: int) -> Any:
    """The compiled kernel, or None where it is not available or too few rows would use it."""
    return jit.kernel("pipeline.stages.selection_kernel", rows)


def _stop(stop: Mask | None, n_queries: int) -> Mask:
    return np.zeros(n_queries, np.bool_) if stop is None else stop


def _head(counts: Counts, cap: Cap, stop: Mask | None) -> Mask:
    """Queries that must choose: more matches than the cap allows, and not a stop query."""
    _check_cap(cap)
    return (counts > cap) & ~_stop(stop, len(counts))


def _check_cap(cap: Cap) -> None:
    if np.size(cap) and np.min(cap) < 1:
        raise ValueError(f"the cap must be at least 1, not {np.min(cap)}")


def _cap_of(cap: Cap, queries: npt.NDArray) -> Any:
    """The cap of some queries (a mask, or their ids)."""
    return cap[queries] if isinstance(cap, np.ndarray) else cap


def _window(cap: Any) -> tuple[Any, Any]:
    """The matches of a query that lie below its band, and those up to its end (see `band_limits`)."""
    width = 7.0 * np.sqrt(cap)
    return np.maximum(0.0, cap - width), cap + width + 20.0


def _order_of_tuples(
    query: npt.NDArray[np.int32], hashes: Words, ties: Words, n_queries: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The order by query, hash and tie, and the start of each query in it (the last entry is the end)."""
    order = np.argsort(hashes)
    by_query, starts = partition(query[order].astype(np.int64), n_queries)
    order = order[by_query]
    equal = (hashes[order][1:] == hashes[order][:-1]) & (query[order][1:] == query[order][:-1])
    if equal.any():  # rare; a sort by three keys takes three times as long, so it is not the first choice
        order = np.lexsort((ties, hashes, query))
    return order, starts


def _without_band(n_queries: int, stop: Mask | None) -> Thresholds:
    """Thresholds of queries without a band: they pick all of their matches, stop queries none."""
    bound = np.where(_stop(stop, n_queries), np.uint64(0), HIGHEST)
    return Thresholds(bound, bound.copy())


def _fraction(expected: Any, counts: npt.NDArray) -> Words:
    """expected / count as a fraction of 2^64, at most 2^64 - 1."""
    share = expected / counts
    scaled = np.minimum(share, 1.0 - 2.0**-53) * 2.0**64
    return np.where(share >= 1.0, HIGHEST, scaled.astype(np.uint64))


def _quantile(expected: Any, below: Counts, above: Counts, tau: npt.NDArray[np.float64]) -> Words:
    """The hash below which `expected` matches lie, where `below` lie evenly in 0 .. tau and `above` in tau .. 1."""
    inside = tau * expected / np.maximum(below, 1)
    beyond = tau + (1.0 - tau) * (expected - below) / np.maximum(above, 1e-9)
    return _fraction(1.0, 1.0 / np.maximum(np.where(expected <= below, inside, beyond), 2.0**-64))


def _kept_matches(matches: Matches) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """(row, query) of every match of the kept rows, in the order of the rows."""
    offsets = matches.offsets
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    query = matches.ids[offsets[0] : offsets[-1]]
    if matches.keep is None:
        return row, query
    kept = matches.keep[row]
    return row[kept], query[kept]


def _survival(
    offsets: npt.NDArray[np.integer], ids: npt.NDArray[np.int32], miss: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """For each row the probability that no query picks it. The factors are multiplied in the order of the ids."""
    kernel = _kernel(len(offsets) - 1)
    if kernel:
        return kernel.survival(offsets, ids, miss)
    survival = np.ones(len(offsets) - 1)
    lengths = np.diff(offsets)
    for place in range(int(lengths.max(initial=0))):  # one factor at a time, in the order of the kernel's loop
        rows = np.flatnonzero(lengths > place)
        survival[rows] *= miss[ids[offsets[rows] + place]]
    return survival
