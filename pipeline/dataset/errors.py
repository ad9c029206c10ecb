"""The errors of a reader of a published folder. The file imports nothing, so a command line can import it quickly."""

from __future__ import annotations


class NotFound(ValueError):
    """The folder, shard, column or key does not exist."""


class Ambiguous(NotFound):
    """The beginning of a key fits several samples."""


class Damaged(ValueError):
    """A file cannot be read, or is not what it should be."""
