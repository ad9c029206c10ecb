"""Numbers of a published set, added up file by file, so that a set of any size fits: for report and inspector."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Columns of METADATA that the numbers are made of.
COLUMNS = (
    "key url text text_source url_source language opt_out license query_ids keep_probability kept_by width height "
    "original_width original_height original_format shard jpg_offset jpg_size"
).split()

NOT_SAID = "(none)"  # the word for null in a table of counts


@dataclasses.dataclass
class Histogram:
    """Counts between fixed edges; the first and the last bin are open. Fixed, so that files can be added."""

    edges: tuple[float, ...]
    counts: list[int] = dataclasses.field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        """Counts values."""
        bins = len(self.edges) + 1
        found = np.bincount(np.searchsorted(self.edges, values, side="right"), minlength=bins)
        self.counts = [a + b for a, b in zip(self.counts or [0] * bins, found.tolist(), strict=True)]

    def rows(self) -> list[tuple[str, int]]:
        """(label of the bin, count), from the first bin that has any to the last."""
        labels = [f"< {self.edges[0]:g}"]
        labels += [f"{low:g} - {high:g}" for low, high in zip(self.edges, self.edges[1:], strict=False)]
        labels += [f">= {self.edges[-1]:g}"]
        full = [at for at, count in enumerate(self.counts) if count]
        return list(zip(labels, self.counts, strict=True))[full[0] : full[-1] + 1] if full else []


@dataclasses.dataclass
class Summary:
    """What a set looks like from afar."""

    samples: int = 0
    image_bytes: int = 0
    characters: int = 0  # of all texts
    languages: Counter[str] = dataclasses.field(default_factory=Counter)
    hosts: Counter[str] = dataclasses.field(default_factory=Counter)
    text_sources: Counter[str] = dataclasses.field(default_factory=Counter)
    url_sources: Counter[str] = dataclasses.field(default_factory=Counter)
    licenses: Counter[str] = dataclasses.field(default_factory=Counter)
    opt_outs: Counter[str] = dataclasses.field(default_factory=Counter)
    formats: Counter[str] = dataclasses.field(default_factory=Counter)
    matched: Counter[int] = dataclasses.field(default_factory=Counter)  # query id -> samples whose text has it
    kept_by: Counter[int] = dataclasses.field(default_factory=Counter)  # query id -> samples that it picked
    text_length: Histogram = dataclasses.field(
        default_factory=lambda: Histogram((5, 10, 20, 40, 80, 160, 320, 640, 1280))
    )
    short_side: Histogram = dataclasses.field(
        default_factory=lambda: Histogram((64, 128, 256, 512, 768, 1024, 1536, 2048, 4096))
    )
    aspect: Histogram = dataclasses.field(default_factory=lambda: Histogram((0.25, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 4)))
    kilobytes: Histogram = dataclasses.field(default_factory=lambda: Histogram((2, 4, 8, 16, 32, 64, 128, 256)))
    keep_probability: Histogram = dataclasses.field(
        default_factory=lambda: Histogram((0.001, 0.01, 0.1, 0.2, 0.4, 0.6, 0.8, 0.999))
    )

    def add(self, table: pa.Table) -> None:
        """Adds the rows of one file of metadata (at least COLUMNS)."""
        self.samples += table.num_rows
        self.image_bytes += pc.sum(table["jpg_size"]).as_py() or 0
        columns = {
            "language": self.languages,
            "text_source": self.text_sources,
            "url_source": self.url_sources,
            "license": self.licenses,
            "original_format": self.formats,
        }
        for name, counter in columns.items():
            counter.update(_counts(table[name].fill_null(NOT_SAID)))
        self.hosts.update(_counts(hosts(table["url"])))
        self.opt_outs.update(_counts(pc.list_flatten(pc.split_pattern(table["opt_out"].drop_null(), ","))))
        self.matched.update(_counts(pc.list_flatten(table["query_ids"])))
        self.kept_by.update(_counts(pc.list_flatten(table["kept_by"])))
        lengths = pc.utf8_length(table["text"]).to_numpy()
        self.characters += int(lengths.sum())
        self.text_length.add(lengths)
        original = [table[f"original_{side}"].fill_null(0).to_numpy() for side in ("width", "height")]
        self.short_side.add(np.minimum(*original))
        self.aspect.add(table["width"].to_numpy() / np.maximum(1, table["height"].to_numpy()))
        self.kilobytes.add(table["jpg_size"].to_numpy() / 1000)
        self.keep_probability.add(table["keep_probability"].to_numpy())


def hosts(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """The host of each URL."""
    return pc.struct_field(pc.extract_regex(urls, r"^[a-zA-Z]+://(?P<host>[^/?#]*)"), "host").fill_null(NOT_SAID)


def top(counter: Counter, most: int) -> list[tuple]:
    """The most frequent, ties by name: the same list whatever the order of the counting."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:most]


def charts(s: Summary) -> list[tuple[str, list[tuple[str, int]]]]:
    """(title, (label, count) ...) of everything that is counted, as report and inspector show it."""
    return [
        ("Languages", top(s.languages, 15)),
        ("Hosts of the images", top(s.hosts, 20)),
        ("Characters of a text", s.text_length.rows()),
        ("Short side of the original, pixels", s.short_side.rows()),
        ("Width / height", s.aspect.rows()),
        ("Stored JPEG, kB", s.kilobytes.rows()),
        ("Probability to be kept", s.keep_probability.rows()),
        ("Where the text was found", top(s.text_sources, 10)),
        ("Where the address was found", top(s.url_sources, 10)),
        ("Format of the original", top(s.formats, 10)),
        ("Licence that the page names", top(s.licenses, 10)),
        ("Opt-outs seen (and not respected, by option)", top(s.opt_outs, 10)),
    ]


class Pick:
    """The rows whose key has the smallest low half: a choice by hash, from all shards alike."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._table: pa.Table | None = None

    def add(self, table: pa.Table) -> None:
        """Offers rows."""
        order = pc.utf8_slice_codeunits(table["key"], 16, 32)
        found = table.append_column("_order", order)
        if self._table is not None:
            found = pa.concat_tables([self._table, found])
        self._table = found.sort_by([("_order", "ascending"), ("key", "ascending")]).slice(0, self._most)

    def table(self) -> pa.Table | None:
        """What was chosen, in the order of the hash; None if nothing was offered."""
        return None if self._table is None else self._table.drop_columns(["_order"])


def summarise(tables: Iterable[pa.Table], *, pick: Pick | None = None) -> Summary:
    """Adds up the metadata of a set."""
    summary = Summary()
    for table in tables:
        summary.add(table)
        if pick is not None:
            pick.add(table)
    return summary


def _counts(column: pa.ChunkedArray) -> dict:
    found = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))
