"""The day on which a web archive was crawled, as its first records tell it."""

from __future__ import annotations

import datetime
import re
import zlib

HEAD = 64 << 10  # bytes of an archive that are looked at
MOST = 256 << 10  # bytes of them, unpacked
HEADERS = 32  # records that are looked at
LONGEST_HEADER = 8 << 10
FIRST_YEAR, LAST_YEAR = 1990, 2100  # another year is a wrong clock

_GZIP = b"\x1f\x8b\x08"
_LINE = rb"[a-z]{2,8}:[^\r\n ]{1,4096} [0-9A-Fa-f.:-]{1,45} \d{14} "  # the first line of an ARC record, up to its date
_START = re.compile(rb"(?:^|\n)(?:WARC/[01]\.\d{1,2}\r?\n|(?=" + _LINE + rb"))")
_BLANK = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"^(warc-type|warc-date)[ \t]*:[ \t]*([^\r\n]{1,64})", re.IGNORECASE | re.MULTILINE)
_ARC_LINE = re.compile(rb"([a-z]{2,8}):[^\r\n ]{1,4096} [0-9A-Fa-f.:-]{1,45} (\d{14}) ")


def first_day(head: bytes) -> str:
    """The day of the first record but for the archive's description, in UTC as YYYY-MM-DD; "": none is told.

    Args:
        head: the first bytes of the archive, in gzip members or not. WARC/1.1, section 5.4, has the form of WARC-Date.
            The line of an ARC record has YYYYMMDDhhmmss.
    """
    data = _unpacked(head)
    described = ""
    for number, found in enumerate(_START.finditer(data)):
        if number >= HEADERS:
            break
        line = _ARC_LINE.match(data, found.end())
        if line is not None:
            kind, day = line[1], _day(b"-".join((line[2][:4], line[2][4:6], line[2][6:8])))
        else:
            header = _BLANK.split(data[found.end() : found.end() + LONGEST_HEADER], maxsplit=1)[0]
            fields = {name.lower(): value.strip() for name, value in reversed(_FIELD.findall(header))}
            kind, day = fields.get(b"warc-type", b"").lower(), _day(fields.get(b"warc-date", b"")[:10])
        if day and kind not in (b"warcinfo", b"filedesc"):
            return day
        described = described or day
    return described


def _unpacked(head: bytes) -> bytes:
    """The content of the gzip members, as far as they go; bytes that are no gzip as they are."""
    if not head.startswith(_GZIP):
        return head
    parts: list[bytes] = []
    room = MOST
    while head.startswith(_GZIP) and room > 0 and len(parts) < HEADERS:
        member = zlib.decompressobj(31)
        try:
            parts.append(member.decompress(head, min(room, HEAD)) + b"\n")
        except zlib.error:
            break
        room -= len(parts[-1])
        if not member.eof:
            break  # a long record, or the end of what is looked at
        head = member.unused_data
    return b"\n".join(parts)


def _day(text: bytes) -> str:
    try:
        day = datetime.date.fromisoformat(text.decode("ascii"))
    except ValueError:
        return ""
    return day.isoformat() if FIRST_YEAR <= day.year < LAST_YEAR else ""
