"""The ledger: at every stage, rows in = rows out + rows dropped by named reason. `smallest` samples dropped rows.

One `Ledger` counts one stage in one unit of work. The ledgers of units are added up, so the counts are exact however
the work is cut into units. Reasons are short snake_case words that a person understands ("empty_text", "bad_url").
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa


@dataclasses.dataclass
class Ledger:
    """The counts of a stage: its rows and, for sources, the records (of archives, of tables) behind them."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    records_in: int = 0
    records_dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)  # worth reporting, but nothing was dropped
    crawled: Counter[str] = dataclasses.field(default_factory=Counter)  # day -> archives that begin on it

    def drop(self, reason: str, rows: int = 1) -> None:
        """Counts `rows` rows as dropped for `reason` (a negative or zero count does nothing)."""
        if rows > 0:
            self.dropped[reason] += rows

    def lose(self, reason: str, records: int = 1) -> None:
        """Counts records that could not be read at all (cut, poisoned, too large)."""
        if records > 0:
            self.records_dropped[reason] += records

    def add(self, other: Ledger) -> None:
        """Adds another unit's counts to this one."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, field.name, mine + theirs)

    def balanced(self) -> bool:
        """True if rows in = rows out + drops."""
        return self.rows_in == self.rows_out + sum(self.dropped.values())

    def to_json(self) -> dict:
        """Plain dict with sorted reasons, as info.json and the manifests hold it."""
        found = {
            field.name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }
        return {name: value for name, value in found.items() if name != "crawled" or value}

    @classmethod
    def from_json(cls, data: dict) -> Ledger:
        """The inverse of `to_json`; unknown keys are ignored, missing ones are zero."""
        ledger = cls()
        for field in dataclasses.fields(cls):
            if field.name in data:
                value = data[field.name]
                setattr(ledger, field.name, Counter(value) if isinstance(value, dict) else int(value))
        return ledger


def lines_on_records(counted: Mapping[str, Any]) -> list[str]:
    """What info.json says of lost records, damaged inputs, notes and failures, in lines for people.

    Such as "lost: 4 records (bad_record)".
    """
    lost, notes = (
        {reason: count for reason, count in (counted.get(name) or {}).items() if count}
        for name in ("records_dropped", "notes")
    )
    lines = []
    if lost:
        total = sum(lost.values())
        reasons = ", ".join(lost) if len(lost) == 1 else _counts(lost)
        lines.append(f"lost: {total:,} {'record' if total == 1 else 'records'} ({reasons})")
    if notes:
        lines.append(f"notes: {_counts(notes)}")
    if counted.get("retryable"):
        lines.append(f"{counted['retryable']:,} of the failures may pass: --retry-failed fetches these images again")
    without = len(counted.get("left_out") or ())
    if without:
        were = "1 input was" if without == 1 else f"{without:,} inputs were"
        lines.append(f"{were} left out: --retry-failed reads {'it' if without == 1 else 'them'} again")
    return lines + lines_on_inputs(counted.get("damaged_inputs") or {})


MOST_INPUTS = 100  # damaged inputs that are named
SHOWN_INPUTS = 10  # damaged inputs that get a line
CUT = "cut_file"  # note: the input ends too early


def damaged_inputs(counted: Iterable[tuple[str, Ledger]]) -> dict[str, Any]:
    """The inputs that lost records or end too early: their number, and the names of those with the largest losses.

    Args:
        counted: the name of an input and the counts of one unit. The units of one input are added up.

    Returns:
        {} if no input is damaged, else {"count": n, "of": all inputs, "inputs": [{"input": name, "lost": {reason:
        records}, "cut": bool}]} with at most MOST_INPUTS names.
    """
    names: set[str] = set()
    found: dict[str, Ledger] = {}
    for name, ledger in counted:
        names.add(name)
        if ledger.records_dropped or ledger.notes[CUT]:
            found.setdefault(name, Ledger()).add(ledger)
    worst = sorted(found, key=lambda name: (-found[name].records_dropped.total(), name))[:MOST_INPUTS]
    inputs = [
        {"input": name, "lost": dict(sorted(found[name].records_dropped.items())), "cut": bool(found[name].notes[CUT])}
        for name in worst
    ]
    return {"count": len(found), "of": len(names), "inputs": inputs} if found else {}


def lines_on_inputs(damaged: Mapping[str, Any]) -> list[str]:
    """What `damaged_inputs` found, in lines for people: a heading, and a line for each of the first SHOWN_INPUTS."""
    if not damaged:
        return []
    lines = [f"damaged inputs: {damaged['count']:,} of {damaged['of']:,}"]
    for item in damaged["inputs"][:SHOWN_INPUTS]:
        lost = [f"{_counts(item['lost'])} lost"] if item["lost"] else []
        lines.append(f"  {item['input']}: {', '.join([*lost, *(['it ends too early'] if item['cut'] else [])])}")
    more = damaged["count"] - len(damaged["inputs"][:SHOWN_INPUTS])
    return [*lines, f"  and {more:,} more"] if more else lines


def _counts(counts: Mapping[str, int]) -> str:
    """The counts, the largest first: "bad_json 4, bad_gzip 2"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered)


def in_order(rejected: pa.Table) -> pa.Table:
    """Rejected rows in an order that does not depend on how the work was cut into units."""
    return rejected.sort_by([(name, "ascending") for name in ("stage", "reason", "hash", "url", "text")])


def smallest(rejected: pa.Table, keep: int) -> pa.Table:
    """At most `keep` rows for each (stage, reason): those with the smallest hashes.

    The sample does not depend on how the work was cut into units.
    """
    if rejected.num_rows == 0:
        return rejected
    ordered = in_order(rejected)
    taken: list[int] = []
    group, count = None, 0
    for row, key in enumerate(zip(ordered["stage"].to_pylist(), ordered["reason"].to_pylist(), strict=True)):
        group, count = (key, 0) if key != group else (group, count)
        if count < keep:
            taken.append(row)
        count += 1
    return ordered.take(pa.array(taken, pa.int64()))
