"""The facts of a page by a compiled tokenizer. It takes at most a fifth of the time that building a tree takes.

`tokenise` walks the bytes once, as the HTML standard's tokenizer does (comments, script data with its escaped states,
raw text, attributes). It writes the places of the wanted tags and their attributes as events. It copies nothing, and it
reads only inside the page. `scan` turns the events into the same `Facts` as `html.scan_with_lexbor`.

An image's figure and picture need a tree and not only tokens. They are followed where the markup is well nested. In
some cases the tokens do not decide the tree: misnested figures, `<image>`, frames, NUL bytes, markup in raw text inside
SVG, images in a `<select>`. Then `tokenise` returns UNSURE, and lexbor reads the page.
"""

from __future__ import annotations

import re
from html.entities import html5
from typing import Any, NamedTuple

import numpy as np

from pipeline.engine.jit import njit
from pipeline.sources import char_kernel as char
from pipeline.sources.html import (
    IMAGE_ATTRIBUTES,
    MAX_IMAGES,
    Facts,
    fragment_text,
    largest_candidate,
    scan_with_lexbor,
)
from pipeline.sources.html_bounds import MAX_ATTRIBUTES
from pipeline.sources.html_bounds_kernel import has_costly_nesting
from pipeline.sources.html_syntax_kernel import (
    IS_ATTRIBUTE,
    TOO_MANY,
    Page,
    byte_at,
    comment_end,
    ends_name,
    find,
    is_letter,
    is_name,
    lower,
    next_attribute,
    place_after,
    raw_text_end,
    script_end,
    skip_tag,
    two_hyphens,
    word_at,
    word_of_name,
)
from pipeline.sources.simd_kernel import address_of, store_int

_GO_ON, _END, UNSURE = 1, 0, -1  # results of a step of the walk
MAX_EVENTS = 400_000
MAX_OPEN = 64  # elements open inside a figure or picture

# The kinds of events. An event is (kind, number, start, end). The attributes follow their tag.
IMAGE, ATTRIBUTE, SOURCE, CAPTION, META, LINK, BASE = range(7)
_EVENT_SIZE = 16  # bytes
_UNNOTED = -1  # the kind of other tags

# The attributes that become events. The number of an ATTRIBUTE event is an index into this tuple.
ATTRIBUTES = (*IMAGE_ATTRIBUTES, "name", "property", "content", "rel", "href", "type")


def _words(names: str) -> np.ndarray:
    return np.array([word_of_name(name) for name in names.split()], np.uint64)


_LONGEST = max(map(len, ATTRIBUTES))
_NAMES = np.zeros((len(ATTRIBUTES), _LONGEST), np.uint8)
for _row, _name in enumerate(ATTRIBUTES):
    _NAMES[_row, : len(_name)] = list(_name.encode())
_LENGTHS = np.array([len(name) for name in ATTRIBUTES], np.int64)
_ALT, _TITLE, _REL, _HREF, _CONTENT, _NAME, _PROPERTY, _TYPE = (
    ATTRIBUTES.index(name) for name in ("alt", "title", "rel", "href", "content", "name", "property", "type")
)
_IMAGE_SLOTS = len(IMAGE_ATTRIBUTES)
_SRCSET, _DATA_SRCSET = ATTRIBUTES.index("srcset"), ATTRIBUTES.index("data-srcset")

