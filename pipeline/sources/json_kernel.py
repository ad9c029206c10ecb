"""JSON and UTF-8 by address, for compiled kernels: spans, words, strings, values.

A text is the span [p, e); PADDING bytes behind e may be read (simd_kernel.py). Functions that walk return the position
behind what they read, or UNSURE where the text is not plainly what it should be: they do not repair.
"""

from __future__ import annotations

import numpy as np

from pipeline.engine.jit import njit
from pipeline.sources.simd_kernel import (
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
MAX_DEPTH = 60  # arrays and objects inside each other; what is deeper is left to a parser with a limit of its own
_ALL, _ONE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(1)


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
        if 65 <= byte <= 90:
            byte += 32
        if byte != word[i]:
            return False
    return True


@njit
def trim(start, end):
    """The span without the blanks at its ends."""
    while start < end and load_byte(start) <= 32:
        start += 1
    while start < end and load_byte(end - 1) <= 32:
        end -= 1
    return start, end


@njit
def has_token(start, end, word):
    """True if one of the words between blanks is the word, in either case."""
    while start < end:
        while start < end and load_byte(start) <= 32:
            start += 1
        first = start
        while start < end and load_byte(start) > 32:
            start += 1
        if same_folded(first, start, word):
            return True
    return False


@njit
def contains(start, end, word):
    """True if the span holds the word, case as it is."""
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
        at += 64
    return False


@njit
def valid(start, end):
    """True if the span is UTF-8 without control characters: what a JSON string may hold."""
    at = start
    while at < end:
        mask = unusual_mask(at)
        if end - at < 64:
            mask &= _ALL >> np.uint64(64 - (end - at))
        if mask == 0:
            at += 64
            continue
        at += lowest(mask)
        first = load_byte(at)
        if first < 0xC2 or first > 0xF4:
            return False
        more = 1 if first < 0xE0 else (2 if first < 0xF0 else 3)
        if at + more >= end:
            return False
        second = load_byte(at + 1)
        low = 0xA0 if first == 0xE0 else (0x90 if first == 0xF0 else 0x80)
        high = 0x9F if first == 0xED else (0x8F if first == 0xF4 else 0xBF)
        if second < low or second > high:
            return False
        for i in range(2, more + 1):
            if load_byte(at + i) & 0xC0 != 0x80:
                return False
        at += more + 1
    return True


@njit
def ascii(start, end):
    """True if the span holds neither control characters nor bytes over 127."""
    while start < end:
        mask = unusual_mask(start)
        if mask and start + lowest(mask) < end:
            return False
        start += 64
    return True


@njit
def copy(to, source, size):
    """Copies `size` bytes, and writes up to 63 more."""
    done = 0
    while done < size:
        copy64(to + done, source + done)
        done += 64


# ---- JSON


@njit
def blanks(p, e):
    """The position behind JSON's white space."""
    while p < e:
        byte = load_byte(p)
        if byte != 32 and byte != 10 and byte != 13 and byte != 9:
            break
        p += 1
    return p


@njit
def escape_end(p, e):
    """From the backslash of an escape to the position behind it, or UNSURE."""
    if p + 2 > e:
        return UNSURE
    byte = load_byte(p + 1)
    if byte == 117:
        return p + 6 if p + 6 <= e and hex(p + 2) >= 0 else UNSURE
    plain = byte == 34 or byte == 92 or byte == 47 or byte == 98 or byte == 102
    return p + 2 if plain or byte == 110 or byte == 114 or byte == 116 else UNSURE


@njit
def string_end(p, e):
    """From behind an opening quote: (position of the closing one, 1 if there are escapes), or (UNSURE, 0)."""
    escaped = 0
    while p < e:
        mask = stop_mask(p)
        if mask == 0:
            p += 64
            continue
        p += lowest(mask)
        if p >= e:
            break
        byte = load_byte(p)
        if byte == 34:
            return p, escaped
        if byte != 92:
            break
        escaped = 1
        p = escape_end(p, e)
        if p < 0:
            break
    return UNSURE, 0


@njit
def _digits(p, e):
    """The position behind one digit or more, or UNSURE."""
    start = p
    while p < e and 48 <= load_byte(p) <= 57:
        p += 1
    return p if p > start else UNSURE


@njit
def scalar(p, e):
    """From a number, true, false or null to the position behind it, or UNSURE."""
    byte = load_byte(p)
    if byte == 110 or byte == 116:
        word = load_word(p) & np.uint64(0xFFFFFFFF)
        return p + 4 if p + 4 <= e and (word == _NULL or word == _TRUE) else UNSURE
    if byte == 102:
        return p + 5 if p + 5 <= e and load_word(p) & np.uint64(0xFFFFFFFFFF) == _FALSE else UNSURE
    if byte == 45:
        p += 1
    first = p
    p = _digits(p, e)
    if p < 0 or (p > first + 1 and load_byte(first) == 48):
        return UNSURE
    if p < e and load_byte(p) == 46:
        p = _digits(p + 1, e)
        if p < 0:
            return UNSURE
    if p < e and load_byte(p) | 32 == 101:
        p += 1
        if p < e and (load_byte(p) == 43 or load_byte(p) == 45):
            p += 1
        return _digits(p, e)
    return p


@njit
def _key(p, e):
    """From a key to the position of its value, or UNSURE."""
    if p >= e or load_byte(p) != 34:
        return UNSURE
    end, _ = string_end(p + 1, e)
    if end < 0:
        return UNSURE
    p = blanks(end + 1, e)
    if p >= e or load_byte(p) != 58:
        return UNSURE
    return blanks(p + 1, e)


@njit
def skip(p, e):
    """From a value to the position behind it, or UNSURE. All of it is looked at: what is no JSON is not passed over."""
    depth, objects = 0, np.uint64(0)  # a bit for each object or array that is open, the innermost the lowest
    while True:
        if p < 0 or p >= e:
            return UNSURE
        byte = load_byte(p)
        if byte == 34:
            p, _ = string_end(p + 1, e)
            p = p + 1 if p >= 0 else UNSURE
        elif byte == 123 or byte == 91:
            p = blanks(p + 1, e)
            if p >= e or load_byte(p) != byte + 2:  # not closed at once
                depth += 1
                objects = objects << _ONE | np.uint64(byte == 123)
                if depth > MAX_DEPTH:
                    return UNSURE
                if byte == 123:
                    p = _key(p, e)
                continue
            p += 1
        else:
            p = scalar(p, e)
        if p < 0:
            return UNSURE
        while depth > 0:  # behind a value
            p = blanks(p, e)
            if p >= e:
                return UNSURE
            byte = load_byte(p)
            if byte == 44:
                p = blanks(p + 1, e)
                if objects & _ONE:
                    p = _key(p, e)
                break
            if byte != (125 if objects & _ONE else 93):
                return UNSURE
            p += 1
            depth -= 1
            objects >>= _ONE
        if depth == 0:
            return p


@njit
def member(p, e, first):
    """The next member of an object: (1, start and end of its key, position of its value); (0, .., behind the object).

    `first`: nothing of the object has been read. UNSURE where the text is not what it should be.
    """
    p = blanks(p, e)
    if p >= e:
        return UNSURE, 0, 0, 0
    byte = load_byte(p)
    if byte == 125:
        return 0, 0, 0, p + 1
    if not first:
        if byte != 44:
            return UNSURE, 0, 0, 0
        p = blanks(p + 1, e)
    if p >= e or load_byte(p) != 34:
        return UNSURE, 0, 0, 0
    start = p + 1
    end, _ = string_end(start, e)
    if end < 0:
        return UNSURE, 0, 0, 0
    p = blanks(end + 1, e)
    if p >= e or load_byte(p) != 58:
        return UNSURE, 0, 0, 0
    p = blanks(p + 1, e)
    if p >= e:
        return UNSURE, 0, 0, 0
    return 1, start, end, p


@njit
def element(p, e, first):
    """The next element of an array: (1, its position), (0, behind the array), (UNSURE, 0)."""
    p = blanks(p, e)
    if p >= e:
        return UNSURE, 0
    byte = load_byte(p)
    if byte == 93:
        return 0, p + 1
    if not first:
        if byte != 44:
            return UNSURE, 0
        p = blanks(p + 1, e)
        if p >= e:
            return UNSURE, 0
    return 1, p


@njit
def is_null(p, e):
    """True if the value is null."""
    return p + 4 <= e and load_word(p) & np.uint64(0xFFFFFFFF) == _NULL


@njit
def hex(p):
    """Four hexadecimal digits, or UNSURE."""
    value = 0
    for i in range(4):
        byte = load_byte(p + i)
        if 48 <= byte <= 57:
            byte -= 48
        elif 97 <= byte <= 102:
            byte -= 87
        elif 65 <= byte <= 70:
            byte -= 55
        else:
            return UNSURE
        value = value * 16 + byte
    return value


@njit
def put(to, point):
    """Writes a code point as UTF-8; how many bytes."""
    if point < 0x80:
        store_byte(to, point)
        return 1
    if point < 0x800:
        store_byte(to, 0xC0 | point >> 6)
        store_byte(to + 1, 0x80 | point & 63)
        return 2
    if point < 0x10000:
        store_byte(to, 0xE0 | point >> 12)
        store_byte(to + 1, 0x80 | (point >> 6) & 63)
        store_byte(to + 2, 0x80 | point & 63)
        return 3
    store_byte(to, 0xF0 | point >> 18)
    store_byte(to + 1, 0x80 | (point >> 12) & 63)
    store_byte(to + 2, 0x80 | (point >> 6) & 63)
    store_byte(to + 3, 0x80 | point & 63)
    return 4


@njit
def escape(p, e):
    r"""What the escape whose backslash is at p - 1 stands for: (code point, position behind it), or (UNSURE, 0).

    Half of a surrogate pair alone becomes U+FFFD.
    """
    if p >= e:
        return UNSURE, 0
    byte = load_byte(p)
    p += 1
    if byte == 34 or byte == 92 or byte == 47:
        return byte, p
    if byte == 110:
        return 10, p
    if byte == 116:
        return 9, p
    if byte == 114:
        return 13, p
    if byte == 98:
        return 8, p
    if byte == 102:
        return 12, p
    if byte != 117 or p + 4 > e:
        return UNSURE, 0
    point = hex(p)
    p += 4
    if 0xD800 <= point < 0xDC00 and p + 6 <= e and load_byte(p) == 92 and load_byte(p + 1) == 117:
        second = hex(p + 2)
        if 0xDC00 <= second < 0xE000:
            return 0x10000 + ((point - 0xD800) << 10) + (second - 0xDC00), p + 6
    return (0xFFFD if 0xD800 <= point < 0xE000 else point), p


@njit
def decode(start, end, escaped, to):
    """Writes a JSON string as UTF-8 (and up to 63 bytes behind it); its length, or UNSURE if it is none.

    It is never longer than the span.
    """
    if not valid(start, end):
        return UNSURE
    if not escaped:
        copy(to, start, end - start)
        return end - start
    size = 0
    while start < end:
        mask = equal_mask(start, np.uint8(92))
        plain = min(lowest(mask) if mask else 64, end - start)
        copy64(to + size, start)
        size += plain
        start += plain
        if start < end and load_byte(start) == 92:
            point, start = escape(start + 1, end)
            if point < 0:
                return UNSURE
            size += put(to + size, point)
    return size
