"""fetch_rows: a batch goes in, and the same rows come out with their images, whatever the network does."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash
from PIL import Image

from pipeline import schema
from pipeline.fetching import downloader, memory, pieces
from pipeline.fetching.client import shared_client
from pipeline.fetching.downloader import fetch_rows, load_downloader
from pipeline.fetching.errors import STATUSES, Failure
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.outcome import Outcome
from tests.places import ROOT
from tests.webserver import WebServer, picture

OPTIONS = FetchOptions(allow_addresses=("127.0.0.0/8",), deadline_s=2.0, backoff_s=0.01)


def test_a_failure_keeps_what_the_answers_before_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fetching.outcome.time.time", lambda: 1000.5)
    row = Outcome()
    first = Failure("rate_limited", "the server answered 429", http_status=429, retry_after=1e12)
    first.final_url = "https://x.example/2"
    row.fail(first)
    assert (row.status, row.http_status, row.retry_at, row.final_url) == (
        "rate_limited",
        429,
        31_537_001,
        first.final_url,
    )
    row.fail(Failure("decode", "it is damaged", retryable=False))
    assert (row.status, row.http_status, row.final_url, row.retryable) == ("decode", 429, first.final_url, False)
    row.fail(Failure("http_4xx", "the server answered 404", http_status=404))
    assert row.http_status == 404


def selected(urls: list[str]) -> pa.RecordBatch:
    """Rows of the stage before, not in the order of uid."""
    columns: dict[str, list[Any]] = {
        "url": urls,
        "uid": [hashlib.md5(f"{n} {url}".encode()).digest() for n, url in enumerate(urls)],
        "text": [f"text {n}" for n in range(len(urls))],
        "texts": [[f"text {n}", f"also {n}"] for n in range(len(urls))],
        "page_url": [""] * len(urls),
        "query_ids": [[n] for n in range(len(urls))],
        "kept_by": [[n] for n in range(len(urls))],
    }
    arrays = []
    for field in schema.SELECTED:
        values = columns.get(field.name, [None if field.nullable else 0] * len(urls))
        arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema.SELECTED)


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    images = {f"{n}.jpg": picture(n, (500, 300)) for n in range(40)}
    with WebServer(images) as running:
        yield running
    downloader.close_decoders()


def check(rows: pa.RecordBatch, out: pa.RecordBatch, raw_path: Path) -> None:
    """Checks what must hold for every answer."""
    assert out.schema.equals(pa.schema([*schema.FETCHED, schema.RETRY_AT]))
    assert out.num_rows == rows.num_rows
    uids = out["uid"].to_pylist()
    assert uids == sorted(rows["uid"].to_pylist())
    by_uid = {row["uid"]: row for row in rows.to_pylist()}
    raw = raw_path.read_bytes() if raw_path.exists() else b""
    end = 0
    for row in out.to_pylist():
        assert {name: row[name] for name in schema.SELECTED.names} == by_uid[row["uid"]]
        assert row["status"] in STATUSES
        if row["status"] == "ok":
            assert row["image_offset"] == end and row["error"] is None and not row["retryable"]
            end += row["image_bytes"]
            stored = raw[row["image_offset"] : end]
            assert row["stored_sha256"] == hashlib.sha256(stored).digest()
            assert row["stored_xxh3"] == xxhash.xxh3_64_intdigest(stored)
            image = Image.open(io.BytesIO(stored))
            assert image.size == (row["width"], row["height"])
            image.load()
        else:
            assert row["error"] and row["image_offset"] is None and row["phash"] is None and row["width"] is None
    assert end == len(raw)
    assert os.listdir(raw_path.parent) == ([raw_path.name] if raw else [])


def test_every_row_comes_back(server: WebServer, tmp_path: Path) -> None:
    paths = [f"/img/{n}.jpg" for n in range(40)]
    bad = ["/status/404", "/html", "/empty", "/cut/1.jpg", "/private/1.jpg", "/tdm/1.jpg", "/redirect/2/3.jpg"]
    urls = [server.base + path for path in paths + bad] + ["ftp://x/", "http://10.0.0.1/a.jpg", ""]
    rows = selected(urls)
    raw = tmp_path / "raw"
    out = fetch_rows(rows, options=OPTIONS, raw_path=str(raw))
    check(rows, out, raw)
    found = {row["url"].removeprefix(server.base): row for row in out.to_pylist()}
    statuses = {path: row["status"] for path, row in found.items()}
    assert all(statuses[path] == "ok" for path in paths)
    assert [statuses[path] for path in bad] == [
        "http_4xx",
        "not_an_image",
        "not_an_image",
        "tcp",
        "robots",
        "opt_out",
        "ok",
    ]
    assert [statuses[url] for url in urls[-3:]] == ["bad_url", "blocked_address", "bad_url"]
    image = found["/img/7.jpg"]
    assert image["image_sha256"] == hashlib.sha256(server.images["7.jpg"]).digest()
    assert (image["original_width"], image["original_height"], image["original_format"]) == (500, 300, "JPEG")
    assert image["final_url"] is None and image["http_status"] == 200
    assert found["/redirect/2/3.jpg"]["final_url"] == f"{server.base}/img/3.jpg"
    assert found["/status/404"]["http_status"] == 404
    assert found["/html"]["image_sha256"] is not None

    again = tmp_path / "again" / "raw"
    assert fetch_rows(rows, options=OPTIONS, raw_path=str(again)).equals(out)
    assert again.read_bytes() == raw.read_bytes()


def test_no_rows_and_no_images(server: WebServer, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    empty = selected([])
    check(empty, fetch_rows(empty, options=OPTIONS, raw_path=str(raw)), raw)
    failing = selected([f"{server.base}/status/404"] * 3 + ["no url"])
    check(failing, fetch_rows(failing, options=OPTIONS, raw_path=str(raw)), raw)
    assert not raw.exists()
    one = selected([f"{server.base}/img/1.jpg"])
    check(one, fetch_rows(one, options=OPTIONS, raw_path=str(raw)), raw)


def test_slices_and_further_columns_are_carried_through(server: WebServer, tmp_path: Path) -> None:
    rows = selected([f"{server.base}/img/{n}.jpg" for n in range(6)]).append_column("extra", pa.array(range(6)))
    out = fetch_rows(rows.slice(2, 3), options=OPTIONS, raw_path=str(tmp_path / "raw"))
    assert sorted(out["extra"].to_pylist()) == [2, 3, 4]
    assert set(out["status"].to_pylist()) == {"ok"}


def test_images_of_the_archive_are_not_downloaded(server: WebServer, tmp_path: Path) -> None:
    inside = {f"http://gone.example/{n}.png": picture(n, format="PNG") for n in range(3)}
    inside["http://gone.example/bad.png"] = b"\x89PNG\r\n\x1a\n broken"
    urls = [*inside, f"{server.base}/img/1.jpg"]
    rows = selected(urls)
    out = fetch_rows(rows, options=OPTIONS, raw_path=str(tmp_path / "raw"), archived=inside.get)
    check(rows, out, tmp_path / "raw")
    found = {row["url"]: row for row in out.to_pylist()}
    assert [found[url]["status"] for url in urls] == ["ok", "ok", "ok", "decode", "ok"]
    assert found[urls[0]]["http_status"] is None and found[urls[0]]["original_format"] == "PNG"


@pytest.mark.parametrize("small", [0, 10**9])
def test_every_row_comes_back_where_memory_is_scarce(
    small: int, server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is one byte. With `small` = 0 each picture waits with its body in a file."""
    monkeypatch.setattr(downloader, "SMALL", small)
    monkeypatch.setattr(memory, "SMALL", 0)
    options = dataclasses.replace(OPTIONS, memory=1, max_aspect=20 + small)  # a client of its own
    rows = selected([f"{server.base}/{form}/{n}.jpg" for n in range(20) for form in ("img", "chunked", "gzip")])
    out = fetch_rows(rows, options=options, raw_path=str(tmp_path / "raw"))
    check(rows, out, tmp_path / "raw")
    assert set(out["status"].to_pylist()) == {"ok"} and shared_client(options).memory.used == 0


