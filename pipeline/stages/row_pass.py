"""A pass over rows: batches of one input go through one or more row-wise stages into parts on disk.

Gather and match are row-wise: each turns a batch into a batch and needs no other row. So one pass can do both, and the
rows between them need not be written; each still has its own ledger, digest and sample of rejected rows. The last stage
of the pass writes *parts*: Arrow IPC files of at most PART_ROWS rows, and, if duplicates are looked for next, a bucket
file of keys beside each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import files, hashing, shuffle_files
from pipeline.engine.ledger import Ledger, smallest
from pipeline.engine.work import StepFolder, Work, stage_info
from pipeline.schema import MATCHED, PAIRS, REJECTED

PART_ROWS = 1_000_000
PART_BYTES = 256 << 20
PARTS_OF_UNIT = 1024  # a part's number is unit * PARTS_OF_UNIT + its place in the unit

# Columns that travel beside the rows and are not published. row_hash adds up to a stage's digest.
URL_HASH, PROVENANCE, ROW_HASH = (pa.field(name, pa.uint64(), False) for name in ("url_hash", "provenance", "row_hash"))
GATHERED_PART = pa.schema([*PAIRS, URL_HASH, PROVENANCE, ROW_HASH])
MATCHED_PART = MATCHED.append(ROW_HASH)

# What decides duplicates, and where the row is: 44 bytes a row, the only thing that crosses between the parts.
KEYS = pa.schema(
    [
        URL_HASH,
        pa.field("pair_high", pa.uint64(), False),
        pa.field("pair_low", pa.uint64(), False),
        PROVENANCE,
        pa.field("part", pa.int32(), False),
        pa.field("row", pa.int32(), False),
    ]
)


@dataclasses.dataclass
class Rejects:
    """Dropped rows that are kept: all, none, or of each reason those with the smallest hash."""

    keep: str = "sample"  # sample | all | none
    limit: int = 1000  # rows a reason that a sample keeps
    _tables: list[pa.Table] = dataclasses.field(default_factory=list)
    _bounds: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)

    def add(self, stage: str, reason: str, urls: pa.Array, texts: pa.Array, hashes: np.ndarray | None = None) -> None:
        """Offers dropped rows; `hashes` default to the high word of their pair key."""
        if self.keep == "none" or len(urls) == 0:
            return
        if hashes is None:
            hashes = hashing.uid_words(hashing.pair_keys(urls, texts).uid)[0]
        bound = self._bounds.get((stage, reason))
        if self.keep == "sample" and bound is not None:
            low = np.flatnonzero(hashes < np.uint64(bound))
            urls, texts, hashes = urls.take(pa.array(low)), texts.take(pa.array(low)), hashes[low]
        if self.keep == "sample" and len(hashes) > self.limit:
            low = np.argpartition(hashes, self.limit - 1)[: self.limit]
            self._bounds[stage, reason] = int(hashes[low].max())
            urls, texts, hashes = urls.take(pa.array(low)), texts.take(pa.array(low)), hashes[low]
        columns = [urls, texts, _repeated(stage, len(urls)), _repeated(reason, len(urls)), pa.array(hashes)]
        self._tables.append(pa.Table.from_arrays(columns, schema=REJECTED))

    def table(self) -> pa.Table:
        """What is kept."""
        table = pa.concat_tables(self._tables) if self._tables else REJECTED.empty_table()
        return smallest(table, self.limit) if self.keep == "sample" else table


@dataclasses.dataclass
class Tally:
    """What one stage has done in one unit."""

    stage: str
    rejects: Rejects
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    digest: int = 0

    def drop(self, reason: str, urls: pa.Array, texts: pa.Array, hashes: np.ndarray | None = None) -> None:
        """Counts dropped rows and offers them to the rejects."""
        self.ledger.drop(reason, len(urls))
        self.rejects.add(self.stage, reason, urls, texts, hashes)

    def passed(self, row_hashes: np.ndarray) -> None:
        """Counts rows that leave the stage."""
        self.ledger.rows_out += len(row_hashes)
        self.digest = hashing.add_digests(self.digest, int(row_hashes.sum(dtype=np.uint64)))


class RowStage(Protocol):
    """A row-wise stage: `open` is called once a unit on the worker and gives the function from batch to batch."""

    @property
    def name(self) -> str: ...

    def open(self) -> Callable[[pa.RecordBatch, Tally], pa.RecordBatch]: ...


class PartWriter:
    """Writes the rows of a unit as parts, each with its bucket file of keys if `key_bits` is given."""

    def __init__(self, folder: StepFolder, unit: int, schema: pa.Schema, key_bits: int | None) -> None:
        self._folder, self._unit, self._schema, self._bits = folder, unit, schema, key_bits
        self._stack = contextlib.ExitStack()
        self._out: Any = None
        self._keys: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self.parts = 0
        self.rows: list[int] = []  # of each part

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._finish()
        else:
            self._stack.__exit__(kind, error, trace)

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends a batch that has at least the columns of the schema (and those of KEYS, if keys are written)."""
        if batch.num_rows == 0:
            return
        if self._out is None:
            path = self._folder.file(self._unit, "arrow", self.parts)
            self._out = self._stack.enter_context(files.writing_batches(path, self._schema))
        if self._bits is not None:
            self._keys.append(_keys(batch, self._unit * PARTS_OF_UNIT + self.parts, self._rows))
        wide = batch.select(self._schema.names)
        self._out.write_batch(wide)
        self._rows += batch.num_rows
        self._bytes += wide.nbytes
        if self._rows >= PART_ROWS or self._bytes >= PART_BYTES:
            self._finish()

    def _finish(self) -> None:
        self._stack.close()
        if self._out is None:
            return
        if self._bits is not None:
            keys = pa.Table.from_batches(self._keys).combine_chunks().to_batches()[0]
            bucket = hashing.buckets(keys["url_hash"].to_numpy(), self._bits)
            path = self._folder.file(self._unit, "keys", self.parts)
            shuffle_files.write(path, shuffle_files.cut(keys, bucket, 1 << self._bits))
        self.rows.append(self._rows)
        self.parts += 1
        self._out, self._keys, self._rows, self._bytes = None, [], 0, 0


