"""The published folder: its files, the writer of one shard, and the manifest with the sha256 of every file.

    shards/00000.tar        <key>.jpg, <key>.json, <key>.txt of each sample, keys ascending; see ranges.py
    shards/sizes.json       {"00000.tar": samples} of the shards that exist; open_clip reads it
    metadata/00000.parquet  METADATA: one row for each sample, in the order of the tar, with the place of each member
    rejected/*.parquet      the dropped rows, or a sample of them, with stage and reason
    README.md, croissant.json, report/index.html, queries.parquet
    manifest.json           written last: the sha256 of all these files, the ledger, the options

The key of a sample is its uid in hexadecimal. Every file depends on the rows and images alone. sample_json.py describes
the JSON of a sample. Lists of ids may be empty, so they are in the metadata only. Values that depend on other rows
(`keep_probability`, `kept_by`) are in the metadata only, too: a shard with the same rows keeps its tar.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.dataset import tars
from pipeline.dataset.ranges import LEAST_DIGITS, Ranges
from pipeline.dataset.sample_json import hex_strings, join, joined_sizes, json_pieces
from pipeline.engine import storage

FORMAT = 5  # raised when the members or columns change
# Formats that `verify` knows. 1: shards numbered consecutively, keep_probability in the JSON too.
READ = (1, 2, 3, 4, 5)
# The columns that a format added to METADATA and to the JSON. An older set lacks them.
ADDED = {
    3: ("image_side", "aspect"),
    4: ("rights", "rights_protocol", "rights_consulted"),
    5: ("url_as_found", "texts"),
}

EXTENSIONS = ("jpg", "json", "txt")  # in the order of their names

METADATA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # name of the sample in the tar
        pa.field("uid", pa.string(), nullable=False),  # equal to key; under the name that DataComp's tools look for
        pa.field("url", pa.string(), nullable=False),
        pa.field("url_as_found", pa.string()),  # null where equal to url; with the text it gives the uid
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_as_found", pa.string()),  # null where equal to text
        pa.field("texts", pa.list_(pa.string()), nullable=False),  # text, and further ones; see --captions
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
        pa.field("rights", pa.string()),  # what the site and the image say of AI training: allowed, unstated
        pa.field("rights_protocol", pa.string()),  # the protocols that allow it, comma separated; null: none does
        pa.field("rights_consulted", pa.string()),  # the protocols that were asked (docs/rights.md)
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("original_format", pa.string()),
        pa.field("image_side", pa.int32()),  # the short side of the image as served
        pa.field("aspect", pa.float32()),  # its long side divided by its short side
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

# The keys of a sample's JSON.
CHANGING = {"keep_probability", "kept_by"}  # columns that depend on the rows of other shards
NOT_IN_JSON = {"query_ids", "shard", *(f"{e}_{what}" for e in EXTENSIONS for what in ("offset", "size")), *CHANGING}
IN_TAR = [name for name in METADATA.names if name not in NOT_IN_JSON]  # they decide the bytes of a tar
JSON_KEYS = tuple(sorted({"caption", *METADATA.names} - NOT_IN_JSON))


class ShardError(ValueError):
    """The rows or images cannot become a shard."""


class ImageChanged(ShardError):
    """The bytes of an image on the disk have changed since the fetch. `row` is the place of the image in the rows."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A published file as the manifest lists it."""

    path: str  # below the folder, with slashes
    bytes: int
    rows: int  # samples in a tar, rows in a table, otherwise 0
    sha256: str


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """A written shard: its tar and its metadata."""

    number: int
    rows: int
    files: tuple[FileEntry, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ShardInfo:
        """The inverse of dataclasses.asdict. `data` may come from JSON."""
        return cls(data["number"], data["rows"], tuple(FileEntry(**entry) for entry in data["files"]))


def json_keys(form: Any) -> tuple[str, ...]:
    """The keys of a sample's JSON in a set of a format."""
    keys = {"caption", *columns_of(form)} - NOT_IN_JSON
    return tuple(sorted(keys | {"keep_probability"} if form == 1 else keys))


def columns_of(form: Any) -> tuple[str, ...]:
    """The columns of the metadata of a set of a format."""
    later = {name for number, names in ADDED.items() if isinstance(form, int) and form < number for name in names}
    return tuple(name for name in METADATA.names if name not in later)


def tar_path(number: int, digits: int = LEAST_DIGITS) -> str:
    """shards/00007.tar"""
    return f"shards/{number:0{digits}d}.tar"


def metadata_path(number: int, digits: int = LEAST_DIGITS) -> str:
    """metadata/00007.parquet"""
    return f"metadata/{number:0{digits}d}.parquet"


# ---------------------------------------------------------------------------------------------------- one shard

ROWS_AT_ONCE = 4096  # rows whose headers, JSON and texts are in memory at the same time


def write_shard(
    folder: str,
    number: int,
    rows: pa.Table,
    read_image: Callable[[int, memoryview], None],
    *,
    ranges: Ranges,
    more: pa.Table | None = None,
) -> tuple[ShardInfo, pa.Table]:
    """Writes one tar and its metadata, each whole or not at all. Equal rows and images give equal bytes.

    The sha256 of an image comes from the fetch (`stored_sha256`). The bytes that are read here are checked against
    `stored_xxh3`: this takes a thirtieth of the time. The sha256 of the tar is computed while it is written.

    Args:
        folder: the published folder.
        number: of the shard. It is the number of its range.
        rows: FETCHED rows that succeeded, through `schema.readable`, sorted by uid; at least one.
        read_image: (position in `rows`, place of `image_bytes` bytes) -> fills the place with the stored JPEG.
        ranges: of the set.
        more: further columns of the metadata, a row for each of `rows`; their names are not those of METADATA.

    Returns:
        The entry of the shard, and its metadata.

    Raises:
        ShardError: a uid comes twice, is out of order, or belongs to another range.
        ImageChanged: an image differs from the fetched one.
    """
    if rows.num_rows == 0:
        raise ShardError(f"shard {number} would be empty")
    table = with_columns(describe(rows, number), more)
    return _write(folder, number, table, ReadImages(read_image, rows["stored_xxh3"].to_pylist()), ranges=ranges)


def with_columns(table: pa.Table, more: pa.Table | None) -> pa.Table:
    """A table with the columns of another one behind its own."""
    for name in () if more is None else more.column_names:
        table = table.append_column(name, more[name])  # type: ignore[index]
    return table


def keep_shard(
    folder: str, number: int, rows: pa.Table, before: pa.Table, *, ranges: Ranges, more: pa.Table | None = None
) -> tuple[FileEntry, pa.Table] | None:
    """Writes the metadata of a shard whose tar would not change; None: the tar changes.

    Args:
        folder: where the metadata goes.
        number, rows, ranges, more: as in `write_shard`.
        before: the METADATA of a tar.

    Returns:
        The entry of the metadata, and the METADATA with the places in that tar.
    """
    if rows.num_rows != before.num_rows or not set(METADATA.names) <= set(before.column_names):
        return None
    table, there = describe(rows, number), before.select(METADATA.names).cast(METADATA)
    if not table.select(IN_TAR).equals(there.select(IN_TAR)):
        return None
    for name in (f"{extension}_{what}" for extension in EXTENSIONS for what in ("offset", "size")):
        table = table.set_column(METADATA.get_field_index(name), METADATA.field(name), there[name])
    table, path = with_columns(table, more), metadata_path(number, ranges.digits)
    storage.write_published(os.path.join(folder, path), table)
    return entry_of(folder, path, rows=len(table)), table


def rewrite_shard(
    folder: str, number: int, rows: pa.Table, read_image: Callable[[int, memoryview], None], *, ranges: Ranges
) -> tuple[ShardInfo, pa.Table]:
    """Writes a shard again with some of its rows, as `write_shard` would write these rows.

    Args:
        folder: where the files go.
        number: of the shard.
        rows: METADATA rows, at least one. Further columns stay in the metadata.
        read_image: as in `write_shard`.
        ranges: of the set.

    Raises:
        ShardError: the rows do not fit the shard.
        ImageChanged: an image has another sha256 than its row says.
    """
    known = set(METADATA.names)  # Parquet renames the values of lists: they get the names of METADATA again
    fields = [METADATA.field(field.name) if field.name in known else field for field in rows.schema]
    rows = rows.cast(pa.schema(fields)).combine_chunks()
    return _write(folder, number, rows, ReadImages(read_image, rows["sha256"].to_pylist()), ranges=ranges)


@dataclasses.dataclass(frozen=True)
class ReadImages:
    """Reads the images of a shard, and checks each of them.

    Attributes:
        read: (row, place) -> fills the place with the image.
        digests: of each row: the xxh3_64 of the image, or its sha256 in hexadecimal.
    """

    read: Callable[[int, memoryview], None]
    digests: Sequence[int | str]

    def __call__(self, row: int, place: memoryview) -> bool:
        """Fills the place. Returns True if the bytes have the digest."""
        self.read(row, place)
        digest = self.digests[row]
        if isinstance(digest, str):
            return hashlib.sha256(place).hexdigest() == digest
        return xxhash.xxh3_64_intdigest(place) == digest


def _write(
    folder: str, number: int, table: pa.Table, images: ReadImages, *, ranges: Ranges
) -> tuple[ShardInfo, pa.Table]:
    """Writes the METADATA rows of a shard and its tar. The places of the members are filled in."""
    _check_order(table["key"], number)
    _check_range(table["key"], number, ranges)
    placed = []
    tar_name, metadata_name = tar_path(number, ranges.digits), metadata_path(number, ranges.digits)
    path = os.path.join(folder, tar_name)
    with storage.writing(path, buffering=0) as file:
        tar = tars.TarWriter(file)
        first = 0
        for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
            members = frame(batch, tar.size)
            placed.append(members.rows)
            _write_samples(tar, members, first, images)
            first += len(batch)
        tar.close()
    table = pa.Table.from_batches(placed)
    storage.write_published(os.path.join(folder, metadata_name), table)
    tar_entry = FileEntry(tar_name, tar.size, len(table), tar.sha256())
    return ShardInfo(number, len(table), (tar_entry, entry_of(folder, metadata_name, rows=len(table)))), table


def _check_order(keys: pa.ChunkedArray, number: int) -> None:
    before, after = keys.slice(0, len(keys) - 1), keys.slice(1)
    wrong = pc.greater_equal(before, after)
    if pc.any(wrong).as_py():
        at = wrong.index(pa.scalar(True)).as_py()
        twice = before[at] == after[at]
        raise ShardError(f"shard {number}: the uid {after[at]} comes {'twice' if twice else 'out of order'}")


def _check_range(keys: pa.ChunkedArray, number: int, ranges: Ranges) -> None:
    """Checks the first and the last key only, since the keys ascend."""
    first, last = keys[0].as_py(), keys[-1].as_py()
    if first < ranges.first_key(number) or last >= ranges.first_key(number + 1):
        raise ShardError(f"shard {number}: a uid from {first} to {last} is not in its range (of {ranges.count})")


@dataclasses.dataclass(frozen=True)
class Frame:
    """The bytes around the images of consecutive samples in a tar.

    Attributes:
        rows: METADATA, with the places of the members.
        data: for each sample: the header of the image, (here comes the image,) padding, then JSON and text with their
            headers and padding.
        cuts: the places in `data` where the images are inserted.
    """

    rows: pa.RecordBatch
    data: memoryview
    cuts: list[int]


def frame(rows: pa.RecordBatch, start: int) -> Frame:
    """Lays out samples from byte `start` of a tar on. `jpg_size` must be known. Fills in all other places and sizes."""
    contents = {"jpg": [], "json": json_pieces(rows, JSON_KEYS), "txt": [rows["text"].cast(pa.binary())]}
    names = np.frombuffer("".join(rows["key"].to_pylist()).encode(), np.uint8).reshape(len(rows), -1)
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    pieces: list[pa.Array | bytes] = []
    at = np.zeros(len(rows), np.int64)  # from the first header of the sample
    for extension, content in contents.items():
        sizes = joined_sizes(content, len(rows)) if content else rows["jpg_size"].to_numpy().astype(np.int64)
        ending = np.frombuffer(f".{extension}".encode(), np.uint8)
        heads = tars.headers(np.hstack([names, np.broadcast_to(ending, (len(rows), len(ending)))]), sizes)
        padding = -sizes % tars.BLOCK
        pieces += [_binary(heads), *content, _zeros(padding)]
        columns[f"{extension}_offset"], columns[f"{extension}_size"] = at + tars.BLOCK, sizes
        at += tars.BLOCK + sizes + padding
    starts = start + np.cumsum(at) - at
    for extension in EXTENSIONS:
        columns[f"{extension}_offset"] = pa.array(starts + columns[f"{extension}_offset"])
        columns[f"{extension}_size"] = pa.array(columns[f"{extension}_size"].astype(np.int32))
    joined = join(pieces)
    starts = np.frombuffer(joined.buffers()[1], np.int32)[: len(rows) + 1]
    placed = pa.RecordBatch.from_arrays([columns[name] for name in rows.schema.names], schema=rows.schema)
    return Frame(
        placed, memoryview(joined.buffers()[2]).cast("B")[: int(starts[-1])], (starts[:-1] + tars.BLOCK).tolist()
    )


def _binary(blocks: np.ndarray) -> pa.Array:
    """Rows of bytes, (rows, width), as an Arrow array."""
    count, width = blocks.shape
    offsets = np.arange(0, count * width + 1, width, dtype=np.int32)
    return pa.BinaryArray.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(blocks)])


