"""Entropy of the concepts in a batch, by --batch-concepts, and the time that the choice takes.

    python benchmarks/batch_concepts.py [--data SET] [--batch-size 4096]

Without --data: 400,000 synthetic pairs with 1 to 12 of 50,000 queries each, whose frequencies follow Zipf's law.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from clip_train.concepts import ConceptStream, entropy, open_concepts  # noqa: E402
from clip_train.config import BATCH_CONCEPTS  # noqa: E402
from clip_train.index import ConceptSource, Index  # noqa: E402
from clip_train.index_file import Table, Writer  # noqa: E402
from clip_train.order import Stream  # noqa: E402
from clip_train.shards import open_index  # noqa: E402

SHARD, SHARDS, QUERIES = 10_000, 40, 50_000


def synthetic(folder: Path) -> Index:
    """An index without shards."""
    with tempfile.TemporaryFile() as file:
        with Writer(file, columns=["image_block", "image_size"], keys=False) as writer:
            writer.begin_metadata("synthetic")
            for _ in range(SHARDS):
                places = {"image_offset": np.zeros(SHARD, np.int64), "image_size": np.ones(SHARD, np.int64)}
                writer.add_shard(places, (), size=512)
            writer.finish([f"{number}.tar" for number in range(SHARDS)])
        table = Table(file, "synthetic")

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(0)
        shares = 1 / np.arange(1, QUERIES + 1)
        for _ in range(SHARDS):
            sizes = rng.integers(1, 13, SHARD)
            yield rng.choice(QUERIES, sizes.sum(), p=shares / shares.sum()), sizes

    return Index(tuple(table.names), table, concepts=ConceptSource([folder], "synthetic", read))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a published folder")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--super-batch", type=int, default=5)
    parser.add_argument("--batches", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(options.data) if options.data else synthetic(Path(folder))
        concepts = open_concepts(index)
        print("order     entropy (bits)  concepts in a batch  queries a pair  CPU us a sample")
        for mode in ("random", *BATCH_CONCEPTS):
            if mode == "random":
                stream = Stream(index, seed=0)
            else:
                stream = ConceptStream(index, concepts=concepts, mode=mode, ratio=options.super_batch, seed=0)
            rows, spent = [], 0.0
            for number in range(options.batches):
                start = time.process_time()
                samples, _ = stream.samples(number * options.batch_size, options.batch_size)
                spent += time.process_time() - start
                ids, sizes = concepts.of(samples)
                rows.append((entropy(ids), len(np.unique(ids)), sizes.mean()))
            bits, different, queries = np.mean(rows, axis=0)
            cost = spent / options.batches / options.batch_size * 1e6
            print(f"{mode:9} {bits:14.2f} {different:20.0f} {queries:15.1f} {cost:16.1f}", flush=True)


if __name__ == "__main__":
    main()
