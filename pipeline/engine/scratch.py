"""The folder of this machine for what OUT in an object store cannot hold: locks, copies, files under way.

It is $OPENWIT_SCRATCH, else a folder of the user in the system's folder for temporary files. Each host has its own. So
a worker asks for it where it runs; a path of another host means nothing to it.
"""

from __future__ import annotations

import os
import tempfile

from pipeline.engine.cli import UsageError

SCRATCH = "OPENWIT_SCRATCH"


def folder() -> str:
    """The folder. It is made, for this user alone.

    Raises:
        UsageError: it cannot be made or written, or is another user's.
    """
    path = os.environ.get(SCRATCH) or os.path.join(tempfile.gettempdir(), f"openwit-{os.getuid()}")
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
