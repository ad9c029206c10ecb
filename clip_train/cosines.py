"""The matrix product of the losses."""

from __future__ import annotations

import torch
from torch import Tensor


def exact_cosines(images: Tensor, texts: Tensor) -> Tensor:
    """images @ texts.T in fp32, whatever torch's precision of matrix products is."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return images @ texts.T
    finally:
        torch.set_float32_matmul_precision(before)
