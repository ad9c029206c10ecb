"""The end of a command's process, without the end of the interpreter.

A thread of a C++ library (gloo, Arrow) may drop a Python object while the interpreter ends. Up to Python 3.13 it is
then ended in the midst of C++ code, which aborts the process (SIGABRT, github.com/apache/arrow/issues/34314): a run
whose work was done counted as lost. So the process ends as soon as its own cleanup is done.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn

UNWRITTEN = 120  # Python's own exit code where the last output cannot be written


def leave(code: int) -> NoReturn:
    """Runs what is registered for the end, writes what is buffered, and ends the process with this exit code."""
    with contextlib.suppress(Exception):  # it prints what its functions raise
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # nobody reads it, the disk is full, or it is closed
            code = code or UNWRITTEN
    os._exit(code)
