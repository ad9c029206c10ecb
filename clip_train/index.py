"""The index of a set: where each sample is in the tar shards, as flat arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clip_train.remote import RemoteShards

PLACES = ("image", "text", "label")


@dataclasses.dataclass(frozen=True)
class Index:
    """N samples. Offsets and sizes are in bytes of the shard file. Size 0: the sample has no such member."""

    paths: tuple[str, ...]  # of the shards
    keys: pa.Array  # (N,) string
    shard: np.ndarray  # (N,) int32, into `paths`
    image_offset: np.ndarray  # (N,) int64
    image_size: np.ndarray  # (N,) int32
    text_offset: np.ndarray
    text_size: np.ndarray
    label_offset: np.ndarray
    label_size: np.ndarray
    sha256: np.ndarray | None = None  # (N, 32) uint8, of the image
    keep_probability: np.ndarray | None = None  # (N,) float32
    damaged: tuple[str, ...] = ()  # tars that are truncated or have damaged headers; their whole samples are here
    remote: RemoteShards | None = None  # if `paths` are URLs
    sizes: tuple[int, ...] = ()  # of the shards, in bytes
    listed: str = ""  # the digest of what a manifest lists, if it has the sha256 of every file

    def __len__(self) -> int:
        return len(self.shard)


def digest_of(index: Index) -> str:
    """A name for the set: equal for a copy of it in another place, another for a set with other samples.

    It is that of the manifest. Plain tars, and a manifest without sha256, have no digest of the content: their names
    and sizes count, and the place of every member.
    """
    if index.listed:
        return index.listed
    digest = hashlib.sha256(json.dumps([[os.path.basename(path) for path in index.paths], index.sizes]).encode())
    columns = [getattr(index, f"{place}_{what}") for place in PLACES for what in ("offset", "size")]
    for values in (index.shard, *columns):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def key_of(index: Index, sample: int) -> str:
    """Shard and key of a sample, for messages: at most 100 characters, without control characters."""
    key = "".join(char if char.isprintable() else "\ufffd" for char in index.keys[sample].as_py()[:100])
    return f"{os.path.basename(index.paths[int(index.shard[sample])])}:{key}"


def check_nulls(table: pa.Table) -> None:
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"{name} has nulls")


def check_places(index: Index, sizes: Sequence[int]) -> None:
    """ValueError if a member is outside of its shard."""
    if not len(index):
        return
    if index.shard.min() < 0 or index.shard.max() >= len(sizes):
        raise ValueError("a shard is not in the list")
    ends = np.array(sizes, np.int64)[index.shard]
    for place in PLACES:
        offset, size = getattr(index, f"{place}_offset"), getattr(index, f"{place}_size")
        if offset.min() < 0 or size.min() < 0 or (offset > ends).any() or (offset + size > ends).any():
            raise ValueError("a member is outside of its shard")
