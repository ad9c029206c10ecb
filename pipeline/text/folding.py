"""What counts as the same letter under `--case fold`: a string for each character, from Unicode's and ICU's tables.

The base is Unicode's NFKC_Casefold (DerivedNormalizationProps.txt, UAX #44): full case folding (CaseFolding.txt, C + F:
sharp s is ss, the final sigma is a sigma) and compatibility forms (full and half width, ligatures, Arabic presentation
forms, mathematical letters, raised digits). Two things are held back:

- a symbol or a punctuation sign stays what it is, unless only its width differs: \u2122 must not glue "tm" to a name,
  and \u24d2 before a photographer's name is no letter c;
- a fraction stays one character: 1\u00bd must not become 11 2.

Two things are added, both from the search collations of CLDR and ICU:

- Arabic as people search it (root.xml, type "search"; fa.xml for Farsi's kaf and yeh and the alef wasla): tatweel and
  vowel signs go, hamza and madda go from the letter that carries them, alef maksura is yeh, teh marbuta is heh;
- Hebrew points go in the same way (ignorable at the first level of the collation).

In Turkish and Azerbaijani I is the capital of the dotless letter, and \u0130 that of i (CaseFolding.txt, T).
`docs/data.md` shows all of this as a table, which a test runs.
"""

from __future__ import annotations

import re
import unicodedata

DOTLESS = ("az", "tr")  # languages whose capital I has no dot in small letters either

# Vowel signs and other marks on Arabic letters, hamza and madda (0653-0655) among them; tatweel; Hebrew points.
_DROPPED = re.compile(
    "[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08e1\u08e3-\u08ff"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
# What is left when hamza and madda are gone: wasla, alef maksura, Farsi yeh, keheh, teh marbuta (twice), heh goal.
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
        language: ISO 639-1 code of the text where its letters differ from other languages' (DOTLESS); "": unknown.
    """
    text = unicodedata.normalize("NFC", text)
    if language in DOTLESS:
        text = text.translate(_TURKISH)
    return unicodedata.normalize("NFC", text.translate(_FOLDED))


def fold_character(character: str) -> str:
    """What becomes of one character, in NFC; "" where it is dropped."""
    before, after = "", character
    while before != after:
        before = after
        after = unicodedata.normalize("NFC", "".join(map(_step, before)))
    return after


def _step(character: str) -> str:
    apart = unicodedata.normalize("NFD", _plain(character).casefold())
    return _DROPPED.sub("", apart).translate(_LETTERS)


def _plain(character: str) -> str:
    """The character without what Unicode calls a compatibility form, one level deep."""
    kind, *parts = unicodedata.decomposition(character).split() or [""]
    is_sign = unicodedata.category(character)[0] in "SP"
    if not kind.startswith("<") or kind in _KEPT or (is_sign and kind not in _WIDTHS):
        return character
    return "".join(chr(int(part, 16)) for part in parts)


class _Folded(dict):
    """For str.translate: each character's folded form, looked up once and then remembered."""

    def __missing__(self, code: int) -> str:
        self[code] = fold_character(chr(code))
        return self[code]


_FOLDED = _Folded()
