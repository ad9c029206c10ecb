"""The index of a set as it is now: opened, or built, and built again when the set changes under the server."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.dataset.errors import Damaged, NotFound
from pipeline.engine import storage
from pipeline.engine.input_errors import InputError
from pipeline.explorer.answers import Explorer
from pipeline.explorer.building import INDEX_FILE, Progress, Source, build, digest_of_files, open_source
from pipeline.explorer.index import open_index
from pipeline.explorer.neighbours import open_neighbours
from pipeline.inspector.foreign import TarPairs

LOOK_S = 1.0  # between two looks at the manifest


class Building(Exception):
    """The set has changed, and its index is being built: `done` of `rows`."""

    def __init__(self, done: int, rows: int) -> None:
        super().__init__("the set has changed: its index is being built")
        self.done, self.rows = done, rows


def cache_folder() -> str:
    """The folder that holds the indexes of this user."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(root, "openwit", "explore")


@dataclasses.dataclass(frozen=True)
class Opened:
    """An explorer that is open.

    Attributes:
        explorer: answers.
        folder: of its index.
        built: True if the index was built now.
    """

    explorer: Explorer
    folder: str
    built: bool


def open_explorer(
    folder: str, cache: str, tables: Sequence[str] = (), *, progress: Progress = lambda done, rows: None
) -> Opened:
    """Opens a set with its index. It is built where there is none yet; indexes of earlier states of the set go.

    Args:
        folder: of the set.
        cache: holds indexes.
        tables: of embeddings.
        progress: as for `build`.

    Raises:
        NotFound, Damaged: the set cannot be opened.
        UsageError: a table of embeddings is not one.
        OSError: the index cannot be written.
    """
    source = open_source(folder)
    place = os.path.join(cache, source.digest[:32])
    index = open_index(place, source.digest)
    built = index is None
    if index is None:
        shutil.rmtree(place, ignore_errors=True)
        build(source, place, progress=progress)
        index = open_index(place, source.digest)
        if index is None:
            raise Damaged(f"the index in {place!r} cannot be read")
    remove_stale(cache, source)
    return Opened(Explorer(source, index, open_neighbours(index, tables) if tables else None), place, built)


def remove_stale(cache: str, source: Source) -> None:
    """Removes indexes of earlier states of a folder: they hold texts that may have been forgotten since."""
    folder = storage.absolute(source.folder)
    for name in os.listdir(cache):
        path = os.path.join(cache, name)
        try:
            with open(os.path.join(path, INDEX_FILE), "rb") as file:
                facts = json.load(file)
            if facts["folder"] == folder and facts["digest"] != source.digest:
                shutil.rmtree(path, ignore_errors=True)
        except (OSError, ValueError, KeyError, TypeError):
            continue


def state_of(source: Source) -> Any:
    """A value that changes when a set does: the state of its manifest, or that of all tars."""
    if isinstance(source.pairs, TarPairs):
        try:
            return digest_of_files(source.pairs.paths)
        except OSError:
            return None
    try:
        return storage.state(os.path.join(source.folder, "manifest.json"))
    except InputError:  # a store that is away: the set is opened again, and this says why it cannot be
        return None


class Watched:
    """The explorer of a folder that may change.

    Args:
        first: the explorer as it is open now.
        reopen: opens the folder again, and is given a callback for its progress.
    """

    def __init__(self, first: Explorer, reopen: Callable[[Progress], Explorer]) -> None:
        self._explorer, self._reopen = first, reopen
        self._state, self._looked = state_of(first.source), time.monotonic()
        self._lock = threading.Lock()
        self._done: tuple[int, int] | None = None
        self._error: Exception | None = None

    def get(self) -> Explorer:
        """The explorer of the set as it is now.

        Raises:
            Building: the set has changed, and its index is not ready.
            Damaged, NotFound: the changed set cannot be opened.
        """
        with self._lock:
            if self._done is None and time.monotonic() - self._looked > LOOK_S:
                state, self._looked = state_of(self._explorer.source), time.monotonic()
                if state != self._state:
                    self._state, self._done, self._error = state, (0, 0), None
                    threading.Thread(target=self._open_again, daemon=True).start()
            if self._done is not None:
                raise Building(*self._done)
            if self._error is not None:
                raise self._error
            return self._explorer

    def _open_again(self) -> None:
        def progress(done: int, rows: int) -> None:
            self._done = done, rows

        try:
            explorer = self._reopen(progress)
            with self._lock:
                self._explorer, self._done = explorer, None
        except Exception as error:
            known = error if isinstance(error, (NotFound, Damaged)) else Damaged(f"the set cannot be opened: {error}")
            with self._lock:
                self._error, self._done = known, None
