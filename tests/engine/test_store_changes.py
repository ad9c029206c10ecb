"""Sets on an object store that change, and options whose files lie there: the same bytes as on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build, forget
from pipeline.dataset.verify import verify
from pipeline.engine import hashing, object_store, storage, work
from pipeline.explorer import watch
from tests.stages.test_robots_archive import answer
from tests.store import BUCKET, Killed, MemoryStore, in_memory
from tests.webserver import WebServer, picture
from tests.without_beam import run_job

TOP = f"s3://{BUCKET}"
URL = f"{TOP}/set"
PAIRS = 12
STEP = int(os.environ.get("STEP", "0"))


class Twins:
    """A set on this machine and its twin on the store. A step is done with both, and all that users read is equal."""

    def __init__(self, folder: Path, server: WebServer, store: MemoryStore) -> None:
        self.folder, self.server, self.store = folder, server, store
        self.here = folder / "set"
        self.words: list[str] = []

    def file(self, name: str, data: bytes) -> str:
        """A file of the user, here and on the store. Returns the name that `run` replaces: {}/NAME."""
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        object_store.write(f"{TOP}/files/{name}", data)
        return f"{{}}/{name}"

    def table(self, name: str, columns: dict[str, Any]) -> str:
        """`file`, for a Parquet table."""
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        return self.file(name, sink.getvalue().to_pybytes())

    def run(self, main: Callable[[list[str]], int], *words: str, kills: tuple[int, ...] = ()) -> None:
        """Runs a command with both. OUT stands for the set.

        `kills`: changes of the store after which the process ends; the same command follows.
        """
        here = [word.format(self.folder / "files").replace("OUT", str(self.here)) for word in words]
        there = [word.format(f"{TOP}/files").replace("OUT", URL) for word in words]
        assert main(here) == build.DONE
        for place in kills:
            self.kill(main, place, *there)
        assert main(there) == build.DONE
        self.compare()

    def kill(self, main: Callable[[list[str]], int], place: int, *words: str) -> None:
        """Runs a command. The process ends after so many changes of the store."""
        self.store.left = place
        with pytest.raises(Killed):
            main(list(words))
        self.store.left = -1
        object_store.delete([f"{URL}/.lease"])

    def compare(self) -> dict[str, Any]:
        """Compares all that is published. Returns the manifest."""
        manifest = json.loads((self.here / "manifest.json").read_text())
        assert json.loads(object_store.read(f"{URL}/manifest.json")) == manifest
        for entry in manifest["files"]:
            assert object_store.read(f"{URL}/{entry['path']}") == (self.here / entry["path"]).read_bytes(), entry
        return manifest


def uids_of(urls: list[str], texts: list[str]) -> list[str]:
    return [uid.hex() for uid in hashing.pair_keys(pa.array(urls), pa.array(texts)).uid.to_pylist()]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """A set with a file for each option that takes one."""
    tmp = tmp_path_factory.mktemp("twins")
    pictures = {f"{number}.jpg": picture(number) for number in range(14)}
    with in_memory(str(tmp / "scratch")) as store, WebServer(pictures) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr("pipeline.build.runners.run_job", run_job)
        twins = Twins(tmp, server, store)
        urls = [f"{server.base}/img/{number}.jpg" for number in range(PAIRS)]
        texts = [f"a red dog number {number}" for number in range(PAIRS)]
        keys = uids_of(urls, texts)
        vectors = np.eye(PAIRS, 16, dtype=np.float32)
        vectors[8] = vectors[7]
        lines = [f"{url}\t{text}\n" for url, text in zip(urls, texts, strict=True)]
        twins.file("pairs.tsv", "".join(["url\ttext\n", *lines]).encode())
        twins.file("queries.txt", b"red\ndog\nnumber\n")
        twins.file("robots.warc.gz", answer(f"{server.base}/robots.txt", "User-agent: *\nDisallow: /img/6.jpg\n"))
        words = [
            *("--input", str(tmp / "files" / "pairs.tsv")),
            *("--queries", str(tmp / "files" / "queries.txt")),
            *("--stop-queries", twins.file("stop.txt", b"number\n")),
            *("--blocklist", twins.file("blocked.txt", f"{urls[2]}\n".encode())),
            *("--scores", twins.table("scores.parquet", {"key": keys, "beauty": [n / PAIRS for n in range(PAIRS)]})),
            *("--keep", "beauty >= .05"),
            *("--embeddings", twins.table("vectors.parquet", {"key": keys, "embedding": list(vectors)})),
            *("--decontaminate-embeddings", twins.table("test.parquet", {"key": ["x"], "embedding": [vectors[5]]})),
            *("--decontaminate", f"faces={twins.file('faces/4.jpg', picture(4)).removesuffix('/4.jpg')}"),
            *("--robots-archive", str(tmp / "files" / "robots.warc.gz")),
            *("--allow-address", "127.0.0.0/8", "--rows-per-shard", "3", "--output", "OUT"),
            *("--fetch-rounds", "0", "--min-success", "0"),
        ]
        twins.words = words
        twins.run(build.main, *words, kills=(150,))
        yield twins


def test_options_name_files_of_the_store(twins: Twins) -> None:
    dropped = {row["stage"]: row["dropped"] for row in twins.compare()["ledger"]}
    assert dropped["gather"] == {"blocklisted": 1}
    assert dropped["fetch"] == {"robots": 1}
    assert dropped["dedup-images"] == {"contaminated": 2, "near_duplicate": 1, "score": 1}
    recipe = (twins.here / "recipe.yaml").read_text().replace(str(twins.folder / "files"), f"{TOP}/files")
    for name in ("pairs.tsv", "queries.txt", "robots.warc.gz"):
        recipe = recipe.replace(f"{TOP}/files/{name}", str(twins.folder / "files" / name))
    assert object_store.read(f"{URL}/recipe.yaml").decode() == recipe


def test_pairs_are_forgotten_as_one_change(twins: Twins) -> None:
    url, objects = f"{twins.server.base}/img/9.jpg", dict(twins.store.objects)
    old, before = twins.compare(), twins.store.changes
    twins.run(forget.main, "OUT", "--url", url)
    changes, new = twins.store.changes - before, twins.compare()
    assert sum(new["ledger"][0]["dropped"].values()) == 2
    for place in range(2, changes, STEP or changes // 3):
        twins.store.objects = dict(objects)
        twins.kill(forget.main, place, URL, "--url", url)
        work.settle(URL)
        found = json.loads(object_store.read(f"{URL}/manifest.json"))
        assert found in (old, new)
        assert forget.main([URL, "--url", url]) == forget.DONE
        assert twins.compare() == new
    assert list(verify(URL, stages=True)) == []
    for (_, key), data in twins.store.objects.items():
        assert key.startswith("files/") or (url.encode() not in data and picture(9) not in data), key


def test_inputs_are_added_and_taken_out(twins: Twins) -> None:
    lines = [f"{twins.server.base}/img/{number}.jpg\ta blue tree number {number}\n" for number in range(11, 14)]
    lines.append(f"{twins.server.base}/status/503\ta red dog in the snow\n")
    more = twins.folder / "files" / "more.tsv"
    more.write_text("".join(["url\ttext\n", *lines]))
    steering = ("--output", "OUT", "--fetch-rounds", "0", "--min-success", "0")
    twins.run(build.main, *steering, "--extend", "--input", str(more), kills=(40,))
    twins.server.files["/status/503"] = picture(14)
    twins.run(build.main, *steering, "--extend", "--retry-failed", kills=(12,))
    twins.run(build.main, *steering, "--drop-input", str(more))


def test_another_set_is_taken_in(twins: Twins) -> None:
    """A set of the store comes into one of this machine, and a set of this machine into one of the store."""
    lines = [f"{twins.server.base}/img/{number}.jpg\tthe dog number {number}\n" for number in (0, 12, 13)]
    lines.append(f"{twins.server.base}/img/9.jpg\ta red dog number 9\n")  # it was forgotten
    (twins.folder / "files" / "other.tsv").write_text("".join(["url\ttext\n", *lines]))
    words = [word.format(twins.folder / "files") for word in twins.words]
    words[words.index("--input") + 1] = str(twins.folder / "files" / "other.tsv")
    others = [str(twins.folder / "other"), f"{TOP}/other"]
    for other in others:
        words[words.index("--output") + 1] = other
        assert build.main([*words, "--stages", "gather..fetch"]) == build.DONE
    steering = ("--extend", "--fetch-rounds", "0", "--min-success", "0", "--output")
    asked = twins.server.hits.total()
    assert build.main([*steering, str(twins.here), "--input", others[1]]) == build.DONE
    objects = dict(twins.store.objects)
    for other in others:
        twins.store.objects = dict(objects)
        twins.kill(build.main, 25, *steering, URL, "--input", other)
        assert build.main([*steering, URL, "--input", other]) == build.DONE
        twins.compare()
    assert twins.server.hits.total() == asked
    assert not [name for name in storage.names(storage.beside(URL)) if name.startswith(".other")]


def test_the_explorer_opens_it(twins: Twins, tmp_path: Path) -> None:
    here, there = (watch.open_explorer(folder, str(tmp_path)).explorer for folder in (str(twins.here), URL))
    assert len(here.index) == len(there.index) > 3
    assert [there.picture(row) for row in range(3)] == [here.picture(row) for row in range(3)]
    assert there.about()["folder"] == URL
