"""The list from its command line: rules, reports, errors, and the same digest with any number of workers."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.engine import merging
from pipeline.text.matcher import Matcher
from pipeline.text.normalize import normalize_text
from queries import assemble, build, counts, load, options, recipe, rules, streams, titles, wordnet
from queries.counts import COUNTED
from queries.options import Options
from tests.places import DATA, ROOT

WORDNET = Path(os.environ.get("OPENWIT_WORDNET", "/usr/share/wordnet"))

NOUNS = """  1 the licence
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is
00002684 06 n 02 St._Louis 0 saint_louis 0 001 @ 00001740 n 0000 | a city
00003553 06 n 01 .22_caliber 0 001 @ 00001740 n 0000 | a calibre
00004258 13 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 00001740 n 0000 | a dog
"""
ADJECTIVES = "00001740 00 a 01 able(p) 0 000 | can\n00002098 00 s 02 well-known 0 noted(a) 0 000 | known\n"
VERBS = "00001740 29 v 01 breathe 0 000 | draw air\n"


@pytest.fixture(scope="module")
def small_wordnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dict")
    for part, lines in {"noun": NOUNS, "adj": ADJECTIVES, "verb": VERBS, "adv": VERBS}.items():
        (folder / f"data.{part}").write_text(lines)
    (folder / "cntlist.rev").write_text("dog%1:05:00:: 1 42\ndog%1:18:00:: 2 2\n")
    return str(folder)


def run(*arguments: Any) -> int:
    return build.main([str(argument) for argument in arguments])


def read(folder: Path) -> tuple[dict[str, tuple[str, int]], dict[str, Any]]:
    """The list as query -> (source, count), and info.json. Checks what must hold for every list."""
    table = pq.read_table(folder / "queries.parquet")
    assert table.schema.equals(load.QUERIES)
    queries = table["query"].to_pylist()
    assert queries == sorted(queries, key=str.encode) and len(set(queries)) == len(queries)
    assert table["id"].to_pylist() == list(range(len(queries)))
    info = json.loads((folder / "info.json").read_text())
    listed = load.load_queries(str(folder / "queries.parquet"))
    assert (info["digest"], info["queries"]) == (listed.digest, len(queries))
    assert "licence" in (folder / "README.md").read_text()
    assert not (folder / ".counting").exists()
    if info["options"]["profile"] == "wit":
        assert Matcher.build(listed.queries).dead == [] and info["dead_in_list"]["wide"] == 0
        keys = [normalize_text(query) for query in queries]
        assert len(set(keys)) == len(keys)
    rows = zip(queries, table["source"].to_pylist(), table["count"].to_pylist(), strict=True)
    return {query: (source, count) for query, source, count in rows}, info


def test_wordnet(small_wordnet: str, tmp_path: Path) -> None:
    assert run("--output", tmp_path / "wit", "--wordnet", small_wordnet) == 0
    found, info = read(tmp_path / "wit")
    assert info["counts"] == {"number": 100, "wordnet": 11, "word": 0, "bigram": 0}
    assert found["dog"] == ("wordnet", 44) and found["St. Louis"] == ("wordnet", 0) and "99" in found
    assert {"able", "noted", "Canis familiaris", ".22 caliber"} <= set(found)
    assert run("--output", tmp_path / "first", "--wordnet", small_wordnet, "--lemmas", "first") == 0
    assert "Canis familiaris" not in read(tmp_path / "first")[0]


def test_profile_metaclip1_takes_wordnet_as_it_was_published(small_wordnet: str, tmp_path: Path) -> None:
    assert run("--output", tmp_path, "--wordnet", small_wordnet, "--profile", "metaclip1") == 0
    found, info = read(tmp_path)
    assert {query for query, row in found.items() if row[0] == "wordnet"} == {
        *("entity", "st", "dog", "able", "well-known", "breathe")
    }
    assert info["sources"]["wordnet"] == {
        **{"offered": 7, "dead": 1, "duplicates": 0, "over": 0, "flagged": 0, "kept": 6}
    }


@pytest.mark.skipif(not (WORDNET / "data.noun").exists(), reason=f"no WordNet in {WORDNET}: set OPENWIT_WORDNET")
def test_profile_metaclip1_on_the_real_wordnet(tmp_path: Path) -> None:
    assert run("--output", tmp_path, "--wordnet", WORDNET, "--profile", "metaclip1") == 0
    info = read(tmp_path)[1]
    # One of these is the empty entry (".22_caliber" up to its dot). The paper's 86,654 do not include it.
    assert info["sources"]["wordnet"]["offered"] + info["sources"]["number"]["offered"] == 86_655
    assert info["queries"] == 86_654


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump, texts, counts and pageviews, with words and pairs that occur thousands of times."""
    folder = tmp_path_factory.mktemp("corpus")
    random.seed(0)
    words = [f"{a}{b}{c}a" for a in "bdfgk" for b in "aeiou" for c in "lmnr"]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    pages = []
    for number in range(400):
        tokens = random.choices(words, weights, k=80)
        tokens[10:12] = ["New", "York"] if number % 2 else ["red", "panda"]
        pages.append(
            f"<page><title>Page {number}</title><ns>0</ns>"
            f"<revision><text>'''{' '.join(tokens)}'''.</text></revision></page>"
        )
    head = '<mediawiki xml:lang="en"><siteinfo><dbname>enwiki</dbname></siteinfo>'
    more = "<page><title>Cat</title><ns>0</ns><revision><text>A cat.</text></revision></page>"
    more += '<page><title>Kitty</title><ns>0</ns><redirect title="Cat" /><revision><text>x</text></revision></page>'
    data = "\n".join([head, *pages, more]).encode()
    (folder / "enwiki.xml.bz2").write_bytes(
        b"".join(bz2.compress(data[at : at + 30_000]) for at in range(0, len(data), 30_000))
    )
    (folder / "a.txt").write_text("\n".join(" ".join(random.choices(words, weights, k=30)) for _ in range(300)))
    with gzip.open(folder / "b.txt.gz", "wt") as file:
        file.write("Naïve cafés in St. Louis\n" * 30 + "\n\n")
    (folder / "counts.tsv").write_text(
        "the\t99999\nred\t90\npanda\t80\nred panda\t70\nzebra\t500\nzebra crossing\t60\ncrossing\t90\n"
    )
    lines = ["en.wikipedia Cat 1 desktop 60 A1", "en.wikipedia Kitty 2 mobile-web 50 A1"]
    lines += ["en.wikipedia Undefined - desktop 900 A1", "en.wikipedia No_article 9 desktop 900 A1"]
    lines += ["en.wikipedia Low 3 desktop 9 A1", "de.wikipedia Hund 1 desktop 99 A1"]
    (folder / "pageviews-202610-user").write_text("\n".join(lines))
    return folder


