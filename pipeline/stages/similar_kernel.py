"""`similar` in compiled code: pairs within each run of entries that share a block, and union-find over the pairs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit
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
)

_1, _2, _4, _56 = (np.uint64(number) for number in (1, 2, 4, 56))
_ODD, _PAIRS = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_NIBBLES, _BYTES = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
_VALUES = 3 * CELLS
_SHARE, _WHOLE = DRAWN_SHARE


@njit
def _bits(x):
    """The number of bits that are 1 (LLVM makes one instruction of it where the machine has one)."""
    x = x - ((x >> _1) & _ODD)
    x = (x & _PAIRS) + ((x >> _2) & _PAIRS)
    x = (x + (x >> _4)) & _NIBBLES
    return (x * _BYTES) >> _56


@njit
def _root(parent, node):
    """The root of a node. The way to it is halved."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit
def _join(parent, some, other):
    """Joins two trees. The smaller root stays."""
    some, other = _root(parent, some), _root(parent, other)
    if some < other:
        parent[other] = some
    else:
        parent[some] = other


@njit
def _brightness(colours, at):
    """The brightness of the cell whose red is at `at`."""
    red, green, blue = np.int64(colours[at]), np.int64(colours[at + 1]), np.int64(colours[at + 2])
    return (RED * red + GREEN * green + BLUE * blue) >> 8


@njit
def _has_contrast(colours, found):
    for row in range(len(found)):
        total = square = np.int64(0)
        for at in range(0, _VALUES, 3):
            x = _brightness(colours[row], at)
            total, square = total + x, square + x * x
        found[row] = CELLS * square - total * total >= LEAST_SPREAD


@njit
def _is_grey(colours):
    for at in range(0, _VALUES, 3):
        red, green, blue = colours[at], colours[at + 1], colours[at + 2]
        if max(red, green, blue) - min(red, green, blue) > MOST_CHROMA:
            return False
    return True


@njit
def _flat_cells(shades):
    """`similar._flat_cells` of one picture."""
    flat = 0
    for row in range(SHADE_SIDE - 1):
        for at in range(row * SHADE_SIDE, row * SHADE_SIDE + SHADE_SIDE - 1):
            x = np.int64(shades[at])
            right, below = np.int64(shades[at + 1]), np.int64(shades[at + SHADE_SIDE])
            if abs(x - right) <= FLAT_STEP and abs(x - below) <= FLAT_STEP:
                flat += 1
    return flat


@njit
def _farthest(a, b):
    """The largest difference of two values at the same place."""
    most = np.int64(0)
    for at in range(len(a)):
        most = max(most, abs(np.int64(a[at]) - np.int64(b[at])))
    return most


@njit
def _colours_agree(a, b, flat):
    """True if the colours of one pair agree, as in `similar.looks_agree`."""
    most = _farthest(a, b)
    by_brightness = most > MOST_DIFFERENCE
    if flat >= DRAWN_FLAT and most > DRAWN_DIFFERENCE or by_brightness and not (_is_grey(a) or _is_grey(b)):
        return False
    sum_a = sum_b = square_a = square_b = product = np.int64(0)
    for at in range(0, _VALUES, 3):
        x, y = _brightness(a, at), _brightness(b, at)
        if by_brightness and abs(x - y) > MOST_DIFFERENCE:
            return False
        sum_a, sum_b = sum_a + x, sum_b + y
        square_a, square_b, product = square_a + x * x, square_b + y * y, product + x * y
    common = CELLS * product - sum_a * sum_b
    spread = (CELLS * square_a - sum_a * sum_a) * (CELLS * square_b - sum_b * sum_b)
    return common > 0 and ALIKE_OF * common * common >= ALIKE * spread


@njit
def _shades_agree(a, b, flat):
    """`similar._shades_agree` of one pair."""
    if flat < SOME_FLAT:
        return True
    sum_a = sum_b = square_a = square_b = np.int64(0)
    for at in range(SHADES):
        x, y = np.int64(a[at]), np.int64(b[at])
        sum_a, sum_b, square_a, square_b = sum_a + x, sum_b + y, square_a + x * x, square_b + y * y
    spread_a, spread_b = SHADES * square_a - sum_a * sum_a, SHADES * square_b - sum_b * sum_b
    if flat >= DRAWN_FLAT:
        most = _farthest(a, b) * SHADES * _WHOLE
        return most * most <= _SHARE * _SHARE * min(spread_a, spread_b)
    root_a, root_b = np.sqrt(np.float64(spread_a)), np.sqrt(np.float64(spread_b))
    most = SOME_FLAT_SHARE * (root_a * root_b)
    for at in range(SHADES):
        x, y = SHADES * np.int64(a[at]) - sum_a, SHADES * np.int64(b[at]) - sum_b
        if abs(np.float64(x) * root_b - np.float64(y) * root_a) > most:
            return False
    return True


