"""publish: FETCHED -> the shard folder. Balances once more after the losses of the fetch, then writes tar + Parquet.

    parts + masks --find_caps--> thresholds --CutByShard--> WriteShards: shards/00000.tar, metadata/00000.parquet

All files are written below OUT/stages/publish/set. When they are complete, they replace the published set as one change
(`engine.journal`). A tar that would not change stays where it is.

A shard owns a range of uids (`dataset.ranges`), so the pairs of a site are spread over all shards. The first build of
a folder fixes the number of ranges and records it in OUT/shards.json. So a set that changes keeps most of its shards
(see `fixed_ranges`). The hashes are those of `balance`, so a pair that was picked there and fetched is picked again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import croissant, query_curve, ranges, report, report_facts, shards, summary
from pipeline.dataset.damage import STAGED
from pipeline.dataset.errors import Damaged
from pipeline.dataset.ranges import Ranges
from pipeline.dataset.shrink import Published
from pipeline.engine import checks, hashing, shuffle_files, storage
from pipeline.engine.cli import UsageError
from pipeline.engine.display import sanitize
from pipeline.engine.journal import Change
from pipeline.engine.ledger import smallest
from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.steps import run_exchange, run_task
from pipeline.engine.tasks import Reading
from pipeline.engine.work import Json, StageFolder, StepFolder
from pipeline.schema import (
    CONTAMINATION,
    CONTAMINATION_FILE,
    DUPLICATES,
    DUPLICATES_FILE,
    FETCHED,
    PUBLISHED_REJECTED,
    readable,
)
from pipeline.stages import caps
from pipeline.stages.attempts import Attempts
from pipeline.stages.base import REJECTED_ROWS, TABLES, Job, Outputs, Stage, sum_of_ledgers
from pipeline.stages.caps import CAP_STEPS, CapPlan, MatchedRows
from pipeline.stages.row_pass import FETCHED_OK
from pipeline.stages.run import NEXT, READ_BY_USERS, About, Run, RunSettings
from pipeline.stages.scores import load_scores, scores_of
from pipeline.stages.tally import Rejects, Tally, unit_body

if TYPE_CHECKING:
    import apache_beam as beam

ROWS_PER_SHARD = 10_000
MOST_LOOKED_THROUGH = 1_000_000  # fetched rows, for the pictures of duplicates in the report
LONGEST_NAME = 200  # characters of --creator
NEARLY = 0.95  # of --target-pairs: so many are as good as all, since balance meets the number only about
RECORD = "shards.json"  # in OUT: the number of ranges, and the --rows-per-shard behind it (null: option not set)


def _check_day(value: str) -> None:
    with contextlib.suppress(ValueError):
        if datetime.date.fromisoformat(value).isoformat() == value:
            return
    raise UsageError("must be a day such as 2026-01-31")


def _check_name(value: str) -> None:
    if not sanitize(value).strip() or len(value) > LONGEST_NAME:
        raise UsageError(f"must be a name of 1 to {LONGEST_NAME} characters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """The options of the published set."""

    title: ClassVar[str] = "publish"

    shards: int | None = option(
        None,
        help="ranges of uids; each that has a pair becomes a shard",
        default_text="as OUT was built before, else from --rows-per-shard",
        within="[1, 1e6]",
    )
    rows_per_shard: int | None = option(
        None,
        help="pairs of a shard, about",
        unit="pairs",
        default_text=f"{ROWS_PER_SHARD:,}",
        within="[1, 1e6]",
    )

    date: str | None = option(
        None,
        help="of publication, as YYYY-MM-DD, for the card and croissant.json",
        default_text="the newest day on which an archive of the inputs was crawled",
        metavar="DAY",
        check=_check_day,
    )
    creator: str | None = option(
        None,
        help="person or organization that makes the set, for the card and croissant.json",
        default_text="not named",
        metavar="NAME",
        check=_check_name,
    )

    @staticmethod
    def check_together(o: Any) -> None:
        """Refuses --shards beside --rows-per-shard: each of them fixes the number of ranges."""
        if o.shards is not None and o.rows_per_shard is not None:
            raise UsageError(f"--shards {o.shards}: must not stand beside --rows-per-shard, which it replaces")


@dataclasses.dataclass(frozen=True)
class Record:
    """What OUT/shards.json holds.

    Attributes:
        ranges: the number of ranges.
        rows_per_shard: the option that fixed this number; None: --shards or the default fixed it.
    """

    ranges: int
    rows_per_shard: int | None

    def __post_init__(self) -> None:
        Ranges(self.ranges)  # raises if the number is out of range


def fixed_ranges(root: str, settings: PublishSettings) -> int | None:
    """The number of ranges, where it is fixed before the rows are known; None: the rows decide.

    --shards fixes it. Without --shards, the first build of the folder fixed it. Another --rows-per-shard than that
    build's lets the rows decide again.
    """
    if settings.shards is not None:
        return settings.shards
    record = read_record(root)
    if record is None or settings.rows_per_shard not in (None, record.rows_per_shard):
        return None
    return record.ranges


def read_record(root: str) -> Record | None:
    """The content of OUT/shards.json. A copy without that file takes it from the manifest; None: it has neither.

    Raises:
        UsageError: the file is damaged.
    """
    path = os.path.join(root, RECORD)
    try:
        found = storage.read_json(path)
        if found is not None:
            return Record(found["ranges"], found["rows_per_shard"])
        manifest = checks.read_object(os.path.join(root, "manifest.json"))
        recorded = ranges.recorded(manifest)
        return None if recorded is None else Record(recorded.count, manifest["options"].get("rows_per_shard"))
    except (storage.DamagedError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path} is damaged ({error}): remove it, or name the number with --shards") from None


@dataclasses.dataclass(frozen=True)
class PublishPlan:
    """What the steps share.

    Attributes:
        caps: the balancing over what remains.
        rows: the fetched rows that dedup-images left in.
        attempts: where the images are.
        names: the sorted names of the inputs.
        fixed: the number of ranges of uids; None: the rows decide.
        rows_per_shard: pairs of a shard, where the rows decide. A shard gets about so many, or a few less.
        keep_rejected: sample, all or none.
        scores: path of the scores that become columns of the metadata; None: there are none.
    """

    caps: CapPlan
    rows: Rows
    attempts: Attempts
    names: tuple[str, ...]
    fixed: int | None
    rows_per_shard: int
    keep_rejected: str
    scores: str | None

    def step(self, name: str) -> StepFolder:
        """The folder of a step."""
        return self.caps.step(name)

    def ranges(self) -> Ranges:
        """The ranges of uids. Each range with a row becomes a shard."""
        return Ranges(self.fixed or ranges_for(caps.candidates(self.caps), self.rows_per_shard))

    def ranges_per_unit(self) -> int:
        """The number of ranges that a unit writes: 1, or more where there are more ranges than rows."""
        return -(-self.ranges().count // max(1, caps.candidates(self.caps)))

    def units(self) -> int:
        """The number of units that write all ranges: at most the number of rows."""
        return -(-self.ranges().count // self.ranges_per_unit())

    def name_buckets(self) -> int:
        """The number of buckets into which each shard cuts the names that it counts."""
        return summary.name_buckets(caps.candidates(self.caps))


def ranges_for(rows: int, rows_per_shard: int) -> int:
    """The number of ranges that so many rows fill."""
    return min(ranges.MOST, max(1, -(-rows // rows_per_shard)))


@dataclasses.dataclass(frozen=True)
class CutByShard:
    """One unit for each group: its picked rows, cut by the unit of WriteShards that takes them."""

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
        decider = caps.Decider.load(plan.caps, tally)
        selected = (decider.pick(batch, keep, FETCHED_OK) for part in plan.rows.masked(unit) for batch, keep in part)
        parts = 0
        for parts, some in enumerate(shuffle_files.in_pieces(selected), 1):
            self._write(unit, parts - 1, some)
        return {**unit_body(self.folder, unit, [tally], rejects), "parts": parts}

    def _write(self, unit: int, part: int, selected: list[pa.RecordBatch]) -> None:
        batch = hashing.as_batch(pa.Table.from_batches(selected, FETCHED_OK))
        taker = self.plan.ranges().of(*hashing.uid_words(batch["uid"])) // self.plan.ranges_per_unit()
        shuffle_files.write(self.folder.file(unit, "rows", part), shuffle_files.cut(batch, taker, self.plan.units()))


@dataclasses.dataclass(frozen=True)
class WriteShards:
    """One unit for each range of uids (or for some neighbours): writes tar and metadata, unless there are no rows."""

    plan: PublishPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.step("shards")

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.step("selected"), "rows")

    def units(self) -> int:
        return self.plan.units()

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        table = caps.sort_by_uid(shuffle_files.table(messages, FETCHED_OK))
        if table.num_rows == 0:
            return {"rows": 0}
        numbers = self.plan.ranges().of(*hashing.uid_words(table["uid"]))
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        written = [
            self._write(int(numbers[start]), table.slice(start, end - start))
            for start, end in itertools.pairwise([*starts, table.num_rows])
        ]
        self._summarise(unit, [metadata for _, metadata in written])
        return {"rows": table.num_rows, "shards": [dataclasses.asdict(info) for info, _ in written]}

    def _write(self, number: int, table: pa.Table) -> tuple[shards.ShardInfo, pa.Table]:
        """Writes a shard; returns its description and its metadata."""
        plan, folder = self.plan, os.path.join(self.folder.root, STAGED)
        rows = readable(table.select(FETCHED.names), list(plan.names))
        scores = None if plan.scores is None else load_scores(plan.scores).of(table["uid"])
        kept = self._keep(folder, number, rows, scores)
        if kept is not None:
            return kept
        images = RawImages(plan.attempts.images, table)
        try:
            return shards.write_shard(folder, number, rows, images, ranges=plan.ranges(), more=scores)
        except shards.ImageChanged as error:
            raise storage.DamagedError.of(images.path(error.row), str(error)) from error

    def _keep(
        self, folder: str, number: int, rows: pa.Table, scores: pa.Table | None
    ) -> tuple[shards.ShardInfo, pa.Table] | None:
        """The shard with the tar that is published already, if it has these rows and is sound; else None."""
        before, ranges = load_published(self.folder.root), self.plan.ranges()
        old = before.infos.get(number) if before is not None and before.ranges == ranges else None
        if before is None or old is None or old.rows != rows.num_rows:
            return None
        try:
            kept = shards.keep_shard(folder, number, rows, before.metadata(number), ranges=ranges, more=scores)
            tar = old.files[0]
            if kept is None or shards.entry_of(before.root, tar.path, rows=tar.rows) != tar:
                return None
        except (OSError, pa.ArrowException):  # a published file is gone or damaged
            return None
        return shards.ShardInfo(number, rows.num_rows, (tar, kept[0])), kept[1]

    def _summarise(self, unit: int, metadata: list[pa.Table]) -> None:
        """Writes the counts of the shards, and pictures that the report may show, beside the unit's manifest."""
        pick = summary.Pick(report.PICTURES)
        counted = summary.summarise((table.select(summary.COLUMNS) for table in metadata), pick=pick)
        sections = summary.pack(counted, pick, self.plan.name_buckets())
        shuffle_files.write(self.folder.file(unit, "summary"), sections)


