"""The facts of a page by a compiled tokenizer: a fifth of the work of building its tree, or less.

`tokenise` walks the bytes once, as the HTML standard's tokenizer does (comments, script data with its escaped states,
raw text, attributes), and notes where the wanted tags and their attributes stand; it copies nothing and only reads
inside the page. `scan` turns the notes into the same `Facts` as `html.scan_with_lexbor`.

What needs a tree and not only tokens (an image's figure and picture) is followed where the markup is well nested. A
page where the tokens do not tell what a tree would hold (misnested figures, `<image>`, frames, NUL bytes, markup in
raw text inside SVG, images in a `<select>`) is handed to lexbor: `tokenise` says UNSURE rather than guess.
"""

from __future__ import annotations

import re
from html.entities import html5

import numpy as np

from pipeline.engine.jit import njit
from pipeline.sources.html import (
    IMAGE_ATTRIBUTES,
    MAX_IMAGES,
    Facts,
    fragment_text,
    largest_candidate,
    scan_with_lexbor,
)
from pipeline.sources.simd_kernel import equal_mask, lowest

UNSURE = -1
_PRIME, _LONG = np.uint64(0x100000001B3), np.uint64(1 << 63)
MAX_EVENTS = 400_000
MAX_OPEN = 64  # elements open inside a figure or picture

# What a row of events says. (kind, number, start, end); attributes follow their tag.
IMAGE, ATTRIBUTE, SOURCE, CAPTION, META, LINK, BASE = range(7)

# The attributes that are noted; the number of an ATTRIBUTE event is a place in this tuple.
ATTRIBUTES = (*IMAGE_ATTRIBUTES, "name", "property", "content", "rel", "href")


def _word(name: str) -> int:
    """A tag name as one number: its bytes, of longer names the first eight mixed with the others (see `_tag`)."""
    word = int.from_bytes(name.encode()[:8], "little")
    for byte in name.encode()[8:]:
        word = ((word ^ byte) * int(_PRIME)) % 2**64 | int(_LONG)
    return word


def _words(*names: str) -> np.ndarray:
    return np.array([_word(name) for name in names], np.uint64)


_LONGEST = max(map(len, ATTRIBUTES))
_NAMES = np.zeros((len(ATTRIBUTES), _LONGEST), np.uint8)
for _row, _name in enumerate(ATTRIBUTES):
    _NAMES[_row, : len(_name)] = list(_name.encode())
_LENGTHS = np.array([len(name) for name in ATTRIBUTES], np.int64)
_ALT, _TITLE, _REL, _HREF, _CONTENT, _NAME, _PROPERTY = (
    ATTRIBUTES.index(name) for name in ("alt", "title", "rel", "href", "content", "name", "property")
)
_IMAGE_SLOTS = len(IMAGE_ATTRIBUTES)
_SRCSET, _DATA_SRCSET = ATTRIBUTES.index("srcset"), ATTRIBUTES.index("data-srcset")

_IMG, _SOURCE, _META, _LINK, _A, _BASE = (np.uint64(_word(n)) for n in ("img", "source", "meta", "link", "a", "base"))
_PICTURE, _FIGURE, _FIGCAPTION = (np.uint64(_word(n)) for n in ("picture", "figure", "figcaption"))
_SCRIPT, _TEMPLATE, _SELECT = (np.uint64(_word(n)) for n in ("script", "template", "select"))
_SVG, _MATH, _TABLE = (np.uint64(_word(n)) for n in ("svg", "math", "table"))
_RAW = _words("style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")
_NEVER = _words("image", "frameset", "plaintext")  # a tree parser treats these in ways of their own
_TABLE_PARTS = _words(
    "table", "td", "th", "tr", "tbody", "thead", "tfoot", "caption", "col", "colgroup", "object", "applet", "marquee"
)
_IN_PICTURE = _words("source", "img", "a", "span", "noscript", "meta", "link", "script", "style", "picture")
# Elements that are not followed inside a figure: void ones, and those that close themselves.
_UNFOLLOWED = _words(
    *"area base br col embed hr img input link meta param source track wbr keygen basefont bgsound frame".split(),
    *"p li dd dt option optgroup rp rt".split(),
)
_LICENSE = np.frombuffer(b"license", np.uint8)
_SCRIPT_NAME = np.frombuffer(b"script", np.uint8)

