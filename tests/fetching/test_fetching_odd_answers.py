"""Servers that send too much, too little, too early or too late: no image of another URL is stored, and none is lost.

A script is what a server sends for a request, whatever it sent before. WAIT stands for the delay before the odd bytes.
Each script is played at four delays and two pauses between the requests of a client. All images differ.
"""

from __future__ import annotations

import io
import itertools
import re
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.fetching import answer
from pipeline.fetching.answer import read_answer
from pipeline.fetching.client import Client
from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.text.rights import PROTOCOLS

WAIT, CLOSE = object(), object()
DELAYS_MS = (0, 1, 50, 150)
PAUSES_S = (0.0, 0.5)
REQUESTS = 4
AT_ONCE = 64


def image(number: int) -> bytes:
    return b"the image of %d, and of no other URL" % number


def said(status: str, body: bytes = b"", *headers: str, length: int | None = None, version: str = "1.1") -> bytes:
    lines = [f"HTTP/{version} {status}", *headers]
    if length is None or length >= 0:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def good(number: int, *headers: str, **options: Any) -> bytes:
    return said("200 OK", image(number), *headers, **options)


def bare(status: str, *headers: str) -> bytes:
    return said(status, b"", *headers, length=-1)


def chunked(*parts: bytes, head: str = "Transfer-Encoding: chunked") -> bytes:
    return bare("200 OK", head) + b"".join(parts)


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


TWO_FRAMES = "Content-Length: 3\r\nTransfer-Encoding: chunked"
LAST = b"0\r\n\r\n"
EARLY_HINTS = bare("103 Early Hints", "Link: </style.css>; rel=preload")
IMAGE = "image"  # the right image
CUT = "cut"  # a part of the right image, as its length shows


