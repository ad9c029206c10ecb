"""words: the number of words of a text, in compiled code and without it."""

from __future__ import annotations

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings

from pipeline.engine import jit
from pipeline.text import words
from pipeline.text.words import count_words

COUNTS = {
    "": 1,
    "a dog": 2,
    "É é": 2,
    "猫 on 猫": 5,
    "ねこ": 3,
    "แมว x": 5,
    "𠀀": 2,  # Han of another plane
    " ".join("a" * 40): 32,
}


def test_known_counts() -> None:
    assert count_words(pa.array(list(COUNTS))).tolist() == list(COUNTS.values())


@pytest.mark.skipif(not jit.available(), reason="no kernels")
@settings(deadline=None)  # the first call loads compiled code
@given(st.lists(st.text(max_size=20) | st.text("a é猫ねแ𠀀😀", max_size=50), max_size=8), st.integers(0, 3))
def test_the_kernel_equals_the_reference(texts: list[str], start: int) -> None:
    array = pa.array(texts, pa.string()).slice(start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words.jit, "kernel", lambda *_: None)
        expected = count_words(array).tolist()
    with pytest.MonkeyPatch.context() as patch:
        from pipeline.text import words_kernel

        patch.setattr(words.jit, "kernel", lambda *_: words_kernel)
        assert count_words(array).tolist() == expected
