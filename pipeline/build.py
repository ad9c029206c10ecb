"""Web archives or tables in, balanced image-text shards out.

    python -m pipeline.build --input crawl/*.warc.gz --output out

The stages are gather -> match -> dedup -> balance (`select`, one Beam job), fetch, and dedup_images -> publish. Each
has one file in `stages` and writes a folder OUT/stages/<name>. A stage that is COMPLETED is not done again, so the same
command continues after a crash.
"""

from __future__ import annotations

from pipeline.engine import interrupts

if __name__ == "__main__":
    interrupts.install("pipeline.build")  # before the imports, which take a second

import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from pipeline import joining
from pipeline.dataset import damage
from pipeline.engine import cli, engine_checks, log_file, log_options, object_view, quiet_beam, runners, storage, work
from pipeline.engine.callable_module import make_callable
from pipeline.engine.cli import (
    BELOW,
    CRASHED,
    DONE,
    MISSING,
    USAGE,
    BelowThreshold,
    MissingInput,
    UsageError,
    fail,
)
from pipeline.engine.options import validate
from pipeline.engine.work import Busy
from pipeline.options import Options, ShowSettings, check_options, parse, recipe_text
from pipeline.planning import plan as planning
from pipeline.result import Result
from pipeline.stages import STAGES, continuing, extending
from pipeline.stages.base import Outputs, Stage
from pipeline.stages.row_pass import fuse_row_stages
from pipeline.stages.run import READ_BY_USERS, Run, store_failures
from pipeline.stages.run import look_up as look_up_run


def look_up(options: Options) -> Run:
    """The run that the options describe.

    Raises:
        UsageError, MissingInput: the run cannot be done.
    """
    o = validate(options)
    return look_up_run(
        o,
        input_format=o.input_format,
        skip_bad=o.skip_bad_inputs,
        queries=o.queries,
        match=o.match,
        case=o.case,
        languages=o.languages,
        language_model=o.language_model,
        robots_archive=o.robots_archive,
    )


def plan(run: Run) -> list[Stage]:
    """The seven stages of a run, each planned once."""
    before = Outputs()
    for stage in STAGES:
        before.add(stage.plan(run, before))
    return before.stages()


def build(options: Options, *, quiet: bool = False) -> Result:
    """Does the stages that are asked for and not done yet. Prints nothing to stdout.

    Args:
        options: as on the command line; `validate` checks them.
        quiet: shows no progress on stderr.

    Raises:
        UsageError, MissingInput: the run cannot be done, or an environment variable is wrong; nothing was written.
        Busy: another run holds the folder.
        JobFailed: a job of Beam failed.
        BelowThreshold: a stage left too few rows for the later stages.
        DamagedError: a file of an earlier stage is damaged or gone.
    """
    cli.check_variables()
    check_options(options)
    with store_failures(options.output):
        return _build(options, quiet=quiet)


def _build(options: Options, *, quiet: bool) -> Result:
    with object_view.glance(storage.absolute(options.output)):
        run = look_up(extending.settled(options))
        stages = plan(run)
        check_before(stages, run)
    joining.forget_what_others_forgot(run, quiet=quiet)
    with work.lock_run_folder(run.root):
        storage.remove_stale_files(run.root)
        check(stages, run)  # again: another run may have changed the folder before the lock
        joining.begin_with_lists(run)
        with joining.readable_sets(run) as roots:
            extending.change_inputs(stages, run, roots)
        continuing.remove_from(stages, options.redo)
        retry_inputs(stages, run, quiet=quiet)
        continuing.reopen(stages, run)
        for line in continuing.remove_lost(stages, run):
            log_file.say(line, quiet=quiet)
        settle(stages, run)
        continuing.check_results(stages, run)
        for _, job in itertools.groupby(continuing.to_do(stages, run), key=lambda stage: stage.job):
            run_job(list(job), run, quiet=quiet)
            continuing.check_results(stages, run)
    return Result.of(run.root, stages)


def check_before(stages: list[Stage], run: Run) -> None:
    """The checks of a run before it writes. --plan makes the same.

    Raises:
        UsageError, MissingInput, BelowThreshold: the run cannot be done.
    """
    check(stages, run)
    continuing.check_inputs(stages, run)
    runner, _, flags = run.runner
    engine_checks.check_answers(runner, flags)
    extending.check_named_again(stages, run)


def print_plan(options: Options, *, as_json: bool) -> None:
    """Prints what a run would do and take, from a sample of the inputs. Nothing is written below OUT.

    Raises:
        UsageError, MissingInput, BelowThreshold: the run would be refused, with the same words.
    """
    started = time.monotonic()
    with store_failures(options.output):
        run = look_up(extending.settled(options))
        stages = plan(run)
        try:
            check_before(stages, run)
            if not options.redo:
                continuing.check_results(stages, run)
        except UsageError as error:
            if as_json:
                print(json.dumps(continuing.refused(stages, run, str(error)), indent=1))
            raise
        planning.dump(planning.make(run, stages, plan, started=started), as_json=as_json)


