"""Pixels in, pixels out: orientation, depth, colour, transparency, limits, the helper process, real broken files."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from pipeline.fetching import helper, images
from pipeline.fetching.errors import Failure
from pipeline.fetching.helper import Decoder
from pipeline.fetching.images import colours, decode, grain, phash, shades, shrink
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.picture import Picture
from pipeline.schema import COLOUR_BYTES
from tests.places import DATA, ROOT
from tests.webserver import picture

OPTIONS = FetchOptions()
FAULTS = DATA / "faults"
needs_faults = pytest.mark.skipif(not FAULTS.exists(), reason="the shared test data are not here")
needs_nasty = pytest.mark.skipif(
    not (DATA / "nasty_images.tar.zst").exists(), reason="the shared test data are not here"
)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def pixels(made: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(made.jpeg))).astype(int)


def quarters() -> Image.Image:
    """Red and green over blue and white: every orientation looks different."""
    image = Image.new("RGB", (64, 40))
    for box, colour in zip(
        ((0, 0, 32, 20), (32, 0, 64, 20), (0, 20, 32, 40), (32, 20, 64, 40)),
        ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)),
        strict=True,
    ):
        image.paste(colour, box)
    return image


def status_of(body: bytes, **options: Any) -> str:
    try:
        decode(body, FetchOptions(**options))
    except Failure as failure:
        return failure.status
    return "ok"


def test_a_jpeg_is_shrunk_encoded_anew_and_bare() -> None:
    exif = Image.Exif()
    exif[0x010E] = "<script>"
    body = picture(1, (1000, 500), exif=exif, comment=b"hello")
    made = decode(body, OPTIONS)
    assert (made.width, made.height, made.original_width, made.original_height) == (512, 256, 1000, 500)
    stored = Image.open(io.BytesIO(made.jpeg))
    assert stored.size == (512, 256) and stored.mode == "RGB" and made.original_format == "JPEG"
    assert not stored.getexif() and set(stored.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert b"script" not in made.jpeg and b"hello" not in made.jpeg
    assert "progression" not in stored.info
    assert decode(body, OPTIONS) == made
    full = np.asarray(Image.open(io.BytesIO(body)).resize((512, 256), Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels(made) - full).mean() < 2


def test_small_images_are_not_blown_up() -> None:
    made = decode(picture(1, (100, 80)), OPTIONS)
    assert (made.width, made.height) == (100, 80)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_picture_is_upright(orientation: int, format: str) -> None:
    upright = quarters()
    inverse = {**images.TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    made = decode(encoded(stored, format, exif=exif), OPTIONS)
    assert (made.width, made.height, made.original_width, made.original_height) == (64, 40, 64, 40)
    assert np.abs(pixels(made) - np.asarray(upright).astype(int)).mean() < 12


def test_damaged_exif_does_not_lose_the_picture() -> None:
    body = picture(1, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert decode(body, OPTIONS).width == 320


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = (np.linspace(0, 65535, 64 * 64).reshape(64, 64)).astype(np.uint16)
    for format in ("PNG", "TIFF"):
        got = pixels(decode(encoded(Image.fromarray(ramp), format), OPTIONS))[..., 0]
        assert np.abs(got - (ramp >> 8)).max() < 8
    big_endian = encoded(Image.fromarray(ramp.astype(">u2")), "TIFF")
    assert np.abs(pixels(decode(big_endian, OPTIONS))[..., 0] - (ramp >> 8)).max() < 8


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    half = Image.new("RGBA", (40, 40), (0, 0, 0, 128))
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    gray = Image.new("LA", (40, 40), (0, 0))
    keyed = Image.new("RGB", (40, 40), (1, 2, 3))
    for body, value in (
        (encoded(clear), 255),
        (encoded(clear, "WEBP", lossless=True), 255),
        (encoded(half), 127),
        (encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), 255),
        (encoded(gray), 255),
        (encoded(keyed, "PNG", transparency=(1, 2, 3)), 255),
    ):
        got = pixels(decode(body, OPTIONS))
        assert np.abs(got - value).max() <= 2


def test_cmyk_gray_bits_and_palettes() -> None:
    cmyk = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    assert np.abs(pixels(decode(encoded(cmyk, "JPEG"), OPTIONS)) - (254, 0, 0)).max() < 10
    for mode in ("1", "L", "P"):
        plain = quarters().convert(mode)
        got = pixels(decode(encoded(plain), OPTIONS))
        assert got.shape == (40, 64, 3)
        assert np.abs(got - np.asarray(plain.convert("RGB")).astype(int)).mean() < 16


def with_swapped_primaries(profile: bytes) -> bytes:
    """The profile with its tags rXYZ and gXYZ swapped: what it calls red is green."""
    return profile.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_is_obeyed_whatever_its_name(form: str) -> None:
    """The profile is that of sRGB, with its name, but red and green are swapped."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (64, 64), (200, 30, 60))
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(form, {})
    for profile, expected in ((srgb, (200, 30, 60)), (with_swapped_primaries(srgb), (30, 200, 60))):
        done = decode(encoded(image, form, icc_profile=profile, **lossless), dataclasses.replace(OPTIONS, quality=100))
        found = Image.open(io.BytesIO(done.jpeg)).getpixel((9, 9))
        assert isinstance(found, tuple) and max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 3


