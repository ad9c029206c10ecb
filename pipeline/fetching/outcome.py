"""The outcome of one row of the fetch, and the columns that hold it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.fetching.errors import OK, Failure
from pipeline.fetching.picture import Picture
from pipeline.fetching.verdict import REFUSED, Verdict

FIELDS = (*(field for field in schema.FETCHED if field.name not in schema.SELECTED.names), schema.RETRY_AT)
ROW = pa.field("row", pa.int32(), nullable=False)
OUTCOMES = pa.schema([ROW, *FIELDS])
PICTURE = (
    *("width", "height", "original_width", "original_height", "original_format"),
    *("phash", "colours", "shades", "grain"),
)

LONGEST_PAUSE_S = 365 * 24 * 3600.0  # of a Retry-After: a longer one counts as this


@dataclasses.dataclass(slots=True)
class Outcome:
    """The outcome of one row. `place` is where its image lies among the kept ones."""

    status: str = OK
    error: str | None = None
    retryable: bool = False
    http_status: int | None = None
    retry_at: int | None = None
    final_url: str | None = None
    image_sha256: bytes | None = None
    picture: Picture | None = None  # without its bytes once they are stored
    place: int | None = None
    image_bytes: int | None = None
    stored_sha256: bytes | None = None  # of the encoded image
    stored_xxh3: int | None = None
    rights: str | None = None  # a word of `verdict`; None: the fetch failed for another reason
    rights_protocol: str | None = None
    rights_consulted: str | None = None  # of a fetched or a refused image

    def fail(self, failure: Failure, verdict: Verdict | None = None) -> None:
        """Notes the failure. `verdict` holds the protocols that were consulted before a refusal."""
        self.status, self.error, self.retryable = failure.status, str(failure), failure.retryable
        self.rights, self.rights_protocol = (REFUSED if failure.protocol else None), failure.protocol
        self.http_status = failure.http_status if failure.http_status is not None else self.http_status
        self.final_url = failure.final_url or self.final_url
        self.rights_consulted = None
        if failure.protocol and verdict is not None:
            verdict.consult(*failure.consulted, failure.protocol)
            self.rights_consulted = verdict.consulted
        if failure.retryable and failure.retry_after is not None:
            self.retry_at = math.ceil(time.time() + min(failure.retry_after, LONGEST_PAUSE_S))

    def settle(self, verdict: Verdict) -> None:
        """Notes what a fetched image may be used for."""
        self.rights, self.rights_protocol = verdict.word, verdict.protocol
        self.rights_consulted = verdict.consulted or None


def columns(outcomes: Iterable[Outcome], offsets: Iterable[int | None]) -> list[pa.Array]:
    """One array for each of FIELDS. `offsets` are those of the images."""
    outcomes = list(outcomes)

    def values(name: str) -> list[Any]:
        if name == "image_offset":
            return list(offsets)
        if name in PICTURE:
            return [getattr(o.picture, name) if o.picture is not None else None for o in outcomes]
        return [getattr(o, name) for o in outcomes]

    return [pa.array(values(field.name), field.type) for field in FIELDS]


def batch_of(outcomes: dict[int, Outcome]) -> pa.RecordBatch:
    """Outcomes by row, as a batch with the schema OUTCOMES."""
    arrays = columns(outcomes.values(), [outcome.place for outcome in outcomes.values()])
    return pa.RecordBatch.from_arrays([pa.array(outcomes, ROW.type), *arrays], schema=OUTCOMES)


def outcomes_of(batch: pa.RecordBatch) -> Iterator[tuple[int, Outcome]]:
    """(row, outcome) of a batch that `batch_of` made."""
    for item in batch.to_pylist():
        row, place = item.pop("row"), item.pop("image_offset")
        facts = {name: item.pop(name) for name in PICTURE}
        picture = None if facts["width"] is None else Picture(b"", **facts)
        yield row, Outcome(**item, picture=picture, place=place)
