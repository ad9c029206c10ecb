"""Pairs of an image and its text, wherever they lie: in a published set, in a run, or in files of another tool.

`opening.open_pairs` opens a folder. The tables come file by file, so that a set of any size can be looked at.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import open_set as sets
from pipeline.dataset.errors import Ambiguous, Damaged, NotFound
from pipeline.dataset.exports import SCHEMAS, input_names
from pipeline.dataset.open_set import OpenSet
from pipeline.dataset.sample_json import hex_strings
from pipeline.engine import storage
from pipeline.engine.hashing import as_array
from pipeline.engine.rows import Rows
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

    def row(self, key: str) -> dict[str, Any]:
        """The row whose key begins with `key`, with `image_columns`. All keys are read.

        Raises:
            NotFound: no key begins with it.
            Ambiguous: several keys begin with it.
        """
        found: list[dict[str, Any]] = []
        columns = list(dict.fromkeys([*self.schema.names, *self.image_columns]))
        for table in self.tables(columns):
            found += table.filter(pc.starts_with(table["key"], key)).slice(0, 3).to_pylist()
        exact = [row for row in found if row["key"] == key]
        if not found:
            raise NotFound(f"no sample has a key that begins with {key!r}")
        if len(found) > 1 and not exact:
            raise Ambiguous(f"several keys begin with {key!r}: {', '.join(row['key'] for row in found[:3])} ...")
        return (exact or found)[0]

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

    def row(self, key: str) -> dict[str, Any]:
        return self.opened.row(key)


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
