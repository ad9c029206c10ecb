"""The server of the explorer: the page, its files, answers as JSON, and pictures out of the tars. It writes nothing.

What it defends against: another website that sends the user's browser here (the Host header, Sec-Fetch-Site, a policy
that loads nothing from elsewhere, no CORS), values of the set that are markup (only JSON leaves, and the page writes it
as text), files that are not pictures (only four types leave, by their first bytes), and paths (no path of a request
ever becomes a path of the disk).
"""

from __future__ import annotations

import http.server
import importlib.resources
import ipaddress
import re
import socket
import sys
import threading
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import orjson

from pipeline import __version__
from pipeline.dataset.errors import Damaged, NotFound
from pipeline.explorer.answers import LARGEST_PICTURE, Explorer, Request
from pipeline.explorer.watch import Building, Watched
from pipeline.explorer.words import BadSearch

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
    "/icon.png": ("icon.png", "image/png"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
PAIR = re.compile(r"/api/pair/([^/]{1,400})")
PICTURE = re.compile(r"/picture/([0-9a-f]{16})/([0-9]{1,10})")
AT = re.compile(r"[0-9]{1,10}")
IDLE_S = 30.0  # that a connection may stand still
MOST_PARAMETERS = 200
FOR_EVER = "private, max-age=31536000, immutable"
SEARCHES = threading.BoundedSemaphore(4)  # at once: each takes a few bytes for each pair of the set


class Server(http.server.ThreadingHTTPServer):
    """Serves a set until `shutdown`.

    Attributes:
        watched: the set.
        hosts: names that the Host header may have, besides addresses.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, watched: Watched, host: str, port: int) -> None:
        self.watched, self.hosts = watched, {"localhost", host.lower(), socket.gethostname().lower()}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """The address of the page."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def knows(self, header: str) -> bool:
        """True for a Host header that names this server: an address, localhost, or the name that --host gave.

        A website that lets its own name point at this machine (DNS rebinding) sends that name.
        """
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+)(?::[0-9]{1,5})?", header)
        if found is None:
            return False
        name = found[1].strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no fault of the server."""
        if not isinstance(sys.exception(), (OSError, TimeoutError)):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server_version = f"openwit/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        """The page, its files, answers and pictures."""
        self._guarded(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """The hash of a picture of the user. Nothing is kept."""
        self._guarded(self._post)

    def _guarded(self, answer: Callable[[], None]) -> None:
        """Answers a request of this page, and refuses those that another website made the browser send."""
        try:
            if not self.server.knows(self.headers.get("Host", "")):
                return self._fail(HTTPStatus.MISDIRECTED_REQUEST, "this server does not have that name")
            if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
                top = self.headers.get("Sec-Fetch-Mode") == "navigate" and self.path.split("?")[0] == "/"
                if not top:
                    return self._fail(HTTPStatus.FORBIDDEN, "another website must not ask this server")
            answer()
        except BadSearch as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
        except Building as error:
            self._json({"building": {"done": error.done, "rows": error.rows}}, HTTPStatus.SERVICE_UNAVAILABLE)
        except NotFound as error:
            self._fail(HTTPStatus.NOT_FOUND, str(error))
        except Damaged as error:
            self._fail(HTTPStatus.BAD_GATEWAY, str(error))

    def _get(self) -> None:
        path, _, query = self.path.partition("?")
        if path in FILES:
            name, kind = FILES[path]
            return self._send(_static(name), kind, "no-cache")
        explorer = self.server.watched.get()
        if found := PICTURE.fullmatch(path):
            return self._picture(explorer, *found.groups())
        if found := PAIR.fullmatch(path):
            at = "".join(_parameters(query).get("at", [])[-1:])
            return self._json(explorer.pair(urllib.parse.unquote(found[1]), int(at) if AT.fullmatch(at) else None))
        if path == "/api/set":
            return self._json(explorer.about())
        if path in ("/api/search", "/api/suggest"):
            given = _parameters(query)
            with SEARCHES:
                if path == "/api/search":
                    return self._json(explorer.search(Request.of(given)))
                field, text = ("".join(given.get(name, [])[-1:]) for name in ("field", "text"))
                return self._json(explorer.suggest(field, text, Request.of(given)))
        self._fail(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def _picture(self, explorer: Explorer, digest: str, row: str) -> None:
        if not explorer.index.facts["digest"].startswith(digest):
            raise NotFound("the set has changed")
        data, kind = explorer.picture(int(row))
        self._send(data, kind, FOR_EVER)

    def _post(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/api/hash" or self.headers.get("Content-Type") != "application/octet-stream":
            self.close_connection = True
            return self._fail(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        if not re.fullmatch(r"[0-9]{1,9}", length) or int(length) > LARGEST_PICTURE:
            self.close_connection = True
            return self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a picture has at most {LARGEST_PICTURE >> 20} MiB")
        body = self.rfile.read(int(length))
        with SEARCHES:
            self._json({"phash": self.server.watched.get().hash_of(body)})

    def _fail(self, status: HTTPStatus, message: str) -> None:
        if self.command == "POST":
            self.close_connection = True  # its body may be unread
        self._json({"error": message}, status)

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(orjson.dumps(value), "application/json", "no-store", status)

    def _send(self, data: bytes, kind: str, cache: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", cache)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers a request that is no HTTP, or has another method. It repeats nothing of the request."""
        self.close_connection = True
        self.command = self.command or "GET"
        self._json({"error": HTTPStatus(code).phrase}, HTTPStatus(code))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they hold what the user looks for."""


def _parameters(query: str) -> dict[str, list[str]]:
    try:
        return urllib.parse.parse_qs(query, max_num_fields=MOST_PARAMETERS, errors="replace")
    except ValueError:
        raise BadSearch(f"the address has more than {MOST_PARAMETERS} parameters") from None


def _static(name: str) -> bytes:
    """A file of the page."""
    return importlib.resources.files("pipeline.explorer").joinpath("static", name).read_bytes()
