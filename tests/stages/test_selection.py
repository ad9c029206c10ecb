"""selection against oracles of dictionaries and full sorts: exact caps, and the statistics of the draws.

The seeds are fixed and the bounds of the statistics are wide (p > 1e-4). So a failure means a broken hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from pipeline.engine import hashing, jit
from pipeline.stages import caps, selection
from pipeline.stages.matches import Keys, Matches, Picks, Thresholds
from pipeline.stages.selection import HIGHEST, BandError
from tests.rows import zipf_matches

needs_kernels = pytest.mark.skipif(not jit.available(), reason="numba is not installed or OPENWIT_NO_KERNELS is set")


def take_way(monkeypatch, way: str) -> None:
    """Uses the reference functions only, or the kernels for any number of rows."""
    monkeypatch.setattr(jit, "available", lambda: way == "kernel")
    monkeypatch.setattr(jit, "FEW_ROWS", 0)


@pytest.fixture(params=["plain", pytest.param("kernel", marks=needs_kernels)])
def way(request, monkeypatch):
    """Runs a test with the reference and with the kernels."""
    take_way(monkeypatch, request.param)
    return request.param


class Data(NamedTuple):
    """Rows with Zipf-distributed queries."""

    matches: Matches
    keys: np.ndarray
    counts: np.ndarray

    @property
    def lists(self) -> tuple[np.ndarray, np.ndarray]:
        return self.matches.offsets, self.matches.ids


def make_data(rows: int = 20_000, queries: int = 300, seed: int = 0, *, mask: bool = True) -> Data:
    generator = np.random.default_rng(seed)
    made = zipf_matches(generator, rows, queries, least=0, most=8)
    keep = generator.random(rows) < 0.9 if mask else None
    matches = made._replace(keep=keep)
    keys = hashing.query_keys(pa.array([f"query {number}" for number in range(queries)]), seed)
    return Data(matches, keys, selection.count_queries(matches.offsets, matches.ids, keep, queries))


def cap_thresholds(data: Data, cap: int, *, parts: int = 1, stop: np.ndarray | None = None) -> Thresholds:
    """All steps to the thresholds, with the rows split into parts."""
    low, high = selection.band_limits(data.counts, cap, stop=stop)
    bands = [selection.band_tuples(part, data.keys, low, high, stop=stop) for part in cut(data.matches, parts)]
    return selection.thresholds(
        *(np.concatenate([getattr(band, name) for band in bands]) for name in ("query", "hash", "tie")),
        counts=data.counts,
        below=np.sum([band.below for band in bands], axis=0),
        cap=cap,
        stop=stop,
    )


def pick_bernoulli(data: Data, cap: int, *, keys: Any = None, stop: np.ndarray | None = None) -> Picks:
    """All steps if each match is picked with the probability cap / count."""
    tau = selection.bernoulli_thresholds(data.counts, cap, stop=stop)
    return selection.pick(data.matches, data.keys if keys is None else keys, tau)


def cut(matches: Matches, parts: int) -> list[Matches]:
    """The rows in parts. The offsets of all parts but the first do not begin at 0."""
    places = np.linspace(0, len(matches.offsets) - 1, parts + 1).astype(int)
    keep = matches.keep if matches.keep is not None else np.ones(len(matches.pair_high), np.bool_)
    return [
        Matches(matches.pair_high[a:b], matches.pair_low[a:b], matches.offsets[a : b + 1], matches.ids, keep[a:b])
        for a, b in zip(places[:-1], places[1:], strict=True)
    ]


def full_sort(data: Data, cap: int, stop: Set[int] = frozenset()) -> dict[int, list[int]]:
    """The oracle: every query sorts all its matches and takes the first. Returns {row: queries that picked it}."""
    draws: dict[int, list[tuple[int, int, int]]] = {}
    matches = data.matches
    for row in range(len(matches.pair_high)):
        if matches.keep is not None and not matches.keep[row]:
            continue
        ids = matches.ids[matches.offsets[row] : matches.offsets[row + 1]]
        for query, h in zip(ids.tolist(), selection.draw(matches.pair_high[row], data.keys[ids]).tolist(), strict=True):
            draws.setdefault(query, []).append((h, int(matches.pair_low[row]), row))
    picked: dict[int, list[int]] = {}
    for query in sorted(set(draws) - set(stop)):
        for _, _, row in sorted(draws[query])[:cap]:
            picked.setdefault(row, []).append(query)
    return picked


def as_dict(picks: Picks) -> dict[int, list[int]]:
    return dict(zip(np.flatnonzero(picks.selected).tolist(), picks.kept_by().to_pylist(), strict=True))


# ---- duplicates


def duplicates_by_dictionaries(keys: Keys, bound: int = 0) -> list[int]:
    """The oracle of find_duplicates."""
    rows = list(zip(*(column.tolist() for column in keys), strict=True))
    best: dict[tuple, int] = {}
    for at, (image, rank, _, size, *others, _) in enumerate(rows):
        other = best.get((image, rank))
        if other is None or (-size, *others) < (-rows[other][3], *rows[other][4:7]):
            best[image, rank] = at
    codes = [selection.SAME_PAIR] * len(rows)
    of_image: dict[int, list[int]] = {}
    for (image, _), at in best.items():
        of_image.setdefault(image, []).append(at)
    for texts in of_image.values():
        richest = min(texts, key=lambda at: (rows[at][7], -rows[at][2], rows[at][1]))
        for at in texts:
            codes[at] = selection.KEEP if at == richest else selection.OTHER_TEXT
    for at, row in enumerate(rows):
        codes[at] = selection.COMMON_TEXT if row[7] else codes[at]
        if bound and len(of_image[row[0]]) > bound:
            codes[at] = selection.PLACEHOLDER_URL
    return codes


def make_keys(rows: int, seed: int = 3) -> Keys:
    """Keys with many duplicates of every kind, including uids that agree in one word of two."""
    generator = np.random.default_rng(seed)
    text = generator.integers(0, 6, rows)
    image = hashing.finalise(generator.integers(0, rows // 8 + 1, rows))
    rank, size = hashing.mix(image, text), generator.integers(0, 3, rows).astype(np.uint32)
    pair = hashing.mix(rank, size)
    return Keys(
        image,
        rank,
        (text % 3).astype(np.uint8),
        size,
        generator.integers(0, 50, rows).astype(np.uint64),
        pair & ~np.uint64(1),
        hashing.mix(pair, 1),
        text == 4,
    )


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("rows", [0, 1, 5, 3000])
def test_find_duplicates(way, rows, bound):
    keys = make_keys(rows)
    codes = selection.find_duplicates(keys, placeholder_bound=bound)
    assert codes.dtype == np.uint8
    assert codes.tolist() == duplicates_by_dictionaries(keys, bound=bound)
    assert rows < 3000 or bound == 1 or {*codes.tolist()} == {0, 1, 2, 4, *([3] if bound else [])}


def test_of_equal_pairs_the_largest_variant_stays_then_the_provenance_decides_then_the_uid(way):
    words = np.array([0, 0, 0, 0, 0], np.uint64)
    keys = Keys(
        words, words, np.ones(5, np.uint8), np.array([1, 2, 2, 2, 2], np.uint32),
        np.array([0, 9, 5, 5, 5], np.uint64), np.array([1, 1, 3, 2, 2], np.uint64),
        np.array([1, 1, 1, 9, 8], np.uint64), np.zeros(5, np.bool_),
    )  # fmt: skip
    assert selection.find_duplicates(keys).tolist() == [1, 1, 1, 1, 0]


def test_the_richest_text_stays(way):
    image, rank = np.array([7, 7, 7, 8, 8], np.uint64), np.array([1, 3, 2, 5, 4], np.uint64)
    words, other = np.array([2, 9, 9, 1, 1], np.uint8), np.zeros(5, np.uint64)
    keys = Keys(image, rank, words, np.ones(5, np.uint32), other, rank, rank, np.zeros(5, np.bool_))
    assert selection.find_duplicates(keys).tolist() == [2, 2, 0, 2, 0]
    common = keys._replace(common=np.array([False, False, True, False, True]))
    assert selection.find_duplicates(common).tolist() == [2, 0, 4, 0, 4]
    assert selection.find_duplicates(common, placeholder_bound=2).tolist() == [3, 3, 3, 0, 4]


def test_find_duplicates_sees_no_order(way):
    keys = make_keys(2000)._replace(provenance=hashing.finalise(np.arange(2000)))  # all different
    codes = selection.find_duplicates(keys, placeholder_bound=4)
    order = np.random.default_rng(5).permutation(2000)
    again = selection.find_duplicates(Keys(*(column[order] for column in keys)), placeholder_bound=4)
    assert np.array_equal(again, codes[order])


def links_by_dictionaries(keys: Keys, codes: list[int], captions: int) -> set[tuple[int, int, int, bool]]:
    """The oracle of find_links."""
    rows = list(zip(*(column.tolist() for column in keys), strict=True))
    kept = {rows[at][0]: at for at, code in enumerate(codes) if code == selection.KEEP}
    links = set()
    for image, target in kept.items():
        others = [at for at, row in enumerate(rows) if row[0] == image and codes[at] in (2, 4)]
        others.sort(key=lambda at: (rows[at][7], -rows[at][2], rows[at][1], -rows[at][3], *rows[at][4:7]))
        texts = [at for at in others if not rows[at][7]][: captions - 1]
        largest = min(others, key=lambda at: -rows[at][3], default=target)
        for at in others:
            number = 1 + texts.index(at) if at in texts else 0
            gives_url = at == largest and rows[at][3] > rows[target][3]
            links |= {(at, target, number, gives_url)} if number or gives_url else set()
    return links


@pytest.mark.parametrize("captions", [1, 2, 8])
@pytest.mark.parametrize("rows", [0, 1, 5, 3000])
def test_find_links(rows, captions):
    keys = make_keys(rows)._replace(provenance=hashing.finalise(np.arange(rows)))  # all different
    codes = selection.find_duplicates(keys, placeholder_bound=4)
    links = selection.find_links(keys, codes, captions)
    found = set(zip(*(column.tolist() for column in links), strict=True))
    assert found == links_by_dictionaries(keys, codes.tolist(), captions) and len(found) == len(links.source)
    assert rows < 3000 or {number for _, _, number, _ in found} == set(range(min(captions, 4)))


def test_texts_of_many_images():
    text = np.array([5, 5, 5, 3, 3, 3, 9, 5], np.uint64)
    image = np.array([1, 2, 3, 1, 2, 1, 1, 1], np.uint64)
    assert selection.find_common_texts(text, image, 2).tolist() == [5]
    assert selection.find_common_texts(text, image, 1).tolist() == [3, 5]
    assert selection.find_common_texts(text[:0], image[:0], 1).tolist() == []


def test_texts_of_many_images_among_many(way):
    text, image = np.random.default_rng(6).integers(0, [300, 40], (4000, 2), dtype=np.uint64).T
    text[:2000] = hashing.finalise(np.arange(2000))
    images = Counter(text for text, _ in set(zip(text.tolist(), image.tolist(), strict=True)))
    expected = sorted(text for text, count in images.items() if count > 5)
    assert selection.find_common_texts(text, image, 5).tolist() == expected and 100 < len(expected) < 300


def test_queries_that_pick_all_of_their_matches(way):
    """The same rows are picked if they are known. Any other query stands in small tables."""
    data, stop = make_data(2000), np.arange(300) % 50 == 0
    tau = selection.with_few(cap_thresholds(data, 40, stop=stop))
    assert tau.few is not None and tau.few.queries.tolist() == np.flatnonzero((data.counts > 40) | stop).tolist()
    picks, known = (selection.pick(data.matches, data.keys, some) for some in (tau._replace(few=None), tau))
    assert all(np.array_equal(one, other) for one, other in zip(picks, known, strict=True))


# ---- counting and the exact cap


def test_count_queries(way):
    data = make_data(500)
    expected = np.zeros(300, np.int64)
    assert data.matches.keep is not None
    for row in np.flatnonzero(data.matches.keep):
        expected[data.matches.ids[data.matches.offsets[row] : data.matches.offsets[row + 1]]] += 1
    assert np.array_equal(selection.count_queries(*data.lists, data.matches.keep, 300), expected)
    parts = [selection.count_queries(part.offsets, part.ids, part.keep, 300) for part in cut(data.matches, 3)]
    assert np.array_equal(np.sum(parts, axis=0), expected)


@pytest.mark.parametrize("cap", [1, 2, 5, 30, 400])
def test_the_cap_is_the_full_bottom(way, cap):
    data = make_data(6000)
    tau = cap_thresholds(data, cap, parts=3)
    picks = selection.pick(data.matches, data.keys, tau)
    assert np.array_equal(picks.per_query(len(data.keys)), np.minimum(data.counts, cap))
    assert as_dict(picks) == full_sort(data, cap)
    assert len(picks.offsets) == picks.selected.sum() + 1 and picks.per_query(len(data.keys)).sum() == len(picks.ids)


@pytest.mark.parametrize("cap", [1, 2, 3, 5])
def test_bands_of_small_caps_hold(way, cap):
    """A band of six standard deviations is too narrow: at t = 1 it lost 9 of 44,006 queries."""
    for seed in range(20):
        data = make_data(4000, 2000, seed)
        picks = selection.pick(data.matches, data.keys, cap_thresholds(data, cap))
        assert np.array_equal(picks.per_query(len(data.keys)), np.minimum(data.counts, cap))


def test_bands_are_narrow(way):
    data = make_data(20_000, 20)
    low, high = selection.band_limits(data.counts, 1000)
    band = selection.band_tuples(data.matches, data.keys, low, high)
    tuples = np.bincount(band.query, minlength=20)[data.counts > 1000]
    assert (tuples < 2 * 7 * np.sqrt(1000) + 20 + 150).all() and len(tuples) >= 10


def test_rows_that_no_threshold_can_pick(way):
    data = make_data(20_000, 20)
    low, high = selection.band_limits(data.counts, 100)
    band = selection.band_tuples(data.matches, data.keys, low, high)
    picks = selection.pick(data.matches, data.keys, cap_thresholds(data, 100))
    assert not (picks.selected & ~band.may_be_picked).any()
    assert band.may_be_picked.sum() < 2 * picks.selected.sum()  # the band ends at 1.9 times the cap


def test_selection_does_not_see_order_parts_or_ids(way):
    data = make_data(3000)
    expected = selection.pick(data.matches, data.keys, cap_thresholds(data, 7))
    chosen = set(data.matches.pair_low[expected.selected].tolist())
    pieces = cut(data.matches, 5)[::-1]
    renumber = np.random.default_rng(8).permutation(300)
    keys = np.empty_like(data.keys)
    keys[renumber] = data.keys
    tau = cap_thresholds(data, 7, parts=4)
    moved = Thresholds(np.empty_like(tau.hash), np.empty_like(tau.tie))
    moved.hash[renumber], moved.tie[renumber] = tau.hash, tau.tie
    again = set()
    for piece in pieces:
        renamed = piece._replace(ids=renumber[piece.ids].astype(np.int32))
        again |= set(piece.pair_low[selection.pick(renamed, keys, moved).selected].tolist())
    assert again == chosen


def test_equal_hashes_are_decided_by_the_low_word(way):
    """Three uids with the same high word have equal hashes for every query. There are still exactly `cap` picks."""
    high, low = np.full(3, 5, np.uint64), np.array([30, 10, 20], np.uint64)
    matches = Matches(high, low, np.arange(4, dtype=np.int32), np.zeros(3, np.int32))
    data = Data(matches, hashing.query_keys(pa.array(["q"])), np.array([3]))
    for cap, expected in ((1, [False, True, False]), (2, [False, True, True]), (3, [True, True, True])):
        picks = selection.pick(matches, data.keys, cap_thresholds(data, cap))
        assert picks.selected.tolist() == expected and picks.per_query(len(data.keys)).tolist() == [cap]


def test_a_larger_cap_keeps_what_a_smaller_one_kept(way):
    data = make_data()
    before = np.zeros(len(data.matches.pair_high), np.bool_)
    for cap in (1, 5, 50, 500):
        selected = selection.pick(data.matches, data.keys, cap_thresholds(data, cap)).selected
        bernoulli = pick_bernoulli(data, cap).selected
        assert not (before & ~selected).any()
        before = selected
        share = (bernoulli & selected).sum() / (bernoulli | selected).sum()
        assert share > (0.9 if cap >= 50 else 0.3)  # most pairs are the same, and more with a larger cap


def test_thresholds_in_shares_of_the_queries():
    data = make_data(5000)
    low, high = selection.band_limits(data.counts, 9)
    band = selection.band_tuples(data.matches, data.keys, low, high)
    whole = cap_thresholds(data, 9)
    tau, tie = np.full(300, HIGHEST), np.full(300, HIGHEST)
    for share in range(4):
        only = np.arange(300) % 4 == share
        mine = only[band.query]
        words = band.query[mine], band.hash[mine], band.tie[mine]
        part = selection.thresholds(*words, counts=data.counts, below=band.below, cap=9, only=only)
        tau[only], tie[only] = part.hash[only], part.tie[only]
    assert np.array_equal(tau, whole.hash) and np.array_equal(tie, whole.tie)


def test_a_failed_band_is_named():
    data = make_data(5000)
    low, high = selection.band_limits(data.counts, 9)
    band = selection.band_tuples(data.matches, data.keys, low, high)
    lost = band.query != 3
    words = band.query[lost], band.hash[lost], band.tie[lost]
    with pytest.raises(BandError, match=r"1 queries, ids \[3\]") as error:
        selection.thresholds(*words, counts=data.counts, below=band.below, cap=9)
    assert error.value.queries == [3]
    with pytest.raises(ValueError, match="at least 1"):
        selection.band_limits(data.counts, 0)


def test_stop_queries_are_counted_but_pick_nothing(way):
    data = make_data(6000)
    stop = np.zeros(300, np.bool_)
    stop[[0, 1, 250]] = True  # two heads and a tail
    for cap in (2, 50):
        tau = cap_thresholds(data, cap, stop=stop)
        picks = selection.pick(data.matches, data.keys, tau)
        assert as_dict(picks) == full_sort(data, cap, stop=set(np.flatnonzero(stop).tolist()))
        assert not picks.per_query(len(data.keys))[stop].any()
        bernoulli = pick_bernoulli(data, cap, stop=stop)
        assert not bernoulli.per_query(len(data.keys))[stop].any()
    alone = np.array([0, 1, 2], np.int32), np.array([0, 250], np.int32)
    assert selection.keep_probability(*alone, data.counts, 5, stop=stop).tolist() == [0, 0]


def test_no_rows_and_rows_without_queries(way):
    keys = hashing.query_keys(pa.array(["a", "b"]))
    for rows in (0, 2):
        words = np.ones(rows, np.uint64)
        matches = Matches(words, words, np.zeros(rows + 1, np.int32), np.zeros(0, np.int32))
        data = Data(matches, keys, selection.count_queries(*matches[2:4], None, 2))
        picks = selection.pick(matches, keys, cap_thresholds(data, 1))
        assert picks.selected.tolist() == [False] * rows and len(picks.kept_by()) == 0
        assert selection.keep_probability(*data.lists, data.counts, 1).tolist() == [0.0] * rows


def test_a_query_in_more_than_a_share_of_the_texts_picks_nothing():
    limits = SimpleNamespace(plan=SimpleNamespace(policy=caps.Policy(stop_share=0.5)))
    assert caps.CapWindows._stop(limits, np.array([5, 4, 6, 0]), 10).tolist() == [False, False, True, False]
    limits.plan.policy = caps.Policy()
    assert caps.CapWindows._stop(limits, np.array([10]), 10).tolist() == [False]


def test_matches_from_arrow(way):
    uid = hashing.uids(np.arange(8, dtype=np.uint64).reshape(4, 2))
    lists = pa.array([[9], [0, 2], [], [1]], pa.list_(pa.int32()))
    for kind in (pa.list_(pa.int32()), pa.large_list(pa.int32())):
        matches = Matches.from_arrow(uid.slice(1), lists.cast(kind).slice(1))
        assert selection.count_queries(matches.offsets, matches.ids, matches.keep, 3).tolist() == [1, 1, 1]
        assert matches.pair_high.tolist() == [2, 4, 6] and matches.pair_low.tolist() == [3, 5, 7]
    nothing = Matches.from_arrow(uid[:2], pa.array([[], []], pa.list_(pa.int32())))
    assert nothing.ids.tolist() == [] and nothing.offsets.tolist() == [0, 0, 0]
    wrong = [([[9], None], pa.int32()), ([[9], [None]], pa.int32()), ([[9], [1]], pa.int64())]
    for rows, kind in wrong:
        with pytest.raises(TypeError, match="expected lists of int32 without nulls"):
            Matches.from_arrow(uid[:2], pa.array(rows, pa.list_(kind)))


@needs_kernels
def test_kernels_refuse_ids_they_would_write_outside_with(monkeypatch):
    take_way(monkeypatch, "kernel")
    offsets = np.array([0, 1], np.int32)
    for ids in ([2], [-1]):
        with pytest.raises(ValueError, match="query ids outside"):
            selection.count_queries(offsets, np.array(ids, np.int32), None, 2)
    with pytest.raises(ValueError, match="offsets"):
        selection.count_queries(np.array([0, 2], np.int32), np.array([0], np.int32), None, 2)


@needs_kernels
def test_kernels_give_the_very_same_arrays(monkeypatch):
    """Equal bit for bit, including the float probabilities."""
    data = make_data()
    keys = make_keys(20_000)
    stop = np.arange(300) % 50 == 0
    results = []
    for way in ("plain", "kernel"):
        take_way(monkeypatch, way)
        low, high = selection.band_limits(data.counts, 40, stop=stop)
        tau = cap_thresholds(data, 40, parts=2, stop=stop)
        results.append(
            [
                selection.find_duplicates(keys, placeholder_bound=5),
                selection.count_queries(*data.lists, data.matches.keep, 300),
                *selection.band_tuples(data.matches, data.keys, low, high, stop=stop),
                tau.hash,
                tau.tie,
                *selection.pick(data.matches, data.keys, tau),
                *selection.pick(data.matches, data.keys, selection.with_few(tau)),
                selection.keep_probability(*data.lists, data.counts, 40, stop=stop),
            ]
        )
    for plain, kernel in zip(*results, strict=True):
        assert plain.dtype == kernel.dtype and np.array_equal(plain, kernel)


# ---- probabilities and the solver


def test_keep_probability_is_the_formula(way):
    data = make_data(400)
    for row, probability in enumerate(selection.keep_probability(*data.lists, data.counts, 3).tolist()):
        ids = data.matches.ids[data.matches.offsets[row] : data.matches.offsets[row + 1]]
        shares = [min(1.0, 3 / max(1, int(data.counts[query]))) for query in ids]
        assert probability == pytest.approx(1 - np.prod([1 - share for share in shares]), abs=1e-6)


@pytest.mark.parametrize("wanted", [1, 700, 3000, 6000, 10**9])
def test_solve_cap_finds_the_nearest(way, wanted):
    data = make_data(10_000, mask=False)
    cap = selection.solve_cap(*data.lists, data.counts, wanted)
    expected = {t: selection.expected_pairs(*data.lists, data.counts, t) for t in (cap - 1, cap, cap + 1) if t > 0}
    assert 1 <= cap <= data.counts.max()
    if wanted in (700, 3000, 6000):
        assert abs(expected[cap] - wanted) == min(abs(value - wanted) for value in expected.values())
        kept = selection.pick(data.matches, data.keys, cap_thresholds(data, cap)).selected.sum()
        assert abs(kept - wanted) <= 0.5 * (expected[cap + 1] - expected[cap - 1]) + 4 * np.sqrt(wanted)


def test_solve_cap_from_a_sample():
    data = make_data(60_000, mask=False)
    sample = selection.hash_sample(data.matches.pair_high, 0.25)
    assert abs(sample.mean() - 0.25) < 0.01
    lists = pa.ListArray.from_arrays(pa.array(data.matches.offsets), pa.array(data.matches.ids)).filter(
        pa.array(sample)
    )
    words = np.asarray(lists.offsets), np.asarray(lists.values)
    cap = selection.solve_cap(*words, data.counts, 12_000, scale=1 / sample.mean())
    assert selection.expected_pairs(*data.lists, data.counts, cap) == pytest.approx(12_000, rel=0.02)
    stop = np.arange(300) < 200
    assert selection.solve_cap(*words, data.counts, 12_000, scale=1 / sample.mean(), stop=stop) > cap


# ---- statistics of the draws (the same distribution as independent random numbers)


class Draws(NamedTuple):
    """The results of Bernoulli selection over many seeds, and the exact probabilities."""

    data: Data
    probability: np.ndarray  # of each row
    kept: np.ndarray  # seeds x rows


@pytest.fixture(scope="module")
def draws():
    data = make_data(10_000, 200, mask=False)
    queries = pa.array([f"query {number}" for number in range(200)])
    lists = data.lists
    miss = 1 - np.minimum(1, 10 / np.maximum(data.counts, 1))
    rows = np.repeat(np.arange(10_000), np.diff(lists[0]))
    probability = 1 - np.exp(np.bincount(rows, np.log(np.maximum(miss[lists[1]], 1e-300)), minlength=10_000))
    kept = [pick_bernoulli(data, 10, keys=hashing.query_keys(queries, seed)).selected for seed in range(400)]
    return Draws(data, probability, np.array(kept))


def test_totals_have_the_exact_mean_and_variance(draws):
    p = draws.probability
    totals = draws.kept.sum(axis=1)
    expected, variance = p.sum(), (p * (1 - p)).sum()
    assert abs(totals.mean() - expected) < 4 * np.sqrt(variance / len(totals))
    statistic = ((totals - expected) ** 2).sum() / variance
    assert 1e-4 < stats.chi2.cdf(statistic, len(totals)) < 1 - 1e-4


def test_bins_of_rows_are_chi_square(draws):
    p = draws.probability
    open_rows = np.flatnonzero((p > 0) & (p < 1))
    bins = np.array_split(open_rows[np.argsort(p[open_rows], kind="stable")], 50)
    statistics = np.zeros(len(draws.kept))
    for rows in bins:
        excess = draws.kept[:, rows].sum(axis=1) - p[rows].sum()
        statistics += excess**2 / (p[rows] * (1 - p[rows])).sum()
    assert stats.kstest(stats.chi2.cdf(statistics, 50), "uniform").pvalue > 1e-4


def test_queries_keep_what_they_should(draws):
    p, (offsets, ids) = draws.probability, draws.data.lists
    weight = np.repeat(p, np.diff(offsets)), np.repeat(p * (1 - p), np.diff(offsets))
    expected, variance = (np.bincount(ids, values, minlength=200) for values in weight)
    mean = np.mean([np.bincount(ids[np.repeat(kept, np.diff(offsets))], minlength=200) for kept in draws.kept], axis=0)
    head = (draws.data.counts > 10) & (variance > 0)
    z = (mean - expected)[head] / np.sqrt(variance[head] / len(draws.kept))
    assert abs(z.mean()) < 0.5 and 0.8 < z.std() < 1.2 and abs(z).max() < 5


def test_pairs_of_rows_are_independent(draws):
    """Rows with a common query or with neighbouring hashes are kept together no more often than by chance."""
    p = draws.probability
    half = np.flatnonzero((p > 0.3) & (p < 0.7))
    order = half[np.argsort(draws.data.matches.pair_high[half])]
    for first, second in ((half[:-1], half[1:]), (order[:-1], order[1:])):
        both = (draws.kept[:, first] & draws.kept[:, second]).sum()
        chance = p[first] * p[second]
        z = (both - len(draws.kept) * chance.sum()) / np.sqrt(len(draws.kept) * (chance * (1 - chance)).sum())
        assert abs(z) < 5


def test_draws_of_one_pair_are_uniform_and_independent():
    pairs = hashing.finalise(np.arange(20_000))
    keys = hashing.query_keys(pa.array(["a", "b"]))
    first, second = (selection.draw(pairs, key) / 2.0**64 for key in keys)
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(20_000)
    assert stats.kstest((first + second) % 1, "uniform").pvalue > 1e-4
