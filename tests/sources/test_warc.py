"""WARC and ARC files as candidates: pages give pairs, images in the archive can be read again, the counts add up."""

import gzip
import io
import random
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import brotli
import pyarrow as pa
import pytest
import zstandard

from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES, TEXT_SOURCES, URL_SOURCES
from pipeline.sources import archive
from pipeline.sources.archive import Record, decode_body, http_response
from pipeline.sources.inputs import expand
from pipeline.sources.warc import ARCHIVED_IMAGES, ArchivedImages, _content_type, read_image, read_warc
from tests.archives import Stream, html_block, html_record, member, page_url, record
from tests.places import DATA

SHARED = DATA / "warc"
PIXELS = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


def http(body, *, kind="text/html", status="200 OK", headers=""):
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{headers}\r\n".encode() + body


def read(path):
    """All rows of a file, its images and the ledger, which must add up."""
    ledger, images = Ledger(), ArchivedImages()
    batches = list(read_warc(str(path), ledger=ledger, images=images, size=Path(path).stat().st_size))
    table = pa.Table.from_batches(batches, CANDIDATES)
    table.validate(full=True)
    assert ledger.rows_in == table.num_rows + sum(ledger.dropped.values())
    kinds = ("page", "image", "revisit", "other_status", "other_content", "not_http")
    assert ledger.records_in == sum(ledger.records_dropped.values()) + sum(ledger.notes[kind] for kind in kinds)
    batch = images.batch()
    assert batch.schema == ARCHIVED_IMAGES and len(batch) == len(images)
    return table, batch, ledger


def test_a_page_gives_its_pairs_with_provenance(tmp_path):
    body = "<meta name=robots content='noai'><a rel=license href='/by'>cc</a><img src=a.jpg alt='café' title=t>".encode(
        "cp1252"
    )
    page = record(
        http(body, kind="Text/HTML; Charset=ISO-8859-1", headers="X-Robots-Tag: noimageai\r\n"),
        url="http://h.example/d/p",
    )
    first = member(html_record(1))
    (tmp_path / "a.warc.gz").write_bytes(first + member(page))
    table, _, ledger = read(tmp_path / "a.warc.gz")
    common = {"page_url": "http://h.example/d/p", "opt_out": "noai,noimageai", "license": "http://h.example/by"}
    common |= {"url": "http://h.example/d/a.jpg", "offset": len(first), "url_source": URL_SOURCES.index("src")}
    assert table.to_pylist()[1:] == [
        {**common, "text": "café", "text_source": TEXT_SOURCES.index("alt")},
        {**common, "text": "t", "text_source": TEXT_SOURCES.index("title")},
    ]
    assert table["page_url"][0].as_py() == page_url(1) and table["offset"][0].as_py() == 0
    assert ledger.notes == {"page": 2}


def various():
    """Records of all kinds, and the expected notes."""
    gone = record(http(b"<img src=a alt=b>", status="404 Not Found"), url="http://h/404")
    moved = record(http(b"", status="301 Moved"), url="http://h/301")
    script = record(http(b"'<img src=a alt=b>'", kind="text/javascript"), url="http://h/js")
    untyped = record(b"HTTP/1.1 200 OK\r\n\r\n  <!DOCTYPE html><img src=a alt=untyped>", url="http://h/untyped")
    old = record(http(b""), url="http://h/old", kind="revisit")
    lookup = record(b"20260101 h 192.0.2.1", url="dns:h", kind="response")
    broken = record(b"not http at all", url="http://h/broken")
    request = record(b"GET / HTTP/1.1\r\n\r\n", url="http://h/", kind="request")
    resource = record(b"<img src=r alt=resource>", url="http://h/r", kind="resource", extra=["Content-Type: text/html"])
    counts = {"other_status": 2, "other_content": 1, "page": 2, "revisit": 1, "not_http": 1}
    return [gone, moved, script, untyped, old, lookup, broken, request, resource], counts


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_page_is_noted_by_kind(tmp_path, packed):
    records, counts = various()
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    path.write_bytes(b"".join(map(member, records) if packed else records))
    table, _, ledger = read(path)
    assert table["text"].to_pylist() == ["untyped", "resource"]
    assert ledger.notes == counts
    assert ledger.records_dropped == {"bad_http": 1}


