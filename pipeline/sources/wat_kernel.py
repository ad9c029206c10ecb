"""A whole WAT file in compiled code: gzip members in, rows out, no Python object a record or a link.

`_run` inflates member after member with libdeflate, walks the JSON once (of most links only the ends of their
strings are looked for), and writes URLs and alts into Arrow's layout. What it is not sure about, it does not touch: an
unusual record (escaped keys, odd types, damage, more than one record in a member) stops it, `wat.py` reads that one
record, and `_run` goes on behind it. An unusual URL is handed to `wat.fit` alone. So rows and counts are those of
`wat.py`, in the same order, for any bytes: what is passed over is looked at, too, and JSON that is broken stops it.

Every access is by address. What makes it safe: PADDING bytes behind the inflated data, a capacity checked before
anything is written, and the counts rolled back to the last whole page. tests/sources/test_wat_kernel.py runs mutated
records between guard pages.
"""

from __future__ import annotations

import gzip
import mmap
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.jit import njit
from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES
from pipeline.sources import libdeflate, wat
from pipeline.sources.archive import MAX_HEADER, MAX_RECORD
from pipeline.sources.json_kernel import (
    UNSURE,
    ascii,
    blanks,
    bytes_of,
    contains,
    copy,
    decode,
    element,
    has_token,
    is_null,
    member,
    same,
    same_folded,
    skip,
    string_end,
    trim,
    valid,
    word_of,
)
from pipeline.sources.simd_kernel import (
    PADDING,
    call_gunzip,
    folded_pair_mask,
    load_byte,
    load_word,
    lowest,
    pair_mask,
    store_byte,
)

NO_LINKS, PAGE, NO_ROOM = 0, 1, 2  # what became of a record
END, FULL, ODD = 0, 1, 2  # why `_run` came back

# Places in `fields`, what is known of the record at hand: spans are (start, end, has an escape).
_TARGET, _BASE, _LICENSE = 0, 3, 6
_LINKS, _NO_URL, _NO_ALT, _SIGNALS, _SEEN = 9, 10, 11, 12, 13
_MAY_LICENSE = 14
_OF_HEAD = 15  # the license is one of the head's: that comes before an anchor's, wherever it stands
_FIELDS = 16

# Places in `counts`, what has been written since the last flush; all rolled back when a record turns out odd.
_ROWS, _PAGES, _SIGNS, _URL_BYTES, _TEXT_BYTES, _PAGE_BYTES, _SIGN_BYTES = range(7)
_IMAGES, _LOST_URL, _LOST_ALT, _EMPTY, _DATA, _RECORDS, _WITHOUT = range(7, 14)
_COUNTS = 14

MAX_SIGNALS = 32  # of one page

# Page strings, in the order in which they stand in the page arena.
_STRINGS = 3  # url, base, license

# How a link becomes absolute.
_ABSOLUTE, _SCHEME, _ORIGIN, _FOLDER, _LEAVE = 0, 1, 2, 3, 4


_ENVELOPE, _PAYLOAD, _RESPONSE, _HTML, _LINKS_KEY, _HEAD, _BASE_KEY, _METAS, _LINK, _WARC, _URI, _HEADERS = map(
    bytes_of,
    "Envelope Payload-Metadata HTTP-Response-Metadata HTML-Metadata Links Head Base Metas Link "
    "WARC-Header-Metadata WARC-Target-URI Headers".split(),
)
_PATH, _URL, _ALT, _REL, _HREF, _NAME, _CONTENT = map(bytes_of, "path url alt rel href name content".split())
_IMG, _IMG_ESCAPED = bytes_of("IMG@/src"), bytes_of("IMG@\\/src")
_ROBOTS, _OPENWIT, _TDM, _ROBOTS_TAG, _LICENSE_WORD = map(
    bytes_of, "robots openwit tdm-reservation x-robots-tag license".split()
)
_UNICODE, _DATA_SCHEME = bytes_of("\\u"), bytes_of("data:")
_TYPE, _LENGTH, _METADATA = map(bytes_of, "warc-type content-length metadata".split())
_VERSION_0, _VERSION_1 = word_of("WARC/1.0"), word_of("WARC/1.1")
_HTTPS, _HTTP = word_of("https://"), word_of("http://\0")
_COMMA_QUOTE, _COLON_QUOTE, _PATH_KEY, _REL_KEY = map(word_of, (',"', '":"', 'path"', 'rel"'))
_TWO, _THREE, _FOUR, _FIVE = (np.uint64((1 << 8 * count) - 1) for count in (2, 3, 4, 5))
_PATH_WORD, _IMG_WORD = word_of('{"path":'), word_of("IMG@/src")
_SEVEN = np.uint64(0x00FFFFFFFFFFFFFF)
_ONE = np.uint64(1)

