"""A finished run, and one bit of its files that is not what it was: no reader takes it, nothing crashes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import build
from pipeline.dataset import damage
from pipeline.dataset.verify import verify
from pipeline.engine import shuffle_files, storage
from pipeline.engine.storage import DamagedError
from pipeline.inspect_shards import main as inspect
from pipeline.stages import caps
from queries.build import main as count_queries
from tests.archives import html_record, link, member, record
from tests.webserver import picture
from tests.without_beam import without_beam  # noqa: F401

FLIPS = 100  # of each kind of file
PAIRS = 24


def image_record(number: int) -> bytes:
    body = picture(number)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return record(head.encode() + body, url=link(number)["url"])


def command(out: Path, *more: str) -> list[str]:
    given = ["--input", str(out.parent / "set.warc.gz"), "--output", str(out)]
    given += ["--queries", str(out.parent / "queries.txt"), "--target-pairs", "20", "--rows-per-shard", "9"]
    return [*given, "--workers", "1", "--keep-rejected", "all", "--allow-address", "127.0.0.0/8", *more]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with every kind of file: gather keeps its rows, all images but one lie in the archive."""
    root = tmp_path_factory.mktemp("flips")
    records = [make(number) for number in range(PAIRS) for make in (html_record, image_record)]
    (root / "set.warc.gz").write_bytes(b"".join(map(member, records[:-1])) + member(html_record(0)))
    (root / "queries.txt").write_text("picture\nnumber\nnumber 3\n")
    assert build.main(command(root / "out", "--stages", "gather")) == build.DONE
    assert build.main(command(root / "out")) == build.DONE
    attempts_file = root / "out/stages/fetch/attempts.json"
    storage.write_json(str(attempts_file), {"retries": 0})
    storage.forget()
    return root / "out"


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    """A copy of the run, for a command to work on."""
    for name in ("set.warc.gz", "queries.txt"):
        shutil.copy(out.parent / name, tmp_path)
    shutil.copytree(out, tmp_path / "out")
    return tmp_path / "out"


def kind_of(path: str) -> str:
    """stages/match/parts/00003-001.arrow -> stages/match/parts/N.arrow"""
    return re.sub(r"\d{5}(-\d{3})?(?=\.[a-z]+$)", "N", path)


def kinds(out: Path) -> dict[str, list[str]]:
    """The files of the run, by kind, but for those that are empty and the locks."""
    found: dict[str, list[str]] = {}
    for path in storage.walk(str(out)):
        below = os.path.relpath(path, out)
        if os.path.getsize(path) and not below.startswith("."):
            found.setdefault(kind_of(below), []).append(path)
    return found


