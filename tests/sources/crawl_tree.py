"""A crawl as Common Crawl lays it out, made of the shared archives: WARC, WAT and robots.txt files with their lists."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from benchmarks.extract_wat import write_wat
from pipeline.engine.ledger import Ledger
from pipeline.sources.archive import http_response, read_records
from tests.archives import member, record

CRAWL = "CC-TEST-2026-05"
SOURCES = (
    "allenai+dolma/*sample-0000.warc.gz",
    "oduwsdl+ipwb/*blackbook.warc.gz",
    "webrecorder+pywb/*iana.warc.gz",
)


def crawl_tree(shared: Path) -> dict[str, bytes]:
    """The files of a crawl by their paths. Each list has a form that lists come in: \\\\n, \\\\r\\\\n, blank lines.

    Args:
        shared: the folder of the shared archives.
    """
    files: dict[str, bytes] = {}
    names: dict[str, list[str]] = {"warc": [], "wat": [], "robotstxt": []}
    for number, pattern in enumerate(SOURCES):
        (path,) = shared.glob(pattern)
        contents = {"warc": path.read_bytes(), "wat": _wat(path), "robotstxt": _robots(path)}
        for kind, content in contents.items():
            ending = "warc.wat.gz" if kind == "wat" else "warc.gz"
            name = f"crawl-data/{CRAWL}/segments/1.{number}/{kind}/CC-MAIN-{number:05d}.{ending}"
            files[name] = content
            names[kind].append(name)
    ends = {"warc": "\n", "wat": "\r\n", "robotstxt": "\n\n"}
    for kind, found in names.items():
        files[f"crawl-data/{CRAWL}/{kind}.paths.gz"] = gzip.compress(
            "".join(f"{n}{ends[kind]}" for n in found).encode()
        )
    return files


def _responses(path: Path) -> list[tuple[str, bytes, str, bytes]]:
    """(URL, record, MIME type, body) of the responses."""
    found = []
    for one in read_records(str(path), ledger=Ledger()):
        response = http_response(one)
        if response is not None and response.body:
            found.append((one.url, one.content, response.headers.get("content-type", ""), response.body))
    return found


def _wat(path: Path) -> bytes:
    pages = [(url, None, body) for url, _, mime, body in _responses(path) if "html" in mime]
    with tempfile.NamedTemporaryFile() as file:
        write_wat(file.name, pages, 1)
        return Path(file.name).read_bytes()


def _robots(path: Path) -> bytes:
    made = [(url, content) for url, content, _, _ in _responses(path) if url.endswith("/robots.txt")]
    extra = ["WARC-Date: 2008-04-30T20:48:25Z"]
    return b"".join(member(record(content, url=url, extra=extra)) for url, content in made) or member(
        record(b"HTTP/1.1 404 Not Found\r\n\r\n", url="http://none.example/robots.txt", extra=extra)
    )
