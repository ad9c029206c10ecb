"""The optimizers, the schedule of the learning rate, and the moving average of the weights.

AdamW is as in the paper (table 18): no weight decay of gains and biases, linear warm-up, cosine to zero. Muon is in
muon.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clip_train.config import Recipe
from clip_train.muon import Muon, matrices_of_blocks


def make_optimizer(model: nn.Module, recipe: Recipe, *, name: str = "adamw") -> torch.optim.AdamW:
    """The optimizer of a run.

    Matrices and embeddings have weight decay. Gains, biases, class token and temperature have none.

    Args:
        name: "muon" takes the matrices of the blocks from AdamW.
    """
    named = [(word, parameter) for word, parameter in model.named_parameters() if parameter.requires_grad]
    orthogonal = matrices_of_blocks(named) if name == "muon" else {}
    rest = [parameter for word, parameter in named if word not in orthogonal]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    for parts in sorted(set(orthogonal.values())):
        chosen = [parameter for word, parameter in named if orthogonal.get(word) == parts]
        groups.append({"params": chosen, "weight_decay": recipe.weight_decay, "parts": parts})
    kind = Muon if orthogonal else torch.optim.AdamW
    return kind(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True)


# what each optimizer keeps of a parameter
STATE = {"adamw": ("exp_avg", "exp_avg_sq", "step"), "muon": ("momentum",)}


def optimizer_of(optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """The key of STATE of each parameter."""
    groups = optimizer.param_groups
    return {value: "muon" if "parts" in group else "adamw" for group in groups for value in group["params"]}


def learning_rate(step: int, *, recipe: Recipe, steps: int) -> float:
    """The rate of step `step`, counted from 0. The last step of the warm-up has the peak. The cosine ends at zero."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets one rate for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class MovingAverage:
    """Exponential moving average of the weights, in fp32. The first steps count more: decay <= (1 + n) / (10 + n)."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone().float() if value.is_floating_point() else value.clone()
            for name, value in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Averages in the weights after step `step`, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        state = model.state_dict()
        moving = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in moving], [state[name].float() for name in moving], weight)
        for name in state.keys() - set(moving):
            self.weights[name].copy_(state[name])
