"""The images inside of archives, in the sample behind `--plan`: some are decoded as the fetch decodes them."""

from __future__ import annotations

import dataclasses
import resource
import time

import numpy as np
import pyarrow as pa

from pipeline.fetching.errors import Failure
from pipeline.fetching.helper import Decoder
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.picture import NeedsMemory
from pipeline.sources.base import Reader

MOST, MOST_OF_PIECE, MOST_SECONDS = 200, 60, 3.0
CHILD_SECONDS = 0.11  # CPU that the start of the decoding process takes


@dataclasses.dataclass
class Pictures:
    """What became of the images.

    Attributes:
        options: of the downloader.
        min_side, max_aspect: the shapes that dedup-images keeps.
        decoded: images that can be stored.
        failed: images that cannot.
        shaped: of the decoded ones, those with a good shape.
        jpeg_bytes: of the stored images.
        cpu_seconds: of reading, decoding and encoding.
    """

    options: FetchOptions
    min_side: int
    max_aspect: float
    decoded: int = 0
    failed: int = 0
    shaped: int = 0
    jpeg_bytes: int = 0
    cpu_seconds: float = 0.0
    _seconds: float = 0.0

    @property
    def are_wanted(self) -> bool:
        """More of them say more."""
        return self.decoded + self.failed < MOST and self._seconds < MOST_SECONDS

    def look(self, reader: Reader, path: str, offsets: pa.Array) -> None:
        """Takes images out of an archive and decodes them.

        Args:
            reader: of the archive.
            path: of the archive.
            offsets: of the images.
        """
        start, cpu, decoder = time.monotonic(), _cpu(), Decoder(self.options)
        some = np.random.default_rng(0).permutation(len(offsets))[:MOST_OF_PIECE]
        try:
            for offset in offsets.take(pa.array(some)).to_pylist():
                if not self.are_wanted:
                    break
                body = reader.read_image(path, offset, max_bytes=self.options.max_bytes)
                if body is not None:
                    self._decode(decoder, body)
        finally:
            decoder.close()
            self._seconds += time.monotonic() - start
            self.cpu_seconds += max(0.0, _cpu() - cpu - CHILD_SECONDS)

    def _decode(self, decoder: Decoder, body: bytes) -> None:
        try:
            picture = decoder.decode(body)
        except (Failure, NeedsMemory):
            self.failed += 1
            return
        self.decoded += 1
        self.jpeg_bytes += len(picture.jpeg)
        short, long = sorted((picture.original_width, picture.original_height))
        self.shaped += short >= self.min_side and long <= self.max_aspect * short


def _cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