_IMG, _SOURCE, _META, _LINK, _A, _BASE = (
    np.uint64(word_of_name(n)) for n in ("img", "source", "meta", "link", "a", "base")
)
_PICTURE, _FIGURE, _FIGCAPTION = (np.uint64(word_of_name(n)) for n in ("picture", "figure", "figcaption"))
_SCRIPT, _TEMPLATE, _SELECT = (np.uint64(word_of_name(n)) for n in ("script", "template", "select"))
_SVG, _MATH, _TABLE = (np.uint64(word_of_name(n)) for n in ("svg", "math", "table"))
_RAW = _words("style textarea title xmp iframe noembed noframes")
_NEVER = _words("image frameset plaintext")  # a tree parser has special rules for these
_TABLE_PARTS = _words("table td th tr tbody thead tfoot caption col colgroup object applet marquee")
_IN_PICTURE = _words("source img a span noscript meta link script style picture")
# Elements that are not followed inside a figure: void ones, and those with an implied end.
_UNFOLLOWED = _words(
    "area base br col embed hr img input link meta param source track wbr keygen basefont bgsound frame "
    "p li dd dt option optgroup rp rt"
)
_LICENSE = np.frombuffer(b"license", np.uint8)

_O, _G, _I, _T, _R, _D = b"ogitrd"  # letters at the start of the wanted names of metas
_SHORT_META = 6  # bytes; no wanted name is shorter

# The state of the walk after each tag.
_STATE = np.dtype(
    [
        ("at", np.int64),  # place in the page
        ("count", np.int64),  # rows of events
        ("room", np.int64),  # rows of events that may be written before a tag
        ("bare", np.int64),  # images without any text
        ("images", np.int64),  # the others
        ("figures", np.int64),  # numbers given so far
        ("pictures", np.int64),
        ("picture", np.int64),  # the open one; 0: none
        ("caption_start", np.int64),  # of the open one; -1: none
        ("caption_figure", np.int64),
        ("depth", np.int64),  # elements open since the outermost figure or picture
        ("templates", np.int64),  # open
        ("foreign", np.int64),  # svg or math elements open
        ("foreign_name", np.uint64),  # which of both
        ("drawing", np.bool_),  # what was seen in templates: svg or math
        ("linked", np.bool_),  # a link
        ("marked", np.bool_),  # parts of a table
        ("tables", np.int64),  # open
        ("select", np.bool_),  # open
        # The elements that are open since the outermost figure or picture: their names, and the figure that each opened
        # or lies in. `captioned` is 1 at the place of a figure that has a caption.
        ("names", np.uint64, (MAX_OPEN,)),
        ("figure_of", np.int64, (MAX_OPEN,)),
        ("captioned", np.uint8, (MAX_OPEN,)),
    ]
)
_State = Any  # a record of the type _STATE, whose fields numba knows and mypy does not


class _Tag(NamedTuple):
    """A tag by its places in the page, and its name as a number (see `word_at`)."""

    start: int
    name: int
    name_end: int
    word: np.uint64


class _Event(NamedTuple):
    """A row of events: int32 numbers."""

    kind: int
    number: int
    start: int
    end: int


@njit
def _among(word: np.uint64, words: np.ndarray) -> bool:
    for other in words:
        if other == word:
            return True
    return False


# ---- attributes


@njit
def _slot(page: Page, start: int, end: int) -> int:
    """The number of an attribute in ATTRIBUTES, -1 for others."""
    size = end - start
    for number in range(len(_LENGTHS)):
        if _LENGTHS[number] == size and lower(byte_at(page, start)) == _NAMES[number, 0]:
            same = True
            for place in range(1, size):
                if lower(byte_at(page, start + place)) != _NAMES[number, place]:
                    same = False
                    break
            if same:
                return number
    return -1


@njit
def _telling_meta(page: Page, start: int, end: int) -> bool:
    """False if `Facts.meta` certainly ignores this name or property. It reads og:image..., og:title, robots, ..."""
    is_plain = char.BLANK < byte_at(page, start) < char.ASCII_END and byte_at(page, start) != char.AMPERSAND
    if end - start < _SHORT_META or not is_plain:
        return end > start  # Python decides these
    first, second = lower(byte_at(page, start)), lower(byte_at(page, start + 1))
    if first == _O and second == _G:
        after = byte_at(page, start + 2)
        third = lower(byte_at(page, start + 3))
        may_tell = third == _I or third == _T or third == char.AMPERSAND
        return after == char.AMPERSAND or (after == char.COLON and may_tell)
    return first == _O or first == _R or (first == _T and (second == _D or second == char.AMPERSAND))


