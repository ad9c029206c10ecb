"""From the bytes of an image to the JPEG that is stored, its sizes and its perceptual hashes.

It uses only Pillow and numpy. Size and format are checked before a pixel is decoded: opening costs a few MB, even for a
decompression bomb. The JPEG is always encoded anew from upright sRGB pixels with fixed settings. So the same input
gives the same bytes, without the original's metadata.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import io
import re
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageCms

from pipeline.fetching import embedded
from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.picture import MOST_MEMORY, NeedsMemory, Picture
from pipeline.fetching.verdict import IN_IMAGE

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
SRGB_TOLERANCE = 2  # of 255: a profile that changes every colour by no more is sRGB

# What libjpeg reports about the coded pixels. Its other reports are about headers, and the pixels are right.
JPEG_DAMAGE = re.compile(
    "premature end|bad huffman code|bad arithmetic code|instead of rst|inconsistent progression|invalid sos", re.I
)
JPEG_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")

PNG_CHUNK = struct.Struct(">I4s")
FAX_AND_OLD_JPEG = ("tiff_ccitt", "group3", "group4", "tiff_jpeg")  # their decoders may leave pixels unwritten
M_PERTURB = -6  # glibc's malloc.h: new memory is filled with this byte
BYTES_PER_PIXEL = 12  # that decoding takes at most, in every format but JPEG (measured: WebP, PNG with a colour key)

HASH_SIDE = 32  # a side of the shrunk picture that is hashed
KEPT_WAVES = 8
PDQ_SIDE = 512
LEAST_PDQ_QUALITY = 50  # of 100: the bound of ThreatExchange's documentation
COLOUR_CELLS = 8  # a side of the grid of mean colours
MOST_GRAIN = 32  # of 255: a larger step between pixels is an edge
SHADE_CELLS = 16  # a side of the grid of brightness


def decode(body: bytes, options: FetchOptions, memory: int = MOST_MEMORY) -> Picture:
    """Makes the picture.

    Args:
        body: of the image.
        options: its limits, and the form of the result.
        memory: bytes that the pixels may take while they are decoded.

    Raises:
        Failure: not_an_image, opt_out, too_many_pixels, too_small, aspect, decode.
        NeedsMemory: the pixels take more than `memory`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _opened(body, options) as image:
            name = NAMES.get(str(image.format), str(image.format))
            allowed_by = _check_rights(body, options) if options.respects(*IN_IMAGE) else None
            try:
                original, size = image.size, _target_size(image.size, options.image_size)
                needed = _prepare(image, name, size)
                if needed > memory:
                    raise NeedsMemory(needed)
                picture = _picture(_Source(image, body, name), original, size, options)
                return dataclasses.replace(picture, allowed_by=allowed_by)
            except (Failure, NeedsMemory):
                raise
            except MemoryError as error:
                raise Failure("decode", f"{name}: needs more memory than allowed") from error
            except Exception as error:  # Pillow's plug-ins raise many classes of errors for a broken file
                raise Failure("decode", f"{name}: {type(error).__name__}: {error}") from error


def _check_rights(body: bytes, options: FetchOptions) -> str | None:
    """The protocols in which the image allows its use for training, with commas between them; None: none does.

    Raises:
        Failure: opt_out; it forbids that.
    """
    found = {name: one for name, one in embedded.statements(body).items() if options.respects(name)}
    for protocol, one in found.items():
        if one is not None and not one[0]:
            raise Failure("opt_out", f"the image: {one[1]}", protocol=protocol)
    return ",".join(protocol for protocol, one in found.items() if one is not None) or None


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


