"""Shell completion of the console scripts: --print-completion SHELL writes a script for the shell.

    openwit-build --print-completion bash > ~/.local/share/bash-completion/completions/openwit-build

The script is made by shtab from the parser. It is static, so that the shell starts no Python when somebody presses Tab.
"""

from __future__ import annotations

import argparse
from typing import Any

SHELLS = ("bash", "zsh", "fish")
FLAG = "--print-completion"
FOLDERS = ("OUT", "DIR", "FOLDER", "DIR|FILE")  # metavars of values that are folders, or files
FILES = ("FILE", "PATH", "WHAT", "TABLE", "LIST", "PICTURE", "LANG=FILE")


def add_flag(parser: argparse.ArgumentParser, program: str) -> None:
    """Adds the flag to the parser of a console script."""
    parser.add_argument(
        FLAG,
        action=_Print,
        choices=SHELLS,
        metavar="SHELL",
        const=program,
        default=argparse.SUPPRESS,
        help="print a completion script for bash, zsh or fish and exit",
    )


class _Print(argparse.Action):
    """Prints the script and exits, as --version does. `const` is the name of the console script."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        del namespace, option_string
        print(script(parser, str(self.const), values))
        parser.exit()


def script(parser: argparse.ArgumentParser, program: str, shell: str) -> str:
    """The script for a shell. The parser must not be used after it.

    Args:
        parser: of the whole command.
        program: the name of the console script.
        shell: one of SHELLS.
    """
    import shtab

    _prepare(parser, program, shtab.FILE)
    return shtab.complete(parser, shell=shell)


def _prepare(parser: argparse.ArgumentParser, program: str, files: Any) -> None:
    """Names the script, and says which values have choices and which are files."""
    parser.prog = program
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                _prepare(below, f"{program} {name}", files)
        elif isinstance(action.metavar, str) and action.metavar.startswith("{"):
            action.choices = action.metavar.strip("{}").split(",")
        elif action.choices is None and action.metavar in (*FOLDERS, *FILES):
            action.complete = files  # type: ignore[attr-defined]
