"""The nearest pairs by an embedding: an index of FAISS over a table of the user.

A table has the columns `key` and `embedding`, as for `build --embeddings` (`clip_train embed` writes one). Small tables
are searched exactly. A large one is cut into cells, and each number is kept in 8 bits; the file is mapped.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.engine.cli import UsageError
from pipeline.explorer.coding import mapped, write_numbers
from pipeline.explorer.index import Index, Rows
from pipeline.stages import embeddings

EXACT = 100_000  # vectors that are searched one by one
SAMPLE_PER_CELL = 64
PROBES = 32  # cells that a search looks into
MOST = 1000  # neighbours of an answer
INDEX_FILE = "vectors.faiss"


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """An index of embeddings that is open.

    Attributes:
        faiss: the index; the number of a vector is its place in `rows`.
        rows: the row of the set of each vector.
        order: the numbers of the vectors in the order of their rows.
    """

    faiss: Any
    rows: Rows
    order: Rows

    def place(self, row: int) -> int:
        """The number of the vector of a row; -1: it has none."""
        at = int(np.searchsorted(self.rows, row, sorter=self.order))
        return int(self.order[at]) if at < len(self.order) and self.rows[self.order[at]] == row else -1

    def of(self, row: int) -> tuple[Rows, npt.NDArray[np.float32]]:
        """The rows nearest to a row, itself first, and the cosine of each; nothing where it has no embedding."""
        at = self.place(row)
        if at < 0:
            return np.empty(0, np.uint32), np.empty(0, np.float32)
        vector = self.faiss.reconstruct(at)[None]
        vector /= np.linalg.norm(vector) or 1.0
        scores, places = self.faiss.search(vector, min(MOST, len(self.rows)))
        there = (places[0] >= 0) & (places[0] != at)
        found = np.concatenate([[row], self.rows[places[0][there]]]).astype(np.uint32)
        return found, np.concatenate([[1.0], np.minimum(scores[0][there], 1.0)]).astype(np.float32)


def open_neighbours(index: Index, tables: Sequence[str]) -> Neighbours:
    """The neighbours by the embeddings of tables. They are indexed once, beside the index of the set.

    Raises:
        UsageError: a table cannot be read, or has no key of the set.
    """
    digest = embeddings.TABLES.digest(tables)
    folder = os.path.join(index.folder, f"embeddings-{digest}")
    if not os.path.exists(os.path.join(folder, INDEX_FILE)):
        partial = tempfile.mkdtemp(prefix=".partial-", dir=index.folder)
        try:
            _write(index, tables, partial)
            os.rename(partial, folder)
        except OSError:
            if not os.path.exists(os.path.join(folder, INDEX_FILE)):
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    import faiss

    found = faiss.read_index(os.path.join(folder, INDEX_FILE), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    if isinstance(found, faiss.IndexIVF):
        found.nprobe = min(PROBES, found.nlist)
        found.make_direct_map()
    return Neighbours(found, mapped(folder, "rows", np.uint32), mapped(folder, "order", np.uint32))


def _write(index: Index, tables: Sequence[str], folder: str) -> None:
    import faiss

    shape = embeddings.check(tables)
    found: Any = faiss.IndexFlatIP(shape.width)
    if shape.rows > EXACT:
        cells = int(4 * shape.rows**0.5)
        found = faiss.index_factory(shape.width, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
        share = max(1, shape.rows // (SAMPLE_PER_CELL * cells))
        found.train(np.concatenate([vectors[::share] for _, vectors in _of_set(index, tables)]))
    rows = [np.empty(0, np.uint32)]
    for some, vectors in _of_set(index, tables):
        found.add(vectors)
        rows.append(some)
    if not found.ntotal:
        raise UsageError(f"--embeddings {', '.join(tables)}: has no key of this set")
    write_numbers(folder, "order", np.argsort(np.concatenate(rows)).astype(np.uint32))
    write_numbers(folder, "rows", np.concatenate(rows))
    faiss.write_index(found, os.path.join(folder, INDEX_FILE))


def _of_set(index: Index, tables: Sequence[str]) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
    """Yields the rows of the keys of the set, and their vectors of length 1."""
    keys, order = _keys(index)
    for path in tables:
        for some, vectors in embeddings.READ.batches(path):
            at = np.minimum(np.searchsorted(keys, some), len(keys) - 1)
            known = keys[at] == some if len(keys) else np.zeros(len(some), bool)
            kept = vectors[known].astype(np.float32)
            yield order[at[known]], np.ascontiguousarray(kept / np.linalg.norm(kept, axis=1, keepdims=True))


@functools.lru_cache(maxsize=1)
def _keys(index: Index) -> tuple[npt.NDArray[np.bytes_], Rows]:
    """All keys of a set as bytes, sorted, and the row of each."""
    keys = np.array([bytes.fromhex(key) for key in index.keys()], "S16")
    order = np.argsort(keys, kind="stable")
    return keys[order], order.astype(np.uint32)