def flip(path: str, bit: int) -> None:
    """Turns one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    storage.forget()  # the clock of the file system may stand still meanwhile


@contextlib.contextmanager
def flipped(path: str, bit: int) -> Iterator[None]:
    """The file with one bit turned, for the time of the block."""
    flip(path, bit)
    try:
        yield
    finally:
        flip(path, bit)


def flips(paths: list[str], seed: object) -> Iterator[tuple[str, int]]:
    """(path, bit) of random places in random files, the same in each run of the test."""
    rng = random.Random(str(seed))
    for _ in range(FLIPS):
        path = rng.choice(paths)
        yield path, rng.randrange(8 * os.path.getsize(path))


# --------------------------------------------------------------------------------------- every reader notices each flip


def read_buckets(path: str) -> None:
    with open(path, "rb") as file:
        _, count = shuffle_files.HEAD.unpack(file.read(shuffle_files.HEAD.size))
    for bucket in range(1 if count > 4096 or count < 1 else count):  # a reader knows how many there are
        shuffle_files.read(path, bucket)


def read_images(path: str) -> None:
    """As `publish` does, which holds each image against its row."""
    damage.check_file(path)


# How the next stage reads each form of file.
BUCKETS = ("keys", "texts", "drops", "band", "rows", "summary", "links", "taken", "similar", "hashes")
VECTORS = ("counts", "picked", "below")
ARRAYS = ("npy", "common", "count", "stop", "low", "high", "cap", "hash", "tie", "source", "offset")
READERS: dict[str, Callable[[str], object]] = {
    "arrow": lambda path: list(storage.read_batches(path)),
    "parquet": storage.read_table,
    "overlay": lambda path: list(storage.read_batches(path)),
    **dict.fromkeys(("sample", "earlier", "duplicates", "dropped", "contaminated"), storage.read_table),
    "images": storage.read_table,
    "rejected": storage.read_table,
    "mask": storage.read_bytes,
    "json": storage.read_json,
    "raw": read_images,
    **dict.fromkeys(BUCKETS, read_buckets),
    **dict.fromkeys(VECTORS, caps.read_vector),
    **dict.fromkeys(ARRAYS, storage.map_array),
}


def test_every_flip_in_a_file_of_a_stage_is_noticed(out: Path) -> None:
    """By the reader of the next stage, and by `verify --stages`, whose check is the same function."""
    found = {kind: paths for kind, paths in kinds(out).items() if kind.startswith("stages/")}
    assert {kind.rsplit(".", 1)[-1] for kind in found} >= set(READERS) - {"picked", "duplicates"}, (
        "a form of file is not tried"
    )
    assert {kind.rsplit(".", 1)[-1] for kind in found} <= set(READERS), "no reader is known for a form of file"
    silent = []
    for kind, paths in found.items():
        for path, bit in flips(paths, kind):
            reader = READERS[path.rsplit(".", 1)[-1]]
            for read in (reader, damage.check_file):
                read(path)
                with flipped(path, bit):
                    try:
                        read(path)
                        silent.append((path, bit, read))
                    except DamagedError as error:
                        assert str(error).startswith(path)
    assert not silent, silent[:5]
    assert len(found) > 40


@pytest.mark.usefixtures("without_beam")
def test_every_flip_beside_the_stages_is_noticed(out: Path) -> None:
    """The lists of the run, by their readers' check; what is published, by `verify`."""
    found = {kind: paths for kind, paths in kinds(out).items() if not kind.startswith("stages/")}
    lists = {"inputs.json", "shards.json", "checksums.json", "recipe.yaml"}
    assert set(found) >= {*lists, "manifest.json", "queries.parquet", "shards/N.tar", "metadata/N.parquet"}
    for kind in lists:
        for path, bit in flips(found.pop(kind), kind):
            with flipped(path, bit), pytest.raises(DamagedError):
                for name in damage.LISTED:
                    damage.check_file(str(out / name))
    for kind, paths in found.items():  # most have their sha256 in the manifest
        for path, bit in itertools.islice(flips(paths, kind), FLIPS if kind == "manifest.json" else 15):
            with flipped(path, bit):
                assert os.path.relpath(path, out) in {fault.path for fault in verify(str(out))}, (path, bit)


