"""One shard and the whole folder: bytes, order, types, errors, manifest, digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.dataset import shards, tars
from pipeline.dataset.ranges import Ranges
from pipeline.engine import storage
from tests import samples

RANGES = samples.ranges_of(40)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(folder: Path) -> dict[str, bytes]:
    return {path: data for path, data in contents(folder).items() if not path.startswith("stages")}


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, shards.ShardInfo, pa.Table]:
    info, _ = shards.write_shard(str(tmp_path), 0, samples.fetched(12), samples.put, ranges=RANGES)
    return tmp_path, info, storage.read_published(str(tmp_path / "metadata/00000.parquet"))


def test_members_are_adjacent_and_sorted(shard: Any) -> None:
    folder, info, table = shard
    names = [member.name for member in tars.walk((folder / "shards/00000.tar").read_bytes())]
    assert names == sorted(names) and len(names) == 36
    assert [name.split(".")[0] for name in names[::3]] == table["key"].to_pylist()
    assert info.rows == 12 and all("." not in key for key in table["key"].to_pylist())


def test_the_metadata_says_where_each_member_lies(shard: Any) -> None:
    folder, _, table = shard
    assert table.schema.equals(shards.METADATA)
    data = (folder / "shards/00000.tar").read_bytes()
    for number, row in enumerate(table.to_pylist()):
        image, record, text = (data[row[f"{kind}_offset"] :][: row[f"{kind}_size"]] for kind in ("jpg", "json", "txt"))
        assert image == samples.jpeg(number)
        assert hashlib.sha256(image).hexdigest() == row["sha256"]
        assert text.decode() == row["text"]
        assert json.loads(record)["sha256"] == row["sha256"]


def test_all_columns_of_the_rows_arrive(shard: Any) -> None:
    rows, table = samples.fetched(12), shard[2]
    same = set(rows.column_names) & set(table.column_names) - {"uid"}
    assert len(same) >= 20
    for name in same:
        assert table[name].to_pylist() == rows[name].to_pylist(), name
    assert table["uid"].to_pylist() == table["key"].to_pylist() == [uid.hex() for uid in rows["uid"].to_pylist()]
    assert table["original_sha256"].to_pylist() == [digest.hex() for digest in rows["image_sha256"].to_pylist()]
    assert table["sha256"].to_pylist() == [digest.hex() for digest in rows["stored_sha256"].to_pylist()]
    hidden = {"status", "error", "retryable", "http_status", "image_offset", "image_bytes", "image_sha256"}
    hidden |= {"stored_sha256", "stored_xxh3", "colours", "shades", "grain"}
    assert set(rows.column_names) - set(table.column_names) == hidden


def test_json_has_one_set_of_keys_one_type_a_key_and_no_null(shard: Any) -> None:
    folder, _, _ = shard
    data = (folder / "shards/00000.tar").read_bytes()
    records = [json.loads(data[m.offset :][: m.size]) for m in tars.walk(data) if m.name.endswith("json")]
    assert {tuple(record) for record in records} == {shards.JSON_KEYS}
    kinds = {tuple(type(value) for value in record.values()) for record in records}
    assert len(kinds) == 1 and set(next(iter(kinds))) == {str, int, float, list}
    assert [record["texts"] for record in records] == [samples.texts_of(number) for number in range(len(records))]
    assert all(record["texts"][0] == record["text"] for record in records)
    assert records[1]["language_score"] == 0.9 and records[0]["language"] == "" == records[0]["final_url"]
    assert records[2]["caption"] == records[2]["text"] == "chat noir sur un toit 2"


def test_a_sample_without_a_text_is_refused(tmp_path: Path) -> None:
    rows = samples.fetched(3)
    at = rows.column_names.index("texts")
    rows = rows.set_column(at, "texts", pa.array([["a"], [], ["b"]], pa.list_(pa.string())))
    with pytest.raises(shards.ShardError, match="shard 0: a sample has no text"):
        shards.write_shard(str(tmp_path), 0, rows, samples.put, ranges=RANGES)


def test_equal_rows_give_equal_bytes_whatever_their_chunks(tmp_path: Path) -> None:
    rows = samples.fetched(20)
    cut = pa.concat_tables([rows.slice(0, 7), rows.slice(7)])
    for name, table in (("a", rows), ("b", cut)):
        shards.write_shard(str(tmp_path / name), 0, table, samples.put, ranges=RANGES)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == {"shards/00000.tar", "metadata/00000.parquet"}


def test_info_agrees_with_the_files_and_survives_json(shard: Any) -> None:
    folder, info, _ = shard
    for entry in info.files:
        assert shards.entry_of(str(folder), entry.path, rows=12) == entry
    assert shards.ShardInfo.from_json(json.loads(json.dumps(dataclasses.asdict(info)))) == info


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows.slice(0, 0), "empty"),
        (lambda rows: pa.concat_tables([rows, rows.slice(11)]), "twice"),
        (lambda rows: rows.take([1, 0]), "out of order"),
        (lambda rows: rows.set_column(rows.column_names.index("width"), "width", pa.nulls(12, pa.int32())), "width"),
    ],
)
def test_rows_that_cannot_be_a_shard_are_refused(tmp_path: Path, change: Any, reason: str) -> None:
    with pytest.raises(shards.ShardError, match=reason):
        shards.write_shard(str(tmp_path), 0, change(samples.fetched(12)), samples.put, ranges=RANGES)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_a_failed_read_leaves_the_older_shard_and_no_other_file(shard: Any, error: BaseException) -> None:
    folder, _, _ = shard
    before = contents(folder)

    def fail(row: int, place: memoryview) -> None:
        if row == 5:
            raise error
        samples.put(row, place)

    with pytest.raises(type(error)):
        shards.write_shard(str(folder), 0, samples.fetched(12), fail, ranges=RANGES)
    assert contents(folder) == before


def test_an_image_that_changed_since_the_fetch_is_refused(tmp_path: Path) -> None:
    def flip(row: int, place: memoryview) -> None:
        samples.put(row, place)
        place[-7] ^= row == 8

    with pytest.raises(shards.ShardError, match=f"{samples.fetched(9)['uid'][8].as_py().hex()} is not the one"):
        shards.write_shard(str(tmp_path), 0, samples.fetched(12), flip, ranges=RANGES)
    assert contents(tmp_path) == {}


def test_the_bytes_of_a_shard_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is fixed, for any number of rows at once. It excludes drawn images, since their encoder may change."""
    rows = samples.fetched(40)
    image = b"\xff\xd8" + bytes(range(200)) * 7
    for name, value in {"image_bytes": len(image), "stored_sha256": hashlib.sha256(image).digest()}.items():
        at = rows.column_names.index(name)
        rows = rows.set_column(at, rows.field(at), pa.array([value] * 40, rows.field(at).type))
    at = rows.column_names.index("stored_xxh3")
    rows = rows.set_column(at, "stored_xxh3", pa.array([xxhash.xxh3_64_intdigest(image)] * 40, pa.uint64()))

    def put(row: int, place: memoryview) -> None:
        place[:] = image

    for number, at_once in enumerate((1024, 7)):
        monkeypatch.setattr(shards, "ROWS_AT_ONCE", at_once)
        monkeypatch.setattr(tars, "FLUSH", 1 << 20 >> 8 * number)
        info, _ = shards.write_shard(str(tmp_path / str(number)), 0, rows, put, ranges=RANGES)
        assert info.files[0].sha256 == "c8d169fe632d2b99d6b6ae8149e04756f44e47136a5f41c0c085655acc8cc7de"


