"""The local runner: options reach its workers, workers die with their parent, and a failure is one sentence."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import build
from pipeline.engine import forked_workers, quiet_beam, runners
from pipeline.engine.cli import UsageError, with_next_step
from pipeline.engine.progress import Watched
from pipeline.engine.work import StepFolder
from tests.places import ROOT
from tests.processes import alive

TESTS = ROOT / "tests" / "engine"


@pytest.fixture(autouse=True)
def workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))


class Note(beam.DoFn):
    """Writes a file for each number: the process, and the number of results of the step before."""

    def __init__(self, folder: str, step: str) -> None:
        self._folder, self._step = Path(folder), step

    def process(self, number: int, before: Any = ()) -> Iterator[int]:
        from apache_beam.runners.worker import sdk_worker_main

        options = os.environ.get("PIPELINE_OPTIONS", "")
        seen = "told" if "told_to_the_workers" in options else sdk_worker_main.__name__
        (self._folder / f"{self._step}-{number}").write_text(f"{os.getpid()} {len(before)} {seen}")
        yield number


class Trouble(beam.DoFn):
    """Fails in the requested way."""

    def __init__(self, kind: str, folder: str) -> None:
        self._kind, self._folder = kind, Path(folder)

    def process(self, number: int) -> Iterator[int]:
        if self._kind == "raise" and number == 3:
            raise ValueError(f"number {number} is not wanted")
        if self._kind == "die" and number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._kind == "wait":
            (self._folder / f"pid-{os.getpid()}").touch()
            time.sleep(60)
        yield number


def chain(folder: Path) -> Any:
    """Two steps of eight numbers. The second step begins when the first has ended."""

    def construct(root: Any) -> None:
        first = root | "One" >> beam.Create(range(8)) | "First" >> beam.ParDo(Note(str(folder), "first"))
        numbers = root | "Two" >> beam.Create(range(8))
        _ = numbers | "Second" >> beam.ParDo(Note(str(folder), "second"), beam.pvalue.AsList(first))

    return construct


def troubled(kind: str, folder: Path) -> Any:
    def construct(root: Any) -> None:
        _ = root | "Numbers" >> beam.Create(range(8)) | "Trouble" >> beam.ParDo(Trouble(kind, str(folder)))

    return construct


def run(construct: Any, workers: int, *flags: str) -> None:
    runner, options = runners.make_options("local", workers, flags)
    runners.run_pipeline(construct, runner, options)


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    run(chain(tmp_path), 1)
    notes = [path.read_text().split() for path in tmp_path.glob("second-*")]
    assert {(pid, before) for pid, before, _ in notes} == {(str(os.getpid()), "8")}


def test_two_workers_are_processes_with_the_options(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(chain(tmp_path), 2, "--labels=told_to_the_workers")
    notes = [path.read_text().split() for path in tmp_path.glob("*-*")]
    assert len(notes) == 16
    assert len({pid for pid, _, _ in notes} - {str(os.getpid())}) == 2
    assert {seen for _, _, seen in notes} == {"told"}
    assert {path.read_text().split()[1] for path in tmp_path.glob("second-*")} == {"8"}
    assert not forked_workers.workers()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_is_told_in_the_stages_own_words(workers: int, tmp_path: Path) -> None:
    with pytest.raises(runners.JobFailed, match=r"^ValueError: number 3 is not wanted$") as caught:
        run(troubled("raise", tmp_path), workers)
    assert not isinstance(caught.value, runners.WorkerDied)


def test_a_dead_worker_is_told_soon(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with pytest.raises(runners.WorkerDied, match="a worker process died"):
        run(troubled("die", tmp_path), 2)
    assert time.monotonic() - start < 30
    assert not forked_workers.workers()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("listens", [False, True])
def test_a_dead_job_server_is_told_from_a_dead_worker(listens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "GONE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        died, own = runners.WorkerDied("a worker process died"), runners.Tied(lambda: (["jar"], endpoint))
        assert own()[0][-1] == "jar"
        nothing, given = PipelineOptions([]), PipelineOptions([f"--job_endpoint={endpoint}"])
        found = runners._of_server(died, [own], nothing)
        assert isinstance(found, runners.WorkerDied)  # the job is resumed
        assert isinstance(found, runners.ServerDied) is not listens
        assert isinstance(runners._of_server(died, [], given), runners.WorkerDied) is listens
        assert runners._of_server(died, [], nothing) is died
        other = runners.JobFailed("ValueError")
        assert runners._of_server(other, [own], given) is other


class Dies(beam.DoFn):
    """Kills its worker at number 3. It leaves a note and an unfinished file."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def process(self, number: int) -> Iterator[int]:
        if number == 3:
            (self._folder / f"died-{os.getpid()}").touch()
            (self._folder / f"begun.arrow.tmp{os.getpid()}-0").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield number


