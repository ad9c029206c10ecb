"""A pass over rows: batches of one input go through one or more row-wise stages into parts on disk.

Gather and match are row-wise: each turns a batch into a batch and needs no other row. So one pass can do both, and the
rows between them need not be written. Each stage still has its own ledger, digest and sample of rejected rows. The last
stage of the pass writes *parts*: Arrow IPC files of at most PART_ROWS rows. If a dedup stage follows, it also writes a
bucket file of keys beside each part.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.ledger import Ledger
from pipeline.engine.steps import run_task, units_at_start
from pipeline.engine.tasks import Task
from pipeline.engine.work import StepFolder
from pipeline.schema import FETCHED, MATCHED, PAIRS
from pipeline.stages.base import Stage
from pipeline.stages.tally import Rejects, Tally, unit_body

if TYPE_CHECKING:
    import apache_beam as beam

PART_ROWS = 1_000_000
PART_BYTES = 256 << 20
PARTS_OF_UNIT = 1024  # a part's number is unit * PARTS_OF_UNIT + its place in the unit

# Columns that travel beside the rows and are not published. row_hash adds up to a stage's digest.
PROVENANCE, ROW_HASH = (pa.field(name, pa.uint64(), False) for name in ("provenance", "row_hash"))
# What match needs to decide by languages. `text.language` makes and reads it.
EVIDENCE = (
    pa.field("evidence", pa.list_(pa.int32())),  # the likely languages of the text; null: not asked for
    pa.field("page_language", pa.string()),  # of the other texts of the page; null: no page, or too little text
    pa.field("page_language_score", pa.float32()),  # its share, 0..1
)
GATHERED_PART = pa.schema([*PAIRS, *EVIDENCE, PROVENANCE, ROW_HASH])
MATCHED_PART = MATCHED.append(ROW_HASH)

# Where a row's JPEG lies: the raw file of (attempt, unit, part) of the fetch, at image_offset.
RAW = (
    pa.field("raw_attempt", pa.int16(), False),
    pa.field("raw_unit", pa.int32(), False),
    pa.field("raw_part", pa.int16(), False),
)
FETCHED_OK = pa.schema([*FETCHED, *RAW, ROW_HASH])  # what was fetched, without the failures

# What decides duplicates, and the place of the row: 57 bytes a row. Only these keys are exchanged.
KEYS = pa.schema(
    [
        pa.field("image", pa.uint64(), False),
        pa.field("text", pa.uint64(), False),
        pa.field("words", pa.uint8(), False),
        pa.field("size", pa.uint32(), False),
        PROVENANCE,
        pa.field("pair_high", pa.uint64(), False),
        pa.field("pair_low", pa.uint64(), False),
        pa.field("part", pa.int32(), False),
        pa.field("row", pa.int32(), False),
    ]
)
KEY_BYTES = 57


KeysOf: TypeAlias = Callable[[pa.RecordBatch], tuple[np.ndarray, ...]]  # the first five columns of KEYS for a batch


@dataclasses.dataclass(frozen=True)
class Keyed:
    """How the rows of a part become keys, and the number of bits that choose the bucket of a key."""

    keys_of: KeysOf
    bits: int


class PartWriter:
    """Writes the rows of a unit as parts, each with its bucket file of keys if `keyed` is given."""

    def __init__(self, folder: StepFolder, unit: int, schema: pa.Schema, keyed: Keyed | None) -> None:
        self._folder, self._unit, self._schema, self._keyed = folder, unit, schema, keyed
        self._stack = contextlib.ExitStack()
        self._out: Any = None
        self._keys: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self.parts = 0
        self.rows: list[int] = []  # of each part

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._finish()
        else:
            self._stack.__exit__(kind, error, trace)

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends a batch that has at least the columns of the schema (and those of which the keys are made)."""
        if batch.num_rows == 0:
            return
        if self._out is None:
            path = self._folder.file(self._unit, "arrow", self.parts)
            self._out = self._stack.enter_context(storage.writing_batches(path, self._schema))
        if self._keyed is not None:
            place = self._unit * PARTS_OF_UNIT + self.parts, self._rows
            self._keys.append(_keys(batch, self._keyed.keys_of, *place))
        wide = batch.select(self._schema.names)
        self._out.write_batch(wide)
        self._rows += batch.num_rows
        self._bytes += wide.nbytes
        if self._rows >= PART_ROWS or self._bytes >= PART_BYTES:
            self._finish()

    def _finish(self) -> None:
        self._stack.close()
        if self._out is None:
            return
        if self._keyed is not None:
            keys = pa.Table.from_batches(self._keys).combine_chunks().to_batches()[0]
            bucket = hashing.buckets(keys["image"].to_numpy(), self._keyed.bits)
            path = self._folder.file(self._unit, "keys", self.parts)
            shuffle_files.write(path, shuffle_files.cut(keys, bucket, 1 << self._keyed.bits))
        self.rows.append(self._rows)
        self.parts += 1
        self._out, self._keys, self._rows, self._bytes = None, [], 0, 0


