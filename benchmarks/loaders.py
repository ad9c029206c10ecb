"""clip_train's loader against SPDL and webdataset on the same tars, in CPU milliseconds a sample.

    PYTHONPATH=. python benchmarks/loaders.py [--data DIR] [--threads 1]

Needs spdl-io (with FFmpeg's libraries) and webdataset beside clip_train's own packages. A side that is not installed is
left out. Every side reads the same tars and makes batches of (B, 224, 224, 3) uint8 pixels and padded token ids:

    clip_train           its loader, in a keyed random order over all samples
    webdataset           tars in their order, the same decoder, resize and tokenizer as clip_train, as functions
    webdataset, Pillow   the usual decoder of webdataset, Pillow's bicubic, the same tokenizer
    SPDL, OpenCV         tars in their order (iter_tarfile), the same functions as clip_train, in SPDL's threads
    SPDL, FFmpeg         SPDL's own decoder and FFmpeg's bicubic, the same tokenizer

The images are square and the crop is the whole image, so that pixels do not depend on a draw. The pixels and ids of
each side are compared with clip_train's, sample by sample, before the measure. Sides take turns. The best turn counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from clip_train.bench import write_shards  # noqa: E402
from clip_train.data import Loader, LoaderOptions  # noqa: E402
from clip_train.image import decode, random_crop  # noqa: E402
from clip_train.order import Stream  # noqa: E402
from clip_train.shards import open_index  # noqa: E402
from clip_train.tokenizer import load_tokenizer  # noqa: E402

SIZE, LENGTH = 224, 77
BATCH, TOGETHER = 64, 16  # samples of a batch, and of one task of SPDL's threads
WHOLE = np.zeros(3)  # draws of the crop that do not matter
TOKENIZER = load_tokenizer()
Batch = tuple[list[str], np.ndarray, np.ndarray]  # keys, (B, S, S, 3) uint8, (B, 77)


def crop_of(data: bytes) -> np.ndarray:
    """The pixels of clip_train's loader for a square image and --crop-scale 1."""
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    random_crop(decode(data, size=SIZE, min_scale=1.0), out, WHOLE, min_scale=1.0)
    return out


def ids_of(caption: bytes) -> np.ndarray:
    """Padded token ids."""
    ids = np.zeros(LENGTH, np.int64)
    found = TOKENIZER.encode_caption(caption.decode(), context_length=LENGTH)
    ids[: len(found)] = found
    return ids


def clip_train(folder: str, threads: int) -> Iterator[Batch]:
    index = open_index(folder)
    options = LoaderOptions(
        image_size=SIZE, context_length=LENGTH, batch_size=BATCH, prefetch=1, packed=False, min_scale=1.0,
        threads=threads,
    )  # fmt: skip
    with Loader(Stream(index, seed=0), TOKENIZER, options) as loader:
        for (batch,) in loader.steps(0):
            yield (
                index.keys_of(batch.samples) if CHECK else [""] * len(batch.samples),
                batch.images.numpy(), batch.text.numpy(),
            )  # fmt: skip


CHECK = False  # names are looked up for the comparison only


def webdataset(folder: str, threads: int, pixels: Callable[[bytes], np.ndarray] = crop_of) -> Iterator[Batch]:
    import webdataset as wds

    paths = sorted(map(str, Path(folder).glob("*.tar")))
    samples = wds.DataPipeline(
        wds.SimpleShardList(paths), wds.tarfile_to_samples(), wds.to_tuple("__key__", "jpg", "txt"),
        wds.map_tuple(None, pixels, ids_of), wds.batched(BATCH),
    )  # fmt: skip
    for _ in itertools.count():
        for keys, images, ids in samples:
            yield list(keys), np.stack(images), np.stack(ids)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def spdl_opencv(samples: list[tuple[str, bytes, bytes]]) -> np.ndarray:
    return np.stack([crop_of(bytes(data)) for _, data, _ in samples])


def spdl_ffmpeg(samples: list[tuple[str, bytes, bytes]]) -> np.ndarray:
    import spdl.io

    wanted = spdl.io.get_video_filter_desc(scale_width=SIZE, scale_height=SIZE, scale_mode=None)
    buffer = spdl.io.load_image_batch(
        [bytes(data) for _, data, _ in samples], width=None, height=None, filter_desc=wanted
    )
    return np.array(spdl.io.to_numpy(buffer))


