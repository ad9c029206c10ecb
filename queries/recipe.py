"""Collects what each source offers, and writes the folder of the list.

Profile `wit` (the default) splits texts with the matcher's normaliser, takes every lemma of WordNet, and ranks the
frequent pairs of words by NPMI. Profile `metaclip1` follows MetaCLIP's published rules exactly. It takes the first
lemma of a synset, cut at a dot. It counts words as wikipedia-word-frequency does. It keeps all pairs with PMI >= 30,
however rare. It ranks titles by the desktop views of single hours. It normalises nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import __version__
from pipeline.engine import storage
from pipeline.text.matcher import Matcher
from queries import assemble, bigrams, job, rules, titles, wordnet
from queries.bigrams import Vocabulary
from queries.counts import COUNTED, merge, read_counts

if TYPE_CHECKING:
    from queries.options import Options

RESULT = 1  # raised whenever the same inputs and options give another list
NUMBERS = 100  # 0-99


@dataclasses.dataclass
class Sources:
    """What the sources offer, in the order in which they fill the list. `ledger` holds counts by source and reason."""

    offers: list[tuple[str, pa.Table]]
    ledger: dict[str, dict[str, int]]
    warnings: list[str]


def collect(options: Options, *, quiet: bool = False) -> Sources:
    """Reads and counts all sources. `quiet` shows neither progress nor warnings.

    Raises:
        CountsError, WordNetError: an input cannot be used.
        JobFailed, Busy: from the job that counts dumps, texts and pageviews.
    """
    ledger: dict[str, dict[str, int]] = {}
    offers = [("number", _table({str(number): 0 for number in range(NUMBERS)}))]
    if options.wordnet is not None:
        offers.append(("wordnet", _wordnet(options)))
    words, pairs = _ready_counts(options, ledger)
    if options.profile == "wit":
        words, ledger["words"] = rules.usable_words(words)
    warnings = []
    if len(pairs) and not len(words):
        warnings.append("--counts has pairs but no words, so no pair can be ranked or taken: add counts of words")
    ready, unknown = bigrams.from_counts(
        words,
        pairs,
        min_word_count=options.min_count if options.profile == "wit" else 1,
        min_pair_count=options.min_count if options.min_bigram_count is None else options.min_bigram_count,
        profile=options.profile,
    )
    if unknown:
        ledger["counts"]["pairs_of_unknown_words"] = unknown
    if unknown > len(pairs) / 2 and len(words):
        warnings.append(
            f"--counts: {unknown:,} of {len(pairs):,} pairs were left out. A pair is ranked by the counts of its two "
            "words, and no file counts these words often enough: add counts of words"
        )
    if not (options.wikipedia or options.text or options.pageviews):
        offers.append(("word", rules.word_queries(words, min_count=options.min_count)))
        offers.append(("bigram", bigrams.best([ready], options.bigrams)))
        return Sources(offers, ledger, warnings)
    with job.Job(options, ready=bool(len(words)), quiet=quiet) as counting:
        offers += _count(options, counting, words, ready)
    return Sources(offers, ledger | counting.ledger, warnings + counting.warnings)


def _count(options: Options, counting: job.Job, ready: pa.Table, ready_pairs: pa.Table) -> list[tuple[str, pa.Table]]:
    """Words, bigrams and titles of dumps, texts and ready counts.

    A word is in the list if all sources together hold it often enough. Pairs are scored within each corpus.
    """
    wit = options.profile == "wit"
    counted = counting.count()
    found = _counts_of(counted.words)
    if wit:
        found, counting.ledger["words_of_texts"] = rules.usable_words(found.combine_chunks())
    words = merge([found, ready])
    listed = words
    if not wit:  # pairs may have any words, but a word of the list needs enough articles
        listed = merge([_counts_of(_in_articles(counted.words, options.min_articles)), ready])
    pairs = ready_pairs.slice(0, 0)
    if wit:
        frequent = rules.frequent(words, min_count=options.min_count)
        vocabulary = Vocabulary.of(found, min_count=1, among=frequent)
    else:
        vocabulary = Vocabulary.of(found, min_count=1)
    vocabulary = dataclasses.replace(vocabulary, occurrences=counted.occurrences)
    if len(vocabulary.forms) and options.bigrams:
        pairs = counting.pairs(vocabulary)
    return [
        ("word", rules.word_queries(listed, min_count=options.min_count)),
        ("bigram", bigrams.best([pairs, ready_pairs], options.bigrams)),
        ("title", _titles(options, counted)),
    ]


def _counts_of(words: pa.Table) -> pa.Table:
    return words.select(["word", "count"]).rename_columns(COUNTED.names)


def _in_articles(words: pa.Table, min_articles: int) -> pa.Table:
    """The rows of WORDS with at least `min_articles` articles. Here all words are in lower case."""
    return words.filter(pc.greater_equal(words["articles"], min_articles))


def _titles(options: Options, counted: job.Counted) -> pa.Table:
    """Titles by views. Without pageviews, profile `wit` takes them by links from other articles where it can."""
    min_views = titles.LEAST_VIEWS if options.min_views is None else options.min_views
    if options.pageviews or options.profile != "wit":
        return titles.title_queries(
            counted.views, min_count=min_views, max_titles=options.titles, profile=options.profile
        )
    min_links = titles.LEAST_LINKS if options.min_views is None else options.min_views
    return titles.title_queries(counted.links, min_count=max(1, min_links), max_titles=options.titles)


def _wordnet(options: Options) -> pa.Table:
    assert options.wordnet is not None
    if options.profile == "metaclip1":
        return _table(wordnet.metaclip_names(options.wordnet))
    return rules.ranked(_table(wordnet.all_lemmas(options.wordnet, first_only=options.lemmas == "first")))


def _ready_counts(options: Options, ledger: dict[str, dict[str, int]]) -> tuple[pa.Table, pa.Table]:
    """The words and the pairs of all --counts files, added up."""
    found = [read_counts(path) for path in options.counts]
    if found:
        ledger["counts"] = {"lines_without_count": sum(counts.skipped for counts in found)}
    return merge([counts.words for counts in found]), merge([counts.pairs for counts in found])


def _table(counts: dict[str, int]) -> pa.Table:
    return pa.table([list(counts), list(counts.values())], schema=COUNTED)


# ------------------------------------------------------------------------------------------------------- the folder


def write(options: Options, sources: Sources, *, seconds: float) -> dict[str, Any]:
    """Assembles the list, writes its folder, and returns the contents of info.json.

    Raises:
        QueryError: no query is left.
    """
    made = assemble.assemble(
        sources.offers,
        size=options.size,
        language="en" if options.language == "simple" else options.language,  # Wikipedia's own code for simple English
        literal=options.profile == "metaclip1",
    )
    if len(made.table) <= NUMBERS:
        from queries.load import QueryError

        raise QueryError(
            options.output,
            "no source gave a query; the list would hold only the numbers 0-99",
            "Give --wordnet, --counts, --text, --wikipedia or --pageviews, or lower --min-count.",
        )
    listed = assemble.write(options.output, made.table)
    if options.export:
        assemble.export(options.output, listed.queries)
    kept = made.kept()
    info = {
        "queries": len(listed),
        "digest": listed.digest,
        "counts": kept,
        "sources": {
            name: {
                "offered": made.offered[name],
                "dead": made.dead[name],
                "duplicates": made.duplicates[name],
                "over": made.over[name],
                "kept": kept[name],
            }
            for name in made.offered
        },
        "dead": sum(made.dead.values()),
        "duplicates": sum(made.duplicates.values()),
        "dead_samples": made.dead_samples,
        "duplicate_samples": made.duplicate_samples,
        "dead_in_list": dead_in_list(listed.queries),
        "stop_queries": stop_queries(listed.table),
        "ledger": sources.ledger,
        "warnings": sources.warnings,
        "inputs": inputs(options),
        "options": shown(options),
        "versions": versions(),
        "seconds": round(seconds, 1),
    }
    storage.write_json(os.path.join(options.output, "info.json"), info)
    storage.write_plain(os.path.join(options.output, "README.md"), readme(info).encode())
    return info


def dead_in_list(queries: pa.StringArray) -> dict[str, int]:
    """The number of queries in the list that no text can match, by mode of matching."""
    return {mode: len(Matcher.build(queries, mode=mode).dead) for mode in ("wide", "metaclip")}


def stop_queries(table: pa.Table) -> list[str]:
    """The queries with the highest counts. Nearly every text holds one: see --stop-queries of the pipeline."""
    most = table.sort_by([("count", "descending"), ("query", "ascending")]).slice(0, assemble.SAMPLES)
    return most.filter(pc.greater(most["count"], 0))["query"].to_pylist()


def inputs(options: Options) -> list[dict[str, Any]]:
    """Name and size of every file that was read."""
    found = []
    for kind in ("wikipedia", "text", "counts", "pageviews"):
        for path in getattr(options, kind):
            found.append({"kind": kind, "name": os.path.basename(path), "bytes": os.path.getsize(path)})
    for part in wordnet.PARTS if options.wordnet is not None else ():
        path = os.path.join(str(options.wordnet), f"data.{part}")
        found.append({"kind": "wordnet", "name": os.path.basename(path), "bytes": os.path.getsize(path)})
    return found


def shown(options: Options) -> dict[str, Any]:
    """The options that decide the list, without those of this machine and its paths."""
    hidden = {"output", "wikipedia", "text", "counts", "pageviews", "wordnet", "export", "runner", "workers", "beam"}
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in hidden}


def versions() -> dict[str, str]:
    """The versions of what made the list."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"openwit": __version__, "result": str(RESULT), "python": python, "pyarrow": pa.__version__}


