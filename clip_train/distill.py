"""Distillation from a teacher whose embeddings of the set lie in a table, which `embed --texts` has written.

The student learns to rank the texts of a batch for each image as the teacher ranks them, and the images for each text:
affinity mimicking (TinyCLIP, arXiv 2309.12314, section 3.1), with the teacher's vectors stored beside the set, as in
MobileCLIP (arXiv 2311.17049, section 3). Only cosines within the teacher's space count, so the widths of teacher
and student may differ, and nothing is projected.

With the student's unit vectors x_i, y_j and scale s, and the teacher's u_i, v_j and scale t, let q be the softmax of
t u.v over the rows plus that over the columns. For a weight w the loss is

    (1 - w) L + w D,   D = 1/(2B) sum_i [ log sum_j exp(s x_i.y_j) + log sum_j exp(s x_j.y_i) ] - 1/(2B) sum q s (x y^T)

where L is InfoNCE (loss.py), which has 2 * identity in the place of q. So the sum is L + w (D - L), and D - L is linear
in the logits of the student: `toward_teacher`.

The vectors are in a mapped file, in the order of the index, which all processes share:

    prefix, vectors (N x 2 x E float16: of the image, of the text; zeros where the table has no row), footer
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clip_train.cosines import exact_cosines
from clip_train.distributed import gather_rows, log_sum_exp_over_ranks, rank, scatter_sum, sum_over_ranks
from clip_train.errors import UsageError
from clip_train.index import Index, digest_of
from clip_train.index_file import PREFIX, kept_file, open_footer, write_footer
from clip_train.loss import kernels
from clip_train.shards import cache_folders

SCALE = b"clip_train.logit_scale"  # of the table's metadata: exp(logit_scale) of the teacher
COLUMNS = ("embedding", "text_embedding")
_MAGIC = b"clip_train teach"
_TOGETHER = 4096  # rows that are read at a time


# --- the loss ---------------------------------------------------------------------------------------------------------


def toward_teacher(
    images: Tensor, texts: Tensor, scale: Tensor, teacher: Tensor, teacher_scale: float, *, chunk: int = 1024
) -> Tensor:
    """D - L over the pairs of all ranks, a scalar. Its gradients add up over the ranks, as those of the losses do.

    Args:
        images, texts: (b, E) unit vectors of the student.
        scale: exp(logit_scale) of the student, a scalar.
        teacher: (b, 2, F) unit vectors of the teacher: of the image, of the text.
        teacher_scale: that of the teacher.
        chunk: rows of logits in memory at a time, chunk x B floats.
    """
    with torch.autocast(images.device.type, enabled=False):
        u, v = (part.contiguous() for part in teacher.float().unbind(1))
        return _TowardTeacher.apply(images.float(), texts.float(), scale.float(), u, v, teacher_scale, chunk)


class _TowardTeacher(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, u: Tensor, v: Tensor, teacher_scale: float, chunk: int
    ) -> Tensor:
        (all_texts, sizes), (all_v, _) = gather_rows(texts), gather_rows(v)
        start, total, t = sum(sizes[: rank()]), sum(sizes), scale.new_tensor(teacher_scale)
        log_sums, _ = kernels(u)
        rows, columns = log_sums(u, all_v, t, chunk)
        columns = log_sum_exp_over_ranks(columns)
        d_images, d_texts = 2 * texts, torch.zeros_like(all_texts)
        d_texts[start : start + len(images)] += 2 * images
        for at in range(0, len(images), chunk):
            logits = t * exact_cosines(u[at : at + chunk], all_v)
            q = (logits - rows[at : at + chunk, None]).exp_().add_(logits.sub_(columns[None]).exp_())
            d_images[at : at + chunk] -= q @ all_texts
            d_texts -= q.T @ images[at : at + chunk]
        half = 1 / (2 * total)
        d_scale = (images * d_images).sum() * half
        ctx.save_for_backward(d_images * (scale * half), d_texts * (scale * half), d_scale)
        ctx.sizes = sizes
        return sum_over_ranks(scale * d_scale)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_images, d_texts, d_scale = ctx.saved_tensors
        texts = scatter_sum(d_texts.clone(), ctx.sizes)
        return d_images * upstream, texts * upstream, d_scale * upstream, None, None, None, None


# --- the table --------------------------------------------------------------------------------------------------------


class Teacher:
    """The mapped vectors of a teacher.

    Attributes:
        digest: names the table.
        scale: exp(logit_scale) of the teacher.
        missing: samples without a row in the table; `first_missing` is the key of one, "" where there is none.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        """Maps an open file. ValueError if it is not whole."""
        footer = open_footer(file, _MAGIC)
        self.digest, self.scale = str(footer["digest"]), float(footer["scale"])
        self.missing, self.first_missing = int(footer["missing"]), str(footer["first_missing"])
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        shape = (footer["samples"], 2, footer["width"])
        self._vectors = np.frombuffer(self._map, "<f2", shape[0] * 2 * shape[2], PREFIX.size).reshape(shape)

    def rows(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 2, F) float16 vectors of n samples, and the rows of those that the table has not."""
        found = self._vectors[samples]
        self._map.madvise(mmap.MADV_DONTNEED)  # the pages stay in the memory of the host
        return found, np.flatnonzero(~found.any(axis=(1, 2)))


def open_teacher(path: str, index: Index, *, cache: str | None = None, max_bad: float = 0.0) -> Teacher:
    """The vectors of a table for the samples of a set, from a file beside the table, which is made if need be.

    Args:
        path: Parquet with `key`, `embedding` and `text_embedding`.
        cache: folder for the file, where that of the table cannot be written.
        max_bad: share of the samples that may have no row.

    Raises:
        UsageError: it is no such table, a key stands twice, a vector is no direction, or too many rows are missing.
    """
    if "captions" in index.table.columns:
        raise UsageError("--distill: the pairs of --data have several texts, the table has a vector of the first only")
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"--distill {path}: this is no Parquet table ({error})") from None
    with table:
        width = _width(table, path)
        digest = _digest(path)
        name = hashlib.sha256(f"{digest} {digest_of(index)}".encode()).hexdigest()[:32]
        teacher = kept_file(
            cache_folders(Path(path).absolute().parent, cache), f"{name}.teacher",
            lambda file: _write(file, table, index, path, width=width, digest=digest), Teacher,
        )  # fmt: skip
    if teacher.missing > max_bad * len(index):
        raise UsageError(
            f"--distill {path}: {teacher.missing} of the {len(index)} pairs of --data have no row, more than "
            f"--max-bad {max_bad:g} allows; the first: {teacher.first_missing}. Write it by clip_train embed --texts"
        )
    return teacher


def _width(table: pq.ParquetFile, path: str) -> int:
    """The width of the vectors. UsageError where the table has not the columns of `embed --texts`."""
    schema = table.schema_arrow
    for name in ("key", *COLUMNS):
        if name not in schema.names:
            raise UsageError(f"--distill {path}: there is no column {name!r}: write it by clip_train embed --texts")
    widths = []
    for name in COLUMNS:
        kind = schema.field(name).type
        if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
            raise UsageError(f"--distill {path}: {name} is {kind}, lists of numbers of one length are expected")
        widths.append(kind.list_size)
    if widths[0] != widths[1] or not widths[0]:
        raise UsageError(f"--distill {path}: vectors of images have {widths[0]} numbers, those of texts {widths[1]}")
    return widths[0]


def _digest(path: str) -> str:
    """A name for the table, by its size and its footer, which has the statistics of all its parts."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - 8 - length))
        return hashlib.sha256(file.read() + str(size).encode()).hexdigest()


