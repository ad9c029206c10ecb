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
import mmap
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_train import remote
from clip_train.errors import InputMissing, TrainError
from clip_train.places import expand, expand_braces
from clip_train.remote import RemoteFile, RemoteShards, is_url

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
TEXT_MEMBER, LABEL_MEMBER = "txt", "cls"
_PLACES = ("image", "text", "label")
MAX_HEADER_BYTES = 1 << 20  # of a tar member that holds the name of the next one
_REMEDY = "publish the shards again, or point --data at a whole copy"


@dataclasses.dataclass(frozen=True)
class Index:
    """N samples. Offsets and sizes are in bytes of the shard file. Size 0: the sample has no such member."""

    paths: tuple[str, ...]  # of the shards
    keys: pa.Array  # (N,) string
    shard: np.ndarray  # (N,) int32, into `paths`
    image_offset: np.ndarray  # (N,) int64
    image_size: np.ndarray  # (N,) int32
    text_offset: np.ndarray
    text_size: np.ndarray
    label_offset: np.ndarray
    label_size: np.ndarray
    sha256: np.ndarray | None = None  # (N, 32) uint8, of the image
    keep_probability: np.ndarray | None = None  # (N,) float32
    damaged: tuple[str, ...] = ()  # tars that are truncated or have damaged headers; their whole samples are here
    remote: RemoteShards | None = None  # if `paths` are URLs

    def __len__(self) -> int:
        return len(self.shard)


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
        index = _read_published(Path(data))
    else:
        index = _read_tars(expand(data))
    if not len(index):
        raise InputMissing(f"{remote.public(data)}: the shards have no sample with an image")
    return index


# --- a published folder ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Listed:
    """A file that the manifest lists."""

    path: str  # within the folder
    size: int
    sha256: str | None


def _read_published(folder: Path) -> Index:
    listed = _manifest((folder / "manifest.json").read_bytes(), str(folder / "manifest.json"))
    for file in listed:
        path = folder / file.path
        if not path.exists():
            raise InputMissing(f"{path} is missing, the manifest lists it; {_REMEDY}")
        if path.stat().st_size != file.size:
            raise TrainError(f"{path} has {path.stat().st_size} bytes, the manifest says {file.size}; {_REMEDY}")
    metadata = [(str(folder / file.path), folder / file.path) for file in listed if _is_metadata(file)]
    table = _read_metadata(metadata, str(folder))
    return _index_from_table(table, str(folder), {file.path: file for file in listed})


def _is_metadata(file: _Listed) -> bool:
    return file.path.startswith("metadata/") and file.path.endswith(".parquet")


def _read_metadata(files: Sequence[tuple[str, Path]], folder: str) -> pa.Table:
    """Reads the columns of the index. `files` are pairs of a name for messages and a path."""
    if not files:
        raise InputMissing(f"{folder}/metadata: no Parquet file; {_REMEDY}")
    tables = []
    for name, path in files:
        try:
            tables.append(pq.read_table(path, columns=_wanted_columns(name, path), page_checksum_verification=True))
        except (pa.ArrowException, OSError) as error:
            raise TrainError(f"{name}: {error}; {_REMEDY}") from error
    return pa.concat_tables(tables, promote_options="default")


_COLUMNS = (
    "key", "shard", "jpg_offset", "jpg_size", "txt_offset", "txt_size", "sha256", "keep_probability",
)  # fmt: skip


def _wanted_columns(name: str, path: Path) -> list[str]:
    present = set(pq.read_schema(path).names)
    missing = [name for name in _COLUMNS[:6] if name not in present]
    if missing:
        raise TrainError(f"{name} has no column {missing[0]!r}: is this a folder that the pipeline published?")
    return [name for name in _COLUMNS if name in present]


def _index_from_table(table: pa.Table, folder: str, listed: dict[str, _Listed]) -> Index:
    """The index. TrainError for any table that does not fit the shards of the manifest."""
    try:
        _check_nulls(table)
        shards = table["shard"].combine_chunks()
        names = shards.dictionary_encode() if not pa.types.is_dictionary(shards.type) else shards
        if isinstance(names, pa.ChunkedArray):
            names = names.combine_chunks()
        tars = _tars_by_name(listed)
        paths = [_shard_path(name, tars) for name in names.dictionary.to_pylist()]
        nothing = np.zeros(table.num_rows, np.int64)
        has = table.column_names
        index = Index(
            paths=tuple(f"{folder.rstrip('/')}/{path}" for path in paths),
            keys=table["key"].cast(pa.large_string()).combine_chunks(),
            shard=names.indices.to_numpy().astype(np.int32),
            image_offset=table["jpg_offset"].to_numpy().astype(np.int64),
            image_size=table["jpg_size"].to_numpy().astype(np.int32),
            text_offset=table["txt_offset"].to_numpy().astype(np.int64),
            text_size=table["txt_size"].to_numpy().astype(np.int32),
            label_offset=nothing,
            label_size=nothing.astype(np.int32),
            sha256=_digests(table["sha256"]) if "sha256" in has else None,
            keep_probability=table["keep_probability"].to_numpy().astype(np.float32)
            if "keep_probability" in has
            else None,
        )
        _check_places(index, [listed[path].size for path in paths])
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        name = remote.public(folder)
        raise TrainError(f"{name}: the metadata does not fit the shards ({error}); {_REMEDY}") from error
    return index


