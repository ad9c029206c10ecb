"""Near-duplicates: pictures that merge by distance, variants that are found, and the CPU time of the pairs.

    python benchmarks/near_duplicates.py pictures FOLDER ...     (of distinct pictures: what merges, by distance)
    python benchmarks/near_duplicates.py variants FOLDER ...     (13 variants of some pictures: what is found)
    python benchmarks/near_duplicates.py speed                   (1M hashes within 2 bits; 100k within 0 to 8)

A folder is read with all folders in it. Files with equal bytes count once. docs/benchmarks/near_duplicates.md shows the
tables.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from pipeline.fetching.errors import Failure
from pipeline.fetching.images import decode
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.picture import Picture
from pipeline.schema import COLOUR_BYTES, SHADE_BYTES
from pipeline.stages import similar
from pipeline.stages.picture_hashes import Hashes

OPTIONS = FetchOptions(min_side=16, max_aspect=1e9)
HALVES = ("choosing", "measuring", "all")
DISTANCES = (0, 1, 2, 3, 4, 6, 8)


def main() -> None:
    """Prints one table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pictures", "variants", "speed"))
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--some", type=int, default=400, help="pictures of a folder for `variants`")
    parser.add_argument("--half", choices=HALVES, default="all", help="which pictures; a hash of the name decides")
    given = parser.parse_args()
    if given.what == "speed":
        speed()
    elif given.what == "pictures":
        pictures(given.folders, given.half)
    else:
        variants(given.folders, given.some, given.half)


def read(folder: Path, half: str = "all") -> Iterator[bytes]:
    """The bytes of `read_named`."""
    return (body for _, body in read_named(folder, half))


