"""Evaluation images: finds them in folders, tars and tables, and hashes them as the fetch hashes pictures.

--decontaminate cifar10=TEST imagenet.tar flowers.parquet
    a folder     its image files, tars and tables, also in folders below; the name of an image is its path there
    a tar        its members that are images; the name is the member's
    a table      Parquet with a column of images (bytes, or Hugging Face's struct of bytes and path); the name is
                 the path in the struct, or the value of a column key, uid, id or file_name, or the row's number

HashImages: evaluation/00007.hashes     set, image, sha256 of the file, hashes of the picture and its mirror image
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine import checks, storage
from pipeline.engine.cli import MissingInput, UsageError
from pipeline.engine.options import show
from pipeline.engine.work import StepFolder, digest_of
from pipeline.fetching import images
from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.schema import FETCHED
from pipeline.text import rights

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
TARS, TABLES = (".tar", ".tar.gz", ".tgz"), (".parquet",)
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
NAME_COLUMNS = ("key", "uid", "id", "file_name", "filename", "path")
FILES_A_UNIT = 500
BYTES_A_UNIT = 32 << 20  # of a tar: several units read the same tar, and each decodes its share
# As the fetch decodes pictures, but for what it refuses: an evaluation image may have any shape.
DECODING = FetchOptions(min_side=1, max_aspect=1e9, max_pixels=200_000_000, ignore_rights=tuple(rights.PROTOCOLS))

HASHED = pa.schema(
    [
        pa.field("set", pa.string(), False),
        pa.field("image", pa.string(), False),
        pa.field("sha256", pa.binary(32), False),  # of the file
        pa.field("phash", pa.uint64(), False),
        *(FETCHED.field(name).with_nullable(False) for name in ("colours", "shades", "grain")),
        pa.field("mirrored", pa.uint64()),  # phash of the mirror image; null: not looked for
    ]
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A unit of work: some image files of a folder, or a share of a tar or table.

    Attributes:
        set: the name of the evaluation set.
        kind: files, tar or table.
        paths: absolute.
        names: of the images, for files.
        share, shares: the unit takes image `share`, `share + shares`, ... of a tar or table.
    """

    set: str
    kind: str
    paths: tuple[str, ...]
    names: tuple[str, ...] = ()
    share: int = 0
    shares: int = 1

    def read(self) -> Iterator[tuple[str, bytes]]:
        """(name, bytes of the file) of each image."""
        if self.kind == "files":
            for name, path in zip(self.names, self.paths, strict=True):
                yield name, storage.read(path)
            return
        found = members(self.paths[0]) if self.kind == "tar" else _cells(self.paths[0])
        for name, read in itertools.islice(found, self.share, None, self.shares):
            data = read()
            if data is not None:
                yield name, data


@dataclasses.dataclass(frozen=True)
class Found:
    """What the values of --decontaminate name.

    Attributes:
        pieces: all units of work.
        identity: set, name and bytes of each file. It stands for the images in a fingerprint.
    """

    pieces: tuple[Piece, ...]
    identity: tuple[tuple[str, str, int], ...]

    @property
    def sets(self) -> list[str]:
        """The names of the sets, in the order of the option."""
        return list(dict.fromkeys(piece.set for piece in self.pieces))

    def digest(self, *sets: str) -> str:
        """Stands for the images of some sets, or of all, in a fingerprint and in a manifest."""
        return digest_of([list(item) for item in self.identity if not sets or item[0] in sets])


def split_name(value: str) -> tuple[str, str]:
    """[NAME=]PATH -> (name, path). Without a name it is the last part of the path, without its ending."""
    name, equals, path = value.partition("=")
    if equals and name and "/" not in name and not os.path.exists(value):
        return name, path
    last = os.path.basename(storage.absolute(value))
    ending = next((one for one in (*TARS, *TABLES) if last.lower().endswith(one)), "")
    return (last[: -len(ending)] if ending else last) or "root", value


