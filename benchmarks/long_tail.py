"""Accuracy on rare concepts by --batch-concepts and --online-balance, at equal samples, on a set that is drawn here.

    python benchmarks/long_tail.py [--steps 400] [--seeds 0 1 2] [--orders random diverse] [--output long_tail.jsonl]

A picture shows one to three things of one shape, colour and texture. The shapes, colours, textures and counts follow
Zipf's law: the rarest of 20 shapes is in 1.4 % of the pictures. A caption names the shape, and each other property by
a draw. Its words are the queries of the pair, and their counts give the keep probabilities, as the pipeline does. The
test pictures have all values of a property equally often, and zero-shot classification names each property on its own.
The tail is the rarer half of the values. A line of each run is appended to --output, and a run that is there is not
repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import math
import random
import statistics
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from clip_train.bpe import train_vocabulary  # noqa: E402
from clip_train.concepts import entropy, open_concepts  # noqa: E402
from clip_train.config import TrainOptions  # noqa: E402
from clip_train.evaluate import classify  # noqa: E402
from clip_train.labels import LabelledImages  # noqa: E402
from clip_train.shards import open_index  # noqa: E402
from clip_train.start import open_stream  # noqa: E402
from clip_train.training import train  # noqa: E402
from clip_train.use import load  # noqa: E402

SIDE, OVER = 32, 4  # pixels of a picture, and how many times larger it is drawn
ORDERS = {
    "random": {}, "diverse": {"batch_concepts": "diverse"}, "dense": {"batch_concepts": "dense"},
    "balanced": {"batch_concepts": "balanced"}, "online-balance": {"online_balance": True},
}  # fmt: skip


def _polygon(corners: int, *, turn: float = 0.0, inner: float = 1.0) -> list[tuple[float, float]]:
    """A regular polygon, or a star with an inner radius."""
    steps = corners if inner == 1.0 else 2 * corners
    angles = [turn + 2 * math.pi * step / steps - math.pi / 2 for step in range(steps)]
    radii = [inner if step % 2 else 1.0 for step in range(steps)]
    return [(r * math.cos(angle), r * math.sin(angle)) for r, angle in zip(radii, angles, strict=True)]


SHAPES: dict[str, list[tuple[float, float]]] = {  # corners in [-1, 1], from the most frequent to the rarest
    "circle": _polygon(24), "square": _polygon(4, turn=math.pi / 4), "star": _polygon(5, inner=0.4),
    "triangle": _polygon(3), "bar": [(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)],
    "cross": [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3),
              (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    "house": [(-0.8, 1), (-0.8, -0.1), (0, -1), (0.8, -0.1), (0.8, 1)], "diamond": _polygon(4),
    "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.9), (1, 0), (0.1, 0.9), (0.1, 0.3), (-1, 0.3)],
    "hourglass": [(-0.9, -1), (0.9, -1), (-0.9, 1), (0.9, 1)],
    "moon": [*_polygon(24)[3:22], *[(x * 0.75 + 0.45, y * 0.8) for x, y in reversed(_polygon(24)[3:22])]],
    "bowl": [(-1, -0.2), (1, -0.2), *_polygon(24)[7:18]], "pillar": [(-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1)],
    "chevron": [(-1, 0.6), (0, -0.6), (1, 0.6), (1, 1), (0, 0), (-1, 1)],
    "bolt": [(0.3, -1), (-0.7, 0.2), (0, 0.2), (-0.3, 1), (0.7, -0.3), (0, -0.3)],
    "tee": [(-1, -1), (1, -1), (1, -0.4), (0.3, -0.4), (0.3, 1), (-0.3, 1), (-0.3, -0.4), (-1, -0.4)],
    "corner": [(-0.9, -1), (-0.3, -1), (-0.3, 0.4), (0.9, 0.4), (0.9, 1), (-0.9, 1)],
    "horseshoe": [(-0.9, -1), (-0.3, -1), (-0.3, 0.4), (0.3, 0.4), (0.3, -1), (0.9, -1), (0.9, 1), (-0.9, 1)],
    "sail": [(-0.8, 1), (-0.8, -1), (0.9, 1)], "sun": _polygon(12, inner=0.6),
}  # fmt: skip
COLOURS = {
    "red": (220, 40, 40), "blue": (50, 80, 220), "green": (40, 180, 60), "white": (245, 245, 245),
    "yellow": (230, 210, 40), "orange": (240, 140, 30), "purple": (150, 50, 190), "cyan": (40, 200, 210),
    "pink": (250, 150, 190), "brown": (140, 90, 50),
}  # fmt: skip
PROPERTIES = {
    "shape": tuple(SHAPES), "colour": tuple(COLOURS), "texture": ("plain", "striped", "dotted", "hollow"),
    "count": ("one", "two", "three"),
}  # fmt: skip
SHARES = {name: 1 / np.arange(1, len(values) + 1) for name, values in PROPERTIES.items()}
NAMED = {"shape": 1.0, "colour": 0.7, "texture": 0.5, "count": 0.5}  # how often a caption names a property
QUERIES = {word: number for number, word in enumerate(itertools.chain(*PROPERTIES.values()))}
PROMPTS = ("{}", "a {}", "a photo of {}")


def draw(scene: dict[str, str], rng: random.Random) -> bytes:
    """A JPEG of a scene."""
    image = Image.new("RGB", (SIDE * OVER,) * 2, tuple(rng.randint(0, 110) for _ in range(3)))
    count = PROPERTIES["count"].index(scene["count"]) + 1
    centres = {1: [(16, 16)], 2: [(9, 16), (23, 16)], 3: [(9, 10), (23, 10), (16, 23)]}[count]
    radius = {1: 10.0, 2: 6.5, 3: 6.0}[count]
    ink = tuple(max(0, min(255, value + rng.randint(-20, 20))) for value in COLOURS[scene["colour"]])
    for x, y in centres:
        r, x, y = radius + rng.uniform(-1, 1), x + rng.uniform(-1.5, 1.5), y + rng.uniform(-1.5, 1.5)
        mask = Image.new("L", image.size)
        corners = [((x + a * r) * OVER, (y + b * r) * OVER) for a, b in SHAPES[scene["shape"]]]
        ImageDraw.Draw(mask).polygon(corners, 255)
        _apply_texture(mask, scene["texture"], corners)
        image.paste(ink, (0, 0), mask)
    buffer = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BOX).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _apply_texture(mask: Image.Image, texture: str, corners: list[tuple[float, float]]) -> None:
    """Takes out of a shape's mask what its texture leaves open."""
    pen, side = ImageDraw.Draw(mask), mask.size[0]
    if texture == "striped":
        for at in range(0, side, 16):
            pen.rectangle((0, at, side, at + 5), 0)
    elif texture == "dotted":
        for a, b in itertools.product(range(0, side, 16), repeat=2):
            pen.ellipse((a, b, a + 7, b + 7), 0)
    elif texture == "hollow":
        x, y = (statistics.fmean(axis) for axis in zip(*corners, strict=True))
        pen.polygon([(x + 0.6 * (a - x), y + 0.6 * (b - y)) for a, b in corners], 0)


