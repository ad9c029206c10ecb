"""Finds duplicates among parts. Keys go to buckets. The places of dropped rows come back as masks beside the parts.

`dedup` does this with URLs and texts before the fetch. `dedup_images` does it with image bytes after the fetch.

    <step>/*.keys --by image--> FindDuplicates --by unit--> MarkDropped: masks/00007-000.mask

Where the row that stays takes something from the dropped rows of its image (`captions` >= 1), their values are fetched:

    FindDuplicates --by unit of the dropped row--> ReadTaken --by unit of the kept row--> WriteOverlays

With a bound on the images of a text, the texts are counted before:

    <step>/*.keys --CutTexts--> by text --> FindCommonTexts: texts/00007.common
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Overlay, Rows
from pipeline.engine.steps import run_exchange, run_task
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StageFolder, StepFolder
from pipeline.schema import DEDUPED, MATCHED
from pipeline.stages import selection
from pipeline.stages.base import Stage
from pipeline.stages.matches import Keys
from pipeline.stages.row_pass import KEYS, PARTS_OF_UNIT, ROW_HASH
from pipeline.stages.tally import Rejects, Tally, unit_body

if TYPE_CHECKING:
    import apache_beam as beam

TEXTS = pa.schema([pa.field("text", pa.uint64(), False), pa.field("image", pa.uint64(), False)])
DROPS = pa.schema(
    [pa.field("part", pa.int32(), False), pa.field("row", pa.int32(), False), pa.field("reason", pa.uint8(), False)]
)


LINKS = pa.schema(
    [
        pa.field("source_part", pa.int32(), False),
        pa.field("source_row", pa.int32(), False),
        pa.field("part", pa.int32(), False),
        pa.field("row", pa.int32(), False),
        pa.field("number", pa.uint8(), False),
        pa.field("gives_url", pa.bool_(), False),
    ]
)
GIVEN = ("url", "text", "query_ids", "opt_out")  # columns of MATCHED
TAKEN = pa.schema([*(LINKS.field(name) for name in LINKS.names[2:]), *(MATCHED.field(name) for name in GIVEN)])
OVERLAY = pa.schema(
    [
        LINKS.field("row"),
        *(DEDUPED.field(name) for name in ("url", "url_as_found", "texts", "query_ids", "opt_out")),
        ROW_HASH,
    ]
)


@dataclasses.dataclass(frozen=True)
class DedupPlan:
    """The exchange of one stage.

    Attributes:
        folder: of the stage.
        rows: the parts with their `.keys`.
        key_bits: the keys are cut into 2 ** key_bits buckets.
        reasons: the drop reason for each code of `selection.find_duplicates`.
        placeholder_bound: all rows of an image with more texts than this are dropped; 0: no bound.
        common_text_bound: all rows of a text with more images than this are dropped; 0: no bound.
        exempt: the units whose rows this bound neither counts nor drops.
        keep_rejected: sample, all or none.
        captions: the most texts of an image that stay, in one row; 0: a row that stays takes nothing from the others.
        tables: the folder of the compiled lists, if texts are matched again.
    """

    folder: StageFolder
    rows: Rows
    key_bits: int
    reasons: tuple[str, ...] = selection.DUPLICATE_REASONS
    placeholder_bound: int = 0
    common_text_bound: int = 0
    exempt: tuple[int, ...] = ()
    keep_rejected: str = "sample"
    captions: int = 0
    tables: str = ""

    @property
    def cut_texts(self) -> StepFolder:
        """The texts of the rows with their images, by text."""
        return self.folder.step("cut-texts")

    @property
    def texts(self) -> StepFolder:
        """The texts of too many images."""
        return self.folder.step("texts")

    @property
    def drops(self) -> StepFolder:
        """The dropped rows, by group."""
        return self.folder.step("drops")

    @property
    def taken(self) -> StepFolder:
        """What the rows that stay take from the dropped ones, by group of the rows that stay."""
        return self.folder.step("taken")

    @property
    def overlays(self) -> StepFolder:
        """One `engine.rows.Overlay` for each part."""
        return self.folder.step("overlays")

    @property
    def masks(self) -> StepFolder:
        """One mask for each part (0: the row stays)."""
        return self.folder.step("masks")

    def remaining(self) -> Rows:
        """The rows that the stage does not drop."""
        return dataclasses.replace(self.rows, masks=self.masks, overlays=self.overlays if self.captions else None)

    def steps(self) -> tuple[StepFolder, ...]:
        """All steps."""
        texts = (self.cut_texts, self.texts) if self.common_text_bound else ()
        taken = (self.taken, self.overlays) if self.captions else ()
        return *texts, self.drops, *taken, self.masks

    def watched(self) -> list[Watched]:
        """The steps that the progress shows."""
        name = self.folder.name
        texts = [Watched(f"{name} texts", self.texts)] if self.common_text_bound else []
        taken = [Watched(f"{name} overlays", self.overlays, self.rows.groups)] if self.captions else []
        masks = Watched(f"{name} masks", self.masks, self.rows.groups)
        return [*texts, Watched(f"{name} drops", self.drops), *taken, masks]


@dataclasses.dataclass(frozen=True)
class CutTexts:
    """One unit for each group: the texts of its rows with their images, cut by text."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.cut_texts

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int) -> dict[str, Any]:
        parts = self.plan.rows.parts
        messages = [
            message
            for source, part, _ in self.plan.rows.parts_of_group(unit)
            if source not in self.plan.exempt
            for _, message in shuffle_files.read_all(parts.file(source, "keys", part))
        ]
        batch = hashing.as_batch(shuffle_files.table(messages, KEYS, TEXTS.names))
        bucket = hashing.buckets(batch["text"].to_numpy(), self.plan.key_bits)
        path = self.folder.file(unit, "texts", 0)
        shuffle_files.write(path, shuffle_files.cut(batch, bucket, 1 << self.plan.key_bits))
        return {"parts": 1, "rows": batch.num_rows}


