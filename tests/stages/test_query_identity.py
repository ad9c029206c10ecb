"""Equal queries are one query from the command line to the balanced rows: one id, one count, one cap."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.dataset import exports
from pipeline.dataset.shards import digest_of_queries
from pipeline.options import parse
from queries import identity
from queries.load import load_queries
from tests.stages.test_select import info, write_table

TEXTS = 5_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """5,000 texts that contain Canada in several spellings."""
    rng = random.Random(4)
    spellings = ["Canada", "canada", "CANADA", "\uff23anada"]
    rows = [(f"https://a.example/{i}.jpg", f"{rng.choice(spellings)} view {i}") for i in range(TEXTS)]
    write_table(tmp_path / "in.parquet", rows)
    return tmp_path


def select(folder: Path, queries: str, *more: str, name: str = "out") -> Path:
    (folder / f"{name}.tsv").write_text(queries, encoding="utf-8")
    arguments = ["--input", str(folder / "in.parquet"), "--output", str(folder / name), "--workers", "1"]
    code = build.main([*arguments, "--queries", str(folder / f"{name}.tsv"), "--stages", "gather..balance", *more])
    assert code == build.DONE
    return folder / name


def rows(out: Path, stage: str) -> list[dict]:
    exports.write_rows(str(out), stage, str(out / "rows.parquet"))
    return pq.read_table(out / "rows.parquet").to_pylist()


def test_the_cap_is_exact_for_equal_queries(folder: Path, capsys: pytest.CaptureFixture) -> None:
    out = select(folder, "Canada\twords\t7\ncanada\twiki\t9\n...\twiki\t1\n", "--cap", "1000")
    assert info(out, "match")["rows_out"] == TEXTS
    assert info(out, "balance")["rows_out"] == 1000
    assert {tuple(row["kept_by"]) for row in rows(out, "balance")} == {(0,)}
    used = pq.read_table(out / "queries.parquet")
    assert used.column_names == ["id", "query", "source", "count", "language", "flags"]
    one = {"id": 0, "query": "canada", "source": "wiki", "count": 16, "language": "", "flags": ""}
    assert used.to_pylist() == [one]
    counted = {name: info(out, "match")[name] for name in ("queries_given", "queries_merged", "queries_dropped")}
    assert counted == {"queries_given": 3, "queries_merged": 1, "queries_dropped": 1}
    said = capsys.readouterr().out
    assert "3 given, 1 of them equal to another one, 1 without a letter, digit or symbol: 1 are used; 0 lines" in said


def test_texts_stay_as_they_are(folder: Path) -> None:
    found = {row["text"].split()[0] for row in rows(select(folder, "canada\n"), "match")}
    assert found >= {"Canada", "canada", "CANADA"}


def test_with_exact_case_they_are_two(folder: Path) -> None:
    out = select(folder, "Canada\ncanada\n", "--cap", "1000", "--case", "exact")
    kept = [row["kept_by"] for row in rows(out, "balance")]
    assert [sum(number in ids for ids in kept) for number in (0, 1)] == [1000, 1000]
    assert info(out, "match")["queries_merged"] == 0


def test_the_shown_form_picks_no_other_pairs(folder: Path) -> None:
    """Other spellings in the list, and their order, pick no other pairs either."""
    lists = ["Canada\tx\t5\ncanada\tx\t1\nview\n", "view\nCANADA\n", "VIEW\tx\t3\ncanada\tx\t8\nCanada\n"]
    picked = []
    for number, queries in enumerate(lists):
        out = select(folder, queries, "--cap", "300", name=f"out{number}")
        picked.append([(row["uid"], row["kept_by"]) for row in rows(out, "balance")])
        assert [info(out, stage)["digest"] for stage in ("match", "balance")] == [
            info(folder / "out0", stage)["digest"] for stage in ("match", "balance")
        ]
        listed = load_queries(str(out / "queries.parquet"))  # the file is a query list with the same digest
        assert digest_of_queries(pq.read_table(out / "queries.parquet")["query"].to_pylist()) == listed.digest
    assert picked[0] == picked[1] == picked[2]
    shown = [pq.read_table(folder / f"out{number}" / "queries.parquet")["query"].to_pylist() for number in range(3)]
    assert shown == [["Canada", "view"], ["CANADA", "view"], ["canada", "VIEW"]]


def test_a_run_that_continues_merges_no_queries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second for a large list. A damaged list for users is written again."""
    out = select(folder, "Canada\nview\n", "--cap", "10")
    listed = (out / "queries.parquet").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_merge", lambda *_, **__: pytest.fail("the lists were merged"))
        select(folder, "Canada\nview\n", "--cap", "10")
    (out / "queries.parquet").write_bytes(b"")
    select(folder, "Canada\nview\n", "--cap", "10")
    assert (out / "queries.parquet").read_bytes() == listed


def test_the_language_is_part_of_the_identity(folder: Path) -> None:
    picked = []
    for name in ("en", "de"):
        out = select(folder, f"query\tlanguage\ncanada\t{name}\n", "--cap", "1000", "--languages", "all", name=name)
        picked.append({row["uid"] for row in rows(out, "balance")})
        assert pq.read_table(out / "queries.parquet")["language"].to_pylist() == [name]
    assert len(picked[0]) == len(picked[1]) == 1000 and picked[0] != picked[1]


def test_stop_queries_in_any_spelling(folder: Path) -> None:
    (folder / "stop.txt").write_text("CANADA.\n")
    out = select(folder, "Canada\nview\n", "--cap", "10", "--stop-queries", str(folder / "stop.txt"))
    assert info(out, "balance")["stop_queries"] == 1
    assert {tuple(row["kept_by"]) for row in rows(out, "balance")} == {(1,)}


def test_a_list_of_signs_is_refused_before_anything_is_written(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "signs.txt").write_text("...\n!\n")
    arguments = ["--input", str(folder / "in.parquet"), "--output", str(folder / "out")]
    assert build.main([*arguments, "--queries", str(folder / "signs.txt")]) == build.MISSING
    assert "none of its 2 queries holds a letter, a digit or a symbol" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("given", "case"),
    [
        ([], "fold"),
        (["--match", "metaclip"], "exact"),
        (["--match", "metaclip", "--case", "fold"], "fold"),
        (["--case", "exact"], "exact"),
    ],
)
def test_the_case_that_goes_with_the_mode(folder: Path, given: list[str], case: str) -> None:
    options, _ = parse(["--input", str(folder / "in.parquet"), "--output", str(folder / "out"), *given])
    assert options.case == case
    out = select(folder, "Canada\n", *given)
    assert f"case: {case}\n" in (out / "recipe.yaml").read_text()
    found = json.loads((out / "stages" / "match" / "info.json").read_text())
    assert found["decided_by"]["case"] == found["options"]["case"] == case
