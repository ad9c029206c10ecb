"""The day of an archive: that of its first page, in each form of archives, from damaged and hostile bytes too."""

from __future__ import annotations

import gzip

import pytest

from pipeline.sources.crawl_day import first_day


def warc(kind: str, date: str, body: bytes = b"x") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: {date}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body + b"\r\n\r\n"


INFO, PAGE = warc("warcinfo", "2026-02-01T00:00:00Z"), warc("response", "2026-01-05T12:00:00Z")
LATER = warc("response", "2026-01-07T12:00:00Z")
ARC = b"filedesc://x 0.0.0.0 20080430204825 text/plain 3\nabc\nhttp://a/ 1.2.3.4 20080501000000 text/html 3\nabc\n"


@pytest.mark.parametrize(
    ("head", "day"),
    [
        (INFO + PAGE + LATER, "2026-01-05"),
        (gzip.compress(INFO) + gzip.compress(PAGE) + gzip.compress(LATER), "2026-01-05"),
        ((gzip.compress(INFO) + gzip.compress(PAGE * 90_000))[: 64 << 10], "2026-01-05"),
        (gzip.compress(INFO) + b"\x1f\x8b\x08damaged", "2026-02-01"),
        (INFO, "2026-02-01"),
        (PAGE.replace(b"\r\n", b"\n").replace(b"WARC-Date", b"warc-date"), "2026-01-05"),
        (warc("response", "2026-01-05"), "2026-01-05"),
        (warc("response", "9999-01-05T12:00:00Z") + LATER, "2026-01-07"),
        (warc("response", "yesterday"), ""),
        (ARC, "2008-05-01"),
        (gzip.compress(ARC), "2008-05-01"),
        (b"url,text\n", ""),
        (b"", ""),
    ],
    ids=range(13),
)
def test_the_first_page_tells_the_day(head: bytes, day: str) -> None:
    assert first_day(head) == day


HOSTILE = [b"WARC/1.0\n", b"\naa:" + b"b" * 4000, b"\x1f\x8b\x08", gzip.compress(b"")]


@pytest.mark.parametrize("part", HOSTILE, ids=range(4))
def test_hostile_bytes_tell_no_day(part: bytes) -> None:
    assert first_day((part * (1 << 12))[: 64 << 10]) == ""
