"""Starts one process per GPU. Torch's elastic agent watches them: if one is lost, it ends the run.

With several hosts, each has a launcher and an agent of its own. The launchers meet first (hosts.py).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from clip_train import messages
from clip_train.devices import cpu_count
from clip_train.errors import CRASH, INTERRUPTED, TrainError, UsageError
from clip_train.hosts import LEAVE_EARLY, Meeting, meet

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure


class ProcessFailed(TrainError):
    """A training process ended early. The exit code is the one of that process."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# A process finds what this one finds. With `-m` it would look into the working directory first. One that aborts in a
# library says where it was. Of several hosts, it takes its place among the processes of all of them.
_BOOT = """import faulthandler, json, os, runpy, sys
faulthandler.enable()
given = json.loads(sys.argv.pop(1))
sys.path[:] = given["path"] + [path for path in sys.path if path not in given["path"]]
os.environ.update(given["environment"])
if given["environment"]:
    os.environ["RANK"] = str(given["first_rank"] + int(os.environ["LOCAL_RANK"]))
runpy.run_module("clip_train", run_name="__main__", alter_sys=True)"""


def boot(meeting: Meeting | None = None) -> list[str]:
    """The words behind the name of the interpreter that start clip_train; its own words follow."""
    environment: dict[str, str] = {}
    if meeting is not None:
        environment = {
            "WORLD_SIZE": str(meeting.ranks), "MASTER_ADDR": meeting.address[0], "MASTER_PORT": str(meeting.address[1]),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher of host 0 serves the store
        }  # fmt: skip
        if meeting.interface is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
            environment["GLOO_SOCKET_IFNAME"] = meeting.interface
    given = {
        "path": [os.path.abspath(os.fspath(entry)) for entry in sys.path], "environment": environment,
        "first_rank": meeting.first_rank if meeting is not None else 0,
    }  # fmt: skip
    return ["-P", "-c", _BOOT, json.dumps(given)]


def processes_to_start(asked: int | None, *, nnodes: int) -> int:
    """The number of processes to start on this host. 0: this process does the work itself."""
    if "LOCAL_RANK" in os.environ:  # a launcher has started this process
        return 0
    if nnodes > 1:  # where another host has ended, torch's store would print stacks of C++
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    gpus = torch.cuda.device_count()
    count = asked or max(1, gpus)
    if gpus and count > gpus:
        raise UsageError(f"--processes {count} is more than the {gpus} GPUs of this host")
    return count if count > 1 or nnodes > 1 else 0


def _cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The process whose end ended the run. One that was killed goes before those that met its broken connection."""
    lost = [each for each in error.failures.items() if each[1].exitcode < 0 and each[1].exitcode != -signal.SIGTERM]
    return min(lost) if lost else error.get_first_failure()


def launch(
    argv: list[str], *, processes: int, nnodes: int, node_rank: int, endpoint: str | None, join_minutes: float
) -> None:
    """Runs clip_train with these arguments in every process, and waits for all of them."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))
    if nnodes == 1:
        return _run(argv, processes=processes, endpoint=endpoint)
    meeting = meet(
        endpoint or "", hosts=nnodes, host=node_rank, processes=processes, minutes=join_minutes, say=_say
    )  # fmt: skip
    try:
        with meeting.watched():
            _run(argv, processes=processes, endpoint=None, meeting=meeting)
    except ProcessFailed as error:
        stopped = error.exit_code == INTERRUPTED
        lost = f"{meeting.lost}; continue with --resume" if meeting.lost is not None else None
        cause = lost or (None if stopped else meeting.cause())
        meeting.leave(None if stopped and lost is None else str(error), seconds=LEAVE_EARLY)
        if cause is not None:
            raise ProcessFailed(cause, CRASH if stopped else error.exit_code) from None
        raise
    meeting.leave()


def _say(line: str) -> None:
    messages.note(line)
    print(f"clip_train: {line}", file=sys.stderr, flush=True)


def _run(argv: list[str], *, processes: int, endpoint: str | None, meeting: Meeting | None = None) -> None:
    """Runs the processes of this host."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint or "localhost:0",
        run_id="clip_train",
        max_restarts=0,
        monitor_interval=0.2,
    )
    first = meeting.first_rank if meeting is not None else 0
    try:
        elastic_launch(config, sys.executable)(*boot(meeting), *argv)
    except ChildFailedError as error:
        rank, failure = _cause(error)
        if failure.exitcode > 0:
            raise ProcessFailed(f"process {first + rank} stopped (its message is above)", failure.exitcode) from None
        raise ProcessFailed(
            f"process {first + rank} was lost ({failure.signal_name()}) and the run was stopped; continue with "
            f"--resume", CRASH
        ) from None  # fmt: skip
    except SignalException as error:
        raise ProcessFailed(f"stopped by {error.sigval.name}; continue with --resume", INTERRUPTED) from None
