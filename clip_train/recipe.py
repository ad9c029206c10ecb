"""Recipe files: the options of `train` as YAML, TOML or JSON. The command line wins over the file.

    model: ViT-B-32
    data: /data/cc12m-{00000..01242}.tar
    lr: 5e-4
    save_minutes: 10

A key is the name of a flag, with dashes or underscores. `null` means the default. Paths are relative to the working
directory, as on the command line. The config.json of a run is a recipe too: its part `options` is taken.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.fields import convert, kinds, nearest
from clip_train.places import MAX_SMALL_FILE

SUFFIXES = (".yaml", ".yml", ".toml", ".json")


def recipe_file(said: str, value: str) -> None:
    """Refuses a recipe that is not there, and a name whose form is not known."""
    path = Path(value)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{said} {value}: the name must end in one of {', '.join(SUFFIXES)}")
    if not path.exists():
        raise InputMissing(f"{said} {value}: no such file")
    if not path.is_file():
        raise UsageError(f"{said} {value}: this is a folder, a file is expected")


def read_recipe(path: str, owners: Sequence[type]) -> dict[str, Any]:
    """The values that a recipe gives, by the names of the fields of `owners`.

    Raises:
        InputMissing: there is no such file.
        UsageError: it cannot be parsed, or holds an unknown key or a value of the wrong type.
    """
    recipe_file("--config", path)
    found = parse_file(Path(path), said=f"--config {path}")
    if isinstance(found, dict) and isinstance(found.get("options"), dict):
        found = found["options"]
    if not isinstance(found, dict):
        raise UsageError(f"--config {path}: a table of options is expected, as in `lr: 5e-4`")
    known = {field.name: (field, kinds(owner)[field.name]) for owner in owners for field in dataclasses.fields(owner)}
    values: dict[str, Any] = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UsageError(f"--config {path}: the key {str(key)[:100]!r} is unknown{nearest(name, known)}")
        if name in values:
            raise UsageError(f"--config {path}: the key {name!r} is given twice")
        field, kind = known[name]
        values[name] = None if value is None else convert(field, kind, value, said=label(path, name))
    return {name: value for name, value in values.items() if value is not None}


def label(path: str, name: str) -> str:
    """How messages name a value of a recipe."""
    return f"--config {path}: {name}"


def parse_file(path: Path, *, said: str) -> Any:
    """What a YAML, TOML or JSON file holds. UsageError, with `said` before it, where it cannot be parsed."""
    with open(path, "rb") as file:
        data = file.read(MAX_SMALL_FILE + 1)
    if len(data) > MAX_SMALL_FILE:
        raise UsageError(f"{said}: the file is larger than {MAX_SMALL_FILE:,} bytes")
    try:
        text = data.decode("utf-8")
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_unique)
        return tomllib.loads(text) if path.suffix.lower() == ".toml" else _parse_yaml(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{said} cannot be parsed: {' '.join(str(error).split())[:300]}") from None


def _parse_yaml(text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise TrainError("a recipe in YAML needs PyYAML: pip install pyyaml, or write it as TOML or JSON") from None
    try:
        top = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_twice(top, set())
        return {} if top is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _refuse_twice(node: Any, seen: set[int]) -> None:
    """ValueError where a mapping at any depth of a YAML document has a key twice."""
    if not isinstance(getattr(node, "value", None), list) or id(node) in seen:
        return
    seen.add(id(node))
    pairs = [each for each in node.value if isinstance(each, tuple)]
    _unique([(str(key.value), None) for key, _ in pairs])
    for each in [value for _, value in pairs] or node.value:
        _refuse_twice(each, seen)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:100]!r} is given twice")
        found[key] = value
    return found


def write_recipe(values: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """A recipe as YAML, a line an option with its help; `read_recipe` gives the values back."""
    lines = [(f"{name}: {_scalar(value)}", comments[name]) for name, value in values.items()]
    width = min(40, max(len(line) for line, _ in lines))
    return "\n".join(f"{line:{width}s}  # {comment}" for line, comment in lines)


def _scalar(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")  # YAML 1.1 takes 1e-06 for a text
    return text
