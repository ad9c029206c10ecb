"""`language.Choice` in compiled code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit
from pipeline.text.fasttext_file import EVIDENCE, PER_LABEL


class Pages(NamedTuple):
    """What the pages of the rows say; empty if no page is known.

    Attributes:
        label: of the page of each row; -1: not known.
        score: what this label gains.
    """

    label: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]


class Rule(NamedTuple):
    """The numbers of `Choice`.

    Attributes:
        scores: for each share in thousandths.
        place: of each label among the wanted ones; -1: it is not wanted.
        margin: by which another language must be likelier.
    """

    scores: npt.NDArray[np.float64]
    place: npt.NDArray[np.int8]
    margin: float


@njit
def _choose(evidence, pages, rule, chosen):
    offsets, entries = evidence
    for row in range(len(chosen)):
        best, other, choice = 0.0, 0.0, np.int8(0)
        page_label, page_score = np.int64(-1), 0.0
        if len(pages.label) and pages.label[row] >= 0:
            page_label, page_score = pages.label[row], pages.score[row]
            place = rule.place[page_label]
            if place < 0:
                other = page_score
            elif page_score > best:
                best, choice = page_score, place
        for at in range(offsets[row], offsets[row + 1]):
            label = np.int64(entries[at]) // PER_LABEL
            score = rule.scores[np.int64(entries[at]) % PER_LABEL]
            if label == page_label:
                score += page_score
            place = rule.place[label]
            if place < 0:
                other = max(other, score)
            elif score > best or (score == best and place < choice):
                best, choice = score, place
        chosen[row] = np.int8(-1) if other - best > rule.margin else choice


def choose(evidence: pa.ListArray, pages: Pages, rule: Rule) -> npt.NDArray[np.int8]:
    """The place of the chosen language of each row; -1: another language is likelier by more than the margin."""
    offsets, entries = frozen(np.asarray(evidence.offsets), np.int32), frozen(np.asarray(evidence.values), np.int32)
    chosen = np.empty(len(evidence), np.int8)
    _choose((offsets, entries), pages, rule, chosen)
    return chosen


def warm() -> None:
    """Compiles the kernel."""
    pages = Pages(np.zeros(1, np.int64), np.zeros(1))
    choose(pa.array([[1]], EVIDENCE), pages, Rule(np.zeros(PER_LABEL), np.zeros(1, np.int8), 1.0))