@dataclasses.dataclass(frozen=True)
class FindCommonTexts:
    """One unit for each bucket of texts: those that stand at too many images."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.texts

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.cut_texts, "texts")

    def units(self) -> int:
        return 1 << self.plan.key_bits

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        found = shuffle_files.table(messages, TEXTS)
        text, image = (found[name].to_numpy() for name in TEXTS.names)
        common = selection.find_common_texts(text, image, self.plan.common_text_bound)
        storage.save_array(self.folder.file(unit, "common"), common)
        return {"texts": len(common)}


@functools.lru_cache(maxsize=2)
def load_common_texts(folder: StepFolder) -> np.ndarray:
    """The texts of too many images, ascending."""
    arrays = [storage.map_array(folder.file(unit, "common")) for unit, _ in folder.manifests()]
    return np.sort(np.concatenate(arrays)) if arrays else np.zeros(0, np.uint64)


def among(words: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """True for each word that is in an ascending array. The words are hashes, and most are not in it."""
    mask = np.uint64((16 << len(ascending).bit_length()) - 1)
    low_bits = np.zeros(int(mask) + 1, np.bool_)  # so few words are looked up
    low_bits[ascending & mask] = True
    found = low_bits[words & mask]
    maybe = words[found]
    if len(maybe):
        place = np.minimum(np.searchsorted(ascending, maybe), len(ascending) - 1)
        found[found] = ascending[place] == maybe
    return found


def keys_of(keys: pa.Table, common: np.ndarray | None = None, exempt: tuple[int, ...] = ()) -> Keys:
    """KEYS as the rules take them.

    Args:
        keys: all rows of an image, or none of them.
        common: the texts of too many images, ascending.
        exempt: the units whose rows may have such a text.
    """
    columns = {name: keys[name].to_numpy() for name in KEYS.names}
    text, part, _ = (columns.pop(name) for name in ("text", "part", "row"))
    is_common = among(text, np.zeros(0, np.uint64) if common is None else common)
    if exempt:
        is_common &= ~np.isin(part // PARTS_OF_UNIT, exempt)
    return Keys(rank=hashing.mix(columns["image"], text), common=is_common, **columns)


def links_of(table: pa.Table, keys: Keys, codes: np.ndarray, captions: int) -> pa.RecordBatch:
    """LINKS of some rows of KEYS. The codes of rows whose text joins another row change to JOINED_TEXT."""
    found = selection.find_links(keys, codes, captions)
    codes[found.source[found.number > 0]] = selection.JOINED_TEXT
    part, row = table["part"].to_numpy(), table["row"].to_numpy()
    places = (column[rows] for rows in (found.source, found.target) for column in (part, row))
    return _batch((*places, found.number, found.gives_url), LINKS)


def _batch(columns: Iterable[np.ndarray], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=schema)


def drops_of(part: np.ndarray, row: np.ndarray, codes: np.ndarray) -> pa.RecordBatch:
    """DROPS: the place and the code of each row whose code is not 0."""
    drop = np.flatnonzero(codes)
    return _batch((part[drop], row[drop], codes[drop].astype(np.uint8)), DROPS)


def write_drops(folder: StepFolder, unit: int, drops: pa.RecordBatch, rows: Rows) -> None:
    """Writes DROPS as a bucket file, cut by the group of their part."""
    cut_by_group(folder.file(unit, "drops", 0), drops, drops["part"], rows.groups)


@dataclasses.dataclass(frozen=True)
class FindDuplicates:
    """One unit for each bucket of keys."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.drops

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.rows.parts, "keys")

    def units(self) -> int:
        return 1 << self.plan.key_bits

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        keys, plan = shuffle_files.table(messages, KEYS), self.plan
        keyed = keys_of(keys, load_common_texts(plan.texts) if plan.common_text_bound else None, plan.exempt)
        codes = selection.find_duplicates(keyed, placeholder_bound=plan.placeholder_bound)
        if plan.captions:
            links = self.links(keys, keyed, codes)
            cut_by_group(self.folder.file(unit, "links", 0), links, links["source_part"], plan.rows.groups)
        drops = drops_of(keys["part"].to_numpy(), keys["row"].to_numpy(), codes)
        write_drops(self.folder, unit, drops, plan.rows)
        return {"parts": 1, "keys": keys.num_rows, "drops": drops.num_rows, **self.extra(unit, keys, codes)}

    def links(self, keys: pa.Table, keyed: Keys, codes: np.ndarray) -> pa.RecordBatch:
        """LINKS of the rows of a bucket."""
        return links_of(keys, keyed, codes, self.plan.captions)

    def extra(self, unit: int, keys: pa.Table, codes: np.ndarray) -> dict[str, Any]:
        """Writes what else a stage wants of a bucket. Returns further entries of the manifest."""
        return {}


