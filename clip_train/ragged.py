"""Lists of different lengths as two flat arrays, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np


def flatten(captions: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All ids of some captions one after another, (T,) int32, and the lengths, (B,) int64."""
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    return np.fromiter(chain.from_iterable(captions), np.int32, int(lengths.sum())), lengths
