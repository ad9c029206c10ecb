"""The Beam side of `steps`: elements are numbers, barriers are side inputs.

Beam carries numbers. Each stands for some units of a step. How many there are depends on the engine's workers. Where
there is no shared disk, Beam also carries Arrow IPC bytes. It never sees a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from pipeline.engine import malloc, object_view, remote, shuffle_files, work
from pipeline.engine.merging import Merge
from pipeline.engine.object_store import is_url
from pipeline.engine.tasks import EXCHANGES, MOST_ELEMENTS, ExchangeTask, Reading, Task, elements_for, units_of_element
from pipeline.engine.work import StepFolder, check_code, check_token, code, lock_as_worker, run_unit, token_of


class Step(beam.PTransform):
    """`after | Step(task)` runs all units of the task; see `steps.run_task`."""

    def __init__(self, task: Task, *, max_units: int = MOST_ELEMENTS) -> None:
        super().__init__(_label(task))
        self._task, self._max_units = task, max(1, max_units)

    def expand(self, after: Any) -> beam.PCollection:
        root, sides = _root_and_barrier(after)
        elements = min(self._max_units, elements_for(workers_of(_options(root))))
        numbers = root | "Elements" >> beam.Create(range(elements))
        indexed = _is_indexed(root, self._task.folder)
        done = numbers | "Run" >> beam.ParDo(_RunUnits(self._task, elements, indexed=indexed), *sides)
        return done | "Index" >> _WriteIndex(self._task.folder) if indexed else done


class ExchangeStep(beam.PTransform):
    """`done | ExchangeStep(task, ...)` gives bucket b to unit b of the task; see `steps.run_exchange`."""

    def __init__(
        self, task: ExchangeTask, *, buckets: int, exchange: str = "files", merge: Merge | None = None
    ) -> None:
        super().__init__(_label(task))
        if exchange not in EXCHANGES:
            raise ValueError(f"unknown exchange {exchange!r}: use {' or '.join(EXCHANGES)}")
        self._task, self._buckets, self._exchange, self._merge = task, buckets, exchange, merge

    def by_files(self) -> Task:
        """The step as a task that reads its buckets from files."""
        return _ByFiles(self._task, self._merge)

    def expand(self, done: beam.PCollection) -> beam.PCollection:
        if self._exchange == "files":
            return done | "Read" >> Step(self.by_files(), max_units=self._buckets)
        return done | "Shuffle" >> _ByShuffle(self._task, self._buckets)


@dataclasses.dataclass(frozen=True)
class _ByFiles:
    """An ExchangeTask as a Task: it reads its bucket from the files themselves, or from those of a merge."""

    task: ExchangeTask
    merge: Merge | None = None

    @property
    def folder(self) -> StepFolder:
        return self.task.folder

    def units(self) -> int:
        return self.task.units()

    def run(self, unit: int) -> dict[str, Any]:
        return self.task.run(unit, (self.merge or self.task.reads).bucket(unit))


class _ByShuffle(beam.PTransform):
    """Each bucket file is read once, for one element. The engine groups the messages by bucket."""

    def __init__(self, task: ExchangeTask, buckets: int) -> None:
        super().__init__()
        self._task, self._buckets = task, buckets

    def expand(self, done: beam.PCollection) -> beam.PCollection:
        root, sides = _root_and_barrier(done)
        elements = min(max(1, self._buckets), elements_for(workers_of(_options(root))))
        indexed = _is_indexed(root, self._task.folder)
        send = _Send(self._task.folder, self._task.reads, elements, indexed=indexed)
        sent = (
            root
            | "Producers" >> beam.Create(range(elements))
            | "Send" >> beam.ParDo(send, *sides).with_output_types(tuple[int, tuple])
        )
        every = root | "Buckets" >> beam.Create([(bucket, (-1, -1, b"")) for bucket in range(self._buckets)])
        run = (
            (sent, every)
            | "Join" >> beam.Flatten()
            | "Group" >> beam.GroupByKey()
            | "Run" >> beam.ParDo(_RunBucket(self._task, indexed=indexed))
        )
        return run | "Index" >> _WriteIndex(self._task.folder) if indexed else run


class _WriteIndex(beam.PTransform):
    """Writes the index of a step when its units have ended. The output is the next barrier."""

    def __init__(self, folder: StepFolder) -> None:
        super().__init__()
        self._folder = folder

    def expand(self, done: beam.PCollection) -> beam.PCollection:
        root, sides = _root_and_barrier(done)
        return root | "One" >> beam.Create([0]) | "Write" >> beam.ParDo(_Index(self._folder, indexed=True), *sides)


class _OnWorker(beam.DoFn):
    """Runs units of a step on a worker of the run that holds OUT. `indexed`: the steps of the job have indexes."""

    def __init__(self, folder: StepFolder, *, indexed: bool) -> None:
        self._folder, self._indexed = folder, indexed
        self._token, self._job = token_of(folder.root), object_view.job_of(folder.root)
        self._code, self._patience = code(), remote.patience_of_workers()

    def join(self) -> None:
        """Makes this process a worker of the run. `process` calls it, and not `setup`.

        A worker of Beam opens its data channel after `setup` and `start_bundle`. The job server of Flink or Spark waits
        three minutes for this channel before it looks at an error, and then tries again.
        """
        check_code(self._code)
        remote.be_patient(self._patience)
        lock_as_worker(self._folder.root, self._token)
        malloc.retain_freed_memory()

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """In this block the steps before have ended, and an input that this worker does not see is told as such."""
        root = self._folder.root
        with object_view.in_step(root, self._job, self._folder.path, indexed=self._indexed), work.sees_inputs(root):
            yield


class _Index(_OnWorker):
    def process(self, element: int, after: Any = None) -> Iterator[int]:
        self.join()
        object_view.write_index(self._folder.root, self._job, self._folder.path)
        yield element


class _Send(_OnWorker):
    def __init__(self, folder: StepFolder, reading: Reading, elements: int, *, indexed: bool) -> None:
        super().__init__(folder, indexed=indexed)
        self._reading, self._elements = reading, elements

    def process(self, element: int, after: Any = None) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
        self.join()
        with self.in_step():
            places = list(self._reading.paths())[element :: self._elements]
        for (unit, part), path in places:
            for bucket, message in shuffle_files.read_all(path):
                yield bucket, (unit, part, message)


class _RunUnits(_OnWorker):
    def __init__(self, task: Task, elements: int, *, indexed: bool) -> None:
        super().__init__(task.folder, indexed=indexed)
        self._task, self._elements = task, elements
        self._begun = work.is_begun(task.folder)

    def process(self, element: int, after: Any = None) -> Iterator[int]:
        self.join()
        self._run(element)
        yield element

    def _run(self, element: int) -> None:
        with self.in_step():
            units = units_of_element(self._task, element, self._elements)
            new = work.new_units(self._folder, units, begun=self._begun)
            for unit in units:
                check_token(self._folder.root, self._token)
                run_unit(self._folder, unit, self._task.run, new=unit in new)


class _RunBucket(_OnWorker):
    def __init__(self, task: ExchangeTask, *, indexed: bool) -> None:
        super().__init__(task.folder, indexed=indexed)
        self._task = task

    def process(self, element: tuple[int, Iterable[tuple[int, int, bytes]]]) -> Iterator[int]:
        self.join()
        bucket, sent = element
        messages = [message for _, _, message in sorted(sent)]  # in the order of the files: the engine's order varies
        check_token(self._folder.root, self._token)
        with self.in_step():
            if bucket < self._task.units():
                run_unit(self._folder, bucket, lambda unit: self._task.run(unit, messages))
        yield bucket


def _root_and_barrier(after: Any) -> tuple[Any, list[Any]]:
    """The pipeline to create elements in, and the side input that holds them back until `after` has ended."""
    if isinstance(after, beam.PCollection):
        return after.pipeline, [beam.pvalue.AsList(after)]
    return after.pipeline if isinstance(after, beam.pvalue.PBegin) else after, []


def _options(root: Any) -> Any:
    """The pipeline options behind a root."""
    return (root if isinstance(root, beam.Pipeline) else root.pipeline).options


def workers_of(options: Any) -> int | None:
    """The number of workers that Beam's options name; None if they name none and the engine decides."""
    given = options.get_all_options()
    counts = [given.get(name) or 0 for name in ("parallelism", "num_workers", "max_num_workers")]
    if max(counts) > 0:
        return max(counts) * (given.get("number_of_worker_harness_threads") or 1)
    return given.get("direct_num_workers") if _in_process(given) else None


def _in_process(given: dict[str, Any]) -> bool:
    """True for a runner that lives in this process: the options name no runner."""
    return not given.get("runner")


def _is_indexed(root: Any, folder: StepFolder) -> bool:
    """True for an engine whose workers may share nothing but OUT on a store."""
    return is_url(folder.root) and not _in_process(_options(root).get_all_options())


def _label(task: Task | ExchangeTask) -> str:
    """Beam's name of a step: its stage and step folders, unless the task has a label."""
    return getattr(task, "label", None) or "/".join(task.folder.path.split("/")[-2:])