def test_page_checksums_are_written(shard: Any) -> None:
    """A bit flip in the data pages raises. Without page checksums it would not."""
    path = shard[0] / "metadata/00000.parquet"
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(3)
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 4
    path.write_bytes(data)
    with pytest.raises((OSError, pa.ArrowException)):
        storage.read_published(str(path))


# ------------------------------------------------------------------------------------------------- the whole folder


def test_a_publication_is_the_same_each_time(tmp_path: Path) -> None:
    first = samples.publish(tmp_path / "a")
    second = samples.publish(tmp_path / "b")
    assert first == second and published(tmp_path / "a") == published(tmp_path / "b")


def test_the_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    manifest = samples.publish(tmp_path)
    paths = sorted(path for path in published(tmp_path) if path != "manifest.json")
    assert [entry["path"] for entry in manifest["files"]] == paths
    lines = "".join(f"{hashlib.sha256((tmp_path / path).read_bytes()).hexdigest()}  {path}\n" for path in paths)
    assert manifest["digest"] == hashlib.sha256(lines.encode()).hexdigest()
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest


def test_the_digest_knows_no_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = samples.publish(tmp_path / "a")
    monkeypatch.setattr(samples, "VERSIONS", {"openwit": "9.9", "python": "3.99"})
    monkeypatch.setattr(samples, "OPTIONS", samples.OPTIONS | {"deadline": 5, "language_model": "/somewhere/m.bin"})
    after = samples.publish(tmp_path / "b")
    assert before["digest"] == after["digest"] and before != after


