"""The attempts of the fetch. The first attempt fetches all rows. Each later attempt fetches the rows that had failed.

An attempt has a first pass and some rounds. Each round asks again for the rows that failed in a way that may pass.

`fetch` writes the attempts. `dedup-images` reads the newest outcome of each row. `publish` reads the images.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing, storage
from pipeline.engine.work import StageFolder, StepFolder
from pipeline.fetching.errors import NOT_TRIED
from pipeline.schema import FETCHED, RETRY_AT
from pipeline.stages.row_pass import ROW_HASH

FETCHED_PART = pa.schema([*FETCHED, RETRY_AT, ROW_HASH])
ROUND_PAUSES_S = (2.0, 8.0, 30.0)  # seconds between the end of the pass before and the round
PASSES = 1 + len(ROUND_PAUSES_S)  # of an attempt
ROWS_PER_BUCKET = 2_500  # selected rows a bucket of hosts, about
MAX_BUCKETS = 4096


@dataclasses.dataclass(frozen=True)
class Attempts:
    """The attempts of one fetch.

    Attributes:
        folder: of the stage fetch.
        selected: the folder of the stage balance, whose rows are fetched.
    """

    folder: StageFolder
    selected: StageFolder

    @property
    def hosts(self) -> int:
        """The number of buckets of hosts. It is known when balance is done."""
        return min(MAX_BUCKETS, max(1, self.selected.done()["rows_out"] // ROWS_PER_BUCKET))

    def images(self, number: int) -> StepFolder:
        """The folder of a pass: 0 the first pass of the first attempt, 1.. its rounds, PASSES.. the next attempt."""
        return self.folder.step(f"images-{number:03d}", more=str(number))

    def count(self) -> int:
        """The number of attempts so far. An attempt that is under way counts."""
        return (storage.read_json(os.path.join(self.folder.path, "attempts.json")) or {}).get("retries", 0) + 1

    def passes(self) -> int:
        """The number of passes of all attempts."""
        return PASSES * self.count()

    def ask_for_another(self) -> None:
        """Adds one attempt to the stage. The number is on disk, so an interrupted run keeps it."""
        storage.write_json(os.path.join(self.folder.path, "attempts.json"), {"retries": self.count()})
        storage.remove(os.path.join(self.folder.path, "COMPLETED"))

    def rows(self, unit: int) -> Iterator[tuple[int, int, pa.Table]]:
        """(pass, part, rows) of a unit: the newest outcome of each row."""
        return fetched_rows(self, unit, before=self.passes())


def fetched_rows(attempts: Attempts, unit: int, *, before: int) -> Iterator[tuple[int, int, pa.Table]]:
    """(pass, part, rows) of a unit: the newest outcome of each row. Only passes below `before` are read.

    A later pass for which nothing was sent is no outcome: the row keeps the one before.
    """
    seen: np.ndarray = np.zeros(0, "S16")
    for number in range(before - 1, -1, -1):
        folder = attempts.images(number)
        manifest = folder.manifest(unit)
        found = []
        for part in range(manifest["parts"] if manifest else 0):
            table = pa.Table.from_batches(storage.read_batches(folder.file(unit, "arrow", part)), FETCHED_PART)
            if number:
                table = table.filter(pc.invert(pc.starts_with(table["error"].fill_null(""), NOT_TRIED)))
            words = np.stack(hashing.uid_words(table["uid"]), axis=1).astype(">u8").view("V16").ravel()
            keep = ~np.isin(words, seen) if len(seen) else np.ones(len(words), np.bool_)
            found.append(words)
            yield number, part, table.filter(pa.array(keep))
        if found:
            seen = np.concatenate([seen.astype("V16"), *found]) if len(seen) else np.concatenate(found)
