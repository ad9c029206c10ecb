"""Published sets and tars of samples on an object store, as inputs: the same rows as from a copy on this machine."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import build, forget
from pipeline.dataset.open_set import open_set
from pipeline.engine import object_store, storage
from pipeline.engine.input_errors import InputError
from pipeline.engine.ledger import Ledger
from pipeline.sources import READERS, inputs
from pipeline.sources.base import ReadSettings
from tests.growing import Growing, differences, small_web
from tests.sources.test_published_sets import flip
from tests.sources.test_tar_reader import sample, write_tar
from tests.store import BUCKET, endpoint, put, running, s3fs
from tests.webserver import picture
from tests.without_beam import run_job

TOP = f"s3://{BUCKET}/stored"  # moto keeps the objects of other tests


@dataclasses.dataclass
class Place:
    """A web, a set and a folder of img2dataset on this machine, and copies of both on a store.

    Attributes:
        asked: the URL of each object that was read, and whether it was read whole.
    """

    folder: Path
    growing: Growing
    asked: list[tuple[str, bool]] = dataclasses.field(default_factory=list)

    def upload(self, path: Path) -> None:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                object_store.write(f"{TOP}/{file.relative_to(self.folder)}", file.read_bytes())

    def tars(self) -> list[tuple[str, bool]]:
        """The tars that were read since the last call: (URL, whole)."""
        found = sorted(asked for asked in self.asked if asked[0].endswith(".tar"))
        self.asked.clear()
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The set has forgotten an image, and has no stages."""
    folder = tmp_path_factory.mktemp("stored")
    with running() as moto, endpoint(moto), small_web() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.runners, "run_job", run_job)
        patch.setenv("OPENWIT_SCRATCH", str(folder / "scratch"))
        put(moto, {})
        place, call = Place(folder, Growing(folder / "in", server)), s3fs.S3FileSystem._call_s3

        async def noted(system: Any, method: str, *given: Any, **more: Any) -> Any:
            if method == "get_object":
                place.asked.append((f"s3://{BUCKET}/{more['Key']}", "Range" not in more))
            return await call(system, method, *given, **more)

        patch.setattr(s3fs.S3FileSystem, "_call_s3", noted)
        rows = [(f"img/{number:02}.jpg", f"a red dog number {number}") for number in range(5)]
        place.growing.build(folder / "set", [place.growing.table("other.parquet", [*rows, ("img/01.jpg", "a cat")])])
        assert forget.main([str(folder / "set"), "--url", f"{server.base}/img/04.jpg"]) == 0
        shutil.rmtree(folder / "set" / "stages")
        members: dict[str, bytes] = {}
        for number in range(8, 11):
            members |= sample(f"{number}", f"{server.base}/img/{number:02}.jpg", "a red cat", original_width=900)
            members[f"{number}.jpg"] = picture(number, (300, 260))
        write_tar(folder / "laion" / "00000.tar", members)
        write_tar(folder / "laion" / "backup.tar", {"src/main.c": b"int"})
        shutil.copy(place.growing.table("failed.parquet", [("img/17.jpg", "a cat")]), folder / "laion/00000.parquet")
        (folder / "laion/00000_stats.json").write_text('{"count": 4, "successes": 3}')
        for name in ("set", "laion"):
            place.upload(folder / name)
        yield place


def read(spec: str, kind: str) -> tuple[list[Any], dict[str, tuple[str, int, Any]]]:
    """All pairs of an input, and URL -> path, offset and content of its image."""
    pairs, found = list[Any](), dict[str, tuple[str, int, Any]]()
    listed, reader = inputs.expand([spec]), READERS[kind]
    assert {item.format for item in listed} == {kind}
    reader.check(listed, ReadSettings())
    for item in listed:
        images: list[pa.RecordBatch] = []
        for batch in reader.read(item, ledger=Ledger(), images=images, settings=ReadSettings()):
            pairs += batch.to_pylist()
        for row in (row for batch in images for row in batch.to_pylist()):
            stored = reader.read_stored(item.path, row["offset"], max_bytes=1 << 20)
            found[row["url"]] = item.path, row["offset"], stored
    return pairs, found


