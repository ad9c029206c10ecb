"""A build without Beam in a process of its own, which kills itself: python -m tests.serial_build N ARGUMENT ...

The process ends by SIGKILL at its Nth change of a name on the disk. It needs no Beam, so it starts in a second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeline.engine import quiet_beam, steps
from pipeline.engine.tasks import units_of_element
from pipeline.engine.work import run_unit

CHANGES = ("replace", "rename", "unlink", "rmdir")  # of os


def _run(task: Any, run: Callable[[int], dict[str, Any]]) -> str:
    for unit in units_of_element(task, 0, 1):
        run_unit(task.folder, unit, run)
    return "done"


def _run_task(after: Any, task: Any, **_: Any) -> str:
    return _run(task, task.run)


def _run_exchange(done: Any, task: Any, **_: Any) -> str:
    return _run(task, lambda unit: task.run(unit, task.reads.bucket(unit)))


def die_at(count: int) -> None:
    """The `count`-th change of a name ends the process before it is made."""
    left = [count]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    os.fsync = lambda descriptor: None  # type: ignore[assignment]


def main(argv: list[str]) -> int:
    """Runs the build."""
    steps.run_task, steps.run_exchange = _run_task, _run_exchange  # type: ignore[assignment]
    steps.units_at_start = lambda after, task: 1
    quiet_beam.import_beam = lambda: None  # type: ignore[assignment]
    from pipeline import build
    from pipeline.engine import runners

    runners.run_job = lambda construct, *args, **options: construct("")  # type: ignore[assignment]
    die_at(int(argv[0]))
    return build.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