def _check_nulls(table: pa.Table) -> None:
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"{name} has nulls")


def _check_places(index: Index, sizes: Sequence[int]) -> None:
    """ValueError if a member is outside of its shard."""
    if not len(index):
        return
    if index.shard.min() < 0 or index.shard.max() >= len(sizes):
        raise ValueError("a shard is not in the list")
    ends = np.array(sizes, np.int64)[index.shard]
    for place in _PLACES:
        offset, size = getattr(index, f"{place}_offset"), getattr(index, f"{place}_size")
        if offset.min() < 0 or size.min() < 0 or (offset > ends).any() or (offset + size > ends).any():
            raise ValueError("a member is outside of its shard")


def _tars_by_name(listed: Iterable[str]) -> dict[int | str, str]:
    """The paths of the shards by their number (there may be gaps, and any number of digits) and by their name."""
    tars: dict[int | str, str] = {}
    for path in listed:
        stem, extension = os.path.splitext(os.path.basename(path))
        if extension == ".tar":
            tars[stem] = path
            if re.fullmatch("[0-9]{1,18}", stem):
                tars[int(stem)] = path
    return tars


def _shard_path(name: int | str, tars: Mapping[int | str, str]) -> str:
    """The path of a shard within the published folder. ValueError if the manifest does not list it."""
    found = tars.get(name if isinstance(name, int) else Path(name).name.removesuffix(".tar"))
    if found is None:
        raise ValueError(f"the manifest lists no shard {name}")
    return found


def _digests(column: pa.ChunkedArray) -> np.ndarray:
    """(N, 32) bytes from a column of digests. The column has bytes or hexadecimal text."""
    values = column.to_pylist()
    raw = b"".join(bytes.fromhex(value) if isinstance(value, str) else value for value in values)
    return np.frombuffer(raw, np.uint8).reshape(len(values), 32)


