"""Runs that are killed, interrupted, out of disk or refused: the same command then gives the same data set.

By hand, with more kills than the suite has time for: python -m tests.test_reliability --kills 12 [--seed 1]
Kills and interrupts of a fetch, with the requests that they repeat: python -m tests.test_reliability --fetch 20
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.demo import smallweb
from pipeline.engine import cli, files, shuffle_files, storage
from pipeline.engine.cli import INTERRUPTED
from pipeline.schema import STAGES
from pipeline.stages.base import Stage
from pipeline.stages.run import Run
from tests.places import ROOT
from tests.processes import AS_ANYBODY, alive, descendants, group_members
from tests.stages.test_select import QUERIES, draw_rows, write_table
from tests.webserver import WebServer, picture

PATIENCE = 120.0  # seconds that a run may take on a busy machine
EMPTY = ("COMPLETED", ".lock", ".workers")
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


# --------------------------------------------------------------------------------------------------- runs to disturb


def select_arguments(tmp: Path) -> list[str]:
    """The arguments for gather to balance on three small tables."""
    (tmp / "queries.txt").write_text("\n".join(QUERIES))
    (tmp / "in").mkdir(exist_ok=True)
    rows = draw_rows(900)
    for number, start in enumerate(range(0, len(rows), 300)):
        write_table(tmp / "in" / f"part{number}.parquet", rows[start : start + 300])
    arguments = ["--input", str(tmp / "in"), "--queries", str(tmp / "queries.txt")]
    return [*arguments, "--stages", "gather..balance", "--placeholder-bound", "5", "--cap", "40"]


def whole_arguments(tmp: Path, server: WebServer) -> list[str]:
    """The arguments for all stages, on a table with images of a loopback server, or on an archive."""
    (tmp / "queries.txt").write_text("red\ndog\na\nnumber\ncommon\n")
    numbers = range(len(server.images))
    table = {
        "url": [f"{server.base}/img/{number}.jpg" for number in numbers],
        "text": [f"a common red dog number {number}" for number in numbers],
    }
    pq.write_table(pa.table(table), tmp / "pairs.parquet")
    responses = [smallweb.response(server.images[f"{number}.jpg"], "image/jpeg") for number in range(10)]
    records = [smallweb.record("response", url, body) for url, body in zip(table["url"], responses, strict=False)]
    (tmp / "images.warc.gz").write_bytes(b"".join(gzip.compress(record, mtime=0) for record in records))
    inputs = [str(tmp / name) for name in ("pairs.parquet", "images.warc.gz")]
    arguments = ["--input", *inputs, "--queries", str(tmp / "queries.txt")]
    return [*arguments, "--allow-address", "127.0.0.0/8", "--rows-per-shard", "12", "--language-model", "none"]


@contextlib.contextmanager
def serving() -> Iterator[WebServer]:
    with WebServer({f"{number}.jpg": picture(number) for number in range(40)}) as server:
        yield server


def facts(out: Path) -> dict[str, Any]:
    """What must be the same: the digest of each stage, and the digest and files of the published set."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        info = storage.read_json(str(out / "stages" / stage / "info.json"))
        if info:
            found[stage] = info["digest"], info["rows_in"], info["rows_out"], info["dropped"]
    manifest = storage.read_json(str(out / "manifest.json"))
    if manifest:
        found["manifest"] = manifest["digest"], manifest["files"]
    return found


