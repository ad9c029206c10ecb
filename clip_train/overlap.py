"""Data overlap analysis (paper, section 5): do evaluation images in the training set raise the accuracy?

1. An evaluation image counts as seen if the cosine between its embedding and one of the training set is at least
   `threshold`; or if contamination.parquet of a set names it (`pipeline.build --decontaminate`).
2. The zero-shot accuracy is measured on All, Overlap (seen) and Clean (the rest).
3. All - Clean is the gain by the overlap. A one-sided binomial test compares Overlap with Clean. The accuracy on
   Overlap has a 99.5% Clopper-Pearson interval.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.evaluate import class_vectors, embed_images
from clip_train.labels import is_class_folder, open_labelled
from clip_train.model import CLIP
from clip_train.prompts import DEFAULT_TEMPLATES, read_templates
from clip_train.tokenizer import Tokenizer

CONFIDENCE = 0.995
CONTAMINATION = "contamination.parquet"  # of a published set


def overlap(
    model: CLIP, tokenizer: Tokenizer, data: str, train_embeddings: str | None = None, *, threshold: float = 0.95,
    contamination: str | None = None, contamination_set: str | None = None, classes: str | None = None,
    templates: str | None = None, dataset: str | None = None, batch_size: int = 128,
) -> dict[str, Any]:  # fmt: skip
    """The accuracy on the images of an evaluation set that are in the training set, and on the others.

    Args:
        model, tokenizer: of `load`.
        data: the labelled images of the evaluation set.
        train_embeddings: the table of `clip_train embed` for the training set, by the same model; or None.
        threshold: the cosine from which an image counts as seen.
        contamination: contamination.parquet, or the folder of a set that has it; or None. One of the two is needed.
        contamination_set: the name of the evaluation set there; None: the only one.
        classes, templates, dataset, batch_size: as in `zero_shot`.

    Raises:
        InputMissing: a file is not there.
        UsageError: the set of `contamination` is not clear.
        TrainError: a table does not fit the model or the images, or no image decodes.
    """
    known = None if train_embeddings is None else read_embeddings(train_embeddings)
    if known is not None and known.shape[1] != model.config.embed_dim:
        raise TrainError(f"{train_embeddings} has {known.shape[1]} dimensions, the model has {model.config.embed_dim}")
    images = open_labelled(data, classes=classes, dataset=dataset)
    named = None if contamination is None else read_contamination(contamination, contamination_set, data, images.names)
    prompts = read_templates(templates, dataset) if templates else DEFAULT_TEMPLATES
    vectors = class_vectors(model, tokenizer, images.classes, prompts)
    seen, right = [], []
    for numbers, features in embed_images(model, images.read, len(images), batch_size=batch_size):
        by_name = np.zeros(len(numbers), np.bool_) if named is None else named[numbers]
        by_cosine = False if known is None else (largest_cosine(features.cpu(), known) >= threshold).numpy()
        seen.append(by_name | by_cosine)
        right.append((features @ vectors.T).argmax(1).cpu() == torch.from_numpy(images.labels[numbers]))
    if not seen:
        raise TrainError(f"{data}: none of the {len(images)} images decodes")
    found = summarise(torch.cat(right).numpy(), np.concatenate(seen))
    return found if known is None else found | {"threshold": threshold}


def read_contamination(path: str, name: str | None, data: str, images: Sequence[str]) -> np.ndarray:
    """(N,) True for each image of an evaluation set that a table of contamination names.

    Args:
        path: of the table, or of the folder with it.
        name: of the set; None: the only one.
        data: where the images are.
        images: their names: paths in a folder, or keys of shards.
    """
    file = os.path.join(path, CONTAMINATION) if os.path.isdir(path) else path
    try:
        table = pq.read_table(file, columns=["set", "image"], page_checksum_verification=True)
    except FileNotFoundError:
        raise InputMissing(f"no such file: {file}; pipeline.build writes it with --decontaminate") from None
    except (OSError, ValueError) as error:
        raise TrainError(f"{file} is not a table of contamination: {error}") from error
    sets = sorted({*table["set"].unique().to_pylist(), *_sets_of(os.path.join(os.path.dirname(file), "manifest.json"))})
    if name is None and len(sets) > 1:
        raise UsageError(f"{file} has the sets {', '.join(sets)}: name one with --contamination-set")
    if name is not None and name not in sets:
        raise UsageError(f"--contamination-set {name!r}: {file} has the sets {', '.join(sets) or '(none)'}")
    shown = {row["image"] for row in table.to_pylist() if name in (None, row["set"])}
    if not is_class_folder(data):
        shown = {_key_of(name) for name in shown}
    names = [image.replace(os.sep, "/") for image in images]
    found = np.array([name in shown or _key_of(name) in shown for name in names], np.bool_)  # a tar has keys
    if shown and not found.any():
        example = sorted(shown)[0]
        raise TrainError(f"none of the {len(shown)} images that {file} names is in {data}; one of them is {example!r}")
    return found


def _key_of(name: str) -> str:
    """The key of a sample: the name of its members up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + (last.split(".")[0] or last)


