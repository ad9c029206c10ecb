"""Which queries of a list are one: ids, identities, shown forms and counts; nothing is lost without a count."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.matcher import forms_of
from queries.identity import UsedQueries, merge_queries
from queries.load import QUERIES, load_queries

LINES = st.lists(st.tuples(st.text("aAbBéÉ .-", max_size=4), st.integers(0, 3), st.sampled_from(["", "de", "tr"])))


def use(folder: Path, rows: list[tuple], *, mode: str = "wide", case: str = "fold") -> UsedQueries:
    """The list of rows (query, source, count, language); missing cells are empty."""
    lines = ["\t".join(map(str, (*row, "", "", "")[:4])) for row in rows]
    path = folder / "list.tsv"
    path.write_text("query\tsource\tcount\tlanguage\n" + "\n".join(lines), encoding="utf-8")
    return merge_queries(load_queries(str(path)), mode=mode, case=case)


def rows(used: UsedQueries) -> list[tuple]:
    return [tuple(row.values())[1:5] for row in used.table.to_pylist()]


def test_equal_queries_are_one_whatever_their_source(tmp_path):
    used = use(tmp_path, [("canada", "words", 5), ("dog", "words", 2), ("CANADA", "titles", 1), ("Canada", "wiki", 90)])
    assert used.table.schema == QUERIES
    assert rows(used) == [("Canada", "wiki", 96, ""), ("dog", "words", 2, "")]
    assert used.table["id"].to_pylist() == [0, 1]
    assert used.identities.to_pylist() == ["canada", "dog"]
    assert used.counts() == {
        "queries": 2, "queries_given": 4, "queries_merged": 2, "queries_dropped": 0, "lines_left_out": 0
    }  # fmt: skip


def test_flags_are_those_of_the_shown_form(tmp_path):
    (tmp_path / "list.csv").write_text('query,count,flags\nOslo,9,"Name  x"\noslo,1,\ndog,1,\n')
    used = merge_queries(load_queries(str(tmp_path / "list.csv")), mode="wide", case="fold")
    assert dict(zip(used.table["query"].to_pylist(), used.table["flags"].to_pylist(), strict=True)) == {
        "Oslo": "name x", "dog": ""
    }  # fmt: skip


def test_ties_of_the_shown_form_go_by_string(tmp_path):
    assert [row[0] for row in rows(use(tmp_path, [("nba", "", 3), ("NBA", "", 3), ("Nba", "", 3)]))] == ["NBA"]


def test_the_shown_form_changes_neither_ids_nor_identities(tmp_path):
    first = use(tmp_path, [("Zebra", "", 9), ("zebra", "", 1), ("apple", "", 1), ("Éclair", "", 0)])
    other = use(tmp_path, [("ZEBRA", "", 9), ("zebra", "", 1), ("Apple", "", 1), ("éclair", "", 0)])
    assert first.identities.equals(other.identities)
    assert [row[0] for row in rows(first)] == ["apple", "Zebra", "Éclair"]
    assert [row[0] for row in rows(other)] == ["Apple", "ZEBRA", "éclair"]


def test_exact_mode_keeps_strings_and_their_hashes(tmp_path):
    used = use(
        tmp_path, [("Canada", "", 1), ("canada", "", 1), ("St Louis", "", 1), ("St. Louis", "", 9)], case="exact"
    )
    assert used.identities.to_pylist() == ["Canada", "St Louis", "canada"]
    assert [row[0] for row in rows(used)] == ["Canada", "St. Louis", "canada"]


def test_metaclip_mode_tells_all_strings_apart(tmp_path):
    given = [("St Louis",), ("St. Louis",), ("canada",), ("Canada",), ("!!",)]
    assert len(rows(use(tmp_path, given, mode="metaclip", case="exact"))) == 5
    assert len(rows(use(tmp_path, given, mode="metaclip", case="fold"))) == 4


def test_languages_are_kept_apart(tmp_path):
    used = use(tmp_path, [("Gift", "", 1, "EN"), ("gift", "", 2, "en"), ("Gift", "", 1, "de"), ("gift",)])
    assert rows(used) == [("Gift", "", 1, "de"), ("gift", "", 3, "en"), ("gift", "", 0, "")]
    assert used.identities.to_pylist() == ["de\tgift", "en\tgift", "gift"]


def test_turkish_letters_in_a_turkish_list(tmp_path):
    spellings = ["IŞIK", "ışık", "işik", "İŞİK"]
    assert len(rows(use(tmp_path, [(word, "", 1, "tr") for word in spellings]))) == 2
    mixed = use(tmp_path, [(word, "", 1, code) for word in spellings for code in ("tr", "en")])
    assert mixed.lists() == (("en", 0, 3), ("tr", 3, 5))


def test_queries_without_a_token_are_counted(tmp_path):
    used = use(tmp_path, [("...",), ("!",), ("\u0640",), ("dog",)])
    assert rows(used) == [("dog", "", 0, "")]
    assert used.counts()["queries_dropped"] == 3
    with pytest.raises(ValueError, match="none of its 2 queries holds a letter"):
        use(tmp_path, [("...",), ("!",)])


def test_counts_beyond_64_bits_do_not_wrap(tmp_path):
    used = use(tmp_path, [("a", "", 10**18 - 1)] + [("A", "", 10**18 - 1)])
    assert rows(used)[0][2] == 2 * 10**18 - 2
    path = tmp_path / "list.json"
    path.write_text('{"a": 9223372036854775807, "A": 9223372036854775806}')
    assert rows(merge_queries(load_queries(str(path)), mode="wide", case="fold")) == [("a", "", 2**63 - 1, "")]


def test_a_language_without_a_token_has_no_list(tmp_path: Path) -> None:
    """Also if the only query with a token comes after many without one."""
    many = [("." * (number + 1), "", 0, "en") for number in range(900)] + [("..." * 400 + "a", "", 0, "en")]
    many += [("(" * (number + 1), "", 0, "en") for number in range(200)]
    used = use(tmp_path, [*many, ("?", "", 0, "de"), ("zebra", "", 0, "en"), ("chat", "", 0, "fr")])
    assert used.languages == ("en", "fr") == tuple(language for language, _, _ in used.lists())


@given(
    lines=LINES,
    seed=st.integers(0, 9),
    mode=st.sampled_from(["wide", "metaclip"]),
    case=st.sampled_from(["exact", "fold"]),
)
def test_merging_by_definition(tmp_path_factory, lines, seed, mode, case):
    folder = tmp_path_factory.mktemp("list")
    lines = [(query, "", count, language) for query, count, language in lines] + [("dog", "", 1, "")]
    used = use(folder, lines, mode=mode, case=case)
    random.Random(seed).shuffle(lines)
    given = load_queries(str(folder / "list.tsv"))
    expected: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for row in given.table.to_pylist():
        form = forms_of(
            pa.array([row["query"]]), mode=mode, case=case, language="tr" if row["language"] == "tr" else ""
        )[0].as_py()
        if form or mode == "metaclip":
            expected.setdefault((row["language"], form), []).append((-row["count"], row["query"]))
    found = {(row["language"], row["query"], row["count"]) for row in used.table.to_pylist()}
    assert found == {
        (language, min(group)[1], -sum(count for count, _ in group)) for (language, _), group in expected.items()
    }
    assert set(used.languages) == {language for language, _, _ in used.lists()}
    counts = used.counts()
    assert counts["queries_given"] == counts["queries"] + counts["queries_merged"] + counts["queries_dropped"]
    assert len(set(used.identities.to_pylist())) == len(expected)
    if case == "fold":  # the order of the file decides nothing
        again = use(folder, [line for line in lines if line[0].strip()], mode=mode, case=case)
        assert again.identities.equals(used.identities)