@needs_faults
def test_small_inputs_that_went_wrong() -> None:
    linear = decode((FAULTS / "16_linear_srgb_profile.png").read_bytes(), OPTIONS)
    assert Image.open(io.BytesIO(linear.jpeg)).getpixel((0, 0)) == (137, 137, 137)
    for name, sentence in (("23_half_zeros.jpg", "Premature end"), ("26_int32_values_200.tiff", "32 bits")):
        with pytest.raises(Failure, match=sentence) as caught:
            decode((FAULTS / name).read_bytes(), OPTIONS)
        assert caught.value.status == "decode"


def test_a_jpeg_whose_decoder_reports_damage_is_refused() -> None:
    for options in ({}, {"progressive": True}):
        whole = encoded(Image.radial_gradient("L").resize((700, 700)).convert("RGB"), "JPEG", quality=90, **options)
        start = len(whole) // 2
        decode(whole, OPTIONS)
        for size in (64, 999, len(whole) - start):
            damaged = whole[:start] + bytes(size) + whole[start + size :]
            with pytest.raises(Failure, match="JPEG:"):
                decode(damaged, OPTIONS)


def test_a_png_whose_pixels_have_another_checksum_is_refused() -> None:
    whole = encoded(quarters())
    decode(whole, OPTIONS)
    start = whole.index(b"IDAT")
    for at in range(start + 4, whole.index(b"IEND") - 8):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        with pytest.raises(Failure, match="PNG"):
            decode(bytes(damaged), OPTIONS)


def test_padding_and_odd_headers_are_no_damage() -> None:
    image = Image.radial_gradient("L").resize((300, 300)).convert("RGB")
    whole = encoded(image, "JPEG", quality=90)
    expected = decode(whole, OPTIONS)
    assert decode(whole[:-2] + bytes(40) + whole[-2:], OPTIONS) == expected  # some cameras pad
    assert decode(whole + b"more bytes", OPTIONS) == expected
    assert decode(whole[:20] + b"\0\0\0" + whole[20:], OPTIONS) == expected  # between two segments
    with pytest.raises(Failure, match="left over|extraneous"):
        decode(whole[:-2] + whole[-400:], OPTIONS)  # coded pixels that belong nowhere


