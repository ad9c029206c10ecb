"""Memory of a process that works on large batches: what is freed is kept for the next batch.

Batches of some megabytes come and go. The allocators give most of them back to the system at once, and then every page
is mapped and cleared anew: a tenth of the CPU time of `select`. One heap that keeps a bounded rest costs less, and no
more memory, since its pages are used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os

import pyarrow as pa

KEPT = 128 << 20  # bytes of free memory at the heap's end that stay
LARGE = 64 << 20  # bytes of an allocation that goes back to the system as it is freed
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's malloc.h


@functools.cache
def retain_freed_memory() -> None:
    """Makes this process, and those that are forked from it, keep their memory. Where there is no glibc: nothing.

    Arrow's allocations join the same heap, unless ARROW_DEFAULT_MEMORY_POOL names another place for them.
    """
    with contextlib.suppress(AttributeError, OSError):
        set_option = ctypes.CDLL(None).mallopt
        for option, value in ((_TRIM_THRESHOLD, KEPT), (_MMAP_THRESHOLD, LARGE), (_ARENA_MAX, 1)):
            set_option(option, value)
        if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
            pa.set_memory_pool(pa.system_memory_pool())
