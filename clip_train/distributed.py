"""One process per GPU: rank, world size, and the collectives of training. With one process all are no-ops."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clip_train.errors import TrainError, UsageError

T = TypeVar("T")

# messages of gloo and NCCL when the peer of a connection is gone
_LOST = re.compile("onnection (closed|reset|refused)|[Bb]roken pipe|remote process")


def world_size() -> int:
    """Processes in the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(device: torch.device, *, timeout_minutes: float = 30) -> Iterator[None]:
    """Joins the processes that the launcher's environment names, if any, and leaves them at the end.

    Args:
        timeout_minutes: how long a process waits for the others before it gives up. NCCL's own default, 10 minutes, is
            shorter than a slow evaluation or a stalled file system.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    _end_with_launcher()
    # Functions of this module have the group as a default argument. If it were imported later, they would keep the
    # group after its end, and its threads would meet the end of the interpreter, which aborts the process.
    import torch.distributed.nn

    timeout = timedelta(minutes=timeout_minutes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cuda:nccl,cpu:gloo", device_id=device, timeout=timeout)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise TrainError(f"rank {rank()}: another process of the run has ended; see its message") from error
    finally:
        dist.destroy_process_group()


def _end_with_launcher() -> None:
    """Makes Linux send SIGTERM when the launcher dies, so that the run saves its state and ends."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def pick_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise UsageError(f"process {number} needs a GPU of its own, this host has {torch.cuda.device_count()}")
    return torch.device("cuda", number)


def gather_rows(rows: Tensor) -> tuple[Tensor, list[int]]:
    """(b, d) of every rank -> ((B, d) in the order of the ranks, rows of each rank). Ranks may differ in b."""
    if world_size() == 1:
        return rows, [len(rows)]
    counts = torch.zeros(world_size(), dtype=torch.int64)  # over the CPUs: no GPU has to wait
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    sizes = [int(count) for count in counts.tolist()]
    longest = max(sizes)
    padded = rows if len(rows) == longest else torch.cat([rows, rows.new_zeros(longest - len(rows), rows.shape[1])])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sizes


def scatter_sum(rows: Tensor, sizes: list[int]) -> Tensor:
    """(B, d) on every rank -> (b, d): this rank's rows of the sum over the ranks. The adjoint of `gather_rows`."""
    if world_size() == 1:
        return rows
    if rows.is_cuda and len(set(sizes)) == 1:
        mine = rows.new_empty(sizes[0], rows.shape[1])
        dist.reduce_scatter_tensor(mine, rows.contiguous())
        return mine
    dist.all_reduce(rows)
    start = sum(sizes[: rank()])
    return rows[start : start + sizes[rank()]].clone()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums over the ranks, in place, on every rank."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def log_sum_exp_over_ranks(values: Tensor) -> Tensor:
    """log(sum over the ranks of exp(values)), elementwise, without overflow."""
    if world_size() == 1:
        return values
    largest = values.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return sum_over_ranks((values - largest).exp()).log() + largest


def average_gradients(model: nn.Module, *, share: float) -> None:
    """Gradients <- share * sum over the ranks, in one all-reduce after the backward pass."""
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if world_size() == 1:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    at = 0
    for grad in grads:
        grad.copy_(flat[at : at + grad.numel()].view_as(grad)).mul_(share)
        at += grad.numel()


def agree(flag: bool) -> bool:
    """True on all ranks if the flag is true on any rank. It goes over the CPUs, so no GPU has to wait."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag))
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


# --- evaluation: Python objects, over the CPUs ------------------------------------------------------------------------


def gather(value: T) -> list[T]:
    """The values of all ranks, on every rank."""
    if world_size() == 1:
        return [value]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, value)
    return parts


def together(make: Callable[[], T]) -> T:
    """What this rank makes. A TrainError or OSError of one rank is raised on all, so that none waits in vain."""
    error: TrainError | OSError | None = None
    try:
        made = make()
    except (TrainError, OSError) as caught:
        error = caught
    for found in gather(error):
        if found is not None:
            raise found
    return made


def share(count: int, make: Callable[[int], T]) -> list[T]:
    """make(0), ..., make(count - 1), on every rank. The ranks share the calls."""
    ranks = world_size()
    parts = gather(together(lambda: [make(number) for number in range(rank(), count, ranks)]))
    return [parts[number % ranks][number // ranks] for number in range(count)]


def first_process() -> bool:
    """True in the process that prints and writes for all, also outside of `process_group`."""
    return os.environ.get("RANK", "0") == "0"
