"""From the bytes of an image to the JPEG that is stored, its sizes and its perceptual hash.

It uses only Pillow and numpy. Size and format are checked before a pixel is decoded: opening costs a few MB, even for a
decompression bomb. The JPEG is always encoded anew from upright sRGB pixels with fixed settings. So the same input
gives the same bytes, without the original's metadata.
"""

from __future__ import annotations

import functools
import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.picture import MOST_MEMORY, NeedsMemory, Picture

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
NAMES = {"MPO": "JPEG"}  # a JPEG with further pictures behind it
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})
LARGEST_PROFILE = 4 << 20
BYTES_PER_PIXEL = 12  # that decoding takes at most, in every format but JPEG (measured: WebP, PNG with a colour key)

HASH_SIDE = 32  # the picture is shrunk to this before the cosine transform
KEPT_WAVES = 8


def decode(body: bytes, options: FetchOptions, memory: int = MOST_MEMORY) -> Picture:
    """Makes the picture.

    Args:
        body: of the image.
        options: its limits, and the form of the result.
        memory: bytes that the pixels may take while they are decoded.

    Raises:
        Failure: not_an_image, too_many_pixels, too_small, aspect, decode.
        NeedsMemory: the pixels take more than `memory`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _opened(body, options) as image:
            name = NAMES.get(str(image.format), str(image.format))
            try:
                original, size = image.size, _target_size(image.size, options.image_size)
                needed = _prepare(image, name, size)
                if needed > memory:
                    raise NeedsMemory(needed)
                return _picture(image, name, original, size, options)
            except (Failure, NeedsMemory):
                raise
            except MemoryError as error:
                raise Failure("decode", f"{name}: needs more memory than allowed") from error
            except Exception as error:  # Pillow's plug-ins raise many classes of errors for a broken file
                raise Failure("decode", f"{name}: {type(error).__name__}: {error}") from error


def _opened(body: bytes, options: FetchOptions) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(body), formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own bound, far above ours
        raise Failure("too_many_pixels", str(error)) from error
    except Exception as error:
        if not body:
            raise Failure("not_an_image", "the body is empty") from error
        if body.startswith(SIGNATURES) or body[8:12] == b"WEBP" or body[4:12] == b"ftypavif":
            raise Failure("decode", f"the head of the file is damaged: {type(error).__name__}") from error
        raise Failure("not_an_image", "the body is not an image of a known format") from error
    width, height = image.size
    if width * height > options.max_pixels:
        raise Failure("too_many_pixels", f"{width} x {height} pixels")
    if min(width, height) < options.min_side:
        raise Failure("too_small", f"{width} x {height} pixels")
    if max(width, height) > options.max_aspect * min(width, height):
        raise Failure("aspect", f"{width} x {height} pixels")
    return image


def _prepare(image: Image.Image, name: str, size: tuple[int, int]) -> int:
    """Chooses the cheapest way to decode an image to about `size`. Returns the bytes that its pixels take then."""
    width, height = image.size
    if name != "JPEG":
        return width * height * BYTES_PER_PIXEL
    waves = 2 * len(image.getbands()) if image.info.get("progressive") else 0  # libjpeg keeps them for the whole image
    if size != image.size:
        image.draft(None, size)  # libjpeg decodes at 1/2, 1/4 or 1/8 of the size, never below the target
    return width * height * waves + image.size[0] * image.size[1] * 8


def _free_canvases(image: Any) -> None:
    """Lets a WebP's decoder free its two canvases after the first frame, before Pillow copies the pixels.

    Only for an image that is loaded next: until then it refers to itself, and lives longer than it should.
    """
    get_next = getattr(image, "_get_next", None)
    if get_next is None:
        return

    def first() -> Any:
        del image._get_next
        frame = get_next()
        image._decoder = None
        return frame

    image._get_next = first


def _picture(
    image: Image.Image, name: str, original: tuple[int, int], size: tuple[int, int], options: FetchOptions
) -> Picture:
    if name == "WEBP":
        _free_canvases(image)
    image.load()
    if image.size[0] * image.size[1] > options.max_pixels:
        raise Failure("too_many_pixels", f"{image.size[0]} x {image.size[1]} pixels")
    turn = _orientation(image)  # after load(), which turns a TIFF by itself
    profile = image.info.get("icc_profile")
    pixels = _eight_bits(image)
    if size != pixels.size:
        pixels = pixels.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = _rgb(_on_white(pixels), profile)
    if turn in TURNS:
        pixels = pixels.transpose(TURNS[turn])
    width, height = reversed(original) if turn in SIDEWAYS else original
    return Picture(_jpeg(pixels, options.quality), *pixels.size, width, height, name, phash(pixels))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to lose the picture
        return 1


def _target_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    """The size with the given short side. It is never larger than the picture."""
    width, height = size
    least = min(width, height)
    if least <= short:
        return size
    return max(1, round(width * short / least)), max(1, round(height * short / least))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in one of L, LA, RGB, RGBA, CMYK."""
    mode = image.mode
    if mode.startswith("I"):
        if mode == "I":  # what is white is nowhere stated: 255, 65535 and 2147483647 are all in use
            raise Failure("decode", "pixels of 32 bits")
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode == "F":
        raise Failure("decode", "pixels of floating point")
    if mode in ("1", "L", "RGB", "P") and "transparency" in image.info:
        return image.convert("RGBA")
    if mode in ("PA", "RGBa", "La"):
        return image.convert("RGBA")
    if mode == "1":
        return image.convert("L")
    return image if mode in ("L", "LA", "RGB", "RGBA", "CMYK") else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "LA"):
        return image
    alpha = image.getchannel("A")
    colours = image.convert("RGB") if image.mode == "RGBA" else image.getchannel("L")
    white = Image.new(colours.mode, image.size, "white")
    return Image.composite(colours, white, alpha)


