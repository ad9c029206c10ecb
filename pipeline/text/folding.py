"""Folding for `--case fold`: which letters are equal. Each character maps to a string, by Unicode's and ICU's tables.

The base is Unicode's NFKC_Casefold (DerivedNormalizationProps.txt, UAX #44). It is full case folding (CaseFolding.txt,
C + F: sharp s is ss, the final sigma is a sigma) and compatibility forms (full and half width, ligatures, Arabic
presentation forms, mathematical letters, raised digits). There are two exceptions:

- A symbol or a punctuation sign is not changed, unless only its width differs. \u2122 must not append "tm" to a name,
  and \u24d2 before a photographer's name is no letter c.
- A fraction stays one character: 1\u00bd must not become 11 2.

There are two additions, both from the search collations of CLDR and ICU:

- Arabic as people search it (root.xml, type "search"; fa.xml for Farsi's kaf and yeh and the alef wasla). Tatweel and
  vowel signs are dropped. Hamza and madda are dropped from the letter that carries them. Alef maksura becomes yeh, and
  teh marbuta becomes heh.
- Hebrew points are dropped, too (ignorable at the first level of the collation).

In Turkish and Azerbaijani I is the capital of the dotless letter, and \u0130 that of i (CaseFolding.txt, T).
`docs/data.md` shows all of this as a table. A test runs this table.
"""

from __future__ import annotations

import re
import unicodedata

DOTLESS = ("az", "tr")  # languages in which the small letter of I has no dot

# Vowel signs and other marks on Arabic letters, hamza and madda (0653-0655) among them; tatweel; Hebrew points.
_DROPPED = re.compile(
    "[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08e1\u08e3-\u08ff"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
# Letters that become other letters: wasla, alef maksura, Farsi yeh, keheh, teh marbuta (twice), heh goal.
_LETTERS = str.maketrans(
    "\u0671\u0649\u06cc\u06a9\u0629\u06c3\u06c1",
    "\u0627\u064a\u064a\u0643\u0647\u0647\u0647",
)
_WIDTHS = ("<wide>", "<narrow>", "<small>")
_KEPT = ("<fraction>",)
_TURKISH = str.maketrans({"I": "\u0131", "\u0130": "i"})


def fold(text: str, language: str = "") -> str:
    """The text in NFC with every character folded.

    Args:
        text: any.
        language: ISO 639-1 code of the text, if it is one of DOTLESS; "": another or unknown language.
    """
    text = unicodedata.normalize("NFC", text)
    if language in DOTLESS:
        text = text.translate(_TURKISH)
    return unicodedata.normalize("NFC", text.translate(_FOLDED))


def fold_character(character: str) -> str:
    """The folded form of one character, in NFC; "" if it is dropped."""
    before, after = "", character
    while before != after:
        before = after
        after = unicodedata.normalize("NFC", "".join(map(_step, before)))
    return after


def _step(character: str) -> str:
    apart = unicodedata.normalize("NFD", _plain(character).casefold())
    return _DROPPED.sub("", apart).translate(_LETTERS)


def _plain(character: str) -> str:
    """The character with its compatibility form (as Unicode calls it) replaced, one level deep."""
    kind, *parts = unicodedata.decomposition(character).split() or [""]
    is_sign = unicodedata.category(character)[0] in "SP"
    if not kind.startswith("<") or kind in _KEPT or (is_sign and kind not in _WIDTHS):
        return character
    return "".join(chr(int(part, 16)) for part in parts)


class _Folded(dict):
    """A table for str.translate: the folded form of each character. Entries are made on first use."""

    def __missing__(self, code: int) -> str:
        self[code] = fold_character(chr(code))
        return self[code]


_FOLDED = _Folded()