def check_source(value: str) -> None:
    """Refuses a value of --decontaminate that is no folder, tar or table.

    Raises:
        UsageError, MissingInput: the message says what is allowed.
    """
    _, path = split_name(value)
    failures = checks.store_failures() if checks.is_object(path) else contextlib.nullcontext()
    with failures:
        if not storage.exists(path):
            raise MissingInput("no such file or folder")
        is_folder = storage.is_folder(path)
    if not is_folder and not path.lower().endswith((*TARS, *TABLES)):
        raise UsageError("must be a folder, a .tar or a .parquet file, or NAME=PATH")


@functools.lru_cache(maxsize=2)
def find(values: tuple[str, ...]) -> Found:
    """Looks up evaluation images. Only names and sizes are read, and the heads of tars and tables.

    Raises:
        UsageError: two sets have one name, or a value holds no image.
    """
    pieces: list[Piece] = []
    identity: list[tuple[str, str, int]] = []
    known: dict[str, str] = {}
    for value in values:
        name, path = split_name(value)
        if name in known:
            raise UsageError(
                f"--decontaminate {show(value)}: the set {show(name)} is there already ({show(known[name])}): name one "
                "of them, as NAME=PATH"
            )
        known[name] = value
        try:
            found, sizes = _of_path(name, storage.absolute(path))
        except (tarfile.TarError, pa.ArrowException, OSError, EOFError) as error:
            raise UsageError(f"--decontaminate {show(value)}: cannot be read ({show(str(error))})") from None
        if not found:
            what = "image, tar or table of images" if storage.is_folder(path) else "image"
            raise UsageError(f"--decontaminate {show(value)}: holds no {what} ({', '.join(SUFFIXES)})")
        pieces += found
        identity += [(name, *size) for size in sizes]
    return Found(tuple(pieces), tuple(sorted(identity)))


def described(values: Sequence[str]) -> list[dict[str, str]]:
    """The evaluation images as the manifest of a set shows them: their sets, and digests of names and sizes."""
    found = find(tuple(values))
    return [{"name": name, "digest": found.digest(name)} for name, _ in map(split_name, values)]


def _of_path(name: str, path: str) -> tuple[list[Piece], list[tuple[str, int]]]:
    if not storage.is_folder(path):
        return _of_file(name, path, explicit=True), [(os.path.basename(path), storage.size(path))]
    files, pieces, sizes = [], [], []
    for full, size in storage.sizes(path):
        relative, ending = os.path.relpath(full, path).replace(os.sep, "/"), full.lower()
        if not ending.endswith((*SUFFIXES, *TARS, *TABLES)):
            continue
        found = [] if ending.endswith(SUFFIXES) else _of_file(name, full, explicit=False)
        if ending.endswith(SUFFIXES):
            files.append((relative, full))
        elif not found:
            continue
        pieces += found
        sizes.append((relative, size))
    for start in range(0, len(files), FILES_A_UNIT):
        names, paths = zip(*files[start : start + FILES_A_UNIT], strict=True)
        pieces.append(Piece(name, "files", paths, names))
    return pieces, sizes


