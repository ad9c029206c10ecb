"""What a process of a run knows of OUT on a store, so that it does not ask for it again.

Only the run that holds the lease writes OUT. So a list of a folder stays true in two places:

    held        in the process that holds the lease, between two jobs. Its own writes and removals change the list.
    in_step     in a process that runs units of a step. The steps before have ended, and the units of this step write
                into its own folder. So the lists of other folders stay true while the step runs. They lie in the
                scratch folder, too: all processes of a machine ask the store once.

The workers of an engine may share no machine. There the last thing that a step does is its index (`write_index`): one
object below OUT/.index with the list of its folder and all manifests. A worker of a later step of the job reads it in
place of a list and a request for each manifest. The process that holds the lease takes those manifests from it whose
tags stand in its own list. Indexes go when the run ends.

A list has the tag of each object. With it a copy on this machine is known to be of the present version, or an object to
be missing, without a request. Elsewhere, and for other folders, nothing is known: `storage` asks the store.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator

import xxhash

from pipeline.engine import object_cache, object_store, scratch
from pipeline.engine.files import naming
from pipeline.engine.object_store import Version

LISTS = 64  # of steps that a process remembers
INDEXES = ".index"  # a folder of OUT
READERS = 16  # requests at a time
_FOLDER = ".view"  # in the scratch folder of OUT
_numbers = itertools.count(1)


@dataclasses.dataclass
class Listing:
    """What lies right in a folder.

    Attributes:
        files: the name of each object, with its version.
        folders: the names of the folders.
        number: another one after each change, and for each list.
    """

    files: dict[str, Version] = dataclasses.field(default_factory=dict)
    folders: set[str] = dataclasses.field(default_factory=set)
    number: int = dataclasses.field(default_factory=lambda: next(_numbers))

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self.files, *self.folders})

    def __bool__(self) -> bool:
        return bool(self.files or self.folders)


class _Held:
    """The lists of OUT in the process that holds its lease."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.name = secrets.token_hex(8)  # of the job that runs, or of the next one
        self.paused = 0
        self._lists: dict[str, Listing] = {}
        self._lock = threading.RLock()

    def listing(self, folder: str) -> Listing:
        with self._lock:
            if folder not in self._lists:
                self._ask(folder)
            return self._lists[folder]

    def _ask(self, folder: str) -> None:
        """Asks for a folder. All that lies below a stage comes at once: one request for each thousand objects."""
        if folder != self.root:
            parent, name = split(folder)
            if name not in self.listing(parent).folders:
                self._lists[folder] = Listing()
            if folder in self._lists:
                return
        places = folder[len(self.root) + 1 :].split("/")
        if places[0] != "stages" or len(places) < 2:
            self._lists[folder] = list_now(folder)
            return
        top = f"{self.root}/stages/{places[1]}"
        found = {top: Listing(), folder: Listing()}
        for entry in object_store.below(top):
            parent, name = split(entry.url)
            found.setdefault(parent, Listing()).files[name] = entry.version
        for path in list(found):
            while path != top:
                path, name = split(path)
                found.setdefault(path, Listing()).folders.add(name)
        self._lists |= found

    def below(self, folder: str) -> Iterator[str]:
        """The URLs of all objects below a folder of a stage."""
        found = self.listing(folder)
        yield from (f"{folder}/{name}" for name in found.files)
        for name in found.folders:
            yield from self.below(f"{folder}/{name}")

    def wrote(self, url: str, version: Version) -> None:
        with self._lock:
            folder, name = split(url)
            if folder in self._lists or self._is_missing(folder):
                self._change(folder).files[name] = version
            while folder != self.root:
                folder, name = split(folder)
                known = folder in self._lists or self._is_missing(folder)
                if known and name not in self._lists.get(folder, Listing()).folders:
                    self._change(folder).folders.add(name)

    def removed(self, path: str) -> None:
        with self._lock:
            for folder in [found for found in self._lists if within(path, found)]:
                del self._lists[folder]
            while path != self.root:
                path, name = split(path)
                if path not in self._lists:
                    if not self._is_missing(path):  # whether it is empty now is not known
                        self._lists = {name: found for name, found in self._lists.items() if not within(name, path)}
                    return
                found = self._change(path)
                found.files.pop(name, None)
                found.folders.discard(name)
                if found:
                    return

    def forget(self) -> None:
        with self._lock:
            self._lists.clear()

    def _is_missing(self, folder: str) -> bool:
        """True if a list shows that there is no such folder."""
        while folder != self.root:
            folder, name = split(folder)
            if folder in self._lists:
                return name not in self._lists[folder].folders
        return False

    def _change(self, folder: str) -> Listing:
        found = self._lists.setdefault(folder, Listing())
        found.number = next(_numbers)
        return found


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step whose units a process runs.

    Attributes:
        root: OUT.
        job: its name.
        path: the folder of the step.
        indexed: the steps of the job have indexes.
    """

    root: str
    job: str
    path: str
    indexed: bool


_held: dict[str, _Held] = {}
_step: contextvars.ContextVar[_Step | None] = contextvars.ContextVar("step", default=None)
_looked_at: contextvars.ContextVar[tuple[str, Listing] | None] = contextvars.ContextVar("looked_at", default=None)


@contextlib.contextmanager
def held(root: str) -> Iterator[None]:
    """This process holds the lease of OUT while the block runs. On a folder of this machine it does nothing."""
    if not object_store.is_url(root):
        yield
        return
    _held[root] = _Held(root)
    _sweep(root)
    try:
        yield
    finally:
        _remove_indexes(_held.pop(root))
        _sweep(root)


@contextlib.contextmanager
def glance(root: str) -> Iterator[None]:
    """The block sees OUT on a store as it was at the first look. It must not rely on it: another run may write."""
    if not object_store.is_url(root) or root in _held:
        yield
        return
    _held[root] = _Held(root)
    try:
        yield
    finally:
        del _held[root]


@contextlib.contextmanager
def job(root: str) -> Iterator[None]:
    """While the block runs, the workers of this run write OUT, and this process knows nothing of it."""
    found = _held.get(root)
    if found is None:
        yield
        return
    found.forget()
    found.paused += 1
    try:
        yield
    finally:
        found.paused -= 1
        found.forget()
        found.name = secrets.token_hex(8)


def job_of(root: str) -> str:
    """The name of the job that this process runs or prepares for OUT, for `in_step`; "": none."""
    return _held[root].name if root in _held else ""


@contextlib.contextmanager
def in_step(root: str, job: str, path: str, *, indexed: bool = False) -> Iterator[None]:
    """The block runs units of a step. Without the name of its job nothing is known in it.

    Args:
        root: OUT.
        job: `job_of` in the process that made the job.
        path: the folder of the step.
        indexed: the steps of the job have indexes.
    """
    token = _step.set(_Step(root, job, path, indexed) if job else None)
    try:
        yield
    finally:
        _step.reset(token)


def split(url: str) -> tuple[str, str]:
    """(folder, name)"""
    folder, _, name = url.rpartition("/")
    return folder, name


def listing(folder: str) -> Listing | None:
    """What lies in a folder; None: it is not known."""
    step = _step.get()
    if step is not None and within(step.root, folder):
        places = folder[len(step.root) + 1 :].split("/")
        of_stages = places in ([""], ["stages"]) or (places[0] == "stages" and len(places) in (2, 3))
        return _of_step(step, folder) if of_stages and folder != step.path else None
    found = _holder(folder)
    if found is not None:
        return found.listing(folder)
    seen = _looked_at.get()
    return seen[1] if seen is not None and seen[0] == folder else None


@contextlib.contextmanager
def looking_at(folder: str) -> Iterator[None]:
    """The block sees the folder as it is now. It is listed once."""
    token = _looked_at.set((folder, list_now(folder)) if listing(folder) is None else None)
    try:
        yield
    finally:
        _looked_at.reset(token)


def list_now(folder: str) -> Listing:
    """What the store says. The number of the list stays the same while the folder does."""
    entries, folders = object_store.within(folder)
    files = {split(entry.url)[1]: entry.version for entry in entries}
    found = Listing(files, set(folders))
    found.number = xxhash.xxh3_64_intdigest(json.dumps([sorted(files.items()), sorted(folders)]).encode())
    return found


def head(url: str) -> Version | None:
    """The version of an object; None: there is none. The store is asked if it is not known."""
    folder, name = split(url)
    found = listing(folder)
    return object_store.head(url) if found is None else found.files.get(name)


def known(url: str) -> Version | None:
    """The version of an object; None: it is not known.

    Raises:
        FileNotFoundError: it is known that there is none.
    """
    folder, name = split(url)
    found = listing(folder)
    if found is not None and name not in found.files:
        raise FileNotFoundError(url)
    return None if found is None else found.files[name]


def below(folder: str) -> list[str] | None:
    """The URLs of all objects below a folder, sorted; None: they are not known."""
    found = _holder(folder)
    of_stage = found is not None and within(f"{found.root}/stages", split(folder)[0])
    return sorted(found.below(folder)) if found is not None and of_stage else None


def wrote(url: str, version: Version) -> None:
    """This process has written an object."""
    if found := _holder(url):
        found.wrote(url, version)
    _drop(url)


def removed(path: str) -> None:
    """This process has removed an object, or all of a folder."""
    if found := _holder(path):
        found.removed(path)
    _drop(path)


def within(folder: str, path: str) -> bool:
    """True if the path is the folder, or lies below it."""
    return path == folder or path.startswith(f"{folder}/")


def _holder(path: str) -> _Held | None:
    return next((found for root, found in _held.items() if not found.paused and within(root, path)), None)


# ---------------------------------------------------------------------------------------------------------- indexes


@dataclasses.dataclass(frozen=True)
class _Index:
    """What an index says of the folder of a step."""

    job: str
    listing: Listing
    bodies: dict[str, str]


def write_index(root: str, job: str, folder: str) -> None:
    """Writes the index of a step whose units have ended."""
    found = list_now(folder)

    def body(name: str) -> tuple[str, str]:
        with open(object_cache.of_version(f"{folder}/{name}", found.files[name].tag), encoding="utf-8") as file:
            return name, file.read()

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        bodies = dict(pool.map(body, (name for name in found.files if name.endswith(".json"))))
    said = {"job": job, "files": found.files, "folders": sorted(found.folders), "bodies": bodies}
    object_store.write(_index_url(root, folder), json.dumps(said, ensure_ascii=False).encode())


def manifest(url: str, tag: str) -> bytes | None:
    """The bytes of a version of a manifest, if an index has them."""
    folder, name = split(url)
    step, holder = _step.get(), _holder(url)
    root = step.root if step is not None else holder.root if holder else ""
    if not name.endswith(".json") or not root or not folder.startswith(f"{root}/stages/"):
        return None
    if step is not None:
        found = _index(root, folder, step.job) if step.indexed else None
    else:
        at, of = split(_index_url(root, folder))
        there = listing(at)
        found = _index(root, folder, there.files[of].tag) if there is not None and of in there.files else None
    if found is None or found.listing.files.get(name, ("", ""))[1] != tag or name not in found.bodies:
        return None
    return found.bodies[name].encode()


@functools.lru_cache(maxsize=LISTS)
def _index(root: str, folder: str, version: str) -> _Index | None:
    """The index of a step; None: there is none. `version`: another one asks again."""
    del version
    try:
        said = json.loads(object_store.read(_index_url(root, folder)))
    except FileNotFoundError:
        return None
    files = {name: Version(*found) for name, found in said["files"].items()}
    return _Index(said["job"], Listing(files, set(said["folders"])), said["bodies"])


def _index_url(root: str, folder: str) -> str:
    return f"{root}/{INDEXES}/{folder[len(root) + 1 :].replace('/', '-')}.json"


def _remove_indexes(held: _Held) -> None:
    """Removes the indexes of a run that ends. What is left goes with the next run."""
    with contextlib.suppress(Exception):
        urls = [f"{held.root}/{INDEXES}/{name}" for name in held.listing(f"{held.root}/{INDEXES}").files]
        object_store.delete(urls)


# ----------------------------------------------------------------------------------------------- the lists of a step


@functools.lru_cache(maxsize=LISTS)
def _of_step(step: _Step, folder: str) -> Listing:
    """A list that a process of this machine has made while the step ran."""
    path = _path(step, folder)
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        files, folders = json.load(file)
        return Listing({name: Version(*version) for name, version in files.items()}, set(folders))
    of_a_step = folder.count("/") == step.root.count("/") + 3
    index = _index(step.root, folder, step.job) if step.indexed and of_a_step else None
    found = index.listing if index is not None and index.job == step.job else list_now(folder)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    name = f"{path}.tmp{os.getpid()}-{next(_numbers)}"
    with naming(name), open(name, "w", encoding="utf-8") as file:
        json.dump([found.files, sorted(found.folders)], file)
    os.replace(name, path)
    return found


def _path(step: _Step, folder: str) -> str:
    name = hashlib.sha256(f"{step.path}\n{folder}".encode()).hexdigest()[:40]
    return os.path.join(scratch.beside(step.root), _FOLDER, step.job, name)


def _drop(path: str) -> None:
    """A list that this process has changed is made anew."""
    step, folder = _step.get(), split(path)[0]
    if step is not None and within(step.root, path) and folder != step.path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_path(step, folder))
            _of_step.cache_clear()


def _sweep(root: str) -> None:
    shutil.rmtree(os.path.join(scratch.beside(root), _FOLDER), ignore_errors=True)
