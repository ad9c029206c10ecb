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
from pipeline.text.language_names import LID, NAMES, code_hint, model_code
from pipeline.text.matcher import Matcher
from queries import assemble, bigrams, flags, job, load, rules, segment, titles, wordnet
from queries.bigrams import Vocabulary
from queries.counts import COUNTED, Counts, merge, read_counts
from queries.load import load_queries
from queries.options import SHARES, SIZE

if TYPE_CHECKING:
    from queries.options import Options

RESULT = 3  # raised whenever the same inputs and options give another list
NUMBERS = 100  # 0-99
MOST_LETTERS = 0.3  # share of single letters among the words, above which a text is taken as unsegmented
OPTION_OF = {"wordnet": "wordnet_queries", "word": "words", "bigram": "bigrams", "title": "titles"}
TAKEN = ("number", *OPTION_OF)  # the sources that this module fills itself


@dataclasses.dataclass
class Sources:
    """What the sources offer, in the order in which they fill the list. `ledger` holds counts by source and reason."""

    offers: list[tuple[str, pa.Table]]
    ledger: dict[str, dict[str, int]]
    warnings: list[str]


def collect(options: Options, *, quiet: bool = False) -> Sources:
    """Reads and counts all sources. `quiet` shows neither progress nor warnings.

    Raises:
        CountsError, WordNetError, QueryError: an input cannot be used.
        JobFailed, Busy: from the job that counts dumps, texts and pageviews.
    """
    ledger: dict[str, dict[str, int]] = {}
    offers = [("number", _table({str(number): 0 for number in range(NUMBERS)})), *_lists(options)]
    if options.wordnet is not None:
        offers.append(("wordnet", _wordnet(options)))
    ready = [read_counts(path) for path in options.counts]
    if ready:
        ledger["counts"] = {"lines_without_count": sum(counts.skipped for counts in ready)}
    words = merge([counts.words for counts in ready])
    if options.profile == "wit":
        words, ledger["words"] = _usable(options, words)
    warnings: list[str] = []
    if model_code(_code(options), NAMES) is None:
        warnings.append(
            f"--language {options.language}: the language model {LID} does not know it, so pipeline.build takes this "
            f"list only with --languages all{code_hint(options.language)}"
        )
    pairs = _ready_pairs(options, ready, ledger, warnings)
    if not (options.wikipedia or options.text or options.pageviews):
        offers.append(("word", rules.word_queries(words, min_count=options.min_count)))
        offers.append(("bigram", bigrams.best(pairs, _at_most(options, "bigram"))))
        return Sources(offers, ledger, warnings)
    with job.Job(options, ready=bool(len(words)), quiet=quiet) as counting:
        offers += _count(options, counting, words, pairs)
    return Sources(offers, ledger | counting.ledger, warnings + counting.warnings)


def _count(
    options: Options, counting: job.Job, ready: pa.Table, ready_pairs: list[pa.Table]
) -> list[tuple[str, pa.Table]]:
    """Words, bigrams and titles of dumps, texts and ready counts.

    A word is in the list if all sources together hold it often enough. Pairs are scored within each corpus.
    """
    wit = options.profile == "wit"
    counted = counting.count()
    found = counted.words.rename_columns(["query", "count", *counted.words.column_names[2:]]).combine_chunks()
    if wit:
        _warn_of_letters(options, found, counting.warnings)
        found, counting.ledger["words_of_texts"] = _usable(options, found)
    words = merge([found.select(COUNTED.names), ready])
    listed = words
    if not wit:  # pairs may have any words, but a word of the list needs enough articles
        listed = merge([_counts_of(_in_articles(counted.words, options.min_articles)), ready])
    pairs = list(ready_pairs)
    for corpus in job.CORPORA if options.bigrams != 0 else ():
        in_texts = found["in_texts"]
        counts = in_texts if corpus == "text" else pc.subtract(found["count"], in_texts)
        own = pa.table([found["query"], counts], schema=COUNTED)
        vocabulary = _vocabulary(options, own, words) if counted.occurrences[corpus] else None
        if vocabulary is not None and len(vocabulary.forms):
            vocabulary = dataclasses.replace(vocabulary, occurrences=counted.occurrences[corpus])
            pairs.append(counting.pairs(vocabulary, corpus))
    return [
        ("word", rules.word_queries(listed, min_count=options.min_count)),
        ("bigram", bigrams.best(pairs, _at_most(options, "bigram"))),
        ("title", _titles(options, counted)),
    ]


