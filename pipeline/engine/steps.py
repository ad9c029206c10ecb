"""The steps of a stage, as the stages see them: tasks, the exchange of rows, and how a step is put after another.

A *task* is a small picklable object with `folder` (its StepFolder), `units()` and `run(unit)`. `run_task` runs all
units of a task on the workers, when the step before it has ended. An *exchange* brings to each unit of a step what all
units of an earlier step put into its bucket. It has two ways that give the same rows (a test holds them to it): `files`
(each producer's bucket file is read in place: the default wherever the work folder is shared) and `shuffle` (the same
bytes through the engine's GroupByKey).

Beam is imported when the first step is put into a pipeline, never before: `--help` must not wait for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.engine import shuffle_files
from pipeline.engine.work import StepFolder

if TYPE_CHECKING:
    import apache_beam as beam

SLOTS = 64  # elements a step gives to Beam; each stands for the units slot, slot + SLOTS, ...
EXCHANGES = ("files", "shuffle")


class Task(Protocol):
    """The units of one step."""

    @property
    def folder(self) -> StepFolder: ...

    def units(self) -> int:
        """How many units there are; asked on the workers, when the step before has ended."""
        ...

    def run(self, unit: int) -> dict[str, Any]:
        """Does one unit: writes its files by atomic rename and returns its manifest."""
        ...


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an exchange delivers: the bucket files of `folder` with the ending `kind`, one a unit or one a part."""

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
    """The units of a step that reads an exchange: unit b is given bucket b."""

    @property
    def folder(self) -> StepFolder: ...

    @property
    def reads(self) -> Reading: ...

    def units(self) -> int: ...

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]: ...


def run_task(after: Any, task: Task, *, max_units: int = SLOTS) -> beam.PCollection:
    """Puts all units of a task behind `after`; the output is one element a slot, for the next barrier.

    Args:
        after: the pipeline's root, or the output of the step before, which must end first.
        task: what to run.
        max_units: an upper bound of units, where one is known: no more slots than that are made.
    """
    from pipeline.engine.beam_steps import Step

    return after | Step(task, max_units=max_units)


def run_exchange(done: beam.PCollection, task: ExchangeTask, *, buckets: int, exchange: str) -> beam.PCollection:
    """Puts a task behind `done` whose unit b is given bucket b of all units that `task.reads` names.

    Args:
        done: the output of the step before.
        task: what to run.
        buckets: how many there are.
        exchange: "files" or "shuffle".
    """
    from pipeline.engine.beam_steps import ExchangeStep

    return done | ExchangeStep(task, buckets=buckets, exchange=exchange)
