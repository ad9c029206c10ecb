"""Inputs that a run was told to go on without (--skip-bad-inputs), and how --retry-failed brings them back.

Such an input has no rows: its unit counts one lost record. A retry removes the manifests of these units, and the pass
that reads the inputs runs again for them. The stages after it stay as they are until it has ended: they go only if
the rows or the counts are others then. A retry that was killed goes on in the next run (`Retry` on disk).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.engine import storage
from pipeline.engine.input_errors import is_remote
from pipeline.engine.ledger import Ledger
from pipeline.engine.work import StepFolder
from pipeline.sources.base import Input
from pipeline.stages.input_list import InputList

BROKEN, UNREADABLE = "broken_transfer", "unreadable_input"  # lost records: the reasons of inputs that were left out
LOSSES = "losses"  # in the manifest of a unit with several inputs: number of an input that lost records -> its ledger
NAMES = "left_out"  # in info.json of gather: the names of these inputs
STAGE = "gather"
FILE = "retry.json"
NOT_COUNTED = ("seconds", "cpu_seconds", "options", "versions")  # of info.json: they do not tell of the rows


def units(step: StepFolder) -> list[int]:
    """The units of a pass of which inputs were left out."""
    return [unit for unit, manifest in step.manifests() if _is_left_out(manifest["ledgers"].get(STAGE))]


def inputs(step: StepFolder, listed: InputList) -> list[int]:
    """The numbers of the inputs that a pass left out."""
    counted = counts_of_inputs(step.manifests(), listed)
    return sorted(number for number, ledger in counted if _is_left_out(ledger.to_json()))


def counts_of_inputs(
    manifests: Iterable[tuple[int, dict[str, Any]]], listed: InputList
) -> Iterator[tuple[int, Ledger]]:
    """(number, counts of its records) of each input. One of several inputs of a unit has counts if it lost records."""
    for unit, manifest in manifests:
        members = listed.members.get(unit, ())
        losses = manifest.get(LOSSES, {})
        for number in members:
            alone = manifest["ledgers"].get(STAGE, {})
            yield number, Ledger.from_json(alone if len(members) == 1 else losses.get(str(number), {}))


def _is_left_out(ledger: dict[str, Any] | None) -> bool:
    return bool(ledger and {BROKEN, UNREADABLE} & ledger["records_dropped"].keys())


@dataclasses.dataclass(frozen=True)
class Retry:
    """A retry of inputs, as OUT/stages/gather/retry.json holds it.

    Attributes:
        names: of all inputs that were ever left out. The folder keeps them as they were listed then.
        stages: those whose pass reads the inputs; (): no retry is under way.
        units: of the pass that are done again.
        inputs: how many of their inputs were left out.
        begun: their manifests are gone.
        before: info.json of the stages before the retry.
    """

    names: tuple[str, ...]
    stages: tuple[str, ...] = ()
    units: tuple[int, ...] = ()
    inputs: int = 0
    begun: bool = False
    before: tuple[dict[str, Any], ...] = ()

    @classmethod
    def load(cls, root: str) -> Retry:
        """The retry of a folder; one without names if there was none."""
        found = storage.read_json(_path(root))
        if found is None:
            return cls(())
        return cls(
            tuple(found["names"]),
            tuple(found["stages"]),
            tuple(found["units"]),
            found.get("inputs", len(found["units"])),
            found["begun"],
            tuple(found["before"]),
        )

    @property
    def is_under_way(self) -> bool:
        """True if it has begun, and its end was not looked at."""
        return bool(self.stages)

    def save(self, root: str) -> Retry:
        """Writes it, and returns it."""
        storage.write_json(_path(root), dataclasses.asdict(self))
        return self


def _path(root: str) -> str:
    return os.path.join(root, "stages", STAGE, FILE)


def counted(info: dict[str, Any] | None) -> dict[str, Any]:
    """What info.json says of the rows of a stage."""
    return {name: value for name, value in (info or {}).items() if name not in (*NOT_COUNTED, storage.CHECKSUM)}


def as_listed(root: str, found: Sequence[Input], *, anew: bool = False) -> list[Input]:
    """The inputs, with those that were left out in the folder as they were listed there.

    A table that could not be opened was listed as one input without a size. Now it may have parts. Its rows are the
    same either way, and the folder goes on with the units that it has.

    `anew`: gather is done again, so what it had noted may be damaged.
    """
    try:
        info = storage.read_json(os.path.join(root, "stages", STAGE, "info.json"), sealed=False) or {}
    except storage.DamagedError:
        if not anew:
            raise
        info = {}
    names = {*Retry.load(root).names, *info.get(NAMES, ())}
    if not names:
        return list(found)
    there = InputList.read(root)
    listed = list(there.units.values()) if there else []
    kept = {item.name: [other for other in listed if other.name == item.name] for item in found if item.name in names}
    paths = {item.name: item.path for item in found}
    same = {name: items for name, items in kept.items() if items and all(it.path == paths[name] for it in items)}
    both = [item for item in found if item.name not in same] + [item for items in same.values() for item in items]
    return sorted(both, key=lambda item: (item.name, item.part or (0, 0)))


def as_it_is(root: str, source: Input) -> Input:
    """An input with its present size, if it was left out before: it may be another file now."""
    if source.bytes is None or source.name not in Retry.load(root).names:
        return source
    return dataclasses.replace(source, bytes=None if is_remote(source.path) else os.path.getsize(source.path))
