"""One process per GPU: rank, world size, and the collectives of training. With one process all are no-ops."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clip_train.errors import Interrupted, PeerLost, TrainError, UsageError
from clip_train.hosts import JOIN_MINUTES, failure_in, first_line, interface_toward
from clip_train.launch import LAUNCHER

T = TypeVar("T")

# messages of gloo and NCCL when the peer of a connection is gone
_LOST = re.compile("onnection (closed|reset|refused)|[Bb]roken pipe|remote process")
_LATE = re.compile("[Tt]imed out|[Tt]imeout")
_FOR_LATE_WORDS = 3.0  # seconds for the others to say that they wait in vain, too


def world_size() -> int:
    """Processes in the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(
    device: torch.device, *, timeout_minutes: float = 30, join_minutes: float = JOIN_MINUTES
) -> Iterator[None]:  # fmt: skip
    """Joins the processes that the launcher's environment names, if any, and leaves them at the end.

    Args:
        timeout_minutes: how long a process waits for the others before it gives up. NCCL's own default, 10 minutes, is
            shorter than a slow evaluation or a stalled file system.
        join_minutes: how long it waits until all are there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    _end_with_launcher()
    # Functions of this module have the group as a default argument. If it were imported later, they would keep the
    # group after its end, and its threads would meet the end of the interpreter, which aborts the process.
    import torch.distributed.nn

    store = _join(join_minutes)
    joined = {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    joined["timeout"] = timedelta(minutes=timeout_minutes)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("cuda:nccl,cpu:gloo", device_id=device, **joined)
        else:
            dist.init_process_group("gloo", **joined)
        yield
    except RuntimeError as error:
        if _LOST.search(str(error)):
            _silent_ranks(store, joined["rank"], 0)  # it does not hang
            raise PeerLost(f"rank {joined['rank']}: another process of the run has ended; see its message") from error
        if _LATE.search(str(error)):
            silent = _silent_ranks(store, joined["rank"], joined["world_size"])
            names = f"rank {', '.join(map(str, silent))}" if silent else "the others"
            raise TrainError(
                f"rank {joined['rank']}: no answer from {names} within {timeout_minutes:g} minutes "
                f"(--timeout-minutes): slow, hung, or the network is gone"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _silent_ranks(store: dist.Store, number: int, ranks: int) -> list[int]:
    """The ranks that do not give up, as this one does, where all wait for one that hangs: those that hang."""
    with suppress(RuntimeError):  # the store is gone
        store.set(f"late/{number}", "")
        if ranks:
            time.sleep(_FOR_LATE_WORDS)
        return [each for each in range(ranks) if not store.check([f"late/{each}"])][:10]
    return []


def _join(minutes: float) -> dist.Store:
    """Waits until all processes are there. Returns the store through which they meet.

    Raises:
        TrainError: some did not come, or a host has ended (hosts.py).
    """
    from torch.distributed.rendezvous import rendezvous

    number, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    master = os.environ.get("MASTER_ADDR", "")
    if ranks > int(os.environ.get("LOCAL_WORLD_SIZE", "1")) and "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = interface_toward(master)  # torchrun's processes; those of our launcher know it
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    try:
        store, _, _ = next(rendezvous("env://", number, ranks, timeout=timedelta(minutes=minutes)))
        whole: dist.Store = getattr(store, "underlying_store", store)
        deadline = time.monotonic() + 60 * minutes
        store.set(f"here/{number}", "")
        arrived = store.add("here", 1)
        while arrived < ranks:
            if failure := failure_in(whole):
                raise PeerLost(failure["message"])
            if time.monotonic() > deadline:
                missing = [str(each) for each in range(ranks) if not store.check([f"here/{each}"])]
                raise TrainError(
                    f"rank {number}: {len(missing)} of {ranks} processes did not come within {minutes:g} minutes: "
                    f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''} (--join-minutes)"
                )
            time.sleep(0.1)
            arrived = store.add("here", 0)
    except RuntimeError as error:
        raise PeerLost(f"rank {number}: {master} does not answer: {first_line(error)}") from error
    return store


def _end_with_launcher() -> None:
    """Makes Linux send SIGTERM when the launcher dies, so that the run saves its state and ends."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        os.environ.setdefault(LAUNCHER, str(os.getppid()))


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


def who_stopped(number: int, *, step: int) -> TrainError:
    """How a run ends that a signal stops. With several hosts it names those that got the signal. All ranks call it.

    Args:
        number: of the signal that this process got; 0: none.
        step: the last one that is done.
    """
    then = "continue with the same command and --resume"
    if world_size() <= int(os.environ.get("LOCAL_WORLD_SIZE", world_size())):  # one host
        return Interrupted(f"stopped after step {step}; {then}")
    host = f"host {os.environ.get('GROUP_RANK', '?')}"
    lost = os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid())
    own = (f"{host} ({platform.node()})", "" if lost else signal.Signals(number).name) if number else None
    found = dict(each for each in gather(own) if each is not None)
    gone = [name for name, what in found.items() if not what]
    if gone:
        return TrainError(f"stopped after step {step}: the launcher of {', '.join(gone)} was lost; {then}")
    names = ", ".join(f"{what} on {name}" for name, what in found.items())
    return Interrupted(f"stopped after step {step} by {names}; {then}")


# --- evaluation: Python objects, over the CPUs ------------------------------------------------------------------------


def gather(value: T) -> list[T]:
    """The values of all ranks, on every rank."""
    if world_size() == 1:
        return [value]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, value)
    return parts


def from_first(value: T) -> T:
    """The value of the first rank, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def tensors_from_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the CPU, by name, of the first rank on every rank. The other ranks' own do not count."""
    forms = from_first([(name, value.shape, value.dtype) for name, value in tensors.items()])
    own = rank() == 0
    found = {name: tensors[name].contiguous() if own else torch.empty(shape, dtype=kind) for name, shape, kind in forms}
    for value in found.values():
        dist.broadcast(value, 0)
    return found


def together(make: Callable[[], T]) -> T:
    """What this rank makes. A TrainError or OSError of one rank is raised on all, so that none waits in vain."""
    error: TrainError | OSError | None = None
    try:
        made = make()
    except (TrainError, OSError) as caught:
        error = caught
    own = platform.node()
    for number, (found, host) in enumerate(gather((error, own))):
        if found is not None and host != own and isinstance(found, TrainError):
            found.args = (f"{found} (rank {number}, on {host})",)
        if found is not None:
            raise found
    return made


def refuse_different(values: Mapping[str, Any]) -> None:
    """UsageError, on all ranks, that names the first of these values that differs from rank to rank."""
    found = gather((platform.node(), dict(values)))
    for name, value in found[0][1].items():
        for rank, (host, other) in enumerate(found):
            if other[name] != value:
                raise UsageError(
                    f"{name} is {_said(value)} on rank 0 ({found[0][0]}) and {_said(other[name])} on rank {rank} "
                    f"({host}): it must be the same on all"
                )


def _said(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "given" if value else "not given"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def share(count: int, make: Callable[[int], T]) -> list[T]:
    """make(0), ..., make(count - 1), on every rank. The ranks share the calls."""
    ranks = world_size()
    parts = gather(together(lambda: [make(number) for number in range(rank(), count, ranks)]))
    return [parts[number % ranks][number // ranks] for number in range(count)]


def first_process() -> bool:
    """True in the process that prints and writes for all, also outside of `process_group`."""
    return os.environ.get("RANK", "0") == "0"
