"""Published sets as inputs: which folders are sets, what is refused, and what the reader makes of their rows."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import build, schema
from pipeline.dataset import shards
from pipeline.dataset.shards import FORMAT
from pipeline.engine import storage
from pipeline.engine.input_errors import InputError
from pipeline.engine.ledger import Ledger
from pipeline.fetching.picture import Picture, StoredImage, is_plain
from pipeline.schema import CANDIDATES
from pipeline.sources import READERS, inputs, published_sets, set_reader
from pipeline.sources.base import ReadSettings
from pipeline.stages.fetch import stored_image
from tests.growing import Growing, small_web
from tests.without_beam import run_job, without_beam  # noqa: F401

SET = READERS["set"]
TEXTS = ["a red  dog", "the cat", "a blue tree"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A set of three samples, one of them with three texts. Its stages are gone."""
    place = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch, small_web() as server:
        patch.setattr(build.runners, "run_job", run_job)
        growing = Growing(place / "in", server)
        rows = [*(("img/01.jpg", text) for text in TEXTS), ("img/02.jpg", "number two"), ("img/03.jpg", "cat & dog")]
        growing.build(place / "set", [growing.table("a.parquet", rows)], "--captions", "3")
    shutil.rmtree(place / "set" / "stages")
    return place / "set"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def first_tar(root: Path) -> Path:
    return min((root / "shards").glob("*.tar"))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def change_manifest(root: Path, **changes: object) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    manifest.pop("checksum")
    storage.write_json(str(root / "manifest.json"), {**manifest, **changes})


def read(root: Path) -> tuple[pa.Table, pa.Table, Ledger]:
    """All pairs and all images of a set."""
    ledger, images, batches = Ledger(), list[pa.RecordBatch](), list[pa.RecordBatch]()
    found = inputs.expand([str(root)])
    SET.check(found, ReadSettings())
    for item in found:
        batches += SET.read(item, ledger=ledger, images=images, settings=ReadSettings())
    return pa.Table.from_batches(batches, CANDIDATES), pa.Table.from_batches(images), ledger


def test_each_text_of_a_sample_is_a_pair_and_each_image_is_found(folder: Path) -> None:
    pairs, images, ledger = read(folder)
    assert ledger.records_in == 3 and ledger.rows_in == pairs.num_rows == 5
    texts = sorted(" ".join(text.split()) for text in pairs["text"].to_pylist())  # the first of a sample is as found
    assert texts == sorted(["a red dog", *TEXTS[1:], "number two", "cat & dog"])
    rows = {row["url"]: row for path in (folder / "metadata").iterdir() for row in pq.read_table(path).to_pylist()}
    tars = {item.path for item in inputs.expand([str(folder)])}
    for row in images.to_pylist():
        wanted = rows[row["url"]]
        (path,) = (path for path in tars if path.endswith(f"{wanted['shard']:05d}.tar"))
        stored = SET.read_stored(path, row["offset"], max_bytes=1 << 20)
        assert stored is not None and stored[0] == SET.read_image(path, row["offset"], max_bytes=1 << 20)
        found = stored_image(*stored, url=row["url"], same_version=True)
        assert is_plain(found.jpeg) and found.phash == wanted["phash"] and found.final_url is None
        assert found.image_sha256 is not None and found.image_sha256.hex() == wanted["original_sha256"]
        assert (found.original_width, found.original_format) == (wanted["original_width"], "JPEG")
        assert SET.read_stored(path, row["offset"], max_bytes=100) is None
        assert SET.read_stored(path, row["offset"] + 512, max_bytes=1 << 20) is None
    assert published_sets.NEWEST == FORMAT


def test_rows_of_older_formats_have_one_text() -> None:
    rows = pa.RecordBatch.from_pydict(
        {"url": ["http://a.org/1", "http://a.org/2"], "text": ["a", "b"], "jpg_offset": [512, 9], "jpg_size": [1, 2]}
    )
    pairs = set_reader._Rows(rows, 7).pairs()
    assert pairs.schema == CANDIDATES and pairs["text"].to_pylist() == ["a", "b"]
    assert pairs["offset"].to_pylist() == [7, 8] and pairs["page_url"].to_pylist() == ["", ""]
    assert pairs["url_source"].to_pylist() == [schema.URL_SOURCES.index("table")] * 2


def test_a_larger_variant_keeps_the_url_of_its_key() -> None:
    given = {"url": ["http://a.org/large"], "url_as_found": ["http://a.org/small"], "text": ["a"]}
    given |= {"texts": [["a", "b"]], "text_as_found": ["A"], "url_source": ["srcset"], "opt_out": ["noindex"]}
    rows = set_reader._Rows(pa.RecordBatch.from_pydict({**given, "jpg_offset": [512], "jpg_size": [9]}), 0)
    assert rows.pairs()["url"].to_pylist() == ["http://a.org/small"] * 2
    assert rows.pairs()["text"].to_pylist() == ["A", "b"] and rows.pairs()["opt_out"].to_pylist() == ["noindex"] * 2
    assert rows.images()["url"].to_pylist() == ["http://a.org/small", "http://a.org/large"]
    facts = {"url": "http://a.org/large", "phash": "0" * 15}
    found = stored_image(b"", facts, url="http://a.org/small", same_version=True)
    assert found == StoredImage(b"", final_url="http://a.org/large")


