"""Google Cloud Storage in memory, behind the requests of `gcs_store`: answers of the JSON API, as gcsfs gives them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fsspec.asyn import get_loop

from pipeline.engine.input_errors import MissingInputError
from tests.any_store import answering

BUCKET = "openwit-test"
UPLOAD = "http://gcs/upload/storage/v1/b/{}/o"


class HttpError(Exception):
    """An error of gcsfs for an answer that has no class of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(f"said, {code}")
        self.code = code


class Object(NamedTuple):
    """A version of an object."""

    data: bytes
    generation: int


class MemoryGcs:
    """The client and the bucket.

    Attributes:
        objects: by name.
        sent: (method, name of the object or "") of each request.
        heeds_reads: the conditions of reads hold; the emulator ignores them.
        upload: bytes of the resumable upload that is under way.
        kept: the most bytes of a request that such an upload keeps.
        settings: of the bucket; None: the user may not read them.
        fail: is called with the method and the name before each request.
    """

    _location = "http://gcs"

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.sent: list[tuple[str, str]] = []
        self.heeds_reads, self.kept = True, 1 << 30
        self.upload: tuple[str, bytearray] = ("", bytearray())
        self.settings: dict[str, Any] | None = {}
        self.fail: Callable[[str, str], None] = lambda method, name: None
        self.loop, self._generation = get_loop(), 100

    def patiently(self, url: str, once: Callable[..., Any], **_: Any) -> Any:
        """In the place of `remote.patiently`."""
        try:
            return once(self, url)
        except FileNotFoundError as error:
            raise MissingInputError(str(error)) from None

    async def _request(
        self, method: str, path: str, *args: str, **given: Any
    ) -> tuple[int, dict[str, str], None, bytes]:
        if args and args[0] != BUCKET:
            raise FileNotFoundError(path)
        name = args[-1] if len(args) > 1 else str(given.get("name", ""))
        self.sent.append((method, name))
        self.fail(method, name)
        if path == "http://gcs/session":
            return self._piece(given)
        if path == UPLOAD:
            return self._new(name, given)
        if path == "b/{}":
            if self.settings is None:
                raise OSError(f"Forbidden: {path}\nno right")
            return self._said(self.settings)
        if path == "b/{}/o":
            return self._list(given)
        if len(args) == 4:
            self.objects[name] = self._made(self._found(args[1]).data)
            return self._said({"done": "rewriteToken" in given, "rewriteToken": "t", "resource": self._meta(name)})
        found = self._found(name)
        if method == "DELETE":
            del self.objects[name]
            return 204, {}, None, b""
        return self._media(found, given) if given.get("alt") == "media" else self._said(self._meta(name))

    def _said(self, value: Any) -> tuple[int, dict[str, str], None, bytes]:
        return 200, {"Date": "Sat, 28 Nov 2026 06:52:15 GMT"}, None, json.dumps(value).encode()

    def _found(self, name: str) -> Object:
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self.objects[name]

    def _made(self, data: bytes) -> Object:
        self._generation += 1
        return Object(data, self._generation)

    def _meta(self, name: str) -> dict[str, Any]:
        data, generation = self.objects[name]
        time = datetime(2026, 11, 28, 6, 52, 5, tzinfo=UTC).isoformat()
        found = {"name": name, "size": str(len(data)), "generation": str(generation), "updated": time}
        return found | {"md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode()}

    def _new(self, name: str, given: dict[str, Any]) -> tuple[int, dict[str, str], None, bytes]:
        if given["uploadType"] == "resumable":
            self.upload = name, bytearray()
            return 200, {"Location": "http://gcs/session"}, None, b""
        wanted = given.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != (self.objects[name].generation if name in self.objects else 0):
            raise FileExistsError(name)
        self.objects[name] = self._made(bytes(given["data"]))
        return self._said(self._meta(name))

    def _piece(self, given: dict[str, Any]) -> tuple[int, dict[str, str], None, bytes]:
        name, held = self.upload
        span, _, whole = given["headers"]["Content-Range"].removeprefix("bytes ").partition("/")
        start = int(span.partition("-")[0])
        assert start <= len(held)
        held += given["data"][len(held) - start :][: self.kept]
        if len(held) < int(whole):
            return 308, {"Range": f"bytes=0-{len(held) - 1}"} if held else {}, None, b""
        self.objects[name] = self._made(bytes(held))
        return self._said(self._meta(name))

    def _media(self, found: Object, given: dict[str, Any]) -> tuple[int, dict[str, str], None, bytes]:
        headers, data = {"X-Goog-Generation": str(found.generation)}, found.data
        if self.heeds_reads and given.get("ifGenerationMatch", headers["X-Goog-Generation"]) != str(found.generation):
            raise FileExistsError
        if "headers" not in given:
            return 200, headers, None, data
        start, end = map(int, given["headers"]["Range"].removeprefix("bytes=").split("-"))
        if start >= len(data):
            raise HttpError(416)
        return 206, headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, None, data[start : end + 1]

    def _list(self, given: dict[str, Any]) -> tuple[int, dict[str, str], None, bytes]:
        prefix, delimiter = given["prefix"], given.get("delimiter", "\0")
        names = [name for name in sorted(self.objects) if name.startswith(prefix)]
        folders = {
            prefix + name[len(prefix) :].partition(delimiter)[0] + delimiter
            for name in names
            if delimiter in name[len(prefix) :]
        }
        names = [name for name in names if delimiter not in name[len(prefix) :]]
        start, most = int(given.get("pageToken", 0)), int(given.get("maxResults", 3))
        answer: dict[str, Any] = {"items": [self._meta(name) for name in names[start : start + most]]}
        if start + most < len(names):
            answer["nextPageToken"] = str(start + most)
        else:
            answer["prefixes"] = sorted(folders)
        return self._said(answer)


@contextlib.contextmanager
def in_memory(scratch: str) -> Iterator[MemoryGcs]:
    """The store of all URLs in the block. Inputs are read as ever."""
    with answering(MemoryGcs(), scratch) as store:
        yield store
