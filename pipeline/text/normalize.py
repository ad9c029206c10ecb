"""The normaliser of `wide` mode. Queries and texts both pass it before they are matched.

A normalised text is a list of tokens with one blank between them. A query matches where its tokens follow each other in
the text. Both sides pass the same function. What it makes of a piece of text between blanks does not depend on the text
around it. So a query with at least one token matches every text that contains it unchanged. No such query is dead.

The class of each character, after NFC (and, with case="fold", `folding.fold`), decides what becomes of it:

- Letters, digits and marks form words.
- Blanks of every kind, control characters and punctuation separate words and are removed. So "St. Louis" is found in
  "in St. Louis, Missouri", and "new york" in "new (york". Quotes, brackets, slashes and dashes are punctuation. Hyphens
  and apostrophes are punctuation in every form: "t-shirt" and "t shirt" are one query, "woman" is found in "woman's
  hat", and "rock 'n' roll" with any kind of apostrophe. As a side effect "don" is found in "don't". Trade and copyright
  marks are treated as punctuation, too.
- A symbol that carries meaning (+ = $ # % & @, degrees, arrows, emoji) is one token. A text with "C++" contains both
  "C++" and "C". A text with "#sunset" contains both "#sunset" and "sunset".
- A letter of a script without blanks (Chinese, Japanese, Thai, Lao, Burmese, Khmer, Tibetan) is one token, together
  with the marks on it. So queries in these scripts match as substrings. In a query of mixed scripts, the Latin part
  matches whole words only. Blanks and punctuation between two such letters are removed, too.
- Characters that only control the layout (soft hyphen, joiners, direction marks, variation selectors) are dropped.
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
    """The tokens of `text` with one blank between them; "" if it has no token.

    Args:
        text: any.
        case: "exact" or "fold". "fold" also makes the spellings equal that `folding` treats as equal.
        language: of the text, for `folding.fold`; "" if it is not known.
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
    """`normalize_text` of every text. It uses compiled code where available, with the same result."""
    if kernel := jit.kernel("pipeline.text.normalize_kernel", len(texts)):
        data, offsets, _ = kernel.segment(settle_array(texts, case, language), case == "fold", closed=False)
        return strings(data, offsets, texts.type)
    return pa.array([normalize_text(text, case, language) for text in texts.to_pylist()], texts.type)


def settle(text: str, case: str = "exact", language: str = "") -> str:
    """The text in NFC (and folded), without layout characters. Later steps change none of its characters."""
    text = LAYOUT.sub("", text)
    return folding.fold(text, language) if case == "fold" else unicodedata.normalize("NFC", text)


def settle_array(texts: pa.Array, case: str = "exact", language: str = "") -> pa.Array:
    """`settle` on the few texts that the kernel cannot normalise alone. Other texts are not changed, nor folded yet."""
    from pipeline.text import normalize_kernel

    unsettled = normalize_kernel.find_unsettled(texts, case == "fold")
    if unsettled.any():
        mask = pa.array(unsettled)
        settled = [settle(text, case, language) for text in texts.filter(mask).to_pylist()]
        texts = pc.replace_with_mask(texts, mask, pa.array(settled, texts.type))
    if case == "fold" and language in folding.DOTLESS:
        # Without this the kernel folds I to i. The dotted capital folds to several characters, so it is settled above.
        texts = pc.replace_substring(texts, "I", "\u0131")
    return texts


def strings(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """An Arrow array of strings from bytes and offsets."""
    if pa.types.is_string(kind):
        if offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError(f"one batch has {offsets[-1]} bytes of text: normalise fewer rows at a time")
        offsets = offsets.astype(np.int32)
    return pa.Array.from_buffers(kind, len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


class _Spread(dict):
    """A table for str.translate: puts blanks around each character as its class needs. Entries are made on first use.

    A mark belongs to the character before it, but translate sees only one character. So every mark gets an _ON_MARK
    before it. Every single character gets an _END after it. `_END_OF_SINGLE` then moves this _END after the marks.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        spread = {SEPARATOR: " ", IGNORED: "", SINGLE: f" {character}{_END}", MARK: f"{_ON_MARK}{character}"}
        self[code] = spread.get(class_of(character), character)
        return self[code]


_END, _ON_MARK = "\0", "\1"  # neither can come from a text: control characters become blanks
_END_OF_SINGLE = re.compile(f"{_END}((?:{_ON_MARK}.)*)", re.DOTALL)
_SPREAD = _Spread()
