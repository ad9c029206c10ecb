"""inspect_shards info: what a folder is."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from pipeline.engine.cli import DONE
from pipeline.engine.display import amount, sanitize, size
from pipeline.inspector.opening import exists, is_ours
from pipeline.inspector.output import print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    del parser


def run(args: argparse.Namespace) -> int:
    """What the folder is."""
    from pipeline.dataset import open_set, shards

    folder = args.folder
    if not is_ours(folder):
        return info_foreign(args)
    published = exists(os.path.join(folder, "manifest.json"))
    manifest = open_set.read_manifest(folder) if published else None
    stages = open_set.stages_of(folder)
    facts: dict[str, Any] = {"folder": folder, "published": manifest is not None, "stages": stages}
    if manifest is not None:
        entries = manifest["files"]
        tars = [entry for entry in entries if entry["path"].endswith(".tar")]
        facts |= {name: manifest.get(name) for name in ("digest", "queries", "ledger", "options", "versions")}
        facts |= {name: manifest[name] for name in ("damaged_inputs",) if name in manifest}
        facts |= {
            "shards": len(tars),
            "ranges": open_set.count_of_ranges(manifest),
            "rows": sum(entry["rows"] for entry in tars),
            "bytes": sum(entry["bytes"] for entry in entries),
        }
    elif exists(os.path.join(folder, "queries.parquet")):
        queries = open_set.read_queries(folder)["query"].to_pylist()
        facts["queries"] = {"rows": len(queries), "digest": shards.digest_of_queries(queries)}
    facts |= under_way(folder, stages)
    if args.json:
        return print_json(facts)
    print_info(facts)
    return DONE


def under_way(folder: str, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """What is known of a run on the folder: who holds it, its job on a cluster, and the units that are done."""
    from pipeline.engine import clusters, storage, work

    found: dict[str, Any] = {"holder": work.holder_of(folder), "job": clusters.job_of(folder)}
    units: dict[str, dict[str, int]] = {}
    for name in [stage["stage"] for stage in stages if not stage["completed"]]:
        top = os.path.join(folder, "stages", name)
        steps = [step for step in storage.names(top) if "." not in step]
        done = {step: sum(file.endswith(".json") for file in storage.names(os.path.join(top, step))) for step in steps}
        units |= {name: made} if (made := {step: count for step, count in done.items() if count}) else {}
    return {"run": {name: value for name, value in {**found, "units": units}.items() if value}}


def info_foreign(args: argparse.Namespace) -> int:
    """What files of another tool are. Images are not decoded: `verify` does that."""
    from pipeline.engine import storage
    from pipeline.inspector import foreign_check
    from pipeline.inspector.foreign import open_foreign

    pairs = open_foreign(args.folder)
    found = foreign_check.check(pairs, quick=True)
    fits, why = foreign_check.verdict(pairs, found)
    if args.json:
        facts = {"folder": args.folder, "published": False, "kind": pairs.name, "files": len(pairs.paths)}
        return print_json(facts | {"clip_train": {"takes": fits, "why": why}} | found.to_json())
    print(f"{amount(len(pairs.paths), None, 'files')}, {size(sum(storage.size(path) for path in pairs.paths))}")
    foreign_check.print_checked(pairs.name, found, fits, why)
    return DONE


def print_info(facts: dict[str, Any]) -> None:
    """Prints the facts of a folder on one screen."""
    from pipeline.engine import rights_ledger
    from pipeline.engine.ledger import lines_on_inputs, lines_on_records

    if facts["published"]:
        ranges = facts["ranges"]
        empty = 0 if ranges is None else ranges - facts["shards"]
        gaps = f" ({empty:,} of {ranges:,} ranges are empty)" if empty else ""
        counted = f"{amount(facts['rows'], None, 'pairs')} in {amount(facts['shards'], None, 'shards')}"
        print(f"published: {counted}{gaps}, {size(facts['bytes'])}")
        print(f"digest     {facts['digest']}")
    else:
        print("a run that is not published (yet)")
    for name, what in (("holder", "built by"), ("job", "job")):
        if name in facts["run"]:
            print(f"{what:<10} {sanitize(facts['run'][name])}")
    queries = facts.get("queries")
    if queries:
        print(f"queries    {queries['rows']:,}, digest {queries['digest']}")
    rows = facts["stages"] or facts.get("ledger") or []
    if rows:
        print(f"\n{'stage':<14}{'rows in':>15}{'rows out':>15}   CPU s")
    for row in rows:
        if not row.get("completed", True):
            steps = facts["run"].get("units", {}).get(row["stage"], {})
            done = ", ".join(f"{step} {amount(count, None, 'units')}" for step, count in steps.items())
            print(f"{row['stage']:<14}not finished{f': {done}' if done else ''}")
            continue
        cpu = f"{row['cpu_seconds']:8,.1f}" if "cpu_seconds" in row else ""
        print(f"{row['stage']:<14}{row['rows_in']:>15,}{row['rows_out']:>15,}{cpu}")
        for reason, count in sorted(row["dropped"].items(), key=lambda item: (-item[1], item[0])):
            print(f"    {sanitize(reason):<25}{-count:>15,}")
        for line in lines_on_records(row):
            print(f"    {sanitize(line)}")
    if not facts["stages"]:  # a copy of the published files alone
        for line in lines_on_inputs(facts.get("damaged_inputs") or {}):
            print(sanitize(line))
    refused = rights_ledger.lines(rights_ledger.of_stages(rows, facts.get("options")), examples=False)
    for line in ["", *refused] if refused else ():
        print(sanitize(line))
    if facts.get("options"):
        print("\noptions    " + sanitize(json.dumps(facts["options"], ensure_ascii=False, sort_keys=True)))
        print("versions   " + sanitize(json.dumps(facts["versions"], sort_keys=True)))
