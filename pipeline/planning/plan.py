"""`--plan`: the stages, and what they would read, make and take, as text or as JSON. Nothing is written below OUT."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.engine import display, runners, storage
from pipeline.engine.cli import UsageError
from pipeline.engine.input_errors import is_remote
from pipeline.fetching.options import FetchOptions
from pipeline.planning import costs, sample
from pipeline.planning.figures import Selected, select
from pipeline.planning.pictures import Pictures
from pipeline.planning.takes import Images, Rows, Setting, Takes, rows_of, takes
from pipeline.planning.whole import Interval
from pipeline.sources import READERS
from pipeline.sources.base import Input
from pipeline.stages import continuing, extending, grouping
from pipeline.stages.base import Stage
from pipeline.stages.caps import CapPlan
from pipeline.stages.dedup_exchange import DedupStage
from pipeline.stages.run import KERNEL_ROWS, Run, RunSettings

SECONDS = 20.0  # of a plan, the looks at the inputs among them
RESERVED_SECONDS = 3.0  # for what follows the sample
CAPS = (1_000, 5_000, 20_000, 100_000)  # whose sets are shown beside that of the run
SELECT = ("gather", "match", "dedup", "balance")
Planner = Callable[[Run], list[Stage]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        run: the run.
        states: stage -> "to do" or "done".
        rows: that leave each stage; those of done stages as counted.
        caps: cap -> pairs that balance would keep; empty if no sample was drawn.
        cap: of the run; None: no sample was drawn.
        takes: CPU, bytes, requests.
        drawn: the sample; None: the stages that read the inputs are done.
        notes: for the user.
        speed: CPU seconds here for one on the machine of the costs.
        input_bytes: format -> bytes of its files.
    """

    run: Run
    states: dict[str, str]
    rows: Rows
    caps: dict[int, Interval]
    cap: int | None
    takes: Takes
    drawn: sample.Sample | None
    notes: tuple[str, ...]
    speed: float
    input_bytes: dict[str, float]


def make(run: Run, stages: Sequence[Stage], plan: Planner, *, started: float) -> Plan:
    """Draws a sample where one is needed, and computes the plan.

    Args:
        run: with its inputs looked up; it passed the checks of a run.
        stages: all stages, planned.
        plan: makes the stages of a run.
        started: when the command began, as `time.monotonic` tells it.

    Raises:
        UsageError: another set is an input.
    """
    if run.others:
        named = " ".join(other.spec for other in run.others)
        raise UsageError(f"--plan with --input {named}: what another set brings is not counted; plan with inputs alone")
    asked = run.settings(RunSettings).stages
    left = [stage.name for stage in continuing.to_do(list(stages), run)]
    states = {name: "to do" if name in left else "done" for name in asked}
    grows = extending.grows(run)
    if grows:  # what compares rows is done again
        states |= {name: "to do" for name in asked}
    speed, notes = costs.speed(), []
    new, drawn, selected, cap = run.new_inputs if grows else run.inputs, None, None, None
    pictures = _pictures(run)
    if set(SELECT) & set(left) and new:
        with tempfile.TemporaryDirectory(prefix="openwit-plan-") as folder:
            seconds = SECONDS - RESERVED_SECONDS - (time.monotonic() - started)
            over = dataclasses.replace(run, inputs=tuple(new))
            drawn = sample.draw(over, plan, folder, seconds=seconds, pictures=pictures)
            selected = _select(run, stages, drawn, grows=grows, of_unit=(costs.COSTS.input + costs.COSTS.unit) * speed)
            cap = selected.cap()
        notes += _notes(run, drawn, grows=grows)
    rows, images = _rows(selected, pictures, cap, stages, states)
    sizes = _sizes(new, drawn)
    setting = _setting(run, new, sizes, [name for name, state in states.items() if state == "to do"], speed)
    found = takes(
        rows,
        images,
        gather_cpu=selected.gather_cpu.value if selected else 0.0,
        parts_bytes=selected.parts_bytes.value if selected else 300.0 * rows.match.value,
        hosts=selected.hosts.value if selected else rows.balance.value / 5,
        setting=setting,
        costs=costs.COSTS,
        sizes=costs.SIZES,
    )
    caps = {}
    if selected is not None and cap is not None and "balance" in states:
        caps = {one: selected.kept(one) for one in sorted({*CAPS, cap})} if selected.policy.kind != "none" else {}
    bytes_of = dict.fromkeys((item.format for item in run.inputs), 0.0)
    for item in {item.path: item for item in run.inputs}.values():
        bytes_of[item.format] += sizes.get(item.path, READERS[item.format].size(item))
    return Plan(run, states, rows, caps, cap, found, drawn, tuple(notes), speed, bytes_of)


