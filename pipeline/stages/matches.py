"""The types of duplicates and of balancing: keys of rows, and matches of rows and queries.

`selection` and its kernel share this layout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine.hashing import Words, as_array, uid_words

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


class Keys(NamedTuple):
    """What decides duplicates: one entry a row."""

    image: Words  # equal for all variants of an image
    rank: Words  # a hash of image and text: equal for equal pairs of them, and it decides between texts of an image
    words: npt.NDArray[np.uint8]  # of the text
    size: npt.NDArray[np.uint32]  # the URL with the largest size is fetched
    provenance: Words
    pair_high: Words
    pair_low: Words
    common: Mask  # texts that stand at too many images


class Links(NamedTuple):
    """What rows that stay take from dropped rows of the same image. Rows are places in a `Keys`."""

    source: npt.NDArray[np.int64]  # the dropped row
    target: npt.NDArray[np.int64]  # the row that stays
    number: npt.NDArray[np.uint8]  # place of the text among the texts of the target, from 1; 0: the text is not taken
    gives_url: Mask  # the target takes the URL


class Matches(NamedTuple):
    """The rows of a batch as the balancer sees them: uids, and the ids of the matching queries in CSR form."""

    pair_high: Words
    pair_low: Words
    offsets: npt.NDArray[np.integer]  # n + 1 places in `ids`; the first need not be 0
    ids: npt.NDArray[np.int32]  # ascending within a row, each id once
    keep: Mask | None = None  # rows that are still in; None: all

    @classmethod
    def from_arrow(cls, uid: pa.Array, query_ids: pa.Array, keep: Mask | None = None) -> Matches:
        """From a uid column and a list<int32> or large_list<int32> column, without a copy of the lists."""
        lists = as_array(query_ids)
        if lists.null_count or lists.values.null_count or lists.values.type != pa.int32():
            raise TypeError(f"expected lists of int32 without nulls, got {lists.type}")
        high, low = uid_words(uid)
        ids = np.asarray(lists.values) if len(lists.values) else np.zeros(0, np.int32)
        return cls(high, low, np.asarray(lists.offsets), ids, keep)


class Band(NamedTuple):
    """The matches of one batch that can be thresholds, and what is needed of the others."""

    query: npt.NDArray[np.int32]
    hash: Words  # h of the match
    tie: Words  # low word of the pair's uid
    below: Counts  # for each query: the number of matches below its band
    may_be_picked: Mask  # for each row: False if no threshold within the bands can pick it


class Few(NamedTuple):
    """The queries that do not pick all of their matches. They are few, so tables of them alone are fast."""

    place: npt.NDArray[np.int32]  # for each query its place in such tables; 0: it picks all
    queries: npt.NDArray[np.int64]  # at the places from 1 on


class Thresholds(NamedTuple):
    """A query picks a match if h < hash, or h == hash and the uid's low word <= tie. All 0: it picks nothing."""

    hash: Words
    tie: Words
    few: Few | None = None  # None: not known yet (`selection.with_few`)


class Picks(NamedTuple):
    """The outcome for one batch."""

    selected: Mask  # for each row
    offsets: npt.NDArray[np.int32]  # CSR over the *selected* rows: the queries that picked each
    ids: npt.NDArray[np.int32]  # ascending within a row

    def per_query(self, n_queries: int) -> Counts:
        """For each query the number of its picks."""
        return np.bincount(self.ids, minlength=n_queries).astype(np.int64)

    def kept_by(self) -> pa.ListArray:
        """The queries that picked each selected row, as a list<int32> column for the filtered table."""
        return pa.ListArray.from_arrays(pa.array(self.offsets), pa.array(self.ids))
