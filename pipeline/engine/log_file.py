"""The log of a command: JSON lines in a file, warnings and errors on the screen.

    {"time": "2026-11-28T02:30:00.123Z", "level": "info", "logger": "openwit", "stage": "fetch", "message": "done",
     "fields": {"rows_in": 146, "rows_out": 139}}

`logging_to` sets this up, in one place for all commands of `pipeline` and `queries`. Each line is one write to the end
of the file, so it stays whole beside those of other processes and in a signal handler. Warnings of Beam, of other
libraries and of Python go into the file, not on the screen; with `debug` all that they say. A process that uses the
packages as a library keeps its own logging.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

OURS = "openwit"  # the logger of this package's own messages
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LONGEST = 100_000  # characters of a message
SECRET = ("password", "token", "secret", "access_key")  # words of flags whose values are not logged
OWNED = ("openwit", "pipeline", "queries")  # loggers whose warnings are meant for users

_log = logging.getLogger(OURS)
_file: _JsonLines | None = None  # the handler, while a command logs
_quiet = False


class _JsonLines(logging.Handler):
    """Appends a line of JSON for each record."""

    def __init__(self, path: str, level: int) -> None:
        super().__init__(level)
        self.addFilter(self._is_wanted)
        self._path, self._failed = path, False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _is_wanted(self, record: logging.LogRecord) -> bool:
        """Of libraries, warnings are wanted; at `debug` all that they say."""
        return self.level <= logging.DEBUG or record.levelno >= logging.WARNING or _is_ours(record)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._descriptor, (json.dumps(_line(record), default=str) + "\n").encode())
        except OSError as error:
            if not self._failed:
                self._failed = True
                with contextlib.suppress(OSError):
                    os.write(2, f"--log-file {self._path}: cannot be written: {error.strerror}\n".encode())

    def close(self) -> None:
        super().close()
        os.close(self._descriptor)


def _line(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = {
        "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")[:23]
        + "Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "stage": getattr(record, "stage", None),
        "message": _message(record)[:LONGEST],
        "fields": getattr(record, "fields", {}),
    }
    if record.exc_info and record.exc_info[0] is not None:
        found["traceback"] = "".join(traceback.format_exception(*record.exc_info))[:LONGEST]
    return found


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a library's format does not fit its arguments
        return str(record.msg)


def _for_users(record: logging.LogRecord) -> bool:
    """False for a record that is on the screen already, or that a library reports to the log file alone."""
    return not getattr(record, "shown", False) and _is_ours(record)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] in OWNED


def is_active() -> bool:
    """True if this command has a log file."""
    return _file is not None


def is_quiet() -> bool:
    """True if the command was asked to be quiet."""
    return _quiet


def level_of_workers() -> str:
    """The least level at which worker processes report, in Beam's words: theirs is much at `info`."""
    return "INFO" if _file is not None and _file.level <= logging.DEBUG else "WARNING"


def note(
    message: str, *, level: int = logging.INFO, stage: str | None = None, shown: bool = True, **fields: Any
) -> None:
    """Adds a line to the log file, if there is one.

    Args:
        message: one sentence.
        level: of `logging`.
        stage: of the run.
        shown: the screen has the message already.
        fields: numbers and names that belong to the message.
    """
    if _file is not None:
        _log.log(level, "%s", message, extra={"stage": stage, "fields": fields, "shown": shown})


def say(message: str, *, stage: str | None = None, quiet: bool = False, **fields: Any) -> None:
    """Prints a line for people on stderr, unless the command is quiet, and logs it."""
    if not (quiet or _quiet):
        print(message, file=sys.stderr)
    note(message, stage=stage, **fields)


@contextlib.contextmanager
def logging_to(
    path: str | None, *, level: str = "info", quiet: bool = False, program: str, argv: Sequence[str] = ()
) -> Iterator[Callable[[int], int]]:
    """Logs the block: its begin, its messages, how it ends.

    Args:
        path: of the file, whose folder exists; None: there is no file.
        level: the least level that is logged; without a file, the least that is shown.
        quiet: no progress and no notes on stderr.
        program: as in `pipeline.build`.
        argv: the words of the command line, for the first line.

    Yields:
        A function that notes the exit code and returns it.
    """
    global _file, _quiet
    before, root, started = (_file, _quiet), logging.getLogger(), time.perf_counter()
    _quiet = quiet
    if path is None:
        try:
            with _level_on_screen(level):
                yield lambda code: code
        finally:
            _file, _quiet = before
        return
    handler, levels = _JsonLines(path, LEVELS[level]), (root.level, _log.level)
    screen = logging.StreamHandler()
    screen.setLevel(max(logging.WARNING, LEVELS[level]))
    screen.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    screen.addFilter(_for_users)
    codes: list[int] = []

    def ended(code: int) -> int:
        codes.append(code)
        return code

    for one in (handler, screen):
        root.addHandler(one)
    root.setLevel(LEVELS[level])
    logging.captureWarnings(True)
    _file = handler
    note(f"{program} begins", program=program, argv=_without_secrets(argv), process=os.getpid())
    try:
        yield ended
        note(f"{program} ends", exit_code=codes[-1] if codes else 0, seconds=round(time.perf_counter() - started, 3))
    except BaseException as error:
        _log.critical("%s crashed: %r", program, error, exc_info=True, extra={"shown": True})
        raise
    finally:
        _file, _quiet = before
        logging.captureWarnings(False)
        for one in (handler, screen):
            root.removeHandler(one)
            one.close()
        root.setLevel(levels[0])


@contextlib.contextmanager
def _level_on_screen(level: str) -> Iterator[None]:
    """Without a file, `--log-level debug` and `info` show more on stderr."""
    root, before = logging.getLogger(), logging.getLogger().level
    if LEVELS[level] >= logging.WARNING or root.handlers:
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def _without_secrets(argv: Sequence[str]) -> list[str]:
    """The words of a command line, without values of flags that look like secrets and without passwords in URLs."""
    from pipeline.engine.input_errors import public

    words, hide = [], False
    for word in argv:
        name = word.split("=")[0].lower()
        secret = name.startswith("--") and any(mark in name for mark in SECRET)
        words.append("..." if hide else f"{word.split('=')[0]}=..." if secret and "=" in word else public(word))
        hide = secret and "=" not in word
    return words
