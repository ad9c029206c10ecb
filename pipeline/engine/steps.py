"""The Beam side of a stage: steps whose elements are numbers, barriers between them, and the exchange of rows.

A *task* is a small picklable object with `folder` (its StepFolder), `units()` and `run(unit)`. `Step` runs all units of
a task on the workers; it begins when the step before it has ended, by a side input. Beam carries task numbers and,
where there is no shared disk, Arrow IPC bytes; it never sees a row.

An *exchange* brings to each unit of a step what all units of an earlier step put into its bucket. It has two ways that
give the same rows (a test holds them to it): `files` (each producer's bucket file is read in place: the default
wherever the work folder is shared) and `shuffle` (the same bytes through the engine's GroupByKey).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import apache_beam as beam

from pipeline.engine import malloc, shuffle_files
from pipeline.engine.work import StepFolder, Work, hold_as_worker, run_unit

SLOTS = 64  # elements a step gives to Beam; each stands for the units slot, slot + SLOTS, ...


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


class Step(beam.PTransform):
    """after | Step(task, work=...): all units of the task; the output is one element a slot, for the next barrier.

    Args:
        task: what to run.
        work: the run's folder.
        most: an upper bound of units, where one is known: no more slots than that are made.
    """

    def __init__(self, task: Task, *, work: Work, most: int = SLOTS) -> None:
        super().__init__(_label(task))
        self._task, self._work, self._slots = task, work, max(1, min(most, SLOTS))

    def expand(self, after: Any) -> beam.PCollection:
        root, sides = _root_and_barrier(after)
        numbers = root | "Slots" >> beam.Create(range(self._slots))
        return numbers | "Run" >> beam.ParDo(_RunSlot(self._task, self._work, self._slots), *sides)


class ExchangeStep(beam.PTransform):
    """done | ExchangeStep(task, work=..., way=...): unit b of the task is given bucket b of all units before it.

    Args:
        task: what to run; `task.reads` names the exchanged files.
        work: the run's folder.
        count: how many buckets there are.
        way: "files" or "shuffle".
    """

    def __init__(self, task: ExchangeTask, *, work: Work, count: int, way: str = "files") -> None:
        super().__init__(_label(task))
        if way not in ("files", "shuffle"):
            raise ValueError(f"an exchange by {way!r}: use files or shuffle")
        self._task, self._work, self._count, self._way = task, work, count, way

    def expand(self, done: beam.PCollection) -> beam.PCollection:
        if self._way == "files":
            return done | "Read" >> Step(_ByFiles(self._task), work=self._work, most=self._count)
        return done | "Shuffle" >> _ByShuffle(self._task, self._work, self._count)


@dataclasses.dataclass(frozen=True)
class _ByFiles:
    """An ExchangeTask as a Task: it reads its bucket from the files themselves."""

    task: ExchangeTask

    @property
    def folder(self) -> StepFolder:
        return self.task.folder

    def units(self) -> int:
        return self.task.units()

    def run(self, unit: int) -> dict[str, Any]:
        return self.task.run(unit, self.task.reads.bucket(unit))


class _ByShuffle(beam.PTransform):
    """Every bucket file is read once, by whoever takes it; the engine groups the messages by bucket."""

    def __init__(self, task: ExchangeTask, work: Work, count: int) -> None:
        super().__init__()
        self._task, self._work, self._count = task, work, count

    def expand(self, done: beam.PCollection) -> beam.PCollection:
        root, sides = _root_and_barrier(done)
        slots = min(SLOTS, max(1, self._count))
        sent = (
            root
            | "Producers" >> beam.Create(range(slots))
            | "Send" >> beam.ParDo(_Send(self._task.reads, slots), *sides).with_output_types(tuple[int, tuple])
        )
        every = root | "Buckets" >> beam.Create([(bucket, (-1, -1, b"")) for bucket in range(self._count)])
        return (
            (sent, every)
            | "Join" >> beam.Flatten()
            | "Group" >> beam.GroupByKey()
            | "Run" >> beam.ParDo(_RunBucket(self._task, self._work))
        )


class _Send(beam.DoFn):
    def __init__(self, reading: Reading, slots: int) -> None:
        self._reading, self._slots = reading, slots

    def process(self, slot: int, after: Any = None) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
        for number, ((unit, part), path) in enumerate(self._reading.paths()):
            if number % self._slots == slot:
                for bucket, message in shuffle_files.read_all(path):
                    yield bucket, (unit, part, message)


class _RunSlot(beam.DoFn):
    def __init__(self, task: Task, work: Work, slots: int) -> None:
        self._task, self._work, self._slots = task, work, slots

    def setup(self) -> None:
        hold_as_worker(self._work.root)
        malloc.keep()

    def process(self, slot: int, after: Any = None) -> Iterator[int]:
        for unit in range(slot, self._task.units(), self._slots):
            run_unit(self._task.folder, unit, self._task.run)
        yield slot


class _RunBucket(beam.DoFn):
    def __init__(self, task: ExchangeTask, work: Work) -> None:
        self._task, self._work = task, work

    def setup(self) -> None:
        hold_as_worker(self._work.root)
        malloc.keep()

    def process(self, element: tuple[int, Iterable[tuple[int, int, bytes]]]) -> Iterator[int]:
        bucket, sent = element
        messages = [message for _, _, message in sorted(sent)]  # the order of the files, whatever the engine's
        if bucket < self._task.units():
            run_unit(self._task.folder, bucket, lambda unit: self._task.run(unit, messages))
        yield bucket


def _root_and_barrier(after: Any) -> tuple[Any, list[Any]]:
    """The pipeline to create elements in, and the side input that holds them back until `after` has ended."""
    if isinstance(after, beam.PCollection):
        return after.pipeline, [beam.pvalue.AsList(after)]
    return after.pipeline if isinstance(after, beam.pvalue.PBegin) else after, []


def _label(task: Task | ExchangeTask) -> str:
    """Beam's name of a step: its stage and step folders."""
    return "/".join(task.folder.path.split("/")[-2:])
