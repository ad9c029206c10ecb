"""numba as an optional dependency: compiled kernels where it is available, reference functions elsewhere.

`njit` compiles with a disk cache. The cache lies beside the sources, or in the user's cache folder if the install is
read-only. If neither can be written, there is no cache (numba's own `cache=True` would raise at import). Every kernel
is in a module named `*_kernel`, beside the module with its reference function. Only kernel modules import numba.
`python -m pipeline.engine.jit` compiles all kernels once, so that no worker has to. It also removes the kernels of
older sources from the cache. The set-up runs it.
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

from pipeline.engine import variables

PACKAGES = ("pipeline", "queries", "clip_train")  # where kernel files are
# `from pipeline.text import characters, folding` at the top of a file. Names in brackets are those of one module.
_IMPORT = re.compile(rf"^from +((?:{'|'.join(PACKAGES)})[\w.]*) +import +([\w, ]*)", re.MULTILINE)
OWN_CACHE = Path(__file__).parent / "__pycache__"

# Loading compiled code (numba and its cache) costs a process 0.4 s or more. Fewer rows than this do not pay for it.
FEW_ROWS = 20_000


@functools.lru_cache(maxsize=1)
def available() -> bool:
    """True where kernels may be used: numba is installed and OPENWIT_NO_KERNELS is not on."""
    return not variables.is_on(variables.NO_KERNELS) and importlib.util.find_spec("numba") is not None


def njit(function: Callable | None = None, **options: Any) -> Any:
    """numba.njit without the GIL, cached on disk where a cache folder can be written.

    NUMBA_CACHE_DIR names another cache folder. The folder holds pickles, so it must be private to the user.
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

    numba drops a compiled function when its own file changes. It does not notice a change in another file whose
    functions it compiled in: half of a kernel would be stale.
    """
    import numba

    root = _cache_root() if module.endswith("_kernel") else None
    if root is not None:
        numba.config.CACHE_DIR = str(root / f"kernels-{_state(module)}")


@functools.cache
def _cache_root() -> Path | None:
    """The folder for compiled kernels: NUMBA_CACHE_DIR if set, else ours, else the user's; None if not writable."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    for root in [Path(named)] if named else [OWN_CACHE, _user_cache()]:
        with contextlib.suppress(OSError):
            if root != OWN_CACHE:
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(root if root.exists() else root.parent, os.W_OK):
                return root
    return None


def _user_cache() -> Path:
    """The user's cache folder. It is private, because pickles are read from it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "openwit"


def _state(module: str) -> str:
    """A digest of the sources of a kernel module and of all our modules below it.

    numba compiles constants and tables of other modules into a kernel, and looks for changes in the kernel's own file
    alone.
    """
    digest = hashlib.sha256()
    for name in sorted(_with_imports(module)):
        digest.update(_file_of(name).read_bytes())
    return digest.hexdigest()[:12]


def _with_imports(module: str) -> set[str]:
    """The module, and all of our modules that it imports when it is loaded, directly or not."""
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _imports(name)
    return found


@functools.cache
def _imports(module: str) -> list[str]:
    """Our modules that a module imports at its top, this file left out."""
    source = _file_of(module).read_text()
    names: set[str] = set()
    for package, listed in _IMPORT.findall(source):
        names |= {package, *(f"{package}.{name.split()[0]}" for name in listed.split(",") if name.split())}
    # By its file: run by `python -m`, this module is called `__main__`.
    return [name for name in names if _file_of(name).is_file() and not _file_of(name).samefile(__file__)]


def _file_of(module: str) -> Path:
    """The source file of one of our modules."""
    return (Path(__file__).parents[2] / module.replace(".", "/")).with_suffix(".py")


def kernel_modules() -> list[str]:
    """Dotted names of all kernel files."""
    root = Path(__file__).parents[2]
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*_kernel.py"))]
    return [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]


def remove_stale_kernels(cache: Path = OWN_CACHE) -> int:
    """Removes the compiled kernels of other source states from a cache folder; returns the number of states.

    The default is this package's own folder: the folder of NUMBA_CACHE_DIR may serve other checkouts, too.
    """
    needed = {f"kernels-{_state(module)}" for module in kernel_modules()}
    old = [path for path in cache.glob("kernels-*") if path.name not in needed]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
    return len(old)


def compiled() -> tuple[Path | None, int, int]:
    """The folder for compiled kernels (None: it cannot be written), the kernel files compiled in it, and all of them.

    Files without a function `warm` are not counted: they are compiled with others.
    """
    names = [name for name in kernel_modules() if "\ndef warm(" in _file_of(name).read_text(encoding="utf-8")]
    there = [name for name in names if is_compiled(name)]
    return _cache_root(), len(there), len(names)


def is_compiled(name: str) -> bool:
    """True if the compiled code of a kernel module is in the cache, so that loading it takes no minute."""
    root = _cache_root()
    return root is not None and any((root / f"kernels-{_state(name)}").rglob("*.nbi"))


def kernel(name: str, rows: int) -> Any:
    """The kernel module `name` for work on `rows` rows; None where the reference function should be used.

    A kernel that the process has already loaded is always used.
    """
    if not available() or (rows < FEW_ROWS and name not in sys.modules):
        return None
    return importlib.import_module(name)


def warm() -> dict[str, float]:
    """Compiles every kernel; returns seconds by module. Does nothing where kernels are not available.

    A kernel file has a function `warm`, which calls each of its kernels once on a few rows. A file without `warm` is
    compiled by the kernel files that use it.
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