_MAX_URL, _MAX_TEXT = wat.MAX_URL, wat.MAX_TEXT


# ---- the record


@njit
def _has_license(start, end):
    """True if the span may hold "license" in any case (it looks for "cens")."""
    at = start
    while at < end:
        mask = folded_pair_mask(at, np.uint8(99), np.uint8(101)) & folded_pair_mask(
            at + 2, np.uint8(110), np.uint8(115)
        )
        if mask and at + lowest(mask) < end:
            return True
        at += 64
    return False


@njit
def _hides_letters(start, end):
    r"""True if a letter, an @ or a hyphen may be written as \uXXXX: then keys are not what they look like."""
    at = start
    while at < end:
        mask = pair_mask(at, np.uint8(92), np.uint8(117))
        while mask:
            found = at + lowest(mask)
            if found + 6 > end:
                break
            if load_byte(found + 2) == 48 and load_byte(found + 3) == 48:
                row = load_byte(found + 4) - 48
                if row == 2 or 4 <= row <= 7:
                    return True
            mask &= mask - _ONE
        at += 64
    return False


@njit
def _passed_over(p, e, may_license):
    """From a link that is no image and holds nothing but strings to the position behind it; UNSURE: look into it."""
    if load_word(p) != _PATH_WORD or load_byte(p + 8) != 34 or load_word(p + 9) == _IMG_WORD:
        return UNSURE
    end, escaped = string_end(p + 9, e)
    if end < 0 or escaped:
        return UNSURE
    while True:
        if load_byte(end + 1) == 125:
            return end + 2 if end + 2 <= e else UNSURE
        if load_word(end + 1) & _TWO != _COMMA_QUOTE:
            return UNSURE
        key = end + 3
        end = key
        while end < key + 8 and load_byte(end) >= 97:  # keys are short words of small letters
            end += 1
        if load_word(end) & _THREE != _COLON_QUOTE:
            return UNSURE
        word = load_word(key) & _FIVE
        if word == _PATH_KEY or (may_license and word & _FOUR == _REL_KEY):
            return UNSURE
        end, _ = string_end(end + 3, e)
        if end < 0:
            return UNSURE


@njit
def _link(p, e, links, fields):
    """Reads the link object at p; the position behind it, or UNSURE."""
    image = False
    url = url_end = url_escaped = alt = alt_end = alt_escaped = 0
    href = href_end = href_escaped = rel = rel_end = 0
    first = True
    p += 1
    while True:
        more, key, key_end, p = member(p, e, first)
        if more < 0:
            return UNSURE
        if more == 0:
            break
        first = False
        if load_byte(p) != 34:
            null = is_null(p, e)
            if same(key, key_end, _PATH):
                image = False
            elif same(key, key_end, _URL):
                url = 0
            elif same(key, key_end, _ALT):
                alt = 0
            elif same(key, key_end, _REL):
                rel = 0
            elif same(key, key_end, _HREF):
                href = 0
            else:
                null = True
            p = skip(p, e)
            if p < 0 or not null:
                return UNSURE
            continue
        start = p + 1
        end, escaped = string_end(start, e)
        if end < 0:
            return UNSURE
        p = end + 1
        if same(key, key_end, _PATH):
            image = same(start, end, _IMG) or same(start, end, _IMG_ESCAPED)
        elif same(key, key_end, _URL):
            url, url_end, url_escaped = start, end, escaped
        elif same(key, key_end, _ALT):
            alt, alt_end, alt_escaped = start, end, escaped
        elif same(key, key_end, _REL):
            rel, rel_end = start, end
            if escaped and fields[_MAY_LICENSE]:
                return UNSURE
        elif same(key, key_end, _HREF):
            href, href_end, href_escaped = start, end, escaped
    if rel and fields[_MAY_LICENSE] and _has_license(rel, rel_end):
        if (
            not ascii(rel, rel_end)
            or fields[_LICENSE] == 0
            and not _note_license(rel, rel_end, href, href_end, href_escaped, url, url_end, url_escaped, fields)
        ):
            return UNSURE
    if image:
        _note_image(url, url_end, url_escaped, alt, alt_end, alt_escaped, links, fields)
    return p


@njit
def _note_license(rel, rel_end, href, href_end, href_escaped, url, url_end, url_escaped, fields):
    """Takes note of the license link of an anchor; False if the plain reader should look at it."""
    if not has_token(rel, rel_end, _LICENSE_WORD):
        return True
    if href and href_end > href:
        fields[_LICENSE], fields[_LICENSE + 1], fields[_LICENSE + 2] = href, href_end, href_escaped
    elif url and url_end > url:
        fields[_LICENSE], fields[_LICENSE + 1], fields[_LICENSE + 2] = url, url_end, url_escaped
    else:
        return False
    return True


