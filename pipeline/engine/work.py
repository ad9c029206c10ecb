"""The work folder: stages made of steps, steps made of units, and a manifest a unit.

    OUT/stages/<stage>/<step>/00007.json      what unit 7 did: the commit, written after all its files
    OUT/stages/<stage>/<step>/00007*.<kind>   its files
    OUT/stages/<stage>/files.json             the names of all files of the stage, for a check that none is gone
    OUT/stages/<stage>/info.json, COMPLETED   written last

A unit is the smallest piece of work that is done again after a crash. Its manifest carries the fingerprint of the stage
that it belongs to. A manifest with another fingerprint does not count. A unit's files do not tell which worker, runner
or attempt made them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeAlias

import xxhash

from pipeline.engine import (
    checks,
    clusters,
    fence,
    journal,
    lease,
    log_file,
    object_view,
    remote,
    scratch,
    storage,
    variables,
)
from pipeline.engine.cli import UsageError
from pipeline.engine.input_errors import RefusedInputError, TransferError

FILES = "files.json"
FIRST_PATIENCE_S = 60.0  # of a worker that asks the store for the first time

Json: TypeAlias = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


class Busy(RuntimeError):
    """Another run holds the folder; `holder` is what is known of it, such as "process 7"."""

    def __init__(self, root: str, holder: str) -> None:
        super().__init__(f"another run holds the output folder {root} ({holder}): wait for it, or end it first")


class JobLeft(Busy):
    """A job that a killed client left on a cluster cannot be cancelled from here."""

    def __init__(self, root: str, left: str) -> None:
        RuntimeError.__init__(self, f"another run may hold the output folder {root}: {left}")


class WorkerError(RuntimeError):
    """A worker lacks what a job needs."""

    @classmethod
    def of(cls, lacks: str) -> WorkerError:
        """The usual message. People look for the cause on the host of the command, so the host is named."""
        return cls(f"the worker on {socket.gethostname()} {lacks}")


@contextlib.contextmanager
def sees_inputs(root: str) -> Iterator[None]:
    """In the block, a missing file outside of OUT is an input that this worker does not see.

    Raises:
        WorkerError: it does not. The command has seen it, so it is not "gone", and no --skip-bad-inputs leaves it out.
    """
    try:
        yield
    except FileNotFoundError as error:
        path = error.filename
        if not isinstance(path, str) or not os.path.isabs(path) or path.startswith(os.path.join(root, "")):
            raise
        raise WorkerError.of(
            f"does not see the input {path}: all workers must see the inputs under the same paths. Put them on a "
            "shared file system, or into a bucket (s3://...)"
        ) from None


class Unfinished(Busy):
    """A change of the folder was interrupted, and this user may not carry it out."""

    def __init__(self, root: str, refusal: Exception) -> None:
        RuntimeError.__init__(
            self,
            f"a change of {root} (forget, --extend or publish) was interrupted and is not finished, and this user may "
            f"not finish it ({refusal}): a user with the right to write must run a command there once, such as "
            "inspect_shards info",
        )


class LeaseLost(Busy):
    """Another run has taken the folder over while this one gave no sign, or while its lock could not be seen."""

    def __init__(self, message: str) -> None:
        RuntimeError.__init__(self, message)


def _name(unit: int, kind: str, part: int | None) -> str:
    middle = "" if part is None else f"-{part:03d}"
    return f"{unit:05d}{middle}.{kind}"


def file_of(folder: str, unit: int, kind: str, part: int | None = None) -> str:
    """The path below OUT of the file of a unit. `folder` is below OUT/stages. See `StepFolder.file`."""
    return f"stages/{folder}/{_name(unit, kind, part)}"


def is_done(root: str, stage: str) -> bool:
    """True if the folder OUT holds the stage, complete."""
    return StageFolder(root, stage).info() is not None


@dataclasses.dataclass(frozen=True)
class StepFolder:
    """Where the units of one step leave their files."""

    path: str
    fingerprint: str

    @property
    def root(self) -> str:
        """OUT, the folder of the run."""
        return os.path.dirname(os.path.dirname(os.path.dirname(self.path)))

    def file(self, unit: int, kind: str, part: int | None = None) -> str:
        """The path of a unit's file: 00007.<kind>, or 00007-002.<kind> for its third part."""
        return os.path.join(self.path, _name(unit, kind, part))

    def manifest(self, unit: int) -> dict[str, Any] | None:
        """What the unit did, or None if it is not done under this fingerprint."""
        found = storage.read_json(self.file(unit, "json"))
        return found if found is not None and found.get("fingerprint") == self.fingerprint else None

    def manifests(self) -> list[tuple[int, dict[str, Any]]]:
        """(unit, manifest) of all units that are done, by number."""
        changed = storage.changed(self.path)
        return _manifests(self, changed) if changed is not None else []

    def remove_files(self, unit: int) -> None:
        """Removes what a unit wrote, its manifest first."""
        manifest = self.file(unit, "json")
        storage.remove(manifest)
        marks = (f"{unit:05d}.", f"{unit:05d}-")
        for name in storage.names(self.path):
            if name.startswith(marks):
                storage.remove(os.path.join(self.path, name))

    def total(self, name: str) -> Any:
        """The sum of one number over all manifests."""
        return sum(found.get(name, 0) for _, found in self.manifests())

    def write_manifest(self, unit: int, body: dict[str, Any]) -> dict[str, Any]:
        """Commits a unit, after its files were written. Returns the manifest."""
        lease.confirm(self.root)
        found = {**body, "fingerprint": self.fingerprint}
        storage.write_json(self.file(unit, "json"), found)
        return found


