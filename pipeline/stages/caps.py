"""The steps of balancing, for any set of rows with query ids: counts, limits, band, thresholds.

`balance` runs them over the matched parts. `publish` runs them again over the fetched rows. Only the place of the rows
(`Rows`) differs. The result is one threshold for each query (`load_thresholds`). Each row is then decided alone.

    CountQueries --sum--> CapWindows --> CollectBand --by query--> FindThresholds --> Gathered thresholds
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.engine import checks, hashing, shuffle_files, storage
from pipeline.engine.rows import Masked, Rows
from pipeline.engine.steps import run_exchange, run_task
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StageFolder, StepFolder
from pipeline.stages import selection, tail_share
from pipeline.stages.matches import Matches, Thresholds
from pipeline.stages.tally import Tally
from pipeline.text.matchers import HASHES, Matchers, load_lists, stamp

if TYPE_CHECKING:
    import apache_beam as beam

QUERY_BUCKETS = 8
CAP_STEPS = ("counts", "limits", "band", "thresholds")
SAMPLE_ROWS = 200_000  # rows from which --target-pairs solves for the cap
LOT_ROWS = 65_536  # rows that the balancer takes at once

BAND = pa.schema(
    [
        pa.field("query", pa.int32(), False),
        pa.field("hash", pa.uint64(), False),
        pa.field("tie", pa.uint64(), False),
    ]
)


class BalanceError(ValueError):
    """The options ask for a balancing that cannot be done."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """The rules by which the queries share the pairs.

    Attributes:
        kind: "cap" (each query picks at most `cap` pairs, exactly), "bernoulli" (MetaCLIP: each match is picked with
            the probability cap / count) or "none".
        cap: pairs that a query may pick (the paper's 20,000).
        target_pairs: solve for the cap that keeps about so many pairs; None: use `cap`.
        seed: of the hash that decides.
        stop_list: path of a list of queries that never pick a pair; None: no list.
        stop_copy: where workers find this list, if they may not see `stop_list`; None: there.
        stop_share: queries in more than this share of the texts never pick a pair; None: no such bound.
        expected_yield: the share of the pairs that the fetch is expected to bring. Before the fetch each query picks
            cap / expected_yield pairs.
    """

    kind: str = "cap"
    cap: int = 20_000
    target_pairs: int | None = None
    seed: int = 0
    stop_list: str | None = None
    stop_copy: str | None = None
    stop_share: float | None = None
    expected_yield: float = 1.0


class Matched(Protocol):
    """Rows with query ids, in groups of parts."""

    @property
    def groups(self) -> int:
        """How many groups there are."""
        ...

    def count(self) -> int:
        """The number of rows that no earlier stage dropped."""
        ...

    def matches(self, group: int) -> Iterator[Matches]:
        """The parts of a group as the balancer sees them."""
        ...


@dataclasses.dataclass(frozen=True)
class MatchedRows:
    """The rows that a stage leaves, as the balancer sees them."""

    rows: Rows

    @property
    def groups(self) -> int:
        return self.rows.groups

    def count(self) -> int:
        return self.rows.count()

    def matches(self, group: int) -> Iterator[Matches]:
        batches = itertools.chain.from_iterable(self.rows.masked(group, ["uid", "query_ids"]))
        for lot in _lots(batches):
            columns = ([batch[name] for batch, _ in lot] for name in ("uid", "query_ids"))
            uids, lists = (pa.concat_arrays([hashing.as_array(column) for column in some]) for some in columns)
            yield Matches.from_arrow(uids, lists, np.concatenate([keep for _, keep in lot]))


def _lots(batches: Iterable[Masked]) -> Iterator[list[Masked]]:
    """The batches in lots of about LOT_ROWS rows. Each call of the balancer goes over all queries, too."""
    lot, rows = list[Masked](), 0
    for batch in batches:
        lot.append(batch)
        rows += batch[0].num_rows
        if rows >= LOT_ROWS:
            yield lot
            lot, rows = [], 0
    if lot:
        yield lot


@dataclasses.dataclass(frozen=True)
class CapPlan:
    """One balancing.

    Attributes:
        folder: of the stage that balances.
        rows: what is balanced.
        policy: how the queries share the pairs.
        tables: folder of the compiled list, with query_hash.npy.
        before: the earlier balancing of these rows, where they are balanced again; None: this is the first.
    """

    folder: StageFolder
    rows: Matched
    policy: Policy
    tables: str
    before: CapPlan | None = None

    def step(self, name: str) -> StepFolder:
        """The folder of a step."""
        return self.folder.step(name)

    def steps(self) -> tuple[StepFolder, ...]:
        """The steps that find the thresholds."""
        return tuple(self.step(name) for name in CAP_STEPS)

    def cap(self) -> int:
        """The cap that `CapWindows` fixed, in pairs of a query; with several languages that of the reference."""
        return self.step("limits").total("cap")

    def keys(self) -> np.ndarray:
        """One 64-bit key for each query. The key depends on the seed."""
        return _query_keys(self.tables, self.policy.seed, stamp(self.tables))


@dataclasses.dataclass(frozen=True)
class CountQueries:
    """One unit for each group: counts the rows that each query matches. --target-pairs also needs a sample of rows."""

    plan: CapPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.step("counts")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int) -> dict[str, Any]:
        counts = np.zeros(len(self.plan.keys()), np.int64)
        before = self.plan.before
        solves = self.plan.policy.target_pairs and before is None
        share = min(1.0, SAMPLE_ROWS / max(1, self.plan.rows.count())) if solves else 0.0
        tau = load_thresholds(before).hash if before is not None else None
        picked = np.zeros(len(counts), np.int64)
        sample: list[pa.Array] = []
        rows = 0
        for matches in self.plan.rows.matches(unit):
            counts += selection.count_queries(matches.offsets, matches.ids, matches.keep, len(counts))
            if tau is not None:
                picked += count_picked(matches, self.plan.keys(), tau)
            keep = np.ones(len(matches.pair_high), np.bool_) if matches.keep is None else matches.keep
            rows += int(keep.sum())
            if share:
                wanted = keep & selection.hash_sample(matches.pair_high, share)
                lists = pa.ListArray.from_arrays(pa.array(matches.offsets.astype(np.int32)), pa.array(matches.ids))
                sample.append(lists.filter(pa.array(wanted)))
        write_vector(self.folder.file(unit, "counts"), counts)
        if tau is not None:
            write_vector(self.folder.file(unit, "picked"), picked)
        if share:
            lists = pa.chunked_array(sample, pa.list_(pa.int32()))
            storage.write_table(self.folder.file(unit, "sample"), pa.table({"query_ids": lists}))
        return {"rows": rows, "matches": int(counts.sum()), "share": share}


@dataclasses.dataclass(frozen=True)
class CapWindows:
    """The only unit: sums the counts, fixes the stop queries and the cap, and gives each query its window of hashes.

    Each match of a query has a uniform 64-bit hash. The query picks the `cap` matches with the smallest hashes. Its
    threshold `tau` is the largest hash that it picks. The counts tell that tau lies near 2^64 * cap / count. The window
    from low to high is wide enough to hold it (`selection.band_limits`, and after the fetch `band_limits_after`):

        hash  0               low       tau       high                                 2^64 - 1
              |----------------|=========|=========|---------------------------------------|
                all are picked   picked  |  not        none is picked
                below[query]             |  picked
              counted only     the band: sorted,       skipped
                               tau is its match number cap - below[query]

    So only the matches in the band leave their group (`CollectBand`). Only these are sorted (`FindThresholds`).
    A query with at most `cap` matches picks all of them. A stop query picks none. Both have no window: low = high = 0.

    The step leaves five arrays with one entry for each query (`load_limits`): count, stop, low, high and cap.
    """

    plan: CapPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.step("limits")

    def units(self) -> int:
        return 1

    def run(self, unit: int) -> dict[str, Any]:
        counts = self._sum("counts")
        rows = self.plan.step("counts").total("rows")
        stop = self._stop(counts, rows)
        cap, matches = self._cap(counts, stop, rows), int(counts.sum())
        caps = self._caps(cap, counts, stop)
        if self.plan.before is None:
            low, high = selection.band_limits(counts, caps, stop=stop)
        elif self.plan.policy.kind == "bernoulli":  # the earlier counts, scaled: both choices are nested
            counts = np.rint(load_limits(self.plan.before)["count"] * self._left(rows)).astype(np.int64)
            low, high = selection.band_limits(counts, caps, stop=stop)
        else:
            tau = load_thresholds(self.plan.before).hash
            low, high = selection.band_limits_after(counts, self._sum("picked"), tau, caps, stop=stop)
        for name, array in {"count": counts, "stop": stop, "low": low, "high": high, "cap": caps}.items():
            storage.save_array(self.folder.file(unit, name), array)
        head = int(((counts > caps) & ~stop).sum())
        return {
            "cap": cap,
            "rows": rows,
            "head_queries": head,
            "matches": matches,
            "stop_queries": int(stop.sum()),
        }

    def _sum(self, kind: str) -> np.ndarray:
        """The sum of a vector over all groups."""
        counted = self.plan.step("counts")
        vectors = (read_vector(counted.file(unit, kind)) for unit, _ in counted.manifests())
        return sum(vectors, np.zeros(len(self.plan.keys()), np.int64))

    def _caps(self, cap: int, counts: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """The cap of each query. Queries of several languages have that of their language (`tail_share`)."""
        lists, before = load_lists(self.plan.tables), self.plan.before
        if len(lists) < 2 or self.plan.policy.kind == "none":
            return np.full(len(counts), cap, np.int64)
        if before is not None:  # the same proportions as before the fetch
            return np.maximum(1, -(-load_limits(before)["cap"] * cap // before.cap()))
        return tail_share.caps_of_queries(tail_share.caps_of_lists(counts, lists, cap, stop=stop), lists)

    def _left(self, rows: int) -> float:
        """The share of the earlier balancing's rows that is left."""
        before = self.plan.before
        return rows / max(1, before.folder.done()["rows_out"]) if before is not None else 1.0

    def _cap(self, counts: np.ndarray, stop: np.ndarray, rows: int) -> int:
        policy, before = self.plan.policy, self.plan.before
        if policy.kind == "none":
            return max(1, int(counts.max(initial=1)))
        if not policy.target_pairs:
            return math.ceil(policy.cap / Fraction(str(policy.expected_yield)))
        if before is None:
            return self._solve(self.plan, counts, policy.target_pairs / policy.expected_yield, stop)
        # All matches, scaled by the share that the fetch brought.
        counts = load_limits(before)["count"]
        solved = self._solve(before, counts, policy.target_pairs, load_limits(before)["stop"], left=self._left(rows))
        return min(solved, before.cap())

    def _solve(self, plan: CapPlan, counts: np.ndarray, wanted: float, stop: np.ndarray, *, left: float = 1.0) -> int:
        """The cap that keeps about `wanted` pairs. `left` is the share of the plan's rows that still exists."""
        counted = plan.step("counts")
        tables = [storage.read_table(counted.file(unit, "sample")) for unit, _ in counted.manifests()]
        lists = hashing.as_array(pa.concat_tables(tables)["query_ids"])
        share = max([manifest["share"] for _, manifest in counted.manifests()], default=1.0)
        scaled = np.rint(counts * left).astype(np.int64)
        several = len(load_lists(plan.tables)) > 1
        caps_of = functools.partial(self._caps, counts=scaled, stop=stop) if several else None
        return selection.solve_cap(
            np.asarray(lists.offsets),
            np.asarray(lists.values),
            scaled,
            wanted,
            scale=left / share,
            stop=stop,
            caps_of=caps_of,
        )

    def _stop(self, counts: np.ndarray, rows: int) -> np.ndarray:
        policy = self.plan.policy
        stop = np.zeros(len(counts), np.bool_)
        if policy.stop_share is not None:
            stop |= counts > policy.stop_share * rows
        if policy.stop_list:
            stop |= Matchers.load(self.plan.tables).among(read_lines(policy.stop_copy or policy.stop_list))
        return stop


@dataclasses.dataclass(frozen=True)
class CollectBand:
    """One unit for each group: the matches whose hash lies in their query's window, cut by query."""

    plan: CapPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.step("band")

    def units(self) -> int:
        return self.plan.rows.groups

    def run(self, unit: int) -> dict[str, Any]:
        limits = load_limits(self.plan)
        below = np.zeros(len(self.plan.keys()), np.int64)
        batches, candidates = [], 0
        for matches in self.plan.rows.matches(unit):
            band = selection.band_tuples(matches, self.plan.keys(), limits["low"], limits["high"], stop=limits["stop"])
            below += band.below
            candidates += int(band.may_be_picked.sum())
            columns = [pa.array(column) for column in (band.query, band.hash, band.tie)]
            batches.append(pa.RecordBatch.from_arrays(columns, schema=BAND))
        batch = hashing.as_batch(pa.Table.from_batches(batches, BAND))
        bucket = batch["query"].to_numpy().astype(np.int64) % QUERY_BUCKETS
        shuffle_files.write(self.folder.file(unit, "band", 0), shuffle_files.cut(batch, bucket, QUERY_BUCKETS))
        write_vector(self.folder.file(unit, "below"), below)
        return {"parts": 1, "tuples": batch.num_rows, "candidates": candidates}


@dataclasses.dataclass(frozen=True)
class FindThresholds:
    """One unit for each bucket of queries: the exact thresholds of its queries."""

    plan: CapPlan

    @property
    def folder(self) -> StepFolder:
        return self.plan.step("thresholds")

    @property
    def reads(self) -> Reading:
        return Reading(self.plan.step("band"), "band")

    def units(self) -> int:
        return QUERY_BUCKETS

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        limits, band = load_limits(self.plan), self.plan.step("band")
        counts = limits["count"]
        below = sum(
            (read_vector(band.file(group, "below")) for group, _ in band.manifests()), np.zeros(len(counts), np.int64)
        )
        tuples = shuffle_files.table(messages, BAND)
        only = np.arange(len(counts)) % QUERY_BUCKETS == unit
        tau = selection.thresholds(
            *(tuples[name].to_numpy() for name in BAND.names),
            counts=counts,
            below=below,
            cap=limits["cap"],
            stop=limits["stop"],
            only=only,
        )
        storage.save_array(self.folder.file(unit, "hash"), tau.hash[only])
        storage.save_array(self.folder.file(unit, "tie"), tau.tie[only])
        return {"tuples": tuples.num_rows}


def find_caps(done: Any, plan: CapPlan, *, exchange: str) -> beam.PCollection:
    """Appends to `done` all steps that find the thresholds. They leave one threshold for each query on disk."""
    done = run_task(done, CountQueries(plan), max_units=plan.rows.groups)
    done = run_task(done, CapWindows(plan), max_units=1)
    if plan.policy.kind == "cap":
        done = run_task(done, CollectBand(plan), max_units=plan.rows.groups)
        find, producers = FindThresholds(plan), plan.rows.groups
        done = run_exchange(done, find, buckets=QUERY_BUCKETS, exchange=exchange, producers=producers)
    return done


def load_thresholds(plan: CapPlan) -> Thresholds:
    """The thresholds that the steps left on disk."""
    limits = load_limits(plan)
    if plan.policy.kind != "cap":
        return selection.bernoulli_thresholds(limits["count"], limits["cap"], stop=limits["stop"])
    found = plan.step("thresholds")
    tau = Thresholds(np.zeros(len(limits["count"]), np.uint64), np.zeros(len(limits["count"]), np.uint64))
    for unit in range(QUERY_BUCKETS):
        tau.hash[unit::QUERY_BUCKETS] = storage.map_array(found.file(unit, "hash"))
        tau.tie[unit::QUERY_BUCKETS] = storage.map_array(found.file(unit, "tie"))
    return tau


def caps_of_languages(plan: CapPlan) -> dict[str, dict[str, int]]:
    """The entry `caps` of info.json: the cap of each language, if there are several."""
    lists, cap = load_lists(plan.tables), load_limits(plan)["cap"]
    return {"caps": {item.language: int(cap[item.first]) for item in lists}} if len(lists) > 1 else {}


def count_picked(matches: Matches, keys: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """For each query the number of its matches with a hash of at most `tau`, the query's threshold."""
    above = np.minimum(tau, selection.HIGHEST - 1) + np.uint64(1)
    return selection.band_tuples(matches, keys, above, above).below


def load_limits(plan: CapPlan) -> dict[str, np.ndarray]:
    """The arrays of `CapWindows` (count, stop, low, high, cap; one entry for each query), mapped."""
    folder = plan.step("limits")
    return {name: storage.map_array(folder.file(0, name)) for name in ("count", "stop", "low", "high", "cap")}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The rows of a batch that at least one query picks.

    Attributes:
        rows: their places in the batch, ascending.
        columns: keep_probability, kept_by and the new row_hash of these rows.
    """

    rows: np.ndarray
    columns: dict[str, pa.Array]


@dataclasses.dataclass(frozen=True)
class Decider:
    """Decides each row alone, with the thresholds on disk.

    Attributes:
        keys, tau: key and threshold of each query.
        miss: for each query the probability that it does not pick a match of its own.
        tally: the ledger and rejects of the stage.
    """

    keys: np.ndarray
    tau: Thresholds
    miss: np.ndarray
    tally: Tally

    @classmethod
    def load(cls, plan: CapPlan, tally: Tally) -> Decider:
        """With the thresholds that the steps of a plan left."""
        limits = load_limits(plan)
        miss = selection.misses(limits["count"], limits["cap"], stop=limits["stop"])
        return cls(plan.keys(), selection.with_few(load_thresholds(plan)), miss, tally)

    def choose(self, rows: pa.RecordBatch, keep: np.ndarray) -> Choice:
        """Counts the rows and picks.

        Args:
            rows: with at least uid, url, text, query_ids and row_hash.
            keep: mask of the rows that are still in.
        """
        matches = Matches.from_arrow(rows["uid"], rows["query_ids"], keep)
        picks = selection.pick(matches, self.keys, self.tau)
        self.tally.ledger.rows_in += int(keep.sum())
        missed = keep & ~picks.selected
        if missed.any():
            dropped = rows["url"], rows["text"], rows["uid"]
            self.tally.drop_some("over_cap", dropped, np.flatnonzero(missed), matches.pair_high[missed])
        places, kept_by = np.flatnonzero(picks.selected), picks.kept_by()
        chance = selection.kept_with(matches.offsets, matches.ids, self.miss)[places]
        row_hash = hashing.mix(rows["row_hash"].to_numpy()[places], hashing.column_hash(kept_by))
        self.tally.passed(row_hash)
        columns = {"keep_probability": pa.array(chance), "kept_by": kept_by, "row_hash": pa.array(row_hash)}
        return Choice(places, columns)

    def pick(self, rows: pa.RecordBatch, keep: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
        """The rows of `choose`, with the columns of a schema."""
        choice = self.choose(rows, keep)
        picked = rows.take(pa.array(choice.rows))
        columns = {**dict(zip(picked.schema.names, picked.columns, strict=True)), **choice.columns}
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def sort_by_uid(table: pa.Table) -> pa.Table:
    """The rows sorted by uid. Uids are distinct."""
    high, low = hashing.uid_words(table["uid"])
    order = np.argsort(high)
    ranked = high[order]
    if (ranked[1:] == ranked[:-1]).any():  # rare: two uids with the same high word
        order = np.lexsort((low, high))
    return table.take(pa.array(order)).combine_chunks()


def shortfall(plan: CapPlan, target: int | None, rows_out: int) -> dict[str, int]:
    """The entries of info.json on a target that the rows cannot reach; none if they can, or if there is no target.

    Args:
        plan: its limits are found.
        target: the pairs that --target-pairs asks for, after the losses of the fetch.
        rows_out: the rows that the plan picked.
    """
    if not target:
        return {}
    limits, wanted = plan.step("limits"), _wanted(plan, target)
    if limits.total("stop_queries"):  # rows of stop queries alone cannot be picked
        reachable = rows_out if not limits.total("head_queries") else wanted
    else:
        reachable = int(limits.total("rows"))
    return {"target_pairs": target, "wanted_pairs": wanted, "reachable_pairs": reachable} if reachable < wanted else {}


def surplus(plan: CapPlan, target: int | None, rows_out: int) -> dict[str, int]:
    """The entries of info.json on a target that is too small: each query picks one pair at least. Else none.

    Args:
        plan, target, rows_out: as `shortfall`.
    """
    if not target or plan.cap() > 1 or rows_out <= _wanted(plan, target):
        return {}
    return {"target_pairs": target, "wanted_pairs": _wanted(plan, target), "least_pairs": rows_out}


def _wanted(plan: CapPlan, target: int) -> int:
    """The pairs to pick before the losses of the fetch."""
    return math.ceil(target / Fraction(str(plan.policy.expected_yield)))


def candidates(plan: CapPlan) -> int:
    """An upper bound of the selected rows. It depends on the rows alone. With caps it is close: windows are narrow."""
    if plan.policy.kind == "cap":
        return int(plan.step("band").total("candidates"))
    return int(plan.step("limits").total("rows"))


def write_vector(path: str, vector: np.ndarray) -> None:
    """Writes a vector of int64, compressed: most entries are zero."""
    storage.write_bytes(path, len(vector).to_bytes(8, "little") + pa.compress(vector.tobytes(), "zstd", asbytes=True))


def read_vector(path: str) -> np.ndarray:
    """Reads a vector that `write_vector` wrote."""
    data = storage.read_bytes(path)
    size = 8 * int.from_bytes(data[:8], "little")
    return np.frombuffer(pa.decompress(data[8:], size, "zstd", asbytes=True), np.int64)


def read_lines(path: str) -> list[str]:
    """The non-empty lines of a text file, uncompressed or gzip."""
    if not storage.is_file(path):
        raise BalanceError(f"there is no list of stop queries {path!r}: check --stop-queries")
    found = storage.here(path)
    with (gzip.open if checks.begins_with(found, b"\x1f\x8b") else open)(found, "rb") as file:
        return [line.strip() for line in file.read().decode().splitlines() if line.strip()]


@functools.lru_cache(maxsize=2)
def _query_keys(tables: str, seed: int, _: tuple[int, int]) -> np.ndarray:
    return hashing.mix(storage.map_array(os.path.join(tables, HASHES)), seed)
