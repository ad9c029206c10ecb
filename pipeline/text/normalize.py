"""The one normaliser that queries and texts both pass before they are matched in `wide` mode.

A normalised text is a list of tokens with one blank between them, and a query matches where its tokens stand in a row.
Because both sides pass the same function, and because what a stretch of text becomes does not depend on what stands
beyond the blanks around it, every query that keeps a token matches every text that contains it as it is: none is dead.

What becomes of each character, after NFC (and, with case="fold", `folding.fold`):

- letters, digits and marks make up words;
- blanks of every kind, control characters and punctuation separate words and leave nothing behind, so that
  "St. Louis" is found in "in St. Louis, Missouri", and "new york" in "new (york". Quotes, brackets, slashes and dashes
  are punctuation, and so are hyphen and apostrophe in every form: "t-shirt" and "t shirt" are one query, "woman" is
  found in "woman's hat", and "rock 'n' roll" however the apostrophes are typed. The price is that "don" is found in
  "don't". Trade and copyright marks go the same way;
- a symbol that carries meaning (+ = $ # % & @, degrees, arrows, emoji) is a token of its own: a text with "C++"
  holds both "C++" and "C", one with "#sunset" both "#sunset" and "sunset";
- a letter of a script that is written without blanks (Chinese, Japanese, Thai, Lao, Burmese, Khmer, Tibetan) is a token
  of its own, together with the marks on it. Queries in these scripts therefore match as substrings, and a query of
  mixed scripts has its Latin part held to whole words and the rest not. Blanks and punctuation between two such
  letters leave no hole either;
- characters that only steer the layout (soft hyphen, joiners, direction marks, variation selectors) are dropped.
"""

from __future__ import annotations

import functools
import re
import unicodedata

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import jit
from pipeline.text import folding

CASES = ("exact", "fold")

# What a character does to the text around it.
SEPARATOR, WORD, SINGLE, MARK, IGNORED = range(5)
# Added to the class of a character whose presence means that the text may not be in NFC.
UNSETTLED = 8