@njit
def _may_say_license(page: Page, start: int, end: int) -> bool:
    size = len(_LICENSE)
    for at in range(start, end):
        if byte_at(page, at) == char.AMPERSAND:
            return True
        if at + size <= end and is_name(page, at, at + size, _LICENSE):
            return True
    return False


@njit
def _is_wanted(kind: int, slot: int) -> bool:
    """True if the attribute is wanted of tags of that kind."""
    if kind == IMAGE:
        return slot < _IMAGE_SLOTS
    if kind == SOURCE:
        return slot == _SRCSET or slot == _DATA_SRCSET
    if kind == META:
        return slot == _NAME or slot == _PROPERTY or slot == _CONTENT
    if kind == LINK:
        return slot == _REL or slot == _HREF or slot == _TYPE
    return slot == _HREF


@njit
def _tells(page: Page, kind: int, slot: int, value: int, value_end: int) -> bool:
    """True if a tag with this attribute becomes an event."""
    if kind == IMAGE:
        return slot == _ALT or slot == _TITLE
    if kind == META:
        return slot != _CONTENT and _telling_meta(page, value, value_end)
    if kind == LINK:
        return slot == _REL and _may_say_license(page, value, value_end)
    return True


# ---- tags


@njit
def _write(events: int, row: int, event: _Event) -> None:
    at = events + row * _EVENT_SIZE
    store_int(at, event.kind)
    store_int(at + 4, event.number)
    store_int(at + 8, event.start)
    store_int(at + 12, event.end)


@njit
def _read_tag(page: Page, at: int, event: _Event, events: int, state: _State) -> None:
    """Writes a tag (as `event`) and its attributes, unless nothing in it is of use."""
    row = state.count
    _write(events, row, event)
    row += 1
    kind = event.kind
    seen = np.uint64(0)
    useful = kind == SOURCE or (kind == IMAGE and event.number > 0)
    read = 0
    while True:
        attribute = next_attribute(page, at)
        at = attribute.after
        if attribute.what != IS_ATTRIBUTE:
            break
        read += 1
        if read > MAX_ATTRIBUTES:
            at = TOO_MANY
            break
        slot = _slot(page, attribute.name, attribute.name_end)
        if slot < 0 or not _is_wanted(kind, slot):
            continue
        bit = np.uint64(1) << np.uint64(slot)
        if seen & bit:  # the first attribute of a name counts
            continue
        seen |= bit
        value, value_end = attribute.value, attribute.value_end
        if value_end <= value and kind != BASE:
            continue
        useful = useful or _tells(page, kind, slot, value, value_end)
        _write(events, row, _Event(ATTRIBUTE, slot, value, value_end))
        row += 1
    state.at = at
    if useful and at >= 0:  # if the page ends inside it, it is no tag
        state.count = row


@njit
def _kind_of(word: np.uint64, in_picture: bool) -> int:
    """The kind of event of the tag."""
    if word == _IMG:
        return IMAGE
    if word == _META:
        return META
    if word == _LINK or word == _A:
        return LINK
    if word == _BASE:
        return BASE
    return SOURCE if word == _SOURCE and in_picture else _UNNOTED


@njit
def _figure_of(state: _State) -> int:
    """The number of the figure around the current place; 0: none."""
    return state.figure_of[state.depth - 1] if state.depth > 0 else 0


@njit
def _noted_tag(page: Page, tag: _Tag, kind: int, events: int, state: _State) -> int:
    """Reads a tag that may become an event."""
    if state.select and kind != META and kind != BASE:
        return UNSURE
    before = state.count
    number = _figure_of(state) if kind == IMAGE else state.picture if kind == SOURCE else 0
    _read_tag(page, tag.name_end, _Event(kind, number, state.picture, 0), events, state)
    if state.at < 0:
        return _END
    noted = state.count > before
    if kind != IMAGE:
        return UNSURE if noted and state.tables > 0 else _GO_ON  # a parser may move it, which changes the order
    if noted:
        state.images += 1
        if state.images > MAX_IMAGES:
            state.count = before
    else:
        state.bare += 1
    return _GO_ON


