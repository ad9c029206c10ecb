"""Pages on which a tree parser would spend more than a bounded number of steps for each byte.

HTML5 parsers have three walks that make some markup quadratic. For each block they walk up the open elements: 500 kB of
`<div>` take lexbor 20 s. They open unclosed formatting elements again in every block: 12 kB of `<b>` and `<p>` take
150 MB. They compare each attribute with those before it in its tag: 350 kB of attributes take 2 s. `is_costly`
estimates these steps. Its own work is linear in the size of the page. `html_bounds_kernel` gives the same answer about
nesting. The tokenizer counts attributes by itself. Only text that looks like a tag with thousands of attributes, inside
a script or a comment, is refused here and read there.

The estimate of the nesting is never below the nesting of the tree: an end tag counts only if its start tag is one of
the NEAR last open elements and lies in the same scope.
"""

from __future__ import annotations

import re

import numpy as np

FEW_TAGS = 2_000  # a page with fewer start tags is never costly by its nesting
DEPTH_STEPS = 100  # open elements x start tags, for each byte of the page; a step takes lexbor 4 ns
CLONE_STEPS = 4  # open formatting elements x start tags, for each byte; each may be a new element
NEAR = 32  # elements
MAX_NAME = 20  # bytes of a tag's name that are compared, after the first
MAX_ATTRIBUTES = 2_000  # of one tag; comparing them takes lexbor 1.3 ns x this for each

FORMATTING = tuple("a b big code em font i nobr s small strike strong tt u".split())
SCOPES = tuple("td th caption table template object applet marquee svg math button select".split())
# These add no depth: they are void, or the next of their kind closes them.
FLAT = tuple(
    "area base br col embed hr img input link meta param source track wbr p li option optgroup dd dt tr td th tbody"
    " thead tfoot rp rt colgroup".split()
)
_FORMATTING, _SCOPES, _FLAT = frozenset(FORMATTING), frozenset(SCOPES), frozenset(FLAT)
_UNSTACKED = _FLAT - _SCOPES

_TAG = re.compile(rb"<(/?)([a-zA-Z][^ \t\n\r\f/>]{0,%d})" % MAX_NAME)


def is_costly(html: bytes) -> bool:
    """True for a page that a tree parser should not read."""
    return has_costly_nesting(html) or has_costly_tag(html)


# ---- nesting


