"""Counts of a published set for the report and the inspector. They are added up file by file: a set of any size fits.

Where many workers make a set, each worker packs the counts of its shard. `merge` adds them up. Its memory is bounded
for any number of shards and hosts:

    metadata of a shard --Summary.add--> pack --> sections of a bucket file --merge--> Summary, Pick

The names that come from the web (hosts, licences, opt-outs) have no bound. They are cut by hash into buckets and merged
bucket by bucket. Only the most frequent names are kept, and the number of all hosts.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.shards import METADATA
from pipeline.engine import hashing, shuffle_files

# The columns of METADATA that the counts need.
COLUMNS = (
    "key url text text_source url_source language opt_out license query_ids keep_probability kept_by width height "
    "original_width original_height original_format shard jpg_offset jpg_size"
).split()

NO_VALUE = "(none)"  # the name of null in a table of counts

OPEN = ("hosts", "licenses", "opt_outs")  # counted by names that come from the web
CLOSED = ("languages", "text_sources", "url_sources", "formats")
SCALARS = ("samples", "image_bytes", "characters", "licensed")
HISTOGRAMS = ("text_length", "short_side", "aspect", "kilobytes", "keep_probability")
QUERIES = ("matched", "kept_by")

MOST_NAMES = 100  # names of each kind that `merge` keeps
ENTRIES_AT_ONCE = 1 << 19  # entries of names that `merge` adds up in memory
TABLES_AT_ONCE = 64  # tables of picked rows that are ranked together

# The sections of a shard's packed counts: names by bucket, then these.
COUNTED = pa.schema([pa.field("what", pa.string()), pa.field("name", pa.string()), pa.field("count", pa.int64())])
BY_QUERY = pa.schema([pa.field("query", pa.int32()), *(pa.field(name, pa.int64()) for name in QUERIES)])
PICKED = pa.schema([METADATA.field(name) for name in COLUMNS])


@dataclasses.dataclass
class Histogram:
    """Counts between fixed edges. The first and the last bin are open. Fixed edges allow files to be added up."""

    edges: tuple[float, ...]
    counts: list[int] = dataclasses.field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        """Counts values."""
        bins = len(self.edges) + 1
        found = np.bincount(np.searchsorted(self.edges, values, side="right"), minlength=bins)
        self.add_counts(found.tolist())

    def add_counts(self, counts: Sequence[int]) -> None:
        """Adds the counts of another histogram with these edges."""
        self.counts = [a + b for a, b in zip(self.counts or [0] * len(counts), counts, strict=True)]

    def rows(self) -> list[tuple[str, int]]:
        """(label of the bin, count), from the first bin that is not empty to the last."""
        labels = [f"< {self.edges[0]:g}"]
        labels += [f"{low:g} - {high:g}" for low, high in zip(self.edges, self.edges[1:], strict=False)]
        labels += [f">= {self.edges[-1]:g}"]
        full = [at for at, count in enumerate(self.counts) if count]
        return list(zip(labels, self.counts, strict=True))[full[0] : full[-1] + 1] if full else []


class IdCounts:
    """The number of occurrences of each small number: a Counter in one array."""

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)  # by number

    def add(self, numbers: npt.NDArray[np.integer], times: npt.NDArray[np.int64] | None = None) -> None:
        """Counts each number once, or `times` times. With `times`, no number may come twice."""
        size = int(numbers.max(initial=-1)) + 1
        if size > len(self.counts):
            self.counts = np.concatenate([self.counts, np.zeros(size - len(self.counts), np.int64)])
        if times is None:
            self.counts[:size] += np.bincount(numbers, minlength=size)
        else:
            self.counts[numbers] += times

    def items(self) -> list[tuple[int, int]]:
        """(number, count) of the numbers that occurred, sorted by number."""
        there = np.flatnonzero(self.counts)
        return list(zip(there.tolist(), self.counts[there].tolist(), strict=True))

    def __getitem__(self, number: int) -> int:
        return int(self.counts[number]) if number < len(self.counts) else 0

    def __len__(self) -> int:
        return int(np.count_nonzero(self.counts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdCounts) and self.items() == other.items()


@dataclasses.dataclass
class Summary:
    """The counts of a set."""

    samples: int = 0
    image_bytes: int = 0
    characters: int = 0  # of all texts
    licensed: int = 0  # samples whose page names a licence
    languages: Counter[str] = dataclasses.field(default_factory=Counter)
    host_count: int = 0  # different hosts; `hosts` may contain only the most frequent
    hosts: Counter[str] = dataclasses.field(default_factory=Counter)
    text_sources: Counter[str] = dataclasses.field(default_factory=Counter)
    url_sources: Counter[str] = dataclasses.field(default_factory=Counter)
    licenses: Counter[str] = dataclasses.field(default_factory=Counter)
    opt_outs: Counter[str] = dataclasses.field(default_factory=Counter)
    formats: Counter[str] = dataclasses.field(default_factory=Counter)
    matched: IdCounts = dataclasses.field(default_factory=IdCounts)  # query id -> samples whose text contains it
    kept_by: IdCounts = dataclasses.field(default_factory=IdCounts)  # query id -> samples that it picked
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
        """Adds rows. What their table has no column for (of COLUMNS) is not counted, as before the fetch the sizes."""
        has = set(table.column_names)
        self.samples += table.num_rows
        columns = {
            "language": self.languages,
            "text_source": self.text_sources,
            "url_source": self.url_sources,
            "license": self.licenses,
            "original_format": self.formats,
        }
        for name, counter in columns.items():
            if name in has:
                counter.update(_counts(table[name].fill_null(NO_VALUE)))
        if "license" in has:
            self.licensed += table.num_rows - table["license"].null_count
        if "url" in has:
            self.hosts.update(_counts(hosts(table["url"])))
            self.host_count = len(self.hosts)
        if "opt_out" in has:
            self.opt_outs.update(_counts(pc.list_flatten(pc.split_pattern(table["opt_out"].drop_null(), ","))))
        for name, counts in (("query_ids", self.matched), ("kept_by", self.kept_by)):
            if name in has:
                counts.add(pc.list_flatten(table[name]).to_numpy())
        lengths = pc.utf8_length(table["text"]).to_numpy()
        self.characters += int(lengths.sum())
        self.text_length.add(lengths)
        if "keep_probability" in has:
            self.keep_probability.add(table["keep_probability"].to_numpy())
        self._add_images(table, has)

    def _add_images(self, table: pa.Table, has: set[str]) -> None:
        """Counts the sizes of the images."""
        if {"original_width", "original_height"} <= has:
            original = [table[f"original_{side}"].fill_null(0).to_numpy() for side in ("width", "height")]
            self.short_side.add(np.minimum(*original))
        if {"width", "height"} <= has:
            self.aspect.add(table["width"].to_numpy() / np.maximum(1, table["height"].to_numpy()))
        if "jpg_size" in has:
            self.image_bytes += pc.sum(table["jpg_size"]).as_py() or 0
            self.kilobytes.add(table["jpg_size"].to_numpy() / 1000)


def hosts(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """The host of each URL."""
    return pc.struct_field(pc.extract_regex(urls, r"^[a-zA-Z]+://(?P<host>[^/?#]*)"), "host").fill_null(NO_VALUE)


def top(counter: Counter | IdCounts, max_count: int) -> list[tuple]:
    """The most frequent entries; ties are sorted by name. So the list does not depend on the order of counting."""
    if isinstance(counter, IdCounts):
        order = np.argsort(-counter.counts, kind="stable")[: min(max_count, len(counter))]
        return list(zip(order.tolist(), counter.counts[order].tolist(), strict=True))
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:max_count]


def charts(s: Summary) -> list[tuple[str, list[tuple[str, int]]]]:
    """(title, [(label, count), ...]) of each chart, as the report and the inspector show them."""
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
    """The rows whose key has the smallest low half. This is a choice by hash: all shards have the same chance."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._table: pa.Table | None = None

    def add(self, table: pa.Table) -> None:
        """Offers rows."""
        order = pc.utf8_slice_codeunits(table["key"], 16, 32)
        found = table.append_column("_order", order)
        if self._table is not None:
            found = pa.concat_tables([self._table, found])
        self._table = found.sort_by([("_order", "ascending"), ("key", "ascending")]).slice(0, self._max_rows)

    def table(self) -> pa.Table | None:
        """The chosen rows, sorted by hash; None if no rows were offered."""
        return None if self._table is None else self._table.drop_columns(["_order"])


