"""The hosts of a run meet before it begins, and notice when one of them is gone.

Each host has one launcher (launch.py). The launcher of host 0 serves a key-value store of torch at --rdzv-endpoint. The
others connect to it. Their words in it, by the number of the host:

    taken/I     how many launchers have said that they are host I
    hello/I     JSON: nnodes, processes, and the address from which it reaches host 0
    alive/I     a number that grows every BEAT seconds
    ended       JSON of the first host that failed: host, message
    done/I      the host is done

gloo notices a process that ends, but neither a host without power nor a process that waits for another one to answer.
NCCL notices neither. So a thread of each launcher reads these words. It ends its host's processes where another host is
gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from clip_train.errors import TrainError, UsageError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

BEAT = 5.0  # seconds between two signs of life
LOST_AFTER = 120.0  # seconds without a sign of life after which a host counts as lost
GRACE = 60.0  # seconds that the processes of this host have to end by themselves, once another host has failed
# seconds that host 0 serves the store for the others: after its work, after an early end, where the hosts do not fit
LEAVE, LEAVE_EARLY, LEAVE_REFUSED = 60.0, 10.0, 1.0
JOIN_MINUTES = 10.0
_PATIENCE = 2.0  # seconds to wait for the others without a word
_REQUEST = datetime.timedelta(seconds=20)
_SIOCGIFADDR = 0x8915


@dataclasses.dataclass
class Meeting:
    """The hosts of a run, as one of them sees them."""

    store: TCPStore
    address: tuple[str, int]  # where the processes of this host reach the store
    host: int  # the number of this one
    processes: tuple[int, ...]  # of each host
    interface: str | None  # towards the others
    lost: str | None = None  # why the run has to end
    silent: bool = False  # the store does not answer: another question would wait for minutes

    @property
    def ranks(self) -> int:
        """Processes of the run."""
        return sum(self.processes)

    @property
    def first_rank(self) -> int:
        """The rank of the first process of this host."""
        return sum(self.processes[: self.host])

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs, the others learn that this host is there. SIGTERM if another is gone; see `lost`."""
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,), name="hosts", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(_REQUEST.total_seconds())

    def _watch(self, stop: threading.Event) -> None:
        """Ends this host's processes where the store says so, or does not answer."""
        news: queue.SimpleQueue[tuple[str | None, float]] = queue.SimpleQueue()
        threading.Thread(target=self._ask, args=(stop, news), name="ask", daemon=True).start()
        answered, lost, grace = time.monotonic(), None, 0.0
        while lost is None:
            if stop.wait(BEAT):
                return
            while not news.empty():
                answered, (lost, grace) = time.monotonic(), news.get()
            if lost is None and time.monotonic() - answered > LOST_AFTER:
                self.silent = True
                lost = f"host 0 has given no answer for {LOST_AFTER:.0f} seconds"
        self.lost = lost
        if not stop.wait(grace):
            os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, stop: threading.Event, news: queue.SimpleQueue[tuple[str | None, float]]) -> None:
        """Gives signs of life, and tells why the run has to end. A question may wait long where the network is gone."""
        seen: dict[int, tuple[bytes, float]] = {}  # the last sign of each host, and when it came
        count = 0
        while not stop.wait(BEAT):
            count += 1
            try:
                self.store.set(f"alive/{self.host}", str(count))
                news.put(self._failed(seen))
            except Exception as error:  # the store is gone, and with it host 0
                if is_gone(first_line(error)):
                    self.silent = True
                    news.put((f"host 0 does not answer any more ({first_line(error)})", GRACE))
                    return

    def _failed(self, seen: dict[int, tuple[bytes, float]]) -> tuple[str | None, float]:
        """Why the run has to end, if so, and the seconds that this host's processes have for it."""
        failure = failure_in(self.store)
        if failure is not None and failure["host"] != self.host:
            return f"host {failure['host']} ended: {failure['message']}", GRACE
        now = time.monotonic()
        for host in range(len(self.processes)):
            if host == self.host or self.store.check([f"done/{host}"]):
                continue
            sign = self.store.get(f"alive/{host}")
            if seen.get(host, (b"", 0.0))[0] != sign:
                seen[host] = sign, now
            elif now - seen[host][1] > LOST_AFTER:
                return f"host {host} has given no sign of life for {LOST_AFTER:.0f} seconds", 0.0
        return None, 0.0

    def leave(self, failure: str | None = None, *, seconds: float = LEAVE) -> None:
        """The work of this host is done, or it has failed. Host 0 serves the store until the others end as well.

        Args:
            seconds: how long, at most; a host that was killed does not end.
        """
        if self.silent:
            return
        with contextlib.suppress(Exception):  # the store may be what is gone
            if failure is not None:
                tell_failure(self.store, self.host, failure)
            self.store.set(f"done/{self.host}", "")
            deadline = time.monotonic() + seconds
            others = [f"done/{host}" for host in range(len(self.processes))]
            while self.host == 0 and time.monotonic() < deadline and not self.store.check(others):
                time.sleep(0.1)

    def cause(self) -> str | None:
        """What another host has said about its end, if it has failed."""
        if self.silent:
            return None
        with contextlib.suppress(Exception):
            failure = failure_in(self.store)
            if failure is not None and failure["host"] != self.host:
                return f"host {failure['host']} ended: {failure['message']}"
        return None


