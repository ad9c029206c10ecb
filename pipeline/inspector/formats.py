"""Writers of the formats of `inspect_shards export`: image folder, Parquet with images, WebDataset, COCO, csv.

    with contextlib.closing(FORMATS["folder"](path, schema)) as writer:
        writer.add(row, image)
        writer.finish()

A writer creates its path. The caller removes it if the export fails.
"""

from __future__ import annotations

import abc
import csv
import io
import json
import os
import re
import warnings
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.dataset.tars import TarWriter, header, padding
from pipeline.engine.cli import UsageError

PLAIN_KEY = re.compile(r"[0-9A-Za-z_-]{1,120}")  # a key that may be a file name everywhere
LANCE_BYTES = 64 << 20  # of the images that are written at once
GROUP_ROWS = 100  # of a row group with images, as the Hugging Face Hub recommends
TAR_ROWS = 10_000  # pairs of a tar
FILE_BYTES = 500 * 1000 * 1000  # of the images in a Parquet file, about
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
SUFFIXES = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"), (b"BM", "bmp"))


class Writer(abc.ABC):
    """Writes pairs in one format.

    Attributes:
        images: True if it writes images.
    """

    images = True

    @abc.abstractmethod
    def __init__(self, path: str, schema: pa.Schema) -> None:
        """Creates the path, for rows of a schema."""

    @abc.abstractmethod
    def add(self, row: dict[str, Any], image: bytes) -> None:
        """Writes a row, and its image where the format has images."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Writes what stands at the end."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes all files, finished or not."""


def suffix_of(image: bytes) -> str:
    """The ending of a file name for an image, by its first bytes."""
    return next((name for mark, name in SUFFIXES if image.startswith(mark)), "img")


def is_image(image: bytes) -> bool:
    """True if the bytes begin as those of an image. They need not be sound."""
    if suffix_of(image) != "img":
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(image)).close()
    except Exception:  # Pillow raises many kinds for bytes that are no image
        return False
    return True


class _Images:
    """Image files in folders of at most a few thousand: images/ab/abcdef.jpg."""

    def __init__(self, root: str) -> None:
        self._root, self._count = root, 0

    def write(self, key: str, image: bytes) -> str:
        """Writes an image; returns its path below the root. A key that cannot be a name is replaced by a number."""
        name = key if PLAIN_KEY.fullmatch(key) else f"{self._count:012d}"
        folder = f"images/{name[:2].lower()}" if name == key else f"images/{name[:9]}"
        self._count += 1
        os.makedirs(os.path.join(self._root, folder), exist_ok=True)
        path = f"{folder}/{name}.{suffix_of(image)}"
        with open(os.path.join(self._root, path), "xb") as file:
            file.write(image)
        return path