@pytest.mark.parametrize(
    ("types", "mime", "charset"),
    [  # the Fetch standard, "extract a MIME type": the last valid type counts
        ("text/html", "text/html", None),
        ("Text/HTML; Charset=UTF-8", "text/html", "UTF-8"),
        ("text/html, text/html", "text/html", None),
        ("text/html, text/html; charset=gbk", "text/html", "gbk"),
        ("text/html; charset=gbk, text/html", "text/html", "gbk"),
        ("text/html; charset=gbk, text/plain", "text/plain", None),
        ("text/html; charset=gbk, text/html; x=y", "text/html", "gbk"),
        ("text/plain, text/html", "text/html", None),
        ("text/html, */*", "text/html", None),
        ("text/html;, ", "text/html", None),
        ('text/html; charset="gbk"', "text/html", "gbk"),
        ("text/html; charset='gbk'", "text/html", "gbk"),
        ('text/html; a="b, text/plain"; charset=gbk', "text/html", "gbk"),
        ("html", "", None),
        ("", "", None),
    ],
)
def test_content_types(types, mime, charset):
    assert _content_type(types) == (mime, charset)


def test_repeated_headers_and_a_scheme_in_capitals(tmp_path):
    twice = http(b"<img src=/c.jpg alt='a small cat'>", headers="Content-Type: text/html; charset=utf-8\r\n")
    tags = "X-Robots-Tag: otherbot: noindex\r\nX-Robots-Tag: noai\r\n"
    records = [
        record(twice, url="HTTP://A.example/p"),
        record(http(b"<img src=d alt=d>", headers=tags), url="http://h/"),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    table, _, _ = read(tmp_path / "a.warc")
    assert table["url"].to_pylist() == ["http://a.example/c.jpg", "http://h/d"]
    assert table["opt_out"].to_pylist() == [None, "noai"]


PAGE = b'<html><img src="https://i.example/a.jpg" alt="a picture of a thing"></html>'


def chunks(body: bytes) -> bytes:
    pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
    return b"".join(b"%x;name=value\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Trailer: 1\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Encoding: gzip", gzip.compress(PAGE)),
        ("Content-Encoding: x-gzip", gzip.compress(PAGE[:20]) + gzip.compress(PAGE[20:])),
        ("Content-Encoding: deflate", zlib.compress(PAGE)),
        ("Content-Encoding: deflate", zlib.compress(PAGE)[2:-4]),
        ("Content-Encoding: br", brotli.compress(PAGE)),
        ("Content-Encoding: zstd", zstandard.compress(PAGE)),
        ("Content-Encoding: zstd, br, GZIP", gzip.compress(brotli.compress(zstandard.compress(PAGE)))),
        ("Content-Encoding: gzip\r\nContent-Encoding: br", brotli.compress(gzip.compress(PAGE))),
        ("Content-Encoding: identity", PAGE),
        ("Content-Encoding: br", PAGE),
        ("Content-Encoding: zstd", PAGE),
        ("Transfer-Encoding: chunked", chunks(PAGE)),
        ("Transfer-Encoding: chunked", PAGE),
        ("Transfer-Encoding: gzip, chunked", chunks(gzip.compress(PAGE))),
        ("Transfer-Encoding: chunked\r\nContent-Encoding: br", chunks(brotli.compress(PAGE))),
        ("Content-Encoding: " + "gzip, " * 10_000, PAGE),
    ],
    ids=range(16),
)
def test_encodings_are_undone(headers, body):
    block = b"HTTP/2 200\r\nContent-Type: text/html\r\n" + headers.encode() + b"\r\n\r\n" + body
    response = http_response(Record(0, "response", "https://h.example/", b"", block))
    assert response is not None and response.body == PAGE
    cut = http_response(Record(0, "response", "https://h.example/", b"", block), max_body=30)
    assert cut is not None and cut.body == PAGE[:30]


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
def test_bombs_in_bodies_are_bounded(name):
    packers = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress}
    pack = packers.get(name, lambda data: brotli.compress(data, quality=1))
    bomb = pack(bytes(100 << 20))
    tracemalloc.start()
    assert decode_body(bomb, name, 1 << 20) == bytes(1 << 20)
    assert decode_body(pack(bomb), f"{name}, {name}", 1 << 20) == bytes(1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


RSL = '</l.xml>; rel="license"; type="application/rsl+xml"'


@pytest.mark.parametrize("packed", [False, True])
def test_images_in_the_archive_are_found_again(tmp_path, packed):
    chunked = b"%x\r\n" % len(PIXELS) + PIXELS + b"\r\n0\r\n\r\n"
    records = [
        record(http(PIXELS, kind="image/png"), url="http://h/plain.png"),
        html_record(1),
        record(http(chunked, kind="image/png", headers="Transfer-Encoding: chunked\r\n"), url="http://h/chunked.png"),
        record(
            http(gzip.compress(PIXELS), kind="image/png", headers="Content-Encoding: gzip\r\n"), url="http://h/gzip.png"
        ),
        record(PIXELS, url="http://h/resource.png", kind="resource", extra=["Content-Type: image/png"]),
        record(http(b"", kind="image/png"), url="http://h/empty.png"),
        record(http(PIXELS, kind="image/png", status="404 Not Found"), url="http://h/gone.png"),
        record(http(b"<svg/>", kind="image/svg+xml"), url="http://h/drawing.svg"),
        record(http(PIXELS, kind="image/png", headers="X-Robots-Tag: noai\r\n"), url="http://h/forbidden.png"),
        record(http(PIXELS, kind="image/png", headers=f"Link: {RSL}\r\n"), url="http://h/licensed.png"),
    ]
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    path.write_bytes(b"".join(map(member, records) if packed else records))
    table, images, ledger = read(path)
    assert table.num_rows == 1
    names = ["plain", "chunked", "gzip", "resource"]
    assert images["url"].to_pylist() == [f"http://h/{name}.png" for name in names]
    assert set(images["mime"].to_pylist()) == {"image/png"} and set(images["length"].to_pylist()) == {len(PIXELS)}
    assert ledger.notes["image_opted_out"] == 2
    for offset in images["offset"].to_pylist():
        assert read_image(str(path), offset, max_bytes=len(PIXELS)) == PIXELS
        assert read_image(str(path), offset, max_bytes=len(PIXELS) - 1) is None
    assert read_image(str(path), 7, max_bytes=1 << 20) is None
    assert read_image(str(path), path.stat().st_size + 5, max_bytes=1 << 20) is None


def test_an_arc_file(tmp_path):
    def entry(url, block):
        return f"{url} 192.0.2.1 20080430204825 text/html {len(block)}\n".encode() + block + b"\n"

    records = [entry("filedesc://a.arc", b"1 0 x\n"), entry("http://h/p", http(b"<img src=i.png alt='in an arc'>"))]
    records.append(entry("http://h/i.png", http(PIXELS, kind="image/png")))
    (tmp_path / "a.arc").write_bytes(b"".join(records))
    table, images, _ = read(tmp_path / "a.arc")
    assert table.select(["url", "text"]).to_pylist() == [{"url": "http://h/i.png", "text": "in an arc"}]
    assert read_image(str(tmp_path / "a.arc"), images["offset"][0].as_py(), max_bytes=1 << 20) == PIXELS


def test_damage_costs_the_record_and_is_counted(tmp_path):
    members = [member(html_record(number)) for number in range(5)]
    members[2] = members[2][:20] + b"\xff" * 8 + members[2][28:]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(members))
    table, _, ledger = read(tmp_path / "a.warc.gz")
    assert table["page_url"].to_pylist() == [page_url(number) for number in (0, 1, 3, 4)]
    assert ledger.records_dropped == {"bad_gzip": 1}