def test_a_full_disk_is_an_error_and_leaves_nothing(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    rows = selected([f"{server.base}/img/{n}.jpg" for n in range(4)])
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "ROWS", 2)
        patch.setattr(pieces.Pieces, "_write", full)
        with pytest.raises(OSError, match=rf"No space left on device: '{tempfile.gettempdir()}'"):
            fetch_rows(rows, options=OPTIONS, raw_path=str(tmp_path / "raw"))
    assert not os.listdir(tmp_path) and capsys.readouterr() == ("", "")


def test_a_downloader_that_loses_rows_is_found_out(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = selected([f"{server.base}/img/{n}.jpg" for n in range(4)])
    write = downloader._Shard.write

    def forgetful(shard: Any, jpeg: bytes, key: str, *rest: Any) -> None:
        if not key.endswith("2"):
            write(shard, jpeg, key, *rest)

    monkeypatch.setattr(downloader._Shard, "write", forgetful)
    with pytest.raises(RuntimeError, match="lost 1 of 4"):
        fetch_rows(rows, options=OPTIONS, raw_path=str(tmp_path / "raw"))
    monkeypatch.undo()
    monkeypatch.setattr(downloader._Shard, "close", lambda _: 1 / 0)
    with pytest.raises(RuntimeError, match="finished: False"):
        fetch_rows(rows, options=OPTIONS, raw_path=str(tmp_path / "raw"))
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_two_calls_at_once_do_not_mix(server: WebServer, tmp_path: Path) -> None:
    halves = [selected([f"{server.base}/img/{n}.jpg" for n in range(k, 40, 2)]) for k in range(2)]
    outs: dict[int, pa.RecordBatch] = {}

    def work(k: int) -> None:
        outs[k] = fetch_rows(halves[k], options=OPTIONS, raw_path=str(tmp_path / str(k) / "raw"))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        check(halves[k], outs[k], tmp_path / str(k) / "raw")
        assert set(outs[k]["status"].to_pylist()) == {"ok"}


INTERRUPTED = """
import os, signal, sys, threading
from tests.webserver import WebServer
from tests.fetching.test_fetching_rows import OPTIONS, selected
from pipeline.fetching.downloader import fetch_rows
signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in the background inherits it as ignored
with WebServer() as server:
    rows = selected([f"{server.base}/silent?{n}" for n in range(300)])
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    fetch_rows(rows, options=OPTIONS, raw_path=sys.argv[1])
"""


def test_an_interrupt_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "raw")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert "KeyboardInterrupt" in done.stderr and done.returncode != 0
    assert not os.listdir(tmp_path)


def test_hosts_take_turns() -> None:
    urls = ["http://a/1", "http://a/2", "http://a/3", "http://b/1", "http://b/2", "junk"]
    assert [urls[row] for row in downloader._spread(urls)] == [
        "http://a/1",
        "http://b/1",
        "junk",
        "http://a/2",
        "http://b/2",
        "http://a/3",
    ]


def test_the_downloader_of_the_pinned_version_loads_alone() -> None:
    from importlib.metadata import version

    assert version("img2dataset").startswith("1.47")
    code = (
        "import sys, time; t = time.process_time()\n"
        "from pipeline.fetching.downloader import load_downloader\n"
        "first, second = load_downloader(), load_downloader()\n"
        "assert first is not second and first.Downloader.__module__.endswith('img2dataset.downloader')\n"
        "heavy = ('img2dataset', 'wandb', 'torch', 'albumentations', 'cv2', 'webdataset', 'pandas', 'apache_beam')\n"
        "print(time.process_time() - t, [name for name in heavy if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    seconds, modules = output.split(" ", 1)
    assert modules.strip() == "[]" and float(seconds) < 3
    module = load_downloader()
    assert callable(module.download_image) and module.Downloader is not load_downloader().Downloader
