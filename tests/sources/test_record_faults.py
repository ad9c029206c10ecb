"""One bad record among good records loses only itself, for every kind of fault and every place in the file.

Each fault names the outcome of its record: lost (a record, with a reason), dropped (a row, with a reason), skipped (a
note: it has no image), or kept (the pair can still be read).
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import build
from pipeline.engine import jit
from pipeline.engine.ledger import Ledger
from pipeline.sources import READERS, wat_reader
from pipeline.sources.archive import reading
from pipeline.sources.base import Input, ReadSettings
from pipeline.sources.warc import read_warc
from pipeline.sources.wat_reader import read_wat
from tests.archives import Stream, html_block, html_record, link, member, page_url, wat_json, wat_record

GOOD = 60
BAD = "bad"  # the number of the bad record
TEXT = f"a picture of number {BAD}"


@dataclasses.dataclass(frozen=True)
class Fault:
    """The bytes of one record in the file, and the allowed outcome."""

    name: str
    data: Callable[[], bytes]
    outcome: str  # kept | lost:reason | dropped:reason | note:word | nothing

    def __str__(self) -> str:
        return self.name


def in_json(name: str, outcome: str, change: Callable[[], Any]) -> Fault:
    """A fault in the block of a sound record."""
    return Fault(name, lambda: member(wat_record(BAD, change())), outcome)


def one_link(**fields: Any) -> Callable[[], Any]:
    """The bad record's link with other fields. A field with the value `...` is left out."""

    def change() -> Any:
        merged = {**link(BAD), **fields}
        return wat_json(BAD, [{key: value for key, value in merged.items() if value is not ...}])

    return change


def without(*path: str, value: Any = ...) -> Callable[[], Any]:
    """The bad record's JSON without the field at `path`, or with `value` in its place."""

    def change() -> Any:
        root = inner = wat_json(BAD)
        for key in path[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        return root

    return change


def replaced(old: str, new: str | bytes) -> Callable[[], bytes]:
    """The bad record's JSON text with a piece replaced."""
    fresh = new if isinstance(new, bytes) else new.encode()
    return lambda: json.dumps(wat_json(BAD)).encode().replace(old.encode(), fresh, 1)


HTTP = ("Envelope", "Payload-Metadata", "HTTP-Response-Metadata")
HTML = (*HTTP, "HTML-Metadata")
URI = ("Envelope", "WARC-Header-Metadata", "WARC-Target-URI")

JSON_FAULTS = [
    in_json("link without url", "dropped:bad_field", one_link(url=...)),
    in_json("null url", "dropped:bad_field", one_link(url=None)),
    in_json("numeric url", "dropped:bad_field", one_link(url=7)),
    in_json("empty url", "dropped:empty_url", one_link(url=" \t")),
    in_json("url of a megabyte", "dropped:url_too_long", one_link(url="http://a.example/" + "x" * 2**20)),
    in_json("url with a broken address", "dropped:bad_url", one_link(url="//[::1")),
    in_json("no alt", "dropped:no_alt", one_link(alt=...)),
    in_json("null alt", "dropped:no_alt", one_link(alt=None)),
    in_json("numeric alt", "dropped:bad_field", one_link(alt=5)),
    in_json("list for an alt", "dropped:bad_field", one_link(alt=["a"])),
    in_json("alt of 5 MB", "kept", one_link(alt="long " * 2**20)),
    in_json("control characters", "kept", one_link(alt="a\x00\x01\x1b[31m\u202e picture\r\n\x7f")),
    in_json("numeric path", "nothing", one_link(path=3)),
    in_json("Links null", "note:no_links", without(*HTML, "Links", value=None)),
    in_json("Links a string", "note:no_links", without(*HTML, "Links", value="IMG@/src")),
    in_json("Links an object", "note:no_links", without(*HTML, "Links", value={"0": link(BAD)})),
    in_json("a link that is a string", "dropped:bad_field", without(*HTML, "Links", value=["IMG@/src"])),
    in_json("a link that is null", "dropped:bad_field", without(*HTML, "Links", value=[None])),
    in_json("HTML-Metadata null", "note:no_links", without(*HTML, value=None)),
    in_json("HTML-Metadata a list", "note:no_links", without(*HTML, value=[1])),
    in_json("Head a string", "kept", without(*HTML, "Head", value="head")),
    in_json("base that is no URL", "kept", without(*HTML, "Head", value={"Base": "http://[", "Metas": 3, "Link": "x"})),
    in_json("Headers a list", "kept", without(*HTTP, "Headers", value=["a"])),
    in_json("no Envelope", "note:no_links", without("Envelope")),
    in_json("no Container", "kept", without("Container")),
    in_json("no Target-URI", "note:no_links", without(*URI)),
    in_json("numeric Target-URI", "note:no_links", without(*URI, value=5)),
    in_json("JSON a list", "note:no_links", lambda: [wat_json(BAD)]),
    in_json("empty block", "note:no_links", lambda: b""),
    in_json("blanks", "note:no_links", lambda: b" " * 1000),
    in_json("JSON cut", "lost:bad_json", lambda: json.dumps(wat_json(BAD)).encode()[:-9]),
    in_json("JSON twice", "lost:bad_json", lambda: 2 * json.dumps(wat_json(BAD)).encode()),
    in_json("garbage for JSON", "lost:bad_json", lambda: b"HTML-Metadata \xff\xfe\x00 garbage"),
    in_json("NaN", "kept", replaced('"t"', "NaN")),
    in_json("Infinity for an alt", "dropped:bad_field", replaced(f'"{TEXT}"', "-Infinity")),
    in_json("huge number", "kept", replaced('"t"', "1e999")),
    in_json("number of 100,000 digits", "kept", replaced('"t"', "9" * 100_000)),
    in_json("nested 100,000 deep", "lost:bad_json", replaced('"t"', "[" * 100_000 + "]" * 100_000)),
    in_json("nested 100,000 deep, unclosed", "lost:bad_json", replaced('"t"', '{"a":' * 100_000)),
    in_json("duplicate keys", "kept", replaced('"alt":', '"alt": 5, "alt":')),
    in_json("lone surrogates", "kept", one_link(alt="half \ud800 and \udfff a picture")),
    in_json("lone surrogate in the url", "kept", one_link(url="https://img.example/\ud800.jpg")),
    in_json("bad UTF-8", "kept", replaced(TEXT, b"caf\xe9 \xff\xc0\x80 \xed\xa0\x80")),
    in_json("escaped keys", "kept", replaced('"url"', '"\\u0075rl"')),
    in_json("escaped HTML-Metadata", "kept", replaced('"HTML-Metadata"', '"\\u0048TML-Metadata"')),
    in_json("byte order mark", "kept", lambda: b"\xef\xbb\xbf" + json.dumps(wat_json(BAD)).encode()),
]


def header_line_of_a_megabyte(make: Callable[..., bytes]) -> bytes:
    return make(BAD, extra=["X-Long: " + "x" * 2**20])


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 4]) + data[middle + 4 :]