def read_named(folder: Path, half: str = "all") -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the distinct files of a folder with the names of pictures, or those of one half of the names."""
    seen = set()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".jpg", ".jpeg", ".png", ".gif", ".webp", ".avif", ".tif", ".bmp"):
            name = str(path.relative_to(folder))
            if half not in ("all", HALVES[hashlib.sha256(name.encode()).digest()[0] >> 7]):
                continue
            body = path.read_bytes()
            digest = hashlib.sha256(body).digest()
            if digest not in seen:
                seen.add(digest)
                yield name, body


def hashed(body: bytes) -> Picture | None:
    """The picture as the fetch makes it; None: it does not decode."""
    try:
        return decode(body, OPTIONS)
    except Failure:
        return None


def arrays(found: list[Picture]) -> Hashes:
    """The hashes of pictures."""
    looks = (b"".join(getattr(one, name) for one in found) for name in ("colours", "shades"))
    columns = (np.frombuffer(look, np.uint8).reshape(len(found), -1) for look in looks)
    grain = np.array([one.grain for one in found], np.uint8)
    return Hashes(np.zeros(len(found), np.uint8), np.array([one.phash for one in found], np.uint64), *columns, grain)


def clusters(hashes: Hashes, distance: int) -> np.ndarray:
    """The cluster of each picture, as the stage forms them."""
    contrast = np.flatnonzero(similar.has_contrast(hashes.colours))
    some = hashes.take(contrast)
    blocks = [some._replace(block=some.block + np.uint8(block)) for block in range(distance + 1)]
    root = np.concatenate([contrast[similar.groups(under, distance)] for under in blocks])
    return similar.connect(len(hashes.phash), np.tile(contrast, distance + 1), root)


def merged(label: np.ndarray) -> int:
    """The pictures that another one replaces."""
    return int((label != np.arange(len(label))).sum())


def pictures(folders: list[Path], half: str) -> None:
    """For each folder and distance: the pictures that go by the DCT hash alone, and those that go by all hashes."""
    print("| folder | pictures | rule |", " | ".join(map(str, DISTANCES)), "|")
    print("|---|---|---|" + "---|" * len(DISTANCES))
    for folder in folders:
        hashes = arrays([one for one in map(hashed, read(folder, half)) if one is not None])
        same = [*(look.repeat(len(hashes.phash), axis=0) for look in _noise(1)), np.zeros_like(hashes.grain)]
        for rule, used in (("hash alone", Hashes(*hashes[:2], *same)), ("all hashes", hashes)):
            counts = [str(merged(clusters(used, distance))) for distance in DISTANCES]
            print(f"| {folder.name} | {len(hashes.phash):,} | {rule} | {' | '.join(counts)} |", flush=True)


def _encoded(image: Image.Image, form: str, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, form, quality=quality)
    return Image.open(out).convert("RGB")


def _cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = (round(side * share / 2) for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


def _scaled(image: Image.Image, x: float, y: float) -> Image.Image:
    size = max(1, round(image.width * x)), max(1, round(image.height * y))
    return image.resize(size, Image.Resampling.LANCZOS)


def _marked(image: Image.Image) -> Image.Image:
    over = Image.new("RGBA", image.size, (0, 0, 0, 0))
    place = image.width * 0.55, image.height * 0.88
    ImageDraw.Draw(over).text(place, "example.com", fill=(255, 255, 255, 170), font_size=max(8, image.height // 14))
    return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: _scaled(image, 0.5, 0.5),
    "1.5 times the size": lambda image: _scaled(image, 1.5, 1.5),
    "JPEG 75": lambda image: _encoded(image, "JPEG", 75),
    "JPEG 40": lambda image: _encoded(image, "JPEG", 40),
    "WebP 60": lambda image: _encoded(image, "WEBP", 60),
    "20 % wider": lambda image: _scaled(image, 1.2, 1),
    "10 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "watermark": _marked,
    "2 % cropped": lambda image: _cropped(image, 0.02),
    "5 % cropped": lambda image: _cropped(image, 0.05),
    "10 % cropped": lambda image: _cropped(image, 0.10),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def variants(folders: list[Path], some: int, half: str) -> None:
    """For each variant: the share that merges with its original, by distance."""
    names = (2, 4, 6)
    print("| folder | variant |", " | ".join(f"{distance} bits" for distance in names), "|")
    print("|---|---|" + "---|" * len(names))
    for folder in folders:
        bodies = list(read(folder, half))
        chosen = np.random.default_rng(0).permutation(len(bodies))[:some]
        decoded = [(bodies[at], hashed(bodies[at])) for at in sorted(chosen.tolist())]
        base = [(Image.open(io.BytesIO(body)).convert("RGB"), one) for body, one in decoded if one is not None]
        totals = np.zeros(len(names))
        for name, change in VARIANTS.items():
            pairs = [(one, hashed(png(change(image)))) for image, one in base]
            found = [arrays([one, other]) for one, other in pairs if other is not None]
            shares = np.array([np.mean([merged(clusters(pair, distance)) for pair in found]) for distance in names])
            totals += shares / len(VARIANTS)
            print(f"| {folder.name} | {name} |", " | ".join(f"{share:.2f}" for share in shares), "|", flush=True)
        print(f"| {folder.name} | all |", " | ".join(f"{share:.2f}" for share in totals), "|", flush=True)


def png(image: Image.Image) -> bytes:
    """The picture as PNG: nothing is lost."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _noise(count: int) -> list[np.ndarray]:
    """Colours and shades of pictures with contrast that are no drawings."""
    random = np.random.default_rng(0)
    return [random.integers(20, 230, (count, width), np.uint8) for width in (COLOUR_BYTES, SHADE_BYTES)]


def speed() -> None:
    """CPU seconds for random hashes, a tenth of them copies with one flipped bit."""
    print("| hashes | distance | CPU s | replaced |")
    print("|---|---|---|---|")
    for count, distance in ((1_000_000, 2), *((100_000, distance) for distance in DISTANCES)):
        random = np.random.default_rng(0)
        phash = random.integers(0, 2**64, count, np.uint64)
        looks = [look.repeat(count // 1000, axis=0) for look in _noise(1000)]
        copies = count // 10
        phash[:copies] = phash[-copies:] ^ np.uint64(1) << random.integers(0, 64, copies).astype(np.uint64)
        for look in looks:
            look[:copies] = look[-copies:]
        hashes = Hashes(np.zeros(count, np.uint8), phash, *looks, np.zeros(count, np.uint8))
        clusters(hashes.take(np.arange(1)), distance)  # loads the kernel
        start = time.process_time()
        found = merged(clusters(hashes, distance))
        print(f"| {count:,} | {distance} | {time.process_time() - start:.2f} | {found:,} |", flush=True)


if __name__ == "__main__":
    main()
