"""Whether a folder can be continued: before a run, its stages are held against those that are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.engine import storage
from pipeline.engine.cli import UsageError
from pipeline.engine.display import sanitize
from pipeline.stages.base import Stage
from pipeline.stages.row_pass import RowStage
from pipeline.stages.run import HowSettings, Run, RunSettings

LONGEST_VALUE = 60  # characters of an option's value in a message
BEHIND = {"inputs": "--input", "queries": "--queries"}  # what is a digest or a list in `decided_by`


def check(stages: list[Stage], run: Run) -> None:
    """Refuses to continue a folder that holds stages made otherwise, or that lacks what the run begins from.

    Args:
        stages: all stages of the way, planned.
        run: what is asked for.

    Raises:
        UsageError: with the options that differ, and what to type.
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


def refusal(stages: list[Stage], run: Run) -> str | None:
    """Why `check` would refuse the run; None: it would not."""
    try:
        check(stages, run)
    except UsageError as error:
        return str(error)
    return None


def kept_of(stages: list[Stage], run: Run) -> list[Stage]:
    """The stages that the run does not make anew if they are done."""
    redo = run.settings(HowSettings).redo
    return stages[: [stage.name for stage in stages].index(redo)] if redo else stages


def to_do(stages: list[Stage], run: Run) -> list[Stage]:
    """The stages that are asked for and not done as planned."""
    asked, kept = run.settings(RunSettings).stages, kept_of(stages, run)
    return [stage for stage in stages if stage.name in asked and not (stage in kept and stage.is_done())]


def check_inputs(stages: list[Stage], run: Run) -> None:
    """Looks at what the stages to do will read, before anything is written.

    Raises:
        UsageError, MissingInput: a stage cannot do what is asked for.
    """
    for stage in to_do(stages, run):
        stage.check(run)


def difference(stage: Stage) -> str | None:
    """What keeps a completed stage from being used; None: it is as planned, or not there."""
    info = stage.folder.info()
    if info is None or stage.is_done():
        return None
    remedy = f"use another --output, or add --redo {stage.name} to make it anew"
    if "fingerprint" not in info or storage.CHECKSUM not in info:
        version = info.get("versions", {}).get("openwit", "unknown")
        return f"made by an older version of OpenWIT ({version}), which this one cannot continue: {remedy}"
    differing = describe(info.get("decided_by", {}), stage.decided)
    return f"made with other options ({differing or 'of an earlier stage'}): repeat those, {remedy}"


def describe(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The options that differ, with both values."""
    parts = []
    for name in [*wanted, *(name for name in there if name not in wanted)]:
        if there.get(name) == wanted.get(name):
            continue
        if name in BEHIND:
            parts.append(f"another {BEHIND[name]}")
        else:
            flag = "--" + name.replace("_", "-")
            parts.append(f"{flag} was {shown(there.get(name))} and is {shown(wanted.get(name))}")
    return "; ".join(parts)


def shown(value: Any) -> str:
    """A value of an option in a message."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    text = sanitize(text) or "empty"
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


def check_rows_are_there(stages: list[Stage], kept: list[Stage], asked: tuple[str, ...]) -> None:
    """Refuses to begin behind a stage whose rows went on to the next one and were not kept.

    Raises:
        UsageError: with the stage to do again.
    """
    for before, stage in zip(stages, stages[1:], strict=False):
        if not isinstance(stage, RowStage) or stage.name not in asked or before not in kept:
            continue
        info, made = before.folder.info(), stage in kept and (stage.is_done() or stage.parts().folder.manifests())
        if info and info["rows_out"] and not made and not stage.source().units():
            raise UsageError(
                f"the rows of the stage {before.name!r} were not kept in {before.folder.root}: they went on to "
                f"{stage.name!r} in the same pass; add --redo {before.name}"
            )


def remove_from(stages: list[Stage], name: str | None) -> None:
    """Removes a stage and those after it, so that they are made anew; None: nothing."""
    names = [stage.name for stage in stages]
    for stage in reversed(stages[names.index(name) :] if name else []):
        storage.remove(stage.folder.path)  # the last one first: none is left that was made from one that is gone


def reopen(stages: list[Stage], run: Run) -> None:
    """Lets a stage go on that is done, where the user asks for it; those after it are made anew."""
    for stage, after in zip(stages, stages[1:], strict=False):
        if stage.reopens(run):
            remove_from(stages, after.name)
            stage.reopen()
