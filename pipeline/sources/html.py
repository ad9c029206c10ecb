"""An HTML page as (image URL, text) pairs: one pure function, `extract_pairs`.

There are two steps. First a *scanner* reads the markup into `Facts`. The scanner here is lexbor, a full HTML5 parser.
`html_kernel` has a tokenizer that gives the same facts in a fifth of the time. It leaves odd pages to lexbor. Then one
policy, the same for both scanners, turns the facts into pairs:

**Which URL.** If the image has a lazy-loading attribute (`LAZY`, then data-srcset), this is the URL, since `src` then
holds a placeholder. Else it is `src`. If `src` is missing, a `data:` URL or a placeholder by name ("spacer.gif"), it is
the largest candidate of `srcset`, then that of the `<picture>`'s first `<source>` before the image. URLs are resolved
against `<base href>` and the page. **Which texts.** alt, title and the figcaption of the nearest `<figure>` give one
pair each. og:image gives pairs with og:title and og:image:alt. Of equal pairs of one page (blanks folded) one is kept.

**Signals.** The scanner also reads robots metas (`OPT_OUTS`), a TDM reservation and the first rel=license link (an RSL
licence before others). The headers that forbid training are read, too (text/rights.py). A page is cut at MAX_PAGE
bytes. No bytes raise an error. A page is not parsed if it would take a tree parser more steps than its size allows
(`html_bounds`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from pipeline.schema import TEXT_SOURCES, URL_SOURCES
from pipeline.sources.charsets import to_utf8
from pipeline.sources.html_bounds import is_costly
from pipeline.sources.links import MAX_URL, SPACES, WEB, absolute, base_of
from pipeline.text import rights
from pipeline.text.robots_tag import OPT_OUTS, header_rules, meta_rules

MAX_PAGE = 4 << 20  # bytes; what comes after is not read
MAX_IMAGES = 20_000  # a page
MAX_TEXT = 10_000  # characters of one text: far more than cleaning accepts, so that it still reports "too long"
MAX_ANCESTORS = 32  # steps up from an image to its figure or picture

# Attributes of lazy loading, the most reliable first. A value must look like a URL, since some hold numbers or JSON.
LAZY = (
    "data-src",
    "data-original",
    "data-lazy-src",
    "data-lazy",
    "data-url",
    "data-echo",
    "data-hi-res-src",
    "data-image",
    "data-img-src",
)
IMAGE_ATTRIBUTES = ("src", "alt", "title", "srcset", "data-srcset", *LAZY)
_LAZY_SET = frozenset((*LAZY, "data-srcset"))
ROBOTS_NAMES = ("robots", "openwit")  # metas and X-Robots-Tag prefixes that address this project
TDM = rights.TDM
_OG = ("og:image", "og:image:url", "og:image:secure_url", "og:image:alt", "og:title")

_BLANK_NAMES = frozenset(
    "blank spacer clear transparent placeholder pixel 1x1 grey gray"
    " loading loader lazy lazyload dot empty trans".split()
)
_BLANK_TYPES = frozenset({"gif", "png", "jpg", "jpeg", "svg", "webp"})
_SPACE = " \t\n\r\f"

# One image of a page: its attributes that are not empty, the best candidate of its picture, its caption.
Image = tuple[dict[str, str], str, str]


@dataclasses.dataclass
class Facts:
    """The content of one page's markup, before the policy chooses URLs and texts."""

    images: list[Image] = dataclasses.field(default_factory=list)  # those that have an alt, a title or a figure
    bare: int = 0  # the other images
    cut: int = 0  # images beyond MAX_IMAGES
    base: str | None = None
    license: str | None = None  # href, as written
    og: dict[str, str] = dataclasses.field(default_factory=dict)
    opt_outs: set[str] = dataclasses.field(default_factory=set)

    def meta(self, name: str, property_: str, content: str) -> None:
        """Adds a `<meta>`. The first of each og kind counts."""
        for key in {name.strip().lower(), property_.strip().lower()}:
            if key in _OG and content.strip():
                self.og.setdefault(key, content)
            elif key in ROBOTS_NAMES:
                self.opt_outs |= directives(content)
            elif key == TDM and rights.tdm_reservation(content) is False:
                self.opt_outs.add(TDM)

    def link(self, rel: str, href: str, type_: str = "") -> None:
        """Adds a `<link>` or `<a>`. The first license counts, an RSL licence before all others."""
        if href.strip(SPACES) and rights.is_rsl(rel, type_):
            self.license = self.license if rights.RSL in self.opt_outs else href
            self.opt_outs.add(rights.RSL)
        if self.license is None and href.strip(SPACES) and "license" in rel.lower().split():
            self.license = href


Scanner = Callable[[bytes], Facts | None]