@pytest.mark.parametrize(
    ("damage", "words", "at_once"),
    [
        (lambda root: flip(first_tar(root), 700), "is damaged: its sha256", False),
        (lambda root: flip(next((root / "metadata").iterdir()), 90), "is damaged: its sha256", False),
        (lambda root: first_tar(root).write_bytes(b""), "has 0 bytes, and its manifest says", True),
        (lambda root: shutil.rmtree(root / "metadata"), r"metadata/0000\d.parquet is missing: restore it(;|$)", True),
        (lambda root: first_tar(root).unlink(), "is missing: restore it", True),
        (lambda root: (root / "manifest.json").unlink(), "manifest.json is missing", True),
        (lambda root: flip(root / "manifest.json", 50), "manifest.json is damaged", True),
        (lambda root: change_manifest(root, digest="0" * 64), "its digest is not that of the files", True),
        (lambda root: change_manifest(root, format=FORMAT + 1), "a newer version", True),
    ],
    ids=["tar", "metadata", "empty tar", "no metadata", "no tar", "no manifest", "manifest", "digest", "newer"],
)
def test_a_damaged_set_is_refused(copy: Path, damage: Callable[[Path], None], words: str, at_once: bool) -> None:
    damage(copy)
    if not at_once:
        SET.check(inputs.expand([str(copy)]), ReadSettings())
    with pytest.raises(InputError, match=words) as raised:
        read(copy) if not at_once else SET.check(inputs.expand([str(copy)]), ReadSettings())
    assert "\n" not in str(raised.value)


def test_which_specs_name_a_set(folder: Path, copy: Path) -> None:
    (copy.parent / "list").write_text("copy\n")
    for spec in (str(copy), str(copy.parent), f"{copy.parent}/c*", f"@{copy.parent}/list"):
        found = inputs.expand([spec, str(folder)])  # the same set in two places counts once
        assert {item.format for item in found} == {"set"} and len(found) == len(list(copy.glob("shards/*.tar")))
        assert [item.name for item in found] == [item.name for item in inputs.expand([str(copy)])]
    known = inputs.expand([str(copy)])
    moved = copy.rename(copy.with_name("moved"))
    tars = {str(path) for path in moved.glob("shards/*.tar")}
    assert {item.path for item in inputs.expand([str(moved)], known=known)} == tars
    change_manifest(moved, digest=shards.digest_of_files([]), files=[])
    with pytest.raises(InputError, match="without a shard"):
        inputs.expand([str(moved)])
    for spec in (str(folder / "shards"), str(first_tar(folder))):
        with pytest.raises(InputError, match="name the folder"):
            inputs.expand([spec])
    with pytest.raises(InputError, match="is no published set"):
        inputs.expand([str(first_tar(folder))], input_format="set")
    assert {item.format for item in inputs.expand([str(folder / "metadata")])} == {"table"}


def test_a_set_is_dropped_by_the_name_of_its_folder(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": ["http://a.org/"], "text": ["a"]}), table)
    known = inputs.expand([str(folder), str(table)])
    for value in ("set", "set/", str(folder), f"{folder}/"):
        assert [item.name for item in inputs.expand([], known=known, drop=[value])] == ["a.parquet"]
    left = inputs.expand([str(table)])
    dropped = [item.path for item in known if item.format == "set"]
    assert inputs.expand([], known=left, drop=["set"], dropped=dropped) == left  # the same command again
    words = f"must be the name or path of an input of the set: '{folder}', 'a.parquet'$"
    with pytest.raises(InputError, match=words):
        inputs.expand([], known=known, drop=["sot-1"])
    names = {item: f"set-{'0' * 12}/shards/{item.path[-9:]}" for item in known if item.format == "set"}
    other = [dataclasses.replace(item, name=name, path=f"/x{item.path}", found=None) for item, name in names.items()]
    with pytest.raises(InputError, match=f"'set': is the name of several sets, name a path: '{folder}', '/x{folder}'"):
        inputs.expand([], known=[*known, *other], drop=["set"])


def test_a_jpeg_of_another_form_is_encoded_again() -> None:
    pixels = Image.fromarray(np.full((20, 30, 3), 90, np.uint8))
    exif = {"exif": pixels.getexif().tobytes()}
    forms: list[dict[str, Any]] = [{}, {"progressive": True}, exif, {"comment": b"x"}]
    jpegs = []
    for form in forms:
        pixels.save(out := io.BytesIO(), "JPEG", **form)
        jpegs.append(out.getvalue())
    assert [is_plain(jpeg) for jpeg in (*jpegs, jpegs[0][:-9], b"", b"\xff\xd8\xff")] == [True, *[False] * 6]
    decoded = Picture(b"new", 30, 20, 30, 20, "JPEG", 1, b"", b"", 0)
    assert StoredImage(jpegs[0], phash=5, original_width=60).picture(decoded).jpeg == jpegs[0]
    assert StoredImage(jpegs[0], phash=5, original_width=60).picture(decoded).phash == 5
    assert StoredImage(jpegs[1], phash=5).picture(decoded) == decoded
    larger = Picture(b"new", 30, 20, 300, 200, "JPEG", 1, b"", b"", 0)
    assert StoredImage(jpegs[0], phash=5).picture(larger) == larger
