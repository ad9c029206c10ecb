"""The environment variables of this package that users set, and what each may hold. An empty one counts as not set.

A command checks all of them with its command line (`cli.Parser`), before it writes anything. `build` does so, too. A
worker has the environment of its own host, and checks it when it joins a run. This module imports nothing of ours.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping

SCRATCH = "OPENWIT_SCRATCH"  # the folder of this machine for copies of objects, locks and files under way
SCRATCH_GB = "OPENWIT_SCRATCH_GB"  # the most of the copies there
STALL_SECONDS = "OPENWIT_STALL_SECONDS"  # without progress, after which a cluster is asked whether it is well
PROGRESS = "OPENWIT_PROGRESS"  # off: none is shown
NO_KERNELS = "OPENWIT_NO_KERNELS"  # on: plain functions do the work of compiled kernels
ENGINES = "OPENWIT_ENGINES"  # the folder of Prism, and of the job servers of Flink and Spark
CC_BASE = "OPENWIT_CC_BASE"  # where the files of a crawl lie

_OFF, _ON = ("0", "off", "no", "false"), ("1", "on", "yes", "true")
_SWITCHES = {PROGRESS: True, NO_KERNELS: False}  # with their defaults
_NUMBERS = {SCRATCH_GB: (20.0, 1e9), STALL_SECONDS: (300.0, 604_800.0)}  # default, most


def number(name: str) -> float:
    """The value of a variable that holds a number, or its default.

    Raises:
        ValueError: it is no number, or is out of its range.
    """
    default, most = _NUMBERS[name]
    given = _given(name)
    if not given:
        return default
    try:
        found = float(given)
    except ValueError:
        found = float("nan")
    if not 0 < found <= most:
        raise _refused(name, given, f"a number above 0 and at most {most:,.0f}")
    return found


def is_on(name: str) -> bool:
    """True if a variable is on; its default where it is not set."""
    given = _given(name).lower()
    return given not in _OFF if _SWITCHES[name] else given in _ON


def scratch_folder() -> str:
    """The scratch folder, which need not exist."""
    return os.environ.get(SCRATCH) or os.path.join(tempfile.gettempdir(), f"openwit-{os.getuid()}")


def check() -> None:
    """Checks all variables. Nothing is made, and no server is asked.

    Raises:
        ValueError: its message names the variable, its value and what is allowed.
    """
    for name in _NUMBERS:
        number(name)
    for name in _SWITCHES:
        if _given(name) and _given(name).lower() not in (*_OFF, *_ON):
            raise _refused(name, _given(name), f"one of {', '.join((*_OFF, *_ON))}")
    for name, (is_allowed, allowed) in _PLACES.items():
        given = os.environ.get(name, "")
        if given and not is_allowed(given):
            raise _refused(name, given, allowed)


def _given(name: str) -> str:
    return os.environ.get(name, "").strip()


def _refused(name: str, given: str, allowed: str) -> ValueError:
    return ValueError(f"{name}={given}: must be {allowed}")


def _may_be_folder(path: str) -> bool:
    """True if the path is a folder of this machine, or nothing."""
    above = os.path.abspath(path)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    return bool(path.strip()) and "://" not in path and os.path.isdir(above)


def _is_base(path: str) -> bool:
    return "://" in path or os.path.isdir(path)


_PLACES: Mapping[str, tuple[Callable[[str], bool], str]] = {
    SCRATCH: (_may_be_folder, "a folder of this machine"),
    ENGINES: (_may_be_folder, "a folder of this machine"),
    CC_BASE: (_is_base, "a URL, or a folder that is there"),
}
