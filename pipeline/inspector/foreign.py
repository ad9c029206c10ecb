"""Pairs that another tool has written: WebDataset tars, img2dataset's output, Parquet with images.

`open_foreign` tells what a path is by its files. Images and texts are read from where they lie; nothing is written.
An object of a store is read from its copy in the scratch folder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.errors import Damaged, NotFound
from pipeline.dataset.open_set import NO_QUERIES
from pipeline.engine import foreign_tars, storage
from pipeline.engine.foreign_tars import Contents, Place
from pipeline.inspector.pairs import KEY, Pairs

IMAGES = ("jpg", "jpeg", "png", "webp")  # members that are images, as clip_train takes them
TEXTS = ("text", "caption", "txt", "alt", "alt_text", "captions", "sentence")  # columns of texts, the best one first
URLS = ("url", "image_url", "src")
LARGEST_JSON = 1 << 22  # bytes
OF_JSON = {
    "url": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
}
OF_TARS = pa.schema(
    [
        *(KEY, pa.field("text", pa.string()), pa.field("caption_from", pa.string())),
        *(pa.field(name, kind) for name, kind in OF_JSON.items()),
        *(pa.field("shard", pa.int32()), pa.field("jpg_offset", pa.int64()), pa.field("jpg_size", pa.int64())),
    ]
)
HIDDEN = (".", "_tmp")  # begin the names of folders that are not looked into
ROWS_AT_ONCE = 1000  # of a Parquet file with images


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample of a tar. `text` is None where there is no caption, or one that is not UTF-8."""

    key: str
    members: dict[str, Place]
    text: str | None
    source: str | None  # of the text: txt or json
    facts: dict[str, Any]  # of the JSON
    bad_json: str  # why the JSON cannot be used; "": it can, or there is none

    @property
    def image(self) -> Place | None:
        """Where the image lies."""
        return next((self.members[kind] for kind in IMAGES if kind in self.members), None)


class TarPairs(Pairs):
    """WebDataset tars, among them those of img2dataset."""

    image_columns = ("shard", "jpg_offset", "jpg_size")

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.reports = _reports(self.paths)
        self.name = "img2dataset output" if self.reports else "WebDataset tars"
        self.schema, self.queries = OF_TARS, NO_QUERIES.empty_table()

    def contents(self, number: int) -> Contents:
        """What a tar holds."""
        return _contents(self.paths[number])

    def samples(self, number: int) -> Iterator[Sample]:
        """The samples of a tar, those without an image included."""
        with _mapped(self.paths[number]) as data:
            for key, members in self.contents(number).samples.items():
                facts, bad = _json(data, members.get("json"))
                text, source = _text(data, members.get("txt")), "txt"
                if text is None and "txt" not in members:
                    text = next((facts[name] for name in TEXTS if isinstance(facts.get(name), str)), None)
                    source = "json"
                yield Sample(key, members, text, source if text is not None else None, facts, bad)

    def tables(self, columns: Sequence[str], *, shard: int | None = None) -> Iterator[pa.Table]:
        if shard is not None and not 0 <= shard < len(self.paths):
            raise NotFound(f"there is no shard {shard}: there are {len(self.paths)}")
        for number in range(len(self.paths)) if shard is None else [shard]:
            rows = [_row(number, sample) for sample in self.samples(number) if sample.image is not None]
            yield pa.Table.from_pylist(rows, self.schema).select(list(columns))

    def image(self, row: Mapping[str, Any]) -> bytes:
        with _mapped(self.paths[row["shard"]]) as data:
            return bytes(data[row["jpg_offset"] : row["jpg_offset"] + row["jpg_size"]])


def _row(number: int, sample: Sample) -> dict[str, Any]:
    offset, size = sample.image or (0, 0)
    facts = {name: sample.facts.get(name) for name in OF_JSON}
    kinds = {name: str if kind == pa.string() else int for name, kind in OF_JSON.items()}
    facts = {name: value if type(value) is kinds[name] and _fits(value) else None for name, value in facts.items()}
    row = {"key": sample.key, "text": sample.text or "", "caption_from": sample.source, "shard": number}
    return row | facts | {"jpg_offset": offset, "jpg_size": size}