def scripts(n: int) -> dict[str, tuple[str, list[Any]]]:
    """For each script: what a client must make of the answer to request `n`, and what the server sends."""
    mine, other, before = good(n), good(n + 1), good(n - 1)
    middle = len(mine) // 2
    body = image(n)
    hop = f"Location: /good/0/{n}.jpg"
    return {
        # interim answers
        "100": (IMAGE, [bare("100 Continue"), WAIT, mine]),
        "102": (IMAGE, [bare("102 Processing"), WAIT, mine]),
        "103": (IMAGE, [EARLY_HINTS, WAIT, mine]),
        "199": (IMAGE, [bare("199 Anything"), WAIT, mine]),
        "110 without a reason": (IMAGE, [bare("110"), WAIT, mine]),
        "103 twice": (IMAGE, [EARLY_HINTS, WAIT, EARLY_HINTS, WAIT, mine]),
        "103 in one segment with the answer": (IMAGE, [WAIT, EARLY_HINTS + mine]),
        "103 after a delay": (IMAGE, [WAIT, EARLY_HINTS, mine]),
        "103 in halves": (IMAGE, [EARLY_HINTS[:9], WAIT, EARLY_HINTS[9:] + mine]),
        "103 and half a head": (IMAGE, [EARLY_HINTS + mine[:20], WAIT, mine[20:]]),
        "100, 102, 103": (IMAGE, [bare("100 a"), WAIT, bare("102 b"), EARLY_HINTS, WAIT, mine]),
        "102 thirty times": (IMAGE, [bare("102 Processing") * 30, WAIT, mine]),
        "103 with a length": (IMAGE, [bare("103 a", "Content-Length: 500"), WAIT, mine]),
        "103 before a 404": ("http_4xx", [EARLY_HINTS, WAIT, said("404 Gone", b"gone")]),
        "103 and the end": ("tcp", [EARLY_HINTS, WAIT, CLOSE]),
        "103 after the answer": (IMAGE, [mine, WAIT, EARLY_HINTS]),
        "100 after the answer": (IMAGE, [mine, WAIT, bare("100 Continue")]),
        "101": ("bad_http", [bare("101 Switching Protocols", "Upgrade: x"), WAIT, mine]),
        "102 a thousand times": ("bad_http", [bare("102 Processing") * 1000, WAIT, mine]),
        "a large 103": ("bad_http", [bare("103 a", "X: " + "x" * 70_000), WAIT, mine]),
        # more than was asked for
        "doubled at once": (IMAGE, [mine + mine]),
        "doubled": (IMAGE, [mine, WAIT, mine]),
        "doubled after a delay": (IMAGE, [WAIT, mine, mine]),
        "three times": (IMAGE, [mine, WAIT, mine, WAIT, mine]),
        "doubled, then closed": (IMAGE, [mine, WAIT, mine, CLOSE]),
        "doubled by half": (IMAGE, [mine, WAIT, mine[:middle]]),
        "doubled by half, then closed": (IMAGE, [mine, WAIT, mine[:middle], CLOSE]),
        "the next image, unasked": (IMAGE, [mine, WAIT, other]),
        "the next image, in one segment": (IMAGE, [mine + other]),
        "the next image, half at once": (IMAGE, [mine + other[:middle], WAIT, other[middle:]]),
        "the image before, unasked": (IMAGE, [mine, WAIT, before]),
        "two images, unasked": (IMAGE, [mine, WAIT, before + other]),
        "doubled in chunks": (IMAGE, [mine, WAIT, chunked(chunk(body), LAST)]),
        "doubled over HTTP/1.0": (IMAGE, [good(n, "Connection: keep-alive", version="1.0"), WAIT, mine]),
        "an empty answer, unasked": (IMAGE, [mine, WAIT, said("200 OK")]),
        "a redirect, unasked": (IMAGE, [mine, WAIT, said("302 Found", b"", f"Location: /good/0/{n + 1}.jpg")]),
        "304, unasked": (IMAGE, [mine, WAIT, bare("304 Not Modified")]),
        "400 before a close": (IMAGE, [mine, WAIT, said("400 Bad Request", b"", "Connection: close"), CLOSE]),
        "408 before a close": (IMAGE, [mine, WAIT, said("408 Request Timeout", b"", "Connection: close"), CLOSE]),
        "408 without a close": (IMAGE, [mine, WAIT, said("408 Request Timeout", b"late")]),
        "404, unasked": (IMAGE, [mine, WAIT, said("404 Not Found", b"gone")]),
        "429, unasked": (IMAGE, [mine, WAIT, said("429 Slow", b"", "Retry-After: 1")]),
        "500, unasked": (IMAGE, [mine, WAIT, said("500 Error", b"oh")]),
        "503, unasked": (IMAGE, [mine, WAIT, said("503 Busy", b"", "Retry-After: 3600"), CLOSE]),
        "an empty line": (IMAGE, [mine, WAIT, b"\r\n"]),
        "a zero byte": (IMAGE, [mine, WAIT, b"\0"]),
        "a word": (IMAGE, [mine, WAIT, b"junk\r\n\r\n"]),
        "much junk": (IMAGE, [mine, WAIT, b"junk" * 30_000]),
        "a close without a word": (IMAGE, [mine, WAIT, CLOSE]),
        # lengths
        "shorter than its body": (CUT, [good(n, length=len(body) - 6)]),
        "shorter, the rest late": (CUT, [good(n, length=len(body) - 6)[:-6], WAIT, body[-6:]]),
        "shorter, the rest an answer": (CUT, [good(n, length=len(body) - 6), WAIT, other]),
        "longer than its body": ("tcp", [good(n, length=500), WAIT, CLOSE]),
        "length and no body": ("tcp", [good(n)[: -len(body)], WAIT, CLOSE]),
        "two lengths": ("bad_http", [good(n, "Content-Length: 3"), WAIT, other]),
        "two equal lengths": (IMAGE, [good(n, f"Content-Length: {len(body)}"), WAIT, other]),
        "a list of equal lengths": (IMAGE, [good(n, f"Content-Length: {len(body)}, {len(body)}", length=-1)]),
        "length of -5": ("bad_http", [good(n, "Content-Length: -5", length=-1), WAIT, other]),
        "length of 0x10": ("bad_http", [good(n, "Content-Length: 0x10", length=-1), WAIT, other]),
        "length of 0": ("empty", [good(n, length=0), WAIT, other]),
        "no length": (IMAGE, [good(n, length=-1), WAIT, CLOSE]),
        "no length over HTTP/1.0": (IMAGE, [good(n, length=-1, version="1.0"), WAIT, CLOSE]),
        "reset in the body": ("tcp", [mine[:-5], WAIT, CLOSE]),
        "reset in the head": ("tcp", [mine[:20], WAIT, CLOSE]),
        # a body that is not allowed, or not wanted
        "304 with a body": ("http_other", [bare("304 Not Modified") + body]),
        "304 with a late body": ("http_other", [bare("304 Not Modified", "Content-Length: 9"), WAIT, body]),
        "304 with an answer": ("http_other", [bare("304 Not Modified"), WAIT, other]),
        "204 with a body": ("http_other", [bare("204 No Content"), WAIT, body]),
        "204 with an answer": ("http_other", [said("204 No Content", mine), WAIT, other]),
        "205 with an answer": ("http_other", [bare("205 Reset"), WAIT, other]),
        "404 shorter than its body": ("http_4xx", [said("404 Gone", b"gone", length=1), WAIT, other]),
        "404 without a length": ("http_4xx", [bare("404 Gone"), WAIT, other]),
        "500 doubled": ("http_5xx", [said("500 Error", b"oh"), WAIT, said("500 Error", b"oh")]),
        "redirect with an answer": (IMAGE, [said("302 Found", b"", hop), WAIT, other]),
        "redirect shorter than its body": (IMAGE, [said("301 Moved", other, hop, length=0)]),
        "redirect doubled": (IMAGE, [said("302 Found", b"", hop), WAIT, said("302 Found", b"", hop)]),
        # chunks
        "chunks": (IMAGE, [chunked(chunk(body[:9])), WAIT, chunk(body[9:]) + LAST]),
        "chunks of one byte": (IMAGE, [chunked(*(chunk(body[k : k + 1]) for k in range(len(body))), LAST)]),
        "chunks doubled": (IMAGE, [chunked(chunk(body), LAST), WAIT, chunked(chunk(body), LAST)]),
        "chunks and junk": (IMAGE, [chunked(chunk(body), LAST), WAIT, b"junk\r\n"]),
        "chunks and an answer": (IMAGE, [chunked(chunk(body), LAST) + other]),
        "chunks and trailers": (IMAGE, [chunked(chunk(body), b"0\r\nX: y\r\n"), WAIT, b"\r\n"]),
        "chunks with extensions": (IMAGE, [chunked(chunk(body, b";a=b")), WAIT, LAST]),
        "chunks and a length": (IMAGE, [chunked(chunk(body), LAST, head=TWO_FRAMES), WAIT, other]),
        "no line after the last chunk": (IMAGE, [chunked(chunk(body), b"0\r\n"), WAIT, other]),
        "no last chunk": ("tcp", [chunked(chunk(body)), WAIT, CLOSE]),
        "no last chunk, then an answer": ("bad_http", [chunked(chunk(body)), WAIT, other]),
        "a chunk cut short": ("tcp", [chunked(chunk(body)[:-9]), WAIT, CLOSE]),
        "a chunk longer than its size": ("bad_http", [chunked(b"3\r\n" + body + b"\r\n"), WAIT, LAST]),
        "a chunk of -3": ("bad_http", [chunked(b"-3\r\n" + body + b"\r\n"), WAIT, LAST]),
        "a chunk of endless size": ("tcp", [chunked(b"f" * 15 + b"\r\n" + body), WAIT, CLOSE]),
        "a chunk without a size": ("bad_http", [chunked(b"\r\n" + body), WAIT, LAST]),
        # heads
        "byte by byte": (IMAGE, [mine[k : k + 1] for k in range(len(mine))]),
        "split in the status": (IMAGE, [mine[:4], WAIT, mine[4:]]),
        "split between CR and LF": (IMAGE, [mine[: mine.index(b"\n")], WAIT, mine[mine.index(b"\n") :]]),
        "split before the body": (IMAGE, [mine[: -len(body)], WAIT, body]),
        "split in the body": (IMAGE, [mine[:-7], WAIT, mine[-7:], WAIT, mine]),
        "lines without CR": (IMAGE, [mine.replace(b"\r", b""), WAIT, other]),
        "no reason": (IMAGE, [said("200", body), WAIT, other]),
        "odd header lines": (IMAGE, [good(n, "no colon", ": no name", "X: a", "\tfolded"), WAIT, other]),
        "an empty line before": ("bad_http", [b"\r\n", WAIT, mine]),
        "junk before": ("bad_http", [b"junk\r\n", WAIT, mine]),
        "only a body": ("bad_http", [body + b"\r\n", WAIT, mine]),
    }


