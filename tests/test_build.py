"""The command line of the build: it refuses what cannot be done before it does anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build
from tests.places import ROOT


def write_tables(folder: Path) -> list[str]:
    """Writes two tables, the second with other columns. Returns the arguments that read both."""
    folder.mkdir()
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg"], "text": ["a red dog"]}), folder / "a.parquet")
    (folder / "b.csv").write_text("Address,caption\nhttp://a.example/2.jpg,a blue dog\n")
    (folder.parent / "queries.txt").write_text("dog\n")
    return ["--input", str(folder), "--queries", str(folder.parent / "queries.txt"), "--stages", "gather..balance"]


@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["run", "plan"])
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ([], "'b.csv' has no column 'url' for the url: its columns are 'Address', 'caption'; name it with --url-c"),
        (["--url-column", "adress"], "'a.parquet' has no column 'adress' for the url: its columns are 'url', 'text'"),
        (
            ["--text-column", "txet"],
            "'txet' for the text: its columns are 'url', 'text'; did you mean --text-column text?",
        ),
    ],
)
def test_a_table_without_the_columns_is_refused_at_once(
    plan: list[str], columns: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = [*write_tables(tmp_path / "in"), "--output", str(out), *columns, *plan]
    assert build.main(given) == build.USAGE
    said = capsys.readouterr()
    assert words in said.err
    assert not out.exists() and not said.out


def test_a_column_of_lists_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = write_tables(tmp_path / "in")
    (tmp_path / "in" / "b.csv").unlink()
    table = pa.table({"url": ["http://a.example/1.jpg"], "text": [["a", "list"]]})
    pq.write_table(table, tmp_path / "in" / "c.parquet")
    assert build.main([*given, "--output", str(tmp_path / "out")]) == build.USAGE
    assert "the column 'text' of 'c.parquet' holds list" in capsys.readouterr().err


def test_a_redo_that_names_a_wrong_column_removes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*write_tables(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"]
    (tmp_path / "in" / "b.csv").unlink()
    assert build.main(given) == build.DONE
    assert build.main([*given, "--redo", "gather", "--text-column", "alt"]) == build.USAGE
    assert "no column 'alt'" in capsys.readouterr().err
    assert (tmp_path / "out" / "stages" / "balance" / "COMPLETED").exists()


def test_a_folder_of_data_called_pipeline_is_no_package(tmp_path: Path) -> None:
    """As people have it who keep data beside each other; the set-up installs the checkout by its path."""
    for name in ("pipeline", "queries", "clip_train"):
        (tmp_path / name).mkdir()
    program = "import sys; print(any(path == sys.argv[1] for path in sys.path))"
    by_path = subprocess.run([sys.executable, "-c", program, str(ROOT)], cwd=tmp_path, capture_output=True, text=True)
    if by_path.stdout.strip() != "True":
        pytest.skip("this checkout is not installed by its path (tools/setup.sh does so)")
    command = [sys.executable, "-m", "pipeline.build", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("openwit ")
