"""A Common Crawl on 127.0.0.1 that misbehaves as a seed says: throttled, cut, slow, wrong, changed, away."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CDN_PAGE = b"<HTML><H1>403 ERROR</H1><H2>The request could not be satisfied.</H2>Request blocked.</HTML>"
DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
FAULTS = ("cdn_403", "slow_503", "busy_429", "cut", "drip", "wrong_range", "new_etag", "whole", "reset", "silent")
MOST_IN_A_ROW = 5  # so many faults of one file follow each other at most


class Crawl(ThreadingHTTPServer):
    """Serves `files`. Every request of a file misbehaves by the seed; with seed None none does.

    Attributes:
        asked: requests by path.
        times: of all requests, in seconds of the monotonic clock.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], seed: int | None = None, faults: tuple[str, ...] = FAULTS) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.seed, self.faults = files, seed, faults
        self.asked: Counter[str] = Counter()
        self.times: list[float] = []
        self.in_a_row: Counter[str] = Counter()
        self.version: Counter[str] = Counter()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def fault(self, path: str) -> str:
        """What happens to the next request of a file; "": nothing."""
        self.asked[path] += 1
        self.times.append(time.monotonic())
        if self.seed is None or self.in_a_row[path] >= MOST_IN_A_ROW:
            self.in_a_row[path] = 0
            return ""
        drawn = hashlib.sha256(f"{self.seed} {path} {self.asked[path]}".encode()).digest()
        if drawn[0] < 80:
            self.in_a_row[path] = 0
            return ""
        self.in_a_row[path] += 1
        return self.faults[drawn[1] % len(self.faults)]

    def handle_error(self, request, client_address):  # type: ignore[no-untyped-def]
        """Ignores clients that close the connection early."""


class _Handler(BaseHTTPRequestHandler):
    server: Crawl

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        if path not in self.server.files:
            return self._say(403, DENIED, Server="AmazonS3")
        fault = self.server.fault(path)
        getattr(self, f"_{fault}", self._serve)(path)

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _tag(self, path: str) -> str:
        return f'"{hashlib.md5(self.server.files[path]).hexdigest()}-{self.server.version[path]}"'

    def _serve(self, path: str, *, share: float = 1.0, piece: int = 1 << 16, pause: float = 0.0) -> None:
        """The range that was asked for, or the whole file if its version is another one."""
        body, tag = self.server.files[path], self._tag(path)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.headers.get("If-Range", tag) != tag:
            asked = None
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]), len(body) - 1) if asked and asked[2] else len(body) - 1
        if asked and first >= len(body):
            return self._say(416, b"", Content_Range=f"bytes */{len(body)}")
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        part = body[first : first + int((last + 1 - first) * share)]
        for start in range(0, len(part), piece):
            self.wfile.write(part[start : start + piece])
            time.sleep(pause)
        return None

    def _cdn_403(self, path: str) -> None:
        self._say(403, CDN_PAGE, Server="CloudFront", X_Cache="Error from cloudfront")

    def _slow_503(self, path: str) -> None:
        self._say(503, b"<Error><Code>SlowDown</Code></Error>")

    def _busy_429(self, path: str) -> None:
        self._say(429, b"", Retry_After="0")

    def _cut(self, path: str) -> None:
        self._serve(path, share=0.43)

    def _drip(self, path: str) -> None:
        self._serve(path, piece=1 + len(self.server.files[path]) // 20, pause=0.001)

    def _wrong_range(self, path: str) -> None:
        body = self.server.files[path]
        self._say(206, body[7:], Content_Range=f"bytes 7-{len(body) - 1}/{len(body)}", ETag=self._tag(path))

    def _new_etag(self, path: str) -> None:
        self.server.version[path] += 1
        self._serve(path)

    def _whole(self, path: str) -> None:
        self._say(200, self.server.files[path], ETag=self._tag(path))

    def _reset(self, path: str) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _silent(self, path: str) -> None:
        self.close_connection = True


@contextlib.contextmanager
def crawl(files: dict[str, bytes], seed: int | None = None, faults: tuple[str, ...] = FAULTS) -> Iterator[Crawl]:
    """A running simulator."""
    server = Crawl(files, seed, faults)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
