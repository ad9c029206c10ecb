"""The result of decoding. It is apart from the decoder, so that the parent of a decoding process needs no Pillow."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A decoded, shrunk and encoded image. The original's sizes are those of the upright picture."""

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    original_format: str
    phash: int
