"""Finds near-duplicates among images, after those with equal bytes. `similar` says which pictures are alike.

    parts/*.keys --by image--> FindSameImages: drops, and a table of the duplicates
    drops --by unit--> CutHashes: the hashes of the rows that are left, once for each block of their hash
    hashes --by block and its bits--> FindSimilar: the groups within each bucket
    drops --by unit--> CutVectors: the rows that have an embedding, by their cells
    vectors --by cell--> FindNearVectors: the groups within each cell (`near_vectors`)
    similar and near-vectors --all--> FormClusters: one row of each cluster stays; drops, and a table of the duplicates
    drops --by unit--> MarkDropped: masks/00007-000.mask

With `--captions N` the texts of dropped rows go to their keepers before that (`cluster_texts`).

A cluster is what pairs of alike pictures and of near embeddings connect (union-find over the pairs of all buckets). So
the rows decide it, never a bucket or a worker. Its *keeper* is the row with the largest original; of these, that with
the most words; of these, that with the smallest uid. Rows with equal bytes belong to the cluster of the row that stays
of them.

Only rows that are alike to another row come to FormClusters. It holds them all: about 130 bytes a row and block.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.sample_json import hex_strings
from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.progress import Watched
from pipeline.engine.steps import run_exchange
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StepFolder
from pipeline.schema import COLOUR_BYTES, DUPLICATES, SHADE_BYTES
from pipeline.stages import cluster_texts, embeddings, near_vectors, similar
from pipeline.stages.cluster_texts import ChooseTexts, GiveTexts, place_of
from pipeline.stages.dedup_exchange import (
    DROPS,
    LINKS,
    DedupPlan,
    FindDuplicates,
    MarkDropped,
    drops_of,
    masks_of_group,
    write_drops,
)
from pipeline.stages.matches import Keys
from pipeline.stages.picture_hashes import Hashes
from pipeline.stages.row_pass import PARTS_OF_UNIT
from pipeline.text.words import count_words

if TYPE_CHECKING:
    import apache_beam as beam

# Codes of a drop. The first three are those of `selection.DUPLICATE_REASONS`.
REASONS = ("", "same_pair", "same_image", "near_duplicate")
NEAR_DUPLICATE = 3
NEAR_EMBEDDING = 4  # the kind of a near-duplicate that no pairs of hashes connect to its keeper
KINDS = (*REASONS, "near_embedding")
CELLS_PER_BUCKET = 16

# What decides the keeper of a cluster, and the place of the row: 45 bytes.
MEMBER = (
    pa.field("pixels", pa.uint64(), False),  # of the original
    pa.field("words", pa.uint8(), False),  # of the text
    pa.field("pair_high", pa.uint64(), False),
    pa.field("pair_low", pa.uint64(), False),
    pa.field("phash", pa.uint64(), False),
    pa.field("part", pa.int32(), False),
    pa.field("row", pa.int32(), False),
)
LOOKS = pa.field("colours", pa.binary(COLOUR_BYTES), False), pa.field("shades", pa.binary(SHADE_BYTES), False)
LOOK_NAMES = tuple(field.name for field in LOOKS)
HASHES = pa.schema([pa.field("block", pa.uint8(), False), *LOOKS, pa.field("grain", pa.uint8(), False), *MEMBER])
HASH_BYTES = 2 + COLOUR_BYTES + SHADE_BYTES + 45
# `root` is the place (`place_of`) of one row of the group in the bucket, the same for all of them.
SIMILAR = pa.schema([pa.field("root", pa.int64(), False), *MEMBER])
# A row under a cell of embeddings. `place` is the row of its vector.
VECTORS = pa.schema(
    [
        pa.field("cell", pa.int32(), False),
        pa.field("member", pa.bool_(), False),
        pa.field("place", pa.int64(), False),
        *MEMBER,
    ]
)

# A dropped row and the row that stays in its place. `distance` counts the bits in which their hashes differ.
REPLACED = pa.schema(
    [
        pa.field("uid", pa.binary(16), False),
        pa.field("keeper", pa.binary(16), False),
        pa.field("reason", pa.uint8(), False),
        pa.field("distance", pa.uint8(), False),
    ]
)

Members = dict[str, npt.NDArray[Any]]  # MEMBER by name


@dataclasses.dataclass(frozen=True)
class NearPlan:
    """The exchange of near-duplicates.

    Attributes:
        same: the exchange of equal images, which comes first.
        distance: hashes of alike pictures differ in at most so many bits; None: near-duplicates stay.
        bucket_bits: the hashes are cut into 2 ** bucket_bits buckets.
        cosine: embeddings of alike pictures have at least this cosine; None: there are no embeddings.
        cell_buckets: the cells of embeddings are cut into so many buckets.
    """

    same: DedupPlan
    distance: int | None
    bucket_bits: int
    cosine: float | None = None
    cell_buckets: int = 1

    @property
    def embeddings(self) -> StepFolder:
        """The arrays of `embeddings.write`."""
        return self.same.folder.step("embeddings")

    @property
    def vectors(self) -> StepFolder:
        """The rows that have an embedding, by cell."""
        return self.same.folder.step("vectors")

    @property
    def near_vectors(self) -> StepFolder:
        """The groups of near embeddings in each cell."""
        return self.same.folder.step("near-vectors")

    @property
    def earlier(self) -> StepFolder | None:
        """The step that holds the drops of equal images; None: nothing follows them."""
        return self.hashes if self.distance is not None else self.vectors if self.cosine is not None else None

    @property
    def hashes(self) -> StepFolder:
        """The hashes of the rows that are left, by block and its bits."""
        return self.same.folder.step("hashes")

    @property
    def similar(self) -> StepFolder:
        """The groups of alike rows in each bucket."""
        return self.same.folder.step("similar")

    @property
    def clusters(self) -> StepFolder:
        """The rows that another row of their cluster replaces."""
        return self.same.folder.step("clusters")

    def steps(self) -> tuple[StepFolder, ...]:
        """All steps."""
        near = () if self.distance is None else (self.hashes, self.similar)
        vectors = () if self.cosine is None else (self.vectors, self.near_vectors)
        texts = (self.same.taken, self.same.overlays) if self.same.captions else ()
        return self.same.drops, *near, *vectors, *((self.clusters,) if self.earlier else ()), *texts, self.same.masks

    def watched(self) -> list[Watched]:
        """The steps that the progress shows."""
        name = self.same.folder.name
        drops, *texts = self.same.watched()
        near = [] if self.distance is None else [Watched(f"{name} near-duplicates", self.similar)]
        vectors = [] if self.cosine is None else [Watched(f"{name} embeddings", self.near_vectors)]
        return [drops, *near, *vectors, *texts]


def bucket_bits(rows: int, distance: int | None) -> int:
    """The bits of the number of buckets for the hashes of so many rows: about 64 MiB a bucket."""
    blocks = 0 if distance is None else distance + 1
    return min(12, (HASH_BYTES * blocks * rows >> 26).bit_length())


def cell_buckets(rows: int) -> int:
    """The number of buckets for the cells of so many rows."""
    return min(4096, max(1, near_vectors.cells_for(rows) // CELLS_PER_BUCKET))


@dataclasses.dataclass(frozen=True)
class FindSameImages(FindDuplicates):
    """One unit for each bucket of images. It also writes which row stays in the place of each dropped one."""

    def links(self, keys: pa.Table, keyed: Keys, codes: np.ndarray) -> pa.RecordBatch:
        del keyed
        dropped, keeper = _dropped_and_keepers(keys, codes)
        part, row = pa.array(keys["part"].to_numpy()), pa.array(keys["row"].to_numpy())
        places = [side.take(pa.array(rows)) for rows in (dropped, keeper) for side in (part, row)]
        nothing = (pa.array(np.zeros(len(dropped), kind)) for kind in (np.uint8, np.bool_))
        return pa.RecordBatch.from_arrays([*places, *nothing], schema=LINKS)

    def extra(self, unit: int, keys: pa.Table, codes: np.ndarray) -> dict[str, Any]:
        high, low = (keys[name].to_numpy() for name in ("pair_high", "pair_low"))
        dropped, keeper = _dropped_and_keepers(keys, codes)
        table = replaced_by(_uids(high, low, dropped), _uids(high, low, keeper), codes[dropped], 0)
        return _write_replaced(self.folder, unit, table)


def _dropped_and_keepers(keys: pa.Table, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the dropped rows of a bucket, and of the row of the same image that is kept. Each image has one."""
    dropped, kept, image = np.flatnonzero(codes), np.flatnonzero(codes == 0), keys["image"].to_numpy()
    kept = kept[np.argsort(image[kept])]
    return dropped, kept[np.searchsorted(image[kept], image[dropped])]


