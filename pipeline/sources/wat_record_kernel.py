"""Reads the JSON of one WAT record, for compiled kernels: the places of its URL, links, license and signals.

`walk` goes through the JSON once. In most links it only looks for the ends of the strings. It stores places and copies
nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.engine.jit import njit
from pipeline.sources import char_kernel as char
from pipeline.sources import wat
from pipeline.sources.json_kernel import (
    UNSURE,
    ascii,
    blanks,
    bytes_of,
    contains,
    element,
    has_token,
    is_null,
    member,
    same,
    same_folded,
    skip,
    string_end,
    trim,
    word_of,
)
from pipeline.sources.simd_kernel import BLOCK, folded_pair_mask, load_byte, load_word, lowest, pair_mask

NO_LINKS, PAGE, NO_ROOM = 0, 1, 2  # outcomes of a record

# Places in `Found.fields`. The first three hold spans, in the order in which a page's strings are written.
TARGET, BASE, LICENSE = 0, 3, 6
LINKS, NO_URL, NO_ALT, SIGNALS = 9, 10, 11, 12  # counts
_SEEN = 13  # a bit for each known key that was read
_MAY_LICENSE = 14  # 1 if the record may hold the word "license"
_OF_HEAD = 15  # 1 if the license is from the head; it wins over an anchor's, whichever comes first
FIELDS = 16

STRINGS = 3  # of a page: target, base and license

# Places in a row of `Found.links` and of `Found.signals`.
URL_SPAN, ALT_SPAN, LINK_PLACES = 0, 3, 6
SIGNAL_SPAN, SIGNAL_KIND, SIGNAL_PLACES = 0, 3, 4

MAX_SIGNALS = 32  # of one page

_ENVELOPE, _PAYLOAD, _RESPONSE, _HTML, _LINKS_KEY, _HEAD, _BASE_KEY, _METAS, _LINK, _WARC, _URI, _HEADERS = map(
    bytes_of,
    "Envelope Payload-Metadata HTTP-Response-Metadata HTML-Metadata Links Head Base Metas Link "
    "WARC-Header-Metadata WARC-Target-URI Headers".split(),
)
_PATH, _URL, _ALT, _REL, _HREF, _NAME, _CONTENT = map(bytes_of, "path url alt rel href name content".split())
_IMG, _IMG_ESCAPED = bytes_of("IMG@/src"), bytes_of("IMG@\\/src")
_ROBOTS, _OPENWIT, _TDM, _ROBOTS_TAG, _LICENSE_WORD, _USAGE, _SIGNAL, _RSL = map(
    bytes_of, "robots openwit tdm-reservation x-robots-tag license content-usage content-signal rsl".split()
)
_LINK_HEADER = bytes_of("link")
_UNICODE = bytes_of("\\u")

# Words of up to eight bytes, and the masks that cut a word to so many bytes.
_PATH_WORD, _IMG_WORD = word_of('{"path":'), word_of("IMG@/src")
_COMMA_QUOTE, _COLON_QUOTE, _PATH_KEY, _REL_KEY = map(word_of, (',"', '":"', 'path"', 'rel"'))
_TWO_BYTES, _THREE_BYTES, _FOUR_BYTES, _FIVE_BYTES = (np.uint64((1 << 8 * count) - 1) for count in (2, 3, 4, 5))
_WORD = 8  # bytes
_LONGEST_KEY = 8  # bytes, in a link that is skipped
_ONE = np.uint64(1)

_C, _E, _N, _S = map(np.uint8, b"cens")  # the middle of "license"
_U = ord("u")
_ESCAPE_SIZE = 6  # bytes of one like \u00e4

# Levels of the walk: the objects around the wanted values.
_AT_ROOT, _AT_ENVELOPE, _AT_WARC, _AT_PAYLOAD, _AT_RESPONSE, _AT_HTML, _AT_HEAD = range(7)
# The wanted values, numbered after the levels.
_HTML_LINKS, _HEAD_METAS, _HEAD_LINKS, _HTTP_HEADERS, _TARGET_URI, _BASE_URL = range(7, 13)
_UNKNOWN = -1  # neither a level nor a wanted value


class Span(NamedTuple):
    """The piece of a text from `start` up to `end`; all fields are 0 if there is none."""

    start: int
    end: int
    escaped: int  # 1 if there are escapes in it


_NONE = Span(0, 0, 0)


class Found(NamedTuple):
    """The findings in the current record: three int64 arrays."""

    fields: np.ndarray  # numbers and spans, at the places above
    links: np.ndarray  # one row for each image link with a URL and an alt: their spans
    signals: np.ndarray  # one row for each signal: the span of its value, and its kind (wat.ROBOTS_META, ...)


@njit
def span_at(row, place):
    """The span that the row holds at that place."""
    return Span(row[place], row[place + 1], row[place + 2])


@njit
def _store(row, place, span):
    row[place], row[place + 1], row[place + 2] = span.start, span.end, span.escaped


@njit
def _has_license(start, end):
    """True if the span may hold "license" in any case. It searches for "cens"."""
    at = start
    while at < end:
        mask = folded_pair_mask(at, _C, _E) & folded_pair_mask(at + 2, _N, _S)
        if mask and at + lowest(mask) < end:
            return True
        at += BLOCK
    return False


@njit
def _hides_letters(start, end):
    r"""True if a letter, an @ or a hyphen may be written as \uXXXX. Then keys cannot be compared byte by byte."""
    at = start
    while at < end:
        mask = pair_mask(at, np.uint8(char.BACKSLASH), np.uint8(_U))
        while mask:
            found = at + lowest(mask)
            if found + _ESCAPE_SIZE > end:
                break
            if load_byte(found + 2) == char.ZERO and load_byte(found + 3) == char.ZERO:
                row = load_byte(found + 4) - char.ZERO  # of the ASCII table: 2 has the marks, 4 to 7 have the letters
                if row == 2 or 4 <= row <= 7:
                    return True
            mask &= mask - _ONE
        at += BLOCK
    return False


# ---- links


@njit
def _passed_over(p, e, may_license):
    """Skips a link that is no image and holds only strings: the position after it. UNSURE: read it with `_link`."""
    text = p + _WORD + 1  # after the quote of the path
    if load_word(p) != _PATH_WORD or load_byte(text - 1) != char.QUOTE or load_word(text) == _IMG_WORD:
        return UNSURE
    end, escaped = string_end(text, e)
    if end < 0 or escaped:
        return UNSURE
    while True:
        if load_byte(end + 1) == char.BRACE_CLOSES:
            return end + 2 if end + 2 <= e else UNSURE
        if load_word(end + 1) & _TWO_BYTES != _COMMA_QUOTE:
            return UNSURE
        key = end + 3
        end = key
        while end < key + _LONGEST_KEY and load_byte(end) >= char.LOWER_A:  # keys are short words of small letters
            end += 1
        if load_word(end) & _THREE_BYTES != _COLON_QUOTE:
            return UNSURE
        word = load_word(key) & _FIVE_BYTES
        if word == _PATH_KEY or (may_license and word & _FOUR_BYTES == _REL_KEY):
            return UNSURE
        end, _ = string_end(end + 3, e)
        if end < 0:
            return UNSURE


@njit
def _text(p, e):
    """Reads a string or null: (position after it or UNSURE, its span or _NONE for null)."""
    if load_byte(p) != char.QUOTE:
        return (p + 4 if is_null(p, e) else UNSURE), _NONE
    end, escaped = string_end(p + 1, e)
    if end < 0:
        return UNSURE, _NONE
    return end + 1, Span(p + 1, end, escaped)


@njit
def _link(p, e, found):
    """Reads the link object at p; returns the position after it, or UNSURE."""
    path = url = alt = rel = href = _NONE
    may_license = found.fields[_MAY_LICENSE]
    first = True
    p += 1
    while True:
        more, key, key_end, p = member(p, e, first)
        if more < 0:
            return UNSURE
        if more == 0:
            break
        first = False
        if same(key, key_end, _PATH):
            p, path = _text(p, e)
        elif same(key, key_end, _URL):
            p, url = _text(p, e)
        elif same(key, key_end, _ALT):
            p, alt = _text(p, e)
        elif same(key, key_end, _REL):
            p, rel = _text(p, e)
            if rel.escaped and may_license:
                return UNSURE
        elif same(key, key_end, _HREF):
            p, href = _text(p, e)
        else:
            p = skip(p, e)
        if p < 0:
            return UNSURE
    if may_license and rel.start and _has_license(rel.start, rel.end) and not _note_license(rel, href, url, found):
        return UNSURE
    if same(path.start, path.end, _IMG) or same(path.start, path.end, _IMG_ESCAPED):
        _note_image(url, alt, found)
    return p


@njit
def _note_license(rel, href, url, found):
    """Stores the license link of an anchor; False if `wat.py` must read the record."""
    if not ascii(rel.start, rel.end):
        return False
    if found.fields[LICENSE] or not has_token(rel.start, rel.end, _LICENSE_WORD):
        return True
    if href.end > href.start:
        _store(found.fields, LICENSE, href)
    elif url.end > url.start:
        _store(found.fields, LICENSE, url)
    else:
        return False
    return True


@njit
def _note_image(url, alt, found):
    """Counts an image link. With a URL and an alt it is added to the links."""
    fields, links = found.fields, found.links
    if url.start == 0:
        fields[NO_URL] += 1
    elif alt.end == alt.start:
        fields[NO_ALT] += 1
    else:
        at = fields[LINKS]
        if at < links.shape[0]:
            _store(links[at], URL_SPAN, url)
            _store(links[at], ALT_SPAN, alt)
        fields[LINKS] = at + 1


@njit
def _read_links(p, e, found):
    """Reads the array of links, from after its bracket on; returns the position after it, or UNSURE."""
    first = True
    while True:
        more, p = element(p, e, first)
        if more <= 0:
            return p if more == 0 else UNSURE
        first = False
        if load_byte(p) != char.BRACE:
            return UNSURE
        end = _passed_over(p, e, found.fields[_MAY_LICENSE])
        p = end if end >= 0 else _link(p, e, found)
        if p < 0 or found.fields[LINKS] > found.links.shape[0]:
            return UNSURE


# ---- the head and the HTTP headers


@njit
def _head_entry(p, e, name_key, value_key):
    """Reads an object, from after its brace on: (position after it or UNSURE, span of the name, of the value)."""
    name = value = _NONE
    first = True
    while True:
        more, key, key_end, p = member(p, e, first)
        if more <= 0:
            return (p if more == 0 else UNSURE), name, value
        first = False
        is_name, is_value = same(key, key_end, name_key), same(key, key_end, value_key)
        if not (is_name or is_value):
            p = skip(p, e)
        elif load_byte(p) != char.QUOTE:
            p = UNSURE
        elif is_name:
            p, name = _text(p, e)
            if name.escaped or not ascii(name.start, name.end):  # `strip` also removes blanks beyond ASCII
                p = UNSURE
        else:
            p, value = _text(p, e)
        if p < 0:
            return UNSURE, name, value


@njit
def _read_metas(p, e, found):
    """Reads Head.Metas (robots, TDM reservation); returns the position after the array, or UNSURE."""
    first = True
    while True:
        more, p = element(p, e, first)
        if more <= 0:
            return p if more == 0 else UNSURE
        first = False
        if load_byte(p) != char.BRACE:
            return UNSURE
        p, name, value = _head_entry(p + 1, e, _NAME, _CONTENT)
        if p < 0 or (name.start and value.start and not _note_meta(name, value, found)):
            return UNSURE


@njit
def _note_meta(name, value, found):
    """Stores the opt-out signal of a meta, if it has one; False if there are too many signals."""
    start, end = trim(name.start, name.end)
    if same_folded(start, end, _ROBOTS) or same_folded(start, end, _OPENWIT):
        return _note_signal(wat.ROBOTS_META, value, found)
    if same_folded(start, end, _TDM):
        return _note_signal(wat.TDM_META, value, found)
    return True


@njit
def _note_signal(kind, value, found):
    """Stores an opt-out signal of the page; False if there are too many signals."""
    at = found.fields[SIGNALS]
    if at >= found.signals.shape[0]:
        return False
    signal = found.signals[at]
    _store(signal, SIGNAL_SPAN, value)
    signal[SIGNAL_KIND] = kind
    found.fields[SIGNALS] = at + 1
    return True


@njit
def _may_say_rsl(start, end):
    """False if an entry certainly has no type application/rsl+xml."""
    for at in range(start, end - 2):
        if same_folded(at, at + 3, _RSL) or (load_byte(at) == _UNICODE[0] and load_byte(at + 1) == _UNICODE[1]):
            return True
    return False


@njit
def _read_head_links(p, e, found):
    """Reads Head.Link (license); returns the position after the array, or UNSURE."""
    fields = found.fields
    first = True
    while True:
        more, p = element(p, e, first)
        if more <= 0:
            return p if more == 0 else UNSURE
        first = False
        if load_byte(p) != char.BRACE:
            return UNSURE
        entry = p
        p, rel, url = _head_entry(p + 1, e, _REL, _URL)
        if p < 0:
            return UNSURE
        if rel.start and url.end > url.start:
            is_license = has_token(rel.start, rel.end, _LICENSE_WORD)
            if is_license and _may_say_rsl(entry, p):
                return UNSURE  # `wat.py` looks at the type of the link
            if is_license and fields[_OF_HEAD] == 0:
                _store(fields, LICENSE, url)
                fields[_OF_HEAD] = 1


@njit
def _read_headers(p, e, found):
    """Reads the HTTP headers, from after the brace on; returns the position after the object, or UNSURE."""
    first = True
    seen = 0
    while True:
        more, key, key_end, p = member(p, e, first)
        if more <= 0:
            return p if more == 0 else UNSURE
        first = False
        kind = UNSURE
        if same_folded(key, key_end, _ROBOTS_TAG):
            kind = wat.ROBOTS_HEADER
        elif same_folded(key, key_end, _TDM):
            kind = wat.TDM_HEADER
        elif same_folded(key, key_end, _USAGE):
            kind = wat.USAGE_HEADER
        elif same_folded(key, key_end, _SIGNAL):
            kind = wat.SIGNAL_HEADER
        if kind < 0:
            value_start = p
            p = skip(p, e)
            if p >= 0 and same_folded(key, key_end, _LINK_HEADER) and _may_say_rsl(value_start, p):
                return UNSURE  # `wat.py` looks at the type of the link
        elif load_byte(p) != char.QUOTE or seen & (1 << kind):
            return UNSURE
        else:
            seen |= 1 << kind
            p, value = _text(p, e)
            if p >= 0 and not _note_signal(kind, value, found):
                return UNSURE
        if p < 0:
            return UNSURE


# ---- the record


@njit
def _known(level, key, key_end):
    """The level of the object under this key, or the number of the wanted value; else _UNKNOWN."""
    if level == _AT_ROOT:
        return _AT_ENVELOPE if same(key, key_end, _ENVELOPE) else _UNKNOWN
    if level == _AT_ENVELOPE:
        if same(key, key_end, _PAYLOAD):
            return _AT_PAYLOAD
        return _AT_WARC if same(key, key_end, _WARC) else _UNKNOWN
    if level == _AT_WARC:
        return _TARGET_URI if same(key, key_end, _URI) else _UNKNOWN
    if level == _AT_PAYLOAD:
        return _AT_RESPONSE if same(key, key_end, _RESPONSE) else _UNKNOWN
    if level == _AT_RESPONSE:
        if same(key, key_end, _HTML):
            return _AT_HTML
        return _HTTP_HEADERS if same(key, key_end, _HEADERS) else _UNKNOWN
    if level == _AT_HTML:
        if same(key, key_end, _HEAD):
            return _AT_HEAD
        return _HTML_LINKS if same(key, key_end, _LINKS_KEY) else _UNKNOWN
    if same(key, key_end, _METAS):
        return _HEAD_METAS
    if same(key, key_end, _LINK):
        return _HEAD_LINKS
    return _BASE_URL if same(key, key_end, _BASE_KEY) else _UNKNOWN


@njit
def _outer(level):
    """The level of the object around an object of this level."""
    return _AT_ENVELOPE if level == _AT_WARC or level == _AT_PAYLOAD else level - 1


@njit
def _read_value(what, p, e, found):
    """Reads a wanted value; returns the position after it, or UNSURE."""
    byte = load_byte(p)
    if what == _TARGET_URI or what == _BASE_URL:
        if byte != char.QUOTE:
            return UNSURE
        p, text = _text(p, e)
        _store(found.fields, TARGET if what == _TARGET_URI else BASE, text)
        return p
    if byte != (char.BRACE if what == _HTTP_HEADERS else char.BRACKET):
        return UNSURE
    if what == _HTML_LINKS:
        return _read_links(p + 1, e, found)
    if what == _HTTP_HEADERS:
        return _read_headers(p + 1, e, found)
    if what == _HEAD_METAS:
        return _read_metas(p + 1, e, found)
    return _read_head_links(p + 1, e, found)


@njit
def _walk_objects(p, e, found):
    """Reads the record's object, from after its brace on; returns the position after it, or UNSURE."""
    level = _AT_ROOT
    first = True
    while True:
        more, key, key_end, p = member(p, e, first)
        if more < 0:
            return UNSURE
        first = False
        if more == 0:
            if level == _AT_ROOT:
                return p
            level = _outer(level)
            continue
        what = _known(level, key, key_end)
        if what == _UNKNOWN:
            p = skip(p, e)
        else:
            bit = 1 << what
            if found.fields[_SEEN] & bit:
                return UNSURE
            found.fields[_SEEN] |= bit
            if what > _AT_HEAD:
                p = _read_value(what, p, e, found)
            elif load_byte(p) == char.BRACE:
                level, first = what, True
                p += 1
            else:
                return UNSURE
        if p < 0:
            return UNSURE


@njit
def walk(p, e, found):
    """Reads a record's JSON; returns PAGE, NO_LINKS or UNSURE."""
    fields = found.fields
    fields[:] = 0
    if not contains(p, e, _HTML):
        return UNSURE if contains(p, e, _UNICODE) else NO_LINKS
    if _hides_letters(p, e):
        return UNSURE
    fields[_MAY_LICENSE] = _has_license(p, e)
    p = blanks(p, e)
    if p >= e or load_byte(p) != char.BRACE:
        return UNSURE
    p = _walk_objects(p + 1, e, found)
    if p < 0 or blanks(p, e) != e:
        return UNSURE
    has_links = fields[_SEEN] & (1 << _HTML_LINKS) != 0
    return PAGE if has_links and fields[TARGET + 1] > fields[TARGET] else NO_LINKS
