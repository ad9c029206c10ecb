"""A command line made from declared options: flags, help, a recipe file, and the flags of an engine."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from pipeline.engine import completion, recipe
from pipeline.engine.cli import Parser, UsageError, check_flags
from pipeline.engine.options import REQUIRED, Option, declared, refusal, rule, validate, words

T = TypeVar("T")
H = TypeVar("H")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandLine(Generic[T, H]):
    """A command line that is made from declarations.

    Attributes:
        program: as in `python -m pipeline.build`.
        script: the name of the console script.
        description: what stands above the flags in the help.
        version: what --version prints.
        options: the dataclass of all options; the field `beam` takes the flags that are not ours.
        groups: the dataclasses that `options` is composed of, in the order of the help. `title` names a group.
        how: a dataclass of flags that concern this command line alone; `config` names a recipe file.
        others: returns the flags that `beam` may hold; called only if a flag is not ours.
        beneath: takes the values of the flags, and returns values that recipe and flags win over; None: there are none.
    """

    program: str
    script: str
    description: str
    version: str
    options: type[T]
    groups: tuple[type, ...]
    how: type[H]
    others: Callable[[], Iterable[str]]
    beneath: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def parser(self) -> Parser:
        """The parser. It checks flags, not values, and sets no defaults."""
        parser = Parser(
            prog=self.program,
            description=self.description,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for group in (*self.groups, self.how):
            target = parser.add_argument_group(group.title) if group.title else parser  # type: ignore[attr-defined]
            add_options(target, group)
        parser.add_argument("--version", action="version", version=self.version, help="print the version and exit")
        completion.add_flag(parser, self.script)
        return parser

    def parse(self, argv: Sequence[str]) -> tuple[T, H]:
        """(options, how) of a command line, validated.

        Our own values are checked first, because `others` may import an engine.

        Raises:
            UsageError: the command line is not valid.
            MissingInput: a file that it names is missing.
        """
        parser = self.parser()
        try:
            known, rest = parser.parse_known_args(argv)
        except UsageError:
            check_flags(argv, parser, others=self.others)  # a misspelt flag explains the rest
            raise
        if rest and not rest[0].startswith("-"):
            raise UsageError(f"unexpected argument {rest[0]!r}")
        given = {item.name: from_text(item, vars(known)[item.name]) for item in self._declared() if item.name in known}
        how = validate(
            self.how(**{item.name: given.pop(item.name) for item in declared(self.how) if item.name in given})
        )
        below = dict(self.beneath(given)) if self.beneath else {}
        values = below | self._recipe(how, given) | given | ({"beam": tuple(rest)} if rest else {})
        missing = [item for item in declared(self.options) if item.default is REQUIRED and item.name not in values]
        if missing:
            check_flags(argv, parser, others=self.others)  # it may be given, but misspelt
            raise UsageError(f"{missing[0].shown} is missing: {missing[0].help} (see {self.program} --help)")
        options = validate(self.options(**values))
        check_flags([*argv, *values.get("beam", ())], parser, others=self.others)
        return options, how

    def _declared(self) -> list[Option]:
        return [*declared(self.options), *declared(self.how)]

    def _recipe(self, how: H, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the recipe file, without those that the command line gives."""
        path = getattr(how, "config", None)
        return recipe.read(path, self.options, without=given) if path is not None else {}


def add_options(target: Any, group: type) -> None:
    """Adds the flags of a group of declared options to a parser of argparse, or to a group of its arguments."""
    for item in filter(lambda item: item.flags, declared(group)):
        target.add_argument(*item.flags, **_argument(item))


def from_text(item: Option, given: Any) -> Any:
    """The value of a flag. `parse` takes texts, and lists come as lists.

    Raises:
        UsageError: the text is no number.
    """
    if item.parse or item.kind not in (int, float) or not isinstance(given, str):
        return tuple(given) if isinstance(given, list) else given
    try:
        return item.kind(given)
    except ValueError:
        raise refusal(item, given, UsageError(rule(item))) from None


def _argument(item: Option) -> dict[str, Any]:
    """The arguments of argparse's `add_argument` for an option."""
    arguments: dict[str, Any] = {"dest": item.name, "help": help_text(item).replace("%", "%%")}
    if item.kind is bool:
        return arguments | {"action": "store_const", "const": not item.default}
    if item.choices is not None and item.metavar is None:
        arguments["metavar"] = "{" + ",".join(item.choices) + "}"
    else:
        arguments["metavar"] = item.metavar or {int: "N", float: "X"}.get(item.kind)
    if item.kind is tuple and (item.parse is None or item.repeats):
        arguments |= {"nargs": "+", "action": "extend"}
    return arguments


def help_text(item: Option) -> str:
    """The meaning, then unit, range and default in brackets."""
    facts = [item.unit] if item.unit else []
    if item.within:
        facts.append(words(item.within).removeprefix("of "))
    if item.default is REQUIRED:
        facts.append("required")
    elif item.default_text or item.kind is not bool and item.default not in (None, ()):
        facts.append(f"default: {item.default_text or item.default}")
    return f"{item.help} ({'; '.join(facts)})" if facts else item.help
