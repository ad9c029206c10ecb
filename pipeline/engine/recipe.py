"""Recipe files: the options of a run as YAML, TOML or JSON, read and written.

A recipe is flat. A key is a field's name (`-` may stand for `_`). A value has the field's own type. YAML is read as
YAML 1.2: `no` and `12:30` are texts, and only true and false are truth values.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pipeline.engine import checks
from pipeline.engine.cli import MissingInput, UsageError
from pipeline.engine.options import Option, checked, deciding, declared, nearest, show

LARGEST = 1 << 20  # bytes of a recipe file
DEEPEST = 2  # a mapping of lists

# YAML 1.2, core schema: https://yaml.org/spec/1.2.2/#103-core-schema
_SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


def read(path: str, kind: type, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The values of a recipe file, by field, checked.

    Args:
        path: of a .yaml, .yml, .toml or .json file of at most LARGEST bytes.
        kind: the dataclass whose fields it may hold.
        without: fields that are given elsewhere. Their values are not checked.

    Raises:
        MissingInput: there is no such file, or it cannot be read.
        UsageError: it is no recipe, or holds an unknown key or a value that is not allowed.
    """
    known = {item.name: item for item in declared(kind)}
    values: dict[str, Any] = {}
    for key, value in _parsed(path).items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UsageError(f"{path}: unknown key {show(key)}{nearest(name, known)}")
        if name in values:
            raise UsageError(f"{path}: {name} is given twice")
        values[name] = value
    return {name: _checked(known[name], value, path) for name, value in values.items() if name not in without}


def write(options: Any, *, comment: str, public: Mapping[str, Callable[[str], str]] | None = None) -> str:
    """The recipe of options as YAML: all options that decide the result, none that only steers a run.

    Args:
        comment: lines that stand above it.
        public: for a field, a function that replaces each of its texts, so that no password is written.
    """
    import yaml

    shown = public or {}
    values = {
        name: [shown.get(name, str)(part) for part in value] if isinstance(value, tuple) else value
        for name, value in deciding(options).items()
    }

    class Dumper(yaml.SafeDumper):
        """Quotes every text that YAML 1.1 or 1.2 would read as another type."""

    _resolve_scalars(Dumper)
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    # Non-ASCII characters are escaped. PyYAML would lose some of them, and others could move a reader's cursor.
    return head + yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=False, width=10_000)


def _checked(item: Option, value: Any, path: str) -> Any:
    try:
        return checked(item, value)
    except (UsageError, MissingInput) as error:
        raise type(error)(f"{error} ({item.name} in {path})") from None


def _parsed(path: str) -> dict[str, Any]:
    """The mapping that the file holds."""
    suffix = os.path.splitext(path)[1].lower()
    parsers: dict[str, Callable[[str], Any]] = {".yaml": _yaml, ".yml": _yaml, ".toml": tomllib.loads, ".json": _json}
    parser = parsers.get(suffix)
    if parser is None:
        raise UsageError(f"the recipe {path} must be named *.yaml, *.yml, *.toml or *.json")
    text = _text(path)
    try:
        found = parser(text)
    except (ValueError, RecursionError) as error:  # all three parsers raise subclasses of ValueError
        raise UsageError(f"the recipe {path} cannot be read as {suffix[1:]}: {_one_line(error)}") from None
    if not isinstance(found, dict):
        raise UsageError(f"the recipe {path} must hold options by name, such as `cap: 20000`")
    return found


def _text(path: str) -> str:
    from pipeline.engine import storage

    try:
        checks.readable_file(path)
        data = storage.read_range(path, 0, LARGEST + 1)
    except (UsageError, MissingInput) as error:
        raise type(error)(f"--config {show(path)}: {error}") from None
    except OSError as error:
        raise MissingInput(f"--config {show(path)}: cannot be read ({error.strerror})") from None
    if len(data) > LARGEST:
        raise UsageError(f"--config {show(path)}: must be a file of at most {LARGEST} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"--config {show(path)}: must be UTF-8") from None


def _one_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return show(" ".join(str(error).split()))


def _json(text: str) -> Any:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError("a key is given twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=distinct)


def _yaml(text: str) -> Any:
    """One YAML document of plain values, without aliases."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Scalars of YAML 1.2. A repeated key is an error."""

        yaml_implicit_resolvers: dict[str, Any] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            if len(set(names)) < len(names):
                raise ValueError("a key is given twice")
            return super().construct_mapping(node, deep)

    _resolve_scalars(Loader)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=Loader):
            depth += isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
            depth -= isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent))
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it must not use aliases")
            if depth > DEEPEST:
                raise ValueError("it is nested too deeply")
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _resolve_scalars(kind: Any) -> None:
    """Gives a loader or a dumper the scalars of YAML 1.2."""
    for tag, (form, first) in _SCALARS.items():
        kind.add_implicit_resolver(tag, re.compile(f"^(?:{form})$"), first)
