"""Evaluation of a model: zero-shot classification (paper, section 3.1), retrieval, and a table of embeddings.

The ranks of a run share a set batch by batch. A batch has the same images on any number of ranks, so the numbers are
those of one rank. Every rank gets all results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_train import metrics
from clip_train.devices import cpu_count
from clip_train.distill import SCALE
from clip_train.distributed import gather, rank, share, together, world_size
from clip_train.errors import TrainError
from clip_train.image import BadImage, evaluation_transform, normalize
from clip_train.index import Index, key_of
from clip_train.labels import LabelledImages, open_labelled
from clip_train.model import CLIP
from clip_train.prompts import DEFAULT_TEMPLATES, fill, read_templates
from clip_train.reader import MAX_TEXT_BYTES, Reader, open_reader, read_member
from clip_train.shards import open_index
from clip_train.text import pack
from clip_train.tokenizer import Tokenizer

TIE = 1e-6  # cosines that differ by less count as equal; the rounding error of fp32 is about 1e-7


@torch.no_grad()
def embed_texts(model: CLIP, tokenizer: Tokenizer, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """(n, E) unit vectors, on the model's device."""
    device, length = model.logit_scale.device, model.config.context_length
    parts = []
    for at in range(0, len(texts), batch_size):
        captions = [tokenizer.encode_caption(text, context_length=length) for text in texts[at : at + batch_size]]
        parts.append(F.normalize(model.encode_text(pack(captions).to(device)).float(), dim=1))
    return torch.cat(parts) if parts else torch.empty(0, model.config.embed_dim, device=device)


