"""pipeline.doctor: what it finds on machines of many kinds, and that it leaves nothing behind."""

from __future__ import annotations

import datetime
import email.utils
import http.server
import importlib.metadata
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.engine import jit, object_store
from pipeline.engine.cli import BELOW, DONE, USAGE
from tests.places import ROOT

OFFLINE = {"archives": "", "bucket": ""}
Usage = namedtuple("Usage", "total used free")


def one(check: Callable, name: str | None = None, *, folder: str = ".", **asked: str) -> doctor.Finding:
    """The finding of a check, by its name where there are several."""
    found = check(doctor.Asked(folder, **{**OFFLINE, **asked}))
    several = [found] if isinstance(found, doctor.Finding) else list(found)
    (wanted,) = [finding for finding in several if name in (None, finding.name)]
    return wanted


def test_a_sound_machine_has_no_fault_and_nothing_is_left_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", tuple(check for check in doctor.CHECKS if check is not doctor.torch))
    (tmp_path / "mine").write_text("kept")
    code = doctor.main([str(tmp_path / "out" / "deep"), "--offline"])
    said = capsys.readouterr().out
    assert code == DONE and f"free on {tmp_path}\n" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert "Next: python -m pipeline.demo" in said and "DNS" not in said


def test_json_has_one_entry_a_line_and_advice_where_it_is_needed(monkeypatch, capsys):
    def breaks(_: doctor.Asked) -> Iterator[doctor.Finding]:
        yield doctor.Finding("first", doctor.OK, "good")
        raise ValueError("odd")

    monkeypatch.setattr(doctor, "CHECKS", (breaks, doctor.cores))
    assert doctor.main(["--json"]) == BELOW
    rows = json.loads(capsys.readouterr().out)
    assert [row["level"] for row in rows] == ["ok", "fault", "ok"]
    assert rows[1]["found"] == "could not be checked: odd" and rows[1]["advice"] == "report this"


def test_an_unknown_flag_is_refused(capsys):
    assert doctor.main(["--ofline"]) == USAGE
    assert capsys.readouterr().err == "pipeline.doctor: unknown flag --ofline: did you mean --offline?\n"


def test_the_command_needs_neither_beam_nor_torch():
    code = "import sys, pipeline.doctor; assert not {'apache_beam', 'torch', 'numba', 'pyarrow'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


# ----------------------------------------------------------------------------------------------------- this machine


@pytest.mark.parametrize(
    ("free", "level"), [(1 << 29, "fault"), (2 << 30, "warning"), (3 << 30, "ok"), (None, "ok")]
)  # fmt: skip
def test_memory(free, level, monkeypatch):
    monkeypatch.setattr(doctor, "_available_memory", lambda: free)
    assert one(doctor.memory).level == level


@pytest.mark.parametrize(("free", "level"), [(1 << 29, "fault"), (19 << 30, "warning"), (20 << 30, "ok")])
def test_space(free, level, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1 << 40, 0, free))
    assert one(doctor.disk, "disk of OUT", folder=str(tmp_path)).level == level


@pytest.mark.parametrize("call", ["link", "replace", "fsync"])
def test_a_file_system_without_a_call_is_a_fault(call, monkeypatch, tmp_path):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, call, refuse)
    found = one(doctor.disk, "file system", folder=str(tmp_path))
    assert found.level == "fault" and found.found == f"Operation not supported in {tmp_path}" and found.advice
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("limit", "level", "shown"),
    [(256, "warning", "256"), (1024, "ok", "1,024"), (resource.RLIM_INFINITY, "ok", "unlimited")],
)
def test_open_files(limit, level, shown, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, 4096))
    found = one(doctor.open_files)
    assert (found.level, found.found) == (level, f"at most {shown} a process")
    assert found.advice == ("ulimit -n 4096" if level == "warning" else "")


