"""A set with other inputs than before: --extend and --drop-input. Also a set from which pairs were forgotten.

What was read of the inputs that stay is kept: the units of gather and match. What compares rows is done again: dedup,
balance, and all after it. The images that were fetched are kept (`stages.attempts`). The published set stays as it is
until publish replaces it, so a crash leaves the old set or the new one.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Container, Mapping
from typing import TypeVar

from pipeline.dataset import tombstones
from pipeline.dataset.tombstones import Tombstones
from pipeline.engine import remote, storage
from pipeline.engine.cli import UsageError
from pipeline.engine.input_errors import InputError, is_remote, public
from pipeline.engine.journal import Change
from pipeline.stages import continuing, other_sets, taking
from pipeline.stages.base import INPUTS, STATES, Stage
from pipeline.stages.input_list import FILE, InputList, path_of
from pipeline.stages.left_out import Retry
from pipeline.stages.run import Run, RunSettings, recorded_list

OF_UNITS = ("gather", "match")  # the stages whose units are kept
STEPS = ("gather/parts", "gather/images", f"gather/{STATES}", "match/parts")
MOST_ASKED = 16  # remote inputs that are compared with what the set read, at most
PATIENCE_S = 5.0  # for their servers: an input of the set need not exist any more
ATTEMPTS = "stages/fetch/attempts.json"
ENDS = ("COMPLETED", "info.json", "files.json", "rejected.parquet")
T = TypeVar("T")
FORGOTTEN = "forgotten"  # entry of dedup's info.json: rows that were forgotten since it was done


def settled(options: T) -> T:
    """The options of a run. --redo balance begins with dedup if pairs were forgotten since dedup compared all rows."""
    redo, output = getattr(options, "redo", None), getattr(options, "output", None)
    if redo != "balance" or not isinstance(output, str) or not forgotten_since(output):
        return options
    return dataclasses.replace(options, redo="dedup")  # type: ignore[type-var]


def grows(run: Run) -> bool:
    """True if the run adds inputs to the set in its folder, drops some, or fills the places of forgotten pairs."""
    if not run.settings(RunSettings).extend or run.recorded is None:
        return False
    return not run.recorded.has_units(run.input_list) or bool(forgotten_since(run.root))


def forgotten_since(root: str) -> int:
    """The rows that were forgotten since dedup compared all rows."""
    info = storage.read_json(os.path.join(root, "stages", "dedup", "info.json"), sealed=False) or {}
    return int(info.get(FORGOTTEN, 0))


def check(stages: list[Stage], run: Run) -> None:
    """Refuses to keep units that other options made.

    Raises:
        UsageError: its message names the options that differ and what to type.
    """
    asked = run.settings(RunSettings).stages
    if asked[0] != OF_UNITS[0]:
        raise UsageError(f"--stages {asked[0]}..{asked[-1]}: must begin with gather if --extend changes the inputs")
    for stage in continuing.kept_of(stages, run):
        info = stage.folder.info() if stage.name in OF_UNITS else None
        if info is None:
            continue
        there = {**info.get("decided_by", {}), INPUTS: None}
        differing = continuing.describe(there, {**stage.decided, INPUTS: None})
        if differing or storage.CHECKSUM not in info:
            raise UsageError(
                f"{run.root} holds the stage {stage.name!r} made with other options "
                f"({differing or 'of an older version'}): --extend keeps what was read. "
                f"Repeat those, or add --redo {stage.name}"
            )
    check_others(stages, run)


def check_named_again(stages: list[Stage], run: Run) -> None:
    """Refuses URLs of the set that are named again, if their files have changed since. The first ones are asked.

    Raises:
        UsageError: its message names the URL and what to type.
    """
    named = {spec for spec in run.settings(RunSettings).input if is_remote(spec)} - run.anew
    if run.recorded is None or not run.settings(RunSettings).extend or not named:
        return
    states = stages[0].folder.units(STATES)
    again = [(unit, item) for unit, item in run.recorded.units.items() if path_of(item) in named]
    for unit, item in again[:MOST_ASKED]:
        before = storage.read_json(states.file(unit, "json"))
        if before is None:
            continue
        then = remote.State(before["source"], before["bytes"], before["version"])
        try:
            remote.RemoteFile(item.path, dataclasses.replace(run.remote, patience=PATIENCE_S)).close()
        except InputError:
            continue
        now = remote.seen(item.path)
        if now is not None and now.is_other_than(then):
            had, has = then.bytes or 0, now.bytes or 0
            sizes = "" if had == has else f" (it had {had:,} bytes, and has {has:,})"
            url = public(item.path)
            raise UsageError(
                f"--input {url}: has changed since the set read it{sizes}. Leave it out, or add --drop-input {url} to "
                "the command, which then reads it anew"
            )


def check_others(stages: list[Stage], run: Run) -> None:
    """Refuses other sets that were made with other options, up to the fetch, or whose files do not fit.

    Raises:
        UsageError: its message names the set, the options that differ, and what to type.
    """
    for other in run.others:
        for stage in (stage for stage in stages if stage.name in other_sets.TAKEN):
            info = other.info(stage.name)
            there = {**(info or {}).get("decided_by", {}), INPUTS: None}
            differing = "" if info is None else continuing.describe(there, {**stage.decided, INPUTS: None})
            if differing or (info is not None and storage.CHECKSUM not in info):
                raise UsageError(
                    f"--input {other.spec}: this set holds the stage {stage.name!r} made with other options "
                    f"({differing or 'of an older version'}). Name its inputs, which are read and fetched again then"
                )
        if any(other_sets.has_units(run.root, step) for step in ("gather/parts", "match/parts")):
            ours = other_sets.has_units(run.root, "gather/parts")
            if ours != other.keeps_gathered():
                which = run.root if ours else other.spec
                raise UsageError(
                    f"--input {other.spec}: gather kept its rows in {which} alone, since a run with --stages ended "
                    "there. Name the inputs of this set, which are read and fetched again then"
                )


def change_inputs(stages: list[Stage], run: Run, roots: Mapping[str, str]) -> None:
    """Makes the folder ready for other inputs. What compares rows goes, then the list of inputs changes as a whole.

    Args:
        stages: all stages, planned.
        run: the run.
        roots: for the folder of another set: the folder that is read in its place.

    Raises:
        UsageError: another run changed the list of inputs since this one was planned.
    """
    there = recorded_list(run.root, run.options)
    if there != run.recorded:
        raise UsageError(f"another run changed the inputs of {run.root} just now: type the command again")
    if not grows(run) or there is None:
        return
    continuing.remove_from(stages, "dedup")
    if there.has_units(run.input_list):
        return
    change = Change(run.root)
    run.input_list.write(change.place(FILE))
    gone = there.without(run.input_list)
    for step in STEPS:
        for name in storage.names(os.path.join(run.root, "stages", step)):
            unit = re.match(r"\d+", name)
            if unit and int(unit[0]) in gone:
                change.remove(f"stages/{step}/{name}")
    for stage in OF_UNITS:
        for name in ENDS:
            change.remove(f"stages/{stage}/{name}")
    if run.input_list.key_bits != there.key_bits:
        cut_anew(change, stages, run, without=gone)
    if run.others:
        take_others(change, stages, run, there, roots)
    change.commit()


def fingerprints_of(stages: list[Stage]) -> dict[str, str]:
    """Each of STEPS -> the fingerprint of its units."""
    of_units = {stage.name: stage.folder.of_units for stage in stages}
    return {step: of_units[step.split("/")[0]] for step in STEPS}


def cut_anew(change: Change, stages: list[Stage], run: Run, *, without: Container[int]) -> None:
    """Cuts the keys of all units into the number of buckets that the set needs now: it has grown many times.

    Args:
        change: of the folder.
        stages: all stages, planned.
        run: the run.
        without: the units that go.
    """
    for step, fingerprint in fingerprints_of(stages).items():
        for name in storage.names(os.path.join(run.root, "stages", step)):
            path, below = os.path.join(run.root, "stages", step, name), f"stages/{step}/{name}"
            unit = re.match(r"\d+", name)
            if unit is None or int(unit[0]) in without:
                continue
            if name.endswith(".keys"):
                taking.write_keys(change.place(below), path, run.input_list.key_bits)
            elif name.endswith(".json") and (manifest := storage.read_json(path)) is not None:
                storage.write_json(change.place(below), {**manifest, "fingerprint": fingerprint})


def take_others(change: Change, stages: list[Stage], run: Run, there: InputList, roots: Mapping[str, str]) -> None:
    """Copies what other sets read and fetched, and what they forgot.

    Args:
        change: of the folder.
        stages: all stages, planned.
        run: the run.
        there: the inputs of the set before.
        roots: as in `change_inputs`.
    """
    fingerprints, taken = fingerprints_of(stages), set()
    for place in taking.places(there, run.input_list, run.others, roots):
        taking.copy_unit(change, place, fingerprints, run.input_list.key_bits)
        taken |= {run.input_list.units[number].name for number in place.inputs.values()}
    record = storage.read_json(os.path.join(run.root, ATTEMPTS)) or {}
    first, earlier = record.get("first", 0), record.get("earlier", [])
    stones = ours = Tombstones.load(run.root)
    left_out = set(Retry.load(run.root).names)
    for other in run.others:
        root = roots.get(other.root, other.root)
        if taking.gives_inputs(other, there, run.input_list):
            first, more = taking.copy_fetch(change, root, first=first)
            earlier = [*earlier, *more]
        left_out |= other.left_out() & taken
        theirs = Tombstones.load(root)
        if theirs is not None:
            stones = theirs if stones is None else stones.join(theirs)
    if earlier:
        storage.write_json(change.place(ATTEMPTS), {"first": first, "earlier": earlier})
    if left_out:
        Retry(tuple(sorted(left_out))).save(change.place(""))
    if stones is not None and stones != ours:
        stones.write(change.place(tombstones.FILE))