def cut_by_group(path: str, rows: pa.RecordBatch, part: pa.Array, groups: int) -> None:
    """Writes a bucket file of rows, cut by the group of units of the part."""
    group = part.to_numpy().astype(np.int64) // PARTS_OF_UNIT % groups
    shuffle_files.write(path, shuffle_files.cut(rows, group, groups))


@dataclasses.dataclass(frozen=True)
class ReadTaken:
    """One unit for each group: reads what its dropped rows give, and cuts it by the group of the row that takes it."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.taken

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.drops, "links")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        order = [("source_part", "ascending"), ("source_row", "ascending")]
        links, found = shuffle_files.table(messages, LINKS).sort_by(order), [TAKEN.empty_table()]
        for place, some in parts_with_rows(self.plan.rows, unit, links, "source_part"):
            if some.num_rows:
                path = self.plan.rows.parts.file(place[0], "arrow", place[1])
                given = rows_of_part(path, some["source_row"].to_numpy(), list(GIVEN))
                found.append(pa.table([*some.select(LINKS.names[2:]).columns, *given.columns], schema=TAKEN))
        batch = hashing.as_batch(pa.concat_tables(found))
        cut_by_group(self.folder.file(unit, "taken", 0), batch, batch["part"], self.plan.rows.groups)
        return {"parts": 1, "taken": batch.num_rows}


@dataclasses.dataclass(frozen=True)
class WriteOverlays:
    """One unit for each group: writes beside each part the rows that take something, with their new values."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.overlays

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.taken, "taken")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        order = [(name, "ascending") for name in ("part", "row", "number")]
        taken, rows = shuffle_files.table(messages, TAKEN).sort_by(order).combine_chunks(), 0
        for (source, part), some in parts_with_rows(self.plan.rows, unit, taken, "part"):
            overlay = make_overlay(self.plan.rows.parts.file(source, "arrow", part), some)
            with storage.writing_batches(self.folder.file(source, "overlay", part), OVERLAY) as out:
                out.write_batch(overlay)
            rows += overlay.num_rows
        return {"rows": rows}


