"""The circuit breaker: if most hosts fail at once, the network is away. The fetch waits and probes until it is back.

Without it an outage of an hour would mark all URLs of that hour as failed. A failure of a single host is none of its
business: `hosts` lets that host rest. A host that answered before is the witness: if it answers, the network is there,
and the failing hosts are just dead. Without a witness nothing has ever answered in this process.
"""

from __future__ import annotations

import collections
import socket
import threading
import time
from collections.abc import Callable, Iterable

from pipeline.fetching.addresses import Gate, Lookup
from pipeline.fetching.errors import Failure, NetworkError
from pipeline.fetching.targets import Target

LATEST = 20  # hosts whose last outcome counts
FEWEST = 5  # hosts that must have failed
SHARE = 0.8  # of the latest hosts
PATIENCE_S = 600.0  # how long the fetch waits for the network to come back
FIRST_PATIENCE_S = 60.0  # the same, if no host has answered yet
SILENCE_S = 6.0  # without an answer from the start, after which the progress says so
PROBES_S = (1.0, 2.0, 4.0, 8.0, 15.0)  # pauses between probes; the last one repeats
PROBE_S = 5.0  # for a connection
RECHECK_S = 5.0  # a witness that has just answered is not asked again
WITNESSES = 3
WAITING = 8  # hosts that were not asked yet and take part in a probe, where there is no witness
AWAY = frozenset({"dns", "tcp", "timeout"})


