"""The compiled WAT reader gives the rows, order and ledger of the reference. It uses its own memory only."""

from __future__ import annotations

import ctypes
import io
import itertools
import json
import mmap
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine import jit
from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES
from pipeline.sources import wat, wat_reader
from pipeline.sources.archive import read_records, reading
from tests import archives
from tests.fuzzing import SEED, cases

if not jit.available():
    pytest.skip("no numba here", allow_module_level=True)
kernel = pytest.importorskip("pipeline.sources.wat_kernel")
if not kernel.usable():
    pytest.skip("libdeflate's functions are not to be had here", allow_module_level=True)


# ---- the two ways


def by_kernel(source: str | BinaryIO) -> tuple[pa.Table, Ledger]:
    """The rows of a local file, which is mapped, or of a stream, which is read window by window."""
    ledger = Ledger()
    with reading(source, ledger) as reader:
        batches = list(wat_reader._read_compiled(reader, kernel, ledger))
    for batch in batches:
        batch.validate(full=True)
    return pa.Table.from_batches(batches, CANDIDATES).combine_chunks(), ledger


def by_plain(path: str) -> tuple[pa.Table, Ledger]:
    ledger = Ledger()
    with open(path, "rb") as file:  # the kernel never reads an open file
        return pa.Table.from_batches(wat_reader.read_wat(file, ledger=ledger), CANDIDATES).combine_chunks(), ledger


def assert_equal(path: Path, data: bytes) -> tuple[pa.Table, Ledger]:
    path.write_bytes(data)
    rows, ledger = by_kernel(str(path))
    plain_rows, plain_ledger = by_plain(str(path))
    assert ledger == plain_ledger
    assert rows.to_pylist() == plain_rows.to_pylist()
    with mock.patch.object(wat_reader, "WINDOW", 2_000 + len(data) % 1_000):
        streamed, streamed_ledger = by_kernel(io.BytesIO(data))
    assert streamed.equals(rows) and streamed_ledger == ledger
    assert ledger.rows_in == rows.num_rows + ledger.dropped.total()
    return rows, ledger


def stops(content: bytes) -> bool:
    """True if the kernel leaves a record to the reference."""
    data = archives.member(archives.wat_record(0, content))
    return kernel.Scanner(data, Ledger()).run(0)[1] == kernel.ODD


# ---- pages

URLS = (
    *("http://a.example/x.png", "https://a.example/ä b.png?q=1#f", "HTTP://A.example/x", "http:x.png", "https:/y.png"),
    *("x.png", "/x.png", "//cdn.example/x.png", "../x.png", "./x.png", "../../x.png", "a/./b.png", "a/../b.png", "/.a"),
    *(
        "",
        " ",
        "\t",
        " x.png",
        "x.png ",
        "a b.png",
        "/a b.png",
        "?q=1",
        "#f",
        "a?b#c",
        "a#b?c",
        "/x?",
        "/x#",
        "//",
        "/",
    ),
    *("data:image/gif;base64,R0", " DATA:x", "mailto:a@b.example", "ftp://f.example/x.png", "javascript:0", "a:b/c"),
    *("a/b:c.png", "a;b.png", "/a;b/c.png", ";p", "//[::1]/x.png", "//[z/x.png", "/x[1].png", "a//b.png", "/a//b.png"),
    *("///x.png", "//h?x", "//h#y", "//u:p@h.example:80/x", "//hé.example/x", "\\\\srv\\x", "/x\\y", "é.png", "😀.png"),
    *("\ud83d.png", "/a\tb", "x\ny.png", "http://h\n.example/", "/\u00e9/..", "..", ".", "a.b/c.png", "x" * 16_400),
    *("http://b.example/" + "y" * 16_400, "/%5B", "%", "http://", "https://", "http://?", "http:///x.png", "/\x7f"),
    *(
        "https://a.example/x.png ",
        "https://a.example/x.png\n",
        " https://a.example/x.png",
        "x.png\u00a0",
        "/a/\ud800.png",
    ),
)
ALTS = (
    "a cat",
    "",
    " ",
    'quoted "text"',
    "back\\slash",
    "ünïcödé 猫 😀",
    "\ud800",
    "tab\tline\n",
    "</b>",
    "z" * 10_001,
)
PAGES = (
    *(
        "http://page.example/dir/page.html",
        "https://page.example",
        "https://page.example/",
        "http://page.example/a/../b/",
    ),
    *("http://page.example/a//b/c", "http://page.example/a?x=/y/z", "http://pägé.example/x", "http://[::1]/x", "dns:x"),
    *(
        "HTTP://page.example/x",
        "http://page.example/a b/c",
        "http://page.example/é/x.html#f/g",
        "ftp://h/x",
        "http:///x",
    ),
)
BASES = (
    *(None, None, None, "", "/", "b/", "http://base.example/b/", "https://base.example", "//base.example/x", "?q"),
    *("http://base.example/a/../b/", " http://base.example/", "http://[z/", "data:x", "http:c/", "\ud800", "http://"),
)
SIGNS = (
    "index, follow",
    "NOINDEX,nofollow",
    "noai, noimageai",
    "none",
    "max-snippet:5",
    "otherbot: noai",
    "1",
    "é",
    "\n",
)
RELS = ("license", "nofollow LICENSE", "licensed", "lic\u00e9nse", "license\u00a0x", "", "stylesheet", "nofollow")


