"""The bounds of alike pictures and the layout of their hashes, which `similar` and its kernel share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.engine.hashing import Words

HASH_BITS = 64
CELLS = 64
COLOUR_SIDE = 8
MOST_DISTANCE = 8  # with more blocks than this, a block has so few bits that most pictures share it
MOST_DIFFERENCE = 24  # of a mean colour, of 255
SHADES = 256  # cells of brightness, 16 x 16
SHADE_SIDE = 16
FLAT_STEP = 1  # a cell is flat if the brightness of the next cells differs by no more, of 255
SOME_FLAT = 3  # flat cells of 225 (.01): so many make a picture that may be a drawing
DRAWN_FLAT = 23  # flat cells of 225 (.1): so many make a drawing, a screen or a sign
SOME_FLAT_SHARE = 0.25  # shades of pictures that may be drawings differ by no more than this, in standard deviations
DRAWN_SHARE = 14, 100  # shades of drawings differ by no more than this share of their standard deviation
DRAWN_DIFFERENCE = 12  # of a mean colour of a drawing, of 255
MOST_CHROMA = 2  # the mean colours of a grey picture differ by no more between R, G and B
LEAST_DEVIATION = 12  # standard deviation of the brightness of the cells, of 255: below it a picture is nearly plain
LEAST_SPREAD = (CELLS * LEAST_DEVIATION) ** 2
LEAST_GRAIN = 178  # of 255: pictures with so much grain are photographs
MOST_GRAIN_DIFFERENCE = 40  # of a mean colour of a photograph with grain, of 255
MOST_OTHER_CELLS = 2  # cells of a photograph with grain that may differ by more: a watermark
GRAIN_ALIKE = 0.95  # the least correlation of the shades of photographs with grain
RED, GREEN, BLUE = 77, 150, 29  # of 256: the weights of ITU-R BT.601
ALIKE_OF, ALIKE = 100, 96  # the squared correlation of the brightness is at least ALIKE / ALIKE_OF

Places = npt.NDArray[np.int64]
Colours = npt.NDArray[np.uint8]  # (n, 192)
Shades = npt.NDArray[np.uint8]  # (n, 256)


class Hashes(NamedTuple):
    """Pictures under one block of their hash each. A picture may come several times, under several blocks."""

    block: npt.NDArray[np.uint8]  # the number of the block
    phash: Words
    colours: Colours
    shades: Shades
    grain: npt.NDArray[np.uint8]

    def take(self, order: Places) -> Hashes:
        """The pictures at these places."""
        looks = self.colours[order], self.shades[order], self.grain[order]
        return Hashes(self.block[order], self.phash[order], *looks)
