"""Web archives or tables in, balanced image-text shards out.

    python -m pipeline.build --input crawl/*.warc.gz --output out

The whole way, one file a stage: gather -> match -> dedup -> balance (`select`, one Beam job), fetch, and
dedup_images -> publish. Every stage leaves a folder OUT/stages/<name>; one that is COMPLETED is not done again, so the
same command after a crash goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import __version__
from pipeline.runners import ENVIRONMENT_ERRORS, JobFailed
from pipeline.work import STAGES, Busy, PlanChanged, UsageError, Work, digest_of

if TYPE_CHECKING:
    from pipeline.sources.inputs import Input

RESULT = 1  # raised whenever the same input and options give other rows: an older folder is then not continued

UNKNOWN_BYTES = 350 << 20  # of an input whose size no listing told: a WAT file of Common Crawl
KERNEL_ROWS = 50_000  # expected rows from which workers load the kernels before they begin
WORKER_DEATHS = 2  # jobs that are begun again, where they were, because a worker died

DONE, CRASHED, USAGE, BELOW, MISSING, INTERRUPTED = 0, 1, 2, 3, 4, 130


class MissingInput(ValueError):
    """What the command line names is not there (exit code 4)."""


@dataclasses.dataclass(frozen=True)
class Options:
    """One run, grouped by stage in the order of the way."""

    # what and where
    input: tuple[str, ...]
    output: str
    stages: tuple[str, ...] = STAGES
    seed: int = 0
    keep_rejected: str = "sample"  # sample: 1,000 rows a reason | all | none
    # gather
    input_format: str = "auto"
    url_column: str = "url"
    text_column: str = "text"
    languages: tuple[str, ...] = ()
    language_model: str = "auto"  # auto: own for archives or if languages are asked for, else none
    min_language_score: float = 0.2  # P(language)
    respect_opt_out: bool = True
    # match
    queries: str | None = None
    match: str = "wide"
    case: str = "exact"
    # dedup
    placeholder_bound: int = 50  # texts of one URL; 0: no bound
    # balance
    balance: str = "cap"
    cap: int = 20_000  # pairs a query
    target_pairs: int | None = None
    stop_queries: str | None = None  # a file, or a share of the texts such as 5%
    # fetch
    allow_address: tuple[str, ...] = ()
    image_size: int = 256  # pixels, short side
    deadline: float = 30.0  # seconds a URL
    user_agent_contact: str | None = None
    retry_failed: bool = False
    # publish
    rows_per_shard: int = 10_000
    # how
    runner: str = "local"
    workers: int | None = None
    exchange: str = "files"
    redo: str | None = None
    beam: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """Options with everything looked up: inputs, queries, the plan of each stage, the sizes of the exchanges."""

    options: Options
    work: Work
    inputs: list[Input]
    queries: Any  # queries.load.QueryList
    key_bits: int
    groups: int
    most_parts: int

    @property
    def inputs_file(self) -> str:
        return os.path.join(self.work.root, "inputs.json")

    @property
    def queries_file(self) -> str:
        return os.path.join(self.work.root, "queries.parquet")

    @property
    def tables(self) -> str:
        return os.path.join(self.work.stage("match"), "tables")

    def wants(self, stage: str) -> bool:
        """True if the stage is asked for and not done yet."""
        return stage in self.options.stages and not self.work.completed(stage)


# ---------------------------------------------------------------------------------------------------- the whole way


def select(root: Any, run: Run) -> Any:
    """gather .. balance: one pass over the input, then only narrow columns cross, then the selected rows."""
    from pipeline import balance, dedup, gather, match

    o, work, rows = run.options, run.work, root
    matching = match.MatchRows(run.tables)
    together = run.wants("gather") and run.wants("match")
    if run.wants("match"):
        rows = rows | match.Tables(match.BuildTables(work, run.queries_file, run.tables, o.match, o.case))
    if run.wants("gather"):
        task = gather.GatherInputs(
            work=work,
            inputs=run.inputs_file,
            columns=(o.url_column, o.text_column),
            rules=cleaning(run),
            keep_rejected=o.keep_rejected,
            then=matching if together else None,
            key_bits=run.key_bits,
        )
        rows = rows | gather.Gather(task)
    if run.wants("match") and not together:
        rows = rows | match.Match(
            match.MatchParts(work, work.step("gather", "parts"), matching, o.keep_rejected, run.key_bits)
        )
    if run.wants("dedup"):
        rows = rows | dedup.Dedup(dropping(run), way=o.exchange)
    if run.wants("balance"):
        plan = balance_plan(run)
        rows = rows | balance.Balance(plan, plan.rows, keep_rejected=o.keep_rejected, way=o.exchange)
    return rows


def fetch(root: Any, run: Run) -> Any:
    """The images of the selected pairs: from the web, host by host, or out of the archives."""
    from pipeline.fetch import Fetch

    return root | Fetch(fetching(run), way=run.options.exchange)


def publish(root: Any, run: Run) -> Any:
    """dedup-images and publish: pure functions of what was fetched."""
    from pipeline.dedup_images import DedupImages
    from pipeline.publish import Publish

    o, rows = run.options, root
    if run.wants("dedup-images"):
        rows = rows | DedupImages(dropping_images(run), fetching(run), way=o.exchange)
    if run.wants("publish"):
        most = max(1, -(-run.work.done("balance")["rows_out"] // o.rows_per_shard))
        rows = rows | Publish(publishing(run), way=o.exchange, most_shards=most)
    return rows


def finish_publish(run: Run) -> None:
    """Writes info.json and COMPLETED of each stage of `publish`, in order; the published manifest with it."""
    from pipeline import dedup_images
    from pipeline import publish as publishing_stage

    if run.wants("dedup-images"):
        dedup_images.complete(dropping_images(run))
    if run.wants("publish"):
        publishing_stage.complete(publishing(run), options=published_options(run.options), versions=versions())


def finish_select(run: Run) -> None:
    """Writes info.json and COMPLETED of each stage of `select`, in order."""
    from pipeline import balance, dedup, passes

    work, keep = run.work, run.options.keep_rejected
    together = run.wants("gather") and run.wants("match")
    if run.wants("gather"):
        passes.complete(work, "gather", work.step("match" if together else "gather", "parts"), keep_rejected=keep)
    if run.wants("match"):
        passes.complete(work, "match", work.step("match", "parts"), keep_rejected=keep)
    if run.wants("dedup"):
        dedup.complete(dropping(run))
    if run.wants("balance"):
        balance.complete(balance_plan(run), keep)


def build(options: Options, say: Callable[[str], None] = print) -> Run:
    """Does what is asked for and not done yet.

    Raises:
        UsageError, MissingInput: before anything is written.
        Busy: another run holds the folder.
    """
    from pipeline import files, runners, work

    start = time.perf_counter()
    run = prepare(options)
    runners.import_beam()
    with work.locked(run.work.root):
        files.sweep(run.work.root)
        if options.redo:
            forget(run, options.redo)
        check_plans(run)
        save_lists(run)
        if any(run.wants(stage) for stage in STAGES[:4]):
            run_job(lambda root: select(root, run), run, "select")
            finish_select(run)
        if options.retry_failed:
            retry_failed(run)
        if run.wants("fetch"):
            run_job(lambda root: fetch(root, run), run, "fetch")
            finish_fetch(run)
        if run.wants("dedup-images") or run.wants("publish"):
            files.remove(os.path.join(run.work.root, "manifest.json"))  # it would promise files that are replaced now
            run_job(lambda root: publish(root, run), run, "publish")
            finish_publish(run)
    say(f"done in {time.perf_counter() - start:.1f} s: {run.work.root}")
    return run


# ------------------------------------------------------------------------------------------------- what it rests on


def prepare(options: Options) -> Run:
    """Looks up inputs and queries and lays down the plan of each stage."""
    from pipeline.sources import inputs as sources

    try:
        inputs = sources.expand(options.input, input_format=options.input_format)
    except sources.InputError as error:
        raise MissingInput(str(error)) from error
    queries = load_queries(options)
    rows = sum(expected_rows(item) for item in inputs)
    plans = stage_plans(options, inputs, queries.digest)
    return Run(
        options=options,
        work=Work(os.path.abspath(options.output), tuple(plans.items()), about(options)),
        inputs=inputs,
        queries=queries,
        key_bits=min(12, max(4, (int(44 * rows) >> 26).bit_length())),
        groups=min(1024, max(1, round(rows / 500_000))),
        most_parts=1 << min(16, max(3, int(rows / 50_000).bit_length())),
    )


def stage_plans(options: Options, inputs: list[Input], query_digest: str) -> dict[str, str]:
    """Per stage a digest of all that decides its rows: the plan before it and its own options."""
    o = options
    own: dict[str, Any] = {
        "gather": [
            RESULT,
            [[item.name, item.format, item.bytes, item.part] for item in inputs],
            [o.url_column, o.text_column, o.languages, o.min_language_score, o.respect_opt_out, o.keep_rejected],
            language_model(o, inputs),
        ],
        "match": [query_digest, o.match, o.case],
        "dedup": [o.placeholder_bound],
        "balance": [o.balance, o.cap, o.target_pairs, o.stop_queries, o.seed],
        "fetch": [o.image_size],
        "dedup-images": [],
        "publish": [o.rows_per_shard],
    }
    plans, before = {}, ""
    for stage in STAGES:
        before = plans[stage] = digest_of(before, own[stage])
    return plans


def cleaning(run: Run) -> Any:
    """The rules of gather."""
    from pipeline.gather import Cleaning

    o = run.options
    return Cleaning(o.languages, language_model(o, run.inputs), o.min_language_score, o.respect_opt_out)


def language_model(options: Options, inputs: list[Input]) -> str:
    """The model that names languages; "none" where nobody asked: tables come without, archives with."""
    if options.language_model != "auto":
        return options.language_model
    return "own" if options.languages or any(item.format != "table" for item in inputs) else "none"


def dropping(run: Run) -> Any:
    """How duplicates are found among the matched rows."""
    from pipeline import dedup

    o = run.options
    return dedup.dropping(
        run.work,
        run.work.step("match", "parts"),
        key_bits=run.key_bits,
        groups=run.groups,
        placeholder_bound=o.placeholder_bound,
        keep_rejected=o.keep_rejected,
    )


def balance_plan(run: Run) -> Any:
    """How balance is done."""
    from pipeline import dedup
    from pipeline.balancing import Plan, Policy

    o = run.options
    share = None
    stop = o.stop_queries
    if stop and stop.endswith("%"):
        share, stop = float(stop[:-1]) / 100, None
    policy = Policy(o.balance, o.cap, o.target_pairs, o.seed, stop, share)
    return Plan(
        run.work, "balance", dedup.remaining(dropping(run)), policy, run.tables, run.queries_file, run.most_parts
    )


def fetching(run: Run) -> Any:
    """How images are fetched."""
    from pipeline.balance import SELECTED_ROWS
    from pipeline.fetch import Fetching
    from pipeline.fetching.options import PROJECT_URL, FetchOptions

    o, work = run.options, run.work
    options = FetchOptions(
        allow_addresses=o.allow_address,
        deadline_s=o.deadline,
        image_size=o.image_size,
        contact=o.user_agent_contact or PROJECT_URL,
    )
    rows = work.done("balance")["rows_out"]
    gathered = work.step("match", "parts")
    if not any("images" in manifest for _, manifest in gathered.manifests()):
        gathered = work.step("gather", "parts")  # gather ran on its own
    return Fetching(
        work=work,
        selected=work.step("balance", SELECTED_ROWS),
        gathered=gathered,
        inputs=run.inputs_file,
        hosts=min(4096, max(1, rows // 2_500)),
        options=options,
        keep_rejected=o.keep_rejected,
    )


def finish_fetch(run: Run) -> None:
    """Writes fetch's info.json and COMPLETED."""
    from pipeline import fetch as fetch_stage

    fetch_stage.complete(fetching(run))