class _Open:
    """The open elements by name. End tags that close nothing near are ignored."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.depth = self.deepest = 0
        self.formatting = self.most_formatting = 0

    def start(self, name: str) -> None:
        """Adds an element. A new link closes the open one."""
        if name == "a" and self._near("a") is not None:
            return
        self.names.append(name)
        self.depth += name not in _FLAT
        self.formatting += name in _FORMATTING
        self.deepest, self.most_formatting = max(self.deepest, self.depth), max(self.most_formatting, self.formatting)

    def end(self, name: str) -> None:
        """Removes an element. Those inside it stay: a parser may leave them open."""
        place = self._near(name)
        if place is not None:
            del self.names[place]
            self.depth -= name not in _FLAT
            self.formatting -= name in _FORMATTING

    def _near(self, name: str) -> int | None:
        """The place of the last element of that name; None if it is not near, or outside the current scope."""
        last = len(self.names) - 1
        for place in range(last, max(last - NEAR, -1), -1):
            if self.names[place] == name:
                return place
            if self.names[place] in _SCOPES:
                return None
        return None


def has_costly_nesting(html: bytes) -> bool:
    """True if the elements are nested so deep, or so many formatting elements stay open, that parsing is not linear."""
    tags = html.count(b"<") - html.count(b"</")
    if tags <= FEW_TAGS:
        return False
    elements = _Open()
    for slash, raw in _TAG.findall(html):
        name = raw.decode("latin-1").lower()
        if name in _UNSTACKED:
            continue
        if slash:
            elements.end(name)
        else:
            elements.start(name)
    size = len(html)
    return elements.deepest * tags > DEPTH_STEPS * size or elements.most_formatting * tags > CLONE_STEPS * size


# ---- attributes

_BETWEEN = 3 * MAX_ATTRIBUTES  # bytes that so many attributes with different names take, at least
_OPEN_VALUE = re.compile(rb"=[ \t\n\r\f]*+(?:\"[^\">]*+>|'[^'>]*+>)")  # a ">" that may stand in a quoted value
_START = re.compile(rb"</?(?=[a-zA-Z])")
_SEPARATORS = re.compile(rb"[ \t\n\r\f/]*+")
_EQUALS = re.compile(rb"[ \t\n\r\f]*+=[ \t\n\r\f]*+")
_TAG_NAME, _NAME, _VALUE = (
    re.compile(rb"[^ \t\n\r\f/>]*+"),
    re.compile(rb"[^ \t\n\r\f/>=]*+"),
    re.compile(rb"[^ \t\n\r\f>]*+"),
)


def has_costly_tag(html: bytes) -> bool:
    """True if a tag may have more than MAX_ATTRIBUTES attributes.

    Comments and scripts are not known here, so each "<" or "</" before a letter may begin a tag. Tags that overlap
    share their last attributes. So tags are read from the last one to the first, and no attribute is read twice.
    """
    tags = _Tags(html)
    return any(tags.attributes(name) > MAX_ATTRIBUTES for name in reversed(_suspects(html)))


def _suspects(html: bytes) -> list[int]:
    """The places of the names of tags that may have more than MAX_ATTRIBUTES attributes.

    Up to the first ">" such a tag has many bytes, or this ">" stands in a quoted value.
    """
    if len(html) < _BETWEEN:
        return []
    closes = np.flatnonzero(np.frombuffer(html, np.uint8) == ord(">"))
    ends = np.append(closes, len(html))
    starts = np.append(0, closes + 1)
    suspect = ends - starts > _BETWEEN
    opened = [match.end() - 1 for match in _OPEN_VALUE.finditer(html)]
    suspect[np.searchsorted(closes, opened)] = True
    ranges = zip(starts[suspect].tolist(), ends[suspect].tolist(), strict=True)
    return [match.end() for start, end in ranges for match in _START.finditer(html, start, end)]


class _Tags:
    """The number of attributes of tags, for places that come from the right to the left."""

    def __init__(self, html: bytes) -> None:
        self._html = html
        self._tag_names, self._names, self._values = (_Runs(html, run) for run in (_TAG_NAME, _NAME, _VALUE))
        self._counts: dict[int, int] = {}  # attributes from a place between attributes up to the end of its tag

    def attributes(self, name: int) -> int:
        """The number of attributes of a tag whose name is at `name`."""
        read: list[int] = []
        at: int | None = self._tag_names.end(name)
        while at is not None and at not in self._counts:
            read.append(at)
            at = self._after_attribute(at)
        count = -1 if at is None else self._counts[at]  # at the last place there is no attribute
        for place in reversed(read):
            count += 1
            self._counts[place] = count
        return count

    def _after_attribute(self, at: int) -> int | None:
        """The place after the next attribute; None if there is none, or if the page ends in it."""
        html = self._html
        name = _end(_SEPARATORS, html, at)
        if html[name : name + 1] in (b"", b">"):
            return None
        end = self._names.end(name + 1)
        equals = _EQUALS.match(html, end)
        if equals is None:
            return end
        value = equals.end()
        quote = html[value : value + 1]
        if quote in (b'"', b"'"):
            return html.find(quote, value + 1) + 1 or None
        return self._values.end(value)


class _Runs:
    """The ends of runs of bytes. A run is not read again for another place in it, if it was the last one."""

    def __init__(self, html: bytes, pattern: re.Pattern[bytes]) -> None:
        self._html, self._pattern = html, pattern
        self._start = self._end = len(html)

    def end(self, at: int) -> int:
        """The end of the run that `at` is in."""
        if not self._start <= at < self._end:
            known = self._start if at < self._start else len(self._html)
            end = _end(self._pattern, self._html, at, known)
            self._end = self._end if end == known == self._start else end
            self._start = at
        return self._end


def _end(pattern: re.Pattern[bytes], html: bytes, at: int, limit: int | None = None) -> int:
    """The end of a match that may be empty."""
    match = pattern.match(html, at, len(html) if limit is None else limit)
    return match.end() if match else at
