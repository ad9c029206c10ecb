"""The model on several ranks: DDP or FSDP2 around the towers, and a sum over the ranks for logit_scale.

The losses give every rank the gradient of its own rows. The gradient of the batch is the sum over the ranks (see
loss.py). DDP and FSDP compute the mean, so the loss is multiplied by the number of ranks before the backward pass.
logit_scale is outside of both: its gradient does not come from the towers, and FSDP cannot shard a scalar.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clip_train.distributed import average_gradients, sum_over_ranks, world_size
from clip_train.model import CLIP, Transformer
from clip_train.text import PackedText

# torch 2.15 renamed DDP's flag
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)


class Towers:
    """Calls the forward pass of the model, on one rank or many."""

    def __init__(
        self, model: CLIP, *, parallel: str, accumulate: int, device: torch.device, precision: str = "fp32"
    ) -> None:
        self.model, self.parallel = model, parallel if world_size() > 1 else "none"
        self._scalars = [value for value in model.parameters() if value.ndim == 0]
        self._call: Any = model
        if self.parallel == "ddp" and accumulate > 1:
            self.parallel = "after"  # one all-reduce of all gradients after the last micro-batch
        elif self.parallel == "ddp":
            names = [name for name, value in model.named_parameters() if value.ndim == 0]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
            has_statistics = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
            options: dict[str, Any] = {_SYNC_BUFFERS: has_statistics}
            self._call = DistributedDataParallel(
                model, device_ids=[device] if device.type == "cuda" else None, **options
            )
        elif self.parallel == "fsdp":
            shard_blocks(model, set(self._scalars), device, precision)

    def __call__(self, images: Tensor, text: Tensor | PackedText, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._call(images, text, kept)

    @contextlib.contextmanager
    def without_exchange(self) -> Iterator[None]:
        """Backward passes in this context do not exchange gradients: for all micro-batches but the last."""
        if self.parallel == "fsdp":
            self._call.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                self._call.set_requires_gradient_sync(True)
        else:
            yield

    def finish_gradients(self) -> None:
        """Averages the gradients that the backward pass did not exchange: logit_scale and logit_bias, or all."""
        if self.parallel == "after":
            average_gradients(self.model, share=1 / world_size())
        elif world_size() > 1:
            for value in self._scalars:
                if value.grad is not None:
                    sum_over_ranks(value.grad).div_(world_size())


def shard_blocks(model: CLIP, ignored: set[nn.Parameter], device: torch.device, precision: str) -> None:
    """FSDP2: each block is a unit, and the rest of the model is one more.

    With half precision the blocks are gathered in it, which is half of the traffic; autocast would compute their
    products in it anyway. Gradients are summed in fp32. The rest, which has the embeddings, stays fp32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(
        param_dtype=half, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
    )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, Transformer):
            for block in module.resblocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, ignored_params=ignored)


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms in this context normalise by their batch, but do not update their running statistics."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