def _of_file(name: str, path: str, *, explicit: bool) -> list[Piece]:
    """The pieces of a tar or a table; none if it has no image."""
    if path.lower().endswith(TABLES):
        if image_column(pq.read_schema(storage.here(path))) is None:
            if explicit:
                known = ", ".join(IMAGE_COLUMNS)
                raise UsageError(f"--decontaminate {show(path)}: has no column of images ({known})")
            return []
        shares = max(1, -(-storage.size(path) // BYTES_A_UNIT)) if pq.read_metadata(storage.here(path)).num_rows else 0
        return [Piece(name, "table", (path,), share=share, shares=shares) for share in range(shares)]
    if next(members(path), None) is None:
        return []
    shares = max(1, -(-storage.size(path) // BYTES_A_UNIT)) if path.lower().endswith(".tar") else 1
    return [Piece(name, "tar", (path,), share=share, shares=shares) for share in range(shares)]


def members(path: str) -> Iterator[tuple[str, Any]]:
    """(name, a function that reads it) of each image in a tar."""
    with tarfile.open(storage.here(path), "r:*") as tar:
        for member in tar:
            if member.isfile() and member.name.lower().endswith(SUFFIXES):
                yield key_of(member.name), functools.partial(_member, tar, member)


def key_of(name: str) -> str:
    """The key of a member of a tar: its name up to the first dot of its last part, as WebDataset has it."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    return folder + slash + (last.split(".")[0] or last)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def image_column(schema: pa.Schema) -> str | None:
    """The column of a table that holds images."""
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
    return None


def _cells(path: str) -> Iterator[tuple[str, Any]]:
    """(name, a function that reads it) of each row of a table."""
    with pq.ParquetFile(storage.here(path)) as file:
        column = image_column(file.schema_arrow)
        named = [name for name in NAME_COLUMNS if name in file.schema_arrow.names]
        row = 0
        for batch in file.iter_batches(batch_size=64, columns=[column, *named[:1]], use_threads=False):
            for place, cell in enumerate(batch[column]):
                name = str(row) if not named else str(batch[named[0]][place].as_py())
                if pa.types.is_struct(batch[column].type):
                    has_path = batch[column].type.get_field_index("path") >= 0
                    name = (has_path and cell.as_py() and cell["path"].as_py()) or name
                yield name, functools.partial(_bytes, cell)
                row += 1


def _bytes(cell: pa.Scalar) -> bytes | None:
    value = cell.as_py()
    return value.get("bytes") if isinstance(value, dict) else value


# ------------------------------------------------------------------------------------------------------------ hashing


@dataclasses.dataclass(frozen=True)
class HashImages:
    """One unit for each piece: the hashes of its images. Images that cannot be decoded are counted."""

    folder: StepFolder
    pieces: tuple[Piece, ...]

    def units(self) -> int:
        return len(self.pieces)

    def run(self, unit: int) -> dict[str, Any]:
        piece, rows, unreadable = self.pieces[unit], [], 0
        for name, body in piece.read():
            try:
                picture = images.decode(body, DECODING)
            except Failure:
                unreadable += 1
                continue
            looks = picture.phash, picture.colours, picture.shades, picture.grain
            rows.append((piece.set, name, hashlib.sha256(body).digest(), *looks, images.mirrored_phash(picture.jpeg)))
        columns = list(zip(*rows, strict=True)) or [()] * len(HASHED)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, HASHED, strict=True)]
        storage.write_table(self.folder.file(unit, "hashes"), pa.Table.from_arrays(arrays, schema=HASHED))
        return {"set": piece.set, "images": len(rows), "unreadable": unreadable}


def read_hashes(folder: StepFolder) -> pa.Table:
    """HASHED of all units, in order of set and image, so that no unit decides the order."""
    tables = [storage.read_table(folder.file(unit, "hashes")).cast(HASHED) for unit, _ in folder.manifests()]
    table = pa.concat_tables([HASHED.empty_table(), *tables])
    return table.sort_by([("set", "ascending"), ("image", "ascending"), ("sha256", "ascending")]).combine_chunks()


def counts(folder: StepFolder, sets: Sequence[str]) -> dict[str, dict[str, int]]:
    """Set -> the number of its images, and of those that cannot be decoded."""
    found: dict[str, dict[str, int]] = {name: {"images": 0, "unreadable": 0} for name in sets}
    for _, manifest in folder.manifests():
        for name in ("images", "unreadable"):
            found[manifest["set"]][name] += manifest[name]
    return found


def as_words(column: pa.Array) -> np.ndarray:
    """The first eight bytes of each digest."""
    data = np.frombuffer(column.buffers()[1] or b"", ">u8").reshape(-1, column.type.byte_width // 8)
    return data[column.offset : column.offset + len(column), 0].astype(np.uint64)
