"""Replaces many files of a run's folder as one change. A crash leaves the old files or the new ones, never a mixture.

    OUT/.change/new/<path>      the new content of OUT/<path>
    OUT/.change/journal.json    what to move, to remove and to overwrite: the commit, written when all of it is there

Files that lie below OUT already can be moved, too (`Change.rename`).

Before the journal is written, the folder is as it was. After it, whoever locks the folder next carries the change out
(`finish`). Each step may be done twice. manifest.json is removed first and moved last: no reader sees a mixed set.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.engine import lease, storage

FOLDER = ".change"
MANIFEST = "manifest.json"
JOURNAL = "journal.json"


class Change:
    """A change that is being prepared. The caller holds the lock of the folder.

    Attributes:
        root: OUT.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._removed: set[str] = set()
        self._renamed: dict[str, str] = {}
        self._erased: list[dict[str, Any]] = []
        self._linked: set[str] = set()
        discard(root)

    def place(self, path: str) -> str:
        """Where the new content of a file goes. `path` is below OUT."""
        return os.path.join(self.root, FOLDER, "new", path)

    def current(self, path: str) -> str:
        """Where the content of a file is: its new content if there is one."""
        new = self.place(path)
        return new if storage.is_file(new) else os.path.join(self.root, path)

    def link(self, path: str) -> None:
        """Makes a file that stays readable among the new ones, unless it is one of them. This is no part of the change.

        Nothing happens if there is no such file.
        """
        target, name = os.path.join(self.root, path), self.place(path)
        if storage.is_file(target) and not storage.is_file(name):
            self._linked.add(path)
            storage.link(target, name)

    def remove(self, path: str) -> None:
        """The file or folder tree is removed."""
        self._removed.add(path)

    def rename(self, source: str, target: str) -> None:
        """A file below OUT gets another place. Until the commit it stays where it is."""
        self._renamed[target] = source

    def removes(self, path: str) -> bool:
        """True if the file is removed."""
        return path in self._removed

    def erase(self, path: str, ranges: Sequence[tuple[int, int]], size: int) -> None:
        """Bytes of a file become zeros in place, and the file is cut.

        Args:
            path: below OUT.
            ranges: (start, length) of the bytes.
            size: the new size of the file.
        """
        self._erased.append({"path": path, "ranges": [list(item) for item in ranges], "size": size})

    def paths(self) -> list[str]:
        """The paths of all files that the change replaces, removes or erases, sorted."""
        return sorted({*self._moved(), *self._renamed, *self._removed, *(item["path"] for item in self._erased)})

    def commit(self) -> None:
        """Writes the journal, then carries the change out."""
        journal = {
            "moved": self._moved(),
            "renamed": self._renamed,
            "removed": sorted(self._removed),
            "erased": self._erased,
        }
        lease.confirm(self.root)
        storage.write_json(os.path.join(self.root, FOLDER, JOURNAL), journal)
        finish(self.root)

    def _moved(self) -> list[str]:
        top = self.place("")
        found = (path for path in storage.walk(top) if not storage.is_link(path))
        moved = {os.path.relpath(path, top).replace(os.sep, "/") for path in found}
        return sorted(moved - self._linked)


def is_pending(root: str) -> bool:
    """True if a committed change is not carried out yet."""
    return storage.exists(os.path.join(root, FOLDER, JOURNAL))


def finish(root: str) -> bool:
    """Carries out a change that was committed. A change that was not is discarded. The caller holds the lock.

    Returns:
        True if there was a committed change.
    """
    folder = os.path.join(root, FOLDER)
    if not storage.is_folder(folder):
        return False
    journal = storage.read_json(os.path.join(folder, JOURNAL))
    if journal is not None:
        _carry_out(root, journal)
    discard(root)
    return journal is not None


def discard(root: str) -> None:
    """Removes what was prepared."""
    if storage.is_folder(os.path.join(root, FOLDER)):
        storage.remove(os.path.join(root, FOLDER))


def _carry_out(root: str, journal: dict[str, Any]) -> None:
    places = {path: os.path.join(FOLDER, "new", path) for path in journal["moved"]} | journal["renamed"]
    sources = {path: os.path.join(root, place) for path, place in places.items()}
    hidden = MANIFEST in sources and storage.exists(sources[MANIFEST])
    if hidden or MANIFEST in journal["removed"]:
        storage.remove(os.path.join(root, MANIFEST))
    for item in journal["erased"]:
        storage.erase(os.path.join(root, item["path"]), item["ranges"], item["size"])
    storage.move_all([(source, os.path.join(root, path)) for path, source in sources.items() if path != MANIFEST])
    _flush(root, {os.path.dirname(os.path.join(root, path)) for path in sources})
    if hidden:
        storage.move(sources[MANIFEST], os.path.join(root, MANIFEST))
        _flush(root, [root])
    for path in journal["removed"]:  # last: files may have been moved out of a folder that goes
        storage.remove(os.path.join(root, path))


def _flush(root: str, folders: Iterable[str]) -> None:
    """A store has no folders."""
    if not storage.is_url(root):
        storage.flush_folders(folders)
