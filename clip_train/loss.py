"""The contrastive losses. They are exact over ranks, accumulation and chunks and never hold the B x B logits.

Symmetric InfoNCE (paper, figure 3) over B pairs of unit vectors x_i, y_j with scale s:

    L = 1/(2B) sum_i [ log sum_j exp(s x_i.y_j) + log sum_j exp(s x_j.y_i) - 2 s x_i.y_i ]

Rank r holds b of the B rows. It gathers all texts and computes its b x B logits in chunks of rows. It keeps two
vectors: the log-sum-exp of its rows, and that of all columns, which the ranks combine. The backward pass computes the
logits again. With p = softmax over rows + softmax over columns - 2 * identity,

    dL/dx = s/(2B) p y,      dL/dy = s/(2B) p^T x (summed over the ranks),      dL/ds = 1/(2B) sum p * (x y^T).

Every rank returns the loss of all pairs and the gradients of its own rows. The *sum* over the ranks of the gradients
of the parameters, logit_scale included, is that of one process with the whole batch. All arithmetic is fp32. A GPU
never computes the logits in TF32, which would miss by about 1e-3 times the scale; the two products of the gradient
follow torch's setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_train.cosines import exact_cosines
from clip_train.distributed import gather_rows, log_sum_exp_over_ranks, rank, scatter_sum, sum_over_ranks


def info_nce(images: Tensor, texts: Tensor, scale: Tensor, *, chunk: int = 1024) -> Tensor:
    """The loss over the pairs of all ranks, a scalar.

    Args:
        images, texts: (b, E) unit vectors. Row i of one belongs to row i of the other.
        scale: exp(logit_scale), a scalar.
        chunk: rows of logits in memory at a time, chunk x B floats.
    """
    with torch.autocast(images.device.type, enabled=False):
        return _InfoNCE.apply(images.float(), texts.float(), scale.float(), chunk)


def sigmoid_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, *, chunk: int = 1024) -> Tensor:
    """The pairwise sigmoid loss (Zhai et al. 2023, arXiv 2303.15343): -1/B sum_ij log sigmoid(z_ij (s x_i.y_j + bias)).

    z is 1 for a pair and -1 otherwise. The terms are independent, so one pass over the chunks gives value and gradient.
    """
    with torch.autocast(images.device.type, enabled=False):
        return _Sigmoid.apply(images.float(), texts.float(), scale.float(), bias.float(), chunk)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, chunk: int) -> Tensor:
        all_texts, sizes = gather_rows(texts)
        start, total = sum(sizes[: rank()]), sum(sizes)
        log_sums, _ = kernels(images)
        rows, columns = log_sums(images, all_texts, scale, chunk)  # (b,), (B,)
        columns = log_sum_exp_over_ranks(columns)
        own = columns[start : start + len(images)]
        positives = (images * texts).sum(1) * scale
        ctx.save_for_backward(images, all_texts, scale, rows, columns)
        ctx.chunk, ctx.sizes, ctx.start = chunk, sizes, start
        return sum_over_ranks((rows + own - 2 * positives).sum() / (2 * total))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        images, all_texts, scale, rows, columns = ctx.saved_tensors
        _, gradients = kernels(images)
        d_images, d_texts, d_scale = gradients(images, all_texts, scale, rows, columns, ctx.start, ctx.chunk)
        factor = upstream / (2 * len(all_texts))
        return d_images * (scale * factor), scatter_sum(d_texts, ctx.sizes) * (scale * factor), d_scale * factor, None


def kernels(rows: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`log_sums` and `gradients`, the two passes over the logits: in Triton on a GPU, else the reference below."""
    if rows.is_cuda:
        try:
            from clip_train import loss_triton

            return loss_triton.log_sums, loss_triton.gradients
        except ImportError:  # a torch without Triton
            pass
    return log_sums, gradients


def log_sums(images: Tensor, texts: Tensor, scale: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """(b,) and (B,): log-sum-exp of the rows and of the columns of scale * images @ texts.T."""
    rows = images.new_empty(len(images))
    columns = texts.new_full((len(texts),), -math.inf)
    for at in range(0, len(images), chunk):
        logits = scale * exact_cosines(images[at : at + chunk], texts)
        rows[at : at + chunk] = logits.logsumexp(1)
        columns = torch.logaddexp(columns, logits.logsumexp(0))
    return rows, columns


def gradients(
    images: Tensor, texts: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, start: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """p y, p^T x and sum p * (x y^T), with p as above. `start` is the column of the first pair of this rank."""
    d_images, d_texts, d_scale = torch.empty_like(images), torch.zeros_like(texts), scale.new_zeros(())
    for at in range(0, len(images), chunk):
        part = images[at : at + chunk]
        cosines = exact_cosines(part, texts)
        logits = scale * cosines
        p = (logits - rows[at : at + chunk, None]).exp_().add_(logits.sub_(columns[None]).exp_())
        p.diagonal(start + at).sub_(2)
        d_scale += torch.dot(p.flatten(), cosines.flatten())
        d_images[at : at + chunk] = p @ texts
        d_texts += p.T @ part
    return d_images, d_texts, d_scale


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, chunk: int) -> Tensor:
        all_texts, sizes = gather_rows(texts)
        start, total = sum(sizes[: rank()]), sum(sizes)
        d_images, d_texts = torch.empty_like(images), torch.zeros_like(all_texts)
        d_scale, d_bias, value = scale.new_zeros(()), scale.new_zeros(()), scale.new_zeros(())
        for at in range(0, len(images), chunk):
            part = images[at : at + chunk]
            cosines = exact_cosines(part, all_texts)
            logits = scale * cosines + bias
            positives = logits.diagonal(start + at)
            value += F.softplus(logits).sum() - positives.sum()  # -log sigmoid(z) = softplus(z) - z
            p = torch.sigmoid(logits)  # dL/dlogit, times B
            p.diagonal(start + at).sub_(1)
            d_scale += torch.dot(p.flatten(), cosines.flatten())
            d_bias += p.sum()
            d_images[at : at + chunk] = p @ all_texts
            d_texts += p.T @ part
        ctx.save_for_backward(d_images * (scale / total), d_texts * (scale / total), d_scale / total, d_bias / total)
        ctx.sizes = sizes
        return sum_over_ranks(value / total)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        d_images, d_texts, d_scale, d_bias = ctx.saved_tensors
        texts = scatter_sum(d_texts.clone(), ctx.sizes)
        return d_images * upstream, texts * upstream, d_scale * upstream, d_bias * upstream, None
