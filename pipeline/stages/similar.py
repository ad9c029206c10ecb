"""Which pictures show the same: pairs by three hashes, and the groups that the pairs form. All functions are pure.

Two pictures are *alike* if

* their DCT hashes (`phash`, 64 bits) differ in at most `distance` bits, and
* their mean colours (`colours`, 8 x 8 cells) agree: no value of a cell differs by more than MOST_DIFFERENCE, and the
  correlation of the brightness of the cells is at least .98. Of a grey copy of a photograph only the brightness counts;
* their shades (`shades`, the brightness of 16 x 16 cells) agree. The bound depends on how many cells are *flat*: equal
  to the next cells. A photograph has few, and there is no bound. Drawings, screens and signs have many. They differ in
  small parts, such as words and hands of clocks, so their shades and their mean colours must agree closely.

Two pictures with *grain* are photographs: in both of them most pixels differ a little from the next ones. They are
alike, too, if the correlation of their shades is at least .95, and all but two of the 64 cells differ by at most 40 in
each mean colour (a grey copy: in brightness). So brighter, cropped and watermarked copies are found.

Only pictures with contrast take part (`has_contrast`): the hash of a plain picture is noise, so plain pictures have
equal hashes. docs/benchmarks/near_duplicates.md says on which pictures the bounds were chosen and measured.

**Exactness.** The 64 bits are cut into distance + 1 blocks. Two hashes that differ in at most `distance` bits are equal
in at least one block. So all pairs are found among the pictures that share the bits of a block.

No result depends on the order of the pictures, nor on which other blocks are in the same call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.engine import jit
from pipeline.engine.hashing import Words
from pipeline.stages.picture_hashes import (
    ALIKE,
    ALIKE_OF,
    BLUE,
    CELLS,
    DRAWN_DIFFERENCE,
    DRAWN_FLAT,
    DRAWN_SHARE,
    FLAT_STEP,
    GRAIN_ALIKE,
    GREEN,
    HASH_BITS,
    LEAST_GRAIN,
    LEAST_SPREAD,
    MOST_CHROMA,
    MOST_DIFFERENCE,
    MOST_GRAIN_DIFFERENCE,
    MOST_OTHER_CELLS,
    RED,
    SHADE_SIDE,
    SHADES,
    SOME_FLAT,
    SOME_FLAT_SHARE,
    Colours,
    Hashes,
    Places,
    Shades,
)

Mask = npt.NDArray[np.bool_]

# Weights of the words of colours and shades in the hash that orders pictures with equal DCT hashes.
_ODD_NUMBERS = np.cumprod(np.full((3 * CELLS + SHADES) // 8, 0x9E3779B97F4A7C15, np.uint64))


def block_bounds(distance: int) -> npt.NDArray[np.int64]:
    """The first bit of each of the distance + 1 blocks, and 64: the blocks are as wide as possible."""
    return np.arange(distance + 2, dtype=np.int64) * HASH_BITS // (distance + 1)


def block_values(phash: Words, block: npt.NDArray[np.uint8], distance: int) -> Words:
    """The bits of the block of each hash, moved to the right end."""
    turned, width = _turned(phash, block, distance)
    return turned >> (np.uint64(HASH_BITS) - width)


def has_contrast(colours: Colours) -> npt.NDArray[np.bool_]:
    """True for each picture whose cells are not of nearly the same brightness."""
    kernel = jit.kernel("pipeline.stages.similar_kernel", len(colours))
    return kernel.has_contrast(colours) if kernel else _has_contrast(colours)


def colours_agree(some: Colours, others: Colours) -> Mask:
    """True for each pair of pictures whose mean colours agree, as those of photographs must."""
    a, b = _brightness(some), _brightness(others)
    return (_farthest(some.astype(np.int16), others) <= MOST_DIFFERENCE) & _correlate(a, b)


def looks_agree(some: Hashes, others: Hashes) -> Mask:
    """True for each pair of pictures whose mean colours and shades agree."""
    flat = np.maximum(_flat_cells(some.shades), _flat_cells(others.shades))
    most = _farthest(some.colours.astype(np.int16), others.colours)
    a, b = _brightness(some.colours), _brightness(others.colours)
    grey = (_is_grey(some.colours) | _is_grey(others.colours)) & (_farthest(a, b) <= MOST_DIFFERENCE)
    near = np.where(flat >= DRAWN_FLAT, most <= DRAWN_DIFFERENCE, (most <= MOST_DIFFERENCE) | grey)
    closely = near & _correlate(a, b) & _shades_agree(some.shades, others.shades, flat)
    return closely | _photographs_agree(some, others)


def _photographs_agree(some: Hashes, others: Hashes) -> Mask:
    """True for each pair of pictures with grain of which all cells but a few agree roughly."""
    cells, other_cells = (one.colours.reshape(-1, CELLS, 3).astype(np.int16) for one in (some, others))
    apart = np.abs(cells - other_cells).max(axis=2, initial=0)
    grey = _is_grey(some.colours) | _is_grey(others.colours)
    apart = np.where(grey[:, None], np.abs(_brightness(some.colours) - _brightness(others.colours)), apart)
    near = (apart > MOST_GRAIN_DIFFERENCE).sum(axis=1) <= MOST_OTHER_CELLS
    a, b = some.shades.astype(np.int64), others.shades.astype(np.int64)
    common = SHADES * (a * b).sum(axis=1) - a.sum(axis=1) * b.sum(axis=1)
    root_a, root_b = (np.sqrt((SHADES * (x * x).sum(axis=1) - x.sum(axis=1) ** 2).astype(np.float64)) for x in (a, b))
    grained = np.minimum(some.grain, others.grain) >= LEAST_GRAIN
    return grained & near & (common > 0) & (common >= GRAIN_ALIKE * (root_a * root_b))


def _farthest(some: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """For each pair the largest difference of two values at the same place."""
    return np.abs(some - others).max(axis=1, initial=0)


def _correlate(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> Mask:
    """True for each pair whose brightness has a correlation of at least .98."""
    products = (a * b).sum(axis=1, dtype=np.int64)
    common = CELLS * products - a.sum(axis=1, dtype=np.int64) * b.sum(axis=1, dtype=np.int64)
    return (common > 0) & (ALIKE_OF * common * common >= ALIKE * _spread(a) * _spread(b))


def _is_grey(colours: Colours) -> Mask:
    cells = colours.reshape(-1, CELLS, 3)
    return (cells.max(axis=2) - cells.min(axis=2)).max(axis=1, initial=0) <= MOST_CHROMA


def _flat_cells(shades: Shades) -> npt.NDArray[np.int64]:
    """The number of cells that are nearly equal to the next cell of their row and to that of their column."""
    cells = shades.reshape(-1, SHADE_SIDE, SHADE_SIDE).astype(np.int16)
    right, below = (np.abs(np.diff(cells, axis=axis)) <= FLAT_STEP for axis in (2, 1))
    return (right[:, :-1] & below[:, :, :-1]).sum(axis=(1, 2))


def _shades_agree(some: Shades, others: Shades, flat: npt.NDArray[np.int64]) -> Mask:
    a, b = some.astype(np.int64), others.astype(np.int64)
    spreads = [SHADES * (cells * cells).sum(axis=1) - cells.sum(axis=1) ** 2 for cells in (a, b)]
    share, whole = DRAWN_SHARE
    most = _farthest(a, b) * SHADES * whole
    closely = most * most <= share * share * np.minimum(*spreads)
    far_a, far_b = (SHADES * cells - cells.sum(axis=1, keepdims=True) for cells in (a, b))
    root_a, root_b = (np.sqrt(spread.astype(np.float64)) for spread in spreads)
    apart = _farthest(far_a * root_b[:, None], far_b * root_a[:, None])
    roughly = apart <= SOME_FLAT_SHARE * (root_a * root_b)
    return np.where(flat >= DRAWN_FLAT, closely, (flat < SOME_FLAT) | roughly)


def groups(hashes: Hashes, distance: int) -> Places:
    """For each entry the place of one entry of its group: of the entries that alike pairs connect within a block.

    Two entries under different blocks are never compared. The entries must all have contrast.
    """
    order, ends = _runs(hashes, distance)
    kernel = jit.kernel("pipeline.stages.similar_kernel", len(order))
    root = kernel.groups(hashes, order, ends, distance) if kernel else _groups(hashes.take(order), ends, distance)
    found = np.empty(len(order), np.int64)
    found[order] = order[root]
    return found


def connect(count: int, some: Places, others: Places) -> Places:
    """For each of `count` nodes the smallest node that edges connect it to. Edge i joins some[i] and others[i]."""
    kernel = jit.kernel("pipeline.stages.similar_kernel", len(some))
    return kernel.connect(count, some, others) if kernel else _connect(count, some, others)


def _brightness(colours: Colours) -> npt.NDArray[np.int32]:
    """The brightness of each cell, 0..255."""
    red, green, blue = (colours[:, channel::3].astype(np.uint16) for channel in range(3))
    weighted = red * np.uint16(RED) + green * np.uint16(GREEN) + blue * np.uint16(BLUE)  # the weights add up to 256
    return (weighted >> np.uint16(8)).astype(np.int32)


def _spread(brightness: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The variance of the brightness times CELLS squared, an exact integer."""
    squares = np.einsum("ij,ij->i", brightness, brightness).astype(np.int64)
    return CELLS * squares - brightness.sum(axis=1, dtype=np.int64) ** 2


