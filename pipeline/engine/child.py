"""The search path of our child processes: a child takes over our `sys.path`, entry by entry.

PYTHONPATH cannot do that. Its folders come before the standard library. Some packages have the name of a standard
module (`dataclasses`, a dependency of img2dataset), and would replace it if PYTHONPATH held a site-packages folder.
`python -m` is not enough either: it searches the working directory first, where another `pipeline` may lie.
"""

from __future__ import annotations

import json
import os
import site
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])  # the folder that holds this package
# Entries that only the child has (PYTHONPATH was changed after our start) come last.
BOOT = """import json, runpy, sys
given = json.loads(sys.argv.pop(1))
sys.path[:] = given + [path for path in sys.path if path not in given]
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)"""


def search_path() -> list[str]:
    """`sys.path` with absolute entries. The folder of this package is added at the end if it is missing."""
    path = [os.path.abspath(os.fspath(entry)) for entry in sys.path]
    return path if ROOT in path else [*path, ROOT]


def command(module: str, *arguments: str) -> list[str]:
    """The command line of a child process that runs a module as `python -m` does, with our search path."""
    flags = {"-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    ours = [flag for flag, is_set in flags.items() if is_set]
    return [sys.executable, "-P", *ours, "-c", BOOT, json.dumps(search_path()), module, *arguments]


def variables() -> dict[str, str]:
    """Environment variables for Python processes that an engine starts with a command line of its own.

    With them a process does not search the working directory first. A checkout is not on Python's default search path,
    so PYTHONPATH names its folder.
    """
    known = [*site.getsitepackages(), site.getusersitepackages()]
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if ROOT not in given and ROOT not in map(os.path.realpath, known):
        given = [ROOT, *given]
    safe = {"PYTHONSAFEPATH": "1"}
    return {**safe, "PYTHONPATH": os.pathsep.join(given)} if given else safe
