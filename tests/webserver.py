"""A loopback web server that behaves well or badly, as the path says. It counts what a polite client must limit.

Good: /img/NAME, /chunked/NAME, /gzip/NAME, /close/NAME (no length, connection closed), /redirect/N/NAME, /to?URL.
Bad: /status/CODE, /slow/SECONDS, /drip, /drip-head, /silent, /endless, /endless-chunked, /declared/BYTES, /gzip-bomb,
/cut/NAME, /cut-chunked/NAME, /reset, /garbage, /head-bomb, /two-lengths/NAME, /bad-length/NAME, /no-location, /loop.
In between: /flaky/CODE/NAME (fails once), /later/SECONDS/NAME (429 with Retry-After, once), /tag/RULE/NAME
(X-Robots-Tag), /tdm/NAME, /html, /empty, /private/NAME (robots.txt forbids it).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET
from urllib.parse import unquote

from PIL import Image

ROBOTS = "User-agent: *\nDisallow: /private/\n"
DRIP_S = 0.2  # between two bytes


def picture(seed: int = 0, size: tuple[int, int] = (320, 240), format: str = "JPEG", **options: object) -> bytes:
    """A picture with structure (the hash of noise has no meaning). Each seed gives another one."""
    image = Image.radial_gradient("L").resize(size).rotate(seed * 37 % 360)
    other = Image.linear_gradient("L").resize(size).rotate(seed * 101 % 360)
    out = io.BytesIO()
    Image.merge("RGB", (image, other, Image.new("L", size, seed * 53 % 256))).save(out, format, **options)
    return out.getvalue()


class WebServer(ThreadingHTTPServer):
    """Serves `images` by name on an address of the loopback device."""

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(
        self,
        images: dict[str, bytes] | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        robots: str | int | None = ROBOTS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(address, _Handler)
        self.images = images if images is not None else {f"{n}.jpg": picture(n) for n in range(8)}
        self.robots = robots  # the text of robots.txt, or a status to send instead
        self.files: dict[str, bytes] = {}  # others, by path
        self.link = ""  # a Link header of the images under /img
        self.hits: Counter[str] = Counter()
        self.requests: list[tuple[float, str, dict[str, str]]] = []
        self.connections = 0
        self.away_after: int | None = None  # after so many connections the server is away, for `away_s` seconds
        self.away_s = 0.0
        self.back_at = 0.0
        self.busy = 0
        self.most_busy = 0
        self.lock = threading.Lock()
        self.scheme = "http" if tls is None else "https"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def base(self) -> str:
        """The server's own URL, without a path."""
        return f"{self.scheme}://{self.server_address[0]!s}:{self.server_port}"

    def verify_request(self, request, client_address):  # type: ignore[no-untyped-def]
        """False while the server is away: the connection is closed without an answer."""
        if self.away_after is not None and self.connections >= self.away_after:
            self.away_after, self.back_at = None, time.monotonic() + self.away_s
        return time.monotonic() >= self.back_at

    def process_request(self, request, client_address):  # type: ignore[no-untyped-def]
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request, client_address):  # type: ignore[no-untyped-def]
        """Ignores clients that leave early, because the tests are about them."""

    def __enter__(self) -> WebServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: WebServer

    def log_message(self, *_: object) -> None:
        """Logs nothing."""

    def do_GET(self) -> None:
        server = self.server
        path = unquote(self.path)
        with server.lock:
            server.hits[path] += 1
            server.requests.append((time.monotonic(), path, dict(self.headers.items())))
            self.counted = path not in ("/robots.txt", "/.well-known/tdmrep.json")
            server.busy += self.counted
            server.most_busy = max(server.most_busy, server.busy)
        try:
            name, *rest = path.lstrip("/").split("/")
            if path == "/robots.txt":
                self.robots()
            elif path in server.files:
                self.send(server.files[path])
            else:
                getattr(self, "on_" + name.partition("?")[0].replace("-", "_"), self.on_nothing)(*rest)
        finally:
            self.answered()

    def answered(self) -> None:
        """Notes that the client no longer waits. This must come before the body is sent.

        A client with the body may send its next request at once.
        """
        with self.server.lock:
            self.server.busy -= self.counted
            self.counted = False

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.answered()
        self.end_headers()
        self.wfile.write(body)

    def raw(self, *parts: bytes) -> None:
        self.close_connection = True
        for number, part in enumerate(parts, 1):
            if number == len(parts):
                self.answered()
            self.wfile.write(part)
            self.wfile.flush()

    def image(self, name: str) -> bytes:
        return self.server.images[name]

    def first_time(self) -> bool:
        return self.server.hits[unquote(self.path)] == 1

    def robots(self) -> None:
        rules = self.server.robots
        if isinstance(rules, int):
            self.send(b"no", rules)
        elif rules is None:
            self.send(b"none", 404)
        else:
            self.send(rules.encode())

    def on_nothing(self, *_: str) -> None:
        self.send(b"nothing here", 404)

    def on_img(self, name: str) -> None:
        if name in self.server.images:
            more = {"Link": self.server.link} if self.server.link else {}
            self.send(self.image(name), Content_Type="image/jpeg", **more)
        else:
            self.on_nothing()

    on_private = on_img

    def on_chunked(self, name: str, cut: bool = False) -> None:
        body = self.image(name)
        half = len(body) // 2
        chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:])]
        end = () if cut else (b"0\r\n\r\n",)
        self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *chunks[: 1 if cut else 2], *end)

    def on_cut_chunked(self, name: str) -> None:
        self.on_chunked(name, cut=True)

    def on_gzip(self, name: str) -> None:
        self.send(gzip.compress(self.image(name)), Content_Encoding="gzip")

    def on_close(self, name: str) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", self.image(name))

    def on_redirect(self, count: str, name: str) -> None:
        left = int(count) - 1
        self.send(b"", 302, Location=f"/redirect/{left}/{name}" if left > 0 else f"/img/{name}")

    def on_to(self, *_: str) -> None:
        self.send(b"", 302, Location=unquote(self.path).partition("?")[2])

    def on_status(self, code: str) -> None:
        self.send(b"answer", int(code.partition("?")[0]))

    def on_slow(self, seconds: str, name: str = "0.jpg") -> None:
        time.sleep(float(seconds))
        self.on_img(name)

    def on_drip(self) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            self.raw(b"x")
            time.sleep(DRIP_S)

    def on_drip_head(self) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            self.raw(b"x")
            time.sleep(DRIP_S)

    def on_silent(self) -> None:
        self.close_connection = True
        time.sleep(60)

    def on_endless(self) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            self.raw(bytes(1 << 16))

    def on_endless_chunked(self) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            self.raw(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    def on_declared(self, size: str) -> None:
        self.raw(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode(), b"x")

    def on_gzip_bomb(self) -> None:
        packer = zlib.compressobj(9, wbits=31)
        packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
        self.send(packed, Content_Encoding="gzip")

    def on_cut(self, name: str) -> None:
        body = self.image(name)
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body[: len(body) // 2])

    def on_reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def on_garbage(self) -> None:
        self.raw(b"\x00\xff this is not HTTP\r\n\r\n" * 4)

    def on_head_bomb(self) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\n")
        for number in range(90):
            self.raw(b"X-%d: " % number + b"x" * 60_000 + b"\r\n")
        self.raw(b"\r\n")

    def on_two_lengths(self, name: str) -> None:
        body = self.image(name)
        lengths = b"Content-Length: %d\r\nContent-Length: 10\r\n" % len(body)
        self.raw(b"HTTP/1.1 200 OK\r\n", lengths, b"\r\n", body)

    def on_bad_length(self, name: str) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", self.image(name))

    def on_no_location(self) -> None:
        self.send(b"", 302)

    def on_loop(self) -> None:
        self.send(b"", 301, Location="/loop")

    def on_flaky(self, code: str, name: str) -> None:
        if self.first_time():
            self.send(b"not now", int(code))
        else:
            self.on_img(name)

    def on_later(self, seconds: str, name: str) -> None:
        if self.first_time():
            self.send(b"later", 429, Retry_After=seconds)
        else:
            self.on_img(name)

    def on_tag(self, rule: str, name: str) -> None:
        self.send(self.image(name), X_Robots_Tag=rule)

    def on_says(self, header: str, value: str, name: str) -> None:
        self.send(self.image(name), **{header: value})

    def on_tdm(self, name: str) -> None:
        self.send(self.image(name), TDM_Reservation="1")

    def on_html(self) -> None:
        self.send(b"<html><body>not found, but 200</body></html>", Content_Type="text/html")

    def on_empty(self) -> None:
        self.send(b"")


def certificate(folder: str, names: tuple[str, ...]) -> tuple[ssl.SSLContext, str] | None:
    """A server context with a certificate for the names and addresses, and the path of what a client must trust.

    None where no certificate can be made.
    """
    with contextlib.suppress(ImportError):
        return _make_certificate(folder, names)
    return None


def _make_certificate(folder: str, names: tuple[str, ...]) -> tuple[ssl.SSLContext, str]:
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "OpenWIT test")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(one)) if one[0].isdigit() else x509.DNSName(one) for one in names
    ]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = f"{folder}/certificate.pem"
    with open(path, "wb") as file:
        file.write(made.public_bytes(serialization.Encoding.PEM))
    with open(f"{folder}/key.pem", "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, f"{folder}/key.pem")
    return context, path