@functools.lru_cache(maxsize=16)
def _manifests(folder: StepFolder, changed: int) -> list[tuple[int, dict[str, Any]]]:
    """`manifests` of a folder in one state, cached: a step that reads buckets calls it once for each unit."""
    del changed
    units = sorted(int(name.removesuffix(".json")) for name in storage.names(folder.path) if name.endswith(".json"))
    return [(unit, found) for unit in units for found in [folder.manifest(unit)] if found is not None]


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """The folder of one stage.

    Attributes:
        root: OUT, the folder of the run, absolute.
        name: of the stage.
        fingerprint: digest of everything that decides the stage's rows.
        about: JSON that info.json repeats: what decides the rows, the options, the versions of the code.
        before: name of the stage whose rows this one takes in; "": none.
        of_units: digest of everything that decides the rows of one input. Other inputs do not change it.
    """

    root: str
    name: str
    fingerprint: str = ""
    about: str = "{}"
    before: str = ""
    of_units: str = ""

    @property
    def path(self) -> str:
        """OUT/stages/<name>."""
        return os.path.join(self.root, "stages", self.name)

    def step(self, name: str, *, more: str = "") -> StepFolder:
        """The folder of one step. `more` is added to the fingerprint of its units."""
        fingerprint = digest_of(self.fingerprint, more) if more else self.fingerprint
        return StepFolder(os.path.join(self.path, name), fingerprint)

    def units(self, name: str) -> StepFolder:
        """The folder of a step whose units stay valid when inputs are added or dropped."""
        return StepFolder(os.path.join(self.path, name), self.of_units)

    def info(self) -> dict[str, Any] | None:
        """info.json of the stage if it is completed, else None. One of an older version has no checksum in it."""
        if not storage.is_file(os.path.join(self.path, "COMPLETED")):
            return None
        return storage.read_json(os.path.join(self.path, "info.json"), sealed=False)

    def done(self) -> dict[str, Any]:
        """info.json of a stage that must be completed.

        Raises:
            RuntimeError: the stage is not completed.
        """
        info = self.info()
        if info is None:
            raise RuntimeError(f"the stage {self.name!r} is not done in {self.root}")
        if storage.CHECKSUM not in info:
            raise storage.DamagedError.of(os.path.join(self.path, "info.json"), "it has no checksum")
        return info

    def complete(self, info: dict[str, Any], *, into: str | None = None, without: str = "") -> None:
        """Writes the list of the stage's files, then info.json, then COMPLETED.

        Args:
            info: the body of info.json.
            into: a folder for these three; None: that of the stage.
            without: a folder of the stage that goes away.
        """
        into = into or self.path
        written = {os.path.relpath(path, self.path).replace(os.sep, "/") for path in storage.walk(self.path)}
        listed = {path for path in written - {FILES, "info.json", "COMPLETED"} if path.split("/")[0] != without}
        storage.write_list(os.path.join(into, FILES), sorted(listed))
        head = {"stage": self.name, "fingerprint": self.fingerprint, **json.loads(self.about)}
        storage.write_json(os.path.join(into, "info.json"), {**head, **info})
        storage.write_plain(os.path.join(into, "COMPLETED"), b"")


