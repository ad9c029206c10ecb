"""The job under way, as this process sees it: what its job server says, and the worker processes on this host.

Prism (2.77.0) does not end a job whose worker process has ended. The job stays RUNNING for ever, or by chance it fails
with a panic of Prism. Prism starts one process for a job, and no other one in its place. So a job without a process
that is RUNNING is at its end. Prism's log says how the process ended, unless it ended with exit code 0.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engine import clusters

PRISM_LOG = "PrismJobServer"  # the logger of Beam to which all output of Prism goes, that of its workers included
ENDED = re.compile(r"process failed (?:while running|to start)\b.*?error\W{1,4}([^'\"\\]+)")
DONE = "pipeline done!"  # then Prism ends the worker
OF_LOGGING = re.compile(r"\{|time=|(?:DEBUG|INFO|WARNING)\b")  # lines that explain no end
ERROR = re.compile(r"[A-Za-z_.]+(?:Error|Exception)\b")  # of Python; a failed job's worker is killed by Prism itself
LINES, LAST_S = 5, 0.5  # the last lines of a worker are kept; its log may come so much later
ASK_S, LOOKS = 1.0, 3  # a worker that is gone must be gone so many times in a row, so long apart
ANSWER_S = 10.0  # of the job server
BAD_STATES = ("FAILED", "CANCELLED", "CANCELLING", "STOPPED")


@dataclass(frozen=True)
class Death:
    """Why a worker process has ended. `resumes`: it was killed, so another one may live."""

    text: str
    resumes: bool


def end_of_worker(how: str, program: str = "", lines: Iterable[str] = ()) -> Death:
    """What the end of a worker process means: "signal: killed", "exit status 1" or "exit code 1", as engines say it.

    Args:
        how: it ended.
        program: the process_command, if it is known.
        lines: its last ones.
    """
    code = int(found[1]) if (found := re.search(r"exit (?:status|code) (\d+)", how)) else 0
    if how.startswith("signal") or code > 128:  # a shell ends with 128 and the number of the signal
        why = [line for line in lines if ERROR.match(line)]
        guess = f"it had said: {why[-1]}" if why else "perhaps because memory ran out"
        return Death(f"a worker process of the engine was killed ({how}), {guess}", True)
    said = f"; its last lines: {' / '.join(lines)}" if lines else ""
    told = f"process_command: {program or 'the program of the workers'} ended by itself ({how}){said}"
    return Death(f"{told}. Mend it, then the same command continues the run", False)


class WorkerLog(logging.Handler):
    """What Prism and its workers say: how the worker's process ended ("" while it lives), and its last lines."""

    def __init__(self) -> None:
        super().__init__()
        self.how, self.done = "", False
        self.lines: collections.deque[str] = collections.deque(maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Notes a line."""
        text = record.getMessage()
        if found := ENDED.search(text):
            self.how = found[1].strip()
        self.done = self.done or DONE in text
        if record.name == PRISM_LOG and text.strip() and not OF_LOGGING.match(text):
            self.lines.append(text.strip())


class LiveJob:
    """One job on an engine.

    Args:
        runner: as the user names it.
        flags: Beam's flags, those that we add included.
    """

    def __init__(self, runner: str, flags: Sequence[str] = ()) -> None:
        values = clusters.values(flags)
        self._kind = clusters.kind_of(runner)
        self._in_process = values.get("job_endpoint") == "embed" or clusters.is_child(runner, values)
        self._environment = values.get("environment_type", "").upper()
        self._program = next((found[1] for word in flags if (found := re.search(r"process_command=([^,]+)", word))), "")
        self._missed, self._log = 0, WorkerLog()
        self.result: Any = None  # of Beam, once the job is submitted
        self.servers: Sequence[Any] = ()  # `runners.Tied`: those that this process started

    @property
    def pace(self) -> float | None:
        """The seconds between two calls of `death`; None: they would be in vain."""
        return ASK_S if self._has_prism() else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While the block runs, the log of Prism is read."""
        logger = logging.getLogger(PRISM_LOG)
        logger.addHandler(self._log)
        try:
            yield
        finally:
            logger.removeHandler(self._log)

    def death(self) -> Death | None:
        """Why the job waits for ever; None: its worker lives, or nobody can know."""
        if self.result is None or not self._has_prism() or self._log.done:
            return None
        gone = (self._log.how or self.workers() == []) and self.state() == "RUNNING"
        self._missed = self._missed + 1 if gone else 0
        return self._end_of_worker() if self._missed >= LOOKS else None

    def death_of_failed(self) -> Death | None:
        """How the worker ended, for a job that failed since its worker was gone; None: it is not known."""
        end = time.monotonic() + LAST_S
        while self._has_prism() and not self._log.how and time.monotonic() < end:
            time.sleep(LAST_S / 10)
        return self._end_of_worker() if self._has_prism() and self._log.how else None

    def problem(self) -> str:
        """Why the job makes no progress; "" if nothing is known to be wrong."""
        if self.result is None:
            return ""
        try:
            state = self._ask()
        except Exception as error:  # of gRPC, or of a client of Dataflow
            code: Callable[[], Any] | None = getattr(error, "code", None)
            said = getattr(code(), "name", "") if callable(code) else ""
            return f"the job server does not answer ({said or type(error).__name__})"
        if state in BAD_STATES:
            return f"the job is {state}"
        return "the job has no worker process" if self.workers() == [] else ""

    def known(self) -> str:
        """What is known of a job without a problem, for a line."""
        if self.result is None:
            return "the engine has not accepted the job yet"
        said = f"its engine says {self.state() or 'nothing'}"
        if workers := self.workers():
            return f"{said}, and {len(workers)} worker process{'es live' if len(workers) > 1 else ' lives'}"
        if self._in_process and self._environment in ("", "LOOPBACK"):
            return f"{said}, and its workers are threads of this process"
        return f"{said}; whether its workers live cannot be seen from here"

    def state(self) -> str:
        """The state of the job, such as RUNNING; "": nobody answers."""
        with contextlib.suppress(Exception):
            return self._ask()
        return ""

    def workers(self) -> list[int] | None:
        """The worker processes that the engine started on this host. None: they are elsewhere, or not to be seen."""
        if self._environment != "PROCESS" or not self._in_process:
            return None
        for server in self.servers:
            pid = _child_with(server.words)
            if pid is not None:
                return _children(pid)
        return None

    def _has_prism(self) -> bool:
        return self._kind == "prism" and self._in_process and self._environment == "PROCESS"

    def _end_of_worker(self) -> Death:
        return end_of_worker(self._log.how or "exit code 0", self._program, self._log.lines)

    def _ask(self) -> str:
        from apache_beam.portability.api import beam_job_api_pb2 as api
        from apache_beam.portability.api import beam_job_api_pb2_grpc

        service = getattr(self.result, "_job_service", None)
        if service is None:  # not of a job server
            return str(self.result.state)
        request = api.GetJobStateRequest(job_id=self.result._job_id)
        embedded = isinstance(service, beam_job_api_pb2_grpc.JobServiceServicer)
        answer = service.GetState(request) if embedded else service.GetState(request, timeout=ANSWER_S)
        return str(api.JobState.Enum.Name(answer.state))


def _child_with(words: Sequence[str]) -> int | None:
    """The child of this process with a command line; None: there is none, or this system does not say."""
    for pid in _children(os.getpid()) or ():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().decode(errors="replace").split("\0")[:-1] == list(words):
                return pid
    return None


def _children(pid: int) -> list[int] | None:
    """The processes that a process started, on Linux. One that has ended is none."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    except OSError:
        return None
    return [child for child in found if _lives(child)]


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False
