"""The fork server: a failed start gives one error, and signals go only to its own children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import child, fork_server, forked_workers, runners
from tests.engine.test_runners import chain
from tests.processes import alive

HELP_S = 20.0  # seconds, enough for each test here on a busy machine
# A fork server without Beam, whose workers sleep. {load} is what it imports first.
PROGRAM = """import os, sys, time
sys.path[:] = {path!r}
from pipeline.engine import fork_server, worker
fork_server.OURS = ()
def prepare():
    {load}
def run_worker():
    worker.die_with(os.getppid(), by_kernel=True)
    if "READY" in os.environ:
        open(os.environ["READY"], "w").close()
    time.sleep(600)
fork_server.serve(fork_server.NOTHING, prepare=prepare, run_worker=run_worker)
"""


def start(
    monkeypatch: pytest.MonkeyPatch, *, load: str = "pass", command: list[str] | None = None
) -> forked_workers.ForkServer:
    """Starts a fork server with another program."""
    program = PROGRAM.format(path=child.search_path(), load=load)
    monkeypatch.setattr(child, "command", lambda *_: command or [sys.executable, "-c", program])
    return forked_workers.ForkServer(fork_server.NOTHING)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[forked_workers.ForkServer]:
    started = start(monkeypatch)
    yield started
    started.close()


def until(what: Any) -> bool:
    limit = time.monotonic() + HELP_S
    while not what() and time.monotonic() < limit:
        time.sleep(0.02)
    return bool(what())


def test_workers_are_started_counted_and_killed(server: forked_workers.ForkServer) -> None:
    first, second = server.spawn({}), server.spawn({})
    assert server.workers() == sorted([first, second])
    assert not server.wait(first, 0.1)
    server.kill(first)
    assert server.wait(first, HELP_S) and not alive(first)
    assert server.workers() == [second]
    server.close()
    assert not alive(second) and not server.workers()


def test_no_worker_is_left_of_a_job(server: forked_workers.ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_workers, "_current", [server])
    worker = server.spawn({})
    assert forked_workers.workers() == [worker]
    forked_workers.end_workers()
    assert server.wait(worker, HELP_S) and not alive(worker) and server.usable()


def test_a_worker_that_ends_is_known_to_have_ended(server: forked_workers.ForkServer) -> None:
    pid = server.spawn({})
    os.kill(pid, signal.SIGKILL)  # nobody has waited for it, so the id is still its own
    assert server.wait(pid, HELP_S)


@pytest.mark.parametrize("pid", ["0", "-1", "a stranger", "an ended worker"])
def test_no_signal_goes_to_who_is_not_a_worker(pid: str, server: forked_workers.ForkServer) -> None:
    """Neither side sends a signal. The fork server is asked directly, as if the worker had ended meanwhile."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ended = server.spawn({})
    server.kill(ended)
    assert server.wait(ended, HELP_S)
    number = {"a stranger": stranger.pid, "an ended worker": ended}.get(pid) or int(pid)
    sent: list[Any] = []
    real = server._ask
    server._ask = lambda request: (sent.append(request), real(request))[1]  # type: ignore[method-assign,func-returns-value]
    server.kill(number)
    assert not sent
    real({"kill": number})
    survivor = server.spawn({})  # the fork server is alive and has read the request
    assert alive(survivor) and stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_handlers_without_a_worker_send_no_signal(
    server: forked_workers.ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beam stops each of its handlers, also one whose start failed. Such a handler once killed its whole group."""
    from apache_beam.runners.portability.fn_api_runner.worker_handlers import WorkerHandler

    monkeypatch.setattr(forked_workers, "_current", [server])
    forked_workers.environment()
    kind = WorkerHandler._registered_environments[forked_workers.URN][0]
    handler = kind.__new__(kind)
    handler._server, handler._pid = server, None
    monkeypatch.setattr(os, "kill", lambda *given: pytest.fail(f"os.kill{given}"))
    monkeypatch.setattr(server, "_ask", lambda *given: pytest.fail(f"asked for {given}"))
    handler.stop_worker()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ({"load": "raise ImportError('no module of that kind')"}, "ImportError: no module of that kind$"),
        ({"load": "import os; os._exit(7)"}, "ended with exit code 7$"),
        ({"load": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"}, "was killed by signal 9$"),
        ({"load": "time.sleep(600)"}, "no answer within 2 s$"),
        ({"command": ["/nowhere/python"]}, r"\[Errno 2\] No such file"),
    ],
)
def test_a_failed_start_is_one_error(program: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_workers, "START_S", 2.0 if "600" in str(program) else HELP_S)
    server = None
    with pytest.raises(forked_workers.StartFailed, match="^no worker process could be started: .*" + words):
        server = start(monkeypatch, **program)
        server.spawn({})
    if server is not None:
        server.close()
        assert server._process.poll() is not None


@pytest.mark.timeout(60)
def test_a_failed_start_fails_the_job_and_the_caller_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    forked_workers.end()
    start_failing = start(monkeypatch, load="raise ImportError('dataclasses is another one')")
    monkeypatch.setattr(forked_workers, "ForkServer", lambda _: start_failing)
    runner, options = runners.make_options("local", 2)
    with pytest.raises(
        runners.JobFailed, match="^no worker process could be started: ImportError: dataclasses"
    ) as told:
        runners.run_pipeline(chain(tmp_path), runner, options)
    assert not isinstance(told.value, runners.WorkerDied)  # the runner would try that twice more
    forked_workers.end()
    assert "Traceback" not in capfd.readouterr().err


def test_a_fork_of_ours_leaves_the_fork_server_alone(server: forked_workers.ForkServer) -> None:
    worker = server.spawn({})
    pid = os.fork()
    if pid == 0:
        server.end_workers()
        server.close()
        os._exit(server.usable())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert server.workers() == [worker] and server.usable()


def test_the_fork_server_and_its_workers_end_with_the_channel(
    server: forked_workers.ForkServer, tmp_path: Path
) -> None:
    worker = server.spawn({"READY": str(tmp_path / "ready")})
    assert until((tmp_path / "ready").exists)
    os.kill(worker, signal.SIGSTOP)  # so it cannot check whether its parent is alive
    server._channel.shutdown(socket.SHUT_RDWR)
    assert server._process.wait(HELP_S) == 0
    assert until(lambda: not server.workers() and not alive(worker))


def sockets(pid: int) -> set[str]:
    opened = (os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd"))
    return {target for target in opened if target.startswith("socket:")}


def test_a_worker_does_not_hold_the_channel(server: forked_workers.ForkServer, tmp_path: Path) -> None:
    """Else nobody would notice the end of the fork server while a worker lives."""
    worker = server.spawn({"READY": str(tmp_path / "ready")})
    assert until((tmp_path / "ready").exists)
    assert sockets(server._process.pid) and not sockets(server._process.pid) & sockets(worker)


def test_another_search_path_makes_another_fork_server(
    server: forked_workers.ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.usable()
    monkeypatch.syspath_prepend("/somewhere/else")
    assert not server.usable()
