"""What the readers of WAT and WARC files share: names, packs of archives (WACZ), and how to tell one from the other."""

from __future__ import annotations

import re
import zipfile
from typing import ClassVar

from pipeline.engine.opening import InputError, open_seekable
from pipeline.sources.base import Found, Input, Reader, file_name, packed

COMPRESSIONS = (".gz", ".lz4", ".zst")
ARCHIVES = packed(".warc", ".arc", ".wat", by=COMPRESSIONS)  # ends of names
WACZ = ".wacz"
RECORD = b"WARC/"  # begins every record
DENSE_PAIR = 500  # bytes of a compressed archive behind a pair, where pairs are many

_MEMBER = re.compile(r"archive/[^/]+\.warc(\.gz)?$")


class ArchiveReader(Reader):
    """Archives of web pages. A WACZ gives the WARC files inside it."""

    knows_pages: ClassVar[bool] = True
    bytes_per_core_second: ClassVar[float] = 60e6

    def expand(self, found: Found) -> list[Input]:
        return _members(found) if file_name(found.path).lower().endswith(WACZ) else super().expand(found)

    def expected_rows(self, item: Input) -> float:
        return self.size(item) / DENSE_PAIR


def is_wat(head: bytes) -> bool:
    """True if a metadata record at the start holds JSON with an Envelope."""
    if not head.startswith(RECORD):
        return False
    for record in head.split(b"WARC/1.")[1:]:
        fields, _, body = record.partition(b"\r\n\r\n")
        if b"WARC-Type: metadata" in fields and body.lstrip()[:1] == b"{":
            return b'"Envelope"' in body
    return False


def _members(found: Found) -> list[Input]:
    """The archives inside a WACZ, each an input of its own (zip://MEMBER::PACK)."""
    try:
        with open_seekable(found.path) as opened, zipfile.ZipFile(opened.stream) as pack:
            members = [info for info in pack.infolist() if _MEMBER.match(info.filename)]
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{found.name!r} is no readable WACZ (a zip with archive/*.warc.gz): {error}") from error
    if not members:
        raise InputError(f"{found.name!r} holds no archive/*.warc.gz: it is no WACZ")
    return [
        Input(f"{found.name}/{info.filename}", f"zip://{info.filename}::{found.path}", "warc", info.file_size)
        for info in members
    ]
