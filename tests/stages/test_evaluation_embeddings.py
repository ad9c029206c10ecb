"""Evaluation images by embeddings: against brute force, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.engine.cli import UsageError
from pipeline.engine.work import StageFolder
from pipeline.schema import COLOUR_BYTES, SHADE_BYTES
from pipeline.stages import embeddings, evaluation_embeddings, near_vectors
from pipeline.stages.contamination import FOUND, first_of_each
from pipeline.stages.evaluation_embeddings import Evaluated

VECTORS = [[1.0, 2.0], [2.0, -4.0]]


def table(path: Path, keys: Any, vectors: Any, name: str = "key") -> str:
    lists = pa.array(np.asarray(vectors, np.float32).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({name: keys, "embedding": lists}), path)
    return str(path)


@pytest.mark.parametrize("cell", [8, 512])
def test_pairs_are_those_of_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: int) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(near_vectors, "ROWS_PER_CELL", cell)
    random, width, cosine = np.random.default_rng(1), 200, 0.9
    shown = random.standard_normal((300, width))
    own = random.standard_normal((600, width))
    own[:120] = shown[:120] + random.uniform(0.1, 0.7, (120, 1)) * random.standard_normal((120, width))
    own[120:150] = shown[0]  # many pairs show one image
    keys = [f"{number:032x}" for number in range(len(own))]
    stage = StageFolder(str(tmp_path), "dedup-images")
    ours, theirs = stage.step("embeddings"), stage.step("evaluation-embeddings")
    embeddings.write([table(tmp_path / "own.parquet", keys[:-5], own[:-5])], ours)
    names = [f"{number}.jpg" for number in range(len(shown))]
    halves = [
        f"b={table(tmp_path / 'one.parquet', names[:100], shown[:100])}",
        f"a={table(tmp_path / 'two.parquet', names[100:], shown[100:], 'file_name')}",
    ]
    found = []
    for number, given in enumerate((halves, halves[::-1])):
        evaluation_embeddings.write(given, theirs, cosine)
        evaluation_embeddings.load.cache_clear()
        rows = pa.table({"uid": pa.array([bytes.fromhex(key) for key in keys], pa.binary(16))})
        found.append(Evaluated(theirs, ours, cosine, stage.step("evaluated"), 4).search(rows))
        assert evaluation_embeddings.check(given).images == {"a": 200, "b": 100} and number < 2
    assert found[0].equals(found[1]) and found[0].schema.equals(FOUND)
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (own[:-5], shown)]
    exact = unit[0] @ unit[1].T
    close = np.abs(exact - cosine) < 1e-3  # rounding decides these
    expected = {(int(row), int(image)) for row, image in zip(*np.nonzero(exact >= cosine), strict=True)}
    got = {(int(row["uid"].hex(), 16), int(row["image"].split(".")[0])) for row in found[0].to_pylist()}
    assert len(expected) > 80 and not [pair for pair in got ^ expected if not close[pair]]
    for row in found[0].to_pylist():
        pair = int(row["uid"].hex(), 16), int(row["image"].split(".")[0])
        assert abs(row["cosine"] - exact[pair]) < 1e-3 and row["set"] == ("b" if pair[1] < 100 else "a")
        assert (row["kind"], row["distance"]) == ("embedding", None)


def test_copies_without_an_embedding_fall_too(tmp_path: Path) -> None:
    """A table that was made of a published set has no duplicates. One of them would take the place of the pair."""
    pytest.importorskip("faiss")
    stage, keys = StageFolder(str(tmp_path), "dedup-images"), [f"{number:032x}" for number in range(5)]
    steps = [stage.step(name) for name in ("evaluation-embeddings", "embeddings", "evaluated")]
    embeddings.write([table(tmp_path / "own.parquet", [keys[0], keys[4]], VECTORS)], steps[1])
    evaluation_embeddings.write([f"a={table(tmp_path / 'shown.parquet', ['x.jpg'], VECTORS[:1])}"], steps[0], 0.9)
    colours = bytes(5 * number % 256 for number in range(COLOUR_BYTES))
    pictures = [colours] * 3 + [colours[::-1]] * 2
    rows = {
        "uid": pa.array([bytes.fromhex(key) for key in keys], pa.binary(16)),
        "image_sha256": pa.array([bytes([number]) * 32 for number in (1, 1, 2, 3, 4)], pa.binary(32)),
        "phash": pa.array([7, 7, 5, 0xF0F0F0F0, 0xFF00], pa.uint64()),  # the third differs in one bit
        "colours": pa.array(pictures, pa.binary(COLOUR_BYTES)),
        "shades": pa.array([bytes(SHADE_BYTES)] * 5, pa.binary(SHADE_BYTES)),
        "grain": pa.array([0] * 5, pa.uint8()),
    }
    evaluated = Evaluated(steps[0], steps[1], 0.9, steps[2], 4)
    steps[2].write_manifest(0, {"found": evaluated.write(0, pa.table(rows))})
    found = first_of_each(evaluated.find(pa.table(rows))).to_pylist()
    assert [(row["uid"].hex(), row["image"], row["kind"], row["distance"]) for row in found] == [
        (keys[0], "x.jpg", "embedding", None),
        (keys[1], "x.jpg", "bytes", 0),
        (keys[2], "x.jpg", "picture", 1),
    ]


@pytest.mark.parametrize(
    ("keys", "vectors", "message"),
    [
        (["a", "a"], VECTORS, "the image a of the set bad comes twice"),
        (["a", None], VECTORS, "the names of images are of type string: must be texts, without empty cells"),
        ([0.5, 1.5], VECTORS, "the names of images are of type double"),
        (["a", "b"], [[1.0, 2.0], [0.0, 0.0]], "the embedding of the key b is zero"),
        (["a", "b"], [[1.0, 2.0], [0.0, float("nan")]], "the embedding of the key b has a number that is not finite"),
        (["a", "b"], [[1.0], [2.0]], "has embeddings of 1 numbers, and --embeddings of 2: both must be by the same"),
    ],
)
def test_bad_tables_are_refused_with_one_line(tmp_path: Path, keys: Any, vectors: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        evaluation_embeddings.check_widths([table(tmp_path / "bad.parquet", keys, vectors)], 2)
    assert str(error.value).startswith("--decontaminate-embeddings ") and message in str(error.value)


def test_a_name_decides_the_digest_and_an_image_counts_once(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", ["a", "b"], VECTORS)
    digests = [evaluation_embeddings.digest(given) for given in ([path], [f"y={path}"], [path])]
    assert digests[0] == digests[2] != digests[1]
    row = {"uid": b"1" * 16, "set": "s", "image": "i"}
    rows = [{**row, "kind": "picture", "distance": 2}, {**row, "kind": "embedding", "cosine": 0.99}]
    found = pa.Table.from_pylist([*rows, {**rows[1], "image": "j"}], FOUND)
    assert first_of_each(found)["kind"].to_pylist() == ["picture", "embedding"]
