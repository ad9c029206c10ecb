"""The end of a publication: CPU and memory of the numbers and pages, by the size of the set.

    python benchmarks/report.py [--rows 2000000] [--write docs/benchmarks/report.md]

It first makes the metadata of a set: hosts and queries by Zipf's law, 396,742 queries, sparse files as tars. Then it
measures three parts, each in a process of its own: the share of the publish units, shard by shard; the last step,
`summary.merge` and `report.finish`; and the merge over the same shards five and twenty times. Peak is the highest
resident memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent
SHARD = 10_000  # rows
QUERIES = 396_742
TAR = SHARD * 31_000  # bytes


def make(folder: str, rows: int) -> None:
    """Writes the metadata of `rows` rows, sparse files as shards, and the list of queries."""
    import numpy as np
    import pyarrow as pa

    from pipeline.dataset import shards
    from pipeline.engine import storage

    for number in range(rows // SHARD):
        columns = {field.name: values(field.name, number) for field in shards.METADATA}
        arrays = [blank(field) if columns[field.name] is None else columns[field.name] for field in shards.METADATA]
        cast = [pa.array(column).cast(field.type) for column, field in zip(arrays, shards.METADATA, strict=True)]
        table = pa.table(cast, schema=shards.METADATA)
        storage.write_published(f"{folder}/{shards.metadata_path(number)}", table)
        os.makedirs(f"{folder}/shards", exist_ok=True)
        with open(f"{folder}/{shards.tar_path(number)}", "wb") as file:
            file.truncate(TAR)
    queries = pa.table({"id": np.arange(QUERIES, dtype=np.int32), "query": [f"query {n}" for n in range(QUERIES)]})
    storage.write_published(f"{folder}/queries.parquet", queries)


def values(name: str, number: int) -> Any:
    """A column of a shard; None where it does not matter."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng([number, sum(name.encode())])
    if name == "key":
        return [f"{number:06x}{row:04x}{tail:016x}" for row, tail in enumerate(rng.integers(0, 2**63, SHARD).tolist())]
    if name == "url":
        return [f"https://images{host % 2_000_000}.example.org/a/b.jpg" for host in rng.zipf(1.3, SHARD).tolist()]
    if name == "text":
        words = np.array("a red boat on the lake of an old town with two dogs in winter by night".split())
        return [" ".join(row) for row in words[rng.integers(0, len(words), (SHARD, 8))]]
    if name in ("query_ids", "kept_by"):
        ends = np.concatenate([[0], np.cumsum(rng.integers(1, 7, SHARD))]).astype(np.int32)
        return pa.ListArray.from_arrays(ends, (rng.zipf(1.2, ends[-1]) % QUERIES).astype(np.int32))
    words = {"language": ["en", "de", "fr", None], "original_format": ["JPEG", "PNG"], "text_source": ["alt", "title"]}
    words["license"] = [None] * 9 + ["https://creativecommons.org/licenses/by/4.0/"]
    if name in words:
        return pa.array(np.array(words[name], object)[rng.integers(0, len(words[name]), SHARD)].tolist())
    if name in ("width", "height", "original_width", "original_height", "jpg_size"):
        return rng.integers(256, 30_000 if name == "jpg_size" else 2_000, SHARD)
    if name == "shard":
        return np.full(SHARD, number)
    return {"jpg_offset": np.arange(SHARD) * 31_000, "keep_probability": rng.random(SHARD)}.get(name)


def blank(field: Any) -> Any:
    import pyarrow as pa

    return pa.nulls(SHARD, field.type) if field.nullable else pa.array([0] * SHARD).cast(field.type)


def work(way: str, folder: str, rows: int) -> None:
    """Runs one way, to be measured."""
    from pipeline.dataset import report, shards, summary
    from pipeline.dataset.ranges import Ranges
    from pipeline.engine import shuffle_files, storage

    numbers = range(rows // SHARD)
    count = summary.name_buckets(rows)
    paths = [f"{folder}/{number:05d}.summary" for number in numbers]
    if way == "units":
        for number, path in zip(numbers, paths, strict=True):
            pick = summary.Pick(report.PICTURES)
            table = storage.read_published(f"{folder}/{shards.metadata_path(number)}", summary.COLUMNS)
            shuffle_files.write(path, summary.pack(summary.summarise([table], pick=pick), pick, count))
    elif way == "finish":
        pick = summary.Pick(report.PICTURES)
        merged = summary.merge(paths, count, pick)
        entries = [
            tuple(shards.FileEntry(path(n), TAR, SHARD, "0" * 64) for path in (shards.tar_path, shards.metadata_path))
            for n in numbers
        ]
        infos = [shards.ShardInfo(n, SHARD, entry) for n, entry in zip(numbers, entries, strict=True)]
        of = Ranges(len(infos))
        report.finish(folder, infos, ranges=of, summary=merged, pick=pick, ledger=[], options={}, versions={})
    else:
        summary.merge(paths * int(way), count, summary.Pick(report.PICTURES))


def measure(way: str, folder: str, rows: int) -> tuple[float, float]:
    """(CPU seconds, peak MB) of a way, in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--folder", folder, "--rows", str(rows)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    out = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    seconds, peak = json.loads(out.splitlines()[-1])
    return seconds, peak


def page(found: dict[str, tuple[float, float]], rows: int) -> str:
    """The page of the results."""
    names = {
        "units": (f"publish units, {rows // SHARD:,} shards one after the other", rows),
        "finish": ("the last step: merge, pages, manifest", rows),
        "1": ("merge alone", rows),
        "5": ("merge alone, the shards five times", 5 * rows),
        "20": ("merge alone, the shards twenty times", 20 * rows),
    }
    lines = [
        "# Report: the numbers and pages at the end of a publication",
        "",
        f"{rows:,} rows of made-up metadata in shards of {SHARD:,}, {QUERIES:,} queries; Python "
        f"{platform.python_version()}; CPU seconds and highest resident memory of a process. The units run on all "
        "workers; the last step runs once.",
        "",
        "| | rows | CPU s | peak MB |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| {name} | {of:,} | {found[way][0]:.1f} | {found[way][1]:.0f} |" for way, (name, of) in names.items()]
    lines += [
        "",
        "CPU and memory hold the imports. The names that "
        "the web gives are added up bucket by bucket, so the merge stays as it is; the last step holds the list of "
        "queries, the numbers of each and the entries of the manifest beside.",
        "",
        "`python benchmarks/report.py --write docs/benchmarks/report.md`",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--write", metavar="FILE", help="write the results there")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        start = time.process_time()
        work(args.way, args.folder, args.rows)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(json.dumps([time.process_time() - start, peak]))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(folder, args.rows)
        found = {way: measure(way, folder, args.rows) for way in ("units", "finish", "1", "5", "20")}
    text = page(found, args.rows)
    print(text)
    if args.write:
        Path(args.write).write_text(text)


if __name__ == "__main__":
    sys.path.insert(0, str(SOURCE))
    main()
