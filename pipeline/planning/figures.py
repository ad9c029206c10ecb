"""From a sample to figures: rows by stage, caps, bytes, requests, CPU seconds and hours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing
from pipeline.planning.sample import Sample
from pipeline.planning.whole import NOTHING, Caps, CapsOf, Growth, Interval, ratio
from pipeline.stages import selection, tail_share
from pipeline.stages.caps import Policy, read_lines
from pipeline.stages.dedup_exchange import DedupPlan, among, keys_of
from pipeline.text.matchers import Matchers, load_lists

FEW_ROWS = 20  # a unit with fewer rows shows what a unit costs, not what rows cost
MEASURED = 0.1  # of a unit's CPU seconds, at least, are work on its rows
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Selected:
    """What the sample tells of select.

    Attributes:
        read, gather, match, dedup: pairs that leave.
        caps: what balancing keeps.
        policy: of balancing.
        stop: queries that pick nothing.
        caps_of: the caps of all queries that follow from a cap, with several languages; None: all have the same.
        gather_cpu: CPU seconds of gather and match on this machine, without what each unit costs.
        parts_bytes: of the matched parts and their keys.
        archived: the share of the pairs whose image lies in an archive.
        hosts: different hosts among the images.
        archived_bytes: of an image in an archive.
    """

    read: Interval
    gather: Interval
    match: Interval
    dedup: Interval
    caps: Caps
    policy: Policy
    stop: Mask | None
    caps_of: CapsOf | None
    gather_cpu: Interval
    parts_bytes: Interval
    archived: float
    hosts: Interval
    archived_bytes: float

    def kept(self, cap: float) -> Interval:
        """The pairs that balancing keeps with a cap."""
        if self.policy.kind == "none":
            return self.dedup
        if not len(self.caps.weights):  # only the pairs of a set that grows: their queries were not looked at
            return Interval(0.0, self.dedup.value, self.dedup.high)
        found = self.caps.kept(self.caps_of(math.ceil(cap)) if self.caps_of else cap, self.stop)
        if not self.dedup.value:
            return NOTHING
        low, high = self.dedup.low / self.dedup.value, self.dedup.high / self.dedup.value
        return Interval(found.low * low, found.value, min(found.high * high, self.dedup.high))

    def cap(self) -> int:
        """The cap of balance, in pairs of a query."""
        wanted = self.policy.target_pairs
        if not wanted:
            return math.ceil(self.policy.cap / self.policy.expected_yield)
        return self.caps.cap_for(wanted / self.policy.expected_yield, stop=self.stop, caps_of=self.caps_of)


def select(
    sample: Sample, dedup: DedupPlan, policy: Policy, *, exempt: Sequence[bool], of_unit: float, times: float = 1.0
) -> Selected:
    """What a sample tells of gather, match, dedup and balance over the whole.

    Args:
        sample: of the inputs.
        dedup: the rules of dedup.
        policy: the rules of balance.
        exempt: for each stratum: its texts may stand at many images.
        of_unit: CPU seconds on this machine that a unit takes beside its rows.
        times: the pairs of the whole set, by those of the inputs that were sampled: more than 1 with --extend.
    """
    found = [_of_stratum(sample, number, of_unit=of_unit) for number in range(len(sample.strata))]
    totals = {name: _sum(getattr(one, name) for one in found) for name in ("read", "gather", "match")}
    weights = np.ones(sample.keys.num_rows)
    is_exempt = np.zeros(sample.keys.num_rows, np.bool_)
    for number, one in enumerate(found):
        weights[one.rows] = max(1.0, one.match.value / max(1, len(one.rows)))
        is_exempt[one.rows] = exempt[number]
    share, stays = _dedup(sample, dedup, totals["match"].value / max(1, len(weights)), is_exempt)
    totals["dedup"] = totals["match"].of(share)
    weights *= times * totals["dedup"].value / max(1.0, weights[stays].sum())
    weights = np.maximum(1.0, weights)
    lists = sample.query_ids.filter(pa.array(stays))
    tables = sample.tables
    several = load_lists(tables)
    offsets = np.asarray(lists.offsets).astype(np.int64)
    ids = np.asarray(lists.values)[offsets[0] : offsets[-1]] if len(lists) else np.zeros(0, np.int32)
    caps = Caps.fit(offsets - offsets[0], ids, weights[stays], queries=several[-1].last)
    stop = _stop(policy, caps, tables)
    counts = np.rint(caps.counts).astype(np.int64)

    def caps_of(cap: int) -> npt.NDArray[np.float64]:
        by_language = tail_share.caps_of_lists(counts, several, cap, stop=stop)
        return tail_share.caps_of_queries(by_language, several).astype(np.float64)

    hosts, archived, image_bytes = _images(sample, stays, totals["dedup"].value)
    return Selected(
        **totals,
        caps=caps,
        policy=policy,
        stop=stop,
        caps_of=caps_of if len(several) > 1 else None,
        gather_cpu=_sum(one.cpu for one in found),
        parts_bytes=_sum(one.disk for one in found),
        archived=archived,
        hosts=hosts,
        archived_bytes=image_bytes,
    )


class _Part(NamedTuple):
    """What a stratum tells, and its rows in the sample."""

    read: Interval
    gather: Interval
    match: Interval
    cpu: Interval
    disk: Interval
    rows: npt.NDArray[np.int64]


def _of_stratum(sample: Sample, number: int, *, of_unit: float) -> _Part:
    units = [unit for unit in sample.units if unit.stratum == number]
    amounts = np.array([unit.amount for unit in units], np.float64)

    def whole(values: Sequence[float]) -> Interval:
        return ratio(amounts, np.array(values, np.float64), sample.strata[number].total)

    mine = np.array([unit.stratum == number for unit in sample.units], np.bool_)
    if units and np.median([unit.gathered["rows_in"] for unit in units]) < FEW_ROWS:
        of_unit = max(of_unit, float(np.median([unit.cpu_seconds for unit in units])))
    return _Part(
        whole([unit.gathered["rows_in"] for unit in units]),
        whole([unit.gathered["rows_out"] for unit in units]),
        whole([unit.matched["rows_out"] for unit in units]),
        whole([max(MEASURED * unit.cpu_seconds, unit.cpu_seconds - of_unit) for unit in units]),
        whole([float(unit.disk_bytes) for unit in units]),
        np.flatnonzero(mine[sample.unit]) if len(mine) else np.zeros(0, np.int64),
    )


def _dedup(sample: Sample, plan: DedupPlan, times: float, is_exempt: Mask) -> tuple[Interval, Mask]:
    """The share of the rows that dedup leaves of the whole, and the rows of the sample that it leaves.

    The bounds on the texts of an image, and on the images of a text, hold for the whole. Of a sample they are smaller
    in proportion. A bound below 1 cannot be counted, so the sample is extrapolated to the size at which it is 1.

    Args:
        sample: of all inputs: a pair of one format may be a copy of one of another format.
        plan: the rules.
        times: the matched rows of the whole, by those of the sample.
        is_exempt: rows whose texts may stand at many images: (rows,).
    """
    table, blocks, times = sample.keys, sample.block, max(1.0, times)
    if not len(blocks):
        return Interval(1.0, 1.0, 1.0), np.zeros(0, np.bool_)
    text, image = table["text"].to_numpy(), table["image"].to_numpy()
    bound = plan.common_text_bound / times
    stays, share = np.ones(len(blocks), np.bool_), Interval(1.0, 1.0, 1.0)
    if bound:
        bound_here = max(1, round(bound))

        def is_rare(mask: Mask) -> Mask:
            counted = mask & ~is_exempt
            common = selection.find_common_texts(text[counted], image[counted], bound_here)
            return is_exempt[mask] | ~among(text[mask], common)

        stays = is_rare(stays)
        share = Growth.measure(blocks, lambda mask: int(is_rare(mask).sum())).at(1.0 / min(1.0, bound))
    table, blocks = table.filter(pa.array(stays)), blocks[stays]
    texts = max(2, round(plan.placeholder_bound / times)) if plan.placeholder_bound else 0

    def is_kept(mask: Mask) -> Mask:
        keys = keys_of(table.filter(pa.array(mask)))
        return selection.find_duplicates(keys, placeholder_bound=texts) == selection.KEEP

    kept = is_kept(np.ones(len(blocks), np.bool_))
    if times <= 1.0 + 1e-9:
        growth = Growth(float(kept.mean()) if len(kept) else 1.0, 0.0, 0.0, 0.0)
    else:
        growth = Growth.measure(blocks, lambda mask: int(is_kept(mask).sum()))
    stays[np.flatnonzero(stays)[~kept]] = False
    return share.of(growth.at(times)), stays


def _stop(policy: Policy, caps: Caps, tables: str) -> Mask | None:
    """The queries that pick nothing, as `caps.CapWindows` finds them."""
    if policy.stop_share is None and not policy.stop_list:
        return None
    stop = np.zeros(len(caps.counts), np.bool_)
    if policy.stop_share is not None:
        stop |= caps.counts > policy.stop_share * caps.weights.sum()
    if policy.stop_list:
        stop |= Matchers.load(tables).among(read_lines(policy.stop_list))
    return stop


def _images(sample: Sample, stays: Mask, total: float) -> tuple[Interval, float, float]:
    """The hosts of the images, the share of them that lies in the archives, and the bytes of one in an archive."""
    urls, units = sample.url.filter(pa.array(stays)), sample.unit[stays]
    if not len(urls):
        return NOTHING, 0.0, 0.0
    hosts = hashing.hash_strings(host_names(urls))[:, 0]
    blocks = sample.block[stays]
    growth = Growth.measure(blocks, lambda mask: len(np.unique(hosts[mask])))
    times = max(1.0, total / len(urls))
    found = growth.at(times).times(len(urls) * times)
    count = sum(len(unit.images) for unit in sample.units)
    if not count:
        return found, 0.0, 0.0
    wanted = hashing.hash_strings(urls)[:, 0]
    every = np.unique(np.concatenate([unit.images for unit in sample.units]))
    anywhere = among(wanted, every)
    near = np.zeros(len(urls), np.bool_)
    for number in np.unique(units).tolist():
        mine = units == number
        near[mine] = among(wanted[mine], np.sort(sample.units[number].images))
    far = float((anywhere & ~near).sum()) * times
    archived = min(1.0, (float(near.sum()) + far) / len(urls))
    return found, archived, sum(unit.image_bytes for unit in sample.units) / count


def host_names(urls: pa.Array) -> pa.Array:
    """The host of each canonical URL."""
    return pc.struct_field(pc.extract_regex(urls, r"^[a-z]+://(?P<host>[^/?#]+)"), "host").fill_null("")


def _sum(found: Any) -> Interval:
    total = NOTHING
    for one in found:
        total = total.plus(one)
    return total