def wrong_crc(data: bytes) -> bytes:
    return data[:-8] + bytes(byte ^ 0x55 for byte in data[-8:-4]) + data[-4:]


def noise(count: int) -> bytes:
    return random.Random(5).randbytes(count)


def container_faults(make: Callable[..., bytes]) -> list[Fault]:
    """The faults around a record of a WAT or WARC file."""

    def header(name: str, outcome: str, **changes: Any) -> Fault:
        return Fault(name, lambda: member(make(BAD, **changes)), outcome)

    def size() -> int:
        return len(make(BAD, length="")) // 2

    return [
        Fault("Content-Length too small", lambda: member(make(BAD, length=str(size() - 90))), "lost:wrong_length"),
        header("Content-Length too big", "lost:wrong_length", length="99999"),
        header("Content-Length negative", "lost:bad_length", length="-5"),
        header("Content-Length not a number", "lost:bad_length", length="many"),
        header("Content-Length of 30 digits", "lost:bad_length", length="9" * 30),
        header("Content-Length over the bound", "lost:too_large", length=str(10**15)),
        header("Content-Length absent", "lost:bad_length", length=None),
        header("WARC/9.9", "lost:bad_version", version="WARC/9.9"),
        header("no version", "lost:bad_header", version="RAW/1.0"),
        header("bare newlines", "kept", newline="\n"),
        header("header lines without a colon", "kept", extra=["nonsense", ": no name", "\x00\x01"]),
        Fault("header without an end", lambda: member(b"WARC/1.0\r\nContent-Length: 2\r\n"), "lost:bad_header"),
        Fault("no WARC-Type", lambda: member(make(BAD).replace(b"WARC-Type", b"X-Kind")), "lost:bad_header"),
        Fault("garbage in a member", lambda: member(noise(5000)), "lost:bad_header"),
        Fault("header line of 1 MB", lambda: member(header_line_of_a_megabyte(make)), "lost:bad_header"),
        Fault("member cut", lambda: member(make(BAD))[:-40], "lost:bad_gzip"),
        Fault("member cut in its header", lambda: member(make(BAD))[:6], "lost:bad_gzip"),
        Fault("CRC wrong", lambda: wrong_crc(member(make(BAD))), "lost:bad_gzip"),
        Fault("bytes flipped", lambda: flipped(member(make(BAD))), "lost:bad_gzip"),
        Fault("random bytes between members", lambda: noise(3000), "lost:bad_header"),
        Fault("zero bytes between members", lambda: bytes(512), "lost:bad_header"),
        Fault("blank lines between members", lambda: b"\r\n\n\r\n", "nothing"),
        Fault("gzip's first bytes alone", lambda: b"\x1f\x8b\x08" * 50, "lost:bad_gzip"),
        Fault("plain record between members", lambda: make(BAD), "kept"),
        Fault("two blank lines missing", lambda: member(make(BAD)[:-4]), "kept"),
        Fault("empty gzip member", lambda: member(b""), "nothing"),
        Fault("member with a comment", lambda: with_comment(member(make(BAD))), "kept"),
    ]


