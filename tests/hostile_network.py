"""fetch_rows on a hostile network: a network namespace of its own with only the loopback device.

The loopback device has public addresses. So the product runs as users run it, without exceptions for tests, and no
packet can leave the machine. test_fetching_hostile.py makes the namespace and runs pytest on this file in it.
"""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from pipeline.fetching import addresses, downloader
from pipeline.fetching.client import shared_client
from pipeline.fetching.downloader import fetch_rows
from pipeline.fetching.options import FetchOptions
from tests.fetching.test_fetching_rows import check, selected
from tests.webserver import WebServer, certificate, picture

SITES = tuple(f"93.184.216.{n}" for n in (1, 2, 3, 4))
METADATA = "169.254.169.254"
NAMES = {
    "site1.example": [SITES[0]],
    "site2.example": [SITES[1]],
    "inner.example": ["127.0.0.1"],
    "mixed.example": [SITES[0], "127.0.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "six.example": ["fd00::1"],
}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """A name server for NAMES, and for rebind.example. The latter answers with a public address only the first time."""
    asked: Counter[str] = Counter()
    system = socket.getaddrinfo

    def answer(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        asked[host] += 1
        if host == "rebind.example":
            found = [SITES[0] if asked[host] == 1 else "127.0.0.1"]
        elif host in NAMES:
            found = NAMES[host]
        else:
            return system(host, port, *args, **kwargs)
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found
        ]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", answer)
    yield asked
    downloader.close_decoders()
    shared_client.cache_clear()


def statuses(out: pa.RecordBatch) -> dict[str, str]:
    return dict(zip(out["url"].to_pylist(), out["status"].to_pylist(), strict=True))


def test_the_inner_service_is_never_reached(tmp_path: Path, names: Counter[str]) -> None:
    secret = {"secret.png": picture(9, format="PNG")}
    with WebServer(address=(SITES[0], 80)) as site, WebServer(secret, ("127.0.0.1", 8080)) as inner:
        with WebServer(secret, (METADATA, 80)) as metadata:
            targets = [
                "http://127.0.0.1:8080",
                "http://localhost:8080",
                "http://127.1:8080",
                "http://2130706433:8080",
                "http://0x7f.0.0.1:8080",
                "http://0177.0.0.1:8080",
                "http://0.0.0.0:8080",
                "http://[::1]:8080",
                "http://[::ffff:127.0.0.1]:8080",
                "http://[::ffff:7f00:1]:8080",
                "http://[64:ff9b::7f00:1]:8080",
                "http://inner.example:8080",
                "http://mixed.example:8080",
                "http://mapped.example:8080",
                "http://six.example:8080",
                f"http://{METADATA}",
                "http://2852039166",
            ]
            direct = [f"{target}/img/secret.png" for target in targets]
            redirected = [f"http://{SITES[0]}/to?{url}" for url in direct]
            files = ["file:///etc/hostname", f"http://{SITES[0]}/to?file:///etc/hostname", "data:image/png;base64,AA"]
            rebound = ["http://rebind.example/img/1.jpg"] + [
                f"http://rebind.example:8080/img/{name}.png" for name in ("secret", "other")
            ]
            good = [f"http://{SITES[0]}/img/{n}.jpg" for n in range(4)]
            rows = selected(direct + redirected + files + rebound + good)
            raw = tmp_path / "raw"
            out = fetch_rows(rows, options=FetchOptions(deadline_s=3, backoff_s=0.01), raw_path=str(raw))
            check(rows, out, raw)
            assert sum(metadata.hits.values()) == 0
        found = statuses(out)
        assert {found[url] for url in direct + redirected} == {"blocked_address"}
        assert {found[url] for url in files} <= {"bad_url", "bad_redirect"}
        assert all(found[url] == "ok" for url in good)
        # The name is looked up once. So the client connects to the first answer and never gets the second, private one.
        assert names["rebind.example"] == 1
        assert [found[url] for url in rebound] == ["ok", "tcp", "tcp"]
        assert sum(inner.hits.values()) == 0 and inner.connections == 0
        assert site.hits["/robots.txt"] == 2  # for the address and for the name


def test_drips_end_in_time_and_cost_no_good_image(tmp_path: Path) -> None:
    images = {f"{n}.jpg": picture(n, (300, 300)) for n in range(50)}
    with WebServer(images, (SITES[0], 80)), WebServer(images, (SITES[1], 80)):
        good = [f"http://site{1 + n % 2}.example/img/{n}.jpg" for n in range(50)]
        bad = [f"http://site{1 + n % 2}.example/{('drip', 'drip-head', 'silent')[n % 3]}?{n}" for n in range(24)]
        rows = selected(good + bad)
        start = time.monotonic()
        out = fetch_rows(rows, options=FetchOptions(deadline_s=1, per_host=8), raw_path=str(tmp_path / "raw"))
        seconds = time.monotonic() - start
        check(rows, out, tmp_path / "raw")
    found = statuses(out)
    assert all(found[url] == "ok" for url in good)
    assert {found[url] for url in bad} == {"timeout"}
    assert seconds < 8


def test_everything_at_once_within_bounds_of_memory(tmp_path: Path) -> None:
    images = {f"{n}.jpg": picture(n, (400, 300)) for n in range(30)}
    forms = ("img/{}", "chunked/{}", "gzip/{}", "close/{}", "redirect/2/{}", "flaky/503/{}")
    bad = (
        "endless endless-chunked gzip-bomb head-bomb garbage reset cut/1.jpg two-lengths/1.jpg bad-length/1.jpg loop "
        "declared/9999999999 no-location status/404 status/500 html empty tdm/1.jpg tag/noai/1.jpg private/1.jpg"
    ).split()
    with WebServer(images, (SITES[0], 80)) as one, WebServer(images, (SITES[2], 80)):
        good = [f"http://{SITES[0]}/{form.format(f'{n}.jpg')}" for n, form in enumerate(forms * 5)]
        worse = [f"http://{SITES[2]}/{path}" for path in bad * 3]
        order = random.Random(0).sample(good + worse, len(good + worse))
        process = psutil.Process()
        before = process.memory_info().rss
        rows = selected(order)
        options = FetchOptions(deadline_s=5, backoff_s=0.05, retries=1)
        out = fetch_rows(rows, options=options, raw_path=str(tmp_path / "raw"))
        check(rows, out, tmp_path / "raw")
        found = statuses(out)
        assert all(found[url] == "ok" for url in good)
        assert not any(found[url] == "ok" for url in worse)
        assert one.most_busy <= options.per_host
        assert one.hits["/robots.txt"] == 1
        assert process.memory_info().rss - before < 600 << 20


def test_a_name_in_a_certificate(tmp_path: Path) -> None:
    pair = certificate(str(tmp_path), ("site1.example",))
    if pair is None:
        pytest.skip("no package that makes a certificate")
    context, trusted = pair
    with WebServer(address=(SITES[0], 443), tls=context) as server:
        with WebServer(address=(SITES[1], 443), tls=context):
            urls = [f"https://site{k}.example/img/{n}.jpg" for k in (1, 2) for n in range(8)]
            rows = selected(urls)
            out = fetch_rows(rows, options=FetchOptions(ca_file=trusted), raw_path=str(tmp_path / "x" / "raw"))
    check(rows, out, tmp_path / "x" / "raw")
    assert all(status == ("ok" if "site1" in url else "tls") for url, status in statuses(out).items())
    assert server.connections == 10  # robots.txt, tdmrep.json and each image


def test_a_host_that_is_away_for_a_while(tmp_path: Path) -> None:
    images = {f"{n}.jpg": picture(n) for n in range(30)}
    rows = selected([f"http://{SITES[3]}/img/{n}.jpg" for n in range(30)])
    options = FetchOptions(deadline_s=2, backoff_s=0.01)
    out = fetch_rows(rows, options=options, raw_path=str(tmp_path / "away" / "raw"))
    assert set(out["status"].to_pylist()) == {"tcp"} and all(out["retryable"].to_pylist())
    shared_client.cache_clear()  # for the next run
    with WebServer(images, (SITES[3], 80)):
        out = fetch_rows(rows, options=options, raw_path=str(tmp_path / "back" / "raw"))
    assert set(out["status"].to_pylist()) == {"ok"}
