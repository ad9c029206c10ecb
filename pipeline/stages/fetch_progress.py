"""How far the fetch is. A worker writes a small file for each unit under way, and the progress adds them up.

OUT/stages/fetch/images-000/00007.live    {"rows": 2500, "status": {"ok": 812, "dns": 3}, "state": ""}
"""

from __future__ import annotations

import collections
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.engine import fence, storage
from pipeline.engine.progress import Figures
from pipeline.engine.work import StepFolder
from pipeline.fetching.errors import OK

EVERY_S = 1.0  # seconds between two writes of a file
SHOWN = 3  # classes of failures that the progress names


class UnitFigures:
    """The counts of a unit under way, for the progress. Threads may share it."""

    def __init__(self, folder: StepFolder, unit: int, rows: int) -> None:
        self._path, self._fingerprint, self._rows = storage.beside(folder.file(unit, "live")), folder.fingerprint, rows
        storage.make_folder(os.path.dirname(self._path))
        self._status: collections.Counter[str] = collections.Counter()
        self._state = self._notice = ""
        self._written = 0.0
        self._lock = threading.Lock()
        self._write()

    def add(self, status: str, count: int = 1) -> None:
        """Counts finished rows."""
        with self._lock:
            self._status[status] += count
            if time.monotonic() >= self._written + EVERY_S:
                self._write()

    def set_state(self, state: str) -> None:
        """Shows why the unit waits; "": it does not wait."""
        with self._lock:
            if state != self._state:
                self._state = state
                self._write()

    def set_notice(self, notice: str) -> None:
        """Shows why the unit cannot go on, on a line of its own; "": it goes on."""
        with self._lock:
            if notice != self._notice:
                self._notice = notice
                self._write()

    def _write(self) -> None:
        """Writes the file in place: a reader that finds half of it waits for the next one."""
        self._written = time.monotonic()
        facts = {"rows": self._rows, "status": self._status, "state": self._state, "notice": self._notice}
        facts["fingerprint"] = self._fingerprint
        try:
            fence.confirm(self._path)
            with open(self._path, "w", encoding="utf-8") as file:
                file.write(json.dumps(facts))
        except (OSError, fence.FenceError):
            pass  # a full disk, or a run that has ended: the images themselves report it


class PassFigures:
    """The figures of a pass of the fetch, from the manifests and the live files of its units.

    Args:
        folder: of the pass.
        total: returns the rows of the pass; None: the rows of the units that have begun.
    """

    def __init__(self, folder: StepFolder, total: Callable[[], int | None] = lambda: None) -> None:
        self._folder, self._total = folder, total
        self._done: dict[str, Mapping[str, Any]] = {}

    def __call__(self) -> Figures | None:
        """The figures; None: nothing has begun."""
        names = storage.names(self._folder.path) if os.path.isdir(self._folder.path) else []
        for name in names:
            if name.endswith(".json") and name not in self._done and (found := self._read(name)):
                self._done[name] = found
        live = [name for name in names if name.endswith(".live") and f"{name.removesuffix('.live')}.json" not in names]
        under_way = [found for name in live if (found := self._read(name))]
        units = [*self._done.values(), *under_way]
        if not units:
            return None
        status: collections.Counter[str] = collections.Counter()
        for unit in units:
            status.update(unit["status"])
        rows = self._total()
        states = list(dict.fromkeys(unit["state"] for unit in units if unit.get("state")))[:1]
        words = ", ".join([*states, *([words_of(status)] if status else [])])
        rows = sum(unit["rows"] for unit in units) if rows is None else rows
        notices = [unit["notice"] for unit in units if unit.get("notice")]
        return Figures(status.total(), rows, words, min(notices, default=""), bool(under_way))

    def _read(self, name: str) -> Mapping[str, Any] | None:
        try:
            with open(os.path.join(self._folder.path, name), encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return None
        return found if found.get("fingerprint") == self._folder.fingerprint else None


def words_of(status: Mapping[str, int]) -> str:
    """The success share and the most frequent failures: "92 % ok, 31 dns, 4 timeout"."""
    counts = {name: count for name, count in status.items() if count}
    good = counts.pop(OK, 0)
    share = 100 * good / max(1, good + sum(counts.values()))
    failures = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    return ", ".join([f"{int(share)} % ok", *(f"{count:,} {name}" for name, count in failures)])
