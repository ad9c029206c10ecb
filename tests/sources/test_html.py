"""The pairs of a page: URLs, texts and signals of the page. No bytes can do harm."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.schema import TEXT_SOURCES, URL_SOURCES
from pipeline.sources import html
from pipeline.sources.html import extract_pairs, to_utf8

PAGE = "http://host.example/dir/page.html"


def pairs(markup, **options):
    if isinstance(markup, str):
        markup = markup.encode()
    page = extract_pairs(markup, PAGE, **options)
    assert page.found == len(page.urls) + sum(page.dropped.values())
    rows = zip(page.urls, page.texts, page.text_sources, page.url_sources, strict=True)
    return [(url, text, TEXT_SOURCES[kind], URL_SOURCES[place]) for url, text, kind, place in rows]


@pytest.mark.parametrize(
    ("markup", "url", "place"),
    [
        ('<img src="a.jpg" alt="x">', "http://host.example/dir/a.jpg", "src"),
        ("<IMG ALT=x SRC=/a.jpg>", "http://host.example/a.jpg", "src"),
        ('<img src="//cdn.example/a.jpg" alt="x">', "http://cdn.example/a.jpg", "src"),
        ('<img src=" https://o.example/a.jpg\n" alt="x">', "https://o.example/a.jpg", "src"),
        ('<img src="../a b.jpg" alt="x">', "http://host.example/a%20b.jpg", "src"),
        (r'<img src="\images\c.jpg" alt="x">', "http://host.example/images/c.jpg", "src"),
        (r'<img src="http:\\b.example\f.jpg" alt="x">', "http://b.example/f.jpg", "src"),
        ('<img src="///d.example/d.jpg" alt="x">', "http://d.example/d.jpg", "src"),
        ('<base href="HTTP://CDN.example/"><img src=a.jpg alt=x>', "http://cdn.example/a.jpg", "src"),
        ('<img src="?a=1&copy=2&amp;b=3" alt="x">', "http://host.example/dir/page.html?a=1&copy=2&b=3", "src"),
        ('<base href="/up/"><base href="/no/"><img src=a.jpg alt=x>', "http://host.example/up/a.jpg", "src"),
        ('<base href="javascript:0"><img src=a.jpg alt=x>', "http://host.example/dir/a.jpg", "src"),
        ('<img src="low.jpg" data-src="/true.jpg" alt="x">', "http://host.example/true.jpg", "lazy"),
        ('<img alt="x" data-src="/true.jpg">', "http://host.example/true.jpg", "lazy"),
        ('<img src="a.jpg" alt="x" data-src="/blank.gif">', "http://host.example/dir/a.jpg", "src"),
        ('<img src="data:image/gif;base64,R0" data-original="l.jpg" alt="x">', "http://host.example/dir/l.jpg", "lazy"),
        ('<img data-url="/second.jpg" data-lazy-src="/first.jpg" alt="x">', "http://host.example/first.jpg", "lazy"),
        ('<img src="a.jpg" data-image="12345" alt="x">', "http://host.example/dir/a.jpg", "src"),
        ("""<img src="a.jpg" data-image='{"a": "b.jpg"}' alt="x">""", "http://host.example/dir/a.jpg", "src"),
        ('<img src="a.jpg" data-src="data:image/png,x.y" alt="x">', "http://host.example/dir/a.jpg", "src"),
        ('<img src="low.jpg" data-srcset="b.jpg 300w, c.jpg 900w" alt="x">', "http://host.example/dir/c.jpg", "srcset"),
        ('<img src="a.jpg" srcset="b.jpg 2x" alt="x">', "http://host.example/dir/a.jpg", "src"),
        ('<img srcset="b.jpg, c.jpg 2x" alt="x">', "http://host.example/dir/c.jpg", "srcset"),
        ('<img src="/img/blank.gif" srcset="b.jpg 2x" alt="x">', "http://host.example/dir/b.jpg", "srcset"),
        (
            '<picture><source srcset="p.webp 1x, q.webp 2x"><source srcset=r.jpg><img alt=x></picture>',
            "http://host.example/dir/q.webp",
            "picture",
        ),
    ],
)
def test_which_url(markup, url, place):
    assert pairs(markup) == [(url, "x", "alt", place)]


@pytest.mark.parametrize(
    ("markup", "reason"),
    [
        ('<img alt="x">', "no_image_url"),
        ('<img src="  " alt="x">', "no_image_url"),
        ('<img src="data:image/gif;base64,R0lGOD" alt="x">', "data_url"),
        ('<img src="/img/spacer.gif?v=2" alt="x">', "placeholder"),
        ('<img src="http://[bad/a.jpg?" alt="x"><img src="//[bad" alt=y>', None),
        (f'<img src="/{"a" * 20_000}" alt="x">', "url_too_long"),
    ],
)
def test_images_without_a_usable_url_are_counted(markup, reason):
    page = extract_pairs(markup.encode(), PAGE)
    assert page.found == len(page.urls) + sum(page.dropped.values())
    if reason:
        assert (page.urls, page.dropped) == ([], {reason: 1})


def test_one_image_gives_a_pair_a_text_and_no_pair_twice():
    markup = """
    <figure><a href=x><img src=a.jpg alt="An alt" title="A title"></a><figcaption>The <b>cap</b>tion<br>goes on
      <script>no</script><style>no</style></figcaption></figure>
    <img src=a.jpg alt="An  alt"><img src=b.jpg alt="same" title=" same "><img src=c.jpg alt="" title=" ">
    """
    a, b = "http://host.example/dir/a.jpg", "http://host.example/dir/b.jpg"
    assert pairs(markup) == [
        (a, "An alt", "alt", "src"),
        (a, "A title", "title", "src"),
        (a, "The caption goes on", "figcaption", "src"),
        (b, "same", "alt", "src"),
    ]
    page = extract_pairs(markup.encode(), PAGE)
    assert page.dropped == {"repeated_on_page": 2}
    assert page.notes == {"image_without_text": 1}


def test_a_caption_belongs_to_the_nearest_figure():
    markup = """<figure><figure><img src=1 alt=1><figcaption>inner</figcaption></figure>
    <figure><img src=2 alt=2></figure><img src=3 alt=3><figcaption>outer</figcaption></figure><img src=4 alt=4>"""
    captions = {url[-1]: text for url, text, kind, _ in pairs(markup) if kind == "figcaption"}
    assert captions == {"1": "inner", "3": "outer"}


def test_a_figure_inside_a_caption_keeps_its_text_for_its_own_caption():
    markup = (
        "<figure><img src=1><figcaption>a<figure><img src=2><figcaption>b</figcaption></figure>c</figcaption></figure>"
    )
    assert {url[-1]: text for url, text, _, _ in pairs(markup)} == {"1": "ac", "2": "b"}


def test_og_image():
    head = '<meta property="og:image" content="/o.jpg"><meta property="og:image" content="/second.jpg">'
    text = '<meta name="og:title" content="T &amp; t"><meta property="og:image:alt" content="what it shows">'
    url = "http://host.example/o.jpg"
    assert pairs(head + text) == [(url, "T & t", "og:title", "og:image"), (url, "what it shows", "alt", "og:image")]
    assert pairs(head) == pairs(text) == []


@pytest.mark.parametrize(
    "markup",
    [
        "<!-- <img src=a alt=b> -->",
        "<script>'<img src=a alt=b>'</script>",
        "<script><!--<script></script><img src=a alt=b></script>",
        "<style><img src=a alt=b></style>",
        "<textarea><img src=a alt=b></textarea>",
        "<title><img src=a alt=b></title>",
        "<template><img src=a alt=b></template>",
        "<iframe><img src=a alt=b></iframe>",
        "<xmp><img src=a alt=b></xmp>",
        "<img src=a alt=b",
    ],
)
def test_what_is_no_image(markup):
    assert pairs(markup) == []


def test_noscript_is_read():
    assert len(pairs("<noscript><img src=a alt=b></noscript>")) == 1


@pytest.mark.parametrize(
    ("markup", "headers", "opt_out"),
    [
        ("", (), None),
        ('<meta name="robots" content="index, follow">', (), None),
        ('<meta content="NOAI, noimageai,nofollow" name="Robots">', (), "noai,noimageai"),
        ('<meta name="robots" content="noindex"><meta name="robots" content="none">', (), "noindex,none"),
        ('<meta name="tdm-reservation" content="1">', (), "tdm-reservation"),
        ('<meta name="tdm-reservation" content="0">', (("TDM-Reservation", "1"),), "tdm-reservation"),
        ("", (("X-Robots-Tag", "noindex, noimageindex"), ("x-robots-tag", "noai")), "noai,noimageindex,noindex"),
        ("", (("X-Robots-Tag", "googlebot: noindex"),), None),
        ("", (("X-Robots-Tag", "openwit: noai"),), "noai"),
        ("", (("X-Robots-Tag", "unavailable_after: 25 Jun 2030 15:00:00 PST"),), None),
        ("", (("X-Robots-Tag", "max-snippet: 10, noindex"),), "noindex"),
        ('<template><meta name="robots" content="noai"></template>', (), None),
    ],
)
def test_opt_outs(markup, headers, opt_out):
    assert extract_pairs(markup.encode(), PAGE, headers=headers).opt_out == opt_out


T, R = "type=application/rsl+xml", "rel=license"
# (rule, markup, the signals of the page, its licence). Robots metas have no standard; HTML is that of the WHATWG.
METAS = [
    ("robots: noai", '<meta name="robots" content="noai">', "noai", None),
    ("robots: noimageai", '<meta name="robots" content="noimageai">', "noimageai", None),
    ("robots: noml", '<meta name="robots" content="noml">', "noml", None),
    ("robots: a list", '<meta name="robots" content="index, NoAI ,follow">', "noai", None),
    ("robots: blanks between words", '<meta name="robots" content="noai noimageai">', "noai,noimageai", None),
    ("robots: another word", '<meta name="robots" content="noaix, index">', None, None),
    ("robots: several metas add up", "<meta name=robots content=noai><meta name=robots content=all>", "noai", None),
    ("robots: by our name", "<meta name=openwit content=noai>", "noai", None),
    ("robots: another robot", "<meta name=otherbot content=noai>", None, None),
    ("HTML 4.2.5: names in any case", "<META NAME=ROBOTS CONTENT=noai>", "noai", None),
    ("HTML 4.2.5: in the body", "<body><meta name=robots content=noai>", "noai", None),
    ("HTML 13.1.6: in a comment", "<!-- <meta name=robots content=noai> -->", None, None),
    ("TDMRep, TDM Metadata in HTML Content: 1", "<meta name=tdm-reservation content=1>", "tdm-reservation", None),
    ("TDMRep, TDM Metadata in HTML Content: 0", "<meta name=tdm-reservation content=0>", None, None),
    ("TDMRep, tdm-reservation: another value", "<meta name=tdm-reservation content=yes>", None, None),
    ("TDMRep, tdm-policy alone", "<meta name=tdm-policy content=https://a.example/p>", None, None),
    ("RSL 1.0, HTML: a link", f"<link {R} {T} href=/l>", "rsl", "http://host.example/l"),
    ("RSL 1.0, HTML: an anchor", f"<a {R} {T} href=/l>terms</a>", "rsl", "http://host.example/l"),
    ("RSL 1.0, HTML: another relation", f"<link rel=alternate {T} href=/l>", None, None),
    ("RSL 1.0, HTML: another type", f"<link {R} type=text/html href=/l>", None, "http://host.example/l"),
]


@pytest.mark.parametrize(("rule", "markup", "signals", "licence"), METAS)
def test_what_a_page_says_of_training(rule, markup, signals, licence):
    found = extract_pairs(markup.encode(), PAGE)
    assert (found.opt_out, found.license) == (signals, licence), rule


def test_an_rsl_licence_comes_before_others():
    page = b'<link rel=license href=/cc><link rel="license" type="application/rsl+xml" href="/rsl.xml">'
    found = extract_pairs(page, PAGE)
    assert (found.license, found.opt_out) == ("http://host.example/rsl.xml", "rsl")
    headers = [("Link", '<h.xml>; rel="license"; type="application/rsl+xml"'), ("Link", "</b>; rel=license")]
    found = extract_pairs(page, PAGE, headers=headers)  # the page's own licence comes first
    assert (found.license, found.opt_out) == ("http://host.example/rsl.xml", "rsl")
    found = extract_pairs(b"<base href=/x/><link rel=license href=/cc>", PAGE, headers=headers)
    assert (found.license, found.opt_out) == (PAGE.rpartition("/")[0] + "/h.xml", "rsl")
    page = b'<link rel=alternate type=application/rsl+xml href=/r><link rel=license type="" href=/l>'
    other = extract_pairs(page, PAGE)
    assert (other.license, other.opt_out) == ("http://host.example/l", None)


def test_statements_in_headers():
    headers = [("Content-Usage", "search=y"), ("content-usage", "train-ai=n"), ("Content-Signal", "ai-train=no")]
    assert extract_pairs(b"", PAGE, headers=headers).opt_out == "content-signal,content-usage"
    assert extract_pairs(b"", PAGE, headers=[("Content-Usage", "train-ai=y"), ("TDM-Reservation", "0")]).opt_out is None


def test_license():
    first = '<a href="/l" rel="nofollow license">x</a><link rel=license href="http://no.example/">'
    assert extract_pairs(first.encode(), PAGE).license == "http://host.example/l"
    assert extract_pairs(b'<a rel=license href="javascript:0">', PAGE).license is None
    assert extract_pairs(b'<a rel=license>x</a><a rel="licenses" href=x>', PAGE).license is None


def test_links_to_a_base_that_is_too_long_are_dropped():
    page = f"<base href='/{'a' * 3000}/'><img src=a.jpg alt=x><img src=http://h.example/ alt=y>"
    assert pairs(page) == [("http://h.example/", "y", "alt", "src")]
    assert extract_pairs(page.encode(), PAGE).dropped == {"url_too_long": 1}
    long_query = extract_pairs(b"<img src=a.jpg alt=x>", PAGE + "?" + "q" * 5000)
    assert long_query.urls == ["http://host.example/dir/a.jpg"]


def test_long_texts_and_long_pages_are_cut():
    assert len(pairs(f"<img src=a alt='{'x' * 50_000}'>")[0][1]) == html.MAX_TEXT
    page = extract_pairs(b"<img src=a alt=b>" + b"x" * html.MAX_PAGE + b"<img src=c alt=d>", PAGE)
    assert (len(page.urls), page.notes["page_cut"]) == (1, 1)


def test_an_ordinary_large_page_is_not_taken_for_a_bomb():
    row = "<tr><td><a href=x><b>a</b></a><td><p>text<ul><li>a<li>b</ul><img src={0} alt=x{0}></td></tr>"
    page = "<div><table>" + "".join(row.format(number) for number in range(3000)) + "</table></div>"
    assert len(pairs(page)) == 3000


FRAGMENTS = [
    "<img src=a.jpg alt=b>",
    "<img",
    " src=",
    " alt='",
    '"',
    "'",
    ">",
    "<figure>",
    "</figure>",
    "<figcaption>",
    "&amp;",
    "&",
    "<!--",
    "<picture>",
    "<source srcset='a 1x'>",
    "<base href=",
    "<meta property=og:image content=x>",
    "<template>",
    "\0",
    "é",
    "<svg>",
    "<p>",
    "<link rel=license href=//[>",
    "<meta charset=utf-16>",
    "<select>",
    "<table>",
    "<frameset>",
    "<image src=x alt=y>",
    "\ufffd",
    "\r\n",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=30),
    st.binary(max_size=40),
    st.sampled_from([None, "utf-16", "latin1", "big5", "x" * 100]),
)
def test_nothing_raises_and_texts_are_valid(parts, noise, charset):
    data = "".join(parts).encode("utf-8", "surrogatepass")
    cut = random.Random(len(data)).randrange(len(data) + 1)
    for row in pairs(data[:cut] + noise + data[cut:], charset=charset, headers=[("X-Robots-Tag", ":,:")]):
        assert row[0] and row[1].strip()
        (row[0] + row[1]).encode()
    to_utf8(noise, charset).decode()
