"""Runs a suite: opens all of its sets, evaluates those that are there, and keeps each result by its digest.

A result is kept under the digest of all that decides it: weights, vocabulary, the entry of the suite with its names and
templates, and the files of the set. The same command therefore goes on where it was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_train import metrics
from clip_train.distributed import gather, rank, together, world_size
from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.evaluate import accuracies, classify, counts, retrieval
from clip_train.labels import only_classes
from clip_train.model import CLIP
from clip_train.probe import probe_images
from clip_train.suite import MULTI_LABEL, Suite
from clip_train.suite_data import OpenSet, digest_of_files, find, open_set
from clip_train.tokenizer import Tokenizer

CACHE = "cache"  # folder in the output
_UNDECIDED = ("name", "data", "needs", "skip", "prompts", "beside")  # keys of a set that do not decide its value
_FORM = 1  # of a kept result; another number makes all of them void
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A model, and how it is evaluated."""

    model: CLIP
    tokenizer: Tokenizer
    batch_size: int = 128
    threads: int = 0  # of the fit of a probe

    @functools.cached_property
    def digest(self) -> str:
        """A name for the weights, the architecture and the vocabulary."""
        return digest_of_model(self.model, self.tokenizer)


def digest_of_model(model: CLIP, tokenizer: Tokenizer) -> str:
    """A name for the weights, the architecture and the vocabulary."""
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(model.config), tokenizer.fingerprint]).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def run_suite(
    with_model: Evaluator, suite: Suite, root: str, output: Path, *, say: Callable[[str], None], fresh: bool = False
) -> list[Row]:
    """A row for each set, in the order of the suite: name, kind, metric, status, value, reason, and more by its kind.

    The ranks share each set batch by batch; every rank gets all rows. Probes they share by whole sets, because most of
    their time is the fit, which one process does.

    Args:
        root: the folder below which the sets lie.
        output: results are kept in its folder `cache`.
        say: gets a line about each set.
        fresh: evaluate again what is kept.

    Raises:
        UsageError, InputMissing, TrainError: a set that is there does not fit its entry. No set is evaluated then.
    """
    opened = together(lambda: [_open(suite, number, root) for number in range(len(suite.sets))])
    if not any(isinstance(found, OpenSet) for found in opened):
        raise InputMissing(f"--root {root}: none of the {len(suite.sets)} sets of {suite.name} is there: {opened[0]}")
    probes = [n for n, found in enumerate(opened) if isinstance(found, OpenSet) and found.entry.kind == "probe"]
    mine = probes[rank() :: world_size()]
    rows: dict[int, Row] = {}
    for number in sorted(range(len(opened)), key=lambda number: number in probes):  # the probes come last
        found, entry = opened[number], suite.sets[number]
        row = {"name": entry.name, "kind": entry.kind, "metric": entry.metric}
        if not isinstance(found, OpenSet):
            row |= {"status": "skipped", "reason": found}
        elif number not in probes:
            row |= _kept_or_made(with_model, found, output / CACHE, fresh=fresh, alone=False)
        elif number in mine:
            row |= _kept_or_made(with_model, found, output / CACHE, fresh=fresh, alone=True)
        if number in mine or number not in probes:
            rows[number] = row
        if number in mine or (number not in probes and rank() == 0):
            say(f"{entry.name}: {_result(row)}")
    _compare(with_model, suite, opened, rows, output / CACHE, fresh=fresh)
    rows = {number: row for part in gather(rows) for number, row in part.items()}
    return [rows[number] for number in sorted(rows)]


def _compare(
    with_model: Evaluator, suite: Suite, opened: Sequence[OpenSet | str], rows: dict[int, Row], folder: Path, *,
    fresh: bool,
) -> None:  # fmt: skip
    """Adds to a set with `beside` the accuracy of that other set on the same classes, and the difference."""
    number_of = {entry.name: number for number, entry in enumerate(suite.sets)}
    for number, entry in enumerate(suite.sets):
        other = number_of.get(entry.beside or "")
        if other is None or any(rows[each]["status"] != "done" for each in (number, other)):
            continue
        mine, base = opened[number], opened[other]
        assert isinstance(mine, OpenSet) and isinstance(base, OpenSet) and mine.images and base.images
        reference = rows[other]
        if mine.images.classes != base.images.classes:
            some = only_classes(base.images, mine.images.classes)
            if some is None:  # its classes are other ones
                continue
            part = dataclasses.replace(base, images=some)
            reference = _kept_or_made(with_model, part, folder, fresh=fresh, alone=False)
        if reference["status"] == "done":
            rows[number] |= {"reference": reference["value"], "gap": rows[number]["value"] - reference["value"]}


def _result(row: Row) -> str:
    """What is said of a set."""
    if row["status"] == "skipped":
        return f"skipped: {row['reason']}"
    return (row.get("reason") or f"{row['value']:.4f} {row['metric']}") + (" (kept)" if row.get("kept") else "")


