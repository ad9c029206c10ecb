"""Counts dumps, texts and pageviews in two Beam jobs: words and titles first, then pairs of the kept words.

    OUT/.counting/stages/words/units     per piece of an input: its texts, and buckets of its words and titles
    OUT/.counting/stages/words/merged    per bucket: the words of all pieces, added up
    OUT/.counting/stages/words/titles    per bucket: the titles of all pieces, added up
    OUT/.counting/stages/pairs/...       units and merged in the same way, for pairs

A unit is a piece of a file, so that one dump keeps all workers busy. The steps exchange only sums, so that the result
does not depend on which worker counts a unit. After a crash, the same command continues with the units that are left.
The folder is removed when the list is written.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import engine_checks, hashing, log_file, quiet_beam, runners, shuffle_files, storage
from pipeline.engine.progress import Watched
from pipeline.engine.steps import run_exchange, run_task
from pipeline.engine.tasks import Reading
from pipeline.engine.work import StageFolder, StepFolder, digest_of, lock_run_folder
from queries import bigrams, ngrams, streams, titles, wikipedia
from queries.bigrams import SCORED, Vocabulary
from queries.counts import COUNTED
from queries.ngrams import PAIRS, WORDS, PairCounter, WordCounter
from queries.streams import Piece

if TYPE_CHECKING:
    from queries.options import Options

RESULT = 3
BATCH = 8 << 20  # bytes of text that are counted at once
MOST_PAIRS = 8 << 20  # pairs that a unit holds before it writes a part
FEWEST_VIEWS = 5  # of a title in all files; with fewer, a redirect is dropped too
BUCKET = 64 << 20  # bytes of input for each bucket

TEXTS = pa.schema([pa.field("text", pa.large_string(), False)])
NAMES = pa.schema(
    [
        pa.field("title", pa.string(), False),
        pa.field("target", pa.string(), False),  # the article that a redirect leads to; "" for an article
        pa.field("links", pa.int64(), False),
    ]
)


# What the units and the merged words hold: PMI is computed within a corpus, the dumps or the texts.
CORPUS_WORDS = WORDS.append(pa.field("in_texts", pa.int64(), False))  # occurrences in --text; the others are in dumps
CORPORA = ("wikipedia", "text")


@dataclasses.dataclass(frozen=True)
class CountFolder:
    """The scratch folder of the two jobs.

    Attributes:
        root: OUT/.counting, absolute.
        words, pairs: fingerprints of the two jobs.
    """

    root: str
    words: str
    pairs: str = ""

    def step(self, job: str, name: str) -> StepFolder:
        """The folder of a step of a job, "words" or "pairs"."""
        return StageFolder(self.root, job, getattr(self, job)).step(name)

    @property
    def vocabulary(self) -> str:
        """The path of the kept words. The workers of the second job read it."""
        return os.path.join(self.root, "vocabulary.parquet")


@dataclasses.dataclass
class Counted:
    """What the first job found. `words` has a row for each form, `views` for each title (redirects are resolved)."""

    words: pa.Table  # CORPUS_WORDS
    occurrences: dict[str, int]  # by corpus
    views: pa.Table  # COUNTED
    links: pa.Table  # COUNTED
    ledger: dict[str, dict[str, int]]
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What decides the counts of a unit."""

    language: str
    profile: str
    least_count: int  # a word with fewer occurrences in all forms is dropped in the first job
    least_articles: int
    least_pair: int
    least_views: int  # a title with fewer is dropped before redirects are resolved
    segmenter: str = ""  # what finds the words in scripts without blanks

    def tokens(self, texts: pa.LargeStringArray) -> ngrams.Tokens:
        """The tokens of some texts."""
        return ngrams.tokenize(texts, self.profile, segmenter=self.segmenter, language=self.language)


def list_units(options: Options, ledger: dict[str, dict[str, int]], warnings: list[str]) -> list[dict[str, Any]]:
    """The pieces of all inputs. A dump that is damaged or in another language is left out with a warning."""
    found: list[dict[str, Any]] = []
    for path in options.wikipedia:
        kind, languages = wikipedia.kind_of(path), wikipedia.languages_of(path)
        problem = ""
        if not kind:
            problem = "dump_unreadable"
            warnings.append(f"{path} was left out: it cannot be read as a CirrusSearch index or as MediaWiki XML")
        elif languages and options.language not in languages:
            problem = "dump_of_other_language"
            warnings.append(f"{path} was left out: the dump is in {languages[0]!r}, the list in {options.language!r}")
        if problem:
            ledger.setdefault("wikipedia", {}).setdefault(problem, 0)
            ledger["wikipedia"][problem] += 1
        else:
            found += [{"kind": kind, **dataclasses.asdict(piece)} for piece in streams.pieces(path)]
    for kind, paths in (("text", options.text), ("pageviews", options.pageviews)):
        for path in paths:
            found += [{"kind": kind, **dataclasses.asdict(piece)} for piece in streams.pieces(path)]
    return found