@njit
def _note_image(url, url_end, url_escaped, alt, alt_end, alt_escaped, links, fields):
    """Counts an image link; one with a URL and an alt goes into `links`."""
    if url == 0:
        fields[_NO_URL] += 1
    elif alt == 0 or alt_end == alt:
        fields[_NO_ALT] += 1
    else:
        at = fields[_LINKS]
        if at < links.shape[0]:
            links[at, 0], links[at, 1], links[at, 2] = url, url_end, url_escaped
            links[at, 3], links[at, 4], links[at, 5] = alt, alt_end, alt_escaped
        fields[_LINKS] = at + 1


@njit
def _read_links(p, e, links, fields):
    """Reads the array of links, from behind its bracket; the position behind it, or UNSURE."""
    first = True
    while True:
        more, p = element(p, e, first)
        if more <= 0:
            return p if more == 0 else UNSURE
        first = False
        if load_byte(p) != 123:
            return UNSURE
        end = _passed_over(p, e, fields[_MAY_LICENSE])
        p = end if end >= 0 else _link(p, e, links, fields)
        if p < 0 or fields[_LINKS] > links.shape[0]:
            return UNSURE


@njit
def _read_head(p, e, metas, fields, signals):
    """Reads Head.Metas (robots, TDM reservation) or Head.Link (license); the position behind the array, or UNSURE."""
    first_of_array = True
    while True:
        more, p = element(p, e, first_of_array)
        if more <= 0:
            return p if more == 0 else UNSURE
        first_of_array = False
        if load_byte(p) != 123:
            return UNSURE
        p += 1
        name = name_end = value = value_end = escaped = 0
        first = True
        while True:
            more, key, key_end, p = member(p, e, first)
            if more <= 0:
                break
            first = False
            if load_byte(p) != 34:
                p = skip(p, e)
                if (
                    p < 0
                    or same(key, key_end, _NAME if metas else _REL)
                    or same(key, key_end, _CONTENT if metas else _URL)
                ):
                    return UNSURE
                continue
            start = p + 1
            end, has_escape = string_end(start, e)
            if end < 0:
                return UNSURE
            p = end + 1
            if same(key, key_end, _NAME if metas else _REL):
                name, name_end = start, end
                if has_escape or not ascii(start, end):  # there are blanks that only Unicode knows
                    return UNSURE
            elif same(key, key_end, _CONTENT if metas else _URL):
                value, value_end, escaped = start, end, has_escape
        if more < 0:
            return UNSURE
        if not name or not value:
            continue
        if metas:
            name, name_end = trim(name, name_end)
            if same_folded(name, name_end, _ROBOTS) or same_folded(name, name_end, _OPENWIT):
                kind = wat.ROBOTS_META
            elif same_folded(name, name_end, _TDM):
                kind = wat.TDM_META
            else:
                continue
            if not _note_signal(kind, value, value_end, escaped, fields, signals):
                return UNSURE
        elif value_end > value and fields[_OF_HEAD] == 0 and has_token(name, name_end, _LICENSE_WORD):
            fields[_LICENSE], fields[_LICENSE + 1], fields[_LICENSE + 2] = value, value_end, escaped
            fields[_OF_HEAD] = 1


@njit
def _note_signal(kind, start, end, escaped, fields, signals):
    """Takes note of what a page says of its use; False if there is too much of it."""
    at = fields[_SIGNALS]
    if at >= signals.shape[0]:
        return False
    signals[at, 0], signals[at, 1], signals[at, 2], signals[at, 3] = kind, start, end, escaped
    fields[_SIGNALS] = at + 1
    return True


@njit
def _read_headers(p, e, fields, signals):
    """Reads the HTTP headers, from behind the brace; the position behind the object, or UNSURE."""
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
        if kind >= 0:
            if load_byte(p) != 34 or seen & (1 << kind):
                return UNSURE
            seen |= 1 << kind
            end, escaped = string_end(p + 1, e)
            if end < 0 or not _note_signal(kind, p + 1, end, escaped, fields, signals):
                return UNSURE
            p = end + 1
        else:
            p = skip(p, e)
            if p < 0:
                return UNSURE


# Levels of the walk: the objects that lead to what is wanted.
_AT_ROOT, _AT_ENVELOPE, _AT_WARC, _AT_PAYLOAD, _AT_RESPONSE, _AT_HTML, _AT_HEAD = range(7)


@njit
def _deeper(level, key, key_end):
    """The level that an object under this key has; UNSURE if nothing in it is wanted."""
    if level == _AT_ROOT and same(key, key_end, _ENVELOPE):
        return _AT_ENVELOPE
    if level == _AT_ENVELOPE and same(key, key_end, _PAYLOAD):
        return _AT_PAYLOAD
    if level == _AT_ENVELOPE and same(key, key_end, _WARC):
        return _AT_WARC
    if level == _AT_PAYLOAD and same(key, key_end, _RESPONSE):
        return _AT_RESPONSE
    if level == _AT_RESPONSE and same(key, key_end, _HTML):
        return _AT_HTML
    if level == _AT_HTML and same(key, key_end, _HEAD):
        return _AT_HEAD
    return UNSURE


