"""Near embeddings: whole numbers whose products are exact, cells, and the groups of a cell, against all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.stages import near_vectors, similar

faiss = pytest.importorskip("faiss")


def draw(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors around some centres; a fifth of them are noisy copies of others."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // 30), width)) + random.standard_normal(width)
    found = centres[random.integers(0, len(centres), count)] + 0.8 * random.standard_normal((count, width))
    copies = count // 5
    noise = random.uniform(0.05, 0.4, (copies, 1)) * np.abs(found[-copies:]).mean(axis=1, keepdims=True)
    found[:copies] = found[-copies:] + noise * random.standard_normal((copies, width))
    return found.astype(np.float16)


def all_pairs(vectors: np.ndarray, cosine: float) -> set[tuple[int, int]]:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return {(a, b) for a, b in np.argwhere(unit @ unit.T >= cosine).tolist() if a < b}


def clusters(vectors: np.ndarray, cosine: float, batch: int) -> np.ndarray:
    """As the stage forms them. The vectors come in batches."""
    parts = [near_vectors.rounded(vectors[at : at + batch]) for at in range(0, len(vectors), batch)]
    sieves = [near_vectors.projected(part) for part in parts]
    whole, sieve = np.concatenate(parts), np.concatenate(sieves)
    centres = near_vectors.centroids(sieve[:: max(1, len(sieve) // 500)], near_vectors.cells_for(len(whole)))
    found = [near_vectors.cells_of(part, centres, cosine) for part in sieves]
    row = np.concatenate([at * batch + rows for at, (rows, _, _) in enumerate(found)])
    cell, member = (np.concatenate([one[place] for one in found]) for place in (1, 2))
    some, others = [], []
    for number in range(len(centres)):
        members, guests = row[(cell == number) & member], row[(cell == number) & ~member]
        places = np.concatenate([members, guests])
        root = near_vectors.groups(whole, sieve.astype(np.int16), places, len(members), cosine)
        some.append(places)
        others.append(places[root])
    return similar.connect(len(whole), np.concatenate(some), np.concatenate(others))


@pytest.mark.parametrize("width", [1, 3, 40, 200])
def test_the_pairs_of_one_cell_are_all_pairs(width: int) -> None:
    vectors = draw(300, width, width)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    cosine = 0.91
    clear = np.abs(unit @ unit.T - cosine) > 0.002
    some, others = np.array(sorted(all_pairs(vectors, cosine)), np.int64).reshape(-1, 2).T
    expected = similar.connect(300, some, others)
    if clear[some, others].all() and clear.all():
        assert (clusters(vectors, cosine, 300) == expected).all()
    found = clusters(vectors, cosine, 77)
    near = [pair for pair in zip(some.tolist(), others.tolist(), strict=True) if clear[pair]]
    missed = [pair for pair in near if found[pair[0]] != found[pair[1]]]
    assert len(missed) <= 0.01 * len(near)
    exact = similar.connect(300, *np.array(sorted(all_pairs(vectors, cosine - 0.002)), np.int64).reshape(-1, 2).T)
    assert all(exact[a] == exact[b] for a, b in enumerate(found.tolist()))  # no pair is wrong


def test_cells_find_nearly_all_pairs_whatever_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_vectors, "ROWS_PER_CELL", 64)
    vectors = draw(3000, 256)
    found = clusters(vectors, 0.9, 3000)
    pairs = all_pairs(vectors, 0.9)
    hits = sum(found[a] == found[b] for a, b in pairs)
    assert len(pairs) > 300 and hits >= 0.98 * len(pairs)
    faiss.omp_set_num_threads(3)
    assert (clusters(vectors, 0.9, 61) == found).all()


def test_small_pieces_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_vectors, "ROWS_PER_CELL", 64)
    vectors = draw(700, 200)
    found = clusters(vectors, 0.9, 700)
    for name, size in (("COMPARED", 3000), ("PIECE", 1000), ("LOCATED", 13)):
        monkeypatch.setattr(near_vectors, name, size)
    assert (clusters(vectors, 0.9, 700) == found).all() and (found != np.arange(700)).sum() > 100


def test_the_pairs_of_a_dense_cell_are_never_in_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, compared, connect, near_pairs = [], [], similar.connect, near_vectors.near_pairs

    def note(count: int, some: np.ndarray, others: np.ndarray) -> np.ndarray:
        edges.append(len(some))
        return connect(count, some, others)

    def note_pairs(vectors: np.ndarray, places: np.ndarray, a: np.ndarray, b: np.ndarray, cosine: float) -> object:
        compared.append(len(a))
        return near_pairs(vectors, places, a, b, cosine)

    monkeypatch.setattr(near_vectors.similar, "connect", note)
    monkeypatch.setattr(near_vectors, "near_pairs", note_pairs)
    monkeypatch.setattr(near_vectors, "COMPARED", 8000)
    random = np.random.default_rng(0)
    whole = near_vectors.rounded(random.standard_normal(200) + 0.1 * random.standard_normal((400, 200)))
    sieve = near_vectors.projected(whole).astype(np.int16)
    assert not near_vectors.groups(whole, sieve, np.arange(400), 400, 0.9).any()
    assert max(edges) <= 400 + 8000
    assert sum(compared) < 5000  # of 79,800


def test_a_rounded_vector_keeps_its_direction_and_not_its_length() -> None:
    vectors = draw(50, 300).astype(np.float32)
    whole = near_vectors.rounded(vectors)
    assert whole.dtype == np.int16 and (near_vectors.rounded(vectors * np.float32(2**-20)) == whole).all()
    lengths = np.linalg.norm(whole.astype(float), axis=1)
    assert lengths.max() <= 4096 and lengths.min() > 4000
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.abs((unit * whole).sum(axis=1) / lengths - 1).max() < 1e-4
    assert (near_vectors.rounded(vectors[7:8]) == whole[7:8]).all()


def test_many_equal_vectors_are_one_group() -> None:
    whole = near_vectors.rounded(np.repeat(draw(1, 200), 30_000, axis=0))
    sieve = np.repeat(near_vectors.projected(whole[:1]).astype(np.int16), 30_000, axis=0)
    assert not near_vectors.groups(whole, sieve, np.arange(30_000), 30_000, 0.95).any()


def test_guests_are_not_compared_with_each_other() -> None:
    whole = near_vectors.rounded(np.repeat(draw(1, 8), 3, axis=0) + np.arange(3)[:, None] * 1e-3)
    sieve = near_vectors.projected(whole).astype(np.int16)
    assert near_vectors.groups(whole, sieve, np.arange(3), 0, 0.9).tolist() == [0, 1, 2]
    assert near_vectors.groups(whole, sieve, np.arange(3), 1, 0.9).tolist() == [0, 0, 0]


def test_nothing() -> None:
    none = np.zeros((0, 5), np.int16)
    assert near_vectors.groups(none, none, np.zeros(0, np.int64), 0, 0.9).tolist() == []
    row, cell, member = near_vectors.cells_of(np.zeros((0, 5), np.float32), np.full((1, 5), 1000, np.float32), 0.9)
    assert len(row) == len(cell) == len(member) == 0
