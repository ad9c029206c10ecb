"""The table of docs/data.md. The reference and the kernel fold every text alike."""

from __future__ import annotations

import itertools
import re
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import jit
from pipeline.text import characters, folding
from pipeline.text.matcher import Matcher, naive_match
from pipeline.text.normalize import normalize_array, normalize_text
from tests.places import ROOT

CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
LANGUAGES = ("", "tr")
# Characters that folding changes: widths, ligatures, points, hamza and its carriers, dots, letters that become several.
TRICKY = (
    "aAiIıİ\u0307ßſΣςﬁＡ１ﾊﾟ\u3099K\u0301\u0345ªµ½²™Ⓐ𝐀\u00ad أاإآٱ\u0653\u0654\u0655\u064e\u0640يىیئكکةه\u05c1שﬧָㅏㄱำ"
)
TEXTS = st.text(st.sampled_from(TRICKY) | st.characters(codec="utf-8"), max_size=12)


def rows_of_the_table() -> list[tuple[str, str, str, bool]]:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (\w*) ?\| (yes|no) \|", text, re.MULTILINE)
    return [(one, other, language, equal == "yes") for one, other, language, equal in rows]


def test_the_table_is_read_whole():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.partition("## Folding")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    assert len(rows_of_the_table()) == len(lines) >= 40
    assert {language for _, _, language, _ in rows_of_the_table()} >= {"", *folding.DOTLESS}


@pytest.mark.parametrize("row", rows_of_the_table(), ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
@pytest.mark.parametrize("path", ["plain", "kernel"])
def test_what_equals_what(path, row, monkeypatch):
    kernels = {}
    if path == "kernel":
        if not jit.available():
            pytest.skip("numba is not installed or switched off")
        from pipeline.text import matcher_kernel, normalize_kernel

        kernels = {module.__name__: module for module in (matcher_kernel, normalize_kernel)}
    monkeypatch.setattr(jit, "kernel", lambda name, rows: kernels.get(name))
    one, other, language, equal = row
    assert one != other
    forms = [normalize_text(spelling, "fold", language) for spelling in (one, other)]
    assert (forms[0] == forms[1]) is equal
    assert normalize_array(pa.array([one, other]), "fold", language).to_pylist() == forms
    built = Matcher.build(pa.array([one]), case="fold", language=language)
    assert built.match(pa.array([f"x {other} x"])).to_pylist() == [[0] if equal else []]


def folded_like_unicode(character: str) -> str:
    """NFKC_Casefold as in DerivedNormalizationProps.txt, except for the characters that it drops."""
    text = unicodedata.normalize("NFD", character)
    for _ in range(2):
        text = unicodedata.normalize("NFKC", text.casefold())
    return text


def test_every_letter_and_digit_is_folded_as_unicode_has_it():
    """Only Arabic and Hebrew fold more than Unicode. Only signs and fractions fold less."""
    others = set()
    for character in map(chr, CODES):
        if folding.fold_character(character) == folded_like_unicode(character):
            continue
        name, form = unicodedata.name(character, ""), unicodedata.decomposition(character)
        if not re.match("(ARABIC|HEBREW)", name) and unicodedata.category(character)[0] not in "SP":
            others.add(character)
            assert form.startswith("<fraction>") or character in "\u03d3\u03d4", name
    assert "\u00bd" in others


def test_full_case_folding_is_part_of_it():
    for character in map(chr, CODES):
        again = folding.fold(character)
        assert folding.fold(unicodedata.normalize("NFC", character).casefold()) == again


def test_width_is_no_difference():
    for character in map(chr, CODES):
        kind, *parts = unicodedata.decomposition(character).split() or [""]
        if kind in ("<wide>", "<narrow>"):
            assert folding.fold(character) == folding.fold("".join(chr(int(part, 16)) for part in parts))


def test_folding_twice_changes_nothing():
    joined = [a + b for a, b in itertools.product(TRICKY, repeat=2)]
    composed = [
        "".join(chr(int(part, 16)) for part in parts)
        for character in map(chr, CODES)
        if (parts := unicodedata.decomposition(character).split()) and parts[0][0] != "<"
    ]
    some = [*joined, *composed, *(text.upper() for text in composed)]
    for language, text in [*(("", chr(code)) for code in CODES), *itertools.product(LANGUAGES, some)]:
        folded = folding.fold(text, language)
        assert folding.fold(folded, language) == folded, ascii(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_twins_fold_every_code_point(language, monkeypatch):
    """All code points: alone, in words, before and after joining marks. With a language: assigned code points only."""
    if not jit.available():
        pytest.skip("numba is not installed or switched off")
    from pipeline.text import normalize_kernel

    monkeypatch.setattr(jit, "kernel", lambda name, rows: normalize_kernel)
    alone, beside_marks = "{} a{}b \u4e00{}", "I{} \u0627{}\u0654 {}\u0301"
    assigned = [code for code in CODES if code < 0x30000]
    for form, codes in ((alone, assigned if language else CODES), (beside_marks, assigned)):
        texts = [form.replace("{}", chr(code)) for code in codes]
        expected = [normalize_text(text, "fold", language) for text in texts]
        assert normalize_array(pa.array(texts), "fold", language).to_pylist() == expected


def test_the_room_for_folded_texts_is_enough():
    """`normalize_kernel.segment` reserves twice the bytes: a character and a blank."""
    table = characters.fold_table()
    for code in range(0x80, len(table)):
        if table[code] >= 0 and not 0xD800 <= code < 0xE000:
            assert len(chr(table[code]).encode()) + 1 <= 2 * len(chr(code).encode())


@pytest.mark.parametrize("language", LANGUAGES)
@settings(deadline=None, max_examples=300)
@given(queries=st.lists(TEXTS, max_size=8), texts=st.lists(TEXTS, max_size=6))
def test_matching_folded_is_matching_what_was_folded(language, queries, texts):
    """The matcher with case="fold" equals the oracle on folded forms."""
    texts += [f"{query} {text}" for query, text in zip(queries, texts, strict=False)]
    forms = [normalize_text(query, "fold", language) for query in queries]
    folded = [normalize_text(text, "fold", language) for text in texts]
    expected = [naive_match(text, forms, "wide", "exact") for text in folded]
    assert [naive_match(text, queries, "wide", "fold", language) for text in texts] == expected
    built = Matcher.build(pa.array(queries, pa.string()), case="fold", language=language)
    assert built.match(pa.array(texts, pa.string())).to_pylist() == expected
