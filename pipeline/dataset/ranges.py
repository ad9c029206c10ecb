"""The shard of a pair: floor(uid * S / 2^128), where S is recorded with the set.

    uid --Ranges(S).of--> 17 --> shards/00017.tar, metadata/00017.parquet

So the content and the name of a shard do not depend on the rows of other shards. A range without a row has no file. So
the numbers of a set may have gaps: manifest.json and shards/sizes.json list the shards. All names of a set have the
same number of digits, so that the names sort like the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MOST = 1_000_000  # the maximum number of ranges in a set; `of` is exact up to 2^31
LEAST_DIGITS = 5  # the minimum number of digits in a name
UID_BITS = 128


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The uids, cut into `count` ranges of equal size."""

    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise ValueError(f"{self.count} ranges: 1 to {MOST} are possible")

    @property
    def digits(self) -> int:
        """The digits of a number in a name: 5, or as many as the last number has."""
        return max(LEAST_DIGITS, len(str(self.count - 1)))

    def of(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The range of each uid, given as its high and its low word: (rows,) each."""
        carry, half = np.zeros_like(low), np.uint64(0xFFFFFFFF)
        for digit in (low & half, low >> np.uint64(32), high & half, high >> np.uint64(32)):
            carry = (digit * np.uint64(self.count) + carry) >> np.uint64(32)
        return carry.astype(np.int64)

    def of_key(self, key: str) -> int:
        """The range of a key in hexadecimal."""
        return int(key, 16) * self.count >> UID_BITS

    def first_key(self, number: int) -> str:
        """The smallest key in a range. For `number` = `count`, a string that is above all keys."""
        first = -(-(number << UID_BITS) // self.count)
        return f"{first:032x}" if number < self.count else "g"


def recorded(manifest: Mapping[str, Any]) -> Ranges | None:
    """The ranges that a manifest records; None: an older version made the set, and numbered the shards consecutively.

    Raises:
        KeyError, TypeError, ValueError: the record has the wrong form.
    """
    found = manifest.get("shards")
    if found is None:
        return None
    count = found["ranges"]
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"shards.ranges is {count!r}, not a number")
    return Ranges(count)


def digits_of(manifest: Mapping[str, Any]) -> int:
    """The number of digits in the shard names of a set. Raises the errors of `recorded`."""
    ranges = recorded(manifest)
    return LEAST_DIGITS if ranges is None else ranges.digits
