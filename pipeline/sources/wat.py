"""WAT files as candidates: Common Crawl's extracts of its pages. Only the image links are decoded.

A WAT record is JSON with every link of a page. A typed decoder reads the image links and the few other fields that
matter. It skips the rest without building objects. It refuses some records (a field of an odd type, bad UTF-8).
`parse_slowly` reads these field by field. It is also the oracle of the tests. All readers, the compiled one too, give
the same rows and counts for the same bytes, whatever the bytes are (tests check this):

- A record without the name HTML-Metadata and without a \\u escape is not parsed: `no_links`.
- Any other record must be JSON from its first byte to its last, unused parts included. Bytes that are not UTF-8 are
  replaced first. Then JSON is what Python's json accepts (NaN too). Other records are lost as `bad_json`.

Kept: links with path IMG@/src, a string `url` and a string `alt`. Empty URLs are dropped (they would become the page's
own URL). data: URLs are dropped, too. `links` resolves relative URLs against Head.Base and the page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import operator
import re
from collections import Counter
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES, TEXT_SOURCES, URL_SOURCES
from pipeline.sources.archive import Record
from pipeline.sources.html import ROBOTS_NAMES, TDM, directives, header_licences, header_signals
from pipeline.sources.links import MAX_URL, SPACES, WEB, absolute, base_of
from pipeline.text import rights

BATCH_ROWS = 16_384
MAX_TEXT = 10_000  # characters of an alt: more than cleaning accepts

IMAGE = "IMG@/src"
PATHS = (  # of other links, as Common Crawl's extractor names them; other paths are learnt while reading
    "A@/href APPLET@/codebase AREA@/href AUDIO@/src BLOCKQUOTE@/cite BODY@/background BUTTON@/formaction DEL@/cite "
    "DIV@/style EMBED@/src FORM@/action FRAME@/src IFRAME@/src IMG@/longdesc INPUT@/formaction INPUT@/src INS@/cite "
    "LINK@/href OBJECT@/codebase OBJECT@/data Q@/cite SCRIPT@/src SOURCE@/src SPAN@/style STYLE/#text "
    "TABLE@/background TD@/background TD@/style TH@/background TR@/background TRACK@/src VIDEO@/poster VIDEO@/src"
).split()
MAX_PATHS = 300  # known paths, at most

ALT, SRC = TEXT_SOURCES.index("alt"), URL_SOURCES.index("src")
# Where a signal comes from.
ROBOTS_META, TDM_META, ROBOTS_HEADER, TDM_HEADER, USAGE_HEADER, SIGNAL_HEADER = range(1, 7)
HEADER_NAMES = {
    ROBOTS_HEADER: "x-robots-tag",
    TDM_META: TDM,
    TDM_HEADER: TDM,
    USAGE_HEADER: rights.USAGE,
    SIGNAL_HEADER: rights.SIGNAL,
}
_REL = operator.attrgetter("rel")
_LONE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass
class Page:
    """The content of a record about its page. `links` are (url, alt) as written, of any type where they are unfit."""

    url: str
    base: str | None = None
    links: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)
    signals: set[str] = dataclasses.field(default_factory=set)
    license: str | None = None


class Rows:
    """Rows for the next batch. The fields that all rows of a page share are stored once."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._clear()

    def _clear(self) -> None:
        self._urls: list[str] = []
        self._texts: list[str] = []
        self._pages: list[tuple[str, int, str | None, str | None]] = []  # URL, offset, opt-outs, license
        self._counts: list[int] = []  # rows of each page

    def __len__(self) -> int:
        return len(self._urls)

    def batch(self) -> pa.RecordBatch:
        """The rows as a batch. They are removed."""
        rows = len(self._urls)
        of_row = pa.array(np.repeat(np.arange(len(self._pages), dtype=np.int32), self._counts))
        types = (pa.string(), pa.int64(), pa.string(), pa.string())
        kept = [pa.array([page[i] for page in self._pages], kind) for i, kind in enumerate(types)]
        page_url, offset, opt_out, license_url = (column.take(of_row) for column in kept)
        codes = [pa.array(np.full(rows, code, np.int8)) for code in (ALT, SRC)]
        url, text = pa.array(self._urls, pa.string()), pa.array(self._texts, pa.string())
        self._clear()
        columns = [url, text, page_url, offset, *codes, opt_out, license_url]
        return pa.RecordBatch.from_arrays(columns, schema=CANDIDATES)

    def add(self, record: Record) -> None:
        """Appends the pairs of a record; counts lost records and unfit links."""
        try:
            page = parse_record(record.content) if may_tell(record.content) else None
        except (ValueError, RecursionError):
            self._ledger.lose("bad_json")
            return
        if page is None:
            self._ledger.notes["no_links"] += 1
            return
        self._add_page(page, record.offset)

    def _add_page(self, page: Page, offset: int) -> None:
        base = base_of(page.url, page.base)
        self._ledger.rows_in += len(page.links)
        dropped: Counter[str] = Counter()
        before, without = len(self._urls), 0
        urls, texts = self._urls, self._texts
        for link, alt in page.links:
            if link.__class__ is not str or alt.__class__ is not str:
                reason, url = fit(base, link, alt)
            elif not alt:
                without += 1
                continue
            elif link.startswith(WEB) and len(link) <= MAX_URL and link.isascii():  # the usual case, without a call
                reason, url = "", link
            else:
                reason, url = fit(base, link, alt)
            if reason:
                dropped[reason] += 1
            else:
                urls.append(url)
                texts.append(alt if len(alt) <= MAX_TEXT and alt.isascii() else _text(alt))
        self._ledger.drop("no_alt", without)
        for reason, count in dropped.items():
            self._ledger.drop(reason, count)
        if len(self._urls) > before:
            license_url = license_of(base, page.license) if page.license else None
            self._pages.append((page.url, offset, ",".join(sorted(page.signals)) or None, license_url))
            self._counts.append(len(self._urls) - before)


