"""Class names and prompt templates.

Files of classes and templates have one of the common forms: the JSON of CLIP_benchmark ({"cifar10": ["airplane",
...]}), a JSON list as in open_clip's metadata, {class: [prompts]} with prompts per class, or a text file with one
entry per line. A template has "{}" or "{c}" in place of the class.
"""

from __future__ import annotations

import json
from pathlib import Path

from clip_train.errors import InputMissing, TrainError, UsageError

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


def read_lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
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
        return read_lines(file)
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
