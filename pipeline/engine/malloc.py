"""Memory settings for a process that works on large batches: freed memory is retained for the next batch.

A process allocates and frees batches of some megabytes all the time. By default the allocators return most of this
memory to the system at once. The next batch then maps and clears every page again: a tenth of the CPU time of `select`.
One heap that retains a bounded amount is cheaper. It needs no more memory, because its pages are used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os

import pyarrow as pa

KEPT = 128 << 20  # bytes of free memory that stay at the end of the heap
LARGE = 64 << 20  # bytes of an allocation that returns to the system when it is freed
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's malloc.h


@functools.cache
def retain_freed_memory() -> None:
    """Makes this process and its forks retain freed memory. Without glibc it does nothing.

    Arrow allocates from the same heap, unless ARROW_DEFAULT_MEMORY_POOL names another pool.
    """
    with contextlib.suppress(AttributeError, OSError):
        set_option = ctypes.CDLL(None).mallopt
        for option, value in ((_TRIM_THRESHOLD, KEPT), (_MMAP_THRESHOLD, LARGE), (_ARENA_MAX, 1)):
            set_option(option, value)
        if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
            pa.set_memory_pool(pa.system_memory_pool())
