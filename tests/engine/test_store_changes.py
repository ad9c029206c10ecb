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

from pipeline import build
from pipeline.engine import hashing, object_store
from tests.stages.test_robots_archive import answer
from tests.store import BUCKET, Killed, MemoryStore, in_memory
from tests.webserver import WebServer, picture
from tests.without_beam import run_job

TOP = f"s3://{BUCKET}"
URL = f"{TOP}/set"
PAIRS = 12


class Twins:
    """A set on this machine and its twin on the store. A step is done with both, and all that users read is equal."""

    def __init__(self, folder: Path, server: WebServer, store: MemoryStore) -> None:
        self.folder, self.server, self.store = folder, server, store
        self.here = folder / "set"
        folder.mkdir(exist_ok=True)

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
            self.store.left = place
            with pytest.raises(Killed):
                main(there)
            self.store.left = -1
            object_store.delete([f"{URL}/.lease"])
        assert main(there) == build.DONE
        self.compare()

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
    pictures = {f"{number}.jpg": picture(number) for number in range(16)}
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
        twins.run(build.main, *words, kills=(9, 150))
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
