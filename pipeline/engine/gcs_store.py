"""Objects of Google Cloud Storage, by its JSON API with the client of gcsfs, its credentials and its variables:
GOOGLE_APPLICATION_CREDENTIALS, STORAGE_EMULATOR_HOST, FSSPEC_GS_REQUESTER_PAYS and so on.

A tag is a generation: each write gives the object another one. A write under a condition is one with
ifGenerationMatch; 0 stands for no object. Reads name the generation, too, and compare the one that comes: the emulator
heeds no condition of a read.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import email.utils
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pipeline.engine.input_errors import one_line
from pipeline.engine.store_api import Conflict, Entry, Page, Version, base, call, split
from pipeline.engine.transfers import PASSING

PIECE = 32 << 20  # bytes of a larger file that one request sends or asks for; a multiple of 256 KiB
AT_A_TIME = 16  # requests that delete
OBJECT = "b/{}/o/{}"
_VERSION = "name,size,generation,updated,md5Hash,crc32c"


class Answer(NamedTuple):
    """An answer of the store."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def tag(self) -> str:
        """The generation of the object whose bytes these are."""
        return self.headers.get("X-Goog-Generation", "")


def _ask(
    url: str, method: str, path: Callable[[Any], str] | str, *args: str, what: str = "written", **given: Any
) -> Answer:
    """Sends a request: once, and again as `store_api.call` says.

    Args:
        url: of the object or the bucket, for messages.
        method: of HTTP.
        path: of the JSON API, with {} in the places of `args`; a function gets the client.
        args: names of buckets and objects.
        what: is done to the URL, for messages.
        given: headers, data, json; all others are parameters of the request.
    """
    from fsspec.asyn import sync

    async def ask(system: Any) -> Answer:
        # The client's own tries would be made for each of ours, and are logged as errors.
        once = getattr(type(system)._request, "__wrapped__", type(system)._request)
        place = path if isinstance(path, str) else path(system)
        status, headers, _, body = await once(system, method, place, *args, **given)
        return Answer(status, headers, body)

    def send(system: Any) -> Answer:
        try:
            answer = sync(system.loop, ask, system)
        except FileExistsError as error:  # 412
            raise Conflict(one_line(error)) from None
        except (FileNotFoundError, ValueError):
            raise
        except Exception as error:
            raise _failure(error) from error
        if answer.status == 304:
            raise Conflict("304")
        return answer

    return call(url, send, what=what)


