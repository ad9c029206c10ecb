"""What a sample tells of the whole: duplicates and balancing, against wholes that are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.planning.costs import COSTS, SIZES
from pipeline.planning.takes import Images, Rows, Setting, takes
from pipeline.planning.whole import Caps, Growth, Interval, ratio
from pipeline.stages import selection
from tests.rows import zipf_matches


def distinct(images: np.ndarray):
    return lambda mask: len(np.unique(images[mask]))


@pytest.mark.parametrize("skewed", [False, True], ids=["even", "skewed"])
def test_duplicates_of_the_whole(skewed: bool) -> None:
    rng, rows = np.random.default_rng(1), 200_000
    images = rng.zipf(1.6, rows) % 10**9 if skewed else rng.integers(0, 60_000, rows)
    share = len(np.unique(images)) / rows
    few = images[rng.permutation(rows)[: rows // 20]]
    growth = Growth.measure(np.arange(len(few)), distinct(few))
    found = growth.at(20)
    assert found.low <= share <= found.high and share / 1.3 < found.value < share * 1.3
    assert growth.share > 1.2 * share  # the share of the sample itself is far off
    assert growth.at(1.0) == Interval(growth.share, growth.share, growth.share)


def test_rows_without_duplicates_grow_with_the_input() -> None:
    growth = Growth.measure(np.arange(5_000), distinct(np.arange(5_000)))
    assert growth.at(1_000) == Interval(1.0, 1.0, 1.0)
    assert Growth.measure(np.zeros(0, np.int64), distinct(np.zeros(0))).at(9).value == 1.0


def test_the_pairs_that_caps_keep_of_the_whole() -> None:
    rng = np.random.default_rng(2)
    every = zipf_matches(rng, 60_000, 5_000, least=1, most=4)
    counts = selection.count_queries(every.offsets, every.ids, None, 5_000)
    chosen = rng.permutation(60_000)[:3_000]
    lengths = np.diff(every.offsets)[chosen]
    ids = np.concatenate([every.ids[every.offsets[row] : every.offsets[row + 1]] for row in chosen])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    caps = Caps.fit(offsets, ids, np.full(3_000, 20.0), queries=5_000)
    for cap in (10, 100, 1_000, 10_000):
        wanted = selection.expected_pairs(every.offsets, every.ids, counts, cap)
        found = caps.kept(cap)
        assert wanted / 1.2 < found.value < wanted * 1.2 and found.low <= found.value <= found.high, cap
    assert caps.kept(10**6).value == pytest.approx(60_000) and caps.kept(10, np.ones(5_000, np.bool_)).value == 0
    wanted = selection.expected_pairs(every.offsets, every.ids, counts, 100)
    assert 80 < caps.cap_for(wanted) < 125
    whole = Caps.fit(every.offsets.astype(np.int64), every.ids, np.ones(60_000), queries=5_000)
    assert whole.kept(50).value == pytest.approx(selection.expected_pairs(every.offsets, every.ids, counts, 50))


def test_the_rows_of_the_whole_and_their_interval() -> None:
    rng = np.random.default_rng(3)
    amounts = np.full(40, 100.0)
    rows = rng.poisson(30, 40).astype(float)
    found = ratio(amounts, rows, 400_000.0)
    assert found.low < 120_000 < found.high and found.high < 1.2 * found.low
    assert ratio(amounts, rows, 4_000.0) == Interval(rows.sum(), rows.sum(), rows.sum())
    assert ratio(np.zeros(0), np.zeros(0), 7.0).high == 0.0
    one = ratio(amounts[:1], rows[:1], 1_000.0)
    assert one.low < one.value < one.high


def test_only_what_is_to_do_is_counted() -> None:
    rows = Rows(*(Interval(count, count, count) for count in (100.0, 90.0, 80.0, 70.0, 60.0, 50.0, 40.0, 40.0)))
    images = Images(0.5, Interval(1, 1, 1), Interval(1, 1, 1), Interval(1, 1, 1), 1_000.0, 0.01)
    setting = Setting(10, 1, 1, 1, 5.0, 5.0, 2, False, ("fetch", "dedup-images", "publish"), 1.0)
    more = {"gather_cpu": 1.0, "parts_bytes": 800.0, "hosts": 10.0, "costs": COSTS, "sizes": SIZES}
    found = takes(rows, images, setting=setting, **more)  # type: ignore[arg-type]
    assert set(found.cpu) == {"start", "fetch", "publish"} and set(found.stages_bytes) == {"fetch", "publish"}
    assert found.requests == {"inputs": 0.0, "images": 30 * COSTS.tries, "hosts": 20.0}
    assert found.wall is not None and found.wall > 0 and found.published_bytes > 40_000
    every = dataclasses.replace(setting, stages=("gather", "match", *setting.stages), workers=None)
    found = takes(rows, images, setting=every, **more)  # type: ignore[arg-type]
    assert found.cpu["match"] == 1.0 + COSTS.input + COSTS.unit
    assert found.wall is None and found.requests["inputs"] == 2.0
