"""Bytes to pixels: the training crop, the evaluation transform, and the normalisation on the device.

Pixels stay uint8 until they are on the device. The evaluation transform is OpenAI's, bit for bit (Pillow's
bicubic). The training crop uses OpenCV, which is faster and decodes JPEG, PNG and WebP to the same pixels as Pillow.

Both accept the same images. The content decides, not the name. JPEG, PNG, WebP, GIF and BMP are accepted. The first
frame is used. Alpha is dropped. Palettes, grey and CMYK become RGB as with Pillow's `convert("RGB")` (CMYK to within 2
levels). 16-bit values keep their upper 8 bits. EXIF orientation is not applied, as in OpenAI's and open_clip's
transforms. A truncated file is refused. An image of more than `MAX_PIXELS`, and a JPEG whose scans would cost more than
`MAX_SCANNED` pixels, are refused before they are decoded.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_train.config import MEAN, STD
from clip_train.errors import TrainError

if TYPE_CHECKING:
    import torch
    from PIL import Image

MAX_PIXELS = 1 << 26  # 67 megapixels
MAX_SCANNED = 1 << 30  # pixels times scans of a JPEG: a scan of 20 bytes costs a pass over the whole image
_MAX_SEGMENTS = 2000  # before the first scan of a JPEG; EXIF and colour profiles take dozens
# Pillow reads many more formats, some by starting other programs
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "MPO")


class BadImage(Exception):
    """These bytes are not an image that we accept. The message is the reason, one word."""


class UnknownForm(BadImage):
    """The bytes do not begin like one of the formats of the training crop."""


@functools.cache
def _cv2() -> Any:
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # OpenCV reads it once, at import
    try:
        import cv2
    except ImportError as error:
        raise TrainError("the loader needs OpenCV: pip install openwit[train]") from error
    cv2.setNumThreads(0)  # samples are decoded in parallel, each by one thread
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the loader counts and names damaged images
    return cv2


def probe(data: bytes) -> tuple[str, int, int]:
    """Format, width and height from the header. Raises BadImage for an image that must not be decoded."""
    try:
        kind, width, height, scans = _claims(data)
    except (IndexError, struct.error):
        raise BadImage("image_not_decoded") from None
    if width * height > MAX_PIXELS or width * height * scans > MAX_SCANNED:
        raise BadImage("image_too_large")
    if not width or not height:
        raise BadImage("image_not_decoded")
    return kind, width, height


def _claims(data: bytes) -> tuple[str, int, int, int]:
    """Format, width, height and the number of scans, which is 1 except for some JPEGs."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg", *_jpeg_claims(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        animated = data.find(b"acTL", 0, max(0, data.find(b"IDAT"))) > 0
        return "apng" if animated else "png", *struct.unpack_from(">II", data, 16), 1
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp", *_webp_claims(data), 1
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif", *struct.unpack_from("<HH", data, 6), 1
    if data[:2] == b"BM":
        width, height = struct.unpack_from("<ii" if struct.unpack_from("<I", data, 14)[0] >= 40 else "<hh", data, 18)
        return "bmp", abs(width), abs(height), 1
    raise UnknownForm("image_not_decoded")


def _jpeg_claims(data: bytes) -> tuple[int, int, int]:
    """Width, height and scans, from the segments before the first scan (ITU T.81, annex B)."""
    at, width, height, components, frame = 2, 0, 0, 0, 0
    for _ in range(_MAX_SEGMENTS):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            if not frame:
                break
            one_scan = frame in (0xC0, 0xC1) and data[at + 4] == components
            return width, height, 1 if one_scan else max(1, data.count(b"\xff\xda", at))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            frame = marker
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    raise BadImage("image_not_decoded")


def _webp_claims(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk (RFC 9649)."""
    if data[12:16] == b"VP8X":
        return (int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def decode(data: bytes, *, size: int = 0, min_scale: float = 1.0) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    Args:
        size, min_scale: the arguments of `random_crop`. A JPEG that is large enough is decoded at a half, a quarter or
            an eighth of its size, which is faster. 0: full size.
    """
    kind, width, height = probe(data)
    if kind in ("gif", "bmp", "apng"):  # OpenCV decodes another first frame, or none
        return _pillow_rgb(data)
    cv2 = _cv2()
    factor = reduction(width, height, size, min_scale=min_scale) if kind == "jpeg" and size else 1
    flag = {1: cv2.IMREAD_COLOR_RGB, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
            8: cv2.IMREAD_REDUCED_COLOR_8}[factor]  # fmt: skip
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise BadImage("image_not_decoded")
    return image if factor == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _pillow_rgb(data: bytes) -> np.ndarray:
    try:
        with _opened(data) as opened:
            return np.asarray(opened.convert("RGB"))
    except BadImage:
        raise
    except Exception as error:  # Pillow raises almost any exception on a damaged file
        raise BadImage("image_not_decoded") from error


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The first frame, opened by Pillow, 8 bits per channel. The size is checked before and after decoding."""
    from PIL import Image

    with contextlib.suppress(UnknownForm):
        probe(data)
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as opened:
            for _ in range(2):
                if opened.width * opened.height > MAX_PIXELS:
                    raise BadImage("image_too_large")
                opened.load()  # a frame of a GIF may be larger than its screen
            yield _upper_bits(opened)
    except Image.DecompressionBombError:
        raise BadImage("image_too_large") from None


def _upper_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey. Pillow's `convert` would clip nearly all of it to white."""
    from PIL import Image

    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))


