"""The cap of each language in a set of several languages.

MetaCLIP 2 (Chuang et al. 2025, "MetaCLIP 2: A Worldwide Scaling Recipe", section 3.3): one threshold t for all
languages would flatten the large ones and leave the small ones as they are. So the share of the matches that belong to
tail queries (those with fewer than t matches) is computed for English. The t of each other language is the one that
gives the same share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.stages.matches import Counts, Mask
from pipeline.text.matchers import ListOfLanguage

REFERENCE = "en"


def caps_of_lists(
    counts: Counts, lists: Sequence[ListOfLanguage], cap: int, *, stop: Mask | None = None
) -> dict[str, int]:
    """The cap of each list, by its language.

    Args:
        counts: matches of each query.
        lists: the ids of each language.
        cap: of the English queries; without an English list, of the language with the most matches.
        stop: queries that pick nothing. They are no part of any share.
    """
    counted = counts if stop is None else np.where(stop, 0, counts)
    mine = {item.language: counted[item.first : item.last] for item in lists}
    largest = max(mine, key=lambda code: (mine[code].sum(), code))
    reference = mine.get(REFERENCE, mine[largest])
    if cap >= reference.max(initial=0):  # no query of the reference is cut, so none of another language is
        share = 1.0
    else:
        share = float(reference[reference < cap].sum() / max(1, reference.sum()))
    chosen = REFERENCE if REFERENCE in mine else largest
    return {code: cap if code == chosen else _cap_at(some, share) for code, some in mine.items()}


def caps_of_queries(caps: dict[str, int], lists: Sequence[ListOfLanguage]) -> Counts:
    """The cap of each query."""
    return np.concatenate([np.full(item.last - item.first, caps[item.language], np.int64) for item in lists])


def _cap_at(counts: Counts, share: float) -> int:
    """The smallest number of matches of a query at which the queries up to it have the share; 1 without a match."""
    matched = np.sort(counts[counts > 0])
    if not len(matched):
        return 1
    reached = np.cumsum(matched) / matched.sum()
    return int(matched[min(int(np.searchsorted(reached, share)), len(matched) - 1)])
