"""What the report takes from the tables beside the shards: examples of drops, failures by host, duplicates."""

from __future__ import annotations

import base64
import os
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.summary import hosts, top
from pipeline.engine import hashing, storage
from pipeline.schema import DUPLICATES_FILE, PUBLISHED_REJECTED

EXAMPLES = 4  # of each reason of a drop
HOSTS = 5  # of each class of failures
GROUPS, MEMBERS = 12, 5  # of duplicates, and the pictures of a group beside that of the keeper
MOST_PICTURE = 150_000  # bytes of a picture on the page
MOST_PICTURES = 5_200_000  # bytes of all pictures of the gallery: base64 makes a third more of them, and a page 8 MB
# Reasons whose examples are shown as text. Of the others, the text or the address may be what must not be shown.
HIDDEN = {"forgotten", "blocklisted", "personal"}
SHAPES = {"too_small", "aspect"}  # reasons of dedup-images whose pictures are shown


def rejected_tables(folder: str) -> list[str]:
    """The tables of rejected rows, as paths below the folder."""
    names = storage.names(os.path.join(folder, "rejected"))
    return [f"rejected/{name}" for name in names if name.endswith(".parquet")]


def rejected(folder: str) -> list[dict[str, str]]:
    """The first rows of each reason. A sampled table is already sorted by hash."""
    taken: Counter[str] = Counter()
    rows = []
    for batch in _rejected_batches(folder):
        why = pc.binary_join_element_wise(batch["stage"], batch["reason"], " ")
        for one in why.unique().to_pylist():
            places = pc.indices_nonzero(pc.equal(why, one)).slice(0, EXAMPLES - taken[one])
            taken[one] += len(places)
            rows += batch.take(places).to_pylist()
    return sorted(rows, key=lambda row: (row["stage"], row["reason"]))


def _rejected_batches(folder: str) -> Iterator[pa.RecordBatch]:
    for path in rejected_tables(folder):
        with storage.published(os.path.join(folder, path)) as file:
            names = [name for name in PUBLISHED_REJECTED.names if name in file.schema_arrow.names]
            yield from file.iter_batches(columns=names, use_threads=False)


def shape_keys(folder: str) -> list[str]:
    """The keys of the examples that were dropped for the size or the aspect of their images."""
    return [key_of(row) for row in rejected(folder) if _is_of_shape(row)]


def _is_of_shape(row: Mapping[str, str]) -> bool:
    return row["stage"] == "dedup-images" and row["reason"] in SHAPES


def key_of(row: Mapping[str, str]) -> str:
    """The key of a rejected row; of a set of an earlier version, which lacks it, from its URL and its text."""
    if row.get("key"):
        return row["key"]
    uid = hashing.pair_keys(pa.array([row["url"]]), pa.array([row["text"]])).uid
    return uid[0].as_py().hex()


def drops(
    ledger: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, str]],
    pictures: Mapping[str, bytes] = types.MappingProxyType({}),
) -> list[dict[str, Any]]:
    """stage, reason, count, examples of each reason of a drop, in the order of the stages, the most frequent first.

    An example has `data`, its encoded picture, if it was dropped for its shape and is among the pictures (by key).
    """
    found = []
    for row in ledger:
        for reason, count in sorted(row["dropped"].items(), key=lambda item: (-item[1], item[0])):
            some = [{**one, "data": ""} for one in examples if (one["stage"], one["reason"]) == (row["stage"], reason)]
            for one in some:
                if pictures and _is_of_shape(one):
                    one["data"] = encoded(pictures.get(key_of(one), b""))
            some = [] if reason in HIDDEN else some
            found.append({"stage": row["stage"], "reason": reason, "count": count, "examples": some})
    return found


def failures(folder: str, ledger: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """reason, count, kept, hosts of each class of failures of the fetch, the most frequent first.

    `hosts` are the most frequent ones among the `kept` rows: all of them, or a sample (--keep-rejected).
    """
    counts: dict[str, Counter[str]] = {}
    for batch in _rejected_batches(folder):
        batch = batch.filter(pc.equal(batch["stage"], "fetch"))
        names = pa.array(hosts(batch["url"]))
        for reason, host in zip(batch["reason"].to_pylist(), names.to_pylist(), strict=True):
            counts.setdefault(reason, Counter())[host] += 1
    dropped: dict[str, int] = next((row["dropped"] for row in ledger if row["stage"] == "fetch"), {})
    found = []
    for reason, count in sorted(dropped.items(), key=lambda item: (-item[1], item[0])):
        seen = Counter() if reason in HIDDEN else counts.get(reason, Counter())
        found.append({"reason": reason, "count": count, "kept": seen.total(), "hosts": top(seen, HOSTS)})
    return found


def duplicate_keys(folder: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """(keeper, the rows of DUPLICATES that it stands for) of some groups, those of near-duplicates first, by hash."""
    path = os.path.join(folder, DUPLICATES_FILE)
    if not storage.exists(path):
        return []
    table = storage.read_published(path)
    table = table.filter(pc.not_equal(table["kind"], "same_pair"))
    ranked = table.append_column("near", pc.starts_with(table["kind"], "near").cast(pa.int8()))
    ranked = ranked.append_column("order", pc.utf8_slice_codeunits(table["keeper"], 16, 32))
    ranked = ranked.sort_by([("near", "descending"), ("order", "ascending"), ("key", "ascending")])
    keepers = pc.unique(ranked["keeper"])[:GROUPS]
    some = ranked.filter(pc.is_in(ranked["keeper"], keepers)).select(table.column_names).to_pylist()
    groups: dict[str, list[dict[str, Any]]] = {keeper: [] for keeper in keepers.to_pylist()}
    for row in some:
        groups[row["keeper"]] += [row] if len(groups[row["keeper"]]) < MEMBERS else []
    return list(groups.items())


def encoded(image: bytes) -> str:
    """The picture for a data: address; "" for one that is too large for the page."""
    return base64.b64encode(image).decode() if len(image) <= MOST_PICTURE else ""
