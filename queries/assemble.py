"""Assembles the query list from what the sources offer.

Duplicates and dead queries are left out, and the list is cut at its size. Ids follow the order of the queries' bytes.

The sources come in the order in which they fill the list. Within a source the best queries come first. If two sources
offer a query, it belongs to the first source and has the larger count. Two queries are duplicates if they normalise to
the same text: then no text holds one without the other. A query is dead if it normalises to nothing: it never matches.
"""

from __future__ import annotations

import dataclasses
import os
import string

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine import storage
from queries import load
from queries.load import QUERIES
from queries.rules import LONGEST, keys

SAMPLES = 20  # queries that the report shows as examples


@dataclasses.dataclass(frozen=True)
class Assembled:
    """The list and what was left out. `offered`, `dead`, `duplicates` and `over` (over the size) count by source."""

    table: pa.Table
    offered: dict[str, int]
    dead: dict[str, int]
    duplicates: dict[str, int]
    over: dict[str, int]
    dead_samples: list[str]
    duplicate_samples: list[str]  # only those that are spelled differently from the query in the list

    def kept(self) -> dict[str, int]:
        """The number of queries in the list, by source."""
        found = self.table["source"].combine_chunks().value_counts().to_pylist()
        counts = {row["values"]: row["counts"] for row in found}
        return {name: counts.get(name, 0) for name in self.offered}


def assemble(sources: list[tuple[str, pa.Table]], *, size: int, language: str, literal: bool = False) -> Assembled:
    """Makes the list.

    Args:
        sources: (name, rows of COUNTED) in the order in which they fill the list.
        size: the largest number of queries.
        language: of the list, by its code.
        literal: follow MetaCLIP's rule: duplicates are equal strings, and single punctuation signs are dead.
    """
    names = [name for name, _ in sources]
    which = np.repeat(np.arange(len(sources)), [len(table) for _, table in sources])
    queries = _column([table["query"] for _, table in sources], pa.string())
    queries = pc.utf8_trim_whitespace(pc.replace_substring_regex(queries, r"\s+", " "))
    counts = _column([table["count"] for _, table in sources], pa.int64()).to_numpy()
    found = queries if literal else keys(queries)
    dead = np.asarray(pc.or_(pc.equal(found, ""), pc.greater(pc.binary_length(queries), LONGEST)))
    if literal:
        dead |= np.asarray(pc.is_in(queries, pa.array(list(string.punctuation))))

    encoded = found.dictionary_encode()
    number = encoded.indices.to_numpy()
    best = np.zeros(len(encoded.dictionary), np.int64)
    np.maximum.at(best, number, counts)
    first = np.zeros(len(number), bool)
    first[np.unique(number, return_index=True)[1]] = True
    alive = np.flatnonzero(first & ~dead)
    kept, over = alive[:size], alive[size:]

    chosen = queries.take(pa.array(kept))
    order = pc.sort_indices(chosen).to_numpy()
    kept = kept[order]
    table = pa.table(
        [
            pa.array(np.arange(len(kept), dtype=np.int32)),
            queries.take(pa.array(kept)),
            pa.array(names, pa.string()).take(pa.array(which[kept])),
            pa.array(best[number[kept]]),
            pa.repeat(pa.scalar(language), len(kept)),
            pa.repeat(pa.scalar(""), len(kept)),
        ],
        schema=QUERIES,
    )

    def by_source(rows: np.ndarray) -> dict[str, int]:
        return dict(zip(names, np.bincount(which[rows], minlength=len(names)).tolist(), strict=True))

    again = ~first & ~dead
    first_row = np.zeros(len(encoded.dictionary), np.int64)
    first_row[number[first]] = np.flatnonzero(first)
    written_otherwise = again & np.asarray(pc.not_equal(queries, queries.take(pa.array(first_row[number]))))
    return Assembled(
        table,
        by_source(np.arange(len(which))),
        by_source(dead),
        by_source(again),
        by_source(over),
        queries.take(pa.array(np.flatnonzero(dead)[:SAMPLES])).to_pylist(),
        queries.take(pa.array(np.flatnonzero(written_otherwise)[:SAMPLES])).to_pylist(),
    )


def write(folder: str, table: pa.Table) -> load.QueryList:
    """Writes queries.parquet, and loads it as every user of the list does.

    Raises:
        load.QueryError: the list is empty.
    """
    path = os.path.join(folder, "queries.parquet")
    with storage.temporary(path) as name:
        pq.write_table(
            table,
            name,
            compression="zstd",
            compression_level=19,
            use_dictionary=["source", "language", "flags"],
            column_encoding={"id": "DELTA_BINARY_PACKED", "query": "DELTA_BYTE_ARRAY", "count": "DELTA_BINARY_PACKED"},
            write_page_checksum=True,
        )
    return load.load_queries(path)


def export(folder: str, queries: pa.StringArray) -> None:
    """Writes queries.txt (one query a line) and queries.json (a list, as MetaCLIP's metadata.json)."""
    import json

    listed = queries.to_pylist()
    storage.write_plain(os.path.join(folder, "queries.txt"), "".join(f"{query}\n" for query in listed).encode())
    storage.write_plain(os.path.join(folder, "queries.json"), json.dumps(listed, ensure_ascii=False, indent=0).encode())


def _column(parts: list[pa.ChunkedArray], kind: pa.DataType) -> pa.Array:
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], kind).combine_chunks()
