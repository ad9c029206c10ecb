"""Content-Encoding is undone where the bytes agree with it; else the body is left as it is."""

import gzip
import zlib

import brotli
import pytest
import zstandard

from pipeline.fetching.encodings import undone
from pipeline.fetching.errors import Failure

JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)) * 4
LIMIT = 1 << 20


@pytest.mark.parametrize(
    ("encodings", "body"),
    [
        ([], JPEG),
        (["identity"], JPEG),
        (["aws-chunked"], JPEG),
        (["none"], JPEG),
        (["UTF-8"], JPEG),
        (["binary"], JPEG),
        (["8bit", ""], JPEG),
        (["br"], JPEG),
        (["gzip"], JPEG),
        (["deflate"], JPEG),
        (["zstd"], JPEG),
        (["gzip"], gzip.compress(JPEG)),
        (["X-GZIP"], gzip.compress(JPEG)),
        (["aws-chunked,gzip"], gzip.compress(JPEG)),
        (["deflate"], zlib.compress(JPEG)),
        (["deflate"], zlib.compress(JPEG)[2:-4]),
        (["deflate"], gzip.compress(JPEG)),
        (["br"], brotli.compress(JPEG)),
        (["zstd"], zstandard.compress(JPEG)),
        (["gzip, br"], brotli.compress(gzip.compress(JPEG))),
        (["gzip", "gzip"], gzip.compress(JPEG)),
    ],
)
def test_the_image_comes_out(encodings: list[str], body: bytes) -> None:
    assert undone(body, encodings, LIMIT) == JPEG


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(JPEG)[:-20], "tcp"),
        ("gzip", gzip.compress(JPEG)[:10] + b"\xff" * 99, "bad_http"),
        ("br", brotli.compress(b"text of a page " * 999)[:-3], "tcp"),
        ("gzip", gzip.compress(bytes(LIMIT + 1)), "too_large"),
        ("deflate", zlib.compress(bytes(LIMIT + 1)), "too_large"),
        ("br", brotli.compress(bytes(LIMIT + 1)), "too_large"),
        ("zstd", zstandard.compress(bytes(LIMIT + 1)), "too_large"),
        (", ".join(["gzip"] * 5), gzip.compress(JPEG), "bad_http"),
    ],
)
def test_a_damaged_or_large_body_is_refused(encoding: str, body: bytes, status: str) -> None:
    with pytest.raises(Failure) as failure:
        undone(body, [encoding], LIMIT)
    assert failure.value.status == status
