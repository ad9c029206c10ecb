"""Batches to the device. A side stream copies them while the GPU still computes what came before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on the device. On a GPU the copy waits in the queue, and the CPU goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Readout:
    """Numbers that the device still computes, on their way to the CPU.

    `.item()` would wait for all work that is queued by then. `read` waits for the work that was queued before this
    object was made.
    """

    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        """Takes scalars on one device."""
        stacked = torch.stack([value.detach().float() for value in values])
        self._event: torch.cuda.Event | None = None
        if stacked.is_cuda:
            self._values = torch.empty(stacked.shape, pin_memory=True).copy_(stacked, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._values = stacked

    def read(self) -> list[float]:
        """The numbers, in the order given."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
