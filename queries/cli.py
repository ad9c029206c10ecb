"""What both command lines share: exit codes, errors, and flags that do not exist."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline.work import UsageError

DONE, CRASHED, USAGE, BELOW, MISSING, INTERRUPTED = 0, 1, 2, 3, 4, 130


class MissingInput(ValueError):
    """What the command line names is not there, or holds nothing (exit code 4)."""


class Parser(argparse.ArgumentParser):
    """argparse that leaves the exit code to us."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def check_flags(argv: Sequence[str], parser: argparse.ArgumentParser, *, beam: bool = False) -> None:
    """Refuses a flag that is not the parser's, nor, where `beam` says so, one of Beam's (it would drop it silently)."""
    own = [flag for action in parser._actions for flag in action.option_strings]
    for word in argv:
        name = word.split("=")[0]
        if not name.startswith("--") or name in own:
            continue
        near = difflib.get_close_matches(name, own, n=1)
        if not near and beam:
            from pipeline import runners

            if name in runners.beam_flags():
                continue
        raise UsageError(f"unknown flag {name}{f': did you mean {near[0]}?' if near else ''}")


def fail(program: str, message: str, code: int) -> int:
    """Says what went wrong; returns the exit code."""
    print(f"{program}: {message}", file=sys.stderr)
    return code