@dataclasses.dataclass(frozen=True)
class CutHashes:
    """One unit for each group: the hashes of the rows that have contrast and no equal image, cut by block and bits."""

    plan: NearPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.hashes

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.same.drops, "drops")

    def units(self) -> int:
        return self.plan.same.rows.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        drops = shuffle_files.table(messages, DROPS)
        storage.write_table(self.folder.file(unit, "earlier"), drops)
        rows, parts = self.plan.same.rows, 0
        for source, part, mask in masks_of_group(rows, unit, drops):
            self._cut(rows.parts.file(source, "arrow", part), (unit, parts), source * PARTS_OF_UNIT + part, mask)
            parts += 1
        return {"parts": parts, "drops": drops.num_rows}

    def _cut(self, path: str, target: tuple[int, int], part: int, mask: np.ndarray) -> None:
        distance, bits = self.plan.distance or 0, self.plan.bucket_bits
        batches, buckets, first = [], [], 0
        for batch in storage.read_batches(path, PART_COLUMNS):
            place = np.arange(first, first + batch.num_rows, dtype=np.int32)
            first += batch.num_rows
            colours, shades, grain = *map(bytes_of, (batch["colours"], batch["shades"])), batch["grain"].to_numpy()
            found = np.flatnonzero((mask[place] == 0) & similar.has_contrast(colours))
            members = _members(batch.take(pa.array(found)), part, place[found])
            for block in range(distance + 1):
                number = np.full(len(found), block, np.uint8)
                value = similar.block_values(members["phash"], number, distance)
                bucket = hashing.buckets(hashing.mix(value, number), bits)
                order = np.argsort(bucket, kind="stable")
                looks = colours[found], shades[found]
                batches.append(_hashes(number, looks, grain[found], members).take(pa.array(order)))
                buckets.append(bucket[order])
        shuffle_files.write(
            self.folder.file(target[0], "hashes", target[1]), shuffle_files.join(batches, buckets, 1 << bits)
        )


