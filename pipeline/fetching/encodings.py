"""Undoes the Content-Encoding of an answer, as far as the bytes agree with it.

Servers name encodings that do not exist ("none", "UTF-8", "binary"), that were undone on the way ("aws-chunked"), or
that the body does not have ("br" on a plain JPEG). So a name that is unknown, or a body that does not begin as its
encoding says, leaves the body as it is. The decoder of images judges it. A body that begins well and is then damaged or
cut is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import brotli
import zstandard

from pipeline.fetching.answer import Body, Grow
from pipeline.fetching.errors import Failure

MOST_ENCODINGS = 4  # of one body
IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"\0\0\0")
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
PART = 256 << 10  # bytes that are decompressed at once
LARGEST_WINDOW = 8 << 20  # bytes; RFC 9659 allows no larger one in HTTP


def undone(body: Body, encodings: list[str], limit: int, cut: bool = False, grow: Grow = lambda _: None) -> Body:
    """The decoded body, at most `limit` bytes. With `cut` a longer or incomplete body is cut, not refused.

    Raises:
        Failure: too_large; tcp if the body ends early; bad_http if it is damaged or has too many encodings.
    """
    names = [name.strip().lower() for value in encodings for name in value.split(",")]
    known = [_DECODERS[name] for name in names if name in _DECODERS]
    if len(known) > MOST_ENCODINGS:
        raise Failure("bad_http", f"the body has {len(known)} encodings")
    for decode in reversed(known):
        grow(limit)
        try:
            decoded, ended = decode(body, limit + 1)
        except (zlib.error, brotli.error, zstandard.ZstdError) as error:
            raise Failure("bad_http", f"the compressed body is damaged: {error}") from error
        if not cut and len(decoded) > limit:
            raise Failure("too_large", f"the body has more than {limit} bytes when decompressed", http_status=200)
        if not cut and not ended:
            raise Failure("tcp", "the compressed body ended early")
        body = decoded
    return body[:limit]


def _begins(body: Body, prefixes: bytes | tuple[bytes, ...]) -> bool:
    return bytes(body[:16]).startswith(prefixes)


# Each decoder returns (at most `most` bytes, True at the end of the compressed data), or the body if it is not encoded.


def _gunzip(body: Body, most: int) -> tuple[Body, bool]:
    if not _begins(body, GZIP):
        return body, True
    return _inflated(zlib.decompressobj(zlib.MAX_WBITS | 16), body, most)


def _inflate(body: Body, most: int) -> tuple[Body, bool]:
    """Deflate data have a zlib header. Some servers leave it out, and some send gzip."""
    if _begins(body, GZIP) or not body:
        return _gunzip(body, most)
    if body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0:
        return _inflated(zlib.decompressobj(), body, most)
    try:
        return _inflated(zlib.decompressobj(-zlib.MAX_WBITS), body, most)
    except zlib.error:
        return body, True


def _inflated(inflate: zlib._Decompress, body: Body, most: int) -> tuple[bytes, bool]:
    data = inflate.decompress(body, most)
    return data, inflate.eof


def _unbrotli(body: Body, most: int) -> tuple[Body, bool]:
    """Brotli has no signature. So a body that looks like an image, or is no Brotli at all, is left."""
    if _begins(body, IMAGES) or not body:
        return body, True
    parts: list[bytes] = []
    decoder, size = brotli.Decompressor(), 0
    try:
        while size < most and not decoder.is_finished():
            part = decoder.process(b"" if parts else body, output_buffer_limit=PART)  # a few bytes may hold gigabytes
            if parts and not part:
                break
            parts.append(part)
            size += len(part)
    except brotli.error:
        return body, True
    return b"".join(parts)[:most], decoder.is_finished()


def _unzstd(body: Body, most: int) -> tuple[Body, bool]:
    """The end of the data is not checked: the decoder of images notices a cut one."""
    if not _begins(body, ZSTD):
        return body, True
    reader, parts, size = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).stream_reader(body), [], 0
    while size < most and (part := reader.read(PART)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)[:most], True


_DECODERS: dict[str, Callable[[Body, int], tuple[Body, bool]]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
