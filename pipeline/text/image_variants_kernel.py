"""Finds the URLs whose key may be more than the URL without its scheme. `image_variants` looks at these alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine.hashing import string_buffers
from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit

_SLASH, _COLON, _DOT, _QUESTION, _AMPERSAND, _HYPHEN, _ZERO, _LOWER_S = b"/:.?&-0s"
_DIGITS, _CASE = 10, np.uint8(0x20)
_HASH_BITS = 12
_TIMES, _MASK = np.uint32(33), np.uint32((1 << _HASH_BITS) - 1)


@njit
def _is_listed(data, start, end, hosts):
    """True if a host, or the part of it after a dot, has a hash of the table. The hash begins at the end of a host."""
    value = np.uint32(0)
    for place in range(end - 1, start - 1, -1):
        if data[place] == _DOT and hosts[value & _MASK]:
            return True
        value = value * _TIMES + np.uint32(data[place])
    return hosts[value & _MASK]


@njit
def _may_name_size(data, start, end):
    """True for a parameter, and for a hyphen before a digit or an "s"."""
    for place in range(start, end):
        byte = data[place]
        if byte == _QUESTION or byte == _AMPERSAND:
            return True
        if byte == _HYPHEN and place + 1 < end:
            after = data[place + 1]
            if np.uint8(after - np.uint8(_ZERO)) < _DIGITS or after | _CASE == _LOWER_S:
                return True
    return False


@njit
def _look(data, offsets, hosts, found):
    for row in range(len(found)):
        start, end = offsets[row], offsets[row + 1]
        place = start
        while place < end and data[place] != _COLON:
            place += 1
        host = min(place + 3, end)  # after "://"
        place = host
        while place < end and data[place] != _SLASH and data[place] != _QUESTION:
            place += 1
        found[row] = _is_listed(data, host, place, hosts) or _may_name_size(data, host, end)


def worth_a_look(urls: pa.Array, hosts: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """False for each URL that the pattern `image_variants._worth_a_look` does not find; `hosts` is of `table_of`."""
    data, offsets = string_buffers(urls)
    found = np.empty(len(urls), np.bool_)
    _look(frozen(data, np.uint8), frozen(offsets, np.int64), frozen(hosts, np.bool_), found)
    return found


def table_of(hosts: Iterable[str]) -> npt.NDArray[np.bool_]:
    """True at the hash of each host."""
    table = np.zeros(1 << _HASH_BITS, np.bool_)
    for host in hosts:
        value = 0
        for byte in reversed(host.encode()):
            value = (value * int(_TIMES) + byte) & 0xFFFFFFFF
        table[value & int(_MASK)] = True
    return table


def warm() -> None:
    """Compiles the kernel."""
    worth_a_look(pa.array(["https://a.example/b"]), table_of(["c"]))