def read_parts(folder: StepFolder, unit: int, columns: list[str] | None = None) -> Iterable[pa.RecordBatch]:
    """The batches of all parts of a unit."""
    manifest = folder.manifest(unit)
    for part in range(manifest["parts"] if manifest else 0):
        yield from storage.read_batches(folder.file(unit, "arrow", part), columns)


def _keys(batch: pa.RecordBatch, keys_of: KeysOf, part: int, first: int) -> pa.RecordBatch:
    rows = np.arange(first, first + batch.num_rows, dtype=np.int32)
    columns = [*keys_of(batch), *hashing.uid_words(batch["uid"]), np.full(len(rows), part, np.int32), rows]
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=KEYS)


class RowFunction(Protocol):
    """The work of a row-wise stage on a batch. The worker calls `open` once for each unit."""

    def open(self, unit: int) -> Callable[[pa.RecordBatch, Tally], pa.RecordBatch]: ...


class LeftOut(Exception):
    """A source cannot give all batches of a unit, and the run goes on without it: the unit then has no rows at all.

    Attributes:
        reason: of the one record that counts as lost in its place.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RowSource(Protocol):
    """Where the batches of a unit come from. `read` raises `LeftOut` for a unit that the run goes on without.

    `numbers` are those of the units that exist, in the order in which they should run. All are below `units`. What
    `read` puts into `more` stands in the manifest of the unit.
    """

    def units(self) -> int: ...

    def numbers(self) -> Sequence[int]: ...

    def read(self, unit: int, ledger: Ledger, more: dict[str, Any]) -> Iterator[pa.RecordBatch]: ...


@dataclasses.dataclass(frozen=True)
class ReadParts:
    """The parts of an earlier stage as the source of a pass. Its units are those of that stage."""

    folder: StepFolder

    def units(self) -> int:
        return 1 + max((unit for unit, _ in self.folder.manifests()), default=-1)

    def numbers(self) -> Sequence[int]:
        rows = {unit: sum(manifest["rows"]) for unit, manifest in self.folder.manifests()}
        return sorted(rows, key=lambda unit: (-rows[unit], unit))

    def read(self, unit: int, ledger: Ledger, more: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        yield from read_parts(self.folder, unit)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts that a row-wise stage writes. With `keyed`, a bucket file of keys lies beside each part."""

    folder: StepFolder
    schema: pa.Schema
    keyed: Keyed | None = None