def with_comment(data: bytes) -> bytes:
    """The same member with a file name and a comment in its gzip header."""
    return data[:3] + b"\x18" + data[4:10] + b"name.warc\x00a comment\x00" + data[10:]


WAT_FAULTS = [*JSON_FAULTS, *container_faults(wat_record)]
WARC_FAULTS = [
    *container_faults(html_record),
    Fault("block without HTTP", lambda: member(html_record(BAD, b"hello")), "lost:bad_http"),
    Fault("status line of nonsense", lambda: member(html_record(BAD, b"HTTP/1.1 abc\r\n\r\n")), "lost:bad_http"),
    Fault("no body", lambda: member(html_record(BAD, html_block(BAD).split(b"<html>")[0])), "nothing"),
    Fault("body is not the gzip it says", lambda: member(html_record(BAD, encoded(b"gzip"))), "kept"),
    Fault("body is not chunked as it says", lambda: member(html_record(BAD, chunked())), "kept"),
    Fault("bad UTF-8 in the page", lambda: member(html_record(BAD, html_block(BAD).replace(b"of", b"\xff"))), "kept"),
]
PLACES = {"first": 0, "middle": GOOD // 2, "last": GOOD}


def encoded(name: bytes) -> bytes:
    return html_block(BAD).replace(b"\r\n\r\n", b"\r\nContent-Encoding: " + name + b"\r\n\r\n", 1)


def chunked() -> bytes:
    return html_block(BAD).replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n", 1)


def test_there_are_enough_faults() -> None:
    assert len(WAT_FAULTS) >= 41
    assert len({fault.name for fault in WAT_FAULTS}) == len(WAT_FAULTS)


def read_compiled(source: str, *, ledger: Ledger) -> Iterator[pa.RecordBatch]:
    """Reads with the compiled reader. Normally, small files do not use it."""
    from pipeline.sources import wat_kernel

    with reading(source, ledger) as reader:
        yield from wat_reader._read_compiled(reader, wat_kernel, ledger)


def has_compiled() -> bool:
    if not jit.available():
        return False
    from pipeline.sources import wat_kernel

    return bool(wat_kernel.usable())


COMPILED = has_compiled()


def read(reader: Callable, source: Any) -> tuple[list[tuple[str, str, str]], Ledger]:
    """(page, url, text) of all rows, and the ledger, which must add up."""
    ledger = Ledger()
    rows: list[tuple[str, str, str]] = []
    for batch in reader(source, ledger=ledger):
        batch.validate(full=True)
        rows += zip(*(batch[name].to_pylist() for name in ("page_url", "url", "text")), strict=True)
    assert ledger.rows_in == len(rows) + sum(ledger.dropped.values())
    return rows, ledger


def good_rows(count: int = GOOD) -> list[tuple[str, str, str]]:
    return [(page_url(number), link(number)["url"], link(number)["alt"]) for number in range(count)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("reader", "make", "fault"),
    [
        *((read_wat, wat_record, fault) for fault in WAT_FAULTS),
        *((read_warc, html_record, fault) for fault in WARC_FAULTS),
    ],
    ids=[f"wat: {fault}" for fault in WAT_FAULTS] + [f"warc: {fault}" for fault in WARC_FAULTS],
)
def test_a_bad_record_loses_itself_alone(
    reader: Callable, make: Callable[..., bytes], fault: Fault, place: str, tmp_path: Path
) -> None:
    members = [member(make(number)) for number in range(GOOD)]
    members.insert(PLACES[place], fault.data())
    path = tmp_path / "file.warc.gz"
    path.write_bytes(b"".join(members))
    check_outcome(reader, str(path), fault, at_end=place == "last")
    if reader is read_wat and COMPILED:
        check_outcome(read_compiled, str(path), fault, at_end=place == "last")
    check_outcome(reader, Stream(b"".join(members)), fault, at_end=place == "last")


def check_outcome(reader: Callable, source: Any, fault: Fault, *, at_end: bool) -> None:
    rows, ledger = read(reader, source)
    good = good_rows()
    assert [row for row in rows if row in good] == good
    kind, _, word = fault.outcome.partition(":")
    assert len(rows) - len(good) == (kind == "kept")
    lost, dropped = dict(ledger.records_dropped), dict(ledger.dropped)
    if kind == "lost" and at_end and "cut_record" in lost:  # at the end of the file, damage and a cut look the same
        assert lost == {"cut_record": 1} and ledger.notes["cut_file"] == 1
        return
    assert lost == ({word: 1} if kind == "lost" else {})
    assert dropped == ({word: 1} if kind == "dropped" else {})
    assert ledger.notes["no_links"] == (fault.outcome == "note:no_links")


def test_all_faults_in_one_run(tmp_path: Path) -> None:
    """The same with the whole program: every good pair leaves gather, and info.json counts every loss."""
    (tmp_path / "in").mkdir()
    (tmp_path / "queries.txt").write_text("picture\n")
    rng = random.Random(1)
    for name, make, faults in (("a.wat.gz", wat_record, WAT_FAULTS), ("b.warc.gz", html_record, WARC_FAULTS)):
        between = [[member(make(number)), fault.data()] for number, fault in enumerate(faults)]
        rng.shuffle(between)
        (tmp_path / "in" / name).write_bytes(b"".join(part for pair in between for part in pair) + member(make("end")))
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    arguments += ["--queries", str(tmp_path / "queries.txt"), "--stages", "gather", "--workers", "1"]
    assert build.main(arguments) == build.DONE
    info = json.loads((tmp_path / "out/stages/gather/info.json").read_text())
    faults = [*WAT_FAULTS, *WARC_FAULTS]
    lost = sum(fault.outcome.startswith("lost") for fault in faults)
    assert sum(info["records_dropped"].values()) == lost
    assert info["rows_in"] == info["rows_out"] + sum(info["dropped"].values())
    rows_in = len(faults) + 2 + sum(fault.outcome.startswith(("kept", "dropped")) for fault in faults)
    assert info["rows_in"] == rows_in


# ------------------------------------------------------------------------------------------------------------- cuts


@pytest.mark.parametrize(("reader", "make"), [(read_wat, wat_record), (read_warc, html_record)], ids=["wat", "warc"])
def test_a_cut_file_is_reported_and_its_whole_records_kept(
    reader: Callable, make: Callable[..., bytes], tmp_path: Path
) -> None:
    members = [member(make(number)) for number in range(GOOD)]
    ends = [sum(map(len, members[: number + 1])) for number in range(GOOD)]
    data, rng = b"".join(members), random.Random(7)
    for _ in range(50):
        cut = rng.randrange(1, len(data))
        if cut in ends:
            cut -= 1
        path = tmp_path / "cut.warc.gz"
        path.write_bytes(data[:cut])
        for source in (str(path), Stream(data[:cut])):
            rows, ledger = read(reader, source)
            whole = sum(end <= cut for end in ends)
            assert ledger.notes["cut_file"] == 1
            if len(rows) == whole:
                assert dict(ledger.records_dropped) == {"cut_record": 1}
            else:  # only gzip's trailer, or blank lines, are missing: the record is whole
                assert len(rows) == whole + 1 and ends[whole] - cut < 16 and not ledger.records_dropped
            assert rows == good_rows()[: len(rows)]


def test_a_cut_between_members_is_seen_by_the_listed_size(tmp_path: Path) -> None:
    members = [member(wat_record(number)) for number in range(4)]
    path = tmp_path / "cut.wat.gz"
    path.write_bytes(b"".join(members[:3]))
    for size, seen in ((sum(map(len, members)), 1), (sum(map(len, members[:3])), 0)):
        ledger = Ledger()
        rows = sum(batch.num_rows for batch in read_wat(str(path), ledger=ledger, size=size))
        assert (rows, ledger.notes["cut_file"]) == (3, seen)


def test_a_plain_file_cut_or_damaged(tmp_path: Path) -> None:
    records = [wat_record(number) for number in range(GOOD)]
    path = tmp_path / "plain.wat"
    path.write_bytes(b"".join(records)[:-100])
    rows, ledger = read(read_wat, str(path))
    assert len(rows) == GOOD - 1 and dict(ledger.records_dropped) == {"cut_record": 1} and ledger.notes["cut_file"] == 1
    for bad in (wat_record(BAD, length="3"), wat_record(BAD, length="99999999"), b"\x00garbage\r\n" * 9):
        for source in (b"".join([*records[:30], bad, *records[30:]]),):
            path.write_bytes(source)
            for opened in (str(path), Stream(source)):
                rows, ledger = read(read_wat, opened)
                assert len(rows) == GOOD and sum(ledger.records_dropped.values()) == 1


# -------------------------------------------------------------------------------------------------- bounds, any edit

# Not getrusage: its maximum includes the memory of the parent process.
PEAK = """
import sys
from pipeline.engine.ledger import Ledger
from pipeline.sources.wat_reader import read_wat
ledger = Ledger()
rows = sum(batch.num_rows for batch in read_wat(sys.argv[1], ledger=ledger))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(rows, dict(ledger.records_dropped), int(peak.split()[1]) // 1024)
"""


def blanks(megabytes: int, head: bytes) -> bytes:
    """A gzip member with `head`, then blanks. It is made in pieces."""
    packer = zlib.compressobj(6, wbits=31)
    parts = [packer.compress(head)] + [packer.compress(b" " * 2**20) for _ in range(megabytes)]
    return b"".join([*parts, packer.compress(b"\r\n\r\n"), packer.flush()])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status is Linux's")
@pytest.mark.parametrize("length", ["right", "small", "absent"])
def test_a_record_of_300_mb_needs_little_memory(length: str, tmp_path: Path) -> None:
    megabytes = 300
    said = {"right": megabytes << 20, "small": 500, "absent": None}[length]
    line = b"" if said is None else b"Content-Length: %d\r\n" % said
    bomb = blanks(megabytes, b"WARC/1.0\r\nWARC-Type: metadata\r\n" + line + b"\r\n")
    path = tmp_path / "bomb.wat.gz"
    path.write_bytes(member(wat_record(0)) + bomb + member(wat_record(1)))
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-c", PEAK, str(path)]
    said_by = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    rows, rest = said_by.stdout.split(" ", 1)
    lost, _, peak = rest.rpartition(" ")
    assert rows == "2"
    assert sum(json.loads(lost.replace("'", '"')).values()) == 1, lost
    assert int(peak) <= 256, f"peak of {peak} MB"


EDITED = [member(wat_record(number)) for number in range(5)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_edit_inside_a_member_leaves_all_others(data: st.DataObject, tmp_path: Path) -> None:
    number = data.draw(st.integers(0, 4), label="member")
    body = bytearray(EDITED[number])
    for _ in range(data.draw(st.integers(1, 3), label="edits")):
        place = data.draw(st.integers(0, len(body) - 1), label="place")
        body[place] = data.draw(st.integers(0, 255), label="byte")
    whole = b"".join([*EDITED[:number], bytes(body), *EDITED[number + 1 :]])
    path = tmp_path / "edited.wat.gz"
    path.write_bytes(whole)
    others = [row for place, row in enumerate(good_rows(5)) if place != number]
    readers = [(read_wat, str(path)), (read_wat, Stream(whole, 700))] + [(read_compiled, str(path))] * COMPILED
    for reader, source in readers:
        rows, ledger = read(reader, source)
        assert [row for row in rows if row in others] == others
        assert len(rows) + sum(ledger.records_dropped.values()) == 5


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(min_size=1, max_size=400), number=st.integers(0, 5))
def test_any_bytes_between_members_leave_all_records(junk: bytes, number: int, tmp_path: Path) -> None:
    whole = b"".join([*EDITED[:number], junk, *EDITED[number:]])
    path = tmp_path / "junk.wat.gz"
    path.write_bytes(whole)
    for source in (str(path), Stream(whole, 333)):
        rows, _ = read(read_wat, source)
        assert rows == good_rows(5)


def test_a_plain_file_that_is_cut_anywhere_in_its_last_record_is_noted(tmp_path: Path) -> None:
    data = b"".join(html_record(number) for number in range(3))
    before = len(html_record(0)) + len(html_record(1))
    for cut in range(before + 1, len(data) - 4):  # the last 4 bytes are line ends: the record is whole without them
        (tmp_path / "a.warc").write_bytes(data[:cut])
        ledger = Ledger()
        source = Input("a.warc", str(tmp_path / "a.warc"), "warc", None)
        batches = READERS["warc"].read(source, ledger=ledger, images=[], settings=ReadSettings())
        assert sum(batch.num_rows for batch in batches) == 2
        assert dict(ledger.records_dropped) == {"cut_record": 1} and ledger.notes["cut_file"] == 1, cut
