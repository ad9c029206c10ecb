"""The server answers its own page alone, and serves nothing but the page, JSON, and pictures that are pictures."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import explore
from pipeline.engine.cli import BELOW, CRASHED, DONE, MISSING, USAGE
from pipeline.explorer import watch
from pipeline.explorer.answers import Explorer
from pipeline.explorer.server import POLICY, Server
from tests import samples
from tests.explorer.conftest import HOSTILE, publish
from tests.places import ROOT

STATIC = ROOT / "pipeline" / "explorer" / "static"


@pytest.fixture(scope="package")
def served(explorer: Explorer, serve: Callable[..., Server]) -> Server:
    return serve(explorer)


def ask(
    at: Server, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection(*at.server_address[:2], timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None and "Content_Length" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    with connection.getresponse() as answer:
        found = answer.status, dict(answer.headers), answer.read()
    connection.close()
    return found


def test_the_page_loads_nothing_from_elsewhere(served: Server) -> None:
    for path in ("/", "/app.js", "/app.css", "/icon.png"):
        status, headers, body = ask(served, path)
        assert status == 200 and headers["Content-Security-Policy"] == POLICY, path
        assert headers["X-Content-Type-Options"] == "nosniff" and body
    for name in ("index.html", "app.js", "app.css"):
        text = (STATIC / name).read_text()
        assert not re.search(r"https?://(?!127)\w|@import|url\(", text), name
    page, script = (STATIC / "index.html").read_text(), (STATIC / "app.js").read_text()
    assert not re.search(r"\son\w+=|style=|<style|javascript:", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", script)


def test_answers(served: Server) -> None:
    status, headers, body = ask(served, "/api/search?q=chat&language=en&start=0")
    assert status == 200 and headers["Content-Type"] == "application/json" and json.loads(body)["total"] == 5
    assert json.loads(ask(served, "/api/set")[2])["pairs"] == 30
    assert json.loads(ask(served, "/api/suggest?field=domain&text=co")[2])["values"]
    card = json.loads(ask(served, "/api/search?q=onerror")[2])["pairs"][0]
    assert card["text"] == HOSTILE[5]
    assert json.loads(ask(served, f"/api/pair/{card['key']}")[2])["facts"]["text"] == HOSTILE[5]
    path = f"/picture/{served.watched.get().index.facts['digest'][:16]}/{card['row']}"
    status, headers, body = ask(served, path)
    assert (status, headers["Content-Type"], body) == (200, "image/jpeg", samples.jpeg(5))
    assert ask(served, path, method="HEAD")[2] == b""
    assert ask(served, path.replace("/picture/", "/picture/0"))[0] == 404
    status, _, body = ask(
        served, "/api/hash", method="POST", body=samples.jpeg(5), Content_Type="application/octet-stream"
    )
    assert status == 200 and re.fullmatch('{"phash":"[0-9a-f]{16}"}', body.decode())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../../etc/passwd", 404), ("/static/app.js", 404), ("/app.js/../index.html", 404),
        ("/api/pair/..%2f..%2fmanifest.json", 404), ("/api/pair/%00", 404), ("/picture/0000000000000000/1", 404),
        ("/api/search?like=zz", 400), ("/api/search?q=" + "y" * 501, 400), ("/api/search?" + "domain=a&" * 300, 400),
        ("/api/search?q=%ff%fe%00", 200), ("/api/search?start=99999", 200), ("/api/suggest?field=__class__", 400),
        ("/" + "y" * 70_000, 414), ("/manifest.json", 404),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_odd_addresses(served: Server, path: str, status: int) -> None:
    found, headers, body = ask(served, path)
    assert found == status and headers["Content-Type"] == "application/json"
    assert status == 200 or set(json.loads(body)) == {"error"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1"}, 200), ({"Host": "localhost:1234"}, 200), ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 421), ({"Host": "127.0.0.1.evil.example"}, 421), ({"Host": "a@127.0.0.1"}, 421),
        ({"Host": ""}, 421), ({"Sec_Fetch_Site": "same-origin"}, 200), ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "navigate"}, 403),
    ],
    ids=str,
)  # fmt: skip
def test_other_websites_are_refused(served: Server, headers: dict[str, str], status: int) -> None:
    assert ask(served, "/api/set", **headers)[0] == status


def test_a_link_from_another_website_opens_the_page_alone(served: Server) -> None:
    headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(served, "/?q=boat", **headers)[0] == 200 and ask(served, "/app.js", **headers)[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("PUT", "/", {}, 501), ("DELETE", "/api/set", {}, 501), ("POST", "/", {}, 404),
        ("POST", "/api/hash", {"Content_Type": "text/plain"}, 404),
        ("POST", "/api/hash", {"Content_Type": "application/octet-stream", "Content_Length": "99999999999"}, 413),
        ("POST", "/api/hash", {"Content_Type": "application/octet-stream", "Content_Length": "-5"}, 413),
        ("POST", "/api/hash", {"Content_Type": "application/octet-stream"}, 400),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_is_written(served: Server, method: str, path: str, headers: dict[str, str], status: int) -> None:
    assert ask(served, path, method=method, body=b"no picture", **headers)[0] == status


def test_what_is_no_http_ends_the_connection(served: Server) -> None:
    with socket.create_connection(served.server_address[:2], timeout=60) as connection:
        connection.sendall(b"\x16\x03\x01" + bytes(range(200)) + b"\r\n\r\n")
        assert b"Bad Request" in connection.recv(1 << 16)


def test_a_set_that_changes_is_indexed_again(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.0)
    folder, cache = tmp_path / "set", str(tmp_path / "cache")
    folder.mkdir()
    publish(folder, count=24)
    opened = watch.open_explorer(str(folder), cache).explorer
    found = serve(opened, lambda progress: watch.open_explorer(str(folder), cache, progress=progress).explorer)
    publish(folder, count=30)
    status, _, body = ask(found, "/api/set")
    assert status == 503 and "building" in json.loads(body)
    for _ in range(1000):
        status, _, body = ask(found, "/api/set")
        if status != 503:
            break
        time.sleep(0.01)
    assert json.loads(body)["pairs"] == 30
    (folder / "manifest.json").write_text("{")
    while ask(found, "/api/set")[0] == 503:
        time.sleep(0.01)
    assert ask(found, "/api/set")[0] == 502


# ------------------------------------------------------------------------------------------------- the command line


def test_the_command_serves_until_it_is_interrupted(folder: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "pipeline.explore", str(folder), "--index", str(cache), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        facts = json.loads(process.stdout.readline())
        at = urllib.parse.urlsplit(facts["url"])
        connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
        connection.request("GET", "/api/set")
        assert json.loads(connection.getresponse().read())["pairs"] == facts["pairs"] == 30
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == DONE and "Traceback" not in process.stderr.read()


def test_refusals(
    folder: Path, cache: Path, served: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(served.server_address[1])
    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for argv, code, message in (
        (["--port", port], USAGE, f"--port {port}: in use"),
        (["--port", "70000"], USAGE, "must be 0 to 65535"),
        (["--prot", "1"], USAGE, "did you mean --port?"),
        (["--host", "999.1.1.1"], USAGE, "cannot listen there"),
        (["--index", str(tmp_path / "file")], CRASHED, "--index"),
        (["--embeddings", str(tmp_path / "file")], USAGE, "--embeddings"),
    ):
        assert explore.main([str(folder), "--index", str(cache), *argv]) == code, argv
        found = capsys.readouterr()
        assert message in found.err and found.err.count("\n") == 1 and not found.out
    for name, code in (("nowhere", MISSING), ("empty", MISSING), ("damaged", BELOW), ("gopher://bucket/set", MISSING)):
        place = name if "://" in name else str(tmp_path / name)
        assert explore.main([place, "--index", str(cache)]) == code
        assert capsys.readouterr().err.startswith("pipeline.explore: ")


def test_the_index_alone(folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explore.main([str(folder), "--index", str(cache), "--build-only", "--json"]) == DONE
    facts = json.loads(capsys.readouterr().out)
    assert facts["pairs"] == 30 and os.path.isdir(facts["index"]) and "url" not in facts
    assert explore.main([str(folder), "--index", str(cache), "--build-only"]) == DONE
    assert "30 pairs" in capsys.readouterr().out
