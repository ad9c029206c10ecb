"""Builders of small web archives: records of WAT and WARC files, gzip members, and a stream without a descriptor."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from typing import Any


def record(
    block: bytes,
    *,
    url: str | None = None,
    kind: str = "response",
    version: str = "WARC/1.0",
    length: str | None = "",
    extra: Iterable[str] = (),
    newline: str = "\r\n",
) -> bytes:
    """One WARC record with its closing blank lines. `length` replaces the right length, None omits it."""
    lines = [version, f"WARC-Type: {kind}"]
    if url is not None:
        lines.append(f"WARC-Target-URI: {url}")
    if length is not None:
        lines.append(f"Content-Length: {length or len(block)}")
    lines += extra
    return newline.join([*lines, "", ""]).encode() + block + 2 * newline.encode()


def page_url(number: int | str) -> str:
    """The page of a numbered record."""
    return f"https://site{number}.example/page.html"


def link(number: int | str) -> dict[str, Any]:
    """A good image link, as a WAT file lists it."""
    return {"path": "IMG@/src", "url": f"https://img.example/{number}.jpg", "alt": f"a picture of number {number}"}


def wat_json(number: int | str, links: Any = None) -> dict[str, Any]:
    """The JSON of a page's record with one image link, or with `links`."""
    http = {"HTML-Metadata": {"Head": {"Title": "t"}, "Links": [link(number)] if links is None else links}}
    return {
        "Container": {"Filename": "x.warc.gz"},
        "Envelope": {
            "WARC-Header-Metadata": {"WARC-Target-URI": page_url(number), "WARC-Type": "response"},
            "Payload-Metadata": {"HTTP-Response-Metadata": {"Headers": {}, **http}},
        },
    }


def wat_record(number: int | str, content: Any = None, **more: Any) -> bytes:
    """A metadata record. `content` is its block: bytes are taken as they are, anything else becomes JSON."""
    content = wat_json(number) if content is None else content
    block = content if isinstance(content, bytes) else json.dumps(content).encode()
    return record(block, url=page_url(number), kind="metadata", **more)


def html_block(number: int | str) -> bytes:
    """An HTTP response with a page of one image."""
    body = f'<html><body><img src="https://img.example/{number}.jpg" alt="a picture of number {number}"></body></html>'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def html_record(number: int | str, content: bytes | None = None, **more: Any) -> bytes:
    """A response record with a page of one image, or with `content` as its block."""
    return record(html_block(number) if content is None else content, url=page_url(number), **more)


def member(data: bytes) -> bytes:
    """A gzip member, the same bytes every time."""
    return gzip.compress(data, 6, mtime=0)


class Stream(io.RawIOBase):
    """Bytes as from a network: they are read forwards, in uneven portions, without a descriptor."""

    def __init__(self, data: bytes, portion: int = 1000) -> None:
        super().__init__()
        self._data, self._portion = io.BytesIO(data), portion

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(self._portion if size < 0 else min(size, self._portion))