@dataclasses.dataclass(frozen=True)
class RowStage(Stage):
    """A stage that decides each row alone. Neighbouring stages of this kind become one pass over the rows."""

    @abc.abstractmethod
    def source(self) -> RowSource:
        """What a pass reads if this stage is its first."""

    @abc.abstractmethod
    def function(self) -> RowFunction:
        """The work on each batch."""

    @abc.abstractmethod
    def parts(self) -> Parts:
        """What a pass writes if this stage is its last."""

    def preparations(self) -> Sequence[Task]:
        """What must run before the pass. It is asked after `begin`. By default there is nothing."""
        return ()

    def expand(self, done: Any) -> beam.PCollection:
        return RowPass((self,)).expand(done)

    def steps(self) -> tuple[StepFolder, ...]:
        return (self.parts().folder,)

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.parts().folder,)


@dataclasses.dataclass(frozen=True)
class PassTask:
    """The task of a pass: the functions turn the batches of each unit into parts."""

    names: tuple[str, ...]
    source: RowSource
    functions: tuple[RowFunction, ...]
    parts: Parts
    keep_rejected: str

    @property
    def folder(self) -> StepFolder:
        return self.parts.folder

    def units(self) -> int:
        return self.source.units()

    def numbers(self) -> Sequence[int]:
        return self.source.numbers()

    def run(self, unit: int) -> dict[str, Any]:
        try:
            return self._run(unit)
        except LeftOut as error:
            # What was read before the break depends on when it broke, so none of it stays.
            self.folder.remove_files(unit)
            rejects = Rejects("none")
            tallies = [Tally(name, rejects) for name in self.names]
            tallies[0].ledger.records_in = 1
            tallies[0].ledger.lose(error.reason)
            return {**unit_body(self.folder, unit, tallies, rejects), "parts": 0, "rows": []}

    def _run(self, unit: int) -> dict[str, Any]:
        rejects = Rejects(self.keep_rejected)
        tallies = [Tally(name, rejects) for name in self.names]
        more: dict[str, Any] = {}
        functions = [function.open(unit) for function in self.functions]
        with PartWriter(self.folder, unit, self.parts.schema, self.parts.keyed) as writer:
            for batch in self.source.read(unit, tallies[0].ledger, more):
                for tally, function in zip(tallies, functions, strict=True):
                    batch = function(batch, tally)
                    if batch.num_rows == 0:
                        break
                else:
                    writer.write(batch)
        return {**unit_body(self.folder, unit, tallies, rejects), "parts": writer.parts, "rows": writer.rows, **more}


@dataclasses.dataclass(frozen=True)
class RowPass:
    """Neighbouring row-wise stages as one pass. Only the rows of the last one are written."""

    stages: tuple[RowStage, ...]

    def expand(self, done: Any) -> beam.PCollection:
        """Appends the pass to `done`."""
        task = self.task()
        max_units = units_at_start(done, task)
        for before in self.preparations():
            done = run_task(done, before, max_units=before.units())
        return run_task(done, task, max_units=max_units)

    def preparations(self) -> list[Task]:
        """What must run before `task`."""
        return [before for stage in self.stages for before in stage.preparations()]

    def task(self) -> PassTask:
        """The work of the pass."""
        names = tuple(stage.name for stage in self.stages)
        functions = tuple(stage.function() for stage in self.stages)
        first, last = self.stages[0], self.stages[-1]
        return PassTask(names, first.source(), functions, last.parts(), last.keep_rejected)

    def complete(self) -> None:
        """Completes each stage. The manifests of the pass hold the counts of all of them."""
        last = (self.stages[-1].parts().folder,)
        for stage in self.stages:
            stage.folder.complete(stage.count(counted=last))


def fuse_row_stages(stages: Iterable[Stage]) -> list[Stage | RowPass]:
    """The stages in order, with neighbouring row-wise stages fused into one pass.

    A stage that kept rows of its own goes on to keep them, in a pass of its own.
    """
    fused: list[Stage | RowPass] = []
    for stage in stages:
        if not isinstance(stage, RowStage):
            fused.append(stage)
        elif fused and isinstance(fused[-1], RowPass) and not fused[-1].stages[-1].parts().folder.manifests():
            fused[-1] = RowPass((*fused[-1].stages, stage))
        else:
            fused.append(RowPass((stage,)))
    return fused
