"""Assembles the query list from what the sources offer.

Duplicates and dead queries are left out, and the list is cut at its size. Ids follow the order of the queries' bytes.

The sources come in the order in which they fill the list. Within a source the best queries come first. Each source has
a budget. Room that a source does not use goes to the others, in their order. If two sources offer a query, it belongs
to the first source that has room for it, and has the larger count. Two queries are duplicates if they normalise to
the same text: then no text holds one without the other. A query is dead if it normalises to nothing: it never matches.
"""

from __future__ import annotations

import dataclasses
import os
import string
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
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


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many queries a source may give. `firm`: it gets no more, even if other sources leave room."""

    queries: int
    firm: bool = False


def assemble(
    sources: list[tuple[str, pa.Table]],
    *,
    size: int,
    language: str,
    literal: bool = False,
    case: str = "exact",
    budgets: Mapping[str, Budget] | None = None,
) -> Assembled:
    """Makes the list.

    Args:
        sources: (name, rows of COUNTED) in the order in which they fill the list.
        size: the largest number of queries.
        language: of the list, by its code.
        literal: follow MetaCLIP's rule: duplicates are equal strings, and single punctuation signs are dead.
        case: "fold": queries that differ in case only are duplicates.
        budgets: by source; a source without one may fill the list.
    """
    names = [name for name, _ in sources]
    which = np.repeat(np.arange(len(sources)), [len(table) for _, table in sources])
    queries = _column([table["query"] for _, table in sources], pa.string())
    queries = pc.utf8_trim_whitespace(pc.replace_substring_regex(queries, r"\s+", " "))
    counts = _column([table["count"] for _, table in sources], pa.int64()).to_numpy()
    found = queries if literal else keys(queries, case)
    dead = np.asarray(pc.or_(pc.equal(found, ""), pc.greater(pc.binary_length(queries), LONGEST)))
    if literal:
        dead |= np.asarray(pc.is_in(queries, pa.array(list(string.punctuation))))

    encoded = found.dictionary_encode()
    number = encoded.indices.to_numpy()
    best = np.zeros(len(encoded.dictionary), np.int64)
    np.maximum.at(best, number, counts)
    parts = [np.flatnonzero((which == at) & ~dead) for at in range(len(names))]
    kept = _fill(parts, number, size, [(budgets or {}).get(name) for name in names])
    row_of = np.full(len(encoded.dictionary), -1)  # of each key: the row in the list
    row_of[number[kept]] = kept

    chosen = queries.take(pa.array(kept))
    kept = kept[pc.sort_indices(chosen).to_numpy()]
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

    again = np.flatnonzero((row_of[number] >= 0) & (row_of[number] != np.arange(len(number))) & ~dead)
    over = np.flatnonzero((row_of[number] < 0) & ~dead)
    spelled = np.asarray(pc.not_equal(queries.take(pa.array(again)), queries.take(pa.array(row_of[number[again]]))))
    return Assembled(
        table,
        by_source(np.arange(len(which))),
        by_source(dead),
        by_source(again),
        by_source(over),
        queries.take(pa.array(np.flatnonzero(dead)[:SAMPLES])).to_pylist(),
        queries.take(pa.array(again[spelled][:SAMPLES])).to_pylist(),
    )


def _fill(
    parts: list[np.ndarray], number: np.ndarray, size: int, budgets: list[Budget | None]
) -> npt.NDArray[np.int64]:
    """The rows of the list. Each source fills its budget first. Then the sources fill the room that is left, in order.

    Args:
        parts: the rows of each source, the best first.
        number: of each row: the number of its key.
        size: the largest number of rows.
        budgets: of each source; None: no limit.
    """
    taken = np.zeros(int(number.max(initial=-1)) + 1, bool)
    kept: list[np.ndarray] = []
    counts, left = [0] * len(parts), size
    for spare in (False, True):
        for at, (rows, budget) in enumerate(zip(parts, budgets, strict=True)):
            room = left
            if budget is not None and (not spare or budget.firm):
                room = min(left, budget.queries - counts[at])
            rows = rows[~taken[number[rows]]]
            rows = np.sort(rows[np.unique(number[rows], return_index=True)[1]])[: max(0, room)]
            taken[number[rows]] = True
            kept.append(rows)
            counts[at] += len(rows)
            left -= len(rows)
    return np.concatenate(kept) if kept else np.empty(0, np.int64)


def write(folder: str, table: pa.Table) -> load.QueryList:
    """Writes queries.parquet, and loads it as every user of the list does.

    Raises:
        load.QueryError: the list is empty.
    """
    path = os.path.join(folder, "queries.parquet")
    write_table(path, table)
    return load.load_queries(path)


def write_table(path: str, table: pa.Table) -> None:
    """Writes rows of QUERIES as Parquet."""
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


def export(folder: str, queries: pa.StringArray) -> None:
    """Writes queries.txt (one query a line) and queries.json (a list, as MetaCLIP's metadata.json)."""
    import json

    listed = queries.to_pylist()
    storage.write_plain(os.path.join(folder, "queries.txt"), "".join(f"{query}\n" for query in listed).encode())
    storage.write_plain(os.path.join(folder, "queries.json"), json.dumps(listed, ensure_ascii=False, indent=0).encode())


def _column(parts: list[pa.ChunkedArray], kind: pa.DataType) -> pa.Array:
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], kind).combine_chunks()
