"""Reads ready counts: words and pairs of words that others have counted.

A text file has lines of one of these forms: `word count` (with blanks or a tab), `word1 word2<TAB>count`,
`count<TAB>word1<TAB>word2` (n-gram files), `word<TAB>frequency`. It may be packed as .gz or .bz2. Two other formats are
the cB-packed files of wordfreq (*.msgpack.gz), and Parquet with the columns `query` and `count`. A frequency is a share
of a corpus. It becomes the number of occurrences in PER_WORDS words.
"""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PER_WORDS = 10_000_000_000  # wordfreq's rarest word (1e-8) then has the paper's 100 occurrences

COUNTED = pa.schema([pa.field("query", pa.string(), False), pa.field("count", pa.int64(), False)])

# _COLUMNS: one or two columns of words, the count, other columns. _BLANKS: blanks between words and count. _FIRST: the
# count comes first.
_NUMBER = r"(?P<count>[0-9]+(?:\.[0-9]+)?(?:[eE]-?[0-9]+)?)"
_COLUMNS = rf"^(?P<query>[^\t]*[^\t ][^\t]*(?:\t[^\t]*[^\t0-9][^\t]*)?)\t{_NUMBER}\s*(?:\t.*)?$"
_BLANKS = rf"^(?P<query>[^\t]*[^\t ]) +{_NUMBER}\s*$"
_FIRST = r"^(?P<count>[0-9]+)\t(?P<query>.*[^\t0-9.].*\S|[^\t0-9])\s*$"
_NO_PIECE = r"^\s*$|<[^>]*>"  # nothing, or a mark for the edge of a sentence, as in "<S> and"


class CountsError(ValueError):
    """A counts file that cannot be used."""


class Counts(NamedTuple):
    """Words and pairs of words (both COUNTED, each once), and the number of lines that hold neither."""

    words: pa.Table
    pairs: pa.Table
    skipped: int


def read_counts(path: str) -> Counts:
    """Reads one file.

    Raises:
        CountsError: the file cannot be read, is damaged, or holds no count.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        if data[:4] == b"PAR1":
            return _counts(*_read_parquet(data, path))
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        elif data[:3] == b"BZh":
            data = bz2.decompress(data)
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowInvalid) as error:
        raise CountsError(f"--counts {path}: cannot be read ({error}); replace the file, or leave it out") from error
    read = _read_wordfreq if path.endswith((".msgpack", ".msgpack.gz")) else _read_lines
    found = _counts(*read(data, path))
    if not len(found.words) and not len(found.pairs):
        raise CountsError(f"--counts {path}: has no line such as `word count` or `count<TAB>word<TAB>word`")
    return found


def merge(tables: list[pa.Table]) -> pa.Table:
    """The sum of several tables of the schema COUNTED, sorted by query."""
    together = pa.concat_tables([COUNTED.empty_table(), *tables])
    summed = together.group_by("query", use_threads=False).aggregate([("count", "sum")])
    return summed.rename_columns(["query", "count"]).cast(COUNTED).sort_by("query").combine_chunks()


def _counts(queries: pa.Array, counts: pa.Array, skipped: int) -> Counts:
    queries = pc.replace_substring(queries, "\t", " ")
    blanks = pc.count_substring(queries, " ")
    usable = pc.and_(pc.greater(counts, 0), pc.invert(pc.match_substring_regex(queries, _NO_PIECE)))
    table = pa.table([queries, counts], schema=COUNTED)
    words = table.filter(pc.and_(usable, pc.equal(blanks, 0)))
    pairs = table.filter(pc.and_(usable, pc.equal(blanks, 1)))
    return Counts(merge([words]), merge([pairs]), skipped + len(table) - len(words) - len(pairs))


def _read_lines(data: bytes, path: str) -> tuple[pa.Array, pa.Array, int]:
    lines = pa.array(data.decode("utf-8-sig", errors="replace").splitlines(), pa.string())
    chosen, number = pa.nulls(len(lines), pa.string()), pa.nulls(len(lines), pa.string())
    for form in (_FIRST, _COLUMNS, _BLANKS):
        found = pc.extract_regex(lines, form)
        chosen = pc.coalesce(chosen, pc.struct_field(found, "query"))
        number = pc.coalesce(number, pc.struct_field(found, "count"))
    chosen, number = chosen.drop_null(), number.drop_null().cast(pa.float64())
    shares = len(number) > 0 and pc.max(number).as_py() < 1
    counts = pc.round(pc.multiply(number, float(PER_WORDS) if shares else 1.0)).cast(pa.int64())
    return chosen, counts, len(lines) - len(chosen)


def _read_wordfreq(data: bytes, path: str) -> tuple[pa.Array, pa.Array, int]:
    """Reads a list of wordfreq: a header, then entries. Entry n holds the words of frequency 10^(-n/100)."""
    import msgspec

    try:
        header, *bins = msgspec.msgpack.decode(data)
        if header.get("format") != "cB" or header.get("version") != 1:
            raise ValueError(f"format {header}")
        words = [word for words in bins for word in words]
        levels = np.repeat(np.arange(len(bins)), [len(words) for words in bins])
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError) as error:
        raise CountsError(f"--counts {path}: is not a packed list of wordfreq ({error})") from error
    return pa.array(words, pa.string()), pa.array(np.rint(PER_WORDS * 10 ** (-levels / 100)).astype(np.int64)), 0


def _read_parquet(data: bytes, path: str) -> tuple[pa.Array, pa.Array, int]:
    table = pq.read_table(io.BytesIO(data))
    if not {"query", "count"} <= set(table.column_names):
        raise CountsError(f"--counts {path}: needs the columns `query` and `count`, but has {table.column_names}")
    queries, counts = (table.column(name).combine_chunks() for name in ("query", "count"))
    return queries.cast(pa.string()).fill_null(""), counts.cast(pa.int64()).fill_null(0), 0
