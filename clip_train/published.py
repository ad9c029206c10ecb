"""Reads the index of a folder that the pipeline published: its manifest and its metadata.

Shards that do not agree with the manifest are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_train.errors import InputMissing, TrainError
from clip_train.index import ConceptSource, Index
from clip_train.index_file import Table, Writer, kept_table

REMEDY = "publish the shards again, or point --data at a whole copy"
_OURS = {
    "jpg_offset": "image_offset", "jpg_size": "image_size", "txt_offset": "text_offset", "txt_size": "text_size",
}  # fmt: skip
_OPTIONAL = ("sha256", "keep_probability")
_SEVERAL = ("texts", "json_offset", "json_size")  # where a sample may have several texts
_COLUMNS = ("key", "shard", *_OURS, *_OPTIONAL)
Read = Callable[[str, Sequence[str]], pa.Table]  # a file of the folder, and the wanted columns


@dataclasses.dataclass(frozen=True)
class Listed:
    """A file that the manifest lists."""

    path: str  # within the folder
    size: int
    sha256: str | None


def open_published(folder: Path, folders: Sequence[Path]) -> Index:
    """The index of a published folder. Its file is kept in the first of `folders` that has it or can be written."""
    manifest = (folder / "manifest.json").read_bytes()
    listed = read_manifest(manifest, str(folder / "manifest.json"))
    for file in listed:
        path = folder / file.path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise InputMissing(f"{path} is missing, the manifest lists it; {REMEDY}") from None
        if size != file.size:
            raise TrainError(f"{path} has {size} bytes, the manifest says {file.size}; {REMEDY}")
    # a manifest without sha256 may stay the same where the metadata changes
    marks = [(folder / file.path).stat().st_mtime_ns for file in listed if is_metadata(file) and not file.sha256]

    def read(name: str, columns: Sequence[str]) -> pa.Table:
        return read_columns(folder / name, f"{folder}/{name}", columns)

    name = f"index-{hashlib.sha256(json.dumps(marks).encode() + manifest).hexdigest()[:16]}"
    several = has_several_texts(manifest)
    table = kept_table(folders, name, lambda file: write_index(file, read, str(folder), listed, several=several))
    paths = tuple(f"{folder}/{path}" for path in table.names)
    source = ConceptSource(folders, name, lambda: read_concepts(table, read, str(folder), listed))
    return Index(paths, table, read_keys=lambda path: read(path, ["key"])["key"].to_pylist(), concepts=source)


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


def has_several_texts(manifest: bytes) -> bool:
    """True if a sample of the set may have several texts: it was built with --captions."""
    options = json.loads(manifest).get("options")
    captions = options.get("captions", 1) if isinstance(options, dict) else 1
    return isinstance(captions, int) and captions > 1


def is_metadata(file: Listed) -> bool:
    return file.path.startswith("metadata/") and file.path.endswith(".parquet")


def write_index(
    file: IO[bytes], read: Read, folder: str, listed: Sequence[Listed], *, several: bool = False
) -> None:  # fmt: skip
    """Writes the index of a published folder, one file of metadata after the other.

    Args:
        file: for the index.
        read: gives the wanted columns of a file of the folder, as far as it has them.
        folder: its name for messages.
        listed: by the manifest.
        several: the index says where all texts of a sample are.

    Raises:
        InputMissing: there is no metadata.
        TrainError: a table that is damaged or does not fit the shards.
    """
    names = [entry.path for entry in listed if is_metadata(entry)]
    wanted = (*_COLUMNS, *_SEVERAL) if several else _COLUMNS
    if not names:
        raise InputMissing(f"{folder}/metadata: no Parquet file; {REMEDY}")
    try:
        try:
            _write_tables(file, ((name, read(name, wanted)) for name in names), listed, keys=False)
        except _Scattered:
            file.seek(0)
            file.truncate()
            whole = _grouped(pa.concat_tables([read(name, wanted) for name in names]))
            _write_tables(file, [("", whole)], listed, keys=True)
    except (ValueError, TypeError, KeyError, OverflowError, pa.ArrowException) as error:
        raise TrainError(f"{folder}: the metadata does not fit the shards ({error}); {REMEDY}") from error


class _Scattered(Exception):
    """The samples of a shard are not neighbours."""


def _write_tables(
    file: IO[bytes], tables: Iterable[tuple[str, pa.Table]], listed: Sequence[Listed], *, keys: bool
) -> None:  # fmt: skip
    tars, sizes = _tars_by_name(entry.path for entry in listed), {entry.path: entry.size for entry in listed}
    paths: dict[str, None] = {}  # of the shards, in their order
    tables = iter(tables)
    first = next(tables)
    has = first[1].column_names
    with Writer(file, columns=_words(has), keys=keys) as writer:
        for name, table in itertools.chain([first], tables):
            if table.column_names != has:
                raise ValueError(f"{name} has the columns {', '.join(table.column_names)}, not {', '.join(has)}")
            if not keys:
                writer.begin_metadata(name)
            for shard, rows in _runs_of_shards(table):
                path = _shard_path(shard, tars)
                if path in paths:
                    raise _Scattered
                paths[path] = None
                writer.add_shard(_columns(rows), rows["key"].to_pylist() if keys else (), size=sizes[path])
        writer.finish(list(paths), listed=_digest_of_list(listed))


def _words(has: Sequence[str]) -> list[str]:
    words = ["image_block", "image_size", "text_block", "text_size"]
    words += ["keep"] if "keep_probability" in has else []
    words += ["json_block", "json_size", "captions"] if "texts" in has else []
    return words + (["sha256", "sha256+"] if "sha256" in has else [])


def _columns(rows: pa.Table) -> dict[str, np.ndarray]:
    columns = {ours: rows[theirs].to_numpy() for theirs, ours in _OURS.items()}
    if "keep_probability" in rows.column_names:
        columns["keep_probability"] = rows["keep_probability"].to_numpy()
    if "texts" in rows.column_names:
        columns |= {name: rows[name].to_numpy() for name in _SEVERAL[1:]}
        columns["captions"] = pc.list_value_length(rows["texts"]).to_numpy()
        if len(rows) and columns["captions"].min() < 1:
            raise ValueError("a sample has no text")
    if "sha256" in rows.column_names:
        columns["sha256"] = _digests(rows["sha256"])
    return columns


def _runs_of_shards(table: pa.Table) -> Iterator[tuple[int | str, pa.Table]]:
    """The rows of each shard, as far as they are neighbours."""
    if not len(table):
        return
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"{name} has nulls")
    encoded = table["shard"].combine_chunks()
    encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    numbers = encoded.indices.to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    for start, end in itertools.pairwise([*starts, len(numbers)]):
        yield encoded.dictionary[int(numbers[start])].as_py(), table.slice(start, end - start)


def _grouped(table: pa.Table) -> pa.Table:
    """The rows of each shard together, the shards in the order of their first row."""
    shards = table["shard"].combine_chunks()
    numbers = pa.array(shards.to_pylist()).dictionary_encode().indices.to_numpy()
    return table.take(pa.array(np.argsort(numbers, kind="stable")))


def read_concepts(
    table: Table, read: Read, folder: str, listed: Sequence[Listed]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The queries of the samples, in the order of the index, and how many each sample has, part by part."""
    names = [entry.path for entry in listed if is_metadata(entry)]
    if table.has_keys:  # the index has grouped the rows
        parts = iter([_grouped(pa.concat_tables([read(name, ["shard", "query_ids"]) for name in names]))])
    else:
        parts = (read(name, ["query_ids"]) for name in names)
    try:
        for rows in parts:
            if rows["query_ids"].null_count:
                raise ValueError("query_ids has nulls")
            lists = rows["query_ids"].combine_chunks().cast(pa.list_(pa.int32()))
            yield lists.flatten().to_numpy(zero_copy_only=False), np.diff(lists.offsets.to_numpy())
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise TrainError(f"{folder}: the metadata has no lists of queries ({error}); {REMEDY}") from error


def read_columns(path: Path, name: str, columns: Sequence[str]) -> pa.Table:
    """The columns of a metadata file, as far as it has them. TrainError names it where it cannot be read."""
    try:
        present = set(pq.read_schema(path).names)
        missing = [column for column in columns if column not in present and column not in _OPTIONAL]
        if missing:
            raise TrainError(f"{name} has no column {missing[0]!r}: is this a folder that the pipeline published?")
        wanted = [column for column in columns if column in present]
        return pq.read_table(path, columns=wanted, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise TrainError(f"{name}: {error}; {REMEDY}") from error


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
    """(n, 32) bytes from a column of digests. The column has bytes or hexadecimal text."""
    values = column.to_pylist()
    if {len(value) for value in values} - {64 if isinstance(values[0], str) else 32}:
        raise ValueError("a sha256 has another length")
    raw = bytes.fromhex("".join(values)) if isinstance(values[0], str) else b"".join(values)
    return np.frombuffer(raw, np.uint8).reshape(len(values), 32)
