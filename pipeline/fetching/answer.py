"""One HTTP/1.1 answer, read from a stream: bounded, in linear time, and strict about where it ends.

http.client is not used. It takes any interim answer but 100 for the final answer. It bounds neither the whole header
nor the number of chunks.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pipeline.fetching.errors import Failure

LARGEST_HEAD = 64 << 10  # bytes of the header, with the interim answers before it
MOST_INTERIM = 32  # 102 is sent every few seconds while a server works; 103 comes once or twice
MOST_CHUNKS = 100_000
LONGEST_CHUNK_LINE = 4096  # a size and its extensions
PART = 64 << 10
LARGE = 1 << 20  # bytes of a body above which it gets pages of its own, which the system has back at once

Body = bytes | memoryview
Grow = Callable[[int], None]  # asks for memory, and waits for it

STATUS_LINE = re.compile(r"HTTP/[01]\.\d\s+([1-9]\d\d)(\s|$)", re.ASCII)
FOLD = re.compile(r"\n[ \t]+")
CHUNK_SIZE = re.compile(rb"\s*([0-9A-Fa-f]{1,15})\s*(;|$)")


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: Body = b"") -> None:
        self.status = status
        self.headers = headers  # names in lower case, in the order of the wire
        self.body = body

    def all(self, name: str) -> list[str]:
        """All values of a header."""
        name = name.lower()
        return [value for key, value in self.headers if key == name]

    def first(self, name: str) -> str | None:
        """The first value of a header; None where there is none."""
        return next(iter(self.all(name)), None)


def read_answer(stream: BinaryIO, *, limit: int, cut: bool = False, grow: Grow = lambda _: None) -> Answer:
    """The final answer. The body is read only if the status is 200.

    Args:
        stream: a buffered stream.
        limit: the most bytes of the body.
        cut: a longer body is cut, not refused. The result may be a little longer than `limit`.
        grow: called with the size of each part of the body before it is kept.

    Raises:
        Failure: too_large; bad_http; tcp if the answer ends early.
        OSError: from the stream.
    """
    answer = _final_head(_Lines(stream))
    if answer.status == 200:
        answer.body = _body(stream, answer, limit, cut, grow)
    return answer


class _Lines:
    """The lines of an answer's header and of the interim answers before it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = LARGEST_HEAD

    def next(self) -> str:
        """A line without its end."""
        line = self._stream.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise Failure("bad_http", "the header of the answer is too large")
        if not line.endswith(b"\n"):
            raise Failure("tcp", "the connection was closed")
        return line.rstrip(b"\r\n").decode("latin-1")


def _final_head(lines: _Lines) -> Answer:
    """Skips interim answers (RFC 9110, 15.2: a client must be able to parse any 1xx, even if it expects none)."""
    for _ in range(MOST_INTERIM + 1):
        answer = _head(lines)
        if answer.status >= 200:
            return answer
        if answer.status == 101:
            raise Failure("bad_http", "the server switched to another protocol without a request to do so")
    raise Failure("bad_http", f"more than {MOST_INTERIM} interim answers")


def _head(lines: _Lines) -> Answer:
    status = STATUS_LINE.match(lines.next())
    if status is None:
        raise Failure("bad_http", "not an HTTP answer: it does not begin with a status")
    text = "\n".join(iter(lines.next, ""))
    fields = (line.partition(":") for line in FOLD.sub(" ", text).split("\n"))
    return Answer(int(status[1]), [(name.strip().lower(), value.strip()) for name, colon, value in fields if colon])


def _body(stream: BinaryIO, answer: Answer, limit: int, cut: bool, grow: Grow) -> Body:
    if "chunked" in _listed(answer, "Transfer-Encoding"):
        parts = _chunks(stream)
    else:
        length = _declared_length(answer)
        if length is not None and length > limit and not cut:
            raise Failure("too_large", f"the body has {length} bytes", http_status=200)
        parts = iter(lambda: stream.read(PART), b"") if length is None else _exactly(stream, length)
    kept = _Parts(limit)
    for part in parts:
        grow(len(part))
        kept.add(part)
        if kept.size > limit:
            if not cut:
                raise Failure("too_large", f"the body has more than {limit} bytes", http_status=200)
            break
    return kept.joined()


class _Parts:
    """The parts of a body. Those of a large one lie in pages of their own: the heap keeps what it was once given."""

    def __init__(self, limit: int) -> None:
        self.size = 0
        self._most = limit + PART  # the last part may go beyond the limit
        self._small: list[bytes] = []
        self._pages: mmap.mmap | None = None  # the system provides a page when it is first written to

    def add(self, part: bytes) -> None:
        if self._pages is None and self.size + len(part) > LARGE:
            self._pages = mmap.mmap(-1, self._most)
            self._pages[: self.size] = b"".join(self._small)
            self._small = []
        if self._pages is None:
            self._small.append(part)
        else:
            self._pages[self.size : self.size + len(part)] = part
        self.size += len(part)

    def joined(self) -> Body:
        return b"".join(self._small) if self._pages is None else memoryview(self._pages)[: self.size]


def _declared_length(answer: Answer) -> int | None:
    values = set(_listed(answer, "Content-Length"))
    if not values:
        return None
    if len(values) > 1 or not all(value.isascii() and value.isdigit() for value in values):
        raise Failure("bad_http", "the lengths of the answer contradict each other")
    return int(values.pop()[:20])


def _listed(answer: Answer, name: str) -> list[str]:
    """The members of a header that is a list."""
    return [member.strip().lower() for value in answer.all(name) for member in value.split(",")]


def _exactly(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        part = stream.read(min(PART, size))
        if not part:
            raise Failure("tcp", "the body ended early")
        yield part
        size -= len(part)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The chunks of a body. What follows the last one (trailers) is not read."""
    for _ in range(MOST_CHUNKS):
        size = CHUNK_SIZE.match(_chunk_line(stream))
        if size is None:
            raise Failure("bad_http", "a chunk without a size")
        if not int(size[1], 16):
            return
        yield from _exactly(stream, int(size[1], 16))
        if _chunk_line(stream):
            raise Failure("bad_http", "a chunk that is longer than its size")
    raise Failure("bad_http", f"more than {MOST_CHUNKS} chunks")


def _chunk_line(stream: BinaryIO) -> bytes:
    line = stream.readline(LONGEST_CHUNK_LINE)
    if not line.endswith(b"\n"):
        ended = len(line) < LONGEST_CHUNK_LINE
        raise Failure("tcp", "the body ended early") if ended else Failure("bad_http", "a chunk's size is too long")
    return line.rstrip(b"\r\n")