@njit
def _wanted(level, key, key_end):
    """What a value under this key is: 1 links, 2 metas, 3 head links, 4 headers, 5 target, 6 base; 0 not wanted."""
    if level == _AT_HTML and same(key, key_end, _LINKS_KEY):
        return 1
    if level == _AT_HEAD and same(key, key_end, _METAS):
        return 2
    if level == _AT_HEAD and same(key, key_end, _LINK):
        return 3
    if level == _AT_RESPONSE and same(key, key_end, _HEADERS):
        return 4
    if level == _AT_WARC and same(key, key_end, _URI):
        return 5
    if level == _AT_HEAD and same(key, key_end, _BASE_KEY):
        return 6
    return 0


@njit
def _read_value(what, p, e, links, fields, signals):
    """Reads a wanted value; the position behind it, or UNSURE."""
    byte = load_byte(p)
    if what >= 5:
        if byte != 34:
            return UNSURE
        end, escaped = string_end(p + 1, e)
        slot = _TARGET if what == 5 else _BASE
        fields[slot], fields[slot + 1], fields[slot + 2] = p + 1, end, escaped
        return end + 1 if end >= 0 else UNSURE
    if byte != (123 if what == 4 else 91):
        return UNSURE
    if what == 1:
        return _read_links(p + 1, e, links, fields)
    if what == 4:
        return _read_headers(p + 1, e, fields, signals)
    return _read_head(p + 1, e, what == 2, fields, signals)


@njit
def _walk(p, e, links, fields, signals):
    """Reads a record's JSON: PAGE, NO_LINKS or UNSURE."""
    fields[:] = 0
    if not contains(p, e, _HTML):
        return UNSURE if contains(p, e, _UNICODE) else NO_LINKS
    if _hides_letters(p, e):
        return UNSURE
    fields[_MAY_LICENSE] = _has_license(p, e)
    p = blanks(p, e)
    if p >= e or load_byte(p) != 123:
        return UNSURE
    p += 1
    level = _AT_ROOT
    html_links = False
    first = True
    while True:
        more, key, key_end, p = member(p, e, first)
        if more < 0:
            return UNSURE
        if more == 0:
            if level == _AT_ROOT:
                break
            level = _AT_ENVELOPE if level == _AT_WARC or level == _AT_PAYLOAD else max(level - 1, _AT_ROOT)
            first = False
            continue
        first = False
        inner, what = _deeper(level, key, key_end), _wanted(level, key, key_end)
        if inner >= 0 or what:
            bit = 1 << (inner if inner >= 0 else 8 + what)
            if fields[_SEEN] & bit:
                return UNSURE
            fields[_SEEN] |= bit
        if inner >= 0:
            if load_byte(p) != 123:
                return UNSURE
            level, first = inner, True
            p += 1
            continue
        p = _read_value(what, p, e, links, fields, signals) if what else skip(p, e)
        if p < 0:
            return UNSURE
        html_links |= what == 1
    if blanks(p, e) != e:
        return UNSURE
    return PAGE if html_links and fields[_TARGET + 1] > fields[_TARGET] else NO_LINKS


# ---- URLs


@njit
def _scheme_length(p, size):
    """Bytes of "http://" or "https://" at p, else 0."""
    if size < 8:
        return 0
    word = load_word(p)
    if word == _HTTPS:
        return 8
    return 7 if word & _SEVEN == _HTTP else 0


@njit
def _base_parts(p, size):
    """(end of "http:", end of the origin, end of the folder, flags) of a base.

    Flag 1: `//host` and `/path` may be joined by putting pieces together, flag 2: plain relative ones too.
    """
    scheme = _scheme_length(p, size)
    if scheme == 0:
        return 0, 0, 0, 0
    flags = 3
    at = scheme
    while at < size:
        byte = load_byte(p + at)
        if byte == 47 or byte == 63 or byte == 35:
            break
        if byte <= 32 or byte >= 127 or byte == 91 or byte == 93 or byte == 92:
            return 0, 0, 0, 0
        at += 1
    if at == scheme:
        return 0, 0, 0, 0
    origin = folder = at
    in_path = True
    before = 0
    while at < size:
        byte = load_byte(p + at)
        if byte <= 32:
            return 0, 0, 0, 0
        if byte == 63 or byte == 35:
            in_path = False
        if in_path:
            if byte == 47:
                folder = at + 1
                if before == 47:
                    flags &= 1
            elif byte == 46 and before == 47:
                flags &= 1
        before = byte
        at += 1
    return scheme - 2, origin, folder, flags


