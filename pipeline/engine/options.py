"""Options, declared once: a dataclass field says what it means, what is allowed, and how it is given.

    @dataclass(frozen=True, kw_only=True)
    class BalanceSettings:
        title: ClassVar[str] = "balance"
        cap: int = option(20_000, help="pairs that a query may pick", unit="pairs", within="[1, 1e12]")

The command line, the recipe file and the Python API read this one declaration. Only `validate` refuses a value. Its
message names the flag, the value and what is allowed: `--cap 0: must be a whole number of at least 1`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from pipeline.engine import display
from pipeline.engine.cli import MissingInput, UsageError

REQUIRED: Any = dataclasses.MISSING
LONGEST_SHOWN = 100  # characters of a refused value
NOUNS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list of texts",
}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One declared field. `option` explains the attributes."""

    name: str
    kind: type  # int, float, bool, str, or tuple (of texts)
    optional: bool  # None is allowed
    default: Any  # REQUIRED where there is none
    flags: tuple[str, ...]
    help: str
    unit: str
    default_text: str
    metavar: str | None
    within: str | None
    choices: tuple[str, ...] | None
    parse: Callable[[Any], Any] | None
    check: Callable[[Any], None] | None
    steers: bool
    repeats: bool
    published: Callable[[Any], Any] | None

    @property
    def shown(self) -> str:
        """The name in messages: the flag, or the field where there is no flag."""
        return self.flags[0] if self.flags else self.name


def option(
    default: Any,
    *,
    help: str,
    unit: str = "",
    default_text: str = "",
    flag: str | tuple[str, ...] | None = None,
    metavar: str | None = None,
    within: str | None = None,
    choices: Sequence[str] | None = None,
    parse: Callable[[Any], Any] | None = None,
    check: Callable[[Any], None] | None = None,
    steers: bool = False,
    repeats: bool = False,
    published: Callable[[Any], Any] | None = None,
) -> Any:
    """A dataclass field that declares an option. Its annotation is int, float, bool, str or tuple[str, ...].

    Args:
        default: the value unless one is given; REQUIRED: one must be given.
        help: the meaning, in one clause.
        unit: of the number, for the help.
        default_text: the default in the help, if the value itself does not explain it.
        flag: the flag, or all its spellings; None: "--" and the field's name; (): no flag.
        metavar: the name of the value in the help.
        within: the interval of a number as in mathematics, such as "[1, inf)", "(0, 1]", "[0, 2^64)".
        choices: the texts that are allowed.
        parse: makes the value from one text (a list also from a list of Python); raises UsageError.
        check: checks a value (each text of a list), against the file system too; raises UsageError or MissingInput.
            The message says what is allowed, such as "must be a folder". `validate` puts flag and value in front.
        repeats: the flag of a list takes several values and may be given again, although `parse` takes one text.
        published: makes what the manifest shows, such as name and digest of a file, where the value is a path.
        steers: the option only steers a run. It never enters a fingerprint, the dataset card or a recipe.
    """
    declaration = {
        "help": help,
        "unit": unit,
        "default_text": default_text,
        "flags": (flag,) if isinstance(flag, str) else flag,
        "metavar": metavar,
        "within": within,
        "choices": tuple(choices) if choices is not None else None,
        "parse": parse,
        "check": check,
        "steers": steers,
        "repeats": repeats,
        "published": published,
    }
    return dataclasses.field(default=default, metadata={"option": declaration})


def declared(kind: type) -> tuple[Option, ...]:
    """The options of a dataclass, in order.

    Raises:
        TypeError: a field is not declared with `option`.
    """
    key: Any = kind  # mypy takes a class as not hashable
    return _declared(key)


@functools.cache
def _declared(kind: Any) -> tuple[Option, ...]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if "option" not in field.metadata:
            owner = next(group for group in kind.__mro__ if field.name in vars(group).get("__annotations__", ()))
            raise TypeError(
                f"{owner.__name__}.{field.name} is not declared as an option: write = option(DEFAULT, help=...)"
            )
    return tuple(_option(field, hints[field.name]) for field in dataclasses.fields(kind))


def _option(field: dataclasses.Field[Any], hint: Any) -> Option:
    optional = isinstance(hint, types.UnionType)
    if optional:
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    declaration = dict(field.metadata["option"])
    if declaration["flags"] is None:
        declaration["flags"] = ("--" + field.name.replace("_", "-"),)
    kind = typing.get_origin(hint) or hint
    return Option(name=field.name, kind=kind, optional=optional, default=field.default, **declaration)


