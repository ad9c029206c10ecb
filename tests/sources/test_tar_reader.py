"""Tars of samples, as img2dataset writes them, as inputs."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import build
from pipeline.dataset.open_set import open_set
from pipeline.dataset.verify import verify
from pipeline.engine.cli import MissingInput
from pipeline.engine.foreign_tars import BLOCK
from pipeline.engine.input_errors import InputError, UnreadableInputError
from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES
from pipeline.sources import READERS, inputs, tar_reader
from pipeline.sources.base import Input, ReadSettings
from pipeline.stages.gather import check_inputs
from tests.growing import Growing, small_web
from tests.rows import with_both
from tests.webserver import picture
from tests.without_beam import run_job, without_beam  # noqa: F401

TARS = READERS["webdataset"]


def write_tar(path: Path, members: Mapping[str, bytes], *, form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as out:
        for name, data in members.items():
            (info := tarfile.TarInfo(name)).size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, url: str | None, text: str | None, *, kind: str = "jpg", **facts: object) -> dict[str, bytes]:
    """The members of a sample, in the order of their names."""
    about = {name: value for name, value in {"url": url, "caption": text, **facts}.items() if value is not None}
    found = {f"{key}.{kind}": key.encode() * 300, f"{key}.json": json.dumps(about).encode()}
    return dict(sorted({**found, **({} if text is None else {f"{key}.txt": text.encode()})}.items()))


def read(path: Path, settings: ReadSettings | None = None) -> tuple[pa.Table, pa.Table, Ledger]:
    ledger, images = Ledger(), list[pa.RecordBatch]()
    source = Input(path.name, str(path), "webdataset", path.stat().st_size)
    batches = list(TARS.read(source, ledger=ledger, images=images, settings=settings or ReadSettings()))
    pairs = with_both(pa.Table.from_batches(batches, CANDIDATES), ledger)
    ledger.rows_out = pairs.num_rows
    assert ledger.balanced()
    empty = pa.schema([("url", pa.string()), ("offset", pa.int64())]).empty_table()
    return pairs, pa.Table.from_batches(images) if images else empty, ledger


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str)
def test_pairs_and_images_of_a_tar(tmp_path: Path, form: int) -> None:
    served = hashlib.sha256(b"as served").hexdigest()
    long = "a/" + "folder-" * 20 + "/2"
    members = {
        **sample("0", "http://A.org/0.jpg", "a red dog", original_width=900, original_height=600, sha256=served),
        **sample("1", "http://a.org/1.png", "a cat", kind="png"),
        **(sample(long, "http://a.org/2.jpg", "a tree") if form != tarfile.USTAR_FORMAT else {}),
        **sample("3", None, "without a URL"),
        **sample("4", "http://a.org/4.jpg", None),
        "5.jpg": b"x",
        "5.json": b"{broken",
        "6.txt": b"no image",
        "7.jpg": b"",
        "7.json": b'{"url": "http://a.org/7.jpg", "caption": "an empty image"}',
        "README": b"no sample",
    }
    path = write_tar(tmp_path / "0.tar", members, form=form)
    pairs, images, ledger = read(path)
    there = 3 if form != tarfile.USTAR_FORMAT else 2
    assert pairs["text"].to_pylist() == ["a red dog", "a cat", "a tree"][:there]
    assert ledger.dropped == {"null_url": 2, "null_text": 1} and ledger.notes["bad_sample_json"] == 1
    assert ledger.records_dropped == {"no_image_in_sample": 2} and ledger.records_in == there + 5
    by_url = {row["url"]: row for row in images.to_pylist()}
    assert len(by_url) == there + 1  # also that of a sample without a text
    first = TARS.read_stored(str(path), by_url["http://A.org/0.jpg"]["offset"], max_bytes=10_000)
    assert first is not None and first[0] == b"0" * 300
    assert (first[1]["original_width"], first[1]["noted_sha256"]) == (900, served)
    assert first[1]["original_sha256"] == hashlib.sha256(first[0]).hexdigest()
    large = TARS.read_stored(str(path), by_url["http://A.org/0.jpg"]["offset"], max_bytes=100)
    assert large is not None and large[0] == b""  # it does not decode: no server is asked
    second = TARS.read_stored(str(path), by_url["http://a.org/1.png"]["offset"], max_bytes=10_000)
    assert second is not None and second[1]["original_sha256"] == hashlib.sha256(second[0]).hexdigest()
    assert second[1]["url"] == "http://a.org/1.png" and second[1]["original_width"] is None
    assert TARS.read_image(str(path), by_url["http://a.org/1.png"]["offset"], max_bytes=100) is None
    assert TARS.read_image(str(path), 0, max_bytes=100) is None
    named = ReadSettings(url_column="link", text_column="title")
    other = write_tar(tmp_path / "1.tar", sample("0", None, "not this one", link="http://a.org/9.jpg", title="this"))
    assert read(other, named)[0].select(["url", "text"]).to_pylist() == [{"url": "http://a.org/9.jpg", "text": "this"}]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.txt": b"x"}, "is no tar of images: its first sample has .txt"),
        ({"src/main": b"x"}, "its first sample has no member"),
        (sample("0", None, "a"), "has no URL in its first samples"),
        (sample("0", "http://a.org/", None), "has no text in its first samples"),
    ],
)
def test_a_tar_without_pairs_is_refused(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    path = write_tar(tmp_path / "0.tar", members)
    with pytest.raises(InputError, match=words):
        TARS.check(inputs.expand([str(path)]), ReadSettings())


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.tar.gz", gzip.compress(bytes(BLOCK)), r"is packed: unpack it first \(gunzip\)"),
        ("a.tgz", gzip.compress(b"x"), "is packed: unpack it first"),
        ("a.tar.xz", lzma.compress(b"x"), r"is packed: unpack it first \(unxz\)"),
        ("a.tar", bz2.compress(b"x"), r"is packed: unpack it first \(bunzip2\)"),
        ("a.tar", b"", "is empty"),
        ("a.tar", bytes(10_240), "is no tar: no member of it can be read"),
        ("a.tar", b"junk" * 1000, "is no tar: no member of it can be read"),
    ],
)
def test_what_is_no_tar_says_so_and_can_be_left_out(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    good = write_tar(tmp_path / "good.tar", sample("0", "http://a.org/0.jpg", "a red dog"))
    found = inputs.expand([str(tmp_path / name), str(good)])
    assert [item.format for item in found] == ["webdataset"] * 2
    of_folder = [item.name for item in inputs.expand([str(tmp_path)])]  # a damaged tar among others is not passed over
    assert of_folder == (["a.tar", "good.tar"] if name == "a.tar" else ["good.tar"])
    good.rename(tmp_path / "other.zip")
    with pytest.raises(InputError, match="holds no file to read"):
        inputs.expand([str(tmp_path)])  # a folder without tars of samples may hold any tar
    (tmp_path / "other.zip").rename(good)
    with pytest.raises(UnreadableInputError, match=f"^'{name}' {words}") as raised:
        TARS.check(found, ReadSettings())
    assert "\n" not in str(raised.value)
    with pytest.raises(MissingInput, match="--skip-bad-inputs"):
        check_inputs(tuple(found), ReadSettings(), skip_bad=False)
    check_inputs(tuple(found), ReadSettings(), skip_bad=True)
    with pytest.raises(UnreadableInputError, match=words):  # gather counts it as `unreadable_input`
        read(tmp_path / name)


def test_what_a_folder_of_tars_gives(tmp_path: Path) -> None:
    """A tar that begins with damage is not passed over. One with other things is, and a sample may come second."""
    pair = sample("0", "http://a.org/0", "a")
    for name in ("a.tar", "damaged.tar"):
        write_tar(tmp_path / name, pair)
    write_tar(tmp_path / "second.tar", {"__info__.yml": b"x", **pair})
    write_tar(tmp_path / "source.tar", {"src/main.c": b"x"})
    blob = bytearray((tmp_path / "damaged.tar").read_bytes())
    blob[1] ^= 1  # of the name: 0.jpg becomes 0/jpg
    (tmp_path / "damaged.tar").write_bytes(blob)
    assert [item.name for item in inputs.expand([str(tmp_path)])] == ["a.tar", "damaged.tar", "second.tar"]


@pytest.mark.parametrize(
    ("member", "lost"), [(0, True), (1, True), (2, False)], ids=["the image", "the JSON", "the text"]
)
def test_a_damaged_header_is_one_lost_sample(tmp_path: Path, member: int, lost: bool) -> None:
    path = write_tar(tmp_path / "0.tar", {**sample("0", "http://a.org/0", "a"), **sample("1", "http://a.org/1", "b")})
    blob = bytearray(path.read_bytes())
    place = [0, 2, 4][member] * BLOCK
    blob[place + 130] ^= 1  # in the size
    path.write_bytes(blob)
    pairs, _, ledger = read(path)
    assert pairs["text"].to_pylist() == (["b"] if lost else ["a", "b"]) and not ledger.dropped
    assert ledger.records_dropped == {"damaged_member": 1} and ledger.records_in == (2 if lost else 3)


def test_a_key_that_comes_again_is_a_lost_sample(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as out:
        for text in ("a", "b", "c"):
            for name, data in {**sample("0", "http://a.org/0", text), "1.txt": b"no image"}.items():
                (info := tarfile.TarInfo(name)).size = len(data)
                out.addfile(info, io.BytesIO(data))
    pairs, _, ledger = read(tmp_path / "0.tar")
    assert pairs["text"].to_pylist() == ["a"] and not ledger.notes
    assert ledger.records_dropped == {"repeated_key": 4, "no_image_in_sample": 1} and ledger.records_in == 6


@given(st.data())
def test_damage_loses_samples_and_raises_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damage") / "0.tar"
    write_tar(path, {name: value for key in "abc" for name, value in sample(key, f"http://a.org/{key}", key).items()})
    blob = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 6_000), max_size=8)):
        blob[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(blob[: data.draw(st.integers(0, len(blob)))])
    try:
        _, images, _ = read(path)
    except UnreadableInputError:  # nothing is left of it
        images = pa.table({"offset": pa.array([], pa.int64())})
    for row in images.to_pylist():
        TARS.read_stored(str(path), row["offset"], max_bytes=10_000)
    TARS.read_stored(str(path), data.draw(st.integers(0, 2**62)), max_bytes=10_000)


def test_a_folder_of_img2dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of its tars are left out, and no image is downloaded. Other tars in the folder are no inputs."""
    monkeypatch.setattr(build.runners, "run_job", run_job)
    with small_web() as server:
        growing, folder = Growing(tmp_path / "in", server), tmp_path / "images"
        members: dict[str, bytes] = {}
        for number in range(3):
            key, url = f"{number:09}", f"{server.base}/img/{number:02}.jpg"
            members |= sample(key, url, "a red dog", original_width=900, original_height=700, width=300)
            members[f"{key}.jpg"] = picture(number, (300, 260))
        write_tar(folder / "00000.tar", members)
        write_tar(folder / "backup.tar", {"src/main.c": b"int"})
        pq.write_table(pa.table({"url": ["http://a.org/failed.jpg"], "caption": ["a cat"]}), folder / "00000.parquet")
        (folder / "00000_stats.json").write_text('{"count": 4, "successes": 3}')
        assert [item.name for item in inputs.expand([str(folder)])] == ["00000.tar"]
        growing.build(tmp_path / "out", [folder])
        assert growing.hits() == []
    rows = open_set(tmp_path / "out").table().to_pylist()
    assert [(row["height"], row["original_width"], row["rights_consulted"]) for row in rows] == [
        (256, 900, tar_reader.CONSULTED)
    ] * 3
    assert list(verify(str(tmp_path / "out"), stages=True)) == []