def _zeros(sizes: np.ndarray) -> pa.Array:
    """An Arrow array with `sizes` zeros in each row. Each size must be smaller than a block."""
    ends = sizes.astype(np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(ends, dtype=np.int32)])
    data = pa.py_buffer(bytes(int(offsets[-1])))
    return pa.BinaryArray.from_buffers(pa.binary(), len(sizes), [None, pa.py_buffer(offsets), data])


def _write_samples(tar: tars.TarWriter, members: Frame, first: int, images: ReadImages) -> None:
    """Appends samples to a tar. Reads each image into its place. `first` is the number of the first row."""
    data, at = members.data, 0
    sizes = members.rows["jpg_size"].to_pylist()
    for row, (cut, size) in enumerate(zip(members.cuts, sizes, strict=True)):
        place = tar.append(data[at:cut], size)
        at = cut
        if not images(first + row, place):
            key, shard = (members.rows[name][row].as_py() for name in ("key", "shard"))
            raise ImageChanged(
                first + row,
                f"shard {shard}: the image of {key} is not the one that was fetched: its bytes have changed",
            )
    tar.append(data[at:])


def describe(rows: pa.Table, number: int) -> pa.Table:
    """Rows of a shard as METADATA. The places of the members are 0, since the tar is not laid out yet."""
    given = dict(zip(rows.column_names, rows.columns, strict=True))
    given["key"] = given["uid"] = pa.chunked_array([hex_strings(rows["uid"])])
    for name, source in (("original_sha256", "image_sha256"), ("sha256", "stored_sha256")):
        given[name] = pa.chunked_array([hex_strings(rows[source])])
    given["jpg_size"] = rows["image_bytes"]
    sides = rows["original_width"], rows["original_height"]
    given["image_side"] = pc.min_element_wise(*sides, skip_nulls=False)
    long = pc.max_element_wise(*sides, skip_nulls=False).cast(pa.float64())
    given["aspect"] = pc.divide(long, given["image_side"].cast(pa.float64())).cast(pa.float32())
    given["shard"] = pa.chunked_array([pa.repeat(pa.scalar(number, pa.int32()), rows.num_rows)])
    columns = []
    for field in METADATA:
        column = given.get(field.name)
        if column is None:
            column = pa.chunked_array([pa.repeat(pa.scalar(0, field.type), rows.num_rows)])
        elif not field.nullable and column.null_count:
            raise ShardError(f"the column {field.name!r} has {column.null_count} rows without a value")
        columns.append(column.cast(field.type))
    if pc.any(pc.equal(pc.list_value_length(given["texts"]), 0)).as_py():
        raise ShardError(f"shard {number}: a sample has no text")
    return pa.table(columns, schema=METADATA).combine_chunks()


