"""match: PAIRS -> MATCHED. A pair stays if its text contains a query.

Source: Radford et al. 2021, section 2.2, "we search for (image, text) pairs [...] whose text includes one of a set of
500,000 queries".
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import checks, hashing, storage
from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.steps import run_task
from pipeline.engine.work import Json, StepFolder
from pipeline.stages.base import TABLES, Job, Outputs
from pipeline.stages.row_pass import MATCHED_PART, PROVENANCE, Keyed, Parts, ReadParts, RowStage
from pipeline.stages.run import Run
from pipeline.stages.tally import Tally
from pipeline.text import image_variants
from pipeline.text.matcher import Matcher, default_case


def _check_queries(path: str) -> None:
    if not checks.URL.match(path):
        checks.readable_file(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """The options that say which queries a text contains."""

    title: ClassVar[str] = "match"

    queries: str | None = option(
        None,
        help="list of queries as txt, JSON, TSV/CSV or Parquet",
        default_text="the list that comes with the project",
        metavar="FILE",
        check=_check_queries,
    )
    match: str = option(
        "wide",
        help="wide: texts and queries pass one normaliser; metaclip: MetaCLIP's substrings",
        choices=("wide", "metaclip"),
    )
    case: str | None = option(
        None,
        help="exact: case counts; fold: it does not, nor do other spellings of a letter (docs/data.md); queries that "
        "are equal then are one query",
        default_text="fold; exact with --match metaclip",
        choices=("exact", "fold"),
    )

    @staticmethod
    def fill_in(o: Any) -> Any:
        """Sets --case to the default of --match, where it is not given."""
        return o if o.case else dataclasses.replace(o, case=default_case(o.match))


IDENTITY = "identity"  # column of the query list that `BuildTables` reads
PASSED = pa.schema([*MATCHED_PART, PROVENANCE])  # what the writer of parts and keys receives


def match_batch(pairs: pa.RecordBatch, tally: Tally, *, matcher: Matcher, query_hash: np.ndarray) -> pa.RecordBatch:
    """The pairs whose text contains a query, with the ids of all queries that it contains. The order stays.

    Args:
        pairs: rows of row_pass.GATHERED_PART.
        tally: the stage's ledger and rejects.
        matcher: the compiled query list.
        query_hash: uint64, the hash of each query's identity.
    """
    tally.ledger.rows_in += pairs.num_rows
    ids = matcher.match(pairs["text"])
    found = pc.greater(pc.list_value_length(ids), 0)
    if not pc.all(found).as_py():
        missed = pc.invert(found)
        hashes = hashing.uid_words(pairs["uid"].filter(missed))[0]
        tally.drop("no_query", pairs["url"].filter(missed), pairs["text"].filter(missed), hashes)
        pairs, ids = pairs.filter(found), ids.filter(found)
    ids = ids.cast(pa.list_(pa.int32()))
    row_hash = hashing.mix(pairs["row_hash"].to_numpy(), hashing.sums_of_lists(query_hash, ids))
    tally.passed(row_hash)
    columns = dict(zip(pairs.schema.names, pairs.columns, strict=True))
    columns |= {"query_ids": ids, "row_hash": pa.array(row_hash)}
    return pa.RecordBatch.from_arrays([columns[name] for name in PASSED.names], schema=PASSED)


MOST_WORDS = 32  # that count when the texts of an image are compared; a longer text is not richer
_MORE_WORDS = (  # what ends a word: a blank, and each letter of the scripts without blanks
    r" |[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
)


def keys_of_pairs(pairs: pa.RecordBatch) -> tuple[np.ndarray, ...]:
    """The image (variants of a URL share it), the text, its words, the named size and the provenance of each pair."""
    image, size = image_variants.variants(pairs["url"])
    text = hashing.hash_strings(pairs["text"])[:, 0]
    return image, text, count_words(pairs["text"]), size, pairs["provenance"].to_numpy()


def count_words(texts: pa.Array) -> np.ndarray:
    """The words of each clean text, at most MOST_WORDS. A letter of a script without blanks is a word."""
    words = pc.count_substring(texts, " ").to_numpy() + 1
    beyond = np.flatnonzero(pc.not_equal(pc.binary_length(texts), pc.utf8_length(texts)).to_numpy(zero_copy_only=False))
    if len(beyond):
        words[beyond] = pc.count_substring_regex(texts.take(pa.array(beyond)), _MORE_WORDS).to_numpy() + 1
    return np.minimum(words, MOST_WORDS).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class MatchRows:
    """`match_batch` as a function of a pass; `tables` is the folder of the compiled list."""

    tables: str

    def open(self, unit: int) -> Callable[[pa.RecordBatch, Tally], pa.RecordBatch]:
        matcher, query_hash = _load(self.tables)
        return functools.partial(match_batch, matcher=matcher, query_hash=query_hash)


@dataclasses.dataclass(frozen=True)
class BuildTables:
    """The only unit of the step before the pass: compiles the query list once. All workers map its files."""

    folder: StepFolder
    queries: str  # path of what `Match.begin` wrote
    tables: str
    mode: str
    case: str
    language: str

    def units(self) -> int:
        return 1

    def run(self, unit: int) -> dict[str, Any]:
        table = storage.read_table(self.queries, [IDENTITY, "query"])
        identities, queries = (hashing.as_array(table[name]) for name in (IDENTITY, "query"))
        os.makedirs(self.tables, exist_ok=True)
        Matcher.build(queries, mode=self.mode, case=self.case, language=self.language).save(self.tables)
        storage.save_array(os.path.join(self.tables, "query_hash.npy"), hashing.hash_strings(identities)[:, 0])
        return {"queries": len(queries)}


@functools.lru_cache(maxsize=1)
def _load(folder: str) -> tuple[Matcher, np.ndarray]:
    return Matcher.load(folder), storage.map_array(os.path.join(folder, "query_hash.npy"))


@dataclasses.dataclass(frozen=True)
class Match(RowStage):
    """The stage."""

    name: ClassVar[str] = "match"
    job: ClassVar[Job] = "select"
    options: ClassVar[type] = MatchSettings

    gathered: StepFolder
    mode: str
    case: str
    language: str  # whose letters are folded
    list_counts: tuple[tuple[str, int], ...]
    key_bits: int
    groups: int
    units: int

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        used = run.queries
        return cls(
            before.plan(run, cls),
            run.keep_rejected,
            gathered=before.last_rows().parts,
            mode=used.mode,
            case=used.case,
            language=used.language,
            list_counts=tuple(used.counts().items()),
            key_bits=run.sizes.key_bits,
            groups=run.sizes.groups,
            units=len(run.inputs),
        )

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        return {"queries": run.queries.digest, "match": run.queries.mode, "case": run.queries.case}

    @property
    def tables(self) -> str:
        """The folder of the compiled list."""
        return os.path.join(self.folder.path, TABLES)

    @property
    def list_file(self) -> str:
        """The queries with their identities."""
        return os.path.join(self.tables, "queries.parquet")

    def begin(self, run: Run) -> None:
        table = pa.table({IDENTITY: run.queries.identities, "query": run.queries.table["query"]})
        storage.write_table(self.list_file, table)

    def facts(self) -> dict[str, Json]:
        return dict(self.list_counts)

    def prepare(self, done: Any) -> Any:
        step = self.folder.step("list")
        task = BuildTables(step, self.list_file, self.tables, self.mode, self.case, self.language)
        return run_task(done, task, max_units=1)

    def source(self) -> ReadParts:
        return ReadParts(self.gathered)

    def function(self) -> MatchRows:
        return MatchRows(self.tables)

    def parts(self) -> Parts:
        return Parts(self.folder.step("parts"), MATCHED_PART, Keyed(keys_of_pairs, self.key_bits))

    @property
    def output(self) -> Rows:
        return Rows(self.parts().folder, groups=self.groups)

    def watched(self) -> list[Watched]:
        return [Watched("match parts", self.parts().folder, self.units)]