def meet(
    endpoint: str, *, hosts: int, host: int, processes: int, minutes: float, say: Callable[[str], None]
) -> Meeting:  # fmt: skip
    """Waits until all hosts are there.

    Args:
        endpoint: HOST:PORT of host 0.
        hosts, host: how many, and the number of this one.
        processes: of this host.
        minutes: how long to wait.
        say: is told what it waits for.

    Raises:
        UsageError: the hosts say different things, or the port is taken.
        TrainError: a host did not come in time.
    """
    name, _, number = endpoint.rpartition(":")
    name, port = name.strip("[]"), int(number)
    deadline = time.monotonic() + 60 * minutes
    address, own = ("localhost", port), ""
    if host:
        address, own = (name, port), _wait_for_host_0(name, port, minutes=minutes, say=say)
    store = _open_store(*address, serve=host == 0)
    try:
        if store.add(f"taken/{host}", 1) > 1:
            raise UsageError(f"two hosts say --node-rank {host}: give each host its own number")
        store.set(f"alive/{host}", "0")
        store.set(f"hello/{host}", json.dumps({"nnodes": hosts, "processes": processes, "address": own}))
        hellos = _hellos(store, hosts, host, deadline, minutes=minutes, say=say)
    except TrainError as error:
        if host == 0:  # the others learn it before the store is gone
            tell_failure(store, host, str(error))
            time.sleep(LEAVE_REFUSED)
        raise
    except RuntimeError as error:
        raise TrainError(f"host 0 has ended while the hosts met ({first_line(error)}): see its message") from error
    toward = name if host else hellos[1]["address"]
    return Meeting(store, address, host, tuple(hello["processes"] for hello in hellos), interface_toward(toward))


def _wait_for_host_0(name: str, port: int, *, minutes: float, say: Callable[[str], None]) -> str:
    """Waits until something listens there. Returns the address from which this host reaches it."""
    began, said = time.monotonic(), False
    while True:
        try:
            with socket.create_connection((name, port), timeout=5) as connection:
                return str(connection.getsockname()[0])
        except OSError as error:
            waited = time.monotonic() - began
            if waited > 60 * minutes:
                raise TrainError(
                    f"no answer from host 0 at {name}:{port} within {minutes:g} minutes ({error}): is it started with "
                    f"--node-rank 0, is this its address, and is the port open? (--join-minutes)"
                ) from error
            if waited > _PATIENCE and not said:
                said = True
                say(f"waiting for host 0 at {name}:{port}, at most {minutes:g} minutes ({error})")
            time.sleep(0.5)


