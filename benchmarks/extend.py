"""--extend by 1 % of a WAT input, or of tables, against the first build, in CPU seconds of the units of select.

    python benchmarks/extend.py --captions DIR [--rows 1000000] [--files 100] [--tables]

The WAT files hold pages of 20 images with captions of a folder of Parquet files, drawn with repetition. A tenth of the
images have a known URL. One more file of the same size is added with --extend. "units" are the CPU seconds of the work
itself, without imports and the start of processes, which are the same for any input.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.select_pairs import captions  # noqa: E402
from pipeline import build  # noqa: E402

IMAGES = 20  # of a page
RECORD = "WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: {url}\r\nContent-Length: {size}\r\n\r\n"


def write_wat(path: Path, texts: list[str], rows: int, seed: int) -> None:
    """Writes a WAT file: a gzip member for each page."""
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file:
        for page in range(rows // IMAGES):
            url = f"https://site{rng.integers(20_000)}.example/page/{seed}/{page}.html"
            picked = rng.integers(0, len(texts), IMAGES).tolist()
            known = rng.random(IMAGES) < 0.1
            links = [
                {"path": "IMG@/src", "url": image_url(seed, page, number, bool(again), rng), "alt": texts[text]}
                for number, (text, again) in enumerate(zip(picked, known, strict=True))
            ]
            envelope = {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": links}}}}
            envelope |= {"WARC-Header-Metadata": {"WARC-Target-URI": url, "WARC-Type": "response"}}
            body = json.dumps({"Envelope": envelope}, ensure_ascii=False).encode()
            head = RECORD.format(url=url, size=len(body)).encode()
            file.write(gzip.compress(head + body + b"\r\n\r\n", 6, mtime=0))


def write_table(path: Path, texts: list[str], rows: int, seed: int) -> None:
    """Writes a Parquet table with as many pairs as the WAT file, of the same kind."""
    rng = np.random.default_rng(seed)
    picked, known = rng.integers(0, len(texts), rows).tolist(), (rng.random(rows) < 0.1).tolist()
    urls = [image_url(seed, row // IMAGES, row % IMAGES, again, rng) for row, again in enumerate(known)]
    pq.write_table(pa.table({"url": urls, "text": [texts[text] for text in picked]}), path)


def image_url(seed: int, page: int, number: int, again: bool, rng: np.random.Generator) -> str:
    """The URL of an image; `again`: one of a hundred thousand that all files draw from."""
    if again:
        return f"https://cdn.example/shared/{rng.integers(100_000)}.jpg"
    return f"https://cdn{number}.example/{seed}/{page}/{number}.jpg"


def units(out: Path) -> dict[str, float]:
    """The CPU seconds of the units of each stage. gather and match are one pass, which match counts."""
    infos: dict[str, Any] = {path.parent.name: json.loads(path.read_text()) for path in out.glob("stages/*/info.json")}
    return {name: infos[name]["cpu_seconds"] for name in ("match", "dedup", "balance")}


def steps(out: Path) -> dict[str, float]:
    """The CPU seconds of the steps of dedup and balance."""
    found: dict[str, float] = {}
    for path in (path for stage in ("dedup", "balance") for path in out.glob(f"stages/{stage}/*/*.json")):
        name = "/".join(path.parts[-3:-1])
        found[name] = round(found.get(name, 0.0) + json.loads(path.read_text()).get("cpu_seconds", 0.0), 3)
    return {name: seconds for name, seconds in sorted(found.items()) if seconds >= 0.05}


def main() -> int:
    """Runs both builds and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--tables", action="store_true", help="Parquet tables in place of WAT files")
    args = parser.parse_args()
    texts = captions(args.captions).to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "first").mkdir()
        write, ending = (write_table, "parquet") if args.tables else (write_wat, "warc.wat.gz")
        for number in range(args.files):
            write(root / f"first/{number:05}.{ending}", texts, args.rows // args.files, number)
        write(root / f"more.{ending}", texts, args.rows // args.files, args.files)
        out = root / "out"
        steering = ["--output", str(out), "--stages", "gather..balance", "--workers", str(os.cpu_count())]
        if build.main(["--input", str(root / "first"), *steering]):
            return 1
        first = units(out)
        if build.main(["--extend", "--input", str(root / f"more.{ending}"), *steering]):
            return 1
        second = units(out)
        added = {**second, "match": second["match"] - first["match"]}
        info = json.loads((out / "stages/match/info.json").read_text())
        counts = {"rows_read": args.rows, "matched": info["rows_out"]}
        share = sum(added.values()) / sum(first.values())
        found = {"first": first, "extend": added, "share": round(share, 4), "steps": steps(out)}
        print(json.dumps({**counts, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