def _rgb(image: Image.Image, profile: Any) -> Image.Image:
    if isinstance(profile, bytes) and 128 < len(profile) <= LARGEST_PROFILE:
        transform = _to_srgb(profile, image.mode)
        if transform is not None:
            try:
                converted = ImageCms.applyTransform(image, transform)
                if converted is not None:
                    return converted
            except (ImageCms.PyCMSError, ValueError, OSError):
                pass  # a profile that cannot be applied is ignored
    return image.convert("RGB")


@functools.lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """The transform to sRGB; None if the profile is sRGB itself, damaged, or for another kind of pixels."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        description = ImageCms.getProfileDescription(source)
        if mode == "RGB" and "srgb" in description.lower():
            return None
        intent = ImageCms.Intent.PERCEPTUAL
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
    except Exception:
        return None


def _jpeg(image: Image.Image, quality: int) -> bytes:
    """A baseline JPEG with 4:2:0 and the standard Huffman tables: it depends only on pixels and quality."""
    out = io.BytesIO()
    image.info.clear()
    image.save(out, "JPEG", quality=quality, subsampling="4:2:0", optimize=False, progressive=False)
    return out.getvalue()


@functools.lru_cache(maxsize=1)
def _waves() -> np.ndarray:
    """Cosines as integers: sums of integers are the same on every machine, sums of floats are not."""
    wave, at = np.arange(KEPT_WAVES)[:, None], np.arange(HASH_SIDE)[None]
    return np.rint(4096 * np.cos(np.pi * wave * (2 * at + 1) / (2 * HASH_SIDE))).astype(np.int64)


def phash(image: Image.Image) -> int:
    """64-bit DCT hash: a bit for each of the 8 x 8 lowest waves, 1 if the wave is above the median.

    The median is that of all waves but the constant one.
    """
    gray = np.asarray(image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)).astype(np.int64)
    waves = _waves()
    strength = (waves @ gray @ waves.T).ravel()
    above = strength > np.sort(strength[1:])[31]
    return int.from_bytes(np.packbits(above).tobytes(), "big")
