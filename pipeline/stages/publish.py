"""publish: FETCHED -> the shard folder. Balanced once more after what the fetch lost, then written as tar + Parquet.

    parts + masks --find_caps--> thresholds --CutByShard--> WriteShards: shards/00000.tar, metadata/00000.parquet

A shard owns a range of uids, so the pairs of a site are spread over all shards. The hashes are those of `balance`: a
pair that was picked there and fetched is picked here again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from pipeline.dataset import report, shards, summary
from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.steps import run_exchange, run_task
from pipeline.engine.tasks import Reading
from pipeline.engine.work import Json, StageFolder, StepFolder
from pipeline.schema import FETCHED, readable
from pipeline.stages import caps
from pipeline.stages.attempts import Attempts
from pipeline.stages.base import TABLES, Job, Outputs, Stage
from pipeline.stages.caps import CAP_STEPS, CapPlan, MatchedRows
from pipeline.stages.row_pass import FETCHED_OK
from pipeline.stages.run import About, Run
from pipeline.stages.tally import Rejects, Tally, unit_body

if TYPE_CHECKING:
    import apache_beam as beam


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """The form of the published set."""

    title: ClassVar[str] = "publish"

    rows_per_shard: int = option(10_000, help="most pairs of a shard", within="[1, 1e6]")


@dataclasses.dataclass(frozen=True)
class PublishPlan:
    """What the steps share.

    Attributes:
        caps: the balancing over what remains.
        rows: the fetched rows that dedup-images left in.
        attempts: where the images are.
        names: the sorted names of the inputs.
        rows_per_shard: about so many, a little fewer.
        keep_rejected: sample, all or none.
    """

    caps: CapPlan
    rows: Rows
    attempts: Attempts
    names: tuple[str, ...]
    rows_per_shard: int
    keep_rejected: str

    def step(self, name: str) -> StepFolder:
        """The folder of a step."""
        return self.caps.step(name)

    def count(self) -> int:
        """How many ranges of uids there are: one a shard, but for ranges without a row."""
        return max(1, -(-caps.candidates(self.caps) // self.rows_per_shard))

    def name_buckets(self) -> int:
        """Into how many buckets each shard cuts the names that it counts."""
        return summary.name_buckets(caps.candidates(self.caps))


@dataclasses.dataclass(frozen=True)
class CutByShard:
    """One unit a group: its rows that are picked, cut by range of uids."""

    plan: PublishPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.step("selected")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int) -> dict[str, Any]:
        plan = self.plan
        rejects = Rejects(plan.keep_rejected)
        tally = Tally("publish", rejects)
        decide = caps.decider(plan.caps, tally, FETCHED_OK)
        count, parts = plan.count(), 0
        sizes = np.zeros(count, np.int64)
        for path, keep in plan.rows.masked(unit):
            first, selected = 0, []
            for batch in storage.read_batches(path):
                selected.append(decide(batch, keep[first : first + batch.num_rows]))
                first += batch.num_rows
            sizes += self._write(unit, parts, selected, count)
            parts += 1
        caps.write_vector(self.folder.file(unit, "sizes"), sizes)
        return {**unit_body(self.folder, unit, [tally], rejects), "parts": parts}

    def _write(self, unit: int, part: int, selected: list[pa.RecordBatch], count: int) -> np.ndarray:
        schema = FETCHED_OK
        table = pa.Table.from_batches(selected, schema).combine_chunks()
        batch = table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], schema)
        shard = shard_of(hashing.uid_words(batch["uid"])[0], count)
        shuffle_files.write(self.folder.file(unit, "rows", part), shuffle_files.cut(batch, shard, count))
        return np.bincount(shard, minlength=count)


def shard_of(uid_high: np.ndarray, count: int) -> np.ndarray:
    """The range of uids that each row is in: `count` equal ranges of the 128-bit space."""
    return ((uid_high >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class WriteShards:
    """One unit a range of uids: its tar and its metadata. Ranges without rows get no shard and no number."""

    plan: PublishPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.step("shards")

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.step("selected"), "rows")

    def units(self) -> int:
        return self.plan.count()

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        plan = self.plan
        table = caps.sort_by_uid(shuffle_files.table(messages, FETCHED_OK))
        if table.num_rows == 0:
            return {"rows": 0}
        rows = readable(table.select(FETCHED.names), list(plan.names))
        images = RawImages(plan.attempts.images, table)
        try:
            info, written = shards.write_shard(self.folder.root, self._number(unit), rows, images)
        except shards.ImageChanged as error:
            raise storage.DamagedError.of(images.path(error.row), str(error)) from error
        self._summarise(unit, written)
        return {"rows": table.num_rows, "shard": dataclasses.asdict(info)}

    def _summarise(self, unit: int, metadata: pa.Table) -> None:
        """Leaves the numbers of the shard and the pictures that the report may show, beside the unit's manifest."""
        pick = summary.Pick(report.PICTURES)
        counted = summary.summarise([metadata.select(summary.COLUMNS)], pick=pick)
        sections = summary.pack(counted, pick, self.plan.name_buckets())
        shuffle_files.write(self.folder.file(unit, "summary"), sections)

    def _number(self, unit: int) -> int:
        selected = self.plan.step("selected")
        sizes = np.zeros(self.units(), np.int64)
        for group, _ in selected.manifests():
            sizes += caps.read_vector(selected.file(group, "sizes"))
        return int(np.count_nonzero(sizes[:unit]))


