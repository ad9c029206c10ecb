"""What changes from step to step in a run."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from clip_train.config import Plan
from clip_train.distill import Teacher
from clip_train.model import CLIP
from clip_train.optim import MovingAverage
from clip_train.parallel import Towers


@dataclasses.dataclass
class Run:
    """The state of a run that changes from step to step."""

    plan: Plan
    device: torch.device
    model: CLIP
    towers: Towers
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    compiled: bool = False  # torch.compile the towers
    data: str = ""  # the digest of the set
    teacher: Teacher | None = None
    step: int = 0
    samples_seen: int = 0


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The numbers of a step, still on the device: scalars in fp32."""

    loss: Tensor
    gradient_norm: Tensor
    logit_scale: Tensor  # after the step, exp of the parameter
    loss_scale: Tensor  # of fp16, before the step; 1 for the other precisions