@njit
def _classify(p, size):
    """How a link becomes absolute: _ABSOLUTE, _SCHEME (//host), _ORIGIN (/path), _FOLDER (plain), _LEAVE (wat.fit).

    Only what urljoin answers by putting two pieces together is not left.
    """
    if _scheme_length(p, size):
        return _ABSOLUTE
    byte = load_byte(p)
    if byte <= 32 or byte == 63 or byte == 35 or byte == 46 or byte == 59 or load_byte(p + size - 1) <= 32:
        return _LEAVE
    kind, at = _FOLDER, 0
    if byte == 47:
        kind, at = _ORIGIN, 1
        if size > 1 and load_byte(p + 1) == 46:
            return _LEAVE
        if size > 1 and load_byte(p + 1) == 47:
            kind, at = _SCHEME, 2
            while at < size:
                byte = load_byte(p + at)
                if byte == 47 or byte == 63 or byte == 35:
                    break
                if byte <= 32 or byte >= 127 or byte == 91 or byte == 93 or byte == 92:
                    return _LEAVE
                at += 1
            if at == 2:
                return _LEAVE
    in_path = True
    slash = kind != _FOLDER
    before = 0
    while at < size:
        byte = load_byte(p + at)
        if byte <= 32 or byte == 91 or byte == 93:
            return _LEAVE
        if byte == 63 or byte == 35:
            in_path = False
            if before == 63 or before == 35:
                return _LEAVE
        if in_path:
            if byte == 59 or (byte == 58 and not slash) or (byte == 46 and before == 47):
                return _LEAVE
            if byte == 47:
                if before == 47 and kind != _SCHEME:
                    return _LEAVE
                slash = True
        before = byte
        at += 1
    return _LEAVE if before == 63 or before == 35 else kind


@njit
def _is_data(start, end):
    """True for a data: URL."""
    return end - start >= 5 and same_folded(start, start + 5, _DATA_SCHEME)


# ---- rows


class _Out(NamedTuple):
    """Where rows are written: bytes and their ends as Arrow has them, and the numbers beside them."""

    url_ends: np.ndarray  # int32, as all ends: one more than there are strings
    urls: np.ndarray
    text_ends: np.ndarray
    texts: np.ndarray
    row_page: np.ndarray  # int32
    row_odd: np.ndarray  # uint8: the URL is as written, `wat.fit` decides
    page_ends: np.ndarray  # _STRINGS strings a page
    pages: np.ndarray
    page_offset: np.ndarray  # int64
    sign_ends: np.ndarray
    signs: np.ndarray
    sign_page: np.ndarray  # int32
    sign_kind: np.ndarray  # uint8
    scratch: np.ndarray  # one URL, decoded
    counts: np.ndarray  # int64


@njit
def _write_page(offset, fields, signals, out):
    """Writes the strings and signals of a page: PAGE, NO_ROOM, or UNSURE."""
    counts = out.counts
    page, size = counts[_PAGES], counts[_PAGE_BYTES]
    if page >= out.page_offset.shape[0]:
        return NO_ROOM
    for i in range(_STRINGS):
        start, end = fields[3 * i], fields[3 * i + 1]
        if size + end - start > out.pages.shape[0] - PADDING:
            return NO_ROOM
        if end > start:
            written = decode(start, end, fields[3 * i + 2], out.pages.ctypes.data + size)
            if written < 0:
                return UNSURE
            size += written
        out.page_ends[page * _STRINGS + i + 1] = size
    out.page_offset[page] = offset
    counts[_PAGES], counts[_PAGE_BYTES] = page + 1, size
    for i in range(fields[_SIGNALS]):
        start, end, sign, size = signals[i, 1], signals[i, 2], counts[_SIGNS], counts[_SIGN_BYTES]
        if size + end - start > out.signs.shape[0] - PADDING or sign >= out.sign_page.shape[0]:
            return NO_ROOM
        written = decode(start, end, signals[i, 3], out.signs.ctypes.data + size)
        if written < 0:
            return UNSURE
        out.sign_page[sign], out.sign_kind[sign], out.sign_ends[sign + 1] = page, signals[i, 0], size + written
        counts[_SIGNS], counts[_SIGN_BYTES] = sign + 1, size + written
    return PAGE


