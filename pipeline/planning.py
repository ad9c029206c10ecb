"""What a run rests on: inputs and queries looked up, a plan a stage, and the stages' own settings out of the options.

A stage's plan is a digest of everything that decides its rows: the plan before it and its own options. It is what
refuses to continue a folder that was made otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pipeline.cli import MissingInput, UsageError
from pipeline.opening import InputError, is_remote, open_input
from pipeline.options import Options
from pipeline.work import STAGES, Work, digest_of

if TYPE_CHECKING:
    from pipeline.sources.inputs import Input

RESULT = 1  # raised whenever the same input and options give other rows: an older folder is then not continued
FETCHED = 2  # raised whenever the columns of the fetched rows change
MOST_OPENED = 16  # remote archives that a plan looks for: a crawl has 90,000
UNKNOWN_BYTES = 350 << 20  # of an input whose size no listing told: a WAT file of Common Crawl


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


def prepare(options: Options) -> Run:
    """Looks up inputs and queries and lays down the plan of each stage.

    Raises:
        MissingInput: an input or the query list is not there or cannot be read.
        UsageError: a table has not the columns that are asked for.
    """
    from pipeline.sources import inputs as sources

    try:
        inputs = sources.expand(options.input, input_format=options.input_format)
    except sources.InputError as error:
        raise MissingInput(str(error)) from error
    queries = load_queries(options)
    rows = sum(expected_rows(item) for item in inputs)
    plans = stage_plans(options, inputs, queries.digest)
    work = Work(os.path.abspath(options.output), tuple(plans.items()), about(options))
    if "gather" in options.stages and (options.redo == "gather" or work.info("gather") is None):
        check_inputs(inputs)
        check_columns(options, inputs)
    return Run(
        options=options,
        work=work,
        inputs=inputs,
        queries=queries,
        key_bits=min(12, max(4, (int(44 * rows) >> 26).bit_length())),
        groups=min(1024, max(1, round(rows / 500_000))),
        most_parts=1 << min(16, max(3, int(rows / 50_000).bit_length())),
    )


def check_inputs(inputs: list[Input]) -> None:
    """Opens the first remote archives, so that a wrong URL or a server out of reach is told before anything is done.

    Raises:
        MissingInput: one of them cannot be opened.
    """
    paths = [item.path for item in inputs if item.format != "table" and is_remote(item.path)]
    try:
        with ThreadPoolExecutor(8) as pool:
            for opened in pool.map(open_input, paths[:MOST_OPENED]):
                opened.stream.close()
    except InputError as error:
        raise MissingInput(str(error)) from error


def check_columns(options: Options, inputs: list[Input]) -> None:
    """Looks into every table for the columns of url and text, before anything is done.

    Raises:
        UsageError: a table has them not, or what they hold is no text.
        MissingInput: a table cannot be read.
    """
    from pipeline.sources import tables

    files = list({item.path: item for item in inputs if item.format == "table"}.values())
    wanted = options.url_column, options.text_column, None
    try:
        with ThreadPoolExecutor(8) as pool:  # it waits for disks and servers
            for _ in pool.map(lambda item: tables.table_columns(item, wanted), files):
                continue
    except tables.ColumnError as error:
        raise UsageError(str(error)) from error
    except (InputError, OSError) as error:
        raise MissingInput(str(error)) from error


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
        "balance": [o.balance, o.cap, o.target_pairs, o.expected_yield, o.stop_queries, o.seed],
        "fetch": [o.image_size, FETCHED],
        "dedup-images": [],
        "publish": [o.rows_per_shard],
    }
    plans, before = {}, ""
    for stage in STAGES:
        before = plans[stage] = digest_of(before, own[stage])
    return plans


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
    policy = Policy(o.balance, o.cap, o.target_pairs, o.seed, stop, share, o.expected_yield)
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


def dropping_images(run: Run) -> Any:
    """How equal images are found among the fetched rows."""
    from pipeline import dedup_images

    rows = run.work.done("fetch")["rows_out"]
    bits = min(12, max(0, (44 * rows >> 26).bit_length()))
    groups = min(1024, max(1, round(rows / 250_000)))
    return dedup_images.dropping(run.work, key_bits=bits, groups=groups, keep_rejected=run.options.keep_rejected)


def publishing(run: Run) -> Any:
    """How the shards are made: balanced with the cap that balance used, or, where that allowed for losses, anew."""
    from pipeline import dedup_images, gather
    from pipeline.publish import Publishing

    o = run.options
    rows = dedup_images.remaining(dropping_images(run))
    before = balance_plan(run)
    policy = dataclasses.replace(before.policy, expected_yield=1.0)
    if o.expected_yield == 1:
        policy = dataclasses.replace(policy, cap=run.work.done("balance")["cap"], target_pairs=None)
    plan = dataclasses.replace(before, stage="publish", rows=rows, policy=policy, before=before)
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
