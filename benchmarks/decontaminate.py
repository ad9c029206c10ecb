"""Decontamination: evaluation images that were planted in a set, and others that were not.

    python benchmarks/decontaminate.py planted CALTECH101 CIFAR10 [OTHERS ...]
    python benchmarks/decontaminate.py speed [--rows 1000000] [--images 60000]

`planted` splits the pictures of the first two folders. One half of each is the evaluation set. The set is made of 50
pictures of each evaluation half, of the other halves (at most 1,500 of each folder), and of other folders. 25 of the 50
are the files themselves, and 25 are encoded anew as JPEG 75 at twice the size. The pictures are served from this
machine and go through a whole build. docs/benchmarks/near_duplicates.md shows the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pipeline import Options, build
from pipeline.dataset.exports import write_rows
from pipeline.schema import COLOUR_BYTES, FETCHED, SHADE_BYTES
from pipeline.stages.contamination import Index
from pipeline.stages.evaluation_images import HASHED
from tests.webserver import WebServer

PLANTED = 50  # of each evaluation set
OTHERS = 1_500  # pictures of a folder that are no evaluation images


def main() -> None:
    """Prints one table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("planted", "speed"))
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=60_000)
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.rows, given.images)
        return
    with tempfile.TemporaryDirectory() as folder:
        planted(given.folders, Path(folder))


def distinct(folder: Path) -> list[Path]:
    """The distinct pictures of a folder, in an order that their bytes decide."""
    paths = (path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    return [path for _, path in sorted({hashlib.sha256(path.read_bytes()).hexdigest(): path for path in paths}.items())]


def encoded_anew(body: bytes) -> bytes:
    """JPEG 75 at twice the size."""
    with Image.open(io.BytesIO(body)) as image:
        out = io.BytesIO()
        larger = image.convert("RGB").resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
        larger.save(out, "JPEG", quality=75)
        return out.getvalue()


def planted(folders: list[Path], work: Path) -> None:
    """What is found of the planted pictures, and what else."""
    served: dict[str, bytes] = {}
    sets = []
    for place, folder in enumerate(folders):
        paths = distinct(folder)
        half = len(paths) // 2 if place < 2 else 0
        if half:
            sets.append(f"{folder.name}={work / folder.name}")
            (work / folder.name).mkdir()
            for path in paths[:half]:
                shutil.copy(path, work / folder.name)
            for number, path in enumerate(paths[:PLANTED]):
                body = path.read_bytes()
                served[f"planted-{folder.name}-{path.name}"] = encoded_anew(body) if number % 2 else body
        for path in paths[half : half + OTHERS]:
            served[f"other-{folder.name}-{path.name}"] = path.read_bytes()
    (work / "queries.txt").write_text("picture\n")
    print("| distance | planted | found | other pictures | of these dropped | missed | CPU s of dedup-images |")
    print("|---|---|---|---|---|---|---|")
    with WebServer(served) as server:
        urls = [f"{server.base}/img/{name}" for name in served]
        texts = [f"picture number {number}" for number in range(len(urls))]
        pq.write_table(pa.table({"url": urls, "text": texts}), work / "pairs.parquet")
        for redo, distance in enumerate((0, 2, 4, 6)):
            row(work, sets, distance, len(served), redo="dedup-images" if redo else None)


def row(work: Path, sets: list[str], distance: int, served: int, *, redo: str | None) -> None:
    """One row of the table."""
    build(
        Options(
            input=(str(work / "pairs.parquet"),),
            output=str(work / "out"),
            queries=(str(work / "queries.txt"),),
            allow_address=("127.0.0.0/8",),
            min_image_side=16,
            max_aspect=1000.0,
            phash_distance=None,
            balance="none",
            decontaminate=tuple(sets),
            decontaminate_distance=distance,
            redo=redo,
        ),
        quiet=True,
    )
    table = pq.read_table(work / "out" / "contamination.parquet")
    url_of = {uid.hex(): url for uid, url in rows_of(work / "out")}
    hits = {url_of[key].rpartition("/")[2] for key in table["key"].to_pylist()}
    wrong = sorted(name for name in hits if name.startswith("other-"))
    right = len(hits) - len(wrong)
    cpu = json.loads((work / "out/stages/dedup-images/info.json").read_text())["cpu_seconds"]
    everything = PLANTED * len(sets)
    print(
        f"| {distance} | {everything} | {right} | {served - everything} | {len(wrong)} | {everything - right} | {cpu} |"
    )
    for name in wrong:
        key = next(key for key, url in url_of.items() if url.endswith(f"/{name}"))
        print(f"    {name}: {table.filter(pc.equal(table['key'], key)).to_pylist()}")


def rows_of(out: Path) -> list[tuple[bytes, str]]:
    """(uid, url) of the selected rows."""
    write_rows(str(out), "balance", str(out / "selected.parquet"))
    table = pq.read_table(out / "selected.parquet", columns=["uid", "url"]).sort_by("uid")
    return list(zip(table["uid"].to_pylist(), table["url"].to_pylist(), strict=True))


def speed(rows: int, count: int) -> None:
    """CPU seconds to look for `count` evaluation images in `rows` pictures. One of a hundred is an evaluation image."""
    random = np.random.default_rng(0)

    def pictures(number: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(0, 2**64, number, np.uint64), random.integers(0, 255, (number, COLOUR_BYTES), np.uint8)

    def table(phash: np.ndarray, colours: np.ndarray, names: list[str], schema: pa.Schema) -> pa.Table:
        data = pa.FixedSizeBinaryArray.from_buffers(pa.binary(COLOUR_BYTES), len(phash), [None, pa.py_buffer(colours)])
        digests = random.bytes(32 * len(phash))
        sha256 = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(phash), [None, pa.py_buffer(digests)])
        uids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(phash), [None, pa.py_buffer(digests)])
        found = {"uid": uids, "image_sha256": sha256, "sha256": sha256, "phash": pa.array(phash), "colours": data}
        shades = pa.array([bytes(SHADE_BYTES)] * len(phash), pa.binary(SHADE_BYTES))
        found |= {
            "shades": shades,
            "grain": pa.array(np.zeros(len(phash), np.uint8)),
            "mirrored": pa.array(phash[::-1]),
        }
        found |= {"set": pa.array(["set"] * len(phash)), "image": pa.array([f"{n}" for n in range(len(phash))])}
        return pa.table({name: found[name] for name in names}, schema=pa.schema([schema.field(name) for name in names]))

    known = pictures(count)
    evaluation = table(*known, HASHED.names, HASHED)
    phash, colours = pictures(rows)
    planted_rows = np.arange(0, rows, 100)
    chosen = random.integers(0, count, len(planted_rows))
    phash[planted_rows], colours[planted_rows] = known[0][chosen], known[1][chosen]
    asked = table(phash, colours, ["uid", "image_sha256", "phash", "colours", "shades", "grain"], FETCHED)
    print("| distance | rows | evaluation images | found | index, CPU s | rows, CPU s |")
    print("|---|---|---|---|---|---|")
    for distance in (0, 2, 4, 6, 8):
        start = time.process_time()
        index = Index.of(evaluation, distance)
        middle = time.process_time()
        found = sum(index.find(asked.slice(at, 5_000)).num_rows for at in range(0, rows, 5_000))
        end = time.process_time()
        print(f"| {distance} | {rows:,} | {count:,} | {found:,} | {middle - start:.2f} | {end - middle:.2f} |")


if __name__ == "__main__":
    main()