def _fits(value: str | int) -> bool:
    return isinstance(value, str) or 0 <= value < 1 << 31


def _text(data: Any, place: Place | None) -> str | None:
    try:
        return None if place is None else bytes(data[place[0] : place[0] + place[1]]).decode()
    except UnicodeDecodeError:
        return None


def _json(data: Any, place: Place | None) -> tuple[dict[str, Any], str]:
    """(the JSON of a sample, why it cannot be used); {} where there is none, or where it cannot be used."""
    if place is None:
        return {}, ""
    if place[1] > LARGEST_JSON:
        return {}, f"a .json of more than {LARGEST_JSON >> 20} MiB"
    try:
        found = json.loads(data[place[0] : place[0] + place[1]])
    except (ValueError, RecursionError):
        return {}, "a .json that is not JSON"
    return (found, "") if isinstance(found, dict) else ({}, "a .json that is no object")


class _mapped:
    """The bytes of a file, mapped. An empty file cannot be mapped."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._data: mmap.mmap | None = None

    def __enter__(self) -> mmap.mmap | bytes:
        try:
            with open(storage.here(self._path), "rb") as file:
                if not os.fstat(file.fileno()).st_size:
                    return b""
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise Damaged(f"{self._path} cannot be read: {error}") from error
        return self._data

    def __exit__(self, *_: object) -> None:
        if self._data is not None:
            self._data.close()


@functools.lru_cache(maxsize=4)
def _contents(path: str) -> Contents:
    with _mapped(path) as data:
        return foreign_tars.scan(data)


@dataclasses.dataclass(frozen=True)
class Report:
    """What img2dataset says of a shard: 00000_stats.json, and 00000.parquet with a row for each URL."""

    path: str  # of the tar
    stats: dict[str, Any] | None  # None: the shard was not finished
    table: str | None  # path of the Parquet file

    def statuses(self) -> Counter[str]:
        """The number of rows of each status, with the message of each failure."""
        if self.table is None:
            return Counter()
        try:
            with pq.ParquetFile(self.table) as file:
                has = [name for name in ("status", "error_message") if name in file.schema_arrow.names]
                rows = file.read(has)
        except (pa.ArrowException, OSError) as error:
            raise Damaged(f"{self.table} cannot be read: {error}") from error
        if len(has) < 2:
            return Counter(rows["status"].to_pylist() if has else ())
        pairs = zip(rows["status"].to_pylist(), rows["error_message"].to_pylist(), strict=True)
        return Counter(f"{status}: {error}" if error else str(status) for status, error in pairs)


def _reports(paths: Sequence[str]) -> list[Report]:
    """Those beside the tars; [] where no tar has any."""
    found = []
    for path in paths:
        stem = path.removesuffix(".tar")
        table = f"{stem}.parquet" if storage.is_file(f"{stem}.parquet") else None
        found.append(Report(path, _stats(f"{stem}_stats.json"), table))
    return found if any(report.stats is not None for report in found) else []


def _stats(path: str) -> dict[str, Any] | None:
    try:
        with open(storage.here(path), "rb") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class ParquetPairs(Pairs):
    """Parquet with a column of images: bytes, or Hugging Face's struct of bytes and path."""

    image_columns = ("_image",)

    def __init__(self, paths: Sequence[str], image: str) -> None:
        self.paths, self._image = list(paths), image
        self.queries = NO_QUERIES.empty_table()
        with _parquet(self.paths[0]) as file:
            names = file.schema_arrow
        self.is_hugging_face = pa.types.is_struct(names.field(image).type)
        self.name = "Hugging Face Parquet" if self.is_hugging_face else "Parquet with images"
        self._text = next((name for name in TEXTS if name in names.names and _is_text(names.field(name).type)), None)
        self._url = next((name for name in URLS if name in names.names), None)
        others = [field for field in names if field.name not in (image, self._text, self._url, "key", "_image")]
        simple = [
            field for field in others if not pa.types.is_nested(field.type) and not pa.types.is_binary(field.type)
        ]
        self._others = [field for field in simple if field.name not in ("text", "url", "jpg_size")]
        url = [pa.field("url", pa.string())] if self._url else []
        size = pa.field("jpg_size", pa.int64())
        self.schema = pa.schema([KEY, pa.field("text", pa.string()), *url, size, *self._others])

    def tables(self, columns: Sequence[str], *, shard: int | None = None) -> Iterator[pa.Table]:
        if shard is not None:
            raise NotFound("there are no shards: this is Parquet")
        for table in self.batches(images="jpg_size" in columns or "_image" in columns):
            has_image = table.filter(pc.greater(table["jpg_size"], 0)) if "jpg_size" in table.column_names else table
            yield has_image.select(list(columns))

    def batches(self, *, images: bool) -> Iterator[pa.Table]:
        """All rows, those without an image included.

        Args:
            images: with the columns _image and jpg_size.
        """
        wanted = [name for name in (self._text, self._url) if name] + [field.name for field in self._others]
        for number, path in enumerate(self.paths):
            first = 0
            try:
                with _parquet(path) as file:
                    for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted + ([self._image] if images else [])):
                        yield self._shown(pa.Table.from_batches([batch]), number, first, images=images)
                        first += batch.num_rows
            except (pa.ArrowException, OSError, KeyError) as error:
                raise Damaged(f"{path} cannot be read: {error}") from error

    def _shown(self, table: pa.Table, number: int, first: int, *, images: bool) -> pa.Table:
        rows = table.num_rows
        texts = pa.nulls(rows, pa.string()) if self._text is None else table[self._text].cast(pa.string())
        columns = {
            "key": pa.array([f"{number:05d}-{first + row:08d}" for row in range(rows)]),
            "text": pc.fill_null(texts, ""),
        }
        columns |= {"url": table[self._url].cast(pa.string())} if self._url else {}
        if images:
            data = table[self._image].combine_chunks()
            data = pc.struct_field(data, "bytes") if self.is_hugging_face else data
            columns |= {"_image": data, "jpg_size": pc.fill_null(pc.binary_length(data), 0).cast(pa.int64())}
        return pa.table(columns | {field.name: table[field.name] for field in self._others})

    def image(self, row: Mapping[str, Any]) -> bytes:
        return row["_image"]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _parquet(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage.here(path))
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from error


