"""open_set reads a published folder: its results, its errors, and the small number of reads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import open_set as opening
from pipeline.dataset import shards
from pipeline.dataset.errors import Ambiguous, Damaged, NotFound
from pipeline.dataset.open_set import OpenSet, open_set
from pipeline.dataset.verify import verify
from pipeline.engine import storage
from tests import samples
from tests.places import ROOT

COUNT, PER_SHARD = 30, 12


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    samples.publish(folder, count=COUNT, per_shard=PER_SHARD)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(original, tmp_path / "out")
    return tmp_path / "out"


def republish(folder: Path) -> None:
    """Writes a manifest with the digests of the current files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entries = [shards.entry_of(str(folder), entry["path"], rows=entry["rows"]) for entry in manifest["files"]]
    more = {name: manifest[name] for name in ("ledger", "options", "versions")}
    shards.write_manifest(str(folder), entries, **more)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("checksum", None)  # it would reveal every edit
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_rows_are_those_of_the_files_shard_by_shard(original: Path) -> None:
    pairs = open_set(str(original))
    tables = list(pairs.rows())
    paths = sorted((original / "metadata").glob("*.parquet"))
    assert len(tables) == 3 and all(
        table.equals(pq.read_table(path)) for table, path in zip(tables, paths, strict=True)
    )
    assert pairs.table().equals(pa.concat_tables(tables))
    assert pairs.table(["text", "key"]).column_names == ["text", "key"]
    assert [table.num_rows for table in pairs.rows(["key"], shard=2)] == [6]
    assert list(pairs.keys()) == [row["key"] for table in tables for row in table.to_pylist()]


def test_samples_are_not_compared_with_a_damaged_table(folder: Path) -> None:
    path = folder / "metadata" / "00001.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("text")
    pq.write_table(table.set_column(at, table.field(at), pa.array(["another text"] * len(table))), path)
    assert {(fault.path, fault.key) for fault in open_set(str(folder)).verify()} == {("metadata/00001.parquet", "")}
    republish(folder)
    assert "shards/00001.tar" in {fault.path for fault in open_set(str(folder)).verify()}


def test_a_manifest_that_cannot_be_parsed_is_a_fault(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    (fault,) = verify(str(folder))
    assert fault.path == "manifest.json" and fault.problem.startswith("cannot be read: ")


def test_what_the_set_is(original: Path) -> None:
    pairs = open_set(original)
    manifest = json.loads((original / "manifest.json").read_text())
    assert len(pairs) == COUNT and pairs.root == str(original) and pairs.manifest == manifest
    assert pairs.ledger == samples.ledger(COUNT) and pairs.digest == manifest["digest"]
    assert pairs.shards[2] == opening.Shard(2, 6, "shards/00002.tar", "metadata/00002.parquet")
    assert pairs.queries["query"].to_pylist()[1] == "boat" and pairs.verify() == []
    assert repr(pairs) == f"<OpenSet {original}: 30 samples in 3 shards>"


def test_every_sample_is_found_by_its_key(original: Path) -> None:
    pairs = open_set(original)
    rows = [row for table in pairs.rows() for row in table.to_pylist()]
    for number in (*range(COUNT), 29, 0, 13):  # in the order of the shards, and in other orders
        sample = pairs.sample(rows[number]["key"])
        assert sample.image == samples.jpeg(number) and sample.row == rows[number]
        assert sample.text == rows[number]["text"] == sample.json["caption"] and set(sample.json) == {*shards.JSON_KEYS}
    assert pairs.sample(rows[3]["key"][:10].upper()).key == rows[3]["key"]


def test_a_beginning_that_fits_several_keys_or_none(original: Path) -> None:
    pairs = open_set(original)
    keys = list(pairs.keys())
    with pytest.raises(Ambiguous, match=f"several keys begin with '': {keys[0]}, {keys[1]}, .* \\.\\.\\."):
        pairs.sample("")
    between = f"{(int(keys[11], 16) + int(keys[12], 16)) // 2:032x}"
    for missing in (between, "f" * 32, keys[-1] + "0"):  # between two shards, after the last shard, too long
        with pytest.raises(NotFound, match=f"no sample has a key that begins with '{missing}'"):
            pairs.sample(missing)
    with pytest.raises(Ambiguous, match=f"'': {keys[0]}"):
        pairs.row("")


def test_what_is_not_there_is_named(original: Path, tmp_path: Path) -> None:
    pairs = open_set(original)
    with pytest.raises(NotFound, match=r"metadata/00000.parquet has no column 'txet'"):
        list(pairs.rows(["key", "txet"]))
    with pytest.raises(NotFound, match="there is no shard 7: no pair of the set lies in this range"):
        pairs.rows(shard=7)
    with pytest.raises(NotFound, match="there is no shard 5000: the set has [0-9]+ ranges, 0 to"):
        pairs.rows(shard=5000)
    with pytest.raises(NotFound, match="there is no folder"):
        open_set(tmp_path / "nowhere")
    with pytest.raises(NotFound, match="is not a published folder: it has no manifest.json"):
        open_set(tmp_path)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        ("jpg", "the image of KEY has another sha256 than the metadata says"),
        ("txt", "the txt of KEY is not what the metadata says"),
        ("json", "the json of KEY is not what the metadata says"),
    ],
)
def test_a_sample_that_was_changed_is_never_given(folder: Path, member: str, problem: str) -> None:
    pairs = open_set(folder)
    row = next(pairs.rows(shard=1)).to_pylist()[4]
    flip(folder / "shards/00001.tar", row[f"{member}_offset"])
    with pytest.raises(Damaged, match=problem.replace("KEY", row["key"])):
        pairs.sample(row["key"])
    assert pairs.sample(next(pairs.keys())).image == samples.jpeg(0)


