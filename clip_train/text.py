"""Token ids of a batch of captions, packed: each caption ends with its end-of-text token.

OpenAI's text tower attends causally, and its output is read at the first end-of-text token. Later tokens cannot change
the result. A packed batch has no later tokens: with 23 tokens per caption instead of 77 the tower does 3.4 times less
work for the same numbers. Captions are sorted by length, so that captions of one length are one contiguous block. On a
CPU, attention takes these blocks without padding. On a GPU it takes the boundaries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch


@dataclasses.dataclass(frozen=True)
class PackedText:
    """B captions with T tokens in all, shortest caption first."""

    tokens: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64: position within the caption
    ends: torch.Tensor  # (B,) int64: index in `tokens` of the end-of-text token of each caption, in the given order
    boundaries: torch.Tensor  # (B + 1,) int32: start of each sorted caption, and T
    blocks: tuple[tuple[int, int], ...]  # (captions, length) of each block of one length
    longest: int

    def __len__(self) -> int:
        return len(self.ends)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedText:
        """The same batch on another device."""
        move = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("tokens", "positions", "ends", "boundaries")
        }
        return dataclasses.replace(self, **move)


def pack(captions: Sequence[Sequence[int]]) -> PackedText:
    """Packs captions. Each has its ids from start-of-text to end-of-text, both included."""
    order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
    lengths = [len(captions[row]) for row in order]
    tokens = torch.tensor([token for row in order for token in captions[row]], dtype=torch.int64)
    sizes = torch.tensor(lengths, dtype=torch.int64)
    boundaries = torch.zeros(len(captions) + 1, dtype=torch.int32)
    boundaries[1:] = sizes.cumsum(0)
    starts = boundaries[:-1].long().repeat_interleave(sizes)
    ends = torch.empty(len(captions), dtype=torch.int64)
    ends[torch.tensor(order, dtype=torch.int64)] = boundaries[1:].long() - 1
    blocks: list[tuple[int, int]] = []
    for length in lengths:
        if blocks and blocks[-1][1] == length:
            blocks[-1] = (blocks[-1][0] + 1, length)
        else:
            blocks.append((1, length))
    return PackedText(
        tokens=tokens,
        positions=torch.arange(len(tokens)) - starts,
        ends=ends,
        boundaries=boundaries,
        blocks=tuple(blocks),
        longest=max(lengths, default=0),
    )


def pad(captions: Sequence[Sequence[int]], *, context_length: int) -> torch.Tensor:
    """(B, context_length) int64 ids, with zeros after each caption, as OpenAI's `tokenize` returns them."""
    ids = torch.zeros(len(captions), context_length, dtype=torch.int64)
    for row, caption in enumerate(captions):
        ids[row, : len(caption)] = torch.tensor(caption, dtype=torch.int64)
    return ids