@njit
def _write_rows(fields, links, out):
    """Writes the links of the page that was written last: PAGE, NO_ROOM, or UNSURE."""
    counts = out.counts
    page = counts[_PAGES] - 1
    first = page * _STRINGS
    base, size = out.pages.ctypes.data + out.page_ends[first], out.page_ends[first + 1] - out.page_ends[first]
    if out.page_ends[first + 2] > out.page_ends[first + 1]:  # a <base>
        base, size = base + size, out.page_ends[first + 2] - out.page_ends[first + 1]
    scheme, origin, folder, flags = _base_parts(base, size)
    for i in range(fields[_LINKS]):
        start, end = links[i, 0], links[i, 1]
        if links[i, 2]:
            if end - start > out.scratch.shape[0] - PADDING:
                return UNSURE
            length = decode(start, end, 1, out.scratch.ctypes.data)
            start = out.scratch.ctypes.data
            if length < 0:
                return UNSURE
            end = start + length
        elif not valid(start, end):
            return UNSURE
        bare, bare_end = trim(start, end)
        kind = _LEAVE
        if bare == bare_end:
            counts[_EMPTY] += 1
            kind = UNSURE
        elif _is_data(bare, bare_end):
            counts[_DATA] += 1
            kind = UNSURE
        elif end - start <= _MAX_URL:
            kind = _classify(start, end - start)
        if kind == UNSURE:
            if not valid(links[i, 3], links[i, 4]):
                return UNSURE
            continue
        before, slash = 0, False
        if kind == _SCHEME:
            before = scheme if flags & 1 else UNSURE
        elif kind == _ORIGIN:
            before = origin if flags & 1 else UNSURE
        elif kind == _FOLDER:
            before = folder if flags & 2 else UNSURE
            slash = folder == origin
        if before < 0:
            kind, before, slash = _LEAVE, 0, False
        result = _write_row(page, kind == _LEAVE, base, before, slash, start, end, links[i], out)
        if result != PAGE:
            return result
    return PAGE


@njit
def _write_row(page, odd, base, before, slash, start, end, link, out):
    """Writes one row: the URL is the first `before` bytes of the base, perhaps a slash, and the span."""
    counts = out.counts
    row, url_at, text_at = counts[_ROWS], counts[_URL_BYTES], counts[_TEXT_BYTES]
    if row >= out.row_page.shape[0]:
        return NO_ROOM
    if url_at + before + 1 + end - start > out.urls.shape[0] - PADDING:
        return NO_ROOM
    if text_at + link[4] - link[3] > out.texts.shape[0] - PADDING:
        return NO_ROOM
    to = out.urls.ctypes.data
    copy(to + url_at, base, before)
    url_at += before
    if slash:
        store_byte(to + url_at, 47)
        url_at += 1
    copy(to + url_at, start, end - start)
    url_at += end - start
    written = decode(link[3], link[4], link[5], out.texts.ctypes.data + text_at)
    if written < 0 or written > _MAX_TEXT:
        return UNSURE
    text_at += written
    out.row_page[row], out.row_odd[row] = page, odd
    out.url_ends[row + 1], out.text_ends[row + 1] = url_at, text_at
    counts[_ROWS], counts[_URL_BYTES], counts[_TEXT_BYTES] = row + 1, url_at, text_at
    return PAGE


# ---- the file


@njit
def _frame(p, e):
    """Looks at a record that fills its member: (1 metadata, 0 another kind, UNSURE; start and end of its block)."""
    if e - p < 16 or (load_word(p) != _VERSION_0 and load_word(p) != _VERSION_1):
        return UNSURE, 0, 0
    limit = min(e, p + MAX_HEADER)
    length = kind = UNSURE
    p += 8
    while True:  # p stands behind the version or a line, at its line end
        if p + 4 > limit or load_byte(p) != 13 or load_byte(p + 1) != 10:
            return UNSURE, 0, 0
        p += 2
        if load_byte(p) == 13 and load_byte(p + 1) == 10:
            p += 2
            break
        line = p
        colon = 0
        while p < limit and load_byte(p) != 13 and load_byte(p) != 10:
            if load_byte(p) == 58 and colon == 0:
                colon = p
            p += 1
        if load_byte(line) <= 32 or (colon and load_byte(colon - 1) <= 32):
            return UNSURE, 0, 0
        if colon and same_folded(line, colon, _LENGTH):
            length = _number(colon + 1, p) if length < 0 else UNSURE
            if length < 0:
                return UNSURE, 0, 0
        elif colon and same_folded(line, colon, _TYPE):
            value, value_end = trim(colon + 1, p)
            if kind >= 0 or not ascii(value, value_end):
                return UNSURE, 0, 0
            kind = 1 if same_folded(value, value_end, _METADATA) else 0
    if length < 0 or kind < 0 or p + length + 4 != e or load_word(e - 4) & np.uint64(0xFFFFFFFF) != _TWO_LINES:
        return UNSURE, 0, 0
    return kind, p, p + length


_TWO_LINES = np.uint64(0x0A0D0A0D)


@njit
def _number(start, end):
    """A decimal number between blanks, or UNSURE."""
    start, end = trim(start, end)
    if start == end or end - start > 18:
        return UNSURE
    value = 0
    for at in range(start, end):
        digit = load_byte(at) - 48
        if digit < 0 or digit > 9:
            return UNSURE
        value = value * 10 + digit
    return value