def summarise(tables: Iterable[pa.Table], *, pick: Pick | None = None) -> Summary:
    """Adds up the metadata of a set, and offers its rows to `pick`."""
    summary = Summary()
    for table in tables:
        summary.add(table)
        if pick is not None:
            pick.add(table)
    return summary


def _counts(column: pa.ChunkedArray) -> dict:
    found = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


# ----------------------------------------------------------------------------------------- packed, and added up again


def name_buckets(rows: int) -> int:
    """The number of buckets for the names of a set of about `rows` rows."""
    return shuffle_files.power_of_two(rows / ENTRIES_AT_ONCE)


def pack(summary: Summary, pick: Pick, count: int) -> list[pa.Buffer | None]:
    """The sections of a bucket file (shuffle_files.write): names in `count` buckets, counts, queries, picked rows."""
    names = _counted({kind: getattr(summary, kind) for kind in OPEN})
    bucket = (hashing.hash_strings(names["name"])[:, 0] % np.uint64(count)).astype(np.int64)
    closed = {kind: getattr(summary, kind) for kind in CLOSED} | {
        "": {name: getattr(summary, name) for name in SCALARS}
    }
    closed |= {kind: dict(zip(map(str, range(99)), getattr(summary, kind).counts, strict=False)) for kind in HISTOGRAMS}
    queries = _by_query(summary.matched.counts, summary.kept_by.counts)
    rows = pick.table()
    picked = None if rows is None else rows.select(PICKED.names).cast(PICKED).combine_chunks().to_batches()
    messages = [batch.serialize() for batch in (_counted(closed), queries)]
    return [*shuffle_files.cut(names, bucket, count), *messages, picked[0].serialize() if picked else None]