def retry_failed(run: Run) -> None:
    """Asks for one more pass over what failed in a way that may pass; what is published is made anew from it."""
    from pipeline import fetch as fetch_stage

    info = run.work.info("fetch")
    if info is None or not info["retryable"]:
        return  # a pass is under way or none is needed
    forget(run, "dedup-images")
    fetch_stage.ask_for_another_pass(fetching(run))


def dropping_images(run: Run) -> Any:
    """How equal images are found among the fetched rows."""
    from pipeline import dedup_images

    rows = run.work.done("fetch")["rows_out"]
    bits = min(12, max(0, (44 * rows >> 26).bit_length()))
    groups = min(1024, max(1, round(rows / 250_000)))
    return dedup_images.dropping(run.work, key_bits=bits, groups=groups, keep_rejected=run.options.keep_rejected)


def publishing(run: Run) -> Any:
    """How the shards are made: balanced with the cap that balance used."""
    from pipeline import dedup_images, gather
    from pipeline.publish import Publishing

    o = run.options
    rows = dedup_images.remaining(dropping_images(run))
    before = balance_plan(run)
    policy = dataclasses.replace(before.policy, cap=run.work.done("balance")["cap"], target_pairs=None)
    plan = dataclasses.replace(before, stage="publish", rows=rows, policy=policy)
    names = tuple(gather.source_names(run.inputs_file))
    return Publishing(plan, rows, dedup_images.SETTLED, fetching(run), names, o.rows_per_shard, o.keep_rejected)