def undisturbed(arguments: list[str], out: Path) -> dict[str, Any]:
    """A run in this process without disturbance."""
    assert build.main([*arguments, "--output", str(out), "--workers", "1"]) == build.DONE
    check_files(out)
    return facts(out)


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, and its results without disturbance."""

    arguments: list[str]
    expected: dict[str, Any]
    files: int
    pages: int  # of 4 kB, in all files
    calls: dict[str, int]  # of functions of `os` that may fail


def calm(arguments: list[str], out: Path) -> Job:
    """Runs the command without disturbance."""
    counters = {name: Faulty(getattr(os, name), turn=0) for name in ("replace", "fsync")}
    with pytest.MonkeyPatch.context() as patch:
        for name, counter in counters.items():
            patch.setattr(os, name, counter)
        expected = undisturbed(arguments, out)
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    calls = {name: counter.calls for name, counter in counters.items()}
    return Job(arguments, expected, len(sizes), sum(-(-size // 4096) for size in sizes), calls)


@pytest.fixture(scope="module")
def select(tmp_path_factory: pytest.TempPathFactory) -> Job:
    tmp = tmp_path_factory.mktemp("select")
    return calm(select_arguments(tmp), tmp / "calm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    tmp = tmp_path_factory.mktemp("whole")
    with serving() as server:
        job = calm(whole_arguments(tmp, server), tmp / "calm")
        info = storage.read_json(str(tmp / "calm" / "stages" / "fetch" / "info.json"))
        assert info and info["archived_images"] == 10 and info["rows_out"] == len(server.images)
        yield job


def start(arguments: list[str], out: Path, workers: int = 2) -> subprocess.Popen[str]:
    """Starts the command in a process group of its own, as a shell would."""
    command = [sys.executable, "-m", "pipeline.build", *arguments, "--output", str(out), "--workers", str(workers)]
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str], timeout: float = PATIENCE) -> tuple[int, str]:
    """Returns (exit code, output). A process that does not end is killed, and the test fails."""
    try:
        _, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate()
        pytest.fail(f"did not end within {timeout} s: {said[-2000:]}")
    assert "Traceback" not in said, said[-4000:]
    return process.returncode, said


def count_files(out: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(out))


def reach(process: subprocess.Popen[str], out: Path, count: int) -> bool:
    """Waits until there are `count` files. Returns False if the process ended before.

    A count of files is the same moment of the run on a slow machine.
    """
    limit = time.monotonic() + PATIENCE
    while count_files(out) < count and time.monotonic() < limit:
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return process.poll() is None


# ------------------------------------------------------------------------------------------------- what must be true


def temporary_files(out: Path) -> list[str]:
    found = [os.path.join(parent, name) for parent, folders, names in os.walk(out) for name in [*folders, *names]]
    return [path for path in found if files.TEMPORARY.search(path)]


def check_files(out: Path) -> None:
    """Checks that every file under a final name is whole."""
    for parent, folders, names in os.walk(out):
        folders[:] = [name for name in folders if not files.TEMPORARY.search(name)]
        for name in names:
            if not files.TEMPORARY.search(name):
                with contextlib.suppress(FileNotFoundError):  # a dying worker may remove it
                    check_file(Path(parent, name))


def check_file(path: Path) -> None:
    """Reads a whole file in the format that its first bytes and its name show."""
    head = path.read_bytes()[:8]
    if path.name in EMPTY:
        return
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            assert all(tar.extractfile(member) for member in tar.getmembers())  # type: ignore[union-attr]
        return
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif head.startswith(b"PAR1"):
        pq.read_table(path, page_checksum_verification=True)
    elif head.startswith(b"ARROW1"):
        assert list(storage.read_batches(str(path))) is not None
    elif head.startswith(shuffle_files.MAGIC):
        assert list(shuffle_files.read_all(str(path))) is not None
    elif head.startswith(b"\x93NUMPY"):
        np.load(path)
    else:
        assert path.suffix not in (".parquet", ".arrow", ".keys", ".rows", ".drops", ".band", ".rejected"), path
        assert head or path.suffix in (".raw", ".mask"), f"{path} is empty"


def check_same(out: Path, expected: dict[str, Any]) -> None:
    assert facts(out) == expected
    check_files(out)
    assert not temporary_files(out)


def kill_again_and_again(job: Job, out: Path, *, kills: int, rng: random.Random) -> int:
    """Kills the run's process group at `kills` random moments and continues it each time.

    Returns:
        The number of kills that hit a running process.
    """
    hits, latest = 0, job.files * 9 // 10
    for _ in range(kills):
        there = count_files(out)
        if there >= latest - 2:
            shutil.rmtree(out)
            there = 0
        process = start(job.arguments, out)
        running = reach(process, out, rng.randrange(there + 1, latest))
        time.sleep(rng.random() * 0.1)
        hits += running and process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        check_files(out)
    return hits


def finish(job: Job, out: Path) -> None:
    """Checks that the same command gives the result of an undisturbed run."""
    code, said = end(start(job.arguments, out))
    assert code == build.DONE, said
    check_same(out, job.expected)


# ------------------------------------------------------------------------------------------------------------- kills


@pytest.mark.slow
@pytest.mark.parametrize("name", ["select", "whole"])
def test_a_killed_run_goes_on_to_the_same_data_set(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    job: Job = request.getfixturevalue(name)
    assert kill_again_and_again(job, tmp_path / "out", kills=2, rng=random.Random(f"seed 1 {name}"))
    finish(job, tmp_path / "out")


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The two workers once both run (forked, or started by themselves). Before that, []."""
    known = descendants(process.pid)
    ends = [pid for pid in known if not set(descendants(pid)) & set(known)]
    return ends if len(ends) == 2 else []


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    """The first true answer. When the time is up, the last answer."""
    limit = time.monotonic() + seconds
    while True:
        found = what()
        if found or time.monotonic() > limit:
            return found
        time.sleep(0.02)


