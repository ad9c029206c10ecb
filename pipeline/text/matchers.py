"""The query lists of a run, compiled: one `Matcher` for each language. Each text is matched with one of them."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import storage
from pipeline.text import folding
from pipeline.text.matcher import Matcher

LISTS = "lists.json"  # the lists of a folder, in the order of their ids
HASHES = "query_hash.npy"


@dataclasses.dataclass(frozen=True)
class ListOfLanguage:
    """The place of a list among all queries.

    Attributes:
        language: of its queries; "": not known.
        first, last: its ids, the last one excluded.
    """

    language: str
    first: int
    last: int


def save_lists(folder: str, lists: list[ListOfLanguage]) -> None:
    """Writes which ids belong to which language."""
    storage.write_list(os.path.join(folder, LISTS), [dataclasses.asdict(item) for item in lists])


def load_lists(folder: str) -> list[ListOfLanguage]:
    """What `save_lists` wrote."""
    return [ListOfLanguage(**item) for item in storage.read_list(os.path.join(folder, LISTS))]


def build(folder: str, number: int, queries: pa.StringArray, *, mode: str, case: str) -> None:
    """Compiles one of the lists into its folder.

    Args:
        folder: with the lists of `save_lists`.
        number: of the list.
        queries: all queries of all lists.
        mode, case: how texts are matched.
    """
    one = load_lists(folder)[number]
    language = one.language if one.language in folding.DOTLESS else ""
    mine = queries.slice(one.first, one.last - one.first)
    Matcher.build(mine, mode=mode, case=case, language=language).save(os.path.join(folder, str(number)))


class Matchers:
    """The compiled lists of a run. Each process loads them once."""

    def __init__(self, lists: list[ListOfLanguage], matchers: list[Matcher], query_hash: npt.NDArray[np.uint64]):
        self.lists = lists
        self.matchers = matchers
        self.query_hash = query_hash

    @classmethod
    def load(cls, folder: str) -> Matchers:
        """Those that `build` wrote for each list."""
        return _load(folder, stamp(folder))

    def languages(self) -> list[str]:
        """The language of each list."""
        return [item.language for item in self.lists]

    def match(self, texts: pa.Array, chosen: npt.NDArray[np.int8]) -> pa.ListArray:
        """list<int32>: the ids of the queries of the chosen list that each text contains, ascending.

        Args:
            texts: without nulls.
            chosen: the number of the list of each text.
        """
        if len(self.lists) == 1:
            return self.matchers[0].match(texts).cast(pa.list_(pa.int32()))
        rows = [np.flatnonzero(chosen == number) for number in range(len(self.lists))]
        parts = [
            _moved(matcher.match(texts.take(pa.array(some))), item.first)
            for item, matcher, some in zip(self.lists, self.matchers, rows, strict=True)
        ]
        place = np.empty(len(texts), np.int64)
        place[np.concatenate(rows)] = np.arange(len(texts))
        return pa.concat_arrays(parts).take(pa.array(place))

    def match_all(self, texts: pa.Array) -> pa.ListArray:
        """list<int32>: the ids of the queries of all lists that each text contains, ascending.

        Args:
            texts: without nulls.
        """
        if len(self.lists) == 1:
            return self.match(texts, np.zeros(0, np.int8))
        found = [self.match(texts, np.full(len(texts), number, np.int8)) for number in range(len(self.lists))]
        counts = np.stack([pc.list_value_length(ids).to_numpy() for ids in found])
        rows = np.concatenate([np.repeat(np.arange(len(texts)), count) for count in counts])
        values = pa.concat_arrays([ids.flatten() for ids in found]).take(pa.array(np.argsort(rows, kind="stable")))
        offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=0))]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    def among(self, queries: list[str]) -> npt.NDArray[np.bool_]:
        """For each query of all lists: True if one of `queries` is equal to it in its own language."""
        return np.concatenate([matcher.among(queries) for matcher in self.matchers])


def _moved(ids: pa.ListArray, first: int) -> pa.ListArray:
    """The ids within a list as ids among all queries."""
    values = np.asarray(ids.values) + np.int32(first)
    return pa.ListArray.from_arrays(ids.offsets, pa.array(values.astype(np.int32)))


def stamp(folder: str) -> tuple[Any, ...]:
    """Tells the lists of a folder from those that an earlier run of this process wrote there."""
    found = storage.state(os.path.join(folder, HASHES))
    if found is None:
        raise storage.DamagedError(f"{os.path.join(folder, HASHES)} is missing")
    return found


@functools.lru_cache(maxsize=1)
def _load(folder: str, _: tuple[Any, ...]) -> Any:
    lists = load_lists(folder)
    matchers = [Matcher.load(os.path.join(folder, str(number))) for number in range(len(lists))]
    return Matchers(lists, matchers, storage.map_array(os.path.join(folder, HASHES)))
