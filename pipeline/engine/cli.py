"""What the command lines share: exit codes, errors, and the check for unknown flags."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from pipeline.engine import log_file, variables

DONE, CRASHED, USAGE, BELOW, MISSING, INTERRUPTED = 0, 1, 2, 3, 4, 130

CONTINUE = "Run the same command again to continue."

FLAG = re.compile(r"-[^\d.]")  # neither a negative number nor a lone dash


class UsageError(ValueError):
    """The command line is not valid (exit code 2)."""


class MissingInput(ValueError):
    """An input that the command line names is missing or empty (exit code 4)."""


class BelowThreshold(RuntimeError):
    """The result is below a threshold of the options, so the command stops (exit code 3)."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError and does not exit. It checks the environment variables, too."""

    def parse_known_args(self, *args: Any, **given: Any) -> Any:
        found = super().parse_known_args(*args, **given)
        check_variables()
        return found

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def check_variables() -> None:
    """Refuses a value that an environment variable of this package must not have.

    Raises:
        UsageError: its message names the variable, its value and what is allowed.
    """
    try:
        variables.check()
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_flags(
    argv: Sequence[str], *parsers: argparse.ArgumentParser, others: Callable[[], Iterable[str]] = tuple
) -> None:
    """Refuses a flag that no parser has. The message names the nearest flag.

    Args:
        argv: the command line.
        parsers: their flags are known.
        others: returns more known flags, such as Beam's: Beam ignores a misspelt flag. Called if a flag is unknown.

    Raises:
        UsageError: a flag is unknown.
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
    """Prints the message on stderr and logs it; returns the exit code."""
    print(f"{program}: {message}", file=sys.stderr)
    log_file.note(str(message), level=logging.ERROR, exit_code=code)
    return code


def _disk_of(path: str) -> tuple[str, str]:
    """(the folder by which a user knows the disk of a path, the environment variable that names it; "": none)"""
    folder = variables.scratch_folder()
    if path.startswith(os.path.join(os.path.abspath(folder), "")):
        return folder, variables.SCRATCH
    if path == tempfile.gettempdir():
        return path, "TMPDIR"
    return os.path.dirname(path), ""


def with_next_step(error: Exception) -> str:
    """A failure that the same command may survive, and what to do about it."""
    text = str(error)
    if full := re.search(r"(?:No space left on device|Disk quota exceeded)(?:: '(/[^']*)')?", text):
        place, variable = _disk_of(full[1]) if full[1] else ("", "")
        text = f"the disk {place and f'of {place} '}is full ({text}): free some space"
        text += f", or name another folder by {variable}" if variable else ""
    return text if "the same command" in text else f"{text.rstrip('.')}. {CONTINUE}"
