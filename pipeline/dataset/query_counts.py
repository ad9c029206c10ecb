"""How many pairs hold each query, before and after the balancing, and in the set. Needs neither Beam nor torch."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import open_set
from pipeline.dataset.errors import Damaged, NotFound
from pipeline.engine import storage
from pipeline.engine.rows import Rows
from pipeline.engine.work import StageFolder

Counts = npt.NDArray[np.int64]  # by the id of the query
# The columns of `table` behind those of queries.parquet, with what they count.
COUNTED = {
    "pairs": "distinct pairs that hold the query (after dedup)",
    "cap": "pairs that the query may pick",
    "picked": "pairs that the query picked (balance)",
    "kept": "pairs after balance that hold the query, whoever picked them",
    "published": "samples of the set that hold the query",
}


def table(folder: str) -> pa.Table:
    """A row for each query of a run, in the order of the ids: queries.parquet, and the columns of COUNTED.

    A column is null as a whole where its stage has not been completed, or its rows are gone.

    Raises:
        NotFound: the folder has no query list.
        Damaged: a file cannot be read.
    """
    queries = open_set.read_queries(folder)
    if not queries.num_rows:
        raise NotFound(f"{folder!r} has no queries yet: the run must have reached match")
    try:
        counted = {
            "pairs": _of_stage(folder, "dedup", "query_ids", queries.num_rows),
            "cap": _caps(folder, queries.num_rows),
            "picked": _of_stage(folder, "balance", "kept_by", queries.num_rows),
            "kept": _of_stage(folder, "balance", "query_ids", queries.num_rows),
            "published": _of_set(folder, queries.num_rows),
        }
    except storage.DamagedError as error:
        raise Damaged(str(error)) from error
    for name in COUNTED:
        values = counted[name]
        queries = queries.append_column(
            name, pa.nulls(queries.num_rows, pa.int64()) if values is None else pa.array(values, pa.int64())
        )
    return queries


def _of_stage(folder: str, stage: str, column: str, size: int) -> Counts | None:
    info = StageFolder(storage.absolute(folder), stage).info()
    if info is None or "rows" not in info:
        return None
    rows = Rows.from_json(storage.absolute(folder), info["rows"])
    if not rows.parts.manifests():
        return None
    return _count((chunk for table in rows.tables([column]) for chunk in table[column].chunks), size)


def _of_set(folder: str, size: int) -> Counts | None:
    if not storage.exists(os.path.join(folder, "manifest.json")):
        return None
    tables = open_set.open_set(folder).rows(["query_ids"])
    return _count((chunk for found in tables for chunk in found["query_ids"].chunks), size)


def _count(lists: Iterable[pa.ListArray], size: int) -> Counts:
    counts = np.zeros(size, np.int64)
    for each in lists:
        counts += np.bincount(pc.list_flatten(each).to_numpy(zero_copy_only=False), minlength=size)[:size]
    return counts


def _caps(folder: str, size: int) -> Counts | None:
    """The pairs that each query may pick: 0 for a stop query."""
    if StageFolder(storage.absolute(folder), "balance").info() is None:
        return None
    limits = StageFolder(storage.absolute(folder), "balance").step("limits")
    paths = [limits.file(0, name) for name in ("cap", "stop")]
    if not all(map(storage.exists, paths)):
        return None
    cap, stop = (np.asarray(storage.map_array(path)) for path in paths)
    return np.where(stop, 0, cap).astype(np.int64) if len(cap) == size else None