# Steers the layout only: soft hyphen, Arabic and other prepended signs, joiners, direction marks, variation selectors.
_IGNORED = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Punctuation that is a token, and letters and symbols that are read as punctuation (apostrophes, dashes, brackets).
_SIGNS = frozenset("#%&@")
_LIKE_PUNCTUATION = frozenset("<>|~\u00a6\u00a9\u00ae\u2120\u2122\u2044\u2212\u2215\u02bb\u02bc\u02bd\u02be\u02bf")
# Blocks of the scripts without blanks; their letters alone are tokens, not their digits.
_WITHOUT_BLANKS = (
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


def normalize_text(text: str, case: str = "exact", language: str = "") -> str:
    """The tokens of `text` with one blank between them; "" where it has none.

    Args:
        text: any.
        case: "exact", or "fold": spellings that `folding` takes for the same become the same.
        language: whose letters `folding.fold` takes; "" where none is known.
    """
    if case == "fold":
        text = settle(text, case, language) if language or not text.isascii() else text.lower()
    elif not text.isascii():
        text = settle(text)
    spread = text.translate(_SPREAD)
    if _END in spread:
        spread = _END_OF_SINGLE.sub(r"\1 ", spread)
    return " ".join(spread.replace(_ON_MARK, "").split())


def normalize_array(
    texts: pa.StringArray | pa.LargeStringArray, case: str = "exact", language: str = ""
) -> pa.StringArray | pa.LargeStringArray:
    """`normalize_text` of every text: from compiled code where there is any, with the same result."""
    if kernel := jit.kernel("pipeline.text.normalize_kernel", len(texts)):
        data, offsets, _ = kernel.segment(settle_array(texts, case, language), case == "fold", closed=False)
        return strings(data, offsets, texts.type)
    return pa.array([normalize_text(text, case, language) for text in texts.to_pylist()], texts.type)


def settle(text: str, case: str = "exact", language: str = "") -> str:
    """The text in NFC (and folded), without the characters that steer the layout: its characters are final."""
    text = _IGNORED.sub("", text)
    return folding.fold(text, language) if case == "fold" else unicodedata.normalize("NFC", text)


def settle_array(texts: pa.Array, case: str = "exact", language: str = "") -> pa.Array:
    """`settle` on the few texts that the kernel cannot do alone: the others pass as they are, and not yet folded."""
    from pipeline.text import normalize_kernel

    unsettled = normalize_kernel.find_unsettled(texts, case == "fold")
    if unsettled.any():
        mask = pa.array(unsettled)
        settled = [settle(text, case, language) for text in texts.filter(mask).to_pylist()]
        texts = pc.replace_with_mask(texts, mask, pa.array(settled, texts.type))
    if case == "fold" and language in folding.DOTLESS:
        # Else the kernel gives every I its dot. A dotted capital folds into several characters: it is settled above.
        texts = pc.replace_substring(texts, "I", "\u0131")
    return texts


def class_of(character: str) -> int:
    """SEPARATOR, WORD, SINGLE, MARK or IGNORED."""
    if character in _SIGNS:
        return SINGLE
    if character in _LIKE_PUNCTUATION:
        return SEPARATOR
    if _IGNORED.match(character):
        return IGNORED
    category, code = unicodedata.category(character), ord(character)
    if category[0] == "M":
        return MARK
    if category[0] == "S" and category != "Sk":
        return SINGLE
    if category == "Cn" and code < 0xF0000:  # not assigned yet: an emoji, if anything (a newer Unicode will agree)
        return SINGLE
    if category[0] not in "LN":
        return SEPARATOR
    without_blanks = any(first <= code <= last for first, last in _WITHOUT_BLANKS)
    return SINGLE if without_blanks and category not in ("Nd", "No") else WORD


@functools.lru_cache(maxsize=2)
def class_table(case: str = "exact") -> npt.NDArray[np.uint8]:
    """The class of every code point, with UNSETTLED where it applies: what the kernel looks characters up in.

    With case="fold" the characters that folding drops are IGNORED.
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
    """What each code point becomes when it is folded, beyond ASCII.

    -1 where that is several characters, or one that NFC may change: texts with such a character take `settle`. A
    dropped character stays: its class says what becomes of it.
    """
    folded = _folded()
    table = np.where(folded == _DROPPED, np.arange(len(folded), dtype=np.int32), folded)
    table.flags.writeable = False
    return table


_SEVERAL, _DROPPED = -1, -2  # in `_folded`


@functools.lru_cache(maxsize=1)
def _folded() -> npt.NDArray[np.int32]:
    """The one code point that each becomes by folding, _SEVERAL or _DROPPED; none from 0x20000 on is folded."""
    table = np.arange(0x20000, dtype=np.int32)
    classes = class_table()
    for code in range(0x80, len(table)):
        folded = folding.fold_character(chr(code))
        if folded != chr(code):
            settled = len(folded) == 1 and not classes[ord(folded)] & UNSETTLED
            table[code] = ord(folded) if settled else _SEVERAL if folded else _DROPPED
    return table


def _unsettled() -> set[int]:
    """Code points that NFC may change, move, or join to the one before."""
    joining = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))  # Hangul vowels and finals
    for code in (*range(0x20000), *range(0x2F800, 0x2FA20)):
        character = chr(code)
        parts = unicodedata.decomposition(character)
        if unicodedata.combining(character) or (parts and not unicodedata.is_normalized("NFC", character)):
            joining.add(code)
        if parts and parts[0] != "<":
            joining.update(int(part, 16) for part in parts.split()[1:])
    return joining


def strings(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """An Arrow array of strings over bytes and offsets."""
    if pa.types.is_string(kind):
        if offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError(f"{offsets[-1]} bytes of text in one batch: normalise fewer rows at a time")
        offsets = offsets.astype(np.int32)
    return pa.Array.from_buffers(kind, len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


class _Spread(dict):
    """For str.translate: each character with blanks as its class asks, looked up once and then remembered.

    A mark belongs to the character before it, which translate cannot see. So every mark comes behind an _ON_MARK, every
    single character before an _END, and `_END_OF_SINGLE` moves that end behind the marks.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        spread = {SEPARATOR: " ", IGNORED: "", SINGLE: f" {character}{_END}", MARK: f"{_ON_MARK}{character}"}
        self[code] = spread.get(class_of(character), character)
        return self[code]


_END, _ON_MARK = "\0", "\1"  # neither can come from a text: control characters become blanks
_END_OF_SINGLE = re.compile(f"{_END}((?:{_ON_MARK}.)*)", re.DOTALL)
_SPREAD = _Spread()