def published_options(options: Options) -> dict[str, Any]:
    """The options that decide the rows, as the manifest shows them: nothing of this machine or of this run."""
    hidden = {"input", "output", "stages", "runner", "workers", "exchange", "redo", "beam", "retry_failed", "queries"}
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in hidden}


def about(options: Options) -> str:
    """What every info.json says of the run, as JSON."""
    return json.dumps({"options": published_options(options), "versions": versions()}, sort_keys=True)


def versions() -> dict[str, str]:
    """What made the set."""
    from importlib import metadata

    names = ("openwit", "apache-beam", "img2dataset", "numpy", "pillow", "pyarrow")
    found = {"python": ".".join(map(str, sys.version_info[:3])), "result": str(RESULT)}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def load_queries(options: Options) -> Any:
    """The query list that the user named, or the one that comes with the project."""
    from queries import load

    path = options.queries or load.default_list()
    try:
        return load.load_queries(path)
    except FileNotFoundError as error:
        raise MissingInput(f"the query list {path!r} is not there") from error
    except load.QueryError as error:
        raise MissingInput(str(error)) from error


def expected_rows(item: Input) -> float:
    """A rough number of pairs in an input, to size the exchanges by: the result does not depend on it."""
    size = item.bytes if item.bytes is not None else UNKNOWN_BYTES
    if item.part is not None:
        return 1_000_000
    return size / (60 if item.format == "table" else 500)


