"""Tensors that FSDP2 has sharded over the ranks. Other tensors pass through."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that FSDP has sharded. Every rank has to call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory."""
    part: Any = tensor
    return part.to_local() if hasattr(tensor, "to_local") else tensor


def shard_like(source: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, which every rank has, as one that is sharded like `target`."""
    sharded: Any = target
    if not hasattr(target, "device_mesh"):
        return source
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(source.to(target.device), sharded.device_mesh, sharded.placements, src_data_rank=None)
