"""Finds the members of a tar by its headers, also in one that is damaged or cut."""

from __future__ import annotations

import mmap
import os
import re

MAX_HEADER_BYTES = 1 << 20  # of a tar member that holds the name of the next one
Members = dict[str, dict[str, tuple[int, int]]]  # key -> extension -> offset and size


def scan_tar(path: str) -> tuple[Members, bool]:
    """The members of a tar by key and extension, as (offset, size), and whether the archive is whole.

    A key is the name of the member up to the first dot of its last part. It is a label and never becomes a path. Only
    plain files count, and a second member with the same name is ignored. After a header that is damaged, or whose size
    exceeds the file, the scan continues at the next valid header.
    """
    samples: Members = {}
    size = os.path.getsize(path)
    if size == 0:
        return samples, False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, long_name, long_size, whole = 0, None, None, True
        while at + 512 <= size:
            header = data[at : at + 512]
            if header == bytes(512):
                return samples, whole
            start, kind = at + 512, header[156:157]
            length = _number(header[124:136]) if long_size is None or kind in b"xLK" else long_size
            if not _checksum_holds(header) or start + length > size:
                at, whole = at + 512, False  # look for the next valid header
                continue
            at = start + (length + 511) // 512 * 512
            if kind in b"xLK" and length > MAX_HEADER_BYTES:
                whole = False
            elif kind == b"L":  # GNU: the name of the next member
                long_name = data[start : start + length].rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":  # pax: the name and more
                records = _pax_records(data[start : start + length])
                long_name = records.get("path", long_name)
                long_size = int(records["size"]) if re.fullmatch("[0-9]{1,18}", records.get("size", "")) else None
            elif kind != b"K":  # K is GNU's target of a link; the name may follow
                if kind in (b"0", b"\0"):
                    _note(samples, long_name or _plain_name(header), (start, length))
                long_name = long_size = None
        return samples, False  # no end mark


def _note(samples: Members, name: str, place: tuple[int, int]) -> None:
    folder, _, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if stem and dot:
        key = f"{folder}/{stem}" if folder else stem
        samples.setdefault(key, {}).setdefault(extension.lower(), place)


def _plain_name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" and header[262:263] == b"\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _number(field: bytes) -> int:
    """A size: octal text, or base 256 if the first bit is set (members of 8 GiB and more)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    text = field.rstrip(b" \0").strip()
    return int(text, 8) if text and re.fullmatch(rb"[0-7]+", text) else 0


def _checksum_holds(header: bytes) -> bool:
    stored = header[148:156].rstrip(b" \0").strip()
    return bool(re.fullmatch(rb"[0-7]+", stored)) and int(stored, 8) == sum(header) - sum(header[148:156]) + 8 * 32


def _pax_records(data: bytes) -> dict[str, str]:
    """The records of a pax header, "LENGTH KEY=VALUE\\n" each, up to the first damaged one."""
    records, at = {}, 0
    while at < len(data):
        blank = data.find(b" ", at, at + 20)
        if blank < 0 or not data[at:blank].isdigit():
            break
        end = at + int(data[at:blank])
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or end <= blank:
            break
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        at = end
    return records
