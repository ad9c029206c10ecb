"""Batches to the device. A side stream copies them while the GPU still computes what came before."""

from __future__ import annotations

import dataclasses
from functools import cache

import torch

from clip_train.data import Batch
from clip_train.text import PackedText


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device. Its tensors must lie in pinned memory, else each copy waits for the GPU."""
    if device.type != "cuda" or batch.images.is_cuda:
        return batch
    stream, main = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        moved = dataclasses.replace(
            batch,
            images=batch.images.to(device, non_blocking=True),
            text=batch.text.to(device, non_blocking=True),
            good=None if batch.good is None else batch.good.to(device, non_blocking=True),
        )
    main.wait_stream(stream)
    text = moved.text
    parts = (text.tokens, text.positions, text.ends, text.boundaries) if isinstance(text, PackedText) else (text,)
    for tensor in (moved.images, *parts, *(() if moved.good is None else (moved.good,))):
        tensor.record_stream(main)  # the allocator must not give the memory to the next copy too early
    return moved


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