@dataclasses.dataclass
class PagePairs:
    """The pairs of a page as columns, its signals, and the drops.

    `found` = len(urls) + sum(dropped.values()): every image counts once for each of its texts.
    """

    urls: list[str] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)
    text_sources: list[int] = dataclasses.field(default_factory=list)
    url_sources: list[int] = dataclasses.field(default_factory=list)
    opt_out: str | None = None
    license: str | None = None
    found: int = 0
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)


def extract_pairs(
    html: bytes,
    page_url: str,
    *,
    charset: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    scan: Scanner | None = None,
) -> PagePairs:
    """All pairs of one page.

    Args:
        html: the bytes as served, transfer and content encoding undone.
        page_url: the URL of the page.
        charset: of the HTTP Content-Type, if it names one.
        headers: HTTP header fields; X-Robots-Tag, Link and those of rights.HEADERS are used.
        scan: the scanner; None: lexbor.
    """
    pairs = PagePairs()
    if len(html) > MAX_PAGE:
        html = html[:MAX_PAGE]
        pairs.notes["page_cut"] += 1
    facts = (scan or scan_with_lexbor)(to_utf8(html, charset))
    if facts is None:
        pairs.notes["page_not_parsed"] += 1
        facts = Facts()
    base = base_of(page_url, facts.base)
    headers = list(headers)
    for url in header_licences(headers):
        facts.link("license", absolute(page_url, url)[1] or url, rights.RSL_TYPE)
    signals = facts.opt_outs | header_signals(headers)
    pairs.opt_out = ",".join(sorted(signals)) or None
    if facts.license is not None:
        reason, license_url = absolute(base, facts.license)
        pairs.license = license_url if not reason and license_url.startswith(WEB) else None
    _add_images(pairs, facts, base)
    return pairs


# ---- the policy: facts -> pairs

_ALT, _TITLE, _CAPTION, _OG_TITLE = (TEXT_SOURCES.index(name) for name in ("alt", "title", "figcaption", "og:title"))
_SRC, _LAZY, _SRCSET, _PICTURE, _OG_IMAGE = (
    URL_SOURCES.index(name) for name in ("src", "lazy", "srcset", "picture", "og:image")
)


def _add_images(pairs: PagePairs, facts: Facts, base: str) -> None:
    """Appends the pairs of all images of the page, then those of its og:image."""
    seen: dict[tuple[str, str], int] = {}
    if facts.bare:
        pairs.notes["image_without_text"] += facts.bare
    if facts.cut:
        pairs.notes["images_cut"] += facts.cut
    for attributes, picture, caption in facts.images:
        texts = [(attributes.get("alt", ""), _ALT), (attributes.get("title", ""), _TITLE), (caption, _CAPTION)]
        texts = [(text, source) for text, source in texts if text and not text.isspace()]
        if not texts:
            pairs.notes["image_without_text"] += 1
            continue
        url, url_source = choose_url(attributes, picture)
        _add(pairs, seen, base, url, url_source, texts)
    og = facts.og
    url = next((og[key] for key in _OG[:3] if key in og), "")
    texts = [(og.get("og:title", ""), _OG_TITLE), (og.get("og:image:alt", ""), _ALT)]
    texts = [(text, source) for text, source in texts if text]
    if url and texts:
        _add(pairs, seen, base, url, _OG_IMAGE, texts)


def _add(
    pairs: PagePairs,
    seen: dict[tuple[str, str], int],
    base: str,
    url: str,
    url_source: int,
    texts: list[tuple[str, int]],
) -> None:
    """Appends one image with each of its texts, or counts the drops with a reason.

    Of equal pairs, the one with the smallest source code stays. So the rows do not depend on the order of the images: a
    parser moves images that stand between the cells of a table.
    """
    pairs.found += len(texts)
    reason = "no_image_url" if not url else "data_url" if is_data(url) else "placeholder" if is_blank(url) else ""
    if not reason:
        reason, url = absolute(base, url)
    if reason:
        pairs.dropped[reason] += len(texts)
        return
    for text, text_source in texts:
        text = text[:MAX_TEXT]
        key = url, " ".join(text.split())
        at = seen.get(key)
        if at is None:
            seen[key] = len(pairs.urls)
            pairs.urls.append(url)
            pairs.texts.append(text)
            pairs.text_sources.append(text_source)
            pairs.url_sources.append(url_source)
            continue
        pairs.dropped["repeated_on_page"] += 1
        kept = pairs.texts[at]
        kept_rank = (pairs.text_sources[at], pairs.url_sources[at], len(kept), kept)
        if (text_source, url_source, len(text), text) < kept_rank:
            pairs.texts[at], pairs.text_sources[at], pairs.url_sources[at] = text, text_source, url_source


