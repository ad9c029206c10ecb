"""Random numbers without state: every draw is a hash of its purpose. Threads, ranks and resumed runs draw the same.

The arithmetic is numpy's uint64, which wraps around. The mixer is the finaliser of splitmix64.
"""

from __future__ import annotations

import numpy as np

Words = np.ndarray  # uint64


def mix(words: Words) -> Words:
    """A pseudo-random bijection of 64-bit words."""
    words = words ^ (words >> np.uint64(30))
    words = words * np.uint64(0xBF58476D1CE4E5B9)
    words = words ^ (words >> np.uint64(27))
    words = words * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def combine(*parts: int | Words) -> Words:
    """One word (or an array of them) that depends on all parts and on their order."""
    state = np.full(1, 0x9E3779B97F4A7C15, np.uint64)
    for part in parts:
        word = np.asarray(part % 2**64 if isinstance(part, int) else part).astype(np.uint64)
        state = mix((state ^ word) + np.uint64(0x9E3779B97F4A7C15))
    return state


def uniforms(words: Words, draws: int) -> np.ndarray:
    """(n,) words -> (n, draws) floats in [0, 1), 53 bits each."""
    numbered = combine(words[:, None], np.arange(draws, dtype=np.uint64)[None])
    return (numbered >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(positions: np.ndarray, size: int, key: Words) -> np.ndarray:
    """A keyed permutation of 0 .. size - 1, evaluated at some positions. It needs no table for any size.

    It is a Feistel network over the next power of two. A value outside of the range goes through the network again
    until it is inside. That takes at most two passes on average.
    """
    if size <= 1:
        return np.zeros_like(positions)
    bits = (size - 1).bit_length()
    left_bits, right_bits = bits // 2, bits - bits // 2
    values = positions.astype(np.uint64)
    todo = np.arange(len(values))
    while len(todo):
        values[todo] = _feistel(values[todo], left_bits, right_bits, key)
        todo = todo[values[todo] >= size]
    return values.astype(np.int64)


def _feistel(values: Words, left_bits: int, right_bits: int, key: Words, rounds: int = 6) -> Words:
    """An even number of rounds on words of left_bits + right_bits bits. The halves swap in each round."""
    left, right = values >> np.uint64(right_bits), values & np.uint64((1 << right_bits) - 1)
    widths = (left_bits, right_bits)
    for number in range(rounds):
        mask = np.uint64((1 << widths[0]) - 1)
        left, right = right, left ^ (combine(key, number, right) & mask)
        widths = (widths[1], widths[0])
    return (left << np.uint64(right_bits)) | right
