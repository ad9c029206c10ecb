"""Labelled images for evaluation: one folder per class, or shards with `.cls` members."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from clip_train.errors import InputMissing, UsageError
from clip_train.prompts import read_classes, read_templates, read_text
from clip_train.reader import open_reader, read_member
from clip_train.shards import open_index

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images with one class each. `read(i)` returns the bytes of image i."""

    names: Sequence[str]
    labels: np.ndarray  # (N,) int64
    classes: list[str]
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.names)


def open_labelled(data: str, *, classes: str | None = None, dataset: str | None = None) -> LabelledImages:
    """Opens a folder with one folder per class, or shards whose samples have a `.cls` member.

    Class folders stand for the class names of their own names, where every folder has one; else in sorted order.
    """
    return open_named(data, read_classes(classes, dataset) if classes else None)


def open_named(data: str, names: Sequence[str] | None) -> LabelledImages:
    """`open_labelled` with the class names themselves."""
    folder = Path(data)
    listed = None if names is None else list(names)
    return _open_folder(folder, listed) if is_class_folder(data) else _open_shards(data, listed)


def is_class_folder(data: str) -> bool:
    """True for a folder without shards."""
    return Path(data).is_dir() and not any(Path(data).rglob("*.tar"))


def rename(images: LabelledImages, name_of: Mapping[str, str]) -> LabelledImages:
    """The same images under the class names of a map from folders, or from words of .cls members.

    Raises:
        UsageError: a folder or word is not in the map.
    """
    known = {word.replace("_", " "): name for word, name in name_of.items()}
    strange = [word for word in images.classes if word.replace("_", " ") not in known]
    if strange:
        raise UsageError(f"no class name for the folder or label {strange[0]!r}")
    classes = list(dict.fromkeys(name_of.values()))
    numbers = np.array([classes.index(known[word.replace("_", " ")]) for word in images.classes], np.int64)
    return dataclasses.replace(images, labels=numbers[images.labels], classes=classes)


def only_classes(images: LabelledImages, names: Sequence[str]) -> LabelledImages | None:
    """The images of some classes, with these as the only ones. None: the set does not have all of them."""
    if not set(names) <= set(images.classes):
        return None
    label_of = {images.classes.index(name): label for label, name in enumerate(names)}
    numbers = [number for number, label in enumerate(images.labels.tolist()) if label in label_of]
    return LabelledImages(
        names=[images.names[number] for number in numbers],
        labels=np.array([label_of[int(images.labels[number])] for number in numbers], np.int64),
        classes=list(names),
        read=lambda number: images.read(numbers[number]),
    )


def _open_folder(folder: Path, names: list[str] | None) -> LabelledImages:
    groups = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files, labels = [], []
    for number, group in enumerate(groups):
        for path in sorted(group.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                files.append(path)
                labels.append(number)
    if not files:
        raise InputMissing(f"{folder}: no images; one folder per class is expected, or .tar shards with .cls members")
    own = [group.name.replace("_", " ") for group in groups]
    if names is not None and set(own) <= set(names) and len(set(names)) == len(names):
        number_of = {group: names.index(name) for group, name in enumerate(own)}
        labels = [number_of[label] for label in labels]
    elif names is not None and len(names) != len(groups):
        raise UsageError(f"{folder} has {len(groups)} class folders, the file of classes has {len(names)} names")
    return LabelledImages(
        names=[str(path.relative_to(folder)) for path in files],
        labels=np.array(labels, np.int64),
        classes=names or own,
        read=lambda number: files[number].read_bytes(),
    )


def _open_shards(data: str, names: list[str] | None) -> LabelledImages:
    index = open_index(data)
    if not index.labelled:
        raise InputMissing(f"{data}: the samples have no .cls member, so there are no labels")
    reader = open_reader(index)
    words = [
        read_member(reader, index, "label", sample).decode("utf-8", "replace").strip() for sample in range(len(index))
    ]
    if all(word.isdecimal() for word in words):
        labels = np.array([int(word) for word in words], np.int64)
        if names is None:
            names = names_beside(index.paths[0])
        if names is None:
            raise UsageError(
                f"{data}: labels are numbers; name the classes with --classes FILE, `classes:` of a suite, or "
                "classnames.txt beside the shards"
            )
        if labels.max() >= len(names):
            raise UsageError(f"{data} has a label {labels.max()}, the file of classes has {len(names)} names")
    else:
        names = names or sorted(set(words))
        missing = set(words) - set(names)
        if missing:
            raise UsageError(f"{data}: the label {sorted(missing)[0]!r} is not in the file of classes")
        labels = np.array([names.index(word) for word in words], np.int64)
    return LabelledImages(
        names=index.keys_of(range(len(index))),
        labels=labels,
        classes=names,
        read=functools.partial(read_member, reader, index, "image"),
    )


def open_unlabelled(data: str) -> LabelledImages:
    """The images of shards, all with label 0 and without classes."""
    index = open_index(data)
    return LabelledImages(
        names=index.keys_of(range(len(index))),
        labels=np.zeros(len(index), np.int64),
        classes=[],
        read=functools.partial(read_member, open_reader(index), index, "image"),
    )


def names_beside(shard: str) -> list[str] | None:
    """The class names of CLIP_benchmark's webdatasets: classnames.txt is beside the shards or one folder up.

    A line is a label. A class may have an empty name (one of CLEVR's distances has), so only the end is cut.
    """
    path = _beside(shard, "classnames.txt")
    names = [line.strip() for line in read_text(path).rstrip("\r\n").split("\n")] if path else []
    return names if any(names) else None


def templates_beside(shard: str) -> list[str] | None:
    """The templates of CLIP_benchmark's webdatasets, beside the shards or one folder up."""
    path = _beside(shard, "zeroshot_classification_templates.txt")
    found = read_templates(str(path), None) if path else None
    return found if isinstance(found, list) else None


def _beside(shard: str, name: str) -> Path | None:
    folder = Path(os.path.abspath(shard)).parent
    return next((path for path in (folder / name, folder.parent / name) if path.exists()), None)