def load_published(root: str) -> Published | None:
    """The set that OUT holds already; None: none that this version can keep files of."""
    path = os.path.join(root, "manifest.json")
    state = storage.state(path)
    return None if state is None else _load_published(root, state)


@functools.lru_cache(maxsize=1)
def _load_published(root: str, state: tuple[Any, ...]) -> Published | None:
    del state
    try:
        return Published.of(root, storage.read_json(os.path.join(root, "manifest.json"), sealed=False) or {})
    except (Damaged, storage.DamagedError, KeyError, TypeError, ValueError):
        return None


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
    shown_rejected: str

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
            shown_rejected=run.settings(RunSettings).keep_rejected,
        )

    @property
    def publishing(self) -> PublishPlan:
        """How the shards are made. The stages before must be done.

        The cap is the one that balance used. If balance allowed for losses (--expected-yield), the cap is found again,
        without this allowance.
        """
        before, rows = self.before.part("balance", CapPlan), self.before.rows("dedup-images")
        policy = dataclasses.replace(before.policy, expected_yield=1.0)
        if before.policy.expected_yield == 1:
            policy = dataclasses.replace(policy, cap=before.cap(), target_pairs=None)
        plan = CapPlan(self.folder, MatchedRows(rows), policy, self.tables, before=before)
        attempts = Attempts(self.before.folder("fetch"), self.before.folder("balance"))
        fixed = fixed_ranges(self.folder.root, self.settings)
        rows_per_shard = self.settings.rows_per_shard or ROWS_PER_SHARD
        path = scores_of(self.before.folder("dedup-images"))
        scores = path if storage.exists(path) else None
        return PublishPlan(plan, rows, attempts, self.names, fixed, rows_per_shard, self.keep_rejected, scores)

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        said = run.settings(PublishSettings)
        of_pages = {name: getattr(said, name) for name in ("date", "creator") if getattr(said, name) is not None}
        asked = run.settings(RunSettings).keep_rejected
        fewer = {} if asked == run.keep_rejected else {"keep_rejected": asked}
        of_shards = {"shards": said.shards, "rows_per_shard": said.rows_per_shard, "format": shards.FORMAT}
        return {**of_shards, **of_pages, **fewer}

    def check(self, run: Run) -> None:
        fixed_ranges(run.root, self.settings)

    def begin(self, run: Run) -> None:
        record = None if self.settings.shards else read_record(run.root)
        if record is not None:
            storage.write_json(os.path.join(run.root, RECORD), dataclasses.asdict(record))

    def expand(self, done: Any) -> beam.PCollection:
        plan = self.publishing
        selected = plan.attempts.selected.done()["rows_out"]
        max_units = min(plan.fixed or ranges_for(selected, plan.rows_per_shard), max(1, selected))
        done = caps.find_caps(done, plan.caps, exchange=self.exchange)
        done = run_task(done, CutByShard(plan), max_units=plan.rows.groups)
        write, producers = WriteShards(plan), plan.rows.groups
        return run_exchange(done, write, buckets=max_units, exchange=self.exchange, producers=producers)

    def lost(self) -> str | None:
        """A published file that is gone, or a shard that has another size than the manifest says."""
        root = self.folder.root
        manifest = storage.read_json(os.path.join(root, "manifest.json"), sealed=False)
        if manifest is None:
            return os.path.join(root, "manifest.json")
        for entry in manifest["files"]:
            path = os.path.join(root, entry["path"])
            try:
                size = storage.size(path)
            except FileNotFoundError:
                return path
            if entry["path"].startswith(("shards/", "metadata/")) and size != entry["bytes"]:
                return path
        return None

    @property
    def output(self) -> Rows | None:
        return None

    def steps(self) -> tuple[StepFolder, ...]:
        return tuple(self.folder.step(name) for name in (*CAP_STEPS, "selected", "shards"))

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.folder.step("selected"),)

    def facts(self) -> dict[str, Json]:
        plan, target = self.publishing, self.before.part("balance", CapPlan).policy.target_pairs
        ledger, _ = sum_of_ledgers(self.counted(), self.name)
        short = caps.shortfall(plan.caps, int(target * NEARLY) if target else None, ledger.rows_out)
        found = {"target_pairs": target} if short else {}
        return {"cap": plan.caps.cap(), "shards": plan.ranges().count, **short, **found}

    def watched(self) -> list[Watched]:
        return [Watched(f"publish {name}", self.folder.step(name)) for name in ("selected", "shards")]

    def complete(self) -> dict[str, Any]:
        info = self.count()
        infos = [*(folder.info() for folder in self.before.folders()), {"stage": self.name, **info}]
        top = os.path.join(self.folder.root, STAGED)
        copy_rejected((*self.before.folders(), self.folder), top, keep=self.shown_rejected)
        copy_tables(self.before.folder("dedup-images"), top)
        plan, step = self.publishing, self.folder.step("shards")
        written = {unit: found["shards"] for unit, found in step.manifests() if found["rows"]}
        pick = summary.Pick(report.PICTURES)
        counted = summary.merge([step.file(unit, "summary") for unit in written], plan.name_buckets(), pick)
        made = [shards.ShardInfo.from_json(found) for some in written.values() for found in some]
        link(os.path.join(self.folder.root, NEXT), top, READ_BY_USERS[:1])
        link(self.folder.root, top, [*READ_BY_USERS[:1], *(info.files[0].path for info in made)])
        manifest = report.finish(
            top,
            made,
            ranges=plan.ranges(),
            summary=counted,
            pick=pick,
            ledger=[_published_ledger(row) for row in infos if row],
            options=self.about.options,
            versions=self.about.versions,
            damaged=next((row["damaged_inputs"] for row in infos if row and "damaged_inputs" in row), {}),
            evaluation=next((row["evaluation"] for row in infos if row and "evaluation" in row), {}),
            more=() if plan.scores is None else load_scores(plan.scores).columns.schema,
            balancing=self._balancing(os.path.join(top, "queries.parquet")),
            pictures=dropped_pictures(plan, top, shapes=not self.about.options.get("keep")),
            crawled=croissant.crawl_days(next((row["crawled"] for row in infos if row and "crawled" in row), {})),
        )
        self._replace(manifest, info)
        return info

    def _balancing(self, queries: str) -> dict[str, Any] | None:
        """The cap, and how many pairs held the queries before balancing."""
        before = self.before.part("balance", CapPlan)
        if not storage.exists(queries):
            return None
        names = storage.read_published(queries, ["query"])["query"].to_pylist()
        cap = None if before.policy.kind == "none" else self.publishing.caps.cap()
        return {"cap": cap, "before": query_curve.thin(np.asarray(caps.load_limits(before)["count"]), names)}

    def _replace(self, manifest: dict[str, Any], info: dict[str, Any]) -> None:
        """Puts the new set in the place of the published one, and completes the stage, as one change."""
        plan, change = self.publishing, Change(self.folder.root)
        for path in [*(entry["path"] for entry in manifest["files"]), "manifest.json"]:
            if not storage.is_link(os.path.join(self.folder.root, STAGED, path)):
                change.rename(f"{STAGED}/{path}", path)
        listed = {entry["path"] for entry in manifest["files"]}
        beside = [name for name in TABLES_BESIDE if name not in listed]
        for path in [*shards.unlisted_files(self.folder.root, manifest), *beside, STAGED, NEXT]:
            change.remove(path)
        coming = os.path.join(self.folder.root, NEXT)
        for path in READ_BY_USERS if storage.is_folder(coming) else ():
            if storage.exists(os.path.join(coming, path)):
                change.rename(f"{NEXT}/{path}", path)
        listed_beside = change.place(storage.CHECKSUMS)
        storage.list_checksums(self.folder.root, READ_BY_USERS, coming=coming, into=listed_beside)
        if self.settings.shards is not None or plan.fixed is None:
            record = Record(plan.ranges().count, self.settings.rows_per_shard)
            storage.write_json(change.place(RECORD), dataclasses.asdict(record))
        self.folder.complete(info, into=change.place(f"stages/{self.name}"), without=os.path.basename(STAGED))
        change.commit()


