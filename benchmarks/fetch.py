"""CPU for an image, from URL to stored JPEG: img2dataset as shipped against fetch_rows, over http and https.

    python -m benchmarks.fetch --sites DATA/sites [--few 300] [--many 1200]

Both fetch the same JPEGs from a server on the loopback device, each in a process of its own. The JPEGs have about 0.6
megapixels; they are pictures of real pages, encoded like photographs. Both store them with 256 pixels at the short side
in quality 90. The figures are the CPU time of the process and its children, without the server. Two sizes of job are
run. Their difference gives the cost of a further image; the rest is the start.

The table goes to docs/benchmarks/fetch.md.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import ssl
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[1]
PIXELS = 620_000
THREADS = 32
WAYS = ("img2dataset 1.47, as shipped", "fetch_rows")

SERVER = """
import sys, ssl
sys.path.insert(0, ".")
from pathlib import Path
from tests.webserver import WebServer
images = {path.name: path.read_bytes() for path in Path(sys.argv[1]).glob("*.jpg")}
context = None
if sys.argv[2]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
server = WebServer(images, tls=context)
print(server.base, flush=True)
server.serve_forever()
"""

SHIPPED = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(url_list=sys.argv[1], output_folder=sys.argv[2], input_format="parquet", url_col="url", caption_col="text",
             output_format="webdataset", image_size=256, resize_mode="keep_ratio", encode_quality=90,
             processes_count=1, thread_count=int(sys.argv[3]))
"""

