"""Decoding in processes of their own.

Threads share one interpreter: the loader's threads and the thread that feeds a fast GPU wait for one another. A process
decodes alone. It imports no torch, gets a task as a pickle through a pipe, writes the crops into memory that it shares
with this process, and answers with the token ids. It ends when the pipe closes, so none is left behind.
"""

from __future__ import annotations

import mmap
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
from typing import IO, Any

import numpy as np

from clip_train.decoder import Decoded, DecodeOptions, Decoder, Task
from clip_train.errors import TrainError
from clip_train.reader import ShardReader
from clip_train.tokenizer import Tokenizer

OPEN_FILES = 64  # of a process
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_HEAD = struct.Struct("<q")  # the length of a message


def available() -> bool:
    """Linux has anonymous files that two processes map."""
    return hasattr(os, "memfd_create")


class DecodeProcesses:
    """Decodes like `Decoder`, in `count` processes. As many threads may call `decode` at a time."""

    def __init__(
        self, paths: tuple[str, ...], tokenizer: Tokenizer, options: DecodeOptions, *, count: int, rows: int
    ) -> None:
        """Starts the processes, and does not wait until they are ready.

        Args:
            paths: of the shards.
            rows: the largest number of samples in a task.
        """
        start = pickle.dumps((paths, tokenizer, options, rows))
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(start, rows * options.image_size**2 * 3) for _ in range(count)]
        for worker in self._workers:
            self._idle.put(worker)

    def decode(self, task: Task, out: np.ndarray) -> Decoded:
        """See Decoder.decode. TrainError where the process has ended."""
        worker = self._idle.get()
        try:
            return worker.decode(task, out)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.wait()


class _Worker:
    """A process, and the memory that is shared with it."""

    def __init__(self, start: bytes, size: int) -> None:
        descriptor = os.memfd_create("clip_train-crops")
        modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
        try:
            os.ftruncate(descriptor, size)
            self._crops = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({descriptor})"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(descriptor,),
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": modules},
            )  # fmt: skip
        finally:
            os.close(descriptor)
        # The vocabulary is larger than a pipe, so to send it is to wait until the process has imported its modules.
        self._start: bytes | None = start

    def decode(self, task: Task, out: np.ndarray) -> Decoded:
        if self._start is not None:
            self._send(self._start)
            self._start = None
        self._send(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
        found = receive(self._process.stdout)
        if found is None:
            self._fail()
        if isinstance(found, Exception):
            raise found
        np.copyto(out, self._crops[: out.size].reshape(out.shape))
        return found

    def end(self) -> None:
        """Tells the process to end."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:  # a message was on its way when the process ended
            pass

    def wait(self) -> None:
        """Waits until it has ended."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_HEAD.pack(len(message)) + message)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _fail(self) -> None:
        code = self._process.wait()
        how = f"signal {-code} ended it" if code < 0 else f"its exit code is {code}"
        raise TrainError(f"a process that decodes images has gone: {how}. --decode-in threads needs less memory")


def receive(stream: IO[bytes] | None) -> Any:
    """The next object of a stream. None: the stream has ended."""
    assert stream is not None
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    body = stream.read(_HEAD.unpack(head)[0])
    return pickle.loads(body) if len(body) == _HEAD.unpack(head)[0] else None


def serve(descriptor: int) -> None:
    """The work of a process: decodes the tasks of stdin until it ends.

    Args:
        descriptor: of the memory for the crops.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    tasks = sys.stdin.buffer
    start = receive(tasks)
    if start is None:
        return
    paths, tokenizer, options, rows = start
    side = options.image_size
    crops = np.frombuffer(mmap.mmap(descriptor, rows * side * side * 3), np.uint8).reshape(rows, side, side, 3)
    decoder = Decoder(ShardReader(paths, keep_open=OPEN_FILES), tokenizer, options)
    while (task := receive(tasks)) is not None:
        answer: Decoded | Exception
        try:
            answer = decoder.decode(task, crops[: len(task)])
        except Exception as error:
            answer = error
        message = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
        try:
            answers.write(_HEAD.pack(len(message)) + message)
            answers.flush()
        except BrokenPipeError:  # the process that started this one was killed
            os._exit(0)  # without a second try to write what is left
