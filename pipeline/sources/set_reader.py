"""The reader of published sets. `published_sets` tells what a set is.

Every text of a sample is a pair. The images lie in the tar, encoded already, so they are not encoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine import opening
from pipeline.engine.input_errors import InputError, UnreadableInputError
from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES, TEXT_SOURCES, URL_SOURCES
from pipeline.sources.base import ARCHIVED_IMAGES, BATCH_ROWS, SET, Found, Input, Reader, ReadSettings, for_each
from pipeline.sources.published_sets import (
    INSTEAD,
    MANIFEST,
    PublishedSet,
    below,
    known_set,
    metadata_of,
    read_set,
    root_of,
)

READ_ROWS = 8_192  # of the metadata, at a time
BLOCK = 512  # of a tar
LARGEST_JSON = 16 << 20  # bytes of the JSON of a sample

_NEEDED = ("url", "text", "jpg_offset", "jpg_size")
_OTHERS = ("url_as_found", "text_as_found", "texts", "page_url", "text_source", "url_source", "opt_out", "license")


class PublishedSets(Reader):
    """Published sets. The user names their folder."""

    name: ClassVar[str] = SET
    suffixes: ClassVar[tuple[str, ...]] = ()
    bytes_per_pair: ClassVar[float] = 15_000
    stores_images: ClassVar[bool] = True
    keeps_form: ClassVar[bool] = True

    def sniff(self, head: bytes) -> bool:
        return False

    def expand(self, found: Found) -> list[Input]:
        if found.format != SET:
            raise InputError(
                f"{found.path!r} is no published set: name a folder with {MANIFEST}, shards/ and metadata/"
            )
        return super().expand(found)

    def check(self, inputs: Sequence[Input], settings: ReadSettings) -> None:
        """Compares the sizes of all files with those of the manifests."""
        sets = {root: read_set(root) for root in dict.fromkeys(root_of(item.path) for item in inputs)}
        sizes = {root: found.sizes() for root, found in sets.items()}

        def check(item: Input) -> None:
            root, tar = root_of(item.path), below(item.path)
            _check_name(item, sets[root])
            for path in (tar, metadata_of(tar)):
                sets[root].check(path, sizes[root])

        for_each(check, inputs)

    def amount(self, item: Input) -> float | None:
        found = known_set(root_of(item.path)).files.get(below(item.path))
        return item.bytes if found is None else found.rows

    def unit(self, item: Input) -> str:
        return "rows"

    def read(
        self, source: Input, *, ledger: Ledger, images: list[pa.RecordBatch], settings: ReadSettings
    ) -> Iterator[pa.RecordBatch]:
        found, tar = read_set(root_of(source.path)), below(source.path)
        _check_name(source, found)
        opening.forget_version(source.path)
        found.sound(tar)
        path = found.sound(metadata_of(tar))
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                names = file.schema_arrow.names
                missing = [name for name in _NEEDED if name not in names]
                if missing:
                    raise UnreadableInputError(f"{path} has no column {missing[0]!r}: {INSTEAD}")
                columns, first = [name for name in (*_NEEDED, *_OTHERS) if name in names], 0
                for batch in file.iter_batches(READ_ROWS, columns=columns):
                    rows = _Rows(batch, first)
                    first += batch.num_rows
                    ledger.records_in += batch.num_rows
                    images.append(rows.images())
                    pairs = rows.pairs()
                    ledger.rows_in += pairs.num_rows
                    for start in range(0, pairs.num_rows, BATCH_ROWS):
                        yield pairs.slice(start, BATCH_ROWS)
        except pa.ArrowException as error:
            raise UnreadableInputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error

    def read_image(self, path: str, offset: int, *, max_bytes: int) -> bytes | None:
        stored = self.read_stored(path, offset, max_bytes=max_bytes)
        return None if stored is None else stored[0]

    def read_stored(self, path: str, offset: int, *, max_bytes: int) -> tuple[bytes, dict[str, Any]] | None:
        """The stored JPEG and the JSON of its sample; None where the tar does not hold them any more.

        Raises:
            InputError: a store cannot be asked now.
        """
        try:
            with opening.open_at(path) as opened:
                file = opened.stream
                file.seek(offset - BLOCK)
                key, size = _member(file.read(BLOCK), ".jpg")
                if not 0 < size <= max_bytes:
                    return None
                image, _ = file.read(size), file.seek(-size % BLOCK, os.SEEK_CUR)
                again, size = _member(file.read(BLOCK), ".json")
                facts = json.loads(file.read(min(size, LARGEST_JSON)))
        except InputError:
            raise
        except (OSError, ValueError, RecursionError):
            return None
        if key != again or not isinstance(facts, dict) or hashlib.sha256(image).hexdigest() != facts.get("sha256"):
            return None
        return image, facts

    def result_of(self, path: str) -> str:
        """The version of the rows of the set in which a tar lies; "": not known any more."""
        try:
            return known_set(root_of(path)).result
        except InputError:
            return ""


def _check_name(item: Input, found: PublishedSet) -> None:
    """Raises UnreadableInputError if the set has changed since its inputs were listed."""
    if item.name != found.name_of(below(item.path)):
        raise UnreadableInputError(
            f"the set {found.root} is another one now: add --drop-input {found.root} to --extend, "
            f"and --input {found.root} to read it anew"
        )


def _member(header: bytes, extension: str) -> tuple[str, int]:
    """The key and the size in a header of a tar.

    Raises:
        ValueError: it is the header of no such member.
    """
    name = header[:100].rstrip(b"\0").decode("ascii")
    if not name.endswith(extension):
        raise ValueError(f"no {extension} begins here")
    return name.removesuffix(extension), int(header[124:135], 8)


class _Rows:
    """Rows of the metadata. The first one is row `first` of its file."""

    def __init__(self, rows: pa.RecordBatch, first: int) -> None:
        self._rows, self._count, self._first = rows, rows.num_rows, first
        self._url = self._column("url", pa.string(), "")
        as_found = self._column("url_as_found", pa.string(), None)
        self._key_url = pc.coalesce(as_found, self._url)

    def _column(self, name: str, kind: pa.DataType, default: Any) -> pa.Array:
        """A column. An older format may lack it; `default` is in the place of nulls, too."""
        if name not in self._rows.schema.names:
            return pa.repeat(pa.scalar(default, kind), self._count)
        column = self._rows[name].cast(kind)
        return column if default is None else column.fill_null(default)

    def pairs(self) -> pa.RecordBatch:
        """CANDIDATES: one for each text of each row."""
        text = self._column("text", pa.string(), "")
        texts = self._column("texts", pa.list_(pa.string()), None)
        alone = pa.ListArray.from_arrays(pa.array(np.arange(self._count + 1, dtype=np.int32)), text)
        some = pc.fill_null(pc.greater(pc.list_value_length(texts), 0), False)
        texts = pc.if_else(some, texts, alone)
        of_row = pc.list_parent_indices(texts).cast(pa.int64())
        rows = of_row.to_numpy()
        is_first = pa.array(np.diff(rows, prepend=-1) != 0)
        first = pc.coalesce(self._column("text_as_found", pa.string(), None), text).take(of_row)
        words = pc.if_else(is_first, first, pc.list_flatten(texts).fill_null(""))
        columns = [
            self._key_url.take(of_row),
            words,
            self._column("page_url", pa.string(), "").take(of_row),
            pa.array(rows + self._first),
            self._codes("text_source", TEXT_SOURCES).take(of_row),
            self._codes("url_source", URL_SOURCES).take(of_row),
            self._column("opt_out", pa.string(), None).take(of_row),
            self._column("license", pa.string(), None).take(of_row),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=CANDIDATES)

    def _codes(self, name: str, words: Sequence[str]) -> pa.Array:
        found = pc.index_in(self._column(name, pa.string(), "table"), value_set=pa.array(words))
        return found.fill_null(words.index("table")).cast(pa.int8())

    def images(self) -> pa.RecordBatch:
        """ARCHIVED_IMAGES: under the URL of the key, and under that of a larger variant."""
        other = pc.not_equal(self._key_url, self._url)
        offset = self._column("jpg_offset", pa.int64(), 0)
        length = self._column("jpg_size", pa.int32(), 0)
        columns = [
            pa.concat_arrays([self._key_url, self._url.filter(other)]),
            *(pa.concat_arrays([column, column.filter(other)]) for column in (offset, length)),
        ]
        mime = pa.repeat(pa.scalar("image/jpeg"), len(columns[0]))
        return pa.RecordBatch.from_arrays([*columns, mime], schema=ARCHIVED_IMAGES)
