"""The counts of whole columns equal counts that are made by hand."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.text.normalize import normalize_text
from queries import bigrams, ngrams, rules, titles
from queries.bigrams import Vocabulary
from queries.counts import COUNTED

TEXTS = st.lists(
    st.lists(st.sampled_from(["New", "york", "new", "York", "a", "St.", "Louis", "C++", "don't", "2", "\n", "été"]))
    .map(" ".join)
    .filter(str.strip),
    min_size=1,
    max_size=8,
)


def by_hand(texts: list[str]) -> tuple[Counter, dict[str, set[int]], Counter]:
    """Counts token by token: forms, articles by lower-case form, pairs of forms."""
    forms: Counter[str] = Counter()
    articles: dict[str, set[int]] = defaultdict(set)
    pairs: Counter[tuple[str, str]] = Counter()
    for number, text in enumerate(texts):
        for stretch in re.split(r"[.!?;:,()]+(?:\s|$)|\n", text):
            before = None
            for token in normalize_text(stretch).split(" "):
                word = token if any(character.isalpha() for character in token) else None
                if word is not None:
                    forms[word] += 1
                    articles[word.lower()].add(number)
                    if before is not None:
                        pairs[before, word] += 1
                before = word
    return forms, articles, pairs


@settings(deadline=None)
@given(TEXTS)
def test_words_and_pairs_equal_those_counted_by_hand(texts: list[str]) -> None:
    forms, articles, pairs = by_hand(texts)
    tokens = ngrams.tokenize(pa.array(texts, pa.large_string()))
    counter = ngrams.WordCounter()
    counter.add(ngrams.count_words(tokens))
    rows = counter.table().to_pylist()
    assert {row["word"]: row["count"] for row in rows if row["count"]} == dict(forms)
    assert {row["word"]: row["articles"] for row in rows if row["articles"]} == {
        word: len(found) for word, found in articles.items()
    }
    vocabulary = pa.array(sorted(forms), pa.string())
    codes, counts = ngrams.count_pairs(tokens, vocabulary)
    names = vocabulary.to_pylist()
    found = {divmod(code, len(names)): count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)}
    assert {(names[first], names[second]): count for (first, second), count in found.items()} == dict(pairs)


def test_metaclip1_reads_words_as_its_counter_does() -> None:
    text = "The “Well-Known” dog’s 3rd re–run, don't -x y- _a 2nd été"
    tokens = ngrams.tokenize(pa.array([text], pa.large_string()), "metaclip1")
    straight = text.translate(str.maketrans("–’", "-'")).lower()
    wanted = [
        word
        for word in re.split(r"[^\w\-']", straight)
        if word and re.match(r"(^\w.*\w$)|(^\w$)", word) and not re.match(r".*\d.*", word)
    ]
    assert [tokens.words[number].as_py() for number in tokens.ids] == wanted


def test_counters_add_up_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_MOST_PENDING", 50)
    numbers = np.random.default_rng(0).integers(0, 40, (30, 20))
    tables = []
    for order in (numbers, numbers[::-1]):
        pairs, words = ngrams.PairCounter(), ngrams.WordCounter()
        for row in order:
            pairs.add(*np.unique(row, return_counts=True))
            words.add(pa.table([list(map(str, row)), np.ones(20, int), np.ones(20, int)], schema=ngrams.WORDS))
        keys, counts = pairs.sums()
        assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == Counter(numbers.ravel().tolist())
        tables.append(words.table())
    assert tables[0].equals(tables[1])
    assert sum(tables[0]["count"].to_pylist()) == 600


def counted(counts: dict[str, int]) -> pa.Table:
    return pa.table([list(counts), list(counts.values())], schema=COUNTED)


def test_scores_by_hand() -> None:
    words = counted({"new": 60, "New": 40, "york": 5, "York": 25, "the": 9000, "rare": 1, "pair": 1})
    pairs = counted({"New York": 20, "new york": 4, "the new": 12, "New the": 1, "rare pair": 1})
    vocabulary = Vocabulary.of(words, min_count=2)
    assert vocabulary.forms.to_pylist() == ["New", "York", "new", "the", "york"]
    rows = bigrams.score(*bigrams.code(pairs, vocabulary), vocabulary, min_count=4, profile="wit").to_pylist()
    pmi = math.log2(24 * 9132 / (100 * 30))
    npmi = pmi / -math.log2(24 / 9132)
    assert [(row["query"], row["count"]) for row in rows] == [("New York", 24), ("new york", 4)]
    assert all(row["score"] == pytest.approx(npmi) and row["pair"] == "new york" for row in rows)
    scored = pa.Table.from_pylist(rows, bigrams.SCORED)
    assert bigrams.best([scored, scored], 1).to_pylist() == [{"query": "New York", "count": 48}]


def test_metaclip1_keeps_pairs_by_pmi_however_rare() -> None:
    words = counted({"aleksander": 1, "meksi": 1, "the": 1 << 31, "of": 1 << 30})
    pairs = counted({"aleksander meksi": 1, "of the": 1 << 20})
    found, _ = bigrams.from_counts(words, pairs, min_word_count=1, min_pair_count=100, profile="metaclip1")
    assert found["query"].to_pylist() == ["aleksander meksi"]


@pytest.mark.parametrize(
    ("profile", "words", "kept"),
    [
        ("wit", {"a": 8, "b": 4, "c": 5, "z": 1007}, ["a b"]),  # PMI 5 and less than 5
        ("metaclip1", {"a": 1, "b": 1, "c": 2, "z": 2**30 - 4}, ["a b"]),  # PMI 30 and 29
    ],
)
def test_the_least_score_is_kept(profile: str, words: dict[str, int], kept: list[str]) -> None:
    vocabulary = Vocabulary.of(counted(words), min_count=1)
    pairs = bigrams.code(counted({"a b": 1, "a c": 1}), vocabulary)
    rows = bigrams.score(*pairs, vocabulary, min_count=1, profile=profile)
    assert rows["query"].to_pylist() == kept
    assert len(bigrams.score(*pairs, vocabulary, min_count=2, profile="wit")) == 0


def test_scripts_without_blanks_are_written_without() -> None:
    texts = ["自行车 在 街上", "自行车 New York"] * 5
    tokens = ngrams.tokenize(pa.array(texts, pa.large_string()))
    words = ngrams.count_words(tokens).select(["word", "count"]).rename_columns(["query", "count"])
    vocabulary = Vocabulary.of(words, min_count=1)
    pairs, _ = ngrams.count_pairs(tokens, vocabulary.forms)
    found = set(vocabulary.texts(pairs).to_pylist())
    assert {"自行", "行车", "街上", "New York"} <= found


def test_words_are_written_in_lower_case_and_as_they_occur_most() -> None:
    words = counted({"London": 90, "LONDON": 15, "london": 5, "dog": 50, "Dog": 40, "NASA": 8})
    rows = rules.word_queries(words, min_count=10).to_pylist()
    assert [tuple(row.values()) for row in rows] == [("london", 110), ("London", 90), ("dog", 90)]


def test_unusable_words_are_named() -> None:
    words = counted(
        {
            "dog": 10_000,
            "dog's": 5,
            "o'brien": 5,
            "don't": 5,
            "00s": 5,
            "a.com": 5,
            "★": 5,
            "и": 5,
            "3d": 5,
            "x" * 300: 5,
        }
    )
    kept, dropped = rules.usable_words(words)
    assert kept["query"].to_pylist() == ["dog", "o'brien", "don't", "3d"]
    assert dropped == {
        "no_letter": 1,
        "smashed_number": 1,
        "address": 1,
        "too_long": 1,
        "word_and_ending": 1,
        "foreign_script": 1,
    }


VIEWS = b"""en.wikipedia Main_Page 15580374 desktop 5000 A1
en.wikipedia Cat 6678 desktop 120 A1
en.wikipedia Cat 6678 mobile-web 300 A1
en.wikipedia Mercury_(planet) 19694 desktop 90 A1
en.wikipedia Talk:Cat null desktop 100 A1
en.wikipedia Alien:_Covenant 1 desktop 77 A3
en.wiktionary Cat 6678 desktop 120 A1
de.wikipedia Katze 1 desktop 100 B1
en Cat 60 0
en.m Cat 40 0
en Dog 49 0
en.d Cat 400 0
en broken
en.wikipedia Kitty 6 desktop 1000 Z1"""


def test_titles_by_views() -> None:
    views, malformed = titles.read_views(VIEWS, "en")
    assert malformed == 1
    redirects = pa.table({"title": ["Kitty"], "target": ["Cat"]})
    found = titles.title_queries(titles.resolve(views, redirects), min_count=70, max_titles=3).to_pylist()
    assert [tuple(row.values()) for row in found] == [("Cat", 1520), ("Mercury", 90), ("Alien: Covenant", 77)]
    assert titles.read_views(VIEWS, "fr")[0].num_rows == 0


def test_the_fewest_views() -> None:
    hours = b"en Bird 50 0\nen Bird 50 0\nen Emu 49 0\nen Emu 49 0"
    found = titles.read_views(hours, "en", "metaclip1")[0].to_pylist()
    assert [tuple(row.values()) for row in found] == [("Bird", 100)]
    assert (titles.LEAST_VIEWS, titles.LEAST_LINKS) == (70, 20)


@pytest.mark.parametrize("block", [b"en Cat 60 0", b"de Katze 60 0\nen Cat 60 0", b"en Cat 60 0\nfr Chat 60 0"])
def test_lines_of_a_project_wherever_they_stand(block: bytes) -> None:
    assert titles.read_views(block, "en")[0].to_pylist() == [{"query": "Cat", "count": 60}]


def test_titles_by_metaclip1() -> None:
    views, _ = titles.read_views(VIEWS, "en", "metaclip1")
    found = titles.title_queries(views, min_count=70, max_titles=10, profile="metaclip1").to_pylist()
    assert [tuple(row.values()) for row in found] == [
        ("Main Page", 5000),
        ("Kitty", 1000),
        ("Cat", 180),
        ("Mercury (planet)", 90),
    ]
