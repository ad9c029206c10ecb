"""JSON and UTF-8 by address, for compiled kernels: spans, words, strings, values.

A text is the span [p, e). PADDING bytes after e may be read (simd_kernel.py). Functions that read return the position
after what they read. They return UNSURE for any text that is not clearly valid. They never repair.
"""

from __future__ import annotations

import numpy as np

from pipeline.engine.jit import njit
from pipeline.sources import char_kernel as char
from pipeline.sources.simd_kernel import (
    BLOCK,
    copy64,
    equal_mask,
    load_byte,
    load_word,
    lowest,
    pair_mask,
    stop_mask,
    store_byte,
    unusual_mask,
)

UNSURE = -1
MAX_DEPTH = 60  # nested arrays and objects; deeper ones are left to Python's parser, which has its own limit
_ALL, _ONE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(1)
_FOUR_BYTES, _FIVE_BYTES = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFFFF)

# The letters that follow a backslash, and the E of a number.
_B, _F, _N, _R, _T, _U, _E = b"bfnrtue"
_ESCAPE_SIZE = 6  # bytes of one like \u00e4
_AFTER_E0, _AFTER_F0 = 0xA0, 0x90  # the lowest second bytes; lower ones are overlong forms
_AFTER_ED, _AFTER_F4 = 0x9F, 0x8F  # the highest second bytes; higher ones are surrogates, or beyond Unicode
_E0, _ED, _F0, _F4 = 0xE0, 0xED, 0xF0, 0xF4


def bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).copy()


def word_of(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(text.encode()[:8], "little"))


_NULL, _TRUE, _FALSE = map(word_of, ("null", "true", "false"))


# ---- words and spans


@njit
def same(start, end, word):
    """True if the span is the word."""
    if end - start != word.shape[0]:
        return False
    for i in range(word.shape[0]):
        if load_byte(start + i) != word[i]:
            return False
    return True


@njit
def same_folded(start, end, word):
    """True if the span is the lower-case word in either case."""
    if end - start != word.shape[0]:
        return False
    for i in range(word.shape[0]):
        byte = load_byte(start + i)
        if char.UPPER_A <= byte <= char.UPPER_Z:
            byte += char.CASE
        if byte != word[i]:
            return False
    return True


@njit
def trim(start, end):
    """The span without the blanks at its ends."""
    while start < end and load_byte(start) <= char.BLANK:
        start += 1
    while start < end and load_byte(end - 1) <= char.BLANK:
        end -= 1
    return start, end


@njit
def has_token(start, end, word):
    """True if one of the blank-separated words of the span is the word, in either case."""
    while start < end:
        while start < end and load_byte(start) <= char.BLANK:
            start += 1
        first = start
        while start < end and load_byte(start) > char.BLANK:
            start += 1
        if same_folded(first, start, word):
            return True
    return False


@njit
def contains(start, end, word):
    """True if the span holds the word. Case counts."""
    first, second = np.uint8(word[0]), np.uint8(word[1])
    at = start
    while at < end:
        mask = pair_mask(at, first, second)
        while mask:
            found = at + lowest(mask)
            if found + word.shape[0] > end:
                return False
            if same(found, found + word.shape[0], word):
                return True
            mask &= mask - _ONE
        at += BLOCK
    return False


@njit
def valid(start, end):
    """True if the span is UTF-8 without control characters, as a JSON string must be."""
    at = start
    while at < end:
        mask = unusual_mask(at)
        if end - at < BLOCK:
            mask &= _ALL >> np.uint64(BLOCK - (end - at))
        if mask == 0:
            at += BLOCK
            continue
        at += lowest(mask)
        first = load_byte(at)
        if first < char.FIRST_LEAD or first > char.LAST_LEAD:
            return False
        more = 1 if first < char.LEAD_3 else (2 if first < char.LEAD_4 else 3)
        if at + more >= end:
            return False
        second = load_byte(at + 1)
        low = _AFTER_E0 if first == _E0 else (_AFTER_F0 if first == _F0 else char.TAIL)
        high = _AFTER_ED if first == _ED else (_AFTER_F4 if first == _F4 else char.LAST_TAIL)
        if second < low or second > high:
            return False
        for i in range(2, more + 1):
            if load_byte(at + i) & char.TAIL_MASK != char.TAIL:
                return False
        at += more + 1
    return True


@njit
def ascii(start, end):
    """True if the span has no control characters and no bytes over 127."""
    while start < end:
        mask = unusual_mask(start)
        if mask and start + lowest(mask) < end:
            return False
        start += BLOCK
    return True


@njit
def copy(to, source, size):
    """Copies `size` bytes, and writes up to 63 more."""
    done = 0
    while done < size:
        copy64(to + done, source + done)
        done += BLOCK


# ---- JSON


@njit
def blanks(p, e):
    """The position after JSON's white space."""
    while p < e:
        byte = load_byte(p)
        if byte != char.BLANK and byte != char.LINE_FEED and byte != char.CARRIAGE_RETURN and byte != char.TAB:
            break
        p += 1
    return p


