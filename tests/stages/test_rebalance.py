"""Balancing after the losses of the fetch: each query keeps min(pairs left, cap) pairs with the smallest hashes.

The steps of `caps` run one after the other, without an engine, on rows in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import build, options
from pipeline.engine import hashing, jit, shuffle_files, storage, work
from pipeline.engine.cli import UsageError
from pipeline.engine.work import StageFolder
from pipeline.stages import caps, selection
from pipeline.stages.caps import CapPlan, Policy
from pipeline.stages.matches import Matches
from pipeline.text.matchers import ListOfLanguage, save_lists
from tests.rows import zipf_matches

QUERIES = 60
GROUPS = 3


@dataclasses.dataclass(frozen=True)
class InMemory:
    """A caps.Matched with the rows of one Matches, distributed to the groups."""

    matches_of_all: Matches

    @property
    def groups(self) -> int:
        return GROUPS

    def count(self) -> int:
        return int(self.matches_of_all.keep.sum())

    def matches(self, group: int) -> Iterator[Matches]:
        m = self.matches_of_all
        mine = np.arange(len(m.pair_high)) % GROUPS == group
        yield Matches(m.pair_high, m.pair_low, m.offsets, m.ids, m.keep & mine)


def make_rows(rows: int, seed: int) -> Matches:
    """Rows with Zipf-distributed queries. All rows take part."""
    made = zipf_matches(np.random.default_rng(seed), rows, QUERIES, least=1, most=5)
    return made._replace(keep=np.ones(rows, np.bool_))


def plan_for(folder: Path, stage: str, rows: Matches, policy: Policy, before: CapPlan | None = None) -> CapPlan:
    keys = hashing.query_keys(pa.array([f"query {number}" for number in range(QUERIES)]), 0)
    folder.mkdir(exist_ok=True)
    storage.save_array(str(folder / "query_hash.npy"), keys)
    save_lists(str(folder), [ListOfLanguage("", 0, QUERIES)])
    return CapPlan(StageFolder(str(folder), stage), InMemory(rows), policy, str(folder), before=before)


def run(plan: CapPlan) -> np.ndarray:
    """Balances; returns which rows are picked."""
    for step in (caps.CountQueries, caps.CapWindows, caps.CollectBand):
        task = step(plan)
        for unit in range(task.units()):
            work.run_unit(task.folder, unit, task.run)
    task = caps.FindThresholds(plan)
    if plan.policy.kind == "cap":
        for unit in range(task.units()):
            messages = [shuffle_files.read(plan.step("band").file(group, "band", 0), unit) for group in range(GROUPS)]
            work.run_unit(task.folder, unit, lambda unit, found=messages: task.run(unit, found))
    return selection.pick(plan.rows.matches_of_all, plan.keys(), caps.load_thresholds(plan)).selected


def fetch(rows: Matches, before: CapPlan, selected: np.ndarray, survive: float, seed: int = 2) -> Matches:
    """The selected rows that survive the fetch."""
    before.folder.complete({"rows_out": int(selected.sum())})
    return rows._replace(keep=selected & (np.random.default_rng(seed).random(len(selected)) < survive))


def ideal(rows: Matches, keys: np.ndarray, cap: int) -> np.ndarray:
    """Which rows are among the `cap` smallest hashes of a query: by sorting."""
    row = np.repeat(np.arange(len(rows.pair_high)), np.diff(rows.offsets))
    query, row = rows.ids[rows.keep[row]], row[rows.keep[row]]
    picked = np.zeros(len(rows.pair_high), np.bool_)
    for number in range(QUERIES):
        mine = row[query == number]
        picked[mine[np.argsort(selection.draw(rows.pair_high[mine], keys[number]))[:cap]]] = True
    return picked


@pytest.mark.parametrize("cap", [1, 5, 300, 1000])
@pytest.mark.parametrize("survive", [1.0, 0.9, 0.5])
def test_after_losses_each_query_has_what_is_left_up_to_the_cap(
    tmp_path: Path, cap: int, survive: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if survive == 0.9 and jit.available():
        monkeypatch.setattr(jit, "FEW_ROWS", 0)  # the kernels agree
    rows = make_rows(15_000, 1)
    before = plan_for(tmp_path, "balance", rows, Policy(cap=cap))
    selected = run(before)
    assert (selected == ideal(rows, before.keys(), cap)).all()
    left = fetch(rows, before, selected, survive)
    after = plan_for(tmp_path, "publish", left, Policy(cap=cap), before)
    assert (run(after) == ideal(left, before.keys(), cap)).all()


@pytest.mark.parametrize(("expected", "survive"), [(0.7, 0.7), (0.7, 0.9), (0.7, 0.4), (0.05, 0.07)])
def test_the_cap_is_met_after_the_expected_losses(tmp_path: Path, expected: float, survive: float) -> None:
    rows, cap = make_rows(15_000, 3), 150
    before = plan_for(tmp_path, "balance", rows, Policy(cap=cap, expected_yield=expected))
    selected = run(before)
    assert before.cap() == {0.7: 215, 0.05: 3000}[expected]  # the ceiling
    left = fetch(rows, before, selected, survive)
    after = plan_for(tmp_path, "publish", left, Policy(cap=cap), before)
    picked = run(after)
    assert (picked == ideal(left, before.keys(), cap)).all()
    picks = selection.pick(left, after.keys(), caps.load_thresholds(after)).per_query(len(after.keys()))
    there = selection.count_queries(left.offsets, left.ids, left.keep, QUERIES)
    assert (picks == np.minimum(there, cap)).all() and (there > cap).any()
    if survive > expected:  # a fetch of all matches would pick the same pairs
        everything = rows._replace(keep=np.random.default_rng(2).random(len(selected)) < survive)
        assert (picked == ideal(everything, before.keys(), cap)).all()


@pytest.mark.parametrize("survive", [0.1, 0.45, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["cap", "bernoulli"])
def test_the_wanted_pairs_are_met_after_the_losses(tmp_path: Path, kind: str, survive: float) -> None:
    rows, wanted = make_rows(15_000, 4), 3_000
    policy = Policy(kind, target_pairs=wanted, expected_yield=0.6)
    before = plan_for(tmp_path, "balance", rows, policy)
    selected = run(before)
    assert int(selected.sum()) == pytest.approx(wanted / 0.6, rel=0.03)
    left = fetch(rows, before, selected, survive)
    after = plan_for(tmp_path, "publish", left, dataclasses.replace(policy, expected_yield=1.0), before)
    picked = run(after)
    assert (picked <= left.keep).all()
    assert int(picked.sum()) == pytest.approx(min(wanted, int(left.keep.sum())), rel=0.03)
    assert after.cap() <= before.cap()


def test_bernoulli_meets_the_cap_after_the_losses(tmp_path: Path) -> None:
    rows, cap = make_rows(15_000, 5), 400
    before = plan_for(tmp_path, "balance", rows, Policy("bernoulli", cap=cap, expected_yield=0.5))
    selected = run(before)
    left = fetch(rows, before, selected, 0.6)
    after = plan_for(tmp_path, "publish", left, Policy("bernoulli", cap=cap), before)
    run(after)
    picks = selection.pick(left, after.keys(), caps.load_thresholds(after)).per_query(len(after.keys()))
    assert picks[:10] == pytest.approx(np.full(10, cap), rel=0.2)  # 4 standard deviations
    full = selection.count_queries(rows.offsets, rows.ids, rows.keep, QUERIES)
    assert (full[:10] > 2 * cap).all()


@pytest.mark.parametrize("text", ["0", "1.5", "-0.2", "nan", "80%"])
def test_a_yield_is_a_fraction(text: str) -> None:
    with pytest.raises(UsageError, match="must be a number over 0 and at most 1"):
        options.parse(["--input", "a", "--output", "b", "--expected-yield", text])


def test_the_yield_is_part_of_the_plan(tmp_path: Path) -> None:
    table, queries = tmp_path / "a.csv", tmp_path / "queries.txt"
    table.write_text("url,text\nhttp://a.example/1.jpg,a red dog\n")
    queries.write_text("dog\n")
    command = ["--input", str(table), "--output", str(tmp_path / "out"), "--queries", str(queries)]
    once, other = (options.parse(command + more)[0] for more in ([], ["--expected-yield", "0.8"]))
    assert (once.expected_yield, other.expected_yield) == (1.0, 0.8)
    planned = [build.plan(build.look_up(which)) for which in (once, other)]
    same = {a.name for a, b in zip(*planned, strict=True) if a.folder.fingerprint == b.folder.fingerprint}
    assert same == {"gather", "match", "dedup"}
