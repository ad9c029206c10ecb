"""Linear probe (paper, section 3.2 and appendix A.3): logistic regression on image features by L-BFGS.

The sweep of the L2 penalty is that of the paper: 96 values between 1e-6 and 1e6, evenly spaced in the logarithm. It
tries 1e-6, 1e-4, .., 1e6 first, then halves the interval around the best until the neighbours are tried. The
objective is

    sum_i cross_entropy(W x_i + b, y_i) + l2 / 2 |W|^2         (b is not penalised; scikit-learn's C is 1 / l2)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_train.devices import cpu_count
from clip_train.errors import TrainError
from clip_train.evaluate import embed_images
from clip_train.labels import LabelledImages, open_labelled
from clip_train.metrics import mean_per_class
from clip_train.model import CLIP

STRENGTHS = np.logspace(-6, 6, 97)  # 8 a decade
FIRST_STRIDE = 16  # two decades
MAX_ITERATIONS = 1000


def fit(features: Tensor, labels: Tensor, *, classes: int, l2: float, iterations: int = MAX_ITERATIONS) -> Tensor:
    """(classes, E + 1) weights, the bias last. They are float64, because L-BFGS stops early in fp32."""
    x = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    weights = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    count = len(x)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=iterations, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        # the mean has the same minimum, and its steps do not grow with the data
        value = F.cross_entropy(x @ weights.T, labels) + l2 / (2 * count) * weights[:, :-1].square().sum()
        value.backward()
        return value

    optimizer.step(objective)  # type: ignore[arg-type]
    return weights.detach()


def accuracy(weights: Tensor, features: Tensor, labels: Tensor) -> float:
    """The share of features whose best class is correct."""
    return (_best(weights, features) == labels).double().mean().item()


def _best(weights: Tensor, features: Tensor) -> Tensor:
    return (features.double() @ weights[:, :-1].T + weights[:, -1]).argmax(1)


def sweep(evaluate: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The search of the paper for the best strength. `evaluate` returns the accuracy on held-out images.

    Returns:
        The best strength, and the accuracy of each strength that was tried.
    """
    tried: dict[int, float] = {}

    def score(at: int) -> float:
        if at not in tried:
            tried[at] = evaluate(float(STRENGTHS[at]))
        return tried[at]

    best = max(range(0, len(STRENGTHS), FIRST_STRIDE), key=score)
    stride = FIRST_STRIDE // 2
    while stride >= 1:
        near = [at for at in (best, best - stride, best + stride) if 0 <= at < len(STRENGTHS)]
        best = max(near, key=score)  # of equals the first: it keeps the best so far
        stride //= 2
    return float(STRENGTHS[best]), {float(STRENGTHS[at]): value for at, value in sorted(tried.items())}


def probe(
    model: CLIP, data: str, *, test_data: str | None = None, l2: float | None = None, classes: str | None = None,
    dataset: str | None = None, batch_size: int = 128, threads: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Fits on `data` and tests on `test_data`, or on every fifth image. The sweep holds out a fifth of the others.

    Args:
        threads: of the fit; 0: one for every second core. Torch's threads wait for each other after every product.
            With one a core, another program's load on one core holds all of them up.
    """
    images = open_labelled(data, classes=classes, dataset=dataset)
    held_out = open_labelled(test_data, classes=classes, dataset=dataset) if test_data else None
    return probe_images(model, images, held_out, l2=l2, batch_size=batch_size, threads=threads)


def probe_images(
    model: CLIP, images: LabelledImages, held_out: LabelledImages | None, *, l2: float | None = None,
    batch_size: int = 128, threads: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`probe` with sets that are open. TrainError where they have other classes, or where no image decodes."""
    if held_out is not None and held_out.classes != images.classes:
        raise TrainError("the images to test on have other classes than those to fit on")
    features, labels = _features(model, images, batch_size)
    if held_out is not None:
        test_features, test_labels = _features(model, held_out, batch_size)
    else:
        test = torch.arange(len(features)) % 5 == 4
        test_features, test_labels = features[test], labels[test]
        features, labels = features[~test], labels[~test]
    count, threads = len(images.classes), threads or max(1, cpu_count() // 2)
    tried: dict[float, float] = {}
    if l2 is None:
        inner = torch.arange(len(features)) % 5 == 4
        if not inner.any():
            raise TrainError(f"{len(features)} images are too few for a sweep: give --l2")

        def held_out_accuracy(strength: float) -> float:
            weights = fit(features[~inner], labels[~inner], classes=count, l2=strength)
            return accuracy(weights, features[inner], labels[inner])

        with torch_threads(threads):
            l2, tried = sweep(held_out_accuracy)
    with torch_threads(threads):
        weights = fit(features, labels, classes=count, l2=l2)
    right = (_best(weights, test_features) == test_labels).numpy()
    return {
        "top1": float(right.mean()),
        "mean_per_class": mean_per_class(right, test_labels.numpy()),
        "train_top1": accuracy(weights, features, labels),
        "l2": l2,
        "train_images": len(features),
        "test_images": len(test_features),
        "classes": count,
        "threads": threads,
        "tried": {f"{strength:.3g}": value for strength, value in tried.items()},
    }


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with this many threads in this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _features(model: CLIP, images: LabelledImages, batch_size: int) -> tuple[Tensor, Tensor]:
    numbers: list[int] = []
    parts = []
    for kept, features in embed_images(model, images.read, len(images), batch_size=batch_size, unit=False):
        numbers += kept
        parts.append(features.cpu())
    if not parts:
        raise TrainError("no image decodes")
    return torch.cat(parts), torch.from_numpy(images.labels[numbers])
