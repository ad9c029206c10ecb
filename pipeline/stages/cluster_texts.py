"""The texts of merged images: with `--captions N` the rows that dedup-images drops give their texts to their keeper.

    drops --by unit of the dropped row--> GiveTexts --by unit of the keeper--> ChooseTexts: overlays/00007-000.overlay

A keeper has the texts of its whole cluster to choose from: its own, those of rows with equal bytes, and those of
near-duplicates. Its `text` stays the first one, so its uid stays. Behind it come the N - 1 richest others, each once:
those with the most words, and of these those with the smallest hash. Of rows with equal texts, the one with the
smallest uid gives it. The rows decide all this, never a bucket or a worker.

A row that comes in has the queries of all its texts together. The keeper has those of the texts that it holds in the
end: each is matched again. It takes the signals of each row that gives it a text, and keeps its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing, shuffle_files, storage
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StepFolder
from pipeline.schema import FETCHED
from pipeline.stages.dedup_exchange import (
    LINKS,
    DedupPlan,
    cut_by_group,
    lists_of,
    offsets_of,
    parts_with_rows,
    rows_of_part,
    union_of_signals,
)
from pipeline.stages.row_pass import PARTS_OF_UNIT, ROW_HASH
from pipeline.text.matchers import Matchers
from pipeline.text.words import count_words

GIVEN = ("uid", "texts", "query_ids", "opt_out")  # columns of FETCHED that a dropped row gives
PLACE = (LINKS.field("part"), LINKS.field("row"))  # of the keeper
# A text that a keeper may take.
OFFERED = pa.schema(
    [
        *PLACE,
        pa.field("words", pa.uint8(), False),
        pa.field("hash", pa.uint64(), False),  # of the text
        pa.field("text", pa.string(), False),
        pa.field("uid", pa.binary(16), False),  # of the row that gives it
        *(FETCHED.field(name) for name in ("query_ids", "opt_out")),
    ]
)
# `uid` and `url` have no new values. `forget` asks for them.
CLUSTER_OVERLAY = pa.schema(
    [LINKS.field("row"), *(FETCHED.field(name) for name in ("uid", "url", "texts", "query_ids", "opt_out")), ROW_HASH]
)

Places = npt.NDArray[np.int64]
Match: TypeAlias = Callable[[pa.Array], pa.ListArray]


def save_keepers(folder: StepFolder, places: Places, keepers: Places) -> None:
    """Writes the places (`place_of`) of the rows that near-duplicates replace, and the place of the keeper of each."""
    order = np.argsort(places)
    storage.save_array(folder.file(0, "keepers"), np.stack([places[order], keepers[order]]))


def place_of(part: np.ndarray, row: np.ndarray) -> Places:
    """The place of a row as one number."""
    return part.astype(np.int64) << 32 | row


@dataclasses.dataclass(frozen=True)
class GiveTexts:
    """One unit for each group: the texts of its dropped rows, cut by the group of their keeper.

    Attributes:
        plan: of the exchange.
        clusters: the step that called `save_keepers`; None: there are no near-duplicates.
    """

    plan: DedupPlan
    clusters: StepFolder | None

    @property
    def folder(self) -> StepFolder:
        return self.plan.taken

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.drops, "links")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        links = self._links(unit, shuffle_files.table(messages, LINKS))
        found = [OFFERED.empty_table()]
        for (source, part), some in parts_with_rows(self.plan.rows, unit, links, "source_part"):
            if some.num_rows:
                path = self.plan.rows.parts.file(source, "arrow", part)
                given = rows_of_part(path, some["source_row"].to_numpy(), list(GIVEN))
                found.append(offers(given, some["part"].to_numpy(), some["row"].to_numpy()))
        batch = hashing.as_batch(richest(pa.concat_tables(found), self.plan.captions))
        cut_by_group(self.folder.file(unit, "taken", 0), batch, batch["part"], self.plan.rows.groups)
        return {"parts": 1, "taken": batch.num_rows}

    def _links(self, unit: int, same: pa.Table) -> pa.Table:
        """Each dropped row of the group and its keeper, as LINKS, in the order of the dropped rows."""
        source = place_of(same["source_part"].to_numpy(), same["source_row"].to_numpy())
        target = place_of(same["part"].to_numpy(), same["row"].to_numpy())
        if self.clusters is not None:
            moved, keeper = storage.map_array(self.clusters.file(0, "keepers"))
            at = np.minimum(np.searchsorted(moved, target), max(0, len(moved) - 1))
            if len(moved):  # of rows with equal images one stayed at first; near-duplicates may replace that one
                target = np.where(moved[at] == target, keeper[at], target)
            mine = (moved >> 32) // PARTS_OF_UNIT % self.plan.rows.groups == unit
            source, target = np.concatenate([source, moved[mine]]), np.concatenate([target, keeper[mine]])
        order = np.argsort(source)
        places = (side[order] for side in (source, target))
        columns = [column.astype(np.int32) for side in places for column in (side >> 32, side & 0xFFFFFFFF)]
        return pa.table(columns, names=["source_part", "source_row", "part", "row"])


@dataclasses.dataclass(frozen=True)
class ChooseTexts:
    """One unit for each group: writes beside each part the keepers that take a text, with their new values."""

    plan: DedupPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.overlays

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.taken, "taken")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        order = [(name, "ascending") for name in ("part", "row")]
        offered, rows, texts = shuffle_files.table(messages, OFFERED).sort_by(order).combine_chunks(), 0, 0
        for (source, part), some in parts_with_rows(self.plan.rows, unit, offered, "part"):
            overlay, taken = make_overlay(
                self.plan.rows.parts.file(source, "arrow", part),
                some,
                captions=self.plan.captions,
                match=self._match,
            )
            with storage.writing_batches(self.folder.file(source, "overlay", part), CLUSTER_OVERLAY) as out:
                out.write_batch(overlay)
            rows, texts = rows + overlay.num_rows, texts + taken
        return {"rows": rows, "texts": texts}

    def _match(self, texts: pa.Array) -> pa.ListArray:
        return Matchers.load(self.plan.tables).match_all(texts)


def offers(rows: pa.Table, part: np.ndarray, row: np.ndarray, *, first: int = 0) -> pa.Table:
    """OFFERED: one row for each text of each row.

    Args:
        rows: with the columns GIVEN.
        part, row: the place of the keeper of each row.
        first: the first texts of each row that are left out.
    """
    lists = hashing.as_array(rows["texts"])
    owner = pc.list_parent_indices(lists).to_numpy()
    number = np.arange(len(owner)) - np.searchsorted(owner, owner)
    some = np.flatnonzero(number >= first)
    text, owner = lists.flatten().take(pa.array(some)), owner[some]
    columns = [
        *(pa.array(column[owner].astype(np.int32)) for column in (part, row)),
        pa.array(count_words(text)),
        pa.array(hashing.hash_strings(text)[:, 0]),
        text,
        *(hashing.as_array(rows[name]).take(pa.array(owner)) for name in ("uid", "query_ids", "opt_out")),
    ]
    return pa.Table.from_arrays(columns, schema=OFFERED)


def richest(offered: pa.Table, count: int) -> pa.Table:
    """The `count` richest texts that each keeper is offered, each once, in order of keeper and text."""
    part, row, words, text = (offered[name].to_numpy() for name in ("part", "row", "words", "hash"))
    keeper, (high, low) = place_of(part, row), hashing.uid_words(offered["uid"])
    order = np.lexsort((low, high, text, ~words, keeper))
    keeper, text = keeper[order], text[order]
    again = np.concatenate([[False], (keeper[1:] == keeper[:-1]) & (text[1:] == text[:-1])])[: len(order)]
    order, keeper = order[~again], keeper[~again]
    rank = np.arange(len(order)) - np.searchsorted(keeper, keeper)
    return offered.take(pa.array(order[rank < count])).combine_chunks()


def make_overlay(path: str, offered: pa.Table, *, captions: int, match: Match) -> tuple[pa.RecordBatch, int]:
    """CLUSTER_OVERLAY of the keepers of a part that take a text of another row, and the number of these texts.

    Args:
        path: of the part.
        offered: OFFERED to rows of this part, in any order.
        captions: the most texts of a sample.
        match: list<int32>, the queries that each of some texts contains.
    """
    if not offered.num_rows:
        return pa.RecordBatch.from_pylist([], CLUSTER_OVERLAY), 0
    rows = np.unique(offered["row"].to_numpy())
    own = rows_of_part(path, rows, [*GIVEN, "url", "row_hash"])
    part = np.full(len(rows), offered["part"][0].as_py())
    is_known = np.isin(_texts_of_rows(offered), _texts_of_rows(offers(own, part, rows)))
    strange = offered.filter(pa.array(~is_known))
    chosen = richest(pa.concat_tables([offers(own, part, rows, first=1), strange]), captions - 1)
    owner = np.searchsorted(rows, chosen["row"].to_numpy())
    is_taken = pc.not_equal(chosen["uid"], own["uid"].take(pa.array(owner))).to_numpy()
    takes = np.bincount(owner[is_taken], minlength=len(rows)) > 0
    given = chosen.filter(pa.array(is_taken)), owner[is_taken]
    columns = {
        "texts": lists_of(pc.list_element(own["texts"], 0), chosen["text"], owner),
        "query_ids": queries_of_texts(own, chosen, owner, match),
        "opt_out": union_of_signals(own["opt_out"], given[0]["opt_out"], given[1]),
    }
    hashes = hashing.row_hash(own["row_hash"].to_numpy(), *map(hashing.column_hash, columns.values()))
    same = (hashing.as_array(own[name]) for name in ("uid", "url"))
    values = [pa.array(rows.astype(np.int32)), *same, *columns.values(), pa.array(hashes)]
    overlay = pa.RecordBatch.from_arrays(values, schema=CLUSTER_OVERLAY).filter(pa.array(takes))
    return overlay, int(is_taken.sum())


def queries_of_texts(own: pa.Table, chosen: pa.Table, owner: np.ndarray, match: Match) -> pa.ListArray:
    """The queries of the texts that each keeper holds in the end.

    A text is looked for with the list of its language. So of what `match` finds in it, only those queries count that
    the row had that gave it.

    Args:
        own: rows with the columns GIVEN: the keepers. Each holds its first text.
        chosen: OFFERED: the texts that they hold beside it.
        owner: the place of the keeper of each of these in `own`.
        match: as in `make_overlay`.
    """
    first = pc.list_element(own["texts"], 0)
    texts = pa.concat_arrays([hashing.as_array(first), hashing.as_array(chosen["text"])])
    had = pa.concat_arrays([hashing.as_array(own["query_ids"]), hashing.as_array(chosen["query_ids"])])
    found = np.intersect1d(_ids_with_rows(match(texts)), _ids_with_rows(had))
    owners = np.concatenate([np.arange(own.num_rows), owner])[found >> 32]
    pairs = np.unique(owners << 32 | found & 0xFFFFFFFF)
    return pa.ListArray.from_arrays(
        offsets_of(np.bincount(pairs >> 32, minlength=own.num_rows)), pa.array((pairs & 0xFFFFFFFF).astype(np.int32))
    )


def _ids_with_rows(lists: pa.ListArray) -> npt.NDArray[np.int64]:
    """One number for each row and each id in its list."""
    rows = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).fill_null(0).to_numpy())
    return rows << 32 | lists.flatten().to_numpy().astype(np.int64)


def _texts_of_rows(offered: pa.Table) -> npt.NDArray[np.uint64]:
    """One number for each keeper of a part and text."""
    return hashing.mix(offered["row"].to_numpy(), offered["hash"].to_numpy())
