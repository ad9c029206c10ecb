"""A source in one file: a JSON array of pairs, [{"image": URL, "caption": TEXT}, ...], in files *.pairs.json(.gz)."""

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.sources.base import BATCH_ROWS, InputError, Reader, candidates_of_pairs, packed, read_whole


class Pair(msgspec.Struct):
    image: str | None = None
    caption: str | None = None


class Pairs(Reader):
    name = "pairs"
    suffixes = packed(".pairs.json", by=[".gz"])
    bytes_per_pair = 120.0
    bytes_per_core_second = 50e6

    def sniff(self, head):
        return head.lstrip().startswith(b"[") and b'"image"' in head

    def check(self, inputs, settings):
        for item in inputs:
            load(item)

    def read(self, source, *, ledger, images, settings):
        pairs = load(source)
        ledger.records_in += len(pairs)
        for first in range(0, len(pairs), BATCH_ROWS):
            batch = pairs[first : first + BATCH_ROWS]
            url = pa.array([pair.image for pair in batch], pa.string())
            text = pa.array([pair.caption for pair in batch], pa.string())
            yield candidates_of_pairs(url, text, np.arange(first, first + len(batch)), ledger)


def load(source):
    try:
        return msgspec.json.decode(read_whole(source.path), type=list[Pair])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{source.name!r} is no JSON array of pairs (cut or damaged?): {error}") from error
