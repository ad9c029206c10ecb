"""The client against a server that behaves well or badly: the class of every outcome, and the client's manners."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.fetching import client as client_module
from pipeline.fetching import hosts
from pipeline.fetching.client import Client, Fetched, _Site
from pipeline.fetching.errors import RETRYABLE, Failure, printable
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.robots import Rules, forbidding_tag
from pipeline.text.rights import PROTOCOLS
from tests.webserver import WebServer, certificate, picture

LOOPBACK = ("127.0.0.0/8",)


def client(**options: Any) -> Client:
    settings = {"allow_addresses": LOOPBACK, "deadline_s": 15.0, "backoff_s": 0.01} | options
    return Client(FetchOptions(**settings))


def outcome(one: Client, url: str) -> Fetched | Failure:
    try:
        return one.fetch(url)
    except Failure as failure:
        return failure


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


def test_names_and_files_of_the_site_get_no_more_time_than_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebServer() as server:
        server.robots = f"License: {server.base}/none.xml"
        one = client(deadline_s=3.0)
        given: list[float] = []
        look_up, clock = one._resolver.addresses, client_module._Clock

        def addresses(host: str, port: int, seconds: float) -> list[str]:
            given.append(seconds)
            return look_up(host, port, seconds)

        monkeypatch.setattr(one._resolver, "addresses", addresses)
        monkeypatch.setattr(client_module, "_Clock", lambda seconds: (given.append(seconds), clock(seconds))[1])
        assert isinstance(outcome(one, f"{server.base}/img/1.jpg"), Failure)  # there is no such licence
        assert len(given) > 5 and all(0 < seconds <= 3.0 for seconds in given)


@pytest.mark.parametrize("path", ["img", "chunked", "gzip", "close", "redirect/3", "slow/0.1"])
def test_good_in_every_form(server: WebServer, path: str) -> None:
    fetched = client().fetch(f"{server.base}/{path}/3.jpg")
    assert fetched.body == server.images["3.jpg"] and fetched.http_status == 200
    assert fetched.final_url == (f"{server.base}/img/3.jpg" if path.startswith("redirect") else None)


@pytest.mark.parametrize(
    ("path", "status", "retryable"),
    [
        ("/status/400", "http_4xx", False),
        ("/status/404", "http_4xx", False),
        ("/status/410", "http_4xx", False),
        ("/status/408", "http_4xx", True),
        ("/status/500", "http_5xx", True),
        ("/status/503", "http_5xx", True),
        *((f"/status/{status}", "http_5xx", True) for status in (502, 504, 520, 521, 522, 523, 524)),
        ("/status/501", "http_5xx", False),
        ("/status/599", "http_5xx", False),
        ("/status/429", "rate_limited", True),
        ("/status/206", "http_other", False),
        ("/status/204", "http_other", False),
        ("/slow/5", "timeout", True),
        ("/drip", "timeout", True),
        ("/drip-head", "timeout", True),
        ("/silent", "timeout", True),
        ("/endless", "too_large", False),
        ("/endless-chunked", "too_large", False),
        ("/declared/99999999999", "too_large", False),
        ("/gzip-bomb", "too_large", False),
        ("/cut/1.jpg", "tcp", True),
        ("/cut-chunked/1.jpg", "tcp", True),
        ("/reset", "tcp", True),
        ("/garbage", "bad_http", False),
        ("/head-bomb", "bad_http", False),
        ("/two-lengths/1.jpg", "bad_http", False),
        ("/bad-length/1.jpg", "bad_http", False),
        ("/no-location", "bad_redirect", False),
        ("/to?file:///etc/passwd", "bad_redirect", False),
        ("/to?http://10.0.0.1/x", "blocked_address", False),
        ("/to?http://169.254.169.254/latest", "blocked_address", False),
        ("/to?http://2852039166/", "blocked_address", False),
        ("/to?http://[::ffff:10.0.0.1]/", "blocked_address", False),
        ("/loop", "too_many_redirects", False),
        ("/redirect/12/1.jpg", "too_many_redirects", False),
        ("/tag/noai/1.jpg", "opt_out", False),
        ("/tag/none/1.jpg", "opt_out", False),
        ("/tag/OpenWIT: noimageai/1.jpg", "opt_out", False),
        ("/tdm/1.jpg", "opt_out", False),
        ("/private/1.jpg", "robots", False),
        ("/to?/private/1.jpg", "robots", False),
    ],
)
def test_the_class_of_every_failure(server: WebServer, path: str, status: str, retryable: bool) -> None:
    start = time.monotonic()
    seconds = 0.7 if status == "timeout" else 90.0
    failure = outcome(client(retries=1, max_bytes=1 << 20, deadline_s=seconds), server.base + path)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.retryable) == (status, retryable), failure
    assert time.monotonic() - start < 60


def test_nothing_is_asked_of_a_private_path_or_another_robots_tag(server: WebServer) -> None:
    before = server.hits["/private/2.jpg"]
    assert isinstance(outcome(client(), f"{server.base}/private/2.jpg"), Failure)
    assert server.hits["/private/2.jpg"] == before
    assert isinstance(outcome(client(), f"{server.base}/tag/otherbot: noai/1.jpg"), Fetched)
    assert isinstance(outcome(client(ignore_rights=("robots-tag",)), f"{server.base}/tag/noai/1.jpg"), Fetched)
    assert isinstance(outcome(client(ignore_rights=("robots",)), f"{server.base}/private/2.jpg"), Fetched)


def test_without_leave_the_loopback_is_not_reached(server: WebServer) -> None:
    before = sum(server.hits.values())
    port = server.server_port
    for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "0.0.0.0"):
        failure = outcome(client(allow_addresses=()), f"http://{host}:{port}/img/1.jpg")
        assert isinstance(failure, Failure) and failure.status in ("blocked_address", "dns"), host
    assert sum(server.hits.values()) == before


def test_proxies_of_the_environment_are_not_used(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert client().fetch(f"{server.base}/img/1.jpg").body == server.images["1.jpg"]


def test_passing_failures_are_tried_again(server: WebServer) -> None:
    assert client().fetch(f"{server.base}/flaky/503/1.jpg").body == server.images["1.jpg"]
    assert isinstance(outcome(client(retries=0), f"{server.base}/flaky/502/1.jpg"), Failure)


def test_a_short_pause_is_waited_for_and_the_others_of_the_host_go_on() -> None:
    with WebServer() as server:
        one = client()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one.fetch, [f"{server.base}/{path}" for path in ("later/1/0.jpg", "img/1.jpg", "img/2.jpg")]))
        first, again = (when for when, at, _ in server.requests if at == "/later/1/0.jpg")
        assert again - first > 0.9
        assert all(when - first < 0.9 for when, at, _ in server.requests if at.startswith("/img/"))


def test_a_long_pause_holds_for_its_url_alone() -> None:
    with WebServer() as server:
        one, begin = client(), time.monotonic()
        failure = outcome(one, f"{server.base}/later/3600/1.jpg")
        assert isinstance(failure, Failure) and failure.status == "rate_limited" and failure.retryable
        assert failure.retry_after == 3600 and time.monotonic() - begin < 60
        assert isinstance(outcome(one, f"{server.base}/img/1.jpg"), Fetched)


def test_the_pace_of_a_host_that_refuses() -> None:
    host = hosts.Host(FetchOptions())
    for pace in (0.2, 0.4, 0.8):
        host.slow_down()
        assert host._pace_s == pytest.approx(pace)
    for _ in range(20):
        host.slow_down()
    assert host._pace_s == hosts.SLOWEST_PACE_S
    spent = 0.0
    while host._pace_s:
        host.note(None)
        spent += host._pace_s
    assert spent < 10 * hosts.SLOWEST_PACE_S


def test_a_pause_of_robots_txt_holds_for_the_site() -> None:
    with WebServer() as server:
        server.robots = 429
        one = client(retries=0)
        one._sites.put(("http", "127.0.0.1", server.server_port), site := _Site())
        site.failure, site.expires = Failure("rate_limited", "429", retry_after=3600.0), time.monotonic() + 3600
        site.done.set()
        one.begin(again=True)
        failure = outcome(one, f"{server.base}/img/1.jpg")
        assert isinstance(failure, Failure) and failure.retry_after == 3600 and not server.hits


def test_manners() -> None:
    with WebServer() as server:
        one = client(per_host=3, contact="https://example.org/bot")
        urls = [f"{server.base}/slow/0.02/{n % 8}.jpg?{n}" for n in range(60)]
        server.images |= {f"{n % 8}.jpg?{n}": picture(n % 8) for n in range(60)}
        with ThreadPoolExecutor(16) as pool:
            assert all(isinstance(o, Fetched) for o in pool.map(lambda url: outcome(one, url), urls))
        assert server.most_busy == 3
        assert server.hits["/robots.txt"] == 1
        assert server.connections == len(server.requests)  # one for each request
        assert {headers["User-Agent"] for _, _, headers in server.requests} == {
            "OpenWIT/1.0 (+https://example.org/bot)"
        }


def test_delays_between_requests() -> None:
    with WebServer(robots="User-agent: *\nCrawl-delay: 0.1\n") as server:
        one, begin = client(), time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one.fetch, [f"{server.base}/img/{n}.jpg" for n in range(5)]))
        times = sorted(when for when, path, _ in server.requests if path.startswith("/img"))
        assert len(times) == 5
        # A busy machine may note a request late and the next one in time. Only one that came too early is a fault.
        assert all(when - begin > 0.1 * turn - 0.01 for turn, when in enumerate(times))


@pytest.mark.parametrize(("code", "status"), [(404, None), (403, None), (500, "robots"), (429, "rate_limited")])
def test_robots_that_cannot_be_read(code: int, status: str | None) -> None:
    with WebServer(robots=code) as server:
        result = outcome(client(retries=0), f"{server.base}/private/1.jpg")
        assert (result.status if isinstance(result, Failure) else None) == status
        if isinstance(result, Failure):
            assert result.retryable and "robots.txt" in str(result)


def test_a_dead_host_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "FAILURES_IN_A_ROW", 3)
    with WebServer() as server:
        one = client(retries=0)
        results = [outcome(one, f"{server.base}/reset?{n}") for n in range(5)]
        assert [r.status for r in results if isinstance(r, Failure)] == ["tcp"] * 5
        assert sum(path.startswith("/reset") for path in server.hits) == 3
        last = results[-1]
        assert isinstance(last, Failure) and last.retryable and "in a row" in str(last)
        quick, begin = client(backoff_s=120.0), time.monotonic()
        quick._hosts.put("127.0.0.1", one._hosts.get("127.0.0.1"))  # it rests: no try, and so no pause before the next
        assert isinstance(outcome(quick, f"{server.base}/img/1.jpg"), Failure) and time.monotonic() - begin < 60


def test_a_dead_host_is_tried_once_more_in_a_later_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "FAILURES_IN_A_ROW", 3)
    with WebServer() as server:
        one = client(retries=0)
        for again, asked in ((False, 3), (True, 4), (True, 5)):
            one.begin(again=again)
            for n in range(5):
                assert isinstance(outcome(one, f"{server.base}/reset?{n}"), Failure)
            assert sum(count for path, count in server.hits.items() if path.startswith("/reset")) == asked
        one.begin(again=True)
        assert isinstance(outcome(one, f"{server.base}/img/1.jpg"), Fetched)
        assert isinstance(outcome(one, f"{server.base}/img/2.jpg"), Fetched)


def test_https_certificates(tmp_path: Path) -> None:
    pair = certificate(str(tmp_path), ("127.0.0.1",))
    if pair is None:
        pytest.skip("no package that makes a certificate")
    context, trusted = pair
    with WebServer(tls=context) as server:
        one = client(ca_file=trusted)
        assert one.fetch(f"{server.base}/img/1.jpg").body == server.images["1.jpg"]
        assert one.fetch(f"{server.base}/chunked/2.jpg").body == server.images["2.jpg"]
        for path, status in (("drip", "timeout"), ("drip-head", "timeout"), ("cut/1.jpg", "tcp")):
            seconds = 0.7 if status == "timeout" else 90.0
            failure = outcome(client(ca_file=trusted, retries=0, deadline_s=seconds), f"{server.base}/{path}")
            assert isinstance(failure, Failure) and failure.status == status, path
        for url, ca_file in ((server.base, ""), (server.base.replace("127.0.0.1", "localhost"), trusted)):
            failure = outcome(client(ca_file=ca_file, allow_addresses=("127.0.0.0/8", "::1/128")), f"{url}/img/1.jpg")
            assert isinstance(failure, Failure) and (failure.status, failure.retryable) in (("tls", False),)
    with WebServer() as plain:
        failure = outcome(client(retries=0), plain.base.replace("http:", "https:") + "/img/1.jpg")
        assert isinstance(failure, Failure) and failure.status == "tls"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_sessions_are_resumed(tmp_path: Path, version: ssl.TLSVersion) -> None:
    pair = certificate(str(tmp_path), ("127.0.0.1",))
    if pair is None:
        pytest.skip("no package that makes a certificate")
    context, trusted = pair
    context.maximum_version = version
    with WebServer(tls=context) as server:
        one = client(ca_file=trusted, per_host=1)
        for n in range(6):
            assert one.fetch(f"{server.base}/img/{n}.jpg").body == server.images[f"{n}.jpg"]
        assert (server.connections, context.session_stats()["hits"]) == (8, 7)  # robots.txt and tdmrep.json, too


def test_a_session_that_the_server_refuses_costs_no_image(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    one = client(retries=0)
    offered: list[object] = []

    def secure(sock: socket.socket, _host: str, _deadline: float, session: object) -> socket.socket:
        offered.append(session)
        if session is not None:
            sock.close()
            raise ssl.SSLError("refused")
        return sock

    monkeypatch.setattr(one._wire, "_secure", secure)
    one._wire._sessions.put(("127.0.0.1", server.server_port), "a session")  # type: ignore[arg-type]
    url = f"{server.base}/img/1.jpg".replace("http:", "https:")
    assert one.fetch(url).body == server.images["1.jpg"]
    assert offered == ["a session", None] * 3  # robots.txt, tdmrep.json, the image


def test_a_dead_address_is_waited_for_once(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    connect = socket.socket.connect

    def noted(sock: socket.socket, address: Any) -> None:
        tried.append(address[0])
        connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    options = FetchOptions(allow_addresses=(*LOOPBACK, "::1/128"), ignore_rights=PROTOCOLS)
    one = Client(options, lookup=lambda *_: ["::1", "127.0.0.1"])  # the server listens on the second one
    for _ in range(3):
        assert one.fetch(f"http://two.example:{server.server_port}/img/1.jpg").body == server.images["1.jpg"]
    assert tried == ["::1", "127.0.0.1", "127.0.0.1", "127.0.0.1"]


def test_refused_connection(server: WebServer) -> None:
    with WebServer() as gone:
        url = f"{gone.base}/img/1.jpg"
    failure = outcome(client(), url)
    assert isinstance(failure, Failure) and failure.status == "tcp" and failure.retryable


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ([], None),
        (["all"], None),
        (["noarchive, NoAI"], "noai"),
        (["otherbot: noai, noindex"], None),
        (["otherbot: noarchive, openwit: noimageai"], "noimageai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"], "noindex"),
        (["max-snippet: 20", "*: none"], "none"),
    ],
)
def test_robots_tags(values: list[str], rule: str | None) -> None:
    assert forbidding_tag(values, "OpenWIT") == rule


def test_robots_rules() -> None:
    everybody = b"\xef\xbb\xbfUser-agent: *\nDisallow: /\nAllow: /ok/*.jpg$\n\n"
    text = everybody + b"User-agent: openwit\nDisallow: /no\nCrawl-delay: 7"
    ours, others = Rules(text, "OpenWIT"), Rules(text, "Other")
    assert ours.allow("http://a.example/x") and not ours.allow("http://a.example/no/x") and ours.delay_s == 7
    assert others.allow("http://a.example/ok/a.jpg") and not others.allow("http://a.example/x")
    assert Rules(b"\xff\x00" * 1000, "OpenWIT").allow("http://a.example/")
    hostile = b"User-agent: *\nDisallow: /" + b"*a" * 2000 + b"$\n"
    start = time.process_time()
    Rules(hostile, "OpenWIT").allow("http://a.example/" + "a" * 6000)
    assert time.process_time() - start < 1


def test_every_failure_has_a_class_and_a_printable_sentence() -> None:
    assert printable("a\x1b]0;b\r\n" + "x" * 500) == "a ]0;b" + "  " + "x" * 392
    for status in RETRYABLE:
        assert str(Failure(status, "x")) == "x"


def test_the_watchdog_lives_through_many_deadlines(server: WebServer) -> None:
    one = client(deadline_s=2.0, per_host=16, retries=0)
    start = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: outcome(one, f"{server.base}/drip?{n}"), range(16)))
    assert {f.status for f in found if isinstance(f, Failure)} == {"timeout"} and len(found) == 16
    assert time.monotonic() - start < 25  # one after the other would take 32 s
    assert threading.active_count() < 200