def page(choose: random.Random) -> dict[str, Any]:
    """The JSON of a page: mostly ordinary, with every unusual value that JSON allows."""
    pick = choose.choice
    usual = ALTS[:-1]

    def link() -> dict[str, Any]:
        if choose.random() < 0.4:
            path = pick(("A@/href", "FORM@/action", "IMG@/longdesc", "LINK@/href"))
            found: dict[str, Any] = {"path": path, "url": pick(URLS), "text": pick(ALTS)}
            found |= {"rel": pick(RELS)} if choose.random() < 0.3 else {}
            return found | ({"href": pick(URLS)} if choose.random() < 0.1 else {})
        url, alt = pick(URLS[:10] if choose.random() < 0.7 else URLS), pick(usual if choose.random() < 0.97 else ALTS)
        found = {"path": "IMG@/src", "url": url, "alt": alt}
        for key in ("url", "alt"):
            if choose.random() < 0.03:
                del found[key]
            elif choose.random() < 0.01:
                found[key] = pick((None, 5, True, [], {"a": "b"}, 1.5))
        items = list(found.items())
        choose.shuffle(items)
        return dict(items) | ({"title": pick(ALTS)} if choose.random() < 0.3 else {})

    metas = [
        {
            pick(("name", "property", "http-equiv")): pick(
                ("robots", " Robots ", "og:image", "openwit", "TDM-Reservation")
            )
        }
        | ({"content": pick(SIGNS)} if choose.random() < 0.9 else {})
        for _ in range(choose.randrange(4))
    ]
    head: dict[str, Any] = {"Title": pick(ALTS), "Metas": metas}
    if (base := pick(BASES)) is not None:
        head["Base"] = base
    if choose.random() < 0.3:
        types = ("application/rsl+xml", "Application/RSL+XML", "text/html", "application/r\u017fl+xml", 5, None)
        head["Link"] = [
            {"path": "LINK@/href", "url": pick(URLS), "rel": pick(RELS)}
            | ({"type": pick(types)} if choose.random() < 0.4 else {})
            for _ in range(choose.randrange(3))
        ]
    headers = {
        "Content-Type": "text/html",
        pick(("X-Robots-Tag", "x-ROBOTS-tag", "TDM-Reservation", "Server")): pick(SIGNS),
        pick(("Content-Usage", "content-SIGNAL", "Date")): pick((*SIGNS, "train-ai=n", "ai-train=no", "train-ai=y")),
    }
    if choose.random() < 0.05:
        values = ("<a>; rel=license; type=application/rsl+xml", "<a>; rel=license", "</W>; rel=RSL, <b>", 5, ["rsl"])
        headers[pick(("Link", "LINK", "link"))] = pick(values)
    html = {"Head": head, "Links": [link() for _ in range(choose.randrange(8))]}
    content = archives.wat_json(0)
    content["Envelope"]["WARC-Header-Metadata"]["WARC-Target-URI"] = pick(PAGES[:3] if choose.random() < 0.6 else PAGES)
    content["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"] = {"Headers": headers, "HTML-Metadata": html}
    return content


