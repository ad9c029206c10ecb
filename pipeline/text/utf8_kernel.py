"""Characters of valid UTF-8 for compiled kernels. It is compiled by the kernels that use it."""

from __future__ import annotations

import numpy as np

from pipeline.engine.jit import njit

ASCII_END, LEAD_3, LEAD_4 = 0x80, 0xE0, 0xF0  # the first lead bytes of two, three and four bytes
_TAIL_BITS, _BITS_OF_LEAD_2, _BITS_OF_LEAD_3 = 0x3F, 0x1F, 0x0F


@njit
def character_at(data, place):  # noqa: ANN001, ANN201
    """(code point, place after it) of the character at `place`, which has at most three bytes."""
    first = np.int64(data[place])
    if first < ASCII_END:
        return first, place + 1
    if first < LEAD_3:
        return (first & _BITS_OF_LEAD_2) << 6 | data[place + 1] & _TAIL_BITS, place + 2
    high = (first & _BITS_OF_LEAD_3) << 12
    return high | (data[place + 1] & _TAIL_BITS) << 6 | data[place + 2] & _TAIL_BITS, place + 3
