"""Token ids of a batch of captions, packed: each caption ends with its end-of-text token.

OpenAI's text tower attends causally, and its output is read at the first end-of-text token. Later tokens cannot change
the result. A packed batch has no later tokens: with 23 tokens per caption instead of 77 the tower does 3.4 times less
work for the same numbers. Captions are sorted by length, so that captions of one length are one contiguous block. On a
CPU, attention takes these blocks without padding. On a GPU it takes the boundaries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from clip_train.ragged import flatten


@dataclasses.dataclass(frozen=True)
class PackedText:
    """B captions with T tokens in all, shortest caption first."""

    tokens: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64: position within the caption
    ends: torch.Tensor  # (B,) int64: index in `tokens` of the end-of-text token of each caption, in the given order
    boundaries: torch.Tensor  # (B + 1,) int32: start of each sorted caption, and T
    blocks: tuple[tuple[int, int], ...]  # (captions, length) of each block of one length
    longest: int  # no caption is longer; a multiple of 64, so that compiled code sees few values

    def __len__(self) -> int:
        return len(self.ends)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedText:
        """The same batch on another device."""
        move = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("tokens", "positions", "ends", "boundaries")
        }
        return dataclasses.replace(self, **move)

    def pin_memory(self) -> PackedText:
        """The same batch in memory from which a GPU copies by itself."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("tokens", "positions", "ends", "boundaries")}
        return dataclasses.replace(self, **pinned)


def pack(captions: Sequence[Sequence[int]]) -> PackedText:
    """Packs captions. Each has its ids from start-of-text to end-of-text, both included."""
    return pack_flat(*flatten(captions))


def pack_flat(ids: np.ndarray, lengths: np.ndarray) -> PackedText:
    """Packs captions that `flatten` has laid one after another."""
    order = np.argsort(lengths, kind="stable")
    sizes = lengths[order]
    boundaries = np.concatenate([[0], np.cumsum(sizes)])
    positions = np.arange(len(ids)) - np.repeat(boundaries[:-1], sizes)
    starts = (np.cumsum(lengths) - lengths)[order]
    ends = np.empty(len(lengths), np.int64)
    ends[order] = boundaries[1:] - 1
    different, counts = np.unique(sizes, return_counts=True)
    return PackedText(
        tokens=torch.from_numpy(ids[np.repeat(starts, sizes) + positions].astype(np.int64)),
        positions=torch.from_numpy(positions),
        ends=torch.from_numpy(ends),
        boundaries=torch.from_numpy(boundaries.astype(np.int32)),
        blocks=tuple(zip(counts.tolist(), different.tolist(), strict=True)),
        longest=-(-int(sizes[-1]) // 64) * 64 if len(sizes) else 0,
    )


def pad_flat(ids: np.ndarray, lengths: np.ndarray, *, context_length: int) -> torch.Tensor:
    """(B, context_length) int64 ids with zeros after each caption, of captions that `flatten` has laid out."""
    padded = np.zeros((len(lengths), context_length), np.int64)
    padded[np.arange(context_length) < lengths[:, None]] = ids
    return torch.from_numpy(padded)


def pad(captions: Sequence[Sequence[int]], *, context_length: int) -> torch.Tensor:
    """(B, context_length) int64 ids, with zeros after each caption, as OpenAI's `tokenize` returns them."""
    return pad_flat(*flatten(captions), context_length=context_length)