def scene_of(rng: random.Random, *, even: bool) -> dict[str, str]:
    """A value for each property: by Zipf's law, or all equally often."""
    weights = {name: None if even else SHARES[name] for name in PROPERTIES}
    return {name: rng.choices(values, weights[name])[0] for name, values in PROPERTIES.items()}


def caption_of(scene: dict[str, str], rng: random.Random) -> tuple[str, list[int]]:
    """A text, and the queries that it has."""
    named = [word for name, word in scene.items() if rng.random() < NAMED[name]]
    words = [word for name in ("count", "texture", "colour", "shape") if (word := scene[name]) in named]
    return rng.choice(("", "a photo of ", "picture: ")) + " ".join(words), [QUERIES[word] for word in words]


def publish(folder: Path, *, samples: int, shards: int = 4) -> None:
    """Writes a set in the form of the pipeline."""
    rng = random.Random(1)
    scenes = [scene_of(rng, even=False) for _ in range(samples)]
    captions = [caption_of(scene, rng) for scene in scenes]
    counts = np.bincount(list(itertools.chain(*(ids for _, ids in captions))), minlength=len(QUERIES))
    cap = np.median(counts)
    for kind in ("shards", "metadata"):
        (folder / kind).mkdir(parents=True)
    entries = []
    for shard, numbers in enumerate(np.array_split(np.arange(samples), shards)):
        rows = []
        tar_path = folder / "shards" / f"{shard:05d}.tar"
        with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers.tolist():
                text, ids = captions[number]
                lost = math.prod(1 - min(1.0, cap / counts[query]) for query in ids)
                row = {"key": f"{number:010d}", "shard": shard, "width": SIDE, "height": SIDE, "query_ids": ids,
                       "keep_probability": 1 - lost}  # fmt: skip
                image = draw(scenes[number], rng)
                row["sha256"] = hashlib.sha256(image).hexdigest()
                for kind, data in (("jpg", image), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{number:010d}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                    row |= {f"{kind}_offset": tar.offset - (len(data) + 511) // 512 * 512, f"{kind}_size": len(data)}
                rows.append(row)
        table = pa.Table.from_pylist(rows)
        table = table.set_column(
            table.schema.get_field_index("query_ids"), "query_ids", table["query_ids"].cast(pa.list_(pa.int32()))
        )
        metadata = folder / "metadata" / f"{shard:05d}.parquet"
        pq.write_table(table, metadata, write_page_checksum=True)
        entries += [{"path": str(path.relative_to(folder)), "bytes": path.stat().st_size}
                    for path in (metadata, tar_path)]  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"files": entries, "options": {"captions": 1}}))


