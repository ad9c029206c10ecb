"""The folder of this machine for what OUT in an object store cannot hold: locks, copies, files under way.

It is $OPENWIT_SCRATCH, else a folder of the user in the system's folder for temporary files. Each host has its own. So
a worker asks for it where it runs; a path of another host means nothing to it.
"""

from __future__ import annotations

import contextlib
import os
import time

from pipeline.engine.cli import UsageError
from pipeline.engine.variables import SCRATCH, scratch_folder

ABANDONED_S = 7 * 86400.0  # a file that nobody has written for so long is of a process that is gone


def folder() -> str:
    """The folder. It is made, for this user alone.

    Raises:
        UsageError: it cannot be made or written, or is another user's.
    """
    path = scratch_folder()
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{SCRATCH}={path}: cannot be made ({error.strerror}): name another folder") from None
    if os.stat(path).st_uid != os.getuid() or not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{SCRATCH}={path}: must be a folder of this user that is writable")
    return path


def beside(url: str) -> str:
    """Where a file lies that only this machine needs."""
    scheme, _, rest = url.partition("://")
    return os.path.join(folder(), "local", scheme, *(part for part in rest.split("/") if part not in ("", ".", "..")))


def remove_abandoned(folder: str) -> None:
    """Removes files of this machine below a folder that a killed process left long ago. Locks stay."""
    oldest = time.time() - ABANDONED_S
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):
                if not name.startswith(".") and os.stat(path).st_mtime < oldest:
                    os.unlink(path)