def _pictures(run: Run) -> Pictures:
    side, aspect, size = (getattr(run.options, name) for name in ("min_image_side", "max_aspect", "image_size"))
    return Pictures(FetchOptions(image_size=size), side, aspect)


def _select(run: Run, stages: Sequence[Stage], drawn: sample.Sample, *, grows: bool, of_unit: float) -> Selected:
    dedup = next(stage for stage in stages if stage.name == "dedup")
    balance = next(stage for stage in stages if stage.name == "balance")
    assert isinstance(dedup, DedupStage)
    policy = next(value.policy for value in vars(balance).values() if isinstance(value, CapPlan))
    exempt = [bool(dedup.duplicates.exempt) and not READERS[one.format].knows_pages for one in drawn.strata]
    known = [stage.folder.info() or {} for stage in stages[:3]] if grows else []
    found = select(drawn, dedup.duplicates, policy, exempt=exempt, of_unit=of_unit)
    if not any(known):
        return found
    # The set grows: its own pairs are counted, and are taken to be like those of the new inputs.
    counts = [info.get("rows_out", 0) for info in known]
    read = Interval(*3 * (float(known[0].get("rows_in", 0)),))
    more = [Interval(*3 * (float(count),)) for count in counts]
    whole = found.dedup.plus(more[2])
    times = max(1.0, whole.value / max(1.0, found.dedup.value))
    found = select(drawn, dedup.duplicates, policy, exempt=exempt, of_unit=of_unit, times=times)
    return dataclasses.replace(
        found,
        read=found.read.plus(read),
        gather=found.gather.plus(more[0]),
        match=found.match.plus(more[1]),
        dedup=whole,
        hosts=found.hosts.times(times),
    )


def _rows(
    selected: Selected | None, pictures: Pictures, cap: int | None, stages: Sequence[Stage], states: dict[str, str]
) -> tuple[Rows, Images]:
    """The rows that leave each stage. Those of done stages are counted, and later ones follow from them."""
    infos = {stage.name: stage.folder.info() for stage in stages if stage.is_done()}
    counted = {
        name.replace("-", "_"): Interval(*3 * (float(info["rows_out"]),))
        for name, info in infos.items()
        if info is not None and states.get(name) != "to do"
    }
    first = infos.get("gather")
    if first is not None and states.get("gather") != "to do":
        counted["read"] = Interval(*3 * (float(first["rows_in"]),))
    expected_yield = selected.policy.expected_yield if selected else 1.0
    fetch = infos.get("fetch")
    archived = selected.archived if selected else 0.0
    if selected is None and first is not None:
        listed = next(stage for stage in stages if stage.name == "gather").images.total("images")  # type: ignore[attr-defined]
        archived = min(1.0, listed / max(1.0, counted["dedup"].value if "dedup" in counted else listed))
    images = Images.of(archived, pictures, costs.COSTS, expected_yield=expected_yield)
    if selected is not None and cap is not None:
        rows = rows_of(selected, images, cap)
    else:
        balance = counted.get("balance", Interval(0.0, 0.0, 0.0))
        fetched = balance.of(images.fetched)
        kept = fetched.of(images.good)
        rows = Rows(balance=balance, fetch=fetched, dedup_images=kept, publish=kept)
    if fetch is not None and rows.fetch.value and "fetch" in counted:
        share = counted["fetch"].value / rows.fetch.value
        rows = rows._replace(dedup_images=rows.dedup_images.times(share), publish=rows.publish.times(share))
    return rows._replace(**counted), images


