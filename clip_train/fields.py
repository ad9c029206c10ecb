"""An option is declared once, as a dataclass field: flag, help, default, range, choices, and a check of the files.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        lr: float | None = option(None, "peak learning rate", within="(0, inf)")
        data: str = option("", "folder of shards", files=places.shards)

The command line (commandline.py), recipe files (recipe.py) and Python callers go through the same checks. The name of a
field with dashes is its flag. An empty string as default marks an option that must be given.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from clip_train.errors import UsageError

Field = dataclasses.Field[Any]
Check = Callable[[str, str], None]  # the option's label and its value


def option(
    default: object,
    text: str,
    *,
    within: str | None = None,
    choices: Iterable[str] | None = None,
    metavar: str = "PATH",
    value: Check | None = None,
    files: Check | None = None,
    replaces: str | None = None,
    positional: bool = False,
    also: str | None = None,
) -> Any:
    """A field of an options class.

    Args:
        default: its type is the field's; "" and () mark an option that must be given.
        text: the help, with the unit.
        within: the interval of a number, as in mathematics: "[0, 1)".
        choices: the words that are allowed.
        value: a further check of the value that looks at no file.
        files: a check of the file system.
        replaces: another field that this one makes void where the command line gives this one and a recipe the other.
        positional: an argument without a flag.
        also: another spelling of the flag.
    """
    metadata = {
        "help": text, "within": within, "choices": tuple(choices) if choices else None, "metavar": metavar,
        "value": value, "files": files, "replaces": replaces, "positional": positional, "also": also,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata={k: v for k, v in metadata.items() if v is not None})


def flag_of(name: str) -> str:
    """The flag of a field: --batch-size for batch_size."""
    return f"--{name.replace('_', '-')}"


def kinds(owner: type) -> dict[str, type]:
    """int, float, bool, str, or tuple (of str), by the name of the field; None as a value does not count."""
    found = {}
    for name, hint in typing.get_type_hints(owner).items():
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = next(part for part in parts if part is not types.NoneType)
        found[name] = typing.get_origin(kind) or kind
    return found


def is_required(field: Field) -> bool:
    """True for a field without a usable default."""
    return field.default in ("", ())


def convert(field: Field, kind: type, value: Any, *, said: str) -> Any:
    """A value of a command line, a recipe or a caller as the field's type. UsageError names what is allowed."""
    if kind is tuple:
        values = (value,) if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not all(isinstance(part, str) for part in values):
            raise UsageError(f"{said} {value!r}: a list of words is expected")
        return tuple(values)
    if kind is bool or kind is str:
        if not isinstance(value, kind):
            raise UsageError(f"{said} {value!r}: {'true or false' if kind is bool else 'a text'} is expected")
        return value
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        return kind(value)
    except (ValueError, TypeError, OverflowError):
        raise UsageError(
            f"{said} {value!r}: a {'whole number' if kind is int else 'number'} in {field.metadata['within']} "
            "is expected"
        ) from None


def within(value: float, interval: str) -> bool:
    """Is the number in an interval that is written as in mathematics: "[0, 1)", "(0, inf)"? Not a number: never."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


def check_values(options: Any, labels: Mapping[str, str] | None = None) -> None:
    """Refuses a value of the wrong type, out of its range, or none of its choices. Looks at no file.

    Args:
        labels: how messages name a field that the command line did not give; the flag unless given.
    """
    found = kinds(type(options))
    for field in dataclasses.fields(options):
        value, said = getattr(options, field.name), (labels or {}).get(field.name, flag_of(field.name))
        if value is None:
            continue
        value = convert(field, found[field.name], value, said=said)
        for part in value if isinstance(value, tuple) else (value,):
            _check_value(field.metadata, part, said)


def _check_value(metadata: Mapping[str, Any], value: Any, said: str) -> None:
    if "within" in metadata and not within(value, metadata["within"]):
        shown = f"{value:.12g}" if isinstance(value, float) else value
        raise UsageError(f"{said} {shown} must be in {metadata['within']}")
    if "choices" in metadata and value not in metadata["choices"]:
        raise UsageError(f"{said} {value!r} is unknown{nearest(value, metadata['choices'])}")
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"{said} {value!r}: a zero byte is not allowed")
    if "value" in metadata and value:
        metadata["value"](said, value)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known: the nearest one, and all that are allowed."""
    words = list(known)
    close = difflib.get_close_matches(word.lower(), {each.lower(): each for each in words}, n=1, cutoff=0.4)
    hint = f"; did you mean {next(each for each in words if each.lower() == close[0])}?" if close else ""
    return f"{hint} (allowed: {', '.join(words)})"


def check_files(options: Any, labels: Mapping[str, str] | None = None, *, without: Collection[str] = ()) -> None:
    """Refuses an option that is not given but required, and what the file system shows to be wrong.

    Args:
        without: fields whose paths are not looked at.
    """
    for field in dataclasses.fields(options):
        if is_required(field) and not getattr(options, field.name) and not field.metadata["positional"]:
            raise UsageError(f"{flag_of(field.name)} is missing: {field.metadata['help']}")
    for field in dataclasses.fields(options):
        value, said = getattr(options, field.name), (labels or {}).get(field.name, flag_of(field.name))
        if "files" in field.metadata and value and field.name not in without:
            for part in value if isinstance(value, tuple) else (value,):
                field.metadata["files"](said, part)