def random_crop(image: np.ndarray, out: np.ndarray, draws: np.ndarray, *, min_scale: float) -> None:
    """Resizes a random square of the image into `out` (S, S, 3): the only augmentation of the paper.

    Up to a factor of 8/7 (224 from shards of 256 px) the filter is OpenCV's cubic one. Above it is the mean over the
    area, because a cubic filter reads 4 x 4 pixels and would skip some. The result differs from Pillow's bicubic of the
    same square by 0.7 to 1.4 levels of 255 on average (docs/training.md).

    Args:
        draws: three numbers in [0, 1), for the size and the place of the square.
        min_scale: smallest area, as a share of the largest square's.
    """
    cv2 = _cv2()
    height, width = image.shape[:2]
    scale = min_scale + (1 - min_scale) * draws[0]
    side = max(1, round(min(height, width) * scale**0.5))
    top, left = int(draws[1] * (height - side + 1)), int(draws[2] * (width - side + 1))
    crop = image[top : top + side, left : left + side]
    size = out.shape[0]
    cv2.resize(crop, (size, size), dst=out, interpolation=cv2.INTER_CUBIC if 7 * side <= 8 * size else cv2.INTER_AREA)


def reduction(width: int, height: int, size: int, *, min_scale: float) -> int:
    """The largest factor to shrink a JPEG by while decoding, so that the smallest crop still has `size` pixels."""
    smallest = min(width, height) * min_scale**0.5
    return max((factor for factor in (2, 4, 8) if smallest / factor >= size), default=1)


def evaluation_transform(data: bytes, size: int, *, interpolation: str = "bicubic") -> np.ndarray:
    """(S, S, 3) uint8: resizes the shorter side to `size` by Pillow's filter, then crops the centre.

    With the bicubic filter this is OpenAI's `preprocess`.
    """
    try:
        with _opened(data) as opened:
            return middle_square(opened, size, interpolation=interpolation)
    except BadImage:
        raise
    except Exception as error:  # Pillow raises almost any exception on a damaged file
        raise BadImage("image_not_decoded") from error


def middle_square(opened: Image.Image, size: int, *, interpolation: str = "bicubic") -> np.ndarray:
    """(S, S, 3) uint8 from an image of Pillow; see `evaluation_transform`."""
    from PIL import Image

    opened = _upper_bits(opened)
    width, height = opened.size
    scale = size / min(width, height)
    # torchvision truncates the longer side
    target = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    if max(target) > MAX_PIXELS // size:  # an image one pixel wide would become arbitrarily long
        raise BadImage("image_too_large")
    kernel = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    image = opened.resize(target, kernel) if scale != 1 else opened.copy()
    left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"))


def normalize(
    images: torch.Tensor,
    *,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    kind: torch.dtype | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) in the channels-last memory format, which convolutions prefer.

    Args:
        mean, std: of the three channels, of pixels in [0, 1].
        kind: the type of the result; fp32 unless given. The arithmetic is fp32.
        compiled: by one compiled kernel, which reads and writes each pixel once.
    """
    centre, spread = _rows(mean, std, images.shape[2], images.device)
    work = _compiled_normalize() if compiled else _normalize
    return work(images, centre, spread, kind)


def _normalize(
    images: torch.Tensor, centre: torch.Tensor, spread: torch.Tensor, kind: torch.dtype | None
) -> torch.Tensor:
    batch, height, width, _ = images.shape
    rows = images.reshape(batch, height, width * 3).float().sub_(centre).div_(spread)
    rows = rows if kind is None else rows.to(kind)
    return rows.view(batch, height, width, 3).permute(0, 3, 1, 2)


@functools.cache
def _compiled_normalize() -> Callable[..., torch.Tensor]:
    import torch

    return torch.compile(_normalize, dynamic=False)


@functools.lru_cache(maxsize=16)
def _rows(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of whole rows of pixels: an inner dimension of three values is slow on a CPU."""
    import torch

    return tuple((torch.tensor(values, device=device) * 255).repeat(width) for values in (mean, std))  # type: ignore[return-value]
