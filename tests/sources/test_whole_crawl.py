"""The whole way over a crawl on another host (--cc-host): its lists, WAT, WARC and robots.txt files, its bad hours."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.engine import input_cache, remote
from tests.places import DATA
from tests.sources.crawl_simulator import crawl
from tests.sources.crawl_tree import CRAWL, crawl_tree
from tests.sources.test_remote_inputs import forget
from tests.without_beam import without_beam  # noqa: F401

SHARED = DATA / "warc"
pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared archives are not in {SHARED}"),
    pytest.mark.usefixtures("without_beam"),
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No name has an address, so only images out of the archives arrive. Pauses take milliseconds."""

    real = socket.getaddrinfo

    def unknown(host: str, *given: Any, **named: Any) -> Any:
        if host == "127.0.0.1":
            return real(host, *given, **named)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0005)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.002)
    monkeypatch.setattr(input_cache, "_asked", {})
    yield
    forget()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return crawl_tree(SHARED)


def run(base: str, out: Path, spec: str, *more: str) -> dict:
    """One build; returns the digests of its stages, and of the set if it is published."""
    given = ["--input", spec, "--output", str(out), "--cc-host", base, "--input-rate", "0", "--workers", "1"]
    assert build.main([*given, *more]) == build.DONE
    found = {path.parent.name: json.loads(path.read_text())["digest"] for path in out.glob("stages/*/info.json")}
    manifest = out / "manifest.json"
    return {**found, "set": json.loads(manifest.read_text())["digest"]} if manifest.exists() else found


def test_wat_files_of_another_host(files: dict[str, bytes], tmp_path: Path) -> None:
    digests = []
    for seed in (None, 11):
        with crawl(files, seed) as server:
            spec, stages = f"cc:{CRAWL}[0:3]", ("--stages", "gather..balance", "--languages", "all")
            digests.append(run(server.base, tmp_path / str(seed), spec, *stages))
            assert set(server.asked) >= {name for name in files if "wat" in name}
    assert digests[0] == digests[1] and len(digests[0]) == 4
    rows = json.loads((tmp_path / "11/stages/gather/info.json").read_text())["rows_out"]
    assert rows > 50


def test_warc_and_robots_files_up_to_the_published_set(files: dict[str, bytes], tmp_path: Path) -> None:
    """A sound server, and one that misbehaves, through the folder of kept inputs: one set."""
    found = []
    cache = ("--input-cache", str(tmp_path / "cache"))
    for seed, more in ((None, ()), (6, cache)):
        with crawl(files, seed) as server:
            out = tmp_path / f"out-{len(found)}"
            spec, options = f"cc:{CRAWL}:warc[0:3]", ["--robots-archive", f"cc:{CRAWL}", "--languages", "all"]
            options += ["--fetch-rounds", "0", "--min-success", "0", "--phash-distance", "none", *more]
            found.append(run(server.base, out, spec, *options))
            assert set(server.asked) >= {name for name in files if "warc.gz" in name and "wat" not in name}
    assert found[0] == found[1] and "set" in found[0]
    kept = [path.name for path in (tmp_path / "cache").iterdir() if path.name != ".lock"]
    assert len(kept) == 6
    rows = pq.read_table(sorted((tmp_path / "out-0/metadata").glob("*.parquet")))
    assert rows.num_rows >= 1 and rows["source_file"][0].as_py().startswith("crawl-data/")
