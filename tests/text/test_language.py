"""language: the model of the project, thresholds on P(language), and texts on which fasttext fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.text import language

pytest.importorskip("fasttext")


@pytest.fixture(scope="module")
def model():
    return language.LanguageModel.load()


ENGLISH = ["a dog running on the beach", "Portrait of a young woman with a hat", "HAPPY BIRTHDAY CARD WITH FLOWERS"]
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
}


def test_the_model_is_small_and_has_a_licence():
    assert language.OWN.stat().st_size < 1_000_000
    assert "Attribution-ShareAlike" in (language.OWN.parent / "README.md").read_text("utf-8")


def test_predict(model):
    languages, scores = model.predict(pa.array([*ENGLISH, *OTHERS.values()]))
    assert languages.to_pylist() == ["en"] * len(ENGLISH) + list(OTHERS)
    assert languages.type == pa.string() and scores.type == pa.float32()
    assert all(0 < score <= 1 for score in scores.to_pylist())


def test_english_passes_the_threshold_and_others_do_not(model):
    assert (model.probabilities(pa.array(ENGLISH), ["en"]) >= language.THRESHOLD).all()
    assert (model.probabilities(pa.array(list(OTHERS.values())), ["en"]) < language.THRESHOLD).all()


def test_best_of_the_wanted(model):
    languages, scores = model.scores(pa.array([ENGLISH[0], OTHERS["de"], OTHERS["ja"]]), ["de", "en"])
    assert languages.to_pylist()[:2] == ["en", "de"]
    values = scores.to_pylist()
    assert min(values[:2]) > 0.5 and values[2] < language.THRESHOLD


def test_texts_that_stumble(model):
    texts = pa.array(["", "  ", "\n", "a dog\nrunning on the beach", "\x00", "😀", "x" * 10_000])
    languages, scores = model.predict(texts)
    assert languages.to_pylist()[:4] == ["und", "und", "und", "en"]
    assert scores.to_pylist()[:3] == [0, 0, 0]
    assert len(languages) == len(scores) == len(texts)


def test_rows_do_not_depend_on_their_batch(model):
    texts = pa.array([*ENGLISH, "", *OTHERS.values()] * 700)
    scores = model.probabilities(texts, ["en", "de"])
    assert np.array_equal(
        scores[::-1], model.probabilities(texts.take(pa.array(range(len(texts) - 1, -1, -1))), ["en", "de"])
    )
    sliced = model.probabilities(texts.slice(5, 3).cast(pa.large_string()), ["en", "de"])
    assert np.array_equal(sliced, scores[5:8])


def test_no_rows(model):
    none = pa.array([], pa.string())
    assert len(model.predict(none)[0]) == len(model.scores(none, ["en"])[0]) == 0
    assert model.probabilities(none, ["en", "de"]).shape == (0, 2)


def test_errors_name_what_is_wrong(model, tmp_path):
    with pytest.raises(ValueError, match="does not know qq.*it knows af"):
        model.probabilities(pa.array(["a"]), ["en", "qq"])
    with pytest.raises(FileNotFoundError, match="none.bin"):
        language.LanguageModel.load(tmp_path / "none.bin")


def test_any_fasttext_model_by_path(tmp_path):
    """A model with case gets the unchanged text. The model of the project gets lower case only."""
    import fasttext

    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"__label__upper AAA{i} BBB\n__label__lower aaa{i} bbb\n" for i in range(200)), "utf-8")
    trained = fasttext.train_supervised(str(lines), dim=4, minn=0, epoch=20, thread=12, verbose=0)
    trained.save_model(str(tmp_path / "case.bin"))
    loaded = language.LanguageModel.load(tmp_path / "case.bin")
    assert loaded.predict(pa.array(["AAA1 BBB", "aaa1 bbb"]))[0].to_pylist() == ["upper", "lower"]
    assert language.LanguageModel.load(Path(tmp_path / "case.bin")) is loaded
