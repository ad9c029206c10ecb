"""Hosts: they reach each other and nothing else, and `stop` ends what was started on them and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import alive
from tools import cluster, hosts
from tools.hosts import Hosts

SERVER = "import socket, time; s = socket.create_server(({!r}, 9)); print('up', flush=True); s.accept(); time.sleep(99)"
CONNECT = "import socket; socket.create_connection(({!r}, 9), timeout=60)"
namespaces = subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Hosts]:
    found = Hosts(tmp_path / "cluster")
    yield found
    found.stop()


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


@pytest.mark.skipif(not namespaces, reason="needs a network namespace")
def test_a_host_reaches_the_others_and_nothing_else(made: Hosts, tmp_path: Path) -> None:
    made.open(3)
    assert made.apart and [made.address(n) for n in range(3)] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    assert made.port(8081) == 8081
    names = [made.prefix(number)[-1] for number in range(3)]
    server = made.start(2, "server", python(SERVER.format(made.address(2))))
    wait_for(tmp_path / "cluster" / "log" / "server.log", "up")
    subprocess.run([*made.prefix(1), *python(CONNECT.format(made.address(2)))], check=True)
    links = subprocess.run([*made.prefix(1), "ip", "-br", "addr"], capture_output=True, text=True).stdout
    assert {line.split()[0].split("@")[0] for line in links.splitlines()} - {"tunl0", "sit0"} == {"lo", "bridged"}
    Hosts(tmp_path / "cluster").stop()  # as another process does
    assert not alive(server) and not made.exist
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    assert not set(names) & set(left)


@pytest.mark.skipif(not namespaces, reason="needs a mount namespace")
def test_a_worker_does_not_see_what_is_hidden(tmp_path: Path) -> None:
    (hidden := tmp_path / "its own").mkdir()
    (hidden / "file").touch()
    made = Hosts(tmp_path / "cluster", hide=[hidden])
    made.open(2, apart=False)
    look = f"import os; at = {str(hidden)!r}; open(at + '/' + str(os.getpid()), 'x').close(); print(os.listdir(at))"
    try:
        for number, seen in ((1, 1), (0, 2)):
            made.start(number, f"look-{number}", python(look))
            wait_for(log := tmp_path / "cluster" / "log" / f"look-{number}.log", "]\n")
            assert log.read_text().count("'") == 2 * seen
    finally:
        made.stop()


def test_hosts_are_loopback_where_they_are_not_apart(made: Hosts) -> None:
    made.open(2, apart=False)
    assert not made.apart and made.address(1) == "127.0.0.1" and made.prefix(1) == [] and made.port(8081) != 8081


def test_stop_ends_what_was_started_and_what_that_started(
    made: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ignores SIGTERM is killed. One that has taken over a noted process id goes on."""
    monkeypatch.setattr(hosts, "END_S", 0.2)
    made.open(1, apart=False)
    child = "import signal, time; signal.signal(15, signal.SIG_IGN); print('child', flush=True); time.sleep(99)"
    code = f"import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', {child!r}]); "
    pid = made.start(0, "parent", python(code + "print(p.pid, '.', flush=True); p.wait()"))
    log = tmp_path / "cluster" / "log" / "parent.log"
    wait_for(log, "child")
    wait_for(log, ".")
    other = subprocess.Popen(python("import time; time.sleep(99)"), start_new_session=True)
    with open(tmp_path / "cluster" / "pids", "a") as pids:
        pids.write(f"{other.pid} 1 taken-over\n")
    try:
        made.stop()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    numbers = [int(word) for word in log.read_text().split() if word.isdecimal()]
    assert not any(map(alive, [pid, *numbers]))


def test_a_folder_has_one_cluster(made: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spark" / "jars").mkdir(parents=True)
    monkeypatch.setattr(cluster.shutil, "which", lambda _: "/java")
    with pytest.raises(SystemExit, match="needs java, and spark in .*: run `make engines`"):
        cluster.Spark(tmp_path / "cluster", tmp_path).start(1)
    made.open(1, apart=False)
    with pytest.raises(SystemExit, match="has a cluster already"):
        cluster.Spark(tmp_path / "cluster", tmp_path / "spark").start(1)


@pytest.mark.parametrize("kind", cluster.KINDS.values(), ids=cluster.KINDS)
def test_a_cluster_that_does_not_come_up_is_ended(
    kind: type[cluster.Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here java is a program that prints what Flink's tool prints, and then waits."""
    (tmp_path / "engine" / kind.runs).mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    line = "BASH_JAVA_UTILS_EXEC_RESULT:"
    tool = f'*Utils*) echo {line}-Xmx1m; echo {line}-D a=b;; *) echo "$@"; exec sleep 99'
    (tmp_path / "bin" / "java").write_text(f'#!/bin/sh\ncase "$*" in {tool};; esac\n')
    (tmp_path / "bin" / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin")
    monkeypatch.setattr(cluster, "START_S", 0.2)
    with pytest.raises(SystemExit, match="not all workers came up"):
        kind(tmp_path / "cluster", tmp_path / "engine").start(2, slots=3, apart=False)
    said = [path.read_text() for path in sorted((tmp_path / "cluster" / "log").iterdir())]
    assert len(said) == 3 and all("127.0.0.1" in text or "-Xmx1m" in text for text in said)
    assert not (tmp_path / "cluster" / "pids").exists() and not Hosts(tmp_path / "cluster").exist
