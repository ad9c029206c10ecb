"""The index of a set: where each sample is in the tar shards. It is read from one mapped file (index_file.py).

No column is held in memory, so an index of 400 million samples takes as much memory as one of a thousand.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from clip_train.errors import TrainError
from clip_train.index_file import BLOCK, KEEP_UNIT, RUN, Table
from clip_train.remote import RemoteShards

PLACES = ("image", "text", "label")
_NEIGHBOURS = 1024  # samples that `place` looks up together


@dataclasses.dataclass(frozen=True)
class Rows:
    """The places of n samples. Offsets and sizes are in bytes of the shard. Size 0: there is no such member."""

    shard: np.ndarray  # (n,) int64, into the paths of the index, as all columns
    image_offset: np.ndarray
    image_size: np.ndarray
    text_offset: np.ndarray
    text_size: np.ndarray
    label_offset: np.ndarray
    label_size: np.ndarray
    sha256: np.ndarray | None = None  # (n, 8) uint8: the first bytes of the image's
    json_offset: np.ndarray | None = None  # with several texts: of the JSON, whose list `texts` has all of them
    json_size: np.ndarray | None = None
    captions: np.ndarray | None = None  # (n,) how many texts each has, at least 1

    def part(self, start: int, stop: int) -> Rows:
        """The places of the samples start .. stop - 1 of these."""
        columns = {name: value for name, value in vars(self).items() if value is not None}
        return Rows(**{name: value[start:stop] for name, value in columns.items()})


@dataclasses.dataclass(frozen=True)
class ConceptSource:
    """Where the concepts of a set come from, and where their file is kept."""

    folders: Sequence[Path]
    name: str
    read: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]  # parts of the samples: concepts, and how many each has


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """N samples. Those of a shard are neighbours: shard s has the samples bounds[s] .. bounds[s + 1] - 1."""

    paths: tuple[str, ...]  # of the shards
    table: Table
    read_keys: Callable[[str], list[str]] | None = None  # of a metadata file, where the table has no keys
    remote: RemoteShards | None = None  # if `paths` are URLs
    concepts: ConceptSource | None = None  # of a published folder

    def __len__(self) -> int:
        return self.table.samples

    @property
    def bounds(self) -> np.ndarray:
        """(shards + 1,) int64: the first sample of each shard, and N."""
        return self.table.bounds

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the shards, in bytes."""
        return self.table.sizes

    @property
    def damaged(self) -> tuple[str, ...]:
        """Tars that are truncated or have damaged headers. Their whole samples are in the index."""
        return tuple(self.paths[number] for number in self.table.damaged)

    @property
    def labelled(self) -> bool:
        """True if a sample has a label."""
        return self.table.labelled

    @property
    def has_keep_probability(self) -> bool:
        """True if the index of the set has a keep probability for each pair."""
        return "keep" in self.table.columns

    def shard_of(self, samples: np.ndarray) -> np.ndarray:
        """The shards of some samples, (n,) int64."""
        return np.searchsorted(self.bounds, samples, side="right") - 1

    def rows(self, samples: np.ndarray) -> Rows:
        """The places of n samples. TrainError if the file of the index is damaged there."""
        words, columns = self.table.take(samples), self.table.columns
        nothing = np.zeros(len(samples), np.int64)
        places = {}
        for place in PLACES:
            has = f"{place}_block" in columns
            places[f"{place}_offset"] = words[:, columns[f"{place}_block"]] * np.int64(BLOCK) if has else nothing
            places[f"{place}_size"] = words[:, columns[f"{place}_size"]].astype(np.int64) if has else nothing
        digests = None
        if "sha256" in columns:
            at = columns["sha256"]
            digests = np.ascontiguousarray(words[:, at : at + 2]).view(np.uint8)
        if "captions" in columns:
            places["json_offset"] = words[:, columns["json_block"]] * np.int64(BLOCK)
            places |= {name: words[:, columns[name]].astype(np.int64) for name in ("json_size", "captions")}
        return Rows(shard=self.shard_of(samples), sha256=digests, **places)

    def place(self, kind: str, sample: int) -> tuple[int, int, int]:
        """Shard, offset and size of one member: kind is "image", "text" or "label". Quick for neighbours."""
        group, row = divmod(sample, _NEIGHBOURS)
        rows = self._neighbours(group)
        offset, size = getattr(rows, f"{kind}_offset")[row], getattr(rows, f"{kind}_size")[row]
        return int(rows.shard[row]), int(offset), int(size)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a process has few
    def _neighbours(self, group: int) -> Rows:
        return self.rows(np.arange(group * _NEIGHBOURS, min((group + 1) * _NEIGHBOURS, len(self))))

    def weights(self, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The keep probabilities of the samples of n runs.

        Args:
            starts, counts: (n,) the first sample of each run, and how many it has, at most RUN.

        Returns:
            (n, RUN) int64, in units of 1 / KEEP_UNIT; 0 where a run has fewer samples.
        """
        inside = np.arange(RUN) < counts[:, None]
        samples = np.where(inside, starts[:, None] + np.arange(RUN), starts[:, None])
        keep = self.table.take(samples.ravel())[:, self.table.columns["keep"]].reshape(len(starts), RUN)
        return np.where(inside, keep, 0).astype(np.int64)

    def keep_probability(self, samples: np.ndarray) -> np.ndarray:
        """(n,) float64."""
        return self.table.take(samples)[:, self.table.columns["keep"]] / KEEP_UNIT

    def keys_of(self, samples: Sequence[int]) -> list[str]:
        """The keys of some samples. TrainError if the file that has them cannot be read."""
        if self.table.has_keys:
            return [self.table.key(int(sample)) for sample in samples]
        assert self.read_keys is not None
        found = []
        for sample in samples:
            path, row, rows = self.table.metadata_of(int(sample))
            keys = _keys_of_file(self.read_keys, path)
            if len(keys) != rows:
                raise TrainError(f"{path} has {len(keys)} rows, the index has {rows}: has the set been written anew?")
            found.append(keys[row])
        return found


@functools.lru_cache(maxsize=2)
def _keys_of_file(read: Callable[[str], list[str]], path: str) -> list[str]:
    return read(path)


def digest_of(index: Index) -> str:
    """A name for the set: equal for a copy of it in another place, another for a set with other samples.

    It is that of the manifest. Plain tars, and a manifest without sha256, have no digest of the content: their names
    and sizes count, and the place of every member.
    """
    return index.table.digest


def key_of(index: Index, sample: int) -> str:
    """Shard and key of a sample, for messages: at most 100 characters, without control characters."""
    try:
        key = index.keys_of([sample])[0]
    except TrainError:
        key = f"sample {sample}"  # the message is about something else
    key = "".join(char if char.isprintable() else "\ufffd" for char in key[:100])
    return f"{os.path.basename(index.paths[int(index.shard_of(np.array([sample]))[0])])}:{key}"