def choose_url(attributes: Mapping[str, str], picture: str) -> tuple[str, int]:
    """(URL, URL source) of an image; `("", 0)` or a data: URL if there is no better one."""
    if not _LAZY_SET.isdisjoint(attributes):
        for name in LAZY:
            value = attributes.get(name)
            if value and looks_like_url(value):
                return value, _LAZY
        if value := attributes.get("data-srcset"):
            if (best := largest_candidate(value)) and not is_data(best):
                return best, _SRCSET
    src = attributes.get("src", "")
    if src.strip(SPACES) and not is_data(src) and not is_blank(src):
        return src, _SRC
    if value := attributes.get("srcset"):
        if (best := largest_candidate(value)) and not is_data(best):
            return best, _SRCSET
    if picture and not is_data(picture):
        return picture, _PICTURE
    return src.strip(SPACES), _SRC


def is_data(url: str) -> bool:
    """True for a data: URL. It holds the image itself, mostly a placeholder of a few bytes."""
    return url[:64].lstrip(SPACES)[:5].lower() == "data:"


def is_blank(url: str) -> bool:
    """True for the usual file names of placeholders: spacer.gif, blank.png, 1x1.gif."""
    name, _, kind = url.partition("?")[0].partition("#")[0].rpartition("/")[2].rpartition(".")
    return kind.lower() in _BLANK_TYPES and name.lower() in _BLANK_NAMES


def looks_like_url(value: str) -> bool:
    """True if the value of a lazy attribute can be a URL. Some sites keep numbers, JSON or templates there."""
    value = value.strip(SPACES)
    if not value or value[0] in "{[<#" or is_data(value) or len(value) > MAX_URL:
        return False
    return ("/" in value or "." in value) and "{{" not in value and not is_blank(value)


_CANDIDATE = re.compile(r"[ \t\n\r\f,]*([^ \t\n\r\f]+)")
_USUAL = re.compile(r"[ \t\n\r\f]*(?:(?:([1-9][0-9]{0,8})w|([0-9]{1,9}(?:\.[0-9]{1,9})?)x)[ \t\n\r\f]*)?(?:,|\Z)")
_DESCRIPTORS = re.compile(r"(?:[^,(]|\([^)]*(?:\)|\Z))*+")  # a comma between brackets ends no candidate
_DESCRIPTOR = re.compile(r"(?:[^ \t\n\r\f(]|\([^)]*(?:\)|\Z))++")
_NATURAL = re.compile(r"[0-9]+")
_FLOAT = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def largest_candidate(srcset: str) -> str:
    """The URL with the largest descriptor in a srcset, the first of equal ones; "" if no candidate is valid."""
    best, best_size = "", -1.0
    for url, size in _candidates(srcset):
        if size > best_size:
            best, best_size = url, size
    return best


def _candidates(srcset: str) -> Iterator[tuple[str, float]]:
    """The valid candidates with their sizes (HTML standard, "parse a srcset attribute"). 1x counts as 1000w."""
    at = 0
    while match := _CANDIDATE.match(srcset, at):
        url, at = match[1], match.end()
        if url.endswith(","):
            url = url.rstrip(",")
            if url:
                yield url, 1000.0
        elif usual := _USUAL.match(srcset, at):
            at = usual.end()
            yield url, float(usual[1] or 0) or 1000 * float(usual[2] or 1)
        else:
            descriptors = _DESCRIPTORS.match(srcset, at)
            text, at = (descriptors[0], descriptors.end() + 1) if descriptors else ("", len(srcset))
            size = _size(_DESCRIPTOR.findall(text[:MAX_URL]))
            if size is not None:
                yield url, size


def _size(descriptors: list[str]) -> float | None:
    """The size that the descriptors of a candidate give; None if they are not valid together."""
    width = density = height = None
    for descriptor in descriptors:
        number, kind = descriptor[:-1], descriptor[-1]
        if kind == "w" and _NATURAL.fullmatch(number) and width is density is None and number.strip("0"):
            width = float(number[:30])
        elif kind == "x" and _FLOAT.fullmatch(number) and width is density is height is None:
            density = float(number[:300])
            if density < 0:
                return None
        elif kind == "h" and _NATURAL.fullmatch(number) and height is density is None and number.strip("0"):
            height = float(number[:30])
        else:
            return None
    if height is not None and width is None:
        return None
    return width if width is not None else 1000 * (1.0 if density is None else density)


def directives(content: str) -> set[str]:
    """The opt-outs among the rules of a robots meta."""
    return meta_rules(content) & OPT_OUTS


