"""SIGINT and SIGTERM end a command with one line and exit code 130, at any moment: while it imports its packages, too.

A command installs the handler before it imports anything heavy. The handler ends the process at once. Nothing must be
cleaned up then: a run can be killed at any moment, its files appear whole or not at all, and its children end with it.
Only a job on an engine is cancelled first (`runners`). As process 1 of a container, a process without a handler would
ignore SIGTERM.

A command that comes to its end ends at once, too (`ending`), once everything that is registered with `atexit` is done.
Python would take itself apart first. A thread of Arrow or a daemon thread that asks for Python meanwhile is ended in
its C++ code, and C++ then aborts the process: SIGABRT in place of the exit code.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from types import FrameType

CODE, FAILED = 130, 1
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_command: tuple[str, int] | None = None  # the program whose handler is installed, and its process
_reported = False
_cause = ""  # why this process interrupts itself; "": the user does
_ends = [0]  # how often `end_within` was taken back
_ending: tuple[int, int] | None = None  # the exit code, and the process


def install(program: str) -> None:
    """Lets SIGINT and SIGTERM end this process. For commands only: a library leaves the signals to its caller.

    It is called before anything else registers with `atexit`, so that `_leave` is the last to run.
    """
    atexit.register(_leave)
    global _command
    if threading.current_thread() is threading.main_thread():
        _command = program, os.getpid()
        for number in SIGNALS:
            signal.signal(number, _end)


def ending(code: int) -> int:
    """Notes the exit code with which a command of `install` ends. Returns it."""
    global _ending
    _ending = code, os.getpid()
    return code


def _leave() -> None:
    if _ending is None or _ending[1] != os.getpid():
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # nobody reads it: Python reports that
    os._exit(_ending[0])


def because(cause: str) -> None:
    """The next interrupt is not the user's: `report` says the cause, and the exit code is 1. "" takes it back."""
    global _cause
    _cause = cause


def report(program: str) -> int:
    """Prints the line, if no line was printed yet. Returns the exit code."""
    global _reported
    said, code = (_cause, FAILED) if _cause else ("interrupted. Run the same command again to continue.", CODE)
    if not _reported:
        _reported = True
        before = b"\n" if os.isatty(2) else b""  # a progress bar may stand in the line
        line = f"{program}: {said}\n"
        try:
            os.write(2, before + line.encode())
        except OSError:
            pass  # nobody reads it
        # Not imported here, which would take time. It may be half imported.
        note = getattr(sys.modules.get("pipeline.engine.log_file"), "note", None)
        if note is not None:
            note(_cause or "interrupted", exit_code=code)
    return code


def end_within(seconds: float) -> bool:
    """Ends the command after so many seconds, unless it ends by itself before. False: this process is no command."""
    if _command is None or _command[1] != os.getpid():
        return False
    threading.Thread(target=_end_after, args=(_command[0], seconds, _ends[0]), daemon=True).start()
    return True


def go_on() -> None:
    """Takes back all that `end_within` was told: the interrupt was our own, and the command goes on."""
    _ends[0] += 1


def _end_after(program: str, seconds: float, known: int) -> None:
    time.sleep(seconds)
    if _ends[0] == known:
        os._exit(report(program))


def _end(number: int, frame: FrameType | None) -> None:
    if _command is not None and _command[1] == os.getpid():
        os._exit(report(_command[0]))
    signal.signal(number, signal.SIG_DFL)  # a forked child: the message is not its business
    os.kill(os.getpid(), number)
