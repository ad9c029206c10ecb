"""`normalize` in compiled code. It reads Arrow's buffers directly, in one pass over the bytes.

Python handles only a few texts, in `normalize.settle_array`: those that may not be in NFC, or that have a character
that folds into several. All others are looked up by code point in `characters.class_table` and `fold_table`. The
kernels never read past the bytes of a text. Bytes that are not UTF-8 count as separators.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine.jit import njit
from pipeline.text.characters import IGNORED, MARK, SEPARATOR, SINGLE, UNSETTLED, WORD, class_table, fold_table

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

PADDING = 32  # blank bytes after the result of `segment`, for code that reads whole words
_BLANK = 0x20
_UPPER_A, _LETTERS, _CASE = 0x41, 26, 0x20  # ASCII's capital letters, and the bit that the small ones have

# UTF-8: what bytes may lead a character, the first leads of longer ones, and the code points that need so many bytes.
_ASCII_END = 0x80
_FIRST_LEAD, _LEAD_3, _LEAD_4, _LAST_LEAD = 0xC2, 0xE0, 0xF0, 0xF4
_TAIL, _TAIL_MASK, _TAIL_BITS = 0x80, 0xC0, 0x3F
_NEEDS_3, _NEEDS_4, _LAST_CODE = 0x800, 0x10000, 0x10FFFF
_SURROGATES, _SURROGATES_END = 0xD800, 0xE000

_NO_FOLDS = np.empty(0, np.int32)
_NO_FOLDS.flags.writeable = False
_NOTHING, _IN_WORD, _IN_SINGLE = SEPARATOR, WORD, SINGLE  # 0, 1, 2: the open token after the last character


@njit
def _decode(data, at, end):  # noqa: ANN001, ANN202
    """The code point at `at` and its length in bytes; (-1, 1) if the bytes are not UTF-8 or are cut off."""
    lead = data[at]
    if lead < _ASCII_END:
        return np.int64(lead), 1
    if lead < _FIRST_LEAD or lead > _LAST_LEAD:
        return np.int64(-1), 1
    length = 2 if lead < _LEAD_3 else 3 if lead < _LEAD_4 else 4
    if at + length > end:
        return np.int64(-1), 1
    code = np.int64(lead) & (0x7F >> length)
    for place in range(at + 1, at + length):
        byte = data[place]
        if byte & _TAIL_MASK != _TAIL:
            return np.int64(-1), 1
        code = (code << 6) | (byte & _TAIL_BITS)
    if length == 3 and (
        code < _NEEDS_3 or _SURROGATES <= code < _SURROGATES_END
    ):  # written too long; half of a surrogate pair
        return np.int64(-1), 1
    if length == 4 and (code < _NEEDS_4 or code > _LAST_CODE):
        return np.int64(-1), 1
    return code, length


@njit
def _encode(code, out, at):  # noqa: ANN001, ANN202
    """Writes a code point beyond ASCII as UTF-8; returns its length."""
    length = 2 if code < _NEEDS_3 else 3 if code < _NEEDS_4 else 4
    for place in range(length - 1, 0, -1):
        out[at + place] = _TAIL | (code & _TAIL_BITS)
        code >>= 6
    out[at] = (0xF00 >> length) & 0xFF | code
    return length


@njit
def _find_unsettled(data, offsets, classes, folds, out):  # noqa: ANN001, ANN202
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        while at < end:
            if data[at] < _ASCII_END:
                at += 1
                continue
            code, length = _decode(data, at, end)
            if code >= 0 and (classes[code] & UNSETTLED or (code < len(folds) and folds[code] < 0)):
                out[row] = True
                break
            at += length


@njit
def _write(code, out, at):  # noqa: ANN001, ANN202
    """Writes a code point as UTF-8; returns its length."""
    if code >= _ASCII_END:
        return _encode(code, out, at)
    out[at] = code
    return 1


@njit
def _segment(texts, tables, closed, out, out_offsets):  # noqa: ANN001, ANN202
    """Writes the tokens of every text, with one blank after each (`closed`) or only between them.

    `texts` is (data, offsets), `tables` is (classes, folds). Returns the largest number of tokens of a text.
    """
    data, offsets = texts
    classes, folds = tables
    written = np.int64(0)
    most = np.int64(0)
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        state = np.int64(_NOTHING)
        tokens = np.int64(0)
        while at < end:
            byte = data[at]
            length = 1
            if byte < _ASCII_END:
                kind = np.int64(classes[byte])
                if len(folds) and np.uint8(byte - _UPPER_A) < _LETTERS:
                    byte |= _CASE
                if kind <= WORD and state <= _IN_WORD:  # most bytes; this avoids a mispredicted branch
                    out[written] = byte if kind == WORD else _BLANK
                    written += kind | state
                    tokens += state & (kind ^ 1)
                    state = kind
                    at += 1
                    continue
                code = np.int64(byte)
            else:
                code, length = _decode(data, at, end)
                kind = np.int64(SEPARATOR)
                if code >= 0:
                    if code < len(folds) and folds[code] >= 0:
                        code = np.int64(folds[code])
                    kind = np.int64(classes[code]) & (UNSETTLED - 1)
            if kind == IGNORED:
                at += length
                continue
            if state != _NOTHING and (kind == SEPARATOR or kind == SINGLE or (kind == WORD and state == _IN_SINGLE)):
                out[written] = _BLANK
                written += 1
                tokens += 1
                state = np.int64(_NOTHING)
            if kind != SEPARATOR:
                written += _write(code, out, written)
                if kind == SINGLE:
                    state = np.int64(_IN_SINGLE)
                elif kind != MARK or state == _NOTHING:
                    state = np.int64(_IN_WORD)
            at += length
        if state != _NOTHING:
            out[written] = _BLANK
            written += 1
            tokens += 1
        if tokens and not closed:
            written -= 1
        out_offsets[row + 1] = written
        most = max(most, tokens)
    return most


def find_unsettled(texts: pa.Array, fold: bool) -> npt.NDArray[np.bool_]:
    """True for each text that `normalize.settle` may change in a way that the kernel cannot."""
    data, offsets = buffers(texts)
    out = np.zeros(len(texts), np.bool_)
    _find_unsettled(data, offsets, *_tables(fold), out)
    return out


def segment(texts: pa.Array, fold: bool, closed: bool) -> tuple[Bytes, Offsets, int]:
    """The tokens of settled texts: bytes (PADDING follows), offsets, and the largest number of tokens of a text.

    One blank separates two tokens. With `closed` a blank also follows the last token.
    """
    data, offsets = buffers(texts)
    # A character of n bytes takes at most n + 1 bytes, or n + 2 if folding makes it longer (never for n = 1). Memory
    # pages without a write cost nothing.
    out = np.empty(2 * int(offsets[-1] - offsets[0]) + PADDING, np.uint8)
    out_offsets = np.zeros(len(offsets), np.int64)
    most = _segment((data, offsets), _tables(fold), closed, out, out_offsets)
    return out[: out_offsets[-1] + PADDING], out_offsets, most


def _tables(fold: bool) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """The table of classes and the table of folded characters."""
    return (class_table("fold"), fold_table()) if fold else (class_table(), _NO_FOLDS)


def buffers(texts: pa.Array) -> tuple[Bytes, Offsets]:
    """The bytes and offsets of a string array (or a slice of one), read-only and without a copy of the bytes."""
    if texts.null_count:
        raise ValueError(f"{texts.null_count} nulls among the texts: fill them before matching")
    wide = pa.types.is_large_string(texts.type)
    if not wide and not pa.types.is_string(texts.type):
        raise TypeError(f"expected string or large_string, not {texts.type}")
    _, places, content = texts.buffers()
    offsets = np.zeros(1, np.int64)
    if len(texts):
        kind = np.dtype(np.int64 if wide else np.int32)
        offsets = np.frombuffer(places, kind, len(texts) + 1, texts.offset * kind.itemsize).astype(np.int64)
    data = np.frombuffer(content if content is not None and content.size else b"\0", np.uint8)
    return frozen(data), frozen(offsets)


def frozen(array: npt.NDArray) -> npt.NDArray:
    """A read-only view. Mapped arrays are read-only. If all inputs are, each kernel is compiled only once."""
    view = array.view()
    view.flags.writeable = False
    return view


def warm() -> None:
    """Compiles the kernels (or loads them from the cache)."""
    texts = pa.array(["a b"])
    find_unsettled(texts, False)
    segment(texts, False, True)