def check(stages: list[Stage], run: Run) -> None:
    """Refuses a folder that the run cannot go on with.

    Raises:
        UsageError: its message names the options that differ and what to type.
    """
    (extending.check if extending.grows(run) else continuing.check)(stages, run)


def retry_inputs(stages: list[Stage], run: Run, *, quiet: bool = False) -> None:
    """Reads inputs again that were left out, if the user asks for it. The later stages go only if the rows change."""
    again, line = continuing.reopen_inputs(stages, run)
    if line:
        log_file.say(f"pipeline.build: {line}", quiet=quiet)
    if again:
        settle(stages, run)
        run_job(again, run, quiet=quiet)
    line = continuing.finish_retry(stages, run)
    if line:
        log_file.say(f"pipeline.build: {line}", quiet=quiet)


def settle(stages: list[Stage], run: Run) -> None:
    """Writes what each run writes again: what the workers read, the recipe, and the checksums of what users read."""
    for stage in stages:
        stage.settle(run)
    recipe = recipe_text(run.settings(Options), inputs=run.input_list.specs, drops=run.input_list.drops)
    folder = run.shown if continuing.to_do(stages, run) else run.root
    storage.write_plain(os.path.join(folder, "recipe.yaml"), recipe.encode())
    storage.list_checksums(folder, READ_BY_USERS)


def run_job(stages: list[Stage], run: Run, *, quiet: bool = False) -> None:
    """Runs the stages of one job as one Beam pipeline on the runner of the options, and completes them."""
    for stage in stages:
        stage.begin(run)
    passes = fuse_row_stages(stages)
    names = [stage.name for stage in stages]
    log_file.note(f"the job {stages[0].job} begins", stages=names, runner=run.runner[0])

    def construct(root: Any) -> None:
        for part in passes:
            root = part.expand(root)

    runners.run_job(
        construct,
        run.runner,
        root=run.root,
        steps=[watched for stage in stages for watched in stage.watched()],
        program="pipeline.build",
        load=run.preload,
        quiet=quiet,
    )
    for part in passes:
        part.complete()
    for stage in stages:
        log_stage(stage)


def log_stage(stage: Stage) -> None:
    """Logs the counts of a stage that is done."""
    info = stage.folder.info() or {}
    names = ("rows_in", "rows_out", "dropped", "seconds", "cpu_seconds", "digest")
    counts: dict[str, Any] = {name: info.get(name) for name in names}
    log_file.note(f"{stage.name} is done", stage=stage.name, **counts)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 crash, 2 usage, 3 below a threshold, 4 input missing."""
    words = sys.argv[1:] if argv is None else argv
    try:
        options, how = parse(words)
        with log_options.logging_for(how, "pipeline.build", words, output=options.output) as ended:
            return ended(carry_out(options, how))
    except UsageError as error:
        return fail("pipeline.build", error, USAGE)
    except MissingInput as error:
        return fail("pipeline.build", error, MISSING)
    except KeyboardInterrupt:
        return interrupts.report("pipeline.build")


def carry_out(options: Options, how: ShowSettings) -> int:
    """Does what the command line asks for; returns the exit code."""
    try:
        if how.print_config:
            print(recipe_text(options), end="")
            return DONE
        if how.plan:
            print_plan(options, as_json=how.json)
            return DONE
        start = time.perf_counter()
        result = build(options)  # it is quiet where the command is (log_file.is_quiet)
        log_file.say(f"done in {time.perf_counter() - start:.1f} s: {result.root}")
        for sentence in result.warnings:
            log_file.note(sentence, level=logging.WARNING)
        if how.json:
            print(json.dumps(result.to_json(), indent=1))
        elif how.quiet:
            print(*result.warnings, sep="\n", end="\n" * bool(result.warnings), file=sys.stderr)
        else:
            print(result.summary())
        return DONE
    except UsageError as error:
        return fail("pipeline.build", error, USAGE)
    except MissingInput as error:
        return fail("pipeline.build", error, MISSING)
    except BelowThreshold as error:
        return fail("pipeline.build", error, BELOW)
    except Busy as error:
        return fail("pipeline.build", error, CRASHED)
    except storage.DamagedError as error:
        return fail("pipeline.build", damage.with_remedy(error), CRASHED)
    except (runners.JobFailed, OSError) as error:
        if isinstance(error, OSError) and error.errno not in quiet_beam.ENVIRONMENT_ERRORS:
            raise
        return fail("pipeline.build", cli.with_next_step(error), CRASHED)
    except KeyboardInterrupt:
        return interrupts.report("pipeline.build")


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(interrupts.ending(main()))
