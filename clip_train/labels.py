"""Labelled images for evaluation: one folder per class, or shards with `.cls` members; class names and templates.

Files of classes and templates have one of the common forms: the JSON of CLIP_benchmark ({"cifar10": ["airplane",
...]}), a JSON list as in open_clip's metadata, {class: [prompts]} with prompts per class, or a text file with one
entry per line. A template has "{}" or "{c}" in place of the class.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clip_train.data import open_reader, read_member
from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.shards import open_index

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
# a short ensemble for sets without templates (from the list of the paper, section 3.1.4)
DEFAULT_TEMPLATES = (
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
    "a origami {}.",
    "a {} in a video game.",
    "art of the {}.",
)  # fmt: skip


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
    """Opens a folder with one folder per class, or shards whose samples have a `.cls` member."""
    names = read_classes(classes, dataset) if classes else None
    folder = Path(data)
    if folder.is_dir() and not any(folder.rglob("*.tar")):
        return _open_folder(folder, names)
    return _open_shards(data, names)


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
    if names is not None and len(names) != len(groups):
        raise UsageError(f"{folder} has {len(groups)} class folders, the file of classes has {len(names)} names")
    return LabelledImages(
        names=[str(path.relative_to(folder)) for path in files],
        labels=np.array(labels, np.int64),
        classes=names or [group.name.replace("_", " ") for group in groups],
        read=lambda number: files[number].read_bytes(),
    )


def _open_shards(data: str, names: list[str] | None) -> LabelledImages:
    index = open_index(data)
    if not index.label_size.any():
        raise InputMissing(f"{data}: the samples have no .cls member, so there are no labels")
    reader = open_reader(index)
    words = [
        read_member(reader, index, "label", sample).decode("utf-8", "replace").strip() for sample in range(len(index))
    ]
    if all(word.isdecimal() for word in words):
        labels = np.array([int(word) for word in words], np.int64)
        if names is None:
            names = _names_beside(index.paths[0])
        if names is None:
            raise UsageError(f"{data}: labels are numbers; name the classes with --classes FILE")
        if labels.max() >= len(names):
            raise UsageError(f"{data} has a label {labels.max()}, the file of classes has {len(names)} names")
    else:
        names = names or sorted(set(words))
        missing = set(words) - set(names)
        if missing:
            raise UsageError(f"{data}: the label {sorted(missing)[0]!r} is not in the file of classes")
        labels = np.array([names.index(word) for word in words], np.int64)
    return LabelledImages(
        names=index.keys.to_pylist(),
        labels=labels,
        classes=names,
        read=functools.partial(read_member, reader, index, "image"),
    )


def _names_beside(shard: str) -> list[str] | None:
    """The class names of CLIP_benchmark's webdatasets: classnames.txt is beside the shards or one folder up."""
    folder = os.path.dirname(os.path.abspath(shard))
    for path in (Path(folder) / "classnames.txt", Path(folder).parent / "classnames.txt"):
        if path.exists():
            return _lines(path)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"{path} cannot be read as lines of UTF-8: {error}") from error


def read_classes(path: str, dataset: str | None) -> list[str]:
    """Class names in the order of the labels."""
    found = _read_file(path, dataset)
    if isinstance(found, dict):
        return list(found)
    return found


def read_templates(path: str, dataset: str | None) -> list[str] | dict[str, list[str]]:
    """Templates, or the prompts of each class by its name."""
    found = _read_file(path, dataset)
    empty = [name for name, prompts in found.items() if not prompts] if isinstance(found, dict) else []
    if not found or empty:
        raise UsageError(f"{path} holds no {'prompt for ' + repr(empty[0]) if empty else 'template'}")
    for template in found if isinstance(found, list) else []:
        if "{" not in template:
            raise UsageError(f"{path}: the template {template!r} has no place for the class ({{}} or {{c}})")
    return found


def _read_file(path: str, dataset: str | None) -> list[str] | dict[str, list[str]]:
    file = Path(path)
    if not file.exists():
        raise InputMissing(f"no such file: {path}")
    if file.suffix != ".json":
        return _lines(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainError(f"{path} is not JSON: {error}") from error
    if dataset is not None:
        if not isinstance(found, dict) or dataset not in found:
            known = ", ".join(sorted(found)) if isinstance(found, dict) else "none"
            raise UsageError(f"{path} has no entry {dataset!r} (it has: {known})")
        found = found[dataset]
    elif isinstance(found, dict) and len(found) == 1:
        found = next(iter(found.values()))
    if isinstance(found, list) and all(isinstance(entry, str) for entry in found):
        return found
    if isinstance(found, dict) and all(isinstance(entry, list) for entry in found.values()):
        return found
    raise UsageError(f"{path}: a list of strings is expected, or one under each name (choose with --dataset)")


def fill(template: str, name: str) -> str:
    """The prompt for a class."""
    return template.replace("{c}", name).replace("{}", name)
