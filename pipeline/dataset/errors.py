"""What can be wrong with a folder that is read. Nothing is imported, so that a command line can name these at once."""

from __future__ import annotations


class NotFound(ValueError):
    """What was named is not there."""


class Ambiguous(NotFound):
    """The beginning of a key fits several samples."""


class Damaged(ValueError):
    """A file cannot be read, or is not what it should be."""