def test_a_set_on_a_store_gives_what_its_copy_gives(place: Place) -> None:
    """It comes into a set that has some of its images. Then its copy on this machine is the same input."""
    growing, fresh, out = place.growing, place.folder / "fresh", place.folder / "out"
    mine = growing.table("mine.parquet", [(f"img/{number:02}.jpg", "a blue tree") for number in range(3, 6)])
    growing.build(fresh, [mine, place.folder / "set"])
    growing.build(out, [mine])
    growing.hits()
    steering = ["--output", str(out), "--workers", "1", "--fetch-rounds", "0", "--min-success", "0"]
    assert build.main([*steering, "--extend", "--input", f"{TOP}/set"]) == build.DONE
    assert growing.hits() == [] and differences(out, fresh) == []
    assert len(open_set(out).table()) == 5 and (out / "forgotten.parquet").exists()  # 00, 01, 02, 03, 05
    known = inputs.expand([f"{TOP}/set/"])
    for spec in (str(place.folder / "set"), f"{TOP}/set", f"{TOP}/*"):
        assert inputs.expand([spec], known=known) == known
    assert inputs.expand([str(mine)], known=known, drop=[f"{TOP}/set/"])[0].path == str(mine)
    gone = [dataclasses.replace(item, path=item.path.replace("/set/", "/gone/"), found=None) for item in known]
    assert [item.path for item in inputs.expand([f"{TOP}/set"], known=gone)] == [item.path for item in known]
    with pytest.raises(InputError, match=f"a shard of a published set: name the folder of the set, '{TOP}/set'"):
        inputs.expand([f"{TOP}/set/shards/*.tar"])


@pytest.mark.parametrize(("kind", "folder"), [("set", "set"), ("webdataset", "laion")])
def test_each_tar_comes_once_and_each_image_by_one_request(place: Place, kind: str, folder: str) -> None:
    shutil.rmtree(place.folder / "scratch" / "objects", ignore_errors=True)
    place.tars()
    pairs, found = read(f"{TOP}/{folder}", kind)
    assert [url for url, whole in place.tars() if whole] == sorted({path for path, _, _ in found.values()})
    here = read(str(place.folder / folder), kind)
    assert pairs == here[0] and {url: stored for url, (*_, stored) in found.items()} == {
        url: stored for url, (*_, stored) in here[1].items()
    }
    shutil.rmtree(place.folder / "scratch" / "objects")
    for path, offset, stored in found.values():
        assert READERS[kind].read_stored(path, offset, max_bytes=1 << 20) == stored is not None
    assert place.tars() == sorted((path, False) for path, _, _ in found.values())
    path, offset, _ = next(iter(found.values()))
    here = place.folder / path.removeprefix(f"{TOP}/")
    object_store.write(path, b"")  # it is another one now
    assert READERS[kind].read_stored(path, offset, max_bytes=1 << 20) is None
    place.upload(here)
    for end in (b"", bytes(512)) if kind == "webdataset" else ():  # a tar that is read anew
        object_store.write(path, here.read_bytes() + end)
        assert read(f"{TOP}/{folder}", kind)[1] == found


def test_damage_is_refused_as_on_this_machine(place: Place) -> None:
    tar, table = (min((place.folder / "set" / name).glob("0*")) for name in ("shards", "metadata"))
    for path, words in ((tar, "its sha256 is not that"), (table, "its sha256 is not that of its manifest: restore it")):
        flip(path, 90)
        place.upload(path)
        flip(path, 90)
        with pytest.raises(InputError, match=f"^{TOP}/set: {path.parent.name}/{path.name} is damaged: {words}"):
            read(f"{TOP}/set", "set")
        place.upload(path)
    copy = storage.here(f"{TOP}/set/shards/{tar.name}")
    flip(Path(copy), 90)  # the copy on this machine is damaged: the store is asked again
    read(f"{TOP}/set", "set")
    object_store.delete([f"{TOP}/set/metadata/{table.name}"])
    with pytest.raises(InputError, match=f"metadata/{table.name} is missing: restore it$"):
        read(f"{TOP}/set", "set")
    place.upload(table)
