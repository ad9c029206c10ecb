"""Measures an index of many samples: time to open it, memory of a process, time of a draw. The index is synthetic.

    python benchmarks/index.py --samples 50000000 --processes 8

Nothing of the shards exists, only the file of the index, in a temporary folder that is removed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from clip_train.index import Index  # noqa: E402
from clip_train.index_file import Table, Writer, open_mapped  # noqa: E402
from clip_train.order import Stream  # noqa: E402

SHARD = 10_000  # samples


def write(path: Path, samples: int) -> None:
    """An index as that of a published folder: with keep probabilities and sha256."""
    rng = np.random.default_rng(0)
    columns = ["image_block", "image_size", "text_block", "text_size", "keep", "sha256", "sha256+"]
    sizes = rng.integers(5_000, 40_000, SHARD)
    offsets = np.cumsum(sizes // 512 * 512 + 2048) - sizes[0] // 512 * 512
    names = [f"shards/{number:05d}.tar" for number in range(samples // SHARD)]
    with open(path, "wb") as file, Writer(file, columns=columns, keys=False) as writer:
        for name in names:
            writer.begin_metadata(name.replace("shards", "metadata").replace("tar", "parquet"))
            writer.add_shard({
                "image_offset": offsets, "image_size": sizes, "text_offset": offsets, "text_size": sizes // 500,
                "keep_probability": np.minimum(1, rng.pareto(1, SHARD)),
                "sha256": rng.integers(0, 256, (SHARD, 32), dtype=np.uint8),
            }, (), size=int(offsets[-1] + sizes[-1]))  # fmt: skip
        writer.finish(names)


def resident() -> float:
    """What this process holds resident, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def use(path: Path, batches: int, size: int, kind: str) -> dict[str, float]:
    """Opens the index and draws batches from all places of an epoch. The memory is the peak, of the whole process."""
    before, start = resident(), time.perf_counter()
    table = open_mapped(path, Table)
    assert table is not None
    index = Index(tuple(table.names), table)
    opened = time.perf_counter() - start
    changes = {"window": 64} if kind == "window" else {"online_balance": kind == "balance"}
    stream = Stream(index, seed=0, **changes)
    stream.samples(0, 1)
    cpu = time.process_time()
    for number in range(batches):
        samples, _ = stream.samples(number * (len(index) // 4 // batches), size)
        index.rows(samples)
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"open_s": opened, "us_a_sample": cpu / batches / size * 1e6, "index_mb": peak - before, "process_mb": peak}


def main() -> None:
    """Prints a line of JSON for each order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--folder", help="for the index; the temporary folder unless given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, start = Path(folder) / "synthetic.index", time.perf_counter()
        write(path, options.samples)
        print(json.dumps({
            "samples": options.samples, "write_s": round(time.perf_counter() - start, 1),
            "bytes_a_sample": os.path.getsize(path) / options.samples,
        }))  # fmt: skip
        with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
            for kind in ("whole", "window", "balance"):
                tasks = [(path, options.batches, options.batch_size, kind)] * options.processes
                found = pool.starmap(use, tasks, chunksize=1)
                worst = {name: round(max(each[name] for each in found), 3) for name in found[0]}
                print(json.dumps({"order": kind, "processes": options.processes, **worst}), flush=True)


if __name__ == "__main__":
    main()