@dataclasses.dataclass(frozen=True)
class CountUnits:
    """Counts words and titles. Unit: a piece of an input."""

    work: CountFolder
    rules: Rules
    buckets: int

    @property
    def folder(self) -> StepFolder:
        return self.work.step("words", "units")

    def listed(self) -> list[dict[str, Any]]:
        return storage.read_list(os.path.join(self.work.root, "units.json"))

    def units(self) -> int:
        return len(self.listed())

    def run(self, unit: int) -> dict[str, Any]:
        entry = dict(self.listed()[unit])
        kind = entry.pop("kind")
        piece, tally = Piece(**entry), Counter[str]()
        views, words, names = COUNTED.empty_table(), WordCounter(), NAMES.empty_table()
        occurrences = 0
        if kind == "pageviews":
            views = self._views(piece, tally)
        else:
            with storage.writing_batches(self.folder.file(unit, "texts"), TEXTS, compression="zstd") as out:
                found: list[pa.Table] = []
                texts = _lines(piece, tally) if kind == "text" else _articles(piece, kind, tally, found)
                for batch in texts:
                    tokens = self.rules.tokens(batch)
                    words.add(ngrams.count_words(tokens))
                    occurrences += int((tokens.ids >= 0).sum())
                    out.write_batch(pa.record_batch([batch], schema=TEXTS))
                names = pa.concat_tables([names, *found])
            _write(self.folder.file(unit, "names"), names)
        counted = words.table()
        in_texts = counted["count"] if kind == "text" else pa.array(np.zeros(len(counted), np.int64))
        counted = counted.append_column(CORPUS_WORDS.field("in_texts"), in_texts)
        _write_buckets(self.folder.file(unit, "words", 0), counted, pc.utf8_lower(counted["word"]), self.buckets)
        _write_buckets(self.folder.file(unit, "titles", 0), views, views["query"], self.buckets)
        return {
            "parts": 1,
            "kind": kind,
            "tally": dict(tally),
            "occurrences": occurrences,
            "rows": len(counted) + len(views),
        }

    def _views(self, piece: Piece, tally: Counter[str]) -> pa.Table:
        tables = [COUNTED.empty_table()]
        rows = 0
        for block in streams.line_blocks(piece, tally):
            table, malformed = titles.read_views(block, self.rules.language, self.rules.profile)
            tally["line_malformed"] += malformed
            tables.append(table)
            rows += len(table)
            if rows > 1 << 20:
                tables = [titles.add(tables)]
                rows = len(tables[0]) // 2
        return titles.add(tables).sort_by("query")


@dataclasses.dataclass(frozen=True)
class _Merge:
    """Adds up what the units of a step have counted. Unit: a bucket of all of them."""

    work: CountFolder
    rules: Rules
    buckets: int

    done: ClassVar[tuple[str, str]]  # stage and step that hold the sums
    read: ClassVar[tuple[str, str]]  # stage and step that hold the buckets
    kind: ClassVar[str]  # file ending of the buckets

    @property
    def folder(self) -> StepFolder:
        return self.work.step(*self.done)

    @property
    def reads(self) -> Reading:
        return Reading(self.work.step(*self.read), self.kind)

    def units(self) -> int:
        return self.buckets


class MergeWords(_Merge):
    """Adds up words. Unit: a bucket of words, of all units."""

    done, read, kind = ("words", "merged"), ("words", "units"), "words"

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        table = shuffle_files.table(messages, CORPUS_WORDS)
        sums = [(name, "sum") for name in CORPUS_WORDS.names[1:]]
        words = table.group_by("word", use_threads=False).aggregate(sums).rename_columns(CORPUS_WORDS.names)
        words = words.cast(CORPUS_WORDS).sort_by("word").combine_chunks()
        lower = pc.utf8_lower(words["word"].combine_chunks()).dictionary_encode()
        group = lower.indices.to_numpy()
        count, articles = (np.zeros(len(lower.dictionary), np.int64) for _ in range(2))
        np.add.at(count, group, words["count"].to_numpy())
        np.add.at(articles, group, words["articles"].to_numpy())
        kept = (count >= self.rules.least_count) & (articles >= self.rules.least_articles)
        found = words.filter(pa.array(kept[group]))
        _write(self.folder.file(unit, "arrow"), found)
        return {"rows": len(words), "words": len(count), "kept": int(kept.sum())}


