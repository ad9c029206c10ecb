"""The decoding process: it may crash, hang or use up its memory on a hostile image, and only that image is lost.

Each worker has one such child. It is started on first use, and again after a crash. The kernel limits its CPU time and
address space. Requests and answers go through its standard input and output. It exits at the end of its input, so it
never outlives its parent. Run as `python -m pipeline.fetching.helper OPTIONS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import queue
import select
import struct
import subprocess
import sys
import threading
import time
from typing import IO

from pipeline.engine import child as children
from pipeline.fetching.answer import Body
from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.picture import MOST_MEMORY, NeedsMemory, Picture

LENGTH = struct.Struct("<I")
REQUEST = struct.Struct("<IQ")  # bytes of the image, bytes that its decoding may take
# glibc's malloc returns large blocks at once and has one heap: the rests of large pictures would fill the memory.
MALLOC = ((-3, 4 << 20), (-1, 8 << 20), (-8, 1))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
PATIENCE = 3  # wall seconds that the parent waits for each CPU second of the limit
START_S = 60.0


class Decoder:
    """Decodes images in a child process, or in this process if no child can be started.

    One thread at a time may use it.
    """

    def __init__(self, options: FetchOptions) -> None:
        self.options = options
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self.deaths = 0

    def decode(self, body: Body, memory: int = MOST_MEMORY) -> Picture:
        """Makes the picture.

        Args:
            body: of the image.
            memory: bytes that the decoding may take.

        Raises:
            Failure: as `images.decode`; also "decode" if the child died or took too long.
            NeedsMemory: it takes more than `memory`.
        """
        if self.options.in_process:
            return self._here(body, memory)
        child = self._running()
        if child is None:
            return self._here(body, memory)
        try:
            return self._ask(child, body, memory)
        except (OSError, EOFError, struct.error, ValueError, TimeoutError) as error:
            self.deaths += 1
            code = self._kill(dying=not isinstance(error, TimeoutError))
            reason = "took too long" if isinstance(error, TimeoutError) else f"crashed the decoder (exit {code})"
            raise Failure("decode", f"the image {reason}") from error

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None and self._owner == os.getpid():
            self._kill()
        self._child = None

    def _here(self, body: Body, memory: int) -> Picture:
        from pipeline.fetching import images

        return images.decode(bytes(body), self.options, memory)

    def _running(self) -> subprocess.Popen[bytes] | None:
        if self._child is not None and self._owner == os.getpid() and self._child.poll() is None:
            return self._child
        if self._child is not None and self._owner == os.getpid():
            self._kill()
        self._owner = os.getpid()
        self._child = _start(self.options)
        return self._child

    def _kill(self, *, dying: bool = False) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        if dying:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)  # its own exit status says more than our signal would
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return child.wait()

    def _ask(self, child: subprocess.Popen[bytes], body: Body, memory: int) -> Picture:
        assert child.stdin is not None and child.stdout is not None
        for unsent in (memoryview(REQUEST.pack(len(body), memory)), memoryview(body)):
            while unsent:
                unsent = unsent[child.stdin.write(unsent) :]
        deadline = time.monotonic() + self.options.decode_s * PATIENCE
        answer = json.loads(_receive(child.stdout, deadline))
        if "failure" in answer:
            raise Failure(answer["failure"], answer["sentence"], protocol=answer["protocol"])
        if "needs" in answer:
            raise NeedsMemory(answer["needs"])
        colours, shades, jpeg = (_receive(child.stdout, deadline) for _ in range(3))
        return Picture(jpeg, **answer, colours=colours, shades=shades)


def _start(options: FetchOptions) -> subprocess.Popen[bytes] | None:
    """A child that has reported that it is ready; None if no child can be started."""
    if not sys.executable or not hasattr(select, "poll"):
        return None
    environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    command = children.command("pipeline.fetching.helper", json.dumps(dataclasses.asdict(options)))
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment)
    except OSError:
        return None
    try:
        assert child.stdout is not None
        if _receive(child.stdout, time.monotonic() + START_S) == b"ready":
            return child
    except (OSError, EOFError, TimeoutError):
        pass
    child.kill()
    child.wait()
    return None


def _receive(pipe: IO[bytes], deadline: float) -> bytes:
    """One length-prefixed message.

    Raises:
        TimeoutError: it is not complete at the deadline.
        EOFError: the pipe ended early.
    """
    size = LENGTH.unpack(_exactly(pipe, LENGTH.size, deadline))[0]
    return _exactly(pipe, size, deadline)


def _exactly(pipe: IO[bytes], size: int, deadline: float) -> bytes:
    parts = []
    poll = select.poll()  # select() fails on descriptors above 1023
    poll.register(pipe, select.POLLIN)
    while size:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        part = os.read(pipe.fileno(), size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def serve(options: FetchOptions) -> None:
    """Runs the child: reads an image and answers, until the input ends."""
    from pipeline.fetching import images

    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library's prints must not mix with the answers
    reports, said = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.dup2(said, 2)  # libtiff reports damage only here; what the full pipe cannot take is lost
    requests: queue.Queue[tuple[bytes, int]] = queue.Queue(maxsize=1)
    threading.Thread(target=_read_requests, args=(source, requests), daemon=True).start()
    _send(sink, b"ready")
    while True:
        body, memory = requests.get()
        _limit_cpu(options.decode_s)
        try:
            _reported(reports)  # of an image that was refused
            picture = images.decode(body, options, memory)
            if (reported := _reported(reports)) and picture.original_format == "TIFF":
                raise Failure("decode", f"TIFF: {reported}")  # it gives pixels all the same, and some are never written
        except Failure as failure:
            facts = {"failure": failure.status, "sentence": str(failure), "protocol": failure.protocol}
            _send(sink, json.dumps(facts).encode())
            continue
        except NeedsMemory as needs:
            _send(sink, json.dumps({"needs": needs.size}).encode())
            continue
        names = [f.name for f in dataclasses.fields(picture) if f.name not in ("jpeg", "colours", "shades")]
        facts = {name: getattr(picture, name) for name in names}
        _send(sink, json.dumps(facts).encode(), picture.colours, picture.shades, picture.jpeg)


def _reported(reports: int) -> str:
    """The first line of what the decoders reported since the last call; "" if nothing."""
    try:
        return os.read(reports, 1 << 16).decode("utf-8", "replace").partition("\n")[0]
    except BlockingIOError:
        return ""


def _read_requests(source: IO[bytes], requests: queue.Queue[tuple[bytes, int]]) -> None:
    while True:
        head = source.read(REQUEST.size)
        if len(head) < REQUEST.size:
            os._exit(0)  # the parent has gone
        size, memory = REQUEST.unpack(head)
        requests.put((source.read(size), memory))  # a short body is of a parent that has gone


def _send(sink: IO[bytes], *messages: bytes) -> None:
    for message in messages:
        sink.write(LENGTH.pack(len(message)))
        sink.write(message)
    sink.flush()


def _limit_memory(size: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # without glibc
        for option, value in MALLOC:
            ctypes.CDLL(None).mallopt(option, value)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu(seconds: int) -> None:
    """Lets the kernel end this process after `seconds` more seconds of CPU time."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        used = time.process_time()
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, hard))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    chosen = FetchOptions(**{**given, **lists})
    _limit_memory(chosen.decode_bytes)
    serve(chosen)
