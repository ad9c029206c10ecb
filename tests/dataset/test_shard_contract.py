"""Other software reads the published folder: webdataset, Hugging Face datasets, DuckDB, pyarrow, tarfile, and a
trainer that reads samples at random with the metadata only. The test of a package is skipped if it is not installed."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import random
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import samples

COUNT = 60
NUMBERS = {
    "whole": list(range(COUNT)),  # shards 0 to 2
    "gaps": [*range(30, 50), *range(100, 125), *range(400, 414), 1199],  # shards 1, 4, 16 and 47
}


@pytest.fixture(scope="module", params=NUMBERS)
def numbers(request: pytest.FixtureRequest) -> list[int]:
    return NUMBERS[request.param]


@pytest.fixture(scope="module")
def folder(numbers: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    samples.publish(folder, per_shard=25, numbers=numbers)
    return folder


@pytest.fixture(scope="module")
def rows(numbers: list[int]) -> list[dict[str, Any]]:
    return samples.fetched_of(numbers).to_pylist()


@pytest.fixture
def pattern(folder: Path) -> str:
    """The names of the shards from the pattern on the card, expanded by the shell."""
    named = re.search('--train-data "(.*)" --dataset-type', (folder / "README.md").read_text())
    assert named is not None
    run = ["sh", "-c", f'printf %s "{named[1]}"']
    return f"{folder}/{subprocess.run(run, cwd=folder, capture_output=True, text=True, check=True).stdout}"


def test_tarfile(folder: Path, rows: list[dict[str, Any]], numbers: list[int]) -> None:
    found = []
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                found.append((member.name, tar.extractfile(member).read()))  # type: ignore[union-attr]
    assert len(found) == 3 * COUNT
    for at, (number, row) in enumerate(zip(numbers, rows, strict=True)):
        (image, data), (record, document), (text, caption) = found[3 * at : 3 * at + 3]
        assert (image, record, text) == tuple(f"{row['uid'].hex()}.{kind}" for kind in ("jpg", "json", "txt"))
        assert data == samples.jpeg(number) and caption.decode() == row["text"] == json.loads(document)["text"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset does not close its shards
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", ["pattern", "glob"])
def test_webdataset(folder: Path, rows: list[dict[str, Any]], pattern: str, way: str) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    urls = pattern if way == "pattern" else sorted(map(str, folder.glob("shards/*.tar")))
    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    found = list(dataset.decode("pil").to_tuple("__key__", "jpg", "txt", "json"))
    assert [key for key, *_ in found] == [row["uid"].hex() for row in rows]
    for number, (_, image, text, record) in enumerate(found):  # of the row
        assert image.size == (40, 32) and text == rows[number]["text"] and record["url"] == rows[number]["url"]


def test_the_number_of_samples_as_open_clip_finds_it(folder: Path, pattern: str) -> None:
    """open_clip's get_dataset_size: the sum of sizes.json over the shards that the braces name."""
    braceexpand = pytest.importorskip("braceexpand", reason="braceexpand is not installed")
    paths = list(braceexpand.braceexpand(pattern))
    sizes = json.loads(Path(paths[0]).with_name("sizes.json").read_text())
    assert sum(int(sizes[Path(path).name]) for path in paths) == COUNT == sum(sizes.values())
    assert sorted(paths) == sorted(map(str, folder.glob("shards/*.tar")))


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["files", "card"])
def test_hugging_face_datasets(
    datasets: Any, folder: Path, rows: list[dict[str, Any]], tmp_path: Path, way: str
) -> None:
    cache = str(tmp_path / "cache")
    if way == "files":
        files = str(folder / "shards/*.tar")
        found = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=cache)
    else:  # README.md names the shards: otherwise metadata and rejected rows would count as the set
        found = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
    assert len(found) == COUNT and found["txt"][:] == [row["text"] for row in rows]
    assert found[7]["jpg"].size == (40, 32)
    assert [record["final_url"] for record in found["json"][:]] == [row["final_url"] or "" for row in rows]
    assert [record["texts"] for record in found["json"][:]] == [row["texts"] for row in rows]


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_reads_the_metadata(
    datasets: Any, folder: Path, rows: list[dict], tmp_path: Path
) -> None:
    files = str(folder / "metadata/*.parquet")
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert found["query_ids"][:] == [row["query_ids"] for row in rows]
    assert found["texts"][:] == [row["texts"] for row in rows]


def test_duckdb(folder: Path, rows: list[dict[str, Any]]) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    found = duckdb.sql(
        f"SELECT count(*), count(DISTINCT key), sum(len(query_ids)), max(phash) FROM '{folder}/metadata/*.parquet'"
    ).fetchall()
    assert found == [(COUNT, COUNT, 2 * COUNT, max(row["phash"] for row in rows))]
    rejected = duckdb.sql(
        f"SELECT reason, count(*) FROM '{folder}/rejected/*.parquet' GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert rejected == [("bad_url", 1), ("empty_text", 1)]


def test_pyarrow_reads_the_metadata_as_one_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    table = pq.read_table(folder / "metadata", page_checksum_verification=True)
    assert table["key"].to_pylist() == [row["uid"].hex() for row in rows]
    assert table["keep_probability"].to_pylist() == [row["keep_probability"] for row in rows]


def test_what_changes_with_other_rows_is_not_in_the_tars(folder: Path) -> None:
    for path in (folder / "shards").glob("*.tar"):
        assert not re.search(b"keep_probability|kept_by|query_ids", path.read_bytes())


def test_a_trainer_reads_at_random_by_the_metadata_alone(folder: Path, rows: list[dict[str, Any]]) -> None:
    table = pq.read_table(folder / "metadata", page_checksum_verification=True)
    names = ("shard", "jpg_offset", "jpg_size", "txt_offset", "txt_size")
    index = {name: table[name].to_numpy() for name in names}
    digests = table["sha256"].to_pylist()
    maps = {}
    for path in (folder / "shards").glob("*.tar"):
        with open(path, "rb") as file:
            maps[int(path.stem)] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    order = list(range(COUNT))
    random.Random(0).shuffle(order)
    for n in order:
        shard, at, size, text_at, text_size = (int(index[name][n]) for name in names)
        image = maps[shard][at : at + size]
        assert hashlib.sha256(image).hexdigest() == digests[n]
        with Image.open(io.BytesIO(image)) as picture:
            assert picture.format == "JPEG" and picture.size == (table["width"][n].as_py(), table["height"][n].as_py())
        assert maps[shard][text_at : text_at + text_size].decode() == rows[n]["text"]
    for mapped in maps.values():
        mapped.close()


def test_our_trainer_reads_it(folder: Path, rows: list[dict[str, Any]], numbers: list[int]) -> None:
    from clip_train.concepts import open_concepts
    from clip_train.shards import open_index

    index = open_index(str(folder))
    everything = np.arange(len(rows))
    assert index.keys_of(everything) == [row["uid"].hex() for row in rows]
    shard, at, size = index.place("image", 40)
    with open(index.paths[shard], "rb") as file:
        file.seek(at)
        assert file.read(size) == samples.jpeg(numbers[40])
    digests = index.rows(everything).sha256
    assert digests is not None and digests[40].tobytes() == hashlib.sha256(samples.jpeg(numbers[40])).digest()[:8]
    probabilities = [row["keep_probability"] for row in rows]
    assert index.keep_probability(everything).tolist() == pytest.approx(probabilities, abs=2**-32)
    ids, sizes = open_concepts(index).of(everything)
    assert ids.tolist() == [query for row in rows for query in row["query_ids"]] and sizes.sum() == len(ids)