class MergeTitles(_Merge):
    """Adds up titles. Unit: a bucket of titles, of all units."""

    done, read, kind = ("words", "titles"), ("words", "units"), "titles"

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        views = titles.add([shuffle_files.table(messages, COUNTED)]).sort_by("query")
        kept = views.filter(pc.greater_equal(views["count"], self.rules.least_views))
        _write(self.folder.file(unit, "arrow"), kept)
        return {"rows": len(views), "kept": len(kept)}


@dataclasses.dataclass(frozen=True)
class CountPairs:
    """Counts pairs. Unit: the texts of a unit of the first job."""

    work: CountFolder
    rules: Rules
    texts: tuple[int, ...]
    buckets: int

    @property
    def folder(self) -> StepFolder:
        return self.work.step("pairs", "units")

    def units(self) -> int:
        return len(self.texts)

    def run(self, unit: int) -> dict[str, Any]:
        vocabulary = read_vocabulary(self.work)
        counter, parts, rows = PairCounter(), 0, 0
        for batch in storage.read_batches(self.work.step("words", "units").file(self.texts[unit], "texts")):
            tokens = self.rules.tokens(batch["text"])
            counter.add(*ngrams.count_pairs(tokens, vocabulary.forms))
            if counter.pending > MOST_PAIRS:
                rows += self._write(unit, parts, counter, vocabulary)
                counter, parts = PairCounter(), parts + 1
        rows += self._write(unit, parts, counter, vocabulary)
        return {"parts": parts + 1, "rows": rows}

    def _write(self, unit: int, part: int, counter: PairCounter, vocabulary: Vocabulary) -> int:
        pairs, counts = counter.sums()
        batch = pa.record_batch([pairs, counts], schema=PAIRS)
        bucket = hashing.mix(vocabulary.lower_pair(pairs), 0) % np.uint64(self.buckets)
        shuffle_files.write(
            self.folder.file(unit, "pairs", part), shuffle_files.cut(batch, bucket.astype(np.int64), self.buckets)
        )
        return len(pairs)


class MergePairs(_Merge):
    """Adds up pairs. Unit: a bucket of pairs, of all units."""

    done, read, kind = ("pairs", "merged"), ("pairs", "units"), "pairs"

    def run(self, unit: int, messages: list[bytes]) -> dict[str, Any]:
        vocabulary, rules = read_vocabulary(self.work), self.rules
        table = shuffle_files.table(messages, PAIRS)
        pairs, counts = ngrams.add_pairs(table["pair"].to_numpy(), table["count"].to_numpy())
        scored = bigrams.score(pairs, counts, vocabulary, min_count=rules.least_pair, profile=rules.profile)
        _write(self.folder.file(unit, "arrow"), scored)
        return {"rows": len(pairs), "kept": len(scored)}