def test_a_job_goes_on_after_two_dead_workers_and_ends_at_the_third(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def construct(root: Any) -> None:
        _ = root | "Numbers" >> beam.Create(range(8)) | "Dies" >> beam.ParDo(Dies(str(tmp_path)))

    watched = [Watched("numbers", StepFolder(str(tmp_path), ""))]
    with pytest.raises(runners.WorkerDied):
        runners.run_job(construct, ("local", 2, ()), root=str(tmp_path), steps=watched, program="p")
    assert len(list(tmp_path.glob("died-*"))) == 3
    assert capfd.readouterr().err.count("p: a worker process died") == 2
    assert not list(tmp_path.glob("begun*"))  # the unfinished files of dead workers are removed


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    program = f"""from pathlib import Path
import test_runners
test_runners.run(test_runners.troubled('wait', Path({str(tmp_path)!r})), 2)"""
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("pid-*")]
    assert len(workers) == 2
    deadline = time.monotonic() + 45  # alone they would wait for a minute
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_direct_runner_is_the_local_runner(capsys: pytest.CaptureFixture[str]) -> None:
    runner, _ = runners.make_options("DirectRunner", 1)
    assert type(runner).__name__ == "LocalRunner"
    assert "using the local runner" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["FlinkRunner", "flink", "PRISM", "SparkRunner", "portable"])
def test_other_names_go_through_to_beam(name: str) -> None:
    runner, _ = runners.make_options(name, None, ["--job_endpoint=embed"])
    assert type(runner).__name__.lower().removesuffix("runner") == name.lower().removesuffix("runner")


def test_an_engine_that_was_fetched_needs_no_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a cluster it runs in this process. What the user gives stays, in either form of a flag."""
    monkeypatch.setenv("OPENWIT_ENGINES", str(tmp_path))
    assert runners.engine_defaults("spark", []) == []
    for name in ("prism", "beam-flink-1.19.jar", "beam-spark-3.jar"):
        (tmp_path / name).touch()
    assert runners.engine_defaults("Prism", []) == [f"--prism_location={tmp_path / 'prism'}"]
    assert runners.engine_defaults("SparkRunner", []) == [
        f"--spark_job_server_jar={tmp_path / 'beam-spark-3.jar'}",
        *["--spark_version=3", "--spark_master_url=local[2]", "--environment_type=LOOPBACK"],
    ]
    on_cluster = ["--spark_master_url", "spark://h:7077", "--spark_version=3", "--job_name=mine"]
    assert runners.engine_defaults("spark", on_cluster) == [f"--spark_job_server_jar={tmp_path / 'beam-spark-3.jar'}"]
    assert "--flink_master=[local]" in runners.engine_defaults("flink", ["--parallelism=5"])
    assert "--parallelism=2" not in runners.engine_defaults("flink", ["--parallelism=5"])
    other = runners.engine_defaults("flink", ["--flink_version", "2.2", "--job_name=mine"])
    assert other == []  # the jar that was fetched is for another version


@pytest.mark.parametrize(
    ("thread", "error", "told"),
    [
        ("read_state", RuntimeError, False),
        ("wait_until_finish_read", RuntimeError, False),
        ("run_worker_7-1", type("Cut", (Exception,), {"__module__": "grpc._channel"}), False),
        ("run_worker_7-1", RuntimeError, True),
    ],
)
def test_a_worker_of_this_process_whose_stream_was_cut_off_is_silent(
    thread: str, error: type[Exception], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    quiet_beam.quiet_readers.__wrapped__()
    threading.excepthook(threading.ExceptHookArgs((error, error(), None, threading.Thread(name=thread))))
    assert bool(seen) == told


def test_an_unknown_runner_is_refused() -> None:
    with pytest.raises(UsageError, match="no runner 'flonk'"):
        runners.make_options("flonk", None)


@pytest.mark.parametrize(
    ("flag", "near"), [("--workes=2", "--workers"), ("--flink_mastr=x", "--flink_master"), ("--zzzzzzzz", "")]
)
def test_an_unknown_flag_is_refused_with_a_suggestion(
    flag: str, near: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--input", str(tmp_path), "--output", str(tmp_path / "out"), flag]) == build.USAGE
    said = capsys.readouterr().err
    assert f"unknown flag {flag.split('=')[0]}" in said
    assert (f"did you mean {near}?" in said) == bool(near)


@pytest.mark.skipif(
    subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0, reason="needs a network namespace"
)
def test_it_runs_without_any_network(tmp_path: Path) -> None:
    program = f"""from pathlib import Path
