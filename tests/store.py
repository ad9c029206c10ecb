"""An S3 store on loopback for tests: moto, with a bucket."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator

import pytest

s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")
moto_server = pytest.importorskip("moto.server", reason="the extra test-s3 (moto) is not installed")

BUCKET = "commoncrawl"
# moto tells the service by the scope of the credential, and checks no signature.
SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}

Address = tuple[str, int]


@contextlib.contextmanager
def running() -> Iterator[Address]:
    """A server of moto."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


def put(moto: Address, files: dict[str, bytes]) -> None:
    """Makes the bucket, and objects in it."""
    for key in ("", *files):
        connection = http.client.HTTPConnection(*moto, timeout=60)
        with contextlib.closing(connection):
            connection.request("PUT", f"/{BUCKET}/{key}".rstrip("/"), files.get(key, b""), {"Authorization": SIGNED})
            assert connection.getresponse().status == 200


def forget() -> None:
    """As another process: clients are cached, with their endpoint."""
    s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def endpoint(address: Address) -> Iterator[None]:
    """The store of the clients in the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": "http://{}:{}".format(*address)}.items():
            patch.setenv(name, value)
        forget()
        yield
        forget()
