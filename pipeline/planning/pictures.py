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
    _decoder: Decoder | None = None

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
        start, own = time.monotonic(), _cpu(resource.RUSAGE_SELF)
        some = np.random.default_rng(0).permutation(len(offsets))[:MOST_OF_PIECE]
        for offset in offsets.take(pa.array(some)).to_pylist():
            if not self.are_wanted:
                break
            body = reader.read_image(path, offset, max_bytes=self.options.max_bytes)
            if body is not None:
                self._decode(body)
        self._seconds += time.monotonic() - start
        self.cpu_seconds += _cpu(resource.RUSAGE_SELF) - own

    def close(self) -> None:
        """Ends the decoding process, and counts its CPU seconds."""
        if self._decoder is not None:
            before = _cpu(resource.RUSAGE_CHILDREN)
            self._decoder.close()
            self._decoder = None
            self.cpu_seconds += max(0.0, _cpu(resource.RUSAGE_CHILDREN) - before - CHILD_SECONDS)

    def _decode(self, body: bytes) -> None:
        self._decoder = self._decoder or Decoder(self.options)
        try:
            picture = self._decoder.decode(body)
        except (Failure, NeedsMemory):
            self.failed += 1
            return
        self.decoded += 1
        self.jpeg_bytes += len(picture.jpeg)
        short, long = sorted((picture.original_width, picture.original_height))
        self.shaped += short >= self.min_side and long <= self.max_aspect * short


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
