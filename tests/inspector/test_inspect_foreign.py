"""Files of other tools: any tars, the output of img2dataset, Parquet with images. Each fault is one that is found."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_train.tar_scan import scan_tar
from pipeline.engine import foreign_tars
from pipeline.engine.cli import BELOW, DONE, MISSING, USAGE
from tests import samples


def tar(
    path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], *, form: int = tarfile.USTAR_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def pairs(*numbers: int, text: str = "a red boat") -> dict[str, bytes]:
    members = {}
    for number in numbers:
        facts = {"url": f"http://a.example/{number}.jpg", "width": 40, "height": 32, "caption": text}
        members |= {f"{number:06d}.jpg": samples.jpeg(number), f"{number:06d}.txt": f"{text} {number}".encode()}
        members |= {f"{number:06d}.json": json.dumps(facts).encode()}
    return members


def checked(run: Any, path: Path, *flags: str) -> tuple[dict[str, int], dict[str, Any]]:
    """The faults with their numbers, and the whole answer of verify."""
    code, text, said = run("verify", path, "--json", *flags)
    found = json.loads(text)
    assert code == (BELOW if found["faults"] else DONE), said
    return {fault["problem"]: fault["count"] for fault in found["faults"]}, found


def test_sound_tars(run: Any, tmp_path: Path) -> None:
    tar(tmp_path / "a/00000.tar", pairs(0, 1, 2))
    tar(tmp_path / "b/00001.tar", pairs(3, 4))
    faults, found = checked(run, tmp_path)
    assert faults == {} and found["pairs"] == 5 and found["clip_train"] == {"takes": True, "why": "5 pairs"}
    assert checked(run, tmp_path / "b/00001.tar")[1]["pairs"] == 2
    code, text, _ = run("info", tmp_path)
    assert code == DONE and "WebDataset tars: 5 pairs" in text and "clip_train would take it" in text
    facts = json.loads(run("stats", tmp_path, "--json")[1])
    assert facts["charts"]["Hosts of the images"] == {"a.example": 5} and facts["charts"]["Languages"] == {"en": 5}
    assert [row["key"] for row in json.loads(run("ls", tmp_path, "--shard", 1, "--json")[1])] == ["000003", "000004"]
    row = json.loads(run("show", "000003", tmp_path, "--json", "--image", tmp_path / "x.jpg")[1])
    assert row["url"] == "http://a.example/3.jpg" and (tmp_path / "x.jpg").read_bytes() == samples.jpeg(3)
    assert run("show", "00000", tmp_path)[0] == USAGE and run("show", "9", tmp_path)[0] == MISSING
    code, text, _ = run("export", tmp_path, "--to", tmp_path / "to", "--format", "hf", "--keep", "shard == 1")
    assert code == DONE and checked(run, tmp_path / "to")[1]["pairs"] == 2
    code, _, said = run("find", tmp_path / "to", "--url", "http://a.example/3.jpg")
    assert code == USAGE and "find needs the folder of a build" in said


def test_what_is_no_image_is_not_exported(run: Any, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", pairs(0, 1, 2) | {"000001.jpg": b"<html>", "000002.jpg": b""})
    for kind in ("folder", "hf", "webdataset"):
        code, text, _ = run("export", path, "--to", tmp_path / kind, "--format", kind, "--json")
        found = json.loads(text)
        assert (code, found["pairs"], found["without_image"]) == (DONE, 1, 2)
        assert checked(run, tmp_path / kind)[1]["pairs"] == 1 if kind != "folder" else True
    assert "2 pairs whose image is missing" in run("export", path, "--to", tmp_path / "c", "--format", "coco")[1]


def test_what_is_said_of_files_of_others(run: Any, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", pairs(0, 1, text="a") | {"000001.txt": b"a 0"})
    assert "repeated: texts 1; images were not compared, `verify` does" in run("info", path)[1]
    assert "no text is repeated; images" in run("info", tar(tmp_path / "y.tar", pairs(0)))[1]
    described = json.loads(run("columns", path, "--json")[1])
    meanings = {column["name"]: column["meaning"] for column in described.pop("pairs")}
    assert not described and "txt or json" in meanings["caption_from"] and "uid" not in meanings["key"]
    code, _, said = run("export", path, "--to", tmp_path / "to", "--format", "csv", "--keep", "width < 0")
    assert code == MISSING and "nothing was written" in said and not (tmp_path / "to").exists()
    assert run("grep", path, "zebra")[0] == BELOW


def test_queries_of_a_list(run: Any, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", pairs(0, 1))
    (tmp_path / "list.txt").write_text("RED boat\nboat\nowl\n")
    rows = json.loads(run("queries", path, "--queries", tmp_path / "list.txt", "--json")[1])
    assert {row["query"]: row["pairs"] for row in rows} == {"RED boat": 2, "boat": 2, "owl": 0}
    code, text, _ = run("queries", path, "--queries", tmp_path / "list.txt")
    assert code == DONE and "2 of 2 texts hold a query (100.0%)" in text
    code, _, said = run("queries", path)
    assert code == MISSING and "--queries LIST" in said
    code, _, said = run("queries", path, "--queries", tmp_path / "none.txt")
    assert code == USAGE and "none.txt" in said


def test_every_fault_of_a_sample(run: Any, tmp_path: Path) -> None:
    jpeg = samples.jpeg(1)
    members = [
        *pairs(0).items(),
        *(("only.txt", b"no image"), ("mute.jpg", jpeg), ("void.jpg", jpeg), ("void.txt", b" ")),
        *(("latin.jpg", jpeg), ("latin.txt", b"caf\xe9"), ("cut.jpg", jpeg[:300]), ("cut.txt", b"cut")),
        *(("wide.jpg", jpeg), ("wide.txt", b"x"), ("wide.json", b"{no")),
        *(("list.jpg", b"<html>"), ("list.json", b"[1]"), ("../evil.jpg", jpeg), ("../evil.txt", b"e")),
        *(("movie.mp4", b"no"), ("split.jpg", jpeg), ("other.jpg", jpeg), ("other.txt", b"o"), ("split.txt", b"s")),
    ]
    tar(tmp_path / "0.tar", members)
    tar(tmp_path / "1.tar", pairs(0))
    faults, found = checked(run, tmp_path)
    assert faults == {
        "a caption without an image": 1,
        "an image without a caption (no .txt in UTF-8)": 3,
        "a .json that is not JSON": 1,
        "a .json that is no object": 1,
        "a name that leads out of the folder into which a tar is unpacked": 1,
        "an empty caption": 1,
        "an image that cannot be decoded": 2,
        "a sample without an image of the kinds jpg, jpeg, png, webp": 1,
        "a sample whose members are not neighbours: WebDataset cuts it in two": 1,
        "a key that another tar has, too": 1,
    }
    assert (found["pairs"], found["unusable"]) == (11, 5) and found["duplicates"] == {"texts": 1, "images": 7}
    assert not found["clip_train"]["takes"] and "5 of 11 samples (45.5%)" in found["clip_train"]["why"]
    assert "an image that cannot be decoded" not in checked(run, tmp_path, "--quick")[0]


@pytest.mark.parametrize("where", [0, 3, 5])
def test_a_damaged_header_costs_one_member(run: Any, tmp_path: Path, where: int) -> None:
    path = tar(tmp_path / "x.tar", pairs(*range(200)))
    with tarfile.open(path) as file:
        member = file.getmembers()[where]
    data = bytearray(path.read_bytes())
    data[member.offset + 5] ^= 0xFF
    path.write_bytes(data)
    faults, found = checked(run, path)
    assert faults["a damaged header"] == 1 and found["pairs"] == 200 - (member.name.endswith(".jpg"))
    assert len(scan_tar(str(path))[0]) == len(foreign_tars.scan(bytes(data)).samples)
    assert found["clip_train"]["takes"] and "from what is whole" in found["clip_train"]["why"]


def test_a_tar_that_is_cut(run: Any, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", pairs(*range(9)))
    with tarfile.open(path) as file:
        last = file.getmembers()[-3]
    path.write_bytes(path.read_bytes()[: last.offset_data + 10])
    faults, found = checked(run, path)
    assert found["pairs"] == 8 and set(faults) == {
        "a member is cut off",
        "the file ends without the end of the archive",
    }
    (tmp_path / "empty.tar").touch()
    code, text, _ = run("verify", tmp_path / "empty.tar")
    assert code == BELOW and "would not take it: there is no sample with an image" in text


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_form(tmp_path: Path, form: int) -> None:
    name = "d" * 90 + "/" + "k" * 60
    long = name if form == tarfile.USTAR_FORMAT else name + "é" * 80
    path = tar(tmp_path / "x.tar", {f"{long}.jpg": b"1", f"{long}.txt": b"22", "./b.C.d": b"333"}, form=form)
    found = foreign_tars.scan(path.read_bytes())
    assert found.faults == [] and list(found.samples) == [long, "./b"] and list(found.samples["./b"]) == ["c.d"]
    assert {key: {kind: size for kind, (_, size) in members.items()} for key, members in found.samples.items()} == {
        long: {"jpg": 1, "txt": 2},
        "./b": {"c.d": 3},
    }


@given(st.data())
def test_no_bytes_make_the_scan_fail(data: st.DataObject) -> None:
    """Whatever is flipped: the places lie within the file, and clip_train's scan sees the same samples."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name in ("a.jpg", "a.txt", "ü" * 120 + ".jpg"):
            info = tarfile.TarInfo(name)
            info.size = 600
            file.addfile(info, io.BytesIO(bytes(600)))
    blob = bytearray(out.getvalue())
    for place in data.draw(st.lists(st.integers(0, 6000), max_size=6)):
        blob[place] = data.draw(st.integers(0, 255))
    found = foreign_tars.scan(bytes(blob[: data.draw(st.integers(0, len(blob)))]))
    places = [place for members in found.samples.values() for place in members.values()]
    assert all(0 <= start and size >= 0 and start + size <= len(blob) for start, size in places)


