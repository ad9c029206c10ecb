"""S3 stores for tests: moto on loopback, with a bucket; and objects in memory."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fsspec.asyn import get_loop

from pipeline.engine.input_errors import MissingInputError, RefusedInputError
from tests.any_store import answering

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


READING = ("get_object", "head_object", "list_objects_v2", "get_bucket_versioning")


class Refused(Exception):
    """An answer with a code of S3."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class Body(io.BytesIO):
    """The body of an answer, as the client gives it."""

    async def __aenter__(self) -> Body:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        return super().read(size)


class MemoryStore:
    """Objects in memory behind the requests of `object_store`: a whole build takes 3,000, and moto 5 ms for each.

    It keeps the promises that `object_store` names; `test_object_store` shows them with moto.

    Attributes:
        objects: by bucket and key.
        changes: the number of requests that change something.
        left: a change that would be one too many ends the process (`Killed`); -1: none.
        denied: what this user may not do, as `remote.patiently` calls it: written, read, listed.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.changes, self.left = 0, -1
        self.denied: tuple[str, ...] = ()
        self.loop = get_loop()

    def patiently(self, url: str, once: Callable[..., Any], *, what: str = "", **_: Any) -> Any:
        """In the place of `remote.patiently`."""
        if what in self.denied:
            raise RefusedInputError(f"{url!r} cannot be {what}: Access Denied.")
        try:
            return once(self, url)
        except FileNotFoundError as error:
            raise MissingInputError(str(error)) from None

    async def _call_s3(self, method: str, **given: Any) -> dict[str, Any]:
        return self.call_s3(method, **given)

    def call_s3(self, method: str, **given: Any) -> dict[str, Any]:
        """One request."""
        if method not in READING:
            if self.left == 0:
                raise Killed
            self.left -= 1
            self.changes += 1
        return getattr(self, f"_{method}")(given["Bucket"], given.pop("Key", ""), given)

    def _found(self, bucket: str, key: str) -> tuple[bytes, str]:
        if (bucket, key) not in self.objects:
            raise FileNotFoundError(f"{bucket}/{key}")
        data = self.objects[bucket, key]
        return data, f'"{hashlib.md5(data).hexdigest()}"'

    def _get_object(self, bucket: str, key: str, given: dict[str, Any]) -> dict[str, Any]:
        data, tag = self._found(bucket, key)
        if given.get("IfNoneMatch") == tag:
            raise Refused("304")
        if given.get("IfMatch", tag) != tag:
            raise Refused("PreconditionFailed")
        answer: dict[str, Any] = {"ETag": tag, "LastModified": datetime.now(UTC)}
        answer["ResponseMetadata"] = {"HTTPHeaders": {}}
        if "Range" in given:
            start, end = map(int, given["Range"].removeprefix("bytes=").split("-"))
            if start >= len(data):
                raise Refused("InvalidRange")
            answer["ContentRange"] = f"bytes {start}-{end}/{len(data)}"
            data = data[start : end + 1]
        return answer | {"Body": Body(data), "ContentLength": len(data)}

    def _head_object(self, bucket: str, key: str, _: dict[str, Any]) -> dict[str, Any]:
        data, tag = self._found(bucket, key)
        return {"ContentLength": len(data), "ETag": tag, "LastModified": datetime.now(UTC)}

    def _put_object(self, bucket: str, key: str, given: dict[str, Any]) -> dict[str, Any]:
        there = self.objects.get((bucket, key))
        if given.get("IfNoneMatch") == "*" and there is not None:
            raise Refused("PreconditionFailed")
        if "IfMatch" in given and (there is None or self._found(bucket, key)[1] != given["IfMatch"]):
            raise Refused("PreconditionFailed")
        self.objects[bucket, key] = bytes(given["Body"])
        return {"ETag": self._found(bucket, key)[1]}

    def _copy_object(self, bucket: str, key: str, given: dict[str, Any]) -> dict[str, Any]:
        self.objects[bucket, key] = self._found(given["CopySource"]["Bucket"], given["CopySource"]["Key"])[0]
        return {"CopyObjectResult": {"ETag": self._found(bucket, key)[1]}}

    def _delete_object(self, bucket: str, key: str, _: dict[str, Any]) -> dict[str, Any]:
        self.objects.pop((bucket, key), None)
        return {}

    def _delete_objects(self, bucket: str, _: str, given: dict[str, Any]) -> dict[str, Any]:
        for item in given["Delete"]["Objects"]:
            self.objects.pop((bucket, item["Key"]), None)
        return {}

    def _get_bucket_versioning(self, bucket: str, _: str, given: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _list_objects_v2(self, bucket: str, _: str, given: dict[str, Any]) -> dict[str, Any]:
        prefix, folders, contents = given["Prefix"], set[str](), []
        for name, key in sorted(self.objects):
            if name == bucket and key.startswith(prefix):
                head, slash, _ = key[len(prefix) :].partition(given.get("Delimiter", "\0"))
                if slash:
                    folders.add(prefix + head + slash)
                else:
                    data, tag = self._found(name, key)
                    contents.append({"Key": key, "Size": len(data), "ETag": tag, "LastModified": datetime.now(UTC)})
        common = [{"Prefix": folder} for folder in sorted(folders)]
        return {"Contents": contents, "CommonPrefixes": common, "KeyCount": len(contents) + len(folders)}


class Killed(BaseException):
    """Stands for the end of the process."""


@contextlib.contextmanager
def in_memory(scratch: str) -> Iterator[MemoryStore]:
    """The store of `object_store` in the block. Inputs are read as ever."""
    with answering(MemoryStore(), scratch) as store:
        yield store
