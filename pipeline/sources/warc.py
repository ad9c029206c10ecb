"""WARC and ARC files as candidates. Their HTML pages give pairs. The images inside them are listed.

A page's pairs carry the offset of its record. An image response is added to `ArchivedImages`, if one is given. Then
`fetch` takes the image's bytes from the archive (`read_image`) and need not download it. All other records are noted by
kind: revisits, other statuses, other content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pyarrow as pa

from pipeline.engine import jit
from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES
from pipeline.sources import html
from pipeline.sources.archive import Record, http_response, read_at, read_records
from pipeline.sources.base import ARCHIVED_IMAGES

BATCH_ROWS = 16_384
MAX_RECORD = 32 << 20  # bytes of one record, decompressed
LONGEST_TYPE = 2_000  # characters of Content-Type that are read
BYTES_PER_ROW = 1_000  # of a compressed archive, roughly; decides if loading the kernel pays

_parsed = {"bytes": 0}  # bytes of the archives that this process has read


class ArchivedImages:
    """Collects where the images of one archive lie."""

    def __init__(self) -> None:
        self._columns: tuple[list[str], list[int], list[int], list[str]] = ([], [], [], [])

    def add(self, url: str, offset: int, length: int, mime: str) -> None:
        """Adds one image."""
        for column, value in zip(self._columns, (url, offset, length, mime), strict=True):
            column.append(value)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._columns[0])

    def batch(self) -> pa.RecordBatch:
        """All of them, in the order of the archive."""
        return pa.RecordBatch.from_arrays(
            [pa.array(column, field.type) for column, field in zip(self._columns, ARCHIVED_IMAGES, strict=True)],
            schema=ARCHIVED_IMAGES,
        )


class _Rows:
    """Rows of CANDIDATES on their way into a batch."""

    def __init__(self) -> None:
        self._columns: list[list] = [[] for _ in CANDIDATES]

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, pairs: html.PagePairs, page_url: str, offset: int) -> None:
        count = len(pairs.urls)
        page: list[list] = [[page_url] * count, [offset] * count]
        signals: list[list] = [[pairs.opt_out] * count, [pairs.license] * count]
        values: list[list] = [pairs.urls, pairs.texts, *page, pairs.text_sources, pairs.url_sources, *signals]
        for column, more in zip(self._columns, values, strict=True):
            column += more

    def batch(self) -> pa.RecordBatch:
        """The rows as a batch. They are removed."""
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, CANDIDATES, strict=True)]
        self._columns = [[] for _ in CANDIDATES]
        return pa.RecordBatch.from_arrays(arrays, schema=CANDIDATES)


def is_html(mime: str, body: bytes) -> bool:
    """True for a page, by its MIME type, or by its first bytes if it has no type."""
    if mime:
        return mime in ("text/html", "application/xhtml+xml")
    start = body[:512].lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


def is_image(mime: str) -> bool:
    """True for an image of pixels. SVG is markup and is never decoded."""
    return mime.startswith("image/") and not mime.startswith("image/svg")


def read_warc(
    source: str, *, ledger: Ledger, images: ArchivedImages | None = None, name: str = "", size: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The pairs of all pages of a WARC or ARC file, in batches of CANDIDATES; images inside go to `images`.

    Args:
        source: path or URL of the file.
        ledger: rows_in counts every image once for each of its texts. Records that cannot be read are lost by reason.
        images: receives the images that lie in the archive.
        name: of the file, for messages.
        size: bytes of the file, if a listing gave them. A shorter file is noted as cut.
    """
    scan = _scanner(size)
    rows = _Rows()
    kinds = frozenset({"response", "resource", "revisit"})
    for record in read_records(source, ledger=ledger, kinds=kinds, max_record=MAX_RECORD, expected_bytes=size):
        page = _page_of(record, ledger, images)
        if page is None:
            continue
        body, charset, headers = page
        pairs = html.extract_pairs(body, record.url, charset=charset, headers=headers, scan=scan)
        ledger.rows_in += pairs.found
        for reason, count in pairs.dropped.items():
            ledger.drop(reason, count)
        ledger.notes.update(pairs.notes)
        rows.add(pairs, record.url, record.offset)
        if len(rows) >= BATCH_ROWS:
            yield rows.batch()
    if len(rows):
        yield rows.batch()


def _page_of(
    record: Record, ledger: Ledger, images: ArchivedImages | None
) -> tuple[bytes, str | None, list[tuple[str, str]]] | None:
    """(body, charset, headers) of a record with a page; None for other records. They are noted by kind."""
    if record.kind == "revisit":
        ledger.notes["revisit"] += 1
        return None
    if not record.url[:8].lower().startswith(("http://", "https://")):
        ledger.notes["not_http"] += 1
        return None
    response = http_response(record)
    if response is None:
        ledger.lose("bad_http")
        return None
    if response.status != 200:
        ledger.notes["other_status"] += 1
        return None
    mime, charset = _content_type(response.headers.get("content-type", ""))
    if is_image(mime):
        ledger.notes["image"] += 1
        if html.header_signals(response.fields) or html.header_licences(response.fields):
            # then `fetch` asks the site for the image of today
            ledger.notes["image_opted_out"] += 1
        elif images is not None and response.body:
            images.add(record.url, record.offset, len(response.body), mime)
        return None
    if not is_html(mime, response.body):
        ledger.notes["other_content"] += 1
        return None
    ledger.notes["page"] += 1
    return response.body, charset, list(response.fields)


_MIME = re.compile(r"\s*([!#$%&'*+.^_`|~0-9a-z-]+/[!#$%&'*+.^_`|~0-9a-z-]+)\s*(?:;|$)")
_CHARSET = re.compile(r";\s*charset=(?:\"((?:[^\"\\]|\\.)*)\"?|([^;]*))", re.IGNORECASE)


def _content_type(value: str) -> tuple[str, str | None]:
    """(MIME type, charset) of the Content-Type headers, comma separated.

    The last one that is a MIME type counts. It takes the charset of an earlier one of the same type (Fetch standard,
    "extract a MIME type").
    """
    mime, charset = "", None
    for part in re.findall(r'(?:"[^"]*"?|[^",])+', value[:LONGEST_TYPE]):
        match = _MIME.match(part.lower())
        if match is None or match[1] == "*/*":
            continue
        named = _CHARSET.search(part)
        label = ((named[1] if named[1] is not None else named[2]) or "").strip().strip("\"'") if named else ""
        charset = label or (charset if match[1] == mime else None)
        mime = match[1]
    return mime, charset


def _scanner(size: int | None) -> Callable | None:
    """The compiled tokenizer, if this process has read enough bytes that it pays to load it; else None (lexbor)."""
    _parsed["bytes"] += size or 0
    kernel = jit.kernel("pipeline.sources.html_kernel", _parsed["bytes"] // BYTES_PER_ROW)
    return kernel.scan if kernel else None


def read_image(path: str, offset: int, *, max_bytes: int) -> bytes | None:
    """The bytes of an image that `read_warc` noted at `offset`; None if it is missing or larger than `max_bytes`."""
    record = read_at(path, offset, max_record=MAX_RECORD)
    response = None if record is None else http_response(record)
    if response is None or not response.body or len(response.body) > max_bytes:
        return None
    return response.body
