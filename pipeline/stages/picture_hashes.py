"""The bounds of alike pictures and the layout of their hashes, which `similar` and its kernel share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.engine.hashing import Words

HASH_BITS = 64
CELLS = 64
MOST_DISTANCE = 8  # with more blocks than this, a block has so few bits that most pictures share it
MOST_DIFFERENCE = 24  # of a mean colour, of 255
LEAST_DEVIATION = 12  # standard deviation of the brightness of the cells, of 255: below it a picture is nearly plain
LEAST_SPREAD = (CELLS * LEAST_DEVIATION) ** 2
RED, GREEN, BLUE = 77, 150, 29  # of 256: the weights of ITU-R BT.601
ALIKE_OF, ALIKE = 100, 96  # the squared correlation of the brightness is at least ALIKE / ALIKE_OF

Places = npt.NDArray[np.int64]
Colours = npt.NDArray[np.uint8]  # (n, 192)


class Hashes(NamedTuple):
    """Pictures under one block of their hash each. A picture may come several times, under several blocks."""

    block: npt.NDArray[np.uint8]  # the number of the block
    phash: Words
    colours: Colours

    def take(self, order: Places) -> Hashes:
        """The pictures at these places."""
        return Hashes(self.block[order], self.phash[order], self.colours[order])
