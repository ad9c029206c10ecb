"""An exchange in two levels, where many producers meet many buckets.

A reader of a bucket reads a range of the file of each producer. With P producers and B buckets these are P * B reads:
369 million small ones for the keys of a crawl (90,000 units, 4,096 buckets). So the files of about sqrt(P) producers
are merged first, for about sqrt(B) neighbouring buckets at once. A producer's file is sorted by bucket, so each merge
reads one range of it. Then P * sqrt(B) + sqrt(P) * B reads are left: 7 million.

    P files of B buckets --Merge: unit (group of producers, range of buckets)--> files of about sqrt(B) buckets

A merged bucket has the messages of its producers one behind the other, in their order. So the rows of a bucket come in
the order of an exchange without a merge. Whether a step merges depends on what was written, not on workers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import Any

from pipeline.engine import shuffle_files, storage
from pipeline.engine.tasks import ExchangeTask, Reading
from pipeline.engine.work import StageFolder, StepFolder

MERGED = "merged-"  # begins the name of a step that merges
MOST_READS = 1_000_000  # of an exchange without a merge


def may_merge(producers: int, buckets: int) -> bool:
    """True if so many producers (at most) and buckets (at most) make more reads than an exchange should."""
    return producers * buckets > MOST_READS


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a merge is cut into units.

    Attributes:
        producers: how many files there are.
        buckets: of each.
    """

    producers: int
    buckets: int

    @property
    def together(self) -> int:
        """The producers of a unit."""
        return math.ceil(math.sqrt(self.producers))

    @property
    def width(self) -> int:
        """The buckets of a unit."""
        return math.ceil(math.sqrt(self.buckets))

    @property
    def groups(self) -> int:
        """The groups of producers."""
        return -(-self.producers // self.together)

    @property
    def ranges(self) -> int:
        """The ranges of buckets."""
        return -(-self.buckets // self.width)

    def units(self) -> int:
        """The units of the merge; 0: there are so few reads that none is needed."""
        return self.groups * self.ranges if may_merge(self.producers, self.buckets) else 0


@dataclasses.dataclass(frozen=True)
class Merge:
    """The task that merges what an exchange delivers. Its unit is group * ranges + range."""

    task: ExchangeTask

    @property
    def folder(self) -> StepFolder:
        after = self.task.folder
        stage = os.path.dirname(after.path)
        return StepFolder(os.path.join(stage, merged_name(self.task.reads)), after.fingerprint)

    @property
    def label(self) -> str:
        """Its name in Beam. Several tasks may read one exchange: the first of them has it merged for all."""
        stage, name = self.folder.path.split("/")[-2:]
        return f"{stage}/{name} for {os.path.basename(self.task.folder.path)}"

    def shape(self) -> Shape:
        """It is known when the producers and the steps before have ended."""
        return Shape(len(_sources(self.task.reads)), self.task.units())

    def units(self) -> int:
        return self.shape().units()

    def run(self, unit: int) -> dict[str, Any]:
        shape, reads = self.shape(), self.task.reads
        group, place = divmod(unit, shape.ranges)
        first = place * shape.width
        last = min(shape.buckets, first + shape.width)
        merged: list[list[bytes]] = [[] for _ in range(first, last)]
        for source, part in _sources(reads)[group * shape.together : (group + 1) * shape.together]:
            found = shuffle_files.read_range(reads.folder.file(source, reads.kind, part), first, last)
            for messages, message in zip(merged, found, strict=True):
                messages.append(message)
        joined = [b"".join(messages) or None for messages in merged]
        size = shuffle_files.write(self.folder.file(unit, reads.kind, 0), joined)
        return {"parts": 1, "bytes": size}

    def bucket(self, bucket: int) -> list[bytes]:
        """What `Reading.bucket` gives, from the merged files if there are any."""
        shape = self.shape()
        if not shape.units():
            return self.task.reads.bucket(bucket)
        place, inside = divmod(bucket, shape.width)
        units = (group * shape.ranges + place for group in range(shape.groups))
        return [shuffle_files.read(self.folder.file(unit, self.task.reads.kind, 0), inside) for unit in units]


def merged_name(reads: Reading) -> str:
    """The folder of merged files in the stage that reads them: merged-match-parts-keys."""
    stage, step = reads.folder.path.split("/")[-2:]
    return f"{MERGED}{stage}-{step}-{reads.kind}"


def steps_of(stage: StageFolder) -> list[StepFolder]:
    """The merges of a stage."""
    return [stage.step(name) for name in storage.names(stage.path) if name.startswith(MERGED)]


def _sources(reads: Reading) -> list[tuple[int, int]]:
    """(unit, part) of every bucket file."""
    return _sources_in(reads, storage.changed(reads.folder.path) or 0)


@functools.lru_cache(maxsize=4)
def _sources_in(reads: Reading, changed: int) -> list[tuple[int, int]]:
    del changed
    return [(unit, part) for unit, manifest in reads.folder.manifests() for part in range(manifest["parts"])]
