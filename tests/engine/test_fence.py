"""The fence of OUT: a process of an ended run or job cannot write there, whenever it was stopped."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pytest

from pipeline.engine import beam_steps, fence, files, remote, runners, storage, work
from pipeline.engine.cli import UsageError
from pipeline.engine.work import StepFolder, lock_run_folder
from tests.places import ROOT

# A worker that stops itself in front of each rename. It goes on when it is told to.
WORKER = """import os, signal, sys
from pipeline.engine import files, work
root, token = sys.argv[1:]
work.lock_as_worker(root, token)
rename = os.replace
def stopping(source, target):
    os.kill(os.getpid(), signal.SIGSTOP)
    rename(source, target)
os.replace = stopping
folder = work.StepFolder(f"{root}/stages/gather/parts", "old")
try:
    files.write_bytes(folder.file(0, "arrow"), b"old")
except work.fence.FenceError as error:
    print(error)
attempts = (
    (folder.write_manifest, 0, {}),
    (folder.remove_files, 0),
    (work.check_token, root, token),
)
for attempt, *given in attempts:
    try:
        attempt(*given)
    except work.fence.FenceError:
        print("fenced")
"""


@pytest.fixture(autouse=True)
def no_token_stays() -> Iterator[None]:
    yield
    assert not fence._folders


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_stopped_worker_of_a_killed_run_writes_nothing_into_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "out")
    folder = StepFolder(f"{root}/stages/gather/parts", "new")
    fence.renew(root)  # a client that is killed: nothing lowers its fence
    (tmp_path / "out/.lock").touch()
    command = [sys.executable, "-c", WORKER, root, fence.token_of(root)]
    fence._folders.clear()
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not stopped(worker.pid):
            assert worker.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        with lock_run_folder(root, patience=0.05):
            assert "they cannot write there any more" in capsys.readouterr().err
            files.write_bytes(folder.file(0, "arrow"), b"new")
            folder.write_manifest(0, {})
            before = tree(tmp_path)
            worker.send_signal(signal.SIGCONT)
            said, _ = worker.communicate(timeout=60)
            assert tree(tmp_path) == before
        assert said.splitlines()[1:] == ["fenced"] * 3 and "belongs to another run" in said
        assert sorted(tree(tmp_path / "out")) == [
            *(".lock", ".workers", "stages/gather/parts/00000.arrow", "stages/gather/parts/00000.json")
        ]
    finally:
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()


def test_what_an_earlier_holder_has_finished_counts(tmp_path: Path) -> None:
    folder, done = StepFolder(str(tmp_path / "stages" / "gather" / "parts"), "print"), []
    for _ in range(2):
        with lock_run_folder(str(tmp_path)):
            token = fence.token_of(str(tmp_path))
            work.run_unit(folder, 3, lambda unit: done.append(unit) or {"rows": 1})  # type: ignore[func-returns-value]
            assert (tmp_path / fence.FOLDER / token).is_dir()
        assert token not in str(sorted(tree(tmp_path).items()))
    assert done == [3] and not (tmp_path / fence.FOLDER).exists()


def test_the_jobs_of_a_run_have_tokens_of_their_own(tmp_path: Path) -> None:
    root = str(tmp_path)
    with lock_run_folder(root):
        first = work.token_of(root)
        fence.next_job(root)
        assert work.token_of(root) not in ("", first)
        work.check_token(root, work.token_of(root))
        with pytest.raises(fence.FenceError, match="belongs to another run or job by now"):
            work.check_token(root, first)  # a thread of the earlier job, in this process
    assert work.token_of(root) == ""
    fence.next_job(root)  # not held: nothing happens
    assert not (tmp_path / fence.FOLDER).exists()


def test_who_comes_too_late_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(fence.FenceError, match=f"on {socket.gethostname()} does not see the output folder {tmp_path}:"):
        work.lock_as_worker(str(tmp_path), "0123456789abcdef")
    (tmp_path / ".lock").touch()
    with pytest.raises(fence.FenceError):
        work.lock_as_worker(str(tmp_path), "0123456789abcdef")
    fence._folders.clear()
    assert os.listdir(tmp_path) == [".lock"]


def test_a_worker_with_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    work.check_code(work.code())
    with pytest.raises(work.WorkerError) as raised:
        work.check_code("0123456789abcdef")
    said = str(runners.explain_failure(RuntimeError(f"pipeline.engine.work.WorkerError: {raised.value}")))
    assert said.startswith(f"the worker on {socket.gethostname()} has another version of this package ({ROOT})")


def test_a_run_that_loses_its_folder_says_so(tmp_path: Path) -> None:
    """Where the lock of one host cannot be seen by another one, the later run wins."""
    root = str(tmp_path)
    with pytest.raises(work.Busy, match="belongs to another run"), lock_run_folder(root):
        mine = dict(fence._folders)
        fence.renew(root)
        fence._folders.update(mine)
        storage.write_plain(f"{root}/file", b"")
    assert "file" not in tree(tmp_path)


def test_an_error_of_the_writer_stays_what_it_is(tmp_path: Path) -> None:
    with lock_run_folder(str(tmp_path)):
        with pytest.raises(FileNotFoundError), files.temporary(str(tmp_path / "a" / "b")):
            pass  # nothing was written
        files.remove(str(tmp_path / "not there"))
        (tmp_path / "folder" / "in it").mkdir(parents=True)
        files.remove(str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


def test_another_file_system_below_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(source: str, target: str, *, rename=os.rename) -> None:  # type: ignore[no-untyped-def]
        if os.path.dirname(source) != os.path.dirname(target):
            raise OSError(errno.EXDEV, "another device")
        rename(source, target)

    with lock_run_folder(str(tmp_path)):
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", across)
            patched.setattr(os, "rename", across)
            files.write_bytes(str(tmp_path / "disk" / "file"), b"bytes")
            files.write_bytes(str(tmp_path / "disk" / "gone"), b"bytes")
            files.remove(str(tmp_path / "disk" / "gone"))
        assert tree(tmp_path / "disk") == {"file": b"bytes"}
        assert not list((tmp_path / fence.FOLDER).rglob("*.tmp*"))


def test_a_host_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        fence.FenceError, match=r"a worker on .* does not see the output folder .*/out: all workers must"
    ):
        fence.enter(str(tmp_path / "out"), "0123456789abcdef")
    fence._folders.clear()
    again = type(fence.kept_out("/out"))(str(fence.kept_out("/out")))  # as Beam raises it once more, with its step
    assert str(again) == str(fence.kept_out("/out"))


def test_what_a_worker_lacks_is_said_at_its_first_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flink and Spark wait three minutes for a worker that fails before it."""
    kinds = beam_steps._OnWorker.__subclasses__()
    assert len(kinds) == 4
    for kind in kinds:
        step = kind.__new__(kind)
        step._code = "0123456789abcdef"
        assert kind.setup is beam.DoFn.setup and kind.start_bundle is beam.DoFn.start_bundle
        with pytest.raises(work.WorkerError, match="has another version"):
            list(step.process((0, ())))


