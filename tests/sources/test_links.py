"""Links become absolute as the URL standard says: a table of cases, and the fast forms against the parser."""

import random

import can_ada
import pytest

from pipeline.sources import links
from pipeline.text.clean_rules import canonical_url
from tests.fuzzing import SEED, cases

BASE = "http://example.org/foo/bar?q"

# (rule of the basic URL parser, link, URL in canonical form; None: no URL of an image)
JOINED = [
    ("C0 controls and blanks at the ends are removed", " \t\x00a.jpg\x1f \n", "http://example.org/foo/a.jpg"),
    ("tabs and line ends are removed", "/a\t.\nj\rpg", "http://example.org/a.jpg"),
    ("relative state", "a.jpg", "http://example.org/foo/a.jpg"),
    ("relative state", "?a=b&c=d", "http://example.org/foo/bar?a=b&c=d"),
    ("relative state", "#a", "http://example.org/foo/bar?q"),
    ("relative state", "a/./b/../c", "http://example.org/foo/a/c"),
    ("relative state", "../../../a", "http://example.org/a"),
    ("relative state", ":23", "http://example.org/foo/:23"),
    ("relative slash state", "/a.jpg", "http://example.org/a.jpg"),
    ("relative slash state", r"\a.jpg", "http://example.org/a.jpg"),
    ("relative slash state", "//h.example/a", "http://h.example/a"),
    ("relative slash state", r"\\h.example\a", "http://h.example/a"),
    ("special authority ignore slashes state", "///h.example/a", "http://h.example/a"),
    ("special authority ignore slashes state", r"/\/\//h.example/../a", "http://h.example/a"),
    ("special authority ignore slashes state", "http:////h.example/a", "http://h.example/a"),
    ("special relative or authority state", "http:a", "http://example.org/foo/a"),
    ("special relative or authority state", "http:/a", "http://example.org/a"),
    ("special authority slashes state", "https:h.example/a", "https://h.example/a"),
    ("special authority slashes state", "https:/h.example/a", "https://h.example/a"),
    ("special authority slashes state", r"https:\\h.example\a", "https://h.example/a"),
    ("scheme state", "HTTP://H.Example/A", "http://h.example/A"),
    ("scheme state", "javascript:0", None),
    ("scheme state", "mailto:a@b", None),
    ("authority state: names are refused here", "http://name:word@h.example/", None),
    ("host state", "http://h.example:80/", "http://h.example/"),
    ("host state", "http://", None),
    ("port state", "http://h.example:0x50/", None),
    ("port state", "http://h.example:65536/", None),
    ("port state", "http://h.example:00080/", "http://h.example/"),
    ("host parser: escapes are resolved", "http://%68%2Eexample/", "http://h.example/"),
    ("host parser: full width", "http://Ｇｏ.com", "http://go.com/"),
    ("host parser: other dots", "http://a。b.com", "http://a.b.com/"),
    ("host parser: not transitional", "https://faß.example/", "https://xn--fa-hia.example/"),
    ("host parser: ignored characters", "http://GO\u200b\u2060\ufeffgo.com", "http://gogo.com/"),
    ("host parser: forbidden characters", "http://a b/", None),
    ("host parser: forbidden characters", "http://a%00b/", None),
    ("IPv6 parser", "http://[1:0::]/", "http://[1::]/"),
    ("IPv6 parser", "http://[::127.0.0.1]/", "http://[::7f00:1]/"),
    ("IPv6 parser", "http://[1:2]/", None),
    ("IPv6 parser", "http://[::%31]/", None),
    ("IPv4 parser", "http://1.2.3.4./", "http://1.2.3.4/"),
    ("IPv4 parser: other forms are refused here", "http://0x7f.1/", None),
    ("path state", "/a/%2e%2E/b", "http://example.org/b"),
    ("path state", r"http://h\a\b?c\d", r"http://h/a/b?c\d"),
    ("path state", '/a b\x7f\x01"<>`{}é', "http://example.org/a%20b%7F%01%22%3C%3E%60%7B%7D%C3%A9"),
    ("path state", "/%zz: an escape here", "http://example.org/%25zz:%20an%20escape%20here"),
    ("query state", "/?a'b\"<> é", "http://example.org/?a%27b%22%3C%3E%20%C3%A9"),
    ("query state", "/a??b?c", "http://example.org/a??b?c"),
    ("fragment state", "/a?b#c?d#e", "http://example.org/a?b"),
]


def canonical(url: str | None) -> str | None:
    text, code = canonical_url((url or "").encode())
    return None if code else text


@pytest.mark.parametrize(("rule", "link", "url"), JOINED)
def test_the_url_standard(rule: str, link: str, url: str | None) -> None:
    assert canonical(links.absolute(BASE, link)[1]) == url, rule


@pytest.mark.parametrize(
    ("page", "href", "base"),
    [
        ("http://h/a/b", None, "http://h/a/b"),
        ("http://h/a/b", "", "http://h/a/b"),
        ("http://h/a/b", "c/", "http://h/a/c/"),
        ("http://h/a/b", r"\c\ ", "http://h/c/"),
        ("http://h/a/b", "HTTPS://CDN.example", "https://cdn.example/"),
        ("http://h/a/b", "data:,", "http://h/a/b"),
        ("http://h/a/b", "//[", "http://h/a/b"),
        ("http://h/a?" + "x" * 3000, None, "http://h/a"),
        ("http://h/a?" + "x" * 3000, "c", "http://h/c"),
        ("no URL", "c", "no URL"),
    ],
)
def test_bases(page: str, href: str | None, base: str) -> None:
    assert links.base_of(page, href) == base


BASES = """
http://h.example https://h.example/ http://h.example/a/b HTTP://h/a/ https://h:80/a/b.html?x=/y/ http://h/a//b/c
http://h/a/../b/ http://h/./a http://h/a;p/b http://h/a/b;p http://h?x http://h#x http://h/\u00e9/b http://h\u00e9/b
http://h/.a/b http://h/a./b http:///a http://h/a/b#/c/ http://h// http://h/a/ http://h\\x/a http://h/a\\b/c
""".split()
BITS = [*"abA.//?#;:=& \t\x00\x7f\u00e9\\%~", "..", "//", "%20", "%2e", "x.jpg", "http:", "https://h"]


def test_the_fast_forms_are_right() -> None:
    chance = random.Random(SEED)
    for _ in cases(10_000):
        base, link = chance.choice(BASES), "".join(chance.choices(BITS, k=chance.randrange(1, 7)))
        if not link.strip(links.SPACES):
            continue
        try:
            expected = canonical(str(can_ada.parse(base) + link))
        except ValueError:
            expected = None
        assert canonical(links.absolute(base, link)[1]) == expected, (SEED, base, link)
