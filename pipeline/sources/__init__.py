"""The readers of all formats, in the order in which they are asked.

A new source is one file beside these and one entry here; CONTRIBUTING.md shows one.
"""

from __future__ import annotations

from pipeline.sources.base import Reader
from pipeline.sources.set_reader import PublishedSets
from pipeline.sources.tables import Table
from pipeline.sources.tar_reader import TarReader
from pipeline.sources.web_archives import Warc, Wat

READERS: dict[str, Reader] = {
    "wat": Wat(),
    "warc": Warc(),
    "table": Table(),
    "set": PublishedSets(),
    "webdataset": TarReader(),
}