def image_column(schema: pa.Schema) -> str | None:
    """The column that holds images: a struct with bytes, or bytes under a name of images."""
    for field in schema:
        if pa.types.is_struct(field.type) and any(part.name == "bytes" for part in field.type):
            return field.name
    named = [field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)]
    return next(
        (name for name in ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes") if name in named), None
    )


def open_foreign(path: str) -> TarPairs | ParquetPairs:
    """The pairs of a tar, of Parquet, or of a folder of either, also in folders below it.

    Raises:
        NotFound: it holds neither.
        Damaged: the first table cannot be read.
    """
    path = path.rstrip("/") if storage.is_url(path) else path
    tars, tables = _files(path, ".tar"), _files(path, ".parquet")
    if tars:
        return TarPairs(tars)
    for table in tables[:1]:
        with _parquet(table) as file:
            image = image_column(file.schema_arrow)
        if image is not None:
            return ParquetPairs(tables, image)
        raise NotFound(f"{table!r} has no column of images: build a set from its URLs with pipeline.build --input")
    is_file = storage.is_file(path)
    what = "is neither a tar nor Parquet" if is_file else "holds neither manifest.json nor stages/"
    hint = "" if is_file else ", nor a .tar or .parquet file: is it the --output of a run?"
    raise NotFound(f"{path!r} {what}{hint}")


def _files(path: str, suffix: str) -> list[str]:
    """The files with a suffix, by name. Hidden folders, and those of unfinished work, do not count."""
    if storage.is_file(path):
        return [path] if path.endswith(suffix) else []
    if storage.is_url(path):
        top = len(path.rstrip("/")) + 1
        urls = [url for url in storage.walk(path) if url.endswith(suffix)]
        return [url for url in urls if not any(part.startswith(HIDDEN) for part in url[top:].split("/")[:-1])]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        found += [os.path.join(folder, name) for name in sorted(names) if name.endswith(suffix)]
    return found