def _usable(options: Options, words: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """The words that can be queries, and the number of the others by reason."""
    words, dropped = rules.usable_words(words)
    if segment.is_needed(options.language):
        words, parts = rules.without_parts(words)
        dropped |= {"part_of_words": parts} if parts else {}
    return words.combine_chunks(), dropped


def _warn_of_letters(options: Options, words: pa.Table, warnings: list[str]) -> None:
    """Warns if most words are single letters of scripts without blanks: the language is another one than was said."""
    if options.segmenter_in_use:
        return
    letters = words.filter(pc.match_substring_regex(words["query"], f"^{segment.LETTER}$"))
    share = (pc.sum(letters["count"]).as_py() or 0) / max(1, pc.sum(words["count"]).as_py() or 0)
    if share > MOST_LETTERS:
        warnings.append(
            f"{share:.0%} of the words are single letters, since the texts have no blanks between words: give their "
            f"--language, such as zh, ja or th, instead of {options.language}"
        )


def _vocabulary(options: Options, own: pa.Table, words: pa.Table) -> Vocabulary:
    """The words of a corpus that pairs may have: frequent in all sources together, and none of the common words."""
    if options.profile != "wit":
        return Vocabulary.of(own, min_count=1)
    frequent = rules.frequent(words, min_count=options.min_count)
    return Vocabulary.of(own, min_count=1, among=frequent, without=rules.common_words(words, options.language))


def _ready_pairs(
    options: Options, ready: list[Counts], ledger: dict[str, dict[str, int]], warnings: list[str]
) -> list[pa.Table]:
    """SCORED pairs of each file of ready counts.

    The words of a pair are counted in the same file, or in the only file that has words alone.
    """
    wit = options.profile == "wit"
    words_alone = [counts.words for counts in ready if len(counts.words) and not len(counts.pairs)]
    scored, common_pairs, unknown_pairs = [], 0, 0
    for path, counts in zip(options.counts, ready, strict=True):
        pairs, words = counts.pairs, counts.words
        if not len(pairs):
            continue
        if not len(words) and len(words_alone) != 1:
            why = "several files have words alone" if words_alone else "no file has words alone"
            warnings.append(
                f"--counts {path} has pairs but no words, so no pair can be ranked or taken ({why}): add counts of the "
                "words of the same texts to this file"
            )
            continue
        words = words if len(words) else words_alone[0]
        if wit:
            words, _ = rules.usable_words(words)
            pairs = bigrams.without_common(pairs, rules.common_words(words, options.language))
            common_pairs += len(counts.pairs) - len(pairs)
        found, unknown = bigrams.from_counts(
            words,
            pairs,
            min_word_count=options.min_count if wit else 1,
            min_pair_count=options.min_count if options.min_bigram_count is None else options.min_bigram_count,
            profile=options.profile,
        )
        scored.append(found)
        unknown_pairs += unknown
        if unknown > len(pairs) / 2:
            warnings.append(
                f"--counts {path}: {unknown:,} of {len(pairs):,} pairs were left out. A pair is ranked by the counts "
                "of its two words, and no file counts these words often enough: add counts of words"
            )
    for name, number in (("pairs_of_common_words", common_pairs), ("pairs_of_unknown_words", unknown_pairs)):
        if number:
            ledger["counts"][name] = number
    return scored


def _lists(options: Options) -> list[tuple[str, pa.Table]]:
    """The queries of ready lists, by the source that they name ("list" if they name none)."""
    found: dict[str, list[pa.Table]] = collections.defaultdict(list)
    for path in options.lists:
        table = load_queries(path).table
        others = set(pc.unique(table["language"]).to_pylist()) - {"", _code(options)}
        if others:
            raise load.QueryError(
                path,
                f"names the language {sorted(others)[0]}, not {_code(options)}",
                "Give --language, or leave it out.",
            )
        for source in pc.unique(table["source"]).to_pylist():
            rows = table.filter(pc.equal(table["source"], source)).select(COUNTED.names)
            found["list" if source in ("", *TAKEN) else source].append(rows.cast(COUNTED))
    return [(name, pa.concat_tables(tables)) for name, tables in found.items()]


def _counts_of(words: pa.Table) -> pa.Table:
    return words.select(["word", "count"]).rename_columns(COUNTED.names)


def _in_articles(words: pa.Table, min_articles: int) -> pa.Table:
    """The rows of WORDS with at least `min_articles` articles. Here all words are in lower case."""
    return words.filter(pc.greater_equal(words["articles"], min_articles))


def _titles(options: Options, counted: job.Counted) -> pa.Table:
    """Titles by views. Without pageviews, profile `wit` takes them by links from other articles where it can."""
    most = _at_most(options, "title")
    if options.wikipedia and not options.pageviews:
        linked = options.profile == "wit" and len(counted.links) and pc.max(counted.links["count"]).as_py() > 0
        counted.warnings.append(
            "no --pageviews: the titles are those with the most links from other articles"
            if linked
            else "no --pageviews: the list has no titles, because the dump does not say which articles are popular"
        )
    if options.pageviews or options.profile != "wit":
        views = counted.views
        if options.wikipedia and options.profile == "wit":
            views = _of_dump(views, counted)
        min_views = titles.LEAST_VIEWS if options.min_views is None else options.min_views
        return titles.title_queries(views, min_count=min_views, max_titles=most, profile=options.profile)
    min_links = titles.LEAST_LINKS if options.min_views is None else options.min_views
    return titles.title_queries(counted.links, min_count=max(1, min_links), max_titles=most)


def _of_dump(views: pa.Table, counted: job.Counted) -> pa.Table:
    """The views of articles that the dump has. Warns if most titles are not among them."""
    found = titles.in_dump(views, counted.links["query"])
    gone = len(views) - len(found)
    counted.ledger["titles"] = {"no_article_of_the_dump": gone}
    if gone > len(found):
        counted.warnings.append(
            f"{gone:,} of {len(views):,} titles of the pageviews are no articles of the dump and were left out: give "
            "all files of the dump"
        )
    return found


def _wordnet(options: Options) -> pa.Table:
    """WordNet's lemmas, the best first: those with the most tags, then the first lemma of each synset."""
    assert options.wordnet is not None
    if options.profile == "metaclip1":
        return _table(wordnet.metaclip_names(options.wordnet))
    first = wordnet.all_lemmas(options.wordnet, first_only=True)
    lemmas = first if options.lemmas == "first" else wordnet.all_lemmas(options.wordnet)
    ranked = sorted(lemmas.items(), key=lambda row: (-row[1], row[0] not in first, row[0].encode()))
    return _table(dict(ranked))


def _table(counts: dict[str, int]) -> pa.Table:
    return pa.table([list(counts), list(counts.values())], schema=COUNTED)


# ------------------------------------------------------------------------------------------------------- the folder


def write(options: Options, sources: Sources, *, seconds: float) -> dict[str, Any]:
    """Assembles the list, writes its folder, and returns the contents of info.json.

    Raises:
        QueryError: no query is left.
    """
    offers, flagged = _without_flagged(options, sources.offers)
    made = assemble.assemble(
        offers,
        size=options.size,
        language=_code(options),
        literal=options.profile == "metaclip1",
        budgets=budgets(options),
    )
    table = made.table.set_column(5, load.QUERIES.field("flags"), _flags(options, made.table["query"].combine_chunks()))
    if len(table) <= NUMBERS:
        raise load.QueryError(
            options.output,
            "; ".join(["no source gave a query; the list would hold only the numbers 0-99", *sources.warnings]),
            "Give --wordnet, --counts, --text, --wikipedia or --pageviews, or lower --min-count.",
        )
    listed = assemble.write(options.output, table)
    if options.export:
        assemble.export(options.output, listed.queries)
    kept = made.kept()
    info = {
        "queries": len(listed),
        "digest": listed.digest,
        "counts": kept,
        "sources": {
            name: {
                "offered": made.offered[name] + flagged[name],
                "dead": made.dead[name],
                "duplicates": made.duplicates[name],
                "over": made.over[name],
                "flagged": flagged[name],
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
        "versions": versions() | ({"icu": segment.version()} if options.segmenter_in_use == "icu" else {}),
        "seconds": round(seconds, 1),
    }
    storage.write_json(os.path.join(options.output, "info.json"), info)
    storage.write_plain(os.path.join(options.output, "README.md"), readme(info).encode())
    return info


def _code(options: Options) -> str:
    """The language of the list. "simple" is Wikipedia's own code for simple English."""
    return "en" if options.language == "simple" else options.language


def budgets(options: Options) -> dict[str, assemble.Budget]:
    """The room of each source. Room of the shares that a source does not use goes to the others.

    An option that names a number is firm. Profile metaclip1 has the published numbers of pairs and titles as firm ones.
    """
    found = {}
    room = max(0, options.size - NUMBERS)
    for source, share in SHARES.items():
        given = getattr(options, OPTION_OF[source])
        if given is not None:
            found[source] = assemble.Budget(given, firm=True)
        elif options.profile == "wit":
            found[source] = assemble.Budget(room * share // SIZE)
        elif source in ("bigram", "title"):
            found[source] = assemble.Budget(share, firm=True)
    return found


def _at_most(options: Options, source: str) -> int:
    """The number of queries of a source that can be in the list at most."""
    budget = budgets(options).get(source)
    return budget.queries if budget is not None and budget.firm else options.size


def _without_flagged(
    options: Options, offers: list[tuple[str, pa.Table]]
) -> tuple[list[tuple[str, pa.Table]], dict[str, int]]:
    """The offers without slurs and explicit terms, and how many each source lost.

    With --keep-flagged and with profile metaclip1, none is lost.
    """
    if options.keep_flagged or options.profile != "wit":
        return offers, dict.fromkeys((name for name, _ in offers), 0)
    kept = []
    for name, table in offers:
        here = pc.equal(flags.flags_of(table["query"].combine_chunks(), options.language), "")
        kept.append((name, table.filter(here)))
    return kept, {name: len(table) - len(left) for (name, table), (_, left) in zip(offers, kept, strict=True)}


def _flags(options: Options, queries: pa.StringArray) -> pa.StringArray:
    """The flags of the list: of slurs and explicit terms that it keeps, and those that ready lists give."""
    found = flags.flags_of(queries, options.language)
    for path in options.lists:
        given = load_queries(path).table
        place = pc.index_in(rules.keys(queries), rules.keys(given["query"].combine_chunks()))
        found = pc.coalesce(given["flags"].combine_chunks().take(place), found)
    return found


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
    for kind in ("wikipedia", "text", "counts", "pageviews", "lists"):
        for path in getattr(options, kind):
            found.append({"kind": kind, "name": os.path.basename(path), "bytes": os.path.getsize(path)})
    for part in wordnet.PARTS if options.wordnet is not None else ():
        path = os.path.join(str(options.wordnet), f"data.{part}")
        found.append({"kind": "wordnet", "name": os.path.basename(path), "bytes": os.path.getsize(path)})
    return found


def shown(options: Options) -> dict[str, Any]:
    """The options that decide the list, without those of this machine and its paths."""
    hidden = {
        "output",
        "wikipedia",
        "text",
        "counts",
        "pageviews",
        "lists",
        "wordnet",
        "export",
        "runner",
        "workers",
        "beam",
    }
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
    "lists": "query lists given on the command line: their own licence applies",
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
