"""A small web on which sites refuse AI training in every protocol: no refused pair reaches the shards."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import build, inspect_shards
from pipeline.dataset.open_set import open_set
from pipeline.engine import rights_ledger
from pipeline.engine.work import StageFolder
from pipeline.fetching import client
from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.stages import fetch
from tests.archives import member, record
from tests.webserver import WebServer, picture

RSL = '<rsl><content url="/"><license><prohibits type="usage">ai-train</prohibits></license></content></rsl>'


@pytest.fixture(autouse=True)
def fresh_client() -> Iterator[None]:
    client.shared_client.cache_clear()
    yield
    client.shared_client.cache_clear()


def refusing_image() -> bytes:
    out = io.BytesIO()
    xmp = b'<x:xmpmeta><rdf:Description plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"/></x:xmpmeta>'
    Image.open(io.BytesIO(picture(5, (64, 48)))).save(out, "JPEG", xmp=xmp)
    return out.getvalue()


def page(number: int, url: str, *, head: str = "", meta: str = "") -> bytes:
    """A WARC record with a page that shows an image."""
    body = f'{meta}<img src="{url}" alt="a dog on page {number}">'
    block = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{head}\r\n{body}".encode()
    return member(record(block, url=f"http://page{number % 2}.example/{number}.html"))


def serve(stack: contextlib.ExitStack) -> tuple[list[str], list[str], dict[str, WebServer]]:
    """(URLs that may be used, URLs that must not, the servers by the protocol in which they refuse)."""
    small = {f"{number}.jpg": picture(number, (64, 48)) for number in range(12)} | {"no.jpg": refusing_image()}
    rules = {
        "robots": "User-agent: openwit\nDisallow: /",
        "robots-agents": "User-agent: CCBot\nDisallow: /",
        "content-usage": "User-agent: *\nContent-Usage: train-ai=n",
        "content-signal": "User-agent: *\nContent-Signal: search=yes, ai-train=no",
        "rsl": "License: {base}/rsl.xml",
        "tdmrep": None,
        "open": "User-agent: *\nContent-Usage: train-ai=y",
    }
    servers = {name: stack.enter_context(WebServer(dict(small))) for name in rules}
    for name, server in servers.items():
        server.robots = rules[name] and str(rules[name]).format(base=server.base)
    servers["rsl"].files["/rsl.xml"] = RSL.encode()
    tdm = [{"location": "/img/", "tdm-reservation": 1}]
    servers["tdmrep"].files["/.well-known/tdmrep.json"] = json.dumps(tdm).encode()
    base = servers["open"].base
    good = [f"{base}/img/{number}.jpg" for number in range(6)]
    bad = [f"{server.base}/img/{number}.jpg" for name, server in servers.items() if name != "open" for number in (6, 7)]
    bad += [f"{base}/img/no.jpg", f"{base}/tag/noai/8.jpg", f"{base}/says/Content-Usage/train-ai=n/9.jpg"]
    return good, bad, servers


def test_no_refused_pair_reaches_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.ExitStack() as stack:
        good, bad, servers = serve(stack)
        urls, out, base = [*good, *bad], tmp_path / "out", servers["open"].base
        link = f'Link: <{servers["rsl"].base}/rsl.xml>; rel="license"; type="application/rsl+xml"\r\n'
        pages = [
            page(0, f"{base}/img/10.jpg", meta="<meta name=robots content=noai>"),
            page(1, f"{base}/img/10.jpg", meta="<meta name=robots content=noimageai>", head="tdm-reservation: 1\r\n"),
            page(2, f"{base}/img/10.jpg", head="Content-Usage: train-ai=n\r\n"),
            page(3, f"{base}/img/10.jpg", head="Content-Signal: ai-train=no\r\n"),
            page(4, f"{base}/img/11.jpg", head=link),
        ]
        (tmp_path / "pages.warc.gz").write_bytes(b"".join(pages))
        (tmp_path / "queries.txt").write_text("dog\n")
        pq.write_table(
            pa.table({"url": urls, "text": [f"a dog number {n}" for n in range(len(urls))]}), tmp_path / "p.parquet"
        )
        given = [
            "--input",
            str(tmp_path / "p.parquet"),
            str(tmp_path / "pages.warc.gz"),
            "--output",
            str(out),
            "--queries",
            str(tmp_path / "queries.txt"),
        ]
        given += ["--allow-address", "127.0.0.0/8", "--workers", "1", "--language-model", "none", "--balance", "none"]
        assert build.main([*given, "--min-image-side", "16"]) == build.DONE
        for name, server in servers.items():
            asked = {path for path in server.hits if path.startswith("/img")}
            assert (len(asked) == 7) if name == "open" else not asked, name
            assert server.hits["/robots.txt"] == 1 and server.hits["/.well-known/tdmrep.json"] <= 1
    table = pa.concat_tables(open_set(out).rows(["url", "rights", "rights_protocol", "rights_consulted"]))
    assert sorted(table["url"].to_pylist()) == sorted(good)
    assert set(table["rights"].to_pylist()) == {"allowed"} and set(table["rights_protocol"].to_pylist()) == {
        "content-usage"
    }
    every = "robots,robots-agents,content-usage,content-signal,rsl,tdmrep,robots-tag,iptc,c2pa"
    assert set(table["rights_consulted"].to_pylist()) == {every}
    whole = ledger(out, capsys)
    found = whole["images"]
    assert {name: tuple(one[key] for key in rights_ledger.NUMBERS) for name, one in found.items()} == {
        "robots": (21, 0, 2, 1, 2),  # seen, allowed, refused, hosts, spared
        "robots-agents": (21, 0, 2, 1, 2),
        "content-usage": (21, 6, 3, 2, 2),
        "content-signal": (21, 0, 2, 1, 2),
        "rsl": (22, 0, 3, 2, 3),
        "tdmrep": (11, 0, 2, 1, 2),
        "robots-tag": (9, 0, 1, 1, 0),
        "iptc": (7, 0, 1, 1, 0),
        "c2pa": (6, 0, 0, 0, 0),
    }
    assert {name: (one["seen"], one["pairs"], one["hosts"]) for name, one in whole["pages"].items()} == {
        "robots-tag": (5, 2, 2),
        "tdmrep": (5, 1, 1),
        "content-usage": (5, 1, 1),
        "content-signal": (5, 1, 1),
    }
    (item,) = whole["pages"]["tdmrep"]["examples"]
    place = f"record at byte {len(pages[0])}, archive pages.warc.gz"
    assert item["evidence"] == f"meta or header tdm-reservation: 1 (page http://page1.example/1.html, {place})"
    assert whole["ignored"] == []
    assert found["robots-agents"]["examples"][0]["evidence"] == "robots.txt line 2: Disallow: / (group of ccbot)"
    assert inspect_shards.main(["rights", str(out)]) == 0
    said = capsys.readouterr().out
    assert "pairs seen" in said and "the image: plus:DataMining DMI-PROHIBITED" in said
    assert inspect_shards.main(["info", str(out)]) == 0
    assert "spared" in capsys.readouterr().out
    assert "Content-Usage: train-ai=n" in (out / "report/index.html").read_text()
    (out / "stages").rename(tmp_path / "stages")  # a copy of the published files alone
    assert ledger(out, capsys) == whole


def test_a_later_round_asks_no_site_again(tmp_path: Path) -> None:
    options = FetchOptions(allow_addresses=("127.0.0.0/8",), retries=0)
    folder = StageFolder(str(tmp_path), "fetch", "f").step("images-000")
    (tmp_path / "stages" / "fetch" / "images-000").mkdir(parents=True)
    with WebServer(robots="User-agent: *\nDisallow: /img/1.jpg") as server:
        first, second = client.Client(options), client.Client(options)
        for one in (first, second):
            one.fetch(f"{server.base}/img/0.jpg")
            with pytest.raises(Failure, match="line 2"):
                one.fetch(f"{server.base}/img/1.jpg")
            assert not one.site_files({"other.example"})
            fetch.write_sites(folder, 7, one.site_files({"127.0.0.1"}))
            second.remember(fetch.read_sites(folder, 7))
        assert server.hits["/robots.txt"] == server.hits["/.well-known/tdmrep.json"] == 1
    assert fetch.read_sites(folder, 8) == []


def test_the_ledger_names_what_the_last_stage_ignored() -> None:
    counted = {"seen": 2, "allowed": 0, "pairs": 1, "hosts": 1, "spared": 1, "examples": []}
    stages: list[dict[str, Any]] = [
        {
            "stage": "gather",
            "options": {"ignore_rights": []},
            "rights": {"tdmrep": {**counted, "hosts_estimated": True}},
        },
        {
            "stage": "fetch",
            "options": {"ignore_rights": ["robots"], "respect_opt_out": False},
            "rights": {"rsl": counted},
        },
    ]
    said = rights_ledger.lines(rights_ledger.of_stages(stages), examples=False)
    assert said[0] == "not honoured, by option: robots, all statements of pages (--ignore-opt-out)"
    assert said[3].split() == ["tdmrep", "2", "1", "~1"] and said[-1].split() == ["rsl", "2", "0", "1", "1", "1"]
    assert rights_ledger.of_stages(stages, {})["ignored"] == []


def test_hosts_of_pages_are_counted_exactly_while_they_are_few() -> None:
    def units(count: int) -> dict[str, Any]:
        hashes = [number * 2**64 // count for number in range(count)]
        merged: dict[str, Any] = {}
        for part in range(3):  # of three units, each with a half of the hosts of the next one
            some = rights_ledger.smallest(hashes[part * count // 4 : (part + 2) * count // 4])
            rights_ledger.add(merged, {"tdmrep": {"pairs": 1, "host_hashes": some, "examples": []}})
        return rights_ledger.settle(merged)["tdmrep"]

    assert units(1000) == {"pairs": 3, "hosts": 1000, "examples": []}
    found = units(50_000)
    assert found["hosts_estimated"] and abs(found["hosts"] - 50_000) < 100


def ledger(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert inspect_shards.main(["rights", str(out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)
