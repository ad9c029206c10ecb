"""Muon for the matrices of the towers' blocks, beside AdamW for all other parameters.

The update of a matrix is its momentum, made orthogonal by five steps of Newton-Schulz (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/). It is scaled by 0.2 sqrt(max(rows, columns)), so that its entries are as
large as those of an AdamW update, and AdamW's learning rate and weight decay carry over (Liu et al. 2025,
arXiv 2502.16982, section 2.2).

torch.optim.Muon is not used: it has no way to skip a step that is not finite without a look at the device, takes no
convolutions, makes the stacked matrices of query, key and value orthogonal as one, and every rank would compute all
matrices. Here the ranks share them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clip_train.distributed import rank, world_size
from clip_train.sharded import local, shard_like, whole

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's, for the steepest slope at zero
_STEPS = 5
_SCALE = 0.2  # the root mean square of a usual AdamW update (arXiv 2502.16982)
_TOGETHER = 1 << 24  # numbers of the matrices that a rank takes at a time: 64 MiB in fp32
_BLOCKS = re.compile(r"(^|\.)(resblocks\.\d+|layer\d\.\d+)\.")  # of the transformers and of the ResNet


def matrices_of_blocks(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, int]:
    """The parameters that Muon updates by name, and of how many matrices each consists (3: query, key and value).

    A convolution is a matrix of its output channels. Patch embedding, stem, projections and attention pool are left
    out: they are the ends of the network, which Jordan et al. leave to AdamW.
    """
    return {
        name: 3 if name.endswith("in_proj_weight") else 1
        for name, parameter in named
        if parameter.ndim >= 2 and _BLOCKS.search(name)
    }


class Muon(torch.optim.AdamW):
    """AdamW, and Muon for the groups that have `parts`.

    All ranks must have the same gradients, or shards of them (FSDP2). `found_inf` as an attribute skips a step, as in
    the fused AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step of all groups. The gradients of the matrices are gone afterwards."""
        for group in self.param_groups:
            if "parts" in group:
                self._step_matrices(group)
        return super().step(closure)  # which passes over parameters without a gradient

    def _step_matrices(self, group: dict[str, Any]) -> None:
        found = getattr(self, "found_inf", None)
        skipped = None if found is None else found.reshape(()).bool()
        alike: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                rows = parameter.shape[0] // group["parts"]
                alike.setdefault((rows, math.prod(parameter.shape[1:])), []).append(parameter)
        for (rows, columns), parameters in alike.items():
            count = world_size() * max(1, _TOGETHER // (rows * columns * group["parts"]))
            for at in range(0, len(parameters), count):
                some = parameters[at : at + count]
                updates = [self._momentum(parameter, skipped).view(-1, rows, columns) for parameter in some]
                updates = _orthogonal_by_all(torch.cat(updates)).split(group["parts"])
                for parameter, update in zip(some, updates, strict=True):
                    _apply(parameter, update, group, scale=_SCALE * math.sqrt(max(rows, columns)), skipped=skipped)

    def _momentum(self, parameter: nn.Parameter, skipped: Tensor | None) -> Tensor:
        """Takes up the gradient. Returns the whole of Nesterov's momentum."""
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        momentum, own = local(state["momentum"]), local(gradient)
        if skipped is not None:
            own.copy_(torch.where(skipped, momentum, own))  # which leaves the momentum as it is
        momentum.lerp_(own, 1 - MOMENTUM)
        own.lerp_(momentum, MOMENTUM)
        return whole(gradient).flatten(1)


def _apply(
    parameter: nn.Parameter, update: Tensor, group: dict[str, Any], *, scale: float, skipped: Tensor | None
) -> None:
    taken = 1.0 if skipped is None else 1 - skipped.float()
    mine = local(shard_like(update.reshape(parameter.shape), parameter)).float()
    weights = local(parameter)
    weights.mul_(1 - group["lr"] * group["weight_decay"] * taken)
    weights.sub_(mine * (group["lr"] * scale * taken))


def _orthogonal_by_all(matrices: Tensor) -> Tensor:
    """`orthogonal`, where each rank computes its share of the matrices, (n, rows, columns)."""
    if world_size() == 1:
        return orthogonal(matrices)
    share = -(-len(matrices) // world_size())
    missing = share * world_size() - len(matrices)
    padded = torch.cat([matrices, matrices.new_zeros(missing, *matrices.shape[1:])]) if missing else matrices
    mine = orthogonal(padded[rank() * share : (rank() + 1) * share])
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine)
    return torch.cat(parts)[: len(matrices)]


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) -> matrices of the same singular vectors whose singular values are near 1, by Newton-Schulz.

    A GPU computes it in bf16, which is enough here (Jordan et al. 2024), a CPU in fp32.
    """
    x = matrices.to(torch.bfloat16) if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).contiguous()