def _open_store(name: str, port: int, *, serve: bool) -> TCPStore:
    """The store that host 0 serves. A stranger behind the port may take a connection and never answer."""
    from torch.distributed import TCPStore

    found: queue.SimpleQueue[TCPStore | RuntimeError] = queue.SimpleQueue()

    def connect() -> None:
        try:
            found.put(TCPStore(name, port, is_master=serve, timeout=_REQUEST, wait_for_workers=False))
        except RuntimeError as error:
            found.put(error)

    threading.Thread(target=connect, name="store", daemon=True).start()
    try:
        store = found.get(timeout=2 * _REQUEST.total_seconds())
    except queue.Empty:
        store = RuntimeError("no answer")
    if not isinstance(store, RuntimeError):
        return store
    if serve:
        raise UsageError(
            f"--rdzv-endpoint: host 0 cannot listen on port {port} ({first_line(store)}): name another port"
        ) from store
    raise TrainError(
        f"--rdzv-endpoint: what answers at {name}:{port} is not host 0 of a run ({first_line(store)})"
    ) from store


def _hellos(
    store: TCPStore, hosts: int, host: int, deadline: float, *, minutes: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:  # fmt: skip
    """What each host says, once all are there."""
    patience, found = time.monotonic() + _PATIENCE, dict[int, dict[str, Any]]()
    while True:
        for each in range(hosts):
            if each not in found and store.check([f"hello/{each}"]):
                found[each] = json.loads(store.get(f"hello/{each}"))
                if found[each]["nnodes"] != hosts:
                    raise UsageError(
                        f"host {host} says --nnodes {hosts}, host {each} says {found[each]['nnodes']}: they must agree"
                    )
        missing = [each for each in range(hosts) if each not in found]
        if not missing:
            return [found[each] for each in range(hosts)]
        if failure := failure_in(store):
            raise UsageError(f"host {failure['host']} ended: {failure['message']}")
        names = f"host {missing[0]} of {hosts}" if len(missing) == 1 else f"{len(missing)} of {hosts} hosts"
        if time.monotonic() > deadline:
            raise TrainError(f"{names} did not come within {minutes:g} minutes (hosts count from 0; --join-minutes)")
        if time.monotonic() > patience:
            patience = deadline
            say(f"waiting for {names}, at most {minutes:g} minutes")
        time.sleep(0.2)


def failure_in(store: Any) -> dict[str, Any] | None:
    """The host that failed first, and what it said."""
    return json.loads(store.get("ended")) if store.check(["ended"]) else None


def tell_failure(store: Any, host: int, message: str) -> None:
    """Writes that a host has failed, unless another one did before."""
    store.compare_set("ended", "", json.dumps({"host": host, "message": message}))


def first_line(error: BaseException) -> str:
    """The first line of an error's message: torch adds stacks of C++."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def is_gone(message: str) -> bool:
    """True for the message of a connection whose other end is gone."""
    return any(word in message for word in ("Broken pipe", "onnection reset", "onnection refused", "onnection closed"))


# --- the interface between the hosts ----------------------------------------------------------------------------------


def interface_toward(host: str) -> str | None:
    """The network interface that leads to a host. None: it is not known, or it is this machine.

    gloo takes the interface of the machine's own name, which is 127.0.1.1 in the /etc/hosts of Debian.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            own = str(probe.getsockname()[0])
    except OSError:
        return None
    if own.startswith("127.") or own == "::1" or not sys.platform.startswith("linux"):
        return None
    found = _by_address_6(own) if kind == socket.AF_INET6 else _by_address_4(own)
    return None if found == "lo" else found


def _by_address_4(own: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None


def _by_address_6(own: str) -> str | None:
    wanted = socket.inet_pton(socket.AF_INET6, own.partition("%")[0]).hex()
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as lines:
        for line in lines:
            if line.split()[0] == wanted:
                return line.split()[-1]
    return None
