"""How rich a text is: the number of its words."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MOST_WORDS = 32  # that count when the texts of an image are compared; a longer text is not richer
_MORE_WORDS = (  # what ends a word: a blank, and each letter of the scripts without blanks
    r" |[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
)


def count_words(texts: pa.Array) -> npt.NDArray[np.uint8]:
    """The words of each clean text, at most MOST_WORDS. A letter of a script without blanks is a word."""
    words = pc.count_substring(texts, " ").to_numpy() + 1
    beyond = np.flatnonzero(pc.not_equal(pc.binary_length(texts), pc.utf8_length(texts)).to_numpy(zero_copy_only=False))
    if len(beyond):
        words[beyond] = pc.count_substring_regex(texts.take(pa.array(beyond)), _MORE_WORDS).to_numpy() + 1
    return np.minimum(words, MOST_WORDS).astype(np.uint8)