def embed_texts_together(model: CLIP, tokenizer: Tokenizer, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """`embed_texts`, shared by the ranks."""
    starts = range(0, len(texts), batch_size)
    batches = share(
        len(starts), lambda n: embed_texts(model, tokenizer, texts[starts[n] : starts[n] + batch_size]).cpu()
    )
    return torch.cat(batches).to(model.logit_scale.device)


@torch.no_grad()
def embed_images(
    model: CLIP,
    read: Callable[[int], bytes],
    count: int,
    *,
    batch_size: int = 128,
    threads: int = 0,
    unit: bool = True,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields features of images 0 .. count - 1, batch by batch: (numbers of the images that decode, (b, E)).

    The images go through OpenAI's evaluation transform. Threads decode ahead.

    Args:
        unit: normalise the features to unit vectors. A linear probe takes them as they are.
        part: (i, n) takes the batches i, i + n, i + 2n, ...
    """
    size, device = model.config.image_size, model.logit_scale.device

    def load(number: int) -> np.ndarray | None:
        try:
            return evaluation_transform(read(number), size, interpolation=model.config.interpolation)
        except (BadImage, OSError):
            return None

    with ThreadPoolExecutor(threads or cpu_count()) as pool:
        starts = range(part[0] * batch_size, count, part[1] * batch_size)
        ahead = [[pool.submit(load, n) for n in range(at, min(at + batch_size, count))] for at in starts[:2]]
        for number, at in enumerate(starts):
            if number + 2 < len(starts):
                later = starts[number + 2]
                ahead.append([pool.submit(load, n) for n in range(later, min(later + batch_size, count))])
            decoded = [future.result() for future in ahead.pop(0)]
            kept = [at + row for row, image in enumerate(decoded) if image is not None]
            if not kept:
                continue
            images = torch.from_numpy(np.stack([image for image in decoded if image is not None])).to(device)
            pixels = normalize(images, mean=model.config.mean, std=model.config.std)
            features = model.encode_image(pixels).float()
            yield kept, F.normalize(features, dim=1) if unit else features


def class_vectors(
    model: CLIP, tokenizer: Tokenizer, classes: Sequence[str], templates: Sequence[str] | dict[str, list[str]]
) -> Tensor:
    """(classes, E): the normalised mean over the prompts of each class (the paper's prompt ensemble)."""

    def vector(number: int) -> Tensor:
        name = classes[number]
        if isinstance(templates, dict):
            if name not in templates:
                raise TrainError(f"the file of templates has no prompts for the class {name!r}")
            prompts = templates[name]
        else:
            prompts = [fill(template, name) for template in templates]
        return embed_texts(model, tokenizer, prompts).mean(0).cpu()

    return F.normalize(torch.stack(share(len(classes), vector)).to(model.logit_scale.device), dim=1)


def zero_shot(
    model: CLIP, tokenizer: Tokenizer, data: str, *, classes: str | None = None, templates: str | None = None,
    dataset: str | None = None, batch_size: int = 128,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy of naming an image's class by the nearest prompt ensemble.

    Args:
        model, tokenizer: of `load`.
        data: a folder with a folder a class, or shards with .cls members.
        classes: file of class names, in the order of the labels.
        templates: file of prompt templates; DEFAULT_TEMPLATES unless given.
        dataset: the entry of these files that is taken.
        batch_size: images at a time.

    Returns:
        top1, top5 and mean_per_class (of top-1), shares in [0, 1]; the counts images, skipped
        (did not decode) and classes.

    Raises:
        InputMissing: there are no images, no labels, or one of the files is absent.
        UsageError: the class names do not fit the labels.
        TrainError: no image decodes, or a file cannot be read.
    """
    images = together(lambda: open_labelled(data, classes=classes, dataset=dataset))
    prompts = together(lambda: read_templates(templates, dataset) if templates else DEFAULT_TEMPLATES)
    found = classify(model, tokenizer, images, prompts, batch_size=batch_size)
    if not len(found.numbers):
        raise TrainError(f"{data}: none of the {len(images)} images decodes")
    labels = images.labels[found.numbers]
    return {**accuracies(found.best, labels), **counts(images, found)}


@dataclasses.dataclass(frozen=True)
class Classified:
    """The classes of n images that decode."""

    numbers: np.ndarray  # (n,) of the images, ascending
    best: np.ndarray  # (n, 5 or less) the classes with the highest cosines, the best first
    scores: np.ndarray | None  # (n, C) fp32, cosines with the vectors of the classes


def classify(
    model: CLIP, tokenizer: Tokenizer, images: LabelledImages, templates: Sequence[str] | dict[str, list[str]], *,
    batch_size: int = 128, keep_scores: bool = False,
) -> Classified:  # fmt: skip
    """Compares each image with the prompt ensembles of the classes.

    Args:
        images: their labels have no effect.
        templates: or prompts by the name of the class.
        keep_scores: keep all cosines, 4 bytes for each image and class.

    Raises:
        TrainError: `templates` has no prompts for a class.
    """
    vectors = class_vectors(model, tokenizer, images.classes, templates)

    def mine() -> Classified:
        numbers: list[int] = []
        best, scores = [np.empty((0, min(5, len(vectors))), np.int64)], [np.empty((0, len(vectors)), np.float32)]
        part = (rank(), world_size())
        for kept, features in embed_images(model, images.read, len(images), batch_size=batch_size, part=part):
            cosines = features @ vectors.T
            numbers += kept
            best.append(cosines.topk(min(5, len(vectors)), dim=1).indices.cpu().numpy())
            if keep_scores:
                scores.append(cosines.cpu().numpy())
        return Classified(np.array(numbers, np.int64), np.concatenate(best), np.concatenate(scores))

    parts = gather(together(mine))
    numbers = np.concatenate([part.numbers for part in parts])
    order = np.argsort(numbers)
    all_scores = np.concatenate([part.scores for part in parts])[order] if keep_scores else None
    return Classified(numbers[order], np.concatenate([part.best for part in parts])[order], all_scores)


def accuracies(best: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """top1, top5 and mean_per_class (of top-1), shares in [0, 1]."""
    right = metrics.top_k(best, labels, 1)
    return {
        "top1": float(right.mean()),
        "top5": float(metrics.top_k(best, labels, 5).mean()),
        "mean_per_class": metrics.mean_per_class(right, labels),
    }


def counts(images: LabelledImages, found: Classified) -> dict[str, int]:
    """images (that decode), skipped and classes."""
    seen = len(found.numbers)
    return {"images": seen, "skipped": len(images) - seen, "classes": len(images.classes)}


def recall(
    queries: Tensor, candidates: Tensor, right: Sequence[Sequence[int]], ks: Sequence[int], *, chunk: int = 0
) -> dict[int, float]:
    """The share of queries with a right candidate among the k nearest, for each k.

    A wrong candidate ranks before the best right one unless its cosine is lower by at least `TIE`. Copies of a caption
    are therefore a tie for any rounding. A query counts as a miss if it has no right candidate, or if no cosine with a
    right candidate is a number.

    Args:
        queries: (Q, E) unit vectors.
        candidates: (C, E) unit vectors.
        right: the right candidates of each query (an image may have several captions).
        chunk: queries at a time. The default keeps the cosines below 16 MiB, so that they stay in the cache.
    """
    device = queries.device
    answers = [sorted(set(numbers)) for numbers in right]
    bounds = np.concatenate([[0], np.cumsum([len(numbers) for numbers in answers])]).astype(np.int64)
    flat = torch.tensor([number for numbers in answers for number in numbers], dtype=torch.int64, device=device)
    owner = torch.from_numpy(np.repeat(np.arange(len(answers)), np.diff(bounds))).to(device)
    chunk = chunk or max(1, (1 << 22) // max(1, len(candidates)))
    hits = dict.fromkeys(ks, 0)
    for at in range(0, len(queries), chunk):
        cosines = queries[at : at + chunk] @ candidates.T
        part = slice(bounds[at], bounds[min(at + chunk, len(answers))])
        rows = owner[part] - at
        of_right = cosines[rows, flat[part]]
        best = torch.full((len(cosines),), -torch.inf, dtype=cosines.dtype, device=device)
        best = best.scatter_reduce(0, rows, of_right.nan_to_num(-torch.inf), "amax")
        before = (cosines > best[:, None] - TIE).sum(1)
        before -= torch.zeros_like(before).index_add(0, rows, (of_right > best[rows] - TIE).to(before.dtype))
        for k in ks:
            hits[k] += int(((before < k) & (best > -torch.inf)).sum())
    return {k: hits[k] / max(1, len(queries)) for k in ks}


def retrieval(
    model: CLIP, tokenizer: Tokenizer, data: str, *, ks: Sequence[int] = (1, 5, 10), batch_size: int = 128
) -> dict[str, Any]:
    """Recall@k of captions by images and of images by captions.

    A sample's text may hold several captions, a line each. A sample without a caption is skipped.

    Args:
        model, tokenizer: of `load`.
        data: shards with captions.
        ks: an answer counts if it is among the first k.
        batch_size: images at a time.

    Returns:
        image_to_text_recall@k and text_to_image_recall@k, shares in [0, 1]; the counts images, texts and skipped.

    Raises:
        InputMissing: there are no shards.
        TrainError: no sample has both an image that decodes and a caption.
    """
    index = together(lambda: open_index(data))
    reader = open_reader(index)
    read = functools.partial(read_member, reader, index, "image")

    def mine() -> tuple[list[int], list[list[str]], list[np.ndarray]]:
        """Number, captions and features of each image of this rank that decodes and has a caption."""
        samples, captions, features = list[int](), list[list[str]](), list[np.ndarray]()
        part = (rank(), world_size())
        for numbers, vectors in embed_images(model, read, len(index), batch_size=batch_size, part=part):
            lines = [_text(reader, index, sample).splitlines() for sample in numbers]
            lines = [[line.strip() for line in each if line.strip()] for each in lines]
            rows = [row for row, each in enumerate(lines) if each]
            samples += [numbers[row] for row in rows]
            captions += [lines[row] for row in rows]
            features.append(vectors.cpu().numpy()[rows])
        return samples, captions, features

    parts = gather(together(mine))
    reader.close()
    samples = [sample for part in parts for sample in part[0]]
    order = sorted(range(len(samples)), key=samples.__getitem__)
    if not order:
        raise TrainError(f"{data}: none of the {len(index)} samples has an image that decodes and a caption")
    of_sample = [lines for part in parts for lines in part[1]]
    captions: list[str] = []
    of_image: list[list[int]] = []  # the captions of each image
    images_of: list[list[int]] = []  # the image of each caption
    for row, number in enumerate(order):
        lines = of_sample[number]
        of_image.append(list(range(len(captions), len(captions) + len(lines))))
        images_of += [[row]] * len(lines)
        captions += lines
    words = embed_texts_together(model, tokenizer, captions)
    features = np.concatenate([batch for part in parts for batch in part[2]])[order]
    images = torch.from_numpy(features).to(words.device)
    to_text, to_image = recall(images, words, of_image, ks), recall(words, images, images_of, ks)
    return {
        **{f"image_to_text_recall@{k}": to_text[k] for k in ks},
        **{f"text_to_image_recall@{k}": to_image[k] for k in ks},
        "images": len(order),
        "texts": len(captions),
        "skipped": len(index) - len(order),
    }


def embed(
    model: CLIP, tokenizer: Tokenizer, data: str, output: str, *, texts: bool = False, batch_size: int = 128
) -> dict[str, Any]:
    """Writes a Parquet table of `key` and `embedding`, a unit vector of E fp32 numbers.

    Images that do not decode have no row.

    The keys are those of the shards. Deduplication by embeddings reads this table.

    Args:
        model, tokenizer: of `load`.
        data: shards.
        output: the table. It appears under this name when it is whole.
        texts: write `text_embedding`, another E numbers, from the caption too.
        batch_size: images at a time.

    Returns:
        output, rows, skipped (did not decode) and dimensions (E).

    Raises:
        InputMissing: there are no shards.
        TrainError: a caption is too long, or is not UTF-8.
    """
    index = open_index(data)
    reader = open_reader(index)
    width = model.config.embed_dim
    fields = [pa.field("key", pa.string()), pa.field("embedding", pa.list_(pa.float32(), width))]
    if texts:
        fields.append(pa.field("text_embedding", pa.list_(pa.float32(), width)))
    rows, scale = 0, f"{model.logit_scale.exp().item():.6g}".encode()
    try:
        with _writing(output, pa.schema(fields, {SCALE: scale})) as write:
            read_image = functools.partial(read_member, reader, index, "image")
            for numbers, features in embed_images(model, read_image, len(index), batch_size=batch_size):
                columns = [pa.array(index.keys_of(numbers), pa.string()), _vectors(features)]
                if texts:
                    lines = [_text(reader, index, sample) for sample in numbers]
                    columns.append(_vectors(embed_texts(model, tokenizer, lines)))
                write(columns)
                rows += len(numbers)
    finally:
        reader.close()
    return {"output": output, "rows": rows, "skipped": len(index) - rows, "dimensions": width}


def score(model: CLIP, tokenizer: Tokenizer, data: str, output: str, *, batch_size: int = 128) -> dict[str, Any]:
    """Writes a Parquet table of `key` and `clip_score`: the cosine of image and text, fp32, from -1 to 1.

    Images that do not decode have no row. `pipeline.build --scores` reads this table.

    Args:
        model, tokenizer: of `load`.
        data: shards.
        output: the table. It appears under this name when it is whole.
        batch_size: images at a time.

    Returns:
        output, rows, skipped (did not decode) and mean (of the cosines).

    Raises:
        InputMissing: there are no shards.
        TrainError: a caption is too long or not UTF-8, no image decodes, or the weights give no number.
    """
    index = open_index(data)
    reader = open_reader(index)
    schema, found = pa.schema([pa.field("key", pa.string()), pa.field("clip_score", pa.float32())]), [np.zeros(0)]
    try:
        with _writing(output, schema) as write:
            read_image = functools.partial(read_member, reader, index, "image")
            for numbers, features in embed_images(model, read_image, len(index), batch_size=batch_size):
                vectors = embed_texts(model, tokenizer, [_text(reader, index, sample) for sample in numbers])
                cosines = (features * vectors).sum(1).cpu().numpy()
                if not np.isfinite(cosines).all():
                    raise TrainError(f"{data}: the weights give no number for an image or its text")
                write([pa.array(index.keys_of(numbers), pa.string()), pa.array(cosines)])
                found.append(cosines)
            scores = np.concatenate(found)
            if not len(scores):
                raise TrainError(f"{data}: none of the {len(index)} images decodes")
    finally:
        reader.close()
    return {"output": output, "rows": len(scores), "skipped": len(index) - len(scores), "mean": float(scores.mean())}


@contextlib.contextmanager
def _writing(output: str, schema: pa.Schema) -> Iterator[Callable[[list[pa.Array]], None]]:
    """Yields what appends columns to a table. The table appears under its name when the block ends."""
    partial = Path(f"{output}.{os.getpid()}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
            yield lambda columns: writer.write_batch(pa.record_batch(columns, schema=schema))
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def _vectors(features: Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(features.cpu().numpy().ravel()), features.shape[1])


def _text(reader: Reader, index: Index, sample: int) -> str:
    size = index.place("text", sample)[2]
    if size > MAX_TEXT_BYTES:
        raise TrainError(f"{key_of(index, sample)}: a caption of {size} bytes")
    try:
        return read_member(reader, index, "text", sample).decode("utf-8")
    except UnicodeDecodeError:
        raise TrainError(f"{key_of(index, sample)}: the caption is not UTF-8") from None
