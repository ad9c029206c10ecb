"""Objects of a store as files for DuckDB, read by range with the clients and the patience of `pipeline`."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.engine import object_store, storage


class Objects(AbstractFileSystem):
    """The objects that lie under SCHEME:// have the names openwit://BUCKET/KEY here. Nothing can be written.

    The methods are those of fsspec that DuckDB calls.
    """

    protocol = "openwit"
    cachable = False

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self._scheme = scheme

    def _url(self, path: str) -> str:
        return f"{self._scheme}://{self._strip_protocol(path)}"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name and size of an object."""
        return {"name": path, "size": storage.size(self._url(path)), "type": "file"}

    def exists(self, path: str, **_: Any) -> bool:
        """True if there is such an object."""
        return storage.is_file(self._url(path))

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself: no name of a set is a pattern."""
        return [path]

    def modified(self, path: str) -> datetime:
        """A time that says nothing: a query reads one state of a set."""
        return datetime.fromtimestamp(0, UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise PermissionError("a set can only be read")
        # Without a descriptor of this machine, since DuckDB does not close what it opens.
        return io.BufferedReader(object_store.ObjectFile(self._url(path)), object_store.READ_BUFFER)
