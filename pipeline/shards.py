"""The published folder: what is in it, how one shard is written, and the manifest that vouches for the whole.

    shards/00000.tar        <key>.jpg, <key>.json, <key>.txt of each sample, keys ascending; numbers without a gap
    shards/sizes.json       {"00000.tar": samples}: what open_clip looks for
    metadata/00000.parquet  METADATA: a row a sample, in the order of the tar, with the place of each member in it
    rejected/*.parquet      what was dropped, or a sample of it, with stage and reason
    README.md, croissant.json, report/index.html, queries.parquet
    manifest.json           written last: the sha256 of all of these, the ledger, the options

The key of a sample is its uid in hexadecimal. Every file is a function of the rows and images alone. The JSON of a
sample has one fixed set of keys and no null, because Hugging Face datasets fixes its types from the first five samples;
lists, which may be empty, stand in the metadata only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import files
from pipeline.tars import TarWriter

FORMAT = 1  # raised when the members or columns change their meaning

EXTENSIONS = ("jpg", "json", "txt")  # in the order of their names

METADATA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # name of the sample in the tar
        pa.field("uid", pa.string(), nullable=False),  # equal to key; under the name that DataComp's tools look for
        pa.field("url", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_as_found", pa.string()),  # null where equal to text
        pa.field("page_url", pa.string(), nullable=False),
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_offset", pa.int64(), nullable=False),
        pa.field("text_source", pa.string(), nullable=False),
        pa.field("url_source", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("language_score", pa.float32()),
        pa.field("opt_out", pa.string()),
        pa.field("license", pa.string()),
        pa.field("query_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("keep_probability", pa.float32(), nullable=False),
        pa.field("kept_by", pa.list_(pa.int32()), nullable=False),
        pa.field("final_url", pa.string()),  # after redirects; null where equal to url
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("original_format", pa.string()),
        pa.field("original_sha256", pa.string()),  # of the bytes as served, hexadecimal
        pa.field("sha256", pa.string(), nullable=False),  # of the stored JPEG, hexadecimal
        pa.field("phash", pa.uint64()),
        pa.field("shard", pa.int32(), nullable=False),
        *(
            field
            for extension in EXTENSIONS
            for field in (
                pa.field(f"{extension}_offset", pa.int64(), nullable=False),
                pa.field(f"{extension}_size", pa.int32(), nullable=False),
            )
        ),
    ]
)

# The keys of a sample's JSON. Where the metadata has null the JSON has "", 0 or 0.0. `caption` is the text, by the name
# that img2dataset's readers look for; phash is hexadecimal there, as it would overflow a signed integer.
NOT_IN_JSON = {"query_ids", "kept_by", "shard", *(f"{e}_{what}" for e in EXTENSIONS for what in ("offset", "size"))}
JSON_KEYS = tuple(sorted({"caption", *METADATA.names} - NOT_IN_JSON))


class ShardError(ValueError):
    """Rows or images that cannot become a shard."""


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A published file as the manifest lists it."""

    path: str  # below the folder, with slashes
    bytes: int
    rows: int  # samples of a tar, rows of a table, else 0
    sha256: str


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """A shard that was written: its tar and its metadata."""

    number: int
    rows: int
    files: tuple[FileEntry, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ShardInfo:
        """The inverse of dataclasses.asdict, also after a way through JSON."""
        return cls(data["number"], data["rows"], tuple(FileEntry(**entry) for entry in data["files"]))


def tar_path(number: int) -> str:
    """shards/00007.tar"""
    return f"shards/{number:05d}.tar"


def metadata_path(number: int) -> str:
    """metadata/00007.parquet"""
    return f"metadata/{number:05d}.parquet"


# ---------------------------------------------------------------------------------------------------- one shard


def write_shard(folder: str, number: int, rows: pa.Table, read_image: Callable[[int], bytes]) -> ShardInfo:
    """Writes one tar and its metadata, each whole or not at all; equal rows and images give equal bytes.

    Args:
        folder: the published folder.
        number: of the shard.
        rows: FETCHED rows that succeeded, through `schema.readable`, sorted by uid; at least one.
        read_image: the stored JPEG of a row, by its position in `rows`.

    Raises:
        ShardError: a uid comes twice or out of order, or an image is no JPEG.
    """
    if rows.num_rows == 0:
        raise ShardError(f"shard {number} would be empty")
    table = describe(rows)
    keys = table["key"].to_pylist()
    for before, key in zip(keys, keys[1:], strict=False):
        if before >= key:
            raise ShardError(f"shard {number}: the uid {key} comes {'twice' if before == key else 'out of order'}")
    # The JSON names the digest of the image, so it is made sample by sample; its other values are prepared by column.
    values = json_values(table)
    at = JSON_KEYS.index("sha256")
    digests: list[str] = []
    places: list[list[int]] = [[] for _ in range(2 * len(EXTENSIONS))]
    path = os.path.join(folder, tar_path(number))
    with files.temporary(path) as name, open(name, "wb", buffering=0) as file:
        tar = TarWriter(file)
        for row, (key, text) in enumerate(zip(keys, table["text"].to_pylist(), strict=True)):
            image = read_image(row)
            if image[:2] != b"\xff\xd8":
                raise ShardError(f"shard {number}: the image of {key} is no JPEG")
            digests.append(hashlib.sha256(image).hexdigest())
            values[row][at] = digests[-1]
            members = (image, _json_bytes(values[row]), text.encode())
            for column, (extension, data) in enumerate(zip(EXTENSIONS, members, strict=True)):
                places[2 * column].append(tar.add(f"{key}.{extension}".encode(), data))
                places[2 * column + 1].append(len(data))
        tar.close()
    table = _set(table, "sha256", digests)
    table = _set(table, "shard", [number] * len(keys))
    for column, extension in enumerate(EXTENSIONS):
        table = _set(table, f"{extension}_offset", places[2 * column])
        table = _set(table, f"{extension}_size", places[2 * column + 1])
    files.write_table(os.path.join(folder, metadata_path(number)), table)
    entries = FileEntry(tar_path(number), tar.bytes, len(keys), tar.sha256()), entry_of(folder, metadata_path(number))
    return ShardInfo(number, len(keys), (entries[0], dataclasses.replace(entries[1], rows=len(keys))))


def describe(rows: pa.Table) -> pa.Table:
    """Rows as METADATA; what is known only when the tar is written (digest of the image, places) is empty still."""
    given = dict(zip(rows.column_names, rows.columns, strict=True))
    given["key"] = given["uid"] = pa.array([uid.hex() for uid in rows["uid"].to_pylist()], pa.string())
    original = rows["image_sha256"].to_pylist()
    given["original_sha256"] = pa.array([None if digest is None else digest.hex() for digest in original], pa.string())
    columns = []
    for field in METADATA:
        column = given.get(field.name)
        if column is None:
            default = "" if pa.types.is_string(field.type) else 0
            column = pa.repeat(pa.scalar(default, field.type), rows.num_rows)
        elif not field.nullable and column.null_count:
            raise ShardError(f"the column {field.name!r} has {column.null_count} rows without a value")
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=METADATA)