def _has_contrast(colours: Colours) -> npt.NDArray[np.bool_]:
    return _spread(_brightness(colours)) >= LEAST_SPREAD


def _runs(hashes: Hashes, distance: int) -> tuple[Places, Places]:
    """The order by block, bits, hash and colours; and for each entry in it the end of the run that shares its bits."""
    turned, width = _turned(hashes.phash, hashes.block, distance)
    order = np.lexsort((turned, hashes.block))
    turned, block = turned[order], hashes.block[order]
    same = (turned[1:] == turned[:-1]) & (block[1:] == block[:-1])
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))[: len(order)]
    if len(tied):  # entries with equal hashes, by colours and shades: so that equal pictures are neighbours
        looks = np.concatenate([hashes.colours[order[tied]], hashes.shades[order[tied]]], axis=1)
        words = looks.reshape(len(tied), -1, 8).view("<u8")[..., 0]
        order[tied] = order[tied][np.lexsort((words @ _ODD_NUMBERS, turned[tied], block[tied]))]
    value = turned >> (np.uint64(HASH_BITS) - width[order])
    starts = np.flatnonzero(np.append(True, (value[1:] != value[:-1]) | (block[1:] != block[:-1]))[: len(order)])
    ends = np.append(starts[1:], len(order))[: len(starts)]
    return order, np.repeat(ends, ends - starts)