def test_verify_looks_into_the_stages_where_it_is_asked_to(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(["verify", str(out), "--stages"]) == 0
    path = out / "stages/match/parts/00000-000.arrow"
    with flipped(str(path), 8 * 1000):
        assert inspect(["verify", str(out)]) == 0
        capsys.readouterr()
        assert inspect(["verify", str(out), "--stages"]) == 3
    said = capsys.readouterr().out
    assert said.startswith("stages/match/parts/00000-000.arrow: is damaged (its checksum does not fit): ")
    assert "--redo match\n" in said


# ------------------------------------------------------------------------------------------------- the whole command

# A file, the first stage that is done anew and so reads it, and the stage that makes the file.
READ_BY = [
    ("stages/gather/parts/00000-000.arrow", "match", "gather", "1"),
    ("stages/match/parts/00000-000.arrow", "dedup", "match", "1"),
    ("stages/match/parts/00000-000.arrow", "dedup", "match", "2"),
    ("stages/match/parts/00000-000.keys", "dedup", "match", "1"),
    ("stages/match/parts/00000.json", "dedup", "match", "2"),
    ("stages/match/tables/query_hash.npy", "balance", "match", "1"),
    ("stages/dedup/masks/00000-000.mask", "balance", "dedup", "1"),
    ("stages/balance/overlays/00000-000.overlay", "fetch", "balance", "1"),
    ("stages/balance/info.json", "fetch", "balance", "1"),
    ("stages/fetch/images-000/00000-000.arrow", "dedup-images", "fetch", "2"),
    ("stages/fetch/images-000/00000-000.raw", "publish", "fetch", "1"),
]


@pytest.mark.parametrize("path, redo, maker, workers", READ_BY, ids=lambda value: str(value).replace("stages/", ""))
def test_a_command_that_reads_a_damaged_file_says_what_to_type(
    path: str, redo: str, maker: str, workers: str, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    at = copy / path
    flip(str(at), 8 * (at.stat().st_size // 2) + 3)
    if redo == "publish":
        (copy / "manifest.json").unlink()  # else the published tars are kept, and no image is read
    assert build.main(command(copy, "--redo", redo, "--workers", workers)) == build.CRASHED
    said = capfd.readouterr().err
    last = said.strip().splitlines()[-1]
    assert re.fullmatch(
        rf"pipeline.build: {re.escape(str(at))} is damaged \(.+\): run the same command again with --redo {maker}", last
    ), said
    assert "Traceback" not in said


def test_what_the_message_says_mends_the_run(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where the rows of the stage before went on in the same pass and are not on the disk."""
    before = json.loads((copy / "manifest.json").read_text())
    shutil.rmtree(copy / "stages/gather/parts")
    flip(str(copy / "stages/match/parts/00000-000.arrow"), 8 * 500)
    assert build.main(command(copy, "--redo", "dedup")) == build.CRASHED
    remedy = capfd.readouterr().err.strip().splitlines()[-1].rsplit(" ", 2)[1:]
    assert remedy == ["--redo", "gather"]
    assert build.main(command(copy, *remedy)) == build.DONE
    assert json.loads((copy / "manifest.json").read_text())["digest"] == before["digest"]
    assert inspect(["verify", str(copy), "--stages"]) == 0


@pytest.mark.usefixtures("without_beam")
def test_a_part_of_the_fetch_that_is_damaged_before_its_unit_is_done_is_fetched_again(copy: Path) -> None:
    before = json.loads((copy / "manifest.json").read_text())
    for name in ("stages/fetch/images-000/00000.json", "stages/fetch/COMPLETED", "stages/fetch/info.json"):
        (copy / name).unlink()
    for stage in ("dedup-images", "publish"):
        shutil.rmtree(copy / "stages" / stage)
    flip(str(copy / "stages/fetch/images-000/00000-000.arrow"), 8 * 900)
    assert build.main(command(copy)) == build.DONE
    assert json.loads((copy / "manifest.json").read_text())["digest"] == before["digest"]


@pytest.mark.usefixtures("without_beam")
def test_a_published_file_that_is_gone_is_written_again(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (copy / "manifest.json").read_bytes()
    shard = sorted((copy / "shards").glob("*.tar"))[0]
    for damage_it in (shard.unlink, lambda: shard.write_bytes(b"cut"), (copy / "README.md").unlink):
        damage_it()
        assert build.main(command(copy)) == build.DONE
        assert "publish begins anew" in capfd.readouterr().err
        assert not list(verify(str(copy), stages=True))
        assert json.loads((copy / "manifest.json").read_bytes())["files"] == json.loads(before)["files"]
    assert build.main(command(copy)) == build.DONE
    assert "begins anew" not in capfd.readouterr().err
    flip(str(shard), 8 * 700)
    assert inspect(["verify", str(copy)]) == 3
    said = capfd.readouterr().out.splitlines()[-1]
    assert said == f"next: python -m pipeline.build --output {copy} --extend --redo publish"
    assert build.main(said.split()[4:]) == build.DONE and inspect(["verify", str(copy)]) == 0


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["report/index.html"], "--redo publish"),
        (["shards/00000.tar", "stages/balance/info.json", "stages/fetch/info.json"], "--redo balance"),
        (["stages/match/parts/00000.json"], "--redo match"),
        (["inputs.json", "shards/00000.tar"], "with its --input and --redo gather"),
        (["recipe.yaml"], "with its --input and --redo gather"),
    ],
)
def test_verify_names_the_first_stage_that_mends_all(paths: list[str], said: str, out: Path) -> None:
    assert damage.next_step(str(out), paths).endswith(said)


def test_the_command_of_the_set_mends_what_is_read_before_all_else(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((copy / "manifest.json").read_text())
    for name in (*damage.READ_FIRST, "stages/gather/info.json"):
        flip(str(copy / name), 8 * ((copy / name).stat().st_size // 2))
    assert build.main(["--output", str(copy), "--extend", "--workers", "1"]) != build.DONE
    assert build.main(command(copy)) == build.CRASHED
    assert damage.FROM_INPUTS in capfd.readouterr().err
    assert build.main(command(copy, "--redo", "gather")) == build.DONE
    assert inspect(["verify", str(copy), "--stages"]) == 0
    assert json.loads((copy / "manifest.json").read_text())["digest"] == before["digest"]


def test_a_copy_without_stages_is_copied_again(tmp_path: Path) -> None:
    assert damage.next_step(str(tmp_path), ["shards/00000.tar"]).startswith("copy these files again")


def test_verify_lists_files_of_stages_that_are_gone(copy: Path) -> None:
    gone = {
        "stages/gather/files.json": "gather",
        "stages/match/parts/00000-000.arrow": "match",
        "stages/match/parts/00000.json": "match",
        "stages/balance/info.json": None,
        "stages/dedup/masks/00000-000.mask": "dedup",
        "stages/fetch/images-000/00000-000.raw": "fetch",
        "checksums.json": None,
        "inputs.json": None,
        "shards.json": None,
    }
    for path in gone:
        (copy / path).unlink()
    named = {fault.path: fault.problem for fault in verify(str(copy), stages=True)}
    assert set(gone) <= set(named)
    for path, stage in gone.items():
        if stage:
            assert named[path].startswith("is missing: run the same command again with --redo "), named[path]


def test_a_link_is_no_file_of_a_set(copy: Path, tmp_path: Path) -> None:
    """What a link leads to may be another file tomorrow."""
    for path in ("shards/00000.tar", "metadata", "stages/match/parts/00000-000.arrow", "manifest.json"):
        (copy / path).rename(tmp_path / "away")
        (copy / path).symlink_to(tmp_path / "away")
        named = {fault.path: fault.problem for fault in verify(str(copy), stages=True)}
        assert named.get(path) == "is a symbolic link"
        (copy / path).unlink()
        (tmp_path / "away").rename(copy / path)
    assert not list(verify(str(copy), stages=True))


def test_stages_of_an_older_version_are_not_continued(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Their files have no checksums: nothing of them is read."""
    path = copy / "stages/balance/info.json"
    info = json.loads(path.read_text())
    del info["checksum"]
    path.write_text(json.dumps(info))
    assert build.main(command(copy)) == build.USAGE
    assert "made by an older version of OpenWIT" in capfd.readouterr().err
    assert inspect(["rows", str(copy), "--stage", "balance", "--to", str(copy / "rows.parquet")]) == 4
    assert "made by an older version" in capfd.readouterr().err


def test_rows_of_a_damaged_stage_are_not_written(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flip(str(copy / "stages/balance/masks/00000-000.mask"), 8)
    assert inspect(["rows", str(copy), "--stage", "balance", "--to", str(copy / "rows.parquet")]) == 3
    assert "00000-000.mask is damaged (its checksum does not fit): run the same" in capfd.readouterr().err
    assert not (copy / "rows.parquet").exists()


def test_the_counting_of_queries_says_what_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("a red dog and a red boat\n" * 9)
    given = ["--output", str(tmp_path / "list"), "--text", str(tmp_path / "text.txt"), "--min-count", "1"]
    given += ["--min-articles", "1", "--workers", "1"]
    write = shuffle_files.write

    def write_badly(path: str, messages: list) -> int:
        size = write(path, messages)
        flip(path, 8 * (size - 9))
        return size

    with monkeypatch.context() as patch:
        patch.setattr(shuffle_files, "write", write_badly)
        assert count_queries(given) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(r"queries.build: /.+/00000-000.words is damaged \(.+\): remove (.+), then run .+", last), last
    shutil.rmtree(re.search(r"remove (.+), then", last)[1])  # type: ignore[index]
    assert count_queries(given) == 0