class Job:
    """Both jobs of one list. As a context it locks their folder, and removes it if the block ends without an error."""

    def __init__(self, options: Options, *, ready: bool, quiet: bool = False) -> None:
        self.options, self.quiet = options, quiet
        self.ledger: dict[str, dict[str, int]] = {}
        self.warnings: list[str] = []
        runners.make_options(options.runner, options.workers, list(options.beam))  # checked before a write
        engine_checks.check_answers(options.runner, options.beam)
        self.listed = list_units(options, self.ledger, self.warnings)
        for line in self.warnings:
            log_file.say(f"queries.build: {line}", quiet=quiet)
        metaclip = options.profile == "metaclip1"  # its pairs may have any words
        self.rules = Rules(
            options.language,
            options.profile,
            1 if ready or metaclip else options.min_count,
            1 if metaclip else options.min_articles,
            options.min_count if options.min_bigram_count is None else options.min_bigram_count,
            min(FEWEST_VIEWS, titles.LEAST_VIEWS if options.min_views is None else options.min_views),
            options.segmenter_in_use,
        )
        size = sum(entry["end"] - entry["start"] for entry in self.listed)
        self.buckets = shuffle_files.power_of_two(size / BUCKET, max_count=256)
        names = [
            [os.path.basename(entry["path"]), entry["kind"], entry["start"], entry["end"]] for entry in self.listed
        ]
        fingerprint = digest_of(RESULT, names, dataclasses.asdict(self.rules))
        self.work = CountFolder(os.path.join(os.path.abspath(options.output), ".counting"), fingerprint)

    def count(self) -> Counted:
        """Runs the first job, which counts words and titles."""
        quiet_beam.import_beam()  # first of all: a plain import of Beam prints warnings
        storage.write_list(os.path.join(self.work.root, "units.json"), self.listed)
        task = CountUnits(self.work, self.rules, self.buckets)
        words, views = MergeWords(self.work, self.rules, self.buckets), MergeTitles(self.work, self.rules, self.buckets)

        def construct(root: Any) -> Any:
            done = run_task(root, task, max_units=len(self.listed))
            sizes = {"buckets": self.buckets, "producers": len(self.listed)}
            done = run_exchange(done, words, **sizes, exchange="files")
            return run_exchange(done, views, **sizes, exchange="files")

        self._run(construct, [("counting words", task.folder, len(self.listed))])
        redirects, links = self._names(task)
        troubles: dict[str, Counter[str]] = {}
        for unit, manifest in task.folder.manifests():
            kind = {"cirrus": "wikipedia", "xml": "wikipedia"}.get(manifest["kind"], manifest["kind"])
            rows = self.ledger.setdefault(kind, {})
            for name, number in manifest["tally"].items():
                rows[name] = rows.get(name, 0) + number
            found = {name: number for name, number in manifest["tally"].items() if name in DAMAGE and number}
            troubles.setdefault(self.listed[unit]["path"], Counter()).update(found)
        self.warnings += [damage_of(path, found) for path, found in troubles.items() if found]
        done = [(_corpus(row["kind"]), row["occurrences"]) for _, row in task.folder.manifests()]
        self.ledger["text_words"] = {name: words.folder.total(name) for name in ("words", "kept")}
        return Counted(
            _read(words.folder, CORPUS_WORDS),
            {corpus: sum(number for of, number in done if of == corpus) for corpus in CORPORA},
            titles.resolve(_read(views.folder, COUNTED), redirects),
            links,
            self.ledger,
            self.warnings,
        )

    def _names(self, task: CountUnits) -> tuple[pa.Table, pa.Table]:
        """The redirects (title, target), and the articles with their number of links from other articles."""
        paths = [task.folder.file(unit, "names") for unit, row in task.folder.manifests() if row["kind"] in DUMPS]
        names = pa.concat_tables([NAMES.empty_table(), *(_read_file(path, NAMES) for path in paths)])
        is_redirect = pc.not_equal(names["target"], "")
        redirects = names.filter(is_redirect).select(["title", "target"])
        articles = names.filter(pc.invert(is_redirect))
        return redirects, pa.table([articles["title"], articles["links"]], schema=COUNTED)

    def pairs(self, vocabulary: Vocabulary, corpus: str) -> pa.Table:
        """Runs the second job, which counts the pairs of the vocabulary's words in a corpus. Returns them as SCORED."""
        table = vocabulary.to_table()
        digest = f"{corpus} {hashing.table_digest(table):x} {vocabulary.occurrences}"
        self.work = work = dataclasses.replace(self.work, pairs=digest_of(self.work.words, digest))
        storage.write_table(work.vocabulary, table)
        units = work.step("words", "units").manifests()
        texts = tuple(unit for unit, row in units if _corpus(row["kind"]) == corpus)
        task = CountPairs(work, self.rules, texts, self.buckets)
        merge = MergePairs(work, self.rules, self.buckets)

        def construct(root: Any) -> Any:
            done = run_task(root, task, max_units=task.units())
            return run_exchange(done, merge, buckets=self.buckets, exchange="files", producers=task.units())

        self._run(construct, [("counting pairs", task.folder, task.units())])
        counts = self.ledger.setdefault("pairs", {"counted": 0, "kept": 0})
        counts["counted"] += merge.folder.total("rows")
        counts["kept"] += merge.folder.total("kept")
        return _read(merge.folder, SCORED)

    def _run(self, construct: Any, watched: list[tuple[str, Any, int]]) -> None:
        o, steps = self.options, [Watched(*row) for row in watched]
        runners.run_job(
            construct,
            (o.runner, o.workers, o.beam),
            root=self.work.root,
            steps=steps,
            program="queries.build",
            quiet=self.quiet,
        )

    def __enter__(self) -> Job:
        self._lock = lock_run_folder(self.work.root)
        self._lock.__enter__()
        storage.remove_stale_files(self.work.root)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            storage.remove(self.work.root)
        self._lock.__exit__(kind, error, trace)


