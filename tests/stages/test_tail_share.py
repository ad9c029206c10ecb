"""The cap of each language: the share of matches in the tail is that of English; a cap for each query is exact."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from pipeline.stages import selection
from pipeline.stages.tail_share import caps_of_lists, caps_of_queries
from pipeline.text.matchers import ListOfLanguage
from tests.rows import zipf_matches

EN, DE, ZH = ListOfLanguage("en", 3, 8), ListOfLanguage("de", 0, 3), ListOfLanguage("zh", 8, 10)
LISTS = [DE, EN, ZH]
#                  de            en                  zh
COUNTS = np.array([1, 2, 7, 1, 2, 3, 94, 900, 0, 0])


def test_the_share_of_the_tail_is_that_of_english():
    """En: 100 of 1,000 matches belong to queries under 95, so the German cap is the count at which 10 % are reached."""
    assert caps_of_lists(COUNTS, LISTS, 95) == {"de": 1, "en": 95, "zh": 1}
    assert caps_of_lists(COUNTS, LISTS, 10_000) == {"de": 7, "en": 10_000, "zh": 1}
    assert caps_of_lists(COUNTS, LISTS, 1)["de"] == 1
    assert caps_of_lists(COUNTS, LISTS, 900) == {"de": 7, "en": 900, "zh": 1}  # no query is cut
    stop = np.arange(10) == 7  # without the query of 900 matches, 6 of 100 are under 4
    assert caps_of_lists(COUNTS, LISTS, 4, stop=stop)["de"] == 1
    assert caps_of_lists(COUNTS, LISTS, 95, stop=stop)["de"] == 7
    lists, counts = [ListOfLanguage("en", 0, 2), ListOfLanguage("de", 2, 5)], np.array([40, 60, 1, 2, 7])
    assert caps_of_lists(counts, lists, 50, stop=np.arange(5) == 4) == {"en": 50, "de": 2}
    assert caps_of_queries({"de": 1, "en": 5, "zh": 2}, LISTS).tolist() == [1] * 3 + [5] * 5 + [2] * 2


def test_without_english_the_largest_language_is_the_reference():
    lists = [ListOfLanguage("de", 0, 3), ListOfLanguage("fr", 3, 8)]
    assert caps_of_lists(COUNTS[:8], lists, 95) == {"de": 1, "fr": 95}


@given(st.integers(0, 2**32), st.lists(st.integers(1, 40), min_size=8, max_size=8))
@pytest.mark.parametrize("way", ["cap", "bernoulli"])
def test_a_cap_for_each_query_is_that_cap_for_the_query(way, seed, caps):
    rng = np.random.default_rng(seed)
    matches = zipf_matches(rng, 300, 8, least=1, most=4)
    counts = selection.count_queries(matches.offsets, matches.ids, matches.keep, 8)
    keys = rng.integers(1, 2**63, 8, dtype=np.uint64)
    each = np.array(caps)
    found = picked(matches, counts, keys, each, way)
    for query, cap in enumerate(caps):
        alone = picked(matches, counts, keys, cap, way)
        assert found.hash[query] == alone.hash[query] and found.tie[query] == alone.tie[query]
    if way == "cap":
        assert selection.pick(matches, keys, found).per_query(len(keys)).tolist() == np.minimum(counts, each).tolist()
    chance = selection.keep_probability(matches.offsets, matches.ids, counts, each)
    assert np.array_equal(
        selection.keep_probability(matches.offsets, matches.ids, counts, np.full(8, 5)),
        selection.keep_probability(matches.offsets, matches.ids, counts, 5),
    )
    assert ((chance > 0) & (chance <= 1)).all()


def picked(matches, counts, keys, cap, way):
    if way == "bernoulli":
        return selection.bernoulli_thresholds(counts, cap)
    low, high = selection.band_limits(counts, cap)
    band = selection.band_tuples(matches, keys, low, high)
    return selection.thresholds(band.query, band.hash, band.tie, counts=counts, below=band.below, cap=cap)


def test_a_cap_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        selection.band_limits(np.array([3, 4]), np.array([1, 0]))
