"""The order of the samples: a function of the seed and a place in an endless sequence. No epoch's order is held.

    epoch -> windows of shards, in a keyed order -> pairs within a window, in a keyed order

`keyed.permute` gives the pair at any place in a few steps, for a set of any size. Only numbers for each shard are kept.

With online balance an epoch has a pair with its keep probability p. The pairs lie on a line, each as long as its p. The
points at offset, offset + 1, offset + 2, ... choose the pairs that they fall on. The offset is a draw of the epoch. So
each pair is chosen with probability p, at most once, and the size of an epoch is known without looking at the pairs.
Within each run of RUN neighbours the pairs lie in another order in each epoch, so each run is drawn anew.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from clip_train import keyed
from clip_train.errors import InputMissing, UsageError
from clip_train.index import Index
from clip_train.index_file import KEEP_UNIT, RUN

_ORDER, _KEEP, _WINDOW, _OFFSET = 1, 3, 4, 7  # purposes of keyed draws
WINDOW_FORM = 2  # of the order within windows and with online balance; a checkpoint has it


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """An epoch in numbers for each shard, in the order of the epoch."""

    shards: np.ndarray  # (S,) their numbers
    first: np.ndarray  # (S,) of each: its first sample, or its first point of the online balance
    ends: np.ndarray  # (S + 1,) places where they begin, and the size of the epoch
    windows: np.ndarray  # (W + 1,) places where the windows begin, and the size of the epoch


class Stream:
    """The endless sequence of samples.

    Args:
        index: where the samples are.
        seed: keys the permutations.
        window: shuffle within windows of this many shards, so that few shards are needed at a time. The shards are in a
            keyed order too. 0: over all samples.
        online_balance: an epoch has a pair with its keep_probability, drawn again in each epoch.
    """

    def __init__(self, index: Index, *, seed: int, window: int = 0, online_balance: bool = False) -> None:
        if online_balance and not index.has_keep_probability:
            raise UsageError(
                "--online-balance needs keep_probability, which is in the metadata of a published folder: "
                "name that folder with --data (plain tars do not have it)"
            )
        self.index, self.seed, self.window, self.online_balance = index, seed, window, online_balance
        self._starts = [0]  # place where each epoch begins

    def samples(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples (indices) and the epochs at places first .. first + count - 1, (count,) each."""
        samples, epochs = [], []
        place = first
        while place < first + count:
            epoch = self.epoch_of(place)
            start, end = self._bounds(epoch)
            taken = np.arange(place, min(first + count, end), dtype=np.int64) - start
            samples.append(self._order(epoch, taken))
            epochs.append(np.full(len(taken), epoch, np.int64))
            place += len(taken)
        return np.concatenate(samples), np.concatenate(epochs)

    def epoch_of(self, place: int) -> int:
        """The epoch of a place."""
        if not self.online_balance:
            return place // len(self.index)
        while self._starts[-1] <= place:
            self._bounds(len(self._starts) - 1)
        return int(np.searchsorted(self._starts, place, side="right")) - 1

    def _bounds(self, epoch: int) -> tuple[int, int]:
        if not self.online_balance:
            return epoch * len(self.index), (epoch + 1) * len(self.index)
        while len(self._starts) < epoch + 2:
            kept = int(self._points_before(len(self._starts) - 1, np.array([self.index.table.total]))[0])
            if not kept:
                raise InputMissing("--online-balance: the keep probabilities leave no pair in an epoch")
            self._starts.append(self._starts[-1] + kept)
        return self._starts[epoch], self._starts[epoch + 1]

    def _order(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """The samples at places within an epoch, ascending."""
        layout = self._layout(epoch)
        if not self.window:
            moved = keyed.permute(places, int(layout.ends[-1]), keyed.combine(self.seed, _ORDER, epoch))
        else:
            moved = self._within_windows(epoch, layout, places)
        at = np.searchsorted(layout.ends, moved, side="right") - 1
        chosen = layout.first[at] + moved - layout.ends[at]
        return self._pairs_at(epoch, chosen, layout.shards[at]) if self.online_balance else chosen

    def _within_windows(self, epoch: int, layout: _Epoch, places: np.ndarray) -> np.ndarray:
        """Where the pairs of some places lie, in the order of the shards: each window is permuted within itself."""
        windows = np.searchsorted(layout.windows, places, side="right") - 1
        moved = np.empty_like(places)
        for window in np.unique(windows).tolist():
            start, end = layout.windows[window : window + 2].tolist()
            rows = windows == window
            key = keyed.combine(self.seed, _ORDER, epoch, window)
            moved[rows] = start + keyed.permute(places[rows] - start, end - start, key)
        return moved

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a run has one stream
    def _layout(self, epoch: int) -> _Epoch:
        shards = self._shard_order(epoch) if self.window else np.arange(len(self.index.paths))
        first = self.index.bounds
        if self.online_balance:
            first = self._points_before(epoch, self.index.table.shard_sums())
        ends = np.concatenate([[0], np.cumsum(np.diff(first)[shards])])
        windows = np.append(ends[:-1][:: self.window], ends[-1]) if self.window else ends[[0, -1]]
        return _Epoch(shards, first[:-1][shards], ends, windows)

    # --- windows ------------------------------------------------------------------------------------------------------

    def windows(self, samples: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """The window of each sample, counted over all epochs. It never decreases along the sequence."""
        found = np.empty(len(samples), np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            places = np.argsort(self._shard_order(int(epoch)))[self.index.shard_of(samples[rows])]
            found[rows] = epoch * self._windows_an_epoch + places // self.window
        return found

    def shards_of(self, window: int) -> list[int]:
        """The shards of a window, counted over all epochs."""
        epoch, number = divmod(window, self._windows_an_epoch)
        return self._shard_order(epoch)[number * self.window : (number + 1) * self.window].tolist()

    @property
    def _windows_an_epoch(self) -> int:
        return -(-len(self.index.paths) // self.window)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def _shard_order(self, epoch: int) -> np.ndarray:
        shards = len(self.index.paths)
        return keyed.permute(np.arange(shards), shards, keyed.combine(self.seed, _WINDOW, epoch))

    # --- online balance -----------------------------------------------------------------------------------------------

    def _offset(self, epoch: int) -> int:
        return int(keyed.combine(self.seed, _OFFSET, epoch)[0] >> np.uint64(33))  # below KEEP_UNIT

    def _points_before(self, epoch: int, lengths: np.ndarray) -> np.ndarray:
        """How many points lie before each place on the line, given in units of 1 / KEEP_UNIT."""
        return (np.maximum(lengths - self._offset(epoch), 0) + KEEP_UNIT - 1) // KEEP_UNIT

    def _pairs_at(self, epoch: int, points: np.ndarray, shards: np.ndarray) -> np.ndarray:
        """The samples that the n points fall on. `shards`: those of the points."""
        table = self.index.table
        places = points * KEEP_UNIT + self._offset(epoch)
        runs, before = table.runs_at(places)
        starts = self.index.bounds[shards] + (runs - table.first_run[shards]) * RUN
        counts = np.minimum(self.index.bounds[shards + 1] - starts, RUN)
        keep = self.index.weights(starts, counts)
        neighbours = (starts[:, None] + np.arange(RUN)).astype(np.uint64)
        order = np.argsort(keyed.combine(self.seed, _KEEP, epoch, neighbours), axis=1)
        ends = np.cumsum(np.take_along_axis(keep, order, axis=1), axis=1)
        nth = (ends <= (places - before)[:, None]).sum(1)
        return starts + np.take_along_axis(order, nth[:, None], axis=1)[:, 0]
