"""The circuit breaker: what counts as an outage of the network, what the fetch does then, and how it ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.fetching import network
from pipeline.fetching.client import Client, Fetched
from pipeline.fetching.errors import Failure, NetworkError
from pipeline.fetching.options import FetchOptions
from tests.webserver import WebServer

HOSTS = 8


class Names:
    """A name server that can be away. All names have the address of the loopback device."""

    def __init__(self) -> None:
        self.away = False
        self.dead: set[str] = set()

    def __call__(self, host: str, port: int) -> list[str]:
        if self.away:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ["127.0.0.99" if host in self.dead else "127.0.0.1"]


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "PROBES_S", (0.1,))
    monkeypatch.setattr(network, "RECHECK_S", 0.0)


def client(names: Names, **options: Any) -> Client:
    settings = {"allow_addresses": ("127.0.0.0/8",), "deadline_s": 5.0, "backoff_s": 0.01, "retries": 0} | options
    return Client(FetchOptions(**settings), lookup=names)


def urls(server: WebServer, first: int = 0, count: int = HOSTS) -> list[str]:
    return [f"http://site{n}.example:{server.server_port}/img/{n % 8}.jpg" for n in range(first, first + count)]


def all_of(one: Client, wanted: list[str]) -> list[Fetched | Failure | NetworkError]:
    def outcome(url: str) -> Fetched | Failure | NetworkError:
        try:
            return one.fetch(url)
        except (Failure, NetworkError) as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(outcome, wanted))


def later(seconds: float, call: Any) -> None:
    threading.Timer(seconds, call).start()


@pytest.mark.parametrize("first", [True, False])
def test_an_outage_of_the_names_costs_no_image(server: WebServer, names: Names, first: bool) -> None:
    one = client(names)
    if not first:
        assert isinstance(one.fetch(urls(server, 90, 1)[0]), Fetched)
    names.away = True
    states: list[str] = []
    later(0.7, lambda: states.append(one.network.state()))
    later(1.0, lambda: setattr(names, "away", False))
    failed = [found for found in all_of(one, urls(server, count=30)) if not isinstance(found, Fetched)]
    assert len(failed) < (1 if first else network.FEWEST)  # those before it was noticed: a round fetches them again
    assert "the network is away (" in states[0] and "name resolution" in states[0]
    assert one.network.state() == ""


def test_an_outage_that_does_not_end(server: WebServer, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "FIRST_PATIENCE_S", 0.5)
    names.away = True
    found = all_of(client(names), urls(server))
    assert all(isinstance(one, NetworkError) for one in found)
    assert "run the same command again" in str(found[0])


def test_few_hosts_say_little(server: WebServer, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "FIRST_PATIENCE_S", 0.5)
    names.away = True
    found = all_of(client(names), urls(server, count=3) * 2)
    assert all(isinstance(one, Failure) and one.status == "dns" for one in found)


def test_dead_hosts_are_no_outage_while_a_witness_answers(server: WebServer, names: Names) -> None:
    one = client(names)
    assert isinstance(one.fetch(urls(server, 90, 1)[0]), Fetched)
    names.dead = {f"site{n}.example" for n in range(HOSTS)}
    begin = time.monotonic()
    found = all_of(one, urls(server))
    assert all(isinstance(failure, Failure) and failure.status == "tcp" for failure in found)
    assert one.network.state() == "" and time.monotonic() - begin < 60  # network.PATIENCE_S is more


def test_hosts_that_failed_before_are_no_outage(server: WebServer, names: Names) -> None:
    one = client(names)
    names.dead = {f"site{n}.example" for n in range(HOSTS)}
    one.begin(again=True)
    assert all(isinstance(failure, Failure) for failure in all_of(one, urls(server)))
    assert one.network.state() == ""


def test_a_host_that_waits_is_asked_too(server: WebServer, names: Names) -> None:
    one = client(names)
    names.dead = {f"site{n}.example" for n in range(HOSTS)}
    found = [all_of(one, urls(server, n, 1))[0] for n in range(network.FEWEST - 1)]
    found += all_of(one, urls(server, network.FEWEST - 1, 1) + [f"http://there.example:{server.server_port}/img/1.jpg"])
    assert isinstance(found[-1], Fetched) and all(isinstance(failure, Failure) for failure in found[:-1])


def test_an_answer_of_any_kind_ends_it(server: WebServer, names: Names) -> None:
    one = client(names)
    names.dead = {f"site{n}.example" for n in range(HOSTS)}
    wanted = urls(server) + [f"http://there.example:{server.server_port}/slow/0.5/1.jpg"]
    found = all_of(one, wanted)
    assert isinstance(found[-1], Fetched) and all(isinstance(failure, Failure) for failure in found[:-1])


def test_silence_is_reported(server: WebServer, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "SILENCE_S", 0.2)
    one = client(names)
    states: list[str] = []
    later(0.5, lambda: states.append(one.network.state()))
    assert isinstance(one.fetch(f"http://a.example:{server.server_port}/slow/1/1.jpg"), Fetched)
    assert "no host has answered" in states[0] and one.network.state() == ""
