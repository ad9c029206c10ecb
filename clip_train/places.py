"""Paths that an option names: what must be there to be read, and where a command may write. Standard library alone.

Each check takes the label of the option ("--data") and its value. It raises InputMissing where something is absent and
UsageError where something else is wrong. No check opens a connection: a URL is taken as it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from clip_train.errors import InputMissing, UsageError
from clip_train.remote import is_url, public

MAX_SHARDS = 1_000_000  # that a brace pattern may name
MAX_SMALL_FILE = 1 << 20  # bytes of a recipe or of a run's config.json
SUITE_LOG, EVALUATION = "suite.jsonl", "evaluation"  # of a run (at_checkpoint.py)
# what a run writes into its folder (run_config.py, log.py, resume.py)
_RUN_NAMES = (
    "config.json", "log.jsonl", "checkpoints", "tensorboard", "wandb", "wandb-id", "zero_shot.jsonl",
    "vocabulary.txt.gz", ".lock", SUITE_LOG, EVALUATION,
)  # fmt: skip
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_CHECKPOINT = re.compile(r"step-(\d{8,})")


# --- what is read -----------------------------------------------------------------------------------------------------


def readable_file(said: str, value: str) -> None:
    """Refuses a path that is missing, a folder, or not readable."""
    path = _existing(said, value)
    if not path.is_file():
        raise UsageError(f"{said} {value}: this is a folder, a file is expected")


def folder(said: str, value: str) -> None:
    """Refuses a path that is missing, a file, or not readable."""
    if not _existing(said, value).is_dir():
        raise UsageError(f"{said} {value}: this is a file, a folder is expected")


def shards(said: str, value: str) -> None:
    """Refuses a folder without shards and a pattern whose shards are not all there."""
    if is_url(value):
        return
    path = Path(value)
    if not path.is_dir():
        _expand_for(said, value)
    elif not (path / "manifest.json").exists() and next(path.rglob("*.tar"), None) is None:
        raise InputMissing(f"{said} {value}: the folder holds neither manifest.json nor a .tar file")


def labelled_images(said: str, value: str) -> None:
    """Refuses a folder without class folders and without shards, and a pattern whose shards are not all there."""
    if is_url(value):
        return
    path = Path(value)
    if not path.is_dir():
        _expand_for(said, value)
    elif not any(entry.is_dir() or entry.suffix == ".tar" for entry in path.iterdir()):
        raise InputMissing(f"{said} {value}: the folder holds neither class folders nor .tar files")


def captions(said: str, value: str) -> None:
    """Refuses a missing source of captions: a text file, Parquet, WordNet's data.*, or shards."""
    if value.endswith((".txt", ".txt.gz", ".parquet")) or Path(value).stem == "data":
        readable_file(said, value)
    else:
        shards(said, value)


def weights(said: str, value: str) -> None:
    """Refuses a path that holds no weights."""
    path = _existing(said, value)
    if path.is_dir() and not _holds_weights(path):
        raise InputMissing(
            f"{said} {value}: the folder holds neither checkpoints nor a model of Hugging Face (config.json, "
            f"model.safetensors) or open_clip ({OPEN_CLIP_CONFIG}, {OPEN_CLIP_FILES[0]})"
        )


def _holds_weights(folder: Path) -> bool:
    if (folder / "checkpoint.json").exists() or all_steps(folder) or all_steps(folder / "checkpoints"):
        return True
    if (folder / OPEN_CLIP_CONFIG).exists() and any((folder / name).exists() for name in OPEN_CLIP_FILES):
        return True
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return (folder / "config.json").exists() and any((folder / name).exists() for name in weights)


def _existing(said: str, value: str) -> Path:
    refuse_url(said, value)
    path = Path(value)
    if not path.exists():
        raise InputMissing(f"{said} {value}: no such file or folder")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{said} {value}: this user may not read it")
    return path


