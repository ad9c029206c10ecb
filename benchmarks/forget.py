"""How long `pipeline.forget` takes: a published set of many small pairs, of which one domain lies in few shards.

    python benchmarks/forget.py --pairs 200000 --shards 100

The set has no stages, so that all metadata are read: the slower of the two cases.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import tempfile
import time

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.dataset import report, shards, summary
from pipeline.dataset.ranges import Ranges
from pipeline.engine import storage
from pipeline.forget import Selection, forget
from pipeline.schema import FETCHED, readable

IMAGE = bytes(range(256)) * 3  # no JPEG is decoded here


def rows_of(number: int, count: int, ranges: int, host: str) -> pa.Table:
    """FETCHED rows of one shard."""
    step = (1 << 128) // ranges
    uids = [number * step + step // (count + 1) * (place + 1) for place in range(count)]
    columns = {
        "uid": [uid.to_bytes(16, "big") for uid in uids],
        "url": [f"https://{host}/{number}/{place}.jpg" for place in range(count)],
        "text": [f"a picture of a boat, number {number} {place}" for place in range(count)],
        "page_url": ["https://example.org/page.html"] * count,
        "query_ids": [[1, 2]] * count,
        "kept_by": [[1]] * count,
        "status": ["ok"] * count,
        "image_sha256": [hashlib.sha256(b"served").digest()] * count,
        "stored_sha256": [hashlib.sha256(IMAGE).digest()] * count,
        "stored_xxh3": [xxhash.xxh3_64_intdigest(IMAGE)] * count,
    }
    sizes = {"image_bytes": len(IMAGE), "width": 32, "height": 24, "original_width": 320, "original_height": 240}
    arrays = []
    for field in FETCHED:
        value = columns.get(field.name, [sizes.get(field.name)] * count)
        if field.name not in columns and field.name not in sizes and not field.nullable:
            value = np.zeros(count, field.type.to_pandas_dtype()).tolist()
        arrays.append(pa.array(value, field.type))
    return readable(pa.Table.from_arrays(arrays, schema=FETCHED), ["input"])


def make(folder: str, pairs: int, count: int, touched: int) -> None:
    """Writes the set. The first `touched` shards hold pairs of the domain that goes."""
    ranges, infos, tables = Ranges(count), [], []

    def read(row: int, place: memoryview) -> None:
        place[:] = IMAGE

    for number in range(count):
        host = "gone.example" if number < touched else "stays.example"
        info, table = shards.write_shard(
            folder, number, rows_of(number, pairs // count, count, host), read, ranges=ranges
        )
        infos.append(info)
        tables.append(table.select(summary.COLUMNS))
    pick = summary.Pick(report.PICTURES)
    ledger = [{"stage": "gather", "rows_in": pairs, "rows_out": pairs, "dropped": {}}]
    counted = summary.summarise(tables, pick=pick)
    more = {"ledger": ledger, "options": {}, "versions": {}}
    report.finish(folder, infos, ranges=ranges, summary=counted, pick=pick, **more)


def main() -> None:
    """Makes a set, forgets a domain, and prints the time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--touched", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(folder, args.pairs, args.shards, args.touched)
        storage.forget()
        for dry_run in (True, False):
            start, cpu = time.perf_counter(), time.process_time()
            found = forget(folder, Selection.of([("domain", "gone.example")]), dry_run=dry_run)
            took = f"{time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} CPU s"
            print(f"{'dry run' if dry_run else 'forget'}: {found.published:,} of {args.pairs:,} pairs: {took}")
        size = sum(os.path.getsize(os.path.join(top, name)) for top, _, names in os.walk(folder) for name in names)
        print(f"set {size / 1e6:.0f} MB, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