def merge(paths: Sequence[str], count: int, pick: Pick) -> Summary:
    """Adds up the packed counts of each shard, and offers the picked rows to `pick`.

    Args:
        paths: the bucket files of the shards.
        count: the number of buckets of names, the same as for `pack`.
        pick: takes the rows.
    """
    summary = Summary()
    for start in range(0, len(paths), TABLES_AT_ONCE):
        some = paths[start : start + TABLES_AT_ONCE]
        for path in some:
            _add_counts(summary, _section(path, count, COUNTED), _section(path, count + 1, BY_QUERY))
        picked = shuffle_files.table([shuffle_files.read(path, count + 2) for path in some], PICKED)
        if picked.num_rows:
            pick.add(picked)
    for bucket in range(count):
        _add_names(summary, (shuffle_files.read(path, bucket) for path in paths))
    return summary


def _counted(counters: dict[str, dict[str, int]]) -> pa.RecordBatch:
    """Counters as one batch; the column `what` has their keys."""
    what = [kind for kind, counter in counters.items() for _ in counter]
    names = [name for counter in counters.values() for name in counter]
    counts = [count for counter in counters.values() for count in counter.values()]
    return pa.RecordBatch.from_arrays(
        [pa.array(what, pa.string()), pa.array(names, pa.string()), pa.array(counts, pa.int64())], schema=COUNTED
    )


def _by_query(*counts: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """The queries that occurred, with both counts."""
    size = max(map(len, counts))
    padded = [np.pad(column, (0, size - len(column))) for column in counts]
    ids = np.flatnonzero(padded[0] | padded[1])
    columns = [pa.array(ids.astype(np.int32)), *(pa.array(column[ids]) for column in padded)]
    return pa.RecordBatch.from_arrays(columns, schema=BY_QUERY)


def _section(path: str, bucket: int, schema: pa.Schema) -> pa.Table:
    return shuffle_files.table([shuffle_files.read(path, bucket)], schema)


def _add_counts(summary: Summary, counted: pa.Table, queries: pa.Table) -> None:
    """Adds the closed counters, the scalars and histograms, and the queries of a shard."""
    histograms: dict[str, list[int]] = {}
    for what, name, count in zip(*(column.to_pylist() for column in counted.columns), strict=True):
        if not what:
            setattr(summary, name, getattr(summary, name) + count)
        elif what in CLOSED:
            getattr(summary, what)[name] += count
        else:
            histograms.setdefault(what, []).append(count)
    for what, counts in histograms.items():
        getattr(summary, what).add_counts(counts)
    for kind in QUERIES:
        times = queries[kind].to_numpy()
        getattr(summary, kind).add(queries["query"].to_numpy()[times > 0], times[times > 0])


def _add_names(summary: Summary, messages: Iterable[bytes]) -> None:
    """Adds one bucket of names. A name occurs in one bucket only."""
    total, waiting, entries = COUNTED.empty_table(), [], 0
    for message in messages:
        waiting.append(message)
        entries += len(message) // 24
        if entries > ENTRIES_AT_ONCE:
            total, waiting, entries = _sum_names([total, shuffle_files.table(waiting, COUNTED)]), [], 0
    total = _sum_names([total, shuffle_files.table(waiting, COUNTED)])
    for kind in OPEN:
        found = total.filter(pc.equal(total["what"], kind))
        if kind == "hosts":
            summary.host_count += found.num_rows
        found = found.sort_by([("count", "descending"), ("name", "ascending")]).slice(0, MOST_NAMES)
        counter = getattr(summary, kind)
        counter.update(dict(zip(found["name"].to_pylist(), found["count"].to_pylist(), strict=True)))
        setattr(summary, kind, Counter(dict(top(counter, MOST_NAMES))))


def _sum_names(tables: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(tables)
    return (
        table.group_by(["what", "name"], use_threads=False).aggregate([("count", "sum")]).rename_columns(COUNTED.names)
    )