def may_tell(content: bytes) -> bool:
    """False for a record that certainly has no links: two thirds of the records of a WAT file."""
    return b"HTML-Metadata" in content or b"\\u" in content


def license_of(base: str, link: str) -> str | None:
    """The absolute URL of a license link; None if it is not http or https."""
    reason, url = absolute(base, link)
    return url if not reason and url.startswith(WEB) else None


def fit(base: str, link: Any, alt: Any) -> tuple[str, str]:
    """(reason, "") for a link that gives no pair, else ("", absolute URL)."""
    if not isinstance(link, str) or (alt is not None and not isinstance(alt, str)):
        return "bad_field", ""
    if not alt:
        return "no_alt", ""
    is_absolute = link.startswith(WEB)
    if is_absolute and len(link) <= MAX_URL:
        return "", link if link.isascii() else _LONE.sub("\ufffd", link)
    bare = link.strip(SPACES)
    if not bare:
        return "empty_url", ""
    if bare[:5].lower() == "data:":
        return "data_url", ""
    if len(bare) > MAX_URL:
        return "url_too_long", ""
    if is_absolute:  # too long only because of blanks at its end
        return "", _LONE.sub("\ufffd", link)
    reason, url = absolute(base, bare)
    if reason:
        return reason, ""
    return ("", url) if url.startswith(WEB) else ("bad_scheme", "")


def _text(alt: str) -> str:
    return alt[:MAX_TEXT] if alt.isascii() else _LONE.sub("\ufffd", alt[:MAX_TEXT])


# --------------------------------------------------------------------------------------------------- one record


class _Link(msgspec.Struct, gc=False):
    path: Any = None
    url: Any = None
    alt: Any = None
    href: Any = None
    rel: Any = None


class _Image(msgspec.Struct, tag_field="path", tag="IMG@/src", gc=False):
    url: Any = None
    alt: Any = None
    rel: str | None = None


class _Meta(msgspec.Struct, gc=False):
    name: str | None = None
    content: Any = None


class _HeadLink(msgspec.Struct, gc=False):
    rel: str | None = None
    type: Any = None
    url: Any = None


class _Head(msgspec.Struct, rename={"base": "Base", "metas": "Metas", "links": "Link"}, gc=False):
    base: Any = None
    metas: list[_Meta] | None = None
    links: list[_HeadLink] | None = None


L = TypeVar("L")  # what a link is decoded as


