"""Rows for tests: generated ones for balancing, and what readers give."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES
from pipeline.stages.matches import Matches


def with_both(candidates: pa.Table, ledger: Ledger) -> pa.Table:
    """CANDIDATES with a URL and a text. The ledger gets the others, as gather drops them."""
    assert candidates.schema == CANDIDATES
    no_url, no_text = (candidates[name].is_null().combine_chunks() for name in ("url", "text"))
    ledger.drop("null_url", pc.sum(no_url).as_py() or 0)
    ledger.drop("null_text", pc.sum(pc.and_not(no_text, no_url)).as_py() or 0)
    return candidates.filter(pc.invert(pc.or_(no_url, no_text)))


def zipf_matches(generator: np.random.Generator, rows: int, queries: int, *, least: int, most: int) -> Matches:
    """Rows with `least` to `most` draws of a query each, by Zipf's law: a few queries match most rows."""
    weights = 1 / np.arange(1, queries + 1)
    lengths = generator.integers(least, most + 1, rows)
    drawn = generator.choice(queries, lengths.sum(), p=weights / weights.sum())
    row, query = np.divmod(np.unique(np.repeat(np.arange(rows), lengths) * queries + drawn), queries)
    offsets = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
    high, low = generator.integers(0, 2**64, (2, rows), dtype=np.uint64)
    return Matches(high, low, offsets, query.astype(np.int32))