def run_pass(
    batches: Iterable[pa.RecordBatch], stages: list[tuple[Tally, Callable]], writer: PartWriter
) -> dict[str, Any]:
    """Sends the batches through the stages into the writer; returns the manifest's body."""
    for batch in batches:
        for tally, stage in stages:
            batch = stage(batch, tally)
            if batch.num_rows == 0:
                break
        else:
            writer.write(batch)
    return {tally.stage: {**tally.ledger.to_json(), "digest": tally.digest} for tally, _ in stages}


def finish_manifest(folder: StepFolder, unit: int, body: dict[str, Any], writer: PartWriter, rejects: Rejects) -> dict:
    """Adds to a pass's manifest what it wrote, and writes the rejected rows."""
    rejected = rejects.table()
    if rejected.num_rows:
        files.write_table(folder.file(unit, "rejected"), rejected)
    return {**body, "parts": writer.parts, "rows": writer.rows, "rejected": rejected.num_rows}


def totals(folder: StepFolder, stage: str) -> tuple[Ledger, int]:
    """Ledger and digest of a stage over all units of a pass."""
    ledger, digest = Ledger(), 0
    for _, manifest in folder.manifests():
        ledger.add(Ledger.from_json(manifest[stage]))
        digest = hashing.add_digests(digest, manifest[stage]["digest"])
    return ledger, digest


def complete(work: Work, stage: str, folder: StepFolder, *, keep_rejected: str) -> dict[str, Any]:
    """Ends a stage of a pass: the sample of rejected rows, info.json, COMPLETED."""
    ledger, digest = totals(folder, stage)
    write_rejected(work, stage, [folder], keep=keep_rejected)
    info = stage_info(ledger, digest=digest, folders=[folder])
    work.complete(stage, info)
    return info


def write_rejected(
    work: Work, stage: str, folders: list[StepFolder], *, limit: int = 1000, keep: str = "sample"
) -> None:
    """Merges the rejected rows of a stage's units into OUT/stages/<stage>/rejected.parquet."""
    kept, pending = REJECTED.empty_table(), 0
    tables = [kept]
    for folder in folders:
        for unit, manifest in folder.manifests():
            if not manifest.get("rejected"):
                continue
            table = files.read_table(folder.file(unit, "rejected"))
            tables.append(table.filter(pc.equal(table["stage"], stage)))
            pending += table.num_rows
            if keep == "sample" and pending > 64 * limit:
                tables, pending = [smallest(pa.concat_tables(tables), limit)], 0
    merged = pa.concat_tables(tables)
    files.write_table(f"{work.stage(stage)}/rejected.parquet", smallest(merged, limit) if keep == "sample" else merged)


def read_parts(folder: StepFolder, unit: int, columns: list[str] | None = None) -> Iterable[pa.RecordBatch]:
    """The batches of all parts of a unit."""
    manifest = folder.manifest(unit)
    for part in range(manifest["parts"] if manifest else 0):
        yield from files.read_batches(folder.file(unit, "arrow", part), columns)


def _keys(batch: pa.RecordBatch, part: int, first: int) -> pa.RecordBatch:
    high, low = hashing.uid_words(batch["uid"])
    rows = np.arange(first, first + batch.num_rows, dtype=np.int32)
    columns = [batch["url_hash"], high, low, batch["provenance"], np.full(len(rows), part, np.int32), rows]
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=KEYS)


@functools.lru_cache(maxsize=64)
def _word(value: str) -> pa.Scalar:
    return pa.scalar(value, pa.string())


def _repeated(value: str, rows: int) -> pa.Array:
    return pa.repeat(_word(value), rows)