class RawImages:
    """The stored JPEGs of some rows, in the raw files where the fetch put them."""

    def __init__(self, folder_of: Callable[[int], StepFolder], rows: pa.Table) -> None:
        keys = list(zip(*(rows[name].to_pylist() for name in ("raw_attempt", "raw_unit", "raw_part")), strict=True))
        paths = {key: folder_of(key[0]).file(key[1], "raw", key[2]) for key in set(keys)}
        self._paths = [paths[key] for key in keys]
        self._offsets = rows["image_offset"].to_pylist()

    def __call__(self, row: int, place: memoryview) -> None:
        """Fills the place with the image of a row.

        Raises:
            DamagedError: the file ends before the image does.
        """
        storage.read_into(self._paths[row], self._offsets[row], place)

    def path(self, row: int) -> str:
        """Where the image of a row lies."""
        return self._paths[row]


@dataclasses.dataclass(frozen=True)
class Publish(Stage):
    """The stage."""

    name: ClassVar[str] = "publish"
    job: ClassVar[Job] = "publish"
    options: ClassVar[type] = PublishSettings

    before: Outputs
    tables: str
    names: tuple[str, ...]
    settings: PublishSettings
    exchange: str
    about: About

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        return cls(
            before.plan(run, cls),
            run.keep_rejected,
            before=before.copy(),
            tables=os.path.join(before.folder("match").path, TABLES),
            names=run.source_names,
            settings=run.settings(PublishSettings),
            exchange=run.exchange,
            about=run.about,
        )

    @property
    def publishing(self) -> PublishPlan:
        """How the shards are made: balanced with the cap that balance used, or, where that allowed for losses, anew.

        The stages before must be done.
        """
        before, rows = self.before.part("balance", CapPlan), self.before.rows("dedup-images")
        policy = dataclasses.replace(before.policy, expected_yield=1.0)
        if before.policy.expected_yield == 1:
            policy = dataclasses.replace(policy, cap=before.cap(), target_pairs=None)
        plan = CapPlan(self.folder, MatchedRows(rows), policy, self.tables, before=before)
        attempts = Attempts(self.before.folder("fetch"), self.before.folder("balance"))
        return PublishPlan(plan, rows, attempts, self.names, self.settings.rows_per_shard, self.keep_rejected)

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        return {"rows_per_shard": run.settings(PublishSettings).rows_per_shard}

    def begin(self, run: Run) -> None:
        storage.remove(os.path.join(run.root, "manifest.json"))  # it would promise files that are replaced now

    def expand(self, done: Any) -> beam.PCollection:
        plan = self.publishing
        selected = plan.attempts.selected.done()["rows_out"]
        done = caps.find_caps(done, plan.caps, exchange=self.exchange)
        done = run_task(done, CutByShard(plan), max_units=plan.rows.groups)
        max_shards = max(1, -(-selected // plan.rows_per_shard))
        return run_exchange(done, WriteShards(plan), buckets=max_shards, exchange=self.exchange)

    @property
    def output(self) -> Rows | None:
        return None

    def steps(self) -> tuple[StepFolder, ...]:
        return tuple(self.folder.step(name) for name in (*CAP_STEPS, "selected", "shards"))

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.folder.step("selected"),)

    def facts(self) -> dict[str, Json]:
        return {"cap": self.folder.step("limits").total("cap")}

    def watched(self) -> list[Watched]:
        return [Watched(f"publish {name}", self.folder.step(name)) for name in ("selected", "shards")]

    def complete(self) -> dict[str, Any]:
        info = self.count()
        infos = [*(folder.info() for folder in self.before.folders()), {"stage": self.name, **info}]
        copy_rejected((*self.before.folders(), self.folder))
        step = self.folder.step("shards")
        written = {unit: found["shard"] for unit, found in step.manifests() if "shard" in found}
        pick = summary.Pick(report.PICTURES)
        paths = [step.file(unit, "summary") for unit in written]
        manifest = report.finish(
            self.folder.root,
            [shards.ShardInfo.from_json(found) for found in written.values()],
            summary=summary.merge(paths, self.publishing.name_buckets(), pick),
            pick=pick,
            ledger=[{name: row[name] for name in ("stage", "rows_in", "rows_out", "dropped")} for row in infos if row],
            options=self.about.options,
            versions=self.about.versions,
        )
        shards.sweep(self.folder.root, manifest)
        self.folder.complete(info)
        return info


def copy_rejected(stages: tuple[StageFolder, ...]) -> None:
    """OUT/rejected/<stage>.parquet: what the stages dropped and kept a sample of."""
    target = os.path.join(stages[0].root, "rejected")
    storage.remove(target)
    for stage in stages:
        path = os.path.join(stage.path, "rejected.parquet")
        if storage.exists(path):
            table = storage.read_table(path)
            if table.num_rows:
                storage.write_published(os.path.join(target, f"{stage.name}.parquet"), table.drop_columns(["hash"]))
