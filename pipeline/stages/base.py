"""What a stage is: one object with its options, its plan, its steps, its progress and its completion.

A stage is planned once (`Stage.plan`). From then on it is a value: it knows the folders that it writes and reads, and
its fingerprint says what decides its rows. `build` chains the stages of one job (`expand`), runs the job, and then
completes each stage (`complete`). A stage never imports another stage. It receives the earlier stages as `Outputs`.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing, merging, storage
from pipeline.engine.ledger import Ledger, in_order, smallest
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.work import Json, StageFolder, StepFolder, digest_of
from pipeline.schema import REJECTED
from pipeline.stages.run import Run

if TYPE_CHECKING:
    import apache_beam as beam

T = TypeVar("T")
Job: TypeAlias = Literal["select", "fetch", "publish"]

INPUTS = "inputs"  # entry of gather's fingerprint: digest of the list of inputs
STATES = "states"  # step of gather: what servers said of the inputs
TABLES = "tables"  # folder in the stage match: the compiled list, and the hash of each query
REJECTED_ROWS = 1000  # rows that a sample keeps for each reason


class Outputs:
    """The stages that are planned so far, with their folders and rows."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}

    def add(self, stage: Stage) -> None:
        """Appends a planned stage."""
        self._stages[stage.name] = stage

    def copy(self) -> Outputs:
        """A copy for a stage that reads the earlier stages once they are done."""
        copied = Outputs()
        copied._stages = dict(self._stages)
        return copied

    def stages(self) -> list[Stage]:
        """All of them, in order."""
        return list(self._stages.values())

    def folder(self, name: str) -> StageFolder:
        """The folder of an earlier stage."""
        return self._stages[name].folder

    def folders(self) -> tuple[StageFolder, ...]:
        """The folders of all stages before."""
        return tuple(stage.folder for stage in self._stages.values())

    def rows(self, name: str) -> Rows:
        """The rows that an earlier stage leaves."""
        rows = self._stages[name].output
        if rows is None:
            raise TypeError(f"the stage {name} writes no parts that another stage can read")
        return rows

    def last_rows(self) -> Rows:
        """The rows that the stage directly before leaves."""
        return self.rows(list(self._stages)[-1])

    def part(self, name: str, kind: type[T]) -> T:
        """The field of an earlier stage with the given type."""
        stage = self._stages[name]
        values = (getattr(stage, field.name) for field in dataclasses.fields(stage))
        return next(value for value in values if isinstance(value, kind))

    def plan(self, run: Run, stage: type[Stage]) -> StageFolder:
        """The folder of the next stage. Its fingerprint covers the stage before it and the stage's own options."""
        decided = stage.fingerprint(run)
        before = list(self._stages.values())
        last = before[-1].folder if before else StageFolder(run.root, "")
        digest = digest_of(last.fingerprint, decided)
        kin = {**decided, INPUTS: run.input_list.lineage} if INPUTS in decided else decided
        of_units = digest_of(last.of_units, kin, run.input_list.key_bits)
        about = json.dumps({"decided_by": decided, **dataclasses.asdict(run.about)}, sort_keys=True)
        return StageFolder(run.root, stage.name, digest, about, last.name, of_units)