@njit
def _photographs_agree(a, b, shades_a, shades_b):
    """`similar._photographs_agree` of one pair of pictures with grain."""
    grey, others = _is_grey(a) or _is_grey(b), 0
    for at in range(0, _VALUES, 3):
        if grey:
            apart = abs(_brightness(a, at) - _brightness(b, at))
        else:
            apart = _farthest(a[at : at + 3], b[at : at + 3])
        others += apart > MOST_GRAIN_DIFFERENCE
    if others > MOST_OTHER_CELLS:
        return False
    sum_a = sum_b = square_a = square_b = product = np.int64(0)
    for at in range(SHADES):
        x, y = np.int64(shades_a[at]), np.int64(shades_b[at])
        sum_a, sum_b, product = sum_a + x, sum_b + y, product + x * y
        square_a, square_b = square_a + x * x, square_b + y * y
    common = SHADES * product - sum_a * sum_b
    root_a = np.sqrt(np.float64(SHADES * square_a - sum_a * sum_a))
    root_b = np.sqrt(np.float64(SHADES * square_b - sum_b * sum_b))
    return common > 0 and np.float64(common) >= GRAIN_ALIKE * (root_a * root_b)


@njit
def _looks_agree(colours_a, colours_b, shades_a, shades_b, grain):
    """`similar.looks_agree` of one pair. `grain` is the smaller one of the two."""
    if grain >= LEAST_GRAIN and _photographs_agree(colours_a, colours_b, shades_a, shades_b):
        return True
    flat = max(_flat_cells(shades_a), _flat_cells(shades_b))
    return _colours_agree(colours_a, colours_b, flat) and _shades_agree(shades_a, shades_b, flat)


@njit
def _equal(a, b):
    for at in range(len(a)):
        if a[at] != b[at]:
            return False
    return True


@njit
def _groups(hashes, order, ends, distance, parent):
    """Joins the alike entries of each run. Of neighbours with equal hashes only the first is compared."""
    phash, colours, shades, grain = hashes
    chosen = np.empty(len(ends), np.int64)
    start = 0
    while start < len(ends):
        count = 0
        for place in range(start, ends[start]):
            row = order[place]
            last = chosen[count - 1] if count else place
            if count and phash[row] == phash[order[last]] and _equal(colours[row], colours[order[last]]):
                if grain[row] == grain[order[last]] and _equal(shades[row], shades[order[last]]):
                    parent[place] = last
                    continue
            for at in range(count):
                other = order[chosen[at]]
                if _bits(phash[row] ^ phash[other]) > distance or _root(parent, place) == _root(parent, chosen[at]):
                    continue
                least = min(grain[row], grain[other])
                if _looks_agree(colours[row], colours[other], shades[row], shades[other], least):
                    _join(parent, place, chosen[at])
            chosen[count] = place
            count += 1
        start = ends[start]
    for place in range(len(parent)):
        parent[place] = _root(parent, place)


@njit
def _connect(some, others, parent):
    for at in range(len(some)):
        _join(parent, some[at], others[at])
    for node in range(len(parent)):
        parent[node] = _root(parent, node)


def groups(hashes: Hashes, order: Places, ends: Places, distance: int) -> Places:
    """`similar._groups(hashes.take(order), ends, distance)`, without the copy."""
    parent = np.arange(len(ends), dtype=np.int64)
    looks = (frozen(look, np.uint8) for look in (hashes.colours, hashes.shades, hashes.grain))
    columns = frozen(hashes.phash, np.uint64), *looks
    _groups(columns, frozen(order, np.int64), frozen(ends, np.int64), np.uint64(distance), parent)
    return parent


def has_contrast(colours: Colours) -> npt.NDArray[np.bool_]:
    """See `similar.has_contrast`."""
    found = np.empty(len(colours), np.bool_)
    _has_contrast(frozen(colours, np.uint8), found)
    return found


def connect(count: int, some: Places, others: Places) -> npt.NDArray[np.int64]:
    """See `similar.connect`."""
    parent = np.arange(count, dtype=np.int64)
    _connect(frozen(some, np.int64), frozen(others, np.int64), parent)
    return parent


def warm() -> None:
    """Compiles every kernel of this module."""
    one = np.zeros(1, np.int64)
    looks = np.zeros((1, _VALUES), np.uint8), np.zeros((1, SHADES), np.uint8)
    groups(Hashes(np.zeros(1, np.uint8), np.zeros(1, np.uint64), *looks, np.zeros(1, np.uint8)), one, one + 1, 2)
    connect(1, one, one)
    has_contrast(np.zeros((1, _VALUES), np.uint8))
