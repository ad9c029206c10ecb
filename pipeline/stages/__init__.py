"""The stages in order. Each has one file. The other files here are used by stages alone."""

from __future__ import annotations

from pipeline.stages.balance import Balance
from pipeline.stages.base import Stage
from pipeline.stages.dedup import Dedup
from pipeline.stages.dedup_images import DedupImages
from pipeline.stages.fetch import Fetch
from pipeline.stages.gather import Gather
from pipeline.stages.match import Match
from pipeline.stages.publish import Publish

STAGES: tuple[type[Stage], ...] = (Gather, Match, Dedup, Balance, Fetch, DedupImages, Publish)
