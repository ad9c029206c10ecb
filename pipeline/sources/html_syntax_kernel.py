"""HTML's syntax by address, for compiled kernels: names, comments, raw text, attributes.

Functions that read return the place after what they read. They read only inside the page.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.engine.jit import njit
from pipeline.sources import char_kernel as char
from pipeline.sources.html_bounds import MAX_ATTRIBUTES
from pipeline.sources.simd_kernel import BLOCK, equal_mask, load_byte, lowest

_PRIME, _LONG = np.uint64(0x100000001B3), np.uint64(1 << 63)
_WORD = 8  # bytes of a name that its number holds unchanged
_SCRIPT_NAME = np.frombuffer(b"script", np.uint8)

TOO_MANY = -2  # in the place of an address: the tag has more than MAX_ATTRIBUTES attributes

# Results of `next_attribute`.
IS_ATTRIBUTE, _TAG_ENDS, _TAG_CLOSES_ITSELF, _PAGE_ENDS = range(4)

# The states of script data: outside a comment, inside <!--, or inside a <script> in it.
_SCRIPT_DATA, _ESCAPED, _DOUBLE_ESCAPED = range(3)


class Page(NamedTuple):
    """The bytes of a page: the address of the first one, and their number."""

    address: int
    size: int


class Attribute(NamedTuple):
    """The places of an attribute in the page. `what` tells if there is one; `after` is -1 where the page ends."""

    what: int
    name: int
    name_end: int
    value: int
    value_end: int
    after: int


# ---- bytes and names


def word_of_name(name: str) -> int:
    """A tag name as one number: its bytes. Of a longer name the other bytes are mixed into the first eight."""
    word = int.from_bytes(name.encode()[:_WORD], "little")
    for byte in name.encode()[_WORD:]:
        word = ((word ^ byte) * int(_PRIME)) % 2**64 | int(_LONG)
    return word


@njit
def byte_at(page: Page, at: int) -> int:
    """The byte as a number from 0 to 255."""
    return load_byte(page.address + at)


@njit
def is_space(byte: int) -> bool:
    """True for HTML's white space."""
    is_line_end = byte == char.LINE_FEED or byte == char.CARRIAGE_RETURN
    return byte == char.BLANK or is_line_end or byte == char.TAB or byte == char.FORM_FEED


@njit
def ends_name(byte: int) -> bool:
    """True for a byte that ends the name of a tag."""
    return is_space(byte) or byte == char.SLASH or byte == char.GREATER


@njit
def lower(byte: int) -> int:
    """The byte in lower case."""
    return byte | char.CASE if char.UPPER_A <= byte <= char.UPPER_Z else byte


@njit
def is_letter(byte: int) -> bool:
    """True for an ASCII letter."""
    return char.LOWER_A <= (byte | char.CASE) <= char.LOWER_Z


@njit
def find(page: Page, at: int, byte: int) -> int:
    """The first place of `byte` from `at` on; the page's length if there is none. It compares 64 bytes a step."""
    end = page.size
    while at + BLOCK <= end:
        places = equal_mask(page.address + at, np.uint8(byte))
        if places != 0:
            return at + lowest(places)
        at += BLOCK
    while at < end and byte_at(page, at) != byte:
        at += 1
    return at


@njit
def place_after(page: Page, at: int, byte: int) -> int:
    """The place after the next `byte`."""
    return find(page, at, byte) + 1


@njit
def word_at(page: Page, start: int, end: int) -> np.uint64:
    """A tag name in lower case as one number, equal to `word_of_name`."""
    word = np.uint64(0)
    for place in range(min(end - start, _WORD)):
        word |= np.uint64(lower(byte_at(page, start + place))) << np.uint64(8 * place)
    for place in range(start + _WORD, end):
        word = ((word ^ np.uint64(lower(byte_at(page, place)))) * _PRIME) | _LONG
    return word


@njit
def is_name(page: Page, start: int, end: int, name: np.ndarray) -> bool:
    """True if the bytes, in lower case, are `name`."""
    if end - start != len(name):
        return False
    for place in range(len(name)):
        if lower(byte_at(page, start + place)) != name[place]:
            return False
    return True


@njit
def _same_name(page: Page, first: int, second: int, size: int) -> bool:
    """True if the bytes at two places are the same in lower case."""
    for place in range(size):
        if lower(byte_at(page, first + place)) != lower(byte_at(page, second + place)):
            return False
    return True


# ---- comments and raw text


@njit
def two_hyphens(page: Page, at: int) -> bool:
    """True if two hyphens stand at `at`, inside the page."""
    return at + 1 < page.size and byte_at(page, at) == char.HYPHEN and byte_at(page, at + 1) == char.HYPHEN


