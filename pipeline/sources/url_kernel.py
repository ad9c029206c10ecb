"""Makes links absolute, by address, for compiled kernels, where it is enough to concatenate two pieces.

`wat.fit` decides all other links; `links` has the same rules. A text is `size` bytes at p. One word after it may be
read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.engine.jit import njit
from pipeline.sources import char_kernel as char
from pipeline.sources.json_kernel import UNSURE, bytes_of, same_folded, word_of
from pipeline.sources.links import MAX_BASE
from pipeline.sources.simd_kernel import load_byte, load_word

# How a link becomes absolute: it is so already (ABSOLUTE), or it is appended to the base's scheme (//host), origin
# (/path) or folder (path), or `wat.fit` decides (LEAVE).
ABSOLUTE, SCHEME, ORIGIN, FOLDER, LEAVE = range(5)

_HTTPS, _HTTP = word_of("https://"), word_of("http://\0")
_SEVEN_BYTES = np.uint64(0x00FFFFFFFFFFFFFF)
_DATA_SCHEME = bytes_of("data:")


class Base(NamedTuple):
    """The base URL of a page: its place, and the sizes of its first bytes that links can be appended to.

    A size is 0 if no link can be appended to that piece.
    """

    address: int
    scheme: int  # of "http:"
    origin: int
    folder: int


@njit
def _scheme_size(p, size):
    """The number of bytes of "http://" or "https://" at p, else 0."""
    if size < 8:
        return 0
    word = load_word(p)
    if word == _HTTPS:
        return 8
    return 7 if word & _SEVEN_BYTES == _HTTP else 0


@njit
def _ends_path(byte):
    """True for the first byte of a query or a fragment."""
    return byte == char.QUESTION or byte == char.HASH


@njit
def _host_end(p, at, size):
    """The place after the host that begins at place `at`; UNSURE if it is empty or has odd bytes."""
    start = at
    while at < size:
        byte = load_byte(p + at)
        if byte == char.SLASH or _ends_path(byte):
            break
        if byte <= char.BLANK or byte >= char.DELETE:
            return UNSURE
        if byte == char.BRACKET or byte == char.BRACKET_CLOSES or byte == char.BACKSLASH:
            return UNSURE
        at += 1
    return at if at > start else UNSURE


@njit
def base_of(p, size):
    """The Base at p."""
    scheme = _scheme_size(p, size) if size <= MAX_BASE else 0
    at = _host_end(p, scheme, size) if scheme else UNSURE
    if at < 0:
        return Base(p, 0, 0, 0)
    origin = folder = at
    in_path = is_plain = True
    before = 0
    while at < size:
        byte = load_byte(p + at)
        if byte <= char.BLANK:
            return Base(p, 0, 0, 0)
        if _ends_path(byte):
            in_path = False
        if in_path:
            if before == char.SLASH and (byte == char.SLASH or byte == char.DOT):
                is_plain = False
            if byte == char.BACKSLASH:  # browsers take it for a slash
                is_plain = False
            if byte == char.SLASH:
                folder = at + 1
        before = byte
        at += 1
    return Base(p, scheme - 2, origin, folder if is_plain else 0)


@njit
def bytes_before(kind, base):
    """The number of bytes of the base before a link of this kind; 0 if the link cannot be appended."""
    if kind == SCHEME:
        return base.scheme
    if kind == ORIGIN:
        return base.origin
    return base.folder if kind == FOLDER else 0


@njit
def classify(p, size):
    """The kind of a link of one byte or more: how it becomes absolute.

    The result is LEAVE unless it is enough to concatenate two pieces.
    """
    if _scheme_size(p, size):
        return ABSOLUTE
    byte = load_byte(p)
    if byte <= char.BLANK or load_byte(p + size - 1) <= char.BLANK:
        return LEAVE
    if _ends_path(byte) or byte == char.DOT or byte == char.SEMICOLON:
        return LEAVE
    kind, at = FOLDER, 0
    if byte == char.SLASH:
        kind, at = ORIGIN, 1
        after = load_byte(p + 1) if size > 1 else 0
        if after == char.DOT:
            return LEAVE
        if after == char.SLASH:
            kind, at = SCHEME, _host_end(p, 2, size)
    return kind if at >= 0 and _joins_plainly(p, at, size, kind) else LEAVE


@njit
def _joins_plainly(p, at, size, kind):
    """True if a URL parser would not change the link from place `at` on, but for escapes."""
    in_path = True
    slash = kind != FOLDER
    before = 0
    while at < size:
        byte = load_byte(p + at)
        if byte <= char.BLANK or byte == char.BRACKET or byte == char.BRACKET_CLOSES:
            return False
        if _ends_path(byte):
            in_path = False
            if _ends_path(before):
                return False
        if in_path:
            if byte == char.SEMICOLON or byte == char.BACKSLASH or (byte == char.COLON and not slash):
                return False
            if byte == char.DOT and before == char.SLASH:
                return False
            if byte == char.SLASH:
                if before == char.SLASH and kind != SCHEME:
                    return False
                slash = True
        before = byte
        at += 1
    return not _ends_path(before)


@njit
def is_data(start, end):
    """True for a data: URL."""
    size = len(_DATA_SCHEME)
    return end - start >= size and same_folded(start, start + size, _DATA_SCHEME)