class _Html(msgspec.Struct, Generic[L], rename={"head": "Head", "links": "Links"}, gc=False):
    head: _Head | None = None
    links: list[L] | None = None


class _Http(msgspec.Struct, Generic[L], rename={"html": "HTML-Metadata", "headers": "Headers"}, gc=False):
    html: _Html[L] | None = None
    headers: Any = None


class _Payload(msgspec.Struct, Generic[L], rename={"http": "HTTP-Response-Metadata"}, gc=False):
    http: _Http[L] | None = None


class _Warc(msgspec.Struct, rename={"url": "WARC-Target-URI"}, gc=False):
    url: str | None = None


class _Envelope(
    msgspec.Struct, Generic[L], rename={"payload": "Payload-Metadata", "warc": "WARC-Header-Metadata"}, gc=False
):
    payload: _Payload[L] | None = None
    warc: _Warc | None = None


class _Root(msgspec.Struct, Generic[L], rename={"envelope": "Envelope"}, gc=False):
    envelope: _Envelope[L] | None = None


_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Decoders:
    """Typed decoders of a record. `by_path` is fast, `any` takes all paths.

    `by_path` has a class for each known path and builds only the fields that images need. It refuses a record with an
    unknown path. Then `any` decodes the record, and `learn` adds its paths.
    """

    def __init__(self) -> None:
        self.any = msgspec.json.Decoder(_Root[_Link])
        self._paths = set(PATHS)
        self._build()

    def _build(self) -> None:
        others = [
            msgspec.defstruct(f"_Other{number}", [("rel", str | None, None)], tag_field="path", tag=path, gc=False)
            for number, path in enumerate(sorted(self._paths))
        ]
        self.by_path = msgspec.json.Decoder(_Root[functools.reduce(operator.or_, others, _Image)])  # type: ignore[misc]

    def learn(self, links: list[_Link]) -> None:
        """Adds the paths of these links, up to MAX_PATHS."""
        new = {link.path for link in links if isinstance(link.path, str)} - self._paths - {IMAGE}
        if new and len(self._paths) + len(new) <= MAX_PATHS:
            self._paths |= new
            self._build()


@functools.cache
def _decoders() -> _Decoders:
    return _Decoders()


def parse_record(content: bytes) -> Page | None:
    """The page of a record, or None if the record has no links.

    Raises:
        ValueError, RecursionError: the content is not JSON.
    """
    try:
        root = _decoders().by_path.decode(content)
    except _REFUSED:
        return _parse_any(content)
    page, links = _opened(root)
    if page is None:
        return None
    if not page.license and any(map(_is_license, set(map(_REL, links)))):
        return _parse_any(content)
    kinds, at = list(map(type, links)), -1
    with contextlib.suppress(ValueError):  # `index` is fast: of many links few are images
        while True:
            at = kinds.index(_Image, at + 1)
            page.links.append((links[at].url, links[at].alt))
    return page


def _parse_any(content: bytes) -> Page | None:
    """`parse_record` for any paths of links."""
    try:
        root = _decoders().any.decode(content)
    except _REFUSED:
        return parse_slowly(content)  # a field of an odd type, bad UTF-8, NaN
    page, links = _opened(root)
    if page is None:
        return None
    _decoders().learn(links)
    page.links = [(link.url, link.alt) for link in links if link.path == IMAGE]
    if not page.license:
        page.license = _license_of_anchors((link.rel, link.href or link.url) for link in links if link.rel is not None)
    return page


def _opened(root: _Root) -> tuple[Page | None, list]:
    """(page, all links) of a record; None if it has no links. The page still lacks its links and anchor licenses."""
    envelope = root.envelope
    http = envelope and envelope.payload and envelope.payload.http
    if not envelope or not http or http.html is None or http.html.links is None:
        return None, []
    if not envelope.warc or not envelope.warc.url:
        return None, []
    page = Page(_LONE.sub("\ufffd", envelope.warc.url))
    head = http.html.head
    if head is not None:
        metas = [(meta.name, meta.content) for meta in head.metas or () if meta.name and _meta_kind(meta.name)]
        related = [(link.rel, link.url, link.type) for link in head.links or () if link.rel and _has_license(link.rel)]
        _read_head(page, head.base, metas, related)
    _read_headers(page, http.headers)
    return page, http.html.links


