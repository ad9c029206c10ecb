"""Data overlap analysis (paper, section 5): do evaluation images in the training set raise the accuracy?

1. An evaluation image counts as seen if the cosine between its embedding and one of the training set is at least
   `threshold`.
2. The zero-shot accuracy is measured on All, Overlap (seen) and Clean (the rest).
3. All - Clean is the gain by the overlap. A one-sided binomial test compares Overlap with Clean. The accuracy on
   Overlap has a 99.5% Clopper-Pearson interval.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clip_train.errors import InputMissing, TrainError
from clip_train.evaluate import class_vectors, embed_images
from clip_train.labels import open_labelled
from clip_train.model import CLIP
from clip_train.prompts import DEFAULT_TEMPLATES, read_templates
from clip_train.tokenizer import Tokenizer

CONFIDENCE = 0.995


def overlap(
    model: CLIP, tokenizer: Tokenizer, data: str, train_embeddings: str, *, threshold: float,
    classes: str | None = None, templates: str | None = None, dataset: str | None = None, batch_size: int = 128,
) -> dict[str, Any]:  # fmt: skip
    """Compares an evaluation set with the table of `clip_train embed` for the training set, by the same model."""
    known = read_embeddings(train_embeddings)
    if known.shape[1] != model.config.embed_dim:
        raise TrainError(f"{train_embeddings} has {known.shape[1]} dimensions, the model has {model.config.embed_dim}")
    images = open_labelled(data, classes=classes, dataset=dataset)
    prompts = read_templates(templates, dataset) if templates else DEFAULT_TEMPLATES
    vectors = class_vectors(model, tokenizer, images.classes, prompts)
    nearest, right = [], []
    for numbers, features in embed_images(model, images.read, len(images), batch_size=batch_size):
        nearest.append(largest_cosine(features.cpu(), known))
        right.append((features @ vectors.T).argmax(1).cpu() == torch.from_numpy(images.labels[numbers]))
    if not nearest:
        raise TrainError(f"{data}: none of the {len(images)} images decodes")
    return summarise(torch.cat(right).numpy(), torch.cat(nearest).numpy() >= threshold) | {"threshold": threshold}


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
