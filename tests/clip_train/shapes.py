"""A small world for learning tests: shapes x colours x sizes x places. Some (shape, colour) pairs are held out."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from clip_train.config import ModelConfig

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "bar", "star")
COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (230, 210, 40),
    "purple": (150, 50, 190), "orange": (240, 140, 30), "white": (245, 245, 245), "cyan": (40, 200, 210),
}  # fmt: skip
SIZES = {"small": 5, "medium": 8, "large": 12}
PLACES = {
    "top left": (9, 9), "top right": (23, 9), "bottom left": (9, 23), "bottom right": (23, 23), "centre": (16, 16),
}  # fmt: skip
TEMPLATES = ("a {z} {c} {s} at the {p}", "{c} {s} {z} {p}", "photo of a {c} {s}", "the {s} is {c}", "a {c} {s}")
PROMPTS = ("a {c} {s}", "photo of a {c} {s}", "the {s} is {c}")
PAIRS = [(shape, colour) for shape in SHAPES for colour in COLOURS]
random.Random(7).shuffle(PAIRS)
HELD_OUT = frozenset(PAIRS[:13])

_TEXT = " ".join([*SHAPES, *COLOURS, *SIZES, *PLACES, "a at the photo of is"])
WORDS = {word: number for number, word in enumerate(sorted(set(_TEXT.split())), start=1)}
START, END = len(WORDS) + 1, len(WORDS) + 2
CONFIG = ModelConfig(
    embed_dim=64, image_size=32, vision_layers=3, vision_width=64, patch_size=8, context_length=16,
    vocab_size=END + 1, text_width=64, text_heads=1, text_layers=2,
)  # fmt: skip


def encode(text: str) -> list[int]:
    """One id a word."""
    return [START, *(WORDS[word] for word in text.split()), END]


@dataclasses.dataclass(frozen=True)
class World:
    """Pictures (N, 32, 32, 3), their captions as ids, and the pair that each picture shows."""

    images: np.ndarray
    captions: list[list[int]]
    pairs: list[tuple[str, str]]


def render(count: int, *, seed: int, held_out: bool) -> World:
    """Random scenes, either of the held-out pairs only or of the other pairs only."""
    rng = random.Random(seed)
    pool = [pair for pair in PAIRS if (pair in HELD_OUT) == held_out]
    images, captions, pairs = [], [], []
    for _ in range(count):
        shape, colour = rng.choice(pool)
        size, place = rng.choice(list(SIZES)), rng.choice(list(PLACES))
        images.append(_draw(shape, colour, size, place, rng))
        captions.append(encode(rng.choice(TEMPLATES).format(s=shape, c=colour, z=size, p=place)))
        pairs.append((shape, colour))
    return World(np.stack(images), captions, pairs)


def _draw(shape: str, colour: str, size: str, place: str, rng: random.Random) -> np.ndarray:
    image = Image.new("RGB", (32, 32), tuple(rng.randint(0, 110) for _ in range(3)))
    draw, r = ImageDraw.Draw(image), SIZES[size] + rng.uniform(-1, 1)
    x, y = (centre + rng.uniform(-2, 2) for centre in PLACES[place])
    fill = tuple(max(0, min(255, value + rng.randint(-20, 20))) for value in COLOURS[colour])
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill)
    elif shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), None, fill, 2)
    elif shape == "square":
        draw.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill)
    elif shape == "bar":
        draw.rectangle((x - r, y - r * 0.35, x + r, y + r * 0.35), fill)
    elif shape == "triangle":
        draw.polygon((x, y - r, x + r, y + r, x - r, y + r), fill)
    elif shape == "diamond":
        draw.polygon((x, y - r, x + r, y, x, y + r, x - r, y), fill)
    elif shape == "cross":
        draw.rectangle((x - r, y - r * 0.3, x + r, y + r * 0.3), fill)
        draw.rectangle((x - r * 0.3, y - r, x + r * 0.3, y + r), fill)
    else:
        reach = [r if corner % 2 == 0 else r * 0.4 for corner in range(10)]
        turn = [corner * math.pi / 5 for corner in range(10)]
        draw.polygon([(x + a * math.sin(t), y - a * math.cos(t)) for a, t in zip(reach, turn, strict=True)], fill)
    return np.asarray(image)