class Network:
    """What the last outcomes say of the network. Threads share it.

    Args:
        gate: which addresses may be reached.
        lookup: resolves a host name.
        back: is called when the network is back.
    """

    def __init__(self, gate: Gate, lookup: Lookup, back: Callable[[], None]) -> None:
        self._gate, self._lookup, self._back = gate, lookup, back
        self._latest: collections.OrderedDict[str, Failure | None] = collections.OrderedDict()
        self._witnesses: collections.OrderedDict[str, int] = collections.OrderedDict()  # host -> port
        self._failing: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._first_asked: float | None = None
        self._checked_at = float("-inf")
        self._down_at: float | None = None
        self._cause: Failure | None = None
        self._gave_up = False
        self.again = False  # the hosts failed before: without a witness their failures say nothing
        self._waiting: dict[str, int] = {}

    def wait(self, target: Target) -> None:
        """Returns when the network is there.

        Args:
            target: of the URL that waits.

        Raises:
            NetworkError: it did not come back.
        """
        with self._changed:
            if self._first_asked is None:
                self._first_asked = time.monotonic()
            while self._down_at is not None:
                self._waiting[target.host] = target.port
                if time.monotonic() >= self._down_at + self._patience():
                    if len(self._waiting.keys() | self._latest.keys()) < FEWEST and not self._witnesses:
                        self._give_up()
                        return
                    raise NetworkError(
                        f"the network is away: {self._reason()}. No host answered for "
                        f"{_span(self._patience())}. The set is not published. When the network is back, run the same "
                        f"command again: it continues where it was"
                    )
                self._changed.wait(0.5)

    def answered(self, target: Target) -> None:
        """A host answered, whatever it said."""
        self.remember(target)
        with self._changed:
            self._note(target.host, None)
            self._failing.pop(target.host, None)
            if self._down_at is not None:
                self._come_back()

    def remember(self, target: Target) -> None:
        """Makes a host a witness. It answered in an earlier run, or just now."""
        with self._changed:
            self._witnesses[target.host] = target.port
            self._witnesses.move_to_end(target.host)
            while len(self._witnesses) > WITNESSES:
                self._witnesses.popitem(last=False)

    def failed(self, target: Target, failure: Failure) -> bool:
        """Counts a failure. True: the network is away, and the URL should be tried once more when it is back.

        Args:
            target: of the URL.
            failure: of the URL.
        """
        if failure.status not in AWAY or not failure.retryable or failure.http_status is not None:
            return False
        with self._changed:
            self._note(target.host, failure)
            self._failing[target.host] = target.port
            self._failing.move_to_end(target.host)
            while len(self._failing) > WITNESSES:
                self._failing.popitem(last=False)
            if self._down_at is not None:
                return True
            if not self._suspicious():
                return False
            witnesses = list(self._witnesses.items())
            self._checked_at = time.monotonic()
        if witnesses and self._any_answers(witnesses):
            return False
        with self._changed:
            if self._down_at is None:
                self._go_down(failure)
        return True

    def state(self) -> str:
        """Why nothing comes in, as a sentence for the progress; "": the network is there."""
        with self._changed:
            if self._down_at is not None:
                cause = f"the network is away ({self._cause})"
                return f"{cause}. The fetch waits for it, for at most {_span(self._patience())}"
            silent = self._first_asked is not None and not self._witnesses and not self.again
            if silent and time.monotonic() >= (self._first_asked or 0.0) + SILENCE_S:
                return f"no host has answered for {SILENCE_S:.0f} s: is there a network and a name server?"
            return ""

    def _note(self, host: str, failure: Failure | None) -> None:
        self._latest[host] = failure
        self._latest.move_to_end(host)
        while len(self._latest) > LATEST:
            self._latest.popitem(last=False)

    def _suspicious(self) -> bool:
        failed = [failure for failure in self._latest.values() if failure is not None]
        if self._witnesses:
            most = len(failed) >= max(FEWEST, SHARE * len(self._latest))
            return most and time.monotonic() >= self._checked_at + RECHECK_S
        # Nothing has ever answered. A name server that does not answer is enough.
        no_names = not self._gave_up and all(failure.status == "dns" for failure in failed)
        return not self.again and (len(failed) >= FEWEST or no_names)

    def _patience(self) -> float:
        return PATIENCE_S if self._witnesses else FIRST_PATIENCE_S

    def _reason(self) -> str:
        failed = sum(one is not None for one in self._latest.values())
        hosts = (
            "the only host" if failed == len(self._latest) == 1 else f"{failed} of the last {len(self._latest)} hosts"
        )
        return f"{hosts} failed ({self._cause})"

    def _go_down(self, failure: Failure) -> None:
        self._down_at, self._cause = time.monotonic(), failure
        threading.Thread(target=self._probe, args=(self._down_at,), daemon=True, name="network probe").start()

    def _give_up(self) -> None:
        """Goes on without the network: so few hosts say little, and their failures are counted as theirs."""
        self._down_at, self._gave_up = None, True
        self._changed.notify_all()

    def _come_back(self) -> None:
        self._down_at = None
        self._latest.clear()
        self._waiting.clear()
        self._first_asked = time.monotonic()
        self._back()
        self._changed.notify_all()

    def _probe(self, down_at: float) -> None:
        """Asks hosts for a connection until one accepts, or until another thread sees that the network is back."""
        turn = 0
        while True:
            time.sleep(PROBES_S[min(turn, len(PROBES_S) - 1)])
            turn += 1
            with self._changed:
                if self._down_at != down_at:
                    return
                hosts = list(self._witnesses.items()) or self._hosts_without_witness(turn)
            if self._any_answers(hosts):
                with self._changed:
                    if self._down_at == down_at:
                        self._come_back()
                return

    def _hosts_without_witness(self, turn: int) -> list[tuple[str, int]]:
        """Hosts that failed, and some of those that wait. Others wait in each turn: the first may be dead for good."""
        waiting = list(self._waiting.items())
        first = turn * WAITING % max(1, len(waiting))
        return [*self._failing.items(), *(waiting + waiting)[first : first + min(WAITING, len(waiting))]]

    def _any_answers(self, hosts: Iterable[tuple[str, int]]) -> bool:
        """Asks hosts at once. Each has a thread, because nothing can interrupt the system's resolver."""
        found = threading.Event()

        def ask(host: str, port: int) -> None:
            if self._accepts(host, port):
                found.set()

        threads = [threading.Thread(target=ask, args=host, daemon=True) for host in hosts]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 2 * PROBE_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return found.is_set()

    def _accepts(self, host: str, port: int) -> bool:
        """True if the host's name is resolved and one of its addresses accepts a connection."""
        try:
            addresses = [address for address in self._lookup(host, port) if self._gate.opens(address)]
        except (OSError, UnicodeError, ValueError):
            return False
        for address in addresses[:2]:
            try:
                socket.create_connection((address, port), PROBE_S).close()
                return True
            except OSError:
                continue
        return False


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