NAMES = tuple(scripts(0))
REQUEST = re.compile(rb"GET /([^/]+)/(\d+)/(\d+)\.jpg ")


class Handler(socketserver.StreamRequestHandler):
    """Plays the script that the path names for each request, and keeps the connection."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        try:
            while self.answer():
                pass
        except OSError:
            pass

    def answer(self) -> bool:
        request = REQUEST.match(self.rfile.readline())
        while self.rfile.readline().strip():
            pass
        if request is None:
            return False
        name, delay, number = request[1].decode(), int(request[2]) / 1000, int(request[3])
        steps = [good(number)] if name == "good" else scripts(number)[NAMES[int(name)]][1]
        for step in steps:
            if step is CLOSE:
                return False
            if step is WAIT:
                time.sleep(delay)
            else:
                self.wfile.write(step)
        return True


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.05)
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def play(base: str, name: str, delay_ms: int, pause_s: float) -> list[str]:
    """Fetches REQUESTS images of a script with one client.

    Returns:
        A line for each image with another outcome.
    """
    options = FetchOptions(allow_addresses=("127.0.0.0/8",), retries=0, ignore_rights=PROTOCOLS)
    client = Client(options)
    surprises = []
    for number in range(1, 1 + REQUESTS):
        if number > 1:
            time.sleep(pause_s)
        expected = scripts(number)[name][0]
        bodies = {IMAGE: image(number), CUT: image(number)[:-6], "empty": b""}
        try:
            found = client.fetch(f"{base}/{NAMES.index(name)}/{delay_ms}/{number}.jpg").body
            kind = "" if found == bodies.get(expected) else f"wrong: {found!r}"
        except Failure as failure:
            kind = "" if failure.status == expected else f"lost: {failure.status}, {failure}"
        if kind:
            surprises.append(f"{kind} for {number} of {name!r} at {delay_ms} ms, {pause_s} s")
    return surprises


@pytest.mark.parametrize(("delay_ms", "pause_s"), list(itertools.product(DELAYS_MS, PAUSES_S)))
def test_never_another_image_and_none_lost(base: str, delay_ms: int, pause_s: float) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda name: play(base, name, delay_ms, pause_s), NAMES)
        assert [line for lines in found for line in lines] == []


def read(data: bytes, limit: int = 1 << 20) -> answer.Answer:
    return read_answer(io.BytesIO(data), limit=limit)


@pytest.mark.parametrize("name", ["103", "chunks doubled", "a list of equal lengths", "odd header lines", "no length"])
def test_an_answer_that_ends_anywhere_is_right_or_refused(name: str) -> None:
    data = b"".join(step for step in scripts(1)[name][1] if isinstance(step, bytes))
    for end in range(len(data)):
        try:
            body = read(data[:end]).body
        except Failure as failure:
            assert failure.status == "tcp", (end, failure)
        else:
            assert body == image(1) or (name == "no length" and image(1).startswith(body)), end
    assert read(data).body == image(1)


def test_split_at_every_byte_between_two_segments() -> None:
    whole = EARLY_HINTS + chunked(chunk(image(1)), LAST) + good(2)
    for place in range(1, len(whole)):
        ours, theirs = socket.socketpair()
        with ours, theirs, ours.makefile("rb") as stream:
            theirs.sendall(whole[:place])
            late = threading.Timer(0.0005, theirs.sendall, [whole[place:]])
            late.start()
            assert read_answer(stream, limit=1000).body == image(1)
            late.join()


def test_headers() -> None:
    found = read(b"HTTP/1.1 404 No\r\nX-Robots-Tag: noindex,\r\n \t noai\r\nX-ROBOTS-TAG : none\r\njunk\r\n\r\n")
    assert found.all("X-Robots-Tag") == ["noindex, noai", "none"] and found.body == b""
    assert found.first("x-robots-tag") == "noindex, noai" and found.first("Location") is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (bare("102 a") * (answer.MOST_INTERIM + 1) + good(1), "interim"),
        (bare("103 a", "X: " + "x" * 40_000) * 2 + good(1), "too large"),
        (bare("200 a", *["a"] * 40_000), "too large"),
        (chunked(chunk(b"x") * answer.MOST_CHUNKS, LAST), "chunks"),
        (chunked(chunk(b"x", b";" + b"x" * 5000), LAST), "too long"),
    ],
)
def test_what_is_read_is_bounded(data: bytes, sentence: str) -> None:
    with pytest.raises(Failure, match=sentence) as caught:
        read(data)
    assert caught.value.status == "bad_http"


@pytest.mark.parametrize("line", ["a", "a:b", " fold", ": "])
def test_reading_takes_linear_time(line: str) -> None:
    def seconds(count: int) -> float:
        data = b"HTTP/1.1 200 a\r\nX: y\r\n" + f"{line}\r\n".encode() * count + b"\r\n"
        times = []
        for _ in range(5):
            start = time.process_time()
            read(data)
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(8000) < 12 * seconds(1000) + 0.01
