"""The hosts of a run meet before it begins, and notice when one of them is gone.

Each host has one launcher (launch.py). The launcher of host 0 serves a key-value store of torch at --rdzv-endpoint. The
others connect to it. Their words in it, by the number of the host:

    taken/I     how many launchers have said that they are host I
    hello/I     JSON: nnodes, processes, and the address from which it reaches host 0
    alive/I     a number that grows every BEAT seconds
    ended       JSON of the first host that failed: host, message
    refused     the same of a host that leaves while they meet; nobody reads it later
    whose       what host 0 alone knows: the others have to reach this store at --rdzv-endpoint
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
import secrets
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

BEAT = 2.0  # seconds between two signs of life
QUIET = 10.0  # the same as LOST_AFTER, once a connection of this host has broken: something has ended
LOST_AFTER = 120.0  # seconds without a sign of life after which a host counts as lost
GRACE = 60.0  # seconds that the processes of this host have to end by themselves, once another host has failed
# seconds that host 0 serves the store for the others: after its work, after an early end, where the hosts do not fit
LEAVE, LEAVE_EARLY, LEAVE_REFUSED = 60.0, 10.0, 1.0
JOIN_MINUTES = 10.0
_PATIENCE = 2.0  # seconds to wait for the others without a word
_RESOLVE = 10.0  # seconds in which the name of host 0 may become known: a cluster's names may come late
_SHORT = datetime.timedelta(seconds=3)
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
    leaving: bool = False  # this host's processes have ended
    gone: set[int] = dataclasses.field(default_factory=set)  # hosts that are known to be lost

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
        if not stop.wait(grace) and not self.leaving:
            os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, stop: threading.Event, news: queue.SimpleQueue[tuple[str | None, float]]) -> None:
        """Gives signs of life, and tells why the run has to end. A question may wait long where the network is gone."""
        seen: dict[int, tuple[bytes, float]] = {}
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
            return failure["message"], GRACE
        host = self._without_sign(seen, LOST_AFTER)
        return (None if host is None else _without_life(host, LOST_AFTER)), 0.0

    def _others(self) -> list[int]:
        """The other hosts that are neither done nor known to be lost."""
        hosts = set(range(len(self.processes))) - self.gone - {self.host}
        return [host for host in sorted(hosts) if not self.store.check([f"done/{host}"])]

    def _without_sign(self, seen: dict[int, tuple[bytes, float]], seconds: float) -> int | None:
        """The first other host that has given no sign of life for this long.

        Args:
            seen: the last sign of each host, and when it came.
        """
        now = time.monotonic()
        for host in self._others():
            sign = self.store.get(f"alive/{host}")
            if seen.get(host, (b"", 0.0))[0] != sign:
                seen[host] = sign, now
            elif now - seen[host][1] > seconds:
                return host
        return None

    def leave(self, failure: str | None = None, *, seconds: float = LEAVE) -> None:
        """The work of this host is done, or it has failed. Host 0 serves the store until the others end as well.

        Args:
            seconds: how long, at most; a host that was killed does not end.
        """
        if self.silent:
            return
        with contextlib.suppress(Exception):  # the store may be what is gone
            if failure is not None:
                tell_failure(self.store, self.host, f"host {self.host} ended: {failure}")
            self.store.set(f"done/{self.host}", "")
            deadline = time.monotonic() + seconds
            while self.host == 0 and time.monotonic() < deadline and self._others():
                time.sleep(0.1)

    def why_gone(self) -> str | None:
        """Which other host has ended, or is gone. None: it is not known.

        It is asked where a connection of this host broke, inside `watched`. It waits for the words of the other host,
        or for QUIET seconds without a sign of life.
        """
        self.leaving = True
        seen: dict[int, tuple[bytes, float]] = {}
        deadline = time.monotonic() + QUIET + 2 * BEAT
        while not self.silent and time.monotonic() < deadline:
            try:
                failure = failure_in(self.store)
                if failure is not None:
                    return None if failure["host"] == self.host else str(failure["message"])
                host = self._without_sign(seen, QUIET)
                if host is not None:
                    self.gone.add(host)
                    message = _without_life(host, QUIET)
                    tell_failure(self.store, host, message)
                    return message
                if not self._others():
                    return None
            except Exception as error:  # the store is gone, and with it host 0
                self.silent = True
                return f"host 0 does not answer any more ({first_line(error)})"
            time.sleep(0.1)
        return self.lost or ("host 0 does not answer any more" if self.silent and self.host else None)


def _without_life(host: int, seconds: float) -> str:
    return f"host {host} was lost: no sign of life for {seconds:.0f} seconds"


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
        UsageError: the hosts say different things, the port is taken, or the endpoint is not one of host 0.
        TrainError: a host did not come in time.
    """
    name, port = _split(endpoint)
    deadline = time.monotonic() + 60 * minutes
    address, own, foreign = ("localhost", port), "", False
    if host == 0:
        foreign = not _is_own(name, port)
    else:
        address, own = (name, port), _wait_for_host_0(name, port, minutes=minutes, say=say)
    store = _open_store(*address, serve=host == 0)
    try:
        if foreign and not _leads_to(store, name, port):
            raise UsageError(
                f"--rdzv-endpoint {endpoint}: {name} is no address of this host, which is host 0 (--node-rank 0)"
            )
        if store.add(f"taken/{host}", 1) > 1:
            _wait_for_hellos(store, hosts)  # a third host does not disturb two
            raise UsageError(f"two hosts say --node-rank {host}: give each host its own number")
        store.set(f"alive/{host}", "0")
        store.set(f"hello/{host}", json.dumps({"nnodes": hosts, "processes": processes, "address": own}))
        hellos = _hellos(store, hosts, host, deadline, minutes=minutes, say=say)
    except TrainError as error:
        if host == 0:  # the others learn it before the store is gone
            tell_failure(store, host, f"host {host} ended: {error}")
            time.sleep(LEAVE_REFUSED)
        else:
            _tell_refusal(store, host, str(error))
        raise
    except KeyboardInterrupt:  # it may come back
        if host:
            store.delete_key(f"hello/{host}")
            store.add(f"taken/{host}", -1)
        raise
    except RuntimeError as error:
        raise TrainError(f"host 0 has ended while the hosts met ({first_line(error)}): see its message") from error
    toward = name if host else hellos[1]["address"]
    return Meeting(store, address, host, tuple(hello["processes"] for hello in hellos), interface_toward(toward))


