"""Measures of a classification, in plain numpy. Scores are (N, C), labels (N,); shares are in [0, 1]."""

from __future__ import annotations

import numpy as np


def top_k(best: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """(N,) bool: is the label among the k best classes?

    Args:
        best: (N, at least k, or all classes) int, the best class first.
    """
    return (best[:, :k] == labels[:, None]).any(1)


def mean_per_class(right: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes of the share of their images that are right. A class without images does not count."""
    count = np.bincount(labels)
    hits = np.bincount(labels, weights=right, minlength=len(count))
    return float((hits[count > 0] / count[count > 0]).mean())


def f1_macro(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean F1 over the classes that are a label or were predicted, as scikit-learn and WILDS compute it."""
    size = int(max(predicted.max(), labels.max())) + 1
    hits = np.bincount(labels[predicted == labels], minlength=size)
    both = np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)
    return float((2 * hits[both > 0] / both[both > 0]).mean())


def worst_group(right: np.ndarray, groups: np.ndarray, *, ignore: int | None = None) -> float:
    """The smallest share of right images in a group. A group without images does not count."""
    names = np.unique(groups)
    return min(float(right[groups == name].mean()) for name in names if name != ignore)


def precision_recall(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at each distinct score, from the highest to the lowest. Equal scores count together.

    Args:
        scores: (N,)
        positive: (N,) bool, at least one.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal scores
    hits = np.cumsum(positive[order])[last]
    return hits / (last + 1), hits / hits[-1]


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum over the ranks of precision times the gain in recall, without interpolation (as in scikit-learn)."""
    precision, recall = precision_recall(scores, positive)
    return float((np.diff(recall, prepend=0) * precision).sum())


def average_precision_11(scores: np.ndarray, positive: np.ndarray) -> float:
    """The mean of the best precision at recall 0, 0.1, .. 1 (Pascal VOC 2007, Everingham et al. 2010, section 4.2)."""
    precision, recall = precision_recall(scores, positive)
    tenths = np.floor(recall * 10 + 1e-9).astype(int)  # the highest of the eleven points that a rank reaches
    best = np.zeros(11)
    np.maximum.at(best, tenths, precision)
    return float(np.maximum.accumulate(best[::-1]).mean())


def mean_average_precision(scores: np.ndarray, positive: np.ndarray, *, points: int | None = None) -> float:
    """The mean over the classes with a positive image.

    Args:
        scores: (N, C)
        positive: (N, C) bool
        points: 11 for the measure of VOC 2007; None: every rank.
    """
    one = average_precision_11 if points == 11 else average_precision
    return float(np.mean([one(scores[:, c], positive[:, c]) for c in range(scores.shape[1]) if positive[:, c].any()]))


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The share of pairs of a positive and a negative image in which the positive has the higher score; a tie is half.

    Not a number where one of the two is absent.
    """
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # the mean rank of equal scores, from 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    return float((rank[place][positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
