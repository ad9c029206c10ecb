"""grep, columns, sql, show, and all that works on a run which is not published yet."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.columns import TABLES
from pipeline.dataset.open_set import open_set
from pipeline.engine.cli import BELOW, DONE, MISSING, USAGE
from pipeline.inspector.grep import expression
from pipeline.inspector.output import print_table
from tests import samples
from tests.test_docs import reference

HEADINGS = {
    "pairs": "METADATA",
    "queries": "QUERIES",
    "duplicates": "DUPLICATES",
    "contamination": "CONTAMINATION",
    "rejected": "rejected/*.parquet",
}


# ------------------------------------------------------------------------------------------------------------- grep


def test_grep_finds_words_in_any_case_and_whole(run: Any, published: Path) -> None:
    texts = open_set(published).table(["key", "text"]).to_pylist()

    def keys(*words: object) -> list[str]:
        code, text, _ = run("grep", published, *words, "--json", "--limit", 0)
        assert code == (DONE if json.loads(text)["total"] else BELOW)
        return [row["key"] for row in json.loads(text)["rows"]]

    assert keys("CHAT  noir") == [row["key"] for row in texts if "chat noir" in row["text"]]
    assert keys("CHAT", "--case") == [] and len(keys("CHAT")) == 5
    assert keys("boa") == keys("boat") != [] == keys("boa", "--word")
    assert keys("boat", "--word") == keys("boat") and len(keys("灯台")) == 5
    assert keys("^a .* boat", "--regex") == keys("a red boat")
    assert len(keys("BILDER", "--in", "url")) == len(keys("bilder", "--in", "all")) == 7
    assert keys("boat", "--keep", "keep_probability < 0.5", "--language", "en") == keys("boat", "--language", "en")


def test_grep_prints_the_place_and_no_escapes(run: Any, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    code, text, _ = run("grep", published, "harbour")
    assert code == DONE and "harbour" in text and max(map(len, text.splitlines())) < 60
    text = run("grep", published, "owned")[1]
    assert "owned" in text and not set("\x1b\x07\u202e") & set(text)
    assert run("grep", published, "zebra") == (BELOW, "no sample holds this\n", "")
    assert run("grep", published, "boat", "--total")[1] == "5\n"
    assert "there may be more" in run("grep", published, "a", "--limit", 2)[1]
    code, _, said = run("grep", published, "(", "--regex")
    assert code == USAGE and "--regex '('" in said
    assert run("grep", published, "(", "--total")[1] == "0\n"
    assert run("grep", published, " ")[0] == USAGE


@pytest.mark.parametrize("words", ["a.b", "[x]", "\\d", "a|b", "é+", "日本 語", "\\Q.\\E", "{", "$", "^"])
def test_words_match_themselves_alone(words: str) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    pattern = expression(words, regex=False, word=False, case=True)
    found = pc.match_substring_regex(pa.array([f"x{words}y", "axb", "d", "0", "a", "", "Q.E"]), pattern).to_pylist()
    assert found == [True] + [False] * 6


# ---------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_are_those_of_the_reference(table: str) -> None:
    """One declaration: docs/architecture.md repeats it word for word."""
    rows = reference()[HEADINGS[table]]
    declared = [(one.name, one.unit, one.null or "no", one.meaning) for one in TABLES[table]]
    assert declared == [(name, unit, null, meaning) for name, _, unit, null, meaning in rows]


def test_columns(run: Any, published: Path, selected: Path) -> None:
    code, text, _ = run("columns", published, "--table", "duplicates")
    assert code == DONE and "  keeper            uid of the row that stayed in its place" in text
    described = json.loads(run("columns", published, "--json")[1])
    assert list(described) == ["pairs", "queries", "rejected", "duplicates", "contamination"]
    assert all(column["meaning"] and "user" not in column["meaning"] for column in described["pairs"])
    names = [column["name"] for column in json.loads(run("columns", selected, "--json")[1])["pairs"]]
    assert names[0] == "key" and "kept_by" in names and "sha256" not in names
    code, _, said = run("columns", published, "--table", "pears")
    assert code == USAGE and "did you mean pairs?" in said


# -------------------------------------------------------------------------------------------------------------- sql


def test_sql_sees_the_tables(run: Any, published: Path, selected: Path) -> None:
    pytest.importorskip("duckdb")

    def rows(folder: Path, query: str) -> Any:
        code, text, said = run("sql", folder, query, "--json")
        assert code == DONE, said
        return json.loads(text)

    assert rows(published, "select count(*) n, min(key) k from pairs") == [{"n": 30, "k": samples.uid(0).hex()}]
    assert rows(published, "select reason from rejected order by 1") == [
        {"reason": "bad_url"},
        {"reason": "empty_text"},
    ]
    assert rows(published, "select kind, distance from duplicates") == [{"kind": "near_duplicate", "distance": 2}]
    assert rows(published, "select rows from stages where reason = 'no_query'") == [{"rows": 100}]
    query = "select query, count(*) n from (select unnest(query_ids) id from pairs) join queries using (id) group by 1"
    assert rows(published, f"{query} order by n desc, 1")[0] == {"query": "lake", "n": 10}
    assert rows(selected, "select count(*) n from pairs where len(kept_by) > 0")[0]["n"] >= 5
    assert rows(selected, "select count(*) n from queries") == [{"n": 3}]
    code, text, _ = run("sql", published, "show tables")
    assert code == DONE and {"pairs", "rights", "contamination"} < set(text.split())
    assert "there are more" in run("sql", published, "from pairs select key", "--limit", 3)[1]


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_text('/etc/hostname')",
        "select * from '/etc/hostname'",
        "select * from glob('/*')",
        "copy (select 1) to 'x.csv'",
        "attach 'x.db'",
        "load httpfs",
        "set enable_external_access = true",
        "select 1; select 2",
        "create table t as select 1",
        "select * from samples",  # no Python variable is a table
        "selct 1",
        "",
    ],
)
def test_sql_reaches_nothing_else(run: Any, published: Path, tmp_path: Path, query: str) -> None:
    pytest.importorskip("duckdb")
    code, text, said = run("sql", published, query)
    assert code == USAGE and text == "" and said.count("\n") == 1, said


def test_sql_says_what_it_needs(run: Any, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    code, _, said = run("sql", published, "select 1")
    assert code == MISSING and "pip install 'openwit[sql]'" in said


# ------------------------------------------------------------------------------------------------------- a sample


def test_show_names_the_duplicates(run: Any, published: Path) -> None:
    facts = json.loads(run("show", samples.uid(13).hex(), published, "--json")[1])
    assert facts["duplicates"] == [{"key": samples.uid(500).hex(), "kind": "near_duplicate", "distance": 2}]
    code, text, _ = run("show", samples.uid(13).hex(), published)
    assert code == DONE and f"{samples.uid(500).hex()} (near_duplicate, 2 bits)" in text and "\x1b" not in text
    code, text, _ = run("show", samples.uid(13).hex(), published, "--picture", "blocks")
    assert code == DONE and text.startswith("\x1b[38;2;")
    assert "\x1b" not in run("show", samples.uid(13).hex(), published, "--picture", "sixel", "--no-picture")[1]


# -------------------------------------------------------------------------------- a run that is not published (yet)


def test_a_run_after_balance_can_be_inspected(run: Any, selected: Path) -> None:
    code, text, _ = run("stats", selected)
    assert code == DONE and "run that is not published, after balance: " in text and "a.example" in text
    facts = json.loads(run("stats", selected, "--json")[1])
    assert facts["samples"] == sum(facts["charts"]["Hosts of the images"].values()) and facts["image_bytes"] == 0
    rows = json.loads(run("sample", selected, "-n", 2, "--query", "dog", "--json")[1])
    assert len(rows) == 2 and all("dog" in row["text"] and len(row["key"]) == 32 for row in rows)
    assert len(run("ls", selected)[1].splitlines()) == facts["samples"]
    assert run("grep", selected, "cat", "--total")[1].strip().isdecimal()
    code, _, said = run("ls", selected, "--shard", 0)
    assert code == MISSING and "the run is not published" in said
    assert run("info", selected)[0] == DONE and run("verify", selected)[0] == DONE


def test_choices_that_cannot_be(run: Any, published: Path) -> None:
    for words, hint in (
        (["--query", "zebra"], "no query of this set is 'zebra'"),
        (["--keep", "widht > 3"], "did you mean width?"),
        (["--keep", "__import__('os')"], "not of the language"),
        (["-n", "-3"], "-n"),
    ):
        code, text, said = run("sample", published, *words)
        assert code in (USAGE, MISSING) and hint in said and text == "", words
    assert run("sample", published, "--domain", "example.de")[1].count("\n") == 7
    for words in (["--domain", "ample.de"], ["--language", "xx"], ["--keep", "width < 0"]):
        code, text, _ = run("sample", published, *words)
        assert code == BELOW and text.startswith("no sample is such a one"), words
    assert run("sample", published, "--language", "xx", "--json") == (BELOW, "[]\n", "")


def test_a_table_fits_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(["name", "n"], [["赤い灯台と海" * 9, 1_000], ["\x1b[2J" + "x" * 99, None]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "n"] and lines[1].endswith("…   1,000") and lines[2].endswith("…      -")
    assert "\x1b" not in "".join(lines) and all(len(line) < 40 for line in lines)


def test_a_table_of_too_many_columns_is_printed_as_records(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    names = [f"column-{number}" for number in range(9)]
    print_table(names, [["x" * 99, *range(8)], [None] * 9])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["column-0  " + "x" * 18 + "…", "column-1  0"] and lines[9] == "" and len(lines) == 19


def test_find_by_page_and_by_query(run: Any, published: Path, selected: Path) -> None:
    code, text, _ = run("find", selected, "--query", "DOG", "--json")
    found = [(pair["stage"], pair["reason"]) for pair in json.loads(text)["pairs"]]
    assert code == DONE and len(found) == 6 and {*found} == {("balance", ""), ("balance", "over_cap")}
    page = open_set(published).row(samples.uid(6).hex())["page_url"]
    pairs = json.loads(run("find", published, "--page", page, "--page", "http://none.example", "--json")[1])["pairs"]
    assert [pair["uid"] for pair in pairs] == [samples.uid(6).hex()]
    assert run("find", published, "--page", "http://none.example")[0] == BELOW
    code, _, said = run("find", selected, "--query", "zebra")
    assert code == MISSING and "no query of this set is 'zebra'" in said
