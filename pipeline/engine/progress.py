"""Progress, read from the manifests that units leave: the same on every engine, local or far away.

On a terminal one line is drawn over again; elsewhere a line is printed now and then. NO_COLOR is honoured by using no
colour at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

from pipeline.engine import files
from pipeline.engine.work import StepFolder

REDRAW = 0.5  # seconds between looks on a terminal
SPEAK = 30.0  # seconds between lines elsewhere


@dataclasses.dataclass(frozen=True)
class Watched:
    """A step as the reader of the bar knows it."""

    label: str
    folder: StepFolder
    units: int | None = None  # None: not known before it ends


@dataclasses.dataclass
class _Seen:
    started: float = 0.0
    manifests: set[str] = dataclasses.field(default_factory=set)
    resumed: int = 0  # units that an earlier run had done
    rows: int = 0


class Progress:
    """Looks at the steps' folders and says how far they are."""

    def __init__(self, steps: Sequence[Watched], stream: IO[str] | None = None) -> None:
        self._steps = steps
        self._stream = stream if stream is not None else sys.stderr
        self._seen = {step.label: _Seen() for step in steps}
        for step in steps:
            self._look(step)
            self._seen[step.label].resumed = len(self._seen[step.label].manifests)
        self._spoken = time.monotonic()
        self._line = ""

    def _look(self, step: Watched) -> bool:
        """Reads the manifests that are new; True if there are any."""
        seen = self._seen[step.label]
        try:
            names = {entry.name for entry in os.scandir(step.folder.path) if entry.name.endswith(".json")}
        except FileNotFoundError:
            return False
        new = names - seen.manifests
        for name in new:
            seen.rows += rows_of(files.read_json(os.path.join(step.folder.path, name)) or {})
        seen.manifests |= new
        if new and not seen.started:
            seen.started = time.monotonic()
        return bool(new)

    def line(self) -> str:
        """The step under way: units, rows, rows a second, time left."""
        current = self._steps[0]
        for step in self._steps:
            self._look(step)
            if self._seen[step.label].manifests:
                current = step
        seen, units = self._seen[current.label], current.units
        done, total = len(seen.manifests), f"/{units}" if units else ""
        took = time.monotonic() - seen.started if seen.started else 0.0
        text = f"{current.label}: {done}{total} units, {seen.rows:,} rows"
        fresh = done - seen.resumed
        if took > 1 and fresh > 1:
            text += f", {seen.rows / took:,.0f} rows/s"
            if units and units > done:
                text += f", {clock(took / (fresh - 1) * (units - done))} left"
        return text

    def show(self) -> None:
        """Draws or prints the line, if it is time to."""
        now = time.monotonic()
        line = self.line()
        if self._stream.isatty():
            self._stream.write(f"\r{line:<{len(self._line)}}")
            self._line = line
            self._stream.flush()
        elif now - self._spoken >= SPEAK:
            self._stream.write(line + "\n")
            self._stream.flush()
            self._spoken = now

    def end(self) -> None:
        """Leaves the terminal on a new line."""
        if self._stream.isatty() and self._line:
            self._stream.write("\r" + " " * len(self._line) + "\r")
            self._stream.flush()


@contextlib.contextmanager
def watching(steps: Sequence[Watched], stream: IO[str] | None = None) -> Iterator[None]:
    """Shows progress while the block runs."""
    progress = Progress(steps, stream)
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(REDRAW):
            progress.show()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        progress.end()


def rows_of(manifest: dict) -> int:
    """The rows that a unit took in, as its manifest tells."""
    if isinstance(manifest.get("rows"), int):
        return manifest["rows"]
    inner = [value["rows_in"] for value in manifest.values() if isinstance(value, dict) and "rows_in" in value]
    return max(inner, default=manifest.get("keys", 0))


def clock(seconds: float) -> str:
    """1:02:03 or 4:05."""
    whole = int(seconds + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
