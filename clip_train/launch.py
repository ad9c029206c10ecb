"""Starts one process per GPU. Torch's elastic agent watches them: if one is lost, it ends the run."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from clip_train.devices import cpu_count
from clip_train.errors import CRASH, INTERRUPTED, TrainError, UsageError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure


class ProcessFailed(TrainError):
    """A training process ended early. The exit code is the one of that process."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# A process finds what this one finds. With `-m` it would look into the working directory first. One that aborts in a
# library says where it was.
BOOT = """import faulthandler, json, runpy, sys
faulthandler.enable()
given = json.loads(sys.argv.pop(1))
sys.path[:] = given + [path for path in sys.path if path not in given]
runpy.run_module("clip_train", run_name="__main__", alter_sys=True)"""


def processes_to_start(asked: int | None, *, nnodes: int) -> int:
    """The number of processes to start on this host. 0: this process does the work itself."""
    if "LOCAL_RANK" in os.environ:  # a launcher has started this process
        return 0
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


def launch(argv: list[str], *, processes: int, nnodes: int, node_rank: int, endpoint: str | None) -> None:
    """Runs clip_train with these arguments in every process, and waits for all of them."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))
    config = LaunchConfig(
        min_nodes=nnodes,
        max_nodes=nnodes,
        nproc_per_node=processes,
        rdzv_backend="static" if nnodes > 1 else "c10d",
        rdzv_endpoint=endpoint or "localhost:0",
        rdzv_configs={"rank": node_rank, "timeout": 900} if nnodes > 1 else {},
        run_id="clip_train",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        search_path = json.dumps([os.path.abspath(os.fspath(entry)) for entry in sys.path])
        elastic_launch(config, sys.executable)("-P", "-c", BOOT, search_path, *argv)
    except ChildFailedError as error:
        rank, failure = _cause(error)
        if failure.exitcode > 0:
            raise ProcessFailed(f"process {rank} stopped (its message is above)", failure.exitcode) from None
        raise ProcessFailed(
            f"process {rank} was lost ({failure.signal_name()}) and the run was stopped; continue with --resume", CRASH
        ) from None
    except SignalException as error:
        raise ProcessFailed(f"stopped by {error.sigval.name}; continue with --resume", INTERRUPTED) from None
