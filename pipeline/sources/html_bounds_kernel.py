"""`html_bounds.has_costly_nesting`, compiled. Names of more than eight bytes are compared by their hashes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.engine.jit import njit
from pipeline.sources import char_kernel as char
from pipeline.sources.html_bounds import (
    CLONE_STEPS,
    DEPTH_STEPS,
    FEW_TAGS,
    FLAT,
    FORMATTING,
    MAX_NAME,
    NEAR,
    SCOPES,
)
from pipeline.sources.html_syntax_kernel import Page, byte_at, ends_name, find, is_letter, word_at, word_of_name
from pipeline.sources.simd_kernel import BLOCK, address_of, count_bits, equal_mask, pair_mask

_IS_FORMATTING, _IS_SCOPE, _IS_FLAT = np.uint8(1), np.uint8(2), np.uint8(4)  # bits of a class
_SLOTS = 256  # of the table of names; a power of two
_MIX, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(56)
_A = np.uint64(word_of_name("a"))


def _table() -> tuple[np.ndarray, np.ndarray]:
    """The words of the names that have a class, at their slots or the next free ones, and the classes."""
    words, classes = np.zeros(_SLOTS, np.uint64), np.zeros(_SLOTS, np.uint8)
    for name in dict.fromkeys((*FORMATTING, *SCOPES, *FLAT)):
        word = word_of_name(name)
        slot = (word * int(_MIX) % 2**64) >> int(_SHIFT)
        while words[slot]:
            slot = (slot + 1) % _SLOTS
        words[slot] = word
        bits = [(names, bit) for names, bit in ((FORMATTING, 1), (SCOPES, 2), (FLAT, 4))]
        classes[slot] = sum(bit for names, bit in bits if name in names)
    return words, classes


_WORDS, _CLASSES = _table()


class _Open(NamedTuple):
    """The open elements: their words and classes, and four numbers of which the names stand below."""

    words: np.ndarray  # uint64
    classes: np.ndarray  # uint8
    numbers: np.ndarray  # int64


_COUNT, _DEPTH, _DEEPEST, _FORMATTING, _MOST_FORMATTING, _NUMBERS = range(6)


@njit
def _class_of(word):
    """The class of a name: 0 for most."""
    slot = np.int64((word * _MIX) >> _SHIFT)
    while _WORDS[slot] != 0:
        if _WORDS[slot] == word:
            return _CLASSES[slot]
        slot = (slot + 1) % _SLOTS
    return np.uint8(0)


@njit
def _near(elements, word):
    """The place of the last element of that name; -1 if it is not near, or outside the current scope."""
    count = elements.numbers[_COUNT]
    for place in range(count - 1, max(count - 1 - NEAR, -1), -1):
        if elements.words[place] == word:
            return place
        if elements.classes[place] & _IS_SCOPE:
            return -1
    return -1


@njit
def _start(elements, word, kind):
    """Adds an element. A new link closes the open one."""
    if word == _A and _near(elements, word) >= 0:
        return
    numbers = elements.numbers
    elements.words[numbers[_COUNT]], elements.classes[numbers[_COUNT]] = word, kind
    numbers[_COUNT] += 1
    if not kind & _IS_FLAT:
        numbers[_DEPTH] += 1
        numbers[_DEEPEST] = max(numbers[_DEEPEST], numbers[_DEPTH])
    if kind & _IS_FORMATTING:
        numbers[_FORMATTING] += 1
        numbers[_MOST_FORMATTING] = max(numbers[_MOST_FORMATTING], numbers[_FORMATTING])


@njit
def _end(elements, word, kind):
    """Removes an element. Those inside it stay."""
    place = _near(elements, word)
    if place < 0:
        return
    numbers = elements.numbers
    for after in range(place + 1, numbers[_COUNT]):
        elements.words[after - 1], elements.classes[after - 1] = elements.words[after], elements.classes[after]
    numbers[_COUNT] -= 1
    if not kind & _IS_FLAT:
        numbers[_DEPTH] -= 1
    if kind & _IS_FORMATTING:
        numbers[_FORMATTING] -= 1


@njit
def _count_tags(page):
    """The number of "<" that no slash follows."""
    tags = at = 0
    while at + BLOCK < page.size:
        tags += count_bits(equal_mask(page.address + at, np.uint8(char.LESS)))
        tags -= count_bits(pair_mask(page.address + at, np.uint8(char.LESS), np.uint8(char.SLASH)))
        at += BLOCK
    for place in range(at, page.size):
        is_slash = place + 1 < page.size and byte_at(page, place + 1) == char.SLASH
        tags += byte_at(page, place) == char.LESS and not is_slash
    return tags


@njit
def _read(page, elements):
    """Reads all tags of the page."""
    end = page.size
    at = find(page, 0, char.LESS)
    while at + 1 < end:
        closing = byte_at(page, at + 1) == char.SLASH
        name = at + 2 if closing else at + 1
        if name < end and is_letter(byte_at(page, name)):
            at = name + 1
            while at < end and at <= name + MAX_NAME and not ends_name(byte_at(page, at)):
                at += 1
            word = word_at(page, name, at)
            kind = _class_of(word)
            if not kind & _IS_FLAT or kind & _IS_SCOPE:
                if closing:
                    _end(elements, word, kind)
                else:
                    _start(elements, word, kind)
        else:
            at += 1
        at = find(page, at, char.LESS)


@njit
def _is_costly(html):
    page = Page(address_of(html), len(html))
    tags = _count_tags(page)
    if tags <= FEW_TAGS:
        return False
    elements = _Open(np.empty(tags + 1, np.uint64), np.empty(tags + 1, np.uint8), np.zeros(_NUMBERS, np.int64))
    _read(page, elements)
    deepest, formatting = elements.numbers[_DEEPEST], elements.numbers[_MOST_FORMATTING]
    return deepest * tags > DEPTH_STEPS * len(html) or formatting * tags > CLONE_STEPS * len(html)


def has_costly_nesting(html: bytes) -> bool:
    """As `html_bounds.has_costly_nesting`."""
    return len(html) > FEW_TAGS and bool(_is_costly(np.frombuffer(html, np.uint8)))


def warm() -> None:
    """Compiles the kernel."""
    has_costly_nesting(b"<a>" * (FEW_TAGS + 1))
