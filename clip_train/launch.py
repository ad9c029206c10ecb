"""Starts one process per GPU. Torch's elastic agent watches them: if one is lost, it ends the run.

With several hosts, each has a launcher and an agent of its own. The launchers meet first (hosts.py).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_train import messages
from clip_train.devices import cpu_count
from clip_train.errors import CRASH, INTERRUPTED, TrainError, UsageError
from clip_train.hosts import LEAVE_EARLY, Meeting, meet

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

# variables of the processes that are started: the launcher's process, and a folder for how they end
LAUNCHER, WORDS = "CLIP_TRAIN_LAUNCHER", "CLIP_TRAIN_WORDS"
_FROM_ELSEWHERE = (signal.SIGTERM, signal.SIGABRT)  # torch ends the others by the one, NCCL a process by the other


class ProcessFailed(TrainError):
    """A training process ended early. The exit code is the one of that process.

    Args:
        peer: the reason may be another host.
        saved: the message names the step that is saved.
    """

    def __init__(self, message: str, exit_code: int, *, peer: bool = False, saved: bool = False) -> None:
        super().__init__(message)
        self.exit_code, self.peer, self.saved = exit_code, peer, saved


# A process finds what this one finds. With `-m` it would look into the working directory first. One that aborts in a
# library says where it was. It ends with its launcher, also while it loads torch. Of several hosts, it takes its place
# among the processes of all of them.
_BOOT = """import ctypes, faulthandler, json, os, runpy, signal, sys
faulthandler.enable()
given = json.loads(sys.argv.pop(1))
if given["launcher"] is not None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != given["launcher"]:
        os._exit(1)
sys.path[:] = given["path"] + [path for path in sys.path if path not in given["path"]]
os.environ.update(given["environment"])
if "WORLD_SIZE" in given["environment"]:
    os.environ["RANK"] = str(given["first_rank"] + int(os.environ["LOCAL_RANK"]))
runpy.run_module("clip_train", run_name="__main__", alter_sys=True)"""


def boot(meeting: Meeting | None = None, *, words: str | None = None) -> list[str]:
    """The words behind the name of the interpreter that start clip_train; its own words follow.

    Args:
        words: the folder in which a process of `launch` leaves why it ended. None: it does not end with this one.
    """
    environment = {LAUNCHER: str(os.getpid()), WORDS: words} if words is not None else {}
    if meeting is not None:
        environment |= {
            "WORLD_SIZE": str(meeting.ranks), "MASTER_ADDR": meeting.address[0], "MASTER_PORT": str(meeting.address[1]),
            "GROUP_RANK": str(meeting.host),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher of host 0 serves the store
        }  # fmt: skip
        if meeting.interface is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
            environment["GLOO_SOCKET_IFNAME"] = meeting.interface
    given = {
        "path": [os.path.abspath(os.fspath(entry)) for entry in sys.path], "environment": environment,
        "first_rank": meeting.first_rank if meeting is not None else 0,
        "launcher": None if words is None else os.getpid(),
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


def tell_launcher(message: str, *, peer: bool) -> bool:
    """Leaves why this process ends. Its launcher prints it. False: it was not started by one, or that is gone.

    Args:
        peer: the reason is another process of the run.
    """
    folder, number = os.environ.get(WORDS), os.environ.get("LOCAL_RANK")
    if not folder or number is None or os.environ.get(LAUNCHER) != str(os.getppid()):
        return False
    try:
        (Path(folder) / number).write_text(json.dumps({"message": message, "peer": peer, "time": time.time()}))
    except OSError:
        return False
    return True


def _words_in(folder: str) -> dict[int, dict[str, Any]]:
    """What the processes of this host have left, by their number."""
    found = {}
    for path in Path(folder).iterdir():
        with contextlib.suppress(OSError, ValueError):  # it was killed while it wrote
            found[int(path.name)] = json.loads(path.read_text())
    return found


def _cause(error: ChildFailedError, words: dict[int, dict[str, Any]]) -> tuple[int, ProcessFailure]:
    """The process whose end ended the run. One that was killed goes before those that met its broken connection."""
    lost = [each for each in error.failures.items() if each[1].exitcode < 0 and each[1].exitcode != -signal.SIGTERM]
    if lost:
        return min(lost)
    first = error.get_first_failure()
    failed = [number for number, failure in error.failures.items() if failure.exitcode > 0 and number in words]
    if first[0] not in failed:
        return first
    number = min(failed, key=lambda each: (words[each]["peer"], words[each]["time"]))
    return number, error.failures[number]


def launch(
    argv: list[str], *, processes: int, nnodes: int, node_rank: int, endpoint: str | None, join_minutes: float
) -> None:
    """Runs clip_train with these arguments in every process, and waits for all of them."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))
    if nnodes == 1:
        return _run(argv, processes=processes)
    meeting = meet(
        endpoint or "", hosts=nnodes, host=node_rank, processes=processes, minutes=join_minutes, say=_say
    )  # fmt: skip
    try:
        with meeting.watched():
            try:
                _run(argv, processes=processes, meeting=meeting)
            except ProcessFailed as error:
                raise _among_hosts(error, meeting) from None
    except ProcessFailed as error:
        meeting.leave(None if error.exit_code == INTERRUPTED else str(error), seconds=LEAVE_EARLY)
        raise
    meeting.leave()


