"""numba, made safe to depend on: compiled kernels where they can be had, the plain functions where not.

`njit` compiles with a disk cache: beside the sources, or in the user's cache folder where the install is read-only, or
without one where neither can be written (a bare `cache=True` raises there at import). Every kernel lives in a module
named `*_kernel` beside its plain twin; only those modules import numba. `python -m pipeline.engine.jit` compiles them
all once, so that no worker pays for it, and removes what older sources left in the cache: set-up runs it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("pipeline", "queries", "clip_train")  # where kernel files are
OWN_CACHE = Path(__file__).parent / "__pycache__"

# Fewer rows than this do not pay for loading compiled code (numba and its cache: 0.4 s or more) into a process without.
FEW_ROWS = 20_000


@functools.lru_cache(maxsize=1)
def available() -> bool:
    """True where kernels may be used: numba is installed and OPENWIT_NO_KERNELS is not set to a non-empty value."""
    return not os.environ.get("OPENWIT_NO_KERNELS") and importlib.util.find_spec("numba") is not None


def njit(function: Callable | None = None, **options: Any) -> Any:
    """numba.njit without the GIL, cached on disk where a cache folder can be written.

    NUMBA_CACHE_DIR names another cache folder; it holds pickles, so it must be private to the user.
    """
    if function is None:
        return functools.partial(njit, **options)
    import numba

    _set_cache_folder(function.__module__)
    try:
        return numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # "no locator available": read-only install and no writable home
        return numba.njit(nogil=True, **options)(function)


def _set_cache_folder(module: str) -> None:
    """Gives the kernels of a module a cache folder for the state of their sources.

    numba forgets a compiled function when its own file changes, but not when a function that it has taken in from
    another file does: half of a kernel would stay old.
    """
    import numba

    root = _cache_root() if module.endswith("_kernel") else None
    if root is not None:
        numba.config.CACHE_DIR = str(root / f"kernels-{_state(module)}")


@functools.cache
def _cache_root() -> Path | None:
    """The folder for compiled kernels: the named one, else ours, else the user's; None where it cannot be written."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    for root in [Path(named)] if named else [OWN_CACHE, _user_cache()]:
        with contextlib.suppress(OSError):
            if root != OWN_CACHE:
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(root if root.exists() else root.parent, os.W_OK):
                return root
    return None


def _user_cache() -> Path:
    """Where programs of this user keep what they can make again; private, since pickles are read from there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "openwit"


@functools.cache
def _state(module: str) -> str:
    """A digest of the source of a kernel module and of the kernel modules that it imports."""
    found = importlib.util.find_spec(module)
    source = Path(found.origin).read_bytes() if found and found.origin else b""
    inner = re.findall(rb"^(?:from|import) +([\w.]+_kernel)\b|^from +([\w.]+) +import +(\w+_kernel)\b", source, re.M)
    names = {(whole or package + b"." + name).decode() for whole, package, name in inner}
    parts = [source, *(_state(name).encode() for name in sorted(names))]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def kernel_modules() -> list[str]:
    """Dotted names of all kernel files."""
    root = Path(__file__).parents[2]
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*_kernel.py"))]
    return [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]


def remove_stale_kernels(cache: Path = OWN_CACHE) -> int:
    """Removes the compiled kernels of other states of the sources from a cache folder; returns how many states.

    Only from this package's own folder unless another is named: one behind NUMBA_CACHE_DIR may serve other checkouts.
    """
    needed = {f"kernels-{_state(module)}" for module in kernel_modules()}
    old = [path for path in cache.glob("kernels-*") if path.name not in needed]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
    return len(old)


def kernel(name: str, rows: int) -> Any:
    """The kernel module `name` for work on `rows` rows; None where the plain function should do it.

    A kernel that the process has loaded already is always taken.
    """
    if not available() or (rows < FEW_ROWS and name not in sys.modules):
        return None
    return importlib.import_module(name)


def warm() -> dict[str, float]:
    """Compiles every kernel; returns seconds by module. Does nothing where kernels are not available.

    A kernel file has a function `warm` that calls each kernel once on a few rows, or the files that use it compile it.
    """
    seconds = {}
    for name in kernel_modules() if available() else ():
        start = time.perf_counter()
        module = importlib.import_module(name)
        if hasattr(module, "warm"):
            module.warm()
            seconds[name] = time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    remove_stale_kernels()
    for module, taken in warm().items():
        print(f"{module}: {taken:.1f} s")
