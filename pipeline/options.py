"""What a user may say to `pipeline.build`: a group of options a stage, and the flat, frozen `Options` made of them."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from pipeline import __version__
from pipeline.engine import checks, recipe, runners
from pipeline.engine.cli import MissingInput, UsageError
from pipeline.engine.command_line import CommandLine
from pipeline.engine.options import REQUIRED, nearest, option
from pipeline.engine.work import STAGES
from pipeline.text.language_names import NAMES, nearest_code

DESCRIPTION = """Web archives or tables in, balanced image-text shards out.

    python -m pipeline.build --input crawl/*.warc.gz --output out
    python -m pipeline.build --config out/recipe.yaml --output again

Every stage leaves a folder OUT/stages/<name>; one that is COMPLETED is not done again, so the same command after a
crash goes on where it was."""


# ------------------------------------------------------------------------------------------------------ what and where


def stage_range(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """gather..balance -> the stages from the first to the last; one name is a range of one."""
    if isinstance(given, str):
        first, _, last = given.partition("..")
        given = first, last or first
    for name in given:
        if name not in STAGES:
            raise UsageError(f"must be stages of {', '.join(STAGES)}{nearest(name, STAGES)}")
    chosen = STAGES[STAGES.index(given[0]) : STAGES.index(given[-1]) + 1] if given else ()
    if not chosen:
        raise UsageError(f"must be a first and a last stage, in the order of {', '.join(STAGES)}")
    return chosen


def _ours(folder: str, names: list[str]) -> bool:
    """Is it the folder of a run? A run makes its lock files first; a copy may hold only what was published."""
    if ".workers" in names or names == [".lock"]:
        return True
    if set(STAGES) & set(_listed(os.path.join(folder, "stages"))):
        return True
    return {"digest", "files", "ledger"} <= set(checks.read_object(os.path.join(folder, "manifest.json")))


def _listed(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _check_output(path: str) -> None:
    checks.output_folder(path, ours=_ours)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is read, where it goes, and how far."""

    title: ClassVar[str] = ""

    input: tuple[str, ...] = option(
        REQUIRED,
        help="files, folders, globs, @LIST, URLs, or cc:CC-MAIN-2026-05[0:100]",
        metavar="WHAT",
        check=checks.not_empty,
    )
    output: str = option(
        REQUIRED,
        help="folder of the run, new or empty; an existing run there is continued",
        metavar="OUT",
        check=_check_output,
        steers=True,
    )
    stages: tuple[str, ...] = option(
        STAGES,
        help=f"first and last stage of: {', '.join(STAGES)}",
        default_text="all",
        metavar="A..B",
        parse=stage_range,
        steers=True,
    )
    seed: int = option(0, help="of every choice that looks random", within="[0, 2^64)")
    keep_rejected: str = option(
        "sample", help="dropped rows that are kept: 1,000 a reason, all, none", choices=("sample", "all", "none")
    )


# -------------------------------------------------------------------------------------------------------------- gather


def language_codes(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """en,DE -> ("en", "de"); `all` is no filter. A name such as eng_Latn, of a user's own model, keeps its case."""
    parts = given.split(",") if isinstance(given, str) else given
    codes = [code.strip() for code in parts if code.strip()]
    codes = [code.lower() if re.fullmatch(r"[A-Za-z]{2,3}", code) else code for code in codes]
    return () if codes == ["all"] else tuple(dict.fromkeys(codes))


def _check_model(value: str) -> None:
    if value not in ("auto", "own", "none"):
        checks.readable_file(value)


def _model_languages(path: str) -> list[str]:
    """The codes that a user's own model knows."""
    from pipeline.text.language import LanguageModel

    try:
        return LanguageModel.load(path).languages
    except ValueError as error:
        raise MissingInput(f"--language-model {path}: is no fastText model ({error})") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatherSettings:
    """Which pairs are read, and which are kept for their language."""

    title: ClassVar[str] = "gather"

    input_format: str = option(
        "auto",
        help="of all inputs",
        default_text="auto, by name and first bytes",
        choices=("auto", "wat", "warc", "table"),
    )
    url_column: str = option("url", help="of tables", metavar="NAME", check=checks.not_empty)
    text_column: str = option("text", help="of tables", metavar="NAME", check=checks.not_empty)
    languages: tuple[str, ...] = option(
        (),
        help="keep texts in these languages, by ISO 639-1 code",
        default_text="all",
        metavar="en,de",
        parse=language_codes,
    )
    language_model: str = option(
        "auto",
        help="auto, own, none, or a fastText model's path",
        default_text="auto: own for archives, none for tables",
        metavar="M",
        check=_check_model,
    )
    min_language_score: float = option(0.2, help="least probability of a wanted language", metavar="P", within="[0, 1]")
    respect_opt_out: bool = option(
        True,
        flag="--ignore-opt-out",
        help="keep pairs of pages that forbid AI training (noai, noimageai, tdm-reservation)",
    )

    @staticmethod
    def check_together(o: Any) -> None:
        """Two columns, and languages that the model knows."""
        if o.url_column == o.text_column:
            raise UsageError(f"--text-column {o.text_column}: must be another column than --url-column")
        if o.languages and o.language_model == "none":
            raise UsageError("--language-model none: must be a model, since --languages asks for languages")
        if not o.languages:
            return
        own = o.language_model in ("auto", "own")
        known = NAMES if own else _model_languages(o.language_model)
        for code in o.languages:
            if code not in known:
                hint = f"; did you mean {nearest_code(code)}?" if own else nearest(code, known)
                whose = "the language model" if own else o.language_model
                raise UsageError(f"--languages {code}: must be ISO 639-1 codes that {whose} knows{hint}")


# ----------------------------------------------------------------------------------------------------- match and dedup


def _check_queries(path: str) -> None:
    if not checks.URL.match(path):
        checks.readable_file(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """Which queries a text contains."""

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
    case: str = option("exact", help="exact: case counts; fold: it does not", choices=("exact", "fold"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupSettings:
    """Which URLs are placeholders."""

    title: ClassVar[str] = "dedup"

    placeholder_bound: int = option(
        50, help="a URL with more texts than this is a placeholder and goes; 0: off", within="[0, 1e9]"
    )


# ------------------------------------------------------------------------------------------------------------- balance


def _check_stop_queries(value: str) -> None:
    if not value.endswith("%"):
        checks.readable_file(value)
        return
    try:
        percent = float(value[:-1])
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise UsageError("must be a file, or a share of the texts over 0% and at most 100%")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BalanceSettings:
    """How many pairs a query picks."""

    title: ClassVar[str] = "balance"

    balance: str = option(
        "cap",
        help="cap: each query picks at most --cap pairs, exactly; bernoulli: as MetaCLIP draws",
        choices=("cap", "bernoulli", "none"),
    )
    cap: int = option(20_000, help="pairs that a query may pick", metavar="T", within="[1, 1e12]")
    target_pairs: int | None = option(None, help="solve for the cap that keeps about so many pairs", within="[1, 1e12]")
    expected_yield: float = option(
        1.0,
        help="share of the pairs expected to come through the fetch: so many more are fetched that --cap or "
        "--target-pairs is met after it",
        metavar="FRACTION",
        within="(0, 1]",
    )
    stop_queries: str | None = option(
        None,
        help="queries that never pick a pair alone: a list, or those in more than a share of the texts",
        metavar="FILE|5%",
        check=_check_stop_queries,
    )


# --------------------------------------------------------------------------------------------------------------- fetch


def _check_network(value: str) -> None:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        try:
            near = f"; did you mean {ipaddress.ip_network(value, strict=False)}?"
        except ValueError:
            near = ""
        raise UsageError(f"must be a network such as 127.0.0.0/8 or ::1/128{near}") from None


def _check_contact(value: str) -> None:
    if not re.fullmatch(r"[!-~]([ -~]{0,253}[!-~])?", value):
        raise UsageError("must be a URL or an address of at most 255 printable ASCII characters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """Which images are fetched, and how they are stored."""

    title: ClassVar[str] = "fetch"

    allow_address: tuple[str, ...] = option(
        (),
        help="non-public addresses that may be fetched from, e.g. 127.0.0.0/8",
        default_text="none",
        metavar="CIDR",
        check=_check_network,
    )
    image_size: int = option(
        256, help="short side of stored images", unit="pixels", metavar="PX", within="[1, 65535]"
    )  # a JPEG's longest side
    deadline: float = option(
        30.0, help="time that a URL may take in all", unit="seconds", metavar="S", within="(0, 86400]"
    )
    user_agent_contact: str | None = option(
        None,
        help="where a webmaster can reach you; becomes part of the user agent",
        metavar="URL",
        check=_check_contact,
    )
    retry_failed: bool = option(
        False, help="fetch again what failed in a way that may pass, then publish anew", steers=True
    )


# ------------------------------------------------------------------------------------------------ dedup-images, publish


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupImagesSettings:
    """Which images are equal: nothing can be set yet."""

    title: ClassVar[str] = "dedup-images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """The form of the published set."""

    title: ClassVar[str] = "publish"

    rows_per_shard: int = option(10_000, help="most pairs of a shard", within="[1, 1e6]")


# ----------------------------------------------------------------------------------------------------------------- how


@dataclasses.dataclass(frozen=True, kw_only=True)
class HowSettings:
    """Where and how a run is carried out: nothing of this decides a row."""

    title: ClassVar[str] = "how"

    runner: str = option(
        "local",
        help="local, or any Beam runner (FlinkRunner, PrismRunner ...) with Beam's own flags",
        metavar="NAME",
        check=runners.check_name,
        steers=True,
    )
    workers: int | None = option(
        None, help="of the local runner", default_text="one a core", unit="processes", within="[1, 1024]", steers=True
    )
    exchange: str = option(
        "files",
        help="files: where all workers share OUT; shuffle: through the engine",
        choices=("files", "shuffle"),
        steers=True,
    )
    redo: str | None = option(
        None, help="make this stage and those after it anew", choices=STAGES, metavar="STAGE", steers=True
    )
    beam: tuple[str, ...] = option((), flag=(), help="Beam's own flags", steers=True)


@dataclasses.dataclass(frozen=True)
class Options(
    HowSettings,
    PublishSettings,
    DedupImagesSettings,
    FetchSettings,
    BalanceSettings,
    DedupSettings,
    MatchSettings,
    GatherSettings,
    RunSettings,
):
    """One run: the options of all groups, by name. `engine.options.validate` checks them."""


GROUPS = tuple(reversed(Options.__bases__))  # in the order of the way


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowSettings:
    """What concerns one command line alone."""

    title: ClassVar[str] = "this command"

    config: str | None = option(
        None,
        help="recipe (.yaml, .toml or .json) with options by name, such as OUT/recipe.yaml; flags win over it",
        metavar="FILE",
        steers=True,
    )
    print_config: bool = option(False, help="print the recipe that results, and do nothing", steers=True)
    plan: bool = option(False, flag=("--plan", "--dry-run"), help="say what would be done, and do nothing", steers=True)
    json: bool = option(False, help="print the summary as JSON", steers=True)


COMMAND_LINE = CommandLine(
    program="python -m pipeline.build",
    description=DESCRIPTION,
    version=f"openwit {__version__}",
    options=Options,
    groups=GROUPS,
    how=ShowSettings,
    others=runners.beam_flags,
)


def parse(argv: Sequence[str]) -> tuple[Options, ShowSettings]:
    """The command line as Options, validated, and what concerns this command line alone.

    Raises:
        UsageError, MissingInput: it cannot be carried out; nothing was written, and Beam was not imported.
    """
    return COMMAND_LINE.parse(argv)


def recipe_text(options: Options) -> str:
    """The recipe of a run as YAML: --config takes it, and gives the same set from it. No password is in it."""
    from pipeline.sources.inputs import public_spec

    comment = f"openwit {__version__}\npython -m pipeline.build --config recipe.yaml --output OUT"
    return recipe.write(options, comment=comment, public={"input": public_spec})