_LT, _GT, _SLASH, _BANG, _DASH, _EQUALS, _AND = (np.uint8(ord(sign)) for sign in "<>/!-=&")


@njit
def _space(byte: int) -> bool:
    return byte == 32 or byte == 10 or byte == 9 or byte == 13 or byte == 12


@njit
def _lower(byte: int) -> int:
    return byte | 32 if 65 <= byte <= 90 else byte


@njit
def _letter(byte: int) -> bool:
    return 97 <= (byte | 32) <= 122


@njit
def _find(page: np.ndarray, at: int, byte: int) -> int:
    """The place of `byte` at or after `at`; the page's length where there is none. 64 bytes a step."""
    end = len(page)
    base = page.ctypes.data
    while at + 64 <= end:
        places = equal_mask(base + at, np.uint8(byte))
        if places != 0:
            return at + lowest(places)
        at += 64
    while at < end and page[at] != byte:
        at += 1
    return at


@njit
def _tag(page: np.ndarray, start: int, end: int) -> np.uint64:
    """A tag name in lower case as one number; the twin of `_word`."""
    word = np.uint64(0)
    for place in range(min(end - start, 8)):
        word |= np.uint64(_lower(page[start + place])) << np.uint64(8 * place)
    for place in range(start + 8, end):
        word = ((word ^ np.uint64(_lower(page[place]))) * _PRIME) | _LONG
    return word


@njit
def _equal(page: np.ndarray, start: int, end: int, name: np.ndarray) -> bool:
    """True if the bytes, in lower case, are `name`."""
    if end - start != len(name):
        return False
    for place in range(len(name)):
        if _lower(page[start + place]) != name[place]:
            return False
    return True


@njit
def _among(word: np.uint64, words: np.ndarray) -> bool:
    for other in words:
        if other == word:
            return True
    return False


@njit
def _comment_end(page: np.ndarray, at: int) -> int:
    """The place after a comment, `at` standing after its `<!--`."""
    end = len(page)
    if at < end and page[at] == _GT:
        return at + 1
    if at + 1 < end and page[at] == _DASH and page[at + 1] == _GT:
        return at + 2
    start = at
    while True:
        at = _find(page, at, _GT)
        if at >= end:
            return end
        size = at - start
        if size >= 2 and page[at - 1] == _DASH and page[at - 2] == _DASH:
            return at + 1
        if size >= 3 and page[at - 1] == _BANG and page[at - 2] == _DASH and page[at - 3] == _DASH:
            return at + 1
        at += 1


@njit
def _raw_end(page: np.ndarray, at: int, start: int, size: int) -> int:
    """The place of the end tag that closes raw text; the tag's name stands at `start`. The page's length: none."""
    end = len(page)
    while True:
        at = _find(page, at, _LT)
        if at + 2 + size >= end:
            return end
        if page[at + 1] == _SLASH:
            same = True
            for place in range(size):
                if _lower(page[at + 2 + place]) != _lower(page[start + place]):
                    same = False
                    break
            after = page[at + 2 + size]
            if same and (_space(after) or after == _SLASH or after == _GT):
                return at
        at += 1


@njit
def _script_end(page: np.ndarray, at: int) -> int:
    """As `_raw_end` for script data: inside `<!-- <script>` an end tag closes the inner script only."""
    end = len(page)
    start = at
    escaped = 0  # 1: inside <!--, 2: inside a <script> in it
    while at < end:
        if escaped == 0:
            at = _find(page, at, _LT)
            if at >= end:
                return end
        byte = page[at]
        if byte == _GT and escaped > 0 and at - start >= 2 and page[at - 1] == _DASH and page[at - 2] == _DASH:
            escaped = 0
        elif byte == _LT and at + 1 < end:
            after = page[at + 1]
            if escaped == 0 and after == _BANG and at + 3 < end and page[at + 2] == _DASH and page[at + 3] == _DASH:
                escaped = 1
                start = at + 2  # "<!-->" closes at once
                at += 4
                continue
            name = at + 2 if after == _SLASH else at + 1
            if name + 6 < end and (after == _SLASH or escaped == 1) and _equal(page, name, name + 6, _SCRIPT_NAME):
                last = page[name + 6]
                if _space(last) or last == _SLASH or last == _GT:
                    if after != _SLASH:
                        escaped = 2
                    elif escaped == 2:
                        escaped = 1
                    else:
                        return at
        at += 1
    return end


