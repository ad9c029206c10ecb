"""Which embeddings are near each other: pairs whose cosine reaches a bound, found within cells. All functions are pure.

**The same pairs everywhere.** A vector is rounded to whole numbers with a length of SCALE (`rounded`). By Cauchy and
Schwarz no partial sum of a product of two such vectors exceeds 2^24. So float32 holds each of them exactly: FAISS and
BLAS give the same numbers with any number of threads, in any order of the sums, in any batch. The rounding changes a
cosine by about 1e-4.

**Cells.** Vectors are projected to at most SIEVE dimensions, and k-means on a sample forms about one cell for
ROWS_PER_CELL vectors. A vector is a *member* of its nearest cell. It is a *guest* of a further cell if that is nearly
as near: if a neighbour at the bound could lie beyond the border, by the size of a random step (`MARGIN`). Members are
compared with members and guests of their cell. FAISS finds the pairs whose projections are near enough, and then the
whole vectors decide. So a pair is missed with a small probability, and no pair is wrong.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.engine import hashing
from pipeline.stages import similar
from pipeline.stages.picture_hashes import Places

SCALE = 4032  # the length of a rounded vector
MOST_WIDTH = 16384  # rounding adds at most sqrt(width) / 2 = 64 to the length: it stays below 2^12
SIEVE = 128  # dimensions of a projected vector
ROWS_PER_CELL = 512
MOST_CELLS = 8192
SAMPLE_PER_CELL = 24
ROUNDS = 6  # of k-means
MOST_CELLS_OF_ROW = 12
MARGIN = 1.1  # standard deviations of the difference between the scores of two cells
SIEVE_SLACK = 3.5  # standard deviations of the error of a projected cosine
CHUNK = 512  # vectors that are rounded at a time: they fit the cache
BITS = 18  # of the largest component while a vector is rounded
COMPARED = 1 << 21  # products that are in memory at a time
PIECE = 1 << 19  # numbers of whole vectors that are in memory at a time
LOCATED = 8192  # vectors whose cells are found at a time
MOST_APART = 2.01  # distance of two centres with a length of 1, and what rounding does

Vectors = npt.NDArray[np.int16]  # (n, width) rounded
Floats = npt.NDArray[np.float32]


def rounded(vectors: npt.NDArray[Any]) -> Vectors:
    """(n, width) finite vectors that are not zero, as whole numbers with a length of about SCALE."""
    found = np.empty(vectors.shape, np.int16)
    for at in range(0, len(vectors), CHUNK):
        exact = vectors[at : at + CHUNK].astype(np.float64)
        exponent = np.frexp(np.abs(exact).max(axis=1, initial=0))[1]
        np.multiply(
            exact, np.ldexp(1.0, np.minimum(BITS - exponent, 1000))[:, None], out=exact
        )  # a power of two: exact
        found[at : at + CHUNK] = _on_sphere(np.rint(exact, out=exact))
    return found


def _on_sphere(whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Whole numbers scaled to a length of SCALE. The sums of their squares are exact, so no order of sums counts."""
    length = np.sqrt(np.einsum("ij,ij->i", whole, whole))
    scaled: npt.NDArray[np.float64] = whole * (SCALE / np.maximum(length, 1))[:, None]
    return np.rint(scaled, out=scaled)


@functools.lru_cache(maxsize=4)
def signs(width: int) -> Floats | None:
    """(width, SIEVE) random signs, the same in every run; None: vectors of this width are not projected."""
    if width <= SIEVE:
        return None
    number = np.arange(width * SIEVE, dtype=np.uint64)
    return np.where(hashing.mix(number, np.uint64(width)) >> np.uint64(63), 1, -1).astype(np.float32).reshape(-1, SIEVE)


