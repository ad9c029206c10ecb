"""robots.txt archives of a crawl: refusals are final, permissions hold for 24 hours, and nobody is asked in vain."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build, inspect_shards
from pipeline.dataset.open_set import open_set
from pipeline.engine import storage
from pipeline.engine.input_errors import InputError
from pipeline.engine.ledger import Ledger
from pipeline.engine.remote import RemoteSettings
from pipeline.engine.rows import PARQUET, Rows
from pipeline.engine.work import StageFolder
from pipeline.fetching import client
from pipeline.fetching.archived import ArchivedRules, Capture
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.targets import parse
from pipeline.sources.base import Input
from pipeline.stages import robots_archive
from pipeline.stages.run import look_up_robots
from tests.archives import member, record
from tests.places import ROOT
from tests.webserver import WebServer, picture

SHARED = ROOT.parent / "shared" / "data" / "warc"
NOW = time.time()
DAY = 24 * 3600


@pytest.fixture(autouse=True)
def fresh_client() -> Iterator[None]:
    client.shared_client.cache_clear()
    yield
    client.shared_client.cache_clear()


def words(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def answer(url: str, body: str | bytes = "", *, status: int = 200, date: float = NOW - 60, head: str = "") -> bytes:
    """A gzip member with one archived answer."""
    body = body.encode() if isinstance(body, str) else body
    block = f"HTTP/1.1 {status} X\r\nContent-Type: text/plain\r\n{head}\r\n".encode() + body
    name = f"<urn:uuid:{zlib.crc32(url.encode()):012d}>"
    return member(record(block, url=url, extra=[f"WARC-Date: {words(date)}", f"WARC-Record-ID: {name}"]))


REFUSING = "User-agent: *\nDisallow: /"


# ---------------------------------------------------------------------------------------------- what an archive says


def rules_of(*records: bytes, tmp_path: Path) -> ArchivedRules:
    """What a client takes from an archive with these records."""
    path = tmp_path / "robots.warc.gz"
    path.write_bytes(b"".join(records))
    found: dict[str, robots_archive.Answer] = {}
    for _, one in robots_archive.read_answers(str(path), ledger=Ledger()):
        if one.url not in found or found[one.url].date <= one.date:
            found[one.url] = one
    return ArchivedRules(lambda url: found[url].capture("robots.warc.gz") if url in found else None, FetchOptions())


SITE, IMAGE = "http://a.example/robots.txt", "http://a.example/p/1.jpg"
CASES: list[tuple[str, list[bytes], str, str | None]] = [
    ("2.2.2: disallowed", [answer(SITE, REFUSING)], IMAGE, "robots"),
    ("2.2.2: another path", [answer(SITE, "User-agent: *\nDisallow: /q/")], IMAGE, None),
    ("final, however old", [answer(SITE, REFUSING, date=0)], IMAGE, "robots"),
    ("a group of a crawler of data sets", [answer(SITE, "User-agent: CCBot\nDisallow: /")], IMAGE, "robots-agents"),
    ("Content-Usage", [answer(SITE, "User-agent: *\nContent-Usage: train-ai=n")], IMAGE, "content-usage"),
    ("Content-Signal", [answer(SITE, "User-agent: *\nContent-Signal: ai-train=no")], IMAGE, "content-signal"),
    ("the newest answer counts", [answer(SITE, REFUSING, date=9), answer(SITE, "", date=99)], IMAGE, None),
    ("the newest answer counts", [answer(SITE, REFUSING, date=99), answer(SITE, "", date=9)], IMAGE, "robots"),
    ("5xx tells nothing", [answer(SITE, REFUSING, date=9), answer(SITE, "", status=503)], IMAGE, "robots"),
    ("429 tells nothing", [answer(SITE, REFUSING, date=9), answer(SITE, "", status=429)], IMAGE, "robots"),
    ("2.3.1.3: 404 allows", [answer(SITE, REFUSING, status=404)], IMAGE, None),
    ("the other scheme refuses, too", [answer("https://a.example/robots.txt", REFUSING)], IMAGE, "robots"),
    ("a port of its own", [answer("https://a.example:444/robots.txt", REFUSING)], IMAGE, None),
    ("a port of its own", [answer("http://a.example:81/robots.txt", REFUSING)], "http://a.example:81/1", "robots"),
    ("the default port", [answer("http://a.example:80/robots.txt", REFUSING)], IMAGE, "robots"),
    ("another host", [answer("http://b.example/robots.txt", REFUSING)], IMAGE, None),
    ("a host in other letters", [answer("http://A.EXAMPLE/robots.txt", REFUSING)], IMAGE, "robots"),
    (
        "2.3.1.2: a redirect",
        [
            answer(SITE, status=301, head="Location: https://www.a.example/r\r\n"),
            answer("https://www.a.example/r", REFUSING),
        ],
        IMAGE,
        "robots",
    ),
    ("a redirect that leads out of the archive", [answer(SITE, status=301, head="Location: /r\r\n")], IMAGE, None),
    ("a redirect to itself", [answer(SITE, status=301, head="Location: /robots.txt\r\n")], IMAGE, None),
    ("a redirect without a target", [answer(SITE, status=301)], IMAGE, None),
    ("a byte order mark", [answer(SITE, b"\xef\xbb\xbf" + REFUSING.encode())], IMAGE, "robots"),
    ("garbage", [answer(SITE, bytes(range(256)) * 20)], IMAGE, None),
    ("1 MB, of which 500 KiB are read", [answer(SITE, f"{REFUSING}\n{'#' * (1 << 20)}")], IMAGE, "robots"),
    ("a page in place of the file", [answer(SITE, "<html>User-agent: *")], IMAGE, None),
    (
        "a body in gzip",
        [answer(SITE, gzip.compress(REFUSING.encode()), head="Content-Encoding: gzip\r\n")],
        IMAGE,
        "robots",
    ),
    ("another file", [answer("http://a.example/x/robots.txt", REFUSING)], IMAGE, None),
    ("a file with a query", [answer(SITE + "?x", REFUSING)], IMAGE, None),
    ("no URL", [answer("mailto:a@b", REFUSING), answer("http://a b/robots.txt", REFUSING)], IMAGE, None),
]


@pytest.mark.parametrize(("rule", "records", "url", "protocol"), CASES)
def test_refusals(rule: str, records: list[bytes], url: str, protocol: str | None, tmp_path: Path) -> None:
    refusal = rules_of(*records, tmp_path=tmp_path).refusal(parse(url))
    assert (refusal and refusal.protocol) == protocol, rule
    if refusal is not None:
        assert "record <urn:uuid:" in refusal.evidence and refusal.evidence.endswith(", archive robots.warc.gz)")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2026-05-01T10:00:00Z", (1777629600.0, "2026-05-01T10:00:00Z")),
        ("2026-05-01T10:00:00.123Z", (1777629600.123, "2026-05-01T10:00:00Z")),
        ("20260501100000", (1777629600.0, "2026-05-01T10:00:00Z")),
        ("2026-05-01", (1777593600.0, "2026-05-01T00:00:00Z")),
        ("", (0.0, "")),
        ("yesterday", (0.0, "")),
        ("99999999999999", (0.0, "")),
        ("0001-01-01T00:00:00+23:00", (0.0, "")),
    ],
)
def test_dates(text: str, found: tuple[float, str]) -> None:
    assert robots_archive.date_of(text) == found


def test_the_oldest_record_on_the_way_dates_a_permission(tmp_path: Path) -> None:
    way = answer(SITE, status=302, head="Location: /r\r\n", date=99)
    known = rules_of(way, answer("http://a.example/r", "", date=9), tmp_path=tmp_path).of(parse(IMAGE))
    assert known is not None and known.date == 9


def test_real_archives() -> None:
    if not SHARED.is_dir():
        pytest.skip("the shared archives are not here")
    found = {}
    for path in (
        "oduwsdl+ipwb/mkelly1.warc",
        "netarchivesuite+solrwayback/IAH-20080430204825-00000-blackbook.arc.gz",
    ):
        for _, one in robots_archive.read_answers(str(SHARED / path), ledger=Ledger()):
            found[one.url] = (one.status, one.date > 1e9, len(one.body) > 20)
    assert found["http://www.cs.odu.edu/robots.txt"] == (200, True, True)
    assert found["http://www.adobe.com/robots.txt"] == (200, True, True)


# ------------------------------------------------------------------------------------------------------ the whole way


def run_build(tmp_path: Path, urls: list[str], *more: str, out: str = "out") -> int:
    (tmp_path / "queries.txt").write_text("dog\n")
    table = pa.table({"url": urls, "text": [f"a dog number {n}" for n in range(len(urls))]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    given = ["--input", str(tmp_path / "pairs.parquet"), "--output", str(tmp_path / out)]
    given += ["--queries", str(tmp_path / "queries.txt"), "--allow-address", "127.0.0.0/8", "--workers", "1"]
    given += ["--language-model", "none", "--balance", "none", "--min-image-side", "16", "--fetch-rounds", "0"]
    return build.main([*given, *more])


def test_no_host_is_asked_that_the_archive_rules_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("refusing", "agents", "fresh", "stale", "unknown", "to_refusing", "partly")
    with contextlib.ExitStack() as stack:
        images = {f"{number}.jpg": picture(number, (64, 48)) for number in range(20)}
        servers = {name: stack.enter_context(WebServer(dict(images), robots=None)) for name in names}
        base = {name: server.base for name, server in servers.items()}
        servers["stale"].robots = REFUSING
        servers["to_refusing"].robots = None
        archives = [tmp_path / "r" / "a.warc.gz", tmp_path / "r" / "b.warc.gz"]
        archives[0].parent.mkdir()
        archives[0].write_bytes(
            answer(f"{base['refusing']}/robots.txt", REFUSING, date=1)
            + answer(f"{base['fresh']}/robots.txt", "User-agent: *\nDisallow: /img/3.jpg")
            + answer(f"{base['stale']}/robots.txt", "User-agent: *\nDisallow:", date=NOW - 2 * DAY)
        )
        archives[1].write_bytes(
            answer(f"{base['agents']}/robots.txt", "User-agent: CCBot\nDisallow: /")
            + answer(f"{base['partly']}/robots.txt", "User-agent: *\nDisallow: /img/10.jpg", date=1)
        )
        good = [f"{base['fresh']}/img/4.jpg", f"{base['unknown']}/img/7.jpg", f"{base['partly']}/img/11.jpg"]
        bad = [f"{base[name]}/img/{n}.jpg" for n, name in enumerate(("refusing", "agents", "stale"))]
        bad += [f"{base['fresh']}/img/3.jpg", f"{base['partly']}/img/10.jpg"]
        bad += [f"{base['to_refusing']}/to?{base['refusing']}/img/9.jpg"]
        assert (
            run_build(tmp_path, good + bad, "--robots-archive", str(tmp_path / "r"), "--min-success", "0") == build.DONE
        )
        asked = {name: dict(server.hits) for name, server in servers.items()}
    assert not asked["refusing"] and not asked["agents"]
    assert "/robots.txt" not in asked["fresh"] and asked["stale"]["/robots.txt"] == 1
    assert all(asked[name]["/robots.txt"] == 1 for name in ("unknown", "to_refusing", "partly"))
    assert not any("/img/2.jpg" in hits or "/img/3.jpg" in hits or "/img/10.jpg" in hits for hits in asked.values())
    out = tmp_path / "out"
    table = pa.concat_tables(open_set(out).rows(["url"]))
    assert sorted(table["url"].to_pylist()) == sorted(good)
    capsys.readouterr()
    assert inspect_shards.main(["rights", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["images"]
    assert {name: (one["pairs"], one["spared"]) for name, one in found.items() if one["pairs"]} == {
        "robots": (5, 5),
        "robots-agents": (1, 1),
    }
    evidence = " ".join(item["evidence"] for one in found.values() for item in one["examples"])
    assert "archive b.warc.gz)" in evidence and "robots.txt line 2: Disallow: /" in evidence
    info = StageFolder(str(out), "fetch").done()
    assert info["robots_archives"] == {
        **{"archives": 2, "answers": 5, "urls": 5, "records_lost": 0, "cut_files": 0, "untelling": 0}
    }
    assert run_build(tmp_path, good + bad) == build.USAGE
    assert "another --robots-archive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no record of a web archive"),
        (b"User-agent: *\nDisallow: /", "holds no record of a web archive"),
        (b"\x1f\x8b\x08" + bytes(200), "holds no record of a web archive"),
    ],
)
def test_what_is_no_archive_is_refused_at_once(
    content: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "robots.txt").write_bytes(content)
    assert (
        run_build(tmp_path, ["http://a.example/1.jpg"], "--robots-archive", str(tmp_path / "robots.txt"))
        == build.MISSING
    )
    said = capsys.readouterr().err
    assert said.startswith("pipeline.build: --robots-archive: ") and why in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_archives_without_a_robots_txt_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no answer to a request for /robots.txt is in its 1 files"):
        small_plan(tmp_path, answer("http://a.example/", "hello"))


def test_path_lists_and_crawls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "crawl-data/CC-MAIN-2026-05/segments/1/robotstxt/CC-MAIN-00000.warc.gz"
    place = tmp_path / "cc" / name
    place.parent.mkdir(parents=True)
    place.write_bytes(answer(SITE, REFUSING))
    listing = tmp_path / "cc" / "crawl-data" / "CC-MAIN-2026-05" / "robotstxt.paths.gz"
    listing.write_bytes(gzip.compress(f"{name}\n".encode()))
    monkeypatch.setenv("OPENWIT_CC_BASE", str(tmp_path / "cc"))
    for spec in ("cc:CC-MAIN-2026-05", "cc:CC-MAIN-2026-05[0:1]", "cc:CC-MAIN-2026-05:robotstxt", str(listing)):
        (found,) = robots_archive_inputs(spec, tmp_path)
        assert (found.name, found.path) == (name, str(place)), spec


def robots_archive_inputs(spec: str, tmp_path: Path) -> Any:
    return look_up_robots([spec], output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--robots-archive", ""], "--robots-archive '': must not be empty"),
        (["--robots-archive", "cc:CC-MAIN-2026-05:warc"], "--robots-archive cc:CC-MAIN-2026-05:warc: must be cc:CRAWL"),
        (["--robots-archive", "nowhere.warc.gz"], "--robots-archive: no file matches 'nowhere.warc.gz'"),
        (["--input", "cc:CC-MAIN-2026-05:robotstxt"], "--input cc:CC-MAIN-2026-05:robotstxt: must be its WAT or WARC"),
    ],
)
def test_what_cannot_be_meant(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_build(tmp_path, ["http://a.example/1.jpg"], *flags) in (build.USAGE, build.MISSING)
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_answer_of_an_unwanted_host_is_read_from_the_archive_again(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, answer(SITE, REFUSING), answer("http://b.example/robots.txt", "User-agent: *"))
    find = robots_archive.ArchivedRobots(plan)
    for host, body in (("a", REFUSING), ("b", "User-agent: *")):  # the first one is wanted, and so it is kept
        found = find(f"http://{host}.example/robots.txt")
        assert isinstance(found, Capture) and found.body == body.encode() and found.place.endswith("archive a.warc.gz")
    assert find("http://c.example/robots.txt") is None
    (tmp_path / "a.warc.gz").unlink()
    assert find(SITE) is not None
    with pytest.raises(Exception, match="the robots archive"):
        find("http://b.example/robots.txt")


def small_plan(tmp_path: Path, *records: bytes) -> robots_archive.RobotsPlan:
    """The three steps, done over one archive. Images of a.example are wanted."""
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
    step = StageFolder(str(tmp_path / "run"), "fetch", "f").step
    selected = StageFolder(str(tmp_path / "run"), "balance", "f").step("selected")
    (tmp_path / "run" / "stages" / "balance" / "selected").mkdir(parents=True)
    for name in ("wanted", "answers", "index"):
        (tmp_path / "run" / "stages" / "fetch" / name).mkdir(parents=True)
    storage.write_table(selected.file(0, "parquet"), pa.table({"url": [IMAGE]}))
    selected.write_manifest(0, {"rows": 1})
    listed = str(tmp_path / "run" / "robots.json")
    robots_archive.save_archives(listed, (Input("a.warc.gz", str(tmp_path / "a.warc.gz"), "warc"),))
    plan = robots_archive.RobotsPlan(
        Rows(selected, PARQUET),
        *map(step, ("wanted", "answers", "index")),
        listed,
        RemoteSettings(),
        RemoteSettings(),
        1,
    )
    wanted, read, index = (
        kind(plan) for kind in (robots_archive.WantedRobots, robots_archive.ReadRobots, robots_archive.IndexRobots)
    )
    plan.wanted.write_manifest(0, wanted.run(0))
    plan.answers.write_manifest(0, read.run(0))
    plan.index.write_manifest(0, index.run(0, index.reads.bucket(0)))
    return plan