def header_signals(headers: Iterable[tuple[str, str]]) -> set[str]:
    """Opt-outs in HTTP headers. A rule for another robot does not count."""
    signals: set[str] = set()
    statements: dict[str, list[str]] = {}
    for name, value in headers:
        name = name.lower()
        if name == "x-robots-tag":
            signals |= OPT_OUTS.intersection(header_rules(value, ROBOTS_NAMES))
        elif name in rights.HEADERS:
            statements.setdefault(name, []).append(value)
    return signals | {name for name, values in statements.items() if rights.statement(name, values) is False}


def header_licences(headers: Iterable[tuple[str, str]]) -> list[str]:
    """The RSL licences that Link headers name, as written. They are relative to the page, not to its base."""
    return [url for name, value in headers if name.lower() == rights.LINK for url in rights.licences(value)]


# ---- the reference scanner: lexbor

_WANTED = "img, picture source, figcaption, meta[content], base[href], link[rel][href], a[rel][href]"


def scan_with_lexbor(html: bytes) -> Facts | None:
    """The facts of a page (valid UTF-8) from its tree; None if the page is not parsed."""
    from selectolax.lexbor import LexborHTMLParser

    if not html.strip():
        return Facts()
    if is_costly(html):
        return None
    try:
        return _read_tree(LexborHTMLParser(html).css(_WANTED))
    except (ValueError, RuntimeError, MemoryError):  # selectolax's own errors derive from these
        return None


def _read_tree(nodes: list) -> Facts:
    """The facts from the wanted nodes of a tree. `nodes` have the order of the document."""
    facts = Facts()
    pictures: dict[int, str] = {}  # by picture
    captions: dict[int, str] = {}  # by figure
    images: list[tuple[dict[str, str], str, int]] = []
    for node in nodes:
        tag, attributes = node.tag, node.attributes
        if tag == "img":
            figure = _ancestor(node, "figure")
            if not (figure or attributes.get("alt") or attributes.get("title")):
                facts.bare += 1
            elif len(images) < MAX_IMAGES:
                wanted = {name: value for name, value in attributes.items() if value and name in _IMAGE_SET}
                images.append((wanted, pictures.get(_ancestor(node, "picture"), ""), figure))
            else:
                facts.cut += 1
        elif tag == "source":
            srcset = attributes.get("srcset") or attributes.get("data-srcset")
            if srcset and (best := largest_candidate(srcset)):
                pictures.setdefault(_ancestor(node, "picture"), best)
        elif tag == "figcaption":
            figure = _ancestor(node, "figure")
            if figure and figure not in captions:
                captions[figure] = node_text(node)
        elif tag == "meta":
            facts.meta(attributes.get("name") or "", attributes.get("property") or "", attributes["content"] or "")
        elif tag == "base":
            facts.base = attributes["href"] or "" if facts.base is None else facts.base
        else:
            facts.link(attributes["rel"] or "", attributes["href"] or "", attributes.get("type") or "")
    facts.images = [(wanted, picture, captions.get(figure, "")) for wanted, picture, figure in images]
    return facts


_IMAGE_SET = frozenset(IMAGE_ATTRIBUTES)


def _ancestor(node, tag: str) -> int:  # type: ignore[no-untyped-def]
    """The id of the nearest ancestor with that tag; 0 if none is within MAX_ANCESTORS."""
    for _ in range(MAX_ANCESTORS):
        node = node.parent
        if node is None:
            return 0
        if node.tag == tag:
            return node.mem_id
    return 0


_UNREAD = frozenset({"script", "style", "template", "noscript", "textarea", "svg", "figure"})
_INLINE = frozenset(
    "a abbr b bdi bdo cite code del dfn em font i ins kbd mark q s samp small span strong sub sup"
    " time tt u var wbr".split()
)


def node_text(node) -> str:  # type: ignore[no-untyped-def]
    """The visible text below a node. Blanks are folded. A block or a line ends with a blank.

    A figure in it is left out: it has a caption of its own. So no node of a page is read for two captions.
    """
    parts: list[str] = []
    length = 0
    stack = [node]
    while stack and length <= MAX_TEXT:
        here = stack.pop()
        if isinstance(here, str):
            parts.append(here)
        elif here.is_text_node:
            text = here.text_content or ""
            parts.append(text)
            length += len(text)
        elif here.is_element_node and here.tag not in _UNREAD:
            edge = [] if here.tag in _INLINE else [" "]
            children = list(here.iter(include_text=True))
            stack += edge + children[::-1] + edge
    return " ".join("".join(parts).split())


def fragment_text(html: bytes) -> str:
    """The text of a piece of markup, as `node_text` gives it."""
    from selectolax.lexbor import LexborHTMLParser

    if b"<" not in html and b"&" not in html:
        return " ".join(html.decode("utf-8", "replace").split())
    body = LexborHTMLParser(b"<body>" + html).body
    return "" if body is None else node_text(body)
