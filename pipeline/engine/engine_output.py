"""What the processes of an engine leave on this host: lines on their standard output, and temporary files of Beam."""

from __future__ import annotations

import collections
import contextlib
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from pipeline.engine import log_file

JOB_SERVERS = ("FlinkJarJobServer", "SparkJarJobServer", "PrismJobServer")  # loggers of Beam, for what these print
KEPT, TOLD = 200, 3  # lines of a job server
# Lines that explain nothing: frames of Java and Go, their headings, and messages of logging in JSON.
_FRAME = re.compile(
    r"\s*$|\s*at \S+\(|\t|goroutine |created by |exit status |\S+\(.*\)$|\s*\.\.\. \d+ more|\{\"time\":"
)
# Modules of Beam that make temporary files in this process, and do not all remove them.
MODULES = (
    "apache_beam.pipeline",
    "apache_beam.transforms.environments",
    "apache_beam.runners.portability.stager",
    "apache_beam.runners.portability.job_server",
    "apache_beam.runners.portability.local_job_service",
    "apache_beam.runners.portability.flink_uber_jar_job_server",
    "apache_beam.runners.portability.spark_uber_jar_job_server",
)

_lines: collections.deque[str] = collections.deque(maxlen=KEPT)


class _Keeper(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _lines.extend(record.getMessage().splitlines())


def last_lines() -> str:
    """The last lines of the job server that explain something, in one line; "": it printed none."""
    found = [line.strip() for line in _lines if not _FRAME.match(line)]
    return " / ".join(list(dict.fromkeys(found))[-TOLD:])


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """While the block runs, lines of job servers and of their workers are kept, and go to the log file.

    They are not printed: the failure of a job is one line, and Prism prints the traceback of a worker four times.
    `--log-level debug` prints them, if there is no log file.
    """
    printed = log_file.is_active() or logging.getLogger().level < logging.WARNING
    keeper, loggers = _Keeper(), [logging.getLogger(name) for name in JOB_SERVERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    _lines.clear()
    for logger in loggers:
        logger.setLevel(logging.INFO)  # as lines of standard output come
        logger.propagate = printed
        logger.addHandler(keeper)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.removeHandler(keeper)


@contextlib.contextmanager
def in_one_folder() -> Iterator[None]:
    """Temporary files that Beam makes in the block lie in one folder, which goes with it.

    Other modules keep the system's folder: workers of this process have their scratch folder there.
    """
    with tempfile.TemporaryDirectory(prefix="openwit-beam-", ignore_cleanup_errors=True) as folder:

        def mkdtemp(suffix: str | None = None, prefix: str | None = None, dir: str | None = None) -> str:
            return tempfile.mkdtemp(suffix, prefix, dir or folder)

        ours = SimpleNamespace(**{**vars(tempfile), "mkdtemp": mkdtemp, "gettempdir": lambda: folder})
        modules: list[Any] = [sys.modules[name] for name in MODULES if name in sys.modules]
        for module in modules:
            module.tempfile = ours
        try:
            yield
        finally:
            for module in modules:
                module.tempfile = tempfile