def test_batches_are_bounded_by_pages(tmp_path):
    body = "".join(f"<img src={number}.jpg alt='number {number}'>" for number in range(9_000)).encode()
    (tmp_path / "a.warc").write_bytes(record(http(body), url="http://h/") * 5)
    sizes = [batch.num_rows for batch in read_warc(str(tmp_path / "a.warc"), ledger=Ledger())]
    assert sizes == [18_000, 18_000, 9_000]


def test_the_members_of_a_wacz(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.wacz", "w") as pack:
        pack.writestr("archive/data.warc.gz", member(html_record(1)) + member(html_record(2)))
    (source,) = expand([str(tmp_path)])
    batches = list(read_warc(source.path, ledger=Ledger()))
    assert sum(batch.num_rows for batch in batches) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared web archives are not here")
def test_real_archives():
    total = images = 0
    for path in sorted(SHARED.glob("*/*.*arc*")):
        if any(part in path.name for part in (".wat", ".wet", ".txt", ".lz4")):
            continue
        table, batch, _ = read(path)
        total, images = total + table.num_rows, images + len(batch)
        for row in batch.slice(0, 3).to_pylist():
            assert len(read_image(str(path), row["offset"], max_bytes=1 << 30) or b"") == row["length"]
    assert total > 3_000 and images > 100


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared web archives are not here")
def test_a_crawl_as_arc_and_as_warc_gives_the_same_pairs():
    """The same crawl was written in both forms."""
    folder = SHARED / "ukwa+webarchive-discovery"
    found = []
    for kind in ("warc", "warc.gz", "arc", "arc.gz"):
        table, _, _ = read(folder / f"IAH-20080430204825-00000-blackbook-truncated.{kind}")
        found.append(sorted(zip(table["url"].to_pylist(), table["text"].to_pylist(), strict=True)))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) == 16  # 52 images with an alt, most of them the same icons