def link(root: str, top: str, paths: Iterable[str]) -> None:
    """Makes published files that do not change readable among the new ones."""
    for path in paths:
        target, name = os.path.join(root, path), os.path.join(top, path)
        if storage.exists(target) and not storage.exists(name):
            storage.link(target, name)


def dropped_pictures(plan: PublishPlan, top: str, *, shapes: bool) -> dict[str, bytes]:
    """The pictures of some pairs that were dropped as duplicates, or for the shape of their images, for the report.

    All fetched rows are looked through, so a large set shows none.

    Args:
        plan: of the stage.
        top: the folder with the tables of dropped rows.
        shapes: show those that were dropped for their shape. False where `--keep` might have refused them, too.
    """
    if plan.attempts.selected.done()["rows_out"] > MOST_LOOKED_THROUGH:
        return {}
    found = _pictures_of_shapes(plan, report_facts.shape_keys(top)) if shapes else {}
    wanted = [row["key"] for _, rows in report_facts.duplicate_keys(top) for row in rows]
    if not wanted:
        return found
    columns = ["uid", "raw_attempt", "raw_unit", "raw_part", "image_offset", "image_bytes"]
    uids = pa.array([bytes.fromhex(key) for key in wanted], pa.binary(16))
    for group in range(plan.rows.groups):
        for part in plan.rows.masked(group, columns):
            for batch, _ in part:
                found |= _pictures(plan, pa.Table.from_batches([batch.filter(pc.is_in(batch["uid"], uids))]))
    return found