DUMPS = ("cirrus", "xml")


def _corpus(kind: str) -> str:
    """The corpus that a unit of this kind belongs to."""
    return "wikipedia" if kind in DUMPS else kind


# Damage of an input file, in the words of the warning. info.json has the counts under the same names.
DAMAGE = {
    "bz2_truncated": "the file is cut in a bz2 block",
    "bz2_block_damaged": "bz2 blocks that do not unpack",
    "gzip_truncated": "the file is cut in a gzip member",
    "gzip_damaged": "a gzip stream breaks off",
    "page_cut": "pages without their end",
    "record_too_long": "records that are too long",
    "line_malformed": "lines of another form",
    "lines_not_utf8": "lines with bytes that are not UTF-8",
    "wikitext_unparsed": "pages whose wikitext does not parse",
}


def damage_of(path: str, found: Counter[str]) -> str:
    """The warning about a damaged file."""
    parts = ", ".join(f"{DAMAGE[name]} ({found[name]:,})" for name in DAMAGE if found[name])
    return f"{path}: {parts}. The rest of the file was counted. If it should be whole, download it again"


def read_vocabulary(work: CountFolder) -> Vocabulary:
    """Reads the kept words. A process reads them once."""
    if work not in _vocabularies:
        _vocabularies.clear()
        _vocabularies[work] = Vocabulary.from_table(storage.read_table(work.vocabulary))
    return _vocabularies[work]


_vocabularies: dict[CountFolder, Vocabulary] = {}


def _lines(piece: Piece, tally: Counter[str]) -> Iterator[pa.LargeStringArray]:
    """Yields the articles of a piece of plain text: each line is one."""
    pending: list[bytes] = []
    size = 0
    for block in streams.line_blocks(piece, tally):
        pending.append(block)
        size += len(block)
        if size > BATCH:
            yield _split_lines(pending, tally)
            pending, size = [], 0
    if pending:
        yield _split_lines(pending, tally)


def _split_lines(blocks: list[bytes], tally: Counter[str]) -> pa.LargeStringArray:
    data = b"\n".join(blocks)
    text = data.decode("utf-8", "replace")
    lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").values
    lines = lines.filter(pc.not_equal(pc.utf8_trim_whitespace(lines), ""))
    tally["lines"] += len(lines)
    tally["lines_not_utf8"] += int(pc.sum(pc.match_substring(lines, "\ufffd")).as_py() or 0)
    return lines


def _articles(piece: Piece, kind: str, tally: Counter[str], names: list[pa.Table]) -> Iterator[pa.LargeStringArray]:
    """Yields the articles of a piece of a dump. Adds their titles, links and redirects to `names`."""
    texts: list[str] = []
    rows: list[tuple[str, str, int]] = []
    size = 0
    for page in wikipedia.pages(piece, kind, tally):
        rows.append((page.title, page.target, page.links))
        if page.text:
            texts.append(page.text)
            size += len(page.text)
        if size > BATCH or len(rows) > 65_536:
            names.append(_names_table(rows))
            yield pa.array(texts, pa.large_string())
            texts, rows, size = [], [], 0
    names.append(_names_table(rows))
    if texts:
        yield pa.array(texts, pa.large_string())


def _names_table(rows: list[tuple[str, str, int]]) -> pa.Table:
    return pa.table([[row[place] for row in rows] for place in range(3)], schema=NAMES)


def _write(path: str, table: pa.Table) -> None:
    with storage.writing_batches(path, table.schema) as out:
        out.write_table(table)


def _read_file(path: str, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches(storage.read_batches(path), schema)


def _read(folder: Any, schema: pa.Schema) -> pa.Table:
    tables = [_read_file(folder.file(unit, "arrow"), schema) for unit, _ in folder.manifests()]
    return pa.concat_tables([schema.empty_table(), *tables])


def _write_buckets(path: str, table: pa.Table, keys: pa.ChunkedArray, count: int) -> None:
    """Writes each row to the bucket that the hash of its key selects."""
    batch = hashing.as_batch(table)
    bucket = hashing.hash_strings(keys)[:, 0] % np.uint64(count)
    shuffle_files.write(path, shuffle_files.cut(batch, bucket.astype(np.int64), count))