def projected(vectors: Vectors) -> Floats:
    """(n, SIEVE or less) whole numbers with a length of about SCALE."""
    across = signs(vectors.shape[1])
    if across is None:
        return vectors.astype(np.float32)
    parts = [
        _on_sphere((vectors[at : at + CHUNK].astype(np.float32) @ across).astype(np.float64))
        for at in range(0, len(vectors), CHUNK)
    ]
    return np.concatenate([np.zeros((0, SIEVE)), *parts]).astype(np.float32)


def cells_for(rows: int) -> int:
    """The number of cells for so many vectors."""
    return min(MOST_CELLS, max(1, rows // ROWS_PER_CELL))


def centroids(sample: Floats, cells: int) -> Floats:
    """(cells or less, width) the centres of k-means. The sample is in an order that does not depend on the input."""
    centres = sample[np.arange(min(cells, len(sample))) * len(sample) // max(1, cells)].copy()
    for _ in range(ROUNDS if len(centres) > 1 else 0):
        index, sums = _index(centres), np.zeros(centres.shape)
        for at in range(0, len(sample), LOCATED):
            some = sample[at : at + LOCATED]
            cell = _nearest(index, some, 1)[1][:, 0]
            order = np.argsort(cell, kind="stable")
            used, first = np.unique(cell[order], return_index=True)
            sums[used] += np.add.reduceat(some[order].astype(np.float64), first)  # whole numbers: exact
        moved = sums.any(axis=1)
        centres[moved] = _on_sphere(sums[moved])
    return centres


def cells_of(vectors: Floats, centres: Floats, cosine: float) -> tuple[Places, Places, npt.NDArray[np.bool_]]:
    """(row, cell, member) for each cell that a projected vector belongs to. False: it is a guest."""
    count, index = min(MOST_CELLS_OF_ROW, len(centres)), _index(centres)
    step = MARGIN * np.sqrt(2 - 2 * cosine) / np.sqrt(vectors.shape[1])
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))]
    for at in range(0, len(vectors), LOCATED):
        score, cell = _nearest(index, vectors[at : at + LOCATED], count)
        further = (score[:, :1] - score) / SCALE**2
        near = further <= step * MOST_APART
        row, place = np.nonzero(near)
        near[row, place] = further[row, place] <= step * _apart(centres, cell[row, 0], cell[row, place])
        near[:, 0] = True
        row, place = np.nonzero(near)
        found.append((row + at, cell[row, place], place == 0))
    rows, cells, members = (np.concatenate(column) for column in zip(*found, strict=True))
    return rows, cells, members