@njit
def _text_end(page: Page, tag: _Tag, at: int) -> int:
    """The place of the end tag of a script or raw text. The text begins at `at`."""
    return script_end(page, at) if tag.word == _SCRIPT else raw_text_end(page, at, tag.name, tag.name_end - tag.name)


@njit
def _tag_in_template(page: Page, tag: _Tag, state: _State) -> int:
    """Reads a tag inside a template. It never becomes an event."""
    word = tag.word
    state.at, _ = skip_tag(page, tag.name_end)
    if state.at < 0:
        return _END
    if word == _TEMPLATE:
        state.templates += 1
    elif word == _SVG or word == _MATH:
        state.drawing = True
    elif word == _A or _among(word, _TABLE_PARTS):
        if word == _A:
            state.linked = True
        else:
            state.marked = True
        if state.linked and state.marked:  # there a link may stay open after the template
            return UNSURE
    elif word == _SCRIPT or _among(word, _RAW):
        body = state.at
        state.at = _text_end(page, tag, body)
        if state.drawing and find(page, body, char.LESS) < state.at:
            return UNSURE
    return _GO_ON


@njit
def _raw_text(page: Page, tag: _Tag, state: _State) -> int:
    """Moves past a script or another element with raw text."""
    if state.select and tag.word != _SCRIPT:
        return UNSURE
    body = state.at
    state.at = _text_end(page, tag, body)
    if state.foreign > 0 and find(page, body, char.LESS) < state.at:
        return UNSURE
    if state.at < page.size:
        state.at, _ = skip_tag(page, state.at + 2 + tag.name_end - tag.name)
    return _GO_ON if state.at >= 0 else _END


@njit
def _open_caption(figure: int, state: _State) -> int:
    """Reads a figcaption. The first one of a figure is its caption."""
    if state.caption_start >= 0:
        return UNSURE
    place = state.depth - 1
    while place > 0 and state.figure_of[place - 1] == figure:
        place -= 1
    if not state.captioned[place]:
        state.captioned[place] = 1
        state.caption_start, state.caption_figure = state.at, figure
    return _GO_ON


@njit
def _open_element(word: np.uint64, state: _State) -> int:
    """Follows a figure, a picture, or an element inside one."""
    special = word == _FIGURE or word == _PICTURE or word == _FIGCAPTION
    if special and (state.foreign > 0 or state.select):
        return UNSURE
    if state.depth == 0 and (not special or word == _FIGCAPTION):
        return _GO_ON
    if state.foreign > 0 or _among(word, _UNFOLLOWED):
        return _GO_ON
    if state.depth == MAX_OPEN:
        return UNSURE
    figure = _figure_of(state)
    if word == _FIGURE:
        if state.caption_start >= 0:
            return UNSURE
        state.figures += 1
        figure = state.figures
    elif word == _PICTURE:
        state.pictures += 1
        state.picture = state.pictures
    elif word == _FIGCAPTION and figure > 0:
        if _open_caption(figure, state) == UNSURE:
            return UNSURE
    state.names[state.depth], state.figure_of[state.depth] = word, figure
    if word == _FIGURE:
        state.captioned[state.depth] = 0
    state.depth += 1
    return _GO_ON


