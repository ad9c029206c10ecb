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
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

from clip_train import distributed, hosts, launch, same_on_all  # noqa: E402
from clip_train.config import TrainOptions  # noqa: E402
from clip_train.errors import Interrupted, TrainError, UsageError  # noqa: E402
from clip_train.launch import ProcessFailed  # noqa: E402


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
    second.leave("process 4 was lost")
    assert first.why_gone() == "host 1 ended: process 4 was lost" and second.why_gone() is None
    first.leave()


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ([{"host": 0}, {"host": 1}, {"host": 1}], "two hosts say --node-rank 1"),
        ([{"host": 0}, {"host": 1, "hosts": 3}], "says --nnodes [23], host [01] says [23]: they must agree"),
        ([{"host": 0}, {"host": 2, "hosts": 3}], "host 2 says --nnodes 3, host 0 says 2: they must agree"),
        ([{"host": 0}], "host 1 of 2 did not come within 0.01 minutes"),
        ([{"host": 1}], "no answer from host 0 at 127.0.0.1:.* within 0.01 minutes"),
    ],
    ids=["one number twice", "another count", "a host too many", "host 1 is missing", "host 0 is missing"],
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
        "host 1 ended: process 1 was lost" if way == "failed" else "host 1 was lost: no sign of life for 2 seconds"
    )


def test_an_endpoint_that_is_not_of_host_0_is_refused_there(monkeypatch):
    monkeypatch.setattr(hosts, "_SHORT", datetime.timedelta(seconds=0.1))
    monkeypatch.setattr(hosts, "_RESOLVE", 0.0)
    monkeypatch.setattr(hosts, "LEAVE_REFUSED", 0.0)
    for name, match in (("192.0.2.1", "192.0.2.1 is no address of this"), ("no.invalid", "no.invalid is not known")):
        with pytest.raises(UsageError, match=f"--rdzv-endpoint {name}:.*{match}"):
            hosts.meet(f"{name}:{free_port()}", hosts=2, host=0, processes=1, minutes=1, say=lambda line: None)
    monkeypatch.setattr(hosts, "_is_own", lambda name, port: False)  # an address that is translated on its way
    assert len(meet_all({"host": 0}, {"host": 1})[1].processes) == 2


def test_a_host_that_is_refused_before_it_comes_tells_it(monkeypatch):
    monkeypatch.setattr(hosts, "LEAVE_REFUSED", 0.0)
    endpoint, said, waits = f"127.0.0.1:{free_port()}", [], threading.Event()
    assert hosts.refused_before(endpoint, hosts=2, host=1, message="no such file") == "no such file"

    def first() -> None:
        given = {"hosts": 2, "host": 0, "processes": 1, "minutes": 1}
        try:
            hosts.meet(endpoint, **given, say=lambda line: waits.set())
        except UsageError as error:
            said.append(str(error))

    monkeypatch.setattr(hosts, "_PATIENCE", 0.0)
    for count, reason in ((2, "no such file"), (3, "host 1 says --nnodes 3, host 0 says 2: they must agree")):
        thread = threading.Thread(target=first)
        thread.start()
        assert waits.wait(30)
        assert hosts.refused_before(endpoint, hosts=count, host=1, message="no such file") == reason
        thread.join()
        assert said.pop() == f"host 1 ended: {reason}"
        waits.clear()


def test_a_host_that_is_gone_is_named_where_a_connection_broke(monkeypatch):
    monkeypatch.setattr(hosts, "QUIET", 0.3)
    monkeypatch.setattr(hosts, "BEAT", 0.02)
    first, second, third = meet_all(*({"hosts": 3, "host": host} for host in range(3)))
    with first.watched(), third.watched():  # the second gives no signs
        assert first.why_gone() == third.why_gone() == "host 1 was lost: no sign of life for 0 seconds"
    third.leave()
    first.leave(seconds=60)  # it does not wait for the lost one
    assert launch._among_hosts(ProcessFailed("rank 0: broken", 1), first).args == ("rank 0: broken",)
    first.lost = "host 1 was lost"
    stopped = ProcessFailed("stopped after step 3; continue", 130, saved=True)
    ended = launch._among_hosts(stopped, first)
    by_itself = launch._among_hosts(ProcessFailed("stopped by SIGTERM", 130), first)
    assert str(by_itself) == "host 1 was lost; continue with --resume"
    assert str(ended) == "host 1 was lost; stopped after step 3; continue" and ended.exit_code == 1


@pytest.mark.parametrize(
    ("found", "kind", "message"),
    [
        ([None, ("host 1 (b)", "")], TrainError, "stopped after step 7: the launcher of host 1 (b) was lost; continue"),
        ([None, ("host 1 (b)", "SIGTERM")], Interrupted, "stopped after step 7 by SIGTERM on host 1 (b); continue"),
    ],
    ids=["launcher", "signal"],
)
def test_the_host_that_stops_a_run_is_named(monkeypatch, found, kind, message):
    monkeypatch.setattr(distributed, "gather", lambda value: found)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    ended = distributed.who_stopped(0, step=7)
    assert type(ended) is kind and str(ended).startswith(message)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert str(distributed.who_stopped(15, step=7)).startswith("stopped after step 7; continue with the same command")


def test_a_rank_that_hangs_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "_FOR_LATE_WORDS", 0.0)
    store = torch.distributed.HashStore()
    assert distributed._silent_ranks(store, 2, 0) == []  # its connection broke
    assert distributed._silent_ranks(store, 0, 3) == [1]


def test_a_process_leaves_its_words_for_the_launcher_that_started_it(monkeypatch, tmp_path):
    assert not launch.tell_launcher("the disk is full", peer=False)
    for name, value in ((launch.WORDS, str(tmp_path)), (launch.LAUNCHER, str(os.getppid())), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert launch.tell_launcher("the disk is full", peer=False)
    failures = {1: SimpleNamespace(exitcode=4)}
    error = SimpleNamespace(failures=failures, get_first_failure=lambda: (1, failures[1]))
    failed = launch._failed(error, launch._words_in(str(tmp_path)), first=0)
    assert (str(failed), failed.exit_code, failed.peer) == ("the disk is full", 4, False)
    assert str(launch._failed(error, {}, first=2)) == "process 3 stopped (its message is above)"
    monkeypatch.setenv(launch.LAUNCHER, "0")  # it is gone: the process says it itself
    assert not launch.tell_launcher("the disk is full", peer=False)


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