def spdl(folder: str, threads: int, pixels: Callable[[list], np.ndarray] = spdl_opencv) -> Iterator[Batch]:
    from spdl.io import iter_tarfile
    from spdl.pipeline import PipelineBuilder

    def pairs(path: str) -> Iterator[tuple[str, bytes, bytes]]:
        waiting: dict[str, dict[str, bytes]] = {}
        for name, data in iter_tarfile(Path(path).read_bytes()):
            key, _, kind = os.path.basename(name).partition(".")
            members = waiting.setdefault(key, {})
            members[kind] = data
            if {"jpg", "txt"} <= members.keys():
                del waiting[key]
                yield key, members["jpg"], members["txt"]

    def load(samples: list[tuple[str, bytes, bytes]]) -> Batch:
        return [key for key, _, _ in samples], pixels(samples), np.stack([ids_of(bytes(text)) for *_, text in samples])

    def joined(parts: list[Batch]) -> Batch:
        keys, images, ids = zip(*parts, strict=True)
        return [key for part in keys for key in part], np.concatenate(images), np.concatenate(ids)

    paths = sorted(map(str, Path(folder).glob("*.tar")))
    pipeline = (
        PipelineBuilder().add_source(itertools.cycle(paths)).pipe(pairs).aggregate(TOGETHER)
        .pipe(load, concurrency=threads).aggregate(BATCH // TOGETHER).pipe(joined).add_sink(2)
        .build(num_threads=threads + 1)
    )  # fmt: skip
    with pipeline.auto_stop():
        yield from pipeline.get_iterator(timeout=60)


SIDES: dict[str, tuple[str, Callable[[str, int], Iterator[Batch]]]] = {
    "clip_train": ("torch", clip_train),
    "webdataset": ("webdataset", webdataset),
    "webdataset, Pillow": ("webdataset", lambda folder, threads: webdataset(folder, threads, pillow)),
    "SPDL, OpenCV": ("spdl.io", spdl),
    "SPDL, FFmpeg": ("spdl.io", lambda folder, threads: spdl(folder, threads, spdl_ffmpeg)),
}


def square_shards(folder: Path, *, samples: int) -> str:
    """Tars of synthetic pictures of 256 x 256 px and about 20 kB."""
    target = folder / "square"
    target.mkdir()
    for path in sorted(Path(write_shards(folder, samples=samples)).glob("*.tar")):
        with tarfile.open(path) as source, tarfile.open(target / path.name, "w") as tar:
            for member in source:
                data = source.extractfile(member).read()
                if member.name.endswith(".jpg"):
                    buffer = io.BytesIO()
                    Image.open(io.BytesIO(data)).crop((0, 0, 256, 256)).save(buffer, "JPEG", quality=90)
                    data = buffer.getvalue()
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(target)


def samples_of(batches: Iterable[Batch], count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels and ids by key, of all samples of the set."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for keys, images, ids in batches:
        found.update((key, (image.copy(), row)) for key, image, row in zip(keys, images, ids, strict=True))
        if len(found) == count:
            return found
    raise AssertionError("the loader ended early")


def main() -> None:
    """Prints a table."""
    global CHECK
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of tars with square jpg and txt members; made up unless given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--samples", type=int, default=512, help="of a turn, at least")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.data or square_shards(Path(scratch), samples=1024)
        count = len(open_index(folder))
        sides = {}
        for name, (package, make) in SIDES.items():
            with contextlib.suppress(ImportError):
                __import__(package)
                sides[name] = make
        CHECK, reference, notes = True, {}, {}
        for name, make in sides.items():
            batches = make(folder, given.threads)
            found = samples_of(batches, count)
            batches.close()
            reference = reference or found
            apart = [float(np.abs(image.astype(int) - reference[key][0]).mean()) for key, (image, _) in found.items()]
            assert all(np.array_equal(ids, reference[key][1]) for key, (_, ids) in found.items()), name
            notes[name] = "equal" if max(apart) == 0 else f"differ by {np.mean(apart):.2f} levels"
        CHECK = False
        best = dict.fromkeys(sides, float("inf"))
        for _ in range(given.turns):
            for name, make in sides.items():
                batches = make(folder, given.threads)
                next(batches)  # starts threads, opens files
                began, seen = time.process_time(), 0
                while seen < given.samples:
                    seen += len(next(batches)[0])
                best[name] = min(best[name], (time.process_time() - began) / seen * 1000)
                batches.close()
        print("| loader | CPU ms a sample | against clip_train | pixels |\n|---|---|---|---|")
        for name, value in best.items():
            print(f"| {name} | {value:.3f} | {value / best['clip_train']:.2f} | {notes[name]} |")


if __name__ == "__main__":
    main()