def test_a_jpeg_has_the_pixels_of_pillow() -> None:
    """JPEGs are decoded by simplejpeg; the pixels must be those of Pillow, at every scale of libjpeg."""
    for mode, size, subsampling in (("RGB", (801, 533), 2), ("RGB", (533, 801), 1), ("L", (640, 655), 0)):
        image = Image.effect_noise(size, 90).convert(mode)
        body = encoded(image, "JPEG", quality=80, subsampling=subsampling)
        for scale in (1, 2, 4, 8):
            opened = [Image.open(io.BytesIO(body)) for _ in range(2)]
            for one in opened:
                one.draft(None, (size[0] // scale, size[1] // scale))
            ours = images._Source(opened[0], body, "JPEG").pixels()
            assert np.array_equal(np.asarray(ours), np.asarray(opened[1]))


@needs_nasty
def test_damaged_tiffs_give_the_same_pixels_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes whose memory is filled with different bytes: a pixel that is never written differs."""
    rng = random.Random(0)
    bodies = [body for name, body in nasty() if re.search(r"g4|fax|ojpeg|old", name) and len(body) < 100_000]
    assert len(bodies) >= 8
    damaged = []
    for body in bodies:
        for flips in (1, 3, 9):
            changed = bytearray(body)
            for _ in range(flips):
                changed[rng.randrange(8, len(body))] ^= 1 << rng.randrange(8)
            damaged.append(bytes(changed))
    seen = []
    for fill in ("85", "170"):
        monkeypatch.setenv("MALLOC_PERTURB_", fill)
        decoder = Decoder(FetchOptions(min_side=1, max_aspect=1e9))
        try:
            seen.append([verdict(decoder, body) for body in damaged])
        finally:
            decoder.close()
    assert seen[0] == seen[1]
    assert len({one for one in seen[0] if isinstance(one, bytes)}) >= 3 and seen[0].count("decode") >= 10


def verdict(decoder: Decoder, body: bytes) -> bytes | str:
    try:
        return decoder.decode(body).jpeg
    except Failure as failure:
        return failure.status


def test_colours_become_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = quarters()
    plain = decode(encoded(image, "JPEG", quality=95), OPTIONS)
    assert decode(encoded(image, "JPEG", quality=95, icc_profile=srgb), OPTIONS).jpeg == plain.jpeg
    # An invalid profile, or one for other pixels, is ignored.
    for profile in (b"nonsense" * 40, lab.tobytes()):
        assert decode(encoded(image, "JPEG", quality=95, icc_profile=profile), OPTIONS).jpeg == plain.jpeg


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    for format in ("GIF", "WEBP", "PNG"):
        body = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
        assert np.abs(pixels(decode(body, OPTIONS)) - (255, 0, 0)).max() < 12, format


def test_formats() -> None:
    expected = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"] + (["AVIF"] if features.check("avif") else [])
    for format in expected:
        assert decode(encoded(quarters(), format), OPTIONS).original_format == format
    for format in ("ICO", "PCX", "PPM", "TGA", "PDF", "EPS"):
        assert status_of(encoded(quarters(), format)) == "not_an_image"
    for body in (b"", b"\0", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>", os.urandom(1000)):
        assert status_of(body) == "not_an_image"


def test_bounds_hold_before_pixels_are_decoded() -> None:
    start = time.process_time()
    assert status_of(encoded(Image.new("1", (12_000, 12_000)), "PNG")) == "too_many_pixels"
    assert status_of(encoded(Image.new("L", (3000, 3000)), "GIF"), max_pixels=1_000_000) == "too_many_pixels"
    for format in ("PNG", "JPEG"):
        body = encoded(Image.new("L", (30, 40)), format)
        assert status_of(body, max_pixels=1200) == "ok" and status_of(body, max_pixels=1199) == "too_many_pixels"
    assert status_of(encoded(Image.new("L", (15, 200)))) == "too_small"
    assert status_of(encoded(Image.new("L", (20, 401)))) == "aspect"
    assert time.process_time() - start < 3


def test_a_cut_file_is_not_a_picture() -> None:
    for format in ("JPEG", "PNG", "WEBP", "BMP"):
        body = picture(3, format=format)
        assert status_of(body[: len(body) * 2 // 3]) == "decode", format


def test_the_memory_of_the_pixels() -> None:
    """libjpeg keeps 2 bytes of each wave of a progressive JPEG, whatever the size of the result."""
    picture, area = Image.new("RGB", (64, 48)), 64 * 48
    cases = [("PNG", {}, 64, area * images.BYTES_PER_PIXEL), ("JPEG", {}, 64, area * 8), ("JPEG", {}, 32, area * 2)]
    cases += [("JPEG", {"progressive": True}, 64, area * 14), ("JPEG", {"progressive": True}, 32, area * 8)]
    for name, form, width, expected in cases:
        opened = Image.open(io.BytesIO(encoded(picture, name, **form)))
        assert images._prepare(opened, name, (width, width * 3 // 4)) == expected


def test_phash_is_stable_and_near_for_near_pictures() -> None:
    image = Image.open(io.BytesIO(picture(5, (600, 400))))
    first = decode(encoded(image), OPTIONS).phash

    def distance(other: int) -> int:
        return (first ^ other).bit_count()

    assert distance(decode(encoded(image, "JPEG", quality=40), OPTIONS).phash) <= 4
    assert distance(decode(encoded(image.resize((360, 240))), OPTIONS).phash) <= 4
    others = [decode(picture(seed, (600, 400)), OPTIONS).phash for seed in range(20, 30)]
    assert np.median([distance(other) for other in others]) > 10
    for width, height in ((300, 200), (97, 65)):  # odd sizes, cuts, frames and marks change little
        assert distance(decode(encoded(image.resize((width, height), Image.Resampling.BICUBIC)), OPTIONS).phash) <= 2
    marked = image.crop((6, 4, 594, 396))
    marked.paste((255, 255, 255), (400, 370, 588, 392))
    assert distance(decode(encoded(marked), OPTIONS).phash) <= 6
    assert phash(Image.new("RGB", (32, 32), "black")) == 0


@pytest.mark.parametrize("seed", range(4))
def test_phash_has_the_waves_above_the_median(seed: int) -> None:
    small = shrink(Image.open(io.BytesIO(picture(seed, (320, 200)))).convert("RGB"))
    side = range(32)
    fade = [math.sin(math.pi * (at + 0.5) / 32) for at in side]
    waves = [[math.cos(math.pi * wave * (at + 0.5) / 32) for at in side] for wave in range(8)]
    means = [sum(f * c for f, c in zip(fade, wave, strict=True)) / sum(fade) for wave in waves]
    rows = np.array([[fade[at] * (w[at] - (n > 0) * means[n]) for at in side] for n, w in enumerate(waves)])
    strength = (rows @ np.asarray(small.convert("L"), float) @ rows.T).ravel()
    bits = strength > np.median(strength[1:])
    assert f"{phash(small):064b}" == "".join("01"[bit] for bit in bits.astype(int))


def test_grain_is_the_share_of_small_steps_between_pixels() -> None:
    pixels = np.full((4, 4), 100, np.uint8)
    assert grain(Image.fromarray(pixels).convert("RGB")) == 0
    pixels[:, 1::2] = 101  # each pair of a row, and none of a column
    assert grain(Image.fromarray(pixels).convert("RGB")) == 127
    pixels[:, 1::2] = 133  # an edge is no grain
    assert grain(Image.fromarray(pixels).convert("RGB")) == 0
    assert grain(Image.fromarray(np.array([[5, 6, 38, 71]], np.uint8)).convert("RGB")) == 170  # 1, 32 and 33
    assert grain(Image.new("RGB", (1, 1))) == 0
    noise = np.random.default_rng(0).integers(90, 110, (60, 60, 3)).astype(np.uint8)
    assert grain(Image.fromarray(noise)) > 200 > 178 > grain(Image.open(io.BytesIO(picture(5))).convert("RGB"))


def test_shades_are_the_brightness_of_the_cells() -> None:
    image = Image.new("RGB", (160, 80), (10, 20, 30))
    image.paste((255, 255, 255), (0, 0, 80, 80))
    found = np.frombuffer(shades(shrink(image)), np.uint8).reshape(16, 16)
    assert (found[:, :7] == 255).all() and (found[:, 9:] == 18).all() and (found[:, 7] > found[:, 8]).all()
    body = picture(5, (300, 200))
    large, small = (
        np.frombuffer(decode(one, OPTIONS).shades, np.uint8).astype(int)
        for one in (body, encoded(Image.open(io.BytesIO(body)).resize((150, 100))))
    )
    assert np.abs(large - small).max() <= 8


def test_colours_are_the_mean_colours_of_the_cells() -> None:
    image = Image.new("RGB", (64, 32), (10, 20, 30))
    image.paste((200, 100, 50), (0, 0, 8, 4))
    image = image.resize((32, 32), Image.Resampling.NEAREST)
    image.paste((110, 20, 30), (4, 0, 6, 4))  # half of the second cell
    found = np.frombuffer(colours(image), np.uint8).reshape(8, 8, 3)
    expected = np.full((8, 8, 3), (10, 20, 30))
    expected[0, :2] = (200, 100, 50), (60, 20, 30)
    assert (found == expected).all()
    body = picture(5, (600, 400))
    in_child = Decoder(dataclasses.replace(OPTIONS, in_process=False))
    try:
        assert in_child.decode(body) == decode(body, OPTIONS)
    finally:
        in_child.close()
    assert len(decode(body, OPTIONS).colours) == COLOUR_BYTES


# The helper process


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    running = Decoder(FetchOptions(decode_s=1))
    yield running
    running.close()


def child(decoder: Decoder) -> Any:
    assert decoder._child is not None
    return decoder._child


def test_the_helper_gives_what_the_function_gives(decoder: Decoder) -> None:
    for body in (picture(1, (900, 700)), picture(2, format="PNG"), picture(3, format="WEBP")):
        assert decoder.decode(body) == decode(body, OPTIONS)
    with pytest.raises(Failure) as caught:
        decoder.decode(b"no image")
    assert caught.value.status == "not_an_image" and decoder.deaths == 0


def test_the_helper_starts_fast_and_lean() -> None:
    code = (
        "import sys, time; t = time.process_time(); import pipeline.fetching.helper, pipeline.fetching.images;"
        "heavy = ('apache_beam', 'pyarrow', 'pandas', 'fsspec');"
        "print(time.process_time() - t, [name for name in heavy if name in sys.modules])"
    )
    root = str(ROOT)
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True).stdout
    seconds, modules = output.split(" ", 1)
    assert modules.strip() == "[]" and float(seconds) < 2


def test_a_killed_helper_costs_one_image(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    good = picture(1)
    decoder.decode(good)
    monkeypatch.setattr(helper, "PATIENCE", 0.5)
    os.kill(child(decoder).pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(Failure, match="too long") as caught:
        decoder.decode(good)
    assert caught.value.status == "decode" and time.monotonic() - start < 6
    monkeypatch.undo()
    assert decoder.decode(good).width == 320
    child(decoder).kill()
    child(decoder).wait()
    assert decoder.decode(good).width == 320


HOSTILE = """
import os, signal, sys, time
from pipeline.fetching import helper, images, options
def decode(body, chosen, memory):
    if body == b"abort": os.abort()
    if body == b"spin":
        while True: pass
    if body == b"eat": bytearray(4 << 30)
    if body == b"print": os.write(1, b"noise"); print("noise", flush=True)
    return real(body, chosen, memory)
real, images.decode = images.decode, decode
if __name__ == "__main__":
    chosen = options.FetchOptions(decode_s=1)
    helper._limit_memory(chosen.decode_bytes)
    helper.serve(chosen)
"""


def test_crash_hang_and_hunger_cost_one_image_each(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE)
    real = subprocess.Popen
    monkeypatch.setattr(helper.subprocess, "Popen", lambda _, **kw: real([sys.executable, str(script)], **kw))
    good = picture(1)
    for body, match in ((b"abort", "exit -6"), (b"spin", "exit -24|too long"), (b"eat", "crashed")):
        with pytest.raises(Failure, match=match):
            decoder.decode(body)
        assert decoder.decode(good).width == 320
    with pytest.raises(Failure) as caught:
        decoder.decode(b"print")
    assert caught.value.status == "not_an_image"


def test_the_helper_does_not_outlive_its_parent() -> None:
    code = (
        "import os\n"
        "from tests.webserver import picture\n"
        "from pipeline.fetching.helper import Decoder\n"
        "from pipeline.fetching.options import FetchOptions\n"
        "d = Decoder(FetchOptions()); d.decode(picture(1)); print(d._child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    root = str(ROOT)
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root).stdout
    pid = int(output)
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the helper is still there")


def test_where_no_child_can_be_made_decoding_goes_on(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("no processes here")

    monkeypatch.setattr(helper.subprocess, "Popen", refuse)
    body = picture(1)
    assert decoder.decode(body) == decode(body, OPTIONS)
    assert Decoder(FetchOptions(in_process=True)).decode(body) == decode(body, OPTIONS)


# Real files that break decoders


def nasty() -> Iterator[tuple[str, bytes]]:
    zstandard = pytest.importorskip("zstandard")
    archive = DATA / "nasty_images.tar.zst"
    with open(archive, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
        with tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    yield member.name, content.read()


@needs_nasty
def test_nasty_images_get_pillows_verdict_and_crash_nothing() -> None:
    with open(DATA / "nasty_images_MANIFEST.tsv", newline="") as file:
        manifest = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    decoder = Decoder(FetchOptions(min_side=1, max_aspect=1e9))
    wrong, slow, seen = [], [], 0
    try:
        for name, body in nasty():
            row = manifest.get(name) or manifest.get(name.removeprefix("nasty_images/"))
            if row is None:
                continue
            seen += 1
            start = time.monotonic()
            try:
                decoder.decode(body)
                verdict = "ok"
            except Failure as failure:
                verdict = failure.status
            if time.monotonic() - start > 5:
                slow.append(name)
            ours = row["format"] in (*images.FORMATS, "MPO") and row["mode"] not in "FI"  # no known white
            ours = ours and not name.endswith("xcsn0g01.png")  # its checksum is wrong, and Pillow does not look
            expected_ok = row["pil_load"] == "ok" and ours
            if expected_ok != (verdict == "ok"):
                wrong.append((name, row["pil_load"], row["format"], row["mode"], verdict))
    finally:
        decoder.close()
    assert seen > 1000
    assert decoder.deaths == 0 and not slow
    assert not wrong, wrong
