"""Web archives or tables in, balanced image-text shards out.

    python -m pipeline.build --input crawl/*.warc.gz --output out

The whole way, one file a stage: gather -> match -> dedup -> balance (`select`, one Beam job), fetch, and
dedup_images -> publish. Every stage leaves a folder OUT/stages/<name>; one that is COMPLETED is not done again, so the
same command after a crash goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline import planning
from pipeline.engine.cli import CRASHED, DONE, INTERRUPTED, MISSING, USAGE, MissingInput, UsageError, fail
from pipeline.engine.options import validate
from pipeline.engine.runners import ENVIRONMENT_ERRORS, JobFailed
from pipeline.engine.work import STAGES, Busy, PlanChanged
from pipeline.options import Options, parse, recipe_text
from pipeline.planning import Run

KERNEL_ROWS = 50_000  # expected rows from which workers load the kernels before they begin


# ---------------------------------------------------------------------------------------------------- the whole way


def select(root: Any, run: Run) -> Any:
    """gather .. balance: one pass over the input, then only narrow columns cross, then the selected rows."""
    from pipeline.stages import balance, dedup, gather, match

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
            rules=planning.cleaning(run),
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
        rows = rows | dedup.Dedup(planning.dropping(run), way=o.exchange)
    if run.wants("balance"):
        plan = planning.balance_plan(run)
        rows = rows | balance.Balance(plan, plan.rows, keep_rejected=o.keep_rejected, way=o.exchange)
    return rows


def fetch(root: Any, run: Run) -> Any:
    """The images of the selected pairs: from the web, host by host, or out of the archives."""
    from pipeline.stages.fetch import Fetch

    return root | Fetch(planning.fetching(run), way=run.options.exchange)


def publish(root: Any, run: Run) -> Any:
    """dedup-images and publish: pure functions of what was fetched."""
    from pipeline.stages.dedup_images import DedupImages
    from pipeline.stages.publish import Publish

    o, rows = run.options, root
    if run.wants("dedup-images"):
        rows = rows | DedupImages(planning.dropping_images(run), planning.fetching(run), way=o.exchange)
    if run.wants("publish"):
        most = max(1, -(-run.work.done("balance")["rows_out"] // o.rows_per_shard))
        rows = rows | Publish(planning.publishing(run), way=o.exchange, most_shards=most)
    return rows


def build(options: Options, say: Callable[[str], None] = print) -> Run:
    """Does what is asked for and not done yet.

    Raises:
        UsageError, MissingInput: before anything is written.
        Busy: another run holds the folder.
    """
    from pipeline.engine import files, runners, work

    start = time.perf_counter()
    run = planning.prepare(validate(options))
    runners.import_beam()
    with work.locked(run.work.root):
        files.sweep(run.work.root)
        check_plans(run)
        if options.redo:
            forget(run, options.redo)
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


# -------------------------------------------------------------------------------------------- the ends of the stages


def finish_select(run: Run) -> None:
    """Writes info.json and COMPLETED of each stage of `select`, in order."""
    from pipeline.stages import balance, dedup, row_pass

    work, keep = run.work, run.options.keep_rejected
    together = run.wants("gather") and run.wants("match")
    if run.wants("gather"):
        row_pass.complete(work, "gather", work.step("match" if together else "gather", "parts"), keep_rejected=keep)
    if run.wants("match"):
        row_pass.complete(work, "match", work.step("match", "parts"), keep_rejected=keep)
    if run.wants("dedup"):
        dedup.complete(planning.dropping(run))
    if run.wants("balance"):
        balance.complete(planning.balance_plan(run), keep)


def finish_fetch(run: Run) -> None:
    """Writes fetch's info.json and COMPLETED."""
    from pipeline.stages import fetch as fetch_stage

    fetch_stage.complete(planning.fetching(run))


def finish_publish(run: Run) -> None:
    """Writes info.json and COMPLETED of each stage of `publish`, in order; the published manifest with it."""
    from pipeline.stages import dedup_images
    from pipeline.stages import publish as publishing_stage

    if run.wants("dedup-images"):
        dedup_images.complete(planning.dropping_images(run))
    if run.wants("publish"):
        publishing_stage.complete(
            planning.publishing(run), options=planning.published_options(run.options), versions=planning.versions()
        )


def retry_failed(run: Run) -> None:
    """Asks for one more pass over what failed in a way that may pass; what is published is made anew from it."""
    from pipeline.stages import fetch as fetch_stage

    info = run.work.info("fetch")
    if info is None or not info["retryable"]:
        return  # a pass is under way or none is needed
    forget(run, "dedup-images")
    fetch_stage.ask_for_another_pass(planning.fetching(run))


