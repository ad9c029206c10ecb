"""Tasks: what a step runs on the workers, unit by unit, and what an exchange delivers to a unit. No Beam."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

from pipeline.engine import shuffle_files
from pipeline.engine.work import StepFolder

SLOTS = 64  # elements a step gives to Beam; each stands for the units slot, slot + SLOTS, ...
EXCHANGES = ("files", "shuffle")


class Task(Protocol):
    """The units of one step."""

    @property
    def folder(self) -> StepFolder: ...

    def units(self) -> int:
        """The number of units. It is called on the workers, when the step before has ended."""
        ...

    def run(self, unit: int) -> dict[str, Any]:
        """Runs one unit: writes its files by atomic rename and returns its manifest."""
        ...


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an exchange delivers: the bucket files of `folder` with the ending `kind`, one per part of each unit."""

    folder: StepFolder
    kind: str

    def paths(self) -> Iterator[tuple[tuple[int, int], str]]:
        """((unit, part), path) of every bucket file, by number."""
        for unit, manifest in self.folder.manifests():
            for part in range(manifest["parts"]):
                yield (unit, part), self.folder.file(unit, self.kind, part)

    def bucket(self, bucket: int) -> list[bytes]:
        """The messages of one bucket, read from all files."""
        return [shuffle_files.read(path, bucket) for _, path in self.paths()]


class ExchangeTask(Protocol):
    """The units of a step that reads an exchange: unit b gets bucket b."""

    @property
    def folder(self) -> StepFolder: ...

    @property
    def reads(self) -> Reading: ...

    def units(self) -> int: ...

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]: ...
