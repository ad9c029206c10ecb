"""The query list, from public dumps, counts, pageviews and WordNet.

    python -m queries.build --output english --wikipedia 'enwiki_content-*.json.bz2' --pageviews pageviews-*.bz2 \\
        --wordnet /usr/share/wordnet

Into the list go, as in the CLIP paper, the numbers 0-99, WordNet's lemmas, the words that occur at least --min-count
times, the pairs of words that belong together, and the titles that are read most; up to --size. Every source can be
left out. The same inputs give the same list, on any number of workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.engine.cli import (
    CRASHED,
    DONE,
    INTERRUPTED,
    MISSING,
    USAGE,
    MissingInput,
    Parser,
    UsageError,
    check_flags,
    fail,
)
from pipeline.engine.runners import JobFailed, beam_flags
from pipeline.engine.work import Busy

if TYPE_CHECKING:
    from queries.recipe import Sources

# The paper's and MetaCLIP's numbers.
SIZE, MIN_COUNT, MIN_ARTICLES, BIGRAMS, TITLES = 500_000, 100, 3, 100_646, 61_235
PROFILES = ("wit", "metaclip1")


@dataclasses.dataclass(frozen=True)
class Options:
    """One list."""

    output: str
    wikipedia: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    pageviews: tuple[str, ...] = ()
    wordnet: str | None = None
    lemmas: str = "all"  # all | first
    language: str = "en"
    size: int = SIZE
    min_count: int = MIN_COUNT  # occurrences of a word
    min_articles: int = MIN_ARTICLES  # articles with a word
    bigrams: int = BIGRAMS
    min_bigram_count: int | None = None  # None: min_count
    titles: int = TITLES
    min_views: int | None = None  # None: the profile's
    profile: str = "wit"
    export: bool = False
    runner: str = "local"
    workers: int | None = None
    beam: tuple[str, ...] = ()


def expand(patterns: Sequence[str], what: str) -> tuple[str, ...]:
    """The files behind paths, folders and globs, by name.

    Raises:
        MissingInput: a pattern stands for no file.
    """
    found: set[str] = set()
    for pattern in patterns:
        paths = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        files = [name for path in paths for name in _files(path)]
        if not files:
            raise MissingInput(f"--{what} {pattern}: no such file")
        found.update(os.path.abspath(name) for name in files)
    return tuple(sorted(found, key=lambda name: (os.path.basename(name), name)))


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return [
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if not name.startswith((".", "_"))  # _SUCCESS and the like
    ]


def build(options: Options) -> dict[str, Any]:
    """Makes the list and returns info.json.

    Raises:
        MissingInput, UsageError: nothing is written.
        JobFailed, Busy: from the job that counts.
    """
    from queries import recipe
    from queries.counts import CountsError
    from queries.load import QueryError
    from queries.wordnet import WordNetError

    start = time.perf_counter()
    options = dataclasses.replace(
        options,
        wikipedia=expand(options.wikipedia, "wikipedia"),
        text=expand(options.text, "text"),
        counts=expand(options.counts, "counts"),
        pageviews=expand(options.pageviews, "pageviews"),
    )
    try:
        sources: Sources = recipe.collect(options)
        return recipe.write(options, sources, seconds=time.perf_counter() - start)
    except (CountsError, WordNetError, QueryError) as error:
        raise MissingInput(str(error)) from error


# --------------------------------------------------------------------------------------------------- command line


def parse(argv: Sequence[str]) -> tuple[Options, bool]:
    """The command line as Options, and whether to print JSON."""
    parser = _argument_parser()
    check_flags(argv, parser, others=beam_flags)
    known, rest = parser.parse_known_args(argv)
    if rest and not rest[0].startswith("-"):
        raise UsageError(f"unexpected argument {rest[0]!r}")
    values = {field.name: getattr(known, field.name) for field in dataclasses.fields(Options) if field.name != "beam"}
    for name in ("wikipedia", "text", "counts", "pageviews"):
        values[name] = tuple(values[name])
    for name in ("size", "min_count", "min_articles", "bigrams", "titles", "min_bigram_count", "min_views", "workers"):
        least = 1 if name in ("size", "workers") else 0
        if values[name] is not None and values[name] < least:
            raise UsageError(f"--{name.replace('_', '-')} {values[name]}: at least {least}")
    return Options(**values, beam=tuple(rest)), known.json


def _argument_parser() -> argparse.ArgumentParser:
    d = {field.name: field.default for field in dataclasses.fields(Options)}
    parser = Parser(
        prog="python -m queries.build",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder for queries.parquet, info.json and README.md")
    add("--version", action="version", version=f"openwit {__version__}")
    sources = parser.add_argument_group("sources (files, folders or globs)").add_argument
    sources(
        "--wikipedia",
        nargs="+",
        default=[],
        metavar="FILE",
        help="dumps: CirrusSearch index (*.json.bz2, .gz) or MediaWiki XML (*.xml.bz2)",
    )
    sources("--text", nargs="+", default=[], metavar="PATH", help="plain text (.txt, .gz, .bz2): a line is an article")
    sources(
        "--counts",
        nargs="+",
        default=[],
        metavar="FILE",
        help="ready counts: `word count`, `word word<TAB>count`, `count<TAB>word<TAB>word`, wordfreq's *.msgpack.gz",
    )
    sources(
        "--pageviews",
        nargs="+",
        default=[],
        metavar="FILE",
        help="pageview_complete months (pageviews-YYYYMM-user.bz2) or hours (pageviews-*.gz)",
    )
    sources("--wordnet", metavar="DIR", help="folder of WordNet's dict files (Debian: /usr/share/wordnet)")
    rules = parser.add_argument_group("rules").add_argument
    rules("--profile", choices=PROFILES, default=d["profile"], help="whose rules (default: %(default)s)")
    rules("--language", default=d["language"], metavar="en", help="Wikipedia's code (default: %(default)s)")
    rules("--size", type=int, default=d["size"], metavar="N", help="most queries (default: %(default)s)")
    rules(
        "--min-count",
        type=int,
        default=d["min_count"],
        metavar="N",
        help="least occurrences of a word (default: %(default)s)",
    )
    rules(
        "--min-articles",
        type=int,
        default=d["min_articles"],
        metavar="N",
        help="least articles with a word, of dumps and texts (default: %(default)s)",
    )
    rules("--bigrams", type=int, default=d["bigrams"], metavar="N", help="most pairs of words (default: %(default)s)")
    rules("--min-bigram-count", type=int, metavar="N", help="least occurrences of a pair (default: as --min-count)")
    rules("--titles", type=int, default=d["titles"], metavar="N", help="most titles (default: %(default)s)")
    rules("--min-views", type=int, metavar="N", help="least views of a title (default: 70)")
    rules("--lemmas", choices=("all", "first"), default=d["lemmas"], help="of each synset (default: %(default)s)")
    how = parser.add_argument_group("how").add_argument
    how("--export", action="store_true", help="also write queries.txt and queries.json")
    how("--runner", default=d["runner"], help="local, or any Beam runner with its flags (default: %(default)s)")
    how("--workers", type=int, metavar="N", help="processes of the local runner (default: one a core)")
    how("--json", action="store_true", help="print info.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 crash, 2 usage, 4 input missing or empty, 130 interrupted."""
    try:
        options, as_json = parse(sys.argv[1:] if argv is None else argv)
        info = build(options)
        print(json.dumps(info, indent=1, ensure_ascii=False) if as_json else summary(options, info))
        return DONE
    except UsageError as error:
        return fail("queries.build", error, USAGE)
    except MissingInput as error:
        return fail("queries.build", error, MISSING)
    except Busy as error:
        return fail(
            "queries.build", f"another run holds the output folder ({error}): wait for it, or end it first", CRASHED
        )
    except JobFailed as error:
        return fail("queries.build", error, CRASHED)
    except BrokenPipeError:  # `| head`: the list is written
        return DONE
    except KeyboardInterrupt:
        return fail("queries.build", "interrupted; the same command goes on where it was", INTERRUPTED)


def summary(options: Options, info: dict[str, Any]) -> str:
    """What was made, for a person."""
    lines = [f"{info['queries']:,} queries, digest {info['digest'][:16]}: {options.output}/queries.parquet"]
    lines.append(f"{'source':<12}{'offered':>10}{'dead':>8}{'duplicates':>12}{'over size':>11}{'kept':>10}")
    for name, row in info["sources"].items():
        lines.append(
            f"{name:<12}{row['offered']:>10,}{row['dead']:>8,}{row['duplicates']:>12,}{row['over']:>11,}{row['kept']:>10,}"
        )
    lines += [f"warning: {warning}" for warning in info["warnings"]]
    lines.append(f"next: python -m queries.show {options.output}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