@pytest.mark.slow
@needs_proc
def test_workers_end_with_their_parent_and_the_next_run_takes_over(select: Job, tmp_path: Path) -> None:
    process = start(select.arguments, tmp_path / "out")
    assert wait_for(lambda: workers_of(process), PATIENCE)
    started = descendants(process.pid)
    process.kill()  # the parent alone
    assert wait_for(lambda: not any(map(alive, started)), 2)
    process.communicate()
    assert undisturbed(select.arguments, tmp_path / "out") == select.expected
    assert not temporary_files(tmp_path / "out")


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("moment", ["at once", "at work"])
def test_a_killed_worker_does_not_end_the_job(moment: str, select: Job, tmp_path: Path) -> None:
    process = start(select.arguments, tmp_path / "out")
    workers = wait_for(lambda: workers_of(process), PATIENCE)
    assert workers
    if moment == "at work":
        assert reach(process, tmp_path / "out", 12)
    os.kill(workers[0], signal.SIGKILL)
    code, said = end(process)
    assert code == build.DONE, said
    assert "a worker process died" in said and "is going on" in said
    check_same(tmp_path / "out", select.expected)


@pytest.mark.slow
def test_an_interrupt_ends_it_with_130_and_it_can_be_taken_up(select: Job, tmp_path: Path) -> None:
    process = start(select.arguments, tmp_path / "out")
    assert reach(process, tmp_path / "out", 10)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    code, said = end(process)
    assert code == INTERRUPTED, said
    assert "Run the same command again to continue." in said
    assert wait_for(lambda: not group_members(process.pid), PATIENCE)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    check_files(tmp_path / "out")
    time.sleep(0.5)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert undisturbed(select.arguments, tmp_path / "out") == select.expected
    assert not temporary_files(tmp_path / "out")


# ---------------------------------------------------------------------------------------------- faults one at a time


class Faulty:
    """A function of `os` that fails at its n-th call and works at all other calls."""

    def __init__(self, real: Callable[..., Any], turn: int) -> None:
        self.real, self.turn, self.calls = real, turn, 0

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.calls += 1
        if self.calls == self.turn:
            raise OSError(5, "Input/output error")
        return self.real(*arguments, **more)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_the_nth_call_fails_and_the_run_can_be_taken_up(
    function: str, select: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = select.calls[function]
    assert calls > 50
    for turn in range(1, calls + 1, calls // 3):
        out = tmp_path / f"out{turn}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, function, Faulty(getattr(os, function), turn))
            code, said = said_by([*select.arguments, "--output", str(out)], capsys)
        assert code == build.CRASHED or function == "fsync"  # a run goes on if a folder cannot be flushed
        assert code == build.DONE or ("Input/output error" in said and cli.CONTINUE in said)
        assert "Traceback" not in said
        check_files(out)
        assert not temporary_files(out)
        assert undisturbed(select.arguments, out) == select.expected
        shutil.rmtree(out)


def test_bundles_that_run_twice_change_nothing(select: Job, tmp_path: Path) -> None:
    again = undisturbed([*select.arguments, "--direct_runner_bundle_repeat=2"], tmp_path / "out")
    assert again == select.expected


# --------------------------------------------------------------------------------------------------------- full disk


def in_small_tmpfs(out: Path, size: int, arguments: list[str]) -> dict[str, Any]:
    """Runs on a file system of `size` bytes, then again after it has grown.

    Needs a mount namespace of its own.
    """
    out.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(out)], check=True)
    first = end(start(arguments, out))
    check_files(out)
    left = temporary_files(out)
    subprocess.run(["mount", "-o", "remount,size=256m", str(out)], check=True)
    second = end(start(arguments, out))
    check_files(out)
    return {"first": first, "second": second, "left": left, "facts": facts(out), "after": temporary_files(out)}


def can_mount() -> bool:
    found = shutil.which("unshare") and shutil.which("mount")
    return bool(found) and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs root and a mount namespace")
