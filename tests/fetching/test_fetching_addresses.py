"""Which addresses a client may reach, and that a name is looked up once and all its addresses are checked."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time

import pytest

from pipeline.fetching import addresses
from pipeline.fetching.addresses import Gate, Resolver, is_public
from pipeline.fetching.errors import Failure
from pipeline.fetching.targets import follow, host_of, parse

PUBLIC = [
    "93.184.216.34",
    "8.8.8.8",
    "192.0.1.1",
    "2606:2800:220:1:248:1893:25c8:1946",
    "::ffff:93.184.216.34",
    "64:ff9b::5db8:d822",
    "2002:5db8:d822::1",
    "2606:4700:4700::1111",
    "::5db8:d822",
    "2001:0:4136:e378:8000:63bf:a247:27dd",  # Teredo from 93.184.216.34
]
PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.9",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
    "2001:0:4136:e378:8000:63bf:f5ff:fffe",  # from 10.0.0.1
    "2001:0:a00:1:8000:63bf:a247:27dd",  # by a server at 10.0.0.1
    "2001:db8::1",
    "3fff::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::808:808",  # the low bits are no IPv4 address here
    "fd00::808:808",
    "2001:db8::808:808",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_not_public(address: str) -> None:
    if address.startswith("2001:0:"):  # a tunnel with an end that is not public
        assert ipaddress.IPv6Address(address).teredo is not None
    assert not is_public(ipaddress.ip_address(address))


def test_allowed_networks_open_the_gate_for_what_stands_for_them_too() -> None:
    gate = Gate(("127.0.0.0/8", "fd00::/8"))
    assert gate.opens("127.0.0.1") and gate.opens("::ffff:127.0.0.1") and gate.opens("fd00::7%eth0")
    assert not gate.opens("10.0.0.1") and not gate.opens("::1") and not gate.opens("no address")


def resolver(answers: dict[str, list[str]], asked: list[str] | None = None) -> Resolver:
    def lookup(host: str, _: int) -> list[str]:
        if asked is not None:
            asked.append(host)
        return answers[host]

    return Resolver(Gate(), lookup)


def test_every_address_of_an_answer_must_be_public() -> None:
    mixed = resolver({"mixed.example": ["93.184.216.34", "fd00::1"], "none.example": []})
    with pytest.raises(Failure, match="fd00::1") as caught:
        mixed.addresses("mixed.example", 80, 1)
    assert caught.value.status == "blocked_address" and not caught.value.retryable
    with pytest.raises(Failure) as caught:
        mixed.addresses("none.example", 80, 1)
    assert caught.value.status == "dns"


def test_a_host_is_looked_up_once_whoever_asks() -> None:
    asked: list[str] = []
    once = resolver({"a.example": ["93.184.216.34"]}, asked)
    threads = [threading.Thread(target=once.addresses, args=("a.example", 80, 1)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == ["a.example"]


def test_a_silent_name_server_is_not_waited_for() -> None:
    answer = threading.Event()
    slow = Resolver(Gate(), lambda host, port: answer.wait(90) and ["93.184.216.34"])
    start = time.monotonic()
    with pytest.raises(Failure, match="in time") as caught:
        slow.addresses("slow.example", 80, 0.2)
    assert caught.value.status == "dns" and caught.value.retryable and time.monotonic() - start < 60
    slow._answers.put("old.example", addresses._Answer()).asked -= addresses.LOOKUP_S
    with pytest.raises(Failure):
        slow.addresses("old.example", 80, 90)
    assert time.monotonic() - start < 60
    answer.set()


def test_a_broken_name_server_is_asked_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def lookup(host: str, port: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "not now")

    monkeypatch.setattr(addresses, "PASSING_LIFETIME_S", 0.0)
    broken = Resolver(Gate(), lookup)
    for _ in range(8):
        with pytest.raises(Failure) as caught:
            broken.addresses("a.example", 80, 1)
        assert caught.value.status == "dns" and caught.value.retryable
    assert len(asked) == addresses.LOOKUPS_IN_A_ROW


@pytest.mark.parametrize(("code", "retryable"), [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)])
def test_a_name_that_is_gone_is_not_tried_again(code: int, retryable: bool) -> None:
    def lookup(host: str, port: int) -> list[str]:
        raise socket.gaierror(code, "no")

    with pytest.raises(Failure) as caught:
        Resolver(Gate(), lookup).addresses("a.example", 80, 1)
    assert caught.value.status == "dns" and caught.value.retryable == retryable


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://Example.COM", "http://example.com/"),
        (" https://example.com:443/a b.jpg?q=x y ", "https://example.com/a%20b.jpg?q=x%20y"),
        ("http://example.com/ä%C3%A4%zz", "http://example.com/%C3%A4%C3%A4%25zz"),
        ("http://bücher.example/x#part", "http://xn--bcher-kva.example/x"),
        ("http://example.com:8080/?a=1&b[]=2|3", "http://example.com:8080/?a=1&b[]=2|3"),
        ("http://[2606:2800:220:1::1]:80/x", "http://[2606:2800:220:1::1]/x"),
        ("http://example.com./x", "http://example.com/x"),
        ("http://my_host.example/x", "http://my_host.example/x"),
    ],
)
def test_tolerated_urls(url: str, asked: str) -> None:
    assert parse(url).url == asked
    assert parse(asked).url == asked


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/a.jpg",
        "ftp://example.com/a.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://",
        "http:///a",
        "http://user:pass@example.com/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:x/",
        "http://exa mple.com/",
        "http://example.com/\r\nX: y",
        "http://example.com/\x00",
        "http://[::1/",
        "http://-x.example/",
        "http://example.com/" + "a" * 9000,
        "http://example.com/\ud800",
        "http://..example/",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(Failure) as caught:
        parse(url)
    assert caught.value.status == "bad_url"
    assert host_of(url) == ""


def test_redirects_are_resolved_and_checked() -> None:
    here = parse("http://example.com/a/b.jpg")
    assert follow(here, "../c d.jpg").url == "http://example.com/c%20d.jpg"
    assert follow(here, "//other.example/x").url == "http://other.example/x"
    assert follow(here, "/é".encode().decode("latin-1")).url == "http://example.com/%C3%A9"
    for location in ("file:///etc/passwd", "gopher://x/", "http://[bad/"):
        with pytest.raises(Failure) as caught:
            follow(here, location)
        assert caught.value.status == "bad_redirect"