def _turned(phash: Words, block: npt.NDArray[np.uint8], distance: int) -> tuple[Words, Words]:
    """Each hash turned so that the bits of its block come first, and the number of these bits."""
    bounds = block_bounds(distance)
    end, width = (column[block].astype(np.uint64) for column in (bounds[1:], np.diff(bounds)))
    left = (np.uint64(HASH_BITS) - end) % np.uint64(HASH_BITS)
    high: Words = np.where(left > 0, phash >> (np.uint64(HASH_BITS) - np.maximum(left, np.uint64(1))), np.uint64(0))
    turned: Words = phash << left | high
    return turned, width


def _groups(hashes: Hashes, ends: Places, distance: int) -> Places:
    """The reference of `similar_kernel.groups`: compares each entry with the first, second, ... one behind it."""
    count, place = len(ends), np.arange(len(ends))
    some, others = [place[:0]], [place[:0]]
    for step in range(1, int((ends - place).max(initial=0))):
        left = np.flatnonzero(place + step < ends)
        near = np.bitwise_count(hashes.phash[left] ^ hashes.phash[left + step]) <= distance
        left = left[near]
        left = left[looks_agree(hashes.take(left), hashes.take(left + step))]
        some.append(left)
        others.append(left + step)
    return _connect(count, np.concatenate(some), np.concatenate(others))


def _connect(count: int, some: Places, others: Places) -> Places:
    label: Any = np.arange(count, dtype=np.int64)
    while True:
        low = np.minimum(label[some], label[others])
        moved = label.copy()
        np.minimum.at(moved, label[some], low)
        np.minimum.at(moved, label[others], low)
        while not np.array_equal(moved, moved[moved]):
            moved = moved[moved]
        if np.array_equal(moved, label):
            return label
        label = moved