def parts_with_rows(rows: Rows, group: int, table: pa.Table, name: str) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    """For each part in a group: (unit, part), and the rows of the table whose column `name`, ascending, has it."""
    numbers = table[name].to_numpy()
    for unit, part, _ in rows.parts_of_group(group):
        number = unit * PARTS_OF_UNIT + part
        first, last = np.searchsorted(numbers, [number, number + 1]).tolist()
        yield (unit, part), table.slice(first, last - first)


def rows_of_part(path: str, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """Some rows of a part. `rows` has their places, at least one, ascending."""
    first, found = 0, []
    for batch in storage.read_batches(path):  # all columns: so the file is mapped; selected columns would be copied
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        if high > low:
            found.append(batch.select(columns).take(pa.array(rows[low:high] - first)))
        first += batch.num_rows
    return pa.Table.from_batches(found).combine_chunks()


def make_overlay(path: str, taken: pa.Table) -> pa.RecordBatch:
    """OVERLAY: the rows of a part that take something.

    The texts are the row's own and then those that it takes, in the order of their numbers. The queries are those of
    all its texts. The signals of all pages that the texts come from stay, too.

    Args:
        path: of the part.
        taken: rows of TAKEN, sorted by row and number.
    """
    if not taken.num_rows:
        return pa.RecordBatch.from_pylist([], OVERLAY)
    rows, owner = np.unique(taken["row"].to_numpy(), return_inverse=True)
    own = rows_of_part(path, rows, [*GIVEN, "row_hash"])
    gives_url, gives_text = taken["gives_url"].to_numpy(), taken["number"].to_numpy() > 0
    owner, given = owner[gives_text], taken.filter(pa.array(gives_text))
    takes_url = np.zeros(len(rows), np.bool_)
    takes_url[np.searchsorted(rows, taken["row"].to_numpy()[gives_url])] = True
    own_url, new_url = (hashing.as_array(table["url"]) for table in (own, taken.filter(pa.array(gives_url))))
    columns = {
        "url": pc.replace_with_mask(own_url, pa.array(takes_url), new_url),
        "url_as_found": pc.if_else(pa.array(takes_url), own_url, pa.scalar(None, pa.string())),
        "texts": lists_of(own["text"], given["text"], owner),
        "query_ids": union_of_queries(own["query_ids"], given["query_ids"], owner),
        "opt_out": union_of_signals(own["opt_out"], given["opt_out"], owner),
    }
    hashes = hashing.row_hash(own["row_hash"].to_numpy(), *map(hashing.column_hash, columns.values()))
    return pa.RecordBatch.from_arrays([pa.array(rows), *columns.values(), pa.array(hashes)], schema=OVERLAY)


def lists_of(own: pa.ChunkedArray, given: pa.ChunkedArray, owner: np.ndarray) -> pa.ListArray:
    """For each row its own text, and then the given texts of which it is the owner."""
    order = np.argsort(np.concatenate([np.arange(len(own)), owner]), kind="stable")
    texts = pa.concat_arrays([hashing.as_array(own), hashing.as_array(given)]).take(pa.array(order))
    return pa.ListArray.from_arrays(offsets_of(1 + np.bincount(owner, minlength=len(own))), texts)


def union_of_queries(own: pa.ChunkedArray, given: pa.ChunkedArray, owner: np.ndarray) -> pa.ListArray:
    """For each row the ids of its own text and of the given texts, ascending, each once."""
    lists = pa.concat_arrays([hashing.as_array(own), hashing.as_array(given)])
    owners = np.repeat(np.concatenate([np.arange(len(own)), owner]), pc.list_value_length(lists).to_numpy())
    pairs = np.unique(owners << 32 | lists.flatten().to_numpy().astype(np.int64))
    counts = np.bincount(pairs >> 32, minlength=len(own))
    return pa.ListArray.from_arrays(offsets_of(counts), pa.array((pairs & 0xFFFFFFFF).astype(np.int32)))


def offsets_of(counts: np.ndarray) -> pa.Array:
    """The offsets of a ListArray whose lists have so many values."""
    return pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


def union_of_signals(own: pa.ChunkedArray, given: pa.ChunkedArray, owner: np.ndarray) -> pa.StringArray:
    """For each row the signals of its own page, and then those that only the pages of given texts have."""
    signals = own.to_pylist()
    for row, more in zip(owner.tolist(), given.to_pylist(), strict=True):
        if more is not None:
            found = dict.fromkeys([*(signals[row] or more).split(","), *more.split(",")])
            signals[row] = ",".join(found)
    return pa.array(signals, pa.string())


@dataclasses.dataclass(frozen=True)
class MarkDropped:
    """One unit for each group: writes a mask (0: stays) beside each part, counts the rows, samples the dropped ones.

    Attributes:
        plan: of the exchange.
        last: the step whose drops are read; None: that of FindDuplicates.
        earlier: a step of the same groups that holds more drops of each; None: there are no more.
    """

    plan: DedupPlan
    last: StepFolder | None = None
    earlier: StepFolder | None = None

    @property
    def folder(self) -> StepFolder:
        return self.plan.masks

    @property
    def reads(self) -> Reading:
        return Reading(self.last or self.plan.drops, "drops")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        drops = shuffle_files.table(messages, DROPS)
        if self.earlier is not None:
            drops = pa.concat_tables([storage.read_table(self.earlier.file(unit, "earlier")), drops])
        rejects = Rejects(self.plan.keep_rejected)
        tally = Tally(self.plan.folder.name, rejects)
        offer = Offer(rejects, tally.stage, self.plan.reasons)
        for source, part, mask in masks_of_group(self.plan.rows, unit, drops):
            storage.write_bytes(self.folder.file(source, "mask", part), mask.tobytes())
            overlay = Overlay.read(self.plan.overlays.file(source, "overlay", part)) if self.plan.captions else None
            path = self.plan.rows.parts.file(source, "arrow", part)
            count_part(path, mask, tally, self.plan.reasons, overlay=overlay)
            offer.add(path, mask)
        offer.close()
        return unit_body(self.folder, unit, [tally], rejects)


def masks_of_group(rows: Rows, group: int, drops: pa.Table) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (unit, part, code of each row) for each part of a group. `drops` are DROPS of the group."""
    order = np.argsort(drops["part"].to_numpy(), kind="stable")
    part_of_drop, row, reason = (drops[name].to_numpy()[order] for name in DROPS.names)
    for source, part, count in rows.parts_of_group(group):
        number = source * PARTS_OF_UNIT + part
        first, last = np.searchsorted(part_of_drop, [number, number + 1])
        mask = np.zeros(count, np.uint8)
        mask[row[first:last]] = reason[first:last]
        yield source, part, mask


def count_part(
    path: str, mask: np.ndarray, tally: Tally, reasons: tuple[str, ...], *, overlay: Overlay | None = None
) -> None:
    """Adds one part to the stage's ledger and digest."""
    hashes = np.concatenate([batch["row_hash"].to_numpy() for batch in storage.read_batches(path, ["row_hash"])])
    if overlay is not None:
        whole = pa.RecordBatch.from_arrays([pa.array(hashes)], ["row_hash"])
        hashes = overlay.over(whole, 0, ["row_hash"])["row_hash"].to_numpy()
    tally.ledger.rows_in += len(mask)
    tally.passed(hashes[mask == 0])
    for code, rows in enumerate(np.bincount(mask, minlength=1).tolist()):
        if code:
            tally.ledger.drop(reasons[code], rows)


class Offer:
    """The dropped rows of the parts of a group. Those that the rejects keep are chosen before any row is read.

    Args:
        rejects: gets them.
        stage: that drops the rows.
        reasons: of the codes of the masks. A row whose text joined another row is not offered: the text is in the set.
    """

    def __init__(self, rejects: Rejects, stage: str, reasons: tuple[str, ...]) -> None:
        self._rejects, self._stage, self._reasons = rejects, stage, reasons
        self._paths: list[str] = []
        self._found: dict[int, np.ndarray] = {}  # code -> (number of the part, code, row, high word of the uid)

    def add(self, path: str, mask: np.ndarray) -> None:
        """Takes the dropped rows of a part."""
        rows = np.flatnonzero(mask)
        if self._rejects.keep == "none" or not len(rows):
            return
        number = np.full(len(rows), len(self._paths))
        self._paths.append(path)
        high = hashing.uid_words(rows_of_part(path, rows, ["uid"])["uid"])[0]
        places = np.stack([column.astype(np.uint64) for column in (number, mask[rows], rows, high)], axis=1)
        for code in np.unique(mask[rows]).tolist():
            if self._reasons[code] != selection.JOINED:
                self._keep(code, places[places[:, 1] == code])

    def _keep(self, code: int, places: np.ndarray) -> None:
        places = np.concatenate([self._found[code], places]) if code in self._found else places
        limit = self._rejects.limit
        if self._rejects.keep == "sample" and len(places) > limit:
            places = places[np.argpartition(places[:, 3], limit - 1)[:limit]]
        self._found[code] = places

    def close(self) -> None:
        """Reads the rows that are kept, and gives them to the rejects."""
        if not self._found:
            return
        places = np.concatenate(list(self._found.values()))[:, :3].astype(np.int64)
        places = places[np.lexsort(places[:, [2, 0]].T)]
        for some in np.split(places, np.flatnonzero(np.diff(places[:, 0])) + 1):
            taken = rows_of_part(self._paths[some[0, 0]], some[:, 2], ["url", "text", "uid"])
            for code in np.unique(some[:, 1]).tolist():
                of_code = taken.filter(pa.array(some[:, 1] == code))
                columns = (hashing.as_array(of_code[name]) for name in ("url", "text", "uid"))
                self._rejects.add(self._stage, self._reasons[code], *columns)


def drop_duplicates(done: Any, plan: DedupPlan, *, exchange: str) -> beam.PCollection:
    """Appends to `done` the steps that write a mask beside each part."""
    buckets, groups = 1 << plan.key_bits, plan.rows.groups
    if plan.common_text_bound:
        done = run_task(done, CutTexts(plan), max_units=groups)
        find = FindCommonTexts(plan)
        done = run_exchange(done, find, buckets=buckets, exchange=exchange, producers=groups)
    done = run_exchange(done, FindDuplicates(plan), buckets=buckets, exchange=exchange, producers=plan.rows.units)
    if plan.captions:
        done = run_exchange(done, ReadTaken(plan), buckets=groups, exchange=exchange, producers=buckets)
        done = run_exchange(done, WriteOverlays(plan), buckets=groups, exchange=exchange, producers=groups)
    return run_exchange(done, MarkDropped(plan), buckets=groups, exchange=exchange, producers=buckets)


@dataclasses.dataclass(frozen=True)
class DedupStage(Stage):
    """A stage that drops duplicates. Its rows are the parts that it reads, under the masks that it writes."""

    exchange: str

    @property
    @abc.abstractmethod
    def duplicates(self) -> DedupPlan:
        """The exchange that finds the duplicates."""

    def expand(self, done: Any) -> beam.PCollection:
        return drop_duplicates(done, self.duplicates, exchange=self.exchange)

    @property
    def output(self) -> Rows:
        return self.duplicates.remaining()

    def steps(self) -> tuple[StepFolder, ...]:
        return self.duplicates.steps()

    def counted(self) -> tuple[StepFolder, ...]:
        return (self.duplicates.masks,)

    def watched(self) -> list[Watched]:
        return self.duplicates.watched()
