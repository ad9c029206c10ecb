"""What the stages cost, measured: CPU seconds, bytes and requests, by job, row, query, image and host.

`python -m benchmarks.cost_model measure` measures the CPU seconds again. docs/benchmarks/plan.md has the runs behind
the figures. Reading, cleaning and matching are not among them: the sample of `--plan` measures these on the machine
and the inputs of the user. `speed` tells how fast this machine is, beside the one that was measured.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

MACHINE = "one core of an AMD EPYC (2 shared cores, Python 3.11, 2026-11-28)"
REFERENCE_SECONDS = 0.0077  # CPU seconds of `_yardstick` on MACHINE
SLOWEST, FASTEST = 4.0, 0.25  # bounds of `speed`


@dataclasses.dataclass(frozen=True)
class Costs:
    """CPU seconds on MACHINE, but for the last entries.

    Attributes:
        start: of a run with one worker: imports, the query list, Beam.
        workers: more, where several workers are forked.
        kernels: more, where the workers load the compiled code before they begin.
        job: each job after the first one.
        input: of an input, listed, checked and opened.
        unit: of a unit of gather and match, beside its inputs and rows.
        dedup_row: of a matched row in dedup.
        balance_row: of a row that dedup leaves, in balance: counts, thresholds, the choice.
        selected_row: of a row that balance keeps: bucketed, sorted, written.
        query: of a query in balance, and again in publish.
        image: fetched over the network: received, hashed, decoded, encoded (0.6 megapixels on average).
        archived_image: taken out of an archive, without decoding and encoding, which the sample measures.
        host: of the web: its robots.txt, its addresses, its connections.
        published_row: of a fetched image in dedup-images and publish.
        seconds_on_wire: that a download takes, assumed; threads of a worker wait for it at once.
        threads: downloads of a worker at once.
        tries: requests for an image, with redirects and further tries, assumed.
        host_requests: for a host: robots.txt, tdmrep.json.
        alive: the share of images that the web still has, and its bounds, assumed: 62 % of CC12M in 2025, 80 % of
            fresh crawls.
        image_bytes: of a stored JPEG with 256 pixels at the short side, in quality 90.
        grows: power of the image's bytes with its side.
        fetched_bytes: of an image as served.
        pauses: seconds between the rounds of the fetch, once something failed that may pass.
    """

    start: float = 3.2
    workers: float = 2.3
    kernels: float = 0.7
    job: float = 0.8
    input: float = 0.0004
    unit: float = 0.0036
    dedup_row: float = 0.35e-6
    balance_row: float = 0.9e-6
    selected_row: float = 2.3e-6
    query: float = 0.3e-6
    image: float = 4.8e-3
    archived_image: float = 0.1e-3
    host: float = 3e-3
    published_row: float = 0.15e-3
    seconds_on_wire: float = 1.0
    threads: int = 32
    tries: float = 1.15
    host_requests: float = 2.0
    alive: tuple[float, float, float] = (0.5, 0.7, 0.9)
    image_bytes: int = 26_000
    grows: float = 1.7
    fetched_bytes: int = 120_000
    pauses: float = 40.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes on the disk.

    Attributes:
        list_query: of a query in the compiled list.
        list_shown: of a query in the list for users.
        caps_query: of a query in the thresholds of balance, and again in those of publish.
        matched_row: of a matched row beside its part and key: masks, counts.
        selected_share: of a selected row in its bucket file, by the bytes of a matched row.
        parquet_share: of a selected row in Parquet, by the bytes of a matched row.
        fetched_row: of a fetched row in the parts of fetch and dedup-images.
        tar_row: of a sample in a tar, beside its image: text, JSON, headers.
        metadata_row: of a row in the published Parquet tables.
        report: of the report, the card and the manifest.
    """

    list_query: int = 88
    list_shown: int = 11
    caps_query: int = 49
    matched_row: int = 12
    selected_share: float = 1.0
    parquet_share: float = 0.5
    fetched_row: int = 1_500
    tar_row: int = 3_600
    metadata_row: int = 450
    report: int = 250_000


COSTS, SIZES = Costs(), Sizes()


def speed() -> float:
    """CPU seconds on this machine for one on MACHINE, from a piece of work of a few hundredths of a second."""
    taken = min(_yardstick() for _ in range(5))
    return min(SLOWEST, max(FASTEST, taken / REFERENCE_SECONDS))


def _yardstick() -> float:
    """CPU seconds of a sort as dedup does it, without compiled code, so that nothing must be loaded."""
    words = np.random.default_rng(0).integers(0, 2**63, (2, 60_000))
    start = time.process_time()
    order = np.lexsort((words[0], words[1] % 60_000))
    np.flatnonzero(np.diff(words[0][order]))
    return time.process_time() - start
