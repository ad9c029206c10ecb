"""Made rows for the tests of balancing."""

from __future__ import annotations

import numpy as np

from pipeline.stages.matches import Matches


def zipf_matches(generator: np.random.Generator, rows: int, queries: int, *, least: int, most: int) -> Matches:
    """Rows with `least` to `most` draws of a query each, by Zipf's law: a few queries match most rows. None is out."""
    weights = 1 / np.arange(1, queries + 1)
    lengths = generator.integers(least, most + 1, rows)
    drawn = generator.choice(queries, lengths.sum(), p=weights / weights.sum())
    row, query = np.divmod(np.unique(np.repeat(np.arange(rows), lengths) * queries + drawn), queries)
    offsets = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
    high, low = generator.integers(0, 2**64, (2, rows), dtype=np.uint64)
    return Matches(high, low, offsets, query.astype(np.int32))
