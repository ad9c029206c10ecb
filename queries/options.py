"""The options of `queries.build`: the sources and rules of one list."""

from __future__ import annotations

import dataclasses
import functools
import glob
import os
import re
from typing import Any, ClassVar

from pipeline import __version__
from pipeline.engine import checks, engine_checks, recipe, runners
from pipeline.engine.cli import MissingInput, UsageError
from pipeline.engine.log_options import LogSettings
from pipeline.engine.options import REQUIRED, option
from pipeline.text.language_names import NAMES, code_hint
from queries import segment
from queries.wordnet import PARTS

# The numbers of the CLIP paper and of MetaCLIP.
SIZE, MIN_COUNT, MIN_ARTICLES = 500_000, 100, 3
SHARES = {"wordnet": 86_654, "word": 251_465, "bigram": 100_646, "title": 61_235}  # of SIZE
PROFILES = ("wit", "metaclip1")
COUNT = "[0, 1e15]"


def _ours(folder: str, names: list[str]) -> bool:
    """True for the folder of a list, and for a folder whose list is being counted."""
    info = checks.read_object(os.path.join(folder, "info.json"))
    return ".counting" in names or ("queries.parquet" in names and {"queries", "digest", "ledger"} <= set(info))


def _check_output(path: str) -> None:
    checks.output_folder(path, ours=_ours)


def _check_wordnet(folder: str) -> None:
    missing = [f"data.{part}" for part in PARTS if not os.path.isfile(os.path.join(folder, f"data.{part}"))]
    if missing:
        raise MissingInput(
            f"must be the folder that holds {', '.join(missing)}, such as /usr/share/wordnet of Debian's wordnet-base"
        )


def _check_language(code: str) -> None:
    """Checks the form of the code alone, since Wikipedia has more languages than the model. Refuses English names."""
    names = {name.lower() for name in NAMES.values()}
    if code.lower() in names or not re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*|[a-z]{4,}", code):
        raise UsageError(f"must be Wikipedia's code, such as en, simple or zh-yue{code_hint(code)}")


def files_of(pattern: str) -> list[str]:
    """The files that a path, a folder or a glob stands for.

    Raises:
        MissingInput: there is no such file.
    """
    paths = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
    found = [name for path in paths for name in _files(path)]
    if not found:
        raise MissingInput("no such file")
    return found


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return [
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if not name.startswith((".", "_"))  # _SUCCESS and the like
    ]


def _check_files(pattern: str) -> None:
    for path in files_of(pattern):
        checks.readable_file(path)


_sources = functools.partial(option, (), check=_check_files)


