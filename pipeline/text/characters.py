"""The classes of characters and the tables that `normalize` and its kernel share."""

from __future__ import annotations

import functools
import re
import unicodedata

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.text import folding

# The classes: between words, part of a word, a token alone, part of the character before, dropped.
SEPARATOR, WORD, SINGLE, MARK, IGNORED = range(5)
# Added to the class of a character. A text with such a character may not be in NFC.
UNSETTLED = 8

# Layout characters: soft hyphen, Arabic and other prepended signs, joiners, direction marks, variation selectors.
LAYOUT = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Punctuation that is a token. Letters and symbols that are treated as punctuation (apostrophes, dashes, brackets).
_SIGNS = frozenset("#%&@")
_LIKE_PUNCTUATION = frozenset("<>|~\u00a6\u00a9\u00ae\u2120\u2122\u2044\u2212\u2215\u02bb\u02bc\u02bd\u02be\u02bf")
# Blocks of the scripts without blanks. Each of their letters is a token, but not each digit.
WITHOUT_BLANKS = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # Chinese repetition mark, closing mark, zero
    (0x3021, 0x303C),
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x9FFF),  # Han
    (0xA9E0, 0xA9FF),  # Myanmar
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # Katakana, half width
    (0x116D0, 0x116FF),  # Myanmar
    (0x1AFF0, 0x1B16F),  # Kana
    (0x20000, 0x3FFFF),  # Han
)


def class_of(character: str) -> int:
    """SEPARATOR, WORD, SINGLE, MARK or IGNORED."""
    if character in _SIGNS:
        return SINGLE
    if character in _LIKE_PUNCTUATION:
        return SEPARATOR
    if LAYOUT.match(character):
        return IGNORED
    category, code = unicodedata.category(character), ord(character)
    if category[0] == "M":
        return MARK
    if category[0] == "S" and category != "Sk":
        return SINGLE
    if category == "Cn" and code < 0xF0000:  # not assigned yet: most likely a future emoji
        return SINGLE
    if category[0] not in "LN":
        return SEPARATOR
    without_blanks = any(first <= code <= last for first, last in WITHOUT_BLANKS)
    return SINGLE if without_blanks and category not in ("Nd", "No") else WORD


@functools.lru_cache(maxsize=2)
def class_table(case: str = "exact") -> npt.NDArray[np.uint8]:
    """The class of every code point, with UNSETTLED where it applies. The kernel looks characters up in it.

    With case="fold" the class of characters that folding drops is IGNORED.
    """
    if case == "fold":
        table = class_table().copy()
        table[np.flatnonzero(_folded() == _DROPPED)] = IGNORED
    else:
        table = np.full(0x110000, SEPARATOR, np.uint8)
        table[0x20000:0xF0000] = SINGLE  # Han, then nothing that is assigned yet
        for first, last in ((0, 0x1FFFF), (0xE0000, 0xE0FFF)):
            table[first : last + 1] = [class_of(character) for character in map(chr, range(first, last + 1))]
        table[sorted(_unsettled())] |= UNSETTLED
    table.flags.writeable = False
    return table


@functools.lru_cache(maxsize=1)
def fold_table() -> npt.NDArray[np.int32]:
    """The folded form of each code point beyond ASCII.

    It is -1 if the form has several characters, or one that NFC may change. Texts with such a character need `settle`.
    A dropped character maps to itself, since its class is IGNORED.
    """
    folded = _folded()
    table = np.where(folded == _DROPPED, np.arange(len(folded), dtype=np.int32), folded)
    table.flags.writeable = False
    return table


_SEVERAL, _DROPPED = -1, -2  # in `_folded`


@functools.lru_cache(maxsize=1)
def _folded() -> npt.NDArray[np.int32]:
    """The folded form of each code point below 0x20000, or _SEVERAL, or _DROPPED. Higher ones do not fold."""
    table = np.arange(0x20000, dtype=np.int32)
    classes = class_table()
    for code in range(0x80, len(table)):
        folded = folding.fold_character(chr(code))
        if folded != chr(code):
            settled = len(folded) == 1 and not classes[ord(folded)] & UNSETTLED
            table[code] = ord(folded) if settled else _SEVERAL if folded else _DROPPED
    return table


def _unsettled() -> set[int]:
    """Code points that NFC may change, move, or join to the code point before."""
    joining = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))  # Hangul vowels and finals
    for code in (*range(0x20000), *range(0x2F800, 0x2FA20)):
        character = chr(code)
        parts = unicodedata.decomposition(character)
        if unicodedata.combining(character) or (parts and not unicodedata.is_normalized("NFC", character)):
            joining.add(code)
        if parts and parts[0] != "<":
            joining.update(int(part, 16) for part in parts.split()[1:])
    return joining


def matched_by(pattern: str) -> npt.NDArray[np.bool_]:
    """True for each character of the Basic Multilingual Plane that the pattern of RE2 matches: (0x10000,).

    NUL and surrogates are False.
    """
    codes = np.concatenate([np.arange(1, 0xD800, dtype="<u4"), np.arange(0xE000, 0x10000, dtype="<u4")])
    characters = pa.array([codes.tobytes().decode("utf-32-le")])
    others = pc.replace_substring_regex(characters, pattern=f"(?:{pattern})+", replacement="")[0].as_py()
    found = np.zeros(0x10000, np.bool_)
    found[codes] = True
    found[np.frombuffer(others.encode("utf-32-le"), "<u4")] = False
    return found