# ------------------------------------------------------------------------------------------------- the whole folder


def write_sizes(folder: str, infos: Iterable[ShardInfo]) -> FileEntry:
    """Writes shards/sizes.json."""
    sizes = {os.path.basename(info.files[0].path): info.rows for info in infos}
    path = "shards/sizes.json"
    storage.write_plain(os.path.join(folder, path), (json.dumps(sizes, sort_keys=True) + "\n").encode())
    return entry_of(folder, path)


def entry_of(folder: str, path: str, *, rows: int = 0) -> FileEntry:
    """The manifest's entry for an existing file."""
    with storage.reading(os.path.join(folder, path)) as file:
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
    """Writes manifest.json. It commits the folder: call this function after every other file is written.

    Args:
        folder: the published folder.
        entries: every published file.
        ledger: rows_in, rows_out and drops of each stage, in order.
        options: the options that decide the rows.
        versions: of the code. Like options and ledger, they are not part of the digest.
        more: further facts about the set.
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
    return storage.write_json(os.path.join(folder, "manifest.json"), manifest)


def digest_of_files(entries: Iterable[FileEntry]) -> str:
    """sha256 over the lines `<sha256>  <path>`, sorted by path. `sha256sum FILES | sha256sum` prints the same."""
    lines = sorted((entry.path, entry.sha256) for entry in entries)
    return hashlib.sha256("".join(f"{digest}  {path}\n" for path, digest in lines).encode()).hexdigest()


def digest_of_queries(queries: Sequence[str]) -> str:
    """The digest of a list without languages, as `queries.load` computes it: the sha256 of its sorted lines."""
    return hashlib.sha256("".join(f"{query}\n" for query in sorted(queries)).encode()).hexdigest()


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a published table and verifies its page checksums."""
    return storage.read_published(path, columns)


OWN_FOLDERS = ("shards", "metadata", "rejected", "report")  # contain published files only


def unlisted_files(folder: str, manifest: Mapping[str, Any]) -> list[str]:
    """The sorted paths of files in the published folders that the manifest does not list."""
    listed = {entry["path"] for entry in manifest["files"]}
    paths = (path for top in OWN_FOLDERS for path in storage.walk(os.path.join(folder, top)))
    return sorted({os.path.relpath(path, folder).replace(os.sep, "/") for path in paths} - listed)


def remove_stale_shards(folder: str, manifest: Mapping[str, Any]) -> list[str]:
    """Removes files of an earlier publication in the same folder. Returns their paths."""
    gone = unlisted_files(folder, manifest)
    for path in gone:
        storage.remove(os.path.join(folder, path))
    return gone
