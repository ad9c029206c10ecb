"""Measures the speed of this machine: tokenizer, loader, loss, the towers alone, and whole steps from tar files.

    python -m clip_train bench --model ViT-B-32 --batch-size 1024

CPU seconds are the sum over all threads of the process. Without --data, the benchmark writes shards of synthetic
pictures (256 px, ~20 kB) and captions of a realistic length to a temporary folder.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clip_train.bpe import count_words, learn_merges
from clip_train.config import MEASURES, TrainOptions, resolve
from clip_train.data import Loader
from clip_train.devices import cpu_count, device_name, peak_flops
from clip_train.distributed import pick_device
from clip_train.errors import InputMissing, UsageError
from clip_train.loss import info_nce
from clip_train.model import count_flops
from clip_train.order import Stream
from clip_train.shards import open_index
from clip_train.start import loader_options, start_run
from clip_train.tokenizer import Tokenizer, find_vocabulary, load_tokenizer
from clip_train.training import encode, training_step

_WORDS = (
    "a the of in on with and red blue green old new small large photo picture view house river mountain city street "
    "dog cat bird car train boat flower garden portrait woman man child sunset winter vintage wooden glass table chair"
).split()
_PICTURES = 512  # of write_shards that differ


def bench(
    *, model: str, data: str | None = None, batch_size: int = 64, seconds: float = 5.0,
    only: Sequence[str] | None = None, precision: str = "auto", compiled: bool = False,
    forms: Sequence[str] = ("packed", "padded"),
) -> dict[str, Any]:  # fmt: skip
    """Runs the measures and returns their numbers.

    Args:
        forms: of the text that the towers are measured with.
    """
    unknown = [name for name in only or () if name not in MEASURES]
    if unknown:
        raise UsageError(f"unknown measure {unknown[0]!r} (allowed: {', '.join(MEASURES)})")
    chosen = only or MEASURES
    work: dict[str, Callable[..., dict[str, float]]] = {**_MEASURES, "model": functools.partial(_model, forms=forms)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = data or write_shards(Path(scratch), samples=max(512, 2 * batch_size))
        tokenizer = _any_tokenizer()
        options = TrainOptions(
            data=folder, model=model, output=scratch, batch_size=batch_size, steps=1, precision=precision,
            compile=compiled, max_bad=1.0,
        )  # fmt: skip
        results: dict[str, Any] = {"model": model, "batch_size": batch_size, "threads": torch.get_num_threads()}
        device = pick_device()
        results["device"] = device_name(device) or f"CPU, {cpu_count()} cores"
        for name in chosen:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            results |= work[name](options, tokenizer, seconds)
    return results


def _any_tokenizer() -> Tokenizer:
    try:
        return load_tokenizer()
    except InputMissing:
        counts = count_words([caption(random.Random(number)) for number in range(2000)])
        return Tokenizer(learn_merges(counts, merges=2000), name=f"synthetic, because {find_vocabulary()} is missing")


def _start(options: TrainOptions, tokenizer: Tokenizer) -> Any:
    index, device = open_index(options.data), pick_device()
    plan = resolve(
        options, samples=len(index), world_size=1, vocab_size=tokenizer.vocab_size, has_gpu=device.type == "cuda"
    )
    run = start_run(plan, device)
    return run, Stream(index, seed=0), loader_options(run.plan, device)


def measure(work: Callable[[], int], *, seconds: float, warm_up: int = 1) -> tuple[float, float]:
    """Items per second of wall time, and CPU milliseconds per item. The first `warm_up` calls are not counted."""
    for _ in range(warm_up):
        work()
    _finish()
    items, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        items += work()
    _finish()
    return items / (time.perf_counter() - wall), (time.process_time() - cpu) / items * 1e3


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _tokenizer(options: TrainOptions, tokenizer: Tokenizer, seconds: float) -> dict[str, float]:
    captions = [caption(random.Random(number)) for number in range(2000)]

    def work() -> int:
        for text in captions:
            tokenizer.encode(text)
        return len(captions)

    rate, cpu = measure(work, seconds=min(seconds, 2.0))
    return {"tokenizer_captions_per_s": rate, "tokenizer_us_per_caption": cpu * 1e3}


def _loader(options: TrainOptions, tokenizer: Tokenizer, seconds: float) -> dict[str, float]:
    _, stream, chosen = _start(dataclasses.replace(options, model="ViT-B-32", precision="fp32"), tokenizer)
    with Loader(stream, tokenizer, dataclasses.replace(chosen, image_size=224, prefetch=1)) as loader:
        steps = loader.steps(0)
        rate, cpu = measure(lambda: sum(len(batch.samples) for batch in next(steps)), seconds=seconds)
    return {"loader_samples_per_s": rate, "loader_cpu_ms_per_sample": cpu}


def _loss(options: TrainOptions, tokenizer: Tokenizer, seconds: float) -> dict[str, float]:
    device, size = pick_device(), 4096 if pick_device().type == "cpu" else 32768
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(size, 512, generator=generator), dim=1).to(device).requires_grad_() for _ in range(2)
    )
    scale = torch.tensor(30.0, device=device, requires_grad=True)

    def work() -> int:
        info_nce(images, texts, scale).backward()
        return 1

    rate, _ = measure(work, seconds=min(seconds, 3.0))
    return {f"loss_ms_at_batch_{size}": 1e3 / rate}


def _model(
    options: TrainOptions, tokenizer: Tokenizer, seconds: float, forms: Sequence[str] = ("packed", "padded")
) -> dict[str, float]:
    """Forward and backward pass of both towers, with packed and with padded text, on a batch on the device."""
    results: dict[str, float] = {}
    for text in forms:
        run, stream, chosen = _start(dataclasses.replace(options, text=text), tokenizer)
        with Loader(stream, tokenizer, dataclasses.replace(chosen, processes=False, prefetch=0)) as loader:  # one batch
            batch = next(loader.steps(0))[0]
        moved = dataclasses.replace(batch, images=batch.images.to(run.device), text=batch.text.to(run.device))

        def work(run: Any = run, batch: Any = moved) -> int:
            images, texts = encode(run, batch)
            (images.sum() + texts.sum()).backward()
            return len(batch.samples)

        rate, cpu = measure(work, seconds=seconds, warm_up=3 if run.compiled else 1)
        results |= {f"model_{text}_pairs_per_s": rate, f"model_{text}_cpu_ms_per_pair": cpu}
        peak = peak_flops(run.device)
        tokens = batch.tokens / len(batch.samples) if text == "packed" else None
        flops = 3 * count_flops(run.plan.model, text_tokens=tokens)
        results[f"model_{text}_gflops"] = flops * rate / 1e9
        if peak:
            results[f"model_{text}_mfu"] = flops * rate / peak
        results["tokens_per_caption"] = batch.tokens / len(batch.samples)
    return results


def _step(options: TrainOptions, tokenizer: Tokenizer, seconds: float) -> dict[str, float]:
    """Whole steps from tar: loader, towers, loss, optimiser."""
    run, stream, chosen = _start(options, tokenizer)
    with Loader(stream, tokenizer, chosen) as loader:
        steps = loader.steps(0)

        def work() -> int:
            training_step(run, next(steps))
            return run.plan.batch_size

        rate, cpu = measure(work, seconds=seconds, warm_up=3)  # batches differ in length
    return {"step_pairs_per_s": rate, "step_cpu_ms_per_pair": cpu}


_MEASURES: dict[str, Callable[[TrainOptions, Tokenizer, float], dict[str, float]]] = dict(
    tokenizer=_tokenizer, loader=_loader, loss=_loss, model=_model, step=_step
)


def caption(rng: random.Random) -> str:
    """A synthetic caption. Its length is distributed like that of alt-texts: about 23 tokens, rarely very many."""
    return " ".join(rng.choices(_WORDS, k=max(2, min(70, round(rng.lognormvariate(2.85, 0.6))))))


def write_shards(folder: Path, *, samples: int, side: int = 256, shards: int = 2) -> str:
    """Writes plain tars of smooth synthetic pictures. Some noise makes the JPEGs as large as photographs.

    A large set repeats its pictures, whose making would take longer than the measures.
    """
    folder = folder / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(cpu_count()) as pool:
        pictures = list(pool.map(lambda number: picture(number, side=side), range(min(samples, _PICTURES))))
    for shard, numbers in enumerate(np.array_split(np.arange(samples), shards)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers.tolist():
                text = caption(random.Random(number)).encode()
                for extension, content in (("jpg", pictures[number % len(pictures)]), ("txt", text)):
                    info = tarfile.TarInfo(f"{number:08d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder)


def picture(number: int, *, side: int) -> bytes:
    """A smooth synthetic JPEG of 5/4 side x side pixels, with some noise."""
    from PIL import Image

    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side * 5 // 4, side), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
