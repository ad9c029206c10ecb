"""`words.count_words` in compiled code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine.hashing import string_buffers
from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit
from pipeline.text.utf8_kernel import ASCII_END, LEAD_4, character_at

_BLANK = 0x20
UNSURE = -1  # the text has a character of another plane


@njit
def _letters_that_are_words(data, start, end, is_word):
    """How many characters of a text with bytes of up to three a character are words of their own."""
    found, place = 0, start
    while place < end:
        code, place = character_at(data, place)
        found += is_word[code]
    return found


@njit
def _count(data, offsets, is_word, found):
    for row in range(len(found)):
        start, end = offsets[row], offsets[row + 1]
        blanks, high = 0, np.uint8(0)
        for place in range(start, end):
            blanks += data[place] == _BLANK
            high = max(high, data[place])
        if high >= LEAD_4:
            found[row] = UNSURE
        elif high >= ASCII_END:
            found[row] = blanks + 1 + _letters_that_are_words(data, start, end, is_word)
        else:
            found[row] = blanks + 1


def count(texts: pa.Array, is_word: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The words of each text, or UNSURE. `is_word` has 1 for each letter of the BMP that is a word of its own."""
    data, offsets = string_buffers(texts)
    found = np.empty(len(texts), np.int64)
    _count(frozen(data, np.uint8), frozen(offsets, np.int64), frozen(is_word, np.uint8), found)
    return found


def warm() -> None:
    """Compiles the kernel."""
    count(pa.array(["warm"]), np.zeros(0x10000, np.uint8))
