"""match: PAIRS -> MATCHED. A pair stays if its text contains a query.

Source: Radford et al. 2021, section 2.2, "we search for (image, text) pairs [...] whose text includes one of a set of
500,000 queries".
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import files, hashing
from pipeline.engine.steps import Step
from pipeline.engine.work import StepFolder, Work
from pipeline.stages.row_pass import (
    MATCHED_PART,
    PROVENANCE,
    URL_HASH,
    PartWriter,
    Rejects,
    Tally,
    finish_manifest,
    read_parts,
    run_pass,
)
from pipeline.text.matcher import Matcher

PASSED = pa.schema([*MATCHED_PART, URL_HASH, PROVENANCE])  # what goes on to the writer of parts and keys


def match_batch(pairs: pa.RecordBatch, tally: Tally, *, matcher: Matcher, query_hash: np.ndarray) -> pa.RecordBatch:
    """The pairs whose text contains a query, with the ids of all queries it contains; order kept.

    Args:
        pairs: rows of passes.GATHERED_PART.
        tally: the stage's ledger and rejects.
        matcher: the compiled list; query_hash: uint64 a query, of its string.
    """
    tally.ledger.rows_in += pairs.num_rows
    ids = matcher.match(pairs["text"])
    found = pc.greater(pc.list_value_length(ids), 0)
    if not pc.all(found).as_py():
        missed = pc.invert(found)
        hashes = hashing.uid_words(pairs["uid"].filter(missed))[0]
        tally.drop("no_query", pairs["url"].filter(missed), pairs["text"].filter(missed), hashes)
        pairs, ids = pairs.filter(found), ids.filter(found)
    ids = ids.cast(pa.list_(pa.int32()))
    row_hash = hashing.mix(pairs["row_hash"].to_numpy(), hashing.sums_of_lists(query_hash, ids))
    tally.passed(row_hash)
    columns = dict(zip(pairs.schema.names, pairs.columns, strict=True))
    columns |= {"query_ids": ids, "row_hash": pa.array(row_hash)}
    return pa.RecordBatch.from_arrays([columns[name] for name in PASSED.names], schema=PASSED)


@dataclasses.dataclass(frozen=True)
class MatchRows:
    """The stage as a part of a pass; `tables` is the folder that `save_tables` wrote."""

    tables: str
    name: str = "match"

    def open(self) -> Callable[[pa.RecordBatch, Tally], pa.RecordBatch]:
        matcher, query_hash = _load(self.tables)
        return functools.partial(match_batch, matcher=matcher, query_hash=query_hash)


@dataclasses.dataclass(frozen=True)
class MatchParts:
    """The task where gather ran before on its own: one unit a unit of gather."""

    work: Work
    gathered: StepFolder
    rows: MatchRows
    keep_rejected: str
    key_bits: int

    @property
    def folder(self) -> StepFolder:
        return self.work.step("match", "parts")

    def units(self) -> int:
        return len(self.gathered.manifests())

    def run(self, unit: int) -> dict[str, Any]:
        rejects = Rejects(self.keep_rejected)
        stages: list[tuple[Tally, Callable]] = [(Tally("match", rejects), self.rows.open())]
        with PartWriter(self.folder, unit, MATCHED_PART, self.key_bits) as writer:
            body = run_pass(read_parts(self.gathered, unit), stages, writer)
        return finish_manifest(self.folder, unit, body, writer, rejects)


@dataclasses.dataclass(frozen=True)
class BuildTables:
    """The only unit of the step before the pass: the compiled list, built once; all workers map its files."""

    work: Work
    queries: str  # path of queries.parquet
    tables: str
    mode: str
    case: str

    @property
    def folder(self) -> StepFolder:
        return self.work.step("match", "list")

    def units(self) -> int:
        return 1

    def run(self, unit: int) -> dict[str, Any]:
        queries = hashing.as_array(files.read_table(self.queries, ["query"])["query"])
        save_tables(self.tables, queries, mode=self.mode, case=self.case)
        return {"queries": len(queries)}


class Tables(beam.PTransform):
    """root | Tables(task): what `Match` needs, on disk."""

    def __init__(self, task: BuildTables) -> None:
        super().__init__("Tables")
        self._task = task

    def expand(self, root: Any) -> beam.PCollection:
        return root | Step(self._task, work=self._task.work, most=1)


def save_tables(folder: str, queries: pa.Array, *, mode: str, case: str) -> None:
    """Builds the matcher once for all workers, which map its files."""
    os.makedirs(folder, exist_ok=True)
    Matcher.build(queries, mode=mode, case=case).save(folder)
    np.save(os.path.join(folder, "query_hash.npy"), hashing.hash_strings(queries)[:, 0])


@functools.lru_cache(maxsize=1)
def _load(folder: str) -> tuple[Matcher, np.ndarray]:
    return Matcher.load(folder), np.load(os.path.join(folder, "query_hash.npy"), mmap_mode="r").view(np.ndarray)


class Match(beam.PTransform):
    """root | Match(task): the rows that gather left on disk."""

    def __init__(self, task: MatchParts) -> None:
        super().__init__("Match")
        self._task = task

    def expand(self, root: Any) -> beam.PCollection:
        return root | Step(self._task, work=self._task.work)
