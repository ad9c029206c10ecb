"""The work folder: stages made of steps, steps made of units, and a manifest a unit.

    OUT/stages/<stage>/<step>/00007.json      what unit 7 did: the commit, written after all its files
    OUT/stages/<stage>/<step>/00007*.<kind>   its files
    OUT/stages/<stage>/info.json, COMPLETED   written last

A unit is the smallest piece of work that is done again after a crash. Its manifest carries the digest of the plan that
it belongs to; a manifest of another plan does not count. Which worker, runner or try did a unit leaves no trace in its
files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.engine import files
from pipeline.engine.cli import UsageError
from pipeline.engine.ledger import Ledger

STAGES = ("gather", "match", "dedup", "balance", "fetch", "dedup-images", "publish")


class Busy(RuntimeError):
    """Another run holds the folder."""


class PlanChanged(ValueError):
    """The folder holds a stage made with other options or inputs."""


@dataclasses.dataclass(frozen=True)
class StepFolder:
    """Where the units of one step leave their files."""

    path: str
    plan: str

    def file(self, unit: int, kind: str, part: int | None = None) -> str:
        """The path of a unit's file: 00007.<kind>, or 00007-002.<kind> for its third part."""
        middle = "" if part is None else f"-{part:03d}"
        return os.path.join(self.path, f"{unit:05d}{middle}.{kind}")

    def manifest(self, unit: int) -> dict[str, Any] | None:
        """What the unit did, or None if it is not done under this plan."""
        found = files.read_json(self.file(unit, "json"))
        return found if found is not None and found.get("plan") == self.plan else None

    def manifests(self) -> list[tuple[int, dict[str, Any]]]:
        """(unit, manifest) of all units that are done, by number."""
        try:
            changed = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            return []
        return _manifests(self, changed)

    def total(self, name: str) -> Any:
        """The sum of one number over all manifests."""
        return sum(found.get(name, 0) for _, found in self.manifests())


@functools.lru_cache(maxsize=16)
def _manifests(folder: StepFolder, changed: int) -> list[tuple[int, dict[str, Any]]]:
    """`manifests` of a folder in one state: steps that read another's buckets ask once a unit."""
    del changed
    units = sorted(int(name.removesuffix(".json")) for name in os.listdir(folder.path) if name.endswith(".json"))
    return [(unit, found) for unit in units for found in [folder.manifest(unit)] if found is not None]


@dataclasses.dataclass(frozen=True)
class Work:
    """One run's folder.

    Attributes:
        root: the folder, absolute.
        plans: per stage the digest of everything that decides its rows.
        about: JSON of what every info.json repeats: the options and the versions of the code.
    """

    root: str
    plans: tuple[tuple[str, str], ...] = ()
    about: str = "{}"

    def stage(self, stage: str) -> str:
        """The folder of a stage."""
        return os.path.join(self.root, "stages", stage)

    def plan(self, stage: str) -> str:
        """The plan digest of a stage."""
        return dict(self.plans)[stage]

    def step(self, stage: str, step: str) -> StepFolder:
        """The folder of one step of a stage."""
        return StepFolder(os.path.join(self.stage(stage), step), self.plan(stage))

    def info(self, stage: str) -> dict[str, Any] | None:
        """info.json of a completed stage, else None."""
        if not os.path.exists(os.path.join(self.stage(stage), "COMPLETED")):
            return None
        return files.read_json(os.path.join(self.stage(stage), "info.json"))

    def completed(self, stage: str) -> bool:
        """True if the stage is done under this plan.

        Raises:
            PlanChanged: it is done, but under another plan.
        """
        info = self.info(stage)
        if info is None:
            return False
        if info["plan"] != self.plan(stage):
            raise PlanChanged(stage)
        return True

    def done(self, stage: str) -> dict[str, Any]:
        """info.json of a stage that must be done by now."""
        info = self.info(stage)
        if info is None:
            raise RuntimeError(f"the stage {stage!r} is not done in {self.root}")
        return info

    def complete(self, stage: str, info: dict[str, Any]) -> None:
        """Writes info.json, then COMPLETED."""
        folder = self.stage(stage)
        files.write_json(
            os.path.join(folder, "info.json"),
            {"stage": stage, "plan": self.plan(stage), **json.loads(self.about), **info},
        )
        files.write_bytes(os.path.join(folder, "COMPLETED"), b"")


def run_unit(folder: StepFolder, unit: int, task: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Does a unit unless its manifest is there; the manifest is written last and commits it."""
    done = folder.manifest(unit)
    if done is not None:
        return done
    start, cpu = time.time(), time.process_time()
    found = task(unit)
    found |= {
        "plan": folder.plan,
        "seconds": round(time.time() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
    }
    files.write_json(folder.file(unit, "json"), found)
    return found


def digest_of(*parts: Any) -> str:
    """A short digest of JSON-like values, equal in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def hex_digest(value: int) -> str:
    """An order-free row digest (an integer modulo 2^64) as info.json shows it."""
    return f"{value % 2**64:016x}"


def stage_info(ledger: Ledger, *, digest: int, folders: list[StepFolder], **more: Any) -> dict[str, Any]:
    """The body of info.json: the ledger of the stage, its digest, and the time its units took."""
    return {
        **ledger.to_json(),
        "digest": hex_digest(digest),
        "seconds": round(sum(float(folder.total("seconds")) for folder in folders), 3),
        "cpu_seconds": round(sum(float(folder.total("cpu_seconds")) for folder in folders), 3),
        **more,
    }


@contextlib.contextmanager
def locked(root: str, *, patience: float = 10.0) -> Iterator[None]:
    """Holds the folder for one run. The kernel releases the lock when the process dies, however it dies.

    Workers hold a shared lock of their own (`hold_as_worker`); a new run waits `patience` seconds for those of a dead
    run to end.

    Raises:
        Busy: another run is alive on this folder.
        UsageError: no folder can be made there, or nothing be written into it.
    """
    _make(root)
    with open(os.path.join(root, ".lock"), "a+") as run, open(os.path.join(root, ".workers"), "a+") as workers:
        try:
            fcntl.flock(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run.seek(0)
            raise Busy(run.read().strip() or "unknown process") from None
        run.seek(0)
        run.truncate()
        run.write(f"process {os.getpid()}")
        run.flush()
        _wait_for(workers, patience)
        _running.add(root)
        try:
            yield
        finally:
            _running.discard(root)


def _make(root: str) -> None:
    """Makes the folder of a run."""
    try:
        os.makedirs(root, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"the output {root!r} is a file, or lies below one: name a folder") from None
    except OSError as error:
        raise UsageError(f"the output folder {root!r} cannot be made ({error.strerror}): name another one") from None
    if not os.access(root, os.W_OK | os.X_OK):
        raise UsageError(f"nothing may be written into {root!r}: name another output folder, or change its permissions")


def _wait_for(workers: Any, patience: float) -> None:
    """Waits until no worker of an earlier run is alive."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(workers, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(workers, fcntl.LOCK_UN)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise Busy("workers of an earlier run that are still ending") from None
            time.sleep(0.1)


_running: set[str] = set()
_held: dict[str, Any] = {}


def hold_as_worker(root: str) -> None:
    """Called in every process that writes below `root`: it counts as alive until it ends."""
    if root not in _running and root not in _held:
        _held[root] = open(os.path.join(root, ".workers"), "a+")
        fcntl.flock(_held[root], fcntl.LOCK_SH)