@njit
def _plain_tag(page: Page, tag: _Tag, closes_itself: bool, state: _State) -> int:
    """Reads a start tag that never becomes an event. The walk is past the tag."""
    word = tag.word
    if word == _SVG or word == _MATH:
        if state.foreign > 0 and word != state.foreign_name:
            return UNSURE
        if not closes_itself:
            state.foreign += 1
            state.foreign_name = word
        return _GO_ON
    if word == _SCRIPT or _among(word, _RAW):
        return _raw_text(page, tag, state)
    if word == _TEMPLATE:
        state.templates = 1
        return UNSURE if state.foreign > 0 or state.select else _GO_ON
    if word == _SELECT:
        state.select = not state.select
        return _GO_ON
    if word == _TABLE:
        state.tables += 1
    return _open_element(word, state)


@njit
def _start_tag(page: Page, tag: _Tag, events: int, state: _State) -> int:
    """Reads a start tag. The walk has read its name. `events` is an address."""
    word = tag.word
    if _among(word, _NEVER):
        return UNSURE
    if state.templates > 0:
        return _tag_in_template(page, tag, state)
    if state.depth > 0 and _among(word, _TABLE_PARTS):
        return UNSURE
    if state.picture > 0 and state.foreign == 0 and (not _among(word, _IN_PICTURE) or word == _PICTURE):
        return UNSURE
    kind = _kind_of(word, state.picture > 0)
    if kind != _UNNOTED:
        outcome = _noted_tag(page, tag, kind, events, state)
        return _open_element(word, state) if outcome == _GO_ON and word == _A else outcome
    state.at, closes_itself = skip_tag(page, tag.name_end)
    return _plain_tag(page, tag, closes_itself, state) if state.at >= 0 else _END


@njit
def _close_element(tag: _Tag, events: int, state: _State) -> int:
    """Reads the end tag of an element that is followed."""
    if state.names[state.depth - 1] != tag.word:
        return UNSURE
    state.depth -= 1
    if tag.word == _FIGCAPTION and state.caption_start >= 0:
        _write(events, state.count, _Event(CAPTION, state.caption_figure, state.caption_start, tag.start))
        state.count += 1
        state.caption_start = -1
    elif tag.word == _PICTURE:
        state.picture = 0
    return _GO_ON


@njit
def _end_tag(page: Page, tag: _Tag, events: int, state: _State) -> int:
    """Reads an end tag. The walk has read its name."""
    word = tag.word
    state.at, _ = skip_tag(page, tag.name_end)
    if state.at < 0:
        return _END
    if word == _TEMPLATE:
        state.templates = max(0, state.templates - 1)
    elif state.templates > 0:
        return _GO_ON
    elif word == state.foreign_name and state.foreign > 0:
        state.foreign -= 1
    elif word == _SELECT:
        state.select = False
    elif word == _TABLE:
        state.tables = max(0, state.tables - 1)
    elif state.depth > 0 and state.foreign == 0 and not _among(word, _UNFOLLOWED):
        return _close_element(tag, events, state)
    return _GO_ON


# ---- the page


@njit
def _declaration(page: Page, state: _State) -> int:
    """Reads a comment, a doctype or another declaration."""
    at = state.at + 2  # after "<!"
    if two_hyphens(page, at):
        state.at = comment_end(page, at + 2)
        return _GO_ON
    state.at = place_after(page, at, char.GREATER)
    is_text = state.foreign > 0 and at < page.size and byte_at(page, at) == char.BRACKET  # CDATA in svg or math
    return UNSURE if is_text else _GO_ON


@njit
def _step(page: Page, events: int, state: _State) -> int:
    """Moves past the next tag, comment or lone "<"."""
    end = page.size
    at = state.at = find(page, state.at, char.LESS)
    if at + 1 >= end:
        return _END
    if state.count >= state.room:
        return UNSURE
    byte = byte_at(page, at + 1)
    if byte == char.EXCLAMATION:
        return _declaration(page, state)
    if byte == char.QUESTION:
        state.at = place_after(page, at, char.GREATER)
        return _GO_ON
    closing = byte == char.SLASH
    name = at + 2 if closing else at + 1
    if name >= end:
        return _END
    if not is_letter(byte_at(page, name)):
        state.at = place_after(page, at, char.GREATER) if closing else at + 1
        return _GO_ON
    name_end = name
    while name_end < end and not ends_name(byte_at(page, name_end)):
        name_end += 1
    tag = _Tag(at, name, name_end, word_at(page, name, name_end))
    return _end_tag(page, tag, events, state) if closing else _start_tag(page, tag, events, state)


