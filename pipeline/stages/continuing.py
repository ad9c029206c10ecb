"""Decides if a run can continue a folder: it compares the planned stages with the stages in the folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from pipeline.dataset import damage
from pipeline.engine import storage
from pipeline.engine.cli import UsageError
from pipeline.engine.display import sanitize
from pipeline.engine.work import StepFolder
from pipeline.stages import left_out
from pipeline.stages.base import Stage
from pipeline.stages.row_pass import RowStage
from pipeline.stages.run import HowSettings, Run, RunSettings

LONGEST_VALUE = 60  # characters of an option's value in a message
# The entries of `decided_by` that are no options: digests and version numbers. A message names them so.
BEHIND = {
    "inputs": "another --input",
    "queries": "another --queries",
    "robots_archive": "another --robots-archive",
    "format": "another format of the shards",
    "rows_as": "another form of the rows, by an older version",
    "scores": "other --scores",
    "blocklist": "another --blocklist",
    "queries_of_texts": "an older rule for the queries of joined texts",
    "decontaminate": "other images for --decontaminate",
}


def check(stages: list[Stage], run: Run) -> None:
    """Refuses a folder whose stages were made with other options, or that lacks the rows that the run begins from.

    Args:
        stages: all seven stages, planned.
        run: the run that is asked for.

    Raises:
        UsageError: its message names the options that differ and what to type.
    """
    asked, names = run.settings(RunSettings).stages, [stage.name for stage in stages]
    kept = kept_of(stages, run)
    for stage in kept:
        problem = difference(stage)
        if problem:
            raise UsageError(f"{stage.folder.root} holds the stage {stage.name!r} {problem}")
    first = names.index(asked[0])
    if first and not (stages[first - 1] in kept and stages[first - 1].folder.info()):
        raise UsageError(
            f"--stages begins with {names[first]!r}, but {names[first - 1]!r} is not done in {stages[0].folder.root}: "
            f"begin with an earlier stage"
        )
    check_rows_are_there(stages, kept, asked)


def refused(stages: list[Stage], run: Run, why: str) -> dict[str, Any]:
    """What a plan says of a run that would be refused: the state of each stage that is asked for, and why."""
    kept, asked, left = kept_of(stages, run), run.settings(RunSettings).stages, to_do(stages, run)
    states = {}
    for stage in (stage for stage in stages if stage.name in asked):
        other = stage in kept and difference(stage) is not None
        states[stage.name] = "refused" if other else "to do" if stage in left else "done"
    return {"stages": states, "refused": why}


def kept_of(stages: list[Stage], run: Run) -> list[Stage]:
    """The stages before --redo; without it all stages. The run does not repeat those of them that are done."""
    redo = run.settings(HowSettings).redo
    return stages[: [stage.name for stage in stages].index(redo)] if redo else stages


def to_do(stages: list[Stage], run: Run) -> list[Stage]:
    """The stages that the run must do: asked for, and not done with this plan."""
    asked, kept = run.settings(RunSettings).stages, kept_of(stages, run)
    return [stage for stage in stages if stage.name in asked and not (stage in kept and stage.is_done())]


def check_inputs(stages: list[Stage], run: Run) -> None:
    """Checks the inputs of the stages to do, before anything is written.

    Raises:
        UsageError, MissingInput: a stage cannot do what the options ask for.
    """
    for stage in to_do(stages, run):
        stage.check(run)


def check_results(stages: list[Stage], run: Run) -> None:
    """Checks the results of the stages that are done, up to the last one that is asked for.

    Raises:
        BelowThreshold: a stage left too few rows for the later stages.
    """
    last = [stage.name for stage in stages].index(run.settings(RunSettings).stages[-1])
    for stage in stages[: last + 1]:
        if stage.is_done():
            stage.check_result(run)


def difference(stage: Stage) -> str | None:
    """The reason why a completed stage cannot be used; None if it is as planned, or if there is none."""
    info = stage.folder.info()
    if info is None or stage.is_done():
        return None
    first = damage.stage_to_redo(os.path.join(stage.folder.path, "info.json")) or stage.name
    remedy = f"use another --output, or add --redo {first} to make it anew"
    if "fingerprint" not in info or storage.CHECKSUM not in info:
        version = info.get("versions", {}).get("openwit", "unknown")
        return f"made by an older version of OpenWIT ({version}), which this one cannot continue: {remedy}"
    differing = describe(info.get("decided_by", {}), stage.decided)
    return f"made with other options ({differing or 'of an earlier stage'}): repeat those, {remedy}"


def describe(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The options that differ, each with both values."""
    parts = []
    for name in [*wanted, *(name for name in there if name not in wanted)]:
        if there.get(name) == wanted.get(name):
            continue
        if name in BEHIND:
            parts.append(BEHIND[name])
        else:
            flag = "--" + name.replace("_", "-")
            parts.append(f"{flag} was {shown(there.get(name))} and is {shown(wanted.get(name))}")
    return "; ".join(parts)


