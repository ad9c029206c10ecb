"""What `scripts.Scripts` does for each row, in compiled code: it finds texts in other scripts, and corrects entries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine.hashing import string_buffers
from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit
from pipeline.text.fasttext_file import EVIDENCE, PER_LABEL

LATIN_TEXT, OTHER_TEXT, UNSURE = (np.uint8(code) for code in range(3))
# Kinds of characters; 0: no letter.
LATIN, OTHER, SYLLABLE_LETTER = (np.uint8(kind) for kind in (1, 2, 3))
_ASCII_END, _LEAD_3, _LEAD_4 = 0x80, 0xE0, 0xF0  # UTF-8: the first lead bytes of two, three and four bytes
_TAIL_BITS, _BITS_OF_LEAD_2, _BITS_OF_LEAD_3 = 0x3F, 0x1F, 0x0F


@njit
def _look(data, offsets, kinds, weight, found):
    for row in range(len(found)):
        start, end = offsets[row], offsets[row + 1]
        high = np.uint8(0)
        for place in range(start, end):
            high = max(high, data[place])
        found[row] = LATIN_TEXT
        if high < _ASCII_END:
            continue
        if high >= _LEAD_4:
            found[row] = UNSURE  # perhaps a character of another plane
            continue
        latin, other, place = 0, 0, start
        while place < end:
            code = np.int64(data[place])
            place += 1
            if code >= _LEAD_3:
                code = (code & _BITS_OF_LEAD_3) << 12 | (data[place] & _TAIL_BITS) << 6 | data[place + 1] & _TAIL_BITS
                place += 2
            elif code >= _ASCII_END:
                code = (code & _BITS_OF_LEAD_2) << 6 | data[place] & _TAIL_BITS
                place += 1
            latin += kinds[code] == LATIN
            other += (kinds[code] == OTHER) + weight * (kinds[code] == SYLLABLE_LETTER)
        if other > 0 and other >= latin:
            found[row] = OTHER_TEXT


def look(texts: pa.Array, kinds: npt.NDArray[np.uint8], weight: int) -> npt.NDArray[np.uint8]:
    """For each text LATIN_TEXT, OTHER_TEXT (most letters are of another script), or UNSURE.

    `kinds` has the kind of each character of the Basic Multilingual Plane. A SYLLABLE_LETTER counts `weight` times.
    """
    data, offsets = string_buffers(texts)
    found = np.empty(len(texts), np.uint8)
    _look(frozen(data, np.uint8), frozen(offsets, np.int64), frozen(kinds, np.uint8), weight, found)
    return found


@njit
def _merge(given, never, replaced, sizes, out):
    """Fills the sizes of the rows and their entries; returns the number of entries."""
    offsets, entries = given
    rows, new_offsets, new_entries = replaced
    count = next_row = 0
    for row in range(len(sizes)):
        first = count
        if next_row < len(rows) and rows[next_row] == row:
            for place in range(new_offsets[next_row], new_offsets[next_row + 1]):
                out[count] = new_entries[place]
                count += 1
            next_row += 1
        else:
            for place in range(offsets[row], offsets[row + 1]):
                out[count] = entries[place]
                count += not never[entries[place] // PER_LABEL]
        sizes[row] = count - first
    return count


def merge(
    evidence: pa.ListArray, never: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], entries: pa.ListArray
) -> pa.ListArray:
    """The evidence without the labels of `never`; in `rows`, in ascending order, `entries` instead."""
    given, new = _buffers(evidence), _buffers(entries)
    sizes = np.zeros(len(evidence) + 1, np.int32)
    out = np.empty(len(given[1]) + len(new[1]) + 1, np.int32)
    count = _merge(given, frozen(never, np.bool_), (frozen(rows, np.int64), *new), sizes[1:], out)
    return pa.ListArray.from_arrays(pa.array(np.cumsum(sizes, dtype=np.int32)), pa.array(out[:count].copy()))


def _buffers(lists: pa.ListArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    return frozen(np.asarray(lists.offsets), np.int32), frozen(np.asarray(lists.values), np.int32)


def warm() -> None:
    """Compiles the kernels."""
    look(pa.array(["warm"]), np.zeros(0x10000, np.uint8), 1)
    one = pa.array([[1]], EVIDENCE)
    merge(one, np.zeros(1, np.bool_), np.zeros(1, np.int64), one)
