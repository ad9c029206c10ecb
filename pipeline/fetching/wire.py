"""HTTP/1.1 over a checked, pinned connection: one request, one bounded response.

Built on http.client, with what it lacks on a hostile network: a watchdog that closes the socket when the time is up,
whatever phase it is in (a time limit of the socket's own starts anew with every byte that drips in); a bound on the
header as a whole; and a body that is bounded, complete and undone of its Content-Encoding.
"""

from __future__ import annotations

import contextlib
import heapq
import http.client
import itertools
import os
import socket
import ssl
import threading
import time
import zlib
from email.message import Message
from typing import Any

from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.targets import Target

LARGEST_HEAD = 64 << 10
CHUNK = 64 << 10
DRAINED = 64 << 10  # a body we do not want is read up to here to keep the connection; beyond, the connection is closed


class Watchdog:
    """Shuts sockets down at their deadlines, from a thread of its own."""

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
    """Ends both directions, so that a blocked read returns. Not SSLSocket's own method: it drops the TLS state that
    the reading thread is using."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass


WATCHDOG = Watchdog()


def forget_threads() -> None:
    """A forked child has none of its parent's threads: it starts with a watchdog of its own."""
    global WATCHDOG
    WATCHDOG = Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_threads)


def tls_context(ca_file: str) -> ssl.SSLContext:
    """The one TLS context of a client: building it costs 40 ms of CPU, which must not be paid for every image."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if not context.cert_store_stats()["x509_ca"] and not ca_file:
        try:
            import certifi  # a bare container: no certificates of the system's
        except ImportError:
            return context
        context.load_verify_locations(certifi.where())
    return context


class _BoundedHead:
    """Stands before the socket's file while the header is read, and counts."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = LARGEST_HEAD

    def readline(self, limit: int = -1) -> bytes:
        line = self._file.readline(limit if 0 <= limit <= self._left else self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise Failure("bad_http", "the header of the answer is too large")
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Response(http.client.HTTPResponse):
    def begin(self) -> None:
        plain = self.fp
        self.fp = _BoundedHead(plain)  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = plain


class Answer:
    """Status, headers and the whole body of a response."""

    def __init__(self, status: int, headers: Message, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def all(self, name: str) -> list[str]:
        """All values of a header."""
        return [str(value) for value in self.headers.get_all(name) or []]


class Connection:
    """A kept-alive connection to one (scheme, host, port), at an address that was checked."""

    def __init__(
        self, target: Target, addresses: list[str], options: FetchOptions, context: ssl.SSLContext, deadline: float
    ):
        """Connects to the first address that answers.

        Raises:
            Failure: tcp, tls or timeout.
        """
        self._options = options
        self._deadline = deadline
        self._http = http.client.HTTPConnection(target.host, target.port)
        self._http.response_class = _Response
        sock = self._connect(addresses, target.port)
        if target.scheme == "https":
            sock = self._secure(sock, target.host, context)
        self._http.sock = sock

    def close(self) -> None:
        """Closes the socket."""
        self._http.close()

    @property
    def is_open(self) -> bool:
        """True if another request may be sent."""
        return self._http.sock is not None

    def get(self, target: Target, headers: dict[str, str], *, limit: int, deadline: float, cut: bool = False) -> Answer:
        """Sends a GET and reads the response; only the body of a 200 is kept.

        Args:
            target: of this connection's origin.
            headers: sent beside Host.
            limit: bytes of the body. cut: a longer one is cut there, not refused.
            deadline: on time.monotonic(), for all of it.

        Raises:
            Failure: too_large, bad_http, tcp.
            OSError, ValueError, http.client.HTTPException: for `failure` to name.
        """
        self._deadline = deadline
        sock = self._http.sock
        assert sock is not None
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        entry = WATCHDOG.watch(sock, deadline)
        try:
            self._http.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
            self._http.putheader("Host", target.host_header)
            for name, value in headers.items():
                self._http.putheader(name, value)
            self._http.endheaders()
            with contextlib.closing(self._http.getresponse()) as response:
                answer = self._read(response, limit, cut)
            if answer.status == 200 and time.monotonic() >= deadline:
                raise TimeoutError  # the watchdog's cut looks like the end of a body without a length
            return answer
        except Failure as failure:
            self.close()
            if failure.status in ("tcp", "bad_http") and time.monotonic() >= deadline:
                raise TimeoutError from failure
            raise
        except BaseException:
            self.close()
            raise
        finally:
            WATCHDOG.release(entry)

    def _read(self, response: http.client.HTTPResponse, limit: int, cut: bool) -> Answer:
        headers = response.headers
        if response.status != 200:
            self._drain(response)
            return Answer(response.status, headers, b"")
        declared = _declared_length(response)
        if declared is not None and declared > limit and not cut:
            raise Failure("too_large", f"the body has {declared} bytes", http_status=200)
        body = self._body(response, limit)
        if len(body) > limit:
            if not cut:
                raise Failure("too_large", f"the body has more than {limit} bytes", http_status=200)
            self.close()
        elif declared is not None and len(body) != declared:
            raise Failure("tcp", "the body ended early")
        return Answer(200, headers, undone(body, headers.get_all("Content-Encoding") or [], limit, cut))

    def _body(self, response: http.client.HTTPResponse, limit: int) -> bytes:
        """The body, or a little more than `limit` of it."""
        parts, size = [], 0
        while size <= limit and (part := response.read(min(CHUNK, limit + 1 - size))):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _drain(self, response: http.client.HTTPResponse) -> None:
        """Reads a short body nobody wants, so that the connection can be kept; closes it before a long one."""
        size = 0
        try:
            while size <= DRAINED and (part := response.read(CHUNK)):
                size += len(part)
        except (OSError, ValueError, http.client.HTTPException):
            self.close()  # the status is known, and all that is wanted
        if not response.isclosed():
            self.close()

    def _connect(self, addresses: list[str], port: int) -> socket.socket:
        problem: OSError | None = None
        for address in _two_of_each_family(addresses):
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(min(self._options.connect_s, left))
                sock.connect((address, port))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except OSError as error:
                sock.close()
                problem = error
        if problem is None or isinstance(problem, TimeoutError):
            raise Failure("timeout", "no connection in time")
        raise Failure("tcp", f"no connection: {problem.strerror or problem}")

    def _secure(self, sock: socket.socket, host: str, context: ssl.SSLContext) -> socket.socket:
        entry: list[Any] = []
        secure = None
        try:
            secure = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            secure.settimeout(max(0.001, self._deadline - time.monotonic()))
            entry = WATCHDOG.watch(secure, self._deadline)
            secure.do_handshake()
            return secure
        except OSError as error:
            (secure or sock).close()
            raise self.failure(error) from error
        except ValueError as error:  # a host name that cannot stand in a certificate
            sock.close()
            raise Failure("tls", f"TLS failed: {error}") from error
        finally:
            WATCHDOG.release(entry)

    def failure(self, error: Exception) -> Failure:
        """The class of an exception that came from the socket or from http.client."""
        if time.monotonic() >= self._deadline or isinstance(error, TimeoutError):
            return Failure("timeout", "no complete answer in time")
        if isinstance(error, ssl.SSLCertVerificationError):
            return Failure("tls", f"certificate refused: {error.verify_message}")
        if isinstance(error, ssl.SSLEOFError):
            return Failure("tcp", "the connection was closed")
        if isinstance(error, ssl.SSLError):
            return Failure("tls", f"TLS failed: {error.reason or error}")
        if isinstance(error, http.client.IncompleteRead):
            return Failure("tcp", "the body ended early")
        if isinstance(error, OSError):
            return Failure("tcp", f"the connection broke: {error.strerror or error}")
        return Failure("bad_http", f"not an HTTP answer: {type(error).__name__} {error}")


def _declared_length(response: http.client.HTTPResponse) -> int | None:
    values = {value.strip() for value in response.headers.get_all("Content-Length") or []}
    if response.chunked or not values:
        return None
    if len(values) > 1 or not all(value.isascii() and value.isdigit() for value in values):
        raise Failure("bad_http", "the lengths of the answer contradict each other")
    return int(values.pop()[:20])


def _two_of_each_family(addresses: list[str]) -> list[str]:
    """The addresses to try, in the system's order: a machine without IPv6 must reach the IPv4 ones."""
    six = [address for address in addresses if ":" in address][:2]
    four = [address for address in addresses if ":" not in address][:2]
    return [address for address in addresses if address in six or address in four]


def undone(body: bytes, encodings: list[str], limit: int, cut: bool = False) -> bytes:
    """The body without its Content-Encoding, no longer than `limit`; with `cut`, what there is of it.

    Raises:
        Failure: too_large; tcp where it is cut short; bad_http where it is damaged or of a kind that was not asked for.
    """
    names = [name.strip().lower() for value in encodings for name in value.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return body[:limit]
    if len(names) > 1 or names[0] not in ("gzip", "x-gzip", "deflate"):
        raise Failure("bad_http", f"unknown Content-Encoding: {', '.join(names)}")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip and zlib headers are told apart by themselves
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise Failure("bad_http", f"the compressed body is damaged: {error}") from error
    if cut:
        return plain[:limit]
    if len(plain) > limit:
        raise Failure("too_large", f"the body has more than {limit} bytes when decompressed", http_status=200)
    if not inflate.eof:
        raise Failure("tcp", "the compressed body ended early")
    return plain
