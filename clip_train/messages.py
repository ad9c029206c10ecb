"""The log of a training command: JSON lines in a file, in the form of the logs of `pipeline`.

    {"time": "2026-11-28T02:30:00.123Z", "level": "info", "logger": "clip_train", "stage": "train", "message": "...",
     "fields": {"step": 100, "loss": 2.5}}

The numbers of all steps are in RUN/log.jsonl. This file has what is shown to people, warnings, and how the run ended.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import traceback
from collections.abc import Iterator
from typing import Any

NAME = "clip_train"

_log = logging.getLogger(NAME)
_active = _quiet = False


class _JsonLines(logging.Handler):
    """Appends a line of JSON for each record, in one write."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.INFO)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name == NAME or record.levelno >= logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {
            "time": when[:23] + "Z", "level": record.levelname.lower(), "logger": record.name, "stage": "train",
            "message": record.getMessage(), "fields": getattr(record, "fields", {}),
        }  # fmt: skip
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        with contextlib.suppress(OSError):  # a full disk ends the run elsewhere
            os.write(self._descriptor, (json.dumps(line, default=str) + "\n").encode())

    def close(self) -> None:
        super().close()
        os.close(self._descriptor)


def is_quiet() -> bool:
    """True if the command was asked to be quiet."""
    return _quiet


def note(message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Adds a line to the log file, if there is one."""
    if _active:
        _log.log(level, "%s", message, extra={"fields": fields})


@contextlib.contextmanager
def logging_to(path: str | None, *, quiet: bool = False) -> Iterator[None]:
    """Logs the block: its begin, its messages, warnings of libraries and of Python, how it ends.

    Args:
        path: of the file, whose folder exists; None: there is no file.
        quiet: no progress on stderr.
    """
    global _active, _quiet
    before, root = (_active, _quiet), logging.getLogger()
    _quiet = quiet
    if path is None:
        try:
            yield
        finally:
            _quiet = before[1]
        return
    handler, level = _JsonLines(path), _log.level
    root.addHandler(handler)
    _log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    _active = True
    note("train begins", process=os.getpid())
    try:
        yield
        note("train ends")
    except BaseException as error:
        name = type(error).__name__
        _log.error("%s", str(error) or name, exc_info=True, extra={"fields": {"error": name}})
        raise
    finally:
        _active, _quiet = before
        _log.setLevel(level)
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
