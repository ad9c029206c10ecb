"""WAT files: the typed and the careful decoder read the same page. Every link is a row, or a drop with a reason.

The tests of rows run with both readers, the reference and the compiled reader.
"""

from __future__ import annotations

import importlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import jit
from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES, TEXT_SOURCES, URL_SOURCES
from pipeline.sources import links, wat, wat_reader
from tests.archives import Stream, member, record, wat_json, wat_record
from tests.fuzzing import SEED, cases
from tests.places import DATA

SHARED = DATA / "warc"
PAGE = "https://site.example/folder/page.html"


@pytest.fixture(params=["plain", "compiled"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reader that takes a file."""
    if request.param == "plain":
        monkeypatch.setattr(wat_reader, "_kernel_for", lambda source, reader: None)
    elif not jit.available():
        pytest.skip("no kernels here")
    else:
        importlib.import_module("pipeline.sources.wat_kernel")  # a loaded kernel also reads small files
    return request.param


def read(data: bytes, path: Path) -> tuple[list[dict[str, Any]], Ledger]:
    """The rows of an archive. A file and a stream must give the same rows."""
    path.write_bytes(data)
    ledger, other = Ledger(), Ledger()
    rows = [row for batch in wat_reader.read_wat(str(path), ledger=ledger) for row in batch.to_pylist()]
    assert rows == [row for batch in wat_reader.read_wat(Stream(data), ledger=other) for row in batch.to_pylist()]
    assert ledger == other
    assert ledger.rows_in == len(rows) + sum(ledger.dropped.values())
    return rows, ledger


def page(links: list[Any], *, url: str = PAGE, head: Any = None, headers: Any = None) -> dict[str, Any]:
    """The JSON of a page."""
    root = wat_json("", links)
    root["Envelope"]["WARC-Header-Metadata"]["WARC-Target-URI"] = url
    http = root["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]
    http["HTML-Metadata"]["Head"] = {"Title": "t"} if head is None else head
    http["Headers"] = {} if headers is None else headers
    return root


def image(url: Any, alt: Any, **more: Any) -> dict[str, Any]:
    return {"path": "IMG@/src", "url": url, "alt": alt, **more}


def rows_of(tmp_path: Path, *roots: Any) -> tuple[list[dict[str, Any]], Ledger]:
    return read(b"".join(member(wat_record(0, root)) for root in roots), tmp_path / "made.wat.gz")


# ------------------------------------------------------------------------------------------------------- the rows


def test_a_row_tells_all_of_its_link(tmp_path: Path) -> None:
    first = member(wat_record(0, page([])))
    rows, ledger = read(first + member(wat_record(0, page([image("a.jpg", "a cat")]))), tmp_path / "made.wat.gz")
    assert rows == [
        {
            "url": "https://site.example/folder/a.jpg",
            "text": "a cat",
            "page_url": PAGE,
            "offset": len(first),
            "text_source": TEXT_SOURCES.index("alt"),
            "url_source": URL_SOURCES.index("src"),
            "opt_out": None,
            "license": None,
        }
    ]
    assert (ledger.records_in, ledger.rows_in) == (2, 1)


@pytest.mark.parametrize(
    ("written", "absolute"),
    [
        ("https://h.example/a.jpg", "https://h.example/a.jpg"),
        ("//h.example/a.jpg", "https://h.example/a.jpg"),
        ("/a.jpg", "https://site.example/a.jpg"),
        ("a.jpg", "https://site.example/folder/a.jpg"),
        ("./a.jpg", "https://site.example/folder/a.jpg"),
        ("../a.jpg", "https://site.example/a.jpg"),
        ("../../../a.jpg", "https://site.example/a.jpg"),
        ("/./a.jpg", "https://site.example/a.jpg"),
        ("/../a.jpg", "https://site.example/a.jpg"),
        ("?a=1&b=2", "https://site.example/folder/page.html?a=1&b=2"),
        ("?", "https://site.example/folder/page.html?"),
        (" a.jpg\n", "https://site.example/folder/a.jpg"),
        ("b\u00e9.jpg", "https://site.example/folder/b\u00e9.jpg"),
        ("a\ud800.jpg", "https://site.example/folder/a\ufffd.jpg"),
        ("HTTPS://h.example/a.jpg", "https://h.example/a.jpg"),
        (r"\images\c.jpg", "https://site.example/images/c.jpg"),
        (r"http:\\h.example\f.jpg", "http://h.example/f.jpg"),
        ("///h.example/d.jpg", "https://h.example/d.jpg"),
    ],
)
def test_links_become_absolute(written: str, absolute: str, tmp_path: Path) -> None:
    rows, _ = rows_of(tmp_path, page([image(written, "alt")]))
    assert [row["url"] for row in rows] == [absolute]


@pytest.mark.parametrize(
    ("url", "alt", "reason"),
    [
        ("", "alt", "empty_url"),
        (" \t", "alt", "empty_url"),
        ("data:image/gif;base64,R0", "alt", "data_url"),
        ("DATA:,", "alt", "data_url"),
        ("ftp://h.example/a.jpg", "alt", "bad_scheme"),
        ("javascript:void(0)", "alt", "bad_scheme"),
        ("http://[::1/a.jpg", "alt", None),
        ("//[::1/a.jpg", "alt", "bad_url"),
        ("a" * (links.MAX_URL + 1), "alt", "url_too_long"),
        ("a.jpg", "", "no_alt"),
        ("a.jpg", None, "no_alt"),
        ("a.jpg", 7, "bad_field"),
        (None, "alt", "bad_field"),
        (["a.jpg"], "alt", "bad_field"),
    ],
)
def test_links_that_are_dropped_have_a_reason(url: Any, alt: Any, reason: str | None, tmp_path: Path) -> None:
    rows, ledger = rows_of(tmp_path, page([image(url, alt), image("good.jpg", "good")]))
    assert ledger.dropped == ({reason: 1} if reason else {})
    assert rows[-1]["text"] == "good" and len(rows) == 2 - bool(reason)


def test_a_base_counts_for_relative_links(tmp_path: Path) -> None:
    heads = [{"Base": "https://cdn.example/x/"}, {"Base": "/y/"}, {"Base": ""}, {"Base": 3}, {"Base": "//["}]
    rows, _ = rows_of(tmp_path, *(page([image("a.jpg", "alt")], head=head) for head in heads))
    assert [row["url"] for row in rows] == [
        "https://cdn.example/x/a.jpg",
        "https://site.example/y/a.jpg",
        *["https://site.example/folder/a.jpg"] * 3,
    ]


def test_opt_outs_are_read_from_metas_and_headers(tmp_path: Path) -> None:
    cases = [
        ({}, {}, None),
        ({"Metas": [{"name": "robots", "content": "index, follow"}]}, {}, None),
        ({"Metas": [{"name": "ROBOTS", "content": "NoIndex, noai"}]}, {}, "noai,noindex"),
        ({"Metas": [{"name": "tdm-reservation", "content": "1"}]}, {}, "tdm-reservation"),
        ({"Metas": [{"name": "openwit", "content": "noimageai"}]}, {"x-robots-tag": "noml"}, "noimageai,noml"),
        ({"Metas": [{"name": ["robots"], "content": "noai"}, 7, None]}, {}, None),
        ({"Metas": {"name": "robots"}}, {"X-Robots-Tag": "otherbot: noai"}, None),
        ({}, {"X-Robots-Tag": "noimageindex", "TDM-Reservation": "1"}, "noimageindex,tdm-reservation"),
        ({}, {"Content-Usage": "search=y, train-ai=n"}, "content-usage"),
        ({}, {"content-usage": "train-ai=y"}, None),
        ({}, {"Content-Signal": "ai-train=no, search=yes"}, "content-signal"),
        ({"Link": [{"rel": "license", "url": "r", "type": "application/rsl+xml"}]}, {}, "rsl"),
        ({"Link": [{"rel": "license", "url": "r", "type": "text/html"}]}, {"TDM-Reservation": "1"}, "tdm-reservation"),
        ({}, {"Link": '</l>; rel="license"; type="application/rsl+xml"'}, "rsl"),
        ({}, {"LINK": '</l>; rel="license"', "link": 5}, None),
        ({}, {"X-Robots-Tag": 5}, None),
        ({}, ["X-Robots-Tag"], None),
    ]
    rows, _ = rows_of(tmp_path, *(page([image("a", "b")], head=head, headers=headers) for head, headers, _ in cases))
    assert [row["opt_out"] for row in rows] == [signal for _, _, signal in cases]


RSL = {"path": "LINK@/href", "rel": "license", "type": "Application/RSL+xml; charset=utf-8", "url": "/rsl.xml"}


LINK = '<l.xml>; rel="license"; type="application/rsl+xml"'


def test_a_license_is_that_of_the_head_or_of_the_first_anchor(tmp_path: Path) -> None:
    by_head = {"Link": [{"path": "LINK@/href", "rel": "icon", "url": "i"}, {"rel": "License", "url": "/terms"}]}
    anchors = [
        {"path": "A@/href", "url": "n", "rel": "nofollow"},
        {"path": "A@/href", "url": "https://cc.example/by", "rel": "nofollow license"},
        {"path": "A@/href", "url": "https://cc.example/nc", "rel": "license"},
    ]
    rows, _ = rows_of(
        tmp_path,
        page([image("a", "b"), *anchors], head=by_head),
        page([*anchors, image("a", "b")]),
        page([image("a", "b license"), {"path": "A@/href", "url": "license"}]),
        page([image("a", "b")], head={"Link": [*by_head["Link"], RSL, {**RSL, "url": "second.xml"}]}),
        page([image("a", "b")], head={**by_head, "Base": "/x/"}, headers={"Link": LINK}),
        page([image("a", "b")], head={"Link": [RSL]}, headers={"Link": LINK}),
    )
    assert [row["license"] for row in rows] == [
        "https://site.example/terms",
        "https://cc.example/by",
        None,
        "https://site.example/rsl.xml",
        "https://site.example/folder/l.xml",
        "https://site.example/rsl.xml",
    ]


def test_batches_are_bounded_and_in_order(tmp_path: Path) -> None:
    count = wat.BATCH_ROWS + 100
    links = [image(f"{number}.jpg", f"number {number}") for number in range(count)]
    path = tmp_path / "many.wat.gz"
    path.write_bytes(b"".join(member(wat_record(0, page(links[at : at + 500]))) for at in range(0, count, 500)))
    batches = list(wat_reader.read_wat(str(path), ledger=Ledger()))
    assert max(map(len, batches)) <= 2 * wat.BATCH_ROWS and all(batch.schema == CANDIDATES for batch in batches)
    assert [text for batch in batches for text in batch["text"].to_pylist()] == [link["alt"] for link in links]


# -------------------------------------------------------------------------------- the two decoders read the same page

STRINGS = [
    "a cat",
    "",
    " ",
    "\u00fcber den Flu\u00df",
    "\U0001f415 dog",
    'say "hi"',
    "back\\slash",
    "line\nbreak\ttab",
    "</b>",
    '"IMG@/src","url":"x"',
    '{"path":"IMG@/src"',
    "},{",
    "]}",
    "lone \ud800",
    "\udc00\ud800",
    "license",
    "https://h.example/a.jpg",
    "//h.example/a",
    "/a/../b",
    "data:,",
]
ODD = [None, 7, -0.5, True, [], ["a"], {}, {"url": "a"}, {"path": "IMG@/src", "url": "in", "alt": "in"}, math.nan]
PATHS = ["IMG@/src", "IMG@/src", "IMG@/src", "A@/href", "IMG@/longdesc", "INPUT@/src", "img@/src", " IMG@/src"]


class Spelling:
    """One way to write JSON: order of keys, escapes, blanks."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.shuffled, self.ascii, self.slashes = (chance.random() < 0.3 for _ in range(3))
        self.comma, self.colon = chance.choice([(",", ":"), (",", ":"), (", ", ": "), (" ,\n", "\t: ")])
        self.letters = chance.random() < 0.1  # plain letters as escapes, too

    def string(self, text: str) -> str:
        written = json.dumps(text, ensure_ascii=self.ascii or any("\ud800" <= letter <= "\udfff" for letter in text))
        if self.slashes:
            written = written.replace("/", "\\/")
        if self.letters and len(text) > 2 and self.chance.random() < 0.2 and text[0].isalpha() and text[0] < "\x7f":
            written = f'"\\u{ord(text[0]):04x}' + written[2:]
        return written

    def write(self, value: Any) -> str:
        if isinstance(value, str):
            return self.string(value)
        if isinstance(value, list):
            return "[" + self.comma.join(map(self.write, value)) + "]"
        if isinstance(value, dict):
            items = list(value.items())
            if self.shuffled:
                self.chance.shuffle(items)
            return "{" + self.comma.join(self.string(key) + self.colon + self.write(item) for key, item in items) + "}"
        return json.dumps(value)


def made_page(chance: random.Random) -> dict[str, Any]:
    """A page with links of all kinds. Few of them are unusual."""

    def value() -> Any:
        return chance.choice(ODD) if chance.random() < 0.02 else chance.choice(STRINGS)

    def some_link() -> Any:
        made = {"path": chance.choice(PATHS), "url": value(), "alt": value(), "title": value()}
        for key in ("rel", "text", "href"):
            if chance.random() < 0.1:
                made[key] = value()
        for key in ("alt", "title", "url", "path"):
            if chance.random() < (0.5 if key in ("alt", "title") else 0.03):
                del made[key]
        return made

    links: list[Any] = [some_link() for _ in range(chance.randrange(8))]
    if chance.random() < 0.03:
        links.append(chance.choice(ODD))
    metas = [{"name": chance.choice(["robots", "Robots", "og:title", value()]), "content": "noai"}]
    head = {"Base": value(), "Metas": metas, "Link": [{"rel": value(), "url": value()}], "Title": value()}
    for key in list(head):
        if chance.random() < 0.4:
            del head[key]
    headers = {"Server": "x", chance.choice(["X-Robots-Tag", "x-other"]): chance.choice(["noindex", 3, "a"])}
    root = page(links, head=head, headers=headers)
    if chance.random() < 0.05:
        inner = root
        for key in ("Envelope", "Payload-Metadata", "HTTP-Response-Metadata", "HTML-Metadata", "Links"):
            if chance.random() < 0.3:
                inner[key] = chance.choice(ODD)
                break
            inner = inner[key]
    return root


def outcome(parse: Any, content: bytes) -> str:
    """The page as text (NaN is not equal to itself), or a mark for no page."""
    try:
        return repr(parse(content))
    except (ValueError, RecursionError):
        return "refused"


def test_made_records_give_the_same_page_by_both() -> None:
    chance = random.Random(SEED)
    pages = 0
    for _ in cases(4000):
        spelling = Spelling(chance)
        content = spelling.write(made_page(chance)).encode(
            "utf-8", "surrogatepass" if chance.random() < 0.5 else "replace"
        )
        found = outcome(wat.parse_record, content)
        assert found == outcome(wat.parse_slowly, content), (SEED, content)
        pages += found.startswith("Page")
    assert pages > 3000


def test_rows_and_counts_are_those_of_the_careful_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(SEED)
    records = [wat_record(0, Spelling(chance).write(made_page(chance)).encode("utf-8", "replace")) for _ in cases(1500)]
    data = b"".join(map(member, records))
    rows, ledger = read(data, tmp_path / "made.wat.gz")
    monkeypatch.setattr(wat, "parse_record", wat.parse_slowly)
    careful = Ledger()
    found = [row for batch in wat_reader.read_wat(Stream(data), ledger=careful) for row in batch.to_pylist()]
    assert rows == found and ledger == careful, SEED
    assert len(rows) > 300


def test_a_license_of_the_head_comes_before_an_anchors_wherever_it_stands(tmp_path: Path) -> None:
    links = [image("a.jpg", "alt", rel="license")]
    made = page(links, head={"Link": [{"rel": "license", "url": "/ours"}]})
    html = made["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
    turned = json.loads(json.dumps(made))
    turned["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"] = {
        key: html[key] for key in reversed(html)
    }
    rows, _ = rows_of(tmp_path, made, turned)
    assert [row["license"] for row in rows] == ["https://site.example/ours"] * 2


def test_bytes_that_are_no_utf8_harm_their_own_text_alone(tmp_path: Path) -> None:
    content = json.dumps(page([image("a.jpg", "caf@"), image("b.jpg", "good")])).encode().replace(b"caf@", b"caf\xe9")
    rows, ledger = read(member(wat_record(0, content)), tmp_path / "made.wat.gz")
    assert [row["text"] for row in rows] == ["caf\ufffd", "good"] and not ledger.records_dropped


def test_broken_json_loses_its_record_alone(tmp_path: Path) -> None:
    good = json.dumps(page([image("a.jpg", "alt")])).encode()
    broken = [good[:-1], good.replace(b'"Links": [', b'"Links": [,'), b"{", b"\x00" + good]
    data = b"".join(member(wat_record(0, content)) for content in [good, *broken, good])
    rows, ledger = read(data, tmp_path / "made.wat.gz")
    assert len(rows) == 2
    assert ledger.records_dropped == {"bad_json": 3} and ledger.notes == {"no_links": 1}  # "{" has no links


def test_other_records_of_a_wat_are_noted(tmp_path: Path) -> None:
    request = {"Envelope": {"Payload-Metadata": {"HTTP-Request-Metadata": {}}}}
    info = record(b"a: b\r\n", kind="warcinfo")
    rows, ledger = read(member(info) + member(wat_record(0, request)) + member(wat_record(1)), tmp_path / "made.wat.gz")
    assert (len(rows), ledger.records_in, ledger.notes["no_links"]) == (1, 2, 1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared web archives are not here")
def test_a_wat_of_common_crawl_is_read() -> None:
    ledger = Ledger()
    path = SHARED / "commoncrawl+whirlwind-python" / "whirlwind.warc.wat"
    assert list(wat_reader.read_wat(str(path), ledger=ledger)) == []  # its only capture is a request: no links
    assert (ledger.records_in, ledger.notes["no_links"], ledger.records_dropped) == (1, 1, {})