@njit
def _attribute(page: np.ndarray, at: int) -> tuple[int, int, int, int, int]:
    """The next attribute: (name start, name end, value start, value end, place after it).

    Name start -1: the tag ends, and the place is behind its ">"; place -1: the page ends inside the tag. Name end -1
    with it: the tag closes itself ("/>").
    """
    end = len(page)
    slash = False
    while at < end and (_space(page[at]) or page[at] == _SLASH):
        slash = page[at] == _SLASH
        at += 1
    if at >= end:
        return -1, 0, 0, 0, -1
    if page[at] == _GT:
        return -1, (-1 if slash else 0), 0, 0, at + 1
    start = at
    at += 1
    while at < end and not (_space(page[at]) or page[at] == _EQUALS or page[at] == _GT or page[at] == _SLASH):
        at += 1
    name_end = at
    while at < end and _space(page[at]):
        at += 1
    if at >= end:
        return -1, 0, 0, 0, -1
    if page[at] != _EQUALS:
        return start, name_end, 0, 0, at
    at += 1
    while at < end and _space(page[at]):
        at += 1
    if at >= end:
        return -1, 0, 0, 0, -1
    quote = page[at]
    if quote == 34 or quote == 39:
        value = at + 1
        at = _find(page, value, quote)
        return (start, name_end, value, at, at + 1) if at < end else (-1, 0, 0, 0, -1)
    value = at
    while at < end and not (_space(page[at]) or page[at] == _GT):
        at += 1
    return start, name_end, value, at, at


@njit
def _slot(page: np.ndarray, start: int, end: int) -> int:
    """The number of an attribute in ATTRIBUTES, -1 for others."""
    size = end - start
    for number in range(len(_LENGTHS)):
        if _LENGTHS[number] == size and _lower(page[start]) == _NAMES[number, 0]:
            same = True
            for place in range(1, size):
                if _lower(page[start + place]) != _NAMES[number, place]:
                    same = False
                    break
            if same:
                return number
    return -1


@njit
def _telling_meta(page: np.ndarray, start: int, end: int) -> bool:
    """False if a meta's name or property is surely none that `Facts.meta` reads: og:image..., og:title, robots, ..."""
    if end - start < 6 or page[start] == _AND or not 33 <= page[start] < 128:
        return end > start  # short ones and odd beginnings: Python looks
    first, second = _lower(page[start]), _lower(page[start + 1])
    if first == 111 and second == 103:  # og:
        third = _lower(page[start + 3])
        return page[start + 2] == _AND or (page[start + 2] == 58 and (third == 105 or third == 116 or third == _AND))
    return first == 111 or first == 114 or (first == 116 and (second == 100 or second == _AND))


@njit
def _may_say_license(page: np.ndarray, start: int, end: int) -> bool:
    for at in range(start, end):
        if page[at] == _AND:
            return True
        if at + 7 <= end and _equal(page, at, at + 7, _LICENSE):
            return True
    return False


@njit
def _wanted_slot(kind: int, slot: int) -> bool:
    """True if tags of that kind are asked for that attribute."""
    if kind == IMAGE:
        return slot < _IMAGE_SLOTS
    if kind == SOURCE:
        return slot == _SRCSET or slot == _DATA_SRCSET
    if kind == META:
        return slot == _NAME or slot == _PROPERTY or slot == _CONTENT
    if kind == LINK:
        return slot == _REL or slot == _HREF
    return slot == _HREF


