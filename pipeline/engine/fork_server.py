"""Inside the fork server: it loads Beam and the kernels, and forks a worker for every request. See `forked_workers`."""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.engine import jit, malloc

OURS = ("apache_beam.runners.worker.sdk_worker_main", "pyarrow.parquet")  # what every worker imports
SOCKET = "OPENWIT_FORK_SERVER_SOCKET"  # number of the inherited descriptor


class Preload(NamedTuple):
    """What the fork server loads before it forks, by dotted names.

    Attributes:
        modules: are imported.
        kernels: are imported, and each of their functions is called once.
    """

    modules: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()


NOTHING = Preload()


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def serve(load: Preload, *, prepare: Callable[[], None], run_worker: Callable[[], None]) -> None:
    """Runs the fork server. It imports, then forks or sends a signal for each request, until the other side is gone.

    Args:
        load: loaded before the first fork.
        prepare: called before our own imports.
        run_worker: called in each forked worker.
    """
    channel = socket.socket(fileno=int(os.environ.pop(SOCKET)))
    forked = False
    try:
        prepare()
        _load(load)
        channel.sendall(encode({"ready": True}))
        forked = _Nursery(channel).tend()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the other side is gone
    except Exception as error:
        channel.sendall(encode({"failed": f"{type(error).__name__}: {error}"}))
        sys.exit(1)
    if forked:
        run_worker()
        os._exit(0)


def _load(load: Preload) -> None:
    """Imports what all workers need."""
    malloc.retain_freed_memory()
    gc.disable()
    for name in (*OURS, *load.modules):
        importlib.import_module(name)
    for name in load.kernels if jit.available() else ():
        importlib.import_module(name).warm()
    gc.freeze()  # imported objects live for ever: a worker need not scan them, and scanning would copy their pages
    gc.enable()


class _Nursery:
    """The children of the fork server.

    A child that has ended is reaped only between two requests. Until then its process id is not used again, so a
    signal always reaches the right process.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: set[int] = set()
        self._woken, self._wake = os.pipe()
        for descriptor in (self._woken, self._wake):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def tend(self) -> bool:
        """Answers requests; returns False when the other side is gone, and True in a child that was just forked."""
        poll = select.poll()
        for descriptor in (self._channel.fileno(), self._woken):
            poll.register(descriptor, select.POLLIN)
        unread = b""
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._woken in ready:
                os.read(self._woken, 4096)
            self._look()
            if self._channel.fileno() not in ready:
                continue
            data = self._channel.recv(1 << 16)
            if not data:
                return False
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                if self._do(json.loads(line)):
                    return True

    def _do(self, request: dict[str, Any]) -> bool:
        """Carries out one request; returns True in a new child."""
        if request.get("kill") in self._children:
            os.kill(request["kill"], signal.SIGKILL)
        if "spawn" not in request:
            return False
        pid = os.fork()
        if pid:
            self._children.add(pid)
            self._channel.sendall(encode({"started": pid}))
            return False
        self._leave()
        os.environ.update(request["spawn"])
        return True

    def _look(self) -> None:
        """Reaps children that have ended. Their CPU time then counts as ours, and as that of our parent."""
        for pid in list(self._children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._children.discard(pid)
                self._channel.sendall(encode({"ended": pid}))

    def _leave(self) -> None:
        """Gives up, in a child, the fork server's signal handling and descriptors."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._channel.close()
        os.close(self._woken)
        os.close(self._wake)
