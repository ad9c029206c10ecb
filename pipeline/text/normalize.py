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

import re
import unicodedata

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import jit
from pipeline.text import folding
from pipeline.text.characters import IGNORED, LAYOUT, MARK, SEPARATOR, SINGLE, class_of

CASES = ("exact", "fold")


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
    text = LAYOUT.sub("", text)
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