def save_lists(run: Run) -> None:
    """Writes what workers and readers of the folder need: inputs and queries."""
    from pipeline import files, gather

    gather.save_inputs(run.inputs_file, run.inputs)
    files.write_table(run.queries_file, run.queries.table)


def check_plans(run: Run) -> None:
    """Refuses to go on with stages that were made otherwise, or from stages that are not there."""
    for stage in STAGES:
        try:
            run.work.completed(stage)
        except PlanChanged:
            raise UsageError(
                f"{run.work.root} holds the stage {stage!r} made from other inputs or with other options: "
                f"use another --output, repeat the options of that run, or add --redo {stage} to make it anew"
            ) from None
    first = STAGES.index(run.options.stages[0])
    if first and not run.work.completed(STAGES[first - 1]):
        raise UsageError(
            f"--stages begins with {STAGES[first]!r}, but {STAGES[first - 1]!r} is not done in {run.work.root}: "
            f"begin with an earlier stage"
        )


def forget(run: Run, stage: str) -> None:
    """Removes a stage and those after it, so that they are made anew."""
    from pipeline import files

    for later in reversed(STAGES[STAGES.index(stage) :]):  # none is left that was made from one that is gone
        files.remove(run.work.stage(later))


def run_job(construct: Callable[[Any], Any], run: Run, job: str) -> None:
    """Runs one Beam pipeline on the runner that was asked for."""
    from pipeline import files, progress, runners

    steps = watched(run, job)
    kernels = sum(expected_rows(item) for item in run.inputs) > KERNEL_ROWS
    runner, options = runners.make_options(
        run.options.runner, run.options.workers, list(run.options.beam), kernels=kernels
    )
    for left in range(WORKER_DEATHS, -1, -1):
        try:
            with progress.watching(steps):
                return runners.run_pipeline(construct, runner, options)
        except runners.WorkerDied as error:
            if not left:
                raise
            print(f"pipeline.build: {error}; going on", file=sys.stderr)
            runner, options = runners.make_options(
                run.options.runner, run.options.workers, list(run.options.beam), kernels=kernels
            )
        finally:
            files.sweep(run.work.root)  # what workers had begun that were ended


