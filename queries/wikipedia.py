"""Reads articles from Wikipedia's dumps: a CirrusSearch index (JSON lines with plain text) or MediaWiki XML.

Redirects and pages of other namespaces give no text. A page that cannot be read is counted and left out.
mwparserfromhell parses the wikitext. Files, categories, tables and the rest of the markup are removed.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from queries import streams
from queries.streams import Piece

LONGEST = 4_000_000  # characters of wikitext; a longer page is not parsed

_TITLE = re.compile(rb"<title>(.*?)</title>", re.DOTALL)
_NAMESPACE = re.compile(rb"<ns>\s*(-?\d+)\s*</ns>")
_REDIRECT = re.compile(rb'<redirect title="([^"]*)"')
_TEXT = re.compile(rb"<text\b[^>]*?(?:/>|>(.*?)</text>)", re.DOTALL)
_LANGUAGES = (
    re.compile(r"<dbname>(\w+?)wiki</dbname>"),
    re.compile(r'<mediawiki\b[^>]*\bxml:lang="([^"]+)"'),
    re.compile(r'"wiki":\s?"(\w+?)wiki"'),
    re.compile(r'"language":\s?"([^"]+)"'),
)

_COMMENT = re.compile(r"<!--.*?(?:-->|$)", re.DOTALL)
_OPAQUE = re.compile(
    r"<(math|syntaxhighlight|source|gallery|timeline|score|imagemap|chem|hiero|graph)\b[^>]*(?:/>|>.*?</\1>)",
    re.DOTALL | re.IGNORECASE,
)
_REFERENCE = re.compile(r"<ref\b[^>]*/>|<ref\b[^>]*>.*?</ref\s*>", re.DOTALL | re.IGNORECASE)
_UNSEEN = ("table", "ref", "references", "style", "script")
_BLOCKS = ("br", "p", "div", "li", "dd", "dt", "hr", "blockquote")
_SWITCH = re.compile(r"__[A-Z]+__")
_NOISE = re.compile(r"'{2,}|\[https?://\S*\s?|https?://\S+|^[*#:;|!{}]+|[\[\]{}]{2,}", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Page:
    """An article with its `text`, or a redirect to the article `target`."""

    title: str
    text: str = ""
    target: str = ""
    links: int = 0  # from other articles; 0 if the dump does not have them


class _Redirect(msgspec.Struct):
    title: str = ""
    namespace: int = 0


class _CirrusPage(msgspec.Struct):
    title: str | None = None
    text: str | None = None
    namespace: int | None = None
    incoming_links: int | None = None
    redirect: list[_Redirect] | None = None


def kind_of(path: str) -> str:
    """The kind of a dump by its first bytes: cirrus, xml, or "" for any other file, also a damaged or empty one."""
    head = _head(path)
    return "cirrus" if head.startswith("{") else "xml" if head.startswith("<") else ""


def languages_of(path: str) -> list[str]:
    """The language codes in the beginning of a dump: of the wiki ("no", "simple") and of the text ("nb", "en")."""
    head = _head(path)
    return [match[1].replace("_", "-") for form in _LANGUAGES if (match := form.search(head))]


def _head(path: str) -> str:
    head = streams.first_bytes(path)
    return head.decode(streams.encoding_of(head[:2]), "replace").lstrip("\ufeff \r\n\t")


def pages(piece: Piece, kind: str, tally: Counter[str]) -> Iterator[Page]:
    """Yields the articles and redirects of a piece. `tally` counts the articles and all other pages."""
    if kind == "cirrus":
        decode = msgspec.json.Decoder(_CirrusPage).decode
        for block in streams.line_blocks(piece, tally):
            for line in block.split(b"\n"):
                if line.strip() and not line.startswith(b'{"index"'):
                    yield from _cirrus_pages(line, decode, tally)
        return
    for record in streams.records(piece, b"<page>", tally):
        yield from _xml_pages(record, tally)


def _cirrus_pages(line: bytes, decode: Any, tally: Counter[str]) -> Iterator[Page]:
    try:
        page = decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        tally["line_malformed"] += 1
        return
    if page.namespace or not page.title:
        tally["page_of_other_namespace" if page.namespace else "page_without_title"] += 1
        return
    tally["articles"] += 1
    yield Page(page.title, page.text or "", links=page.incoming_links or 0)
    for redirect in page.redirect or ():
        if redirect.namespace == 0 and redirect.title:
            yield Page(redirect.title, target=page.title)


def _xml_pages(record: bytes, tally: Counter[str]) -> Iterator[Page]:
    title = _TITLE.search(record)
    if title is None:
        if b"<text" in record:
            tally["page_without_title"] += 1
        return  # the part of the file before the first page
    namespace = _NAMESPACE.search(record)
    if namespace is not None and int(namespace[1]):
        tally["page_of_other_namespace"] += 1
        return
    name = _unescape(title[1])
    redirect = _REDIRECT.search(record)
    if redirect is not None:
        tally["redirects"] += 1
        yield Page(name, target=_unescape(redirect[1]))
        return
    text = _TEXT.search(record)
    if text is None:
        tally["page_cut"] += 1
        return
    source = _unescape(text[1] or b"")
    if source[:9].lower() == "#redirect":
        tally["redirects"] += 1
        return
    try:
        plain = plain_text(source)
    except (RecursionError, ValueError, IndexError, MemoryError, SystemError, AttributeError, TypeError, KeyError):
        tally["wikitext_unparsed"] += 1
        return
    tally["articles"] += 1
    yield Page(name, plain)


def _unescape(data: bytes) -> str:
    return html.unescape(data.decode("utf-8", "replace"))


def plain_text(source: str) -> str:
    """Wikitext as a reader sees it, without tables, templates, references and files.

    Raises:
        ValueError: the wikitext is longer than LONGEST.
    """
    import mwparserfromhell

    if len(source) > LONGEST:
        raise ValueError(f"{len(source)} characters of wikitext")
    source = _REFERENCE.sub("", _OPAQUE.sub(" ", _COMMENT.sub("", source)))
    plain = _text_of(mwparserfromhell.parse(source, skip_style_tags=True))
    return _NOISE.sub(" ", _SWITCH.sub(" ", plain))


def _text_of(code: Any) -> str:
    """The visible text of parsed wikitext. This is much faster than to remove nodes and call `strip_code`."""
    from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink

    parts: list[str] = []
    for node in code.nodes:
        if isinstance(node, Text):
            parts.append(node.value)
        elif isinstance(node, Wikilink):
            if not _is_file(str(node.title)):
                parts.append(_text_of(node.title if node.text is None else node.text))
        elif isinstance(node, ExternalLink):
            parts.append(_text_of(node.title) if node.title is not None else "")
        elif isinstance(node, Heading):
            parts.append(_text_of(node.title))
        elif isinstance(node, HTMLEntity):
            parts.append(node.normalize())
        elif isinstance(node, Tag) and node.contents is not None:
            name = str(node.tag).strip().lower()
            if name not in _UNSEEN:
                parts.append(_text_of(node.contents))
            parts.append("\n" if name in _BLOCKS else "")
    return "".join(parts)


def _is_file(title: str) -> bool:
    """True for links to files, categories and other languages: a prefix, and no blank after the colon."""
    prefix, colon, rest = title.partition(":")
    return bool(colon and prefix.strip() and rest[:1].strip()) and len(prefix) < 24
