"""Reads the members of samples from shards, on this machine or from a URL."""

from __future__ import annotations

import os
import threading

from clip_train.errors import UsageError
from clip_train.index import Index
from clip_train.remote import ShardCache

MAX_IMAGE_BYTES, MAX_TEXT_BYTES = 1 << 28, 1 << 16  # larger members are not read


class ShardReader:
    """Reads byte ranges of many files from many threads, and keeps the files open."""

    def __init__(self, paths: tuple[str, ...], *, keep_open: int = 512) -> None:
        self._paths, self._keep_open = paths, keep_open
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int, window: int = 0) -> bytes:
        """`size` bytes at `offset`, or fewer at the end of the file. Only ShardCache uses the window."""
        file = self._files.get(shard)
        if file is not None:
            return os.pread(file, size, offset)
        file = os.open(self._paths[shard], os.O_RDONLY)
        with self._lock:
            if shard not in self._files and len(self._files) < self._keep_open:
                self._files[shard] = file
                return os.pread(file, size, offset)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def stop(self) -> None:
        """Does nothing: files need no download."""

    def close(self) -> None:
        """Closes all files. No thread may be reading."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def open_reader(index: Index) -> Reader:
    """A reader of samples in any order. With a URL, all shards have to fit into the cache at the same time."""
    if index.remote is None:
        return ShardReader(index.paths)
    cache, everything = ShardCache(index.remote), range(len(index.paths))
    try:
        cache.check_fits(everything)
    except UsageError as error:
        cache.close()
        raise UsageError(f"{error}. Or copy the shards to this machine") from None
    cache.want(0, everything)
    return cache


Reader = ShardReader | ShardCache
_MOST = {"image": MAX_IMAGE_BYTES, "text": MAX_TEXT_BYTES, "label": MAX_TEXT_BYTES}


def read_member(reader: Reader, index: Index, kind: str, sample: int) -> bytes:
    """The image, text or label of a sample. Only the beginning, if it is larger than the bound for its kind."""
    shard, offset, size = index.place(kind, sample)
    return reader.read(shard, offset, min(size, _MOST[kind]))