@njit
def _record(offset, p, e, links, fields, signals, out):
    """Reads and writes one metadata record: PAGE or NO_LINKS when done, NO_ROOM or UNSURE when not."""
    result = _walk(p, e, links, fields, signals)
    if result == NO_LINKS:
        out.counts[_WITHOUT] += 1
    elif result == PAGE:
        result = _write_page(offset, fields, signals, out)
        if result == PAGE:
            result = _write_rows(fields, links, out)
        out.counts[_IMAGES] += fields[_LINKS] + fields[_NO_URL] + fields[_NO_ALT]
        out.counts[_LOST_URL] += fields[_NO_URL]
        out.counts[_LOST_ALT] += fields[_NO_ALT]
    out.counts[_RECORDS] += 1
    return result


@njit
def _run(source, size, pos, gunzip, decompressor, buffer, sizes, links, fields, signals, saved, out):
    """Reads members from `pos` on; (position, why it stopped): END, FULL outputs, or an ODD member at the position."""
    start, room = buffer.ctypes.data, buffer.shape[0] - PADDING
    told = sizes.ctypes.data
    while pos < size:
        status = call_gunzip(gunzip, decompressor, source + pos, size - pos, start, room, told, told + 8)
        if status != 0:
            return pos, ODD
        end = start + sizes[1]
        for i in range(PADDING):
            store_byte(end + i, 0)
        kind, block, block_end = _frame(start, end)
        if kind < 0:
            return pos, ODD
        if kind == 1:
            saved[:] = out.counts
            result = _record(pos, block, block_end, links, fields, signals, out)
            if result < 0 or result == NO_ROOM:
                out.counts[:] = saved
                return pos, ODD if result < 0 or saved[_PAGES] == 0 else FULL
        pos += sizes[0]
    return pos, END


# ---- Arrow


class _Buffers:
    """The memory of one reading."""

    def __init__(self, *, record: int = MAX_RECORD, rows: int = wat.BATCH_ROWS, arena: int = 8 << 20) -> None:
        pages = rows
        self.buffer = np.empty(record + PADDING, np.uint8)
        self.sizes = np.zeros(2, np.int64)
        self.links = np.empty((rows, 6), np.int64)
        self.fields = np.zeros(_FIELDS, np.int64)
        self.signals = np.empty((MAX_SIGNALS, 4), np.int64)
        self.saved = np.zeros(_COUNTS, np.int64)
        self.out = _Out(
            url_ends=np.zeros(rows + 1, np.int32),
            urls=np.empty(arena + PADDING, np.uint8),
            text_ends=np.zeros(rows + 1, np.int32),
            texts=np.empty(arena + PADDING, np.uint8),
            row_page=np.empty(rows, np.int32),
            row_odd=np.empty(rows, np.uint8),
            page_ends=np.zeros(pages * _STRINGS + 1, np.int32),
            pages=np.empty(arena + PADDING, np.uint8),
            page_offset=np.empty(pages, np.int64),
            sign_ends=np.zeros(pages + 1, np.int32),
            signs=np.empty((1 << 20) + PADDING, np.uint8),
            sign_page=np.empty(pages, np.int32),
            sign_kind=np.empty(pages, np.uint8),
            scratch=np.empty(arena + PADDING, np.uint8),
            counts=np.zeros(_COUNTS, np.int64),
        )


