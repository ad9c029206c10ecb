"""Objects of an S3 store, by the clients of s3fs, with its variables: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on.

The promises of `store_api.Store` hold since 2020-12 (strong consistency), 2024-08 (If-None-Match) and 2024-11
(If-Match). A tag is an ETag without its quotes.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.engine.input_errors import one_line
from pipeline.engine.store_api import Conflict, Entry, Page, Version, base, call, split

PIECE = 32 << 20  # bytes of a larger file that one request sends; S3 takes at most 10,000 of them
LARGEST_COPY = 5 << 30  # bytes that one request can copy
LISTED = 1000  # names that one request gives or deletes


def _code(error: BaseException) -> str:
    """What the store answered: its code, such as PreconditionFailed; "": it was no answer."""
    answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def _call(url: str, work: Callable[[Any], Any], *, what: str) -> Any:
    """`store_api.call`, with the errors of S3."""

    def once(system: Any) -> Any:
        try:
            return work(system)
        except Exception as error:
            code = _code(error)
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "304", "NotModified"):
                raise Conflict(code) from None
            if code in ("InvalidRange", "416"):
                raise EOFError(code) from None
            if isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
                raise ValueError(one_line(error)) from error  # the same request fails again
            raise

    return call(url, once, what=what)


def _send(method: str, given: dict[str, Any], system: Any) -> Any:
    return system.call_s3(method, **given)


def _ask(url: str, method: str, *, what: str = "written", **given: Any) -> Any:
    bucket, key = split(url)
    return _call(url, functools.partial(_send, method, {"Bucket": bucket, "Key": key, **given}), what=what)


def _ask_bucket(url: str, method: str, *, what: str, **given: Any) -> Any:
    return _call(url, functools.partial(_send, method, {"Bucket": split(url)[0], **given}), what=what)


def _tag(answer: dict[str, Any]) -> str:
    tag = str(answer.get("ETag", ""))
    return tag[1:-1] if len(tag) > 1 and tag[0] == tag[-1] == '"' else tag


def _quoted(tag: str) -> str:
    return tag if '"' in tag else f'"{tag}"'


class S3:
    """A `store_api.Store`."""

    conditions = ("If-None-Match", "If-Match")
    no_tag = "0"

    def get(self, url: str) -> tuple[bytes, str]:
        data, answer = self._get(url)
        return data, _tag(answer)

    def get_range(self, url: str, start: int, size: int, tag: str = "") -> tuple[bytes, int, str]:
        same = {"IfMatch": _quoted(tag)} if tag else {}
        data, answer = self._get(url, Range=f"bytes={start}-{start + size - 1}", **same)
        whole = str(answer.get("ContentRange", "")).rpartition("/")[2]
        return data, int(whole) if whole.isdigit() else start + len(data), _tag(answer)

    def get_with_age(self, url: str) -> tuple[bytes, str, float]:
        data, answer = self._get(url)
        now, age = answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""), 0.0
        with contextlib.suppress(TypeError, ValueError):
            age = (email.utils.parsedate_to_datetime(now) - answer["LastModified"]).total_seconds()
        return data, _tag(answer), age

    def _get(self, url: str, **given: Any) -> tuple[bytes, dict[str, Any]]:
        """The bytes of an object, and the answer of the store."""
        from fsspec.asyn import sync

        bucket, key = split(url)

        async def ask(system: Any) -> tuple[bytes, dict[str, Any]]:
            answer = await system._call_s3("get_object", Bucket=bucket, Key=key, **given)
            async with answer["Body"] as body:
                return await body.read(), answer

        data, answer = _call(url, lambda system: sync(system.loop, ask, system), what="read")
        return data, answer

    def download(self, url: str, path: str, other_than: str = "") -> str | None:
        from fsspec.asyn import sync

        bucket, key = split(url)
        given = {"IfNoneMatch": _quoted(other_than)} if other_than else {}

        async def ask(system: Any) -> str:
            answer = await system._call_s3("get_object", Bucket=bucket, Key=key, **given)
            with open(path, "wb") as file:
                async with answer["Body"] as body:
                    while data := await body.read(1 << 20):
                        file.write(data)
                if file.tell() != answer["ContentLength"]:
                    raise OSError(f"the store sent {file.tell():,} of {answer['ContentLength']:,} bytes")
            return _tag(answer)

        try:
            return str(_call(url, lambda system: sync(system.loop, ask, system), what="read"))
        except Conflict:
            return None

    def head(self, url: str) -> Version | None:
        try:
            found = _ask(url, "head_object", what="read")
        except FileNotFoundError:
            return None
        return Version(int(found["ContentLength"]), _tag(found))

    def put(self, url: str, data: bytes, *, absent: bool = False, tag: str = "") -> str:
        given = ({"IfNoneMatch": "*"} if absent else {}) | ({"IfMatch": _quoted(tag)} if tag else {})
        return _tag(_ask(url, "put_object", Body=data, **given))

    def put_file(self, path: str, url: str) -> str:
        size = os.path.getsize(path)
        with open(path, "rb", buffering=0) as file:
            if size <= PIECE:
                return self.put(url, file.read())

            def send(start: int, end: int, **given: Any) -> str:
                data = os.pread(file.fileno(), end - start, start)
                return str(_ask(url, "upload_part", Body=data, **given)["ETag"])

            return _in_pieces(url, size, max(PIECE, -(-size // 9_999)), send)

    def copy(self, source: str, target: str, size: int) -> str:
        origin = dict(zip(("Bucket", "Key"), split(source), strict=True))
        if size <= LARGEST_COPY:
            return _tag(_ask(target, "copy_object", CopySource=origin)["CopyObjectResult"])

        def send(start: int, end: int, **given: Any) -> str:
            span = f"bytes={start}-{end - 1}"
            sent = _ask(target, "upload_part_copy", CopySource=origin, CopySourceRange=span, **given)
            return str(sent["CopyPartResult"]["ETag"])

        return _in_pieces(target, size, 1 << 30, send)

    def delete(self, groups: Sequence[Sequence[str]]) -> None:
        urls = [url for group in groups for url in group]  # one request for all of them keeps their order
        for start in range(0, len(urls), LISTED):
            some = urls[start : start + LISTED]
            if len(some) == 1:
                _ask(some[0], "delete_object")
                continue
            keys = {"Objects": [{"Key": split(url)[1]} for url in some], "Quiet": True}
            answer = _ask_bucket(some[0], "delete_objects", what="written", Delete=keys)
            if answer.get("Errors"):
                raise OSError(f"{some[0]}: cannot be deleted: {answer['Errors'][0].get('Message', 'no reason given')}")

    def pages(self, url: str, *, folders: bool = False, most: int = 0) -> Iterator[Page]:
        top = base(url)
        wanted = {"Prefix": split(url)[1], "MaxKeys": most or LISTED} | ({"Delimiter": "/"} if folders else {})
        while True:
            page = _ask_bucket(url, "list_objects_v2", what="listed", **wanted)
            entries = [
                Entry(top + item["Key"], int(item["Size"]), _tag(item), item["LastModified"].timestamp())
                for item in page.get("Contents", ())
            ]
            yield Page(entries, [top + item["Prefix"] for item in page.get("CommonPrefixes", ())])
            if not page.get("IsTruncated"):
                return
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    def keeps_versions(self, url: str) -> bool:
        """True if the bucket keeps older versions, or some from the time when it did. If it does not tell, none."""
        with contextlib.suppress(Exception):
            return "Status" in _ask_bucket(url, "get_bucket_versioning", what="read")
        return False


def _in_pieces(url: str, size: int, piece: int, send: Callable[..., str]) -> str:
    """Makes one object of pieces. Returns its tag. What was sent goes if it fails.

    Args:
        url: of the object.
        size: of the object.
        piece: bytes of a piece.
        send: sends the bytes from `start` to `end`, with what the request must name. Returns the ETag of the piece.
    """
    upload_id = _ask(url, "create_multipart_upload")["UploadId"]
    try:
        parts = []
        for number, start in enumerate(range(0, size, piece), 1):
            tag = send(start, min(size, start + piece), PartNumber=number, UploadId=upload_id)
            parts.append({"PartNumber": number, "ETag": tag})
        return _tag(_ask(url, "complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts}))
    except BaseException:
        with contextlib.suppress(Exception):
            _ask(url, "abort_multipart_upload", UploadId=upload_id)
        raise
