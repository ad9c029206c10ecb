"""Google Cloud Storage keeps the promises of `store_api.Store`. The JSON API is in memory here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import build
from pipeline.engine import (
    checks,
    gcs_store,
    lease,
    object_cache,
    object_store,
    object_view,
    remote,
    storage,
    transfers,
    work,
)
from pipeline.engine.input_errors import RefusedInputError, TransferError
from pipeline.engine.object_store import Conflict, Version
from tests.any_store import check_that_a_replaced_object_is_noticed
from tests.gcs import BUCKET, HttpError, MemoryGcs, in_memory
from tests.without_beam import run_job

TOP = f"gs://{BUCKET}"


@pytest.fixture
def gcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryGcs]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with in_memory(str(tmp_path / "scratch")) as store:
        yield store


@pytest.mark.parametrize("heeds_reads", [True, False])
def test_conditions(heeds_reads: bool, gcs: MemoryGcs, tmp_path: Path) -> None:
    gcs.heeds_reads, url = heeds_reads, f"{TOP}/a b/%é"
    first = object_store.write(url, b"1", absent=True)
    second = object_store.write(url, b"2", tag=first)
    for condition in ({"absent": True}, {"tag": first}, {"tag": object_store.store_of(url).no_tag}):
        with pytest.raises(Conflict):
            object_store.write(url, b"3", **condition)  # type: ignore[arg-type]
    assert object_store.read(url) == b"2" and object_store.head(url)[:2] == (1, second) and first != second
    assert object_store.read_with_age(url) == (b"2", second, 10.0)
    check_that_a_replaced_object_is_noticed(url)
    assert object_store.read_range(url, 99_999, 5) == b"4" and object_store.read_range(url, 10**6, 5) == b""
    object_store.write(f"{TOP}/empty", b"")
    assert object_store.ObjectFile(f"{TOP}/empty").size == 0 and object_store.read_with_age(f"{TOP}/empty")[0] == b""
    assert object_store.head(f"{TOP}/none") is None


@pytest.mark.parametrize("heeds_reads", [True, False])
def test_a_unit_that_was_written_twice_is_read_on(heeds_reads: bool, gcs: MemoryGcs, tmp_path: Path) -> None:
    gcs.heeds_reads, url, data = heeds_reads, f"{TOP}/unit/keys", os.urandom(200_000)
    object_store.write(url, data)
    listed = object_view.list_now(f"{TOP}/unit").files["keys"]
    assert Version(*json.loads(json.dumps(listed))) == object_store.head(url) == listed  # as an index holds it
    object_store.write(url, data)  # by a worker that was taken for lost
    with object_store.ObjectFile(url, listed) as file:
        assert file.range(100, 5) == data[100:105] and file.range(150_000, 9) == data[150_000:150_009]
        for other in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), None):
            object_store.write(url, other) if other is not None else object_store.delete([url])
            with pytest.raises(Conflict if other is not None else FileNotFoundError):
                file.range(10, 5)
    with pytest.raises(Conflict):
        object_store.write(url, data)
        object_store.ObjectFile(url, Version(200_000, "1")).range(0, 5)  # nothing is known of the earlier bytes


@pytest.mark.parametrize("heeds_reads", [True, False])
def test_a_copy_of_an_object_that_is_replaced_meanwhile_is_of_one_version(
    heeds_reads: bool, gcs: MemoryGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_store, "PIECE", 3)
    gcs.heeds_reads, url, seen = heeds_reads, f"{TOP}/x", list[str]()
    object_store.write(url, b"12345")

    def fail(method: str, name: str) -> None:
        seen.append(method)
        if len(seen) == 3:  # after the first piece
            gcs.objects["x"] = gcs._made(b"678")

    gcs.fail = fail
    assert Path(path := object_cache.local(url)).read_bytes() == b"678"
    assert object_cache.local(url) == path and seen[-1:] == ["GET"] and len(seen) == 6  # the copy is of this version


@pytest.mark.parametrize("kept", [1 << 30, 2])
def test_large_files_go_in_pieces_and_long_lists_in_pages(
    kept: int, gcs: MemoryGcs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gcs_store, "PIECE", 4)
    gcs.kept = kept
    (tmp_path / "data").write_bytes(b"0123456789")
    tag = object_store.upload(str(tmp_path / "data"), f"{TOP}/f/data")
    assert object_store.read(f"{TOP}/f/data") == b"0123456789" and object_store.head(f"{TOP}/f/data")[:2] == (10, tag)
    copied = object_store.copy(f"{TOP}/f/data", f"{TOP}/f/copy", 10)
    assert object_store.head(f"{TOP}/f/copy")[:2] == (10, copied)
    for number in range(8):
        object_store.write(f"{TOP}/f/many/{number}", b"x")
    assert storage.names(f"{TOP}/f/many") == [str(number) for number in range(8)]
    assert storage.names(f"{TOP}/f") == ["copy", "data", "many"] and storage.is_folder(f"{TOP}/f")
    storage.remove(f"{TOP}/f")
    assert not storage.exists(f"{TOP}/f") and not gcs.objects
    object_store.delete([f"{TOP}/f"])  # it is not there
    for missing in (object_store.read, object_store.read_with_age, storage.size, object_cache.local):
        with pytest.raises(FileNotFoundError):
            missing(f"{TOP}/none")
    with pytest.raises(FileNotFoundError):
        object_store.has_objects("gs://other-bucket/x")


def test_what_commits_a_folder_goes_before_the_rest(gcs: MemoryGcs) -> None:
    names = ["a", "b.json", "info.json", "COMPLETED", "c/d.json", "c/COMPLETED", "c/e"]
    for name in names:
        object_store.write(f"{TOP}/s/{name}", b"")
    gcs.sent.clear()
    storage.remove(f"{TOP}/s")
    gone = [name.rpartition("/")[2] for method, name in gcs.sent if method == "DELETE" and name != "s"]
    assert gone[:3] == ["COMPLETED", "COMPLETED", "info.json"] and set(gone[3:5]) == {"b.json", "d.json"}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, False),
        ({"softDeletePolicy": {"retentionDurationSeconds": "0"}, "versioning": {"enabled": False}}, False),
        ({"softDeletePolicy": {"retentionDurationSeconds": "604800"}}, True),
        ({"versioning": {"enabled": True}}, True),
        (None, True),
    ],
)
def test_what_was_deleted_may_be_had_again(settings: dict[str, Any] | None, kept: bool, gcs: MemoryGcs) -> None:
    gcs.settings = settings
    assert object_store.keeps_versions(TOP) == kept


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("Forbidden: b/x\nno storage.objects.get"), RefusedInputError),
        (HttpError(401), RefusedInputError),
        (ValueError("Bad Request: invalid bucket"), RefusedInputError),
        (ImportError("Install gcsfs"), RefusedInputError),
        (HttpError(429), TransferError),
        (HttpError(503), TransferError),
        (OSError("reset"), TransferError),
    ],
)
def test_errors_that_stay_are_not_asked_again(
    error: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryGcs()

    def fail(*_: str) -> None:
        raise error

    store.fail = fail
    monkeypatch.setattr(transfers, "store", lambda url: (store, url))
    with remote.configured(remote.RemoteSettings(patience=0.0)), pytest.raises(expected):
        object_store.read(f"{TOP}/x")


def test_one_of_two_machines_gets_the_folder(gcs: MemoryGcs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with work.lock_run_folder(f"{TOP}/held"), monkeypatch.context() as patch:
        assert "last sign 10 s ago" in lease.holder_of(f"{TOP}/held")
        patch.setenv("OPENWIT_SCRATCH", str(tmp_path / "machine"))
        with pytest.raises(work.Busy, match=r"last sign 10 s ago"), work.lock_run_folder(f"{TOP}/held"):
            pass
    assert storage.names(f"{TOP}/held") == []
    write = gcs_store.GCS.put
    monkeypatch.setattr(gcs_store.GCS, "put", lambda self, url, data, *, absent=False, tag="": write(self, url, data))
    with pytest.raises(build.UsageError, match="ignores ifGenerationMatch=0"), work.lock_run_folder(f"{TOP}/careless"):
        pass


def test_an_object_of_another_store_comes_by_this_machine(gcs: MemoryGcs, tmp_path: Path) -> None:
    assert object_store.same_store("s3://b/x", "s3a://b/x") and not object_store.same_store("s3://b/x", f"{TOP}/x")
    with pytest.raises(RefusedInputError, match=r"az://b/x: must begin with s3://, s3a://, gs://"):
        object_store.read("az://b/x")
    (tmp_path / "x").write_bytes(b"x")
    storage.copy(str(tmp_path / "x"), f"{TOP}/x")
    storage.copy(f"{TOP}/x", f"{TOP}/y")
    storage.copy(f"{TOP}/y", str(tmp_path / "y"))
    assert (tmp_path / "y").read_bytes() == b"x"


def test_the_set_is_that_of_this_machine(gcs: MemoryGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.build.runners.run_job", run_job)
    monkeypatch.setattr(checks, "missing_package", lambda url: "")
    (tmp_path / "pairs.tsv").write_text("url\ttext\n" + "".join(f"http://a.org/{n}.jpg\ta dog {n}\n" for n in range(9)))
    (tmp_path / "queries.txt").write_text("dog\n")
    given = ["--input", str(tmp_path / "pairs.tsv"), "--queries", str(tmp_path / "queries.txt"), "--stages"]
    for out in (str(tmp_path / "out"), f"{TOP}/deep/set"):
        assert build.main([*given, "gather..balance", "--output", out]) == build.DONE
    for stage in ("match", "dedup", "balance"):
        here = json.loads((tmp_path / "out" / "stages" / stage / "info.json").read_text())
        assert json.loads(storage.read(f"{TOP}/deep/set/stages/{stage}/info.json"))["digest"] == here["digest"]
    assert not [name for name in gcs.objects if name.endswith(".lease") or "/.index/" in name]
