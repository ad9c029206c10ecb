"""`hashing.mix` and its finaliser for other kernels, and the hashes of lists of integers.

`selection_kernel.warm` compiles it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit

U = np.uint64
GOLDEN, _MIX_1, _MIX_2 = U(0x9E3779B97F4A7C15), U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)


@njit
def finalise(x):
    """`hashing.finalise` of one word."""
    x = (x ^ (x >> U(30))) * _MIX_1
    x = (x ^ (x >> U(27))) * _MIX_2
    return x ^ (x >> U(31))


@njit
def _mix(a, b):
    return finalise(finalise(a + GOLDEN) ^ b)


@njit
def _hash_lists(offsets, values, out):
    for row in range(len(out)):
        start, end = offsets[row], offsets[row + 1]
        total = U(0)
        for place in range(start, end):
            total += _mix(finalise(U(values[place])), U(place - start))
        out[row] = _mix(total, U(end - start))


def hash_lists(offsets: npt.NDArray[np.integer], values: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """`hashing.column_hash` of lists of int32 in CSR form, without nulls."""
    if offsets[0] < 0 or offsets[-1] > len(values) or (np.diff(offsets) < 0).any():
        raise ValueError("offsets of lists do not ascend within their values")
    out = np.empty(len(offsets) - 1, np.uint64)
    _hash_lists(frozen(offsets, np.int32), frozen(values, np.int32), out)
    return out
