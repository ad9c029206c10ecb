"""The work on a page or a record of a WAT file is linear: four times the bytes take at most five times the CPU time.

Each pattern repeats one piece of markup: every element and attribute that is read, side by side, nested, and without
its end. The times are CPU times without garbage collection. A pattern is measured again while the ratio is too large,
and the best times count, so that a busy machine fails no test. Below FLOOR_S the work is called constant.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator

import pytest

from pipeline.engine import jit
from pipeline.engine.ledger import Ledger
from pipeline.sources import html, html_bounds, wat
from pipeline.sources.archive import Record
from tests.archives import member, wat_record

SMALL, LARGE = 40_000, 160_000  # bytes
RATIO = 5.0
FLOOR_S = 0.005
TRIES = 4


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def check_growth(work: Callable[[bytes], object], made: Callable[[int], bytes]) -> None:
    inputs = made(SMALL), made(LARGE)
    best = [float("inf"), float("inf")]
    for _ in range(TRIES):
        for which, data in enumerate(inputs):
            start = time.process_time()
            work(data)
            best[which] = min(best[which], time.process_time() - start)
        if best[1] <= RATIO * max(best[0], FLOOR_S):
            return
    pytest.fail(f"{len(inputs[0])} bytes: {best[0]:.4f} s; {len(inputs[1])} bytes: {best[1]:.4f} s")


# ---- pages

# (before, unit, after). A number in the unit is the number of the repetition.
PAGES = {
    "figure with figcaption, nested": ("", "<figure><figcaption>", ""),
    "figure with figcaption and text, nested": ("", "<figure><figcaption>x", ""),
    "figure with figcaption and image, nested": ("", "<figure><figcaption><img src=a alt=b>", ""),
    "figure, nested": ("", "<figure>", ""),
    "figure, side by side": ("", "<figure><img src=a><figcaption>c</figcaption></figure>", ""),
    "figcaption, nested": ("", "<figcaption>", ""),
    "figcaptions of one figure": ("<figure><img src=a>", "<figcaption>x</figcaption>", "</figure>"),
    "caption of blocks": ("<figure><img src=a><figcaption>", "<p>", "</figcaption></figure>"),
    "caption of formatting": ("<figure><img src=a><figcaption>", "x<b>", "</figcaption></figure>"),
    "caption of drawings": ("<figure><img src=a><figcaption>", "<svg>", "</figcaption></figure>"),
    "caption of text": ("<figure><img src=a><figcaption>", "word ", "</figcaption></figure>"),
    "picture, nested": ("", "<picture>", ""),
    "picture with image": ("", "<picture><source srcset=a><img alt=x></picture>", ""),
    "picture with source, nested": ("", "<picture><source srcset='a,'>", ""),
    "sources of one picture": ("<picture>", "<source srcset='a 1x'>", "<img alt=x></picture>"),
    "source": ("", "<source srcset=a>", ""),
    "images": ("", "<img src={} alt=b>", ""),
    "equal images": ("", "<img src=a alt=b>", ""),
    "images without a text": ("", "<img src=a>", ""),
    "images without an end": ("", "<img alt=x ", ""),
    "image elements": ("", "<image src=a alt=b>", ""),
    "attributes of an image": ("<img ", "a{}=1 ", ">"),
    "attributes with quotes and >": ("<img ", "a{}='>'", ">"),
    "attributes without a value": ("<img ", "a{} ", ">"),
    "attributes of a tag that has no end": ("<img ", "a{}=1 ", ""),
    "attributes of a div": ("<div ", "a{}=1 ", ">"),
    "attributes of an end tag": ("</div ", "a{}=1 ", ">"),
    "equal attributes": ("<img ", "alt=x ", ">"),
    "tags in attributes": ("<img ", "a{}='<img b=\"' ", ">"),
    "tags without an end": ("", "<a ", ""),
    "tags without a name's end": ("", "<a", ""),
    "values without an end": ("", "<a x=", ""),
    "quotes without an end": ("", '<a x="', ""),
    "alt of blanks": ("<img src=a alt='", " ", "'>"),
    "alt of line ends": ("<img src=a alt='", "\r", "'>"),
    "alt of references": ("<img src=a alt='", "&amp", "'>"),
    "alt of a long reference": ("<img src=a alt='&#", "1", "'>"),
    "title of a long name": ("<img src=a title='&", "a", "'>"),
    "src of slashes": ("<img alt=x src='/", "/", "'>"),
    "src of dots": ("<img alt=x src='", "../", "'>"),
    "src of line ends": ("<img alt=x src='", "a\n", "'>"),
    "data-src of braces": ("<img alt=x src=a data-src='/", "{{", "'>"),
    "srcset of commas": ("<img alt=x srcset='", ",", "'>"),
    "srcset of candidates": ("<img alt=x srcset='", "a 1w, ", "'>"),
    "srcset of blanks": ("<img alt=x srcset='a", " ", "'>"),
    "srcset of descriptors": ("<img alt=x srcset='a ", "1x ", "'>"),
    "srcset of digits": ("<img alt=x srcset='a ", "1", "'>"),
    "srcset of brackets": ("<img alt=x srcset='", "a (,", "'>"),
    "data-srcset of candidates": ("<img alt=x data-srcset='", "a ,", "'>"),
    "base": ("", "<base href=x>", ""),
    "links to a long base": ("<base href='/{long}/'>", "<img alt=x src=a>", ""),
    "base of dots": ("<base href='", "../", "'><img alt=x src=a>"),
    "meta robots": ("", "<meta name=robots content=noai>", ""),
    "meta robots of commas": ("<meta name=robots content='", "noai,", "'>"),
    "meta of og:image": ("", "<meta property=og:image content=x>", ""),
    "meta in a page that is not UTF-8": ("\udcff", "<meta charset=x>", ""),
    "comments in a page that is not UTF-8": ("\udcff", "<!-- <a b='", ""),
    "meta without an end": ("", "<meta charset=", ""),
    "meta of blanks": ("<meta charset", " ", "=utf-8>"),
    "licenses": ("", "<link rel=license href=>", ""),
    "license links": ("", "<a rel=license href=x>", ""),
    "rel of words": ("<a href=x rel='", "license ", "'>"),
    "links": ("", "<a href=x>", ""),
    "div, nested": ("", "<div>", ""),
    "div that another tag ends": ("", "<div></x>", ""),
    "formatting in blocks": ("", "<b><p>", ""),
    "formatting that differs": ("", "<font a={}><p>", ""),
    "formatting in links": ("", "<a><b><p>", ""),
    "nobr": ("", "<nobr><i>", ""),
    "tables, nested": ("", "<table><td>", ""),
    "cells": ("", "<td><b></td><p>x", ""),
    "lists, nested": ("", "<ul><li>", ""),
    "list items": ("", "<li>", ""),
    "buttons": ("", "<button><p>", ""),
    "options": ("", "<select><option>", ""),
    "headings": ("", "<h1>", ""),
    "templates": ("", "<template>", ""),
    "noscript": ("", "<noscript>", ""),
    "drawings, nested": ("", "<svg><desc>", ""),
    "formulas, nested": ("", "<math><mi>", ""),
    "end tags": ("", "</p>", ""),
    "comments": ("", "<!--", ""),
    "comments that end": ("", "<!-->-", ""),
    "declarations": ("", "<!x", ""),
    "scripts": ("", "<script>", ""),
    "scripts in comments": ("", "<script><!--<script>", ""),
    "raw text": ("<title>", "</titlx ", ""),
    "text areas": ("", "<textarea>", ""),
    "CDATA": ("", "<svg><![CDATA[", ""),
    "frames": ("", "<frameset>", ""),
    "less": ("", "<", ""),
    "references": ("", "&#x", ""),
    "zero bytes": ("", "\0", ""),
}


def page_of(before: str, unit: str, after: str, size: int) -> bytes:
    count = max(1, size // len(unit))
    units = unit * count if "{}" not in unit else "".join(map(unit.replace("{}", "%d").__mod__, range(count)))
    return (before.replace("{long}", "x" * size) + units + after).encode("utf-8", "surrogateescape")


@pytest.fixture(params=["lexbor", "kernel"])
def scan(request: pytest.FixtureRequest) -> Callable:
    if request.param == "lexbor":
        return html.scan_with_lexbor
    if not jit.available():
        pytest.skip("no kernels here")
    from pipeline.sources import html_kernel

    html_kernel.scan(b"<img>")
    return html_kernel.scan


@pytest.mark.parametrize("pattern", PAGES)
def test_pages(pattern: str, scan: Callable) -> None:
    def work(page: bytes) -> html.PagePairs:
        return html.extract_pairs(page, "http://h.example/d/p", scan=scan)

    check_growth(work, lambda size: page_of(*PAGES[pattern], size))


# lexbor's guard takes the "tags" in a title or in a comment for tags, and refuses the page.
TAGS_IN_TEXT = ("raw text", "comments in a page that is not UTF-8")


@pytest.mark.skipif(not jit.available(), reason="no kernels here")
def test_both_scanners_give_the_same_pairs_for_every_pattern() -> None:
    from pipeline.sources import html_kernel

    for pattern, parts in PAGES.items():
        page = page_of(*parts, SMALL)
        plain, fast = (
            html.extract_pairs(page, "http://h.example/d/p", scan=scan)
            for scan in (html.scan_with_lexbor, html_kernel.scan)
        )
        rows = [sorted(zip(found.urls, found.texts, found.text_sources, strict=True)) for found in (plain, fast)]
        assert rows[0] == rows[1], pattern
        if pattern not in TAGS_IN_TEXT:
            assert (plain.found, plain.notes, plain.dropped) == (fast.found, fast.notes, fast.dropped), pattern


def test_what_is_cut_is_counted() -> None:
    deep = html.extract_pairs(page_of("", "<figure><figcaption>", "", SMALL), "http://h/")
    many = html.extract_pairs(page_of("", "<img src={} alt=b>", "", 30 * html.MAX_IMAGES), "http://h/")
    assert deep.notes == {"page_not_parsed": 1}
    assert many.found == html.MAX_IMAGES and many.notes["images_cut"] > 1000


@pytest.mark.parametrize("value", ["1", "'a'", '"a > b"', "'<img a=\"'"])
@pytest.mark.parametrize("extra", [0, 1])
def test_the_number_of_attributes_is_bounded(value: str, extra: int, scan: Callable) -> None:
    count = html_bounds.MAX_ATTRIBUTES - 2 + extra  # two more are src and alt
    attributes = " ".join(f"attribute{number}={value}" for number in range(count))
    page = html.extract_pairs(f"<img src=a alt=b {attributes}>".encode(), "http://h/", scan=scan)
    assert (page.texts, page.notes) == (([], {"page_not_parsed": 1}) if extra else (["b"], {}))


# ---- records of WAT files

IMAGE = '{"path":"IMG@/src","url":"%s","alt":"%s"}'


def record_of(links: str = "", *, head: str = "{}", headers: str = "{}", extra: str = "1") -> bytes:
    links = links or IMAGE % ("a.jpg", "b")
    html_metadata = f'"HTML-Metadata":{{"Head":{head},"Links":[{links}]}}'
    return (
        '{"Envelope":{"WARC-Header-Metadata":{"WARC-Target-URI":"http://h.example/d/p"},"Payload-Metadata":'
        f'{{"HTTP-Response-Metadata":{{"Headers":{headers},{html_metadata}}}}},"Other":{extra}}}}}'
    ).encode("utf-8", "surrogateescape")


def many(unit: str, size: int, around: tuple[str, str] = ("", "")) -> str:
    units = max(1, size // (len(unit) + 1))
    return around[0] + ",".join(unit.replace("{}", str(number)) for number in range(units)) + around[1]


RECORDS: dict[str, Callable[[int], bytes]] = {
    "images": lambda size: record_of(many(IMAGE % ("a{}.jpg", "b"), size)),
    "images with odd URLs": lambda size: record_of(many(IMAGE % ("../a b.jpg", "b"), size)),
    "images without alt": lambda size: record_of(many('{"path":"IMG@/src","url":"a"}', size)),
    "data URLs": lambda size: record_of(many(IMAGE % ("data:,", "b"), size)),
    "URL of dots": lambda size: record_of(IMAGE % ("../" * (size // 3), "b")),
    "URL of escapes": lambda size: record_of(IMAGE % (r"\u00e4" * (size // 6), "b")),
    "URL of surrogates": lambda size: record_of(IMAGE % (r"\ud800" * (size // 6), "b")),
    "alt of references": lambda size: record_of(IMAGE % ("a", "&amp;" * (size // 5))),
    "other links": lambda size: record_of(many('{"path":"A@/href","url":"a","text":"x"}', size)),
    "paths that differ": lambda size: record_of(many('{"path":"Q{}@/href","url":"a"}', size)),
    "licenses": lambda size: record_of(many('{"path":"A@/href","url":"a","rel":"license{}"}', size)),
    "rel of words": lambda size: record_of('{"path":"A@/href","url":"a","rel":"%s"}' % ("license " * (size // 8))),
    "keys of a link": lambda size: record_of(many('"k{}":1', size, ('{"path":"IMG@/src","url":"a","alt":"b",', "}"))),
    "links of another type": lambda size: record_of(many("7", size)),
    "empty links": lambda size: record_of(many("{}", size)),
    "metas": lambda size: record_of(head=many('{"name":"robots","content":"noai"}', size, ('{"Metas":[', "]}"))),
    "meta of commas": lambda size: record_of(
        head='{"Metas":[{"name":"robots","content":"%s"}]}' % ("noai," * (size // 5))
    ),
    "links of the head": lambda size: record_of(head=many('{"rel":"license","url":"x"}', size, ('{"Link":[', "]}"))),
    "links to a long base": lambda size: record_of(
        many(IMAGE % ("a", "b"), size // 2), head='{"Base":"http://h/%s/"}' % ("x" * (size // 2))
    ),
    "bases": lambda size: record_of(head=many('"Base":"http://h/x/"', size, ("{", "}"))),
    "headers": lambda size: record_of(headers=many('"h{}":"1"', size, ("{", "}"))),
    "X-Robots-Tag, many": lambda size: record_of(headers=many('"x-robots-tag":"noai"', size, ("{", "}"))),
    "X-Robots-Tag of colons": lambda size: record_of(headers='{"x-robots-tag":"%s"}' % ("a:" * (size // 2))),
    "X-Robots-Tag of commas": lambda size: record_of(headers='{"x-robots-tag":"%s"}' % ("," * size)),
    "arrays, nested": lambda size: record_of(extra="[" * (size // 2) + "]" * (size // 2)),
    "objects, nested": lambda size: record_of(extra='{"a":' * (size // 6) + "1" + "}" * (size // 6)),
    "arrays without an end": lambda size: record_of(extra="[" * size),
    "blanks": lambda size: record_of(extra="1" + " " * size),
    "digits": lambda size: record_of(extra="1" * size),
    "quotes": lambda size: record_of(extra='"%s"' % ('\\"' * (size // 2))),
    "backslashes": lambda size: record_of(extra='"%s"' % ("\\\\" * (size // 2))),
    "escapes": lambda size: record_of(extra='"%s"' % (r"\u0041" * (size // 6))),
    "bytes that are not UTF-8": lambda size: record_of(extra='"%s"' % ("\udcff" * size)),
}


def by_decoder(content: bytes) -> None:
    wat.Rows(Ledger()).add(Record(0, "metadata", "", b"", content))


@pytest.mark.parametrize("pattern", RECORDS)
@pytest.mark.parametrize("reader", ["careful", "decoder", "kernel"])
def test_records(pattern: str, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work: Callable[[bytes], object] = by_decoder
    made = RECORDS[pattern]
    if reader == "careful":
        monkeypatch.setattr(wat, "parse_record", wat.parse_slowly)
    if reader == "kernel":
        kernel = jit.kernel("pipeline.sources.wat_kernel", 1 << 40)
        if kernel is None or not kernel.usable():
            pytest.skip("no kernels here")
        buffers = kernel._Buffers()

        def work(packed: bytes) -> object:
            return kernel.Scanner(packed, Ledger(), buffers).run(0)

        def made(size: int) -> bytes:
            return member(wat_record(0, RECORDS[pattern](size)))

        work(made(100))
    check_growth(work, made)