LICENCES = {
    "wikipedia": "Wikipedia, by its authors: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)",
    "text": "texts given on the command line: their own licence applies",
    "counts": (
        "counts given on the command line: their own licence applies (wordfreq's data are CC BY-SA 4.0, "
        "https://github.com/rspeer/wordfreq)"
    ),
    "pageviews": "pageview counts of the Wikimedia Foundation: CC0",
    "wordnet": "WordNet 3.0, copyright 2006 by Princeton University, under the WordNet licence",
}


def readme(info: dict[str, Any]) -> str:
    """The text of README.md: what the list is, its inputs, and their licences."""
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    for item in info["inputs"]:
        kinds[item["kind"]].append(f"`{item['name']}` ({item['bytes']:,} bytes)")
    lines = [
        f"# {info['queries']:,} queries ({info['options']['language']})",
        "",
        f"Digest `{info['digest']}` (sha256 of the queries, one a line, in the order of their bytes).",
        f"Made by `python -m queries.build`, profile `{info['options']['profile']}`; more in `info.json`.",
        "",
        "| source | queries |",
        "|---|---:|",
        *(f"| {name} | {count:,} |" for name, count in info["counts"].items()),
        "",
        "## Provenance and licences",
        "",
    ]
    for kind, names in kinds.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        lines.append(f"- {LICENCES[kind]}. Read: {', '.join(names[:5])}{more}.")
    return "\n".join(lines) + "\n"
