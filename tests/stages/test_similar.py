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


def shades(seed: int, flat: int, count: int = 1) -> np.ndarray:
    """Random brightness of cells, with at least so many flat ones."""
    cells = np.random.default_rng(seed).integers(20, 230, (16, 16), np.uint8)
    rows = -(-flat // 15)
    cells[: rows + 1 if rows else 0] = 100
    return np.tile(cells.reshape(1, 256), (count, 1))


def one(colours: np.ndarray, cells: np.ndarray, grain: int = 0) -> Hashes:
    """A picture by its colours, shades and grain."""
    return Hashes(np.zeros(1, np.uint8), np.zeros(1, np.uint64), colours, cells, np.full(1, grain, np.uint8))


def naive_photographs(some: np.ndarray, other: np.ndarray, cells: np.ndarray) -> bool:
    """The definition for pictures with grain, with floats."""
    both = [p.reshape(64, 3).astype(int) for p in (some, other)]
    if any(np.ptp(p, axis=1).max() <= 2 for p in both):
        both = [(p @ np.array([77, 150, 29]) >> 8)[:, None] for p in both]
    other_cells = (abs(both[0] - both[1]).max(axis=1) > 40).sum()
    return bool(other_cells <= 2 and np.corrcoef(cells.astype(float))[0, 1] >= 0.95)


def naive_alike(
    a: int, b: int, some: np.ndarray, other: np.ndarray, cells: np.ndarray, distance: int, grain: int
) -> bool:
    """The definition, with floats. `cells` are the shades of both, `grain` is that of the picture with less."""
    if (a ^ b).bit_count() > distance:
        return False
    if grain >= 178 and naive_photographs(some, other, cells):
        return True
    flat = max(
        sum(abs(c[y, x] - c[y, x + 1]) <= 1 and abs(c[y, x] - c[y + 1, x]) <= 1 for y in range(15) for x in range(15))
        for c in cells.reshape(2, 16, 16).astype(int)
    )
    brightness = [[(77 * r + 150 * g + 29 * b) >> 8 for r, g, b in p.reshape(64, 3).tolist()] for p in (some, other)]
    grey = any(np.ptp(p.reshape(64, 3).astype(int), axis=1).max() <= 2 for p in (some, other)) and flat < 23
    same = brightness if grey else (some, other)
    if max(abs(int(x) - int(y)) for x, y in zip(*same, strict=True)) > (12 if flat >= 23 else 24):
        return False
    if np.corrcoef(brightness)[0, 1] ** 2 < 0.96:
        return False
    c = cells.astype(float)
    if flat >= 23:
        return bool(abs(c[0] - c[1]).max() <= 0.14 * c.std(axis=1).min())
    z = (c - c.mean(axis=1, keepdims=True)) / c.std(axis=1, keepdims=True)
    return bool(flat < 7 or abs(z[0] - z[1]).max() <= 0.25)


def naive_groups(
    phash: list[int], colours: np.ndarray, cells: np.ndarray, distance: int, grain: np.ndarray
) -> list[int]:
    """The smallest member of the group of each picture, by all pairs."""
    label = list(range(len(phash)))
    for a, b in itertools.combinations(range(len(phash)), 2):
        least = int(grain[[a, b]].min())
        if naive_alike(phash[a], phash[b], colours[a], colours[b], cells[[a, b]], distance, least):
            low, high = sorted((label[a], label[b]))
            label = [low if one == high else one for one in label]
    return label


def under_all_blocks(
    phash: np.ndarray,
    colours: np.ndarray,
    distance: int,
    cells: np.ndarray | None = None,
    grain: np.ndarray | None = None,
) -> Hashes:
    """Each picture once under each block. Without `cells` all have the same shades, without `grain` none."""
    blocks = distance + 1
    grain = np.zeros(len(phash), np.uint8) if grain is None else grain
    cells = shades(0, 0, len(phash)) if cells is None else cells
    block = np.tile(np.arange(blocks, dtype=np.uint8), len(phash))
    looks = (np.repeat(look, blocks, axis=0) for look in (colours, cells, grain))
    return Hashes(block, np.repeat(phash, blocks), *looks)


def groups_of_pictures(
    phash: np.ndarray,
    colours: np.ndarray,
    distance: int,
    cells: np.ndarray | None = None,
    grain: np.ndarray | None = None,
) -> list[int]:
    root = similar.groups(under_all_blocks(phash, colours, distance, cells, grain), distance) // (distance + 1)
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
            st.tuples(
                st.sampled_from(base),
                flips,
                st.integers(0, 4),
                st.sampled_from([0, 12, 13, 24, 25, 40, 41]),
                st.sampled_from([0, 7, 23]),
                st.sampled_from([0, 6, 20, 60]),
                st.sampled_from([0, 177, 178]),
            ),
            min_size=1,
            max_size=16,
        )
    )
    phash = [one ^ sum({1 << bit for bit in bits}) for one, bits, *_ in made]
    kinds = pictures(1, 5)
    kinds[3] = np.repeat((kinds[4].reshape(64, 3) @ np.array([77, 150, 29]) >> 8).astype(np.uint8), 3)  # a grey copy
    colours = np.array([kinds[kind] for _, _, kind, *_ in made], np.uint8)
    cells = np.concatenate([shades(2, flat) for *_, flat, _, _ in made])
    grain = np.array([item[-1] for item in made], np.uint8)
    for row, (_, _, _, more, _, shade, _) in enumerate(made):
        colours[row, [7, 10, 13][: 1 + row % 3]] += np.uint8(more)
        cells[row, 250] += np.uint8(min(shade, 255 - int(cells[row, 250])))
    expected = naive_groups(phash, colours, cells, distance, grain)
    words = np.array(phash, np.uint64)
    order, ends = similar._runs(under_all_blocks(words, colours, distance, cells, grain), distance)
    hashes = under_all_blocks(words, colours, distance, cells, grain)
    compiled = similar_kernel.groups(hashes, order, ends, distance)
    assert (compiled == similar._groups(hashes.take(order), ends, distance)).all()
    assert groups_of_pictures(words, colours, distance, cells, grain) == expected


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
    first, cells = pictures(5, 1), shades(5, 0)

    def agree(some: np.ndarray, other: np.ndarray, flat: int = 0) -> bool:
        return bool(similar.looks_agree(one(some, shades(5, flat)), one(other, shades(5, flat)))[0])

    for change, flat, agrees in [(24, 0, True), (25, 0, False), (12, 23, True), (13, 23, False)]:
        other = first.copy()
        other[0, 100] += change
        assert agree(first, other, flat) is agrees
    assert not agree(first, 255 - first)
    soft = (100 + first // 8).astype(np.uint8)  # little contrast: colours are near, but their brightness is another
    other = (100 + pictures(6, 1) // 8).astype(np.uint8)
    assert np.abs(soft.astype(int) - other).max() > 24 or not agree(soft, other)
    assert similar.looks_agree(one(first, cells), one(first, 255 - cells)).tolist() == [True]  # photographs: no bound


def test_a_drawing_with_another_detail_is_another_picture(way: str) -> None:
    colours = np.tile(pictures(5, 1), (4, 1))
    cells = np.tile(shades(5, 23), (4, 1))
    cells[1, 255] ^= 1  # as another encoder gives it
    cells[2, 240:243] = 100, 200, 30  # another word
    cells[3, 240:243] = 100, 200, 31
    assert groups_of_pictures(np.zeros(4, np.uint64), colours, 2, cells) == [0, 0, 2, 2]


def test_a_grey_copy_of_a_photograph_is_found(way: str) -> None:
    colour = pictures(8, 1)
    grey = np.repeat((colour.reshape(64, 3) @ np.array([77, 150, 29]) >> 8).astype(np.uint8), 3).reshape(1, 192)
    both = np.concatenate([colour, grey])
    assert groups_of_pictures(np.zeros(2, np.uint64), both, 2) == [0, 0]
    assert groups_of_pictures(np.zeros(2, np.uint64), both, 2, shades(5, 23, 2)) == [0, 1]


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
    none = one(pictures(1, 1), shades(1, 0)).take(np.zeros(0, np.int64))
    assert similar.groups(none, 2).tolist() == []
    assert similar.connect(3, np.array([2]), np.array([1])).tolist() == [0, 1, 1]
    assert groups_of_pictures(np.zeros(1, np.uint64), pictures(1, 1), 0) == [0]


def test_many_equal_pictures_take_linear_time(way: str) -> None:
    """Identical hashes are collapsed first: 20,000 copies are not 200 million pairs."""
    if way == "reference":
        pytest.skip("the reference compares all pairs of a run")
    copies = 20_000
    looks = np.tile(pictures(1, 1), (copies, 1)), shades(1, 0, copies)
    hashes = Hashes(np.zeros(copies, np.uint8), np.zeros(copies, np.uint64), *looks, np.zeros(copies, np.uint8))
    start = time.process_time()
    assert not similar.groups(hashes, 2).any()
    assert time.process_time() - start < 2


def test_photographs_agree_up_to_the_bounds() -> None:
    first, cells = pictures(5, 1), shades(5, 23)

    def agree(change: int, count: int, grain: int = 178, turn: int = 0) -> bool:
        other = first.copy()
        other[0, [9 * number for number in range(count)]] += np.uint8(change)
        moved = one(other, np.roll(cells, turn, axis=1), grain)
        return bool(similar.looks_agree(one(first, cells, 255), moved)[0])

    first[0, ::9] = 100
    assert agree(40, 5) and agree(90, 2) and not agree(41, 3) and not agree(40, 5, 177) and not agree(0, 0, 178, 128)


def test_a_chain_is_one_group(way: str) -> None:
    chain = np.cumsum(np.uint64(1) << np.arange(40, dtype=np.uint64), dtype=np.uint64)
    assert set(groups_of_pictures(chain, np.tile(pictures(1, 1), (40, 1)), 1)) == {0}
