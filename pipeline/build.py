"""Web archives or tables in, balanced image-text shards out.

    python -m pipeline.build --input crawl/*.warc.gz --output out

The whole way, one file a stage: gather -> match -> dedup -> balance (`select`, one Beam job), fetch, and
dedup_images -> publish. Every stage leaves a folder OUT/stages/<name>. One that is COMPLETED is not done again, so the
same command continues after a crash.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline import estimate
from pipeline.dataset import damage
from pipeline.engine import quiet_beam, runners, storage, work
from pipeline.engine.cli import CRASHED, DONE, INTERRUPTED, MISSING, USAGE, MissingInput, UsageError, fail
from pipeline.engine.options import validate
from pipeline.engine.work import Busy
from pipeline.options import Options, parse, recipe_text
from pipeline.stages import STAGES, continuing
from pipeline.stages.base import Outputs, Stage
from pipeline.stages.row_pass import fuse_row_stages
from pipeline.stages.run import Run
from pipeline.stages.run import look_up as look_up_run


def look_up(options: Options) -> Run:
    """The run that the options describe; raises UsageError and MissingInput."""
    options = validate(options)
    return look_up_run(options, input_format=options.input_format, queries=options.queries)


def plan(run: Run) -> list[Stage]:
    """The seven stages of a run, each planned once."""
    before = Outputs()
    for stage in STAGES:
        before.add(stage.plan(run, before))
    return before.stages()


def build(options: Options, say: Callable[[str], None] = print) -> Run:
    """Does what is asked for and not done yet.

    Raises:
        UsageError, MissingInput: before anything is written.
        Busy: another run holds the folder.
        JobFailed: a job of Beam failed.
    """
    start = time.perf_counter()
    run = look_up(options)
    stages = plan(run)
    continuing.check(stages, run)
    continuing.check_inputs(stages, run)
    quiet_beam.import_beam()
    with work.lock_run_folder(run.root):
        storage.sweep(run.root)
        continuing.check(stages, run)  # another run may have ended meanwhile
        continuing.remove_from(stages, options.redo)
        continuing.reopen(stages, run)
        write_what_was_looked_up(run, options)
        for stage in stages:
            stage.settle(run)
        for _, job in itertools.groupby(continuing.to_do(stages, run), key=lambda stage: stage.job):
            run_job(list(job), run)
    say(f"done in {time.perf_counter() - start:.1f} s: {run.root}")
    return run


def write_what_was_looked_up(run: Run, options: Options) -> None:
    """Query list and recipe, for the workers and for people: anew in each run."""
    storage.write_published(run.queries_file, run.queries.table)
    storage.write_plain(f"{run.root}/recipe.yaml", recipe_text(options).encode())
    storage.list_checksums(run.root, ("queries.parquet", "recipe.yaml"))


def run_job(stages: list[Stage], run: Run) -> None:
    """Runs stages as one Beam pipeline on the runner that was asked for, and ends each of them."""
    for stage in stages:
        stage.begin(run)
    passes = fuse_row_stages(stages)

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
    )
    for part in passes:
        part.complete()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 crash, 2 usage, 3 below a threshold, 4 input missing."""
    try:
        options, how = parse(sys.argv[1:] if argv is None else argv)
        if how.print_config:
            print(recipe_text(options), end="")
            return DONE
        if how.plan:
            run = look_up(options)
            estimate.print_plan(run, plan(run), options, as_json=how.json)
            return DONE
        run = build(options, say=lambda line: print(line, file=sys.stderr))
        print_summary(run, as_json=how.json)
        return DONE
    except UsageError as error:
        return fail("pipeline.build", error, USAGE)
    except MissingInput as error:
        return fail("pipeline.build", error, MISSING)
    except Busy as error:
        return fail(
            "pipeline.build", f"another run holds the output folder ({error}): wait for it, or end it first", CRASHED
        )
    except storage.DamagedError as error:
        return fail("pipeline.build", damage.with_remedy(error), CRASHED)
    except (runners.JobFailed, OSError) as error:
        if isinstance(error, OSError) and error.errno not in quiet_beam.ENVIRONMENT_ERRORS:
            raise
        return fail("pipeline.build", explain_failure(error), CRASHED)
    except KeyboardInterrupt:
        return fail("pipeline.build", "interrupted; the same command goes on where it was", INTERRUPTED)


def explain_failure(error: Exception) -> str:
    """A failure that the same command may survive, and what to do about it."""
    text = str(error)
    if re.search(r"No space left on device|Disk quota exceeded", text):
        return f"the disk is full ({text}): free some space, then the same command goes on where it was"
    return text if "the same command" in text else f"{text}: mend this, then the same command goes on where it was"


def print_summary(run: Run, *, as_json: bool) -> None:
    """The ledger of the stages that are done, and what to type next."""
    infos = [info for stage in plan(run) if (info := stage.folder.info())]
    rows = [{name: info[name] for name in ("stage", "rows_in", "rows_out", "dropped", "digest")} for info in infos]
    if as_json:
        print(json.dumps({"output": run.root, "ledger": rows}, indent=1))
        return
    for row in rows:
        print(f"{row['stage']:<14}{row['rows_in']:>14,} -> {row['rows_out']:>14,}")
        for reason, count in sorted(row["dropped"].items(), key=lambda item: -item[1]):
            print(f"    {reason:<26}{count:>14,}")
    print(f"next: python -m pipeline.inspect_shards info {run.root}")


if __name__ == "__main__":
    sys.exit(main())