PART_COLUMNS = ["uid", "text", "phash", "colours", "shades", "grain", "original_width", "original_height"]


@dataclasses.dataclass(frozen=True)
class FindSimilar:
    """One unit for each bucket of blocks: its groups of alike rows."""

    plan: NearPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.similar

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.hashes, "hashes")

    def units(self) -> int:
        return 1 << self.plan.bucket_bits

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        table = shuffle_files.table(messages, HASHES)
        colours, shades = (bytes_of(hashing.as_array(table[name])) for name in LOOK_NAMES)
        block, phash, grain = (table[name].to_numpy() for name in ("block", "phash", "grain"))
        hashes = Hashes(block, phash, colours, shades, grain)
        return write_groups(self.folder, unit, table, similar.groups(hashes, self.plan.distance or 0))


def write_groups(folder: StepFolder, unit: int, table: pa.Table, group: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Writes SIMILAR of the rows that share their group with another row. `group` has one row of each group."""
    grouped = np.flatnonzero(np.bincount(group, minlength=len(group))[group] > 1)
    place = place_of(table["part"].to_numpy(), table["row"].to_numpy())
    members = table.select([field.name for field in MEMBER]).take(pa.array(grouped)).combine_chunks()
    columns = [pa.array(place[group[grouped]]), *(hashing.as_array(column) for column in members.columns)]
    message = pa.RecordBatch.from_arrays(columns, schema=SIMILAR).serialize() if len(grouped) else None
    shuffle_files.write(folder.file(unit, "similar", 0), [message])
    return {"parts": 1, "rows": len(group), "similar": len(grouped)}


@dataclasses.dataclass(frozen=True)
class CutVectors:
    """One unit for each group: the rows that have an embedding and no equal image, cut by cell."""

    plan: NearPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.vectors

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.same.drops, "drops")

    def units(self) -> int:
        return self.plan.same.rows.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        drops = shuffle_files.table(messages, DROPS)
        storage.write_table(self.folder.file(unit, "earlier"), drops)
        rows, parts, read, known = self.plan.same.rows, 0, 0, 0
        for source, part, mask in masks_of_group(rows, unit, drops):
            path = rows.parts.file(source, "arrow", part)
            known += self._cut(path, (unit, parts), source * PARTS_OF_UNIT + part, mask)
            parts, read = parts + 1, read + len(mask)
        return {"parts": parts, "rows": read, "known": known}

    def _cut(self, path: str, target: tuple[int, int], part: int, mask: np.ndarray) -> int:
        """Writes the rows of a part; returns how many of them have an embedding."""
        found = embeddings.load(self.plan.embeddings)
        buckets, batches, bucket_of_row, first, known = self.plan.cell_buckets, [], [], 0, 0
        for batch in storage.read_batches(path, [name for name in PART_COLUMNS if name not in LOOK_NAMES]):
            place = found.places_of(batch["uid"])
            number = np.arange(first, first + batch.num_rows, dtype=np.int32)
            first, known = first + batch.num_rows, known + int((place >= 0).sum())
            kept = np.flatnonzero((mask[number] == 0) & (place >= 0))
            members = _members(batch.take(pa.array(kept)), part, number[kept])
            sieve = found.sieve[place[kept]].astype(np.float32)
            row, cell, member = near_vectors.cells_of(sieve, found.centres, self.plan.cosine or 1.0)
            bucket = cell * buckets // len(found.centres)
            order = np.argsort(bucket, kind="stable")
            columns = cell.astype(np.int32), member, place[kept][row], *(column[row] for column in members.values())
            batches.append(pa.RecordBatch.from_arrays([pa.array(column[order]) for column in columns], schema=VECTORS))
            bucket_of_row.append(bucket[order])
        shuffle_files.write(
            self.folder.file(target[0], "vectors", target[1]), shuffle_files.join(batches, bucket_of_row, buckets)
        )
        return known


@dataclasses.dataclass(frozen=True)
class FindNearVectors:
    """One unit for each bucket of cells: the groups of near embeddings within each cell."""

    plan: NearPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.near_vectors

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.vectors, "vectors")

    def units(self) -> int:
        return self.plan.cell_buckets

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        found, table = embeddings.load(self.plan.embeddings), shuffle_files.table(messages, VECTORS)
        cell, member, place = (table[name].to_numpy() for name in VECTORS.names[:3])
        order = np.lexsort((place, ~member, cell))
        starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
        group = np.arange(len(order))
        for start, end in itertools.pairwise([*starts.tolist(), len(order)]):
            some = order[start:end]
            members = int(member[some].sum())
            root = near_vectors.groups(found.vectors, found.sieve, place[some], members, self.plan.cosine or 1.0)
            group[some] = some[root]
            found.release()
        return write_groups(self.folder, unit, table, group)


@dataclasses.dataclass(frozen=True)
class FormClusters:
    """One unit: joins the groups of all buckets to clusters, and chooses the row of each that stays."""

    plan: NearPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.clusters

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.near_vectors if self.plan.distance is None else self.plan.similar, "similar")

    def units(self) -> int:
        return 1

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        tables = [shuffle_files.table(messages, SIMILAR)]
        by_hashes = tables[0].num_rows if self.plan.distance is not None else 0
        if self.plan.distance is not None and self.plan.cosine is not None:
            tables.append(shuffle_files.table(Reading(self.plan.near_vectors, "similar").bucket(0), SIMILAR))
        table = pa.concat_tables(tables).combine_chunks()
        m = {name: table[name].to_numpy() for name in table.column_names}
        node, root = place_of(m["part"], m["row"]), m.pop("root")
        nodes, first, number = np.unique(node, return_index=True, return_inverse=True)
        m = {name: column[first] for name, column in m.items()}
        others = np.searchsorted(nodes, root)
        cluster = similar.connect(len(nodes), number, others)
        alike = similar.connect(len(nodes), number[:by_hashes], others[:by_hashes])
        keeper = keepers(cluster, m)
        dropped = np.flatnonzero(keeper != np.arange(len(nodes)))
        keeper = keeper[dropped]
        codes = np.zeros(len(nodes), np.uint8)
        codes[dropped] = NEAR_DUPLICATE
        write_drops(self.folder, unit, drops_of(m["part"], m["row"], codes), self.plan.same.rows)
        if self.plan.same.captions:
            cluster_texts.save_keepers(self.folder, nodes[dropped], nodes[keeper])
        words = m["pair_high"], m["pair_low"]
        distance = np.bitwise_count(m["phash"][dropped] ^ m["phash"][keeper])
        kind = np.where(alike[dropped] == alike[keeper], NEAR_DUPLICATE, NEAR_EMBEDDING)
        table = replaced_by(_uids(*words, dropped), _uids(*words, keeper), kind, distance)
        clusters = int((np.bincount(cluster, minlength=1) > 0).sum())
        return {"parts": 1, "clusters": clusters, **_write_replaced(self.folder, unit, table)}


def keepers(cluster: npt.NDArray[np.int64], members: Members) -> npt.NDArray[np.int64]:
    """For each row the place of the row that stays of its cluster: the largest original, the most words, the uid."""
    pixels, words = ~members["pixels"], ~members["words"]
    order = np.lexsort((members["pair_low"], members["pair_high"], words, pixels, cluster))
    ordered = cluster[order]
    first = order[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(order)]]
    best = np.empty(int(cluster.max(initial=0)) + 1, np.int64)
    best[cluster[first]] = first
    return best[cluster]


def bytes_of(column: pa.Array) -> npt.NDArray[np.uint8]:
    """A column of fixed-size binaries as an (n, width) array, without a copy."""
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8).reshape(-1, width)
    return data[column.offset : column.offset + len(column)]


def replaced_by(uid: pa.Array, keeper: pa.Array, reason: npt.ArrayLike, distance: npt.ArrayLike) -> pa.Table:
    """Columns as REPLACED."""
    counts = [np.broadcast_to(np.asarray(column, np.uint8), len(uid)) for column in (reason, distance)]
    return pa.Table.from_arrays([uid, keeper, *map(pa.array, counts)], schema=REPLACED)


def merge_duplicates(plan: NearPlan) -> pa.Table:
    """The dropped rows of all units, sorted by key, as `schema.DUPLICATES`.

    Of rows with equal images one stayed at first. Where another row of its cluster replaced that one, it is the keeper
    of them all.
    """
    same = _read_replaced(plan.same.drops)
    if plan.earlier is not None:
        near = _read_replaced(plan.clusters)
        found = pc.index_in(same["keeper"], value_set=hashing.as_array(near["uid"]))
        keeper, distance = (
            pc.if_else(pc.is_valid(found), hashing.as_array(near[name]).take(found), same[name])
            for name in ("keeper", "distance")
        )
        moved = pa.Table.from_arrays([same["uid"], keeper, same["reason"], distance], schema=REPLACED)
        same = pa.concat_tables([moved, near])
    same = same.take(pc.sort_indices(same["uid"]))
    kind = pa.array(KINDS).take(hashing.as_array(same["reason"]))
    return pa.Table.from_arrays(
        [*(hex_strings(same[name]) for name in ("uid", "keeper")), kind, same["distance"]], schema=DUPLICATES
    )


def drop_duplicates(done: Any, plan: NearPlan, *, exchange: str) -> beam.PCollection:
    """Appends to `done` the steps that write a mask beside each part."""
    same = plan.same
    keys, groups = 1 << same.key_bits, same.rows.groups
    run = functools.partial(run_exchange, exchange=exchange)
    done = run(done, FindSameImages(same), buckets=keys, producers=same.rows.units)
    if plan.distance is not None:
        done = run(done, CutHashes(plan), buckets=groups, producers=keys)
        done = run(done, FindSimilar(plan), buckets=1 << plan.bucket_bits, producers=groups)
    if plan.cosine is not None:
        done = run(done, CutVectors(plan), buckets=groups, producers=keys)
        done = run(done, FindNearVectors(plan), buckets=plan.cell_buckets, producers=groups)
    clusters = None if plan.earlier is None else plan.clusters
    if clusters is not None:
        done = run(done, FormClusters(plan), buckets=1, producers=max(1 << plan.bucket_bits, plan.cell_buckets))
    for task in (GiveTexts(same, clusters), ChooseTexts(same)) if same.captions else ():
        done = run(done, task, buckets=groups, producers=max(keys, groups))
    mark = MarkDropped(same, last=clusters, earlier=plan.earlier)
    return run(done, mark, buckets=groups, producers=keys if clusters is None else 1)


def _uids(high: np.ndarray, low: np.ndarray, rows: np.ndarray) -> pa.Array:
    return hashing.uids(np.stack([high[rows], low[rows]], axis=1))


def _members(rows: pa.RecordBatch, part: int, place: np.ndarray) -> Members:
    """MEMBER of the rows of a part."""
    width, height = (rows[name].to_numpy().astype(np.uint64) for name in ("original_width", "original_height"))
    high, low = hashing.uid_words(rows["uid"])
    parts = np.full(len(place), part, np.int32)
    values = width * height, count_words(rows["text"]), high, low, rows["phash"].to_numpy(), parts, place
    return dict(zip((field.name for field in MEMBER), values, strict=True))


def _hashes(block: np.ndarray, looks: tuple[np.ndarray, ...], grain: np.ndarray, members: Members) -> pa.RecordBatch:
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(field.type, len(block), [None, pa.py_buffer(data.tobytes())])
        for field, data in zip(LOOKS, looks, strict=True)
    ]
    plain = map(pa.array, (grain, *members.values()))
    return pa.RecordBatch.from_arrays([pa.array(block), *columns, *plain], schema=HASHES)


def _write_replaced(folder: StepFolder, unit: int, table: pa.Table) -> dict[str, Any]:
    if table.num_rows:
        storage.write_table(folder.file(unit, "duplicates"), table)
    return {"duplicates": table.num_rows}


def _read_replaced(step: StepFolder) -> pa.Table:
    units = [unit for unit, manifest in step.manifests() if manifest["duplicates"]]
    tables = [storage.read_table(step.file(unit, "duplicates")).cast(REPLACED) for unit in units]
    return pa.concat_tables([REPLACED.empty_table(), *tables]).combine_chunks()
