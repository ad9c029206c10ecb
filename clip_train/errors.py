"""The errors that a person can act on. Each carries its exit code; the CLI prints the sentence and nothing else."""

from __future__ import annotations

DONE, CRASH, USAGE, BELOW, MISSING, INTERRUPTED = 0, 1, 2, 3, 4, 130


class TrainError(Exception):
    """Something went wrong that is no bug: the message names the file and the remedy."""

    exit_code = CRASH


class UsageError(TrainError):
    """The command line, or the combination of its options, makes no sense."""

    exit_code = USAGE


class BelowThreshold(TrainError):
    """A share of bad samples, or an accuracy, is on the wrong side of the bound that was asked for."""

    exit_code = BELOW


class InputMissing(TrainError):
    """A file or folder that was named is absent, empty or cut."""

    exit_code = MISSING


class Interrupted(TrainError):
    """SIGINT or SIGTERM arrived; the state is saved."""

    exit_code = INTERRUPTED