def json_values(table: pa.Table) -> list[list[Any]]:
    """The values of each row's JSON in the order of JSON_KEYS, nulls replaced."""
    columns = []
    for name in JSON_KEYS:
        column = table["text" if name == "caption" else name]
        if pa.types.is_floating(column.type):  # by way of text: 0.1, not the nearest float32 written as a double
            columns.append(column.cast(pa.string()).cast(pa.float64()).fill_null(0.0).to_pylist())
        elif name == "phash":
            columns.append([f"{value or 0:016x}" for value in column.to_pylist()])
        else:
            columns.append(pc.fill_null(column, "" if pa.types.is_string(column.type) else 0).to_pylist())
    return [list(row) for row in zip(*columns, strict=True)]


def sample_json(table: pa.Table) -> list[bytes]:
    """The JSON member of each row of METADATA."""
    return [_json_bytes(values) for values in json_values(table)]


def _json_bytes(values: list[Any]) -> bytes:
    return orjson.dumps(dict(zip(JSON_KEYS, values, strict=True)))


def _set(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = METADATA.get_field_index(name)
    return table.set_column(at, METADATA.field(at), pa.array(values, METADATA.field(at).type))


# ------------------------------------------------------------------------------------------------- the whole folder


def write_sizes(folder: str, infos: Iterable[ShardInfo]) -> FileEntry:
    """Writes shards/sizes.json."""
    sizes = {os.path.basename(tar_path(info.number)): info.rows for info in infos}
    path = "shards/sizes.json"
    files.write_bytes(os.path.join(folder, path), (json.dumps(sizes, sort_keys=True) + "\n").encode())
    return entry_of(folder, path)


def entry_of(folder: str, path: str, *, rows: int = 0) -> FileEntry:
    """The manifest's entry of a file that is there."""
    with open(os.path.join(folder, path), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(path, file.tell(), rows, digest)


def write_manifest(
    folder: str,
    entries: Iterable[FileEntry],
    *,
    ledger: list[dict[str, Any]],
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    **more: Any,
) -> dict[str, Any]:
    """Writes manifest.json, the commit of the folder: call it when every other file is there.

    Args:
        folder: the published folder.
        entries: every published file.
        ledger: rows_in, rows_out and drops of each stage, in order.
        options: what decided the rows.
        versions: of the code; like options and ledger, not part of the digest.
        more: further facts of the set.
    """
    listed = sorted(entries, key=lambda entry: entry.path)
    for before, entry in zip(listed, listed[1:], strict=False):
        if before.path == entry.path:
            raise ShardError(f"the file {entry.path} is listed twice")
    manifest = {
        "format": FORMAT,
        "digest": digest_of_files(listed),
        "rows": sum(entry.rows for entry in listed if entry.path.endswith(".tar")),
        "files": [dataclasses.asdict(entry) for entry in listed],
        "ledger": ledger,
        "options": dict(options),
        "versions": dict(versions),
        **more,
    }
    files.write_json(os.path.join(folder, "manifest.json"), manifest)
    return manifest


def digest_of_files(entries: Iterable[FileEntry]) -> str:
    """sha256 over the lines `<sha256>  <path>` in the order of the paths: what `sha256sum FILES | sha256sum` prints."""
    lines = sorted((entry.path, entry.sha256) for entry in entries)
    return hashlib.sha256("".join(f"{digest}  {path}\n" for path, digest in lines).encode()).hexdigest()


def digest_of_queries(queries: Sequence[str]) -> str:
    """The name of a list, as `queries.load` gives it: the sha256 of its sorted lines."""
    return hashlib.sha256("".join(f"{query}\n" for query in queries).encode()).hexdigest()


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A published table, its page checksums verified. (pq.read_table would import pandas if it is there: 0.2 s.)"""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=None if columns is None else list(columns), use_threads=False)


OWN_FOLDERS = ("shards", "metadata", "rejected", "report")  # hold published files and nothing else


def strangers(folder: str, manifest: Mapping[str, Any]) -> list[str]:
    """Files in the folders of the publication that the manifest does not list, sorted."""
    listed = {entry["path"] for entry in manifest["files"]}
    found = []
    for top in OWN_FOLDERS:
        for parent, _, names in os.walk(os.path.join(folder, top)):
            below = os.path.relpath(parent, folder).replace(os.sep, "/")
            found += [f"{below}/{name}" for name in names]
    return sorted(set(found) - listed)


def sweep(folder: str, manifest: Mapping[str, Any]) -> list[str]:
    """Removes what an earlier publication in the same folder left behind; returns the paths."""
    gone = strangers(folder, manifest)
    for path in gone:
        files.remove(os.path.join(folder, path))
    return gone
