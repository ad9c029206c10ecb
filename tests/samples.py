"""Generated rows as they come from the fetch, with small drawn JPEGs, and whole published folders of them."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from PIL import Image, ImageDraw

from pipeline.dataset import report, shards, summary
from pipeline.dataset.ranges import Ranges
from pipeline.engine import storage
from pipeline.schema import COLOUR_BYTES, FETCHED, SHADE_BYTES, readable

CAPTIONS = (
    "a red boat on the lake",
    "Brücke über den Fluss, früh am Morgen",
    "chat noir sur un toit",
    "赤い灯台と海",
    "old map of the harbour & its <b>walls</b>",
    "two dogs 🐕🐕 at play",
)
HOSTS = ("images.example.org", "static.example.com", "photos.example.co.uk", "bilder.example.de")
SOURCES = ("crawl/a.warc.gz", "crawl/b.warc.gz")
OPTIONS = {"match": "wide", "case": "exact", "balance": "cap", "cap": 20_000, "seed": 0, "image_size": 256}
VERSIONS = {"openwit": "0.1.0"}
ESCAPE = "\x1b]0;owned\x07 \u202etxt"  # a text that would write to a terminal
SLOTS = 1200  # the uids of numbers below it are spread evenly: `ranges_of(12)` puts 0 to 11 into the range 0


@functools.lru_cache(maxsize=512)
def jpeg(number: int, size: tuple[int, int] = (40, 32)) -> bytes:
    """A drawing that depends on its number."""
    image = Image.new("RGB", size, ((number * 37) % 256, (number * 91) % 256, 90))
    draw = ImageDraw.Draw(image)
    draw.ellipse((number % 7, number % 5, 20 + number % 11, 18 + number % 13), fill=(250, (number * 53) % 256, 40))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def put(row: int, place: memoryview, *, first: int = 0) -> None:
    """Reads the image of a row, as `write_shard` requests it."""
    place[:] = jpeg(first + row)


def uid(number: int) -> bytes:
    """The uid of a number below SLOTS; uids ascend."""
    high = -(-(number << 64) // SLOTS)
    return high.to_bytes(8, "big") + hashlib.md5(str(number).encode()).digest()[:8]


def ranges_of(per_shard: int) -> Ranges:
    """The ranges that hold so many numbers each."""
    assert SLOTS % per_shard == 0
    return Ranges(SLOTS // per_shard)


def texts_of(number: int, texts: dict[int, str] | None = None) -> list[str]:
    """The texts of a sample: one, or three for every fourth number."""
    first = (texts or {}).get(number, f"{CAPTIONS[number % len(CAPTIONS)]} {number}")
    return [first] if number % 4 else [first, 'a "second" text', f"ein dritter {number} \\"]


def fetched(count: int, *, first: int = 0, texts: dict[int, str] | None = None) -> pa.Table:
    """Rows of FETCHED with names in place of codes, sorted by uid. About half of the nullable values are null."""
    return fetched_of(range(first, first + count), texts=texts)


def fetched_of(numbers: Sequence[int], *, texts: dict[int, str] | None = None) -> pa.Table:
    """`fetched` of any numbers."""
    rows: list[dict[str, Any]] = []
    for number in numbers:
        some, host = number % 2 == 0, HOSTS[number % len(HOSTS)]
        rows.append(
            {
                "uid": uid(number),
                "url": f"https://{host}/{number}.jpg",
                "text": texts_of(number, texts)[0],
                "url_as_found": None if number % 7 else f"http://{host}/{number}-300x200.jpg",
                "text_as_found": None if some else f"  {CAPTIONS[number % len(CAPTIONS)]} {number}",
                "texts": texts_of(number, texts),
                "page_url": f"https://{host}/page{number // 3}.html",
                "source": number % len(SOURCES),
                "source_offset": number * 1000,
                "text_source": number % 2,
                "url_source": 0,
                "language": "en" if number % 3 else None,
                "language_score": 0.9 if number % 3 else None,
                "opt_out": None,
                "license": None if number % 5 else "https://creativecommons.org/licenses/by/4.0/",
                "query_ids": [number % 4, 5 + number % 3],
                "keep_probability": 0.25 if some else 1.0,
                "kept_by": [number % 4] if some else [],
                "status": "ok",
                "error": None,
                "retryable": False,
                "http_status": 200,
                "image_sha256": hashlib.sha256(b"served" + jpeg(number)).digest(),
                "image_offset": 0,
                "image_bytes": len(jpeg(number)),
                "stored_sha256": hashlib.sha256(jpeg(number)).digest(),
                "stored_xxh3": xxhash.xxh3_64_intdigest(jpeg(number)),
                "width": 40,
                "height": 32,
                "original_width": 400,
                "original_height": 320,
                "original_format": "PNG" if some else "JPEG",
                "phash": (number * 0x9E3779B97F4A7C15) % 2**64,
                "rights": "allowed" if number % 7 == 0 else "unstated",
                "rights_protocol": "content-usage" if number % 7 == 0 else None,
                "rights_consulted": "robots,content-usage" if some else None,
                "colours": bytes([number % 256]) * COLOUR_BYTES,
                "shades": bytes([number % 256]) * SHADE_BYTES,
                "grain": number % 256,
                "final_url": None if some else f"https://{host}/moved/{number}.jpg",
            }
        )
    return readable(pa.Table.from_pylist(rows, FETCHED), list(SOURCES))


def ledger(rows: int) -> list[dict[str, Any]]:
    """A funnel that ends in `rows`."""
    steps = (
        ("gather", {"empty_text": 30, "bad_url": 12}),
        ("match", {"no_query": 100}),
        ("dedup", {"same_pair": 7}),
        ("balance", {"over_cap": 9}),
        ("fetch", {"dns": 5, "http": 4, "decode": 1}),
        ("dedup-images", {"same_image": 2}),
        ("publish", {"over_cap": 1}),
    )
    found: list[dict[str, Any]] = []
    for stage, dropped in reversed(steps):
        found.append({"stage": stage, "rows_in": rows + sum(dropped.values()), "rows_out": rows, "dropped": dropped})
        rows += sum(dropped.values())
    return found[::-1]


def publish(
    folder: Path,
    *,
    count: int = 30,
    per_shard: int = 12,
    texts: dict[int, str] | None = None,
    numbers: Sequence[int] | None = None,
) -> dict:
    """Makes a whole published folder with its stages. Returns the manifest. `numbers` leaves out some of the first."""
    numbers = range(count) if numbers is None else numbers
    infos = [
        write_shard(folder, list(some), ranges=ranges_of(per_shard), texts=texts)
        for _, some in itertools.groupby(numbers, key=lambda number: number // per_shard)
    ]
    rejected = pa.table(
        {
            "url": ["https://x.example/<script>alert(1)</script>.jpg", "https://y.example/2.jpg"],
            "text": ['"><img src=x onerror=alert(1)>', "IMG_0001.jpg"],
            "stage": ["gather", "gather"],
            "reason": ["bad_url", "empty_text"],
        }
    )
    storage.write_published(str(folder / "rejected" / "gather.parquet"), rejected)
    queries = ["a", "boat", "cat", "dog", "harbour", "lake", "map", "sea"]
    table = {"id": pa.array(range(len(queries)), pa.int32()), "query": queries, "source": ["test"] * 8}
    storage.write_published(str(folder / "queries.parquet"), pa.table(table | {"count": pa.array([1] * 8, pa.int64())}))
    rows = ledger(len(numbers))
    for info in rows:
        stage = folder / "stages" / info["stage"]
        storage.write_json(
            str(stage / "info.json"), {**info, "fingerprint": "0", "digest": "00", "seconds": 1.5, "cpu_seconds": 1}
        )
        storage.write_plain(str(stage / "COMPLETED"), b"")
    return finish(folder, infos, ranges=ranges_of(per_shard), ledger=rows, options=OPTIONS, versions=VERSIONS)


def write_shard(
    folder: Path, numbers: list[int], *, ranges: Ranges, texts: dict[int, str] | None = None
) -> shards.ShardInfo:
    """Writes the shard of the first number, with all of them."""

    def read(row: int, place: memoryview) -> None:
        place[:] = jpeg(numbers[row])

    shard = numbers[0] * ranges.count // SLOTS
    return shards.write_shard(str(folder), shard, fetched_of(numbers, texts=texts), read, ranges=ranges)[0]


def finish(folder: Path, infos: list[shards.ShardInfo], **more: Any) -> dict:
    """Calls report.finish with the numbers from the metadata of the shards."""
    paths = [str(folder / info.files[1].path) for info in infos]
    pick = summary.Pick(report.PICTURES)
    numbers = summary.summarise((storage.read_published(path, summary.COLUMNS) for path in paths), pick=pick)
    return report.finish(str(folder), infos, summary=numbers, pick=pick, **more)