class _Source:
    """An opened image and its bytes."""

    def __init__(self, image: Image.Image, body: bytes, name: str) -> None:
        self.image = image
        self.body = body
        self.name = name

    def pixels(self) -> Image.Image:
        """The decoded image.

        Raises:
            Failure: decode; the decoder reports damage, or gives other pixels each time.
        """
        if self.name == "JPEG":
            return self._jpeg()
        if self.name == "PNG":
            _check_png(self.body)
        if self.name == "WEBP":
            _free_canvases(self.image)
        self.image.load()
        if self.name == "TIFF" and self.image.info.get("compression") in FAX_AND_OLD_JPEG:
            self._check_repeatable()
        return self.image

    def _jpeg(self) -> Image.Image:
        """The pixels that Pillow gives, from the same library in its strict mode: Pillow does not hear its warnings."""
        space = {"RGB": "RGB", "L": "GRAY"}.get(self.image.mode)
        width, height = self.image.size  # as drafted: simplejpeg takes the smallest scale that is no smaller
        try:
            if space is not None:
                array = simplejpeg.decode_jpeg(self.body, space, min_height=height, min_width=width, strict=True)
                if array.shape[:2] == (height, width):
                    return Image.fromarray(array if space == "RGB" else array[..., 0])
            else:
                simplejpeg.decode_jpeg(self.body, "CMYK", min_height=1, min_width=1, strict=True)
        except ValueError as error:
            if JPEG_DAMAGE.search(str(error)) or _holds_coded_rest(self.body, str(error)):
                raise Failure("decode", f"JPEG: {error}") from error
        self.image.load()
        return self.image

    def _check_repeatable(self) -> None:
        """Decodes again, into memory that was filled with another byte."""
        try:
            fill = ctypes.CDLL(None).mallopt
        except (AttributeError, OSError):  # without glibc
            return
        try:
            fill(M_PERTURB, 0x5A)
            with Image.open(io.BytesIO(self.body), formats=("TIFF",)) as again:
                again.load()
                if again.tobytes() != self.image.tobytes():
                    raise Failure("decode", "TIFF: other pixels each time it is decoded")
        finally:
            fill(M_PERTURB, 0)


def _check_png(body: bytes) -> None:
    """Checks the checksums of the pixels: Pillow does not, and takes what comes out of a damaged stream.

    Raises:
        Failure: decode.
    """
    at, view = 8, memoryview(body)
    while at + 12 <= len(body):
        size, name = PNG_CHUNK.unpack_from(body, at)
        end = at + 8 + size
        if name == b"IDAT" and zlib.crc32(view[at + 4 : end]) != int.from_bytes(body[end : end + 4], "big"):
            raise Failure("decode", "PNG: a checksum of the pixels does not fit")
        if name == b"IEND":
            return
        at = end + 4


def _holds_coded_rest(body: bytes, report: str) -> bool:
    """True if libjpeg left over more than padding at the end: pixels were coded there, and it lost its place."""
    found = JPEG_LEFT_OVER.search(report)
    if found is None:
        return False
    end = body.rfind(b"\xff\xd9")
    rest = body[max(0, end - int(found[1])) : end]
    return len(set(rest)) > 1