@njit
def _read_tag(page: np.ndarray, at: int, kind: int, number: int, more: int, events: np.ndarray, count: int) -> tuple:
    """Notes a tag and its attributes from row `count` on: (place after the tag, rows in all). Useless: none."""
    first = count
    events[first, 0], events[first, 1], events[first, 2], events[first, 3] = kind, number, more, 0
    count += 1
    seen = np.uint64(0)
    useful = kind == SOURCE or (kind == IMAGE and number > 0)
    while True:
        start, name_end, value, value_end, at = _attribute(page, at)
        if start < 0:
            break
        slot = _slot(page, start, name_end)
        if slot < 0 or not _wanted_slot(kind, slot):
            continue
        bit = np.uint64(1) << np.uint64(slot)
        if seen & bit:  # the first of equal names counts
            continue
        seen |= bit
        if kind == BASE:
            useful = True
        elif value_end <= value:
            continue
        elif kind == IMAGE:
            useful = useful or slot == _ALT or slot == _TITLE
        elif kind == META:
            useful = useful or (slot != _CONTENT and _telling_meta(page, value, value_end))
        elif kind == LINK:
            useful = useful or (slot == _REL and _may_say_license(page, value, value_end))
        events[count, 0], events[count, 1], events[count, 2], events[count, 3] = ATTRIBUTE, slot, value, value_end
        count += 1
    if at < 0:  # the page ends inside the tag: it is no tag
        return -1, first
    return at, count if useful else first


@njit
def _skip_tag(page: np.ndarray, at: int) -> tuple[int, bool]:
    """The place after a tag whose attributes do not matter (-1: the page ends in it), and if it closes itself."""
    while True:
        start, closes, _, _, at = _attribute(page, at)
        if start < 0:
            return at, closes < 0


