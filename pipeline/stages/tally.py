"""The counts of one stage in one unit: the ledger, the digest of the rows that leave, and the dropped rows."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.engine import hashing, storage
from pipeline.engine.ledger import Ledger, smallest
from pipeline.engine.work import StepFolder
from pipeline.schema import REJECTED

Columns: TypeAlias = tuple[pa.Array, pa.Array, pa.Array]  # URLs, texts and uids


@dataclasses.dataclass
class Rejects:
    """Dropped rows that are kept: all, none, or a sample (the smallest hashes of each reason)."""

    keep: str = "sample"  # sample | all | none
    limit: int = 1000  # rows that a sample keeps for each reason
    _tables: list[pa.Table] = dataclasses.field(default_factory=list)
    _bounds: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)

    def add(self, stage: str, reason: str, urls: pa.Array, texts: pa.Array, uids: pa.Array | None = None) -> None:
        """Takes dropped rows and keeps those that `keep` asks for. None: the rows have no uids yet."""
        if self.keep == "none" or len(urls) == 0:
            return
        hashes = hashing.uid_words(hashing.pair_keys(urls, texts).uid if uids is None else uids)[0]
        uids = pa.nulls(len(urls), REJECTED.field("uid").type) if uids is None else uids
        self.add_some(stage, reason, (urls, texts, uids), np.arange(len(urls)), hashes)

    def add_some(self, stage: str, reason: str, columns: Columns, rows: np.ndarray, hashes: np.ndarray) -> None:
        """`add` for the dropped rows among others: only those that are kept are copied.

        Args:
            stage, reason: of the drop.
            columns: URLs, texts and uids, of all rows.
            rows: the numbers of the dropped rows.
            hashes: the high words of the uids of the dropped rows.
        """
        if self.keep == "none" or len(rows) == 0:
            return
        bound = self._bounds.get((stage, reason))
        if self.keep == "sample" and bound is not None:
            low = np.flatnonzero(hashes < np.uint64(bound))
            rows, hashes = rows[low], hashes[low]
        if self.keep == "sample" and len(hashes) > self.limit:
            low = np.argpartition(hashes, self.limit - 1)[: self.limit]
            self._bounds[stage, reason] = int(hashes[low].max())
            rows, hashes = rows[low], hashes[low]
        urls, texts, uids = (column.take(pa.array(rows)) for column in columns)
        kept = [urls, texts, _repeated(stage, len(urls)), _repeated(reason, len(urls)), pa.array(hashes), uids]
        self._tables.append(pa.Table.from_arrays(kept, schema=REJECTED))

    def table(self) -> pa.Table:
        """The rows that are kept."""
        table = pa.concat_tables(self._tables) if self._tables else REJECTED.empty_table()
        return smallest(table, self.limit) if self.keep == "sample" else table


@dataclasses.dataclass
class Tally:
    """The counts of one stage in one unit."""

    stage: str
    rejects: Rejects
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    digest: int = 0
    refusals: dict[str, Any] = dataclasses.field(default_factory=dict)  # a ledger of rights

    def drop(self, reason: str, urls: pa.Array, texts: pa.Array, uids: pa.Array | None = None) -> None:
        """Counts dropped rows and offers them to the rejects."""
        self.ledger.drop(reason, len(urls))
        self.rejects.add(self.stage, reason, urls, texts, uids)

    def drop_some(self, reason: str, columns: Columns, rows: np.ndarray, hashes: np.ndarray) -> None:
        """`drop` for the dropped rows among others; see `Rejects.add_some`."""
        self.ledger.drop(reason, len(rows))
        self.rejects.add_some(self.stage, reason, columns, rows, hashes)

    def passed(self, row_hashes: np.ndarray) -> None:
        """Counts rows that leave the stage."""
        self.ledger.rows_out += len(row_hashes)
        self.digest = hashing.add_digests(self.digest, int(row_hashes.sum(dtype=np.uint64)))

    def to_json(self) -> dict[str, Any]:
        """The ledger, the digest, and the ledger of rights if there is one, as a manifest holds them."""
        refusals = {"rights": self.refusals} if self.refusals else {}
        return {**self.ledger.to_json(), "digest": self.digest, **refusals}


def unit_body(folder: StepFolder, unit: int, tallies: list[Tally], rejects: Rejects) -> dict[str, Any]:
    """Writes the rejected rows of a unit; returns the entries of its manifest for ledgers and rejected rows."""
    rejected = rejects.table()
    if rejected.num_rows:
        storage.write_table(folder.file(unit, "rejected"), rejected)
    return {"ledgers": {tally.stage: tally.to_json() for tally in tallies}, "rejected": rejected.num_rows}


@functools.lru_cache(maxsize=64)
def _word(value: str) -> pa.Scalar:
    return pa.scalar(value, pa.string())


def _repeated(value: str, rows: int) -> pa.Array:
    return pa.repeat(_word(value), rows)
