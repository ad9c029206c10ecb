"""The exchange of near-duplicates, step by step without Beam, against all pairs. The rows decide, never a bucket."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.engine import hashing, merging, storage
from pipeline.engine.merging import Merge
from pipeline.engine.rows import Rows
from pipeline.engine.work import StageFolder, StepFolder, run_unit
from pipeline.schema import COLOUR_BYTES, DUPLICATES, FETCHED, SHADE_BYTES
from pipeline.stages import dedup_images, embeddings, near_exchange, near_vectors, similar
from pipeline.stages.cluster_texts import ChooseTexts, GiveTexts
from pipeline.stages.dedup_exchange import DedupPlan, MarkDropped
from pipeline.stages.near_exchange import (
    CutHashes,
    CutVectors,
    FindNearVectors,
    FindSameImages,
    FindSimilar,
    FormClusters,
    NearPlan,
)
from pipeline.stages.picture_hashes import Hashes
from pipeline.stages.row_pass import FETCHED_OK, Keyed, PartWriter
from pipeline.text import matchers
from pipeline.text.matchers import ListOfLanguage

QUERIES = ["three", "four", "five", "six", "0", "1", "five", "2", "three", "one"]
LISTS = (ListOfLanguage("en", 0, 6), ListOfLanguage("de", 6, 10))
WORDS = "one two three four five six".split()


def draw_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of some pictures in variants: other bytes, flipped bits, other sizes, other colours, plain ones."""
    random = np.random.default_rng(seed)
    kinds = random.integers(20, 230, (min(count // 5, 30), COLOUR_BYTES), np.uint8)
    kinds[0] = 90  # a plain picture
    hashes = random.integers(0, 2**64, len(kinds), np.uint64)
    rows = []
    for _ in range(count):
        kind = int(random.integers(len(kinds)))
        flips = random.integers(0, 64, random.integers(0, 3))
        phash = int(hashes[kind]) ^ int(np.bitwise_xor.reduce(np.uint64(1) << flips.astype(np.uint64)))
        colours = kinds[kind].copy()
        colours[5] += np.uint8(random.choice([0, 10, 24, 25]))
        shades = np.resize(kinds[kind], SHADE_BYTES)
        shades[: 64 * (kind % 3)] = 100  # a third are drawings
        shades[200] ^= np.uint8(random.choice([0, 0, 64]))
        text = " ".join(WORDS[: random.integers(1, 6)])
        width = int(random.choice([100, 200]))
        image = random.bytes(32)
        row = {"text": text, "phash": phash, "colours": colours.tobytes(), "width": width, "image": image}
        row["shades"], row["grain"] = shades.tobytes(), int(random.choice([0, 178]))
        rows.append(row)
        if random.random() < 0.2:  # the same bytes under another URL
            rows.append({**row, "text": " ".join(WORDS[: random.integers(1, 6)])})
    for number, row in enumerate(rows):
        row["url"] = f"http://a.example/{number}.jpg"
        row["uid"] = hashing.pair_keys(pa.array([row["url"]]), pa.array([row["text"]])).uid[0].as_py()
    return rows


def write_parts(folder: StepFolder, rows: list[dict[str, Any]], units: int, key_bits: int) -> None:
    """The rows as parts with their keys, dealt to some units."""
    for unit in range(units):
        with PartWriter(folder, unit, FETCHED_OK, Keyed(dedup_images.keys_of_images, key_bits)) as writer:
            mine = rows[unit::units]
            columns = {
                "uid": [row["uid"] for row in mine],
                "url": [row["url"] for row in mine],
                "text": [row["text"] for row in mine],
                "image_sha256": [row["image"] for row in mine],
                "original_width": [row["width"] for row in mine],
                "original_height": [100] * len(mine),
                "phash": [row["phash"] for row in mine],
                "colours": [row["colours"] for row in mine],
                "shades": [row["shades"] for row in mine],
                "grain": [row["grain"] for row in mine],
                "row_hash": list(range(len(mine))),
                **{name: [row.get(name) for row in mine] for name in ("texts", "query_ids", "opt_out")},
            }
            arrays = [
                pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(mine), field.type)
                for field in FETCHED_OK
            ]
            schema = pa.schema([field.with_nullable(True) for field in FETCHED_OK])
            batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
            for start in range(0, len(mine), 7):
                piece = batch.slice(start, 7)
                writer.write(pa.RecordBatch.from_arrays(piece.columns, schema=FETCHED_OK))
        folder.write_manifest(unit, {"parts": writer.parts, "rows": writer.rows})


def run_all(
    root: Path,
    rows: list[dict[str, Any]],
    *,
    distance: int | None,
    units: int,
    bits: int,
    table: str | None = None,
    cosine: float = 0.9,
    captions: int = 0,
) -> NearPlan:
    stage = StageFolder(str(root), "dedup-images")
    parts = Rows(stage.step("parts"), groups=min(units, 3))
    tables = write_lists(root / "tables") if captions else ""
    kept = {"keep_rejected": "all", "captions": captions, "tables": tables}
    same = DedupPlan(stage, parts, bits, near_exchange.REASONS, **kept)  # type: ignore[arg-type]
    plan = NearPlan(same, distance, bits, *((cosine, 1 << bits) if table else ()))
    write_parts(parts.parts, rows, units, bits)
    near: list[Any] = [CutHashes(plan), FindSimilar(plan)] if distance is not None else []
    if table:
        embeddings.write([table], plan.embeddings)
        near += [CutVectors(plan), FindNearVectors(plan)]
    near += [FormClusters(plan)] if plan.earlier else []
    near += [GiveTexts(same, plan.clusters if plan.earlier else None), ChooseTexts(same)] if captions else []
    earlier = {"last": plan.clusters, "earlier": plan.earlier} if plan.earlier else {}
    for task in [FindSameImages(same), *near, MarkDropped(same, **earlier)]:
        merge = Merge(task)  # of no unit, but where a test makes exchanges of few reads merge
        for unit in range(merge.units()):
            run_unit(merge.folder, unit, merge.run)
        for unit in range(task.units()):
            run_unit(task.folder, unit, lambda unit, task=task, merge=merge: task.run(unit, merge.bucket(unit)))
    return plan


def naive(rows: list[dict[str, Any]], distance: int | None) -> list[dict[str, Any]]:
    """DUPLICATES by all pairs."""

    def rank(row: dict[str, Any]) -> tuple:
        image = int.from_bytes(row["image"][:8], "big")
        text = int(hashing.hash_strings(pa.array([row["text"]]))[0, 0])
        return -len(row["text"].split()), int(hashing.mix(image, text)), row["uid"]

    kept: dict[bytes, dict] = {}
    for row in rows:
        if row["image"] not in kept or rank(row) < rank(kept[row["image"]]):
            kept[row["image"]] = row
    images = list(kept.values())
    label = list(range(len(images)))
    colours = np.array([np.frombuffer(row["colours"], np.uint8) for row in images])
    contrast = similar.has_contrast(colours)
    shades = np.array([np.frombuffer(row["shades"], np.uint8) for row in images])
    grain = np.array([row["grain"] for row in images], np.uint8)
    looks = Hashes(np.zeros(len(images), np.uint8), np.zeros(len(images), np.uint64), colours, shades, grain)
    for a, b in itertools.combinations(range(len(images)), 2) if distance is not None else ():
        near = (images[a]["phash"] ^ images[b]["phash"]).bit_count() <= distance and contrast[a] and contrast[b]
        if near and similar.looks_agree(looks.take(np.array([a])), looks.take(np.array([b])))[0]:
            low, high = sorted((label[a], label[b]))
            label = [low if one == high else one for one in label]
    keeper = {
        number: min(
            (row for row, one in zip(images, label, strict=True) if one == number),
            key=lambda row: (-row["width"], -len(row["text"].split()), row["uid"]),
        )
        for number in set(label)
    }
    of_image = {row["image"]: keeper[one] for row, one in zip(images, label, strict=True)}
    found = []
    for row in rows:
        stays, best = of_image[row["image"]], kept[row["image"]]
        if row is not stays:
            kind = "same_pair" if row["text"] == best["text"] else "same_image"
            found.append(
                {
                    "key": row["uid"].hex(),
                    "keeper": stays["uid"].hex(),
                    "kind": "near_duplicate" if row is best else kind,
                    "distance": (best["phash"] ^ stays["phash"]).bit_count(),
                }
            )
    return sorted(found, key=lambda row: row["key"])


@pytest.mark.parametrize("distance", [None, 0, 2, 5])
@pytest.mark.parametrize(("units", "bits"), [(1, 0), (5, 3)])
def test_duplicates_are_those_of_all_pairs(tmp_path: Path, distance: int | None, units: int, bits: int) -> None:
    rows = draw_rows(distance or 0, 120)
    plan = run_all(tmp_path, rows, distance=distance, units=units, bits=bits)
    table = near_exchange.merge_duplicates(plan)
    expected = naive(rows, distance)
    assert table.to_pylist() == expected and table.schema.equals(DUPLICATES)
    kinds = {row["kind"] for row in expected}
    assert kinds == {"same_pair", "same_image"} | ({"near_duplicate"} if distance is not None else set())

    stays = {row["uid"].hex() for row in rows} - {row["key"] for row in expected}
    remaining = plan.same.remaining()
    assert {uid.hex() for part in remaining.tables() for uid in part["uid"].to_pylist()} == stays
    dropped: dict[str, int] = {}
    for _, manifest in plan.same.masks.manifests():
        for reason, count in manifest["ledgers"]["dedup-images"]["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    assert dropped == {kind: sum(row["kind"] == kind for row in expected) for kind in kinds}


def test_every_dropped_row_names_a_row_that_stays(tmp_path: Path) -> None:
    rows = draw_rows(9, 200)
    table = near_exchange.merge_duplicates(run_all(tmp_path, rows, distance=2, units=3, bits=2))
    keys, keepers = set(table["key"].to_pylist()), set(table["keeper"].to_pylist())
    assert len(keys) == table.num_rows > 50 and not keys & keepers
    assert keepers < {row["uid"].hex() for row in rows}


def test_plain_pictures_merge_by_equal_bytes_alone(tmp_path: Path) -> None:
    rows = [row for row in draw_rows(1, 600) if row["colours"][:5] == bytes([90] * 5)]
    assert len(rows) > 10
    table = near_exchange.merge_duplicates(run_all(tmp_path, rows, distance=2, units=1, bits=0))
    assert set(table["kind"].to_pylist()) <= {"same_pair", "same_image"}
    assert table.num_rows == len(rows) - len({row["image"] for row in rows})


def add_texts(rows: list[dict[str, Any]], captions: int) -> None:
    """Gives each row up to `captions` texts, some of which others have too, some queries, and a signal."""
    random = np.random.default_rng(len(rows))
    texts = [" ".join([*WORDS[:words], str(number)]) for words in range(2, 7) for number in range(3)]
    for number, row in enumerate(rows):
        more = random.choice(texts, random.integers(captions)).tolist()
        row["texts"] = [row["text"], *sorted({*more} - {row["text"]}, key=richness)]
        row["list"] = LISTS[number % 2]
        row["query_ids"] = queries_of(row["texts"], row["list"])
        row["opt_out"] = [None, "noai", "noindex"][number % 3]


def queries_of(texts: list[str], of_list: ListOfLanguage) -> list[int]:
    """The ids of the queries of a list that some texts hold."""
    words = {word for text in texts for word in text.split()}
    return [number for number in range(of_list.first, of_list.last) if QUERIES[number] in words]


def write_lists(folder: Path) -> str:
    """The compiled lists."""
    matchers.save_lists(str(folder), list(LISTS))
    for number in range(len(LISTS)):
        matchers.build(str(folder), number, pa.array(QUERIES), mode="wide", case="fold")
    storage.save_array(str(folder / matchers.HASHES), np.zeros(len(QUERIES), np.uint64))
    return str(folder)


def richness(text: str) -> tuple[int, int]:
    """The richest text has the smallest."""
    return -len(text.split()), int(hashing.hash_strings(pa.array([text]))[0, 0])


def naive_samples(rows: list[dict[str, Any]], distance: int | None, captions: int) -> dict[str, dict[str, Any]]:
    """What stays of each cluster: uid -> texts, query_ids and the signals."""
    keepers = {row["key"]: row["keeper"] for row in naive(rows, distance)}
    found = {}
    for keeper in (row for row in rows if row["uid"].hex() not in keepers):
        offered = dict.fromkeys(keeper["texts"], keeper)
        for row in sorted(rows, key=lambda row: row["uid"]):
            if keepers.get(row["uid"].hex()) == keeper["uid"].hex():
                offered = {**dict.fromkeys(row["texts"], row), **offered}
        first = keeper["text"]
        texts = [first, *sorted(offered.keys() - {first}, key=richness)[: captions - 1]]
        givers = [keeper, *(offered[text] for text in texts)]
        held = [queries_of([text], offered[text]["list"]) for text in texts]
        found[keeper["uid"].hex()] = {
            "texts": texts,
            "query_ids": sorted({query for some in held for query in some}),
            "opt_out": {row["opt_out"] for row in givers} - {None},
        }
    return found


@pytest.mark.parametrize("distance", [None, 2])
@pytest.mark.parametrize(("units", "bits", "captions"), [(1, 0, 2), (5, 3, 3)])
def test_the_texts_of_a_cluster_go_to_its_keeper(
    tmp_path: Path, distance: int | None, units: int, bits: int, captions: int
) -> None:
    rows = draw_rows(3, 120)
    add_texts(rows, captions)
    digests = set()
    for name, shown in [("one", rows), ("other", rows[::-1])]:
        plan = run_all(tmp_path / name, shown, distance=distance, units=units, bits=bits, captions=captions)
        found = {
            row["uid"].hex(): {**row, "opt_out": set(row["opt_out"].split(",")) if row["opt_out"] else set()}
            for part in plan.same.remaining().tables(["uid", "texts", "query_ids", "opt_out"])
            for row in part.to_pylist()
        }
        for row in found.values():
            del row["uid"]
        assert found == naive_samples(rows, distance, captions)
        taken = [row for row in rows if found.get(row["uid"].hex(), row)["texts"] != row["texts"]]
        assert len(taken) > 10 and any(len(row["texts"]) == captions for row in found.values())
        digests.add(str(sorted((uid, row["texts"]) for uid, row in found.items())))
    assert len(digests) == 1


@pytest.mark.parametrize("distance", [None, 2])
def test_embeddings_join_what_the_hashes_do_not(
    tmp_path: Path, distance: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    rows = draw_rows(4, 120)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((len(rows), 16)).astype(np.float32)
    for number in range(0, len(rows) - 5, 5):  # every fifth picture shows what the next one shows
        vectors[number + 1] = vectors[number] * 3 + np.float32(0.1)
    known = [number for number in range(len(rows)) if number % 7]
    keys = [rows[number]["uid"].hex() for number in known] + [f"{number:032x}" for number in range(3)]
    lists = [*vectors[known].tolist(), *vectors[:3].tolist()]
    table = str(tmp_path / "table.parquet")
    pq.write_table(pa.table({"key": keys, "embedding": pa.array(lists, pa.list_(pa.float32()))}), table)
    found = []
    for units, bits, cell, reads in [(1, 0, 512, 10**6), (5, 3, 16, 0)]:
        monkeypatch.setattr(near_vectors, "ROWS_PER_CELL", cell)
        monkeypatch.setattr(merging, "MOST_READS", reads)
        plan = run_all(tmp_path / str(units), rows, distance=distance, units=units, bits=bits, table=table)
        found.append(near_exchange.merge_duplicates(plan))
        assert plan.vectors.total("known") == len(known) and plan.vectors.total("rows") == len(rows)
    assert found[0].equals(found[1])
    of = dict(zip(found[0]["key"].to_pylist(), found[0].to_pylist(), strict=True))
    kinds = [row["kind"] for row in of.values()]
    assert kinds.count("near_embedding") > 10 and ("near_duplicate" in kinds) is (distance is not None)
    uids, compared = [row["uid"].hex() for row in rows], 0
    for a in (a for a in range(0, len(rows) - 5, 5) if a % 7 and (a + 1) % 7):
        pair = uids[a : a + 2]
        if not {"same_image", "same_pair"} & {of.get(uid, {}).get("kind") for uid in pair}:
            compared += 1
            assert len({of[uid]["keeper"] if uid in of else uid for uid in pair}) == 1
    assert compared > 5
    assert not set(of) & {row["keeper"] for row in of.values()}


def test_several_steps_read_one_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam refuses two steps of one name. The drops are read by hashes, vectors and masks, and merged once."""
    monkeypatch.setattr(merging, "MOST_READS", 0)
    stage = StageFolder(str(tmp_path), "dedup-images")
    same = DedupPlan(stage, Rows(stage.step("parts"), groups=3), 2, near_exchange.REASONS, captions=2)
    same.rows.parts.write_manifest(0, {"parts": 1, "rows": 1})
    pipeline = beam.Pipeline()
    near_exchange.drop_duplicates(pipeline | beam.Create([0]), NearPlan(same, 2, 2, 0.9, 2), exchange="files")
    steps = {label.split("/Read/")[0] for label in pipeline.applied_labels}
    assert {f"dedup-images/merged-dedup-images-drops-drops for {name}" for name in ("hashes", "vectors")} <= steps


def test_nothing_was_fetched(tmp_path: Path) -> None:
    plan = run_all(tmp_path, [], distance=2, units=1, bits=0)
    assert near_exchange.merge_duplicates(plan).num_rows == 0
    assert storage.read_table(plan.hashes.file(0, "earlier")).num_rows == 0


def test_fetched_rows_have_the_columns_that_are_read() -> None:
    assert set(near_exchange.PART_COLUMNS) <= set(FETCHED.names)