def sources(corpus: Path) -> list[str]:
    return [
        *("--wikipedia", str(corpus / "*.xml.bz2"), "--text", str(corpus / "a.txt"), str(corpus / "b.txt.gz")),
        *("--counts", str(corpus / "counts.tsv"), "--pageviews", str(corpus / "pageviews-202610-user")),
        *("--min-count", "20", "--bigrams", "30"),
    ]


def test_all_sources_give_one_list_on_one_worker_and_on_two(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PIECE", 20_000)  # several units of the dump
    monkeypatch.setattr(merging, "MOST_READS", 0)  # the exchanges of one worker have two levels
    assert run("--output", tmp_path / "one", "--workers", 1, *sources(corpus), "--export") == 0
    found, info = read(tmp_path / "one")
    assert found["New York"] == ("bigram", 200) and found["red panda"] == ("bigram", 270)
    assert found["Naïve"] == ("word", 30) and found["naïve"] == ("word", 30) and found["zebra"] == ("word", 500)
    assert found["zebra crossing"] == ("bigram", 60)
    assert found["Cat"] == ("title", 110) and "Kitty" not in found and "Low" not in found
    assert info["ledger"]["wikipedia"] == {"articles": 401, "redirects": 1}
    assert not {"Undefined", "No article"} & set(found)
    assert info["ledger"]["titles"] == {"no_article_of_the_dump": 3}  # Low is one, too
    assert info["ledger"]["text"]["lines"] == 330
    assert json.loads((tmp_path / "one" / "queries.json").read_text()) == list(found)
    assert (tmp_path / "one" / "queries.txt").read_text().splitlines() == list(found)

    program = (
        "import sys; from queries import build, streams; streams.PIECE = 20_000; sys.exit(build.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "--output", str(tmp_path / "two"), "--workers", "2", *sources(corpus)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    assert (tmp_path / "two" / "queries.parquet").read_bytes() == (tmp_path / "one" / "queries.parquet").read_bytes()
    assert read(tmp_path / "two")[1]["digest"] == info["digest"]


def test_titles_of_an_index_dump_by_links(tmp_path: Path) -> None:
    pages = [("Red panda", 90, "The red panda is a mammal."), ("Panda (film)", 30, "A film."), ("Stub", 2, "A stub.")]
    lines = []
    for title, links, text in pages:
        page = {"title": title, "text": text, "namespace": 0, "language": "en", "incoming_links": links}
        lines += ['{"index":{"_id":"1"}}', json.dumps(page | {"redirect": [{"namespace": 0, "title": f"{title} 2"}]})]
    (tmp_path / "enwiki_content.json.gz").write_bytes(gzip.compress("\n".join([*lines, "{cut"]).encode()))
    arguments = ["--wikipedia", tmp_path / "*.json.gz", "--workers", 1, "--min-count", 1, "--min-articles", 2]
    assert run("--output", tmp_path / "out", *arguments) == 0
    found, info = read(tmp_path / "out")
    assert {query: row for query, row in found.items() if row[0] != "number"} == {
        "a": ("word", 3),
        "A": ("word", 2),
        "Red panda": ("title", 90),
        "Panda": ("title", 30),
    }
    assert info["ledger"]["wikipedia"] == {"articles": 3, "line_malformed": 1}


def test_profile_metaclip1_on_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The Red-Brown dog’s 2nd tail\n" * 5 + "once seen\n" * 2)
    assert (
        run("--output", tmp_path / "out", "--profile", "metaclip1", "--text", tmp_path / "a.txt", "--min-count", 2) == 0
    )
    found, _ = read(tmp_path / "out")
    assert {query for query, row in found.items() if row[0] == "word"} == {"the", "red-brown", "dog's", "tail"}


def test_each_source_has_its_share_and_unused_room_flows_on() -> None:
    def offer(name: str, count: int) -> tuple[str, pa.Table]:
        words = [f"{name}{number}" for number in range(count)]
        return name, pa.table([words, list(range(count, 0, -1))], schema=COUNTED)

    offers = [offer("wordnet", 2), offer("word", 500), offer("bigram", 40), offer("title", 40)]
    budgets = recipe.budgets(options.Options(output="x", size=200))
    assert [budget.queries for budget in budgets.values()] == [17, 50, 20, 12]  # of the 100 beside the numbers
    made = assemble.assemble(offers, size=100, language="en", budgets=budgets)
    assert made.kept() == {"wordnet": 2, "word": 66, "bigram": 20, "title": 12}
    assert made.over == {"wordnet": 0, "word": 434, "bigram": 20, "title": 28}
    budgets = recipe.budgets(options.Options(output="x", size=200, words=10))  # firm
    kept = assemble.assemble(offers, size=100, language="en", budgets=budgets).kept()
    assert kept == {"wordnet": 2, "word": 10, "bigram": 40, "title": 40}


def test_a_query_over_the_budget_of_one_source_may_come_from_another() -> None:
    offers = [
        ("wordnet", pa.table([["dog", "beautiful"], [9, 0]], schema=COUNTED)),
        ("word", pa.table([["beautiful", "the"], [8, 7]], schema=COUNTED)),
    ]
    made = assemble.assemble(offers, size=3, language="en", budgets={"wordnet": assemble.Budget(1)})
    rows = made.table.select(["query", "source", "count"]).to_pylist()
    assert rows[0] == {"query": "beautiful", "source": "word", "count": 8}
    assert made.duplicates == {"wordnet": 1, "word": 0} and made.kept() == {"wordnet": 1, "word": 2}


def test_titles_are_there_where_words_alone_exceed_the_size(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text(
        "".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)}\t500\n" for n in range(400))
    )
    lines = [f"en.wikipedia Title_{name} 1 desktop 90 A1" for name in "abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "pageviews-202610-user").write_text("\n".join(lines))
    arguments = ["--counts", tmp_path / "words.tsv", "--pageviews", tmp_path / "pageviews-202610-user", "--workers", 1]
    assert run("--output", tmp_path / "out", *arguments, "--size", 200) == 0
    info = read(tmp_path / "out")[1]
    assert info["queries"] == 200 and info["counts"]["title"] == 12


def test_pairs_have_neither_function_words_nor_halves_of_apostrophes(tmp_path: Path) -> None:
    text = "such as golden gate according to Bono's songs golden gate don't wait such as\n"
    (tmp_path / "a.txt").write_text(text * 30 + "other words of many kinds stand here alone every time\n" * 200)
    arguments = ["--text", tmp_path / "a.txt", "--min-count", 20, "--workers", 1]
    assert run("--output", tmp_path / "out", *arguments) == 0
    pairs = {query.lower() for query, row in read(tmp_path / "out")[0].items() if row[0] == "bigram"}
    assert "golden gate" in pairs
    assert not {"such as", "according to", "bono s", "s songs", "don t", "t wait"} & pairs


def test_pmi_is_computed_within_each_corpus(tmp_path: Path) -> None:
    # In each file "red panda" is frequent. With the sums of both, its parts are far more frequent than the pair.
    (tmp_path / "a.tsv").write_text("red\t90\npanda\t80\nred panda\t70\nzebra\t90000\n")
    (tmp_path / "b.tsv").write_text("red\t9000000\npanda\t9000000\nzebra\t90000000\nsome zebra\t99\n")
    assert run("--output", tmp_path / "out", "--counts", tmp_path / "a.tsv", tmp_path / "b.tsv") == 0
    assert read(tmp_path / "out")[0].get("red panda") is None  # below --min-count
    arguments = ["--min-bigram-count", 50, "--counts", tmp_path / "a.tsv", tmp_path / "b.tsv", "--min-count", 50]
    assert run("--output", tmp_path / "out2", *arguments) == 0
    found, info = read(tmp_path / "out2")
    assert found["red panda"] == ("bigram", 70) and info["ledger"]["counts"]["pairs_of_common_words"] == 1


def test_pairs_of_which_words_is_not_clear(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("red\t900\n")
    (tmp_path / "b.tsv").write_text("red\t900\npanda\t800\n")
    (tmp_path / "c.tsv").write_text("red panda\t700\n")
    arguments = ["--counts", *(tmp_path / f"{name}.tsv" for name in "abc")]
    assert run("--output", tmp_path / "out", *arguments) == 0
    assert "several files have words alone" in read(tmp_path / "out")[1]["warnings"][0]


@pytest.mark.parametrize("linked", [False, True])
def test_a_dump_without_pageviews_says_that_titles_need_them(tmp_path: Path, linked: bool) -> None:
    page = json.dumps({"title": "Red panda", "text": "a red panda", "namespace": 0, "incoming_links": 90 * linked})
    (tmp_path / "enwiki_content.json").write_text(f'{{"index":{{}}}}\n{page}\n')
    arguments = ["--wikipedia", tmp_path / "*.json", "--workers", 1, "--min-count", 1, "--min-articles", 1]
    assert run("--output", tmp_path / "out", *arguments) == 0
    found, info = read(tmp_path / "out")
    assert ("titles are those with the most links" if linked else "the list has no titles") in info["warnings"][0]
    assert (found.get("Red panda") == ("title", 90)) == linked


@pytest.mark.parametrize(
    ("title", "wanted"),
    [("Cat", True), ("Alien: Covenant", True), ("1984 (novel)", True), ("Deaths in 2023", False), ("Undefined", False)]
    + [("List of dogs", False), ("2023", False), ("1990s", False), ("44 BC", False), ("2023 in film", False)]
    + [("File:Cat.jpg", False), ("Cat.jpg", False), ("Talk:Cat", False), ("Wikipedia: About", False), ("-", False)]
    + [("Jay-Z discography", False), ("404.php", False), ("Main Page", False), ("Death in Venice", True)],
)
def test_titles_without_files_lists_and_years(title: str, wanted: bool) -> None:
    assert rules.is_title(title) == wanted
    views = pa.table([[title], [99]], schema=COUNTED)
    assert len(titles.title_queries(views, min_count=1, max_titles=9)) == wanted


def test_slurs_and_explicit_terms_are_left_out_and_kept_on_demand(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("dog\t900\nPorn\t800\nwog\t700\n")
    assert run("--output", tmp_path / "out", "--counts", tmp_path / "a.tsv") == 0
    found, info = read(tmp_path / "out")
    assert "dog" in found and not {"porn", "Porn", "wog"} & set(found) and info["sources"]["word"]["flagged"] == 3
    assert run("--output", tmp_path / "kept", "--counts", tmp_path / "a.tsv", "--keep-flagged") == 0
    table = pq.read_table(tmp_path / "kept" / "queries.parquet")
    assert {row["query"]: row["flags"] for row in table.to_pylist() if row["flags"]} == {
        **{"Porn": "explicit", "porn": "explicit", "wog": "slur"}
    }


def test_ready_lists_are_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("query,source,flags,count\nunheard-of thing,shop,benchmark,7\nplain,,,1\n")
    assert run("--output", tmp_path / "out", "--lists", tmp_path / "mine.csv", load.default_list()) == 0
    found, info = read(tmp_path / "out")
    assert found["unheard-of thing"] == ("shop", 7) and found["golden retriever"][0] == "list"
    table = pq.read_table(tmp_path / "out" / "queries.parquet")
    assert table.filter(pc.equal(table["query"], "unheard-of thing"))["flags"].to_pylist() == ["benchmark"]
    assert len(found) == len(load.load_queries(load.default_list())) + 1  # "plain" is there already


def test_a_ready_list_of_another_language_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--output", tmp_path / "out", "--language", "de", "--lists", load.default_list()) == 4
    assert "default.parquet: names the language en, not de" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_and_foreign_dumps_are_named_and_the_rest_goes_on(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (corpus / "enwiki.xml.bz2").read_bytes()
    (tmp_path / "cut.xml.bz2").write_bytes(whole[: len(whole) * 3 // 4])
    (tmp_path / "noise.bz2").write_bytes(b"BZh9" + os.urandom(500))
    (tmp_path / "fr.json").write_text('{"index":{}}\n{"title":"Chat","text":"le chat","namespace":0,"language":"fr"}\n')
    arguments = ["--output", tmp_path / "out", "--workers", 1, "--min-count", 20]
    assert run(*arguments, "--wikipedia", *(tmp_path / name for name in ("cut.xml.bz2", "noise.bz2", "fr.json"))) == 0
    _, info = read(tmp_path / "out")
    row = info["ledger"]["wikipedia"]
    assert (row["bz2_truncated"], row["dump_unreadable"], row["dump_of_other_language"]) == (1, 1, 1)
    assert 200 < row["articles"] < 400 and len(info["warnings"]) == 4  # the last: no pageviews
    assert f"{tmp_path / 'cut.xml.bz2'}: the file is cut in a bz2 block (1)" in info["warnings"][2]
    assert "noise.bz2" in capsys.readouterr().err


def test_size_fills_the_list_in_the_order_of_the_sources() -> None:
    offers = [
        ("wordnet", pa.table([["dog", "St. Louis"], [44, 0]], schema=COUNTED)),
        ("word", pa.table([["the", "dog", "St Louis", "a", "…"], [9, 8, 7, 6, 5]], schema=COUNTED)),
    ]
    made = assemble.assemble(offers, size=3, language="en")
    assert made.table.select(["query", "source", "count"]).to_pylist() == [
        {"query": "St. Louis", "source": "wordnet", "count": 7},
        {"query": "dog", "source": "wordnet", "count": 44},
        {"query": "the", "source": "word", "count": 9},
    ]
    assert (made.dead, made.duplicates, made.over) == (
        {"wordnet": 0, "word": 1},
        {"wordnet": 0, "word": 2},
        {"wordnet": 0, "word": 1},
    )
    assert made.dead_samples == ["…"] and made.duplicate_samples == ["St Louis"]


@pytest.mark.parametrize(
    ("line", "words", "pairs", "skipped"),
    [
        ("the 5\n\n 7\n", {"the": 5}, {}, 2),
        ("new york\t12", {}, {"new york": 12}, 0),
        ("12\tnew\tyork\n", {}, {"new york": 12}, 0),
        ("new\tyork\t12", {}, {"new york": 12}, 0),
        ("ref name\t3747\t5.84", {}, {"ref name": 3747}, 0),
        ("<S> and\t7\nthe\t7\none of many\t3", {"the": 7}, {}, 2),
        ("2020 77", {"2020": 77}, {}, 0),
        ("the\t0.05\nof\t1e-8", {"the": 500_000_000, "of": 100}, {}, 0),
        ("the 5\nthe 6\r\n", {"the": 11}, {}, 0),
    ],
)
def test_ready_counts(tmp_path: Path, line: str, words: dict[str, int], pairs: dict[str, int], skipped: int) -> None:
    path = tmp_path / "counts.tsv"
    for packed in (bytes, gzip.compress, bz2.compress):
        path.write_bytes(packed(line.encode()))
        found = counts.read_counts(str(path))
        for table, wanted in ((found.words, words), (found.pairs, pairs)):
            assert dict(zip(table["query"].to_pylist(), table["count"].to_pylist(), strict=True)) == wanted
        assert found.skipped == skipped


def test_counts_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    pq.write_table(pa.table({"count": [5, 7, None, 3], "query": ["the", "new york", "of", None]}), path)
    found = counts.read_counts(str(path))
    assert found.words.to_pylist() == [{"query": "the", "count": 5}]
    assert found.pairs.to_pylist() == [{"query": "new york", "count": 7}] and found.skipped == 2


def test_counts_of_wordfreq(tmp_path: Path) -> None:
    path = tmp_path / "tiny.msgpack.gz"
    path.write_bytes(
        gzip.compress(msgspec.msgpack.encode([{"format": "cB", "version": 1}, [], ["the"], [], ["of", "and"]]))
    )
    assert counts.read_counts(str(path)).words.to_pylist() == [
        {"query": "and", "count": 9_332_543_008},
        {"query": "of", "count": 9_332_543_008},
        {"query": "the", "count": 9_772_372_210},
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--outptu", "x"], 2, "did you mean --output?"),
        (["--output", "out", "--min-cout", "3"], 2, "did you mean --min-count?"),
        (["--output", "out", "more"], 2, "unexpected argument 'more'"),
        (["--output", "out", "--size", "0"], 2, "--size 0: must be a whole number of at least 1"),
        (["--output", "out", "--profile", "clip"], 2, "--profile clip: must be one of wit, metaclip1"),
        ([], 2, "--output"),
        (["--output", "out", "--text", "nowhere/*.txt"], 4, "--text nowhere/*.txt: no such file"),
        (["--output", "out", "--wordnet", "nowhere"], 4, "data.noun"),
        (["--output", "out"], 4, "no source gave a query"),
        (["--output", "out", "--counts", "empty"], 4, "counts"),
        (["--output", "out", "--text", "empty", "--runner", "NoSuchRunner"], 2, "must be local, a Beam runner"),
        (["--output", "out", "--counts", "half.gz"], 4, "cannot be read"),
    ],
)
def test_errors_say_what_to_do_and_leave_nothing(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("")
    Path("half.gz").write_bytes(gzip.compress(b"the 5\n")[:-5])
    assert run(*arguments) == code
    assert says in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_folder_that_is_no_wordnet(tmp_path: Path) -> None:
    for part in wordnet.PARTS:
        (tmp_path / f"data.{part}").write_text("  1 a licence\nnot a synset\n")
    with pytest.raises(wordnet.WordNetError, match="not a line of a WordNet data file"):
        wordnet.read_synsets(str(tmp_path))


def test_the_list_of_the_project() -> None:
    path = Path(load.default_list())
    listed = load.load_queries(str(path))
    readme = (path.parent / "README.md").read_text()
    assert path.stat().st_size < 4 << 20
    assert listed.digest in readme and f"{len(listed):,}" in readme
    assert (listed.empties, listed.duplicates, listed.invalid) == (0, 0, 0)
    assert Matcher.build(listed.queries).dead == []
    assert {"golden retriever", "New York", "beach", "7"} <= set(listed.queries.to_pylist())
    assert "Princeton University" in (path.parent / "WORDNET-LICENSE.txt").read_text()


def test_real_texts_and_counts_give_a_list(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no texts in {DATA}: set OPENWIT_DATA to the data folder")
    texts, ready = sorted((DATA / "wikitext").glob("*.txt")), DATA / "queries" / "wikiwords_enwiki2012_counts.tsv.gz"
    arguments = ["--text", *texts, "--counts", ready, "--min-count", 10, "--workers", 1]
    assert run("--output", tmp_path, *arguments) == 0
    found, info = read(tmp_path)
    assert found["Los Angeles"][0] == "bigram" and found["the"][0] == "word"
    pairs = [query.lower().split() for query, row in found.items() if row[0] == "bigram"]
    assert not any(set(pair) & (rules.FUNCTION_WORDS | rules.APOSTROPHE_HALVES) for pair in pairs)
    assert info["counts"]["word"] > 100_000 and info["counts"]["bigram"] > 200


def test_pairs_of_ready_counts_take_words_in_lower_case_and_are_counted_without_their_words(tmp_path: Path) -> None:
    others = (f"w{first}{second}" for first in "abcdefghij" for second in "abcdefghij")
    words = "".join(f"{word}\t2000\n" for word in ("new", "york", *others))
    for pair, kept, unknown in (("New York", True, 0), ("Old York", False, 1)):
        (tmp_path / "counts.tsv").write_text(f"{words}{pair}\t900\n")
        made = build.build(Options(output=str(tmp_path / "out"), counts=(str(tmp_path / "counts.tsv"),)), quiet=True)
        queries = load.load_queries(str(tmp_path / "out" / "queries.parquet")).queries.to_pylist()
        assert ("new york" in queries) == kept
        assert made.info["ledger"]["counts"].get("pairs_of_unknown_words", 0) == unknown
        assert len([line for line in made.info["warnings"] if "1 of 1 pairs were left out" in line]) == unknown


def test_a_language_without_a_model_and_pairs_without_words_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.tsv").write_text("dog\t2000\n")
    options = Options(output=str(tmp_path / "xx"), counts=(str(tmp_path / "words.tsv"),), language="xx")
    (said,) = build.build(options, quiet=True).info["warnings"]
    assert said.startswith("--language xx: the language model lid.176 does not know it")
    (tmp_path / "pairs.tsv").write_text("New York\t900\n")
    assert run("--output", tmp_path / "out", "--counts", tmp_path / "pairs.tsv") == 4
    assert "has pairs but no words" in capsys.readouterr().err
