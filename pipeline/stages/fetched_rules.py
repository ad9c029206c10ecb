"""Which fetched rows dedup-images takes at all: the shape of the image, and the expression of --keep."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import hashing
from pipeline.stages.contamination import FOUND, Contamination, first_of_each
from pipeline.stages.evaluation_embeddings import Evaluated
from pipeline.stages.keep_rule import KeepRule
from pipeline.stages.scores import OWN, load_scores
from pipeline.stages.tally import Tally

# The reasons in the order in which they are asked. The first one that holds counts.
REASONS = ("", "too_small", "aspect", "no_score", "score", "contaminated")
SHAPES, CONTAMINATED = (1, 2), 5
DROPPED = pa.schema([pa.field("uid", pa.binary(16), False), pa.field("reason", pa.uint8(), False)])

Codes = npt.NDArray[np.uint8]  # an index into REASONS for each row


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The shapes of images that are kept.

    Attributes:
        min_side: the least short side, in pixels of the image as served.
        max_aspect: the most that the long side may be, in short sides.
    """

    min_side: int
    max_aspect: float

    def codes(self, width: np.ndarray, height: np.ndarray) -> Codes:
        """A code for each image as served."""
        short, long = np.minimum(width, height).astype(np.float64), np.maximum(width, height)
        codes = np.where(long > self.max_aspect * short, 2, 0)
        return np.where(short < self.min_side, 1, codes).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a fetched row must meet.

    Attributes:
        shapes: of the image.
        keep: must be true for the row; None: no such rule.
        scores: path of the scores that `keep` may name (`scores.Scores.write`); None: there are none.
        contamination: the evaluation images that must not be shown; None: there are none.
        evaluated: the embeddings of evaluation images that must not be shown; None: there are none.
    """

    shapes: Shapes
    keep: KeepRule | None = None
    scores: str | None = None
    contamination: Contamination | None = None
    evaluated: Evaluated | None = None

    def apply(self, rows: pa.Table) -> tuple[Codes, pa.Table]:
        """A code for each row of FETCHED, and `contamination.FOUND` of the rows that show an evaluation image.

        Rows that `keep` drops are looked at, too: a table of scores may come from a set without the contaminated pairs.
        """
        codes = self._codes(rows)
        if self.contamination is None and self.evaluated is None:
            return codes, FOUND.empty_table()
        left = rows.take(pa.array(np.flatnonzero(~np.isin(codes, SHAPES))))
        finders = [finder for finder in (self.contamination, self.evaluated) if finder is not None]
        found = first_of_each(pa.concat_tables([finder.find(left) for finder in finders]))
        shows = pc.is_in(rows["uid"], value_set=hashing.as_array(found["uid"])).to_numpy()
        codes[shows & (codes == 0)] = CONTAMINATED
        return codes, found

    def _codes(self, rows: pa.Table) -> Codes:
        codes = self.shapes.codes(*(rows[name].to_numpy() for name in ("original_width", "original_height")))
        if self.keep is not None and rows.num_rows:
            columns = {name: hashing.as_array(rows[name]) for name in OWN}
            if self.scores is not None:
                found = load_scores(self.scores).of(rows["uid"])
                columns |= dict(zip(found.column_names, map(hashing.as_array, found.columns), strict=True))
            kept = self.keep.keeps(columns, rows.num_rows)
            unknown, false = kept.is_null().to_numpy(zero_copy_only=False), pc.invert(kept).fill_null(False)
            codes = np.where(codes > 0, codes, np.where(unknown, 3, 4 * false.to_numpy(zero_copy_only=False)))
        return codes.astype(np.uint8)


def drop_by_rules(rows: pa.Table, codes: Codes, tally: Tally) -> tuple[pa.Table, pa.Table]:
    """The rows of FETCHED with code 0, and the others as DROPPED. The others are counted."""
    for code in np.unique(codes[codes > 0]).tolist():
        some = rows.filter(pa.array(codes == code))
        columns = (hashing.as_array(some[name]) for name in ("url", "text", "uid"))
        tally.ledger.rows_in += some.num_rows
        tally.drop(REASONS[code], *columns)
    bad = rows["uid"].filter(pa.array(codes > 0))
    dropped = pa.Table.from_arrays([bad, pa.array(codes[codes > 0])], schema=DROPPED)
    return rows.filter(pa.array(codes == 0)) if codes.any() else rows, dropped