def img2dataset(folder: Path) -> None:
    """Two shards as img2dataset writes them, and one that was not finished."""
    for number, (count, failed) in enumerate([(3, 1), (2, 0)]):
        tar(folder / f"{number:05d}.tar", pairs(*range(number * 10, number * 10 + count)))
        rows = [("success", None)] * count + [("failed_to_download", "HTTP Error 404: Not Found")] * failed
        table = pa.table({"status": [row[0] for row in rows], "error_message": pa.array([row[1] for row in rows])})
        pq.write_table(table, folder / f"{number:05d}.parquet")
        stats = {"count": len(rows), "successes": count}
        (folder / f"{number:05d}_stats.json").write_text(json.dumps(stats))


def test_the_output_of_img2dataset(run: Any, tmp_path: Path) -> None:
    img2dataset(tmp_path)
    faults, found = checked(run, tmp_path)
    assert faults == {} and found["pairs"] == 5
    assert found["statuses"] == {"success": 5, "failed_to_download: HTTP Error 404: Not Found": 1}
    assert "img2dataset output: 5 pairs" in run("info", tmp_path)[1]
    tar(tmp_path / "00002.tar", pairs(30))
    (tmp_path / "00001_stats.json").write_text('{"successes": 9}')
    assert set(checked(run, tmp_path)[0]) == {
        "a shard that img2dataset has not finished (no _stats.json)",
        "a tar with other samples than its _stats.json says",
    }