@dataclasses.dataclass(frozen=True)
class Stage(abc.ABC):
    """One stage, planned for one run.

    Attributes:
        folder: where it writes.
        keep_rejected: which dropped rows are kept: "sample", "all" or "none".
    """

    name: ClassVar[str]
    job: ClassVar[Job]
    options: ClassVar[type]  # a dataclass of the options that the stage declares

    folder: StageFolder
    keep_rejected: str

    @classmethod
    @abc.abstractmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        """The stage of one run. Nothing is read or written.

        Args:
            run: the options, the inputs and the query list.
            before: the stages before this one.
        """

    @classmethod
    @abc.abstractmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        """The values that decide the rows, beside the earlier stages. A folder with other values is refused."""

    @abc.abstractmethod
    def expand(self, done: Any) -> beam.PCollection:
        """Appends the steps of the stage to `done`, the root of a pipeline or the steps of the stage before."""

    @abc.abstractmethod
    def watched(self) -> list[Watched]:
        """The steps that the progress shows, in order."""

    @property
    @abc.abstractmethod
    def output(self) -> Rows | None:
        """Where the stage's rows are; None where another stage cannot read them as parts."""

    @abc.abstractmethod
    def steps(self) -> tuple[StepFolder, ...]:
        """All steps of the stage. info.json holds the sum of their times."""

    @abc.abstractmethod
    def counted(self) -> tuple[StepFolder, ...]:
        """The steps whose manifests hold the stage's ledger, digest and rejected rows."""

    def facts(self) -> dict[str, Json]:
        """Further entries of info.json."""
        return {}

    def check(self, run: Run) -> None:
        """Checks what the stage will read. It is called before anything is written.

        Raises:
            UsageError, MissingInput: the stage cannot do what the options ask for.
        """
        return None

    def settle(self, run: Run) -> None:
        """Writes the options that the workers read. Each run writes them again."""
        return None

    def begin(self, run: Run) -> None:
        """Prepares the folder. It is called directly before the job starts."""
        return None

    def check_result(self, run: Run) -> None:
        """Checks the result of the stage, if it is done. It is called before a later stage begins.

        Raises:
            BelowThreshold: the rows of the stage are too few, by an option of the user, for the later stages.
        """
        return None

    def reopens(self, run: Run) -> bool:
        """True if the stage is done but the user asks for more, such as another attempt."""
        return False

    def reopen(self) -> None:
        """Marks a done stage as not done, so that it goes on."""
        return None

    def begin_anew(self) -> None:
        """Removes what the stage made, because an earlier stage is done again. The fetch keeps the images."""
        storage.remove(self.folder.path)

    def lost(self) -> str | None:
        """The path of a file of the done stage that users need and that is gone; None if there is none."""
        return None

    def is_done(self) -> bool:
        """True if the folder holds this stage, complete and with this fingerprint."""
        info = self.folder.info()
        if info is None or storage.CHECKSUM not in info:
            return False  # an older version wrote it, without checksums
        return info.get("fingerprint") == self.folder.fingerprint

    @property
    def decided(self) -> dict[str, Json]:
        """`fingerprint` as info.json holds it."""
        return json.loads(self.folder.about)["decided_by"]

    def complete(self) -> dict[str, Any]:
        """Completes the stage: writes rejected rows, info.json and COMPLETED. Returns the body of info.json."""
        info = self.count()
        self.folder.complete(info)
        return info

    def count(self, *, counted: Sequence[StepFolder] | None = None) -> dict[str, Any]:
        """Adds up the counts of all units and writes the rejected rows of the stage.

        Args:
            counted: the steps that count the stage, where a pass counts it; None: the stage's own steps.

        Returns:
            The body of info.json.

        Raises:
            DamagedError: fewer or more rows came in than left the stage before, so some of its files are gone.
        """
        steps = (*self.steps(), *merging.steps_of(self.folder)) if counted is None else counted
        counted = self.counted() if counted is None else counted
        ledger, digest = sum_of_ledgers(counted, self.name)
        self._check_rows_in(ledger.rows_in)
        table = merge_rejected(self.name, counted, keep=self.keep_rejected)
        storage.write_table(f"{self.folder.path}/rejected.parquet", table)
        info = {
            **ledger.to_json(),
            "digest": f"{digest % 2**64:016x}",
            "seconds": round(sum(float(step.total("seconds")) for step in steps), 3),
            "cpu_seconds": round(sum(float(step.total("cpu_seconds")) for step in steps), 3),
            **self.facts(),
        }
        return info if self.output is None else {**info, "rows": self.output.to_json()}

    def _check_rows_in(self, rows_in: int) -> None:
        before = StageFolder(self.folder.root, self.folder.before)
        info = before.info() if before.name else None
        if info is not None and info["rows_out"] != rows_in:
            counts = f"{info['rows_out']} rows left it and {rows_in} came into {self.name!r}"
            raise storage.DamagedError.of(before.path, f"some of its files are gone: {counts}")


def sum_of_ledgers(steps: Iterable[StepFolder], stage: str) -> tuple[Ledger, int]:
    """Ledger and digest of a stage over all units of its steps."""
    ledger, digest = Ledger(), 0
    for step in steps:
        for _, manifest in step.manifests():
            counted = manifest["ledgers"][stage]
            ledger.add(Ledger.from_json(counted))
            digest = hashing.add_digests(digest, counted["digest"])
    return ledger, digest


def merge_rejected(stage: str, steps: Iterable[StepFolder], *, keep: str) -> pa.Table:
    """The rejected rows of a stage's units: all of them, or a sample (the smallest hashes of each reason).

    They are sorted by reason and hash, since the numbers of units tell how the set has grown.
    """
    tables, pending = [REJECTED.empty_table()], 0
    for step in steps:
        for unit, manifest in step.manifests():
            if not manifest.get("rejected"):
                continue
            table = storage.read_table(step.file(unit, "rejected"))
            tables.append(table.filter(pc.equal(table["stage"], stage)))
            pending += table.num_rows
            if keep == "sample" and pending > 64 * REJECTED_ROWS:
                tables, pending = [smallest(pa.concat_tables(tables, promote_options="default"), REJECTED_ROWS)], 0
    merged = pa.concat_tables(tables, promote_options="default")  # units of an earlier version have no uid
    return smallest(merged, REJECTED_ROWS) if keep == "sample" else in_order(merged)
