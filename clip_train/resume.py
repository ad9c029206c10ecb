"""Finds the checkpoint of a run, checks that it is of the same run, and restores it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from clip_train import checkpoint
from clip_train.config import ModelConfig, Plan, TrainOptions
from clip_train.distributed import from_first, gather, rank, tensors_from_first, together
from clip_train.errors import TrainError, UsageError
from clip_train.log import Progress
from clip_train.order import WINDOW_FORM
from clip_train.remote import public
from clip_train.run import Run
from clip_train.same_run import unexplained


def find_checkpoint(plan: Plan) -> Path | None:
    """The newest valid checkpoint, if the run resumes. UsageError if the folder holds a run and it does not.

    The first rank looks for it; the others are told.
    """
    return from_first(together(lambda: _find(plan) if rank() == 0 else None))


def _find(plan: Plan) -> Path | None:
    folder = Path(plan.options.output) / "checkpoints"
    if not plan.options.resume:
        if checkpoint.all_steps(folder):
            raise UsageError(f"{plan.options.output} holds a run: --resume continues it, or name another folder")
        return None
    checkpoint.clear_scratch(folder)
    progress = Progress(steps=0, first_step=0, show=True)
    faults = []
    for path, fault in checkpoint.newest(folder):
        if fault is None:
            progress.say(f"resuming from {path}")
            return path
        faults.append(fault)
        progress.say(f"{fault} [skipped]")
    if faults:
        raise TrainError(f"none of the {len(faults)} checkpoints in {folder} is valid: remove them to start again")
    progress.say(f"no checkpoint in {folder} yet: starting from the beginning")
    return None


def read_on_all(path: Path) -> checkpoint.Checkpoint:
    """The checkpoint that the first rank has. A rank that has it as well reads it, the others get it from the first."""
    own = checkpoint.mark(path)
    marks = gather(own)
    if all(mark == marks[0] for mark in marks):
        return together(lambda: checkpoint.load(path))
    found = together(lambda: checkpoint.load(path) if rank() == 0 else None)
    parts = {} if found is None else {"model": found.model, "optimizer": found.optimizer, "ema": found.ema or {}}
    sent = {name: tensors_from_first(parts.get(name, {})) for name in ("model", "optimizer", "ema")}
    info = from_first(found.info if found else {})
    return checkpoint.Checkpoint(sent["model"], sent["optimizer"], sent["ema"] or None, info)


def restore_run(run: Run, path: Path) -> None:
    """Restores weights, optimizer state, average, loss scale and the place in the data."""
    state = read_on_all(path)
    info, plan = state.info, run.plan
    same_model(ModelConfig.from_json(info["model"]), plan.model, str(path))
    if plan.vocabulary and info["vocabulary"] != plan.vocabulary:
        raise UsageError(f"{path} was trained with another vocabulary: leave out --bpe to take that of the run")
    order = order_of(plan.options)
    if info.get("order", order) != order:
        raise UsageError(f"{path} was trained with {info['order']}, not {order}: the order of samples would differ")
    if info["samples"] != plan.samples or info["seed"] != plan.options.seed:
        raise UsageError(
            f"{path} was trained with {info['samples']} samples and seed {info['seed']}, this run has {plan.samples} "
            f"samples and seed {plan.options.seed}: the order would differ. Start a new run with --init {path}"
        )
    if run.data and info.get("set", run.data) != run.data:
        raise UsageError(
            f"{path} was trained on another set than --data {public(plan.options.data)}, of the same size: name that "
            f"set, or start a new run with --init {path}"
        )
    chosen_now = any(entry["option"] == "distill" and entry["step"] is None for entry in plan.history)
    teacher = run.teacher.digest if run.teacher else None
    if info.get("teacher") != teacher and not chosen_now:
        raise UsageError(f"{path} was trained with another table than --distill {plan.options.distill}")
    differing = unexplained(info.get("recipe", {}), plan.options, plan.history)
    if differing:
        raise UsageError(f"{path} was trained with another recipe: {'; '.join(differing)}. Say it with --change")
    checkpoint.restore_model(run.model, state.model, origin=str(path))
    checkpoint.restore_optimizer(run.model, run.optimizer, state.optimizer)
    if run.average and state.ema:
        run.average.weights = {name: value.to(run.device) for name, value in state.ema.items()}
    run.scaler.load_state_dict(info["progress"]["scaler"])
    run.step, run.samples_seen = info["progress"]["step"], info["progress"]["samples_seen"]


def order_of(options: TrainOptions) -> dict[str, Any]:
    """What a checkpoint keeps of the order of the samples."""
    order: dict[str, Any] = {"window": options.window, "online_balance": options.online_balance}
    if options.batch_concepts:
        order |= {"batch_concepts": options.batch_concepts, "super_batch": options.super_batch}
    return order | ({"form": WINDOW_FORM} if options.window or options.online_balance else {})


def same_model(found: ModelConfig, wanted: ModelConfig, origin: str, *, but: str = "") -> None:
    """UsageError if the models differ in another field than `but`."""
    if found.vocab_size != wanted.vocab_size:
        raise UsageError(
            f"{origin} has {found.vocab_size} token ids, the vocabulary has {wanted.vocab_size}: "
            f"name the one it was trained with by --bpe"
        )
    a, b = (dataclasses.asdict(config) for config in (found, wanted))
    differing = [f"{name} {a[name]}, not {b[name]}" for name in a if a[name] != b[name] and name != but]
    if differing:
        raise UsageError(f"{origin} belongs to another model: {'; '.join(differing)}. Name its model by --model")
