"""The sets of a suite on disk: which are there, and their images, class names and templates.

The first of the places of a set that is there is taken, and its folder `test` if it has one. Two forms are read: a
folder for each class, and the shards of CLIP_benchmark as they are (`test/*.tar`, `classnames.txt` and
`zeroshot_classification_templates.txt` beside them or one folder up; `.cls` members have labels, `.npy` members one
number for each class or the groups of an image, `.txt` members the captions, a line each).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.labels import (
    IMAGE_SUFFIXES,
    LabelledImages,
    is_class_folder,
    names_beside,
    open_named,
    open_unlabelled,
    rename,
    templates_beside,
)
from clip_train.places import expand
from clip_train.prompts import DEFAULT_TEMPLATES
from clip_train.shards import IMAGE_MEMBERS
from clip_train.suite import MULTI_LABEL, SuiteSet, Templates, shipped_prompts
from clip_train.tar_scan import scan_tar

ARRAY_MEMBER = "npy"
MAX_ARRAY_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class OpenSet:
    """A set that is there. `images` is None for retrieval, which opens `data` itself."""

    entry: SuiteSet
    data: str
    images: LabelledImages | None = None
    train: LabelledImages | None = None  # of a probe
    train_data: str = ""
    templates: Templates = ()
    arrays: np.ndarray | None = None  # (N, D), the .npy members


def find(entry: SuiteSet, root: str) -> Path | None:
    """The first place of the set below `root` that is there."""
    return next((path for path in (Path(root) / place for place in entry.data) if _is_there(path)), None)


def _is_there(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    try:
        return path.suffix == ".tar" and bool(expand(str(path)))
    except (InputMissing, UsageError):
        return False


def open_set(entry: SuiteSet, place: Path) -> OpenSet:
    """Opens a set.

    Raises:
        InputMissing: there are no images, labels or captions.
        UsageError: names and labels do not fit together, or the metric needs what the samples do not have.
    """
    data = part(place, entry.split)
    if entry.kind == "retrieval":
        if is_class_folder(data):
            raise InputMissing(f"{data}: shards with captions are expected, there is no .tar file")
        return OpenSet(entry, data)
    templates = _templates_of(entry, data)
    if entry.metric in MULTI_LABEL:
        return _open_multi_label(entry, data, templates)
    images = _open_images(entry, data)
    if entry.metric == "roc-auc" and len(images.classes) != 2:
        raise UsageError(f"metric: roc-auc needs two classes, {data} has {len(images.classes)}")
    if isinstance(templates, dict):
        lacking = [name for name in images.classes if name not in templates]
        if lacking:
            raise UsageError(f"templates: no prompts for the class {lacking[0]!r}")
    if entry.kind == "probe":
        if not (place / entry.train).is_dir():
            raise InputMissing(f"train: no folder {entry.train!r} in {place}")
        train_data = str(place / entry.train)
        return OpenSet(entry, data, images, _open_images(entry, train_data), train_data)
    arrays = _read_arrays(data, images) if entry.metric.startswith("worst-group") else None
    if arrays is not None and entry.group >= arrays.shape[1]:
        raise UsageError(f"group: {entry.group}, the .npy members of {data} have {arrays.shape[1]} numbers")
    if arrays is not None and (arrays[:, entry.group] == entry.ignore_group).all():
        raise UsageError(f"ignore_group: {entry.ignore_group}: no image of {data} is in another group")
    return OpenSet(entry, data, images, templates=templates, arrays=arrays)


def part(place: Path, name: str) -> str:
    """The folder of a split, or the place itself where it has none."""
    return str(place / name if (place / name).is_dir() else place)


def _open_images(entry: SuiteSet, data: str) -> LabelledImages:
    if isinstance(entry.classes, dict):
        return rename(open_named(data, None), entry.classes)
    if entry.classes is not None:
        return open_named(data, entry.classes)
    names = None if is_class_folder(data) else names_beside(expand(data)[0])
    if names is None and entry.prompts:
        names = shipped_prompts()[entry.prompts]["classes"]
    return open_named(data, names)


def _templates_of(entry: SuiteSet, data: str) -> Templates:
    if entry.templates is not None:
        return entry.templates
    beside = None if is_class_folder(data) else templates_beside(expand(data)[0])
    return tuple(beside or (shipped_prompts()[entry.prompts]["templates"] if entry.prompts else DEFAULT_TEMPLATES))


def _open_multi_label(entry: SuiteSet, data: str, templates: Templates) -> OpenSet:
    if is_class_folder(data):
        raise InputMissing(f"{data}: metric {entry.metric} needs shards with .npy members, there is no .tar file")
    names = entry.classes or names_beside(expand(data)[0])
    if names is None and entry.prompts:
        names = tuple(shipped_prompts()[entry.prompts]["classes"])
    if names is None or isinstance(names, dict):
        raise UsageError("classes: a list is needed, in the order of the numbers in the .npy members")
    images = dataclasses.replace(open_unlabelled(data), classes=list(names))
    arrays = _read_arrays(data, images)
    if arrays.shape[1] != len(names):
        raise UsageError(f"classes: {len(names)} names, the .npy members of {data} have {arrays.shape[1]} numbers")
    return OpenSet(entry, data, images, templates=templates, arrays=arrays)


def _read_arrays(data: str, images: LabelledImages) -> np.ndarray:
    """(N, D) of the .npy members, in the order of the images. A number counts as one of length 1."""
    if is_class_folder(data):
        raise InputMissing(f"{data}: the metric needs shards with .npy members, there is no .tar file")
    keys, rows = [], []
    for key, row in _arrays(expand(data)):
        keys.append(key)
        rows.append(row)
    if keys != list(images.names):
        raise TrainError(f"{data}: the index is of other samples than the shards")
    if len({row.shape for row in rows}) != 1:
        raise UsageError(f"{data}: .npy members of {len({row.shape for row in rows})} shapes")
    return np.stack(rows)


def _arrays(paths: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    for path in paths:
        with open(path, "rb") as file:
            for key, members in scan_tar(path)[0].items():
                if not any(kind in members for kind in IMAGE_MEMBERS):
                    continue
                offset, size = members.get(ARRAY_MEMBER, (0, 0))
                if not 0 < size <= MAX_ARRAY_BYTES:
                    raise InputMissing(f"{path}: {key[:100]!r} has no .npy member of at most {MAX_ARRAY_BYTES} bytes")
                try:
                    array = np.load(io.BytesIO(os.pread(file.fileno(), size, offset)), allow_pickle=False)
                    yield key, np.asarray(array, np.float64).reshape(-1)
                except (ValueError, TypeError, EOFError) as error:
                    raise TrainError(f"{path}: the .npy member of {key[:100]!r} cannot be read: {error}") from error


def digest_of_files(place: Path) -> str:
    """A name for what is there: paths, sizes and times of change of images, shards and texts beside them."""
    digest = hashlib.sha256()
    wanted = {*IMAGE_SUFFIXES, ".tar", ".txt", ".parquet"}
    files = [place] if place.is_file() else sorted(_files(place)) if place.is_dir() else map(Path, expand(str(place)))
    for path in files:
        if path.suffix.lower() in wanted:
            facts = path.stat()
            digest.update(f"{path.relative_to(place.parent)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, without those of folders whose name begins with a dot."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in names)
