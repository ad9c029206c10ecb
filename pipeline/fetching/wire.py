"""One HTTP/1.1 request over a connection of its own, to an address that was checked.

No connection is used twice. An HTTP/1.1 answer does not name its request. On a used connection, leftover bytes of a
server or a proxy (such as a late copy of the answer before) look like the answer to the next URL. The pair would then
be published with another URL's image. A check of the idle connection does not help: the bytes may arrive after it. On a
connection with one request, every answer belongs to the one URL. The cost is a TCP handshake for each image, and a TLS
handshake that resumes the session of the one before.

A watchdog shuts the socket when the time is up, in any phase. The socket's own time limit would not do: it starts again
with every byte that arrives.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from pipeline.fetching.addresses import MOST_HOSTS
from pipeline.fetching.answer import PART, Answer, Grow, read_answer
from pipeline.fetching.encodings import undone
from pipeline.fetching.errors import Failure
from pipeline.fetching.memory import Share
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.recent import Recent
from pipeline.fetching.targets import Target

MOST_SESSIONS = 2000  # of TLS: about 10 kB each, with the server's certificates
ACCEPT = "image/avif,image/webp,image/png,image/jpeg,image/*;q=0.8,*/*;q=0.5"


class Watchdog:
    """Shuts sockets down at their deadlines, in a thread of its own."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, list[Any]]] = []
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, sock: socket.socket, deadline: float) -> list[Any]:
        """Guards the socket until the returned entry is emptied with `release`."""
        entry: list[Any] = [sock]
        with self._wake:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            heapq.heappush(self._due, (deadline, next(self._numbers), entry))
            if self._due[0][2] is entry:
                self._wake.notify()
        return entry

    @staticmethod
    def release(entry: list[Any]) -> None:
        """Ends the guard."""
        entry.clear()

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._due and (not self._due[0][2] or self._due[0][0] <= time.monotonic()):
                    _, _, entry = heapq.heappop(self._due)
                    for sock in entry[:]:
                        _shut(sock)
                self._wake.wait(max(0.0, self._due[0][0] - time.monotonic()) if self._due else None)


def _shut(sock: socket.socket) -> None:
    """Ends both directions, so that a blocked read returns.

    SSLSocket's own method is not used: it drops the TLS state that the reading thread uses.
    """
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass


WATCHDOG = Watchdog()


def forget_threads() -> None:
    """Gives a forked child a watchdog of its own: it has none of its parent's threads."""
    global WATCHDOG
    WATCHDOG = Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_threads)


