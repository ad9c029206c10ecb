"""Near-duplicates by embeddings: CPU time, memory and recall on made vectors, as the stage finds them.

    python benchmarks/near_embeddings.py [--rows 500000] [--width 512] [--cosine 0.9] [--queries 4000]

The vectors lie around 3,000 centres with a common direction. A twentieth of them are noisy copies of others, with a
cosine of 0.83 to 1. The table is written and read as a user's. With --one-group it has one row group. Recall compares
some vectors with all (0: no recall). The last column stands for the groups that were found.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.work import StageFolder
from pipeline.stages import embeddings, near_exchange, near_vectors, similar

BATCH = 20_000
CENTRES, SPREAD, COPIES = 3000, 0.8, 0.05


def main() -> None:
    """Prints one table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--cosine", type=float, default=0.9)
    parser.add_argument("--queries", type=int, default=0)
    parser.add_argument("--type", choices=("float16", "float32"), default="float16", help="of a number in the table")
    parser.add_argument("--one-group", action="store_true", help="of rows: what pyarrow writes by default")
    parser.add_argument("--folder", type=Path, help="where the table is kept for the next run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kind = f"{given.type}{'-one' * given.one_group}"
        table = (given.folder or Path(folder)) / f"{given.rows}x{given.width}-{kind}.parquet"
        if not table.exists():  # in a process of its own: its memory does not count
            made = given.rows, given.width, given.type, given.one_group
            maker = multiprocessing.get_context("spawn").Process(target=make, args=(table, *made))
            maker.start()
            maker.join()
        measure(table, Path(folder), given.cosine, given.queries)


def make(path: Path, rows: int, width: int, number: str, one_group: bool) -> None:
    """Writes the table, batch by batch. A copy has its original in the same batch."""
    random = np.random.default_rng(0)
    common = random.standard_normal(width, np.float32)
    centres = common + random.standard_normal((CENTRES, width), np.float32)
    parts: list[pa.Table] = []
    schema = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.type_for_alias(number), width))])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as out:
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            vectors = centres[random.integers(0, CENTRES, count)]
            vectors = vectors + SPREAD * random.standard_normal((count, width), np.float32)
            copies = int(count * COPIES)
            size = np.sqrt((vectors[-copies:] ** 2).mean(axis=1, keepdims=True))
            noise = size * random.uniform(0.05, 0.45, (copies, 1)).astype(np.float32)
            vectors[:copies] = vectors[-copies:] + noise * random.standard_normal((copies, width), np.float32)
            keys = [random.bytes(16).hex() for _ in range(count)]
            flat = pa.array(vectors.astype(np.float16).astype(number).ravel())
            parts.append(pa.table([keys, pa.FixedSizeListArray.from_arrays(flat, width)], schema=schema))
            if not one_group or start + count == rows:
                out.write_table(pa.concat_tables(parts), row_group_size=rows)
                parts = []


def measure(table: Path, folder: Path, cosine: float, queries: int) -> None:
    """What the steps of the stage cost in one process."""
    seconds = [time.process_time()]
    step = StageFolder(str(folder / "out"), "dedup-images", "0", "{}").step("embeddings")
    embeddings.check([str(table)])
    seconds.append(time.process_time())
    embeddings.write([str(table)], step)
    seconds.append(time.process_time())
    found = embeddings.load(step)
    rows, pieces = len(found.keys), []
    for start in range(0, rows, 65_536):
        row, cell, member = near_vectors.cells_of(
            found.sieve[start : start + 65_536].astype(np.float32), found.centres, cosine
        )
        pieces.append(((row + start).astype(np.int32), cell.astype(np.int32), member))
    row, cell, member = (np.concatenate([piece[at] for piece in pieces]) for at in range(3))
    del pieces
    seconds.append(time.process_time())
    order = np.lexsort((row, ~member, cell))
    row, member = row[order], member[order]
    bounds = np.searchsorted(cell[order], np.arange(len(found.centres) + 1)).tolist()
    del order, cell
    root = np.empty(len(row), np.int64)
    for number, (start, end) in enumerate(itertools.pairwise(bounds), 1):
        places, members = row[start:end], int(member[start:end].sum())
        root[start:end] = places[near_vectors.groups(found.vectors, found.sieve, places, members, cosine)]
        if number % near_exchange.CELLS_PER_BUCKET == 0:
            found.release()
    label = similar.connect(rows, row, root)
    seconds.append(time.process_time())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| rows | width | cosine | check | write | cells | pairs | all, CPU s | GiB | replaced | recall | groups |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    share = recall(found, label, cosine, queries) if queries else "-"
    parts = " | ".join(f"{part:.1f}" for part in (*np.diff(seconds), seconds[-1] - seconds[0]))
    digest = hashlib.sha256(label.astype("<i8").tobytes()).hexdigest()[:8]
    replaced = int((label != np.arange(rows)).sum())
    made = f"{rows:,} | {found.vectors.shape[1]} | {cosine} | {parts}"
    print(f"| {made} | {memory:.2f} | {replaced:,} | {share} | {digest} |")


def recall(found: embeddings.Embeddings, label: np.ndarray, cosine: float, queries: int) -> str:
    """The share of the pairs of the first vectors with any vector, by brute force, that are in one cluster."""
    pairs = hits = 0
    step = 500
    for start in range(0, min(queries, len(label)), step):
        some = found.vectors[start : start + step].astype(np.float32)
        for at in range(0, len(label), BATCH):
            products = some @ found.vectors[at : at + BATCH].astype(np.float32).T
            a, b = np.nonzero(products >= (cosine - 0.01) * near_vectors.SCALE**2)
            a, b = a + start, b + at
            a, b = near_vectors.near_pairs(found.vectors, np.arange(len(label)), a[a != b], b[a != b], cosine)
            pairs, hits = pairs + len(a), hits + int((label[a] == label[b]).sum())
    return f"{hits / max(1, pairs):.4f} of {pairs:,}"


if __name__ == "__main__":
    main()
