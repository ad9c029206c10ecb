"""The figures of a list: sums that must hold, and the size of a set for any cap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from queries import load, show


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    folder = tmp_path / "list"
    folder.mkdir()
    names = ["a", "dog", "red dog", "zebra"]
    rows = [[0, 1, 2, 3], names, ["word", "wordnet", "bigram", "wordnet"], [9, 5, 2, 0], [""] * 4, [""] * 4]
    table = pa.table(rows, schema=load.QUERIES)
    pq.write_table(table, folder / "queries.parquet")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = ["a dog"] * 6 + ["a red dog"] * 2 + ["a cat"] * 12 + ["nothing"] * 4 + [None]
    pq.write_table(pa.table({"text": texts, "url": texts}), tmp_path / "texts.parquet")
    return tmp_path / "texts.parquet"


def shown(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    assert show.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_against_a_corpus(listed: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, listed, "--against", corpus)
    assert found["queries"] == 4 and found["sources"]["wordnet"] == {"queries": 2, "occurrences": 5}
    row = found["against"]
    assert (row["texts"], row["matched"], row["matches"], row["never"]) == (25, 20, 30, 1)
    assert [(part["query"], part["texts"]) for part in row["head"][:3]] == [("a", 20), ("dog", 8), ("red dog", 2)]
    assert sum(part["queries"] for part in row["histogram"]) == 4
    assert sum(part["matches"] for part in row["histogram"]) == 30
    assert sum(source["matches"] for source in row["by_source"].values()) == 30
    sizes = {part["cap"]: part["expected_pairs"] for part in row["sizes"]}
    # cap 2: "a red dog" is always kept, "a dog" with 1 - (1 - 2/20)(1 - 2/8), "a cat" by 2/20.
    assert sizes[2] == round(2 + 6 * (1 - 0.9 * 0.75) + 12 * 0.1)
    assert sizes[20] == 20 and sizes[1] < sizes[2] < sizes[5]
    scaled = shown(capsys, listed, "--against", corpus, "--rows", 2500)["against"]
    assert {part["cap"]: part["expected_pairs"] for part in scaled["sizes"]}[200] == pytest.approx(
        sizes[2] * 100, rel=0.1
    )


def test_the_cap_of_a_tail() -> None:
    counts = np.array([0, 1, 1, 2, 6, 90])
    assert show.cap_of_share(counts, 0.1) == 6 and show.cap_of_share(counts, 0.02) == 1
    assert show.tail_share(counts, 6) == pytest.approx(0.04)


def test_tables_for_a_person(listed: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main([str(listed), "--against", str(corpus)]) == 0
    out = capsys.readouterr().out
    assert "25 texts, 20 match (80.0%)" in out and "expected pairs" in out and "#" in out
    assert show.main([]) == 0
    assert "327,581 queries" in capsys.readouterr().out


def test_other_forms_of_lists_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("dog\ncat\n")
    (tmp_path / "texts.csv").write_text("text,n\na dog,1\ncats,2\n")
    (tmp_path / "texts.txt").write_text("a cat\na dog and a cat\n")
    row = shown(capsys, tmp_path / "list.txt", "--against", tmp_path / "texts.*")["against"]
    assert (row["texts"], row["matches"]) == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere"], 4, "no such file; make a list"),
        (["--agianst", "x"], 2, "did you mean --against?"),
        (["list", "--against", "nowhere.parquet"], 4, "no such file"),
        (["list", "--against", "texts.parquet", "--text-column", "alt"], 4, "no column 'alt' among text, url"),
        (["list", "--against", "bad.parquet"], 4, "cannot be read"),
    ],
)
def test_errors(
    arguments: list[str],
    code: int,
    says: str,
    listed: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(corpus.parent)
    Path("bad.parquet").write_text("no parquet")
    assert show.main(arguments) == code
    assert says in capsys.readouterr().err