OURS = """
import sys
import pyarrow as pa
import pyarrow.parquet as pq
from pipeline.fetching.downloader import FetchOptions, fetch_rows
rows = pq.read_table(sys.argv[1]).combine_chunks().to_batches()[0]
options = FetchOptions(allow_addresses=("127.0.0.0/8",), threads=int(sys.argv[3]), per_host=int(sys.argv[3]))
out = fetch_rows(rows, options=options, raw_path=sys.argv[2] + "/raw")
pq.write_table(pa.Table.from_batches([out]), sys.argv[2] + "/rows.parquet")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sites", type=Path, help="folder of NAME.tar.zst with pages and images; without: made pictures"
    )
    parser.add_argument("--few", type=int, default=300)
    parser.add_argument("--many", type=int, default=1200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = compare(Path(folder), arguments.sites, arguments.few, arguments.many)
    print(table)
    page = ROOT / "docs" / "benchmarks" / "fetch.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(table)


def compare(folder: Path, sites: Path | None, few: int, many: int) -> str:
    images = folder / "images"
    images.mkdir()
    count, size = store_pictures(images, sites)
    certificate, key = make_certificate(folder)
    lines = [
        "# Fetching: CPU for an image",
        "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " ")
        + f" Here: {count} distinct pictures of {size / 1000:.0f} kB"
        f" on average, {THREADS} threads, jobs of {few} and {many} images, Python {platform.python_version()}.",
        "",
        "| | way | CPU s, all | start s | ms for a further image | images/CPU s | ratio, all | ratio, further |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scheme in ("http", "https"):
        seconds: dict[str, tuple[float, float]] = {}
        with serving(images, certificate if scheme == "https" else "", key) as base:
            for way in WAYS:
                run(way, folder / f"{scheme}-warm", base, sorted(images.iterdir()), 10, certificate)
                seconds[way] = tuple(  # type: ignore[assignment]
                    run(way, folder / f"{scheme}-{number}", base, sorted(images.iterdir()), number, certificate)
                    for number in (few, many)
                )
        reference = seconds[WAYS[0]]
        for way, (small, large) in seconds.items():
            further = (large - small) / (many - few)
            ratios = reference[1] / large, (reference[1] - reference[0]) / (large - small)
            lines.append(
                f"| {scheme} | {way} | {large:.1f} | {max(0.0, small - few * further):.1f} | {1000 * further:.1f} | "
                f"{1 / further:.0f} | {ratios[0]:.1f} | {ratios[1]:.1f} |"
            )
    return "\n".join(lines) + "\n"


def store_pictures(folder: Path, sites: Path | None) -> tuple[int, float]:
    """Writes JPEGs of about PIXELS each; returns how many and their mean size."""
    sizes = []
    for number, picture in enumerate(pictures(sites)):
        scale = (PIXELS / (picture.width * picture.height)) ** 0.5
        size = round(picture.width * scale), round(picture.height * scale)
        out = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        (folder / f"{number:04d}.jpg").write_bytes(out.getvalue())
        sizes.append(len(out.getvalue()))
    return len(sizes), sum(sizes) / len(sizes)


def pictures(sites: Path | None) -> Iterator[Image.Image]:
    if sites is None:
        for seed in range(64):
            yield Image.effect_noise((256, 192), 20 + seed).convert("RGB")
        return
    import zstandard

    for path in sorted(sites.glob("*.tar.zst")):
        with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
            with tarfile.open(fileobj=plain, mode="r|") as tar:
                for member in tar:
                    if member.isfile() and member.name.lower().endswith((".png", ".jpg", ".jpeg")):
                        content = tar.extractfile(member)
                        picture = Image.open(io.BytesIO(content.read() if content else b""))
                        if min(picture.size) >= 300 and max(picture.size) < 4 * min(picture.size):
                            yield picture.convert("RGB")


def make_certificate(folder: Path) -> tuple[str, str]:
    sys.path.insert(0, str(ROOT))
    from tests.webserver import certificate  # type: ignore[import-not-found]

    pair = certificate(str(folder), ("127.0.0.1",))
    if pair is None:
        raise SystemExit("the package cryptography is needed for a certificate")
    system = ssl.get_default_verify_paths().cafile or certifi.where()
    usual = Path(system).read_bytes()  # the certificates of a user's machine: reading them is part of the cost
    own = Path(pair[1]).read_bytes()
    Path(pair[1]).with_name("trusted.pem").write_bytes(own + usual)
    return pair[1], f"{folder}/key.pem"


class serving:
    """The server in a process of its own; the block gets its URL."""

    def __init__(self, images: Path, certificate: str, key: str) -> None:
        command = [sys.executable, "-c", SERVER, str(images), certificate, key]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def run(way: str, folder: Path, base: str, images: list[Path], number: int, certificate: str) -> float:
    """CPU seconds of one job, start included. It fails unless all images were stored."""
    ours = way == WAYS[1]
    folder = folder.with_name(f"{folder.name}-{'ours' if ours else 'shipped'}")
    folder.mkdir()
    urls = [f"{base}/img/{images[n % len(images)].name}" for n in range(number)]
    uids = [hashlib.md5(str(n).encode()).digest() for n in range(number)]
    table = pa.table({"uid": pa.array(uids, pa.binary(16)), "url": urls, "text": [f"text {n}" for n in range(number)]})
    pq.write_table(table if ours else table.drop_columns(["uid"]), folder / "list.parquet")
    script = folder / "job.py"
    script.write_text(OURS if ours else SHIPPED)
    environment = dict(
        os.environ,
        SSL_CERT_FILE=str(Path(certificate).with_name("trusted.pem")),
        NO_ALBUMENTATIONS_UPDATE="1",
        PYTHONPATH=str(ROOT),
    )
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # imports are compiled once, before the clock runs
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder / "list.parquet"), str(folder), str(THREADS)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    stored = (stored_by_us if ours else stored_by_them)(folder)
    if stored != number:
        raise SystemExit(f"{way}: {stored} of {number} images came out\n{errors[-2000:]}")
    seconds = usage.ru_utime + usage.ru_stime
    print(f"{way}, {base.partition(':')[0]}, {number} images: {seconds:.1f} CPU s", flush=True)
    return seconds


def stored_by_us(folder: Path) -> int:
    statuses: list[Any] = pq.read_table(folder / "rows.parquet", columns=["status"])["status"].to_pylist()
    return statuses.count("ok")


def stored_by_them(folder: Path) -> int:
    return sum(json.loads(path.read_text())["successes"] for path in folder.glob("*_stats.json"))


if __name__ == "__main__":
    main()