def _write(file: IO[bytes], table: pq.ParquetFile, index: Index, path: str, *, width: int, digest: str) -> None:
    """Writes the file, one part of the table after the other."""
    samples = _samples_of(table, index, path)
    end = PREFIX.size + len(index) * 2 * width * 2
    file.truncate(end)
    if hasattr(os, "posix_fallocate"):  # a full disk is noticed here, not while the mapping is written
        os.posix_fallocate(file.fileno(), 0, end)
    vectors = np.memmap(file, "<f2", "r+", PREFIX.size, (len(index), 2, width))
    missing, at = np.ones(len(index), bool), 0
    for batch in _batches(table, path):
        places = samples[at : at + len(batch)]
        known = places >= 0
        for side, name in enumerate(COLUMNS):
            vectors[places[known], side] = _unit(batch.column(name), width, path, name, at)[known]
        missing[places[known]] = False
        at += len(batch)
    vectors.flush()
    lacking = np.flatnonzero(missing)
    scale = float((table.schema_arrow.metadata or {}).get(SCALE, b"100"))  # where CLIP's training ends, section 2.5
    footer = {
        "digest": digest, "samples": len(index), "width": width, "scale": scale, "missing": len(lacking),
        "first_missing": index.keys_of(lacking[:1].tolist())[0][:100] if len(lacking) else "",
    }  # fmt: skip
    file.seek(end)
    write_footer(file, _MAGIC, footer)


def _batches(table: pq.ParquetFile, path: str) -> Iterator[pa.RecordBatch]:
    """The vectors of the table, part by part. UsageError where they cannot be read."""
    try:
        yield from table.iter_batches(_TOGETHER, columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"--distill {path}: the vectors cannot be read ({error})") from None


def _unit(column: pa.FixedSizeListArray, width: int, path: str, name: str, first: int) -> np.ndarray:
    """(n, E) unit vectors. UsageError where one is no direction."""
    if column.null_count:
        raise UsageError(f"--distill {path}: {name} has rows without a vector")
    numbers = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, width)
    lengths = np.linalg.norm(numbers, axis=1)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        raise UsageError(f"--distill {path}: {name} of row {first + int(wrong[0])} is not a vector of finite numbers")
    return numbers / lengths[:, None]


def _samples_of(table: pq.ParquetFile, index: Index, path: str) -> np.ndarray:
    """(rows,) int64: the sample of each row; -1: none. Keys may repeat only where the table has the set's order."""
    keys = table.read(columns=["key"])["key"].cast(pa.large_string()).combine_chunks()
    own = pa.concat_arrays([
        pa.array(index.keys_of(range(at, min(at + _TOGETHER, len(index)))), pa.large_string())
        for at in range(0, len(index), _TOGETHER)
    ])  # fmt: skip
    if keys.equals(own):
        return np.arange(len(own))
    for what, found in (("the table", keys), ("--data", own)):
        if pc.count_distinct(found).as_py() != len(found):
            raise UsageError(f"--distill {path}: a key stands twice in {what}, so the rows cannot be told apart")
    return pc.fill_null(pc.index_in(keys, value_set=own), -1).to_numpy(zero_copy_only=False).astype(np.int64)
