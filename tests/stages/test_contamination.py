"""Evaluation images: where they are found, their names, and which rows show them. A run: tests/test_curation.py."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.engine.cli import MissingInput, UsageError
from pipeline.engine.work import StageFolder, run_unit
from pipeline.fetching.images import phash, shrink
from pipeline.schema import COLOUR_BYTES, FETCHED, SHADE_BYTES
from pipeline.stages import similar
from pipeline.stages.contamination import FOUND, MOST_IMAGES, Index, _expand
from pipeline.stages.evaluation_images import HASHED, HashImages, check_source, counts, find, read_hashes, split_name
from pipeline.stages.picture_hashes import Hashes


def mosaic(seed: int, size: tuple[int, int] = (96, 96), form: str = "PNG") -> bytes:
    """A picture of 8 x 8 random cells."""
    cells = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC).save(out, form)
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_where_images_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.evaluation_images.FILES_A_UNIT", 2)
    monkeypatch.setattr("pipeline.stages.evaluation_images.BYTES_A_UNIT", 5000)
    folder = tmp_path / "flowers"
    (folder / "a" / "b").mkdir(parents=True)
    for name in ("1.JPEG", "a/2.png", "a/b/3.jpg", "notes.txt"):
        (folder / name).write_bytes(mosaic(len(name)))
    (folder / "broken.jpg").write_bytes(b"no image")
    write_tar(folder / "more.tar", {"./t/4.png": mosaic(4), "t/4.cls": b"3", "5.png": mosaic(5)})
    (folder / "other.parquet").write_bytes(b"")
    pq.write_table(pa.table({"x": [1]}), folder / "other.parquet")
    write_tar(tmp_path / "packed.tar.gz", {"6.png": mosaic(6)}, "w:gz")
    images = [
        {"bytes": mosaic(7), "path": "seven.png"},
        {"bytes": mosaic(8), "path": None},
        {"bytes": None, "path": "x"},
    ]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), tmp_path / "hub.parquet")
    pq.write_table(pa.table({"jpg": [mosaic(9)], "key": ["nine"]}), tmp_path / "keyed.parquet")
    found = find((f"f={folder}", *(str(tmp_path / name) for name in ("packed.tar.gz", "hub.parquet", "keyed.parquet"))))
    assert found.sets == ["f", "packed", "hub", "keyed"]
    task = HashImages(StageFolder(str(tmp_path), "dedup-images", "x").step("evaluation"), found.pieces)
    assert task.units() > len(found.sets)
    for unit in range(task.units()):
        run_unit(task.folder, unit, task.run)
    table = read_hashes(task.folder)
    assert table.select(["set", "image"]).to_pylist() == [
        *({"set": "f", "image": name} for name in ("1.JPEG", "5", "a/2.png", "a/b/3.jpg", "t/4")),
        *({"set": "hub", "image": name} for name in ("1", "seven.png")),
        {"set": "keyed", "image": "nine"},
        {"set": "packed", "image": "6"},
    ]
    turned = Image.open(folder / "a/2.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert (table["mirrored"][2].as_py() ^ phash(shrink(turned))).bit_count() <= 2  # it is made of the stored JPEG
    assert counts(task.folder, found.sets)["f"] == {"images": 5, "unreadable": 1}
    assert counts(task.folder, found.sets)["hub"] == {"images": 2, "unreadable": 0}
    assert ("f", "a/2.png", (folder / "a/2.png").stat().st_size) in found.identity


@pytest.mark.parametrize(
    ("value", "name", "path"),
    [
        ("cifar=/x/test", "cifar", "/x/test"),
        ("/x/imagenet.tar.gz", "imagenet", "/x/imagenet.tar.gz"),
        ("/x/a=b", "a=b", "/x/a=b"),
        ("/x/Test.PARQUET", "Test", "/x/Test.PARQUET"),
        ("/x/y/", "y", "/x/y/"),
    ],
)
def test_names_of_sets(value: str, name: str, path: str) -> None:
    assert split_name(value) == (name, path)


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "bad.tar").write_bytes(b"no tar at all" * 100)
    write_tar(tmp_path / "none.tar", {"1.txt": b"x"})
    pq.write_table(pa.table({"x": [1]}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"jpg": pa.array([], pa.binary())}), tmp_path / "no_rows.parquet")
    for name, message in {
        "empty": "holds no image, tar or table of images (.jpg, .jpeg",
        "none.tar": "holds no image (.jpg",
        "no_rows.parquet": "holds no image (.jpg",
        "none.parquet": "has no column of images (image, img",
        "bad.tar": "cannot be read",
    }.items():
        with pytest.raises(UsageError) as caught:
            find((str(tmp_path / name),))
        assert message in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "empty" / "1.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"the set empty is there already .*: name one of them, as NAME=PATH"):
        find((str(tmp_path / "empty"), str(tmp_path / "empty")))
    with pytest.raises(MissingInput, match="no such file or folder"):
        check_source(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"must be a folder, a .tar or a .parquet file"):
        check_source(str(tmp_path / "x.txt"))


def draw(random: np.random.Generator, count: int, kinds: Hashes) -> dict[str, Any]:
    """Pictures near some kinds: a few bits and colours differ. Some are plain, grey, mirrored or have equal bytes."""
    looks = kinds.take(random.integers(len(kinds.phash), size=count))
    for row in range(count):
        for bit in random.integers(0, 64, random.integers(0, 4)).tolist():
            looks.phash[row] ^= np.uint64(1) << np.uint64(bit)
        looks.colours[row, 7] += np.uint8(random.choice([0, 10, 24, 25]))
        if random.integers(4) == 0:
            cells = looks.colours[row].reshape(64, 3)
            cells[:] = (cells @ np.array([77, 150, 29]) >> 8)[:, None]
        if random.integers(4) == 0:
            looks.colours[row] = looks.colours[row].reshape(8, 8, 3)[:, ::-1].ravel()
            looks.shades[row] = looks.shades[row].reshape(16, 16)[:, ::-1].ravel()
    digits = [bytes([number]) * 32 for number in random.integers(0, 40, count).tolist()]
    cells = {name: [row.tobytes() for row in getattr(looks, name)] for name in ("colours", "shades")}
    return {"sha256": digits, "phash": looks.phash, **cells, "grain": looks.grain, "looks": looks}


def mirror(looks: Hashes, phash: np.ndarray) -> Hashes:
    colours, shades = looks.colours.reshape(-1, 8, 8, 3), looks.shades.reshape(-1, 16, 16)
    turned = (cells[:, :, ::-1].reshape(len(phash), -1) for cells in (colours, shades))
    return Hashes(looks.block, phash, *turned, looks.grain)


@pytest.mark.parametrize("distance", [0, 2, 5])
def test_rows_are_those_of_all_pairs(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.contamination.PAIRS_AT_ONCE", 7)
    random = np.random.default_rng(distance)
    colours, shades = (random.integers(20, 230, (12, width), np.uint8) for width in (COLOUR_BYTES, SHADE_BYTES))
    colours[0] = 90
    grain = random.choice(np.array([0, 255], np.uint8), 12)
    kinds = Hashes(np.zeros(12, np.uint8), random.integers(0, 2**64, 12, np.uint64), colours, shades, grain)
    known, asked = draw(random, 50, kinds), draw(random, 60, kinds)
    mirrored = [None if n % 3 else int(known["phash"][n]) ^ 1 for n in range(50)]
    columns = [pa.array(["s"] * 50), pa.array([f"{n:02}" for n in range(50)])]
    hashed = [known[name] for name in HASHED.names[2:-1]]
    evaluation = pa.table([*columns, *hashed, mirrored], schema=HASHED)
    turned = mirror(known["looks"], np.array([one or 0 for one in mirrored], np.uint64))
    uids = [number.to_bytes(16, "big") for number in range(60)]
    given = {"uid": uids, "image_sha256": asked["sha256"], **{name: asked[name] for name in HASHED.names[3:-1]}}
    rows = pa.table({name: pa.array(column, FETCHED.field(name).type) for name, column in given.items()})
    expected, by_mirror = [], 0
    for row in range(60):
        found = []
        for image in range(50):
            one = asked["looks"].take(np.array([row]))
            bits = int(asked["phash"][row] ^ known["phash"][image]).bit_count()
            alike = []
            for side in (known["looks"], turned)[: 1 if mirrored[image] is None else 2]:
                other = side.take(np.array([image]))
                apart = int(one.phash[0] ^ other.phash[0]).bit_count()
                contrast = similar.has_contrast(one.colours)[0] and similar.has_contrast(other.colours)[0]
                agree = similar.colours_agree(one.colours, other.colours) | similar.looks_agree(one, other)
                if apart <= distance and contrast and agree[0]:
                    alike.append(apart)
                    by_mirror += side is turned
            if asked["sha256"][row] == known["sha256"][image]:
                found.append((-1, image, bits))
            elif alike:
                found.append((min(alike), image, min(alike)))
        expected += [
            {
                "uid": uids[row],
                "set": "s",
                "image": f"{image:02}",
                "kind": "bytes" if rank < 0 else "picture",
                "distance": bits,
                "cosine": None,
            }
            for rank, image, bits in sorted(found)[:MOST_IMAGES]
        ]
    found = Index.of(evaluation, distance).find(rows)
    assert (
        found.to_pylist() == expected
        and found.schema.equals(FOUND)
        and {"bytes", "picture"} <= {row["kind"] for row in expected}
        and (by_mirror or not distance)
    )
    assert Index.of(evaluation, distance).find(rows.slice(0, 0)).num_rows == 0
    assert Index.of(evaluation.slice(0, 0), distance).find(rows).num_rows == 0


def test_a_pair_names_the_nearest_images() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (1, COLOUR_BYTES), np.uint8).tobytes()
    columns = [["s"] * 30, [f"{n:02}" for n in range(30)], [bytes([n]) * 32 for n in range(30)]]
    hashes = [(1 << n % 3) - 1 for n in range(30)]
    shades = b"\x00\xff" * (SHADE_BYTES // 2)
    looks = [pa.array(hashes, pa.uint64()), [picture] * 30, [shades] * 30, [0] * 30, [None] * 30]
    evaluation = pa.table([*columns, *looks], schema=HASHED)
    given = {"uid": [b"u" * 16], "image_sha256": [b"\x07" * 32], "phash": [0]}
    given |= {"colours": [picture], "shades": [shades], "grain": [0]}
    rows = pa.table({name: pa.array(column, FETCHED.field(name).type) for name, column in given.items()})
    found = Index.of(evaluation, 2).find(rows)
    assert found.num_rows == MOST_IMAGES and found["image"].to_pylist()[:3] == ["07", "00", "03"]
    assert found["distance"].to_pylist() == [1, *[0] * 10, *[1] * 5]


def test_candidates_come_in_pieces() -> None:
    values, places = np.array([1, 1, 1, 5, 5, 9], np.uint64), np.arange(6)
    asked = np.array([5, 0, 1, 9, 1], np.uint64)
    whole = [(0, 3), (0, 4), (2, 0), (2, 1), (2, 2), (3, 5), (4, 0), (4, 1), (4, 2)]
    for most in (None, 1, 2, 4, 100):
        pieces = [np.stack(pair, axis=1) for pair in _expand(values, places, asked, most=most)]
        assert [tuple(pair) for pair in np.concatenate(pieces).tolist()] == whole
