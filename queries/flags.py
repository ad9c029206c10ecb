"""The flags of queries: slurs and explicit English terms, as data/flagged.parquet has them (queries/data/README.md)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from queries.load import load_queries
from queries.rules import keys

LANGUAGES = ("en", "simple")  # those of the flagged terms


def flags_of(queries: pa.StringArray, language: str) -> pa.StringArray:
    """For each query its flags; "" for none, and for all queries of another language than English."""
    none = pa.scalar("", pa.string())
    if language not in LANGUAGES:
        return pa.repeat(none, len(queries))
    flagged = load_queries(str(Path(__file__).parent / "data" / "flagged.parquet")).table
    place = pc.index_in(keys(queries, "fold"), keys(flagged["query"].combine_chunks(), "fold"))
    return pc.fill_null(flagged["flags"].combine_chunks().take(place), none)
