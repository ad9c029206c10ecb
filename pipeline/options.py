"""The command line of `pipeline.build`: what a user may say, and the frozen `Options` that it becomes."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from pipeline import __version__
from pipeline.engine.cli import Parser, UsageError, check_flags, suggestion
from pipeline.engine.runners import beam_flags
from pipeline.schema import STAGES as NAMES
from pipeline.stages import STAGES
from pipeline.stages.run import HowSettings, RunSettings

DESCRIPTION = """Web archives or tables in, balanced image-text shards out.

    python -m pipeline.build --input crawl/*.warc.gz --output out

Every stage leaves a folder OUT/stages/<name>; one that is COMPLETED is not done again, so the same command after a
crash goes on where it was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(HowSettings, *[stage.options for stage in reversed(STAGES)], RunSettings):  # type: ignore[misc]
    """One run, grouped by stage in the order of the way."""


def parse(argv: Sequence[str]) -> tuple[Options, argparse.Namespace]:
    """The command line as Options, and the flags that only say how to print."""
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    parser = _argument_parser(defaults)
    check_flags(argv, parser, others=beam_flags)
    known, rest = parser.parse_known_args(argv)
    if rest and not rest[0].startswith("--"):
        raise UsageError(f"unexpected argument {rest[0]!r}")
    values = vars(known)
    chosen = {field.name: values[field.name] for field in dataclasses.fields(Options) if field.name in values}
    for name in ("input", "allow_address"):
        chosen[name] = tuple(chosen[name])
    chosen["languages"] = tuple(code.strip() for code in known.languages.split(",") if code.strip())
    chosen["stages"] = stage_range(known.stages)
    chosen["beam"] = tuple(rest)
    return Options(**chosen), known


def stage_range(text: str) -> tuple[str, ...]:
    """gather..balance -> the stages from the first to the last; one name is a range of one."""
    first, _, last = text.partition("..")
    last = last or first
    for name in (first, last):
        if name not in NAMES:
            raise UsageError(f"no stage {name!r}{suggestion(name, NAMES)} ({', '.join(NAMES)})")
    if NAMES.index(first) > NAMES.index(last):
        raise UsageError(f"--stages {text}: {first!r} comes after {last!r}")
    return NAMES[NAMES.index(first) : NAMES.index(last) + 1]


def _argument_parser(d: dict[str, Any]) -> argparse.ArgumentParser:
    """All flags, a group a stage, in the order of the way; `d` are the defaults of Options."""
    parser = Parser(
        prog="python -m pipeline.build",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_run(parser.add_argument, d)
    for name, add_flags in GROUPS.items():
        add_flags(parser.add_argument_group(name).add_argument, d)
    return parser


def _add_run(add: Callable[..., Any], d: dict[str, Any]) -> None:
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="WHAT",
        help="files, folders, globs, @LIST, URLs, or cc:CC-MAIN-2026-05[0:100]",
    )
    add("--output", required=True, metavar="OUT", help="folder of the run; an existing run there is continued")
    add(
        "--stages",
        default=f"{NAMES[0]}..{NAMES[-1]}",
        metavar="A..B",
        help=f"first and last stage of: {', '.join(NAMES)} (default: all)",
    )
    add("--version", action="version", version=f"openwit {__version__}")
    add("--seed", type=int, default=d["seed"], help="of every random-looking choice (default: %(default)s)")
    add(
        "--keep-rejected",
        choices=("sample", "all", "none"),
        default=d["keep_rejected"],
        help="dropped rows that are kept: 1,000 a reason, all, none (default: %(default)s)",
    )


def _add_gather(add: Callable[..., Any], d: dict[str, Any]) -> None:
    add(
        "--input-format",
        choices=("auto", "wat", "warc", "table"),
        default="auto",
        help="(default: %(default)s, by name and first bytes)",
    )
    add("--url-column", default=d["url_column"], help="of tables (default: %(default)s)")
    add("--text-column", default=d["text_column"], help="of tables (default: %(default)s)")
    add("--languages", default="", metavar="en,de", help="keep texts in these languages (default: all)")
    add(
        "--language-model",
        default=d["language_model"],
        metavar="M",
        help="auto, own, none, or a fastText model's path (default: %(default)s: own for archives, none for tables)",
    )
    add(
        "--min-language-score",
        type=float,
        default=d["min_language_score"],
        metavar="P",
        help="least probability of a wanted language, 0..1 (default: %(default)s)",
    )
    add(
        "--ignore-opt-out",
        dest="respect_opt_out",
        action="store_false",
        help="keep pairs of pages that forbid AI training (noai, noimageai, tdm-reservation)",
    )


def _add_match(add: Callable[..., Any], d: dict[str, Any]) -> None:
    add(
        "--queries",
        metavar="FILE",
        help="txt, JSON, TSV/CSV or Parquet (default: the list that comes with the project)",
    )
    add(
        "--match",
        choices=("wide", "metaclip"),
        default=d["match"],
        help="wide: texts and queries pass one normaliser; metaclip: MetaCLIP's substrings (default: %(default)s)",
    )
    add("--case", choices=("exact", "fold"), default=d["case"], help="(default: %(default)s)")


def _add_dedup(add: Callable[..., Any], d: dict[str, Any]) -> None:
    add(
        "--placeholder-bound",
        type=int,
        default=d["placeholder_bound"],
        metavar="N",
        help="a URL with more than N texts is a placeholder and goes; 0: off (default: %(default)s)",
    )


def _share(text: str) -> float:
    """The value of a flag that is a share: over 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no fraction over 0 and up to 1, such as 0.7")
    return value


def _add_balance(add: Callable[..., Any], d: dict[str, Any]) -> None:
    add(
        "--balance",
        choices=("cap", "bernoulli", "none"),
        default=d["balance"],
        help="(default: %(default)s: each query picks at most --cap pairs, exactly)",
    )
    add("--cap", type=int, default=d["cap"], metavar="T", help="pairs a query (default: %(default)s)")
    add("--target-pairs", type=int, metavar="N", help="solve for the cap that keeps about N pairs")
    add(
        "--expected-yield",
        type=_share,
        default=d["expected_yield"],
        metavar="FRACTION",
        help="share of the pairs expected to come through the fetch: so many more are fetched that --cap or "
        "--target-pairs is met after it (default: %(default)s)",
    )
    add(
        "--stop-queries",
        metavar="FILE|5%",
        help="queries that never pick a pair alone: a list, or those in more than a share of the texts",
    )


def _add_fetch(add: Callable[..., Any], d: dict[str, Any]) -> None:
    add(
        "--allow-address",
        nargs="+",
        default=[],
        metavar="CIDR",
        help="non-public addresses that may be fetched from, e.g. 127.0.0.0/8 (default: none)",
    )
    add(
        "--image-size",
        type=int,
        default=d["image_size"],
        metavar="PX",
        help="short side of stored images (default: %(default)s)",
    )
    add(
        "--deadline",
        type=float,
        default=d["deadline"],
        metavar="S",
        help="seconds a URL may take in all (default: %(default)s)",
    )
    add("--user-agent-contact", metavar="URL", help="where a webmaster can reach you; becomes part of the user agent")
    add("--retry-failed", action="store_true", help="fetch again what failed in a way that may pass, then publish anew")


def _add_publish(add: Callable[..., Any], d: dict[str, Any]) -> None:
    add("--rows-per-shard", type=int, default=d["rows_per_shard"], metavar="N", help="(default: %(default)s)")


def _add_how(add: Callable[..., Any], d: dict[str, Any]) -> None:
    add(
        "--runner",
        default=d["runner"],
        help="local, or any Beam runner (FlinkRunner, PrismRunner ...) with Beam's own flags (default: %(default)s)",
    )
    add("--workers", type=int, metavar="N", help="processes of the local runner (default: one a core)")
    add(
        "--exchange",
        choices=("files", "shuffle"),
        default=d["exchange"],
        help="files: where all workers share OUT; shuffle: through the engine (default: %(default)s)",
    )
    add("--redo", choices=NAMES, metavar="STAGE", help="make this stage and those after it anew")
    add("--plan", "--dry-run", dest="plan", action="store_true", help="say what would be done, do nothing")
    add("--json", action="store_true", help="print the summary as JSON")


GROUPS = {
    "gather": _add_gather,
    "match": _add_match,
    "dedup": _add_dedup,
    "balance": _add_balance,
    "fetch": _add_fetch,
    "publish": _add_publish,
    "how": _add_how,
}