def deciding(options: Any) -> dict[str, Any]:
    """The options that decide the result, by name. Options that only steer a run are left out."""
    return {item.name: getattr(options, item.name) for item in declared(type(options)) if not item.steers}


# ---------------------------------------------------------------------------------------------------------- validation


def validate(options: T) -> T:
    """The options, parsed and checked: first each value, then each group as a whole.

    A group may have static methods for what concerns several fields: `fill_in(options)` returns the options with the
    defaults that depend on other fields in their place, and `check_together(options)` refuses.

    Raises:
        UsageError: a value is not allowed.
        MissingInput: a value names a file that is not there.
    """
    kind: Any = type(options)
    values = {item.name: checked(item, getattr(options, item.name)) for item in declared(kind)}
    options = dataclasses.replace(options, **values)  # type: ignore[type-var]
    for group in kind.__mro__:
        if "fill_in" in vars(group):
            options = group.fill_in(options)
    for group in reversed(kind.__mro__):
        if "check_together" in vars(group):
            group.check_together(options)
    return options


def checked(item: Option, value: Any) -> Any:
    """The value of one option, parsed and checked.

    Raises:
        UsageError, MissingInput: as `validate`.
    """
    if value is None and item.optional:
        return None
    if isinstance(value, list) and item.kind is tuple:
        value = tuple(value)
    if item.parse is not None and (isinstance(value, str) or _has_kind(value, tuple)):
        try:
            value = item.parse(value)
        except UsageError as error:
            raise refusal(item, value, error) from None
        if value is None and item.optional:
            return None
    if not _has_kind(value, item.kind):
        raise refusal(item, value, UsageError(rule(item)))
    if item.default is REQUIRED and item.kind is tuple and not value:
        raise UsageError(f"{item.shown}: must name at least one")
    for part in value if item.kind is tuple else (value,):
        try:
            _check(item, part)
        except (UsageError, MissingInput) as error:
            raise refusal(item, part, error) from None
    return value


def _check(item: Option, value: Any) -> None:
    """Range, choices, and the option's own check."""
    if isinstance(value, str) and "\0" in value:
        raise UsageError("must not contain a zero byte")
    if item.choices is not None and value not in item.choices:
        raise UsageError(rule(item) + nearest(value, item.choices))
    if item.within is not None and not within(value, item.within):
        raise UsageError(rule(item))
    if item.kind is float and not math.isfinite(value):
        raise UsageError(rule(item))
    if item.check is not None:
        item.check(value)


def refusal(item: Option, value: Any, error: UsageError | MissingInput) -> UsageError | MissingInput:
    """The error with flag and value in front of its message."""
    return type(error)(f"{item.shown} {show(value)}: {error}")


def _has_kind(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    return isinstance(value, kind)


def show(value: Any) -> str:
    """A value for a message: one line without control characters, cut if it is long; '' for an empty text."""
    if isinstance(value, (tuple, list)):
        value = " ".join(map(str, value))
    text = display.sanitize(value)
    text = text.removesuffix(".0") if isinstance(value, float) else text  # as the user most likely wrote it
    return (text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "...") or "''"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean this?` or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def rule(item: Option) -> str:
    """What is allowed: "must be a whole number of at least 1"."""
    if item.choices is not None:
        return f"must be {'of' if item.kind is tuple else 'one of'} {', '.join(item.choices)}"
    allowed = f" {words(item.within)}" if item.within else ""
    return f"must be {NOUNS[item.kind]}{allowed}"


def within(value: float, interval: str) -> bool:
    """True if the number is in the interval. NaN is in no interval."""
    (low, high), left, right = _ends(interval), interval[0], interval[-1]
    above = _number(low) <= value if left == "[" else _number(low) < value
    return above and (value <= _number(high) if right == "]" else value < _number(high))


def words(interval: str) -> str:
    """An interval in words: "[1, inf)" is "of at least 1", "(0, 1]" is "over 0 and at most 1"."""
    low, high = _ends(interval)
    bounds = [f"of at least {low}" if interval[0] == "[" else f"over {low}"]
    if high != "inf":
        bounds.append(f"at most {high}" if interval[-1] == "]" else f"below {high}")
    return " and ".join(bounds)


def _ends(interval: str) -> tuple[str, str]:
    low, high = interval[1:-1].split(",")
    return low.strip(), high.strip()


def _number(end: str) -> float:
    base, _, power = end.partition("^")
    return float(base) ** float(power) if power else float(end)
