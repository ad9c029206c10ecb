"""OUT on an object store (moto 5.2 on loopback). Each function of `storage` gives the same there as on this machine."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import build, inspect_shards
from pipeline.dataset import shards
from pipeline.engine import (
    clusters,
    input_errors,
    interrupts,
    lease,
    object_cache,
    object_store,
    remote,
    runners,
    s3_store,
    scratch,
    storage,
    work,
)
from pipeline.engine.object_store import Conflict
from pipeline.engine.storage import DamagedError
from pipeline.stages import run, user_files
from pipeline.stages.caps import read_lines
from tests.any_store import check_that_a_replaced_object_is_noticed
from tests.engine.test_storage import FORMS
from tests.language_models import write_model
from tests.places import ROOT
from tests.store import BUCKET, endpoint, put, running
from tests.webserver import WebServer, picture
from tests.without_beam import run_job

TOP = f"s3://{BUCKET}"


@pytest.fixture(scope="module", autouse=True)
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A store with a bucket, and a scratch folder."""
    with running() as address, endpoint(address), pytest.MonkeyPatch.context() as patch:
        put(address, {})
        patch.setenv("OPENWIT_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield address


@pytest.fixture(params=["here", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of this machine, and one of the store."""
    return str(tmp_path / "set") if request.param == "here" else f"{TOP}/{request.node.name}"


# ------------------------------------------------------------------------------------------------ both kinds of folder


def test_each_form_comes_back_and_a_flip_or_a_missing_file_is_noticed(folder: str) -> None:
    for number, (name, form) in enumerate(FORMS.items()):
        path = f"{folder}/{name}"
        form.write(path)
        assert form.read(path) == form.content
        assert form.read(path) == form.content  # now from a copy
        data = bytearray(storage.read(path))
        data[(7 * number) % len(data)] ^= 4
        storage.write_plain(path, bytes(data))
        storage.forget()
        with pytest.raises(DamagedError, match=f"/{name} is damaged"):
            form.read(path)
        if form.read is not storage.read_json:
            with pytest.raises(DamagedError, match="nowhere is missing"):
                form.read(f"{folder}/nowhere")
    assert storage.read_json(f"{folder}/nowhere") is None


def test_names_sizes_and_states(folder: str) -> None:
    assert storage.names(folder) == [] and not storage.exists(folder) and storage.changed(folder) is None
    for name in ("b.json", "a/x", "a/y/z", "ab"):
        storage.write_plain(f"{folder}/{name}", name.encode())
    assert storage.names(folder) == ["a", "ab", "b.json"]
    assert sorted(path.removeprefix(folder) for path in storage.walk(folder)) == ["/a/x", "/a/y/z", "/ab", "/b.json"]
    assert storage.is_folder(f"{folder}/a") and storage.exists(f"{folder}/a") and storage.is_file(f"{folder}/ab")
    assert (
        not storage.is_folder(f"{folder}/ab")
        and not storage.is_file(f"{folder}/a/y")
        and storage.size(folder + "/ab") == 2
    )
    state, changed = storage.state(f"{folder}/ab"), storage.changed(folder)
    assert storage.changed(folder) == changed and storage.state(f"{folder}/none") is None
    storage.write_plain(f"{folder}/ab", b"other")
    storage.write_plain(f"{folder}/c", b"")
    assert storage.state(f"{folder}/ab") != state and storage.changed(folder) != changed
    with pytest.raises(FileNotFoundError):
        storage.size(f"{folder}/none")
    with pytest.raises(FileNotFoundError):
        storage.read(f"{folder}/none")


def test_files_move_are_linked_and_removed(folder: str) -> None:
    for name in ("a/x", "a/y/z", "ab"):
        storage.write_plain(f"{folder}/{name}", name.encode())
    storage.move(f"{folder}/a/x", f"{folder}/new/x")
    storage.move(f"{folder}/a/x", f"{folder}/new/x")  # a second time: as after a crash
    storage.link(f"{folder}/ab", f"{folder}/new/ab")
    assert storage.read(f"{folder}/new/x") == b"a/x" and storage.read(f"{folder}/new/ab") == b"ab"
    storage.remove(f"{folder}/a")
    storage.remove(f"{folder}/a")
    assert storage.names(folder) == ["ab", "new"] and storage.names(f"{folder}/new") == ["ab", "x"]
    storage.remove(f"{folder}/new")
    assert storage.names(folder) == ["ab"]


def test_ranges_and_streams(folder: str) -> None:
    path, data = f"{folder}/data", bytes(range(256)) * 1000
    with storage.writing(path) as file:
        file.write(data)
    assert storage.read_range(path, 70_000, 300) == data[70_000:70_300]
    assert storage.read_range(path, 255_900, 300) == data[255_900:] and storage.read_range(path, 10**9, 5) == b""
    place = bytearray(1000)
    storage.read_into(path, 9, memoryview(place))
    assert place == data[9:1009]
    for at in (255_500, 10**9):
        with pytest.raises(DamagedError, match="it is cut"):
            storage.read_into(path, at, memoryview(place))
    with pytest.raises(DamagedError, match="missing"):
        storage.read_into(f"{folder}/none", 0, memoryview(place))
    with storage.opened(path) as file:
        assert storage.range_of(file, 100, 200_000) == data[100:200_100] and file.seek(0, 2) == len(data)
    for _ in range(2):
        with storage.reading(path) as file:
            assert file.seek(200_000) == 200_000 and file.read(5) == data[200_000:200_005] and file.seek(0) == 0
            assert file.read() == data
    with storage.mapped(path) as mapped:
        assert mapped[:] == data


def test_a_file_whose_writer_fails_does_not_appear(folder: str) -> None:
    storage.write_plain(f"{folder}/old", b"old")
    for name in ("old", "new"):
        with pytest.raises(ZeroDivisionError), storage.writing(f"{folder}/{name}") as file:
            file.write(b"half")
            raise ZeroDivisionError
    assert storage.read(f"{folder}/old") == b"old" and storage.names(folder) == ["old"]
    assert not [path for path in storage.walk(storage.beside(folder)) if "new" in path]


# -------------------------------------------------------------------------------------------------- the store alone


def test_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{TOP}/conditions/x"
    first = object_store.write(url, b"1", absent=True)
    with pytest.raises(Conflict):
        object_store.write(url, b"2", absent=True)
    second = object_store.write(url, b"2", tag=first)
    with pytest.raises(Conflict):
        object_store.write(url, b"3", tag=first)
    assert object_store.read(url) == b"2" and second != first
    check_that_a_replaced_object_is_noticed(url)


@pytest.mark.parametrize("method", ["upload_part", "upload_part_copy"])
def test_what_was_sent_goes_if_a_piece_fails(method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(s3_store, "PIECE", 5 << 20)
    monkeypatch.setattr(s3_store, "LARGEST_COPY", 1)
    (tmp_path / "data").write_bytes(bytes(6 << 20))
    object_store.write(f"{TOP}/pieces/data", b"data")
    ask, sent = s3_store._ask, list[str]()

    def fail(url: str, name: str, **given: Any) -> Any:
        sent.append(name)
        if name == method:
            raise OSError("the store is full")
        return ask(url, name, **given)

    monkeypatch.setattr(s3_store, "_ask", fail)
    with pytest.raises(OSError, match="the store is full"):
        if method == "upload_part":
            object_store.upload(str(tmp_path / "data"), f"{TOP}/pieces/made")
        else:
            object_store.copy(f"{TOP}/pieces/data", f"{TOP}/pieces/made", 4)
    assert sent[-3:] == ["create_multipart_upload", method, "abort_multipart_upload"]
    assert object_store.head(f"{TOP}/pieces/made") is None


def test_large_files_go_in_pieces_and_long_lists_in_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(s3_store, "PIECE", 5 << 20)
    monkeypatch.setattr(s3_store, "LARGEST_COPY", 6 << 20)
    monkeypatch.setattr(s3_store, "LISTED", 3)
    data = os.urandom(11 << 20)
    (tmp_path / "data").write_bytes(data)
    tag = object_store.upload(str(tmp_path / "data"), f"{TOP}/large/data")
    assert tag.strip('"').endswith("-3") and object_store.read(f"{TOP}/large/data") == data
    object_store.copy(f"{TOP}/large/data", f"{TOP}/large/copy", len(data))
    assert object_store.read(f"{TOP}/large/copy") == data
    for number in range(8):
        object_store.write(f"{TOP}/large/many/{number}", b"x")
    assert storage.names(f"{TOP}/large/many") == [str(number) for number in range(8)]
    storage.remove(f"{TOP}/large")
    assert not storage.exists(f"{TOP}/large")


def test_copies_are_bounded_and_of_the_present_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENWIT_SCRATCH", str(tmp_path))
    asked: list[str] = []
    download = object_store.download
    monkeypatch.setattr(
        object_store, "download", lambda *args, **more: (asked.append(found := download(*args, **more)), found)[1]
    )
    url = f"{TOP}/copies/x"
    for content in (b"one", b"two"):
        object_store.write(url, content)
        assert [Path(object_cache.local(url)).read_bytes() for _ in range(3)] == [content] * 3
    assert [tag is None for tag in asked] == [False, True, True] * 2
    for number in range(4):
        object_store.write(f"{TOP}/copies/{number}", bytes(1000))
        os.utime(object_cache.local(f"{TOP}/copies/{number}"), (number, number))
    object_cache.remove_old(str(tmp_path / "objects"), 2003)
    left = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert sorted(int(path.stat().st_mtime) for path in left)[:2] == [2, 3] and len(left) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENWIT_SCRATCH", "/proc/none")
        with pytest.raises(build.UsageError, match="OPENWIT_SCRATCH=/proc/none: cannot be made"):
            scratch.folder()


# ------------------------------------------------------------------------------------------------------- the lease


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From now on this process has the scratch folder of another machine."""
    monkeypatch.setenv("OPENWIT_SCRATCH", str(tmp_path / "machine"))


def test_one_of_two_machines_gets_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = f"{TOP}/held"
    with work.lock_run_folder(root):
        with pytest.raises(work.Busy, match=rf"process {os.getpid()}"), work.lock_run_folder(root):
            pass
        another_machine(monkeypatch, tmp_path)
        with (
            pytest.raises(work.Busy, match=rf"process {os.getpid()} on .*last sign \d s ago"),
            work.lock_run_folder(root),
        ):
            pass
    assert storage.names(root) == []
    with work.lock_run_folder(root):
        pass


def test_a_lease_without_a_sign_is_taken_over_and_its_holder_stops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = f"{TOP}/lost"
    step = work.StepFolder(f"{root}/stages/match/parts", "f")
    monkeypatch.setattr(lease, "EXPIRES_S", 0.0)  # no sign counts
    with pytest.raises(work.LeaseLost, match=f"lost the output {root} to another one"), work.lock_run_folder(root):
        step.write_manifest(0, {})
        with pytest.MonkeyPatch.context() as patch:
            another_machine(patch, tmp_path)
            token = lease.token_of(root)
            with lease.held(root):
                pass
            with pytest.raises(lease.LeaseError, match="it has ended"):
                lease.join(root, token)
            with pytest.raises(lease.LeaseError, match="it has ended"):
                step.write_manifest(1, {})
            object_store.write(f"{root}/.lease", json.dumps({"token": "t", "holder": "H", "machine": "M"}).encode())
        step.write_manifest(2, {})
    assert storage.names(step.path) == ["00000.json"]


def test_a_holder_that_lost_its_lease_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    root, before = f"{TOP}/interrupted", signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    said: list[str] = []
    monkeypatch.setattr(interrupts, "because", said.append)
    try:
        with pytest.raises(work.LeaseLost, match=r"\(H\)"), work.lock_run_folder(root):
            time.sleep(0.2)  # it goes on
            object_store.write(f"{root}/.lease", json.dumps({"token": "t", "holder": "H", "machine": "M"}).encode())
            time.sleep(30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said[0].startswith(f"this run has lost the output {root} to another one (H)") and said[1:] == [""]
    assert json.loads(object_store.read(f"{root}/.lease"))["holder"] == "H"


def test_a_run_that_fails_since_it_lost_its_lease_says_so() -> None:
    root = f"{TOP}/failed"
    with pytest.raises(work.LeaseLost, match=r"lost the output .*\(H\)"), work.lock_run_folder(root):
        object_store.write(f"{root}/.lease", json.dumps({"token": "t", "holder": "H", "machine": "M"}).encode())
        raise FileNotFoundError("a file that the other run has moved")
    object_store.delete([f"{root}/.lease"])
    with pytest.raises(FileNotFoundError), work.lock_run_folder(root):
        raise FileNotFoundError("a file of this run")


@pytest.mark.parametrize(("ignored", "said"), [("absent", "ignores If-None-Match"), ("tag", "ignores If-Match")])
def test_a_store_without_conditions_is_refused(ignored: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write, root = object_store.write, f"{TOP}/careless"
    monkeypatch.setattr(
        object_store, "write", lambda *args, **named: write(*args, **{k: v for k, v in named.items() if k != ignored})
    )
    with pytest.raises(build.UsageError, match=said), work.lock_run_folder(root):
        pass
    assert storage.names(root) == []


def test_a_dead_run_of_this_machine_is_followed_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = f"{TOP}/dead"
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_release", lambda *_: None)  # killed
        with work.lock_run_folder(root):
            pass
    with monkeypatch.context() as patch:
        another_machine(patch, tmp_path)
        with pytest.raises(work.Busy, match="a dead run's lease ends in 1[0-9][0-9] s"), work.lock_run_folder(root):
            pass
    with work.lock_run_folder(root):
        pass


def test_a_worker_elsewhere_looks_at_the_lease_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root, asked = f"{TOP}/elsewhere", []
    step, read = work.StepFolder(f"{root}/stages/match/parts", "f"), lease._read
    monkeypatch.setattr(lease, "_read", lambda root: asked.append(root) or read(root))
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_release", lambda *_: None)  # killed
        with work.lock_run_folder(root):
            token = lease.token_of(root)
            step.write_manifest(0, {})
            step.write_manifest(1, {})
            assert len(asked) == 1  # the next run on this machine waits for the lock of its workers
    with monkeypatch.context() as patch:
        another_machine(patch, tmp_path)
        lease.join(root, token)
        step.write_manifest(2, {})
        step.write_manifest(3, {})
        assert len(asked) == 4
    with work.lock_run_folder(root), monkeypatch.context() as patch:  # it follows the dead run at once
        another_machine(patch, tmp_path)
        patch.setitem(lease._tokens, root, token)
        with pytest.raises(lease.LeaseError, match=rf"another one \(process {os.getpid()} on"):
            step.write_manifest(4, {})
    assert storage.names(step.path) == [f"{unit:05d}.json" for unit in range(4)]


def test_the_job_of_a_dead_run_is_cancelled_by_who_gets_the_lease(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, cancelled = f"{TOP}/job", []
    monkeypatch.setattr(clusters.Flink, "cancel", lambda self: cancelled.append(self.job) or "")
    with work.lock_run_folder(root):
        object_store.write(f"{root}/.job", b'{"flink": "127.0.0.1:1", "job": "openwit-1"}')
        another_machine(monkeypatch, tmp_path)
        with pytest.raises(work.Busy), work.lock_run_folder(root):
            pass
        assert not cancelled
    assert clusters.job_of(root) == "openwit-1 on Flink at 127.0.0.1:1"
    with work.lock_run_folder(root):
        assert cancelled == ["openwit-1"] and storage.names(root) == [".lease"]


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("Install s3fs to access S3", "Install there what it needs: pip install 'openwit[s3]'"),
        ("Please install gcsfs", "Install there what it needs: pip install 'openwit[gcs]'"),
        ("Unable to locate credentials", "Give its environment the credentials and the endpoint of the store"),
    ],
)
def test_a_worker_says_what_it_lacks(why: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(root: str) -> None:
        raise input_errors.RefusedInputError(f"'{root}/.lease' cannot be read: {why}")

    monkeypatch.setattr(lease, "_read", fails)
    with pytest.raises(input_errors.RefusedInputError) as raised:
        work.lock_as_worker(f"{TOP}/lacking", "token")
    failure = runners.explain_failure(RuntimeError(f"RefusedInputError: {raised.value}"))
    assert isinstance(failure, build.MissingInput)
    assert str(failure).startswith(f"the worker on {socket.gethostname()} cannot use --output") and said in str(failure)


def test_a_rate_without_a_shared_folder_is_that_of_each_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    another_machine(monkeypatch, tmp_path)
    remote.Pace(f"{TOP}/paced/.pace", 1000.0).wait()
    assert len((tmp_path / "machine/local/s3" / BUCKET / "paced/.pace").read_bytes()) == 8


def test_what_a_killed_worker_left_goes_after_a_week(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    another_machine(monkeypatch, tmp_path)
    here = Path(scratch.beside(f"{TOP}/left"))
    (here / "stages").mkdir(parents=True)
    for name, age in ((".lock", 1e6), ("stages/0.pieces", 1e6), ("stages/1.pieces", 5e5), ("stages/2.tmp3-4", 1e6)):
        (here / name).touch()
        os.utime(here / name, (time.time() - age, time.time() - age))
    work.lock_as_worker(f"{TOP}/left")
    work._held.pop(f"{TOP}/left").close()
    assert sorted(path.name for path in here.rglob("*") if path.is_file()) == [".lock", ".workers", "1.pieces"]


def test_files_of_the_user_lie_in_out_for_workers_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "stop.txt.gz").write_bytes(gzip.compress(b"of\nthe\n"))
    copy = user_files.copy_of("--stop-queries", str(tmp_path / "stop.txt.gz"), f"{TOP}/copied")
    for _ in range(2):
        user_files.write_copy(str(tmp_path / "stop.txt.gz"), copy)
        assert read_lines(copy) == ["of", "the"]
        shutil.rmtree(scratch.folder() + "/objects")  # other files took its room


# -------------------------------------------------------------------------------------------------------- whole runs


class Killed(BaseException):
    """Stands for the end of the process."""


class Killer:
    """Ends a run at its nth change of the store; after that nothing is written any more."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = -1
        send = s3_store._send

        def counted(method: str, given: dict, system: object) -> object:
            if method not in ("get_object", "head_object", "list_objects_v2"):
                if self.left == 0:
                    raise Killed
                self.left -= 1
            return send(method, given, system)

        patch.setattr(s3_store, "_send", counted)


@dataclasses.dataclass(frozen=True)
class Built:
    """A set of this machine and of the store, and the arguments of the build but for --output."""

    here: Path
    url: str
    given: tuple[str, ...]
    hidden: Path  # the folder of the files that only the command sees


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The same set on this machine, and on the store by a run that was killed and resumed again and again."""
    tmp = tmp_path_factory.mktemp("built")
    (mine := tmp / "mine").mkdir()
    server = WebServer({f"{number}.jpg": picture(number) for number in range(8)})
    lines = [f"{server.base}/img/{number}.jpg\ta red dog number {number}" for number in range(9)]
    (mine / "queries.txt").write_text("red\ndog\n")
    (mine / "stop.txt").write_text("red\n")
    write_model(mine / "model.bin", {"dog": "en", "hund": "de"})
    (tmp / "pairs.tsv").write_text("\n".join(["url\ttext", *lines]) + "\n")
    given = ["--input", str(tmp / "pairs.tsv"), "--queries", str(mine / "queries.txt"), "--rows-per-shard", "5"]
    given += ["--allow-address", "127.0.0.0/8", "--stop-queries", str(mine / "stop.txt")]
    given += ["--language-model", str(mine / "model.bin")]
    with server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.build.runners.run_job", run_job)
        assert build.main([*given, "--output", str(tmp / "out")]) == build.DONE
        killer, url = Killer(patch), f"{TOP}/deep/set"
        there = [*given, "--output", url]
        for place in (12, 70):
            killer.left = place
            with pytest.raises(Killed):
                build.main(there)
        killer.left = -1
        another_machine(patch, tmp)  # with the lease of a dead run there, and no copy here
        assert build.main(there) == build.CRASHED
        object_store.delete([f"{url}/.lease"])
        assert build.main(there) == build.DONE
        yield Built(tmp / "out", url, tuple(given), mine)


def test_the_set_is_the_same_byte_for_byte(built: Built) -> None:
    here, url = built.here, built.url
    manifest = json.loads((here / "manifest.json").read_text())
    assert json.loads(object_store.read(f"{url}/manifest.json")) == manifest
    listed = {entry["path"] for entry in manifest["files"]}
    assert all(object_store.read(f"{url}/{path}") == (here / path).read_bytes() for path in listed)
    files = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
    assert {path.removeprefix(f"{url}/") for path in storage.walk(url)} == files - {".lock", ".workers"}
    assert not shards.unlisted_files(url, manifest)


APART = """#!/bin/sh
# A worker on a host of its own, but for the network and the inputs: it sees no file of the command.
mine=$0.folder
mkdir -p $mine && cd $mine && export HOME=$mine TMPDIR=$mine OPENWIT_SCRATCH=$mine/scratch
if unshare -m true; then exec unshare -m sh -c 'mount -t tmpfs none HIDDEN && exec WORKER "$@"' worker "$@"; fi
exec WORKER "$@"
"""


@pytest.mark.engines
@pytest.mark.timeout(300)
def test_workers_of_an_engine_share_no_folder_with_the_command(built: Built, tmp_path: Path) -> None:
    prism = Path(os.environ.get("OPENWIT_ENGINES", ROOT / ".engines")) / "prism"
    if not prism.exists():
        pytest.skip("prism is not here: run `make engines`")
    url, apart, scratch_folder = f"{TOP}/apart", tmp_path / "apart", built.hidden / "scratch"
    worker = str(Path(sys.executable).parent / "openwit-worker")
    apart.write_text(APART.replace("HIDDEN", str(built.hidden)).replace("WORKER", worker))
    apart.chmod(0o755)
    command = [sys.executable, "-m", "pipeline.build", *built.given, "--output", url, "--runner", "prism"]
    command += ["--environment_type=PROCESS", f"--environment_option=process_command={apart}", "--exchange", "shuffle"]
    env = os.environ | {"OPENWIT_ENGINES": str(prism.parent), "OPENWIT_SCRATCH": str(scratch_folder)}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((built.here / "manifest.json").read_text())
    assert json.loads(object_store.read(f"{url}/manifest.json")) == manifest
    assert not list(scratch_folder.rglob("*.pieces")) and (tmp_path / "apart.folder" / "scratch").is_dir()


def test_it_can_be_inspected(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    here, url = built.here, built.url

    def said(command: str, folder: object, *more: str) -> str:
        assert inspect_shards.main([command, *more, str(folder)]) == 0
        return capsys.readouterr().out

    key = said("ls", url).split()[0]
    assert said("ls", url) == said("ls", here)
    assert said("show", url, key) == said("show", here, key)
    assert "published: 8 pairs" in said("info", url)
    if importlib.util.find_spec("duckdb") is not None:
        for query in ("select key, query from pairs, queries order by all", "from stages"):
            assert inspect_shards.main(["sql", url, query]) == 0
            answer = capsys.readouterr().out
            assert inspect_shards.main(["sql", str(here), query]) == 0
            assert capsys.readouterr().out == answer
    assert inspect_shards.main(["sql", url, f"select * from '{url}/queries.parquet'"]) == build.USAGE
    assert "every checksum and count agrees" in said("verify", url, "--stages")
    tar = f"{url}/shards/00000.tar"
    good = object_store.read(tar)
    object_store.write(tar, good[:600] + b"#" + good[601:])
    assert inspect_shards.main(["verify", url]) == inspect_shards.FAULT
    assert "shards/00000.tar" in capsys.readouterr().out
    object_store.write(tar, good)


def test_requests_grow_by_few_an_input(pairs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.build.runners.run_job", run_job)
    (tmp_path / "queries.txt").write_text("dog\n")
    call, counts = s3_store._call, list[int]()

    def counted(*args: Any, **named: Any) -> Any:
        counts[-1] += 1
        return call(*args, **named)

    monkeypatch.setattr(s3_store, "_call", counted)
    for inputs in (1, 4):
        counts.append(0)
        paths = [tmp_path / f"{number}.tsv" for number in range(inputs)]
        for path in paths:
            rows = (f"http://a.org/{path.stem}-{row}.jpg\ta dog {row}" for row in range(50))
            path.write_text("\n".join(["url\ttext", *rows, ""]))
        given = ["--input", *map(str, paths), "--queries", str(tmp_path / "queries.txt"), "--stages", "gather..dedup"]
        assert build.main([*given, "--output", f"{TOP}/counted/{inputs}"]) == build.DONE
    assert counts[0] <= 130 and (counts[1] - counts[0]) / 3 <= 6


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0005)
    (tmp_path / "pairs.tsv").write_text("http://a.org/1.jpg\ta dog\n")
    return ["--input", str(tmp_path / "pairs.tsv"), "--stages", "gather..match", "--output"]


@pytest.mark.parametrize(
    ("output", "more", "code", "said"),
    [
        ("s3://Bucket/x", (), build.USAGE, "must name a bucket"),
        ("s3://bucket/a//b", (), build.USAGE, "must name a folder of the bucket"),
        ("s3://bucket/", (), build.USAGE, "must name a folder of the bucket, and not its root"),
        ("S3://bucket/a", (), build.USAGE, "must begin with s3:// in small letters"),
        ("s3:bucket/a", (), build.USAGE, "must have two slashes to be a URL: s3://bucket/a"),
        ("gs:/bucket/a", (), build.USAGE, "must have two slashes to be a URL: gs://bucket/a"),
        ("s3://bucket/a/../b", (), build.USAGE, "must not hold . or .."),
        ("hdfs://bucket/x", (), build.USAGE, "other stores cannot be written yet"),
        ("gs://b/x", (), build.USAGE, "must name a bucket: gs://BUCKET/FOLDER"),
        (f"{TOP}/x", ("--extend",), build.USAGE, f"--extend: {TOP}/x holds no set"),
        (f"{TOP}/other", (), build.USAGE, "it holds other things (data)"),
        (f"{TOP}/x", ("--blocklist", f"{TOP}/none"), build.MISSING, f"--blocklist {TOP}/none: no such file"),
        (f"{TOP}/x", ("--scores", f"{TOP}/other"), build.USAGE, f"--scores {TOP}/other: must be a file"),
        (f"{TOP}/x", ("--embeddings", "az://b/x"), build.USAGE, "must be of this machine, or s3://BUCKET/NAME"),
        (f"{TOP}/x", ("--stop-queries", "s3://no-such-bucket/x"), build.MISSING, "bucket does not exist"),
        (f"{TOP}/x", ("--decontaminate", f"faces={TOP}/none"), build.MISSING, "no such file or folder"),
        ("s3://no-such-bucket/x", (), build.MISSING, "Make the bucket, or check its name"),
    ],
)
def test_what_is_refused(
    output: str, more: tuple[str, ...], code: int, said: str, pairs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    object_store.write(f"{TOP}/other/data", b"x")
    assert build.main([*pairs, output, *more]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0], lines
    assert not storage.exists(f"{TOP}/x")


@pytest.mark.parametrize("name", ["manifest.json", "recipe.yaml", "inputs.json", ".lease", "stages/mine.txt"])
def test_the_folder_of_another_tool_is_not_taken(
    name: str, pairs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A build removes what lies in shards/ of its folder. The name of one file does not make a folder ours."""
    folder = f"{TOP}/theirs-{name.replace('/', '-')}"
    for path, data in ((name, b'{"items": [], "files": {}}'), ("shards/00000.tar", b"theirs")):
        object_store.write(f"{folder}/{path}", data)
    assert build.main([*pairs, folder]) == build.USAGE
    assert "it holds other things (" in capsys.readouterr().err
    assert sorted(storage.walk(folder)) == sorted(f"{folder}/{path}" for path in (name, "shards/00000.tar"))


@pytest.mark.parametrize("left", ["inputs.json", ".lease"])
def test_what_an_early_kill_leaves_is_ours(left: str) -> None:
    """The other files of a run are not there yet, or not any more."""
    fields = {name: "" for name in run.OUR_FILES[left]}
    object_store.write(f"{TOP}/ours-{left}/{left}", json.dumps(fields).encode())
    run.reach(f"{TOP}/ours-{left}")
