"""All stages: a table of URLs on a loopback server is fetched, deduplicated, balanced again and published."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.schema import STAGES
from tests.webserver import WebServer, picture

QUERIES = ["red", "dog", "a", "number", "common"]


@pytest.fixture(scope="module")
def server():
    images = {f"{number}.jpg": picture(number) for number in range(40)}
    images["copy.jpg"] = images["3.jpg"]
    with WebServer(images) as running:
        yield running


def arguments(tmp: Path, server: WebServer, out: str = "out") -> list[str]:
    (tmp / "queries.txt").write_text("\n".join(QUERIES))
    urls = [f"{server.base}/img/{number}.jpg" for number in range(40)]
    texts = [f"a common red dog number {number}" for number in range(40)]
    bad = {"img/copy.jpg": "a copy of a dog", "status/404": "a missing dog", "html": "a red page"}
    bad["flaky/503/1.jpg"] = "a dog at second sight"
    urls += [f"{server.base}/{path}" for path in bad]
    texts += list(bad.values())
    pq.write_table(pa.table({"url": urls, "text": texts}), tmp / "pairs.parquet")
    return [
        *("--input", str(tmp / "pairs.parquet"), "--output", str(tmp / out), "--queries", str(tmp / "queries.txt")),
        *("--allow-address", "127.0.0.0/8", "--workers", "1", "--rows-per-shard", "12"),
    ]


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def test_published_folder(tmp_path: Path, server: WebServer) -> None:
    assert build.main(arguments(tmp_path, server)) == build.DONE
    out = tmp_path / "out"
    rows = {row["stage"]: row for row in manifest(out)["ledger"]}
    assert list(rows) == list(STAGES)
    for row in rows.values():
        assert row["rows_in"] == row["rows_out"] + sum(row["dropped"].values())
    assert rows["fetch"]["dropped"] == {"http_4xx": 1, "not_an_image": 1}
    assert rows["dedup-images"]["dropped"]["same_image"] >= 1
    tars = sorted((out / "shards").glob("*.tar"))
    assert [path.name for path in tars] == [f"{number:05d}.tar" for number in range(len(tars))]
    names: list[str] = []
    for path in tars:
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert len(names) == 3 * rows["publish"]["rows_out"]
    metadata = pq.read_table(sorted((out / "metadata").glob("*.parquet")))
    assert metadata.num_rows == rows["publish"]["rows_out"]
    assert metadata["key"].to_pylist() == sorted(metadata["key"].to_pylist())


def test_publishing_again_gives_the_same_bytes(tmp_path: Path, server: WebServer) -> None:
    given = arguments(tmp_path, server)
    assert build.main(given) == build.DONE
    before = manifest(tmp_path / "out")
    assert build.main([*given, "--redo", "dedup-images", "--workers", "2", "--exchange", "shuffle"]) == build.DONE
    after = manifest(tmp_path / "out")
    assert after["files"] == before["files"] and after["digest"] == before["digest"]
    shutil.rmtree(tmp_path / "out" / "shards")


def test_retry_failed_fetches_only_what_may_pass(tmp_path: Path, server: WebServer) -> None:
    given = arguments(tmp_path, server, "retried")
    table = pq.read_table(tmp_path / "pairs.parquet")
    dead = pa.table({"url": [f"{server.base}/status/500"], "text": ["a broken dog"]})
    pq.write_table(pa.concat_tables([table, dead]), tmp_path / "pairs.parquet")
    assert build.main(given) == build.DONE
    hits = sum(server.hits.values())
    info = json.loads((tmp_path / "retried/stages/fetch/info.json").read_text())
    assert info["dropped"]["http_5xx"] == 1 and info["retryable"] == 1
    assert build.main([*given, "--retry-failed"]) == build.DONE
    again = json.loads((tmp_path / "retried/stages/fetch/info.json").read_text())
    assert again["attempts"] == 2 and again["rows_in"] == info["rows_in"]
    assert sum(server.hits.values()) - hits < 6


def test_the_cap_is_met_after_expected_losses(tmp_path: Path, server: WebServer) -> None:
    given = arguments(tmp_path, server, "lossy")
    urls = [f"{server.base}/{f'status/404?n={number}' if number % 2 else f'img/{number}.jpg'}" for number in range(40)]
    texts = [f"a common red dog number {number}" for number in range(40)]
    pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / "pairs.parquet")
    assert build.main([*given, "--cap", "4", "--expected-yield", "0.5"]) == build.DONE
    out = tmp_path / "lossy"
    names = ("balance", "fetch", "dedup-images", "publish")
    stages = {stage: json.loads((out / f"stages/{stage}/info.json").read_text()) for stage in names}
    assert stages["balance"]["cap"] == 8 and stages["publish"]["cap"] == 4
    assert set(stages["fetch"]["dropped"]) == {"http_4xx"} and stages["fetch"]["rows_out"] > 0
    metadata = pq.read_table(sorted((out / "metadata").glob("*.parquet")))
    picks = [query for kept_by in metadata["kept_by"].to_pylist() for query in kept_by]
    left = stages["dedup-images"]["rows_out"]  # the selected URLs depend on the port of the server
    assert {picks.count(query) for query in range(len(QUERIES))} == {min(4, left)}
    assert stages["publish"]["dropped"].get("over_cap", 0) == left - metadata.num_rows
