"""What a run would take: rough figures from the size of the input, for `--plan`.

The rates were measured on one core of a 2026 server (docs/benchmarks); the shares are those of a raw web crawl: half of
the alt-texts contain a query, a tenth of the pairs stays after balancing, two thirds of the images are still there.
"""

from __future__ import annotations

import dataclasses

BYTES_PER_PAIR = {"wat": 780, "warc": 25_000, "table": 100}  # of compressed input
BYTES_PER_CORE_SECOND = {"wat": 60e6, "warc": 60e6, "table": 300e6}  # reading and cleaning
SELECT_SECONDS = 4.5e-6  # CPU a pair: match, dedup, balance
FETCH_SECONDS = 6e-3  # CPU an image: fetch, decode, encode
MATCHED, SELECTED, ALIVE = 0.5, 0.1, 0.65
MATCHED_BYTES = 310  # scratch a matched pair: its row and its key
IMAGE_BYTES = 26_000  # a stored image of 256 pixels; while it is published it lies there twice


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Rough figures; `core_hours` covers the asked stages."""

    pairs: int
    matched: int
    selected: int
    published: int
    core_hours: float
    scratch_bytes: int
    published_bytes: int


def estimate(sizes: dict[str, int], *, fetches: bool, target_pairs: int | None) -> Estimate:
    """Figures for inputs of so many bytes a format.

    Args:
        sizes: bytes of the input by format (wat, warc, table).
        fetches: images are fetched and published.
        target_pairs: the wanted number of selected pairs, if the user gave one.
    """
    pairs = round(sum(size / BYTES_PER_PAIR[kind] for kind, size in sizes.items()))
    matched = round(pairs * MATCHED)
    selected = min(matched, target_pairs or round(pairs * SELECTED))
    published = round(selected * ALIVE) if fetches else 0
    seconds = sum(size / BYTES_PER_CORE_SECOND[kind] for kind, size in sizes.items()) + pairs * SELECT_SECONDS
    seconds += selected * FETCH_SECONDS if fetches else 0.0
    images = published * IMAGE_BYTES
    return Estimate(pairs, matched, selected, published, seconds / 3600, matched * MATCHED_BYTES + images, images)