def _open(suite: Suite, number: int, root: str) -> OpenSet | str:
    """The set, or why it is skipped."""
    entry = suite.sets[number]
    if entry.skip:
        return entry.skip
    place = find(entry, root)
    if place is None:
        return f"none of {', '.join(entry.data)} is in {root}" + (f" ({entry.needs})" if entry.needs else "")
    try:
        return open_set(entry, place)
    except (UsageError, InputMissing, TrainError) as error:
        raise type(error)(f"suite {suite.name}: set {entry.name!r}: {error}") from None


# --- results that are kept --------------------------------------------------------------------------------------------


def _kept_or_made(with_model: Evaluator, found: OpenSet, folder: Path, *, fresh: bool, alone: bool) -> Row:
    """The row of a set. All ranks call it for one set, unless a rank is `alone`. The first rank reads and writes."""

    def read() -> tuple[Path, Row | None]:
        path = folder / f"{_key(found, with_model.digest)}.json"
        return path, None if fresh else _read_kept(path)

    path, kept = read() if alone else gather(together(read))[0]
    if kept is not None:
        return {**kept, "kept": True}
    began = time.monotonic()
    try:
        row = evaluate_set(with_model, found)
    except TrainError as error:
        return {"status": "failed", "reason": f"failed: {error}"}
    row = {"status": "done", **row, "seconds": round(time.monotonic() - began, 3)}
    if alone or rank() == 0:
        write_whole(path, json.dumps(row) + "\n")
    return row


def _key(found: OpenSet, weights: str) -> str:
    entry = dataclasses.asdict(found.entry)
    decides = {name: value for name, value in entry.items() if name not in _UNDECIDED}
    images = found.images
    told = [_FORM, weights, decides, found.templates, images.classes if images else None]
    files = [digest_of_files(Path(found.data))]
    files += [digest_of_files(Path(found.train_data))] if found.train else []
    return hashlib.sha256(json.dumps([told, files], sort_keys=True).encode()).hexdigest()


def _read_kept(path: Path) -> Row | None:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return row if isinstance(row["value"], float) and row["status"] == "done" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: it is made again


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears under its name when it is whole. Makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# --- one set ----------------------------------------------------------------------------------------------------------


def evaluate_set(with_model: Evaluator, found: OpenSet) -> Row:
    """`value`, the share that the metric of the set gives, and more numbers. TrainError where no image decodes."""
    entry = found.entry
    model, tokenizer, size = with_model.model, with_model.tokenizer, with_model.batch_size
    if entry.kind == "retrieval":
        ks = sorted({1, 5, 10, entry.k})
        row = retrieval(model, tokenizer, found.data, ks=ks, batch_size=size)
        both = [row[f"{way}_recall@{entry.k}"] for way in ("image_to_text", "text_to_image")]
        return {"value": sum(both) / 2, **row}
    assert found.images is not None
    if entry.kind == "probe":
        assert found.train is not None
        threads = with_model.threads
        row = probe_images(model, found.train, found.images, l2=entry.l2, batch_size=size, threads=threads)
        row["images"] = row["test_images"]
        return {"value": row["top1" if entry.metric == "accuracy" else "mean_per_class"], **row}
    keep = entry.metric in (*MULTI_LABEL, "roc-auc")
    seen = classify(model, tokenizer, found.images, found.templates, batch_size=size, keep_scores=keep)
    if not len(seen.numbers):
        raise TrainError(f"{found.data}: none of the {len(found.images)} images decodes")
    row = dict(counts(found.images, seen))
    if entry.metric in MULTI_LABEL:
        assert found.arrays is not None and seen.scores is not None
        positive = found.arrays[seen.numbers] > 0
        if not positive.any():
            raise TrainError(f"{found.data}: no image has a class")
        points = 11 if entry.metric == "map-11-point" else None
        return {"value": metrics.mean_average_precision(seen.scores, positive, points=points), **row}
    labels = found.images.labels[seen.numbers]
    named = accuracies(seen.best, labels)
    groups = None if found.arrays is None else found.arrays[seen.numbers, entry.group]
    value = _single_label(found, seen.best, seen.scores, labels, groups, named)
    if np.isnan(value):
        raise TrainError(f"{found.data}: all images that decode are of one class: no {entry.metric}")
    return {"value": value, **named, **row}


def _single_label(
    found: OpenSet, best: np.ndarray, scores: np.ndarray | None, labels: np.ndarray, groups: np.ndarray | None,
    named: dict[str, float],
) -> float:  # fmt: skip
    metric, ignore = found.entry.metric, found.entry.ignore_group
    if groups is not None:
        right = metrics.top_k(best, labels, 5 if metric == "worst-group-top5" else 1)
        return metrics.worst_group(right, groups, ignore=ignore)
    if metric == "roc-auc":
        assert scores is not None
        return metrics.roc_auc(scores[:, 1] - scores[:, 0], labels == 1)
    if metric == "f1-macro":
        return metrics.f1_macro(best[:, 0], labels)
    if metric == "accuracy-top1-top5":
        return (named["top1"] + named["top5"]) / 2
    return named[{"accuracy": "top1", "accuracy-top5": "top5", "mean-per-class": "mean_per_class"}[metric]]
