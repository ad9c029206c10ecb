"""The matcher equals its oracle in both modes and both cases, with compiled code and without."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import jit, storage
from pipeline.text import matcher
from pipeline.text.matcher import MODES, Matcher, naive_match
from pipeline.text.normalize import CASES

PATHS = [
    "plain",
    pytest.param("kernel", marks=pytest.mark.skipif(not jit.available(), reason="no numba, or it is switched off")),
]
# Few letters, so that queries occur in texts. Blanks, marks and letters of each kind that the rules distinguish.
LETTERS = "abAB" + "  \t\n.,;!`" + "'-(/#+" + "\u00e9\u00df\u0301" + "\u4e1c\u4eac\u0e01\u0e49\u00a0\u2019"
SHORT = st.text(st.sampled_from(LETTERS), max_size=6)
LONG_TOKENS = st.sampled_from(["a" * length for length in (7, 8, 9, 15, 16, 17, 23, 24, 25, 40)] + ["\u00e9" * 12])
TOKENS = SHORT | LONG_TOKENS
TEXTS = st.text(st.sampled_from(LETTERS), max_size=30) | st.lists(TOKENS, max_size=8).map(" ".join)
QUERIES = SHORT | st.lists(TOKENS, min_size=1, max_size=4).map(" ".join)


@pytest.fixture(autouse=True)
def choose_path(request, monkeypatch):
    """Every test runs with the code that its parameter `path` names."""
    name = request.node.callspec.params.get("path") if hasattr(request.node, "callspec") else None
    if name == "plain":
        monkeypatch.setattr(jit, "kernel", lambda name, rows: None)
    elif name == "kernel":
        from pipeline.text import matcher_kernel, normalize_kernel

        modules = {module.__name__: module for module in (matcher_kernel, normalize_kernel)}
        monkeypatch.setattr(jit, "kernel", lambda name, rows: modules[name])


def match(queries, texts, **options):
    found = Matcher.build(pa.array(queries, pa.string()), **options).match(pa.array(texts, pa.string()))
    assert found.type == pa.list_(pa.int32())
    found.validate(full=True)
    return found.to_pylist()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
@settings(deadline=None, max_examples=150)
@given(queries=st.lists(QUERIES, max_size=12), texts=st.lists(TEXTS, max_size=6))
def test_equals_the_oracle(path, mode, case, queries, texts):
    expected = [naive_match(text, queries, mode, case) for text in texts]
    assert match(queries, texts, mode=mode, case=case) == expected


@pytest.mark.parametrize("path", PATHS)
def test_metaclip_as_published(path):
    queries = ["dog", "hot dog", "dog ,", "dog ,  cat", "dog cat", "Dog", "St. Louis", "t-shirt", "", ",", " dog"]
    texts = ["a hot\tdog, cat", "dog cat dog", "Dogs", "in St. Louis", "(dog) t-shirt", "", "a  dog", "dog,"]
    found = match(queries, texts, mode="metaclip")
    assert found == [naive_match(text, queries, "metaclip") for text in texts]
    assert [[queries[number] for number in row] for row in found] == [
        ["dog", "hot dog", "dog ,", "dog ,  cat", "", ","],
        ["dog", "dog cat"],
        [],
        [""],
        ["t-shirt"],
        [""],
        ["dog", "", " dog"],
        ["dog", "dog ,", "", ","],
    ]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("query", "text", "matches"),
    [
        ("St. Louis", "in St. Louis, Missouri", True),
        ("St. Louis", "in St Louis", True),
        ("new york", "new (york) city", True),
        ("new york", "new\u00a0 york", True),
        ("new york", "new yorker", False),
        ("t-shirt", "a t shirt", True),
        ("t shirt", "red T-shirt/t-shirt", True),
        ("don't", "don\u2019t look", True),
        ("woman", "a woman's hat", True),
        ("caf\u00e9", "cafe\u0301 noir", True),
        ("cafe", "caf\u00e9", False),
        ("C++", "learn C++ fast", True),
        ("C++", "learn C fast", False),
        ("Dog", "dog", False),
        # Scripts without blanks: substrings. Mixed: whole Latin words, beside anything.
        ("\u4e1c\u4eac", "\u6211\u5728\u4e1c\u4eac\u5854", True),
        ("\u4e1c\u4eac", "\u4e1c\uff0c\u4eac", True),  # punctuation is ignored here, too
        ("\u4e1c\u4eac", "\u4eac\u4e1c", False),
        ("T\u6064", "\u7ea2\u8272T\u6064\u886b", True),
        ("T\u6064", "\u7ea2\u8272XT\u6064\u886b", False),
        ("2024\u5e74", "\u57282024\u5e74\u590f", True),
        ("24\u5e74", "\u57282024\u5e74\u590f", False),
        ("\u0e02\u0e49\u0e32\u0e27", "\u0e01\u0e34\u0e19\u0e02\u0e49\u0e32\u0e27", True),
        ("\u0e02", "\u0e01\u0e34\u0e19\u0e02\u0e49\u0e32\u0e27", False),  # a letter without its mark is another letter
        ("\u30b1\u30fc\u30ad", "\u30d1\u30f3\u30b1\u30fc\u30ad", True),
        ("\uc11c\uc6b8", "\uc11c\uc6b8 \ud0c0\uc6cc", True),
        ("\uc11c\uc6b8", "\uc11c\uc6b8\uc5d0\uc11c", False),  # Korean words are whole words
    ],
)
def test_wide_examples(path, query, text, matches):
    assert match([query], [text]) == [[0] if matches else []]


@pytest.mark.parametrize("path", PATHS)
@given(text=st.text(st.sampled_from("\u4e1c\u4eac\u5854\u3042\u30a2\u0e01\u0e02"), max_size=12), data=st.data())
@settings(deadline=None)
def test_scripts_without_blanks_match_as_substrings(path, text, data):
    some = st.text(st.sampled_from("\u4e1c\u4eac\u3042\u0e01"), min_size=1, max_size=3)
    queries = data.draw(st.lists(some, max_size=8))
    assert match(queries, [text]) == [[number for number, query in enumerate(queries) if query in text]]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", MODES)
def test_queries_of_one_form_all_match(path, mode):
    queries = ["b", "St. Louis", "a", "St Louis", "a", "st.louis", "St-Louis", "a"]
    wide = [[1, 3, 6], [2, 4, 7]]
    assert match(queries, ["St Louis", "a a"], mode=mode) == (wide if mode == "wide" else [[3], [2, 4, 7]])
    folded = match(queries, ["ST. LOUIS"], mode=mode, case="fold")
    assert folded == ([[1, 3, 5, 6]] if mode == "wide" else [[]])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", MODES)
def test_letters_beyond_ascii_are_folded(path, mode):
    queries = ["\u00e9cole", "STRASSE", "dog", "\u00c9COLE"]
    texts = ["une \u00c9cole ici", "die Stra\u00dfe dort", "\u00e9COLE DOG", "Dog"]
    assert match(queries, texts, mode=mode, case="fold") == [[0, 3], [1], [0, 2, 3], [2]]
    assert match(queries, ["a DOG"], mode=mode, case="fold") == [[2]]
    assert match(queries, texts[:1], mode=mode, case="exact") == [[]]


@given(queries=st.lists(QUERIES, max_size=12))
@settings(deadline=None)
def test_dead_queries_are_those_that_nothing_matches(queries):
    for case in CASES:
        for number in Matcher.build(pa.array(queries, pa.string()), case=case).dead:
            assert number not in naive_match(queries[number], queries, "wide", case)
        alive = set(range(len(queries))) - set(Matcher.build(pa.array(queries, pa.string()), case=case).dead)
        assert all(number in naive_match(f"x {queries[number]} y", queries, "wide", case) for number in alive)

        dead = set(Matcher.build(pa.array(queries, pa.string()), mode="metaclip", case=case).dead)
        for number, query in enumerate(queries):
            # The text that yields the query, if any does: its marks without the blanks that matching puts around them.
            witness = re.sub(r" ([,.;:?!`]) ", r"\1", f" {query} ")
            witness = witness.removeprefix(" ").removesuffix(" ")
            assert (number in naive_match(witness, queries, "metaclip", case)) == (number not in dead)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", MODES)
def test_kinds_of_input(path, mode):
    built = Matcher.build(pa.chunked_array([["dog"], ["cat"]]), mode=mode)
    texts = ["x", "a dog", "", "cat dog", "cat"]
    expected = [[], [0], [], [0, 1], [1]]
    for array in (pa.array(texts), pa.array(texts, pa.large_string())):
        assert built.match(array).to_pylist() == expected
        assert built.match(array.slice(1, 3)).to_pylist() == expected[1:4]
        assert built.match(pa.chunked_array([array.slice(3), array.slice(0, 0), array.slice(1)])).to_pylist() == (
            expected[3:] + expected[1:]
        )
        assert built.match(array.slice(0, 0)).to_pylist() == []
    assert built.match(pa.chunked_array([], pa.string())).to_pylist() == []
    with pytest.raises(ValueError, match="1 nulls among the texts"):
        built.match(pa.array(["a", None]))
    nothing = Matcher.build(pa.array([], pa.string()), mode=mode)
    assert nothing.match(pa.array(texts)).to_pylist() == [[]] * 5


def test_bad_arguments():
    with pytest.raises(ValueError, match="nulls among the queries"):
        Matcher.build(pa.array(["a", None]))
    with pytest.raises(ValueError, match="mode must be"):
        Matcher.build(pa.array(["a"]), mode="narrow")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", MODES)
def test_saved_and_loaded(path, mode, tmp_path):
    queries = ["dog", "!", "hot dog", "a" * 50 + " b", "dog."]
    texts = pa.array(["a hot dog", "a" * 50 + " b", ""])
    built = Matcher.build(pa.array(queries), mode=mode, case="fold")
    built.save(tmp_path / "matcher")
    built.save(tmp_path / "matcher")  # again: same files
    loaded = Matcher.load(tmp_path / "matcher")
    assert (loaded.mode, loaded.case, loaded.dead, len(loaded)) == (mode, "fold", built.dead, 5)
    assert loaded.match(texts).equals(built.match(texts))
    assert loaded.nbytes == built.nbytes
    assert not list(tmp_path.glob("**/*tmp*"))

    about = storage.read_json(str(tmp_path / "matcher" / "matcher.json"))
    storage.write_json(str(tmp_path / "matcher" / "matcher.json"), {**about, "version": 2})
    with pytest.raises(ValueError, match="build it again"):
        Matcher.load(tmp_path / "matcher")


@pytest.mark.skipif(not jit.available(), reason="no numba, or it is switched off")
@pytest.mark.parametrize("first, second", [("plain", "kernel"), ("kernel", "plain")])
def test_a_folder_serves_both_paths(first, second, tmp_path, monkeypatch):
    from pipeline.text import matcher_kernel, normalize_kernel

    modules = {module.__name__: module for module in (matcher_kernel, normalize_kernel)}
    kernels = {"plain": lambda name, rows: None, "kernel": lambda name, rows: modules[name]}
    queries, texts = pa.array(["dog", "hot dog", "."]), pa.array(["hot. dog"])
    monkeypatch.setattr(jit, "kernel", kernels[first])
    Matcher.build(queries).save(tmp_path)
    monkeypatch.setattr(jit, "kernel", kernels[second])
    assert Matcher.load(tmp_path).match(texts).to_pylist() == [[0, 1]]


@pytest.mark.parametrize("path", PATHS)
def test_more_texts_than_a_batch(path, monkeypatch):
    monkeypatch.setattr(matcher, "_BATCH", 7)
    queries, texts = ["dog", "a dog"], ["a dog", "dog", "cat"] * 9
    assert match(queries, texts) == [[0, 1], [0], []] * 9


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_words_against_the_oracle(path, seed):
    rng = np.random.default_rng(seed)
    words = ["w" + "x" * int(rng.integers(0, 30)) + str(number) for number in range(40)]

    def phrases(count, longest):
        return [" ".join(rng.choice(words, rng.integers(1, longest + 1))) for _ in range(count)]

    queries, texts = phrases(300, 3), phrases(150, 60)
    for mode in MODES:
        assert match(queries, texts, mode=mode) == [naive_match(text, queries, mode) for text in texts]