@pytest.mark.parametrize(("name", "share"), [("select", 0.5), ("whole", 0.85)])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    name: str, share: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    job: Job = request.getfixturevalue(name)
    command = [sys.executable, "-m", "tests.test_reliability", "--tmpfs", str(int(job.pages * share) * 4096)]
    command = ["unshare", "-m", *command, "--out", str(tmp_path / "out"), *job.arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    code, said = found["first"]
    assert code == build.CRASHED, said
    assert "is full" in said and "free" in said and "same command" in said
    assert not found["left"] and not found["after"]
    assert found["second"][0] == build.DONE, found["second"][1]
    assert found["facts"] == json.loads(json.dumps(job.expected))


# ---------------------------------------------------------------------------------------------------------- refusals


def said_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = build.main([*arguments, "--workers", "1"])
    return code, capsys.readouterr().err


def test_a_second_run_on_the_same_folder_is_refused_at_once(
    select: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    process = start(select.arguments, out)
    assert wait_for(lambda: (out / ".lock").exists() and (out / ".lock").read_text(), PATIENCE)
    os.killpg(process.pid, signal.SIGSTOP)  # so that it still runs during the second run
    begin = time.monotonic()
    code, said = said_by([*select.arguments, "--output", str(out)], capsys)
    took = time.monotonic() - begin
    os.killpg(process.pid, signal.SIGCONT)
    assert end(process)[0] == build.DONE
    assert code == build.CRASHED
    assert "another run holds the output folder" in said and f"process {process.pid}" in said
    assert took < 60  # most of this time loads the libraries
    check_same(out, select.expected)


@pytest.mark.parametrize(
    ("change", "stage", "redo"),
    [
        (["--seed", "9"], "balance", "balance"),
        (["--placeholder-bound", "6"], "dedup", "dedup"),
        (["--match", "metaclip"], "match", "gather"),  # the rows of gather went on to match in the same pass
        (["--keep-rejected", "all"], "gather", "gather"),
    ],
)
def test_other_options_on_a_done_folder_are_refused(
    change: list[str], stage: str, redo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*select_arguments(tmp_path), "--output", str(tmp_path / "out")]
    assert said_by(arguments, capsys)[0] == build.DONE
    before = facts(tmp_path / "out")
    code, said = said_by([*arguments, *change], capsys)
    assert code == build.USAGE
    assert f"the stage {stage!r}" in said and f"--redo {redo}" in said
    assert facts(tmp_path / "out") == before


def test_other_inputs_on_a_done_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*select_arguments(tmp_path), "--output", str(tmp_path / "out")]
    assert said_by(arguments, capsys)[0] == build.DONE
    write_table(tmp_path / "in" / "part3.parquet", draw_rows(10))
    code, said = said_by(arguments, capsys)
    assert code == build.USAGE and "(another --input)" in said


def test_what_is_missing_or_unfit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select_arguments(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "in" / "part0.parquet").read_bytes()[:500])
    (tmp_path / "file").write_text("a file")
    source, queries, out = str(tmp_path / "in"), str(tmp_path / "queries.txt"), str(tmp_path / "out")
    cases: list[tuple[str, str, str, int, str]] = [
        (str(tmp_path / "nowhere"), queries, out, build.MISSING, "nowhere"),
        (str(tmp_path / "empty"), queries, out, build.MISSING, "holds no file to read"),
        (str(tmp_path / "cut.parquet"), queries, out, build.MISSING, "cut or damaged"),
        (source, str(tmp_path / "no-queries.txt"), out, build.MISSING, "no-queries.txt"),
        (source, str(tmp_path / "none.txt"), out, build.MISSING, "none.txt"),
        (source, queries, str(tmp_path / "file"), build.USAGE, "is a file"),
        (source, queries, str(tmp_path / "file" / "below"), build.USAGE, "is a file"),
    ]
    for given, asked, where, expected, words in cases:
        code, said = said_by(["--input", given, "--queries", asked, "--output", where], capsys)
        assert (code, words in said) == (expected, True), said
        assert "Traceback" not in said
    assert not os.path.exists(out)


