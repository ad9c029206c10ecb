"""What the fetch asks again, when, and what is too little to be published. On a server of the loopback device."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.engine import storage
from pipeline.engine.cli import BELOW, DONE
from pipeline.engine.progress import Figures, Progress, Watched
from pipeline.engine.work import StageFolder, StepFolder
from pipeline.fetching import client, hosts, network
from pipeline.fetching.errors import NOT_TRIED
from pipeline.stages import fetch
from pipeline.stages.attempts import FETCHED_PART, Attempts, fetched_rows
from pipeline.stages.fetch_progress import PassFigures, UnitFigures
from tests.webserver import WebServer, picture


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "ROUND_PAUSES_S", (0.2, 0.5, 1.5))
    client.shared_client.cache_clear()


def serving(count: int) -> WebServer:
    small = [picture(number, (64, 48)) for number in range(12)]
    return WebServer({f"{number}.jpg": small[number % 12] for number in range(count)})


def command(tmp: Path, urls: list[str], *more: str) -> list[str]:
    """All stages on a table of URLs, in one process."""
    (tmp / "queries.txt").write_text("dog\n")
    texts = [f"a dog number {number}" for number in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "text": texts}), tmp / "pairs.parquet")
    return [
        *("--input", str(tmp / "pairs.parquet"), "--output", str(tmp / "out"), "--queries", str(tmp / "queries.txt")),
        *("--allow-address", "127.0.0.0/8", "--workers", "1", "--language-model", "none", "--balance", "none"),
        *("--min-image-side", "16", *more),
    ]


def info(tmp: Path) -> dict[str, Any]:
    return json.loads((tmp / "out/stages/fetch/info.json").read_text())


def test_an_outage_costs_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(80) as server:
        server.away_after, server.away_s = 20, 1.6
        given = command(tmp_path, [f"{server.base}/img/{number}.jpg" for number in range(80)], "--stages")
        assert build.main([*given, "gather..fetch", "--deadline", "1"]) == DONE
        assert server.away_after is None  # it was away
        assert info(tmp_path)["rows_out"] == 80 and info(tmp_path)["attempts"] == 1
    said = capsys.readouterr().err
    first = next(line for line in said.splitlines() if line.startswith("fetch images: "))
    assert first.startswith("fetch images: 80/80 images, ") and " % ok, " in first and first.endswith(" tcp")
    assert "fetch images, round 1: " in said and "100 % ok" in said
    assert not list((tmp_path / "out/stages/fetch").glob("*/*.live"))


def test_urls_that_are_always_refused_cost_their_host_no_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(100) as server:
        urls = [f"{server.base}/img/{number}.jpg" for number in range(100)]
        urls += [f"{server.base}/later/3600/{number}.jpg" for number in range(3)]
        begin = time.monotonic()
        assert build.main(command(tmp_path, urls, "--stages", "gather..fetch")) == DONE
        assert time.monotonic() - begin < 60
        assert info(tmp_path)["rows_out"] == 100 and info(tmp_path)["dropped"] == {"rate_limited": 3}
        hits = [server.hits[f"/later/3600/{number}.jpg"] for number in range(3)]
        assert hits == [1, 1, 1]  # the pause has not passed
        assert "round" not in capsys.readouterr().err  # a round without images leaves no line
        assert build.main(command(tmp_path, urls, "--stages", "gather..fetch", "--retry-failed")) == DONE
        assert info(tmp_path)["dropped"] == {"rate_limited": 3} and server.hits["/later/3600/1.jpg"] == 1


def test_a_pause_that_passes_is_waited_for(tmp_path: Path) -> None:
    with serving(4) as server:
        urls = [f"{server.base}/later/3/{number}.jpg" for number in range(4)]
        assert build.main(command(tmp_path, urls, "--stages", "gather..fetch")) == DONE
        assert info(tmp_path)["rows_out"] == 4
        for url in urls:
            first, again = (when for when, path, _ in server.requests if url.endswith(path))
            assert again - first >= 3


def test_what_fails_for_now_is_asked_in_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "FAILURES_IN_A_ROW", 100)  # the host does not rest
    with serving(3) as server:
        urls = [f"{server.base}/img/{number}.jpg" for number in range(3)]
        urls += [f"http://127.0.0.2:{server.server_port}/img/1.jpg", f"{server.base}/status/500"]
        given = command(tmp_path, urls, "--stages", "gather..fetch", "--min-success", "0.1")
        assert build.main(given) == DONE
        assert server.hits["/status/500"] == 3 * 4  # three tries in each pass
        assert info(tmp_path)["passing"] == info(tmp_path)["retryable"] == 2
        none = [*given, "--redo", "fetch", "--fetch-rounds", "0"]
        assert build.main(none) == DONE
        assert server.hits["/status/500"] == 3 * 5


def test_a_row_keeps_its_own_failure_while_its_host_rests(tmp_path: Path) -> None:
    attempts = Attempts(StageFolder(str(tmp_path), "fetch", "f"), StageFolder(str(tmp_path), "balance", "b"))
    uids = [number.to_bytes(16, "big") for number in range(4)]
    passes = [
        [("http_5xx", "HTTP 500", 500), ("tcp", "reset", None), ("tcp", f"{NOT_TRIED}it rests", None)],
        [("timeout", f"{NOT_TRIED}it rests (HTTP 429)", 429), ("http_4xx", "HTTP 404", 404)],
    ]
    for number, outcomes in enumerate(passes):
        rows = [
            {"uid": uid, "status": status, "error": error, "http_status": code, "retryable": True}
            for uid, (status, error, code) in zip(uids, outcomes, strict=False)
        ]
        columns = {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in FETCHED_PART}
        table = pa.table(columns, schema=FETCHED_PART)
        folder = attempts.images(number)
        os.makedirs(folder.path, exist_ok=True)
        with storage.writing_batches(folder.file(0, "arrow", 0), table.schema) as out:
            out.write_batch(table.to_batches()[0])
        folder.write_manifest(0, {"parts": 1})
    found = {
        row["uid"][-1]: row["status"]
        for _, _, table in fetched_rows(attempts, 0, before=2)
        for row in table.to_pylist()
    }
    assert found == {0: "http_5xx", 1: "http_4xx", 2: "tcp"}


def test_a_set_is_not_published_after_an_outage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(10) as server:
        urls = [f"{server.base}/img/{number}.jpg" for number in range(4)]
        urls += [f"{server.base}/status/503?{number}" for number in range(6)]
        urls += [f"{server.base}/{path}" for path in ("status/404", "status/410", "private/1.jpg", "html")]
        given = command(tmp_path, urls, "--fetch-rounds", "0")
        assert build.main(given) == BELOW
        said = capsys.readouterr().err
        assert "4 of 10" in said and "--retry-failed" in said and "--min-success" in said
        assert not (tmp_path / "out/manifest.json").exists()
        hits = sum(server.hits.values())
        assert build.main(given) == BELOW and sum(server.hits.values()) == hits
        assert build.main([*given, "--min-success", "0.4"]) == DONE
        assert (tmp_path / "out/manifest.json").exists()


def test_no_image_at_all_is_never_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(1) as server:
        given = command(tmp_path, [f"{server.base}/status/404?{number}" for number in range(3)])
        assert build.main([*given, "--min-success", "0"]) == BELOW
        assert "not one of 3 images" in capsys.readouterr().err
        assert not (tmp_path / "out/manifest.json").exists()


def test_the_stage_that_lets_no_pair_pass_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = command(tmp_path, ["http://h.example/a.jpg", "http://h.example/a.svg"])
    pq.write_table(pa.table({"url": ["http://h.example/a.jpg"] * 2, "text": ["a cat", ""]}), tmp_path / "pairs.parquet")
    assert build.main(given) == BELOW
    assert "no pair was left after match (1 no_query). The set is not published" in capsys.readouterr().err


def test_blocked_addresses_are_told_from_bad_urls_and_the_remedy_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(2) as server:
        urls = [f"{server.base}/img/{number}.jpg" for number in range(2)]
        given = command(tmp_path, urls, "--stages", "gather..fetch")
        at = given.index("--allow-address")
        assert build.main(given[:at] + given[at + 2 :]) == BELOW
        assert "add --allow-address NETWORK and --redo fetch" in capsys.readouterr().err
        assert build.main([*given, "--redo", "fetch"]) == DONE


def test_a_network_that_does_not_come_back_ends_the_fetch_and_the_next_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "FIRST_PATIENCE_S", 1.5)
    monkeypatch.setattr(network, "PROBES_S", (0.2,))
    with serving(1) as free:
        port = free.server_port
    addresses = [f"127.0.0.{number}" for number in range(2, 9)]
    given = command(tmp_path, [f"http://{address}:{port}/img/0.jpg" for address in addresses])
    assert build.main(given) == BELOW
    said = capsys.readouterr().err
    assert "fetch images: the network is away (" in said and "run the same command again" in said
    assert "Traceback" not in said and not (tmp_path / "out/manifest.json").exists()
    client.shared_client.cache_clear()
    with contextlib.ExitStack() as servers:
        for address in addresses:
            servers.enter_context(WebServer({"0.jpg": picture(0, (64, 48))}, (address, port)))
        assert build.main(given) == DONE
    assert info(tmp_path)["rows_out"] == len(addresses)


def test_the_figures_of_a_pass(tmp_path: Path) -> None:
    folder = StepFolder(str(tmp_path / "images-000"), "plan")
    shown = PassFigures(folder, lambda: 100)
    assert shown() is None
    one, two = UnitFigures(folder, 0, 60), UnitFigures(folder, 1, 40)
    assert shown() == Figures(0, 100, "", running=True)
    for status, count in {"ok": 30, "dns": 4, "tcp": 1, "http_4xx": 9, "decode": 2}.items():
        one.add(status, count)
    two.set_state("waits")
    one.set_state("waits")  # a state is written at once, counts each second
    assert shown() == Figures(46, 100, "waits, 65 % ok, 9 http_4xx, 4 dns, 2 decode", running=True)
    two.set_state("")
    one.set_state("")
    folder.write_manifest(0, {"rows": 60, "status": {"ok": 50, "dns": 10}})
    two.set_notice("the network is away")
    assert shown() == Figures(60, 100, "83 % ok, 10 dns", "the network is away", running=True)
    (tmp_path / "images-000/00001.live").write_text('{"rows": 4')  # half of a file
    assert shown() == Figures(60, 100, "83 % ok, 10 dns")
    UnitFigures(dataclasses.replace(folder, fingerprint="another"), 2, 7).add("ok")
    assert PassFigures(folder)() == Figures(60, 60, "83 % ok, 10 dns")


def test_a_notice_is_shown_at_once(tmp_path: Path) -> None:
    log, folder = io.StringIO(), StepFolder(str(tmp_path / "images-000"), "plan")
    steps = [Watched("fetch hosts", folder), Watched("fetch images", folder, live=PassFigures(folder, lambda: 400))]
    progress = Progress(steps, log, clock=lambda: 0.0)
    one = UnitFigures(folder, 0, 400)
    for notice in ("", "the network is away", "the network is away", ""):
        one.set_notice(notice)
        progress.show()
    assert log.getvalue().splitlines() == ["fetch images: the network is away", "fetch images: it goes on"]


def test_a_log_shows_the_figures_of_the_fetch(tmp_path: Path) -> None:
    now, log = [0.0], io.StringIO()
    folder = StepFolder(str(tmp_path / "images-000"), "plan")
    watched = Watched("fetch images", folder, counted="images", live=PassFigures(folder, lambda: 400))
    progress = Progress([watched], log, clock=lambda: now[0])
    one = UnitFigures(folder, 0, 400)
    for seconds in range(0, 71):
        now[0] = float(seconds)
        one.add("tcp" if seconds % 10 == 9 else "ok", 4)
        one._write()
        progress.show()
    lines = log.getvalue().splitlines()
    assert len(lines) == 3  # at 10, 40 and 70 seconds
    assert lines[1] == "fetch images: 164/400 images, 4.1 images/s, 90 % ok, 16 tcp, 0:58 left"
