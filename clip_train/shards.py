"""The index of the training data: where the samples are in the tar shards, as flat arrays.

There are two kinds of input, on this machine or at a URL (remote.py):
- a folder that the pipeline published: `manifest.json`, `shards/*.tar`, and `metadata/*.parquet` with the place of
  every member. Shards that do not agree with the manifest are refused.
- plain WebDataset tars, as a folder or a brace pattern (`/data/cc12m-{00000..01242}.tar`). The tar headers are read
  once, and the index is kept beside the tars in `.clip_train/`. From a URL this costs one pass over the shards, and
  the index is kept in the folder for downloads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_train import remote
from clip_train.errors import InputMissing, TrainError
from clip_train.index import PLACES, Index, check_nulls, check_places
from clip_train.places import expand, expand_braces
from clip_train.published import index_from_table, is_metadata, read_manifest, read_metadata, read_published
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
        index = read_published(Path(data))
    else:
        index = _read_tars(expand(data))
    if not len(index):
        raise InputMissing(f"{remote.public(data)}: the shards have no sample with an image")
    return index


# --- plain WebDataset tars -----------------------------------------------------------------------------------------


def _read_tars(paths: Sequence[str]) -> Index:
    marks = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    name = f"index-{hashlib.sha256(repr([(os.path.basename(p), s, m) for p, s, m in marks]).encode()).hexdigest()[:16]}"
    kept = Path(paths[0]).parent / ".clip_train" / f"{name}.parquet"
    table = _read_kept(kept)
    if table is not None:
        try:
            return _index_from_scan(table, paths)
        except TrainError:
            pass  # another program wrote it; it is replaced below
    table = _scan_all(paths, lambda number: (*scan_tar(paths[number]), os.path.getsize(paths[number])))
    _keep_table(table, kept)
    return _index_from_scan(table, paths)


def _index_from_scan(table: pa.Table, paths: Sequence[str]) -> Index:
    try:
        check_nulls(table)
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
        notes = {name: json.loads(table.schema.metadata[name.encode()]) for name in ("damaged", "sizes")}
        index = Index(
            paths=tuple(paths), keys=table["key"].combine_chunks(), damaged=tuple(notes["damaged"]),
            sizes=tuple(notes["sizes"]),
            **columns,  # type: ignore[arg-type]
        )  # fmt: skip
        check_places(index, notes["sizes"])
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise TrainError(f"the saved index of {remote.public(paths[0])} is damaged: {error}") from error
    return index


def _scan_all(paths: Sequence[str], scan: Callable[[int], tuple[Members, bool, int]]) -> pa.Table:
    """The table of the samples of all shards. `scan` returns members of a shard, whether it is whole, and its size."""
    keys: list[str] = []
    rows: list[tuple[int, ...]] = []
    damaged: list[str] = []
    sizes: list[int] = []
    with ThreadPoolExecutor(remote.DOWNLOADS if is_url(paths[0]) else 1) as pool:
        for number, (samples, whole, size) in enumerate(pool.map(scan, range(len(paths)))):
            sizes.append(size)
            if not whole:
                damaged.append(paths[number])
            for key, members in samples.items():
                image = next((members[kind] for kind in IMAGE_MEMBERS if kind in members), None)
                if image is None:
                    continue
                keys.append(key)
                rows.append((number, *image, *members.get(TEXT_MEMBER, (0, 0)), *members.get(LABEL_MEMBER, (0, 0))))
    flat = np.array(rows, np.int64).reshape(-1, 7)
    columns: dict[str, object] = {"key": pa.array(keys, pa.large_string()), "shard": flat[:, 0].astype(np.int32)}
    for number, place in enumerate(PLACES):
        columns[f"{place}_offset"] = flat[:, 1 + 2 * number]
        columns[f"{place}_size"] = np.minimum(flat[:, 2 + 2 * number], 2**31 - 1).astype(np.int32)
    notes = {"damaged": json.dumps(damaged), "sizes": json.dumps(sizes)}
    return pa.table(columns).replace_schema_metadata(notes)


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
            return _read_remote_published(url.rstrip("/"), data, folder, limit)
    else:
        urls = expand_braces(url)
    with ThreadPoolExecutor(16) as pool:
        files = list(pool.map(remote.describe, urls))
    kept = folder / f"index-{remote.set_name(files)}.parquet"
    table = _kept_table(kept, lambda: _scan_all(urls, lambda number: _scan_remote(files[number], folder)))
    index = _index_from_scan(table, urls)
    sizes = json.loads(table.schema.metadata[b"sizes"])
    files = [dataclasses.replace(file, size=size) for file, size in zip(files, sizes, strict=True)]
    return dataclasses.replace(index, remote=RemoteShards(tuple(files), folder, limit))


def _read_remote_published(url: str, manifest: bytes, folder: Path, limit: int) -> Index:
    listed = read_manifest(manifest, f"{remote.public(url)}/manifest.json")
    named = {file.path: RemoteFile(f"{url}/{file.path}", file.size, file.sha256) for file in listed}

    def make() -> pa.Table:
        with contextlib.ExitStack() as stack:
            files = []
            for number, file in enumerate(file for file in listed if is_metadata(file)):
                path = folder / f"metadata-{os.getpid()}-{number}.parquet.partial"
                stack.callback(path.unlink, missing_ok=True)
                os.close(remote.fetch(named[file.path], path))
                files.append((f"{remote.public(url)}/{file.path}", path))
            return read_metadata(files, remote.public(url))

    kept = folder / f"index-{hashlib.sha256(url.encode() + manifest).hexdigest()[:16]}.parquet"
    index = index_from_table(_kept_table(kept, make), url, {file.path: file for file in listed})
    files = tuple(named[path.removeprefix(f"{url}/")] for path in index.paths)
    return dataclasses.replace(index, remote=RemoteShards(files, folder, limit))


def _scan_remote(file: RemoteFile, folder: Path) -> tuple[Members, bool, int]:
    path = folder / f"scan-{os.getpid()}-{hashlib.sha256(file.url.encode()).hexdigest()[:16]}.tar"
    descriptor = remote.fetch(file, path)  # while it is open, no process removes it as unused
    try:
        return *scan_tar(str(path)), os.fstat(descriptor).st_size
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


# --- tables that are kept for the next run ----------------------------------------------------------------------------


def _kept_table(path: Path, make: Callable[[], pa.Table]) -> pa.Table:
    """The table at `path`. If there is none, one process of this host makes it."""
    with remote.host_lock(path.with_suffix(".lock")):
        table = _read_kept(path)
        if table is None:
            table = make()
            _keep_table(table, path)
    return table


def _read_kept(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path, page_checksum_verification=True) if path.exists() else None
    except (pa.ArrowException, OSError):
        return None  # damaged; it is replaced


def _keep_table(table: pa.Table, path: Path) -> None:
    """Writes an index. In a folder that cannot be written nothing is kept, and each run scans the tars."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, partial, write_page_checksum=True)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
