"""match: PAIRS -> MATCHED. A pair stays if its text contains a query of the list of its language.

Source: Radford et al. 2021, section 2.2, "we search for (image, text) pairs [...] whose text includes one of a set of
500,000 queries".
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import checks, hashing, storage
from pipeline.engine.cli import UsageError
from pipeline.engine.options import option
from pipeline.engine.progress import Watched
from pipeline.engine.rows import Rows
from pipeline.engine.work import Json, StepFolder
from pipeline.stages.base import TABLES, Job, Outputs
from pipeline.stages.row_pass import EVIDENCE, MATCHED_PART, PROVENANCE, Keyed, Parts, ReadParts, RowStage
from pipeline.stages.run import READ_BY_USERS, Run, WantedLanguages
from pipeline.stages.tally import Tally
from pipeline.text import image_variants
from pipeline.text.language import Choice, LanguageModel
from pipeline.text.language_names import ALL, LID, NAMES, code_hint, model_code
from pipeline.text.matcher import default_case
from pipeline.text.matchers import HASHES, ListOfLanguage, Matchers, build, load_lists, save_lists
from pipeline.text.words import count_words
from queries.several import parse_name

if TYPE_CHECKING:
    from queries.identity import UsedQueries


def query_lists(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """One text is one list."""
    return (given,) if isinstance(given, str) else given


def _check_queries(spec: str) -> None:
    language, path = parse_name(spec)
    if language and model_code(language, NAMES) is None and len(language) < 8:
        hint = code_hint(language, after="=...")
        raise UsageError(f"must name a language by its code{hint} (a file of this name: ./...)")
    if not checks.URL.match(path) and not os.path.isdir(path):
        checks.readable_file(path)


def language_codes(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """en,DE -> ("en", "de"). A longer name of a user's own model (eng_Latn) keeps its case."""
    parts = given.split(",") if isinstance(given, str) else given
    codes = [code.strip() for code in parts if code.strip()]
    codes = [code.lower() if re.fullmatch(r"[A-Za-z]{2,3}", code) else code for code in codes]
    return tuple(dict.fromkeys(codes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """The options that say which languages texts may have, and which queries they contain."""

    title: ClassVar[str] = "match"

    queries: tuple[str, ...] = option(
        (),
        help="list of queries as txt, JSON, TSV/CSV or Parquet; en=FILE names its language, and several such lists, or "
        "a folder of en.txt, de.txt ..., make a set in several languages",
        default_text="the English list that comes with the project",
        metavar="[LANGUAGE=]FILE",
        parse=query_lists,
        repeats=True,
        check=_check_queries,
    )
    languages: tuple[str, ...] = option(
        (),
        help="drop texts that are clearly of another language than these; all: drop none",
        default_text="those that the lists name",
        metavar="en,de",
        parse=language_codes,
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

    @staticmethod
    def check_together(o: Any) -> None:
        """Refuses `all` beside a language, and languages that the packaged model does not know."""
        if ALL in o.languages and len(o.languages) > 1:
            raise UsageError("--languages all: must stand alone, or must not stand beside codes")
        for code in o.languages if o.language_model in ("auto", LID) and o.languages != (ALL,) else ():
            if code != code.lower() or model_code(code, NAMES) is None:
                hint = code_hint(code)
                raise UsageError(f"--languages {code}: must be codes that the model {LID} knows{hint}")


IDENTITY = "identity"  # column of the query list that `BuildTables` reads
PASSED = pa.schema([*MATCHED_PART, PROVENANCE])  # what the writer of parts and keys receives


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which texts are matched with which list.

    Attributes:
        model: whose labels the evidence has.
        wanted: the languages, and the list of each.
    """

    model: str
    wanted: WantedLanguages

    def choice(self) -> Choice | None:
        """The rule of languages; None: all texts are matched with the only list."""
        if not self.wanted.codes:
            return None
        return Choice(LanguageModel.load(self.model).labels, self.wanted.codes, self.wanted.drop)


def match_batch(
    pairs: pa.RecordBatch, tally: Tally, *, matchers: Matchers, choice: Choice | None, wanted: WantedLanguages
) -> pa.RecordBatch:
    """The pairs whose text contains a query, with the ids of all queries that it contains. The order stays.

    Args:
        pairs: rows of row_pass.GATHERED_PART.
        tally: the stage's ledger and rejects.
        matchers: the compiled query lists.
        choice: the rule of languages; None: all texts are matched with the only list.
        wanted: the languages of `choice`, and the list of each.
    """
    tally.ledger.rows_in += pairs.num_rows
    place = np.zeros(pairs.num_rows, np.int8) if choice is None else choice(*(pairs[field.name] for field in EVIDENCE))
    stays = place >= 0
    _drop(pairs, ~stays, "language", tally)
    chosen = np.zeros(stays.sum(), np.int8) if choice is None else np.asarray(wanted.lists, np.int8)[place[stays]]
    ids = matchers.match(pairs["text"] if stays.all() else pairs["text"].filter(pa.array(stays)), chosen)
    found = np.asarray(pc.greater(pc.list_value_length(ids), 0))
    _note_lists(tally, matchers.languages(), chosen, found)
    lacks = np.zeros(len(stays), np.bool_)
    lacks[stays] = ~found
    _drop(pairs, lacks, "no_query", tally)
    stays &= ~lacks
    pairs = pairs.select([name for name in pairs.schema.names if name in PASSED.names])
    if not stays.all():
        pairs, ids = pairs.filter(pa.array(stays)), ids if found.all() else ids.filter(pa.array(found))
    if len(wanted.codes) > 1:
        pairs = _name_language(pairs, pa.array(wanted.names, pa.string()).take(pa.array(place[stays])))
    row_hash = hashing.mix(pairs["row_hash"].to_numpy(), hashing.sums_of_lists(matchers.query_hash, ids))
    tally.passed(row_hash)
    columns = dict(zip(pairs.schema.names, pairs.columns, strict=True))
    columns |= {"query_ids": ids, "row_hash": pa.array(row_hash)}
    return pa.RecordBatch.from_arrays([columns[name] for name in PASSED.names], schema=PASSED)


def keys_of_pairs(pairs: pa.RecordBatch) -> tuple[np.ndarray, ...]:
    """The image (variants of a URL share it), the text, its words, the named size and the provenance of each pair."""
    image, size = image_variants.variants(pairs["url"])
    text = hashing.hash_strings(pairs["text"])[:, 0]
    return image, text, count_words(pairs["text"]), size, pairs["provenance"].to_numpy()


def _name_language(pairs: pa.RecordBatch, language: pa.StringArray) -> pa.RecordBatch:
    """The pairs with the language whose list they are matched with. The score stays that of the likeliest language."""
    columns = dict(zip(pairs.schema.names, pairs.columns, strict=True))
    row_hash = hashing.mix(pairs["row_hash"].to_numpy(), hashing.column_hash(language))
    columns |= {"language": language, "row_hash": pa.array(row_hash)}
    return pa.RecordBatch.from_arrays([columns[name] for name in pairs.schema.names], schema=pairs.schema)


def _note_lists(tally: Tally, languages: list[str], chosen: np.ndarray, found: np.ndarray) -> None:
    """Counts the texts of each list, and those without a query of it."""
    for number, code in enumerate(languages) if len(languages) > 1 else ():
        mine = chosen == number
        tally.ledger.notes[f"texts_{code}"] += int(mine.sum())
        tally.ledger.notes[f"no_query_{code}"] += int((mine & ~found).sum())


def _drop(pairs: pa.RecordBatch, rows: npt.NDArray[np.bool_], reason: str, tally: Tally) -> None:
    """Drops the rows where `rows` is True."""
    if rows.any():
        hashes = hashing.uid_words(pairs["uid"])[0]
        tally.drop_some(reason, (pairs["url"], pairs["text"], pairs["uid"]), np.flatnonzero(rows), hashes[rows])


@dataclasses.dataclass(frozen=True)
class MatchRows:
    """`match_batch` as a function of a pass; `tables` is the folder of the compiled lists."""

    tables: str
    rules: Rules

    def open(self, unit: int) -> Callable[[pa.RecordBatch, Tally], pa.RecordBatch]:
        matchers, choice = Matchers.load(self.tables), self.rules.choice()
        return functools.partial(match_batch, matchers=matchers, choice=choice, wanted=self.rules.wanted)


@dataclasses.dataclass(frozen=True)
class BuildTables:
    """The step before the pass: one unit compiles one list. All workers map its files."""

    folder: StepFolder
    queries: str  # path of what `Match.begin` wrote
    tables: str
    mode: str
    case: str

    def units(self) -> int:
        return len(load_lists(self.tables))

    def run(self, unit: int) -> dict[str, Any]:
        table = storage.read_table(self.queries, [IDENTITY, "query"])
        identities, queries = (hashing.as_array(table[name]) for name in (IDENTITY, "query"))
        build(self.tables, unit, queries, mode=self.mode, case=self.case)
        if unit == 0:
            storage.save_array(os.path.join(self.tables, HASHES), hashing.hash_strings(identities)[:, 0])
        return {"queries": len(queries)}


@dataclasses.dataclass(frozen=True)
class Match(RowStage):
    """The stage."""

    name: ClassVar[str] = "match"
    job: ClassVar[Job] = "select"
    options: ClassVar[type] = MatchSettings

    gathered: StepFolder
    used: UsedQueries
    rules: Rules
    key_bits: int
    groups: int
    units: int

    @classmethod
    def plan(cls, run: Run, before: Outputs) -> Self:
        return cls(
            before.plan(run, cls),
            run.keep_rejected,
            gathered=before.last_rows().parts,
            used=run.queries,
            rules=Rules(run.workers_model, run.languages),
            key_bits=run.sizes.key_bits,
            groups=run.sizes.groups,
            units=len(run.input_list.members),
        )

    @classmethod
    def fingerprint(cls, run: Run) -> dict[str, Json]:
        used, wanted = run.queries, dataclasses.asdict(run.languages)
        return {"queries": used.digest, "match": used.mode, "case": used.case, "languages": wanted}

    @property
    def tables(self) -> str:
        """The folder of the compiled list."""
        return os.path.join(self.folder.path, TABLES)

    @property
    def list_file(self) -> str:
        """The queries with their identities."""
        return os.path.join(self.tables, "queries.parquet")

    def settle(self, run: Run) -> None:
        """Writes the query list for users, unless that of a done stage is whole: merging the lists takes long."""
        name = READ_BY_USERS[0]
        places = [os.path.join(folder, name) for folder in (run.shown, run.root)]
        newest = next((path for path in places if storage.exists(path)), "")
        if not (self.is_done() and newest and storage.is_listed(newest)):
            storage.write_published(places[0], self.used.table)

    def begin(self, run: Run) -> None:
        save_lists(self.tables, [ListOfLanguage(*found) for found in self.used.lists()])
        table = pa.table({IDENTITY: self.used.identities, "query": self.used.table["query"]})
        storage.write_table(self.list_file, table)

    def facts(self) -> dict[str, Json]:
        return dict(self.used.counts())

    def preparations(self) -> tuple[BuildTables]:
        step = self.folder.units("list")
        return (BuildTables(step, self.list_file, self.tables, self.used.mode, self.used.case),)

    def source(self) -> ReadParts:
        return ReadParts(self.gathered)

    def function(self) -> MatchRows:
        return MatchRows(self.tables, self.rules)

    def parts(self) -> Parts:
        return Parts(self.folder.units("parts"), MATCHED_PART, Keyed(keys_of_pairs, self.key_bits))

    @property
    def output(self) -> Rows:
        return Rows(self.parts().folder, groups=self.groups, units=self.units)

    def watched(self) -> list[Watched]:
        return [Watched("match parts", self.parts().folder, self.units)]
