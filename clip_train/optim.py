"""AdamW as in the paper (table 18): no weight decay of gains and biases, linear warm-up, cosine to zero; EMA."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clip_train.config import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Two groups: matrices and embeddings have weight decay; gains, biases, class token and temperature have none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, eps=recipe.eps, fused=True)


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