@njit
def escape_end(p, e):
    """Reads an escape from its backslash on: the position after it, or UNSURE."""
    if p + 2 > e:
        return UNSURE
    byte = load_byte(p + 1)
    if byte == _U:
        return p + _ESCAPE_SIZE if p + _ESCAPE_SIZE <= e and hex(p + 2) >= 0 else UNSURE
    is_itself = byte == char.QUOTE or byte == char.BACKSLASH or byte == char.SLASH
    is_short = byte == _B or byte == _F or byte == _N or byte == _R or byte == _T
    return p + 2 if is_itself or is_short else UNSURE


@njit
def string_end(p, e):
    """Reads a string from after its quote on: (position of the closing quote, 1 with escapes), or (UNSURE, 0)."""
    escaped = 0
    while p < e:
        mask = stop_mask(p)
        if mask == 0:
            p += BLOCK
            continue
        p += lowest(mask)
        if p >= e:
            break
        byte = load_byte(p)
        if byte == char.QUOTE:
            return p, escaped
        if byte != char.BACKSLASH:
            break
        escaped = 1
        p = escape_end(p, e)
        if p < 0:
            break
    return UNSURE, 0


@njit
def _digits(p, e):
    """Reads one digit or more: the position after them, or UNSURE."""
    start = p
    while p < e and char.ZERO <= load_byte(p) <= char.NINE:
        p += 1
    return p if p > start else UNSURE


@njit
def scalar(p, e):
    """Reads a number, true, false or null: the position after it, or UNSURE."""
    byte = load_byte(p)
    if byte == _N or byte == _T:
        word = load_word(p) & _FOUR_BYTES
        return p + 4 if p + 4 <= e and (word == _NULL or word == _TRUE) else UNSURE
    if byte == _F:
        return p + 5 if p + 5 <= e and load_word(p) & _FIVE_BYTES == _FALSE else UNSURE
    if byte == char.HYPHEN:
        p += 1
    first = p
    p = _digits(p, e)
    if p < 0 or (p > first + 1 and load_byte(first) == char.ZERO):
        return UNSURE
    if p < e and load_byte(p) == char.DOT:
        p = _digits(p + 1, e)
        if p < 0:
            return UNSURE
    if p < e and load_byte(p) | char.CASE == _E:
        p += 1
        if p < e and (load_byte(p) == char.PLUS or load_byte(p) == char.HYPHEN):
            p += 1
        return _digits(p, e)
    return p


@njit
def _key(p, e):
    """Reads a key: the position of its value, or UNSURE."""
    if p >= e or load_byte(p) != char.QUOTE:
        return UNSURE
    end, _ = string_end(p + 1, e)
    if end < 0:
        return UNSURE
    p = blanks(end + 1, e)
    if p >= e or load_byte(p) != char.COLON:
        return UNSURE
    return blanks(p + 1, e)


@njit
def skip(p, e):
    """Reads a value: the position after it, or UNSURE. All of it is checked, so broken JSON is always UNSURE."""
    depth, objects = 0, np.uint64(0)  # a bit for each open object (1) or array (0); the lowest is the innermost
    while True:
        if p < 0 or p >= e:
            return UNSURE
        byte = load_byte(p)
        if byte == char.QUOTE:
            p, _ = string_end(p + 1, e)
            p = p + 1 if p >= 0 else UNSURE
        elif byte == char.BRACE or byte == char.BRACKET:
            closing = char.BRACE_CLOSES if byte == char.BRACE else char.BRACKET_CLOSES
            p = blanks(p + 1, e)
            if p >= e or load_byte(p) != closing:  # not empty
                depth += 1
                objects = objects << _ONE | np.uint64(byte == char.BRACE)
                if depth > MAX_DEPTH:
                    return UNSURE
                if byte == char.BRACE:
                    p = _key(p, e)
                continue
            p += 1
        else:
            p = scalar(p, e)
        if p < 0:
            return UNSURE
        while depth > 0:  # after a value
            p = blanks(p, e)
            if p >= e:
                return UNSURE
            byte = load_byte(p)
            if byte == char.COMMA:
                p = blanks(p + 1, e)
                if objects & _ONE:
                    p = _key(p, e)
                break
            if byte != (char.BRACE_CLOSES if objects & _ONE else char.BRACKET_CLOSES):
                return UNSURE
            p += 1
            depth -= 1
            objects >>= _ONE
        if depth == 0:
            return p


