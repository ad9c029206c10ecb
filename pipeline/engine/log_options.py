"""--log-file, --log-level and --quiet, declared once for all commands."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.engine import checks
from pipeline.engine.cli import UsageError
from pipeline.engine.log_file import LEVELS, logging_to
from pipeline.engine.options import option


def _check_log_file(path: str) -> None:
    checks.local(path, "file")
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.basename(path):
        raise UsageError("must be a file; it is a folder")
    if not os.path.isdir(folder):
        raise UsageError(f"must lie in a folder that exists; {folder} does not")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError("must be a file that can be written to")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """The options of the log."""

    log_file: str | None = option(
        None,
        help="file to whose end the log is added as JSON lines: time, level, logger, stage, message, fields",
        metavar="FILE",
        check=_check_log_file,
        steers=True,
    )
    log_level: str | None = option(
        None,
        default_text="info in the file, warning on the screen",
        help="least level of what is logged; without --log-file, debug shows what libraries say",
        choices=tuple(LEVELS),
        steers=True,
    )
    quiet: bool = option(False, help="show neither progress nor notes on stderr; errors stay", steers=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to a parser that is not made from declarations."""
    from pipeline.engine.command_line import add_options

    add_options(parser, LogSettings)


def settings_of(args: argparse.Namespace) -> LogSettings:
    """The validated settings of parsed arguments.

    Raises:
        UsageError: a value is not allowed.
    """
    from pipeline.engine.options import declared, validate

    given = {item.name: getattr(args, item.name) for item in declared(LogSettings)}
    return validate(LogSettings(**{name: value for name, value in given.items() if value is not None}))


def logging_for(
    settings: Any, program: str, argv: Sequence[str], *, output: str | None = None
) -> contextlib.AbstractContextManager[Callable[[int], int]]:
    """`log_file.logging_to` with the settings of a command.

    Raises:
        UsageError: the file lies in the folder of the output.
    """
    path = settings.log_file
    if path is not None and output is not None and "://" not in output:
        inside = os.path.join(os.path.realpath(output), "")
        if os.path.realpath(path).startswith(inside):
            raise UsageError(f"--log-file {path}: must not lie in the output folder {output}")
    level = settings.log_level or ("warning" if path is None else "info")
    return logging_to(path, level=level, quiet=settings.quiet, program=program, argv=argv)
