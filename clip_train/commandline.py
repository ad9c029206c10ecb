"""The parser, built from the options that the commands declare (commands.py)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from clip_train import __version__, completion
from clip_train.commands import COMMANDS, GROUPS, Call, Command, prepare
from clip_train.config import PRESETS, TrainOptions
from clip_train.errors import UsageError
from clip_train.fields import Field, convert, flag_of, is_required, kinds, nearest

EXIT_CODES = "exit codes: 0 done, 1 crash, 2 usage, 3 below a threshold, 4 input missing, 130 interrupted"


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError, names the nearest flag, and does not guess abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("argument_default", argparse.SUPPRESS)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """What argparse itself finds wrong."""
        raise UsageError(f"{message}; see {self.prog} --help")


def make_parser() -> Parser:
    """All commands and their options."""
    models = "\n".join(f"  {name:14s}{preset.note}" for name, preset in PRESETS.items())
    parser = Parser(
        prog="clip_train",
        description="Train CLIP from image-text shards, and use what was trained.",
        epilog=f"models:\n{models}\n\n{EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"openwit {__version__}")
    completion.add_flag(parser)
    # what has the commands of each group, by the name of the group; "" for the others
    lists = {"": parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)}
    for command in COMMANDS.values():
        group, _, name = command.name.rpartition(" ")
        if group not in lists:
            added = lists[""].add_parser(group, help=GROUPS[group], description=GROUPS[group])
            lists[group] = added.add_subparsers(required=True, metavar="ACTION", parser_class=Parser)
        added = lists[group].add_parser(name, help=command.help, description=command.help, epilog=command.epilog)
        added.set_defaults(command=command)
        for part in command.parts:
            _add_part(added, part)
    return parser


def _add_part(parser: Parser, part: type) -> None:
    """The flags of one class of options. Classes of train beside TrainOptions and PrintOptions stand in a group."""
    title = (part.__doc__ or "").splitlines()[0]
    target = parser if title.endswith(".") else parser.add_argument_group(title)
    for field in dataclasses.fields(part):
        _add_field(target, field, kinds(part)[field.name], negatable=part is TrainOptions)


def _add_field(target: Any, field: Field, kind: type, *, negatable: bool) -> None:
    names = [field.name] if field.metadata["positional"] else [flag_of(field.name)]
    names += [field.metadata["also"]] if "also" in field.metadata else []
    text = help_of(field, kind).replace("%", "%%")
    if kind is bool:
        action = argparse.BooleanOptionalAction if negatable else "store_true"
        target.add_argument(*names, action=action, help=text)
        return
    choices = field.metadata.get("choices")
    metavar = f"{{{','.join(choices)}}}" if choices else field.metadata["metavar"] if kind in (str, tuple) else None
    if field.metadata["positional"]:
        metavar = field.name.upper()
    many = {"nargs": "+"} if kind is tuple else {}
    target.add_argument(*names, help=text, metavar=metavar or kind.__name__.upper(), **many)


def help_of(field: Field, kind: type) -> str:
    """The help of a field, with its range and its default."""
    parts = [field.metadata["within"]] if "within" in field.metadata else []
    if kind is bool and field.default is not None:
        parts.append(f"default {'on' if field.default else 'off'}")
    elif is_required(field):
        parts.append("required")
    elif field.default is not None:
        words = field.default if isinstance(field.default, tuple) else (str(field.default),)
        parts.append(f"default {' '.join(words)}")
    return field.metadata["help"] + (f" ({'; '.join(parts)})" if parts else "")


def parse(argv: Sequence[str] | None) -> Call:
    """The command with its checked options. UsageError and InputMissing name the flag, the value, and what is allowed.

    `--help` prints and raises SystemExit, as argparse does.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    if given[:1] == [completion.FLAG]:
        parser.parse_args(given)  # prints, and exits
    words = _join_negative_numbers(given)
    _refuse_unknown_words(parser, words)  # before argparse misses, say, the --output behind a misspelt flag
    found = vars(parser.parse_args(words))
    command: Command = found.pop("command")
    values: dict[str, Any] = {}
    for part in command.parts:
        for field in dataclasses.fields(part):
            if field.name in found:
                kind = kinds(part)[field.name]
                values[field.name] = convert(field, kind, found[field.name], said=flag_of(field.name))
    return prepare(Call(command, values, given))


def _join_negative_numbers(words: list[str]) -> list[str]:
    """`--lr -1e-3` -> `--lr=-1e-3`: argparse takes all but the plainest negative numbers for flags."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and _is_negative_number(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _is_negative_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return word.startswith("-")


def _refuse_unknown_words(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """UsageError for the first flag or command that is not known, with the nearest that is."""
    for word in words:
        if word == "--":
            return
        nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if nested and not word.startswith("-"):
            if word not in nested[0].choices:
                raise UsageError(f"unknown command {word!r}{nearest(word, nested[0].choices)}")
            parser = nested[0].choices[word]
        elif word.startswith("--"):
            flags = [flag for action in parser._actions for flag in action.option_strings]
            flag = word.split("=")[0]
            if flag not in flags:
                hint = nearest(flag, flags).split(" (allowed")[0].removeprefix("; ")
                raise UsageError(f"unknown argument {flag}; {hint or f'see {parser.prog} --help'}")