def run_unit(
    folder: StepFolder, unit: int, task: Callable[[int], dict[str, Any]], *, new: bool = False
) -> dict[str, Any]:
    """Runs a unit unless its manifest is there. The manifest is written last and commits the unit.

    Args:
        folder: of the step.
        unit: its number.
        task: what it does.
        new: the caller knows that no manifest is there.
    """
    done = None if new else folder.manifest(unit)
    if done is not None:
        return done
    start, cpu = time.time(), time.process_time()
    found = task(unit)
    found |= {
        "seconds": round(time.time() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
    }
    return folder.write_manifest(unit, found)


def is_begun(folder: StepFolder) -> bool:
    """False: on a store, no object lies in the folder of the step. Only the process that holds the lease knows it."""
    known = object_view.listing(folder.path)
    return known is None or bool(known)


def new_units(folder: StepFolder, units: Sequence[int], *, begun: bool) -> Set[int]:
    """Those of some units that are known to be without a manifest, so that none asks a store for its own.

    Args:
        folder: of the step.
        units: numbers.
        begun: False: when the job began, the folder was empty. Another process may have done the units since then.
    """
    if not storage.is_url(folder.path) or (begun and len(units) == 1):
        return frozenset()
    if not begun and len(units) == 1:
        return frozenset(units)
    names = set(storage.names(folder.path))
    return {unit for unit in units if _name(unit, "json", None) not in names}


def digest_of(*parts: Any) -> str:
    """A short digest of JSON-like values, equal in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def hex_digest(value: int) -> str:
    """An order-free row digest (an integer modulo 2^64) as info.json shows it."""
    return f"{value % 2**64:016x}"


@contextlib.contextmanager
def lock_run_folder(root: str, *, patience: float = 10.0) -> Iterator[None]:
    """Locks the folder for one run. The kernel releases the lock when the process ends, however it ends.

    A new run cancels a job that a dead run left on a cluster. Then it raises the `fence`: workers of a dead run cannot
    write any more, on whatever host they are. They hold a shared lock (`lock_as_worker`). The new run waits at most
    `patience` seconds for those of this host to end, so that they do not use its cores. It carries out a change of the
    folder that was committed (`journal`).

    Raises:
        Busy: another run holds the folder, or takes it over, or the job of a dead run does not end.
        UsageError: the folder cannot be made or written.
    """
    here = storage.beside(root)
    _make(here)
    with open(os.path.join(here, ".lock"), "a+") as run, open(os.path.join(here, ".workers"), "a+") as workers:
        try:
            fcntl.flock(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run.seek(0)
            raise Busy(root, run.read().strip() or "unknown process") from None
        except OSError as error:
            raise UsageError(f"--output {root}: {_no_locks(error)}") from None
        run.seek(0)
        run.truncate()
        run.write(f"process {os.getpid()} on {socket.gethostname()}")
        run.flush()
        os.fsync(run.fileno())  # for other hosts
        storage.changed(here)  # what another host did there is seen from here on
        with _held_alone(root):  # first: a run on another machine may be alive, and its job with it
            try:
                clusters.cancel_leftover(root)
            except RuntimeError as error:
                raise JobLeft(root, str(error)) from error
            _wait_for(root, workers, patience)
            journal.finish(root)
            _running.add(root)
            try:
                yield
            finally:
                _running.discard(root)


def _no_locks(error: OSError) -> str:
    """Why two runs could not see each other. Some mounts of Lustre and NFS have no locks."""
    return (
        f"its file system gives no lock ({error.strerror}), so two runs could write there at once: "
        "mount it with locks, or name a folder of another one"
    )


@contextlib.contextmanager
def _held_alone(root: str) -> Iterator[None]:
    """While the block runs, no other run writes in the folder: by a lease on a store, by the fence elsewhere.

    Raises:
        Busy: another run holds it, or has taken it over.
    """
    try:
        with lease.held(root) if storage.is_url(root) else fence.raised(root), object_view.held(root):
            yield
    except lease.Held as error:
        raise Busy(root, str(error)) from None
    except (lease.LeaseError, fence.FenceError) as error:
        raise LeaseLost(str(error)) from None


def holder_of(root: str) -> str:
    """The run that holds the folder, such as "process 7 on node3"; "": none that can be seen from here.

    It takes no lock, so it disturbs no run. On a folder it reads the kernel's list of locks, where there is one.
    """
    if storage.is_url(root):
        return lease.holder_of(root)
    try:
        with open(os.path.join(root, ".lock"), encoding="ascii") as lock, open("/proc/locks", encoding="ascii") as all_:
            end = f":{os.fstat(lock.fileno()).st_ino}"
            held = any(word.endswith(end) for line in all_ for word in line.split()[5:6])
            return lock.read() if held else ""
    except (OSError, ValueError):
        return ""


def settle(root: str) -> None:
    """Carries out a change of the folder that a crash interrupted (`journal`). Readers call it.

    Raises:
        Unfinished: this user may not write there.
        Busy: the process that makes the change is alive, or a build is.
        OSError: the folder cannot be written.
    """
    if not journal.is_pending(root):
        return
    refusals = (RefusedInputError if storage.is_url(root) else UsageError, PermissionError)
    try:
        with lock_run_folder(root):
            return
    except refusals as error:
        raise Unfinished(root, error) from None


def _make(root: str) -> None:
    """Makes the folder of a run."""
    try:
        os.makedirs(root, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"the output {root!r} is a file, or lies below one: name a folder") from None
    except OSError as error:
        raise UsageError(f"the output folder {root!r} cannot be made ({error.strerror}): name another one") from None
    if not os.access(root, os.W_OK | os.X_OK):
        raise UsageError(f"the output folder {root!r} is not writable: name another one, or change its permissions")


def _wait_for(root: str, workers: Any, patience: float) -> None:
    """Waits until no worker of an earlier run is alive, and goes on with a word if one does not end."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(workers, fcntl.LOCK_UN)
            return
        except BlockingIOError:
            if storage.is_url(root) and time.monotonic() > end:
                raise Busy(root, "workers of an earlier run that are still ending") from None
            if time.monotonic() > end:
                return log_file.say(f"workers of an earlier run on {root} do not end; they cannot write there any more")
            time.sleep(0.1)


_running: set[str] = set()
_held: dict[str, Any] = {}


def token_of(root: str) -> str:
    """What shows that a process works for the run that this process belongs to: of the lease or the fence; "": none."""
    return lease.token_of(root) or fence.token_of(root)


def _join(root: str, token: str) -> None:
    """`lease.join`. What a worker lacks is said in words: people look for it on the host of the command."""
    try:
        patience = min(FIRST_PATIENCE_S, remote.settings().patience)
        with remote.configured(dataclasses.replace(remote.settings(), patience=patience)):
            lease.join(root, token)
    except (RefusedInputError, TransferError) as error:
        remedy = "Give its environment the credentials and the endpoint of the store"
        needed = [extra for package, extra in checks.STORES.values() if package in str(error)]
        if needed:
            remedy = f"Install there what it needs: pip install 'openwit[{needed[0]}]'"
        who = f"the worker on {socket.gethostname()} cannot use --output"
        raise type(error)(f"{who}: {error}. {remedy} (docs/engines.md)") from error


@functools.cache
def code() -> str:
    """A digest of the sources of this process. A job needs the same ones on every host: it names their classes."""
    digest, top = xxhash.xxh3_64(), Path(__file__).parents[2]
    for path in sorted(path for name in ("pipeline", "queries") for path in (top / name).rglob("*.py")):
        digest.update(path.relative_to(top).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def check_code(of_job: str) -> None:
    """Refuses a worker with other sources than the job, before it fails with an error that says nothing.

    Raises:
        WorkerError: it has another version of this package.
    """
    if of_job != code():
        place = Path(__file__).parents[2]
        raise WorkerError.of(f"has another version of this package ({place}) than the command: install the same one")


def _check_variables() -> None:
    """Refuses the environment of a worker if a variable of this package is wrong in it. Each host has its own."""
    try:
        variables.check()
    except ValueError as error:
        raise WorkerError.of(f"has a wrong environment variable: {error}") from None


def lock_as_worker(root: str, token: str = "") -> None:
    """Holds the shared lock until this process ends. Every process that writes below `root` calls it.

    Args:
        root: OUT.
        token: `token_of` in the process that made the job.

    Raises:
        FenceError, LeaseError: the job no longer holds the folder.
        RefusedInputError, TransferError: this process cannot reach the store that holds the folder.
        WorkerError: an environment variable of this process is wrong.
    """
    if storage.is_url(root):
        _join(root, token)
    if root in _running:
        return
    if not storage.is_url(root):
        fence.enter(root, token)
    if root not in _held:
        _check_variables()
        here = storage.beside(root)
        os.makedirs(here, exist_ok=True)
        if here != root:
            scratch.remove_abandoned(here)
        workers = open(os.path.join(here, ".workers"), "a+")
        try:
            fcntl.flock(workers, fcntl.LOCK_SH)
        except OSError as error:
            workers.close()
            raise WorkerError.of(f"cannot use --output {root}: {_no_locks(error)}") from None
        _held[root] = workers


def check_token(root: str, token: str) -> None:
    """Checks that the job with a token still holds the folder. A worker calls it before each unit.

    Raises:
        FenceError: it does not.
    """
    if token and not storage.is_url(root):
        if fence.token_of(root) != token:  # a thread of an earlier job in the process of a later one
            raise fence.kept_out(root)
        fence.confirm(root)
