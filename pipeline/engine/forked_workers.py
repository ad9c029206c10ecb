"""Worker processes by fork: one process imports Beam and the kernels, and every worker is a fork of it.

Importing Beam costs a process 1.5 CPU seconds, and loading the kernels as much again. A forked worker pays neither,
and shares the memory of both. The fork server starts no thread and opens no connection, so that forking it is safe. It
lives as long as the process that started it, and the workers live as long as the fork server.

    our process --socket: {"spawn": environment}, {"kill": pid}--> fork server --fork--> worker (Beam's SDK harness)
                <-- {"ready"}, {"failed": why}, {"started": pid}, {"ended": pid} --
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from pipeline.engine import child
from pipeline.engine.fork_server import SOCKET, Preload, encode

URN = "openwit:env:forked:v1"
PATIENCE = 10.0  # seconds that a worker has to end by itself
START_S = 600.0  # seconds for the fork server's imports on a slow and busy machine, where kernels may be compiled first


class StartFailed(RuntimeError):
    """No worker process could be started; the message says why."""


class ForkServer:
    """Our side of the channel: starts the fork server and asks it for workers.

    The workers are children of the fork server. Only it can see that one has ended, and only it sends them signals.
    A process id that we remember may belong to another process now. A child of the fork server keeps its id until the
    fork server reaps it.
    """

    def __init__(self, load: Preload) -> None:
        """Starts the fork server. It loads `load` in the background.

        Raises:
            StartFailed: the system cannot start a process.
        """
        self._search = _search()
        self._owner = os.getpid()
        self._channel, theirs = socket.socketpair()
        environment = {**os.environ, SOCKET: str(theirs.fileno())}
        owner = str(self._owner)
        command = child.command("pipeline.engine.worker", "--fork-server", owner, "--load", json.dumps(load))
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
                )
            except OSError as error:
                self._channel.close()
                raise StartFailed(f"no worker process could be started: {error}") from error
        self._turn = threading.Lock()  # held by the thread that waits for an answer
        self._changed = threading.Condition()  # guards the fields below
        self._ready = self._gone = False
        self._failure = ""
        self._answer: int | None = None
        self._workers: set[int] = set()
        self._listener = threading.Thread(target=self._listen, name="fork_server", daemon=True)
        self._listener.start()

    def close(self) -> None:
        """Ends the fork server and waits for it."""
        if self._owner != os.getpid():
            return  # a fork of our process: the fork server is not its child
        self.end_workers()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(PATIENCE)
        self._channel.close()

    def usable(self) -> bool:
        """True if it is alive and its forks find the modules that this process finds."""
        return self._owner == os.getpid() and self._process.poll() is None and self._search == _search()

    def spawn(self, environment: dict[str, str]) -> int:
        """Starts a worker with these additional environment variables; returns its process id.

        Raises:
            StartFailed: no worker was started.
        """
        with self._turn:
            self._await(lambda: self._ready, START_S)
            self._answer = None
            self._ask({"spawn": environment})
            self._await(lambda: self._answer is not None, START_S)
            assert self._answer is not None
            return self._answer

    def wait(self, pid: int, seconds: float) -> bool:
        """True if the worker ends within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: pid not in self._workers, seconds)

    def workers(self) -> list[int]:
        """The process ids of the workers that are alive."""
        with self._changed:
            return sorted(self._workers) if self._owner == os.getpid() else []

    def kill(self, pid: int) -> None:
        """Asks the fork server to kill a worker. Nothing happens if `pid` is not a living worker."""
        if pid in self.workers():
            self._ask({"kill": pid})

    def end_workers(self) -> None:
        """Kills the workers that are left."""
        left = self.workers()
        for pid in left:
            self.kill(pid)
        for pid in left:
            self.wait(pid, PATIENCE)

    def _ask(self, request: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the fork server is gone: `_await` reports it
            self._channel.sendall(encode(request))

    def _await(self, happened: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            in_time = self._changed.wait_for(lambda: self._gone or happened(), seconds)
            if in_time and not self._gone:
                return
        if in_time:
            raise StartFailed(f"no worker process could be started: {self._failure or self._end()}")
        self._process.kill()
        raise StartFailed(f"no worker process could be started: there was no answer within {seconds:.0f} s")

    def _end(self) -> str:
        """How the fork server ended, for a message."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return "the process that starts them does not answer"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the process that starts them {how}"

    def _listen(self) -> None:
        """Records the fork server's messages until it is gone. All its workers end with it."""
        with self._channel.makefile("r", encoding="utf-8") as lines, contextlib.suppress(OSError, ValueError):
            for line in lines:
                with self._changed:
                    self._take(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._workers.clear()
            self._changed.notify_all()

    def _take(self, news: dict[str, Any]) -> None:
        self._ready = self._ready or "ready" in news
        self._failure = news.get("failed", self._failure)
        if "started" in news:
            self._answer = news["started"]
            self._workers.add(news["started"])
        self._workers.discard(news.get("ended", 0))


def _search() -> tuple[list[str], str | None]:
    """What decides which modules a worker finds."""
    return child.search_path(), os.environ.get("PYTHONPATH")


_current: list[ForkServer] = []


def current(load: Preload) -> ForkServer:
    """The fork server of this process, started if there is none.

    Call it on the main thread: the fork server dies with the thread that started it.

    Raises:
        StartFailed: the system cannot start a process.
    """
    if not _current or not _current[0].usable():
        end()
        _current[:] = [ForkServer(load)]
        atexit.register(_current[0].close)
    return _current[0]


def end() -> None:
    """Ends the fork server of this process, if there is one."""
    while _current:
        atexit.unregister(_current[0].close)
        _current.pop().close()


def workers() -> list[int]:
    """The workers that are alive."""
    return [pid for server in _current for pid in server.workers()]


def end_workers() -> None:
    """Kills the workers that are left of a job."""
    for server in _current:
        server.end_workers()


@functools.lru_cache(maxsize=1)
def environment() -> Any:
    """Beam's description of our workers. Registers the handler that starts them."""
    from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
    from apache_beam.transforms import environments
    from google.protobuf import json_format, text_format

    class Forked(environments.Environment):
        def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
            return URN, b""

        @staticmethod
        def from_runner_api_parameter(
            payload: Any, capabilities: Any, artifacts: Any, resource_hints: Any, context: Any
        ) -> Any:
            return Forked(capabilities=capabilities, artifacts=artifacts, resource_hints=resource_hints)

    class Handler(GrpcWorkerHandler):
        def __init__(self, payload: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
            super().__init__(state, provision_info, grpc_server)
            self._server = _current[0]
            self._pid: int | None = None  # None: none was started
            self._ending = False

        def start_worker(self) -> None:
            options = json_format.MessageToJson(self.provision_info.provision_info.pipeline_options)
            self._pid = self._server.spawn(
                {
                    "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                        self.control_api_service_descriptor()
                    ),
                    "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                        self.logging_api_service_descriptor()
                    ),
                    "PIPELINE_OPTIONS": options,
                    "WORKER_ID": self.worker_id,
                }
            )

            threading.Thread(target=self._watch, args=(self._pid,), daemon=True).start()

        def _watch(self, pid: int) -> None:
            """Reports a worker that ended too early: Beam alone would wait for its answers for ever."""
            while not self._server.wait(pid, 60.0):
                pass
            if not self._ending:
                self._give_up(RuntimeError("Worker subprocess exited"))

        def _give_up(self, error: RuntimeError) -> None:
            """Fails all requests to this worker: those under way and those still to come."""
            connection = self.control_conn
            send = connection.push

            def push(request: Any) -> Any:
                future = send(request)
                if future is not None:
                    future.abort(error)
                return future

            connection.push = push
            for future in list(connection._futures_by_id.values()):
                future.abort(error)
            self.data_conn._exception = error  # a worker that died before it connected has no stream that could break

        def close(self) -> None:
            self._ending = True
            super().close()

        def stop_worker(self) -> None:
            if self._pid is not None and not self._server.wait(self._pid, PATIENCE):
                self._server.kill(self._pid)

    environments.Environment.register_urn(URN, bytes)(Forked)
    WorkerHandler.register_environment(URN, bytes)(Handler)
    return Forked(capabilities=environments.python_sdk_capabilities())
