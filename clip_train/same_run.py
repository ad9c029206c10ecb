"""A resumed run is the same run: its options are those of RUN/config.json, but for what --change says.

An option that is not said is the run's. One that is said and differs is refused, because the numbers of the run would
silently follow another recipe. `--change lr=1e-4` changes it from the next step on, and config.json keeps the history.
Options that do not change the numbers (threads, --accumulate, --parallel, --save-every, ...) may be said at will.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from clip_train.config import TrainOptions
from clip_train.errors import UsageError
from clip_train.fields import check_values, convert, flag_of, kinds, nearest
from clip_train.places import is_run_config

# Options that decide the numbers and may change in a run.
RECIPE = (
    "batch_size", "epochs", "steps", "lr", "warmup", "weight_decay", "beta1", "beta2", "eps", "clip_norm", "ema",
    "precision", "patch_dropout", "crop_scale", "verify", "optimizer", "lock_image",
    "lock_text", "distill", "distill_weight",
)  # fmt: skip
# Options that a run keeps for good; what stands in its checkpoints refuses another value (resume.py).
_KEPT = ("data", "model", "seed", "loss", "activation", "window", "online_balance", "batch_concepts", "super_batch")


def continued(
    options: TrainOptions,
    said: Collection[str] | None = None,
    stored: tuple[Mapping[str, Any], tuple[dict[str, Any], ...]] | None = None,
) -> tuple[TrainOptions, tuple[dict[str, Any], ...]]:
    """The options of a run that resumes, and the history of their changes.

    Args:
        said: names of the options that the caller gave; unless given, those that differ from their default.
        stored: options and history of the run; those of RUN/config.json unless given.

    Returns:
        The options, and the entries of the history: option, from, to, and step (None for a change of now).

    Raises:
        UsageError: an option differs from the run's, or --change names what cannot change.
    """
    if not options.resume:
        if options.change:
            raise UsageError(f"--change {' '.join(options.change)} needs --resume: a new run has nothing to change")
        return options, ()
    kept, history = read_stored(Path(options.output)) if stored is None else stored
    if said is None:
        said = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
    changes = _changes(options)
    if not kept:
        return dataclasses.replace(options, **changes), ()
    differing = [
        f"{flag_of(name)} {getattr(options, name)} is not the run's {kept[name]}"
        for name in RECIPE
        if name in said and name not in changes and getattr(options, name) != kept.get(name, getattr(options, name))
    ]
    if differing:
        raise UsageError(
            f"{'; '.join(differing)}. Leave it out to go on with the run's, or say --change NAME=VALUE to change it"
        )
    filled = {name: kept[name] for name in RECIPE if name in kept}
    filled |= {name: kept[name] for name in _KEPT if name in kept and name not in said}
    made = [
        {"option": name, "from": kept.get(name), "to": value, "step": None}
        for name, value in changes.items()
        if kept.get(name) != value
    ]
    return dataclasses.replace(options, **{**filled, **changes}), (*history, *made)


def _changes(options: TrainOptions) -> dict[str, Any]:
    """The values of --change by the name of the option, and None for the one that another replaces."""
    fields = {field.name: field for field in dataclasses.fields(TrainOptions)}
    found: dict[str, Any] = {}
    for word in options.change or ():
        name, equals, text = word.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or name not in RECIPE:
            raise UsageError(f"--change {word!r}: NAME=VALUE is expected{nearest(name, RECIPE)}")
        kind, said = kinds(TrainOptions)[name], f"--change {name}"
        value: Any = {"true": True, "false": False}.get(text.lower(), text) if kind is bool else text
        clears = text.lower() == "none" and fields[name].default is None
        found[name] = None if clears else convert(fields[name], kind, value, said=said)
        check_values(dataclasses.replace(TrainOptions(), **{name: found[name]}), {name: said})
        replaced = fields[name].metadata.get("replaces")
        if replaced:
            found[replaced] = None
    return found


def read_stored(folder: Path) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """The options and the history in RUN/config.json; nothing where there is none.

    An option that the run's version did not have has its default, which is what that version did.
    """
    path = folder / "config.json"
    if not is_run_config(path):
        return {}, ()
    found = json.loads(path.read_text(encoding="utf-8"))
    fields = [field for field in dataclasses.fields(TrainOptions) if field.name in RECIPE]
    before = {field.name: field.default for field in fields if field.default is not None}
    return {**before, **found["options"]}, tuple(found.get("history", ()))


def recipe_of(options: TrainOptions) -> dict[str, Any]:
    """What a checkpoint keeps of the recipe."""
    return {name: getattr(options, name) for name in RECIPE}


def unexplained(saved: Mapping[str, Any], options: TrainOptions, history: Collection[Mapping[str, Any]]) -> list[str]:
    """What differs between the recipe of a checkpoint and the options, and stands in no history."""
    changed = {entry["option"] for entry in history} | set(_changes(options))
    return [
        f"{flag_of(name)} {getattr(options, name)}, not {value}"
        for name, value in saved.items()
        if name not in changed and getattr(options, name, value) != value
    ]
