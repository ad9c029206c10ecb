"""A job on an engine of this process: its dead worker is told at once, and what nobody can know is told as such."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apache_beam.portability.api import beam_job_api_pb2 as api

from pipeline.engine import live_job, runners, watchdog
from pipeline.engine.clusters import Cluster
from pipeline.engine.live_job import LiveJob
from pipeline.engine.progress import Watched
from pipeline.engine.work import StepFolder

PROCESS = ["--environment_type=PROCESS", "--environment_option=process_command=/opt/w"]
KILLED = "process failed while running (envID='e', error='signal: killed')"
ENDED = "process failed while running (envID='e', error='exit status 1')"
IN_JSON = '{"level":"ERROR","msg":"process failed while running","envID":"e","error":"signal: killed"}'


class Service:
    """The job service of an engine, as a stub of gRPC."""

    def __init__(self, state: str = "RUNNING") -> None:
        self.state, self.broken = state, False

    def GetState(self, request: Any, timeout: float) -> Any:
        if self.broken:
            raise OSError("gone")
        return api.JobStateEvent(state=api.JobState.Enum.Value(self.state))


def job(*flags: str, runner: str = "prism", service: Service | None = None) -> LiveJob:
    found = LiveJob(runner, flags)
    found.result = SimpleNamespace(_job_service=service or Service(), _job_id="j")
    return found


def say(text: str, name: str = "PrismRunner") -> None:
    """A line of Prism's log, as the filter of Beam's runner leaves it."""
    record = logging.LogRecord(name, logging.INFO, "", 0, text, (), None)
    for handler in logging.getLogger(live_job.PRISM_LOG).handlers:
        handler.handle(record)


@contextlib.contextmanager
def prism(*child: str) -> Iterator[Any]:
    """A process that starts a child, and the job server whose command it has."""
    starts = f"import subprocess, time; subprocess.Popen({list(child)!r}).wait(); time.sleep(60)"
    words = [sys.executable, "-c", starts if child else "import time; time.sleep(60)"]
    process = subprocess.Popen(words, start_new_session=True)
    try:
        yield SimpleNamespace(words=words, pid=process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def looks(found: LiveJob) -> list[live_job.Death | None]:
    return [found.death() for _ in range(live_job.LOOKS)]


@pytest.mark.parametrize("line", [KILLED, IN_JSON])
def test_a_killed_worker_is_told_and_another_one_may_live(line: str) -> None:
    found = job(*PROCESS)
    with found.listening():
        assert looks(found) == [None] * 3  # its processes cannot be seen, and nothing was said
        say(line)
        *first, last = looks(found)
    assert first == [None, None] and last is not None and last.resumes
    assert last.text == "a worker process of the engine was killed (signal: killed), perhaps because memory ran out"
    say(ENDED)  # nobody listens any more
    assert found.death() == last
    lines = ["Starting worker", "RuntimeError: can't start new thread"]  # Prism kills the worker of a job that failed
    assert live_job.end_of_worker("signal: killed", lines=lines).text.endswith(", it had said: " + lines[1])


def test_a_program_that_ends_by_itself_is_told_with_its_last_lines() -> None:
    found = job(*PROCESS)
    with found.listening():
        say("WARNING:root:apitools not found", live_job.PRISM_LOG)
        say("Traceback (most recent call last):", live_job.PRISM_LOG)
        say("ImportError: broken", live_job.PRISM_LOG)
        say(ENDED)
    death = looks(found)[-1]
    assert death == found.death_of_failed() and death is not None and not death.resumes
    assert death.text == (
        "process_command: /opt/w ended by itself (exit status 1); its last lines: Traceback (most recent call last): / "
        "ImportError: broken. Mend it, then the same command continues the run"
    )


def test_a_shell_that_says_how_its_worker_was_killed() -> None:
    found = job(*PROCESS)
    with found.listening():
        say(ENDED.replace("status 1", "status 137"))
    death = looks(found)[-1]
    assert death is not None and death.resumes


@pytest.mark.parametrize(
    ("flags", "runner", "state", "done"),
    [
        (PROCESS, "prism", "RUNNING", True),  # Prism ends the worker of a job that is done
        (PROCESS, "prism", "FAILED", False),  # the job ends by itself
        (PROCESS, "flink", "RUNNING", False),  # Flink starts another worker
        ([], "prism", "RUNNING", False),
        ([*PROCESS, "--job_endpoint=h:1"], "prism", "RUNNING", False),
    ],
)
def test_what_is_no_death(flags: list[str], runner: str, state: str, done: bool) -> None:
    found = job(*flags, runner=runner, service=Service(state))
    with found.listening():
        say(live_job.DONE if done else "pipeline is running")
        say(KILLED)
    assert looks(found) == [None] * 3


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs /proc/.../children")
def test_the_worker_is_looked_for_among_the_children_of_the_engine() -> None:
    found = job(*PROCESS)
    with prism(sys.executable, "-c", "import time; time.sleep(60)") as server:
        found.servers = [SimpleNamespace(words=["never"]), server]
        cluster = job("--flink_master=localhost:8081", *PROCESS, runner="flink")
        cluster.servers = [server]
        assert cluster.workers() is None  # they are children of its task managers
        deadline = time.monotonic() + 60
        while not found.workers():
            assert time.monotonic() < deadline
        assert looks(found) == [None] * 3 and found.problem() == ""
        assert found.known() == "its engine says RUNNING, and 1 worker process lives"
        os.kill(found.workers()[0], signal.SIGKILL)  # type: ignore[index]
        while found.workers():
            assert time.monotonic() < deadline
        assert found.problem() == "the job has no worker process"
        death = looks(found)[-1]
    assert death is not None and "/opt/w ended by itself (exit code 0). Mend" in death.text
    assert found.workers() is None  # the engine is gone


def test_what_is_known_of_a_job_without_progress() -> None:
    service = Service()
    found = job("--job_endpoint=h:1", runner="portable", service=service)
    assert found.problem() == "" and "RUNNING; whether its workers live cannot be seen" in found.known()
    assert job(service=service).known() == "its engine says RUNNING, and its workers are threads of this process"
    assert job(*PROCESS, "--flink_master=h:1", runner="flink").workers() is None
    service.state = "FAILED"
    assert found.problem() == "the job is FAILED"
    service.broken = True
    assert found.problem() == "the job server does not answer (OSError)" and found.state() == ""
    found.result = None
    assert found.problem() == "" and "not accepted the job yet" in found.known()


def test_a_job_whose_state_nobody_can_tell_is_watched_and_goes_on(tmp_path: Path) -> None:
    steps = [Watched("step", StepFolder(str(tmp_path), ""))]
    found = job("--job_endpoint=h:1", runner="portable")
    watch = watchdog.Watch(steps, Cluster(), 100.0, 0.0, found)
    for hour in range(1, 9):
        assert watch.look(hour * 3600.0) == "" and "cannot be seen from here" in watch.said
    found.result._job_service.broken = True
    assert [watch.look(9 * 3600.0 + second) for second in (0, 20)] == ["", ""]
    assert "does not answer (OSError). Mend this" in watch.look(9 * 3600.0 + 40)


def test_a_fetch_under_way_makes_progress(tmp_path: Path) -> None:
    """Its figures are written in place: the folder does not change."""
    steps = [Watched("step", StepFolder(str(tmp_path), ""))]
    live = tmp_path / "00000.live"
    live.write_text("{}")
    before = watchdog.changes(steps)
    os.utime(live, (1, 1))
    assert watchdog.changes(steps) != before


@pytest.mark.parametrize(("line", "runs"), [(KILLED, 3), (ENDED, 1)])
def test_a_job_is_started_again_after_a_killed_worker_only(
    line: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []

    def run_pipeline(*_: object, live: LiveJob, **__: object) -> None:
        begun.append(live)
        live.result = SimpleNamespace(_job_service=Service(), _job_id="j")
        say(line)
        time.sleep(20)

    monkeypatch.setattr(live_job, "ASK_S", 0.01)
    monkeypatch.setattr(runners, "make_options", lambda *_, **__: (None, None))
    monkeypatch.setattr(runners, "run_pipeline", run_pipeline)
    steps = [Watched("step", StepFolder(str(tmp_path), ""))]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(runners.JobFailed, match="signal: killed|ended by itself") as caught:
            given = ("prism", None, PROCESS)
            runners.run_job(lambda root: None, given, root=str(tmp_path), steps=steps, program="p")
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(caught.value, runners.WorkerDied) is (runs == 3) and len(begun) == runs
    assert capsys.readouterr().err.count("perhaps because memory ran out. The run is going on.") == runs - 1


def test_a_failure_of_prism_is_told_as_the_end_of_its_worker() -> None:
    """Prism fails by chance, too, and then speaks of itself."""
    found, died = job(*PROCESS), runners.WorkerDied("a worker process died")
    with found.listening():
        say(KILLED)
    assert "signal: killed" in str(runners._of_worker(died, found))
    other = runners.JobFailed("ValueError: the stage's own")
    assert runners._of_worker(other, found) is other
    assert runners._of_worker(died, None) is died
    assert "--workers" not in str(runners._of_worker(died, job(runner="flink")))  # a flag of the local runner


@pytest.mark.parametrize("code", [1, 137])
def test_flink_says_how_a_program_of_workers_ended(code: int) -> None:
    text = f"Pipeline a failed in state FAILED: java.lang.IllegalStateException: Process died with exit code {code}"
    found = runners.explain_failure(RuntimeError(text))
    assert isinstance(found, runners.WorkerDied) is (code == 137) and f"(exit code {code})" in str(found)
