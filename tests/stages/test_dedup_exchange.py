"""The counts and the rejected rows of a part whose rows are dropped by a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine import hashing, storage
from pipeline.engine.ledger import smallest
from pipeline.engine.rows import Overlay, Rows
from pipeline.engine.work import StepFolder
from pipeline.schema import REJECTED
from pipeline.stages import dedup_exchange
from pipeline.stages.tally import Rejects, Tally

REASONS = ("", "other_text", "same_pair", "never")
ROWS = 5000


def part(path: Path, batch_rows: int) -> tuple[pa.Table, np.ndarray]:
    """Writes a part of several batches. Returns its rows and a mask: 3,000 rows of one reason, 500 of another."""
    random = np.random.default_rng(0)
    url = [f"http://x/{number}" for number in range(ROWS)]
    uid = pa.array([random.bytes(16) for _ in range(ROWS)], pa.binary(16))
    table = pa.table({"uid": uid, "url": url, "text": url, "row_hash": random.integers(0, 2**64, ROWS, np.uint64)})
    with storage.writing_batches(str(path), table.schema) as out:
        for batch in table.to_batches(max_chunksize=batch_rows):
            out.write_batch(batch)
    mask = np.zeros(ROWS, np.uint8)
    mask[random.permutation(ROWS)[:3500]] = [1] * 3000 + [2] * 500
    return table, mask


@pytest.mark.parametrize("batch_rows", [ROWS, 700])
@pytest.mark.parametrize("keep", ["sample", "all", "none"])
def test_a_part_under_a_mask(tmp_path: Path, keep: str, batch_rows: int) -> None:
    table, mask = part(tmp_path / "a.arrow", batch_rows)
    tally = Tally("dedup", Rejects(keep))
    dedup_exchange.count_part(str(tmp_path / "a.arrow"), mask, tally, REASONS)
    offer = dedup_exchange.Offer(tally.rejects, "dedup", REASONS)
    offer.add(str(tmp_path / "a.arrow"), mask)
    offer.close()

    assert (tally.ledger.rows_in, tally.ledger.rows_out) == (ROWS, 1500) and tally.ledger.balanced()
    assert tally.ledger.dropped == {"other_text": 3000, "same_pair": 500}
    kept = [int(value) for value in table["row_hash"].filter(pa.array(mask == 0)).to_pylist()]
    assert tally.digest == sum(kept) % 2**64

    hashes = hashing.uid_words(table["uid"])[0]
    expected = REJECTED.empty_table()
    for code in (1, 2):
        rows = np.flatnonzero(mask == code)
        chosen = {"url": table["url"].take(rows), "text": table["text"].take(rows), "hash": hashes[rows]}
        chosen["uid"] = table["uid"].take(rows)
        named = {"stage": ["dedup"] * len(rows), "reason": [REASONS[code]] * len(rows)}
        expected = pa.concat_tables([expected, pa.table({**chosen, **named}).select(REJECTED.names).cast(REJECTED)])
    expected = {"sample": smallest(expected, 1000), "all": expected, "none": REJECTED.empty_table()}[keep]
    order = [("reason", "ascending"), ("hash", "ascending")]
    assert tally.rejects.table().sort_by(order).equals(expected.sort_by(order))
    assert expected.num_rows == {"sample": 1500, "all": 3500, "none": 0}[keep]


@pytest.mark.parametrize("entries", [0, 1, 2, 1000])
def test_which_words_are_among_others(entries: int) -> None:
    words = hashing.finalise(np.arange(3000))
    ascending = np.sort(np.concatenate([words[:entries], words[:entries] ^ np.uint64(1 << 60)]))
    assert np.array_equal(dedup_exchange.among(words, ascending), np.arange(3000) < entries)
    assert dedup_exchange.among(words[:0], ascending).tolist() == []


@pytest.mark.parametrize("rows_at_a_time", [600, 70, 20])
def test_a_sample_has_the_smallest_hashes_whatever_comes_together(rows_at_a_time: int) -> None:
    urls = pa.array([f"http://x.example/{number}" for number in range(600)])
    hashes = np.random.default_rng(4).permutation(600)
    uids = pa.array([int(number).to_bytes(8, "big") + bytes(8) for number in hashes], pa.binary(16))
    rejects, every = Rejects(limit=50), Rejects("all")
    for first in range(0, 600, rows_at_a_time):
        for reason, some in (("odd", slice(first, first + rows_at_a_time)), ("even", slice(first, first + 9))):
            rejects.add("stage", reason, urls[some], urls[some], uids[some])
            every.add("stage", reason, urls[some], urls[some], uids[some])
    assert rejects.table().equals(smallest(every.table(), 50))
    kept = [row["hash"] for row in rejects.table().to_pylist() if row["reason"] == "odd"]
    assert kept == list(range(50))
    (none := Rejects("none")).add("stage", "odd", urls, urls, uids)
    assert none.table().equals(REJECTED.empty_table())
    tally = Tally("stage", Rejects("all"))
    tally.drop("odd", urls[:2], urls[:2])
    assert tally.ledger.dropped == {"odd": 2}
    assert tally.rejects.table()["hash"].to_pylist() == [
        int(high) for high in hashing.uid_words(hashing.pair_keys(urls[:2], urls[:2]).uid)[0]
    ]


def test_the_rows_of_masked_parts(tmp_path: Path) -> None:
    parts, masks = (StepFolder(str(tmp_path / name), "0") for name in ("parts", "masks"))
    expected = []
    for unit in range(2):
        path = Path(parts.file(unit, "arrow", 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        table, mask = part(path, 700)
        parts.write_manifest(unit, {"parts": 1, "rows": [ROWS]})
        storage.write_bytes(masks.file(unit, "mask", 0), mask.tobytes())
        ledger = {"rows_in": ROWS, "rows_out": 1500}
        masks.write_manifest(unit, {"ledgers": {"dedup": ledger}})
        expected += table.filter(pa.array(mask == 0))["url"].to_pylist()
    rows = Rows(parts, masks=masks, groups=2)
    assert rows.count() == 3000
    assert [url for table in rows.tables() for url in table["url"].to_pylist()] == expected
    found = [[int(keep.sum()) for _, keep in part] for group in range(2) for part in rows.masked(group)]
    assert [sum(part) for part in found] == [1500, 1500] and len(found[0]) == 8


def test_an_overlay_changes_its_rows_alone() -> None:
    rows = pa.record_batch({"name": ["a", "b", "c", "d"], "ids": pa.array([[1], [2], [], [4]], pa.list_(pa.int32()))})
    new = {"name": ["B", "D", "Z"], "ids": pa.array([[7, 8], [9], []], pa.list_(pa.int32())), "more": ["x", None, "z"]}
    overlay = Overlay(pa.record_batch({"row": pa.array([11, 13, 14], pa.int32()), **new}))
    assert overlay.over(rows, 10).to_pydict() == {
        "name": ["a", "B", "c", "D"], "ids": [[1], [7, 8], [], [9]], "more": [None, "x", None, None]
    }  # fmt: skip
    assert overlay.over(rows.select(["name"]), 10, ["name"]).to_pydict() == {"name": ["a", "B", "c", "D"]}
    assert overlay.over(rows, 15).to_pydict() == {**rows.to_pydict(), "more": [None] * 4}
    assert overlay.over(rows.slice(2, 2), 12).to_pydict()["ids"] == [[], [9]]