import test_runners
test_runners.run(test_runners.chain(Path({str(tmp_path)!r})), 2)"""
    command = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$0" -c "$1"', sys.executable, program]
    subprocess.run(command, check=True, timeout=60)
    assert len(list(tmp_path.glob("second-*"))) == 8


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Error processing instruction bundle_1. Original traceback is\n...\nKeyError: 'bundle_1'\n", False),
        ("Error processing instruction bundle_1. Original traceback is\n...\nKeyError: 'url'\n", True),
        ("panic in stage.Execute: no, stackTrace:\ngoroutine 42 [running]:\n\terrgroup.go:78", False),
    ],
)
def test_what_a_stopped_worker_says_of_its_last_bundle_is_not_told(
    text: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet_beam.print_unless_expected(text)
    assert bool(capsys.readouterr().out) is told
    record = logging.LogRecord("apache_beam.runners.worker.sdk_worker", logging.ERROR, "", 0, text, (), None)
    assert quiet_beam.no_expected_trace(record) is told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UnicodeDecodeError: 'utf-8 [while running 'a/b']' codec can't", "UnicodeDecodeError: 'utf-8' codec can't"),
        ("KeyError: 'a' [while running 'units']", "KeyError: 'a'"),
        (
            "pipeline.engine.opening.ReaderError: 'a' failed: KeyError: 'b' [while running 'x']",
            "'a' failed: KeyError: 'b'",
        ),
        (
            "Unable to fetch remote job server jar at https://repo.example/a.jar: HTTP Error 404: Not Found. Use ...",
            "Beam could not download https://repo.example/a.jar. `make engines` fetches engines. Or give "
            "--flink_job_server_jar, --spark_job_server_jar or --prism_location the path of your own",
        ),
        (
            "Pipeline a failed in state FAILED: org.apache.flink.RestClientException: [x\n\tat a.b(C.java:1)\n"
            "Caused by: org.apache.flink.FlinkException: Could not upload.\n\tat a.b(C.java:2)\n"
            "Caused by: java.net.ConnectException: Connection refused\n\t... 13 more\n]",
            "Could not upload: Connection refused",
        ),
        (  # a panic of Prism
            "Pipeline j failed in state FAILED: bundle inst2 failed: panic in stage.Execute: nil map, stage: &{ID:s\n"
            "x:1},stackTrace:\ngoroutine 42 [running]:\nmain.go(0x1)\n\t/x/errgroup.go:78 +0x95",
            "bundle inst2 failed: panic in stage.Execute: nil map",
        ),
        ("panic: no\n\ngoroutine 1 [running]:\nmain.main()\n\tmain.go:3 +0x1\nexit status 2", "panic: no"),
    ],
)
def test_a_message_is_whole_where_beam_put_the_step_into_it(text: str, expected: str) -> None:
    assert str(runners.explain_failure(RuntimeError(text))) == expected


@pytest.mark.parametrize(
    "text",
    [
        "bundle inst2 failed:SDK worker disconnected: worker[w], 2 active instructions, error: context canceled",
        "panic in stage.Execute: send on closed channel, stage: &{},stackTrace:\ngoroutine 42 [running]:\n\tg.go:78 +0",
    ],
)
def test_what_prism_says_of_a_dead_worker(text: str) -> None:
    assert isinstance(runners.explain_failure(RuntimeError(text)), runners.WorkerDied)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it broke", "it broke. Run the same command again to continue."),
        ("it broke.", "it broke. Run the same command again to continue."),
        ("bad: run the same command again with --redo gather", "bad: run the same command again with --redo gather"),
        (
            "[Errno 28] No space left on device",
            "the disk is full ([Errno 28] No space left on device): free some space. "
            "Run the same command again to continue.",
        ),
        (
            "OSError: [Errno 28] No space left on device: '/scratch/of/me/local/s3/b/o/a.tmp7-0'",
            "the disk of /scratch/of/me is full (OSError: [Errno 28] No space left on device: "
            "'/scratch/of/me/local/s3/b/o/a.tmp7-0'): free some space, or name another folder by OPENWIT_SCRATCH. "
            "Run the same command again to continue.",
        ),
        (
            "[Errno 122] Disk quota exceeded: '/data/out/shards/0.tar'",
            "the disk of /data/out/shards is full ([Errno 122] Disk quota exceeded: '/data/out/shards/0.tar'): free "
            "some space. Run the same command again to continue.",
        ),
    ],
)
def test_a_failure_ends_with_what_to_type_next(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENWIT_SCRATCH", "/scratch/of/me")
    assert with_next_step(OSError(text)) == expected


def test_after_an_interrupt_only_beam_is_silent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(str(args.exc_value)))
    quiet_beam._hide_threads_of_beam.cache_clear()
    quiet_beam.hush()
    of_beam: dict[str, Any] = {}
    source = "import logging\ndef log(): logging.error('cut')\ndef fail(): raise OSError('cut')\n"
    exec(compile(source, "/site/apache_beam/runners/a.py", "exec"), of_beam)

    def fail() -> None:
        raise OSError("ours")

    try:
        of_beam["log"]()
        logging.getLogger("apache_beam.runners.worker.sdk_worker").critical("cut")
        logging.getLogger("mine").warning("kept")
        logging.error("kept, too")
        for target in (of_beam["fail"], fail):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    finally:
        quiet_beam.import_beam()  # the next job hears of Beam again
        quiet_beam._hide_threads_of_beam.cache_clear()
    logging.getLogger("apache_beam.pipeline").error("heard")
    assert [record.getMessage() for record in caplog.records] == ["kept", "kept, too", "heard"]
    assert told == ["ours"]


def test_what_the_user_disabled_stays_disabled() -> None:
    logging.disable(logging.ERROR)
    try:
        with quiet_beam.quiet():
            assert logging.root.manager.disable == logging.ERROR
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)
