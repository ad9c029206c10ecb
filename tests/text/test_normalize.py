"""The normaliser: its separators, no loss of text, and equal results of the reference and the kernel."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import jit
from pipeline.text import characters, normalize
from pipeline.text.normalize import CASES, normalize_array, normalize_text

# Texts with many characters that normalising changes, and any text that Unicode allows.
TRICKY = (
    "aB1 \t\n\u00a0\u3000.,;:!?`'\u2019\"()[]{}/\\|-\u2013\u2014_*+#%&@$\u20ac\u00b0\u00ae\u2122\u00e9e\u0301\u0338"
    "=\u0323\u00ad\u200b\u200d\ufe0f\u2764\U0001f44d\U0001f3fd\u4e1c\u4eac\u3042\u30fb\u0e01\u0e49\u0e33\u1780\u17d2\u0f40"
    "\u0f0b\uac00\u1100\u1161\u11a8\u01c5\u0130\u0131\u017f\u00df\u1e9e\u0345\u03b1\u03c2\ufb03\ufffd\ue000\U000e0041\0\1"
)
TEXTS = st.text(max_size=30) | st.text(st.sampled_from(TRICKY), max_size=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\u00a0\u3000", ""),
        ("St. Louis", "St Louis"),
        ("in St.\u2003Louis,Missouri", "in St Louis Missouri"),
        ("new (york) [city]/nyc\u2014usa", "new york city nyc usa"),
        ("t-shirt, \u201cred\u201d", "t shirt red"),
        ("woman\u2019s rock 'n' roll", "woman s rock n roll"),
        ("Hawai\u02bbi Hawai'i", "Hawai i Hawai i"),
        ("C++ C# AT&T 50% #sun $20", "C + + C # AT & T 50 % # sun $ 20"),
        ("Lego\u00ae shoes\u2122 \u00a9 Getty", "Lego shoes Getty"),
        ("snake_case.jpg", "snake case jpg"),
        ("cafe\u0301", "caf\u00e9"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("e\u200d\u0301", "\u00e9"),
        ("\u2764\ufe0flove\u2764", "\u2764 love \u2764"),
        ("\u6211\u5728\u4e1c\u4eac\uff0cTokyo 2024\u5e74", "\u6211 \u5728 \u4e1c \u4eac Tokyo 2024 \u5e74"),
        ("T\u6064", "T \u6064"),
        ("\u0e02\u0e49\u0e32\u0e27\u0e52\u0e55", "\u0e02\u0e49 \u0e32 \u0e27 \u0e52\u0e55"),  # marks stay, digits join
        ("\ud55c\uad6d\uc5b4 text", "\ud55c\uad6d\uc5b4 text"),  # Korean is written with blanks
        ("a\0b\1c", "a b c"),
    ],
)
def test_examples(text, expected):
    assert normalize_text(text) == expected
    assert normalize_array(pa.array([text])).to_pylist() == [expected]


def test_case_fold():
    texts = ["STRASSE Stra\u00dfe", "\u0130stanbul", "\u03a3\u03c2", "Caf\u00c9 \u212b"]
    expected = ["strasse strasse", "i\u0307stanbul", "\u03c3\u03c3", "caf\u00e9 \u00e5"]
    assert [normalize_text(text, "fold") for text in texts] == expected
    assert normalize_array(pa.array(texts), "fold").to_pylist() == expected


@pytest.mark.parametrize("case", CASES)
@given(text=TEXTS)
def test_idempotent_and_tidy(case, text):
    normal = normalize_text(text, case)
    assert normalize_text(normal, case) == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert normal == " ".join(normal.split())
    normal.encode()


@pytest.mark.parametrize("case", CASES)
@given(query=TEXTS, before=TEXTS, after=TEXTS)
def test_no_query_is_dead(case, query, before, after):
    query_form = normalize_text(query, case)
    text_form = normalize_text(f"{before} {query} {after}", case)
    assert not query_form or f" {query_form} " in f" {text_form} "


@pytest.mark.parametrize("case", CASES)
def test_every_code_point(case):
    characters = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x20000), *range(0x2F800, 0x2FA20), 0xE0001)]
    for form in ("a{}b", "\u4e00{}", "{}\u0301"):
        texts = [form.format(character) for character in characters]
        normal = [normalize_text(text, case) for text in texts]
        assert [normalize_text(text, case) for text in normal] == normal
        assert normalize_array(pa.array(texts), case).to_pylist() == normal


def test_layout_characters_are_the_ones_of_unicode():
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        if unicodedata.category(chr(code)) == "Cf":
            assert characters.class_of(chr(code)) == characters.IGNORED, hex(code)


@pytest.mark.skipif(not jit.available(), reason="numba is not installed or switched off")
@pytest.mark.parametrize("case", CASES)
@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=12), start=st.integers(0, 3), large=st.booleans())
def test_kernel_agrees(case, texts, start, large):
    from pipeline.text import normalize_kernel  # noqa: F401  (a loaded kernel is always used)

    array = pa.array(texts, pa.large_string() if large else pa.string()).slice(start)
    normal = normalize_array(array, case)
    normal.validate(full=True)
    assert normal.type == array.type
    assert normal.to_pylist() == [normalize_text(text, case) for text in texts[start:]]


@pytest.mark.skipif(not jit.available(), reason="numba is not installed or switched off")
def test_kernel_on_bytes_that_are_not_utf8():
    from pipeline.text import normalize_kernel

    bad = [b"a\xffb", b"a\xe4\xb8", b"\xc3", b"\xed\xa0\x80x", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xf0\x9f\x91", b"ok"]
    array = pa.array(bad, pa.binary()).view(pa.string())
    data, offsets, _ = normalize_kernel.segment(array, False, False)
    out = normalize.strings(data, offsets, pa.string())
    out.validate(full=True)
    assert out.to_pylist() == ["a b", "a", "", "x", "", "", "", "ok"]


@pytest.mark.skipif(not jit.available(), reason="numba is not installed or switched off")
def test_nulls_and_other_types_are_refused():
    from pipeline.text import normalize_kernel

    with pytest.raises(ValueError, match="1 nulls"):
        normalize_kernel.segment(pa.array(["a", None]), False, False)
    with pytest.raises(TypeError, match="int64"):
        normalize_kernel.segment(pa.array([1]), False, False)


def test_plain_path(monkeypatch):
    monkeypatch.setattr(jit, "kernel", lambda name, rows: None)
    assert normalize_array(pa.array(["St. Louis", ""], pa.large_string())).to_pylist() == ["St Louis", ""]