def test_images(samples: int) -> tuple[list[bytes], list[dict[str, str]]]:
    """Pictures with all values equally often."""
    rng = random.Random(2)
    scenes = [scene_of(rng, even=True) for _ in range(samples)]
    return [draw(scene, rng) for scene in scenes], scenes


def accuracies(run: str, images: list[bytes], scenes: list[dict[str, str]]) -> dict[str, float]:
    """Of each property, the accuracy on the more frequent half of its values and on the rarer half."""
    model, tokenizer, _ = load(run)
    found = {}
    for name, values in PROPERTIES.items():
        labels = np.array([values.index(scene[name]) for scene in scenes])
        labelled = LabelledImages([str(n) for n in range(len(images))], labels, list(values), images.__getitem__)
        right = classify(model, tokenizer, labelled, PROMPTS).best[:, 0] == labels
        rare = labels >= (len(values) + 1) // 2
        found |= {f"{name} head": float(right[~rare].mean()), f"{name} tail": float(right[rare].mean())}
    return found


def composition(options: TrainOptions) -> dict[str, float]:
    """What a batch holds: the entropy of its queries in bits, and how many a pair has."""
    index = open_index(options.data)
    stream, concepts = open_stream(index, options), open_concepts(index)
    rows = []
    for number in range(20):
        samples, _ = stream.samples(number * options.batch_size, options.batch_size)
        ids, sizes = concepts.of(samples)
        rows.append((entropy(ids), sizes.mean()))
    bits, queries = np.mean(rows, axis=0)
    return {"entropy": float(bits), "queries a pair": float(queries)}


def main() -> None:
    """Prints a line a run, then a table of means with the least and the largest of the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--output", type=Path, default=Path("long_tail.jsonl"))
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.output.read_text().splitlines()] if given.output.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "set")
        publish(data, samples=given.samples)
        train_vocabulary((str(data / "shards"),), f"{folder}/bpe.txt.gz", merges=200)
        images, scenes = test_images(2000)
        for seed, order in itertools.product(given.seeds, given.orders):
            if any((row["order"], row["seed"], row["steps"]) == (order, seed, given.steps) for row in rows):
                continue
            options = TrainOptions(
                data=str(data), output=f"{folder}/{order}-{seed}", model="ViT-Tiny", seed=seed, steps=given.steps,
                batch_size=given.batch_size, bpe=f"{folder}/bpe.txt.gz", lr=given.lr, save_every=0, threads=1,
                log_to=("none",), **ORDERS[order],
            )  # fmt: skip
            result = train(options)
            row = {"order": order, "seed": seed, "steps": given.steps, "loss": result["loss"], **composition(options),
                   **accuracies(options.output, images, scenes)}  # fmt: skip
            rows.append(row)
            with open(given.output, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    names = [f"{name} {half}" for name in PROPERTIES for half in ("tail", "head")]
    print(f"\n| order | entropy | queries a pair | {' | '.join(names)} |\n|{'---|' * (len(names) + 3)}")
    for order in given.orders:
        some = [row for row in rows if row["order"] == order and row["steps"] == given.steps]
        cells = [f"{statistics.fmean(row[name] for row in some):.2f}" for name in ("entropy", "queries a pair")]
        for name in names:
            values = [100 * row[name] for row in some]
            cells.append(f"{statistics.fmean(values):.1f} ({min(values):.1f}-{max(values):.1f})")
        print(f"| {order} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
