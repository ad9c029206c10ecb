"""What the command lines share: exit codes, errors, and flags that do not exist."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

DONE, CRASHED, USAGE, BELOW, MISSING, INTERRUPTED = 0, 1, 2, 3, 4, 130

FLAG = re.compile(r"-[^\d.]")  # not the minus of a number, nor a lone dash


class UsageError(ValueError):
    """The command line cannot be carried out as it stands (exit code 2)."""


class MissingInput(ValueError):
    """What the command line names is not there, or holds nothing (exit code 4)."""


class Parser(argparse.ArgumentParser):
    """argparse that leaves the exit code to us."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def check_flags(
    argv: Sequence[str], *parsers: argparse.ArgumentParser, others: Callable[[], Iterable[str]] = tuple
) -> None:
    """Refuses a flag that no parser has, with the nearest that there is.

    Args:
        argv: the command line.
        parsers: whose flags there are.
        others: more flags, as Beam's, which would be dropped silently if misspelt; asked for where they matter.

    Raises:
        UsageError: a flag is none of them.
    """
    known = [flag for parser in parsers for action in parser._actions for flag in action.option_strings]
    words = list(argv)[: list(argv).index("--") if "--" in argv else None]
    flags = [word.split("=")[0] for word in words if FLAG.match(word)]
    unknown = [name for name in flags if name not in known]
    if unknown:
        known += others()
    for name in unknown:
        if name not in known:
            raise UsageError(f"unknown flag {name}{suggestion(name, known)}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """`: did you mean this?` or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""


def fail(program: str, message: object, code: int) -> int:
    """Says what went wrong; returns the exit code."""
    print(f"{program}: {message}", file=sys.stderr)
    return code