def watched(run: Run, job: str) -> list[Any]:
    """The steps of the jobs, in order, as the progress line names them."""
    from pipeline.progress import Watched

    names: dict[str, list[tuple[str, str, int | None]]] = {
        "select": [("gather", "parts", len(run.inputs)), ("match", "parts", len(run.inputs)), ("dedup", "drops", None)],
        "fetch": [("fetch", "hosts", None), ("fetch", "images-000", None)],
        "publish": [("dedup-images", "parts", None), ("publish", "selected", None), ("publish", "shards", None)],
    }
    steps = ("counts", "band", "selected", "rows")
    balance: list[tuple[str, str, int | None]] = [("balance", step, None) for step in steps]
    listed = names[job] + (balance if job == "select" else [])
    return [Watched(f"{name} {step}", run.work.step(name, step), units) for name, step, units in listed]


# --------------------------------------------------------------------------------------------------- command line


class _Parser(argparse.ArgumentParser):
    """argparse with our exit codes and a suggestion for a flag that does not exist."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(argv: Sequence[str]) -> tuple[Options, argparse.Namespace]:
    """The command line as Options, and the flags that only say how to print."""
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    parser = _argument_parser(defaults)
    known, rest = parser.parse_known_args(argv)
    values = vars(known)
    chosen = {field.name: values[field.name] for field in dataclasses.fields(Options) if field.name in values}
    for name in ("input", "allow_address"):
        chosen[name] = tuple(chosen[name])
    chosen["languages"] = tuple(code.strip() for code in known.languages.split(",") if code.strip())
    chosen["stages"] = stage_range(known.stages)
    chosen["beam"] = tuple(rest)
    if rest:
        check_beam_flags(rest, parser)
    return Options(**chosen), known


def stage_range(text: str) -> tuple[str, ...]:
    """gather..balance -> the stages from the first to the last; one name is a range of one."""
    first, _, last = text.partition("..")
    last = last or first
    for name in (first, last):
        if name not in STAGES:
            near = difflib.get_close_matches(name, STAGES, n=1)
            raise UsageError(f"no stage {name!r}{f': did you mean {near[0]!r}?' if near else ''} ({', '.join(STAGES)})")
    if STAGES.index(first) > STAGES.index(last):
        raise UsageError(f"--stages {text}: {first!r} comes after {last!r}")
    return STAGES[STAGES.index(first) : STAGES.index(last) + 1]


def check_beam_flags(rest: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Beam would drop an unknown flag silently."""
    own = [flag for action in parser._actions for flag in action.option_strings]
    from pipeline import runners

    known = [*own, *runners.beam_flags()]
    for word in rest:
        name = word.split("=")[0]
        if name.startswith("-") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(f"unknown flag {name}{f': did you mean {near[0]}?' if near else ''}")
        if not name.startswith("-") and word == rest[0]:
            raise UsageError(f"unexpected argument {word!r}")