@njit
def tokenise(page: np.ndarray, events: np.ndarray) -> tuple[int, int]:
    """Writes the events of a page: (rows written or UNSURE, images without any text).

    Args:
        page: its bytes, valid UTF-8 without NUL.
        events: int32 rows (kind, number, start, end). IMAGE: the number of its figure, and as start that of its
            picture (0: none). SOURCE: the number of its picture. CAPTION: the number of its figure, the span of its
            markup.
    """
    end = len(page)
    room = len(events) - len(_LENGTHS) - 2
    count = bare = images = 0
    figures = pictures = 0  # numbers given so far
    picture = 0  # the open one
    caption_start, caption_figure = -1, 0
    open_names = np.zeros(MAX_OPEN, np.uint64)  # elements open since the outermost figure or picture
    open_figures = np.zeros(MAX_OPEN, np.int32)  # the figure that each of them opened or lies in
    captioned = np.zeros(MAX_OPEN, np.bool_)  # by place of the figure in the stack
    depth = 0
    templates = foreign = 0
    foreign_name = _SVG  # or math
    drawing = linked = marked = False  # what was seen in templates: svg or math, a link, parts of a table
    tables = 0
    select = False
    at = 0
    while True:
        at = _find(page, at, _LT)
        if at + 1 >= end:
            break
        if count >= room:
            return UNSURE, bare
        byte = page[at + 1]
        if byte == _BANG:
            if at + 3 < end and page[at + 2] == _DASH and page[at + 3] == _DASH:
                at = _comment_end(page, at + 4)
            else:
                if foreign > 0 and at + 2 < end and page[at + 2] == 91:  # CDATA is text there
                    return UNSURE, bare
                at = _find(page, at, _GT) + 1
            continue
        if byte == 63:  # <?
            at = _find(page, at, _GT) + 1
            continue
        closing = byte == _SLASH
        start = at + 2 if closing else at + 1
        if start >= end:
            break
        if not _letter(page[start]):
            at = _find(page, at, _GT) + 1 if closing else at + 1
            continue
        name_end = start
        while name_end < end and not (_space(page[name_end]) or page[name_end] == _SLASH or page[name_end] == _GT):
            name_end += 1
        word = _tag(page, start, name_end)
        tag_start = at

        if closing:
            at, _ = _skip_tag(page, name_end)
            if at < 0:
                break
            if word == _TEMPLATE:
                templates = max(0, templates - 1)
            elif templates > 0:
                continue
            elif word == foreign_name and foreign > 0:
                foreign -= 1
            elif word == _SELECT:
                select = False
            elif word == _TABLE:
                tables = max(0, tables - 1)
            elif depth > 0 and foreign == 0 and not _among(word, _UNFOLLOWED):
                if open_names[depth - 1] != word:
                    return UNSURE, bare
                depth -= 1
                if word == _FIGCAPTION and caption_start >= 0:
                    events[count, 0], events[count, 1] = CAPTION, caption_figure
                    events[count, 2], events[count, 3] = caption_start, tag_start
                    count += 1
                    caption_start = -1
                elif word == _PICTURE:
                    picture = 0
            continue

        if _among(word, _NEVER):
            return UNSURE, bare
        if templates > 0:
            at, _ = _skip_tag(page, name_end)
            if at < 0:
                break
            if word == _TEMPLATE:
                templates += 1
            elif word == _SVG or word == _MATH:
                drawing = True
            elif word == _A or _among(word, _TABLE_PARTS):
                linked, marked = linked or word == _A, marked or word != _A
                if linked and marked:  # a link may outlive its template there
                    return UNSURE, bare
            elif word == _SCRIPT or _among(word, _RAW):
                body = at
                at = _script_end(page, at) if word == _SCRIPT else _raw_end(page, at, start, name_end - start)
                if drawing and _find(page, body, _LT) < at:
                    return UNSURE, bare
            continue
        if depth > 0 and _among(word, _TABLE_PARTS):
            return UNSURE, bare
        if picture > 0 and foreign == 0 and (not _among(word, _IN_PICTURE) or word == _PICTURE):
            return UNSURE, bare

        kind = -1
        if word == _IMG:
            kind = IMAGE
        elif word == _META:
            kind = META
        elif word == _LINK or word == _A:
            kind = LINK
        elif word == _BASE:
            kind = BASE
        elif word == _SOURCE and picture > 0:
            kind = SOURCE
        if kind >= 0:
            if select and kind != META and kind != BASE:
                return UNSURE, bare
            figure = open_figures[depth - 1] if depth > 0 else 0
            number = figure if kind == IMAGE else picture if kind == SOURCE else 0
            rows = count
            at, count = _read_tag(page, name_end, kind, number, picture, events, count)
            if at < 0:
                break
            if kind != IMAGE and tables > 0 and count > rows:  # a parser may move it: which one is first?
                return UNSURE, bare
            if kind == IMAGE:
                if count == rows:
                    bare += 1
                else:
                    images += 1
                    if images > MAX_IMAGES:
                        count = rows
            if word != _A:
                continue
            self_closing = False
        else:
            at, self_closing = _skip_tag(page, name_end)
            if at < 0:
                break

        if word == _SVG or word == _MATH:
            if foreign > 0 and word != foreign_name:
                return UNSURE, bare
            if not self_closing:
                foreign += 1
                foreign_name = word
            continue
        if word == _SCRIPT or _among(word, _RAW):
            if select and word != _SCRIPT:
                return UNSURE, bare
            body = at
            at = _script_end(page, at) if word == _SCRIPT else _raw_end(page, at, start, name_end - start)
            if foreign > 0 and _find(page, body, _LT) < at:
                return UNSURE, bare
            if at < end:
                at, _ = _skip_tag(page, at + 2 + name_end - start)
                if at < 0:
                    break
            continue
        if word == _TEMPLATE:
            if foreign > 0 or select:
                return UNSURE, bare
            templates = 1
            continue
        if word == _SELECT:
            select = not select
            continue
        if word == _TABLE:
            tables += 1
        special = word == _FIGURE or word == _PICTURE or word == _FIGCAPTION
        if special and (foreign > 0 or select):
            return UNSURE, bare
        if depth == 0 and (not special or word == _FIGCAPTION):
            continue
        if foreign > 0 or _among(word, _UNFOLLOWED):
            continue
        if depth == MAX_OPEN:
            return UNSURE, bare
        figure = open_figures[depth - 1] if depth > 0 else 0
        if word == _FIGURE:
            if caption_start >= 0:
                return UNSURE, bare
            figures += 1
            figure = figures
        elif word == _PICTURE:
            pictures += 1
            picture = pictures
        elif word == _FIGCAPTION and figure > 0:
            if caption_start >= 0:
                return UNSURE, bare
            place = depth - 1
            while place > 0 and open_figures[place - 1] == figure:
                place -= 1
            if not captioned[place]:
                captioned[place] = True
                caption_start, caption_figure = at, figure
        open_names[depth], open_figures[depth] = word, figure
        if word == _FIGURE:
            captioned[depth] = False
        depth += 1
    return (UNSURE if depth > 0 else count), bare