def _among_hosts(error: ProcessFailed, meeting: Meeting) -> ProcessFailed:
    """The reason why the run ended on this host, which may be another host."""
    cause = meeting.lost or (meeting.why_gone() if error.peer else None)
    if cause is None:
        return error
    then = str(error) if error.saved else "continue with --resume"
    message = cause if "--resume" in cause else f"{cause}; {then}"
    return ProcessFailed(message, CRASH if error.exit_code == INTERRUPTED else error.exit_code)


def _say(line: str) -> None:
    messages.note(line)
    print(f"clip_train: {line}", file=sys.stderr, flush=True)


def _run(argv: list[str], *, processes: int, meeting: Meeting | None = None) -> None:
    """Runs the processes of this host."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # torch would ask the network for the name of this machine
        run_id="clip_train",
        max_restarts=0,
        monitor_interval=0.2,
    )
    first = meeting.first_rank if meeting is not None else 0
    with tempfile.TemporaryDirectory(prefix="clip_train-", ignore_cleanup_errors=True) as words, _quiet_agent():
        try:
            elastic_launch(config, sys.executable)(*boot(meeting, words=words), *argv)
        except ChildFailedError as error:
            raise _failed(error, _words_in(words), first=first) from None
        except SignalException as error:
            said = [word["message"] for word in _words_in(words).values() if "--resume" in word["message"]]
            message = said[0] if said else f"stopped by {error.sigval.name}; continue with --resume"
            raise ProcessFailed(message, INTERRUPTED, saved=bool(said)) from None


def _failed(error: ChildFailedError, words: dict[int, dict[str, Any]], *, first: int) -> ProcessFailed:
    """What the launcher says of processes that ended early."""
    rank, failure = _cause(error, words)
    if failure.exitcode > 0:
        word = words.get(rank, {"message": f"process {first + rank} stopped (its message is above)", "peer": False})
        saved = failure.exitcode == INTERRUPTED
        return ProcessFailed(word["message"], failure.exitcode, peer=word["peer"], saved=saved)
    return ProcessFailed(
        f"process {first + rank} was lost ({failure.signal_name()}) and the run was stopped; continue with --resume",
        CRASH, peer=-failure.exitcode in _FROM_ELSEWHERE,
    )  # fmt: skip


@contextlib.contextmanager
def _quiet_agent() -> Iterator[None]:
    """Torch's agent logs each end of a process; the launcher says it in one line. LOGLEVEL brings it back."""
    agent = logging.getLogger("torch.distributed.elastic")
    before, nowhere = agent.propagate, logging.NullHandler()
    if "LOGLEVEL" in os.environ:
        yield
        return
    agent.propagate = False
    agent.addHandler(nowhere)  # without any, Python would print warnings
    try:
        yield
    finally:
        agent.propagate = before
        agent.removeHandler(nowhere)