def _manifest(data: bytes, name: str) -> list[_Listed]:
    """The shards and the metadata that a manifest lists, sorted by path."""
    try:
        listed = [
            _Listed(str(entry["path"]), int(entry["bytes"]), str(entry["sha256"]) if "sha256" in entry else None)
            for entry in json.loads(data)["files"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainError(f"{name} is not a manifest ({error}); {_REMEDY}") from error
    for file in listed:
        if ".." in file.path.split("/") or file.size < 0:
            raise TrainError(f"{name} lists an impossible file ({file.path[:100]!r}, {file.size} bytes); {_REMEDY}")
    wanted = [file for file in listed if file.path.startswith(("shards/", "metadata/"))]
    return sorted(wanted, key=lambda file: file.path)


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
    listed = _manifest(manifest, f"{remote.public(url)}/manifest.json")
    named = {file.path: RemoteFile(f"{url}/{file.path}", file.size, file.sha256) for file in listed}

    def make() -> pa.Table:
        with contextlib.ExitStack() as stack:
            files = []
            for number, file in enumerate(file for file in listed if _is_metadata(file)):
                path = folder / f"metadata-{os.getpid()}-{number}.parquet.partial"
                stack.callback(path.unlink, missing_ok=True)
                os.close(remote.fetch(named[file.path], path))
                files.append((f"{remote.public(url)}/{file.path}", path))
            return _read_metadata(files, remote.public(url))

    kept = folder / f"index-{hashlib.sha256(url.encode() + manifest).hexdigest()[:16]}.parquet"
    index = _index_from_table(_kept_table(kept, make), url, {file.path: file for file in listed})
    files = tuple(named[path.removeprefix(f"{url}/")] for path in index.paths)
    return dataclasses.replace(index, remote=RemoteShards(files, folder, limit))


def _scan_remote(file: RemoteFile, folder: Path) -> tuple[_Members, bool, int]:
    path = folder / f"scan-{os.getpid()}-{hashlib.sha256(file.url.encode()).hexdigest()[:16]}.tar"
    descriptor = remote.fetch(file, path)  # while it is open, no process removes it as unused
    try:
        return *scan_tar(str(path)), os.fstat(descriptor).st_size
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _kept_table(path: Path, make: Callable[[], pa.Table]) -> pa.Table:
    """The table at `path`. If there is none, one process of this host makes it."""
    with remote.host_lock(path.with_suffix(".lock")):
        table = _read_kept(path)
        if table is None:
            table = make()
            _keep_table(table, path)
    return table


# --- plain WebDataset tars -----------------------------------------------------------------------------------------


_Members = dict[str, dict[str, tuple[int, int]]]  # key -> extension -> offset and size


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
        _check_nulls(table)
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
        notes = {name: json.loads(table.schema.metadata[name.encode()]) for name in ("damaged", "sizes")}
        index = Index(
            paths=tuple(paths), keys=table["key"].combine_chunks(), damaged=tuple(notes["damaged"]),
            **columns,  # type: ignore[arg-type]
        )  # fmt: skip
        _check_places(index, notes["sizes"])
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise TrainError(f"the saved index of {remote.public(paths[0])} is damaged: {error}") from error
    return index


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


def _scan_all(paths: Sequence[str], scan: Callable[[int], tuple[_Members, bool, int]]) -> pa.Table:
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
    for number, place in enumerate(_PLACES):
        columns[f"{place}_offset"] = flat[:, 1 + 2 * number]
        columns[f"{place}_size"] = np.minimum(flat[:, 2 + 2 * number], 2**31 - 1).astype(np.int32)
    notes = {"damaged": json.dumps(damaged), "sizes": json.dumps(sizes)}
    return pa.table(columns).replace_schema_metadata(notes)


def scan_tar(path: str) -> tuple[_Members, bool]:
    """The members of a tar by key and extension, as (offset, size), and whether the archive is whole.

    A key is the name of the member up to the first dot of its last part. It is a label and never becomes a path. Only
    plain files count, and a second member with the same name is ignored. After a header that is damaged, or whose size
    exceeds the file, the scan continues at the next valid header.
    """
    samples: _Members = {}
    size = os.path.getsize(path)
    if size == 0:
        return samples, False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, long_name, long_size, whole = 0, None, None, True
        while at + 512 <= size:
            header = data[at : at + 512]
            if header == bytes(512):
                return samples, whole
            start, kind = at + 512, header[156:157]
            length = _number(header[124:136]) if long_size is None or kind in b"xLK" else long_size
            if not _checksum_holds(header) or start + length > size:
                at, whole = at + 512, False  # look for the next valid header
                continue
            at = start + (length + 511) // 512 * 512
            if kind in b"xLK" and length > MAX_HEADER_BYTES:
                whole = False
            elif kind == b"L":  # GNU: the name of the next member
                long_name = data[start : start + length].rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":  # pax: the name and more
                records = _pax_records(data[start : start + length])
                long_name = records.get("path", long_name)
                long_size = int(records["size"]) if re.fullmatch("[0-9]{1,18}", records.get("size", "")) else None
            elif kind != b"K":  # K is GNU's target of a link; the name may follow
                if kind in (b"0", b"\0"):
                    _note(samples, long_name or _plain_name(header), (start, length))
                long_name = long_size = None
        return samples, False  # no end mark


def _note(samples: _Members, name: str, place: tuple[int, int]) -> None:
    folder, _, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if stem and dot:
        key = f"{folder}/{stem}" if folder else stem
        samples.setdefault(key, {}).setdefault(extension.lower(), place)


def _plain_name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" and header[262:263] == b"\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _number(field: bytes) -> int:
    """A size: octal text, or base 256 if the first bit is set (members of 8 GiB and more)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    text = field.rstrip(b" \0").strip()
    return int(text, 8) if text and re.fullmatch(rb"[0-7]+", text) else 0


def _checksum_holds(header: bytes) -> bool:
    stored = header[148:156].rstrip(b" \0").strip()
    return bool(re.fullmatch(rb"[0-7]+", stored)) and int(stored, 8) == sum(header) - sum(header[148:156]) + 8 * 32


def _pax_records(data: bytes) -> dict[str, str]:
    """The records of a pax header, "LENGTH KEY=VALUE\\n" each, up to the first damaged one."""
    records, at = {}, 0
    while at < len(data):
        blank = data.find(b" ", at, at + 20)
        if blank < 0 or not data[at:blank].isdigit():
            break
        end = at + int(data[at:blank])
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or end <= blank:
            break
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        at = end
    return records


def key_of(index: Index, sample: int) -> str:
    """Shard and key of a sample, for messages: at most 100 characters, without control characters."""
    key = "".join(char if char.isprintable() else "\ufffd" for char in index.keys[sample].as_py()[:100])
    return f"{os.path.basename(index.paths[int(index.shard[sample])])}:{key}"