@njit
def comment_end(page: Page, at: int) -> int:
    """The place after a comment. `at` is the place after its `<!--`."""
    end = page.size
    if at < end and byte_at(page, at) == char.GREATER:
        return at + 1
    if at + 1 < end and byte_at(page, at) == char.HYPHEN and byte_at(page, at + 1) == char.GREATER:
        return at + 2
    start = at
    while True:
        at = find(page, at, char.GREATER)
        if at >= end:
            return end
        size = at - start
        if size >= 2 and two_hyphens(page, at - 2):
            return at + 1
        if size >= 3 and byte_at(page, at - 1) == char.EXCLAMATION and two_hyphens(page, at - 3):
            return at + 1
        at += 1


@njit
def raw_text_end(page: Page, at: int, name: int, size: int) -> int:
    """The place of the end tag that closes raw text; the page's length if there is none. `name` is the tag's name."""
    end = page.size
    while True:
        at = find(page, at, char.LESS)
        if at + 2 + size >= end:
            return end
        if byte_at(page, at + 1) == char.SLASH:
            if _same_name(page, at + 2, name, size) and ends_name(byte_at(page, at + 2 + size)):
                return at
        at += 1


@njit
def script_end(page: Page, at: int) -> int:
    """As `raw_text_end` for script data. Inside `<!-- <script>` an end tag closes only the inner script."""
    end = page.size
    start = at
    state = _SCRIPT_DATA
    while at < end:
        if state == _SCRIPT_DATA:
            at = find(page, at, char.LESS)
            if at >= end:
                return end
        byte = byte_at(page, at)
        if byte == char.GREATER and state != _SCRIPT_DATA and at - start >= 2 and two_hyphens(page, at - 2):
            state = _SCRIPT_DATA
        elif byte == char.LESS and at + 1 < end:
            after = byte_at(page, at + 1)
            if state == _SCRIPT_DATA and after == char.EXCLAMATION and two_hyphens(page, at + 2):
                state = _ESCAPED
                start = at + 2  # "<!-->" closes at once
                at += 4
                continue
            closing = after == char.SLASH
            if (closing or state == _ESCAPED) and _is_script(page, at + 2 if closing else at + 1):
                if not closing:
                    state = _DOUBLE_ESCAPED
                elif state == _DOUBLE_ESCAPED:
                    state = _ESCAPED
                else:
                    return at
        at += 1
    return end


@njit
def _is_script(page: Page, name: int) -> bool:
    """True if the name "script" is at this place, and a byte after it ends the name."""
    name_end = name + len(_SCRIPT_NAME)
    return name_end < page.size and is_name(page, name, name_end, _SCRIPT_NAME) and ends_name(byte_at(page, name_end))


# ---- attributes


@njit
def _after_spaces(page: Page, at: int) -> int:
    while at < page.size and is_space(byte_at(page, at)):
        at += 1
    return at


@njit
def _no_attribute(what: int, after: int) -> Attribute:
    return Attribute(what, 0, 0, 0, 0, after)


@njit
def next_attribute(page: Page, at: int) -> Attribute:
    """The next attribute of the tag, or the end of the tag."""
    end = page.size
    slash = False
    while at < end and (is_space(byte_at(page, at)) or byte_at(page, at) == char.SLASH):
        slash = byte_at(page, at) == char.SLASH
        at += 1
    if at >= end:
        return _no_attribute(_PAGE_ENDS, -1)
    if byte_at(page, at) == char.GREATER:
        return _no_attribute(_TAG_CLOSES_ITSELF if slash else _TAG_ENDS, at + 1)
    name = at
    at += 1
    while at < end and not (ends_name(byte_at(page, at)) or byte_at(page, at) == char.EQUALS):
        at += 1
    name_end = at
    at = _after_spaces(page, at)
    if at < end and byte_at(page, at) != char.EQUALS:
        return Attribute(IS_ATTRIBUTE, name, name_end, 0, 0, at)
    at = _after_spaces(page, at + 1)
    if at >= end:
        return _no_attribute(_PAGE_ENDS, -1)
    quote = byte_at(page, at)
    if quote == char.QUOTE or quote == char.APOSTROPHE:
        value = at + 1
        at = find(page, value, quote)
        if at >= end:
            return _no_attribute(_PAGE_ENDS, -1)
        return Attribute(IS_ATTRIBUTE, name, name_end, value, at, at + 1)
    value = at
    while at < end and not (is_space(byte_at(page, at)) or byte_at(page, at) == char.GREATER):
        at += 1
    return Attribute(IS_ATTRIBUTE, name, name_end, value, at, at)


@njit
def skip_tag(page: Page, at: int) -> tuple[int, bool]:
    """(place after the tag, True if it closes itself). The place is -1 if the page ends in the tag, or TOO_MANY."""
    for _ in range(MAX_ATTRIBUTES + 1):
        attribute = next_attribute(page, at)
        at = attribute.after
        if attribute.what != IS_ATTRIBUTE:
            return at, attribute.what == _TAG_CLOSES_ITSELF
    return TOO_MANY, False
