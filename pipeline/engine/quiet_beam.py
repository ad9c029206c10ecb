"""Imports Beam without its warnings, and limits what its threads print in a run and in a worker."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from pipeline.engine import log_file

# Loggers of Beam that report its internals at WARNING.
CHATTY = (
    "apache_beam.options.pipeline_options",
    "apache_beam.runners.portability.fn_api_runner.fn_runner",
    "apache_beam.runners.worker.sdk_worker",
    "apache_beam.runners.worker.sdk_worker_main",
    "apache_beam.runners.worker.worker_pool_main",
    "apache_beam.runners.portability.portable_runner",
    "apache_beam.runners.portability.local_job_service",
    "apache_beam.internal.gcp.auth",
    "apache_beam.typehints",
    "PrismRunner",
)
# When a worker or a job server is gone, the runner's message explains it better than these loggers.
SILENT = (
    "apache_beam.utils.subprocess_server",
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.portability.fn_api_runner.worker_handlers",
)
# Errors of the machine or of the user's input: one sentence explains them, a traceback would not help.
ENVIRONMENT_ERRORS = frozenset(
    (errno.EPERM, errno.EACCES, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.EDQUOT)
)
# The last patterns: a bundle ends while its worker is being stopped, and Beam does not know the bundle any more; Prism
# panics.
EXPECTED = re.compile(
    rf"\[[Ee]rrno ({'|'.join(map(str, sorted(ENVIRONMENT_ERRORS)))})\]"
    r"|\b((Missing|Unreadable)?Input|Transfer|Damaged|Network|Fence|Lease|Worker)Error: "
    r"|\bKeyError: 'bundle_\d+|\bgoroutine \d+ \["
)
TRACING = ("", "apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker")  # "": messages of workers
# Beam's threads that end with an exception when the other side is gone.
READERS = ("beam_control_read", "read_grpc_client_inputs", "read_state", "wait_until_finish_read")
WORKER = "apache_beam.runners.worker.sdk_worker"
LOOPBACK = "run_worker_"  # its threads for workers in this process: Spark cuts their streams off at the end of a stage


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides warnings while the block runs: at import Beam warns about optional packages that are not installed."""
    before = logging.root.manager.disable
    if not log_file.is_active():
        logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def no_new_handlers() -> Iterator[None]:
    """Removes the handlers that the block adds to the root logger: Beam calls `logging.basicConfig`."""
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        yield
    finally:
        for handler in root.handlers[:]:
            if handler not in before:
                root.removeHandler(handler)


def no_waiting(record: logging.LogRecord) -> bool:
    """False for Beam's message through the root logger while a job server starts."""
    return not str(record.msg).startswith("Waiting for grpc channel")


def no_expected_trace(record: logging.LogRecord) -> bool:
    """False for the traceback of a failure that another message explains in one sentence."""
    error = record.exc_info[1] if record.exc_info else ""
    name = type(error).__name__
    return record.levelno < logging.ERROR or not EXPECTED.search(f"{record.getMessage()} {name}: {error}")


def print_unless_expected(text: str, **more: Any) -> None:
    """Replaces `print` in workers, which would print every traceback."""
    if not EXPECTED.search(text):
        print(text, **more)


def import_beam() -> Any:
    """apache_beam, with its loggers quiet."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    _unhush()
    if not log_file.is_active():  # a log file takes all of it, and its screen shows none of it
        _quiet_loggers()
    return load_beam()


def load_beam() -> Any:
    """apache_beam. Logging stays as it is: a command that looks at its flags has no log file yet."""
    gc.disable()  # it would scan all modules again and again, and find no garbage
    try:
        with quiet(), no_new_handlers():
            import apache_beam
    finally:
        gc.freeze()
        gc.enable()
    return apache_beam


def _quiet_loggers() -> None:
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(no_waiting)
    for name in TRACING:
        logging.getLogger(name).addFilter(no_expected_trace)


@functools.cache
def quiet_readers() -> None:
    """Hides that a stream broke, in READERS and in workers of this process: the job itself reports why it did."""
    report = threading.excepthook

    def report_others(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else ""
        cut_off = name.startswith(LOOPBACK) and args.exc_type.__module__.startswith("grpc.")
        if name not in READERS and not cut_off:
            report(args)

    threading.excepthook = report_others


NOISY = ("apache_beam", "grpc", *CHATTY, *SILENT, *filter(None, TRACING))


def not_of_beam(record: logging.LogRecord) -> bool:
    """False for a message that code of Beam or gRPC sends through the root logger."""
    return _OF_BEAM.search(record.pathname) is None


_OF_BEAM = re.compile(r"[/\\](apache_beam|grpc)[/\\]")


def hush() -> None:
    """Hides what Beam's loggers and threads report, until the next job. After an interrupt it is only that they were
    cut off. Other logs of the process stay as they are: it may be a notebook.
    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    logging.getLogger().addFilter(not_of_beam)
    _hide_threads_of_beam()
    if worker := sys.modules.get(WORKER):  # with LOOPBACK it runs in this process, and prints each traceback itself
        vars(worker)["print"] = print_nothing


def quiet_loopback() -> None:
    """Workers of this process (LOOPBACK) print no traceback of a failure that the job tells in one sentence."""
    from apache_beam.runners.worker import sdk_worker

    vars(sdk_worker)["print"] = print_unless_expected


def print_nothing(*text: Any, **more: Any) -> None:
    """Replaces `print` in workers of this process after an interrupt: what they still fail at is no news."""


def _unhush() -> None:
    worker = vars(sys.modules[WORKER]) if WORKER in sys.modules else {}
    if worker.get("print") is print_nothing:
        del worker["print"]
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger().removeFilter(not_of_beam)


@functools.cache
def _hide_threads_of_beam() -> None:
    """Hides the exceptions of threads that run code of Beam."""
    report = threading.excepthook

    def report_others(args: threading.ExceptHookArgs) -> None:
        frames = traceback.extract_tb(args.exc_traceback)
        if not any(_OF_BEAM.search(frame.filename) for frame in frames):
            report(args)

    threading.excepthook = report_others
