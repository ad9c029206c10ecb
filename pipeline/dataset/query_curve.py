"""The head and the tail of the queries: how many pairs hold the query of each rank, before and after the balancing.

thin(counts, names) -> [[rank, count, query], ...]     about POINTS of them, even on a logarithmic scale
draw({"before": ..., "after": ...}, cap) -> Drawing     lines, points and ticks for the report
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

POINTS = 60
WIDTH, HEIGHT = 640, 360  # of the drawing
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 14, 44  # margins

Points = list[list[Any]]  # [rank, count, query] each


def thin(counts: npt.NDArray[np.int64], names: Sequence[str]) -> Points:
    """The counts by rank, the largest first. Queries that no pair holds are left out.

    Args:
        counts: by the id of the query.
        names: of the queries, by id. It may be shorter.
    """
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    if not len(order):
        return []
    ranks = np.unique(np.rint(np.geomspace(1, len(order), POINTS)).astype(np.int64))
    ids = order[ranks - 1].tolist()
    queries = [names[number] if number < len(names) else f"query {number}" for number in ids]
    return [list(point) for point in zip(ranks.tolist(), counts[ids].tolist(), queries, strict=True)]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What the template draws, in the units of WIDTH and HEIGHT.

    Attributes:
        lines: (name, points of a polyline, [(x, y, rank, count, query), ...]) of each curve.
        across, up: (place, label) of the ticks of the two axes.
        cap: (y, label) of the line of the cap; None: it lies outside.
    """

    lines: list[tuple[str, str, list[tuple[float, float, int, int, str]]]]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    cap: tuple[float, str] | None


def draw(curves: Mapping[str, Points], cap: int | None) -> Drawing | None:
    """The curves on logarithmic axes; None where there is nothing to see: fewer than three queries."""
    curves = {name: points for name, points in curves.items() if points}
    last = max((points[-1][0] for points in curves.values()), default=0)
    most = max((points[0][1] for points in curves.values()), default=0)
    if last < 3:
        return None
    most = max(most, 10)

    def x(rank: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * math.log(rank) / math.log(last), 1)

    def y(count: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(count) / math.log(most), 1)

    lines = []
    for name, points in curves.items():
        placed = [(x(rank), y(count), rank, count, query) for rank, count, query in points]
        lines.append((name, " ".join(f"{at},{up}" for at, up, *_ in placed), placed))
    across = [(x(10**power), _label(power)) for power in range(int(math.log10(last)) + 1)]
    up = [(y(10**power), _label(power)) for power in range(int(math.log10(most)) + 1)]
    return Drawing(lines, across, up, (y(cap), f"cap {cap:,}") if cap and 1 <= cap <= most else None)


def _label(power: int) -> str:
    return f"{10 ** (power % 3)}{('', 'k', 'M', 'G')[min(3, power // 3)]}" if power < 12 else f"1e{power}"