def test_files_that_are_cut_or_gone_are_named(folder: Path) -> None:
    pairs = open_set(folder)
    keys = list(pairs.keys())
    tar, table = folder / "shards/00002.tar", folder / "metadata/00001.parquet"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(Damaged, match=r"shards/00002.tar: the jpg of \w+ is cut off"):
        pairs.sample(keys[-1])
    tar.unlink()
    with pytest.raises(Damaged, match=r"shards/00002.tar cannot be read: .*00002.tar is missing"):
        pairs.sample(keys[-1])
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(Damaged, match=r"metadata/00001.parquet cannot be read"):
        pairs.table(["key"])
    (folder / "queries.parquet").write_bytes(b"PAR1")
    with pytest.raises(Damaged, match=r"queries.parquet cannot be read"):
        _ = pairs.queries


def test_a_size_that_lies_asks_for_no_memory(folder: Path) -> None:
    path = folder / "metadata/00000.parquet"
    table = pq.read_table(path)
    for size in (2**31 - 1, -1):
        at = table.column_names.index("jpg_size")
        lying = table.set_column(at, table.schema.field("jpg_size"), pa.array([size] * len(table), pa.int32()))
        storage.write_published(str(path), lying)
        with pytest.raises(Damaged, match="the jpg of .* is cut off"):
            open_set(folder).sample(table["key"][0].as_py())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.clear(), "manifest.json is not a manifest"),
        (lambda m: m["files"][0].pop("sha256"), "manifest.json is not a manifest"),
        (lambda m: m["files"][0].update(path="../x"), "manifest.json lists '../x', but it is outside the folder"),
        (lambda m: m["files"][0].update(rows="many"), "without its bytes and rows"),
        (lambda m: m.update(format=6), "has format 6 and this version reads 5: open it with a newer version"),
        (lambda m: m.update(format="2"), "has format '2'"),
        (lambda m: m.update(files=[e for e in m["files"] if e["path"] != "shards/00001.tar"]), "no shards/00001.tar"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(folder: Path, change: Any, problem: str) -> None:
    edit(folder, change)
    with pytest.raises(Damaged, match=problem):
        open_set(folder)


def test_a_manifest_that_is_no_json_is_refused(folder: Path) -> None:
    for content in ("{", "[" * 100_000, '"text"', "null", "[]"):
        (folder / "manifest.json").write_text(content)
        with pytest.raises((Damaged, NotFound), match="manifest.json"):
            open_set(folder)


def test_rows_that_the_manifest_does_not_count_are_refused(folder: Path) -> None:
    path = folder / "metadata/00001.parquet"
    storage.write_published(str(path), pq.read_table(path).slice(1))
    with pytest.raises(Damaged, match=r"metadata/00001.parquet has 11 rows, the manifest says 12"):
        open_set(folder).table(["key"])


def test_the_set_of_an_older_version_is_read(folder: Path) -> None:
    """The manifest has only the fields of the contract, the metadata has fewer columns, the query list is missing."""
    for path in sorted((folder / "metadata").glob("*.parquet")):
        storage.write_published(str(path), pq.read_table(path).drop_columns(["phash", "license", "original_sha256"]))
    republish(folder)
    wanted = ("digest", "files", "ledger", "options", "versions")
    edit(folder, lambda m: [m.pop(name) for name in list(m) if name not in wanted])
    for name in ("queries.parquet", "shards/sizes.json", "README.md", "recipe.yaml"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "stages")
    pairs = open_set(folder)
    rows = pairs.table().to_pylist()
    assert len(rows) == COUNT == len(pairs) and "phash" not in rows[0] and pairs.queries.num_rows == 0
    assert pairs.sample(rows[20]["key"]).image == samples.jpeg(20)
    assert [field.name for field in pairs.queries.schema] == ["id", "query", "source", "count", "language", "flags"]


def test_a_column_that_some_shards_lack_is_null_there(folder: Path) -> None:
    path = folder / "metadata/00001.parquet"
    storage.write_published(str(path), pq.read_table(path).drop_columns(["phash"]))
    assert open_set(folder).table()["phash"].null_count == PER_SHARD


def test_a_sample_is_found_by_few_reads_and_few_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries: list[shards.FileEntry] = []
    ranges = samples.ranges_of(2)
    for number in range(64):
        entries += samples.write_shard(tmp_path, [2 * number, 2 * number + 1], ranges=ranges).files
    shards.write_manifest(str(tmp_path), entries, ledger=[], options={}, versions={}, shards={"ranges": ranges.count})
    pairs, keys = open_set(tmp_path), list(open_set(tmp_path).keys())
    reads: list[tuple[str, Any]] = []
    read = shards.read_table
    monkeypatch.setattr(
        shards, "read_table", lambda path, columns=None: reads.append((path, columns)) or read(path, columns)
    )
    assert pairs.sample(keys[77]).image == samples.jpeg(77)
    assert len(reads) <= 8 and sum(columns is None for _, columns in reads) == 1
    reads.clear()
    assert pairs.sample(keys[76]).image == samples.jpeg(76) and reads == []  # of the same shard
    assert pairs.sample(keys[3]).image == samples.jpeg(3) and len(reads) <= 8
    assert OpenSet(pairs.root, pairs.manifest).table(["key"])["key"].to_pylist() == keys
    reads.clear()
    tables = pairs.rows(["key"])
    assert reads == [] and next(tables).num_rows == 2 and len(reads) == 1  # a shard is read only when it is needed


def test_a_set_without_samples(tmp_path: Path) -> None:
    shards.write_manifest(str(tmp_path), [], ledger=[], options={}, versions={})
    pairs = open_set(tmp_path)
    assert len(pairs) == 0 and list(pairs.keys()) == [] and pairs.table(["key", "text"]).num_rows == 0
    with pytest.raises(NotFound):
        pairs.sample("0")


def test_nothing_heavy_is_loaded(original: Path) -> None:
    program = (
        "import sys\nfrom pipeline import open_set\n"
        f"pairs = open_set({str(original)!r})\npairs.sample(next(pairs.keys()))\nprint(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(out.stdout.split()) & {"apache_beam", "torch", "numba", "webdataset", "jinja2", "pandas"}
