"""Errors that a user can act on. Each has an exit code. The command line prints the message and no traceback."""

from __future__ import annotations

DONE, CRASH, USAGE, BELOW, MISSING, INTERRUPTED = 0, 1, 2, 3, 4, 130


class TrainError(Exception):
    """A failure that is not a bug. The message names the file and the remedy."""

    exit_code = CRASH


class PeerLost(TrainError):
    """The connection to another process of the run broke: the reason is there, not here."""


class UsageError(TrainError):
    """An option has a value that is not allowed, or options exclude each other."""

    exit_code = USAGE


class BelowThreshold(TrainError):
    """The share of bad samples, or an accuracy, is beyond the bound that an option sets."""

    exit_code = BELOW


class InputMissing(TrainError):
    """An input file or folder is absent, empty or truncated."""

    exit_code = MISSING


class Interrupted(TrainError):
    """The process got SIGINT or SIGTERM. The state is saved."""

    exit_code = INTERRUPTED
