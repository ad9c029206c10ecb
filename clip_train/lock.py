"""One run at a time in a folder, and signals that end it after a step."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from clip_train.errors import UsageError


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Makes the run's folder and locks it, so that no other process trains into it.

    A run that is refused before it writes anything leaves no folder behind.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
    except OSError as error:
        raise UsageError(f"--output {folder} cannot be written: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process trains into {folder}: end it first, or name another --output") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            if made and os.listdir(folder) == [".lock"]:
                os.unlink(folder / ".lock")
                folder.rmdir()


class Stop(threading.Event):
    """It is set by a signal."""

    number = 0  # of the signal, once it is there


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """An event that SIGTERM and SIGINT set, so that the loop saves and ends. A second SIGINT ends at once."""
    event = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, _: object) -> None:
        if event.is_set() and number == signal.SIGINT and "LOCAL_RANK" not in os.environ:
            raise KeyboardInterrupt  # with a launcher, Ctrl-C arrives twice: from the terminal and from the launcher
        event.number = number
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