def _picture(source: _Source, original: tuple[int, int], size: tuple[int, int], options: FetchOptions) -> Picture:
    image, name = source.image, source.name
    decoded = source.pixels()
    if image.size[0] * image.size[1] > options.max_pixels:
        raise Failure("too_many_pixels", f"{image.size[0]} x {image.size[1]} pixels")
    turn = _orientation(image)  # after load(), which turns a TIFF by itself
    profile = image.info.get("icc_profile")
    pixels = _eight_bits(decoded)
    if size != pixels.size:
        pixels = pixels.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = _rgb(_on_white(pixels), profile)
    if turn in TURNS:
        pixels = pixels.transpose(TURNS[turn])
    width, height = reversed(original) if turn in SIDEWAYS else original
    small = shrink(pixels)
    return Picture(
        _jpeg(pixels, options.quality),
        *pixels.size,
        width,
        height,
        name,
        phash(small),
        colours(small),
        shades(small),
        grain(pixels),
        pdq=pdq(pixels, (width, height)) if options.pdq else None,
    )


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
    """The transform to sRGB; None if the profile is sRGB itself, damaged, or for another kind of pixels.

    The name of a profile does not count: some linear profiles have "sRGB" in it.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        intent = ImageCms.Intent.PERCEPTUAL
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
        return None if mode == "RGB" and _changes_nothing(transform) else transform
    except Exception:
        return None


def _changes_nothing(transform: Any) -> bool:
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(len(steps), -1, 3)
    converted = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return bool(np.abs(np.asarray(converted, np.int16) - colours).max() <= SRGB_TOLERANCE)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    """A baseline JPEG with 4:2:0 and the standard Huffman tables: it depends only on pixels and quality."""
    out = io.BytesIO()
    image.info.clear()
    image.save(out, "JPEG", quality=quality, subsampling="4:2:0", optimize=False, progressive=False)
    return out.getvalue()


def shrink(image: Image.Image) -> Image.Image:
    """The RGB picture as HASH_SIDE x HASH_SIDE pixels, from which three hashes of near-duplicates are made.

    The filter is a triangle: a box of Pillow takes whole pixels, and gives other values for other sizes of a small
    picture. Pillow's filters work with integers, so equal pixels give equal bytes.
    """
    return image.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)


@functools.lru_cache(maxsize=1)
def _waves() -> np.ndarray:
    """Cosines that fade towards the edges (half a period of a sine), so that a crop, a frame or a mark changes less.

    All but the first, constant one have the sum 0: brightness alone gives no strength. They are integers: sums of
    integers are the same on every machine, sums of floats are not.
    """
    at = np.pi * (np.arange(HASH_SIDE) + 0.5) / HASH_SIDE
    fade = np.sin(at)
    waves = fade * np.cos(np.arange(KEPT_WAVES)[:, None] * at)
    waves[1:] -= fade * (waves[1:].sum(axis=1, keepdims=True) / fade.sum())
    return np.rint(4096 * waves).astype(np.int64)


def phash(small: Image.Image) -> int:
    """64-bit hash of a shrunk picture: a bit for each of 8 x 8 waves of its brightness, 1 if it is above the median.

    The waves are the lowest ones of the cosine transform, weighted by `_waves`. The median is that of all but the
    constant one.
    """
    waves = _waves()
    strength = (waves @ np.asarray(small.convert("L")).astype(np.int64) @ waves.T).ravel()
    above = strength > np.sort(strength[1:])[31]
    return int.from_bytes(np.packbits(above).tobytes(), "big")


def mirrored_phash(jpeg: bytes) -> int:
    """`phash` of the mirror image of a stored JPEG."""
    with Image.open(io.BytesIO(jpeg)) as image:
        return phash(shrink(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))


def colours(small: Image.Image) -> bytes:
    """The mean colours of 8 x 8 cells of a shrunk picture, row by row: 192 bytes R, G, B, R, ...

    It is the second hash of near-duplicates.
    """
    return small.reduce(HASH_SIDE // COLOUR_CELLS).tobytes()


def shades(small: Image.Image) -> bytes:
    """The brightness of 16 x 16 cells of a shrunk picture, row by row: 256 bytes.

    It is the third hash of near-duplicates. It holds what the others do not: words, small signs and thin lines.
    """
    return small.convert("L").reduce(HASH_SIDE // SHADE_CELLS).tobytes()


def grain(image: Image.Image) -> int:
    """The share of neighbouring pixels of an RGB picture whose brightness differs by 1 to MOST_GRAIN, of 255.

    It tells photographs from drawings and screens, whose pixels are mostly equal to the next ones.
    """
    gray = np.asarray(image.convert("L"))
    count = total = 0
    for some, others in ((gray[:, 1:], gray[:, :-1]), (gray[1:], gray[:-1])):
        apart = np.maximum(some, others) - np.minimum(some, others)
        count += int(np.count_nonzero(apart - np.uint8(1) < MOST_GRAIN))  # 0 becomes 255
        total += apart.size
    return 255 * count // max(1, total)


def pdq(image: Image.Image, original: tuple[int, int]) -> str | None:
    """The PDQ hash (256 bits) of an RGB picture as 64 hexadecimal digits, the highest bit first.

    The hash depends on the size. ThreatExchange's hasher takes pictures as they are, and larger ones as PDQ_SIDE x
    PDQ_SIDE pixels. So a stored picture gets that size first. Of 104 web pictures the two hashes then differ in 4 bits
    (median, 18 at most).

    None: its quality is below LEAST_PDQ_QUALITY, as for a plain picture. ThreatExchange ignores such hashes, too.
    """
    import pdqhash  # only where a list of the user has such hashes

    size = original if max(original) <= PDQ_SIDE else (PDQ_SIDE, PDQ_SIDE)
    bits, quality = pdqhash.compute(np.asarray(image.resize(size, Image.Resampling.BICUBIC)))
    return np.packbits(bits).tobytes().hex() if quality >= LEAST_PDQ_QUALITY else None
