"""The readers of web archives: WAT, WARC and ARC files, and packs of them (WACZ).

`wat.py` and `warc.py` parse them. They are imported only when a file is read. So `--help`, which imports this module,
stays fast.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import ClassVar

import pyarrow as pa

from pipeline.engine.input_errors import TransferError, UnreadableInputError, is_remote
from pipeline.engine.ledger import Ledger
from pipeline.engine.opening import open_seekable
from pipeline.sources.base import (
    MOST_OPENED,
    Found,
    Input,
    Reader,
    ReadSettings,
    file_name,
    for_each,
    packed,
    read_head,
)
from pipeline.sources.pieces import Piece, cut_archive
from pipeline.sources.text_stream import describe_head

COMPRESSIONS = (".gz", ".lz4", ".zst")
ARCHIVES = packed(".warc", ".arc", ".wat", by=COMPRESSIONS)  # ends of names
WACZ = ".wacz"
RECORD = b"WARC/"  # begins every record
MOST_LOCAL = 256  # local archives that a check opens, at most
DENSE_PAIR = 500  # bytes of a compressed archive for each pair, where pairs are many

_LZ4 = b"\x04\x22\x4d\x18"  # begins a frame; of all formats only archives use it
_ARC = b"filedesc://"
_MEMBER = re.compile(r"archive/[^/]+\.warc(\.gz)?$")


class ArchiveReader(Reader):
    """Archives of web pages. A WACZ gives the WARC files inside it."""

    knows_pages: ClassVar[bool] = True

    def expand(self, found: Found) -> list[Input]:
        return _members(found) if file_name(found.path).lower().endswith(WACZ) else super().expand(found)

    def check(self, inputs: Sequence[Input], settings: ReadSettings) -> None:
        """Looks for the first record of the first archives. A crawl has 90,000."""
        local = [item for item in inputs if not is_remote(item.path)][:MOST_LOCAL]
        remote = [item for item in inputs if is_remote(item.path)][:MOST_OPENED]
        for_each(self._check_one, [*local, *remote])

    def _check_one(self, item: Input) -> None:
        try:
            understood = self.understands(item)
        except TransferError as error:
            if not error.reached:
                raise
            return  # the run reads it again, and reports it if the transfer breaks once more
        if not understood:
            seems = describe_head(read_head(item.path))
            raise UnreadableInputError(f"{item.name!r} holds no record of a web archive{seems and f': {seems}'}")

    def understands(self, source: Input) -> bool:
        from pipeline.sources.archive import understands

        return understands(source.path)

    def expected_rows(self, item: Input) -> float:
        return self.size(item) / DENSE_PAIR

    def slots(self, item: Input, size: int) -> int:
        return -(-self.size(item) // size)

    def cut(self, item: Input, slot: int, size: int, target: str, settings: ReadSettings) -> Piece:
        return cut_archive(item.path, slot, size, target)


class Wat(ArchiveReader):
    """WAT files. Some have names of WARC files with a part "wat" anywhere in the name: a.wat.0001.warc.gz."""

    name: ClassVar[str] = "wat"
    suffixes: ClassVar[tuple[str, ...]] = packed(".wat", by=COMPRESSIONS)
    bytes_per_pair: ClassVar[float] = 780  # compressed
    kernels: ClassVar[tuple[str, ...]] = ("pipeline.sources.wat_kernel",)

    def claims(self, name: str) -> bool:
        name = name.lower()
        return name.endswith(ARCHIVES) and ".wat." in f"{name}."

    def sniff(self, head: bytes) -> bool:
        return is_wat(head)

    def read(
        self, source: Input, *, ledger: Ledger, images: list[pa.RecordBatch], settings: ReadSettings
    ) -> Iterator[pa.RecordBatch]:
        from pipeline.sources.wat_reader import read_wat

        return read_wat(source.path, ledger=ledger, name=source.name, size=source.bytes)


class Warc(ArchiveReader):
    """WARC and ARC files, and WARC files inside a WACZ. A WAT file may have the name of a WARC file."""

    name: ClassVar[str] = "warc"
    suffixes: ClassVar[tuple[str, ...]] = (*packed(".warc", ".arc", by=COMPRESSIONS), WACZ)
    name_is_vague: ClassVar[bool] = True
    bytes_per_pair: ClassVar[float] = 25_000  # compressed
    kernels: ClassVar[tuple[str, ...]] = ("pipeline.sources.html_kernel",)
    piece_bytes: ClassVar[int] = 8 << 20  # a page and its images lie near each other

    def sniff(self, head: bytes) -> bool:
        return head.startswith((RECORD, _ARC, _LZ4))

    def read(
        self, source: Input, *, ledger: Ledger, images: list[pa.RecordBatch], settings: ReadSettings
    ) -> Iterator[pa.RecordBatch]:
        from pipeline.sources.warc import ArchivedImages, read_warc

        found = ArchivedImages()
        yield from read_warc(source.path, ledger=ledger, images=found, name=source.name, size=source.bytes)
        images.append(found.batch())

    def read_image(self, path: str, offset: int, *, max_bytes: int) -> bytes | None:
        from pipeline.sources.warc import read_image

        return read_image(path, offset, max_bytes=max_bytes)


def is_wat(head: bytes) -> bool:
    """True if a metadata record near the start holds JSON with an Envelope."""
    if not head.startswith(RECORD):
        return False
    for record in head.split(b"WARC/1.")[1:]:
        fields, _, body = record.partition(b"\r\n\r\n")
        if b"WARC-Type: metadata" in fields and body.lstrip()[:1] == b"{":
            return b'"Envelope"' in body
    return False


def _members(found: Found) -> list[Input]:
    """The archives inside a WACZ, each as one input (zip://MEMBER::PACK)."""
    try:
        with open_seekable(found.path) as opened, zipfile.ZipFile(opened.stream) as pack:
            members = [info for info in pack.infolist() if _MEMBER.match(info.filename)]
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UnreadableInputError(
            f"{found.name!r} is no readable WACZ (a zip with archive/*.warc.gz): {error}"
        ) from error
    if not members:
        raise UnreadableInputError(f"{found.name!r} is no WACZ: it holds no archive/*.warc.gz")
    return [
        Input(f"{found.name}/{info.filename}", f"zip://{info.filename}::{found.path}", "warc", info.file_size)
        for info in members
    ]