def test_every_file_is_counted(tmp_path: Path) -> None:
    manifest = samples.publish(tmp_path, count=30, per_shard=12)
    rows = {entry["path"]: entry["rows"] for entry in manifest["files"]}
    assert [rows[f"shards/0000{n}.tar"] for n in range(3)] == [12, 12, 6]
    assert [rows[f"metadata/0000{n}.parquet"] for n in range(3)] == [12, 12, 6]
    assert rows["rejected/gather.parquet"] == 2 and rows["queries.parquet"] == 8
    assert manifest["rows"] == 30 and manifest["ledger"][-1]["rows_out"] == 30
    assert json.loads((tmp_path / "shards/sizes.json").read_text()) == {
        f"0000{n}.tar": s for n, s in enumerate((12, 12, 6))
    }
    for entry in manifest["files"]:
        assert entry["bytes"] == os.path.getsize(tmp_path / entry["path"])


def test_remove_stale_shards_removes_what_an_earlier_larger_set_left(tmp_path: Path) -> None:
    samples.publish(tmp_path, count=40, per_shard=10)
    (tmp_path / "shards/00000.tar.tmp77-1").write_bytes(b"half")
    manifest = samples.publish(tmp_path, count=20, per_shard=10)
    assert shards.remove_stale_shards(str(tmp_path), manifest) == [
        "metadata/00002.parquet",
        "metadata/00003.parquet",
        "shards/00000.tar.tmp77-1",
        "shards/00002.tar",
        "shards/00003.tar",
    ]
    assert shards.unlisted_files(str(tmp_path), manifest) == []
    assert (tmp_path / "stages/gather/info.json").exists()


def test_numbers_may_have_gaps(tmp_path: Path) -> None:
    manifest = samples.publish(tmp_path, per_shard=12, numbers=[13, 14, 40, 1199])
    sizes = {"00001.tar": 2, "00003.tar": 1, "00099.tar": 1}
    assert json.loads((tmp_path / "shards/sizes.json").read_text()) == sizes
    assert manifest["shards"] == {"ranges": 100} and manifest["rows"] == 4
    assert sorted(path.name for path in (tmp_path / "metadata").iterdir()) == [
        "00001.parquet", "00003.parquet", "00099.parquet"
    ]  # fmt: skip


def test_what_is_no_shard_of_the_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(shards.ShardError, match="not in its range"):
        shards.write_shard(str(tmp_path), 0, samples.fetched(3, first=38), samples.put, ranges=RANGES)
    with pytest.raises(shards.ShardError, match="not in its range"):
        shards.write_shard(str(tmp_path), 1, samples.fetched(2, first=39), samples.put, ranges=RANGES)
    assert contents(tmp_path) == {}
    info = samples.write_shard(tmp_path, [1199], ranges=RANGES)
    with pytest.raises(shards.ShardError, match="there is a shard 29, of 29 ranges"):
        samples.finish(tmp_path, [info], ranges=Ranges(29), ledger=[], options={}, versions={})
    with pytest.raises(shards.ShardError, match="twice"):
        shards.write_manifest(str(tmp_path), info.files * 2, ledger=[], options={}, versions={})
    assert not (tmp_path / "manifest.json").exists()


def test_an_empty_set_is_published_too(tmp_path: Path) -> None:
    manifest = samples.publish(tmp_path, count=0)
    assert manifest["rows"] == 0
    assert json.loads((tmp_path / "shards/sizes.json").read_text()) == {}
