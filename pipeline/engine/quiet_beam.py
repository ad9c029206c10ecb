"""Beam, imported without its noise, and what its threads may print in a run and in a worker."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any

# Loggers of Beam that talk about its inner life at WARNING.
CHATTY = (
    "apache_beam.options.pipeline_options",
    "apache_beam.runners.portability.fn_api_runner.fn_runner",
    "apache_beam.runners.worker.sdk_worker",
    "apache_beam.runners.worker.sdk_worker_main",
    "apache_beam.runners.worker.worker_pool_main",
    "apache_beam.runners.portability.portable_runner",
    "apache_beam.runners.portability.local_job_service",
    "apache_beam.utils.subprocess_server",
    "apache_beam.internal.gcp.auth",
    "apache_beam.typehints",
    "PrismRunner",
)
# What these say when a worker is gone, the runner says better.
SILENT = (
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.portability.fn_api_runner.worker_handlers",
)
# Faults of the machine or of what the user gave: a sentence says all, a trace of ours would say nothing.
ENVIRONMENT_ERRORS = frozenset(
    (errno.EPERM, errno.EACCES, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.EDQUOT)
)
# The last: a bundle ends while its worker is being stopped, and Beam has forgotten it already.
EXPECTED = re.compile(
    rf"\[[Ee]rrno ({'|'.join(map(str, sorted(ENVIRONMENT_ERRORS)))})\]"
    r"|\b((Missing)?Input|Damaged)Error: |\bKeyError: 'bundle_\d+"
)
TRACING = ("", "apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker")  # "": what workers send
# Beam's threads that end with an exception when the other side is gone.
READERS = ("beam_control_read", "read_grpc_client_inputs", "read_state")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Beam warns at import about packages that nobody asked for."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def no_waiting(record: logging.LogRecord) -> bool:
    """False for what Beam says, by the root logger, while a job server starts."""
    return not str(record.msg).startswith("Waiting for grpc channel")


def no_expected_trace(record: logging.LogRecord) -> bool:
    """False for the trace of a failure that will be told in a sentence."""
    error = record.exc_info[1] if record.exc_info else ""
    name = type(error).__name__
    return record.levelno < logging.ERROR or not EXPECTED.search(f"{record.getMessage()} {name}: {error}")


def print_unless_expected(text: str, **more: Any) -> None:
    """What workers print instead of every trace."""
    if not EXPECTED.search(text):
        print(text, **more)


def import_beam() -> Any:
    """apache_beam, without its noise."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(no_waiting)
    for name in TRACING:
        logging.getLogger(name).addFilter(no_expected_trace)
    gc.disable()  # it would look for rubbish among ever more modules, now and later, and find none
    try:
        with quiet():
            import apache_beam
    finally:
        gc.freeze()
        gc.enable()
    return apache_beam


@functools.cache
def quiet_readers() -> None:
    """A side that ends breaks the streams that the other one's threads read; the job says so itself."""
    tell = threading.excepthook
    threading.excepthook = lambda args: None if args.thread and args.thread.name in READERS else tell(args)


def hush() -> None:
    """After an interrupt Beam's threads have nothing to tell but that they were cut off."""
    logging.disable(logging.CRITICAL)
    threading.excepthook = lambda *_: None