def _failure(error: Exception) -> Exception:
    """What an error of the client means. Those that may pass stay."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return PermissionError(" ".join(str(error).split()))
    code = getattr(error, "code", None)
    if str(code) == "416":
        return EOFError("416")
    if str(code).isdigit() and int(str(code)) < 500 and int(str(code)) not in PASSING:
        return ValueError(f"HTTP {code} {one_line(error)}")
    return error


def _upload(system: Any) -> str:
    return f"{system._location}/upload/storage/v1/b/{{}}/o"


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _content(found: Mapping[str, str]) -> str:
    """The checksum of an object. One that was put together in the store has no MD5."""
    return found.get("md5Hash") or found.get("crc32c") or ""


class GCS:
    """A `store_api.Store`."""

    conditions = ("ifGenerationMatch=0", "ifGenerationMatch")
    no_tag = "1"

    def get(self, url: str) -> tuple[bytes, str]:
        answer = self._get(url)
        return answer.body, answer.tag

    def get_range(self, url: str, start: int, size: int, tag: str = "") -> tuple[bytes, int, str]:
        same = {"ifGenerationMatch": tag} if tag else {}
        answer = self._get(url, headers={"Range": f"bytes={start}-{start + size - 1}"}, **same)
        if tag and answer.tag != tag:
            raise Conflict(answer.tag)
        whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
        body = answer.body if answer.status == 206 else answer.body[start : start + size]
        return body, int(whole) if whole.isdigit() else len(answer.body), answer.tag

    def get_with_age(self, url: str) -> tuple[bytes, str, float]:
        while True:
            answer = _ask(url, "GET", OBJECT, *split(url), what="read", fields=_VERSION)
            found = answer.json()
            now = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
            with contextlib.suppress(Conflict):  # it was written just now
                body = self.get_range(url, 0, int(found["size"]), found["generation"])[0] if int(found["size"]) else b""
                return body, found["generation"], max(0.0, now - _time(found["updated"]))

    def _get(self, url: str, **given: Any) -> Answer:
        return _ask(url, "GET", OBJECT, *split(url), what="read", alt="media", **given)

    def download(self, url: str, path: str, other_than: str = "") -> str | None:
        found = self.head(url)
        if found is None:
            raise FileNotFoundError(url)
        if found.tag == other_than:
            return None
        try:
            with open(path, "wb") as file:
                for start in range(0, found.size, PIECE):
                    data = self.get_range(url, start, min(PIECE, found.size - start), found.tag)[0]
                    file.write(data)
                if file.tell() != found.size:
                    raise OSError(f"{url}: the store sent {file.tell():,} of {found.size:,} bytes")
        except (Conflict, EOFError):  # replaced in the meantime
            return self.download(url, path)
        return found.tag

    def head(self, url: str) -> Version | None:
        try:
            found = _ask(url, "GET", OBJECT, *split(url), what="read", fields=_VERSION).json()
        except FileNotFoundError:
            return None
        return Version(int(found["size"]), found["generation"], _content(found))

    def put(self, url: str, data: bytes, *, absent: bool = False, tag: str = "") -> str:
        bucket, key = split(url)
        condition = {"ifGenerationMatch": "0" if absent else tag} if absent or tag else {}
        headers = {"Content-Type": "application/octet-stream"}
        given = {"name": key, "uploadType": "media", "fields": _VERSION, **condition}
        return str(_ask(url, "POST", _upload, bucket, headers=headers, data=data, **given).json()["generation"])

    def put_file(self, path: str, url: str) -> str:
        """In one request, or as a resumable upload. What was sent of one that ends early is never an object."""
        size = os.path.getsize(path)
        with open(path, "rb", buffering=0) as file:
            if size <= PIECE:
                return self.put(url, file.read())
            bucket, key = split(url)
            headers = {"X-Upload-Content-Type": "application/octet-stream"}
            begun = _ask(url, "POST", _upload, bucket, name=key, uploadType="resumable", json={}, headers=headers)
            start = 0
            while True:
                end = min(size, start + PIECE)
                headers = {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
                data = os.pread(file.fileno(), end - start, start)
                # A failed request is sent again: the store leaves out the bytes that it has.
                answer = _ask(url, "PUT", begun.headers["Location"], headers=headers, data=data)
                if answer.status != 308:
                    return str(answer.json()["generation"])
                kept = answer.headers.get("Range", "").rpartition("-")[2]
                start = int(kept) + 1 if kept.isdigit() else 0

    def copy(self, source: str, target: str, size: int) -> str:
        places, token = (*split(source), *split(target)), dict[str, str]()
        while True:  # a large object takes several requests
            answer = _ask(target, "POST", "b/{}/o/{}/rewriteTo/b/{}/o/{}", *places, json={}, **token).json()
            if answer["done"]:
                return str(answer["resource"]["generation"])
            token = {"rewriteToken": answer["rewriteToken"]}

    def delete(self, groups: Sequence[Sequence[str]]) -> None:
        """Requests at a time within a group: a batch of the API has no order either, and half of it may fail."""
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
            for group in groups:
                for _ in pool.map(self._delete, group):
                    pass

    def _delete(self, url: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            _ask(url, "DELETE", OBJECT, *split(url))

    def pages(self, url: str, *, folders: bool = False, most: int = 0) -> Iterator[Page]:
        (bucket, prefix), top = split(url), base(url)
        wanted = {"prefix": prefix, "fields": f"items({_VERSION}),prefixes,nextPageToken"}
        wanted |= ({"delimiter": "/"} if folders else {}) | ({"maxResults": str(most)} if most else {})
        while True:
            page = _ask(url, "GET", "b/{}/o", bucket, what="listed", **wanted).json()
            entries = [
                Entry(top + item["name"], int(item["size"]), item["generation"], _time(item["updated"]), _content(item))
                for item in page.get("items") or ()
            ]
            yield Page(entries, [top + name for name in page.get("prefixes") or ()])
            if not page.get("nextPageToken"):
                return
            wanted["pageToken"] = page["nextPageToken"]

    def keeps_versions(self, url: str) -> bool:
        """True for older versions, and for soft delete, which new buckets have. If it does not tell, True."""
        try:
            asked = functools.partial(_ask, url, "GET", "b/{}", split(url)[0], what="read")
            found = asked(fields="versioning,softDeletePolicy").json()
        except Exception:  # the right to read the bucket's settings is another one than those that a run needs
            return True
        soft = found.get("softDeletePolicy", {}).get("retentionDurationSeconds", 0)
        return bool(found.get("versioning", {}).get("enabled")) or int(soft) > 0
