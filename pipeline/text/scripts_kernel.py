"""What `scripts.Scripts` does for each row, in compiled code: it finds the script of a text, and corrects entries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine.hashing import string_buffers
from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit
from pipeline.text.fasttext_file import CERTAIN, EVIDENCE, PER_LABEL
from pipeline.text.utf8_kernel import ASCII_END, LEAD_4, character_at

# What is known of a character, as bits. The lowest five are the number of its script.
SCRIPT, LATIN, OTHER, SYLLABLE_LETTER = (np.uint8(bits) for bits in (0x1F, 0x20, 0x40, 0x80))
KANA, HAN = 30, 31  # beside the numbers of the other scripts, from 1; 0: none
_SCRIPTS = 32
# What `look` finds beside the number of a script. A text of KANA may have Han, a text of HAN has no kana.
LATIN_TEXT, UNSURE = 0, 255


class Rule(NamedTuple):
    """What each script says about the labels.

    Attributes:
        starts: for the number of each script and one more, where its labels begin in `labels`.
        labels: the languages of the scripts, the most frequent one of each script first.
        never_latin: for each label whether it is never in Latin letters.
    """

    starts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    never_latin: npt.NDArray[np.bool_]


@njit
def _script_of(counts):
    """The script of most characters; Han and kana count together."""
    most = 1
    for script in range(1, KANA):
        if counts[script] > counts[most]:
            most = script
    if max(counts[KANA], counts[HAN]) >= counts[most]:
        return KANA if counts[KANA] else HAN
    return most


@njit
def _look(data, offsets, characters, more, found):
    counts = np.zeros(_SCRIPTS, np.int64)
    for row in range(len(found)):
        start, end = offsets[row], offsets[row + 1]
        high = np.uint8(0)
        for place in range(start, end):
            high = max(high, data[place])
        found[row] = LATIN_TEXT
        if high < ASCII_END:
            continue
        if high >= LEAD_4:
            found[row] = UNSURE  # perhaps a character of another plane
            continue
        latin, other, place = 0, 0, start
        counts[:] = 0
        while place < end:
            code, place = character_at(data, place)
            bits = characters[code]
            latin += bits & LATIN != 0
            other += (bits & OTHER != 0) + more * (bits & SYLLABLE_LETTER != 0)  # a syllable is a letter, too
            counts[bits & SCRIPT] += 1
        if other > 0 and other >= latin:
            found[row] = _script_of(counts)


def look(texts: pa.Array, characters: npt.NDArray[np.uint8], weight: int) -> npt.NDArray[np.uint8]:
    """For each text LATIN_TEXT, the number of its script (most letters are not Latin), or UNSURE.

    `characters` has the bits of each character of the Basic Multilingual Plane. A SYLLABLE_LETTER counts `weight`
    times.
    """
    data, offsets = string_buffers(texts)
    found = np.empty(len(texts), np.uint8)
    _look(frozen(data, np.uint8), frozen(offsets, np.int64), frozen(characters, np.uint8), weight - 1, found)
    return found


@njit
def _among(entries, labels, out):
    """Fills `out` with the entries of the given labels; returns their number. See `scripts._among`."""
    count = 0
    if len(labels) > 1:
        for entry in entries:
            for label in labels:
                if entry // PER_LABEL == label:
                    out[count] = entry
                    count += 1
                    break
    if len(labels) and not count:
        out[0] = labels[0] * PER_LABEL + CERTAIN
        count = 1
    return count


@njit
def _merge(given, scripts, rule, unsure, sizes, out):
    """Fills the sizes of the rows and their entries; returns the number of entries."""
    offsets, entries = given
    new_offsets, new_entries = unsure
    count = next_row = 0
    for row in range(len(sizes)):
        first, script = count, scripts[row]
        if script == LATIN_TEXT:
            for place in range(offsets[row], offsets[row + 1]):
                out[count] = entries[place]
                count += not rule.never_latin[entries[place] // PER_LABEL]
        elif script == UNSURE:
            for place in range(new_offsets[next_row], new_offsets[next_row + 1]):
                out[count] = new_entries[place]
                count += 1
            next_row += 1
        else:
            labels = rule.labels[rule.starts[script] : rule.starts[script + 1]]
            count += _among(entries[offsets[row] : offsets[row + 1]], labels, out[count:])
        sizes[row] = count - first
    return count


def merge(evidence: pa.ListArray, scripts: npt.NDArray[np.uint8], rule: Rule, unsure: pa.ListArray) -> pa.ListArray:
    """The evidence with what the scripts of the texts say about it; that of `unsure` in the rows of UNSURE."""
    given, new = _buffers(evidence), _buffers(unsure)
    sizes = np.zeros(len(evidence) + 1, np.int32)
    out = np.empty(len(given[1]) + len(new[1]) + len(evidence) + 1, np.int32)  # a row without an entry may get one
    count = _merge(given, frozen(scripts, np.uint8), rule, new, sizes[1:], out)
    return pa.ListArray.from_arrays(pa.array(np.cumsum(sizes, dtype=np.int32)), pa.array(out[:count].copy()))


def _buffers(lists: pa.ListArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    return frozen(np.asarray(lists.offsets), np.int32), frozen(np.asarray(lists.values), np.int32)


def warm() -> None:
    """Compiles the kernels."""
    scripts = look(pa.array(["warm"]), np.zeros(0x10000, np.uint8), 1)
    one = pa.array([[1]], EVIDENCE)
    merge(one, scripts, Rule(np.zeros(_SCRIPTS + 1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.bool_)), one)