def test_parquet_with_images(run: Any, tmp_path: Path) -> None:
    image = [{"bytes": samples.jpeg(1), "path": None}, {"bytes": None, "path": "x"}, {"bytes": b"no", "path": None}]
    columns = {"image": image, "caption": ["a cat", "lost", None], "score": [0.5, 1, 2], "tags": [["x"], [], []]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    faults, found = checked(run, tmp_path)
    wanted = {"a caption without an image": 1, "an empty caption": 1, "an image that cannot be decoded": 1}
    assert faults == wanted and found["pairs"] == 2 and found["unusable"] == 1
    assert "clip_train reads tars" in found["clip_train"]["why"]
    rows = json.loads(run("ls", tmp_path, "--json")[1])
    assert [row["text"] for row in rows] == ["a cat", ""] and rows[0]["jpg_size"] == len(samples.jpeg(1))
    code, _, _ = run("export", tmp_path, "--to", tmp_path / "to", "--format", "webdataset", "--keep", "score < 1")
    assert code == DONE and checked(run, tmp_path / "to")[1]["clip_train"]["takes"]


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.txt"])
def test_what_is_neither(run: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no archive" * 99)
    for command in ("info", "stats", "verify"):
        code, text, said = run(command, tmp_path / name)
        assert code in (DONE, BELOW, MISSING) and (text or said.count("\n") == 1), (command, said)
    pq.write_table(pa.table({"url": ["u"], "text": ["t"]}), tmp_path / "urls.parquet")
    code, _, said = run("info", tmp_path / "urls.parquet")
    assert code == MISSING and "pipeline.build --input" in said
