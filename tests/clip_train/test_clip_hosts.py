"""Several hosts: how they meet, what they say where one does not come, and what must be the same on all."""

from __future__ import annotations

import datetime
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train import distributed, hosts, same_on_all  # noqa: E402
from clip_train.config import TrainOptions  # noqa: E402
from clip_train.errors import TrainError, UsageError  # noqa: E402


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meet_all(*said: dict, minutes: float = 0.5) -> list:
    """What each host gets: its meeting, or the error."""
    endpoint = f"127.0.0.1:{free_port()}"

    def one(given: dict):
        try:
            asked = {"hosts": 2, "processes": 1, **given}
            return hosts.meet(endpoint, **asked, minutes=minutes, say=lambda line: None)
        except TrainError as error:
            return error

    with ThreadPoolExecutor(len(said)) as pool:
        return list(pool.map(one, said))


def test_hosts_number_their_processes():
    first, second = meet_all({"host": 0, "processes": 3}, {"host": 1, "processes": 2})
    assert (first.ranks, first.first_rank) == (5, 0) and (second.ranks, second.first_rank) == (5, 3)
    assert first.cause() is second.cause() is None
    second.leave("process 4 was lost")
    assert first.cause() == "host 1 ended: process 4 was lost" and second.cause() is None
    first.leave()


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ([{"host": 0}, {"host": 1}, {"host": 1}], "two hosts say --node-rank 1"),
        ([{"host": 0}, {"host": 1, "hosts": 3}], "says --nnodes [23], host [01] says [23]: they must agree"),
        ([{"host": 0}], "host 1 of 2 did not come within 0.01 minutes"),
        ([{"host": 1}], "no answer from host 0 at 127.0.0.1:.* within 0.01 minutes"),
    ],
    ids=["one number twice", "another count", "host 1 is missing", "host 0 is missing"],
)
def test_hosts_that_do_not_fit_are_refused(said, match, monkeypatch):
    monkeypatch.setattr(hosts, "LEAVE_REFUSED", 0.3)
    found = meet_all(*said, minutes=0.01 if len(said) == 1 else 0.5)
    errors = [str(each) for each in found if isinstance(each, TrainError)]
    assert errors and all(re.search(match, error) for error in errors), errors
    assert len(errors) == len(said) - 2 * (len(said) == 3)  # a third host does not disturb the two


def test_a_port_that_is_taken_is_named_and_a_stranger_behind_it(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        given = {"hosts": 2, "processes": 1, "minutes": 0.01, "say": lambda line: None}
        with pytest.raises(UsageError, match="host 0 cannot listen on port .*name another port"):
            hosts.meet(f"127.0.0.1:{taken.getsockname()[1]}", host=0, **given)
        monkeypatch.setattr(hosts, "_REQUEST", datetime.timedelta(seconds=0.2))
        with pytest.raises(TrainError, match="what answers at 127.0.0.1:.* is not host 0 of a run"):
            hosts.meet(f"127.0.0.1:{taken.getsockname()[1]}", host=1, **given)  # it takes connections, and says nothing


@pytest.mark.parametrize("way", ["failed", "silent"])
def test_a_launcher_ends_its_processes_where_another_host_is_gone(monkeypatch, way):
    for name, value in (("BEAT", 0.02), ("LOST_AFTER", 2 if way == "silent" else 60), ("GRACE", 0.1)):
        monkeypatch.setattr(hosts, name, value)
    first, second = meet_all({"host": 0}, {"host": 1})
    ended = threading.Event()
    monkeypatch.setattr(os, "kill", lambda process, number: number == signal.SIGTERM and ended.set())
    with first.watched():
        with second.watched():
            time.sleep(0.3)
            assert first.lost is None
        if way == "failed":
            second.leave("process 1 was lost")
        assert ended.wait(60)
    assert first.lost == (
        "host 1 ended: process 1 was lost" if way == "failed" else "host 1 has given no sign of life for 2 seconds"
    )


def test_the_interface_to_this_machine_is_not_named():
    assert hosts.interface_toward("127.0.0.1") is None and hosts.interface_toward("no.such.host.invalid") is None


def test_what_differs_between_ranks_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda value: [("a", {"--lr": 0.1, "--ema": 0}), value])
    monkeypatch.setattr(distributed.platform, "node", lambda: "b")
    distributed.refuse_different({"--lr": 0.1, "--ema": 0})
    with pytest.raises(UsageError, match=r"^--lr is 0.1 on rank 0 \(a\) and not given on rank 1 \(b\): it must be"):
        distributed.refuse_different({"--lr": None, "--ema": 0})


def test_options_of_a_rank_are_options():
    names = set(TrainOptions.__dataclass_fields__)
    assert set(same_on_all.OF_A_RANK) <= names