def as_anybody(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_ANYBODY, *command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.mark.parametrize(
    ("name", "mode", "code", "words"),
    [
        ("in/part1.parquet", 0, build.MISSING, "part1.parquet"),
        ("queries.txt", 0, build.MISSING, "queries.txt"),
        ("out", 0o555, build.USAGE, "is not writable"),
    ],
)
def test_what_may_not_be_read_or_written_is_named(name: str, mode: int, code: int, words: str, tmp_path: Path) -> None:
    arguments = [*select_arguments(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]
    (tmp_path / "out").mkdir()
    (tmp_path / name).chmod(mode)
    needed = "-r" if mode == 0 else "-w"
    if as_anybody("test", needed, str(tmp_path / name)).returncode == 0:
        pytest.skip("this process may read and write any file, and cannot give that right up")
    done = as_anybody(sys.executable, "-m", "pipeline.build", *arguments)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_an_input_that_goes_away_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*select_arguments(tmp_path), "--output", str(tmp_path / "out")]
    real = build.run_job

    def remove_and_run(stages: list[Stage], run: Run, *, quiet: bool) -> None:
        (tmp_path / "in" / "part1.parquet").rename(tmp_path / "elsewhere")
        real(stages, run, quiet=quiet)

    monkeypatch.setattr(build, "run_job", remove_and_run)
    code, said = said_by(arguments, capsys)
    assert code == build.CRASHED and "part1.parquet" in said and "the same command" in said


def test_units_that_are_gone_are_noticed_by_the_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit whose files and manifest are gone leaves no trace but the count of rows."""
    arguments = [*select_arguments(tmp_path), "--output", str(tmp_path / "out")]
    assert said_by(arguments, capsys)[0] == build.DONE
    for path in (tmp_path / "out" / "stages" / "match" / "parts").glob("00001*"):
        path.unlink()
    code, said = said_by([*arguments, "--redo", "balance"], capsys)
    assert code == build.CRASHED and "stages/dedup is damaged (some of its files are gone: " in said
    assert "--redo" in said and not (tmp_path / "out" / "stages" / "balance" / "COMPLETED").exists()
    assert said_by([*arguments, "--redo", "gather"], capsys)[0] == build.DONE


def test_a_stage_half_removed_is_made_anew(select: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while --redo removes stages leaves no manifest without its files."""
    arguments, out = select.arguments, tmp_path / "out"
    undisturbed(arguments, out)
    real = shutil.rmtree

    def half(path: Any, *_: Any, **__: Any) -> None:
        for name in sorted(Path(path).rglob("*.arrow")):
            name.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half)
    code = build.main([*arguments, "--output", str(out), "--workers", "1", "--redo", "gather"])
    assert code == INTERRUPTED
    monkeypatch.setattr(shutil, "rmtree", real)
    assert undisturbed(arguments, out) == select.expected
    assert not temporary_files(out)


# ----------------------------------------------------------------------------------------------------------- by hand


def kill_the_fetch(kills: int, rng: random.Random, images: int = 3000) -> None:
    """Kills a fetch, then interrupts it a quarter as often. Prints how many requests were made again."""
    pictures = [picture(number) for number in range(40)]
    served = {f"{number}.jpg": pictures[number % 40] for number in range(images)}
    with WebServer(served) as server, tempfile.TemporaryDirectory() as tmp:
        arguments = whole_arguments(Path(tmp), server)
        expected = undisturbed(arguments, Path(tmp) / "calm")
        undisturbed_requests = sum(count for path, count in server.hits.items() if path.startswith("/img/"))
        server.hits.clear()
        turns = [signal.SIGKILL] * kills + [signal.SIGINT] * (kills // 4)
        rng.shuffle(turns)
        for number, how in enumerate(turns, 1):
            goal = number * images // (len(turns) + 1)
            process = start(arguments, Path(tmp) / "out")
            while process.poll() is None and len(server.hits) < goal:
                time.sleep(0.002)
            (os.killpg if how == signal.SIGKILL else os.kill)(process.pid, how)
            code, _ = end(process)
            print(f"{how.name} at {len(server.hits)} requests: exit code {code}", file=sys.stderr)
        code, said = end(start(arguments, Path(tmp) / "out"))
        assert code == build.DONE, said
        check_files(Path(tmp) / "out")
        assert facts(Path(tmp) / "out") == expected
        total = sum(count for path, count in server.hits.items() if path.startswith("/img/"))
        print(
            f"{kills} kills and {kills // 4} interrupts: {total} requests instead of {undisturbed_requests}, "
            f"{(total - undisturbed_requests) / len(turns):.0f} more for each; the same data set in the end"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12, help="of each kind of run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fetch", type=int, metavar="N", help="kill a fetch N times, and interrupt it N // 4 times")
    parser.add_argument("--tmpfs", type=int, help="bytes of the file system of a run that is to fill it")
    parser.add_argument("--out", type=Path)
    options, arguments = parser.parse_known_args()
    if options.tmpfs:
        print(json.dumps(in_small_tmpfs(options.out, options.tmpfs, arguments)))
        return
    if options.fetch:
        kill_the_fetch(options.fetch, random.Random(options.seed))
        return
    for name in ("select", "whole"):
        with tempfile.TemporaryDirectory() as folder, serving() as server:
            tmp = Path(folder)
            given = select_arguments(tmp) if name == "select" else whole_arguments(tmp, server)
            job = calm(given, tmp / "calm")
            hits = kill_again_and_again(job, tmp / "out", kills=options.kills, rng=random.Random(options.seed))
            finish(job, tmp / "out")
            print(f"{name}: {hits} of {options.kills} kills hit a run under way; the same data set in the end")


if __name__ == "__main__":
    main()