def _argument_parser(d: dict[str, Any]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m pipeline.build",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
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
        default=f"{STAGES[0]}..{STAGES[-1]}",
        metavar="A..B",
        help=f"first and last stage of: {', '.join(STAGES)} (default: all)",
    )
    add("--version", action="version", version=f"openwit {__version__}")
    add("--seed", type=int, default=d["seed"], help="of every random-looking choice (default: %(default)s)")
    add(
        "--keep-rejected",
        choices=("sample", "all", "none"),
        default=d["keep_rejected"],
        help="dropped rows that are kept: 1,000 a reason, all, none (default: %(default)s)",
    )
    gather = parser.add_argument_group("gather")
    gather.add_argument(
        "--input-format",
        choices=("auto", "wat", "warc", "table"),
        default="auto",
        help="(default: %(default)s, by name and first bytes)",
    )
    gather.add_argument("--url-column", default=d["url_column"], help="of tables (default: %(default)s)")
    gather.add_argument("--text-column", default=d["text_column"], help="of tables (default: %(default)s)")
    gather.add_argument("--languages", default="", metavar="en,de", help="keep texts in these languages (default: all)")
    gather.add_argument(
        "--language-model",
        default=d["language_model"],
        metavar="M",
        help="auto, own, none, or a fastText model's path (default: %(default)s: own for archives, none for tables)",
    )
    gather.add_argument(
        "--min-language-score",
        type=float,
        default=d["min_language_score"],
        metavar="P",
        help="least probability of a wanted language, 0..1 (default: %(default)s)",
    )
    gather.add_argument(
        "--ignore-opt-out",
        dest="respect_opt_out",
        action="store_false",
        help="keep pairs of pages that forbid AI training (noai, noimageai, tdm-reservation)",
    )
    match = parser.add_argument_group("match")
    match.add_argument(
        "--queries",
        metavar="FILE",
        help="txt, JSON, TSV/CSV or Parquet (default: the list that comes with the project)",
    )
    match.add_argument(
        "--match",
        choices=("wide", "metaclip"),
        default=d["match"],
        help="wide: texts and queries pass one normaliser; metaclip: MetaCLIP's substrings (default: %(default)s)",
    )
    match.add_argument("--case", choices=("exact", "fold"), default=d["case"], help="(default: %(default)s)")
    dedup = parser.add_argument_group("dedup")
    dedup.add_argument(
        "--placeholder-bound",
        type=int,
        default=d["placeholder_bound"],
        metavar="N",
        help="a URL with more than N texts is a placeholder and goes; 0: off (default: %(default)s)",
    )
    balance = parser.add_argument_group("balance")
    balance.add_argument(
        "--balance",
        choices=("cap", "bernoulli", "none"),
        default=d["balance"],
        help="(default: %(default)s: each query picks at most --cap pairs, exactly)",
    )
    balance.add_argument("--cap", type=int, default=d["cap"], metavar="T", help="pairs a query (default: %(default)s)")
    balance.add_argument("--target-pairs", type=int, metavar="N", help="solve for the cap that keeps about N pairs")
    balance.add_argument(
        "--stop-queries",
        metavar="FILE|5%%",
        help="queries that never pick a pair alone: a list, or those in more than a share of the texts",
    )
    fetch = parser.add_argument_group("fetch")
    fetch.add_argument(
        "--allow-address",
        nargs="+",
        default=[],
        metavar="CIDR",
        help="non-public addresses that may be fetched from, e.g. 127.0.0.0/8 (default: none)",
    )
    fetch.add_argument(
        "--image-size",
        type=int,
        default=d["image_size"],
        metavar="PX",
        help="short side of stored images (default: %(default)s)",
    )
    fetch.add_argument(
        "--deadline",
        type=float,
        default=d["deadline"],
        metavar="S",
        help="seconds a URL may take in all (default: %(default)s)",
    )
    fetch.add_argument(
        "--user-agent-contact", metavar="URL", help="where a webmaster can reach you; becomes part of the user agent"
    )
    fetch.add_argument(
        "--retry-failed", action="store_true", help="fetch again what failed in a way that may pass, then publish anew"
    )
    publish = parser.add_argument_group("publish")
    publish.add_argument(
        "--rows-per-shard", type=int, default=d["rows_per_shard"], metavar="N", help="(default: %(default)s)"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--runner",
        default=d["runner"],
        help="local, or any Beam runner (FlinkRunner, PrismRunner ...) with Beam's own flags (default: %(default)s)",
    )
    how.add_argument("--workers", type=int, metavar="N", help="processes of the local runner (default: one a core)")
    how.add_argument(
        "--exchange",
        choices=("files", "shuffle"),
        default=d["exchange"],
        help="files: where all workers share OUT; shuffle: through the engine (default: %(default)s)",
    )
    how.add_argument("--redo", choices=STAGES, metavar="STAGE", help="make this stage and those after it anew")
    how.add_argument("--plan", "--dry-run", dest="plan", action="store_true", help="say what would be done, do nothing")
    how.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 crash, 2 usage, 3 below a threshold, 4 input missing."""
    try:
        options, how = parse(sys.argv[1:] if argv is None else argv)
        if how.plan:
            print_plan(options, as_json=how.json)
            return DONE
        run = build(options, say=lambda line: print(line, file=sys.stderr))
        print_summary(run, as_json=how.json)
        return DONE
    except UsageError as error:
        print(f"pipeline.build: {error}", file=sys.stderr)
        return USAGE
    except MissingInput as error:
        print(f"pipeline.build: {error}", file=sys.stderr)
        return MISSING
    except Busy as error:
        print(
            f"pipeline.build: another run holds the output folder ({error}): wait for it, or end it first",
            file=sys.stderr,
        )
        return CRASHED
    except (JobFailed, OSError) as error:
        if isinstance(error, OSError) and error.errno not in ENVIRONMENT_ERRORS:
            raise
        print(f"pipeline.build: {told(error)}", file=sys.stderr)
        return CRASHED
    except KeyboardInterrupt:
        print("pipeline.build: interrupted; the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED


def told(error: Exception) -> str:
    """A failure that the same command may survive, and what to do about it."""
    text = str(error)
    if re.search(r"No space left on device|Disk quota exceeded", text):
        return f"the disk is full ({text}): free some space, then the same command goes on where it was"
    return text if "the same command" in text else f"{text}; that mended, the same command goes on where it was"


def ledger(run: Run) -> list[dict[str, Any]]:
    """The ledger of all stages that are done."""
    infos = [run.work.info(stage) for stage in STAGES]
    return [
        {name: info[name] for name in ("stage", "rows_in", "rows_out", "dropped", "digest")} for info in infos if info
    ]


def print_summary(run: Run, *, as_json: bool) -> None:
    """The ledger, and what to do next."""
    rows = ledger(run)
    if as_json:
        print(json.dumps({"output": run.work.root, "ledger": rows}, indent=1))
        return
    for row in rows:
        print(f"{row['stage']:<14}{row['rows_in']:>14,} -> {row['rows_out']:>14,}")
        for reason, count in sorted(row["dropped"].items(), key=lambda item: -item[1]):
            print(f"    {reason:<26}{count:>14,}")
    print(f"next: python -m pipeline.inspect_shards info {run.work.root}")


def print_plan(options: Options, *, as_json: bool) -> None:
    """What a run would read and do, and roughly what it would take."""
    from pipeline.estimate import estimate

    run = prepare(options)
    sizes: dict[str, int] = {}
    for item in {(item.path, item.format, item.bytes) for item in run.inputs}:
        sizes[item[1]] = sizes.get(item[1], 0) + (item[2] if item[2] is not None else UNKNOWN_BYTES)
    figures = estimate(sizes, fetches="fetch" in options.stages, target_pairs=options.target_pairs)
    stages = {stage: "done" if run.work.info(stage) else "to do" for stage in options.stages}
    facts = {
        "inputs": len(run.inputs),
        "bytes": sizes,
        "queries": len(run.queries.table),
        "estimate": dataclasses.asdict(figures),
        "stages": stages,
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    print(
        f"inputs       {len(run.inputs):,}, {', '.join(f'{size / 1e9:.2f} GB {kind}' for kind, size in sizes.items())}"
    )
    print(f"queries      {len(run.queries.table):,}")
    print(f"pairs        about {figures.pairs:,} read, {figures.matched:,} with a query, {figures.selected:,} selected")
    print(f"published    about {figures.published:,} images, {figures.published_bytes / 1e9:.1f} GB")
    print(
        f"takes        about {figures.core_hours:.2f} core-hours, {figures.scratch_bytes / 1e9:.1f} GB of disk meanwhile"
    )
    print(f"stages       {', '.join(f'{stage} ({state})' for stage, state in stages.items())}")
    print("These are rough figures from the size of the input alone; nothing was read or written.")


if __name__ == "__main__":
    sys.exit(main())
