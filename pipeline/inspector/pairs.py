"""Pairs of an image and its text, wherever they lie: in a published set, or in a run that is not published yet.

    pairs = open_pairs("OUT")
    for table in pairs.tables(["key", "text"]): ...

A run that has not reached publish shows the rows of its last stage that is complete and whose rows were kept.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.dataset import open_set as sets
from pipeline.dataset.errors import Damaged, NotFound
from pipeline.dataset.exports import SCHEMAS, input_names
from pipeline.dataset.open_set import OpenSet
from pipeline.dataset.sample_json import hex_strings
from pipeline.engine import storage
from pipeline.engine.hashing import as_array
from pipeline.engine.rows import Rows
from pipeline.engine.work import StageFolder
from pipeline.schema import fill_texts, readable

KEY = pa.field("key", pa.string(), nullable=False)


class Pairs(abc.ABC):
    """Pairs.

    Attributes:
        name: what this is, for people.
        schema: of the tables. It has `key` and `text` at least.
        queries: the query list; empty where there is none.
    """

    name: str
    schema: pa.Schema
    queries: pa.Table

    @abc.abstractmethod
    def tables(self, columns: Sequence[str], *, shard: int | None = None) -> Iterator[pa.Table]:
        """Yields the pairs, a table for each file.

        Args:
            columns: of the schema.
            shard: of this shard only.

        Raises:
            NotFound: there is no such shard.
            Damaged: a file cannot be read.
        """

    image_columns: tuple[str, ...] = ()  # what `image` needs; (): there are no images

    def image(self, row: Mapping[str, Any]) -> bytes:
        """The image of a row that has `image_columns`.

        Raises:
            Damaged: it cannot be read.
        """
        raise NotImplementedError

    def has(self, *columns: str) -> list[str]:
        """Those of the columns that there are."""
        return [name for name in columns if name in self.schema.names]


class Published(Pairs):
    """A published set."""

    image_columns = ("key", "shard", "jpg_offset", "jpg_size")

    def __init__(self, opened: OpenSet) -> None:
        self.opened = opened
        self.name = "published set"
        self.schema = opened.schema
        self.queries = opened.queries

    def tables(self, columns: Sequence[str], *, shard: int | None = None) -> Iterator[pa.Table]:
        return self.opened.rows(columns, shard=shard)

    def image(self, row: Mapping[str, Any]) -> bytes:
        return self.opened.member(row, "jpg")


class StageRows(Pairs):
    """The rows that leave a stage of a run."""

    def __init__(self, root: str, stage: str, rows: Rows) -> None:
        self.name = f"run that is not published, after {stage}"
        self._stage, self._rows = stage, rows
        self._inputs = input_names(root)
        self.schema = pa.schema([KEY, *readable(SCHEMAS[stage].empty_table(), self._inputs).schema])
        self.queries = sets.read_queries(root)

    def tables(self, columns: Sequence[str], *, shard: int | None = None) -> Iterator[pa.Table]:
        if shard is not None:
            raise NotFound("there are no shards: the run is not published")
        needed = {"key": ["uid"], "source_file": ["source"], "texts": ["text", "texts"]}
        shown = pa.schema([self.schema.field(name) for name in columns])
        wanted = list(dict.fromkeys(name for one in columns for name in needed.get(one, [one])))
        try:
            for table in self._rows.tables(wanted):
                yield self._shown(table).select(list(columns)).cast(shown)
        except storage.DamagedError as error:
            raise Damaged(str(error)) from error

    def _shown(self, table: pa.Table) -> pa.Table:
        """The table with names in place of codes, and texts without nulls."""
        if "texts" in table.column_names:
            texts = fill_texts(*(as_array(table[name]) for name in ("text", "texts")))
            table = table.set_column(table.column_names.index("texts"), "texts", texts)
        table = readable(table, self._inputs)
        return table.append_column(KEY, hex_strings(table["uid"])) if "uid" in table.column_names else table


def open_pairs(folder: str) -> Pairs:
    """The pairs of a folder: those of the published set, else those of the last stage that kept its rows.

    Raises:
        NotFound: there is nothing to show.
        Damaged: a file cannot be read.
    """
    if os.path.exists(os.path.join(folder, "manifest.json")):
        return Published(sets.open_set(folder))
    root = os.path.abspath(folder)
    if not os.path.isdir(os.path.join(root, "stages")):
        raise NotFound(f"{folder!r} holds neither manifest.json nor stages/: is it the --output of a run?")
    for stage in reversed(SCHEMAS):
        info = StageFolder(root, stage).info()
        rows = Rows.from_json(root, info["rows"]) if info is not None and "rows" in info else None
        if rows is not None and rows.parts.manifests():
            return StageRows(root, stage, rows)
    raise NotFound(f"no stage of {folder!r} is complete yet: `info` says how far the run is")