def tls_context(ca_file: str) -> ssl.SSLContext:
    """The one TLS context of a client. Building it takes 40 ms of CPU, too much for every image."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if not context.cert_store_stats()["x509_ca"] and not ca_file:
        try:
            import certifi  # for a bare container without system certificates
        except ImportError:
            return context
        context.load_verify_locations(certifi.where())
    return context


class Wire:
    """Sends requests from many threads at once. Keeps TLS sessions and addresses for the next connections."""

    def __init__(self, options: FetchOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._answering: Recent[tuple[str, int], str] = Recent(MOST_HOSTS)
        self._sessions: Recent[tuple[str, int], ssl.SSLSession] = Recent(MOST_SESSIONS)
        self._headers = (
            f"User-Agent: {options.agent_line}\r\nAccept: {ACCEPT}\r\nAccept-Encoding: identity\r\n"
            "Connection: close\r\n\r\n"
        )

    def get(
        self,
        target: Target,
        addresses: list[str],
        *,
        limit: int,
        deadline: float,
        share: Share,
        cut: bool = False,
    ) -> Answer:
        """Connects to the first address that answers, sends a GET and reads the answer. Only a 200 has a body.

        Args:
            target: the URL of the request.
            addresses: of its host, all of them checked.
            limit: the most bytes of the body.
            deadline: on time.monotonic(), for the whole request. The time that the share waits does not count.
            share: of the memory. It must be empty; afterwards it has the size of the body.
            cut: a longer body is cut, not refused.

        Raises:
            Failure: tcp, tls, timeout, bad_http, too_large.
        """
        try:
            answer = self._get(target, addresses, limit, deadline, share, cut)
        except Failure as failure:
            if failure.status in ("tcp", "bad_http"):  # the watchdog's cut looks like this
                _check_time(deadline + share.waited_s)
            raise
        except OSError as error:
            raise _named(error, deadline + share.waited_s) from error
        if answer.status == 200:
            # The watchdog's cut looks like the end of a body without a length.
            _check_time(deadline + share.waited_s)
            answer.body = undone(answer.body, answer.all("Content-Encoding"), limit, cut, share.grow)
        share.shrink(len(answer.body))
        share.complete()
        return answer

    def _get(
        self, target: Target, addresses: list[str], limit: int, deadline: float, share: Share, cut: bool
    ) -> Answer:
        with contextlib.closing(self._open(target, addresses, deadline)) as sock, _guarded(sock, deadline) as guard:
            sock.sendall(f"GET {target.path} HTTP/1.1\r\nHost: {target.host_header}\r\n{self._headers}".encode())
            with sock.makefile("rb", PART) as stream:
                answer = read_answer(cast(BinaryIO, stream), limit=limit, cut=cut, grow=_growing(share, guard))
            if isinstance(sock, ssl.SSLSocket) and not sock.session_reused:
                self._keep(target, sock.session)  # only a new session: taking it costs more than the request
            return answer

    def _keep(self, target: Target, session: ssl.SSLSession | None) -> None:
        if session is not None:
            with self._lock:
                self._sessions.put((target.host, target.port), session)

    def _open(self, target: Target, addresses: list[str], deadline: float) -> socket.socket:
        if target.scheme != "https":
            return self._connect(target, addresses, deadline)
        with self._lock:
            session = self._sessions.get((target.host, target.port))
        try:
            return self._secure(self._connect(target, addresses, deadline), target.host, deadline, session)
        except (ssl.SSLError, ConnectionError):
            if session is None:
                raise
        return self._secure(self._connect(target, addresses, deadline), target.host, deadline, None)

    def _connect(self, target: Target, addresses: list[str], deadline: float) -> socket.socket:
        with self._lock:
            known = self._answering.get((target.host, target.port))
        order = sorted(_two_of_each_family(addresses), key=lambda address: address != known)
        problem: OSError | None = None
        for address in order:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            try:
                sock.settimeout(min(self._options.connect_s, left))
                sock.connect((address, target.port))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                problem = error
                continue
            if address != order[0]:  # the next connection must not wait for a dead address
                with self._lock:
                    self._answering.put((target.host, target.port), address)
            return sock
        if problem is None or isinstance(problem, TimeoutError):
            raise Failure("timeout", "no connection in time")
        raise Failure("tcp", f"no connection: {problem.strerror or problem}")

    def _secure(self, sock: socket.socket, host: str, deadline: float, session: ssl.SSLSession | None) -> socket.socket:
        try:
            secure = self._tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False, session=session)
        except OSError:
            sock.close()
            raise
        except ValueError as error:  # a host name that no certificate can hold
            sock.close()
            raise Failure("tls", f"TLS failed: {error}") from error
        try:
            with _guarded(secure, deadline):
                secure.do_handshake()
            return secure
        except BaseException:
            secure.close()
            raise

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context(self._options.ca_file)


class _Guard:
    """The watchdog's guard of one socket."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._entry = WATCHDOG.watch(sock, deadline)

    def end(self) -> None:
        WATCHDOG.release(self._entry)

    def begin(self, later_s: float) -> None:
        """Guards again, until so many seconds after the first deadline."""
        self._entry = WATCHDOG.watch(self._sock, self._deadline + later_s)


@contextlib.contextmanager
def _guarded(sock: socket.socket, deadline: float) -> Iterator[_Guard]:
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    guard = _Guard(sock, deadline)
    try:
        yield guard
    finally:
        guard.end()


def _growing(share: Share, guard: _Guard) -> Grow:
    """Grows the share. The socket's clock stops while the share waits."""

    def grow(size: int) -> None:
        if share.fits(size):
            return
        guard.end()
        start = time.monotonic()
        share.grow(size)
        share.waited_s += time.monotonic() - start
        guard.begin(share.waited_s)

    return grow


def _check_time(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise Failure("timeout", "no complete answer in time")


def _named(error: OSError, deadline: float) -> Failure:
    """The Failure for an exception of a socket."""
    if time.monotonic() >= deadline or isinstance(error, TimeoutError):
        return Failure("timeout", "no complete answer in time")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failure("tls", f"certificate refused: {error.verify_message}")
    if isinstance(error, ssl.SSLEOFError):
        return Failure("tcp", "the connection was closed")
    if isinstance(error, ssl.SSLError):
        return Failure("tls", f"TLS failed: {error.reason or error}")
    return Failure("tcp", f"the connection broke: {error.strerror or error}")


def _two_of_each_family(addresses: list[str]) -> list[str]:
    """The addresses to try, in the system's order: a machine without IPv6 must reach the IPv4 ones."""
    six = [address for address in addresses if ":" in address][:2]
    four = [address for address in addresses if ":" not in address][:2]
    return [address for address in addresses if address in six or address in four]
