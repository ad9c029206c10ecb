"""Clusters: a job is cancelled where it runs, the job of a dead client is found, a dead cluster is noticed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from pipeline.engine import clusters, engine_checks, runners, variables, watchdog
from pipeline.engine.cli import UsageError
from pipeline.engine.clusters import Cluster, Flink, Spark
from pipeline.engine.progress import Watched
from pipeline.engine.work import Busy, StepFolder, lock_run_folder
from tests.places import ROOT
from tests.processes import alive


class Rest(ThreadingHTTPServer):
    """Flink's REST interface: jobs that end some questions after they were cancelled."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.states = {"a1": "RUNNING", "b2": "RUNNING", "c3": "FINISHED"}
        self.names = {"a1": "mine", "b2": "other", "c3": "mine"}
        self.task_managers = 2
        self.cancelled: list[str] = []
        self.deaf = False  # accepts a cancel and goes on
        self.slots = self.free = 2
        self.tasks = {"scheduled": 0, "deploying": 0, "initializing": 0, "running": 2, "finished": 3}
        self.hidden = 0  # so many questions are answered without any job

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Rest

    def do_GET(self) -> None:
        if self.path == "/overview":
            slots = {"slots-total": self.server.slots, "slots-available": self.server.free}
            return self._answer({"taskmanagers": self.server.task_managers, **slots})
        self.server.hidden -= 1
        if self.server.hidden >= 0:
            return self._answer({"jobs": []})
        names, tasks = self.server.names, self.server.tasks
        jobs = [
            {"jid": jid, "name": names[jid], "state": state, "start-time": place, "tasks": tasks}
            for place, (jid, state) in enumerate(self.server.states.items())
        ]
        for jid, state in self.server.states.items():
            if state == "CANCELLING" and not self.server.deaf:
                self.server.states[jid] = "CANCELED"
        self._answer({"jobs": jobs})

    def do_PATCH(self) -> None:
        jid = self.path.split("?")[0].rsplit("/", 1)[1]
        assert self.path.endswith("?mode=cancel")
        self.server.cancelled.append(jid)
        self.server.states[jid] = "CANCELLING"
        self._answer({})

    def _answer(self, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def rest() -> Iterator[Rest]:
    server = Rest()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "POLL_S", 0.01)
    monkeypatch.setattr(clusters, "CANCEL_S", 1.0)
    monkeypatch.setattr(clusters, "LATE_S", 0.2)
    monkeypatch.setattr(clusters, "SILENT_S", 0.1)
    monkeypatch.setattr(watchdog, "POLL_S", 0.01)


@pytest.mark.parametrize(
    ("runner", "flags", "expected"),
    [
        ("FlinkRunner", ["--flink_master=h:8081", "--job_name=x"], Flink("h:8081", "x")),
        ("flink", ["--flink_master", "http://h:8081/", "--job_name=x"], Flink("h:8081", "x")),
        ("FlinkRunner", ["--flink_master=[local]", "--job_name=x"], Cluster()),
        ("FlinkRunner", ["--job_name=x"], Cluster()),
        ("SparkRunner", ["--spark_master_url=spark://h:7077", "--job_name=x"], Spark("h:7077", "x")),
        ("spark", ["--spark_master_url=spark://h:7077,i:7077"], Spark("h:7077,i:7077")),
        ("SparkRunner", ["--spark_master_url=local[4]"], Spark()),
        ("SparkRunner", ["--spark_master_url=yarn"], Cluster()),
        ("local", [], Cluster()),
        ("PrismRunner", ["--flink_master=h:8081"], Cluster()),
    ],
)
def test_the_cluster_that_flags_name(runner: str, flags: list[str], expected: Cluster) -> None:
    found = clusters.cluster_of(runner, flags)
    assert found == expected and type(found) is type(expected)


def test_a_job_is_cancelled_and_waited_for_and_no_other_job(rest: Rest) -> None:
    assert Flink(rest.address, "mine").cancel() == ""
    assert set(rest.cancelled) == {"a1"} and rest.states == {"a1": "CANCELED", "b2": "RUNNING", "c3": "FINISHED"}