class LanceWriter(Writer):
    """A Lance dataset whose column `image` holds the bytes. It needs the package pylance."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        try:
            import lance
        except ImportError:
            raise UsageError("--format lance needs the package pylance: pip install 'openwit[lance]'") from None
        self._lance, self._path = lance, path
        self._schema = pa.schema([pa.field("image", pa.large_binary()), *schema])
        self._rows: list[dict[str, Any]] = []
        self._bytes, self._mode = 0, "create"

    def add(self, row: dict[str, Any], image: bytes) -> None:
        self._rows.append({"image": image} | row)
        self._bytes += len(image)
        if self._bytes >= LANCE_BYTES:
            self._write()

    def _write(self) -> None:
        table = pa.Table.from_pylist(self._rows, self._schema)
        self._lance.write_dataset(table, self._path, mode=self._mode)
        self._rows, self._bytes, self._mode = [], 0, "append"

    def finish(self) -> None:
        if self._rows:
            self._write()

    def close(self) -> None:
        """Nothing is open: each write is whole."""


class FolderWriter(Writer):
    """An image folder with metadata.jsonl, as `load_dataset("imagefolder", data_dir=...)` reads it."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        os.makedirs(path)
        self._images = _Images(path)
        self._lines = open(os.path.join(path, "metadata.jsonl"), "w", encoding="utf-8")  # noqa: SIM115

    def add(self, row: dict[str, Any], image: bytes) -> None:
        name = self._images.write(row["key"], image)
        self._lines.write(json.dumps({"file_name": name} | row, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()


class HuggingFaceWriter(Writer):
    """Parquet files whose column `image` holds the bytes, in the form of Hugging Face's Image feature."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        os.makedirs(os.path.join(path, "data"))
        self._folder = os.path.join(path, "data")
        feature = {"info": {"features": {"image": {"_type": "Image"}}}}
        self._schema = pa.schema([pa.field("image", IMAGE), *schema], metadata={"huggingface": json.dumps(feature)})
        self._rows: list[dict[str, Any]] = []
        self._files, self._bytes = 0, 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any], image: bytes) -> None:
        self._rows.append({"image": {"bytes": image, "path": f"{row['key']}.{suffix_of(image)}"}} | row)
        self._bytes += len(image)
        if len(self._rows) >= GROUP_ROWS:
            self._write()
        if self._bytes >= FILE_BYTES:
            self._close()

    def _write(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._name(self._files), self._schema, write_page_checksum=True)
            self._files += 1
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def _close(self) -> None:
        if self._rows or not self._files:
            self._write()
        if self._writer is not None:
            self._writer.close()
        self._writer, self._bytes = None, 0

    def _name(self, number: int, count: int | None = None) -> str:
        return os.path.join(self._folder, f"train-{number:05d}{'' if count is None else f'-of-{count:05d}'}.parquet")

    def finish(self) -> None:
        self._close()
        for number in range(self._files):
            os.rename(self._name(number), self._name(number, self._files))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class CocoWriter(Writer):
    """COCO's form of captions: annotations.json and the images. Each further text of a pair is one more annotation."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        os.makedirs(path)
        self._path = path
        self._images = _Images(path)
        self._parts: list[IO[str]] = [
            open(f"{path}/{name}.part", "w+", encoding="utf-8") for name in ("images", "captions")
        ]
        self._counts = [0, 0]

    def add(self, row: dict[str, Any], image: bytes) -> None:
        number = self._counts[0] + 1
        entry = {"id": number, "file_name": self._images.write(row["key"], image), "key": row["key"]}
        entry |= {name: row[name] for name in ("width", "height") if row.get(name) is not None}
        entry |= {"coco_url": row["url"]} if row.get("url") else {}
        self._write(0, entry)
        for text in row.get("texts") or [row["text"]]:
            self._write(1, {"id": self._counts[1] + 1, "image_id": number, "caption": text})

    def _write(self, part: int, entry: dict[str, Any]) -> None:
        self._parts[part].write((",\n" if self._counts[part] else "") + json.dumps(entry, ensure_ascii=False))
        self._counts[part] += 1

    def finish(self) -> None:
        with open(f"{self._path}/annotations.json", "w", encoding="utf-8") as file:
            file.write('{"info": {"description": "OpenWIT image-text pairs"},\n"licenses": [],\n')
            for name, part, end in zip(("images", "annotations"), self._parts, (",\n", "}\n"), strict=True):
                file.write(f'"{name}": [\n')
                part.seek(0)
                while text := part.read(1 << 20):
                    file.write(text)
                file.write(f"\n]{end}")
        for part in self._parts:
            os.unlink(part.name)

    def close(self) -> None:
        for part in self._parts:
            part.close()


class WebDatasetWriter(Writer):
    """WebDataset tars, as clip_train and open_clip read them: KEY.jpg, KEY.json and KEY.txt of each pair."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        os.makedirs(path)
        self._path, self._count = path, 0
        self._file: IO[bytes] | None = None
        self._tar: TarWriter | None = None
        self._sizes: dict[str, int] = {}

    def add(self, row: dict[str, Any], image: bytes) -> None:
        if self._count % TAR_ROWS == 0:
            self._end()
            self._begin(f"{self._count // TAR_ROWS:05d}.tar")
        key = row["key"] if len(row["key"]) < 90 and PLAIN_KEY.fullmatch(row["key"]) else f"{self._count:012d}"
        text = json.dumps(row, ensure_ascii=False).encode()
        for kind, data in ((suffix_of(image), image), ("json", text), ("txt", (row["text"] or "").encode())):
            assert self._tar is not None
            self._tar.append(b"".join((header(f"{key}.{kind}".encode(), len(data)), data, padding(len(data)))))
        self._count += 1
        self._sizes[f"{(self._count - 1) // TAR_ROWS:05d}.tar"] = (self._count - 1) % TAR_ROWS + 1

    def _begin(self, name: str) -> None:
        self._file = open(os.path.join(self._path, name), "wb", buffering=0)  # noqa: SIM115
        self._tar = TarWriter(self._file)

    def _end(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self.close()

    def finish(self) -> None:
        self._end()
        with open(os.path.join(self._path, "sizes.json"), "w") as file:
            json.dump(self._sizes, file)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._tar = None


class CsvWriter(Writer):
    """One csv file (RFC 4180, UTF-8) without images. Lists are written as JSON; a null is an empty cell."""

    images = False

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self._file = open(path, "x", encoding="utf-8", newline="")  # noqa: SIM115
        self._names = schema.names
        self._csv = csv.writer(self._file)
        self._csv.writerow(self._names)

    def add(self, row: dict[str, Any], image: bytes) -> None:
        cells = (row[name] for name in self._names)
        self._csv.writerow([json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell for cell in cells])

    def finish(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


FORMATS: dict[str, type[Writer]] = {
    "folder": FolderWriter,
    "hf": HuggingFaceWriter,
    "lance": LanceWriter,
    "webdataset": WebDatasetWriter,
    "coco": CocoWriter,
    "csv": CsvWriter,
}
