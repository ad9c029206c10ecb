"""The files of an index: arrays of numbers, strings as codes into a sorted vocabulary, and lists of rows by code.

A number stands in a file NAME.bin, without a header; index.json says of which type it is. All files are mapped, so that
an answer reads only the pages that it needs, and processes share them. Memory while building is bounded by the
vocabulary, not by the rows.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Codes = npt.NDArray[np.uint32]
Places = npt.NDArray[np.uint64]

ROW_BITS = 24  # of a row within a batch, while rows are sorted by code
MOST_ROWS = 1 << ROW_BITS  # of a batch
LEAST_MERGED = 1 << 20  # strings of vocabularies that are merged
AT_ONCE = 1 << 20  # numbers that are read at once
RELEASED = 16  # batches after which the pages of a file that is written in all places go


class Column:
    """A file of numbers that grows at its end."""

    def __init__(self, folder: str, name: str, kind: Any) -> None:
        self.path, self.kind, self.size = os.path.join(folder, f"{name}.bin"), np.dtype(kind), 0
        self._file = open(self.path, "wb")  # noqa: SIM115

    def add(self, values: npt.ArrayLike) -> None:
        """Appends numbers."""
        array = np.ascontiguousarray(values, self.kind)
        self._file.write(array.tobytes())
        self.size += len(array)

    def flush(self) -> None:
        """Lets the file have all numbers."""
        self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def write_numbers(folder: str, name: str, values: npt.NDArray[Any]) -> None:
    """Writes NAME.bin."""
    column = Column(folder, name, values.dtype)
    column.add(values)
    column.close()


def mapped(folder: str, name: str, kind: Any, mode: Any = "r") -> npt.NDArray[Any]:
    """The numbers of a file. The array is empty where the file is, since an empty file cannot be mapped."""
    path = os.path.join(folder, f"{name}.bin")
    if not os.path.getsize(path):
        return np.empty(0, kind)
    return np.memmap(path, np.dtype(kind), mode)


def release(numbers: npt.NDArray[Any]) -> None:
    """Lets the pages of a mapped file go, so that they do not count as memory of this process."""
    found = getattr(numbers, "_mmap", None)
    if found is not None and hasattr(mmap, "MADV_DONTNEED"):
        found.madvise(mmap.MADV_DONTNEED)


class Coded:
    """A column of strings that is written as codes: the places of the strings in the sorted vocabulary.

    Until `finish`, the codes of a batch are places in a vocabulary of its own. Vocabularies are merged when they have
    become twice as large as the last merged one, so that a word of many batches is not kept for each of them.
    """

    def __init__(self, folder: str, name: str, *, least: int = LEAST_MERGED) -> None:
        self._folder, self._name, self._bound, self._least = folder, name, least, least
        self._codes = Column(folder, name, np.uint32)
        self._parts: list[tuple[int, pa.Array]] = []  # codes with the same vocabulary, and this vocabulary
        self._strings = 0

    def add(self, strings: pa.Array) -> None:
        """Appends strings without nulls."""
        encoded = pc.dictionary_encode(strings)
        self._codes.add(encoded.indices.to_numpy(zero_copy_only=False))
        self._parts.append((len(encoded), encoded.dictionary.cast(pa.large_string())))
        self._strings += len(encoded.dictionary)
        if self._strings > self._bound:
            self._codes.flush()
            self._merge(ranked=False)
            self._bound = max(self._least, 2 * self._strings)

    def finish(self) -> pa.Array:
        """Replaces the codes of each batch by those of the whole vocabulary, which is written and returned."""
        self._codes.close()
        vocabulary = self._merge(ranked=True)
        write_strings(self._folder, self._name, vocabulary)
        self._parts.clear()
        return vocabulary

    def _merge(self, *, ranked: bool) -> pa.Array:
        """Makes one vocabulary of all, sorted if it is ranked, and rewrites the codes."""
        joined = pa.concat_arrays([part for _, part in self._parts] or [pa.array([], pa.large_string())])
        sizes = [(codes, len(part)) for codes, part in self._parts]
        self._parts.clear()
        encoded = pc.dictionary_encode(joined)
        del joined
        final, vocabulary = encoded.indices.to_numpy(zero_copy_only=False).astype(np.uint32), encoded.dictionary
        del encoded
        if ranked:
            order = pc.array_sort_indices(vocabulary).to_numpy()
            ranks = np.empty(len(order), np.uint32)
            ranks[order] = np.arange(len(order), dtype=np.uint32)
            final, vocabulary = ranks[final], vocabulary.take(pa.array(order))
        self._rewrite(sizes, final)
        self._parts.append((self._codes.size, vocabulary))
        self._strings = len(vocabulary)
        return vocabulary

    def _rewrite(self, sizes: list[tuple[int, int]], final: Codes) -> None:
        codes, row, place = mapped(self._folder, self._name, np.uint32, "r+"), 0, 0
        for count, strings in sizes:
            for at in range(row, row + count, AT_ONCE):
                end = min(at + AT_ONCE, row + count)
                codes[at:end] = final[place : place + strings][codes[at:end]]
                release(codes)
            row, place = row + count, place + strings


def write_strings(folder: str, name: str, strings: pa.Array) -> None:
    """Writes NAME.arrow."""
    with pa.OSFile(os.path.join(folder, f"{name}.arrow"), "wb") as file:
        batch = pa.record_batch([strings], names=["value"])
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)


def read_strings(folder: str, name: str) -> pa.Array:
    """The strings of NAME.arrow, mapped."""
    with pa.ipc.open_file(pa.memory_map(os.path.join(folder, f"{name}.arrow"))) as file:
        return file.get_batch(0).column(0)


def invert(folder: str, name: str, size: int, *, at_once: int = AT_ONCE) -> None:
    """Writes, for each code of the lists NAME, the ascending rows that hold it.

    NAME.bin has the codes of all rows, NAME.starts.bin the place where the codes of each row begin, and their end. It
    writes NAME.rows.bin, NAME.first.bin (where the rows of each code begin) and NAME.last.bin (where they end).

    Args:
        folder: of the index.
        name: of the lists.
        size: of the vocabulary.
        at_once: entries that are in memory, about.
    """
    counts = np.zeros(size, np.int64)
    for codes, _ in _sorted(folder, name, at_once):
        counts += np.bincount(codes, minlength=size)
    ends = np.cumsum(counts)
    starts = ends - counts
    write_numbers(folder, f"{name}.first", starts)
    write_numbers(folder, f"{name}.last", ends)
    path = os.path.join(folder, f"{name}.rows.bin")
    with open(path, "wb") as file:
        file.truncate(int(ends[-1]) * 4 if size else 0)
    places = mapped(folder, f"{name}.rows", np.uint32, "r+")
    for number, (codes, rows) in enumerate(_sorted(folder, name, at_once)):
        if number % RELEASED == RELEASED - 1:
            release(places)
        if len(codes):
            begins = np.flatnonzero(np.diff(codes, prepend=-1))
            lengths = np.diff(begins, append=len(codes))
            held = codes[begins]
            places[np.arange(len(codes)) + np.repeat(starts[held] - begins, lengths)] = rows
            starts[held] += lengths


def _sorted(folder: str, name: str, at_once: int) -> Iterator[tuple[npt.NDArray[np.int64], Codes]]:
    """Yields (codes, rows) of about `at_once` entries of the lists, sorted by code, then by row, each pair once."""
    codes, starts = mapped(folder, name, np.uint32), mapped(folder, f"{name}.starts", np.uint64)
    row, count = 0, len(starts) - 1
    while row < count:
        end = int(np.searchsorted(starts, starts[row] + np.uint64(at_once), "right")) - 1
        end = min(max(end, row + 1), row + MOST_ROWS, count)
        part = codes[int(starts[row]) : int(starts[end])].astype(np.uint64)
        release(codes)
        rows = np.repeat(np.arange(end - row, dtype=np.uint64), np.diff(starts[row : end + 1]).astype(np.int64))
        both = np.sort(part << np.uint64(ROW_BITS) | rows)
        both = both[np.concatenate([[True], both[1:] != both[:-1]])] if len(both) else both
        yield (
            (both >> np.uint64(ROW_BITS)).astype(np.int64),
            (both & np.uint64(MOST_ROWS - 1)).astype(np.uint32) + np.uint32(row),
        )
        row = end