class Scanner:
    """Reads one mapped file; `wat.py` reads what this one leaves."""

    def __init__(self, data: mmap.mmap | bytes, ledger: Ledger, buffers: _Buffers | None = None) -> None:
        library = libdeflate.functions()
        if library is None:
            raise RuntimeError("libdeflate's functions are not to be had: see usable()")
        self._bytes = np.frombuffer(data, np.uint8)
        self._gunzip = library.gunzip
        self._decompressor = libdeflate.Decompressor(library)
        self._ledger = ledger
        self._memory = buffers or _Buffers()

    def run(self, pos: int) -> tuple[int, int, pa.RecordBatch]:
        """Reads from `pos`: (where it stopped, END, FULL or ODD, the rows)."""
        m = self._memory
        pos, why = _run(
            *(self._bytes.ctypes.data, len(self._bytes), pos, self._gunzip, self._decompressor.address),
            *(m.buffer, m.sizes, m.links, m.fields, m.signals, m.saved, m.out),
        )
        rows = self._rows()
        m.out.counts[:] = 0
        return pos, why, rows

    def _rows(self) -> pa.RecordBatch:
        """What was written, as a batch; what was dropped goes into the ledger."""
        out, counts, ledger = self._memory.out, self._memory.out.counts, self._ledger
        rows, pages = int(counts[_ROWS]), int(counts[_PAGES])
        ledger.records_in += int(counts[_RECORDS])
        ledger.rows_in += int(counts[_IMAGES])
        ledger.notes.update({"no_links": int(counts[_WITHOUT])} if counts[_WITHOUT] else {})
        lost = {"bad_field": _LOST_URL, "no_alt": _LOST_ALT, "empty_url": _EMPTY, "data_url": _DATA}
        for reason, place in lost.items():
            ledger.drop(reason, int(counts[place]))
        strings = _strings(out.page_ends, out.pages, pages * _STRINGS)
        page_url, base, license_url = (strings.take(pa.array(np.arange(i, len(strings), _STRINGS))) for i in range(3))
        of_row = pa.array(out.row_page[:rows].copy())
        url = _strings(out.url_ends, out.urls, rows)
        text = _strings(out.text_ends, out.texts, rows)
        url, kept = self._decide_odd(url, text, page_url, base)
        columns = [
            url,
            text,
            page_url.take(of_row),
            pa.array(out.page_offset[:pages].copy()).take(of_row),
            pa.array(np.full(rows, wat.ALT, np.int8)),
            pa.array(np.full(rows, wat.SRC, np.int8)),
            self._opt_outs(pages).take(of_row),
            _licenses(license_url, page_url, base).take(of_row),
        ]
        batch = pa.RecordBatch.from_arrays(columns, schema=CANDIDATES)
        return batch if kept is None else batch.filter(kept)

    def _decide_odd(
        self, url: pa.Array, text: pa.Array, page_url: pa.Array, base: pa.Array
    ) -> tuple[pa.Array, pa.Array | None]:
        """The URLs with the odd ones decided by `wat.fit`; which rows stay (None: all)."""
        out = self._memory.out
        odd = np.flatnonzero(out.row_odd[: len(url)])
        if not len(odd):
            return url, None
        fitted, keep = [], np.ones(len(url), bool)
        bases: dict[int, str] = {}
        for row, link in zip(odd.tolist(), url.take(pa.array(odd)).to_pylist(), strict=True):
            page = int(out.row_page[row])
            if page not in bases:
                bases[page] = wat.base_of(page_url[page].as_py(), base[page].as_py())
            reason, absolute = wat.fit(bases[page], link, "a text")
            fitted.append(absolute)
            if reason:
                keep[row] = False
                self._ledger.drop(reason)
        url = pc.replace_with_mask(url, pa.array(out.row_odd[: len(url)] > 0), pa.array(fitted, pa.string()))
        return url, None if keep.all() else pa.array(keep)

    def _opt_outs(self, pages: int) -> pa.Array:
        """The opt-outs of each page."""
        out, found = self._memory.out, int(self._memory.out.counts[_SIGNS])
        if not found:
            return pa.nulls(pages, pa.string())
        signals: dict[int, set[str]] = {}
        values = _strings(out.sign_ends, out.signs, found).to_pylist()
        for page, kind, value in zip(
            out.sign_page[:found].tolist(), out.sign_kind[:found].tolist(), values, strict=True
        ):
            if said := wat.said(kind, value):
                signals.setdefault(page, set()).update(said)
        column: list[str | None] = [None] * pages
        for page, words in signals.items():
            column[page] = ",".join(sorted(words))
        return pa.array(column, pa.string())


def _strings(ends: np.ndarray, data: np.ndarray, count: int) -> pa.Array:
    """The first `count` strings, copied out of the buffers."""
    size = int(ends[count])
    return pa.StringArray.from_buffers(
        count, pa.py_buffer(ends[: count + 1].tobytes()), pa.py_buffer(data[:size].tobytes())
    )


def _licenses(links: pa.Array, page_url: pa.Array, base: pa.Array) -> pa.Array:
    """The license URL of each page."""
    column: list[str | None] = [None] * len(links)
    for page in np.flatnonzero(pc.binary_length(links).to_numpy()).tolist():
        column[page] = wat.license_of(wat.base_of(page_url[page].as_py(), base[page].as_py()), links[page].as_py())
    return pa.array(column, pa.string())


def usable() -> bool:
    """True where libdeflate's functions are to be had."""
    return libdeflate.functions() is not None


def warm() -> None:
    """Compiles the kernel by reading one small member."""
    if not usable():
        return
    content = (
        b'{"Envelope":{"WARC-Header-Metadata":{"WARC-Target-URI":"http://a.example/"},"Payload-Metadata":'
        b'{"HTTP-Response-Metadata":{"HTML-Metadata":{"Links":[{"path":"IMG@/src","url":"b.png","alt":"b"}]}}}}}'
    )
    head = b"WARC/1.0\r\nWARC-Type: metadata\r\nContent-Length: %d\r\n\r\n" % len(content)
    Scanner(gzip.compress(head + content + b"\r\n\r\n"), Ledger()).run(0)