def _split(endpoint: str) -> tuple[str, int]:
    """HOST:PORT, or [HOST]:PORT."""
    name, _, number = endpoint.rpartition(":")
    return name.strip("[]"), int(number)


def refused_before(endpoint: str, *, hosts: int, host: int, message: str) -> str:
    """Tells the hosts that meet, if any, that this one was refused before it came.

    Returns:
        What it is refused for: the others may say another number of hosts, on which much depends.
    """
    name, port = _split(endpoint)
    try:
        with socket.create_connection((name, port), timeout=_SHORT.total_seconds()):
            pass
        store = _open_store(name, port, serve=False, timeout=_SHORT)
        if store.check(["hello/0"]):
            message = _differing(hosts, host, 0, json.loads(store.get("hello/0"))) or message
            _tell_refusal(store, host, message)
    except (OSError, RuntimeError, TrainError):  # host 0 is not there yet
        pass
    return message


def _tell_refusal(store: Any, host: int, message: str) -> None:
    with contextlib.suppress(RuntimeError):  # host 0 has left
        store.compare_set("refused", "", json.dumps({"host": host, "message": f"host {host} ended: {message}"}))


def _differing(hosts: int, host: int, other: int, hello: dict[str, Any]) -> str | None:
    """What a host says where another one has another number of hosts in mind."""
    if hello["nnodes"] == hosts:
        return None
    return f"host {host} says --nnodes {hosts}, host {other} says {hello['nnodes']}: they must agree"


def _is_own(name: str, port: int) -> bool:
    """True if the name leads to this machine: one can listen at its address.

    Raises:
        UsageError: the name is not known.
    """
    deadline = time.monotonic() + _RESOLVE
    while True:
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(f"--rdzv-endpoint {name}:{port}: {name} is not known ({error})") from error
            time.sleep(0.5)
    for family, kind, protocol, _, address in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind((address[0], 0, *address[2:]))
            return True
    return False


def _leads_to(store: Any, name: str, port: int) -> bool:
    """True if an address that is not this machine's leads to its store: it is translated (NAT, a cluster's service)."""
    token = secrets.token_hex(8)
    store.set("whose", token)
    try:
        with socket.create_connection((name, port), timeout=_SHORT.total_seconds()):
            pass
        there = _open_store(name, port, serve=False, timeout=_SHORT)
        return there.check(["whose"]) and there.get("whose").decode() == token
    except (OSError, RuntimeError, TrainError):
        return False


def _wait_for_hellos(store: Any, hosts: int) -> None:
    """Waits a moment for all hosts."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and not store.check([f"hello/{each}" for each in range(hosts)]):
        time.sleep(0.05)


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


def _open_store(name: str, port: int, *, serve: bool, timeout: datetime.timedelta | None = None) -> TCPStore:
    """The store that host 0 serves. A stranger behind the port may take a connection and never answer."""
    from torch.distributed import TCPStore

    timeout = timeout or _REQUEST
    found: queue.SimpleQueue[TCPStore | RuntimeError] = queue.SimpleQueue()

    def connect() -> None:
        try:
            found.put(TCPStore(name, port, is_master=serve, timeout=timeout, wait_for_workers=False))
        except RuntimeError as error:
            found.put(error)

    threading.Thread(target=connect, name="store", daemon=True).start()
    try:
        store = found.get(timeout=2 * timeout.total_seconds())
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
                if differing := _differing(hosts, host, each, found[each]):
                    raise UsageError(differing)
        missing = [each for each in range(hosts) if each not in found]
        if not missing:
            return [found[each] for each in range(hosts)]
        if failure := failure_in(store) or failure_in(store, "refused"):
            raise UsageError(failure["message"])
        names = f"host {missing[0]} of {hosts}" if len(missing) == 1 else f"{len(missing)} of {hosts} hosts"
        if time.monotonic() > deadline:
            raise TrainError(f"{names} did not come within {minutes:g} minutes (hosts count from 0; --join-minutes)")
        if time.monotonic() > patience:
            patience = deadline
            say(f"waiting for {names}, at most {minutes:g} minutes")
        time.sleep(0.2)


def failure_in(store: Any, word: str = "ended") -> dict[str, Any] | None:
    """The host that failed first, and a sentence that names it."""
    return json.loads(store.get(word)) if store.check([word]) else None


def tell_failure(store: Any, host: int, message: str) -> None:
    """Writes that a host has failed, unless another one did before. The message is a sentence that names it."""
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
