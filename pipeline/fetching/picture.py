"""The results of decoding, apart from the decoder: the parent of a decoding process needs no Pillow."""

from __future__ import annotations

import dataclasses

MOST_MEMORY = 2**63  # no bound


class NeedsMemory(Exception):
    """Decoding takes more memory than was allowed: `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A decoded, shrunk and encoded image. The original's sizes are those of the upright picture.

    `phash`, `colours`, `shades` and `grain` are of the stored pixels before they are encoded (see `images`).
    """

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    original_format: str
    phash: int
    colours: bytes
    shades: bytes
    grain: int
    pdq: str | None = None  # 64 hexadecimal digits; None: not asked for, or the picture has too little detail
    allowed_by: str | None = None  # the protocols inside the image that allow AI training