@njit
def member(p, e, first):
    """The next member of an object: (1, start and end of its key, position of its value); (0, .., after the object).

    `first`: no member of the object has been read. UNSURE takes the place of 1 if the text is not valid.
    """
    p = blanks(p, e)
    if p >= e:
        return UNSURE, 0, 0, 0
    byte = load_byte(p)
    if byte == char.BRACE_CLOSES:
        return 0, 0, 0, p + 1
    if not first:
        if byte != char.COMMA:
            return UNSURE, 0, 0, 0
        p = blanks(p + 1, e)
    if p >= e or load_byte(p) != char.QUOTE:
        return UNSURE, 0, 0, 0
    start = p + 1
    end, _ = string_end(start, e)
    if end < 0:
        return UNSURE, 0, 0, 0
    p = blanks(end + 1, e)
    if p >= e or load_byte(p) != char.COLON:
        return UNSURE, 0, 0, 0
    p = blanks(p + 1, e)
    if p >= e:
        return UNSURE, 0, 0, 0
    return 1, start, end, p


@njit
def element(p, e, first):
    """The next element of an array: (1, its position), (0, position after the array), or (UNSURE, 0)."""
    p = blanks(p, e)
    if p >= e:
        return UNSURE, 0
    byte = load_byte(p)
    if byte == char.BRACKET_CLOSES:
        return 0, p + 1
    if not first:
        if byte != char.COMMA:
            return UNSURE, 0
        p = blanks(p + 1, e)
        if p >= e:
            return UNSURE, 0
    return 1, p


@njit
def is_null(p, e):
    """True if the value is null."""
    return p + 4 <= e and load_word(p) & _FOUR_BYTES == _NULL


@njit
def hex(p):
    """Four hexadecimal digits, or UNSURE."""
    value = 0
    for i in range(4):
        byte = load_byte(p + i)
        if char.ZERO <= byte <= char.NINE:
            digit = byte - char.ZERO
        elif char.LOWER_A <= byte <= char.LOWER_F:
            digit = byte - char.LOWER_A + 10
        elif char.UPPER_A <= byte <= char.UPPER_F:
            digit = byte - char.UPPER_A + 10
        else:
            return UNSURE
        value = value * 16 + digit
    return value


@njit
def put(to, point):
    """Writes a code point as UTF-8; returns its number of bytes."""
    if point < char.NEEDS_2:
        store_byte(to, point)
        return 1
    if point < char.NEEDS_3:
        store_byte(to, char.LEAD_2 | point >> 6)
        store_byte(to + 1, char.TAIL | point & char.TAIL_BITS)
        return 2
    if point < char.NEEDS_4:
        store_byte(to, char.LEAD_3 | point >> 12)
        store_byte(to + 1, char.TAIL | (point >> 6) & char.TAIL_BITS)
        store_byte(to + 2, char.TAIL | point & char.TAIL_BITS)
        return 3
    store_byte(to, char.LEAD_4 | point >> 18)
    store_byte(to + 1, char.TAIL | (point >> 12) & char.TAIL_BITS)
    store_byte(to + 2, char.TAIL | (point >> 6) & char.TAIL_BITS)
    store_byte(to + 3, char.TAIL | point & char.TAIL_BITS)
    return 4


@njit
def escape(p, e):
    r"""Reads the escape whose backslash is at p - 1: (code point, position after it), or (UNSURE, 0).

    A lone half of a surrogate pair becomes U+FFFD.
    """
    if p >= e:
        return UNSURE, 0
    byte = load_byte(p)
    p += 1
    if byte == char.QUOTE or byte == char.BACKSLASH or byte == char.SLASH:
        return byte, p
    if byte == _N:
        return char.LINE_FEED, p
    if byte == _T:
        return char.TAB, p
    if byte == _R:
        return char.CARRIAGE_RETURN, p
    if byte == _B:
        return char.BACKSPACE, p
    if byte == _F:
        return char.FORM_FEED, p
    if byte != _U or p + 4 > e:
        return UNSURE, 0
    point = hex(p)
    p += 4
    is_first_half = char.HIGH_SURROGATE <= point < char.LOW_SURROGATE
    if is_first_half and p + _ESCAPE_SIZE <= e and load_byte(p) == char.BACKSLASH and load_byte(p + 1) == _U:
        second = hex(p + 2)
        if char.LOW_SURROGATE <= second < char.SURROGATES_END:
            joined = ((point - char.HIGH_SURROGATE) << 10) + (second - char.LOW_SURROGATE)
            return char.NEEDS_4 + joined, p + _ESCAPE_SIZE
    return (char.REPLACEMENT if char.HIGH_SURROGATE <= point < char.SURROGATES_END else point), p


@njit
def decode(start, end, escaped, to):
    """Writes a JSON string as UTF-8; returns its length, or UNSURE if it is not valid.

    The result is never longer than the span. Up to 63 bytes after it are overwritten.
    """
    if not valid(start, end):
        return UNSURE
    if not escaped:
        copy(to, start, end - start)
        return end - start
    size = 0
    while start < end:
        mask = equal_mask(start, np.uint8(char.BACKSLASH))
        plain = min(lowest(mask) if mask else BLOCK, end - start)
        copy64(to + size, start)
        size += plain
        start += plain
        if start < end and load_byte(start) == char.BACKSLASH:
            point, start = escape(start + 1, end)
            if point < 0:
                return UNSURE
            size += put(to + size, point)
    return size