def _pictures_of_shapes(plan: PublishPlan, keys: list[str]) -> dict[str, bytes]:
    """The pictures of pairs that dedup-images drops at once. Its rows do not have them, those of the fetch do."""
    found: dict[str, bytes] = {}
    if not keys:
        return found
    uids = pa.array([bytes.fromhex(key) for key in keys], pa.binary(16))
    for unit, _ in plan.attempts.images(plan.attempts.first()).manifests():
        for _, _, table in plan.attempts.rows(unit):
            found |= _pictures(plan, table.filter(pc.is_in(table["uid"], uids)))
    return found


def _pictures(plan: PublishPlan, rows: pa.Table) -> dict[str, bytes]:
    """The pictures of fetched rows by key. Those that are too large for the report, or not there, are left out."""
    found, images = dict[str, bytes](), RawImages(plan.attempts.images, rows)
    for number, (uid, size) in enumerate(zip(rows["uid"].to_pylist(), rows["image_bytes"].to_pylist(), strict=True)):
        image = bytearray(size or 0)
        if 0 < len(image) <= report_facts.MOST_PICTURE:
            with contextlib.suppress(storage.DamagedError):
                images(number, memoryview(image))
                found[uid.hex()] = bytes(image)
    return found


TABLES_BESIDE = {DUPLICATES_FILE: DUPLICATES, CONTAMINATION_FILE: CONTAMINATION}