def test_workers_of_each_stage_have_the_patience_of_the_run(tmp_path: Path) -> None:
    """Those that read no input asked the store of OUT for ten minutes, whatever --input-patience was."""
    planning = remote.RemoteSettings(patience=20.0, of_workers=700.0)
    with remote.configured(planning), lock_run_folder(str(tmp_path)):
        step = beam_steps._Index(work.StepFolder(str(tmp_path / "stages/match/parts"), "f"), indexed=False)
    with remote.configured(remote.RemoteSettings()), lock_run_folder(str(tmp_path)):
        step._token = work.token_of(str(tmp_path))
        step.join()
        assert remote.settings().patience == 700.0
    with remote.configured(remote.RemoteSettings(patience=20.0)):
        assert remote.patience_of_workers() == 20.0


# ------------------------------------------------------------------------------------------------------ NFS, Lustre


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lock(file: object, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(work.fcntl, "flock", lock)
    with pytest.raises(UsageError, match=f"^--output {tmp_path}: its file system gives no lock "):
        with lock_run_folder(str(tmp_path)):
            pass
    with pytest.raises(work.WorkerError, match=f"on {socket.gethostname()} cannot use --output {tmp_path}: its file"):
        work.lock_as_worker(str(tmp_path))
    assert not work._held


def test_the_holder_is_known_on_other_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bytes] = []
    monkeypatch.setattr(work.os, "fsync", lambda descriptor: flushed.append(os.pread(descriptor, 99, 0)))
    with lock_run_folder(str(tmp_path)):
        assert flushed[0].decode() == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_folder_is_looked_at_on_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of NFS answers `stat` from memory, and asks the server when a folder is opened."""
    step = StepFolder(str(tmp_path / "stages/gather/parts"), "f")
    step.write_manifest(0, {})
    old, stat = os.stat(step.path), os.stat
    assert len(step.manifests()) == 1
    os.utime(step.path, ns=(0, 0))
    step.write_manifest(1, {})
    monkeypatch.setattr(os, "stat", lambda path, **more: old if path == step.path else stat(path, **more))
    assert len(step.manifests()) == 2 and storage.changed(str(tmp_path / "none")) is None


def test_files_that_are_removed_while_they_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS gives them another name, and keeps their folder until they are closed."""
    (tmp_path / "stage" / "step").mkdir(parents=True)
    for name in ("a", ".nfs000000000002000700000002"):
        (tmp_path / "stage" / "step" / name).touch()
    assert storage.names(str(tmp_path / "stage/step")) == ["a"]
    assert [os.path.basename(path) for path in storage.walk(str(tmp_path))] == ["a"]
    rmdir, number = os.rmdir, [errno.ENOTEMPTY]

    def busy(path: str, **more: int | None) -> None:
        if os.path.basename(path) == "step":
            raise OSError(number[0], os.strerror(number[0]), path)
        rmdir(path, **more)

    monkeypatch.setattr(os, "rmdir", busy)
    storage.remove(str(tmp_path / "stage"))
    assert not (tmp_path / "stage").exists()
    (tmp_path / "stage" / "step").mkdir(parents=True)
    number[0] = errno.EACCES
    with pytest.raises(PermissionError):
        storage.remove(str(tmp_path / "stage"))
