"""Shell completion: `openwit-train --print-completion bash` prints a script, which shtab makes from the parser."""

from __future__ import annotations

import argparse
from typing import Any

from clip_train.errors import TrainError

FLAG = "--print-completion"
SHELLS = ("bash", "zsh", "fish")
PROGRAM = "openwit-train"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag to the parser of the program."""
    text = "print a completion script for bash, zsh or fish and exit"
    parser.add_argument(FLAG, action=_Print, choices=SHELLS, metavar="SHELL", default=argparse.SUPPRESS, help=text)


class _Print(argparse.Action):
    """Prints the script and exits, as --version does."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        del namespace, option_string
        try:
            import shtab
        except ImportError:
            raise TrainError(f"{FLAG} needs the package: pip install shtab") from None
        _prepare(parser, PROGRAM, shtab.FILE)
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _prepare(parser: argparse.ArgumentParser, program: str, files: Any) -> None:
    """Names the script, and says which values have choices and which are files."""
    parser.prog = program
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                _prepare(below, f"{program} {name}", files)
        elif isinstance(action.metavar, str) and action.metavar.startswith("{"):
            action.choices = action.metavar.strip("{}").split(",")
        elif action.choices is None and action.metavar == "PATH":
            action.complete = files  # type: ignore[attr-defined]