# ------------------------------------------------------------------------------------------------------ around them


def save_lists(run: Run) -> None:
    """Writes what workers and readers of the folder need: inputs, queries, and the recipe."""
    from pipeline.engine import files
    from pipeline.stages import gather

    gather.save_inputs(run.inputs_file, run.inputs)
    files.write_table(run.queries_file, run.queries.table)
    files.write_bytes(os.path.join(run.work.root, "recipe.yaml"), recipe_text(run.options).encode())


def check_plans(run: Run) -> None:
    """Refuses stages that were made otherwise, and a start from one that is not there, before anything is removed."""
    kept = STAGES[: STAGES.index(run.options.redo)] if run.options.redo else STAGES
    for stage in kept:
        try:
            run.work.completed(stage)
        except PlanChanged:
            raise UsageError(
                f"{run.work.root} holds the stage {stage!r} made from other inputs or with other options: "
                f"use another --output, repeat the options of that run, or add --redo {stage} to make it anew"
            ) from None
    first = STAGES.index(run.options.stages[0])
    if first and not (STAGES[first - 1] in kept and run.work.completed(STAGES[first - 1])):
        raise UsageError(
            f"--stages begins with {STAGES[first]!r}, but {STAGES[first - 1]!r} is not done in {run.work.root}: "
            f"begin with an earlier stage"
        )


def forget(run: Run, stage: str) -> None:
    """Removes a stage and those after it, so that they are made anew."""
    from pipeline.engine import files

    for later in reversed(STAGES[STAGES.index(stage) :]):  # none is left that was made from one that is gone
        files.remove(run.work.stage(later))


def run_job(construct: Callable[[Any], Any], run: Run, job: str) -> None:
    """Runs one Beam pipeline on the runner that was asked for."""
    from pipeline.engine import runners

    o = run.options
    runners.run_job(
        construct,
        (o.runner, o.workers, o.beam),
        root=run.work.root,
        steps=watched(run, job),
        program="pipeline.build",
        kernels=sum(planning.expected_rows(item) for item in run.inputs) > KERNEL_ROWS,
    )


def watched(run: Run, job: str) -> list[Any]:
    """The steps of the jobs, in order, as the progress line names them."""
    from pipeline.engine.progress import Watched

    names: dict[str, list[tuple[str, str, int | None]]] = {
        "select": [("gather", "parts", len(run.inputs)), ("match", "parts", len(run.inputs)), ("dedup", "drops", None)],
        "fetch": [("fetch", "hosts", None), ("fetch", "images-000", None)],
        "publish": [("dedup-images", "parts", None), ("publish", "selected", None), ("publish", "shards", None)],
    }
    steps = ("counts", "band", "selected", "rows")
    balance: list[tuple[str, str, int | None]] = [("balance", step, None) for step in steps]
    listed = names[job] + (balance if job == "select" else [])
    return [Watched(f"{name} {step}", run.work.step(name, step), units) for name, step, units in listed]


# ------------------------------------------------------------------------------------------------------ command line


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 crash, 2 usage, 3 below a threshold, 4 input missing."""
    try:
        options, how = parse(sys.argv[1:] if argv is None else argv)
        if how.print_config:
            print(recipe_text(options), end="")
            return DONE
        if how.plan:
            print_plan(options, as_json=how.json)
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
    except (JobFailed, OSError) as error:
        if isinstance(error, OSError) and error.errno not in ENVIRONMENT_ERRORS:
            raise
        return fail("pipeline.build", told(error), CRASHED)
    except KeyboardInterrupt:
        return fail("pipeline.build", "interrupted; the same command goes on where it was", INTERRUPTED)


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

    run = planning.prepare(options)
    sizes: dict[str, int] = {}
    for item in {(item.path, item.format, item.bytes) for item in run.inputs}:
        sizes[item[1]] = sizes.get(item[1], 0) + (item[2] if item[2] is not None else planning.UNKNOWN_BYTES)
    target = options.target_pairs and round(options.target_pairs / options.expected_yield)  # to be fetched
    figures = estimate(sizes, fetches="fetch" in options.stages, target_pairs=target)
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
        f"takes        about {figures.core_hours:.2f} core-hours, "
        f"{figures.scratch_bytes / 1e9:.1f} GB of disk meanwhile"
    )
    print(f"stages       {', '.join(f'{stage} ({state})' for stage, state in stages.items())}")
    print("These are rough figures from the size of the input alone; no row was read and nothing written.")


if __name__ == "__main__":
    sys.exit(main())
