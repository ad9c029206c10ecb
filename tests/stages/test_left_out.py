"""Inputs that a run goes on without leave nothing behind, and --retry-failed makes the set that has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.engine import remote
from pipeline.stages import continuing, left_out
from tests.archives import member, wat_record
from tests.sources.crawl_simulator import Crawl, crawl
from tests.without_beam import without_beam  # noqa: F401

NAMES = ("a.warc.wat.gz", "b.warc.wat.gz", "c.parquet")
BROKEN = {"broken_transfer": 1}
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0005)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.002)


def wat(first: int, pages: int = 30) -> bytes:
    """A WAT file with a pair a page."""
    return b"".join(member(wat_record(page)) for page in range(first, first + pages))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    urls = [f"http://t.example/{row}.jpg" for row in range(20)]
    table = pa.table({"url": urls, "text": [f"a picture of row {row}" for row in range(20)]})
    pq.write_table(table, tmp_path / "c.parquet")
    return dict(zip(NAMES, (wat(0), wat(100, 400), (tmp_path / "c.parquet").read_bytes()), strict=True))


class Fixed(Crawl):
    """A server that treats some files in one way for good: `faults_of` names the method of the handler."""

    faults_of: dict[str, str] = {}

    def fault(self, path: str) -> str:
        super().fault(path)
        return self.faults_of.get(path, "")


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> type[Fixed]:
    monkeypatch.setattr(Fixed, "faults_of", {})
    monkeypatch.setattr("tests.sources.crawl_simulator.Crawl", Fixed)
    return Fixed


def run(base: str, out: Path, *more: str, stages: str = "gather..balance") -> int:
    queries = out.parent / "queries.txt"
    queries.write_text("picture\n")
    given = ["--input", *(f"{base}{name}" for name in NAMES), "--output", str(out), "--queries", str(queries)]
    given += ["--workers", "1", "--input-rate", "0", "--input-patience", "0.2", "--stages", stages]
    return build.main([*given, *more])


def info(out: Path, stage: str = "gather") -> dict:
    return json.loads((out / "stages" / stage / "info.json").read_text())


def counts(out: Path) -> list[dict]:
    """What tells of the rows of each stage, and the rows that were dropped."""
    return [left_out.counted(info(out, stage)) for stage in ("gather", "match", "dedup", "balance")]


def test_an_input_that_breaks_after_its_first_pairs_leaves_none(
    files: dict[str, bytes], fixed: type[Fixed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with crawl(files) as server:
        fixed.faults_of = {NAMES[1]: "cut"}
        assert run(server.base, tmp_path / "out") == build.BELOW  # without the flag
        assert "broke off after" in capsys.readouterr().err
        assert run(server.base, tmp_path / "out", "--skip-bad-inputs") == build.DONE
        found = info(tmp_path / "out")
        assert found["records_dropped"] == BROKEN and found["rows_out"] == 50
        assert found["left_out"] == [f"{server.base}{NAMES[1]}"]
        said = capsys.readouterr().out
        assert "b.warc.wat.gz: broken_transfer 1 lost" in said and "1 input was left out: --retry-failed" in said
        fixed.faults_of = {NAMES[1]: "reset"}  # never a byte of it
        assert run(server.base, tmp_path / "other", "--skip-bad-inputs") == build.DONE
        assert counts(tmp_path / "other") == counts(tmp_path / "out")


def test_what_a_broken_input_wrote_is_removed(
    files: dict[str, bytes], fixed: type[Fixed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole parts of the unit, and the list of images of an attempt before."""
    monkeypatch.setattr("pipeline.stages.row_pass.PART_ROWS", 1)
    monkeypatch.setattr("pipeline.sources.wat_reader.BATCH_ROWS", 8, raising=False)
    fixed.faults_of = {NAMES[1]: "cut"}
    stale = tmp_path / "out/stages/match/parts/00001-017.arrow"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an attempt that was killed")
    with crawl(files) as server:
        assert run(server.base, tmp_path / "out", "--skip-bad-inputs") == build.DONE
    assert [path.name for path in stale.parent.glob("00001*")] == ["00001.json"]


def test_retry_failed_gives_the_undisturbed_rows(files: dict[str, bytes], fixed: type[Fixed], tmp_path: Path) -> None:
    with crawl(files) as server:
        assert run(server.base, tmp_path / "whole") == build.DONE
        for number, (name, fault) in enumerate([(NAMES[1], "cut"), (NAMES[2], "cut"), (NAMES[2], "reset")]):
            fixed.faults_of = {name: fault}
            out = tmp_path / f"out-{number}"
            assert run(server.base, out, "--skip-bad-inputs") == build.DONE
            assert info(out)["records_dropped"] == BROKEN
            fixed.faults_of = {}
            assert run(server.base, out, "--retry-failed") == build.DONE
            assert counts(out) == counts(tmp_path / "whole"), (name, fault)
        assert run(server.base, out, "--retry-failed") == build.DONE  # nothing is left to do