def _sizes(inputs: Sequence[Input], drawn: sample.Sample | None) -> dict[str, float]:
    """The bytes of each file. Of files whose size no listing told, the mean of those that were opened."""
    unknown: dict[str, float] = {}
    for one in drawn.strata if drawn is not None else ():
        lacking = [item for item in one.items if item.bytes is None]
        if lacking and one.taken and READERS[one.format].unit(lacking[0]) == "bytes":
            known = sum(item.bytes or 0 for item in one.items)
            unknown[one.format] = max(0.0, one.total - known) / len(lacking)
    return {
        item.path: float(READERS[item.format].size(item) if item.bytes is not None else unknown.get(item.format, 0))
        or READERS[item.format].size(item)
        for item in inputs
    }


def _setting(run: Run, inputs: Sequence[Input], files: dict[str, float], left: Sequence[str], speed: float) -> Setting:
    remote = {path: size for path, size in files.items() if is_remote(path.rpartition("::")[2])}
    name, workers, _ = run.runner
    if name.lower() in runners.LOCAL:
        workers = workers or len(os.sched_getaffinity(0))
    return Setting(
        queries=len(run.queries.table),
        inputs=len(inputs),
        units=len(grouping.groups(list(enumerate(inputs)))),
        remote_inputs=len(remote),
        input_bytes=float(sum(files.values())),
        remote_bytes=float(sum(remote.values())),
        workers=workers,
        loads_kernels=run.expected_rows > KERNEL_ROWS,
        stages=tuple(left),
        speed=speed,
    )


def _notes(run: Run, drawn: sample.Sample, *, grows: bool) -> list[str]:
    notes = []
    if grows:
        notes.append("the pairs of the set are taken to be like those of the new inputs")
    if drawn.failures:
        many = display.amount(drawn.failures, None, "pieces")
        notes.append(f"{many} of the sample could not be read: {display.cut(display.sanitize(drawn.failure), 200)}")
    if drawn.heads:
        notes.append(f"{display.amount(drawn.heads, None, 'inputs')} can only be sampled from their start")
    if not drawn.units or not any(unit.amount for unit in drawn.units):
        notes.append("nothing could be sampled: the figures are empty")
    elif not drawn.keys.num_rows:
        notes.append("no pair of the sample is left after match")
    elif not drawn.is_whole and drawn.keys.num_rows < 1_000:
        notes.append(f"only {drawn.keys.num_rows:,} pairs of the sample are left after match: expect large errors")
    return notes