def shown(value: Any) -> str:
    """An option's value as a message shows it."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    text = "not given" if value is None else text
    text = sanitize(text) or "empty"
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


def check_rows_are_there(stages: list[Stage], kept: list[Stage], asked: tuple[str, ...]) -> None:
    """Refuses to begin after a stage whose rows were not kept, because a pass handed them to the next stage.

    Raises:
        UsageError: its message names the stage to do again.
    """
    for before, stage in zip(stages, stages[1:], strict=False):
        if not isinstance(stage, RowStage) or stage.name not in asked or before not in kept:
            continue
        info, made = before.folder.info(), stage in kept and (stage.is_done() or stage.parts().folder.manifests())
        if info and info["rows_out"] and not made and not stage.source().units():
            raise UsageError(
                f"{before.folder.root} does not hold the rows of the stage {before.name!r}: a pass handed them to "
                f"{stage.name!r} and did not keep them; add --redo {before.name}"
            )


def remove_from(stages: list[Stage], name: str | None) -> None:
    """Removes a stage and all later ones, so that the run repeats them; None: removes nothing.

    The images of the fetch stay if an earlier stage is repeated. Of the stage itself all goes.
    """
    names = [stage.name for stage in stages]
    for stage in reversed(stages[names.index(name) :] if name else []):  # a stage never outlives one before it
        if stage.name == name:
            storage.remove(stage.folder.path)
        else:
            stage.begin_anew()


def remove_lost(stages: list[Stage], run: Run) -> list[str]:
    """Removes each done stage that is asked for and whose files are gone. Returns a line about each of them."""
    asked, said = run.settings(RunSettings).stages, []
    for stage in stages:
        path = stage.lost() if stage.name in asked and stage.is_done() else None
        if path is not None:
            remove_from(stages, stage.name)
            said.append(f"{path} is gone or has another size: {stage.name} begins anew")
    return said


def reopen(stages: list[Stage], run: Run) -> None:
    """Reopens done stages where the user asks for it, and removes all stages after them."""
    for stage, after in zip(stages, stages[1:], strict=False):
        if stage.reopens(run):
            remove_from(stages, after.name)
            stage.reopen()


# ---- inputs that were left out


def reads_inputs(stages: list[Stage]) -> list[RowStage]:
    """The stages of the pass that read the inputs: gather, or gather and match if they did it as one pass."""
    first, second = stages[:2]
    assert isinstance(first, RowStage) and isinstance(second, RowStage)
    fused = not first.parts().folder.manifests() and second.parts().folder.manifests()
    return [first, second] if fused else [first]


def reopen_inputs(stages: list[Stage], run: Run) -> tuple[list[Stage], str]:
    """Reopens the units of inputs that were left out, if the user asks for it or a killed run has begun it.

    Returns:
        The stages that must run for it, before all others, and a line for the user. ([], "") if there are none.

    Raises:
        UsageError: --stages leaves out a stage that reads the inputs.
    """
    asked, root = run.settings(RunSettings).stages, run.root
    retry = left_out.Retry.load(root)
    if stages[0].name not in asked:
        return [], ""
    if not retry.is_under_way and run.settings(HowSettings).retry_failed:
        retry = _plan_retry(stages, run, retry)
    if not retry.is_under_way:
        return [], ""
    missing = [name for name in retry.stages if name not in asked]
    if missing:
        raise UsageError(
            f"--stages {asked[0]}..{asked[-1]}: inputs that were left out are read again, and this needs {missing[0]}"
        )
    head = [stage for stage in stages if stage.name in retry.stages]
    if not retry.begun:
        for stage in reversed(head):
            storage.remove(os.path.join(stage.folder.path, "COMPLETED"))
        for unit in retry.units:
            _parts_of(head).remove_files(unit)
        retry = dataclasses.replace(retry, begun=True).save(root)
    if all(stage.is_done() for stage in head):
        return [], ""
    many = f"{retry.inputs:,} {'input' if retry.inputs == 1 else 'inputs'}"
    return list(head), f"{many} that {'was' if retry.inputs == 1 else 'were'} left out: read again"


def _plan_retry(stages: list[Stage], run: Run, old: left_out.Retry) -> left_out.Retry:
    """Notes what a retry will do; nothing else is changed. It is not under way if no input was left out."""
    head = reads_inputs(stages)
    folder = head[-1].parts().folder
    units = left_out.units(folder)
    if not units:
        return old
    infos = [stage.folder.info() for stage in head]
    numbers = left_out.inputs(folder, run.input_list)
    names = tuple(sorted({*old.names, *(run.input_list.units[number].name for number in numbers)}))
    if not all(infos):  # the pass has not ended, so no later stage has begun
        for unit in units:
            folder.remove_files(unit)
        return left_out.Retry(names).save(run.root)
    stages_of = tuple(stage.name for stage in head)
    before = tuple(left_out.counted(info) for info in infos)
    return left_out.Retry(names, stages_of, tuple(units), len(numbers), False, before).save(run.root)


def finish_retry(stages: list[Stage], run: Run) -> str:
    """Removes the later stages if a retry of inputs has changed the rows. Returns a line for the user; "": no retry."""
    retry = left_out.Retry.load(run.root)
    head = [stage for stage in stages if stage.name in retry.stages]
    if not retry.is_under_way or not all(stage.is_done() for stage in head):
        return ""
    changed = tuple(left_out.counted(stage.folder.info()) for stage in head) != retry.before
    if changed:
        remove_from(stages, stages[len(head)].name)
    left_out.Retry(retry.names).save(run.root)
    got = retry.inputs - len(left_out.inputs(_parts_of(head), run.input_list))
    if not changed:
        return "no input that was left out could be read now: the later stages stay as they are"
    begins = f"the stages from {stages[len(head)].name} on begin anew"
    return f"{got:,} of {retry.inputs:,} inputs that were left out could be read now: {begins}"


def _parts_of(head: list[Stage]) -> StepFolder:
    last = head[-1]
    assert isinstance(last, RowStage)
    return last.parts().folder
