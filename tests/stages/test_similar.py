"""Pairs of pictures by two hashes, and the groups that they form: against all pairs, compiled and not."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages import similar, similar_kernel
from pipeline.stages.picture_hashes import Hashes

PLAIN = np.full((1, 192), 100, np.uint8)


def pictures(seed: int, count: int) -> np.ndarray:
    """Random mean colours with contrast."""
    return np.random.default_rng(seed).integers(20, 230, (count, 192), np.uint8)


def naive_alike(a: int, b: int, some: np.ndarray, other: np.ndarray, distance: int) -> bool:
    """The definition, with floats."""
    if (a ^ b).bit_count() > distance or max(abs(int(x) - int(y)) for x, y in zip(some, other, strict=True)) > 24:
        return False
    brightness = [[(77 * r + 150 * g + 29 * b) >> 8 for r, g, b in p.reshape(64, 3).tolist()] for p in (some, other)]
    return bool(np.corrcoef(brightness)[0, 1] ** 2 >= 0.96)


def naive_groups(phash: list[int], colours: np.ndarray, distance: int) -> list[int]:
    """The smallest member of the group of each picture, by all pairs."""
    label = list(range(len(phash)))
    for a, b in itertools.combinations(range(len(phash)), 2):
        if naive_alike(phash[a], phash[b], colours[a], colours[b], distance):
            low, high = sorted((label[a], label[b]))
            label = [low if one == high else one for one in label]
    return label


def under_all_blocks(phash: np.ndarray, colours: np.ndarray, distance: int) -> Hashes:
    """Each picture once under each block."""
    blocks = distance + 1
    block = np.tile(np.arange(blocks, dtype=np.uint8), len(phash))
    return Hashes(block, np.repeat(phash, blocks), np.repeat(colours, blocks, axis=0))


def groups_of_pictures(phash: np.ndarray, colours: np.ndarray, distance: int) -> list[int]:
    root = similar.groups(under_all_blocks(phash, colours, distance), distance) // (distance + 1)
    return similar.connect(len(phash), np.repeat(np.arange(len(phash)), distance + 1), root).tolist()


@pytest.fixture(params=["reference", "kernel"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("numba")
    kernel = similar_kernel if request.param == "kernel" else None
    monkeypatch.setattr(similar.jit, "kernel", lambda name, rows: kernel)
    return request.param


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_groups_are_those_of_all_pairs(data: st.DataObject) -> None:
    distance = data.draw(st.integers(0, 8))
    base = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    flips = st.lists(st.integers(0, 63), max_size=distance + 1)
    made = data.draw(
        st.lists(
            st.tuples(st.sampled_from(base), flips, st.integers(0, 2), st.sampled_from([0, 12, 24, 25])),
            min_size=1,
            max_size=16,
        )
    )
    phash = [one ^ sum({1 << bit for bit in bits}) for one, bits, _, _ in made]
    kinds = pictures(1, 3)
    colours = np.array([kinds[kind] for _, _, kind, _ in made], np.uint8)
    for row, (_, _, _, more) in enumerate(made):
        colours[row, 7] += np.uint8(more)
    expected = naive_groups(phash, colours, distance)
    words = np.array(phash, np.uint64)
    order, ends = similar._runs(under_all_blocks(words, colours, distance), distance)
    hashes = under_all_blocks(words, colours, distance)
    compiled = similar_kernel.groups(hashes, order, ends, distance)
    assert (compiled == similar._groups(hashes.take(order), ends, distance)).all()
    assert groups_of_pictures(words, colours, distance) == expected


def test_groups_do_not_depend_on_the_order_of_the_pictures(way: str) -> None:
    random = np.random.default_rng(3)
    phash = random.integers(0, 2**64, 60, np.uint64)
    phash[20:40] = phash[:20] ^ (np.uint64(1) << random.integers(0, 64, 20).astype(np.uint64))
    colours = np.tile(pictures(2, 1), (60, 1))
    first = groups_of_pictures(phash, colours, 2)
    assert len(set(first)) == 40
    moved = random.permutation(60)
    again = np.array(groups_of_pictures(phash[moved], colours[moved], 2))
    assert len(set(zip(np.array(first)[moved].tolist(), again.tolist(), strict=True))) == 40


def test_colours_agree_up_to_the_bounds() -> None:
    one = pictures(5, 1)
    for change, agree in [(24, True), (25, False)]:
        other = one.copy()
        other[0, 100] += change
        assert similar.colours_agree(one, other).tolist() == [agree]
    inverted = 255 - one
    assert not similar.colours_agree(one, inverted)[0]
    soft = (100 + one // 8).astype(np.uint8)  # little contrast: colours are near, but their brightness is another
    other = (100 + pictures(6, 1) // 8).astype(np.uint8)
    assert np.abs(soft.astype(int) - other).max() > 24 or not similar.colours_agree(soft, other)[0]


def test_plain_pictures_have_no_contrast(way: str) -> None:
    half = PLAIN.copy()
    half[0, :96] = 100 + 24  # a standard deviation of 12
    assert similar.has_contrast(np.concatenate([PLAIN, half, half - (half == 124), pictures(7, 1)])).tolist() == [
        False,
        True,
        False,
        True,
    ]


def test_nothing_and_one_picture(way: str) -> None:
    none = Hashes(np.zeros(0, np.uint8), np.zeros(0, np.uint64), np.zeros((0, 192), np.uint8))
    assert similar.groups(none, 2).tolist() == []
    assert similar.connect(3, np.array([2]), np.array([1])).tolist() == [0, 1, 1]
    assert groups_of_pictures(np.zeros(1, np.uint64), pictures(1, 1), 0) == [0]


def test_many_equal_pictures_take_linear_time(way: str) -> None:
    """Identical hashes are collapsed first: 20,000 copies are not 200 million pairs."""
    if way == "reference":
        pytest.skip("the reference compares all pairs of a run")
    copies = 20_000
    hashes = Hashes(np.zeros(copies, np.uint8), np.zeros(copies, np.uint64), np.tile(pictures(1, 1), (copies, 1)))
    start = time.process_time()
    assert not similar.groups(hashes, 2).any()
    assert time.process_time() - start < 2


def test_a_chain_is_one_group(way: str) -> None:
    chain = np.cumsum(np.uint64(1) << np.arange(40, dtype=np.uint64), dtype=np.uint64)
    assert set(groups_of_pictures(chain, np.tile(pictures(1, 1), (40, 1)), 1)) == {0}