def spell(content: dict[str, Any], choose: random.Random) -> bytes:
    """Writes the page in one of the ways of JSON. Lone surrogates are always escaped."""
    style = choose.randrange(8)
    separators = (",", ":") if style < 6 else (", ", ": ")
    text = json.dumps(content, ensure_ascii=style in (1, 7), separators=separators, indent=1 if style == 5 else None)
    if style == 2:
        text = text.replace("/", "\\/")
    if style == 3:
        text = text.replace("path", "p\\u0061th", 1)
    return "".join(c if not "\ud800" <= c <= "\udfff" else f"\\u{ord(c):04x}" for c in text).encode()


# ---- tests


def test_every_spelling_of_every_url_is_the_same(tmp_path: Path) -> None:
    records = []
    for target, base in itertools.product(PAGES, BASES):
        links = [{"path": "IMG@/src", "url": url, "alt": "a"} for url in URLS]
        content = archives.wat_json(0, links)
        content["Envelope"]["WARC-Header-Metadata"]["WARC-Target-URI"] = target
        if base is not None:
            content["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]["Head"]["Base"] = base
        records.append(archives.member(archives.wat_record(0, content)))
    rows, _ = assert_equal(tmp_path / "x.wat.gz", b"".join(records))
    assert rows.num_rows > 5_000


def test_pages_of_all_kinds(tmp_path: Path) -> None:
    choose = random.Random(SEED)
    data = b"".join(archives.member(archives.wat_record(0, spell(page(choose), choose))) for _ in range(1_500))
    rows, ledger = assert_equal(tmp_path / "x.wat.gz", data)
    assert rows.num_rows > 1_000
    assert {"no_alt", "empty_url", "data_url", "bad_field", "bad_url", "bad_scheme", "url_too_long"} <= set(
        ledger.dropped
    )
    assert rows["opt_out"].null_count < rows.num_rows and rows["license"].null_count < rows.num_rows


def test_usual_pages_are_read_by_the_kernel() -> None:
    assert not stops(json.dumps(archives.wat_json(0)).encode())
    assert not stops(json.dumps(archives.wat_json(0), ensure_ascii=False, indent=2).encode())
    assert not stops(json.dumps(archives.wat_json(0)).replace("/", "\\/").encode())
    links = [archives.link(0), {"path": "A@/href", "url": "../x", "text": "ü {}", "rel": "license"}]
    assert not stops(json.dumps(archives.wat_json(0, links)).encode())


def test_damage_between_good_records_keeps_the_order(tmp_path: Path) -> None:
    good = [archives.member(archives.wat_record(i)) for i in range(12)]
    several = archives.member(archives.wat_record("m1") + archives.wat_record("m2"))
    wrong_sum = bytearray(archives.member(archives.wat_record("w")))
    wrong_sum[-6] ^= 1
    odd = [
        *(good[0][:-20], bytes(wrong_sum), b"\0garbage\x1f\x8b\x08", archives.member(b""), several),
        archives.wat_record("plain"),
        archives.member(archives.wat_record("l", length="-3")),
        archives.member(archives.wat_record("j", b'{"HTML-Metadata": [')),
        archives.member(archives.record(b"x" * 100, kind="warcinfo")),
        archives.member(archives.wat_record("big", b"HTML-Metadata" + b" " * (17 << 20))),
    ]
    parts = [piece for pair in itertools.zip_longest(good, odd, fillvalue=b"") for piece in pair]
    rows, ledger = assert_equal(tmp_path / "x.wat.gz", b"".join(parts))
    pages = dict.fromkeys(rows["page_url"].to_pylist())
    assert {archives.page_url(i) for i in range(12)} <= set(pages)
    assert ledger.records_dropped.total() >= 6
    assert_equal(tmp_path / "cut.wat.gz", b"".join(parts)[:-9])


def test_full_buffers_are_emptied_and_used_again() -> None:
    data = b"".join(archives.member(archives.wat_record(i)) for i in range(100))
    scanner = kernel.Scanner(data, Ledger(), kernel._Buffers(rows=7))
    position, why, rows = 0, kernel.FULL, []
    while why == kernel.FULL:
        position, why, batch = scanner.run(position)
        rows += batch["page_url"].to_pylist()
    assert why == kernel.END
    assert rows == [archives.page_url(i) for i in range(100)]


def kernel_for(source: str | BinaryIO) -> Any:
    with reading(source, Ledger()) as reader:
        return wat_reader._kernel_for(source, reader)


def test_large_files_take_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.wat.gz"
    path.write_bytes(archives.member(archives.wat_record(1)))
    monkeypatch.setattr(wat_reader, "BYTES_PER_ROW", 0.001)
    monkeypatch.setattr(wat_reader, "_seen", {"bytes": 0})
    assert kernel_for(str(path)) is kernel
    assert sum(batch.num_rows for batch in wat_reader.read_wat(str(path), ledger=Ledger())) == 1
    fsspec.filesystem("memory").pipe("/kernel/x.wat.gz", path.read_bytes())
    assert kernel_for("memory://kernel/x.wat.gz") is kernel
    assert sum(batch.num_rows for batch in wat_reader.read_wat("memory://kernel/x.wat.gz", ledger=Ledger())) == 1
    path.write_bytes(archives.wat_record(1) * 20)
    assert kernel_for(str(path)) is None, "not gzip"
    path.write_bytes(b"")
    assert kernel_for(str(path)) is None


@pytest.mark.parametrize("window", [64, 700, 3_000, 1 << 20])
def test_a_stream_gives_the_rows_of_its_file_from_windows_of_any_size(
    window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members are cut by windows everywhere; one is larger than a window, one is damaged, one has two records."""
    monkeypatch.setattr(wat_reader, "WINDOW", window)
    monkeypatch.setattr("pipeline.sources.archive.CHUNK", 512)
    parts = [archives.member(archives.wat_record(i)) for i in range(60)]
    wide = archives.wat_json(70, [archives.link(f"{i}-{i * 7919 % 10_007}") for i in range(900)])
    parts[20:20] = [archives.member(archives.wat_record(70, wide)), parts[3][:40] + b"\xff" + parts[3][41:]]
    parts[40:40] = [archives.member(archives.wat_record(71) + archives.wat_record(72))]
    rows, ledger = assert_equal(tmp_path / "x.wat.gz", b"".join(parts))
    streamed, streamed_ledger = by_kernel(archives.Stream(b"".join(parts), 333))  # type: ignore[arg-type]
    assert streamed.equals(rows) and streamed_ledger == ledger and rows.num_rows > 900


def test_small_files_take_the_kernel_when_there_were_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.wat.gz"
    path.write_bytes(archives.member(archives.wat_record(1)))
    monkeypatch.setattr(wat_reader, "BYTES_PER_ROW", path.stat().st_size / jit.FEW_ROWS * 2.5)
    monkeypatch.setattr(wat_reader, "_seen", {"bytes": 0})
    monkeypatch.delitem(sys.modules, kernel.__name__)
    monkeypatch.setattr(jit.importlib, "import_module", lambda name: kernel)
    assert [kernel_for(str(path)) for _ in range(4)] == [None, None, kernel, kernel]


# ---- mutated records between guard pages


class Guarded:
    """Memory with a protected page after its last byte."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._bytes = np.frombuffer(mmap.mmap(-1, self.size + mmap.PAGESIZE), np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        start = self._bytes.ctypes.data + self.size
        assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def tail(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array that ends where the memory ends."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._bytes[self.size - size : self.size].view(dtype).reshape(shape)


def guarded_buffers() -> Callable[[int, int, int], Any]:
    """Makes a kernel's buffers for a record, rows and arena of the given sizes, each at the end of its own memory."""
    regions: dict[str, Guarded] = {}

    def place(name: str, array: np.ndarray) -> np.ndarray:
        if name not in regions or regions[name].size < array.nbytes:
            regions[name] = Guarded(max(array.nbytes, 1 << 20))
        region = regions[name].tail(array.shape, array.dtype)
        region[...] = 0
        return region

    def make(record: int, rows: int, arena: int) -> Any:
        buffers = kernel._Buffers(record=record, rows=rows, arena=arena)
        for name in ("buffer", "sizes", "links", "fields", "signals", "saved"):
            setattr(buffers, name, place(name, getattr(buffers, name)))
        buffers.out = buffers.out._replace(**{k: place(k, v) for k, v in buffers.out._asdict().items()})
        return buffers

    return make


TOKENS = (
    *(
        b'"',
        b"\\",
        b'\\"',
        b"\\u",
        b"\\ud83d",
        b"\\ud83d\\ude00",
        b"\\u0000",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"}',
    ),
    *(
        b"},{",
        b'"path":"IMG@/src"',
        b'"alt":null',
        b'"url":""',
        b'"url":5',
        b"null",
        b" ",
        b"\n",
        b"\xff",
        b"\xc3",
        b"\0",
    ),
    *(b"\xed\xa0\x80", b'"url":"../a b.png"', b'"url":"//[x"', b'"Links":[', b'"Base":"/b/../c//d;e?x",', b'"Head":{'),
    *(b'{"alt":"q","url":"/z.png","path":"IMG@/src"},', b'{"path":"A@/href","x":{"a":"b"},"url":"}"},', b"\\u0061"),
    *(b'{"path":"A@/href","path":"IMG@/src","url":"u.png","alt":"t"},', b'"rel":"license",', b'"X-Robots-Tag":"noai",'),
    *(b'"name":"robots","content":"noai",', b'"WARC-Target-URI":"http://t.example/",', b'"Envelope":{},', b'"a":[],'),
)


def mutate(content: bytes, choose: random.Random) -> bytes:
    """Changes, removes or inserts a few bytes, near an image link or anywhere else."""
    data = bytearray(content)
    for _ in range(choose.choice((1, 1, 1, 2, 6))):
        at = choose.randrange(len(data) + 1)
        near = choose.choice((b"IMG@", b"IMG@", b'"text"', b'"title"', b'"Container"', b""))
        if near and (found := data.find(near, at)) >= 0:
            at = min(max(found + choose.randrange(-20, 120), 0), len(data))
        kind = choose.randrange(5)
        token = choose.choice(TOKENS)
        if kind == 0 and at < len(data):
            data[at] = choose.randrange(256)
        elif kind == 1:
            del data[at : at + choose.choice((1, 2, 5, 40))]
        elif kind == 2:
            data[at : at + len(token)] = token
        else:
            data[at:at] = token
    return bytes(data)


def unread(choose: random.Random) -> dict[str, Any]:
    """A page with much unused content: any JSON in every place that allows more fields."""
    values = (None, True, False, 0, -1, 2.5, 1e300, "", "a", '\u00e9\n"', [], {}, [1, [2, {}]], {"a": {"b": []}})
    content = page(choose)
    html = content["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
    for place in (content, content["Container"], content["Envelope"], html, html["Head"], *html["Links"]):
        place |= {f"X-{number}": choose.choice(values) for number in range(choose.randrange(3))}
    return content


def mutants(choose: random.Random) -> Iterator[bytes]:
    for number in cases(2000):
        content = spell(unread(choose) if number % 2 else page(choose), choose)
        yield content
        for _ in range(4):
            yield mutate(content, choose)


def test_all_readers_agree_on_any_bytes(tmp_path: Path) -> None:
    """The compiled reader, the reference and the careful reader give the same rows and the same ledger."""
    choose = random.Random(SEED)
    contents = [content for content, _ in zip(mutants(choose), cases(3000), strict=False)]
    data = b"".join(archives.member(archives.wat_record(0, content)) for content in contents)
    rows, ledger = assert_equal(tmp_path / "x.wat.gz", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wat, "parse_record", wat.parse_slowly)
        careful, careful_ledger = by_plain(str(tmp_path / "x.wat.gz"))
    assert rows.to_pylist() == careful.to_pylist() and ledger == careful_ledger
    assert 500 < ledger.records_dropped["bad_json"] < len(contents) - 500


NOT_JSON = [b"", b'"\x01"', b'"a\nb"', b'"a\x00"', b"\x0b1", b"\xa01", b"1 \x0c"]
NOT_JSON += rb"""
01|1.|.5|-|1e|1e+|+1|nul|nulls|True|tru|'a'|[1,]|[,1]|[1 2]|{"a"}|{"a":}|{"a":1,}|{,}|{1:2}|{"a" 1}|[}|{]|["a]|[[]|[]]
"a\x"|"\u12"|"\u12g4"|"\"|1/2|//|-Inf|0x1|"a" "b"|"a""b"|"a"x|x"a"|:1|1:1|"a":1
""".strip().replace(b"\n", b"|").split(b"|")  # fmt: skip
JSON = [b'"\xff"', b'"\x7f"', b"\t\r\n1", b"9" * 6000, b"[" * 70 + b"]" * 70, b'{"a":' * 70 + b"1" + b"}" * 70]
JSON += rb"""
0|-0|1.5E+3|1e5|12|null|true|false|[]|[ ]|{ }|[1, 2]|{"a" : [{}]}|"\u12aF"|"\/\b\f\n\r\t\\\""|"}"|"]"| 1 |{"":""}
NaN|-Infinity|1e999|"\ud800"|[[],{"a":[[1]]},[[[]]]]|"{\"path\":"|"},{"
""".strip().replace(b"\n", b"|").split(b"|")  # fmt: skip


def with_holes() -> list[bytes]:
    """Records with one image each, and with "@@" in a place that no reader uses."""
    plain, image = archives.wat_json(0), archives.link(0)
    envelope, http = plain["Envelope"], plain["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]
    other = {"path": "A@/href", "url": "u", "text": "t"}

    def html(links: list[Any], **head: Any) -> dict[str, Any]:
        inner = http | {"HTML-Metadata": {"Head": head, "Links": links}}
        return plain | {"Envelope": envelope | {"Payload-Metadata": {"HTTP-Response-Metadata": inner}}}

    made = [
        *(plain | {"Container": "@@"}, {"x": ["@@", 1]} | plain, plain | {"x": {"y": "@@", "z": 1}}),
        *(html([other | {"title": "@@"}, image]), html([image, other | {"title": "@@", "rel": "license"}])),
        html([other, {"path": "A@/href", "x": ["@@"], "y": {"z": "@@"}}, image]),
        html([image, {"title": "@@"} | other]),
        *(html([image | {"title": "@@"}]), html([{"title": "@@"} | image])),
        *(html([image], Title="@@"), html([image], Metas=[{"x": "@@"}], Link=[{"path": "LINK@/href", "x": "@@"}])),
        html([image, {"path": "@@"}]),
    ]
    return [json.dumps(root).encode() for root in made]


def test_what_nobody_reads_must_be_json_all_the_same(tmp_path: Path) -> None:
    for values, rows, lost in ((NOT_JSON, 0, {"bad_json": 1}), (JSON, 1, {})):
        contents = [hole.replace(b'"@@"', value) for value in values for hole in with_holes()]
        data = b"".join(archives.member(archives.wat_record(0, content)) for content in contents)
        read, ledger = assert_equal(tmp_path / "x.wat.gz", data)
        assert read.num_rows == rows * len(contents)
        assert ledger.records_dropped == {reason: len(contents) for reason in lost}


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages by Linux's mprotect")
def test_mutated_records_between_guard_pages(tmp_path: Path) -> None:
    choose, make = random.Random(SEED), guarded_buffers()
    read = left = tight = 0
    for content in mutants(choose):
        record = archives.wat_record(0, content)
        data = archives.member(record)
        small = choose.random() < 0.2  # too little room: the kernel must stop and not write beyond it
        room = choose.randrange(64, 3_000) if small else 1 << 18
        rows = choose.randrange(1, 8) if small else 200
        ledger, plain = Ledger(), Ledger()
        _, why, batch = kernel.Scanner(data, ledger, make(len(record), rows, room)).run(0)
        if why == kernel.ODD:
            left += 1
            assert ledger == Ledger() and not batch.num_rows
            continue
        batch.validate(full=True)
        expected = wat.Rows(plain)
        for found in read_records(io.BytesIO(data), ledger=plain, kinds=frozenset({"metadata"})):
            expected.add(found)
        assert (batch.to_pylist(), ledger) == (expected.batch().to_pylist(), plain), content
        read += 1
        tight += small
    assert read > left / 4 > 0 and tight, (read, left, tight)
    print(f"{read} read, {left} left, {tight} in tight buffers")
