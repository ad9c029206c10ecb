"""Keyed permutations and draws."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_train import keyed


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_a_permutation_hits_everything_once(size, seed):
    key = keyed.combine(seed)
    order = keyed.permute(np.arange(size), size, key)
    assert sorted(order.tolist()) == list(range(size))


def test_places_can_be_asked_one_by_one_and_far_out():
    key = keyed.combine(7, 1)
    size = 400_000_000
    places = np.array([0, 1, 399_999_999, 123_456_789])
    together = keyed.permute(places, size, key)
    assert together.min() >= 0 and together.max() < size and len(set(together.tolist())) == 4
    assert [int(keyed.permute(places[n : n + 1], size, key)[0]) for n in range(4)] == together.tolist()


def test_neighbours_are_scattered_and_keys_differ():
    size = 10_000
    a, b = (keyed.permute(np.arange(size), size, keyed.combine(seed)) for seed in (0, 1))
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.05 and abs(np.corrcoef(np.arange(size), a)[0, 1]) < 0.05
    assert (a == b).mean() < 0.01
    # all places are equally likely: chi square over 100 cells, of where the first hundred go
    destinations = np.concatenate([keyed.permute(np.arange(100), size, keyed.combine(seed)) for seed in range(100)])
    counts = np.bincount(destinations // 100, minlength=100)
    assert ((counts - 100) ** 2 / 100).sum() < 150


def test_uniforms_are_uniform_and_stable():
    draws = keyed.uniforms(keyed.combine(3, np.arange(20_000, dtype=np.uint64)), 3)
    assert draws.shape == (20_000, 3) and 0 <= draws.min() and draws.max() < 1
    assert np.allclose(draws.mean(0), 0.5, atol=0.01) and np.allclose(draws.std(0), 12**-0.5, atol=0.01)
    # the order of a run must be the same in every version
    assert keyed.combine(1, 2, 3).tolist() == [STABLE]
    assert keyed.permute(np.arange(10), 10, keyed.combine(0)).tolist() == STABLE_ORDER


STABLE = 5246500226706903259
STABLE_ORDER = [9, 6, 2, 1, 4, 7, 3, 8, 5, 0]