def _budget(source: str, things: str) -> Any:
    share = f"{SHARES[source] / SIZE:.1%} of --size, and the room that other sources leave"
    return option(None, help=f"maximum number of {things}", default_text=share, within="[0, 1e9]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What the list is made from."""

    title: ClassVar[str] = "sources (files, folders or globs)"

    wikipedia: tuple[str, ...] = _sources(
        help="dumps: CirrusSearch index (*.json.bz2, .gz) or MediaWiki XML (*.xml.bz2)", metavar="FILE"
    )
    text: tuple[str, ...] = _sources(help="plain text (.txt, .gz, .bz2): a line is an article", metavar="PATH")
    counts: tuple[str, ...] = _sources(
        help="ready counts: `word count`, `word word<TAB>count`, `count<TAB>word<TAB>word`, wordfreq's *.msgpack.gz",
        metavar="FILE",
    )
    pageviews: tuple[str, ...] = _sources(
        help="pageview_complete months (pageviews-YYYYMM-user.bz2) or hours (pageviews-*.gz)", metavar="FILE"
    )
    lists: tuple[str, ...] = _sources(
        help="query lists that are taken whole, such as queries/data/benchmarks.parquet", metavar="FILE"
    )
    wordnet: str | None = option(
        None, help="folder of WordNet's dict files (Debian: /usr/share/wordnet)", metavar="DIR", check=_check_wordnet
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """What is taken from the sources."""

    title: ClassVar[str] = "rules"

    profile: str = option("wit", help="rules to follow: ours (wit) or MetaCLIP's", choices=PROFILES)
    language: str = option("en", help="Wikipedia's code", metavar="CODE", check=_check_language)
    segmenter: str = option(
        "icu",
        help="what finds the words in texts of a language without blanks, such as Chinese, Japanese or Thai: ICU's "
        "dictionaries (pip install icu4py), or the blanks that another program has put between them",
        choices=segment.SEGMENTERS,
    )
    size: int = option(SIZE, help="maximum number of queries in the list", within="[1, 1e9]")
    min_count: int = option(MIN_COUNT, help="minimum occurrences of a word in all sources together", within=COUNT)
    min_articles: int = option(MIN_ARTICLES, help="minimum articles with a word, in dumps and texts", within=COUNT)
    wordnet_queries: int | None = _budget("wordnet", "lemmas of WordNet")
    words: int | None = _budget("word", "words")
    bigrams: int | None = _budget("bigram", "word pairs")
    min_bigram_count: int | None = option(
        None, help="minimum occurrences of a pair", default_text="as --min-count", within=COUNT
    )
    titles: int | None = _budget("title", "titles")
    min_views: int | None = option(None, help="minimum views of a title", default_text="70", within=COUNT)
    lemmas: str = option("all", help="lemmas to take from each synset", choices=("all", "first"))
    keep_flagged: bool = option(False, help="keep slurs and explicit English terms, with their flags")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhereSettings:
    """Where the list goes."""

    title: ClassVar[str] = ""

    output: str = option(
        REQUIRED,
        help="folder for queries.parquet, info.json and README.md, new or empty; an earlier list there is replaced",
        metavar="DIR",
        check=_check_output,
        steers=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HowSettings:
    """How the list is made. These options change no query."""

    title: ClassVar[str] = "how"

    export: bool = option(False, help="also write queries.txt and queries.json", steers=True)
    runner: str = option(
        "local",
        help="local, or any Beam runner with its flags",
        metavar="NAME",
        check=runners.check_name,
        steers=True,
    )
    workers: int | None = option(
        None,
        help="workers of the local runner",
        unit="processes",
        default_text="one a core",
        within="[1, 1024]",
        steers=True,
    )
    beam: tuple[str, ...] = option((), flag=(), help="Beam's own flags", steers=True)

    @staticmethod
    def check_together(o: Any) -> None:
        """Refuses an engine without its parts."""
        engine_checks.check_flags(o.runner, o.beam)


@dataclasses.dataclass(frozen=True)
class Options(HowSettings, RuleSettings, SourceSettings, WhereSettings):
    """One list. `engine.options.validate` checks it."""

    @property
    def segmenter_in_use(self) -> str:
        """What finds the words of the texts: "" where blanks and punctuation do, as profile metaclip1 has it."""
        if self.profile != "wit" or not (self.text or self.wikipedia) or not segment.is_needed(self.language):
            return ""
        return self.segmenter

    @staticmethod
    def check_together(options: Options) -> None:
        """Refuses texts whose words nothing finds."""
        if options.segmenter_in_use == "icu" and not segment.is_installed():
            raise UsageError(
                f"--language {options.language} writes no blanks between words, and icu4py, which finds them, is not "
                "installed: pip install icu4py, or give texts with blanks between words and --segmenter blanks"
            )


GROUPS = tuple(reversed(Options.__bases__))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowSettings(LogSettings):
    """Options of one call of the command line. No recipe holds them."""

    title: ClassVar[str] = "this command"

    config: str | None = option(
        None,
        help="recipe (.yaml, .toml or .json) with options by name; flags win over it",
        metavar="FILE",
        steers=True,
    )
    print_config: bool = option(False, help="print the recipe that results, and do nothing", steers=True)
    json: bool = option(False, help="print info.json", steers=True)


def with_files(options: Options) -> Options:
    """The options with each pattern replaced by its files, sorted by name."""
    found: dict[str, Any] = {}
    for name in ("wikipedia", "text", "counts", "pageviews", "lists"):
        paths = {os.path.abspath(path) for pattern in getattr(options, name) for path in files_of(pattern)}
        found[name] = tuple(sorted(paths, key=lambda path: (os.path.basename(path), path)))
    return dataclasses.replace(options, **found)


def recipe_text(options: Options) -> str:
    """The recipe of a list as YAML, as --config reads it."""
    comment = f"openwit {__version__}\npython -m queries.build --config recipe.yaml --output DIR"
    return recipe.write(options, comment=comment)