# ---- events -> facts


def scan(html: bytes) -> Facts | None:
    """The facts of a page (valid UTF-8); what `scan_with_lexbor` gives for it, and by it where the tokens do not do."""
    if b"\0" in html:
        return scan_with_lexbor(html)
    events = np.empty((min(len(html) // 2 + 64, MAX_EVENTS), 4), np.int32)
    count, bare = tokenise(np.frombuffer(html, np.uint8), events)
    if count == UNSURE:
        return scan_with_lexbor(html)
    facts = _read_events(html, events[:count].tolist())
    facts.bare = bare
    return facts


def _read_events(html: bytes, events: list[list[int]]) -> Facts:
    facts = Facts()
    pictures: dict[int, str] = {}
    captions: dict[int, str] = {}
    images: list[tuple[dict[str, str], str, int]] = []
    rows = iter([*events, [BASE + 1, 0, 0, 0]])  # one more, so that the last tag is finished too
    row = next(rows)
    while row[0] <= BASE:
        kind, number, start, end = row
        attributes: dict[str, str] = {}
        for row in rows:  # noqa: B007, B020 - the row after the attributes is the next tag
            if row[0] != ATTRIBUTE:
                break
            value = html[row[2] : row[3]].decode("utf-8", "replace")
            attributes[ATTRIBUTES[row[1]]] = _decoded(value) if "&" in value or "\r" in value else value
        if kind == IMAGE:
            images.append((attributes, pictures.get(start, ""), number))
        elif kind == SOURCE:
            srcset = attributes.get("srcset") or attributes.get("data-srcset")
            if srcset and (best := largest_candidate(srcset)):
                pictures.setdefault(number, best)
        elif kind == CAPTION:
            captions[number] = fragment_text(html[start:end])
        elif kind == META:
            if "content" in attributes:
                facts.meta(attributes.get("name", ""), attributes.get("property", ""), attributes["content"])
        elif kind == LINK:
            if "href" in attributes and "rel" in attributes:
                facts.link(attributes["rel"], attributes["href"])
        elif facts.base is None:
            facts.base = attributes["href"]
    facts.images = [(attributes, picture, captions.get(figure, "")) for attributes, picture, figure in images]
    return facts


_REFERENCE = re.compile(r"&(?:#[xX]([0-9a-fA-F]+);?|#([0-9]+);?|([a-zA-Z][a-zA-Z0-9]*)(;?)(=?))")


def _decoded(value: str) -> str:
    """An attribute's value with its line ends and character references resolved."""
    return _REFERENCE.sub(_character, value.replace("\r\n", "\n").replace("\r", "\n"))


def _character(match: re.Match[str]) -> str:
    """What a character reference in an attribute stands for; a name without semicolon before = or a letter is none."""
    hexadecimal, decimal, name, semicolon, equals = match.groups()
    if name is None:
        digits = (hexadecimal or decimal).lstrip("0")
        return _numbered(int(digits or "0", 16 if hexadecimal else 10) if len(digits) <= 8 else 0)
    if semicolon and f"{name};" in html5:
        return html5[f"{name};"] + equals
    if not equals and name in html5:
        return html5[name] + semicolon
    return match[0]


def _numbered(number: int) -> str:
    """The character of a numeric reference, as browsers repair it."""
    if 0x80 <= number < 0xA0:
        return bytes([number]).decode("cp1252", "replace").replace("\ufffd", chr(number))
    if number == 0 or number > 0x10FFFF or 0xD800 <= number < 0xE000:
        return "\ufffd"
    return chr(number)


def warm() -> None:
    """Compiles `tokenise` (and with it all the others)."""
    scan(b"<img src=a alt=b>")