# ---------------------------------------------------------------------------------------------------------- output


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON. Times are in hours, sizes in bytes."""
    rows, found = plan.rows, plan.takes
    stages_bytes = sum(found.stages_bytes.values())
    estimate = {
        "pairs": round(rows.read.value),
        "matched": round(rows.match.value),
        "selected": round(rows.balance.value),
        "published": round(rows.publish.value) if "publish" in plan.states else 0,
        "core_hours": found.cpu_seconds / 3600,
        "scratch_bytes": round(stages_bytes),
        "published_bytes": round(found.published_bytes),
    }
    return {
        "inputs": len(plan.run.inputs),
        "bytes": {form: round(size) for form, size in plan.input_bytes.items()},
        "robots_archives": len(plan.run.robots_archives),
        "queries": len(plan.run.queries.table),
        "sample": _sample_json(plan.drawn),
        "estimate": estimate,
        "rows": {name.replace("_", "-"): _json(interval) for name, interval in rows._asdict().items()},
        "cap": plan.cap,
        "caps": {str(cap): _json(interval) for cap, interval in plan.caps.items()},
        "cpu_seconds": {name: round(seconds, 3) for name, seconds in found.cpu.items()},
        "hours": None if found.wall is None else found.wall / 3600,
        "stages_bytes": {name: round(size) for name, size in found.stages_bytes.items()},
        "download_bytes": {name: round(size) for name, size in found.download_bytes.items()},
        "requests": {name: round(count) for name, count in found.requests.items()},
        "speed": round(plan.speed, 3),
        "stages": plan.states,
        "refused": None,
        "notes": list(plan.notes),
    }


def _sample_json(drawn: sample.Sample | None) -> dict[str, Any] | None:
    if drawn is None:
        return None
    return {
        "pieces": len(drawn.units),
        "matched_rows": drawn.keys.num_rows,
        "share": {one.format: round(one.taken / max(1.0, one.total), 6) for one in drawn.strata},
        "whole": drawn.is_whole,
        "seconds": round(drawn.seconds, 2),
        "failures": drawn.failures,
    }


def _json(interval: Interval) -> dict[str, int]:
    return {"low": math.floor(interval.low), "value": round(interval.value), "high": math.ceil(interval.high)}


def show(plan: Plan) -> None:
    """Prints the plan for people."""
    for name, line in _lines(plan):
        print(f"{name:<13}{line}" if name else line)


def _lines(plan: Plan) -> list[tuple[str, str]]:
    run, found = plan.run, plan.takes
    sizes = to_json(plan)["bytes"]
    listed = ", ".join(f"{display.size(size)} {kind}" for kind, size in sizes.items())
    lines = [("inputs", f"{len(run.inputs):,}, {listed}")]
    if run.robots_archives:
        lines.append(("robots.txt", f"{len(run.robots_archives):,} archives"))
    lines.append(("queries", f"{len(run.queries.table):,}"))
    lines.append(("sample", _sample_line(plan.drawn)))
    lines += [
        (name.replace("_", "-"), _pairs(interval))
        for name, interval in plan.rows._asdict().items()
        if name == "read" or name.replace("_", "-") in plan.states
    ]
    for cap, interval in plan.caps.items():
        of_run = "  (of this run)" if cap == plan.cap else ""
        lines.append((f"cap {_short(cap)}", f"{_pairs(interval)} selected{of_run}"))
    stages = sum(found.stages_bytes.values())
    published = f", {display.size(found.published_bytes)} beside it" if found.published_bytes else ""
    room = _room(plan, stages + found.published_bytes)
    lines.append(("disk", f"{display.size(stages)} in OUT/stages{published}{room}"))
    downloads = [f"{display.size(size)} of {name}" for name, size in found.download_bytes.items() if size]
    if downloads:
        lines.append(("downloads", ", ".join(downloads)))
    requests = [f"{count:,.0f} for {name}" for name, count in found.requests.items() if count]
    if requests:
        lines.append(("requests", ", ".join(requests)))
    parts = ", ".join(f"{name} {_hours(seconds)}" for name, seconds in found.cpu.items() if seconds)
    lines.append(("takes", f"{found.cpu_seconds / 3600:,.3f} core-hours ({parts})"))
    if found.wall is not None:
        lines.append(("", f"{'':<13}{_hours(found.wall)} on this machine, if nothing else runs on it"))
    lines.append(("stages", ", ".join(f"{name} ({state})" for name, state in plan.states.items())))
    lines += [("note", note) for note in plan.notes]
    if "fetch" in plan.states and plan.states["fetch"] == "to do":
        lines.append(("assumed", _assumed(plan)))
    lines.append(("", "The inputs were only read, and nothing was written."))
    return lines


def _assumed(plan: Plan) -> str:
    low, middle, high = (f"{share:.0%}" for share in costs.COSTS.alive)
    seconds = costs.COSTS.seconds_on_wire
    return f"the web still has {middle} of its images ({low} to {high}), and a download takes {seconds:g} s"


def _sample_line(drawn: sample.Sample | None) -> str:
    if drawn is None:
        return "none: the stages that read the inputs are done"
    if drawn.is_whole:
        return f"all of it, in {drawn.seconds:.1f} s"
    shares = ", ".join(f"{one.taken / max(1.0, one.total):.2%} of {one.format}" for one in drawn.strata)
    return f"{shares}: {len(drawn.units):,} pieces, {drawn.keys.num_rows:,} matched pairs, in {drawn.seconds:.1f} s"


def _pairs(interval: Interval) -> str:
    if interval.low == interval.high:
        return f"{interval.value:,.0f} pairs"
    return f"{interval.value:,.0f} pairs ({interval.low:,.0f} to {interval.high:,.0f})"


def _short(cap: int) -> str:
    return f"{cap // 1000}k" if cap % 1000 == 0 and cap else f"{cap:,}"


def _hours(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _room(plan: Plan, needed: float) -> str:
    """What is free, if it is not enough."""
    if storage.is_url(plan.run.root):
        return ""
    path = plan.run.root
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    free = shutil.disk_usage(path).free
    return f" (only {display.size(free)} are free)" if free < needed else ""


def dump(plan: Plan, *, as_json: bool) -> None:
    """Prints the plan."""
    if as_json:
        print(json.dumps(to_json(plan), indent=1))
    else:
        show(plan)
