"""Worker processes by fork: one process imports Beam and the kernels, and every worker is a fork of it.

Importing Beam costs a process 1.5 CPU seconds and loading the kernels as much again; a forked worker pays neither, and
shares the memory of both. The zygote starts no thread and opens no connection, so that forking it is safe; it lives as
long as the process that started it, and so do the workers as long as the zygote.

    our process --socket: {"env": ...}--> zygote --fork--> worker (Beam's SDK harness)
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from pipeline.engine import malloc

URN = "openwit:env:forked:v1"
SOCKET = "OPENWIT_ZYGOTE_SOCKET"  # number of the inherited descriptor
PRELOAD = (
    "apache_beam.runners.worker.sdk_worker_main",
    "pyarrow.parquet",
    "pipeline.stages.gather",
    "pipeline.stages.match",
    "pipeline.stages.dedup",
    "pipeline.stages.balance",
)
# Kernels of select; those of the sources are loaded by the worker that meets such a source.
KERNELS = (
    "pipeline.engine.hashing_kernel",
    "pipeline.text.clean_kernel",
    "pipeline.text.matcher_kernel",
    "pipeline.stages.selection_kernel",
)
PATIENCE = 10.0  # seconds that a worker has to end by itself


class Zygote:
    """Our side: starts the zygote and asks it for workers."""

    def __init__(self, *, kernels: bool) -> None:
        self.path = os.environ.get("PYTHONPATH")
        ours, theirs = socket.socketpair()
        environment = {**os.environ, SOCKET: str(theirs.fileno())}
        command = [sys.executable, "-m", "pipeline.engine.worker", "--zygote", *(["--kernels"] if kernels else [])]
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._channel = ours
        self._lines = ours.makefile("rw", encoding="utf-8")
        self._lock = threading.Lock()
        self._workers: set[int] = set()

    def close(self) -> None:
        """Ends the zygote and waits for it."""
        self.end_workers()
        with contextlib.suppress(OSError, ValueError):
            self._channel.shutdown(socket.SHUT_RDWR)
            self._lines.close()
            self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)

    def alive(self) -> bool:
        """True if it can still be asked."""
        return self._process.poll() is None

    def spawn(self, environment: dict[str, str]) -> int:
        """Asks for a worker with more environment; returns its process id."""
        with self._lock:
            self._lines.write(json.dumps({"env": environment}) + "\n")
            self._lines.flush()
            answer = self._lines.readline()
            if not answer:
                raise RuntimeError("the process that starts workers has ended")
            pid = int(json.loads(answer)["pid"])
            self._workers.add(pid)
            return pid

    def wait(self, pid: int, seconds: float) -> bool:
        """True if the worker has ended within so many seconds."""
        end = time.monotonic() + seconds
        while _exists(pid):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        self._workers.discard(pid)
        return True

    def workers(self) -> list[int]:
        """Those that are alive."""
        return [pid for pid in sorted(self._workers) if _exists(pid)]

    def end_workers(self) -> None:
        """Kills the workers that are left."""
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.wait(pid, PATIENCE)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


_current: list[Zygote] = []


def current(*, kernels: bool) -> Zygote:
    """The zygote of this process, started if there is none. Call it on the main thread: it dies with its thread."""
    stale = bool(_current) and _current[0].path != os.environ.get("PYTHONPATH")
    if stale:
        _current[0].close()  # forks of it would not find what this process finds
    if not _current or stale or not _current[0].alive():
        _current[:] = [Zygote(kernels=kernels)]
        atexit.register(_current[0].close)
    return _current[0]


def workers() -> list[int]:
    """The workers that are alive."""
    return [pid for zygote in _current for pid in zygote.workers()]


def end_workers() -> None:
    """Kills the workers that are left of a job."""
    for zygote in _current:
        zygote.end_workers()


@functools.lru_cache(maxsize=1)
def environment() -> Any:
    """Beam's description of our workers, with the handler that starts them registered."""
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
            self._pid = 0
            self._ending = False

        def start_worker(self) -> None:
            options = json_format.MessageToJson(self.provision_info.provision_info.pipeline_options)
            self._pid = _current[0].spawn(
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

            threading.Thread(target=self._watch, daemon=True).start()

        def _watch(self) -> None:
            """Notices that the worker ended before its time; Beam would wait for its answers for ever."""
            while not _current[0].wait(self._pid, 60.0):
                pass
            if not self._ending:
                self._give_up(RuntimeError("Worker subprocess exited"))

        def _give_up(self, error: RuntimeError) -> None:
            """Fails what the runner waits for, and all that it will still ask this worker."""
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
            if not _current[0].wait(self._pid, PATIENCE):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)

    environments.Environment.register_urn(URN, bytes)(Forked)
    WorkerHandler.register_environment(URN, bytes)(Handler)
    return Forked(capabilities=environments.python_sdk_capabilities())


# -------------------------------------------------------------------------------------------- inside the zygote


def _reap() -> None:
    """Waits for workers that have ended, so that their CPU time counts as ours, and in the end as our starter's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve(*, kernels: bool, run_worker: Any) -> None:
    """The zygote's life: imports, then a fork for every line, until the other side is gone.

    Args:
        kernels: load the kernels too.
        run_worker: what a forked worker does; it does not return.
    """
    channel = socket.socket(fileno=int(os.environ.pop(SOCKET)))
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    malloc.keep()
    gc.disable()
    for name in PRELOAD:
        importlib.import_module(name)
    if kernels:
        from pipeline.engine import jit

        for name in KERNELS if jit.available() else ():
            importlib.import_module(name).warm()
    gc.freeze()  # what was imported lives for ever: no worker looks through it again, which would copy its pages too
    gc.enable()
    lines = channel.makefile("rw", encoding="utf-8")
    for line in lines:
        pid = os.fork()
        if pid == 0:
            channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.update(json.loads(line)["env"])
            run_worker()
            os._exit(0)
        lines.write(json.dumps({"pid": pid}) + "\n")
        lines.flush()
