"""Shards: CPU for a sample, written and read at random, against webdataset.

    python benchmarks/shards.py [--samples 10000] [--bytes 27000] [--write docs/benchmarks/shards.md]

Each way runs in a process of its own. The ways take turns, `--rounds` times; the best of each counts. CPU is user +
system time of the process while it works, without imports. webdataset writes jpg, txt and json of each sample from
memory, and nothing else. Ours also takes the sha256 of the tar, compares each image with the digest of the fetch,
writes the index, and syncs to the disk. It is measured with its images in memory, and as publish does it, from the
fetch's files. The random reads follow a fixed permutation of the samples. webdataset can only read forward, so it reads
in the order of the tar, its best case.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RAW_FILES = 16  # files of the fetch that hold a shard's images
SOURCE = Path(__file__).resolve().parent.parent


def make_rows(count: int, size: int) -> tuple[Any, Callable[[int], bytes], list[dict[str, Any]]]:
    """FETCHED rows, their images (random bytes after a JPEG's first bytes), and the rows as dicts."""
    import hashlib

    import pyarrow as pa
    import xxhash

    from pipeline.schema import COLOUR_BYTES, FETCHED, readable

    rng = random.Random(0)
    pictures = [b"\xff\xd8" + rng.randbytes(rng.randint(size // 2, size + size // 2)) for _ in range(200)]
    digests = [hashlib.sha256(picture).digest() for picture in pictures]
    cheap = [xxhash.xxh3_64_intdigest(picture) for picture in pictures]
    words = "a red boat on the lake of an old town with two dogs and their cat in winter".split()
    rows: list[dict[str, Any]] = []
    for number in range(count):
        text = " ".join(rng.choice(words) for _ in range(10))
        rows.append(
            {
                "uid": number.to_bytes(8, "big") + rng.randbytes(8),
                "url": f"https://images{number % 97}.example.org/a/b/{number}.jpg",
                "text": text,
                "page_url": f"https://www{number % 97}.example.org/page/{number // 5}.html",
                "source": 0,
                "source_offset": number * 4000,
                "text_source": 0,
                "url_source": 0,
                "language": "en",
                "language_score": 0.9,
                "query_ids": [number % 1000, 1000 + number % 5000],
                "keep_probability": 0.5,
                "kept_by": [number % 1000],
                "status": "ok",
                "retryable": False,
                "image_sha256": rng.randbytes(32),
                "image_offset": 0,
                "image_bytes": len(pictures[number % len(pictures)]),
                "stored_sha256": digests[number % len(pictures)],
                "stored_xxh3": cheap[number % len(pictures)],
                "width": 341,
                "height": 256,
                "original_width": 1024,
                "original_height": 768,
                "original_format": "JPEG",
                "phash": rng.getrandbits(64),
                "colours": rng.randbytes(COLOUR_BYTES),
            }
        )
    table = readable(pa.Table.from_pylist(rows, FETCHED), ["crawl/a.warc.gz"])
    return table, lambda row: pictures[row % len(pictures)], rows


def write_ours(folder: str, count: int, size: int) -> Callable[[], None]:
    """Our writer, with the images in memory like webdataset's."""
    from pipeline.dataset import shards
    from pipeline.dataset.ranges import Ranges

    table, image, _ = make_rows(count, size)

    def put(row: int, place: memoryview) -> None:
        place[:] = image(row)

    def work() -> None:
        shards.write_shard(folder, 0, table, put, ranges=Ranges(1))

    return work


def write_as_publish(folder: str, count: int, size: int) -> Callable[[], None]:
    """Our writer, with the images read from raw files of the fetch by the code of the stage."""
    import types

    import pyarrow as pa

    from pipeline.dataset import shards
    from pipeline.dataset.ranges import Ranges
    from pipeline.stages.publish import RawImages

    table, image, _ = make_rows(count, size)
    units = [open(os.path.join(folder, f"{unit}.of-the-fetch"), "wb") for unit in range(RAW_FILES)]
    offsets = []
    for row in range(count):
        offsets.append(units[row % RAW_FILES].tell())
        units[row % RAW_FILES].write(image(row))
    for unit in units:
        unit.close()
    columns = {"raw_pass": [0] * count, "raw_unit": [row % RAW_FILES for row in range(count)], "raw_part": [0] * count}
    places = pa.table(columns | {"image_offset": offsets})
    raw = types.SimpleNamespace(file=lambda unit, kind, part: units[unit].name)

    def work() -> None:
        shards.write_shard(folder, 0, table, RawImages(lambda number: raw, places), ranges=Ranges(1))

    return work


def write_undigested(folder: str, count: int, size: int) -> Callable[[], None]:
    """As `write_as_publish`, without the sha256 of the tar."""
    from types import SimpleNamespace

    from pipeline.dataset import tars

    nothing = SimpleNamespace(update=lambda data: None, hexdigest=lambda: "0" * 64)
    tars.hashlib = SimpleNamespace(sha256=lambda: nothing)  # type: ignore[assignment]
    return write_as_publish(folder, count, size)


def write_webdataset(folder: str, count: int, size: int) -> Callable[[], None]:
    import webdataset

    _, image, rows = make_rows(count, size)
    hidden = ("status", "retryable", "image_offset", "image_bytes", "uid", "image_sha256", "query_ids", "kept_by")
    hidden += ("stored_sha256", "stored_xxh3")
    records = [{name: value for name, value in row.items() if name not in hidden} for row in rows]
    for row, record in zip(rows, records, strict=True):
        record |= {"key": row["uid"].hex(), "sha256": row["image_sha256"].hex()}

    def work() -> None:
        pattern = os.path.join(folder, "wds-%05d.tar")
        with webdataset.ShardWriter(pattern, maxcount=10**7, maxsize=1e13, verbose=0) as writer:
            for number, record in enumerate(records):
                writer.write({"__key__": record["key"], "jpg": image(number), "txt": record["text"], "json": record})

    return work


def read_ours(folder: str, count: int, size: int) -> Callable[[], None]:
    import mmap

    import pyarrow.parquet as pq

    order = list(range(count))
    random.Random(1).shuffle(order)

    def work() -> None:
        names = ["jpg_offset", "jpg_size", "txt_offset", "txt_size"]
        table = pq.read_table(f"{folder}/metadata/00000.parquet", columns=names, page_checksum_verification=True)
        places = list(zip(*(table[name].to_pylist() for name in names), strict=True))
        with open(f"{folder}/shards/00000.tar", "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        total = 0
        for number in order:
            at, length, text_at, text_length = places[number]
            total += len(data[at : at + length]) + len(data[text_at : text_at + text_length].decode())
        assert total

    return work


def read_webdataset(folder: str, count: int, size: int) -> Callable[[], None]:
    import webdataset

    def work() -> None:
        dataset = webdataset.WebDataset(f"{folder}/shards/00000.tar", shardshuffle=False)
        found = sum(1 for image, text in dataset.to_tuple("jpg", "txt") if image and text.decode())
        assert found == count

    return work


WAYS = {
    f.__name__: f
    for f in (write_webdataset, write_undigested, write_ours, write_as_publish, read_webdataset, read_ours)
}


def measure(way: str, folder: str, args: argparse.Namespace) -> float:
    """The CPU seconds of a way: the best of its repeats, in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--folder", folder]
    command += ["--samples", str(args.samples), "--bytes", str(args.bytes), "--repeat", str(args.repeat)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "ignore"}
    out = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    return json.loads(out.splitlines()[-1])


def one(way: str, folder: str, args: argparse.Namespace) -> float:
    """The CPU seconds of a way in this process: the best of its repeats."""
    work = WAYS[way](folder, args.samples, args.bytes)
    best = float("inf")
    for _ in range(args.repeat):
        for path in Path(folder).rglob("*"):  # removing the last round's files is not measured
            if way.startswith("write") and path.suffix in (".tar", ".parquet"):
                path.unlink()
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def table(seconds: dict[str, float], args: argparse.Namespace, sizes: dict[str, int]) -> str:
    """The page of the results."""
    lines = [
        "# Shards: CPU for a sample",
        "",
        f"{args.samples:,} samples, {args.bytes / 1000:.0f} kB of JPEG on average; Python {platform.python_version()}. "
        f"The ways take turns; the best of {args.rounds * args.repeat} counts. Times are CPU seconds of the process, "
        "without imports. webdataset 0.2.86 writes jpg, txt and json from memory, and nothing else. `write_shard` also "
        "takes the sha256 of the tar, compares every image with the xxh3 that the fetch took, writes the Parquet index "
        "and syncs both to the disk. The reader takes image and text of every sample. Ours reads in random order, by "
        "the index alone (loading it is counted). webdataset can only read forward, so it reads in the order of the "
        "tar.",
        "",
        "| | CPU s | µs for a sample | samples/CPU s | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, way, peer in (
        ("write: webdataset", "write_webdataset", "write_webdataset"),
        ("write: write_shard, images in memory like webdataset's", "write_ours", "write_webdataset"),
        ("write: as publish does, images from the fetch's files", "write_as_publish", "write_webdataset"),
        ("the same without the sha256 of the tar", "write_undigested", "write_webdataset"),
        ("read: webdataset", "read_webdataset", "read_webdataset"),
        ("read: by the index", "read_ours", "read_webdataset"),
    ):
        s = seconds[way]
        lines.append(
            f"| {name} | {s:.2f} | {s / args.samples * 1e6:.0f} | {args.samples / s:,.0f} | {seconds[peer] / s:.1f} |"
        )
    lines += [
        "",
        f"The tar of webdataset has {sizes['webdataset'] / 1e6:.1f} MB, ours {sizes['ours'] / 1e6:.1f} MB: no extra "
        "header a member. Ours is the same, byte for byte, in every run.",
        "",
        "About half of the time of `write_shard` is the sha256 of the tar. It cannot be cheaper: it is one stream and "
        "uses the processor's own instructions. A quarter is the copy into the cache of the file system. The rest is "
        "headers, JSON and texts (laid out column by column), the index and, as publish does it, reading the images. "
        "An image is read directly into the buffer that is digested and written. Its own sha256 is taken in the fetch, "
        "when the image is stored (beside some milliseconds of decoding). Here a much cheaper hash checks that the "
        "bytes are still the same.",
        "",
        "`python benchmarks/shards.py --write docs/benchmarks/shards.md`",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=27_000, help="of an image, on average")
    parser.add_argument("--rounds", type=int, default=4, help="processes of each way")
    parser.add_argument("--repeat", type=int, default=3, help="times that a process does it")
    parser.add_argument("--write", metavar="FILE", help="write the results there")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(one(args.way, args.folder, args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds = dict.fromkeys(WAYS, float("inf"))
        sizes = {}
        for way in [*WAYS] * args.rounds:
            seconds[way] = min(seconds[way], measure(way, folder, args))
            for path in Path(folder).rglob("*.tar"):
                sizes["webdataset" if path.name.startswith("wds") else "ours"] = path.stat().st_size
    text = table(seconds, args, sizes)
    print(text)
    if args.write:
        Path(args.write).write_text(text)


if __name__ == "__main__":
    main()
