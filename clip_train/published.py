"""Reads the index of a folder that the pipeline published: its manifest and its metadata.

Shards that do not agree with the manifest are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_train import remote
from clip_train.errors import InputMissing, TrainError
from clip_train.index import Index, check_nulls, check_places

REMEDY = "publish the shards again, or point --data at a whole copy"
_COLUMNS = (
    "key", "shard", "jpg_offset", "jpg_size", "txt_offset", "txt_size", "sha256", "keep_probability",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Listed:
    """A file that the manifest lists."""

    path: str  # within the folder
    size: int
    sha256: str | None


def read_published(folder: Path) -> Index:
    listed = read_manifest((folder / "manifest.json").read_bytes(), str(folder / "manifest.json"))
    for file in listed:
        path = folder / file.path
        if not path.exists():
            raise InputMissing(f"{path} is missing, the manifest lists it; {REMEDY}")
        if path.stat().st_size != file.size:
            raise TrainError(f"{path} has {path.stat().st_size} bytes, the manifest says {file.size}; {REMEDY}")
    metadata = [(str(folder / file.path), folder / file.path) for file in listed if is_metadata(file)]
    table = read_metadata(metadata, str(folder))
    return index_from_table(table, str(folder), {file.path: file for file in listed})


def read_manifest(data: bytes, name: str) -> list[Listed]:
    """The shards and the metadata that a manifest lists, sorted by path."""
    try:
        listed = [
            Listed(str(entry["path"]), int(entry["bytes"]), str(entry["sha256"]) if "sha256" in entry else None)
            for entry in json.loads(data)["files"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainError(f"{name} is not a manifest ({error}); {REMEDY}") from error
    for file in listed:
        if ".." in file.path.split("/") or file.size < 0:
            raise TrainError(f"{name} lists an impossible file ({file.path[:100]!r}, {file.size} bytes); {REMEDY}")
    wanted = [file for file in listed if file.path.startswith(("shards/", "metadata/"))]
    return sorted(wanted, key=lambda file: file.path)


def is_metadata(file: Listed) -> bool:
    return file.path.startswith("metadata/") and file.path.endswith(".parquet")


def read_metadata(files: Sequence[tuple[str, Path]], folder: str) -> pa.Table:
    """Reads the columns of the index. `files` are pairs of a name for messages and a path."""
    if not files:
        raise InputMissing(f"{folder}/metadata: no Parquet file; {REMEDY}")
    tables = []
    for name, path in files:
        try:
            tables.append(pq.read_table(path, columns=_wanted_columns(name, path), page_checksum_verification=True))
        except (pa.ArrowException, OSError) as error:
            raise TrainError(f"{name}: {error}; {REMEDY}") from error
    return pa.concat_tables(tables, promote_options="default")


def _wanted_columns(name: str, path: Path) -> list[str]:
    present = set(pq.read_schema(path).names)
    missing = [name for name in _COLUMNS[:6] if name not in present]
    if missing:
        raise TrainError(f"{name} has no column {missing[0]!r}: is this a folder that the pipeline published?")
    return [name for name in _COLUMNS if name in present]


def index_from_table(table: pa.Table, folder: str, listed: dict[str, Listed]) -> Index:
    """The index. TrainError for any table that does not fit the shards of the manifest."""
    try:
        check_nulls(table)
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
        index = dataclasses.replace(
            index, sizes=tuple(listed[path].size for path in paths), listed=_digest_of_list(listed.values())
        )
        check_places(index, index.sizes)
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        name = remote.public(folder)
        raise TrainError(f"{name}: the metadata does not fit the shards ({error}); {REMEDY}") from error
    return index


def _digest_of_list(listed: Iterable[Listed]) -> str:
    """The digest of the files of a manifest; "" where one has no sha256."""
    entries = [[file.path, file.size, file.sha256] for file in listed]
    if any(digest is None for _, _, digest in entries):
        return ""
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


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
