"""Dropped rows that are kept: with --keep-rejected all they are as many as the ledger counts, reason by reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import build
from pipeline.dataset.tombstones import Tombstones
from pipeline.engine.ledger import lines_on_records
from pipeline.sources.base import candidates_of_pairs
from pipeline.stages.gather import FORGOTTEN, Cleaning, Origin, clean_batch
from pipeline.stages.tally import Rejects, Tally
from tests.growing import Growing, small_web
from tests.without_beam import run_job

GONE = "http://gone.example/1.jpg"
URLS = [None, "", "http://a.example/1.jpg", "ftp://a.example/1.jpg", "http://a.example/1.svg", GONE]
TEXTS = [None, "", "a red dog", "x", "dog.jpg", "http://a.example/", "mail me@a.example"]


@given(st.lists(st.tuples(st.sampled_from(URLS), st.sampled_from(TEXTS)), max_size=30))
def test_gather_keeps_each_row_that_it_drops(pairs: list[tuple[str | None, str | None]]) -> None:
    tally = Tally("gather", Rejects("all"))
    url, text = (pa.array([pair[place] for pair in pairs], pa.string()) for place in (0, 1))
    batch = candidates_of_pairs(url, text, np.arange(len(pairs)), tally.ledger)
    forgotten = Tombstones.new().add("url", [GONE])
    passed = clean_batch(batch, tally, origin=Origin.of(["a"], [0]), rules=Cleaning(), forgotten=forgotten)
    assert tally.ledger.balanced() and tally.ledger.rows_out == passed.num_rows
    kept, counted = tally.rejects.table(), Counter(tally.ledger.dropped)
    assert counted.pop(FORGOTTEN, 0) == sum(url == GONE for url, _ in pairs)  # whatever else is wrong with the row
    assert Counter(kept["reason"].to_pylist()) == counted and GONE not in kept["url"].to_pylist()
    lacking = {"null_url": [url for url, _ in pairs].count(None)}
    lacking["null_text"] = sum(text is None and url not in (None, GONE) for url, text in pairs)
    assert lacking == {reason: counted[reason] for reason in lacking}


def test_each_stage_keeps_the_rows_that_it_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.runners, "run_job", run_job)
    with small_web() as server:
        growing = Growing(tmp_path / "in", server)
        rows = [(f"img/{number:02}.jpg", f"a red dog number {number}") for number in (0, 1, 2, 3, 4, 18, 22, 23)]
        rows += [
            ("img/00.jpg", "the cat"),
            ("img/05.jpg", "no query here"),
            ("img/01.jpg", "x"),
            ("status/404", "a cat"),
        ]
        path, out = growing.table("a.parquet", rows), tmp_path / "out"
        table = pq.read_table(path)
        lacking = pa.table({"url": [None, server.base], "text": ["a cat", None]}, schema=table.schema)
        pq.write_table(pa.concat_tables([table, lacking]), path)
        growing.build(out, [path], "--keep-rejected", "all", "--min-image-side", "200", "--cap", "3")
    kept = [pq.read_table(path, columns=["stage", "reason"]) for path in (out / "rejected").glob("*.parquet")]
    counted = {
        (row["stage"], reason): count
        for row in json.loads((out / "manifest.json").read_text())["ledger"]
        for reason, count in row["dropped"].items()
    }
    assert Counter((row["stage"], row["reason"]) for table in kept for row in table.to_pylist()) == counted
    assert {"null_url", "null_text", "too_short", "no_query", "other_text", "over_cap"} <= {why for _, why in counted}


def test_a_count_of_zero_gets_no_line() -> None:
    assert lines_on_records({"notes": {"bad_sample_json": 0}, "records_dropped": {"repeated_key": 0}}) == []
    assert lines_on_records({"notes": {"cut_file": 2, "page": 0}}) == ["notes: cut_file 2"]
