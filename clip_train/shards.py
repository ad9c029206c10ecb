"""Opens the index of a set: makes its file, or finds the one that was made before.

There are two kinds of input, on this machine or at a URL (remote.py):
- a folder that the pipeline published: `manifest.json`, `shards/*.tar`, and `metadata/*.parquet` with the place of
  every member. Shards that do not agree with the manifest are refused.
- plain WebDataset tars, as a folder or a brace pattern (`/data/cc12m-{00000..01242}.tar`), whose headers are read.

The index is made once. It is kept beside the data in `.clip_train/`. Where that folder cannot be written, or the data
is behind a URL, it is kept in the folder for downloads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from clip_train import remote
from clip_train.errors import InputMissing, TrainError
from clip_train.index import PLACES, ConceptSource, Index
from clip_train.index_file import Writer, kept_table
from clip_train.places import expand, expand_braces
from clip_train.published import (
    has_several_texts,
    open_published,
    read_columns,
    read_concepts,
    read_manifest,
    write_index,
)
from clip_train.remote import RemoteFile, RemoteShards, is_url
from clip_train.tar_scan import Members, scan_tar

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
TEXT_MEMBER, LABEL_MEMBER = "txt", "cls"


def open_index(data: str, *, cache: str | None = None, cache_gb: float = remote.DEFAULT_CACHE_GB) -> Index:
    """The index of `data`. InputMissing if there is nothing to read.

    Args:
        data: a folder, a tar, or a brace pattern of tars; or the URL of one.
        cache: folder for downloads; the temporary folder of the system unless given.
        cache_gb: the size of that folder, in 10^9 bytes.
    """
    if not data:
        raise InputMissing("no data: name a folder of shards, or a pattern of tars, with --data")
    if is_url(data):
        index = _open_remote(data, remote.cache_folder(cache), int(cache_gb * 1e9))
    elif (Path(data) / "manifest.json").exists():
        index = open_published(Path(data), cache_folders(Path(data), cache))
    else:
        paths = expand(data)
        index = _open_tars(paths, cache_folders(Path(paths[0]).parent, cache))
    if not len(index):
        raise InputMissing(f"{remote.public(data)}: the shards have no sample with an image")
    return index


def cache_folders(data: Path, cache: str | None) -> list[Path]:
    """Where an index may be kept: beside the data, or in the folder for downloads."""
    try:
        return [data / ".clip_train", remote.cache_folder(cache)]
    except TrainError:
        return [data / ".clip_train"]


# --- plain WebDataset tars -----------------------------------------------------------------------------------------


def _open_tars(paths: Sequence[str], folders: Sequence[Path]) -> Index:
    marks = [(os.path.basename(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    name = f"index-{hashlib.sha256(repr(marks).encode()).hexdigest()[:16]}"

    def scan(number: int) -> tuple[Members, bool, int]:
        return *scan_tar(paths[number]), os.path.getsize(paths[number])

    return Index(tuple(paths), kept_table(folders, name, lambda file: _scan_all(file, paths, scan)))


def _scan_all(file: IO[bytes], paths: Sequence[str], scan: Callable[[int], tuple[Members, bool, int]]) -> None:
    """Writes the index of all shards. `scan` returns members of a shard, whether it is whole, and its size."""
    words = [f"{place}_{what}" for place in PLACES for what in ("block", "size")]
    threads = remote.DOWNLOADS if is_url(paths[0]) else 1
    with ThreadPoolExecutor(threads) as pool, Writer(file, columns=words, keys=True) as writer:
        damaged: list[int] = []
        for number, (samples, whole, size) in enumerate(pool.map(scan, range(len(paths)))):
            damaged += [] if whole else [number]
            keys, columns = _columns(samples)
            writer.add_shard(columns, keys, size=size)
        writer.finish([os.path.basename(path) for path in paths], damaged=damaged)


def _columns(samples: Members) -> tuple[list[str], dict[str, np.ndarray]]:
    """The keys of the samples of a shard that have an image, and the places of their members."""
    keys: list[str] = []
    rows: list[tuple[int, ...]] = []
    for key, members in samples.items():
        image = next((members[kind] for kind in IMAGE_MEMBERS if kind in members), None)
        if image is not None:
            keys.append(key)
            rows.append((*image, *members.get(TEXT_MEMBER, (0, 0)), *members.get(LABEL_MEMBER, (0, 0))))
    flat = np.array(rows, np.int64).reshape(-1, 2 * len(PLACES))
    names = [f"{place}_{what}" for place in PLACES for what in ("offset", "size")]
    return keys, dict(zip(names, flat.T, strict=True))


# --- behind a URL ---------------------------------------------------------------------------------------------------


def _open_remote(url: str, folder: Path, limit: int) -> Index:
    if "{" not in url and not url.endswith(".tar"):
        try:
            data = remote.read_small(f"{url.rstrip('/')}/manifest.json")
        except InputMissing:
            urls = remote.list_tars(url)
            if not urls:
                raise InputMissing(f"{remote.public(url)}: no manifest.json and no .tar file there") from None
        else:
            return _open_remote_published(url.rstrip("/"), data, folder, limit)
    else:
        urls = expand_braces(url)
    with ThreadPoolExecutor(16) as pool:
        files = list(pool.map(remote.describe, urls))
    table = kept_table(
        [folder], f"index-{remote.set_name(files)}",
        lambda file: _scan_all(file, urls, lambda number: _scan_remote(files[number], folder)),
    )  # fmt: skip
    files = [dataclasses.replace(file, size=size) for file, size in zip(files, table.sizes, strict=True)]
    return Index(tuple(urls), table, remote=RemoteShards(tuple(files), folder, limit))


def _open_remote_published(url: str, manifest: bytes, folder: Path, limit: int) -> Index:
    name = remote.public(url)
    listed = read_manifest(manifest, f"{name}/manifest.json")
    named = {file.path: RemoteFile(f"{url}/{file.path}", file.size, file.sha256) for file in listed}

    def read(path: str, columns: Sequence[str]) -> pa.Table:
        with _downloaded(named[path], folder, "parquet") as copy:
            return read_columns(copy, f"{name}/{path}", columns)

    kept = f"index-{hashlib.sha256(url.encode() + manifest).hexdigest()[:16]}"
    several = has_several_texts(manifest)
    table = kept_table([folder], kept, lambda file: write_index(file, read, name, listed, several=several))
    files = tuple(named[path] for path in table.names)
    source = ConceptSource([folder], kept, lambda: read_concepts(table, read, name, listed))
    return Index(
        tuple(file.url for file in files), table, read_keys=lambda path: read(path, ["key"])["key"].to_pylist(),
        remote=RemoteShards(files, folder, limit), concepts=source,
    )  # fmt: skip


def _scan_remote(file: RemoteFile, folder: Path) -> tuple[Members, bool, int]:
    with _downloaded(file, folder, "tar") as path:
        return *scan_tar(str(path)), os.path.getsize(path)


@contextlib.contextmanager
def _downloaded(file: RemoteFile, folder: Path, kind: str) -> Iterator[Path]:
    """A copy of a file, as long as it is needed."""
    path = folder / f"scan-{os.getpid()}-{hashlib.sha256(file.url.encode()).hexdigest()[:16]}.{kind}"
    descriptor = remote.fetch(file, path)  # while it is open, no process removes it as unused
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
