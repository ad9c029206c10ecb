"""A source in one file: a JSON array of pairs, [{"image": URL, "caption": TEXT}, ...], in files *.pairs.json(.gz)."""

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.sources import base
from pipeline.sources.base import BATCH_ROWS, InputError, Reader

BOM = b"\xef\xbb\xbf"  # some programs write it in front of UTF-8


class Pair(msgspec.Struct):
    image: str | None = None
    caption: str | None = None


class Pairs(Reader):
    name = "pairs"
    suffixes = base.packed(".pairs.json", by=[".gz"])
    bytes_per_pair = 120.0

    def sniff(self, head):
        return begins(head) and b'"image"' in head

    def check(self, inputs, settings):
        for item in inputs[: base.MOST_OPENED]:
            if not begins(base.read_head(item.path)):
                raise InputError(f"{item.name!r} is no JSON array of pairs: name another file")

    def read(self, source, *, ledger, images, settings):
        records = load(source)
        ledger.records_in += len(records)
        for first in range(0, len(records), BATCH_ROWS):
            pairs = {}
            for place, record in enumerate(records[first : first + BATCH_ROWS], first):
                try:
                    pairs[place] = msgspec.json.decode(record, type=Pair)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    ledger.lose("bad_record")
            url = pa.array([pair.image for pair in pairs.values()], pa.string())
            text = pa.array([pair.caption for pair in pairs.values()], pa.string())
            yield base.candidates_of_pairs(url, text, np.array([*pairs], np.int64), ledger)


def begins(head):
    return head.removeprefix(BOM).lstrip(b" \t\r\n").startswith(b"[")


def load(source):
    try:
        return msgspec.json.decode(base.read_whole(source.path).removeprefix(BOM), type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{source.name!r} is no JSON array of pairs (cut or damaged?): {error}") from error
