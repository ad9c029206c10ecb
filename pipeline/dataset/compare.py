"""What differs between two published sets: options, counts of stages, queries, pairs. Needs neither Beam nor torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.open_set import OpenSet

ONLY = 20  # examples that a difference names


def compare(one: OpenSet, two: OpenSet) -> dict[str, Any]:
    """The differences of two sets.

    Returns:
        `options`: name -> the two values, where they differ. `stages`: stage -> rows_in, rows_out and each reason of a
        drop, with the two numbers, where they differ. `queries`: those of one list alone. `pairs`: how many are in
        both, in one alone and in the other alone, with the first keys of each; `changed`: in both, with another image
        or text.
    """
    return {
        "digest": [one.digest, two.digest],
        "options": _different(one.manifest.get("options") or {}, two.manifest.get("options") or {}),
        "stages": _stages(one, two),
        "queries": _queries(one, two),
        "pairs": _pairs(one, two),
    }


def _different(one: dict[str, Any], two: dict[str, Any]) -> dict[str, list[Any]]:
    names = sorted(one.keys() | two.keys())
    return {name: [one.get(name), two.get(name)] for name in names if one.get(name) != two.get(name)}


def _stages(one: OpenSet, two: OpenSet) -> dict[str, dict[str, list[Any]]]:
    flat = [{row["stage"]: _flat(row) for row in pairs.ledger} for pairs in (one, two)]
    names = [name for name in flat[0] if name in flat[1]]
    found = {name: _different(flat[0][name], flat[1][name]) for name in names}
    return {name: values for name, values in found.items() if values}


def _flat(row: dict[str, Any]) -> dict[str, int]:
    return {"rows_in": row["rows_in"], "rows_out": row["rows_out"], **row["dropped"]}


def _queries(one: OpenSet, two: OpenSet) -> dict[str, list[str]]:
    lists = [set(pairs.queries["query"].to_pylist()) for pairs in (one, two)]
    return {"gained": sorted(lists[1] - lists[0]), "lost": sorted(lists[0] - lists[1])}


def _pairs(one: OpenSet, two: OpenSet) -> dict[str, Any]:
    """Keys ascend over the shards of a set, so the sets are merged as two sorted streams, a shard at a time."""
    counts = {"both": 0, "gained": 0, "lost": 0, "changed": 0}
    names: dict[str, list[str]] = {"gained": [], "lost": [], "changed": []}
    for left, right in _aligned(_stream(one), _stream(two)):
        joined = left.join(right, "key", join_type="full outer", left_suffix="_1", right_suffix="_2")
        there = [joined["sha256_1"].is_valid(), joined["sha256_2"].is_valid()]
        same = pc.and_(pc.equal(joined["sha256_1"], joined["sha256_2"]), pc.equal(joined["text_1"], joined["text_2"]))
        both = pc.and_(*there)
        kinds = {
            "gained": pc.and_not(there[1], there[0]),
            "lost": pc.and_not(there[0], there[1]),
            "changed": pc.and_(both, pc.invert(pc.fill_null(same, False))),
        }
        counts["both"] += pc.sum(both).as_py() or 0
        for kind, mask in kinds.items():
            keys = joined["key"].filter(mask)
            counts[kind] += len(keys)
            names[kind] = sorted([*names[kind], *keys.to_pylist()])[:ONLY]
    return {**counts, "keys": names}


def _stream(pairs: OpenSet) -> Iterator[pa.Table]:
    return pairs.rows(["key", "sha256", "text"])


def _aligned(one: Iterator[pa.Table], two: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Tables of both streams that cover the same range of keys. At most a shard of each is in memory."""
    empty = pa.table({name: pa.array([], pa.string()) for name in ("key", "sha256", "text")})
    left, right = next(one, None), next(two, None)
    while left is not None and right is not None:
        bound = min(left["key"][-1].as_py(), right["key"][-1].as_py())
        parts = [table.filter(pc.less_equal(table["key"], bound)) for table in (left, right)]
        yield parts[0], parts[1]
        left, right = (
            table.slice(part.num_rows) if part.num_rows < table.num_rows else next(stream, None)
            for table, part, stream in ((left, parts[0], one), (right, parts[1], two))
        )
    for table, stream, first in ((left, one, True), (right, two, False)):
        while table is not None:
            yield (table, empty) if first else (empty, table)
            table = next(stream, None)
