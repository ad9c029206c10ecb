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
import pyarrow.parquet as pq
import pytest

from pipeline.text.matcher import Matcher
from pipeline.text.normalize import normalize_text
from queries import assemble, build, counts, load, streams, wordnet
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
    assert info["sources"]["wordnet"] == {"offered": 7, "dead": 1, "duplicates": 0, "over": 0, "kept": 6}


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
    more = '<page><title>Kitty</title><ns>0</ns><redirect title="Cat" /><revision><text>x</text></revision></page>'
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
    assert run("--output", tmp_path / "one", "--workers", 1, *sources(corpus), "--export") == 0
    found, info = read(tmp_path / "one")
    assert found["New York"] == ("bigram", 200) and found["red panda"] == ("bigram", 270)
    assert found["Naïve"] == ("word", 30) and found["naïve"] == ("word", 30) and found["zebra"] == ("word", 500)
    assert found["zebra crossing"] == ("bigram", 60)
    assert found["Cat"] == ("title", 110) and "Kitty" not in found and "Low" not in found
    assert info["ledger"]["wikipedia"] == {"articles": 400, "redirects": 1}
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
    assert 200 < row["articles"] < 400 and len(info["warnings"]) == 3
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
    path = tmp_path / "counts.gz"
    path.write_bytes(gzip.compress(line.encode()))
    found = counts.read_counts(str(path))
    for table, wanted in ((found.words, words), (found.pairs, pairs)):
        assert dict(zip(table["query"].to_pylist(), table["count"].to_pylist(), strict=True)) == wanted
    assert found.skipped == skipped


def test_counts_of_wordfreq(tmp_path: Path) -> None:
    path = tmp_path / "tiny.msgpack.gz"
    path.write_bytes(
        gzip.compress(msgspec.msgpack.encode([{"format": "cB", "version": 1}, [], ["the"], ["of", "and"]]))
    )
    assert counts.read_counts(str(path)).words.to_pylist() == [
        {"query": "and", "count": 9_549_925_860},
        {"query": "of", "count": 9_549_925_860},
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
    assert info["counts"]["word"] > 100_000 and info["counts"]["bigram"] > 300


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
