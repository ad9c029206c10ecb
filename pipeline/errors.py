"""The errors of the Python API, in one place.

    UsageError      the options cannot be carried out as they stand; nothing was written       (exit code 2)
    MissingInput    what the options name is not there, or holds nothing                       (exit code 4)
    Busy            another run holds the output folder                                        (exit code 1)
    JobFailed       a job failed; run the same call again to continue                          (exit code 1)
    NotFound        a folder, shard, column or key is not there; Ambiguous: several keys fit   (`open_set`)
    Damaged         a file cannot be read, or is not what its manifest says                    (`open_set`)

The messages are sentences for people: what happened, where, and what to do next.
"""

from __future__ import annotations

from pipeline.dataset.errors import Ambiguous, Damaged, NotFound
from pipeline.engine.cli import MissingInput, UsageError
from pipeline.engine.runners import JobFailed
from pipeline.engine.work import Busy

__all__ = ["Ambiguous", "Busy", "Damaged", "JobFailed", "MissingInput", "NotFound", "UsageError"]
