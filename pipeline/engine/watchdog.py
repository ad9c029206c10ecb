"""Notices a job that makes no progress: it then asks the cluster, and ends the job if the cluster is not well.

A client that waits for an engine does not notice that the engine has died: it waits for ever. Progress is a change in
the folders of the steps, where each unit leaves its files. A dead worker of Prism is noticed at once (`live_job`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.engine import display, fence, log_file, storage, variables
from pipeline.engine.clusters import Cluster
from pipeline.engine.live_job import Death, LiveJob
from pipeline.engine.progress import Watched

POLL_S, PAGE_S = 0.5, 60.0  # a job is looked for so often, so long at first
ASKS = 3  # the cluster must be unwell so many times in a row, a fifth of the patience apart


@dataclass
class Stalled:
    """Why the job was ended; "" if it was not.

    `slots` are those of the cluster, if the job waited for more. `death` is that of a worker, if this is the reason.
    """

    reason: str = ""
    slots: int = 0
    death: Death | None = None


class Watch:
    """Decides, at each look, whether the job must end. `live` tells of a job whose cluster tells nothing."""

    def __init__(
        self, steps: Sequence[Watched], cluster: Cluster, patience: float, now: float, live: LiveJob | None = None
    ) -> None:
        self._steps, self._cluster, self._patience, self._live = steps, cluster, patience, live
        self._state, self._changed, self._next = changes(steps), now, now + patience
        self._unwell = 0
        self.said = ""

    def look(self, now: float) -> str:
        """The reason why the job must end; "" if it goes on. `said` is a line for the user, if there is one."""
        self.said = ""
        state = changes(self._steps)
        if state != self._state:
            self._state, self._changed, self._next, self._unwell = state, now, now + self._patience, 0
        if now < self._next:
            return ""
        still = f"no progress for {display.clock(now - self._changed)}"
        problem = self._cluster.problem() or (self._live.problem() if self._live else "")
        self._unwell = self._unwell + 1 if problem else 0
        self._next = now + (self._patience / 5 if problem else self._patience)
        if self._unwell >= ASKS:
            return f"{still}: {problem}. Mend this, then the same command continues the run"
        known = problem or (self._live.known() if self._live else "")
        self.said = f"{still}{f': {known}' if known else ''}"
        return ""


def changes(steps: Sequence[Watched]) -> tuple[int, ...]:
    """A state of the steps' folders: another one after each file that is begun, or made in them or one level below.

    A unit of a fetch that is under way counts too, by its live file.
    """
    found = []
    for step in steps:
        folder = storage.beside(step.folder.path)
        if storage.is_url(step.folder.path):
            found.append(storage.changed(step.folder.path) or 0)
        with contextlib.suppress(OSError):
            found.append(os.stat(fence.folder_for(folder) or folder).st_mtime_ns)
            found.append(os.stat(folder).st_mtime_ns)
            with os.scandir(folder) as entries:
                found += [entry.stat().st_mtime_ns for entry in entries if _tells(entry)]
    return tuple(found)


def _tells(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".live") or entry.is_dir(follow_symlinks=False)


def tell_page(cluster: Cluster, program: str) -> bool:
    """Prints the address of the job's page. False: it is not known yet."""
    page = cluster.page()
    if page:
        log_file.say(f"{program}: the job on its engine: {page}")
    return bool(page)


@contextlib.contextmanager
def watching(
    steps: Sequence[Watched],
    cluster: Cluster,
    program: str,
    live: LiveJob | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Stalled]:
    """Watches the job that the block waits for; it raises KeyboardInterrupt there if the job must end.

    A job of the local runner needs no watch, and has neither `cluster` nor `live`: the runner itself sees its workers.
    """
    stalled, stop = Stalled(), threading.Event()
    if not (cluster.address or live) or threading.current_thread() is not threading.main_thread():
        yield stalled
        return
    patience = variables.number(variables.STALL_SECONDS)
    watch = Watch(steps, cluster, patience, clock(), live)

    def loop() -> None:
        began, told = clock(), False
        while not stop.wait(_pace(patience, live, settled=told or clock() > began + PAGE_S)):
            told = told or tell_page(cluster, program)
            stalled.death = live.death() if live else None
            reason = stalled.death.text if stalled.death else watch.look(clock())
            stalled.slots = cluster.waits_with() if reason else 0
            stalled.reason = reason
            if watch.said:
                print(f"{program}: {watch.said}", file=sys.stderr)
                log_file.note(watch.said, level=logging.WARNING)
            if stalled.reason and not stop.is_set():
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=loop, daemon=True, name="watchdog")
    thread.start()
    with live.listening() if live else contextlib.nullcontext():
        try:
            yield stalled
        finally:
            stop.set()


def _pace(patience: float, live: LiveJob | None, *, settled: bool) -> float:
    """Seconds until the next look."""
    if live and live.pace:
        return live.pace
    return min(5.0, patience / 5) if settled else POLL_S
