"""export: each format is read by its own readers, a subset is that of the flags, and nothing half-written stays."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.dataset.open_set import open_set
from pipeline.engine.cli import BELOW, DONE, MISSING, USAGE
from pipeline.inspector import formats
from pipeline.inspector.formats import FolderWriter
from tests import samples


def test_an_image_folder(run: Any, published: Path, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()  # an empty folder may be there
    code, text, _ = run("export", published, "--to", tmp_path / "to", "--format", "folder", "-n", 7, "--seed", 3)
    assert code == DONE and text.startswith("7 pairs as folder")
    rows = [json.loads(line) for line in (tmp_path / "to/metadata.jsonl").read_text().splitlines()]
    drawn = json.loads(run("sample", published, "-n", 7, "--seed", 3, "--json")[1])
    assert {row["key"] for row in rows} == {row["key"] for row in drawn} and "jpg_offset" not in rows[0]
    for row in rows:
        image = (tmp_path / "to" / row["file_name"]).read_bytes()
        assert hashlib.sha256(image).hexdigest() == row["sha256"]
    assert {"boat", "cat", "dog", "a"} >= {row["queries"][0] for row in rows}
    assert not list(tmp_path.glob("*.tmp*"))


def test_parquet_as_hugging_face_has_it(run: Any, published: Path, tmp_path: Path) -> None:
    code, text, _ = run("export", published, "--to", tmp_path / "to", "--format", "hf", "--json")
    assert code == DONE and json.loads(text)["pairs"] == 30
    table = pq.read_table(tmp_path / "to/data/train-00000-of-00001.parquet")
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}
    wanted = open_set(published).table(["key", "text", "sha256"])
    assert table.select(["key", "text", "sha256"]).to_pydict() == wanted.to_pydict()
    image = table["image"][0].as_py()
    assert image["path"].endswith(".jpg") and Image.open(io.BytesIO(image["bytes"])).size == (40, 32)
    if importlib.util.find_spec("duckdb"):
        code, text, _ = run("sql", tmp_path / "to", "select count(*) as n from pairs", "--json")
        assert code == DONE and "30" in text


def test_captions_as_coco_has_them(run: Any, published: Path, tmp_path: Path) -> None:
    code, _, _ = run("export", published, "--to", tmp_path / "to", "--format", "coco", "--query", "boat")
    found = json.loads((tmp_path / "to/annotations.json").read_text())
    rows = [row for row in open_set(published).table().to_pylist() if 1 in row["query_ids"]]
    assert code == DONE and [image["key"] for image in found["images"]] == [row["key"] for row in rows]
    captions = [(rows[one["image_id"] - 1]["key"], one["caption"]) for one in found["annotations"]]
    assert captions == [(row["key"], text) for row in rows for text in row["texts"]]
    assert all((tmp_path / "to" / image["file_name"]).exists() for image in found["images"])
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["annotations.json", "images"]


def test_csv_of_a_set_and_of_a_run(run: Any, published: Path, selected: Path, tmp_path: Path) -> None:
    run("export", published, "--to", tmp_path / "x.csv", "--format", "csv", "--keep", "keep_probability == 1")
    with open(tmp_path / "x.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [row for row in open_set(published).table().to_pylist() if row["keep_probability"] == 1]
    assert [(row["key"], row["text"]) for row in rows] == [(row["key"], row["text"]) for row in wanted]
    assert [json.loads(row["texts"]) for row in rows] == [row["texts"] for row in wanted]
    assert run("export", selected, "--to", tmp_path / "y.csv", "--format", "csv")[0] == DONE
    code, _, said = run("export", selected, "--to", tmp_path / "z", "--format", "hf")
    assert code == MISSING and "has no images: --format csv" in said


def test_what_cannot_be_exported(run: Any, published: Path, tmp_path: Path) -> None:
    import shutil

    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    for path in ("full", "full/x"):
        code, _, said = run("export", published, "--to", tmp_path / path, "--format", "folder")
        assert code == USAGE and "must not exist" in said
    code, _, said = run("export", published, "--to", published / "x", "--format", "csv")
    assert code == USAGE and "must not lie within" in said and not (published / "x").exists()
    shutil.copytree(published, tmp_path / "damaged")
    tar = tmp_path / "damaged/shards/00000.tar"
    row = open_set(published).row(samples.uid(0).hex())
    data = bytearray(tar.read_bytes())
    data[row["jpg_offset"] + 40] ^= 1
    tar.write_bytes(data)
    code, _, said = run("export", tmp_path / "damaged", "--to", tmp_path / "to", "--format", "folder")
    assert code == BELOW and "another sha256" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "full"]


@pytest.mark.parametrize("key", ["../../evil", "a/b", "", ".", "CON:", "x" * 300])
def test_a_key_never_becomes_a_path(tmp_path: Path, key: str) -> None:
    import pyarrow as pa

    writer = FolderWriter(str(tmp_path / "to"), pa.schema([]))
    writer.add({"key": key, "text": "t"}, samples.jpeg(1))
    writer.close()
    (path,) = (tmp_path / "to/images").rglob("*.jpg")
    assert path.name == "000000000000.jpg"


def test_lance_holds_the_images(run: Any, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LANCE_BYTES", 5 * len(samples.jpeg(1)))  # several writes
    code, text, said = run("export", published, "--to", tmp_path / "set.lance", "--format", "lance")
    if importlib.util.find_spec("lance") is None:
        assert code == USAGE and "pip install 'openwit[lance]'" in said and not list(tmp_path.iterdir())
        pytest.skip("pylance is not installed")
    assert code == DONE and text.startswith("30 pairs as lance")
    lance = importlib.import_module("lance")
    table = lance.dataset(str(tmp_path / "set.lance")).to_table()
    rows = {row["key"]: row for row in table.to_pylist()}
    key = samples.uid(7).hex()
    assert len(rows) == 30 and rows[key]["image"] == samples.jpeg(7) and rows[key]["queries"]
