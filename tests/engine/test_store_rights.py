"""A user who may not write: what looks works, what changes says that it cannot be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import forget, inspect_shards
from pipeline.dataset.errors import NotFound
from pipeline.dataset.open_set import open_set
from pipeline.engine import journal, object_store, work
from pipeline.engine.cli import CRASHED, DONE, MISSING, USAGE, MissingInput
from pipeline.stages.run import store_failures
from tests import samples
from tests.store import BUCKET, MemoryStore, in_memory

URL = f"s3://{BUCKET}/set"
HOST = ("--domain", "example.com")
UNFINISHED = "was interrupted and is not finished, and this user may not finish it"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    """A published set at URL, and a user who may not write."""
    samples.publish(tmp_path / "set", count=12)
    with in_memory(str(tmp_path / "scratch")) as store:
        for path in (tmp_path / "set").rglob("*"):
            if path.is_file():
                object_store.write(f"{URL}/{path.relative_to(tmp_path / 'set').as_posix()}", path.read_bytes())
        store.denied = ("written",)
        yield store


def test_forget_on_a_store(store: MemoryStore, capsys: pytest.CaptureFixture[str]) -> None:
    before, changes = dict(store.objects), store.changes
    assert forget.main([URL, *HOST, "--dry-run"]) == DONE
    assert "would forget 3 pairs, 3 of them published" in capsys.readouterr().out
    assert forget.main([URL, *HOST]) == MISSING
    assert capsys.readouterr().err == f"pipeline.forget: '{URL}/.lease' cannot be written: Access Denied.\n"
    assert store.objects == before and store.changes == changes


def test_a_reader_of_an_unfinished_change_learns_who_ends_it(
    store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.denied = ()
    object_store.write(f"{URL}/{journal.FOLDER}/{journal.JOURNAL}", b"{}")
    store.denied = ("written",)
    for main, argv, code in (
        (inspect_shards.main, ["info", URL], MISSING),
        (forget.main, [URL, *HOST, "--dry-run"], CRASHED),
    ):
        assert main(argv) == code
        said = capsys.readouterr().err
        assert f"a change of {URL} (forget, --extend or publish) {UNFINISHED}" in said and said.count("\n") == 1
        assert "cannot be written: Access Denied." in said and "a user with the right to write must run" in said
    with pytest.raises(NotFound, match=UNFINISHED):
        open_set(URL)


def test_a_bucket_that_is_not_there(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("The specified bucket does not exist.")

    monkeypatch.setattr(store, "call_s3", absent)
    with pytest.raises(NotFound, match="bucket does not exist"):
        open_set("s3://absent/set")
    with pytest.raises(MissingInput, match=r"does not exist\. Make the bucket"), store_failures(URL):
        absent()


def test_a_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    samples.publish(out, count=12)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # because root may write everywhere
    before = sorted(out.rglob("*"))
    assert forget.main([str(out), *HOST, "--dry-run"]) == DONE
    assert "would forget 3 pairs" in capsys.readouterr().out and sorted(out.rglob("*")) == before
    assert forget.main([str(out), *HOST]) == USAGE
    assert "is not writable" in capsys.readouterr().err
    (out / journal.FOLDER).mkdir()
    (out / journal.FOLDER / journal.JOURNAL).write_text("{}")
    assert inspect_shards.main(["info", str(out)]) == MISSING
    assert UNFINISHED in capsys.readouterr().err


def test_a_dry_run_beside_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    samples.publish(out, count=3)
    with work.lock_run_folder(str(out)):
        assert forget.main([str(out), *HOST, "--dry-run"]) == CRASHED
    assert f"another run holds the output folder {out} (process {os.getpid()}" in capsys.readouterr().err