def _apart(centres: Floats, some: Places, others: Places) -> npt.NDArray[np.float64]:
    """The distance of each pair of centres, if their length were 1."""
    products, step = np.empty(len(some)), max(1, PIECE // centres.shape[1])
    for at in range(0, len(some), step):
        a, b = (centres[one[at : at + step]] for one in (some, others))
        products[at : at + step] = np.einsum("ij,ij->i", a, b)
    found: npt.NDArray[np.float64] = np.sqrt(np.maximum(0, 2 * (1 - products / SCALE**2)))
    return found


def _nearest(index: Any, vectors: Floats, count: int) -> tuple[npt.NDArray[np.float64], Places]:
    """The scores and numbers of the nearest centres of each vector. Of equal scores the smaller number comes first."""
    score, cell = index.search(np.ascontiguousarray(vectors), count)
    order = np.lexsort((cell, -score), axis=1)
    return np.take_along_axis(score, order, 1).astype(np.float64), np.take_along_axis(cell, order, 1)


def groups(vectors: Vectors, sieve: Vectors, places: Places, members: int, cosine: float) -> Places:
    """For each vector of a cell the first one that pairs connect it to.

    Args:
        vectors: (n, width) all vectors. Only those of near projections are read.
        sieve: (n, SIEVE or less) all projected vectors.
        places: the rows of the vectors of the cell, the members first, then the guests.
        members: how many they are.
        cosine: the bound.
    """
    narrow = sieve[places]
    _, first, number = np.unique(_hash_rows(vectors, places, narrow), return_index=True, return_inverse=True)
    inside, entries = np.sort(first[first < members]), np.sort(first)  # equal vectors are compared once
    label = first[number]
    if len(inside):
        floats = narrow.astype(np.float32)
        index = _index(floats[inside])
        bound = sieve_bound(cosine, sieve.shape[1], vectors.shape[1]) * SCALE**2
        rows = max(1, COMPARED // len(inside))
        for start in range(0, len(entries), rows):
            block = entries[start : start + rows]
            limits, _, found = index.range_search(floats[block], bound)
            a, b = np.repeat(block, np.diff(limits.astype(np.int64))), inside[found]
            keep = a > b
            a, b = a[keep], b[keep]
            # First one pair of each vector and group. If it is near, its others say nothing new.
            first = np.zeros(len(a), np.bool_)
            first[np.unique(a * len(label) + label[b], return_index=True)[1]] = True
            for some in (first, ~first):
                some &= label[a] != label[b]
                label = _join(label, *near_pairs(vectors, places, a[some], b[some], cosine))
    return label


def _join(label: Places, some: Places, others: Places) -> Places:
    """The groups when further pairs connect them. The pairs of a block are in memory, and never those of a cell."""
    if not len(some):
        return label
    every = np.arange(len(label))
    return similar.connect(len(label), np.concatenate([every, some]), np.concatenate([label, others]))


def _hash_rows(vectors: Vectors, places: Places, narrow: Vectors) -> npt.NDArray[np.uint64]:
    """Equal for equal vectors. Only vectors with equal projections are read: they are few."""
    weights = hashing.mix(np.arange(narrow.shape[1], dtype=np.uint64), np.uint64(2))
    found: npt.NDArray[np.uint64] = narrow.astype(np.int64).astype(np.uint64) @ weights
    order = np.argsort(found, kind="stable")
    ordered = found[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    weights = hashing.mix(np.arange(vectors.shape[1], dtype=np.uint64), np.uint64(3))
    tied, step = order[np.union1d(same, same + 1)], max(1, PIECE // vectors.shape[1])
    for at in range(0, len(tied), step):
        some = tied[at : at + step]
        found[some] = hashing.mix(found[some], vectors[places[some]].astype(np.int64).astype(np.uint64) @ weights)
    return found


def near_pairs(vectors: Vectors, places: Places, a: Places, b: Places, cosine: float) -> tuple[Places, Places]:
    """Those of the pairs whose whole vectors have at least this cosine. Vector i is in the row places[i]."""
    keep, step = np.zeros(len(a), np.bool_), max(1, PIECE // max(1, vectors.shape[1]))
    for at in range(0, len(a), step):
        some, others = (one[at : at + step] for one in (a, b))
        rows, number = np.unique(np.concatenate([some, others]), return_inverse=True)
        whole = vectors[places[rows]].astype(np.float32)
        keep[at : at + step] = cosines(whole, number[: len(some)], whole, number[len(some) :]) >= cosine
    return a[keep], b[keep]


def cosines(some: Floats, row: Places, others: Floats, other: Places) -> npt.NDArray[np.float64]:
    """The cosine of some[row[i]] and others[other[i]] for each i, of rounded vectors. The products are exact."""
    products = np.einsum("ij,ij->i", some[row], others[other]).astype(np.float64)
    one, two = (np.einsum("ij,ij->i", every, every).astype(np.float64) for every in (some, others))
    found: npt.NDArray[np.float64] = products / np.sqrt(np.maximum(one[row] * two[other], 1))
    return found


def sieve_bound(cosine: float, sieve: int, width: int) -> float:
    """The least cosine of the projections of a pair: its error has a deviation of (1 - cosine^2) / sqrt(sieve)."""
    error = 0.0 if width <= sieve else SIEVE_SLACK * (1 - cosine * cosine) / np.sqrt(sieve)
    return float(cosine - error - 0.005)  # and what rounding does


def _index(vectors: Floats) -> Any:
    """FAISS's exact index of some vectors. One thread: the workers share the processors."""
    import faiss  # only where embeddings are given

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return index
