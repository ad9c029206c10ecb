"""The index answers as a plain reading of all pairs does."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.errors import Damaged, NotFound
from pipeline.engine.cli import UsageError
from pipeline.explorer import building, coding, index, neighbours, watch
from pipeline.explorer.answers import Explorer, Request, smallest
from pipeline.explorer.building import Source
from pipeline.explorer.words import BadSearch, Term, matches, parse
from pipeline.inspector.pairs import Pairs
from pipeline.text.normalize import normalize_text
from tests import samples
from tests.explorer.conftest import HOSTILE, publish

WORDS = ("red", "boat", "re", "t-shirt", "富士山", "C++", "lake", "a", "İz", "ﬁsh")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
TERMS = st.lists(
    st.tuples(st.sampled_from(("", "-")), st.one_of(st.sampled_from(WORDS), TEXTS.map('"{}"'.format), st.just("re*"))),
    max_size=4,
).map(lambda terms: " ".join(map("".join, terms)))
DOMAINS = ("a.org", "b.a.org", "ba.org", "c.net")
ROW = st.tuples(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(DOMAINS), st.sampled_from(("en", "de", None)),
                st.lists(st.integers(-1, 4), max_size=3), st.integers(0, 2**64 - 1))  # fmt: skip


class Rows(Pairs):
    """Pairs in memory, in tables of two rows."""

    name = "rows"
    schema = pa.schema(
        [*((name, pa.string()) for name in ("key", "text", "url", "language")), ("texts", pa.list_(pa.string())),
         ("query_ids", pa.list_(pa.int32())), ("phash", pa.uint64())]
    )  # fmt: skip

    def __init__(self, rows: list[tuple]) -> None:
        self.queries = pa.table({"id": pa.array(range(3), pa.int32()), "query": ["Dog", "cat", "owl"]})
        self.rows = [
            {"key": f"{number:032x}", "text": texts[0], "texts": texts, "url": f"http://{domain}/{number}",
             "language": language, "query_ids": ids, "phash": phash}
            for number, (texts, domain, language, ids, phash) in enumerate(rows)
        ]  # fmt: skip

    def tables(self, columns, *, shard=None):  # noqa: ANN001, ANN201
        for first in range(0, len(self.rows), 2):
            yield pa.Table.from_pylist(self.rows[first : first + 2], self.schema).select(columns)


@contextlib.contextmanager
def built(rows: Rows, folder: Path):  # noqa: ANN201
    place = folder / str(len(os.listdir(folder)))
    building.build(Source("nowhere", rows, "digest"), str(place))
    yield index.open_index(str(place), "digest")


def listed(found) -> list[int] | None:  # noqa: ANN001
    return None if found is None else found.tolist()


@settings(max_examples=25)
@given(rows=st.lists(ROW, min_size=1, max_size=9), search=TERMS, bits=st.integers(0, 64))
def test_the_index_finds_what_a_plain_reading_finds(
    rows: list[tuple], search: str, bits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pairs, terms = Rows(rows), parse(search)
    with built(pairs, tmp_path_factory.mktemp("indexes")) as found, pytest.MonkeyPatch.context() as patched:
        texts = [[normalize_text(text, "fold").split() for text in row["texts"]] for row in pairs.rows]
        expected = [number for number, one in enumerate(texts) if matches(terms, one)]
        some = found.of_terms(terms)
        assert (listed(some) if some is not None else list(range(len(rows)))) == expected
        patched.setattr(index, "SCANNED", 0 if bits % 2 else 10**6)
        patched.setattr(index, "WORDS_AT_ONCE", 1 + bits % 5)
        assert listed(found.of_terms(terms)) == listed(some)
        for domain in ("a.org", "org", "ba.org"):
            below = [n for n, row in enumerate(rows) if row[1] == domain or row[1].endswith("." + domain)]
            assert found.of_values("domain", [domain], None).tolist() == below
            assert found.of_values("domain", [domain], some).tolist() == [n for n in below if n in expected]
        holding = [number for number, row in enumerate(rows) if {0, 2} & set(row[3])]
        assert found.of_values("query", ["dog", "OWL"], None).tolist() == holding
        languages = {name: sum(rows[n][2] == name for n in expected) for name in ("en", "de")}
        assert {name: n for name, n in found.counts("language", some, 9)[0] if name != "(none)"} == {
            name: n for name, n in languages.items() if n
        }
        apart = [(rows[number][4] ^ rows[0][4]).bit_count() for number in range(len(rows))]
        near, distances = found.like(rows[0][4], bits, None)
        assert sorted(near.tolist()) == [n for n, one in enumerate(apart) if one <= bits and rows[n][4]]
        assert distances.tolist() == sorted(apart[number] for number in near.tolist())


ROWS = st.lists(st.integers(0, 299), unique=True).map(lambda rows: np.array(sorted(rows), np.uint32))


@settings(max_examples=40)
@given(some=ROWS, others=ROWS)
def test_sets_of_rows(some: np.ndarray, others: np.ndarray) -> None:
    a, b = set(some.tolist()), set(others.tolist())
    assert index.both(some, others, 300).tolist() == sorted(a & b)
    assert index.union([some, others], 300).tolist() == sorted(a | b)
    assert index.without(some, others, 300).tolist() == sorted(a - b)
    assert index.without(None, others, 300).tolist() == sorted(set(range(300)) - b)


@settings(max_examples=40)
@given(lists=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=7), at_once=st.integers(1, 8))
def test_lists_of_rows_by_code(lists: list[list[int]], at_once: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("lists"))
    coding.write_numbers(folder, "x", np.array([code for codes in lists for code in codes], np.uint32))
    coding.write_numbers(folder, "x.starts", np.cumsum([0, *map(len, lists)]).astype(np.uint64))
    coding.invert(folder, "x", 6, at_once=at_once)
    first, last, rows = (coding.mapped(folder, f"x.{name}", kind) for name, kind in
                         (("first", np.int64), ("last", np.int64), ("rows", np.uint32)))  # fmt: skip
    for code in range(6):
        held = [row for row, codes in enumerate(lists) if code in codes]
        assert rows[first[code] : last[code]].tolist() == held


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Red  boat", [("red",), ("boat",)]),
        ('"Red boat" -Lake', [("red", "boat"), ("lake",)]),
        ("t-shirt", [("t", "shirt")]),
        ("富士山", [("富", "士", "山")]),
        ("light*", [("light",)]),
        ('"unclosed phrase', [("unclosed", "phrase")]),
        ('... - "" * \'', []),
        ("", []),
    ],
)
def test_what_is_typed_becomes_terms(text: str, terms: list[tuple[str, ...]]) -> None:
    assert [term.words for term in parse(text)] == terms


def test_a_search_that_is_too_long_is_refused() -> None:
    assert parse("light* -red")[0].is_prefix and parse("light* -red")[1].is_excluded
    for text in ("x" * 501, "x " * 21, "x*"):
        with pytest.raises(BadSearch):
            parse(text)


def test_facets_of_many_rows_are_estimates(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "COUNTED", 10)
    counts, is_estimate = explorer.index.counts("domain", np.arange(30, dtype=np.uint32), 10)
    assert is_estimate and sum(count for _, count in counts) == 30
    assert explorer.index.counts("domain", None, 2)[1] is False


@settings(max_examples=40)
@given(batches=st.lists(st.lists(st.sampled_from(WORDS), max_size=6), max_size=8), least=st.integers(0, 6))
def test_strings_as_codes(batches: list[list[str]], least: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("codes"))
    coded = coding.Coded(folder, "x", least=least)
    for batch in batches:
        coded.add(pa.array(batch, pa.string()))
    coded.finish()
    vocabulary = coding.read_strings(folder, "x").to_pylist()
    assert vocabulary == sorted({word for batch in batches for word in batch})
    codes = coding.mapped(folder, "x", np.uint32)
    assert [vocabulary[code] for code in codes] == [word for batch in batches for word in batch]


# --------------------------------------------------------------------------------------------------- a published set


def keys(answer: dict) -> list[str]:
    return [card["key"] for card in answer["pairs"]]


def search(explorer: Explorer, **given: str | list[str]) -> dict:
    return explorer.search(Request.of({name: [one] if isinstance(one, str) else one for name, one in given.items()}))


def test_a_search_pages_and_counts(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.explorer.answers.PAGE", 12)
    pages = [search(explorer, start=str(start)) for start in (0, 12, 24, 36)]
    assert [key for page in pages for key in keys(page)] == [samples.uid(number).hex() for number in range(30)]
    assert "facets" in pages[0] and "facets" not in pages[1]
    languages = {one["value"]: one["count"] for one in pages[0]["facets"]["language"]["values"]}
    assert languages == {"en": 20, "(none)": 10}
    english = search(explorer, language="en")
    assert english["total"] == 20
    assert {one["value"] for one in english["facets"]["language"]["values"]} == {"en", "(none)"}  # so that one may add
    assert search(explorer, language=["en", "(none)"])["total"] == 30


def test_words_urls_and_keys_are_found(explorer: Explorer) -> None:
    assert keys(search(explorer, q="boat 0")) == [samples.uid(0).hex()]
    assert keys(search(explorer, q="T-Shirt 富士")) == [samples.uid(7).hex()]
    assert keys(search(explorer, q="https://images.example.org/8.jpg")) == [samples.uid(8).hex()]
    assert keys(search(explorer, q=samples.uid(9).hex()[:20].upper())) == [samples.uid(9).hex()]
    assert search(explorer, domain="example.org")["total"] == 8
    assert search(explorer, q='"second text"')["total"] == 8  # a further text of every fourth pair
    nothing = search(explorer, q="boat zebra")
    assert nothing["total"] == 0 and nothing["terms"] == [{"term": "boat", "pairs": 4}, {"term": "zebra", "pairs": 0}]


def test_a_picture_finds_itself_first(explorer: Explorer) -> None:
    near = search(explorer, like=f"{(12 * 0x9E3779B97F4A7C15) % 2**64:016x}", distance="0")
    assert keys(near) == [samples.uid(12).hex()] and near["pairs"][0]["score"] == 0
    assert len(explorer.hash_of(samples.jpeg(3))) == 16
    with pytest.raises(BadSearch):
        explorer.hash_of(b"<svg/>")


@settings(max_examples=40)
@given(numbers=st.lists(st.integers(0, 9) | st.just(65535), max_size=30), most=st.integers(1, 20))
def test_the_smallest_numbers(numbers: list[int], most: int) -> None:
    places = smallest(np.array(numbers, np.uint16), most).tolist()
    assert places == sorted(range(len(numbers)), key=lambda place: (numbers[place], place))[:most]


def test_sorts(explorer: Explorer) -> None:
    chances = [
        explorer.index.row(explorer.index.find(key) or 0)["probability"]
        for key in keys(search(explorer, sort="rarest"))
    ]
    assert chances == sorted(chances) and len(set(chances)) == 2
    assert keys(search(explorer, sort="longest", q="富"))[0] == samples.uid(7).hex()


@pytest.mark.parametrize(
    "given",
    [{"like": "xyz"}, {"sort": "up"}, {"start": "-1"}, {"side": "1e3"}, {"near": "00"}, {"q": "y" * 501},
     {"domain": [str(n) for n in range(60)]}],
)  # fmt: skip
def test_a_bad_search_says_so(explorer: Explorer, given: dict) -> None:
    with pytest.raises(BadSearch):
        search(explorer, **given)


def test_a_pair_says_where_it_comes_from_and_why_it_was_kept(explorer: Explorer) -> None:
    answer = explorer.pair(samples.uid(13).hex())
    assert answer["duplicates"] == [{"key": samples.uid(500).hex(), "kind": "near_duplicate", "distance": 2}]
    assert answer["facts"]["page_url"] == "https://static.example.com/page4.html" and answer["picture"] == ""
    assert [(one["query"], one["kept"]) for one in answer["queries"]] == [("boat", False), ("map", False)]
    kept = explorer.pair(samples.uid(12).hex())
    assert [one["query"] for one in kept["queries"] if one["kept"]] == ["a"]
    assert kept["queries"][0]["pairs"] == 8 and kept["facts"]["queries"] == ["a", "lake"]
    with pytest.raises(NotFound):
        explorer.pair("../../etc/passwd")


def test_suggestions(explorer: Explorer) -> None:
    found = explorer.suggest("query", "HARBOUR", Request())
    assert [one["value"] for one in found["values"]] == []  # no pair holds it
    assert [one["value"] for one in explorer.suggest("domain", "EXAMPLE.CO", Request())["values"]] == [
        "static.example.com", "photos.example.co.uk",
    ]  # fmt: skip
    with pytest.raises(BadSearch):
        explorer.suggest("key", "", Request())


def test_an_index_is_built_once_and_again_when_the_set_changes(tmp_path: Path) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    folder.mkdir()
    publish(folder, count=24)
    first = watch.open_explorer(str(folder), str(cache))
    assert first.built and not watch.open_explorer(str(folder), str(cache)).built
    (cache / ".partial-999999999-x").mkdir()
    publish(folder, count=30)
    second = watch.open_explorer(str(folder), str(cache))
    assert second.built and len(second.explorer.index) == 30
    assert os.listdir(cache) == [os.path.basename(second.folder)]  # the earlier texts are gone
    facts = json.loads((Path(second.folder) / building.INDEX_FILE).read_text())
    (Path(second.folder) / building.INDEX_FILE).write_text(json.dumps(facts | {"form": -1}))
    assert watch.open_explorer(str(folder), str(cache)).built


def test_pictures_that_cannot_be_shown(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    publish(folder, count=24)
    explorer = watch.open_explorer(str(folder), str(tmp_path / "cache")).explorer
    row = explorer.index.row(2)
    tar = folder / "shards" / "00000.tar"
    data = bytearray(tar.read_bytes())
    data[row["offset"] : row["offset"] + 5] = b"<svg>"
    tar.write_bytes(data)
    with pytest.raises(Damaged, match="holds no JPEG"):
        explorer.picture(2)
    assert "holds no JPEG" in explorer.pair(row["key"])["picture"]
    data[explorer.index.row(3)["offset"] + 300] ^= 1
    tar.write_bytes(data)
    assert "sha256" in explorer.pair(explorer.index.row(3)["key"])["picture"]
    tar.write_bytes(data[: row["offset"] + 10])
    with pytest.raises(Damaged, match="cut off"):
        explorer.picture(2)
    tar.unlink()
    with pytest.raises(Damaged, match="cannot be read"):
        explorer.picture(2)
    for number in (-1, 24):
        with pytest.raises(NotFound):
            explorer.picture(number)


def test_tars_of_another_tool(folder: Path, tmp_path: Path) -> None:
    explorer = watch.open_explorer(str(folder / "shards"), str(tmp_path)).explorer
    assert len(explorer.index) == 30 and "phash" not in explorer.index.numbers
    found = search(explorer, q="boat 0")
    assert keys(found) == [samples.uid(0).hex()] and explorer.picture(found["pairs"][0]["row"])[1] == "image/jpeg"
    assert explorer.pair(samples.uid(5).hex())["facts"]["text"] == HOSTILE[5]
    assert explorer.pair(samples.uid(5).hex(), 9)["row"] == 5  # row 9 has another key


def test_a_key_that_two_tars_have(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    data = (folder / "shards" / "00000.tar").read_bytes()
    for name in ("a", "b"):
        (tmp_path / "tars" / f"{name}.tar").write_bytes(data)
    explorer = watch.open_explorer(str(tmp_path / "tars"), str(tmp_path / "cache")).explorer
    first, second = search(explorer, q="boat 0")["pairs"]
    assert first["key"] == second["key"] and (first["row"], second["row"]) == (0, 12)
    assert [explorer.pair(one["key"], one["row"])["facts"]["shard"] for one in (first, second)] == [0, 1]
    before = watch.state_of(explorer.source)
    (tmp_path / "tars" / "b.tar").write_bytes(data[:-512])
    assert watch.state_of(explorer.source) != before
    (tmp_path / "tars" / "b.tar").unlink()
    assert watch.state_of(explorer.source) is None


def test_neighbours_by_embedding(explorer: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((25, 8)).astype(np.float32)
    vectors[7] = vectors[3] * 2 + 0.01
    names = [samples.uid(number).hex() for number in rng.permutation(30)[:25].tolist()]
    table = pa.table({"key": names, "embedding": pa.array(vectors.tolist(), pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "table.parquet")
    found = Explorer(explorer.source, explorer.index,
                     neighbours.open_neighbours(explorer.index, [str(tmp_path / "table.parquet")]))  # fmt: skip
    near = search(found, near=names[3])
    assert keys(near)[:2] == [names[3], names[7]] and near["total"] == 25
    scores = [card["score"] for card in near["pairs"]]
    assert scores[0] == 1 and scores == sorted(scores, reverse=True)
    assert found.pair(names[3])["embedding"] and not search(found, near=names[3], domain="nowhere")["total"]
    missing = next(samples.uid(n).hex() for n in range(30) if samples.uid(n).hex() not in names)
    with pytest.raises(BadSearch, match="no embedding"):
        search(found, near=missing)
    pq.write_table(table.slice(0, 1).set_column(0, "key", [["f" * 32]]), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="no key of this set"):
        neighbours.open_neighbours(explorer.index, [str(tmp_path / "other.parquet")])


def test_an_empty_set_has_no_pairs(tmp_path: Path) -> None:
    with built(Rows([]), tmp_path) as found:
        assert len(found) == 0 and found.of_term(Term(("red",))).tolist() == []
