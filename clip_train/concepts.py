"""Batches chosen by their concepts: of a super-batch of the keyed order, the pairs with the wanted composition.

The concepts of a pair are the queries that its text contains, which a published folder has. The manner is that of
concept-aware batch sampling (arXiv 2511.20643), where a model tags the images. A batch of B pairs is chosen out of the
next `ratio` * B of the order; the others are passed over. The choice depends on the seed and on the place only.

    diverse   as many concepts as possible, as evenly as possible: greedy, by the mean of 1 / (1 + count in the batch)
    dense     the pairs with the most concepts
    balanced  each query takes pairs at the rate t / its count in the set (MetaCLIP, arXiv 2309.16671), where t is such
              that B pairs are taken

The concepts are in a mapped file beside that of the index, which all processes share:

    prefix, offsets (N + 1 int64), ids (int32), counts of each concept in the set (int64), footer
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

from clip_train import keyed
from clip_train.errors import TrainError, UsageError
from clip_train.index import Index
from clip_train.index_file import PREFIX, kept_file, open_footer, write_footer
from clip_train.order import Stream

_MAGIC = b"clip_train conce"
_BALANCE = 8  # purpose of a keyed draw
_ROUNDS = 64  # of the greedy choice
_TOGETHER = 512  # pairs that are read before their pages are given back


class Concepts:
    """The mapped file. `counts`: (concepts,) int64, in the whole set."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        """Maps an open file. ValueError if it is not whole."""
        footer = open_footer(file, _MAGIC)
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        self.samples: int = footer["samples"]
        at = PREFIX.size
        self._offsets = np.frombuffer(self._map, "<i8", self.samples + 1, footer["offsets"])
        self._ids = np.frombuffer(self._map, "<i4", footer["ids"], at)
        self.counts = np.frombuffer(self._map, "<i8", footer["concepts"], footer["counts"])

    def of(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The concepts of n samples, one after the other, and how many each has, (n,) int64."""
        sizes, parts = np.empty(len(samples), np.int64), []
        for at in range(0, len(samples), _TOGETHER):
            part = samples[at : at + _TOGETHER]
            starts = self._offsets[part]
            lengths = self._offsets[part + 1] - starts
            sizes[at : at + len(part)] = lengths
            ends = np.cumsum(lengths)
            parts.append(self._ids[np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1])])
            self._map.madvise(mmap.MADV_DONTNEED)
        return np.concatenate(parts).astype(np.int64), sizes


def open_concepts(index: Index) -> Concepts:
    """The concepts of the pairs of a published folder. UsageError for other data."""
    source = index.concepts
    if source is None:
        raise UsageError(
            "--batch-concepts needs query_ids, which are in the metadata of a published folder: name that folder with "
            "--data (plain tars do not have them)"
        )
    return kept_file(
        source.folders, f"{source.name}.concepts", lambda file: _write(file, index, source.read), Concepts
    )  # fmt: skip


def _write(file: IO[bytes], index: Index, read: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]) -> None:
    """Writes the file, one part of the samples after the other: their concepts, and how many each has."""
    file.write(bytes(PREFIX.size))
    sizes, counts, total = [np.zeros(1, np.int64)], np.zeros(0, np.int64), 0
    for ids, lengths in read():
        if len(ids) and ids.min() < 0:
            raise TrainError("--batch-concepts: the metadata has a negative query id")
        found = np.bincount(ids, minlength=len(counts))
        found[: len(counts)] += counts
        counts, total = found, total + len(ids)
        sizes.append(lengths.astype(np.int64))
        file.write(ids.astype("<i4").tobytes())
    offsets = np.cumsum(np.concatenate(sizes))
    if len(offsets) != len(index) + 1:
        raise TrainError(f"--batch-concepts: the metadata has {len(offsets) - 1} pairs, the index {len(index)}")
    file.write(bytes(-file.tell() % 8))
    footer = {"samples": len(index), "ids": total, "concepts": len(counts), "offsets": file.tell()}
    file.write(offsets.astype("<i8").tobytes())
    footer["counts"] = file.tell()
    file.write(counts.astype("<i8").tobytes())
    write_footer(file, _MAGIC, footer)


class ConceptStream(Stream):
    """A stream whose batches are chosen. `samples` has to be asked for whole batches.

    Args:
        index, order: of `Stream`.
        concepts: of the samples.
        mode: one of BATCH_CONCEPTS.
        ratio: size of a super-batch, in batches.
    """

    def __init__(
        self, index: Index, *, concepts: Concepts, mode: str, ratio: int, seed: int,
        window: int = 0, online_balance: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(index, seed=seed, window=window, online_balance=online_balance)
        self.concepts, self.mode, self.ratio = concepts, mode, ratio

    def samples(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples and the epochs of the batch that begins when `first` samples have been seen, (count,) each."""
        samples, epochs = super().samples(first * self.ratio, count * self.ratio)
        ids, sizes = self.concepts.of(samples)
        if self.mode == "diverse":
            chosen = choose_diverse(ids, sizes, count)
        elif self.mode == "dense":
            chosen = choose_first(-sizes, count)
        else:
            chosen = choose_first(self._waits(samples, epochs, ids, sizes), count)
        return samples[chosen], epochs[chosen]

    def _waits(self, samples: np.ndarray, epochs: np.ndarray, ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """(n,) the smallest t at which a query of each pair takes it: a uniform draw times the count, the least."""
        pairs = keyed.combine(self.seed, _BALANCE, epochs.astype(np.uint64), samples.astype(np.uint64))
        words = keyed.combine(np.repeat(pairs, sizes), ids.astype(np.uint64))
        draws = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53 * self.concepts.counts[ids]
        waits = np.full(len(samples), np.inf)
        some = sizes > 0
        if some.any():
            waits[some] = np.minimum.reduceat(draws, (np.cumsum(sizes) - sizes)[some])
        return waits


def choose_first(scores: np.ndarray, count: int) -> np.ndarray:
    """The rows of the `count` smallest scores, ascending. The earlier of two equal ones comes first."""
    return np.sort(np.argsort(scores, kind="stable")[:count])


def choose_diverse(ids: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """`count` rows with many concepts, evenly, ascending.

    Args:
        ids: concepts of the n pairs, one after the other.
        sizes: (n,) how many each has.

    In each of a few rounds the pairs with the largest gain are taken: the mean over the concepts of 1 / (1 + times that
    the concept is in the batch). A pair without concepts comes last.
    """
    _, ids = np.unique(ids, return_inverse=True)  # from 0 on: as few as there are here
    times, left = np.zeros(int(ids.max(initial=-1)) + 1), np.ones(len(sizes), bool)
    some = np.flatnonzero(sizes)
    starts = (np.cumsum(sizes) - sizes)[some]
    owners = np.repeat(np.arange(len(sizes)), sizes)
    gains = np.zeros(len(sizes))
    for part in np.array_split(np.arange(count), min(count, _ROUNDS)):
        if len(some):
            gains[some] = np.add.reduceat((1 / (1 + times))[ids], starts) / sizes[some]
        gains[~left] = -1
        taken = _largest(gains, len(part))
        left[taken] = False
        new = np.zeros(len(sizes), bool)
        new[taken] = True
        times += np.bincount(ids[new[owners]], minlength=len(times))
    return np.flatnonzero(~left)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The rows of the `count` largest values; the earliest of those that are equal to the last."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    return np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]])


def entropy(ids: np.ndarray) -> float:
    """Of the concepts in a batch, in bits: log2 of as many equally frequent ones as are as diverse."""
    counts = np.unique(ids, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