def test_a_clock_of_another_year_is_a_fault(monkeypatch):
    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1970, 1, 2, tzinfo=tz)

    monkeypatch.setattr(doctor.datetime, "datetime", Then)
    assert one(doctor.clock).level == "fault"


# ---------------------------------------------------------------------------------------------------- this installation


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch):
    wanted = ["numpy>=2.1,<3", "numpy>=99", "no-such-package>=1", "x; extra == 'y'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    found = one(doctor.python, "packages")
    assert found.level == "fault" and found.found.endswith("does not fit numpy>=99; no-such-package is missing")


def test_kernels(monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "compiled", lambda: (tmp_path, 3, 11))
    assert one(doctor.kernels).advice == "python -m pipeline.engine.jit"
    monkeypatch.setattr(jit, "compiled", lambda: (tmp_path, 11, 11))
    assert one(doctor.kernels).level == "ok"
    monkeypatch.setattr(jit, "compiled", lambda: (None, 0, 11))
    assert "NUMBA_CACHE_DIR" in one(doctor.kernels).advice
    monkeypatch.setattr(jit, "available", lambda: False)
    assert "plain functions" in one(doctor.kernels).found


def test_compiled_kernels_are_counted(monkeypatch, tmp_path):
    jit._cache_root.cache_clear()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    try:
        root, none, total = jit.compiled()
        name = "pipeline.engine.hashing_kernel"
        made = tmp_path / f"kernels-{jit._state(name)}" / "x.nbi"
        made.parent.mkdir()
        made.touch()
        assert (root, none, jit.compiled()) == (tmp_path, 0, (tmp_path, 1, total))
    finally:
        jit._cache_root.cache_clear()


@pytest.mark.parametrize(
    ("code", "out", "smi", "level", "found"),
    [
        (0, "2.15.0|NVIDIA H100", True, "ok", "2.15.0 with NVIDIA H100"),
        (0, "2.15.0|", False, "ok", "2.15.0, no GPU: training runs on the CPU"),
        (0, "2.15.0|", True, "warning", "2.15.0 sees no GPU, but this machine has nvidia-smi"),
        (1, "", False, "warning", "cannot be imported: ImportError: libcudart"),
    ],
)
def test_torch(code, out, smi, level, found, monkeypatch):
    done = subprocess.CompletedProcess([], code, f"{out}\n", "Traceback\nImportError: libcudart\n")
    monkeypatch.setattr(doctor, "_run", lambda *_, **__: done)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(shutil, "which", lambda name: "/x" if smi else None)
    said = one(doctor.torch)
    assert (said.level, said.found) == (level, found) and bool(said.advice) == (level != "ok")


def test_engines_are_looked_for_where_the_runners_look(monkeypatch, tmp_path):
    (tmp_path / "prism").touch()
    monkeypatch.setenv("OPENWIT_ENGINES", str(tmp_path))
    assert one(doctor.engines, "prism").found == f"in {tmp_path}"
    for name in ("flink", "spark"):
        assert f"needed by --runner {name} alone" in one(doctor.engines, name).found


# ---------------------------------------------------------------------------------------------------------- the network


class Answer(http.server.BaseHTTPRequestHandler):
    date = ""

    def do_HEAD(self) -> None:
        self.send_response_only(403)
        self.send_header("Date", self.date)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/"
        listening.shutdown()
        thread.join()


def test_any_answer_of_a_server_is_good_and_its_clock_is_compared(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://secret:word@proxy.example:1")
    monkeypatch.setattr(Answer, "date", email.utils.formatdate(usegmt=True))
    found = {finding.name: finding for finding in doctor.network(doctor.Asked(".", server, server))}
    assert found["archives"].level == found["S3"].level == found["DNS"].level == "ok"
    assert found["archives"].found.startswith("127.0.0.1 answers 403 in ") and "clock against a server" not in found
    assert found["proxies"].level == "warning" and "secret" not in found["proxies"].found
    monkeypatch.setattr(Answer, "date", "Thu, 01 Jan 2015 00:00:00 GMT")
    assert one(doctor.network, "clock against a server", archives=server).level == "warning"


def test_a_machine_without_names_or_servers(monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = {finding.name: finding for finding in doctor.network(doctor.Asked("."))}
    assert found["DNS"].level == "fault" and "resolv.conf" in found["DNS"].advice
    assert found["archives"].level == found["S3"].level == "warning" and found["archives"].advice


def test_a_name_server_that_does_not_answer(monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr(doctor, "PATIENCE_S", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stop.wait(20))
    assert doctor._names("example.org").found == "example.org: no answer in 0 s"
    stop.set()


def test_lines_are_coloured_on_a_terminal_alone():
    bad = doctor.Finding("x", doctor.FAULT, "gone\x1b[2J", "bring it")
    assert doctor.line(bad, colour=False).count("\x1b") == 0 and "-> bring it" in doctor.line(bad, colour=False)
    assert doctor.line(bad, colour=True).startswith("\x1b[31mfault")


def test_memory_of_a_container(monkeypatch):
    files = {"/proc/meminfo": "MemAvailable: 8388608 kB\n", "/sys/fs/cgroup/memory.max": "4294967296\n",
             "/sys/fs/cgroup/memory.current": "1073741824\n"}  # fmt: skip
    monkeypatch.setattr(Path, "read_text", lambda path: files[str(path)])
    assert doctor._available_memory() == 3 << 30
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert doctor._available_memory() == 8 << 30


# ---------------------------------------------------------------------------------------------------- OUT on a store


def of_store(
    capsys: pytest.CaptureFixture[str], *denied: str, url: str = "s3://bucket/new"
) -> list[tuple[str, str, str]]:
    """(level, found, advice) of the findings of a store in memory, where a user may not do some things."""
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    from tests.store import in_memory

    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch, in_memory(scratch) as store:
        patch.setattr(doctor, "CHECKS", (doctor.disk,))
        store.objects["bucket", "new/manifest.json"] = b"{}"
        store.denied = denied
        code = doctor.main(["s3://bucket/new", "--offline", "--json"])
        assert store.objects == {("bucket", "new/manifest.json"): b"{}"}
    found = json.loads(capsys.readouterr().out)
    assert code == (BELOW if any(one["level"] == "fault" for one in found) else DONE)
    assert {one["name"] for one in found[1:]} >= {"disk of scratch folder", "file system"}
    return [(one["level"], one["found"], one["advice"]) for one in found if one["name"] == "store of OUT"]


def test_a_store_that_does_all(capsys: pytest.CaptureFixture[str]) -> None:
    listed, works = of_store(capsys)
    assert listed == ("ok", "s3://bucket/new can be listed: it holds manifest.json", "")
    assert works[0] == "ok" and "If-None-Match and If-Match are heeded" in works[1]


@pytest.mark.parametrize(
    ("denied", "right"),
    [("listed", "list needs the right s3:ListBucket"), ("written", "write needs the right s3:PutObject"),
     ("read", "read needs the right s3:GetObject")],
)  # fmt: skip
def test_the_right_that_is_missing_is_named(capsys: pytest.CaptureFixture[str], denied: str, right: str) -> None:
    level, found, advice = of_store(capsys, denied)[-1]
    assert level == "fault" and f"cannot be {denied}: Access Denied" in found and right in advice


def test_a_store_that_ignores_a_condition(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write = object_store.write
    monkeypatch.setattr(object_store, "write", lambda *args, **named: write(*args, tag=named.get("tag", "")))
    assert of_store(capsys)[-1][1] == "the store ignores If-None-Match: two runs could write there at once"


def test_names_that_are_no_folder_of_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    for url, why in {
        "s3://": "must name a bucket",
        "az://b/k": "other stores cannot",
        "s3:/b/k": "two slashes",
    }.items():
        assert doctor.main([url]) == USAGE
        assert f"OUT {url}: must" in (said := capsys.readouterr().err) and why in said