@njit
def tokenise(page: np.ndarray, events: np.ndarray) -> tuple[int, int, int]:
    """Writes the events of a page; returns (rows written or UNSURE, images without any text, images too many).

    Args:
        page: its bytes, valid UTF-8 without NUL.
        events: contiguous int32 rows (kind, number, start, end). IMAGE: number is its figure, start is its picture
            (0: none). SOURCE: number is its picture. CAPTION: number is its figure, (start, end) is its markup.
    """
    states = np.zeros(1, _STATE)
    state = states[0]
    state.room = len(events) - len(_LENGTHS) - 2
    state.caption_start, state.foreign_name = -1, _SVG
    text, rows = Page(address_of(page), len(page)), address_of(events)
    outcome = _GO_ON
    while outcome == _GO_ON:
        outcome = _step(text, rows, state)
    last = states[0]  # `state` points into `states`; this use after the loop keeps the memory alive
    unsure = outcome == UNSURE or last.depth > 0 or last.at == TOO_MANY
    return (UNSURE if unsure else last.count), last.bare, max(0, last.images - MAX_IMAGES)


# ---- events -> facts


def scan(html: bytes) -> Facts | None:
    """The facts of a page (valid UTF-8), equal to those of `scan_with_lexbor`, which reads the page on UNSURE."""
    if b"\0" in html:
        return scan_with_lexbor(html)
    if has_costly_nesting(html):
        return None
    events = np.empty((min(len(html) // 2 + 64, MAX_EVENTS), 4), np.int32)
    count, bare, cut = tokenise(np.frombuffer(html, np.uint8), events)
    if count == UNSURE:
        return scan_with_lexbor(html)
    facts = _read_events(html, events[:count])
    facts.bare, facts.cut = bare, cut
    return facts


def _read_events(html: bytes, events: np.ndarray) -> Facts:
    facts = Facts()
    pictures: dict[int, str] = {}
    captions: dict[int, str] = {}
    images: list[tuple[dict[str, str], str, int]] = []
    columns = np.concatenate((events, [(BASE + 1, 0, 0, 0)])).T  # one more row, so that the last tag is finished
    rows = zip(*columns.tolist(), strict=True)  # a list for each row would cost the garbage collector too much
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
                facts.link(attributes["rel"], attributes["href"], attributes.get("type", ""))
        elif facts.base is None:
            facts.base = attributes["href"]
    facts.images = [(attributes, picture, captions.get(figure, "")) for attributes, picture, figure in images]
    return facts


_REFERENCE = re.compile(r"&(?:#[xX]([0-9a-fA-F]+);?|#([0-9]+);?|([a-zA-Z][a-zA-Z0-9]*)(;?)(=?))")


def _decoded(value: str) -> str:
    """An attribute's value with its line ends and character references resolved."""
    return _REFERENCE.sub(_character, value.replace("\r\n", "\n").replace("\r", "\n"))


def _character(match: re.Match[str]) -> str:
    """The text of a character reference in an attribute. A name without semicolon before = or a letter is none."""
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
    """The character of a numeric reference, repaired as browsers do."""
    if 0x80 <= number < 0xA0:
        return bytes([number]).decode("cp1252", "replace").replace("\ufffd", chr(number))
    if number == 0 or number > 0x10FFFF or 0xD800 <= number < 0xE000:
        return "\ufffd"
    return chr(number)


def warm() -> None:
    """Compiles `tokenise` and all functions that it calls."""
    scan(b"<img src=a alt=b>")