def test_a_job_that_does_not_end_is_named(rest: Rest) -> None:
    rest.deaf = True
    assert "mine may still run on Flink at" in Flink(rest.address, "mine").cancel()


def test_what_is_wrong_with_a_cluster(rest: Rest) -> None:
    assert Flink(rest.address, "mine").problem() == ""  # the newest job of the name has finished
    rest.states = {"a1": "RUNNING"}
    assert Flink(rest.address, "mine").problem() == "" == Cluster(rest.address).problem() == Cluster().problem()
    rest.states = {"a1": "FAILED"}
    assert "FAILED" in Flink(rest.address, "mine").problem()
    rest.task_managers = 0
    assert "no task manager" in Flink(rest.address, "mine").problem()


class Driver(BaseHTTPRequestHandler):
    """The page of a Spark driver, whose job is named by Beam: our name and a number of its own."""

    name, executors = "mine_1", [("driver", True), ("0", False), ("1", True)]

    def do_GET(self) -> None:
        found = [{"id": name, "isActive": active} for name, active in self.executors]
        body = json.dumps(found if self.path.endswith("/app-1/executors") else [{"id": "app-1", "name": self.name}])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_what_is_wrong_with_a_job_on_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is found among the drivers of this host. One without executors waits for ever."""
    monkeypatch.delenv("SPARK_LOCAL_IP", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Driver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        master = Spark(f"h.invalid:1,127.0.0.1:{server.server_port}", "mine")
        monkeypatch.setattr(clusters, "DRIVER_PORTS", range(server.server_port, server.server_port + 1))
        assert master.variables() == {"SPARK_LOCAL_IP": "127.0.0.1"} == Spark().variables()
        assert master.problem() == "" and master.page() == f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(Driver, "executors", [("driver", True), ("0", False)])
        assert "no executor on Spark at h.invalid:1,127.0.0.1" in master.problem()
        assert Spark("", "mine").page() and Spark("", "mine").problem() == ""  # its driver does the work
        assert Spark(master.address, "other").problem() == "" == Spark(master.address, "other").page()
    finally:
        server.shutdown()
        server.server_close()
    assert "does not answer" in master.problem()


def test_a_job_server_that_takes_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens; what listens is no job server; it is one."""
    monkeypatch.setattr(clusters, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"127.0.0.1:{listening.getsockname()[1]}"
        assert (
            clusters.problem_of_job_server(endpoint)
            == f"what listens at {endpoint} does not answer as a job server does"
        )
    with pytest.raises(UsageError, match=f"--job_endpoint: {endpoint} does not answer .*Start the job server"):
        engine_checks.check_answers("PortableRunner", [f"--job_endpoint={endpoint}"])
    engine_checks.check_answers("PortableRunner", ["--job_endpoint=embed"])
    assert "does not answer" in clusters.problem_of_job_server("nowhere")
    monkeypatch.setattr(clusters, "ANSWER_S", 10.0)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert clusters.problem_of_job_server(f"127.0.0.1:{port}") == ""
    finally:
        server.stop(None)


def test_a_job_that_waits_for_slots(rest: Rest) -> None:
    """A task manager is gone for good: no task runs, and the cluster does not say that anything is wrong."""
    flink = Flink(rest.address, "mine")
    rest.tasks |= {"scheduled": 2}
    rest.slots, rest.free = 1, 0
    assert flink.waits_with() == 0 and flink.problem() == ""  # others run
    rest.tasks |= {"running": 0}
    assert flink.waits_with() == 1 and "waits for slots, and Flink at" in flink.problem()
    rest.free = 1
    assert flink.waits_with() == 0 == Flink(rest.address, "never").waits_with() == Cluster().waits_with()


def test_a_job_that_waits_for_slots_goes_on_with_those_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    class Short(Sick):
        def waits_with(self) -> int:
            return 3 if len(asked) == 1 else 0

    def run_pipeline(*_: object, **__: object) -> None:
        time.sleep(20)

    monkeypatch.setenv(variables.STALL_SECONDS, "0.05")
    monkeypatch.setattr(clusters, "cluster_of", lambda name, flags: asked.append(list(flags)) or Short("h:1"))
    monkeypatch.setattr(runners, "make_options", lambda *_, **__: (None, None))
    monkeypatch.setattr(runners, "run_pipeline", run_pipeline)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(runners.JobFailed, match="it is gone"):
            given = ("flink", None, ["--parallelism=4"])
            runners.run_job(lambda root: None, given, root=str(tmp_path), steps=watched(tmp_path), program="p")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [clusters.values(flags)["parallelism"] for flags in asked] == ["4", "3"]
    assert "p: the cluster has lost slots: the run is going on with --parallelism=3." in capsys.readouterr().err


def test_a_cluster_that_is_gone() -> None:
    gone = Rest()
    gone.server_close()
    assert "does not answer" in Flink(gone.address, "mine").problem()
    assert "does not answer" in Cluster(gone.address).problem()
    assert "may still run" in Flink(gone.address, "mine").cancel()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_job_that_does_not_end_well_is_cancelled(rest: Rest, tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), clusters.noted(str(tmp_path), Flink(rest.address, "mine")):
        assert json.loads((tmp_path / ".job").read_text()) == {"flink": rest.address, "job": "mine"}
        raise error
    assert rest.states["a1"] == "CANCELED" and not (tmp_path / ".job").exists()


def test_a_job_on_spark_is_named_too(tmp_path: Path) -> None:
    """It ends with its client, so there is nothing to cancel. In the job server there is no cluster to name."""
    root = str(tmp_path)
    with pytest.raises(KeyboardInterrupt), clusters.noted(root, Spark("h:7077", "mine-1")):
        assert clusters.job_of(root) == "mine-1 on Spark at h:7077"
        raise KeyboardInterrupt
    assert not (tmp_path / ".job").exists()
    (tmp_path / ".job").write_text(json.dumps({"spark": "h:7077", "job": "mine-1"}))
    clusters.cancel_leftover(root)
    assert not (tmp_path / ".job").exists()
    with clusters.noted(root, Spark(job="mine-2")):
        assert not (tmp_path / ".job").exists()


def test_a_job_that_ends_well_is_left_alone(rest: Rest, tmp_path: Path) -> None:
    with clusters.noted(str(tmp_path), Flink(rest.address, "mine")):
        pass
    assert not rest.cancelled and not (tmp_path / ".job").exists()


def test_the_next_run_ends_the_job_of_a_killed_client(rest: Rest, tmp_path: Path) -> None:
    (tmp_path / ".job").write_text(json.dumps({"flink": rest.address, "job": "mine"}))
    with lock_run_folder(str(tmp_path)):
        assert rest.states["a1"] == "CANCELED" and not (tmp_path / ".job").exists()


def test_a_job_that_a_killed_client_had_just_submitted_is_found(rest: Rest, tmp_path: Path) -> None:
    """The note is written before the job is submitted. The cluster may know the job a moment after its client died."""
    rest.hidden = 3
    (tmp_path / ".job").write_text(json.dumps({"flink": rest.address, "job": "mine"}))
    with lock_run_folder(str(tmp_path)):
        assert rest.states["a1"] == "CANCELED" and not (tmp_path / ".job").exists()


def test_a_job_that_was_never_submitted_is_not_waited_for_long(rest: Rest, tmp_path: Path) -> None:
    (tmp_path / ".job").write_text(json.dumps({"flink": rest.address, "job": "never"}))
    start = time.monotonic()
    clusters.cancel_leftover(str(tmp_path))
    assert 0.2 <= time.monotonic() - start < 60 and not rest.cancelled and not (tmp_path / ".job").exists()


def test_the_page_of_a_job_is_told_once_it_is_there(
    rest: Rest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest.hidden, page = 2, f"http://{rest.address}/#/job/running/c3/overview"
    with watchdog.watching(watched(tmp_path), Flink(rest.address, "mine"), "p"):
        said, deadline = "", time.monotonic() + 60
        while page not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert said == f"p: the job on its engine: {page}\n"
    assert Flink(rest.address, "other").page() and not Flink(rest.address, "never").page() and not Cluster("h:1").page()


@pytest.mark.parametrize("given", [[], ["--job_name=ours"], ["--job_name", "ours"]])
def test_two_jobs_never_have_one_name(given: list[str]) -> None:
    """A name that the user gives may be that of another job on the cluster, which must not be cancelled."""
    names = {clusters.values([*given, *runners._own_name("FlinkRunner", given)])["job_name"] for _ in range(2)}
    assert len(names) == 2 and all(name.startswith("ours-" if given else f"openwit-{os.getpid()}-") for name in names)
    assert not runners._own_name("prism", given)


class Server:
    """A job server of Beam, as the runners know it."""

    def __init__(self, note: str) -> None:
        program = f"import os, time; open({note!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        self._words = [sys.executable, "-c", program]

    def subprocess_cmd_and_endpoint(self) -> tuple[list[str], str]:
        return self._words, "localhost:1"


TIED = """import subprocess, sys, time
sys.path.insert(0, {root!r})
from pipeline.engine import runners
from tests.engine.test_clusters import Server
server = Server({note!r})
runners._tie(server)
subprocess.Popen(server.subprocess_cmd_and_endpoint()[0])
time.sleep(60)
"""


def test_a_job_server_ends_with_its_client(tmp_path: Path) -> None:
    """Else it would submit the job of a killed client beside the next run."""
    note = tmp_path / "note"
    client = subprocess.Popen([sys.executable, "-c", TIED.format(root=str(ROOT), note=str(note))], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (note.exists() and note.read_text()):
            assert client.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        assert alive(int(note.read_text()))
    finally:
        client.kill()
        client.wait()
    while alive(int(note.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_left_job_that_cannot_be_ended_keeps_the_folder(rest: Rest, tmp_path: Path) -> None:
    rest.deaf = True
    (tmp_path / ".job").write_text(json.dumps({"flink": rest.address, "job": "mine"}))
    with pytest.raises(Busy, match="mine may still run.*remove .*job"), lock_run_folder(str(tmp_path)):
        pass
    assert (tmp_path / ".job").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00"])
def test_a_note_without_a_job_is_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / ".job").write_text(text)
    clusters.cancel_leftover(str(tmp_path))
    assert not (tmp_path / ".job").exists()


class Sick(Cluster):
    """A cluster with a problem."""

    def problem(self) -> str:
        return "it is gone"


def watched(tmp_path: Path) -> list[Watched]:
    (tmp_path / "step").mkdir()
    return [Watched("step", StepFolder(str(tmp_path / "step"), ""))]


def test_a_job_without_progress_on_a_sick_cluster_ends(tmp_path: Path) -> None:
    steps = watched(tmp_path)
    watch = watchdog.Watch(steps, Sick("h:1"), 100.0, 0.0)
    assert watch.look(99.0) == "" == watch.said
    assert watch.look(100.0) == "" and "no progress for 1:40: it is gone" in watch.said
    assert watch.look(110.0) == "" == watch.said  # it is asked again after a fifth of the patience
    assert watch.look(120.0) == "" and "it is gone" in watch.said
    assert "no progress for 2:20: it is gone" in watch.look(140.0)


def test_each_new_file_is_progress(tmp_path: Path) -> None:
    steps = watched(tmp_path)
    watch = watchdog.Watch(steps, Sick("h:1"), 100.0, 0.0)
    (tmp_path / "step" / "pieces").mkdir()
    assert watch.look(100.0) == "" == watch.said
    os.utime(tmp_path / "step" / "pieces", (1, 1))  # a file was made one level below
    assert watch.look(200.0) == "" == watch.said
    assert watch.look(300.0) == "" and "it is gone" in watch.said


def test_a_slow_job_on_a_sound_cluster_goes_on(tmp_path: Path) -> None:
    watch = watchdog.Watch(watched(tmp_path), Cluster(), 100.0, 0.0)
    for hour in range(1, 50):
        assert watch.look(hour * 3600.0) == "" and watch.said.startswith("no progress for")


def test_the_wait_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variables.STALL_SECONDS, "0.05")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), watchdog.watching(watched(tmp_path), Sick("h:1"), "p") as stalled:
            time.sleep(20)
        assert "it is gone" in stalled.reason
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_this_process_is_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variables.STALL_SECONDS, "0.01")
    with contextlib.nullcontext(), watchdog.watching(watched(tmp_path), Cluster(), "p") as stalled:
        time.sleep(0.1)
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    assert stalled.reason == ""
