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


@dataclasses.dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that another set has stored already, and what it knows of it.

    Attributes:
        jpeg: as stored.
        image_sha256: of the bytes as served; None: not known.
        original_width, original_height, original_format: of the image as served; None: not known.
        phash: of the pixels before they were encoded; None: not known, or of another version.
        final_url: where it came from; None: from the URL of the row.
        allowed_by, consulted: the protocols that allow its use for training, and those that were asked.
        keeps_form: it is encoded as stored images are. Otherwise it is encoded again.
        noted_sha256: what somebody else says of `image_sha256`. Lists are asked for it, too; nothing else believes it.
    """

    jpeg: bytes
    image_sha256: bytes | None = None
    original_width: int | None = None
    original_height: int | None = None
    original_format: str | None = None
    phash: int | None = None
    final_url: str | None = None
    allowed_by: tuple[str, ...] = ()
    consulted: tuple[str, ...] = ()
    keeps_form: bool = True
    noted_sha256: bytes | None = None

    def picture(self, decoded: Picture) -> Picture:
        """The picture, from what decoding the JPEG gave. It is not encoded again, if it has the form of stored images.

        A JPEG has this form if its pixels keep their size, and if no segment beside those of the pixels is in it.
        """
        given = {
            name: value
            for name in ("original_width", "original_height", "original_format", "phash")
            if (value := getattr(self, name)) is not None
        }
        same = (decoded.original_width, decoded.original_height) == (decoded.width, decoded.height)
        if not (self.keeps_form and same and is_plain(self.jpeg)):
            given.pop("phash", None)
            return dataclasses.replace(decoded, **given)
        return dataclasses.replace(decoded, jpeg=self.jpeg, **given)


PLAIN_SEGMENTS = frozenset((0xE0, 0xDB, 0xC0, 0xC4))  # JFIF, tables of numbers, baseline frame, tables of codes


def is_plain(jpeg: bytes) -> bool:
    """True for a baseline JPEG without metadata of any kind before its pixels: no EXIF, profile, XMP or comment."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and at + 4 <= len(jpeg):
        if jpeg[at + 1] == 0xDA:
            return jpeg.startswith(b"\xff\xd8") and jpeg.endswith(b"\xff\xd9")
        if jpeg[at + 1] not in PLAIN_SEGMENTS:
            return False
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return False
