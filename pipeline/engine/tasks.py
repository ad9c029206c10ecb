"""Tasks: what a step runs on the workers, unit by unit, and what an exchange delivers to a unit. No Beam."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

from pipeline.engine import shuffle_files
from pipeline.engine.work import StepFolder

# A step gives so many elements to Beam, at least and at most. Element e stands for the units e, e + elements, ...
FEWEST_ELEMENTS, MOST_ELEMENTS = 64, 4096
ELEMENTS_PER_WORKER = 4  # so that a slow element does not hold up the others for long
EXCHANGES = ("files", "shuffle")


def elements_for(workers: int | None) -> int:
    """How many elements a step gives to an engine with so many workers (None: not known). No row depends on it."""
    wanted = MOST_ELEMENTS if workers is None else workers * ELEMENTS_PER_WORKER
    return min(max(wanted, FEWEST_ELEMENTS), MOST_ELEMENTS)


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
