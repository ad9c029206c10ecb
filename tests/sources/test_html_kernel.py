"""The tokenizer finds the same facts as lexbor, on real and mutated pages. It reads no byte outside its buffers."""

import ctypes
import mmap
import random

import numpy as np
import pytest

from pipeline.engine import jit
from pipeline.engine.ledger import Ledger
from pipeline.sources import archive, html
from tests.fuzzing import SEED, cases
from tests.places import DATA
from tests.sources.test_html import METAS

pytestmark = pytest.mark.skipif(not jit.available(), reason="no kernels here")

WARCS = DATA / "warc"


@pytest.fixture(scope="module")
def kernel():
    from pipeline.sources import html_kernel

    return html_kernel


@pytest.fixture(scope="module")
def pages():
    """The pages of the shared archives; an empty list if the archives are missing."""
    return list(real_pages()) if WARCS.is_dir() else []


def comparable(facts):
    """The facts without the order of the images: a parser moves images between the cells of a table."""
    if facts is None:
        return None
    images = sorted((sorted(attributes.items()), picture, caption) for attributes, picture, caption in facts.images)
    return images, facts.bare, facts.base, facts.license, facts.og, facts.opt_outs


def guarded(size, dtype, front=False):
    """An array that ends (or begins) at protected memory: a read past it kills the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    count = size * np.dtype(dtype).itemsize
    page = mmap.PAGESIZE
    whole = (count + page - 1) // page * page
    memory = mmap.mmap(-1, whole + page)
    array = np.frombuffer(memory, np.uint8)
    guard = array.ctypes.data + (0 if front else whole)
    if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0):
        pytest.skip("memory cannot be protected here")
    part = array[page : page + count] if front else array[whole - count : whole]
    return part.view(dtype)


def tokenised_in_guards(kernel, data, events, buffers):
    """The events of the page, with its data at the end and at the beginning of guarded memory."""
    end, front = buffers
    page = end[len(end) - len(data) :]
    page[:] = np.frombuffer(data, np.uint8)
    answer = kernel.tokenise(page, events)
    page = front[: len(data)]
    page[:] = np.frombuffer(data, np.uint8)
    assert kernel.tokenise(page, events) == answer
    return answer


def real_pages():
    for path in sorted(WARCS.glob("*/*.warc*")):
        if any(part in path.name for part in (".wat", ".wet", ".warc.txt", ".bad")):
            continue
        for record in archive.read_records(str(path), ledger=Ledger()):
            response = archive.http_response(record)
            if response and b"<" in response.body[:2000] and b"\0" not in response.body:
                charset = response.headers.get("content-type", "").partition("charset=")[2]
                yield html.to_utf8(response.body, charset or None)


@pytest.mark.parametrize(("rule", "markup", "signals", "licence"), METAS)
def test_what_a_page_says_of_training(kernel, rule, markup, signals, licence):
    found = html.extract_pairs(markup.encode(), "http://host.example/", scan=kernel.scan)
    assert (found.opt_out, found.license) == (signals, licence), rule


@pytest.mark.skipif(not WARCS.is_dir(), reason="the shared web archives are not here")
def test_real_pages_give_the_same_facts(kernel, pages):
    assert len(pages) > 300
    images = unsure = 0
    for page in pages:
        facts = html.scan_with_lexbor(page)
        assert comparable(kernel.scan(page)) == comparable(facts)
        images += len(facts.images)
        unsure += kernel.tokenise(np.frombuffer(page, np.uint8), np.empty((len(page) // 2 + 64, 4), np.int32))[0] < 0
    assert images > 3000
    assert unsure < len(pages) * 0.1


@pytest.mark.parametrize(
    "markup",
    [
        "",
        "<",
        "<img",
        "<img alt='&lt;&#x41;&#128;&#0;&#xD800;&#99999999999;&amp&notit;&not;&copy=1&copy&nGt;'>",
        "<img alt='&CounterClockwiseContourIntegral; &frac12 &there4; &there4'>",
        "<IMG ALT='a\r\nb' alt=second data-SRC=x/y>",
        "<img/src=a/alt=b/><img alt = b src\n=\t'c'>",
        "<figure><picture><source srcset='a 1x, b 2x'><img alt=x></picture>"
        "<figcaption>c &amp; <b>d</b></figcaption></figure>",
        "<figure><figcaption>before</figcaption><img src=a></figure><img src=b>",
        "<svg><title>a</title><path/><style>a > b</style></svg><img src=a alt=b>",
        "<script><!--<script></script><img alt=no></script><img src=a alt=b>",
        "<!--><img src=a alt=b>--><!---><img src=c alt=d><!-- --!><img src=e alt=f>",
        "<template><template></template><img alt=no></template><img src=a alt=b>",
        "<title><img alt=no></titlex></title ><img src=a alt=b>",
        "<custom-element-of-mine><figure><my-long-tag-name><img src=a alt=b></my-long-tag-name></figure>",
    ],
)
def test_tokens_alone_tell(kernel, markup):
    data = markup.encode()
    if data:
        assert kernel.tokenise(np.frombuffer(data, np.uint8), np.empty((1000, 4), np.int32))[0] >= 0
    assert comparable(kernel.scan(data)) == comparable(html.scan_with_lexbor(data))


@pytest.mark.parametrize(
    "markup",
    [
        "<image src=a alt=b>",
        "<frameset><img src=a alt=b></frameset>",
        "<plaintext><img src=a alt=b>",
        "\0<img src=a alt=b>",
        "<svg><style><img src=a alt=b></style></svg>",
        "<svg><![CDATA[<img src=a alt=b>]]></svg>",
        "<math></svg><xmp><img src=a alt=b>",
        "<select><img src=a alt=b></select>",
        "<div><figure><img src=a alt=b></div><img src=c alt=d><figcaption>x</figcaption></figure>",
        "<p><picture><source srcset=a><div><img alt=b></picture>",
        "<figure><table><tr><td><img src=a></figure><figcaption>x</figcaption></table>",
        "<figure><img src=a alt=b>",
        "<figure>" + "<span>" * 200 + "<img src=a>" + "</span>" * 200 + "</figure>",
    ],
)
def test_pages_that_need_a_tree_get_one(kernel, markup):
    data = markup.encode()
    assert (
        b"\0" in data
        or kernel.tokenise(np.frombuffer(data, np.uint8), np.empty((1000, 4), np.int32))[0] == kernel.UNSURE
    )
    assert comparable(kernel.scan(data)) == comparable(html.scan_with_lexbor(data))


def test_a_full_table_of_events_is_unsure_and_nothing_is_written_behind_it(kernel):
    data = b"<img src=a alt=b>" * 1000
    for size in (40, 500, 2999):
        assert (
            kernel.tokenise(np.frombuffer(data, np.uint8), guarded(size * 4, np.int32).reshape(size, 4))[0]
            == kernel.UNSURE
        )


TAGS = """
figure /figure figcaption /figcaption picture /picture div /div p /p b /b a /a li ul /ul h2 /h2 span /span form button
/button br /br table td /td tr /table caption select /select option template /template svg /svg svg/ path/ math mi
foreignObject desc object video /video body html head /body nobr dd ruby rt dialog center font /font frame frameset
param embed listing noembed /noembed iframe /iframe xmp textarea /textarea title /title style /style noscript /noscript
script /script plaintext fieldset details blockquote /blockquote
"""
BITS = """
< > " ' & = / &# &#x110000; &#0; &#128; &amp &notit; &nGt; <!-- --> <!--> --!> <! <? </ <![CDATA[ ]]> text \xa0 é
<img/src=a/alt=b/> <base/href=//q/> <base/href> <source/srcset=c>
"""
PIECES = [f"<{name}>".encode() for name in TAGS.split()] + [bit.encode() for bit in BITS.split()]
PIECES += [
    b" ",
    b"\r",
    b"\r\n",
    b"\t",
    b"<img src=a alt=b>",
    b'<img src="a" alt="x&amp;y&copy=1" alt=z>',
    b"<IMG SRC='q r' ALT=\"1\n2\">",
    b"<image src=a alt=b>",
    b'<img src=a alt="',
    b'<picture><source srcset="a 1x, b 2x">',
    b"<a href=x",
    b"<img alt src>",
    b'srcset=",,a 1.5x,b"',
    b'data-src="x/y"',
    b"<a href=x rel=license>",
    b"<link type=application/rsl+xml href=x rel=license><link rel=license href=y>",
    b"<link rel=license href=y><link type='application/RSL+xml;x' href=x rel='license n'>",
    b"<link rel=license href=y type=x type=application/rsl+xml>",
    b"<link rel=alternate href=y type=application/rsl+xml>",
    b'<link rel="x license" href=l>',
    b"<meta name=robots content=noai>",
    b'<meta property="og:title" content="a&lt;b">',
    b'<meta content=x name=" og:image">',
    b"<script><!--<script>",
    b'<annotation-xml encoding="text/html">',
]
FIGURES = [piece for piece in PIECES if piece.strip(b"</>") in b"figure figcaption picture div p a img text".split()]
FIGURES += [b"<img src=a alt=b>", b"<source srcset=c>"]
ORDINARY = b"""<html><head><title>t</title><meta property=og:image content=o><base href=/b></head><body><div>
<p>a<img src=a.jpg alt='one'><figure><a><img src=b.jpg alt=two title=t></a><figcaption>cap <i>t</i></figcaption>
</figure><table><tr><td><img src=c alt=three></td></tr></table>
<picture><source srcset='d 1x, e 2x'><img alt=four></picture>
<script>x = '<img alt=no>'</script></div>"""


def mutated(chance, pages):
    """One page: a real page with a few pieces inserted, or a random mix of pieces."""
    if chance.random() < 0.5:
        page = bytearray(chance.choice(pages))
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(page) + 1)
            piece = chance.choice(PIECES)
            how = chance.randrange(4)
            if how == 0:
                page[at:at] = piece
            elif how == 1:
                page[at : at + len(piece)] = piece
            elif how == 2:
                del page[at : at + chance.choice((1, 3, 30))]
            elif at < len(page):
                page[at] = chance.randrange(256)
        return bytes(page)
    pool = PIECES if chance.random() < 0.5 else FIGURES + [chance.choice(PIECES) for _ in range(3)]
    return b"".join(chance.choice(pool) for _ in range(chance.randrange(1, 40 if pool is PIECES else 16)))


def test_mutated_pages_give_the_same_facts_and_no_byte_outside_is_read(kernel, pages):
    chance = random.Random(SEED)
    pages = [ORDINARY, *[page for page in pages if len(page) < 20_000 and b"<img" in page][:60]]
    buffers = guarded(1 << 17, np.uint8), guarded(1 << 17, np.uint8, front=True)
    events = guarded(4 * 3000, np.int32).reshape(3000, 4)
    done = answered = 0
    for _ in cases(30_000):
        page = html.to_utf8(mutated(chance, pages), None)[: 1 << 17]
        done += 1
        if not page or b"\0" in page or tokenised_in_guards(kernel, page, events, buffers)[0] == kernel.UNSURE:
            continue
        answered += 1
        assert comparable(kernel.scan(page)) == comparable(html.scan_with_lexbor(page)), (SEED, page)
    assert answered > done * 0.3


NESTED = [f"<{name}>".encode() for name in "div /div b /b p a /a table td /td /table svg /svg button /button".split()]
NESTED += [
    b"<x-y-element>",
    b"</x-y-element>",
    b"<B x=1>",
    b"</B >",
    b"<i/>",
    b"</",
    b"<<div",
    b"text",
    b"<li>",
    b"<!--",
]
NESTED += [b"<a-name-of-more-than-20-bytes>"]


def test_the_bounds_of_nesting_are_the_same_compiled():
    from pipeline.sources import html_bounds, html_bounds_kernel

    chance = random.Random(SEED)
    costly = 0
    for _ in range(150):
        pool = [chance.choice(NESTED) for _ in range(chance.randrange(1, 9))]
        size = chance.randrange(2_000, 4_000)
        page = b"".join(chance.choices(pool, k=size)) + b" " * chance.choice((0, 10_000, 200_000, 1_000_000))
        found = html_bounds.has_costly_nesting(page)
        assert html_bounds_kernel.has_costly_nesting(page) == found, (SEED, page)
        costly += found
    assert 5 < costly < 145


def test_pairs_are_the_same_by_both_scanners(kernel):
    for page in (ORDINARY, ORDINARY * 3, b"<table><td><img src=a alt='x'><tr><img src=a title='x '>" * 3):
        plain = html.extract_pairs(page, "http://h/")
        fast = html.extract_pairs(page, "http://h/", scan=kernel.scan)
        rows = [
            sorted(zip(made.urls, made.texts, made.text_sources, made.url_sources, strict=True))
            for made in (plain, fast)
        ]
        assert rows[0] == rows[1] and (plain.found, plain.dropped) == (fast.found, fast.dropped)
