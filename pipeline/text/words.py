"""How rich a text is: the number of its words."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import jit
from pipeline.text.characters import matched_by

MOST_WORDS = 32  # that count when the texts of an image are compared; a longer text is not richer
_WORD_SCRIPTS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"  # without blanks
_MORE_WORDS = f" |{_WORD_SCRIPTS}"  # what ends a word


def count_words(texts: pa.Array) -> npt.NDArray[np.uint8]:
    """The words of each clean text, at most MOST_WORDS. A letter of a script without blanks is a word."""
    kernel = jit.kernel("pipeline.text.words_kernel", len(texts))
    if kernel:
        words = kernel.count(texts, _letters_that_are_words())
        beyond = np.flatnonzero(words == kernel.UNSURE)
    else:
        words = pc.count_substring(texts, " ").to_numpy() + 1
        is_longer = pc.not_equal(pc.binary_length(texts), pc.utf8_length(texts))
        beyond = np.flatnonzero(is_longer.to_numpy(zero_copy_only=False))
    if len(beyond):
        words[beyond] = pc.count_substring_regex(texts.take(pa.array(beyond)), _MORE_WORDS).to_numpy() + 1
    return np.minimum(words, MOST_WORDS).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _letters_that_are_words() -> npt.NDArray[np.uint8]:
    """1 for each character of the Basic Multilingual Plane that RE2 finds in _WORD_SCRIPTS."""
    return matched_by(_WORD_SCRIPTS).astype(np.uint8)