def test_a_scheme_in_capitals_is_http(tmp_path):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    page = b'<img src="a.jpg" alt="a cat"><a rel="license" href="HTTPS://l.example/">l</a>'
    base = b'<base href="HTTPS://b.example/x/">'
    records = [record(head + page, url="HTTP://a.example/p"), record(head + base + page, url="Https://a.example/q")]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    ledger = Ledger()
    (batch,) = read_warc(str(tmp_path / "a.warc"), ledger=ledger)
    assert batch["url"].to_pylist() == ["http://a.example/a.jpg", "https://b.example/x/a.jpg"]
    assert batch["license"].null_count == 0 and "not_http" not in ledger.notes


class Endless(io.RawIOBase):
    """A stream of parts: bytes, or a number of zeros that are made as they are read."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = list(parts)

    def read(self, size=-1):
        part = self.parts.pop(0) if self.parts else b""
        count = min(size, part if isinstance(part, int) else len(part))
        rest = part - count if isinstance(part, int) else part[count:]
        self.parts = ([rest] if rest else []) + self.parts
        return bytes(count) if isinstance(part, int) else part[:count]


def peak_of(source):
    """The records of a stream, the ledger, and the most bytes that reading them held at once."""
    ledger = Ledger()
    tracemalloc.start()
    try:
        found = [one.url for one in archive.read_records(source, ledger=ledger)]
        return found, ledger, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_all_records_of_one_long_gzip_member_are_read(tmp_path):
    """Some programs pack a whole WARC as one gzip member: libdeflate and one call of zlib are too small for it."""
    filler = random.Random(0).randbytes(1 << 20).hex().encode()  # it packs to a half
    data = b"".join(html_record(number, html_block(number) + filler) for number in range(15))
    assert len(data) > 30 << 20
    for source in (tmp_path / "a.warc.gz", Stream(packed := gzip.compress(data, 1), 1 << 20)):
        if isinstance(source, Path):
            source.write_bytes(packed)
        found, ledger, peak = peak_of(source if isinstance(source, Stream) else str(source))
        assert found == [page_url(number) for number in range(15)]
        assert not ledger.records_dropped and not ledger.notes
        assert peak < 64 << 20


def test_skipping_a_giant_record_of_a_stream_holds_little_of_it():
    size = 96 << 20
    head = record(b"", url=page_url(1), length=str(size)).removesuffix(b"\r\n\r\n")
    found, ledger, peak = peak_of(Endless(html_record(0), head, size, b"\r\n\r\n", html_record(2)))
    assert found == [page_url(0), page_url(2)]
    assert ledger.records_dropped == {"too_large": 1}
    assert peak < 8 << 20


def test_an_image_far_behind_in_a_stream_is_reached_without_holding_what_lies_before():
    far = 64 << 20
    source = archive._Streamed(Endless(b"x", far, b"the end"))
    tracemalloc.start()
    try:
        source.skip_to(far + 1)
        assert source.at(far + 1, 10) == b"the end"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