def _sets_of(manifest: str) -> list[str]:
    """The evaluation sets of a published set."""
    try:
        with open(manifest, "rb") as file:
            found = json.load(file).get("contamination", {})
    except (OSError, ValueError, AttributeError):
        return []
    return list(found) if isinstance(found, dict) else []


def summarise(right: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Accuracies and the test, from two flags per image: classified correctly, seen in training."""
    hits, count = int(right[seen].sum()), int(seen.sum())
    clean = float(right[~seen].mean()) if (~seen).any() else None
    result: dict[str, Any] = {
        "images": len(right),
        "overlap_images": count,
        "overlap_share": count / len(right),
        "accuracy_all": float(right.mean()),
        "accuracy_overlap": hits / count if count else None,
        "accuracy_clean": clean,
        "all_minus_clean": float(right.mean()) - clean if clean is not None else None,
    }
    if count and clean is not None:
        low, high = clopper_pearson(hits, count, confidence=CONFIDENCE)
        result |= {
            "p_value": binomial_tail(hits, count, clean), "overlap_interval_low": low, "overlap_interval_high": high,
        }  # fmt: skip
    return result


def binomial_tail(hits: int, count: int, chance: float) -> float:
    """P(X >= hits) for a binomial X."""
    if hits <= 0:
        return 1.0
    if chance <= 0 or chance >= 1:
        return float(chance >= 1)
    k = np.arange(hits, count + 1)
    factorials = np.array([math.lgamma(number + 1) for number in range(count + 1)])  # as logarithms
    logs = factorials[count] - factorials[k] - factorials[count - k]
    logs += k * math.log(chance) + (count - k) * math.log1p(-chance)
    return float(min(1.0, np.exp(logs).sum()))


def clopper_pearson(hits: int, count: int, *, confidence: float) -> tuple[float, float]:
    """The exact confidence interval of a share, by bisection on the binomial distribution."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _solve(lambda chance: binomial_tail(hits, count, chance) - tail)
    high = 1.0 if hits == count else _solve(lambda chance: binomial_tail(hits + 1, count, chance) - (1 - tail))
    return low, high


def _solve(rising: Any) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def largest_cosine(features: Tensor, known: Tensor, *, chunk: int = 65536) -> Tensor:
    """(b,): the cosine between each feature and its nearest neighbour in `known`."""
    best = torch.full((len(features),), -1.0)
    for at in range(0, len(known), chunk):
        best = torch.maximum(best, (features @ known[at : at + chunk].T).amax(1))
    return best


def read_embeddings(path: str) -> Tensor:
    """(N, E) of the column `embedding`."""
    try:
        column = pq.read_table(path, columns=["embedding"], page_checksum_verification=True)["embedding"]
    except FileNotFoundError:
        raise InputMissing(f"no such file: {path}; write it with clip_train embed") from None
    except (OSError, ValueError) as error:
        raise TrainError(f"{path} is not a table of clip_train embed: {error}") from error
    if not len(column):
        raise InputMissing(f"{path} holds no rows")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(flat, np.float32)).view(len(column), -1)