def refuse_url(said: str, value: str) -> None:
    """UsageError for a URL, and for one whose second slash a path function has taken."""
    if is_url(value) or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", value):
        raise UsageError(f"{said} {public(value)}: this is a URL, a path on this machine is expected")


def _expand_for(said: str, value: str) -> None:
    try:
        expand(value)
    except (InputMissing, UsageError) as error:
        raise type(error)(f"{said} {error}") from None


def expand(pattern: str) -> list[str]:
    """`a-{0000..0012}.tar`, `{x,y}.tar`, a folder, or a file -> the tars, in order. Every one must exist."""
    if os.path.isdir(pattern):
        paths = sorted(str(path) for path in Path(pattern).rglob("*.tar"))
        if not paths:
            raise InputMissing(f"{pattern}: no .tar file in this folder")
        return paths
    paths = expand_braces(pattern)
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise InputMissing(f"{missing[0]}: no such file ({len(missing)} of {len(paths)} shards are missing)")
    return paths


def expand_braces(pattern: str) -> list[str]:
    """The names of a brace pattern. UsageError where it names none, or more than MAX_SHARDS."""
    found = list(islice(_braces(pattern), MAX_SHARDS + 1))
    if not found or len(found) > MAX_SHARDS:
        raise UsageError(f"{public(pattern)}: the pattern names {'more than a million' if found else 'no'} shards")
    return found


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", match[1])
    if span:
        width = len(span[1])
        choices: Iterator[str] = (f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1))
    else:
        choices = iter(match[1].split(","))
    for choice in choices:
        yield from _braces(pattern[: match.start()] + choice + pattern[match.end() :])


# --- what is written --------------------------------------------------------------------------------------------------


def run_folder(said: str, value: str) -> None:
    """Refuses a URL, a file, a folder that cannot be written, and a folder with other things in it."""
    writable_folder(said, value)
    folder = Path(value)
    strange = _first_foreign(folder) if folder.is_dir() else None
    if strange is not None:
        raise UsageError(
            f"{said} {value}: the folder holds other things ({strange!r}): name a new folder, an empty one, or a run's"
        )


def writable_folder(said: str, value: str) -> None:
    """Refuses a URL, a file, and a folder that cannot be written."""
    refuse_url(said, value)
    if Path(value).exists() and not Path(value).is_dir():
        raise UsageError(f"{said} {value} cannot be written: a file of this name exists")
    _writable(said, Path(value))


def new_file(said: str, value: str) -> None:
    """Refuses a URL, a folder, and a place that cannot be written."""
    refuse_url(said, value)
    path = Path(value)
    if path.is_dir():
        raise UsageError(f"{said} {value}: this is a folder, the name of a file is expected")
    if path.exists() and not path.is_file():  # its place would be taken by a file
        raise UsageError(f"{said} {value}: this is a device or a pipe, the name of a file is expected")
    _writable(said, path.parent)


def new_path(said: str, value: str) -> None:
    """Refuses a URL, and a place that cannot be written."""
    refuse_url(said, value)
    _writable(said, Path(value).parent)


def _writable(said: str, folder: Path) -> None:
    """UsageError where the folder can neither be written nor made."""
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UsageError(f"{said} {folder} cannot be written: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{said} {folder} cannot be written: this user may not write into {nearest}")


def all_steps(folder: Path) -> list[Path]:
    """The checkpoints of a run by name, newest first, verified or not."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _first_foreign(folder: Path) -> str | None:
    """An entry that no run has written; None where the folder is empty or a run's."""
    if (folder / "log.jsonl").is_file() or all_steps(folder / "checkpoints") or is_run_config(folder / "config.json"):
        return None
    names = sorted(entry.name for entry in folder.iterdir())
    strange = (name for name in names if name not in _RUN_NAMES and not name.endswith(".partial"))
    return next(strange, "config.json" if "config.json" in names else None)


def is_run_config(path: Path) -> bool:
    """True for the config.json of a run, False for another program's (a Hugging Face model has one too)."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.read(MAX_SMALL_FILE))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("options"), dict)
