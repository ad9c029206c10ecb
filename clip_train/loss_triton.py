"""The two passes of loss.py over the logits, on a GPU. Tests compare them with the reference there.

Forward: one kernel computes tiles of logits on the chip and keeps the log-sum-exp of their rows and columns. Nothing
of size B x B is written. Backward: chunks of rows, as in the reference. cuBLAS computes the matrix products, and one
kernel computes everything between logits and gradient in place.
"""

# mypy: ignore-errors
# ruff: noqa: N803 - Triton's constants are in capitals

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from clip_train.cosines import exact_cosines

ROWS, COLUMNS, DEPTH = 64, 64, 32  # size of a tile; DEPTH features at a time


@triton.jit
def _log_sums_kernel(
    x, y, scale, row_out, column_out, row_count, column_count, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per block of rows. It goes through all tiles of the block from the left."""
    block = tl.program_id(0)
    rows = block * ROWS + tl.arange(0, ROWS)
    is_row = rows < row_count
    factor = tl.load(scale)
    largest = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, column_count, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_column = columns < column_count
        tile = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, width, DEPTH):
            depth = first + tl.arange(0, DEPTH)
            is_depth = depth < width
            a = tl.load(x + rows[:, None] * width + depth[None], mask=is_row[:, None] & is_depth[None], other=0.0)
            b = tl.load(y + columns[None] * width + depth[:, None], mask=is_column[None] & is_depth[:, None], other=0.0)
            tile += tl.dot(a, b, input_precision=PRECISION)
        tile = tl.where(is_row[:, None] & is_column[None], tile * factor, -float("inf"))
        higher = tl.maximum(largest, tl.max(tile, 1))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(tile - higher[:, None]), 1)
        largest = higher
        top = tl.max(tile, 0)
        sums = tl.sum(tl.exp(tile - top[None]), 0)
        tl.store(column_out + block * column_count + columns, top + tl.log(sums), mask=is_column)
    tl.store(row_out + rows, largest + tl.log(total), mask=is_row)


@triton.jit
def _softmax_kernel(
    cosines, scale, row_sums, column_sums, scale_out, column_count, diagonal, COLUMNS: tl.constexpr
):
    """One program per row: cosines -> p of loss.py in place, and the part of the row in sum p * cosine."""
    row = tl.program_id(0)
    factor, row_sum = tl.load(scale), tl.load(row_sums + row)
    part = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, column_count, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_column = columns < column_count
        place = cosines + row.to(tl.int64) * column_count + columns
        cosine = tl.load(place, mask=is_column, other=0.0)
        column_sum = tl.load(column_sums + columns, mask=is_column, other=float("inf"))
        p = tl.exp(cosine * factor - row_sum) + tl.exp(cosine * factor - column_sum)
        p = tl.where(columns == diagonal + row, p - 2.0, p)
        p = tl.where(is_column, p, 0.0)
        part += p * cosine
        tl.store(place, p, mask=is_column)
    tl.store(scale_out + row, tl.sum(part, 0))


def log_sums(images: Tensor, texts: Tensor, scale: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """See loss.log_sums. `chunk` has no effect, because the kernel holds one tile at a time."""
    images, texts, count = images.contiguous(), texts.contiguous(), len(images)
    blocks = triton.cdiv(count, ROWS)
    rows = images.new_empty(count)
    columns = texts.new_empty(blocks, len(texts))
    # three products of TF32 are as exact as one of fp32, and several times faster
    has_tf32 = images.is_cuda and torch.cuda.get_device_capability(images.device) >= (8, 0)
    precision = "tf32x3" if has_tf32 else "ieee"
    if blocks:
        _log_sums_kernel[(blocks,)](
            images, texts, scale, rows, columns, count, len(texts), images.shape[1],
            ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, PRECISION=precision,
        )  # fmt: skip
    return rows, columns.logsumexp(0)


def gradients(
    images: Tensor, texts: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, start: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See loss.gradients."""
    d_images, d_texts, d_scale = torch.empty_like(images), torch.zeros_like(texts), images.new_zeros(len(images))
    for at in range(0, len(images), chunk):
        part = images[at : at + chunk]
        p = exact_cosines(part, texts)
        _softmax_kernel[(len(part),)](
            p, scale, rows[at : at + chunk], columns, d_scale[at : at + chunk], len(texts), start + at, COLUMNS=1024
        )
        d_images[at : at + chunk] = p @ texts
        d_texts.addmm_(p.T, part)
    return d_images, d_texts, d_scale.sum()