def copy_tables(stage: StageFolder, top: str) -> None:
    """Copies the tables of dedup-images to a folder: the duplicates, and the pairs that show evaluation images."""
    for name, schema in TABLES_BESIDE.items():
        path, target = os.path.join(stage.path, name), os.path.join(top, name)
        if storage.exists(path):
            storage.write_published(target, widened(storage.read_table(path), schema))
        else:
            storage.remove(target)


def widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of the schema. A column that an older version did not write is null."""
    columns = [table[name] if name in table.column_names else pa.nulls(table.num_rows) for name in schema.names]
    return pa.table(columns, names=schema.names).cast(schema)


def copy_rejected(stages: tuple[StageFolder, ...], top: str, *, keep: str) -> None:
    """Copies rejected rows to rejected/<stage>.parquet in a folder.

    Args:
        stages: that kept them. They may have kept more than is asked for now.
        top: the folder.
        keep: sample, all or none.
    """
    target = os.path.join(top, "rejected")
    storage.remove(target)
    for stage in stages if keep != "none" else ():
        path = os.path.join(stage.path, "rejected.parquet")
        if storage.exists(path):
            table = storage.read_table(path)
            table = smallest(table, REJECTED_ROWS) if keep == "sample" else table
            if table.num_rows:
                storage.write_published(os.path.join(target, f"{stage.name}.parquet"), _published_rejected(table))


def _published_rejected(table: pa.Table) -> pa.Table:
    """PUBLISHED_REJECTED of REJECTED. Stages of an earlier version kept no uids."""
    uids = table["uid"].to_pylist() if "uid" in table.column_names else [None] * len(table)
    keys = pa.array([None if uid is None else uid.hex() for uid in uids], pa.string())
    return table.append_column("key", keys).select(PUBLISHED_REJECTED.names)


def _published_ledger(info: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a stage: its counts, and the refusals if there are any."""
    counted = {name: info[name] for name in ("stage", "rows_in", "rows_out", "dropped")}
    return {**counted, **{name: info[name] for name in ("rights", "robots_archives") if info.get(name)}}
