"""The errors of the Python API, in one place.

    UsageError      the options cannot be carried out; nothing was written                     (exit code 2)
    MissingInput    a file that the options name does not exist, or holds nothing              (exit code 4)
    BelowThreshold  too few images were fetched (`min_success`), so nothing was published      (exit code 3)
    Busy            another run holds the output folder                                        (exit code 1)
    JobFailed       a job failed; run the same call again to continue                          (exit code 1)
    DamagedError    a file of the run is damaged or gone; the message names it                 (exit code 1)
    NotFound        a folder, shard, column or key does not exist                              (`open_set`)
    Ambiguous       several keys fit                                                           (`open_set`)
    Damaged         a file cannot be read, or differs from its manifest                        (`open_set`)

Each message says what happened, where, and what to do next.
"""

from __future__ import annotations

from pipeline.dataset.errors import Ambiguous, Damaged, NotFound
from pipeline.engine.cli import BelowThreshold, MissingInput, UsageError
from pipeline.engine.runners import JobFailed
from pipeline.engine.storage import DamagedError
from pipeline.engine.work import Busy

__all__ = [
    "Ambiguous",
    "BelowThreshold",
    "Busy",
    "Damaged",
    "DamagedError",
    "JobFailed",
    "MissingInput",
    "NotFound",
    "UsageError",
]
