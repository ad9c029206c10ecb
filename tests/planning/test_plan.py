"""`--plan`: it samples, says what is done, refuses what a run refuses, and writes nothing."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.planning import sample
from pipeline.sources import READERS
from pipeline.stages import grouping
from tests.archives import html_record, member
from tests.places import ROOT
from tests.without_beam import without_beam  # noqa: F401


def write_table(path: Path, rows: int, *, word: str = "dog") -> None:
    """Writes a table. Two of three texts have the query, and each URL stands twice."""
    url = [f"https://host{row // 2 % 50}.example/{row // 2}.jpg" for row in range(rows)]
    text = [f"a red {word if row % 3 else 'bird'} number {row // 2}" for row in range(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"url": url, "text": text}), path, row_group_size=max(1, rows // 2))


def arguments(folder: Path, *more: str) -> list[str]:
    (folder / "queries.txt").write_text("dog\ncat\n")
    paths = ["--input", str(folder / "in"), "--queries", str(folder / "queries.txt"), "--output", str(folder / "out")]
    return [*paths, "--stages", "gather..balance", "--workers", "1", *more]


def plan_of(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert build.main(arguments(folder, "--plan", "--json", *more)) == build.DONE
    return json.loads(capsys.readouterr().out)


def test_a_large_input_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WHOLE_BYTES": 0, "ENOUGH_ROWS": 2_000, "BLOCK_ROWS": 16}.items():
        monkeypatch.setattr(sample, name, value)
    monkeypatch.setattr(type(READERS["table"]), "piece_bytes", 12_000)
    write_table(tmp_path / "in" / "a.parquet", 40_000)
    plan = plan_of(tmp_path, capsys, "--cap", "200")
    assert plan["rows"]["read"] == {"low": 40_000, "value": 40_000, "high": 40_000}  # the footer tells
    assert not plan["sample"]["whole"] and plan["sample"]["share"]["table"] < 0.5
    match, dedup = plan["rows"]["match"], plan["rows"]["dedup"]
    assert match["low"] <= 26_667 <= match["high"] and 24_000 < match["value"] < 29_000
    assert 20_000 / 1.5 < dedup["value"] < 20_000 * 1.5
    assert plan["caps"]["200"]["value"] == 200 and plan["caps"]["1000"]["value"] == 1_000
    assert plan["estimate"]["pairs"] == 40_000 and plan["estimate"]["core_hours"] > 0
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_stages(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    without_beam: None,  # noqa: F811
) -> None:
    write_table(tmp_path / "in" / "a.parquet", 300)
    assert build.main(arguments(tmp_path)[:-4] + ["--stages", "gather..dedup", "--workers", "1"]) == build.DONE
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    plan = plan_of(tmp_path, capsys)
    assert plan["stages"] == {"gather": "done", "match": "done", "dedup": "done", "balance": "to do"}
    assert plan["rows"]["match"] == {"low": 200, "value": 200, "high": 200}
    assert set(plan["cpu_seconds"]) == {"start", "balance"} and sorted(tmp_path.rglob("*")) == before
    assert build.main(arguments(tmp_path)) == build.DONE
    capsys.readouterr()
    plan = plan_of(tmp_path, capsys)
    assert plan["sample"] is None and set(plan["stages"].values()) == {"done"}
    assert plan["rows"]["balance"]["value"] == 150 and sum(plan["cpu_seconds"].values()) == 0
    assert build.main(arguments(tmp_path, "--plan")) == build.DONE
    assert "none: the stages that read the inputs are done" in capsys.readouterr().out
    said = {}
    for more in ([], ["--plan"], ["--plan", "--json"]):
        assert build.main(arguments(tmp_path, "--cap", "7", *more)) == build.USAGE
        said[len(more)] = capsys.readouterr()
    assert said[0].err == said[1].err == said[2].err != "" and not said[1].out
    refused = json.loads(said[2].out)
    assert refused["stages"]["balance"] == "refused" and refused["stages"]["dedup"] == "done"
    assert refused["refused"] in said[0].err


@pytest.mark.parametrize("rows", [0, 1, 60], ids=["empty", "one row", "all dropped"])
def test_small_inputs(rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "in" / "a.parquet", rows, word="fish")
    plan = plan_of(tmp_path, capsys)
    assert plan["rows"]["read"]["value"] == rows and plan["rows"]["balance"]["high"] == 0
    assert plan["notes"] == ["no pair of the sample is left after match"] and plan["sample"]["whole"]
    assert build.main(arguments(tmp_path, "--plan")) == build.DONE


def test_inputs_that_share_a_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "FROM_INPUTS", 2)
    for number in range(3):
        write_table(tmp_path / "in" / f"{number}.parquet", 30)
    plan = plan_of(tmp_path, capsys)
    assert plan["rows"]["read"]["value"] == 90 and plan["sample"]["whole"] and plan["sample"]["pieces"] == 3


def test_copies_in_files_of_another_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "in" / "a.parquet", 60)
    table = pq.read_table(tmp_path / "in" / "a.parquet").to_pylist()
    lines = [f"{row['url']},{row['text']}" for row in table]
    (tmp_path / "in" / "b.csv").write_text("\n".join(["url,text", *lines, ""]))
    rows = plan_of(tmp_path, capsys)["rows"]
    assert [rows[name]["value"] for name in ("read", "match", "dedup")] == [120, 80, 30]


def test_a_damaged_archive_in_the_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.warc.gz").write_bytes(
            b"".join(member(html_record(9 * number + n)) for n in range(9))
        )
    (tmp_path / "in" / "3.warc.gz").write_bytes(gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\n\r\n") * 4)
    plan = plan_of(tmp_path, capsys)
    assert plan["rows"]["read"]["value"] == 27 and plan["sample"]["failures"] == 1
    assert "1 piece of the sample could not be read: no record of '3.warc.gz'" in plan["notes"][0]


def test_a_plan_needs_no_beam(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "a.parquet", 30)
    program = "import sys\nfrom pipeline import build\nbuild.main(sys.argv[1:])\nprint(*sys.modules)"
    given = [sys.executable, "-c", program, *arguments(tmp_path, "--plan")]
    out = subprocess.run(given, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "takes" in out and "apache_beam" not in out