def test_an_input_that_is_missing_or_refused_comes_back(
    files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {name: files[name] for name in NAMES[:1]}
    with crawl(files) as server:
        assert run(server.base, tmp_path / "whole") == build.DONE
        server.files = missing  # the simulator answers 403 with S3's AccessDenied
        assert run(server.base, tmp_path / "out") == build.MISSING
        assert "HTTP 403" in capsys.readouterr().err
        assert run(server.base, tmp_path / "out", "--skip-bad-inputs") == build.DONE
        assert info(tmp_path / "out")["records_dropped"] == {"unreadable_input": 2}
        assert run(server.base, tmp_path / "out", "--skip-bad-inputs") == build.DONE
        assert run(server.base, tmp_path / "out", "--skip-bad-inputs", "--retry-failed") == build.DONE
        assert "no input that was left out could be read now" in capsys.readouterr().err
        server.files = {name: files[name] for name in NAMES[:2]}
        assert run(server.base, tmp_path / "out", "--skip-bad-inputs", "--retry-failed") == build.DONE
        assert "1 of 2 inputs that were left out could be read now: the stages from dedup on" in capsys.readouterr().err
        server.files = files
        assert run(server.base, tmp_path / "out", "--skip-bad-inputs", "--retry-failed") == build.DONE
        assert counts(tmp_path / "out") == counts(tmp_path / "whole")
        assert run(server.base, tmp_path / "out") == build.DONE  # the folder is that of an undisturbed run


def test_gather_and_match_in_two_runs(files: dict[str, bytes], fixed: type[Fixed], tmp_path: Path) -> None:
    with crawl(files) as server:
        for out in (tmp_path / "whole", tmp_path / "out"):
            assert run(server.base, out, "--skip-bad-inputs", stages="gather") == build.DONE
            assert run(server.base, out, "--skip-bad-inputs", stages="match..balance") == build.DONE
            fixed.faults_of = {NAMES[1]: "cut"}
        fixed.faults_of = {}
        assert run(server.base, tmp_path / "out", "--retry-failed", stages="gather") == build.DONE
        assert not (tmp_path / "out/stages/match").exists()
        assert run(server.base, tmp_path / "out") == build.DONE
        assert counts(tmp_path / "out") == counts(tmp_path / "whole")


def test_a_retry_needs_the_stages_that_read_the_inputs(
    files: dict[str, bytes], fixed: type[Fixed], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with crawl(files) as server:
        fixed.faults_of = {NAMES[1]: "cut"}
        assert run(server.base, tmp_path / "out", "--skip-bad-inputs") == build.DONE
        before = counts(tmp_path / "out")
        assert run(server.base, tmp_path / "out", "--retry-failed", stages="gather") == build.USAGE
        assert "this needs match" in capsys.readouterr().err and counts(tmp_path / "out") == before


class Killed(BaseException):
    """The process ends here."""


def test_a_retry_that_is_killed_goes_on(
    files: dict[str, bytes], fixed: type[Fixed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each change of the folder, and before the input is read; then the same command again."""
    with crawl(files) as server:
        assert run(server.base, tmp_path / "whole") == build.DONE
        fixed.faults_of = {NAMES[1]: "cut"}
        assert run(server.base, tmp_path / "before", "--skip-bad-inputs") == build.DONE
        fixed.faults_of = {}
        for place in range(6):
            out = tmp_path / f"out-{place}"
            shutil.copytree(tmp_path / "before", out)
            with monkeypatch.context() as patch, pytest.raises(Killed):
                kill_at(place, patch)
                run(server.base, out, "--retry-failed")
            assert run(server.base, out, "--retry-failed") == build.DONE
            assert counts(out) == counts(tmp_path / "whole"), place


def kill_at(place: int, patch: pytest.MonkeyPatch) -> None:
    """The process ends at the change with this number."""
    left = [place]

    def kill() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (kill(), function(*given))[1]

    patch.setattr(left_out.Retry, "save", before(left_out.Retry.save))
    patch.setattr(continuing.storage, "remove", before(continuing.storage.remove))
    patch.setattr(continuing.StepFolder, "remove_files", before(continuing.StepFolder.remove_files))
