"""Progress of a run, read from the manifests of its units: it works the same on every engine, local or remote.

A stage describes its steps as `Watched`, with figures of its own. `screen` shows them. OPENWIT_PROGRESS=0 hides them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from pipeline.engine import display, log_file, screen, storage, variables
from pipeline.engine.work import StepFolder

REDRAW, REDRAW_STORE = 0.5, 10.0  # seconds between looks; each look at a store costs requests
AHEAD = 3  # steps behind the one under way that are looked at on a store: a look is a request
PATIENCE = 5.0  # seconds that the end of a run waits for the last look, in case the disk does not answer
Manifest = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Figures:
    """How far a step is, from a faster source than its manifests. `words` are shown as they are: "92 % ok, 31 dns".

    A new `notice` gets a line of its own at once. It says why nothing moves. `running`: some of the work is under way.
    """

    done: int  # work of earlier runs included
    total: int | None = None
    words: str = ""
    notice: str = ""
    running: bool = False


@dataclasses.dataclass(frozen=True)
class Watched:
    """A step as the progress bar shows it. A number is None if it is not known before the step ends."""

    label: str
    folder: StepFolder
    units: int | None = None
    total: int | None = None  # of what is counted
    counted: str = "rows"
    figures: Callable[[Sequence[Manifest]], str] | None = None  # text from the manifests of finished units
    live: Callable[[], Figures | None] | None = None  # progress between two manifests; None: not known yet
    optional: bool = False  # a step that often has nothing to do: then it leaves no line


class _Seen:
    """The state of a step so far. Rates leave out the work of earlier runs."""

    def __init__(self, step: Watched, now: float) -> None:
        self.step, self.ended = step, False
        self._started = self._looked = now
        self._changed, self._words, self._counts = 0, "", False
        self.rows: dict[str, int] = {}  # by the name of the manifest
        self._manifests: list[Manifest] = []
        self._foreign: dict[str, Any] = {}  # states of the manifests of another run
        self._live: Figures | None = None
        self._before = self._units_before = 0
        self.begun: float | None = None  # None: this run has done nothing of it yet
        self.look(now)
        self._before, self._units_before, self.begun = self.done(), len(self.rows), None

    def done(self) -> int:
        """How many rows or images are done."""
        return self._live.done if self._live else sum(self.rows.values())

    def complete(self, followed: bool) -> bool:
        """True if all units are done. If their number is not known: True if a later step has begun (`followed`)."""
        return followed if self.step.units is None else len(self.rows) >= self.step.units

    def share(self) -> tuple[int, int | None, int]:
        """(done, total, done by earlier runs) of the counted items if their total is known, else of the units."""
        total = self._total()
        if total is None:
            return len(self.rows), self.step.units, self._units_before
        return self.done(), total, self._before

    def look(self, now: float, *, closely: bool = False) -> None:
        """Reads new manifests. A folder with an unchanged time stamp is skipped, unless `closely` is True."""
        new = self._read_manifests(closely)
        if new and self.step.figures:
            self._words = self.step.figures(self._manifests)
        self._live = (self.step.live() if self.step.live else None) or self._live
        if self.done() < self._before:  # a unit failed and starts again from zero
            self._before, self.begun = self.done(), None
        if self.begun is None and (new or self.done() > self._before):
            begun = now - max(found.get("seconds", 0) for found in new) if new else self._looked
            self.begun = max(self._started, begun)
        elif self.begun is None and self._live is not None and self._live.running:
            self.begun = now
        self._looked = now

    def text(self, now: float, *, ended: bool = False) -> str:
        """Units, rows, rows a second and the words of the stage; the seconds taken if it has ended, else those left."""
        took = now - self.begun if self.begun is not None else 0.0
        fresh, (done, total, before) = self.done() - self._before, self.share()
        parts = [] if self._live else [display.amount(len(self.rows), self.step.units, "units")]
        if self._counts or self._total() or self._live:
            parts.append(display.amount(self.done(), self._total(), self.step.counted))
        if ended:
            parts.append(f"{took:.1f} s" if took < 60 else display.clock(took))
        if took >= 1 and fresh > 0:
            parts.append(f"{fresh / took:,.{int(fresh < 10 * took)}f} {self.step.counted}/s")
        parts += [self._words, self._live.words if self._live else ""]
        if took >= 1 and not ended and total is not None and total > done > before:
            parts.append(f"{display.clock(took / (done - before) * (total - done))} left")
        return display.sanitize(", ".join(filter(None, parts)))

    def notice(self) -> str:
        """Why the step does not move; "": it moves."""
        return display.sanitize(self._live.notice) if self._live else ""

    def _total(self) -> int | None:
        return self._live.total if self._live and self._live.total is not None else self.step.total

    def _read_manifests(self, closely: bool) -> list[Manifest]:
        """The manifests of this stage that are new since the last look."""
        path = self.step.folder.path
        try:
            with storage.looking_at(path):
                changed = storage.changed(path)
                if changed is None or (changed == self._changed and not closely):
                    return []
                names = [name for name in storage.names(path) if name.endswith(".json")]
                found = [manifest for name in names if name not in self.rows for manifest in self._read(name)]
        except FileNotFoundError:
            return []
        self._changed = changed
        return found

    def _read(self, name: str) -> Iterator[Manifest]:
        """A manifest that was not read before. One of another run is read again only if its file was replaced."""
        path = os.path.join(self.step.folder.path, name)
        state = storage.state(path)
        if self._foreign.get(name) == state:
            return
        try:
            found = storage.read_json(path) or {}
        except storage.DamagedError:  # whoever needs it says so
            found = {}
        if found.get("fingerprint", "") != self.step.folder.fingerprint:
            self._foreign[name] = state
            return
        rows = rows_of(found)
        self.rows[name], self._counts = rows or 0, self._counts or rows is not None
        if self.step.figures:
            self._manifests.append(found)
        yield found


class Progress:
    """Looks at the steps' folders and shows how far they are."""

    def __init__(self, steps: Sequence[Watched], stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen = [_Seen(step, clock()) for step in steps]
        self._screen = screen.choose(stream, clock())
        self._notice, self._reached = "", 0

    def show(self, *, last: bool = False) -> None:
        """Reports the steps that have ended since the last look, and draws the step under way.

        Args:
            last: the run has ended, and so have all its steps.
        """
        now = self._clock()
        for number, seen in enumerate(self._seen):
            far = number > self._reached + AHEAD and storage.is_url(seen.step.folder.path)
            if not seen.ended and (last or not far):
                seen.look(now, closely=last)
        begun = [number for number, seen in enumerate(self._seen) if seen.rows or seen.begun is not None]
        self._reached = reached = max(begun, default=0)
        for number, seen in enumerate(self._seen):
            if not seen.ended and seen.complete(last or number < reached):
                seen.ended = True
                if seen.begun is not None and (seen.done() or not seen.step.optional):
                    text = f"{seen.step.label}: {seen.text(now, ended=True)}"
                    self._screen.say(text)
                    log_file.note(text, stage=seen.step.label.split()[0], step=seen.step.label, done=seen.done())
        left = [seen for seen in self._seen[reached:] if not seen.ended]  # a skipped step may have no units
        if left and not last:
            current, (done, total, _) = left[0], left[0].share()
            if current.notice() != self._notice:
                self._notice = current.notice()
                text = f"{current.step.label}: {self._notice or 'it goes on'}"
                self._screen.say(text)
                log_file.note(text, level=logging.WARNING, stage=current.step.label.split()[0])
            self._screen.draw(screen.Line(current.step.label, current.text(now), done, total), now)

    def close(self) -> None:
        """Removes the bar."""
        self._screen.close()


@contextlib.contextmanager
def watching(steps: Sequence[Watched], stream: IO[str] | None = None, *, quiet: bool = False) -> Iterator[None]:
    """Shows progress on stderr while the block runs. An error in progress is logged once and does not stop the run."""
    if quiet or log_file.is_quiet() or not variables.is_on(variables.PROGRESS):
        yield
        return
    guard, stop, shown = _guard(), threading.Event(), list[Progress]()
    guard(lambda: shown.append(Progress(steps, stream or sys.stderr)))

    on_store = any(storage.is_url(step.folder.path) for step in steps)

    def loop() -> None:
        while shown and not stop.wait(REDRAW_STORE if on_store else REDRAW):
            guard(shown[0].show)

    thread = threading.Thread(target=loop, daemon=True, name="progress")
    thread.start()
    well = False
    try:
        yield
        well = True
    finally:
        stop.set()
        thread.join(PATIENCE)
        if shown and not thread.is_alive():
            if well:
                guard(lambda: shown[0].show(last=True))
            guard(shown[0].close)


def _guard() -> Callable[[Callable[[], Any]], None]:
    """A function that calls another one. It suppresses every error and logs the first."""
    errors: list[Exception] = []

    def guard(call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            if not errors:
                logging.getLogger(__name__).warning("progress cannot be shown (%r); the run goes on", error)
            errors.append(error)

    return guard


def rows_of(manifest: Manifest) -> int | None:
    """The rows that a unit read, from its manifest; None if it counts something else."""
    if isinstance(manifest.get("rows"), int):
        return manifest["rows"]
    inner = [ledger["rows_in"] for ledger in manifest.get("ledgers", {}).values()]
    return max(inner, default=manifest.get("keys"))