def parse_slowly(content: bytes) -> Page | None:
    """`parse_record` by the standard library, one field at a time. It reads odd records and is the oracle of tests."""
    root = json.loads(content.decode("utf-8-sig", "replace"), parse_int=_number)

    def get(value: Any, *keys: str) -> Any:
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    http = get(root, "Envelope", "Payload-Metadata", "HTTP-Response-Metadata")
    links, url = get(http, "HTML-Metadata", "Links"), get(root, "Envelope", "WARC-Header-Metadata", "WARC-Target-URI")
    if not isinstance(links, list) or not isinstance(url, str) or not url:
        return None
    page = Page(_LONE.sub("\ufffd", url))
    found = [link for link in links if isinstance(link, dict)]
    page.links = [(link.get("url"), link.get("alt")) for link in found if link.get("path") == IMAGE]
    page.links += [(None, None)] * (len(links) - len(found))  # links that are no objects: counted as unfit
    metas, head_links = (get(http, "HTML-Metadata", "Head", key) for key in ("Metas", "Link"))
    named = [(get(meta, "name"), get(meta, "content")) for meta in metas] if isinstance(metas, list) else []
    head_links = head_links if isinstance(head_links, list) else []
    related = [(get(link, "rel"), get(link, "url"), get(link, "type")) for link in head_links]
    _read_head(page, get(http, "HTML-Metadata", "Head", "Base"), named, related)
    _read_headers(page, get(http, "Headers"))
    anchors = ((link.get("rel"), link.get("href") or link.get("url")) for link in found)
    page.license = page.license or _license_of_anchors(anchors)
    return page


def _number(digits: str) -> float:
    """An integer of any length. A long one becomes a float, since int refuses thousands of digits."""
    return int(digits) if len(digits) < 1000 else float(digits)


def _read_head(page: Page, base: Any, metas: list[tuple[Any, Any]], links: list[tuple[Any, Any, Any]]) -> None:
    """Reads the page's head: base, robots metas and TDM reservation (name, content), license (rel, url, type)."""
    page.base = base if isinstance(base, str) and base else None
    for name, value in metas:
        if isinstance(name, str) and isinstance(value, str) and (kind := _meta_kind(name)):
            page.signals |= opt_out_directives(kind, value)
    for rel, url, type_ in links:
        if not _is_license(rel) or not isinstance(url, str):
            continue
        if url and isinstance(type_, str) and rights.is_rsl(rel, type_):
            page.license = page.license if rights.RSL in page.signals else url
            page.signals.add(rights.RSL)
        page.license = page.license or url or None


def _read_headers(page: Page, headers: Any) -> None:
    if not isinstance(headers, dict):
        return
    texts = [(key, value) for key, value in headers.items() if isinstance(key, str) and isinstance(value, str)]
    page.signals |= header_signals(texts)
    for url in header_licences(texts):
        page.license = page.license if rights.RSL in page.signals else absolute(page.url, url)[1] or None
        page.signals.add(rights.RSL)


@functools.lru_cache(maxsize=4096)
def _meta_kind(name: str) -> int:
    """The kind of opt-out signal that a meta of this name holds; 0: none."""
    name = name.strip().lower()
    return ROBOTS_META if name in ROBOTS_NAMES else TDM_META if name == TDM else 0


@functools.lru_cache(maxsize=4096)
def opt_out_directives(kind: int, value: str) -> frozenset[str]:
    """The opt-outs in the value of a meta or a header."""
    if kind == ROBOTS_META:
        return frozenset(directives(value))
    return frozenset(header_signals([(HEADER_NAMES[kind], value)]))


def _license_of_anchors(anchors: Any) -> str | None:
    for rel, href in anchors:
        if rel is not None and _is_license(rel) and isinstance(href, str):
            return href
    return None


def _is_license(rel: Any) -> bool:
    return isinstance(rel, str) and _has_license(rel)


@functools.lru_cache(maxsize=4096)
def _has_license(rel: str) -> bool:
    return "license" in (lowered := rel.lower()) and "license" in lowered.split()
