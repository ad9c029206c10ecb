"""A fetch from servers that are as slow as the web, beside img2dataset and beside the cost model.

    python -m benchmarks.slow_web [--images 6000] [--hosts 400] [--workers 1] [--skip-peer]

The servers are addresses of 127.0.0.0/8 in another process. Each answer begins after a time that a hash of its URL
draws: lognormal, `--median` seconds with the standard deviation `--sigma` of its logarithm. A share of the images is
gone (404). A share of the hosts closes each connection without an answer, and a share never answers. Both fetch the
same list, with 32 downloads at once in a process. The wall time of ours is that of the stage fetch in a build. It is
compared with `pipeline/planning/costs.py`, by the mean time of an answer that was drawn, in place of the assumed
`seconds_on_wire`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fetch import ROOT, SHIPPED, THREADS, store_pictures
from pipeline.planning.costs import COSTS
from pipeline.planning.takes import PARALLEL

CLOSED, SILENT = 0.03, 0.03  # shares of the hosts
GONE = 0.255  # share of the images of the others: 70 % of all are there, as `Costs.alive` assumes
LONGEST = 60.0  # seconds after which a silent server closes the connection


def draw(url: str, salt: str) -> float:
    """A number in (0, 1) for a URL."""
    return (int.from_bytes(hashlib.blake2b(f"{salt} {url}".encode(), digest_size=6).digest(), "big") + 0.5) / 2**48


def delay_of(url: str, median: float, sigma: float) -> float:
    """Seconds before the answer begins."""
    return float(median * 2.718281828 ** (sigma * NormalDist().inv_cdf(draw(url, "delay"))))


def fate_of(host: str, path: str) -> str:
    """ok, gone, closed or silent."""
    value = draw(host, "host")
    if value < CLOSED + SILENT:
        return "closed" if value < CLOSED else "silent"
    return "ok" if path.startswith("/img/") and draw(host + path, "image") >= GONE else "gone"


def serve(addresses: list[str], images: list[bytes], median: float, sigma: float, ready: Any) -> None:
    """Serves until the process is ended. Sends its port through `ready`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ", 2)[1]
            host = writer.get_extra_info("sockname")[0]
            fate = fate_of(host, path)
            await asyncio.sleep(LONGEST if fate == "silent" else delay_of(host + path, median, sigma))
            if fate in ("ok", "gone"):
                body = images[int(path.split("/")[-1].split(".")[0]) % len(images)] if fate == "ok" else b""
                kind, status = ("image/jpeg", "200 OK") if body else ("text/plain", "404 Not Found")
                head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
                await writer.drain()
        writer.close()

    async def run() -> None:
        first = await asyncio.start_server(answer, addresses[0], 0, backlog=1024)
        port = first.sockets[0].getsockname()[1]
        await asyncio.start_server(answer, addresses[1:], port, backlog=1024)
        ready.send(port)
        await asyncio.Event().wait()

    asyncio.run(run())


@contextlib.contextmanager
def serving(addresses: list[str], images: list[bytes], median: float, sigma: float) -> Iterator[int]:
    """The servers in a process of their own; the block gets their port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(addresses, images, median, sigma, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def cost_of(command: list[str]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a command, which must succeed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(ROOT)}
    nowhere = subprocess.DEVNULL
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=nowhere, stderr=nowhere)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.monotonic() - start


def ours(folder: Path, table: Path, workers: int) -> dict[str, float]:
    """Gathers, then fetches. The figures are those of the second command."""
    (folder / "queries.txt").write_text("photograph\n")
    command = [sys.executable, "-m", "pipeline.build", "--input", str(table), "--output", str(folder / "out")]
    command += ["--queries", str(folder / "queries.txt"), "--allow-address", "127.0.0.0/8"]
    command += ["--language-model", "none", "--workers", str(workers)]
    cost_of([*command, "--stages", "gather..balance"])
    cpu, wall = cost_of([*command, "--stages", "fetch"])
    info = json.loads((folder / "out/stages/fetch/info.json").read_text())
    return {"images": info["rows_out"], "cpu": cpu, "wall": wall}


def theirs(folder: Path, table: Path, workers: int) -> dict[str, float]:
    """img2dataset as shipped, with as many processes."""
    script = folder / "job.py"
    script.write_text(SHIPPED.replace("processes_count=1", f"processes_count={workers}"))
    (folder / "peer").mkdir()
    command = [sys.executable, str(script), str(table), str(folder / "peer"), str(THREADS)]
    cpu, wall = cost_of(command)
    stats = [json.loads(path.read_text()) for path in (folder / "peer").glob("*_stats.json")]
    return {"images": sum(one["successes"] for one in stats), "cpu": cpu, "wall": wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--hosts", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--median", type=float, default=0.5, help="seconds before an answer")
    parser.add_argument("--sigma", type=float, default=1.0, help="standard deviation of the logarithm")
    parser.add_argument("--skip-peer", action="store_true", help="do not run img2dataset")
    args = parser.parse_args()
    addresses = [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(args.hosts)]
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        (folder / "images").mkdir()
        store_pictures(folder / "images", None)
        images = [path.read_bytes() for path in sorted((folder / "images").iterdir())]
        with serving(addresses, images, args.median, args.sigma) as port:
            named = [(addresses[number % args.hosts], f"/img/{number}.jpg") for number in range(args.images)]
            urls = [f"http://{host}:{port}{path}" for host, path in named]
            texts = [f"a photograph with the number {number} of the series" for number in range(args.images)]
            pq.write_table(pa.table({"url": urls, "text": texts}), folder / "pairs.parquet")
            fates = [fate_of(host, path) for host, path in named]
            waits = [delay_of(host + path, args.median, args.sigma) for host, path in named]
            mean = sum(waits) / len(waits)
            there = fates.count("ok")
            print(f"{there:,} of {args.images:,} images are there; an answer begins after {mean:.2f} s on average")
            found = {"ours": ours(folder, folder / "pairs.parquet", args.workers)}
            if not args.skip_peer:
                found["img2dataset"] = theirs(folder, folder / "pairs.parquet", args.workers)
    for name, figures in found.items():
        each = figures["wall"] / max(1, figures["images"])
        print(
            f"{name}: {figures['images']:,.0f} images, {figures['cpu']:.1f} CPU s, {figures['wall']:.1f} s, "
            f"{1 / each:.1f} images/s"
        )
    cpu = COSTS.start + COSTS.image * there + COSTS.host * args.hosts
    wire = args.images * COSTS.tries * mean / (args.workers * COSTS.threads)
    wall = COSTS.start + max(cpu / (PARALLEL * args.workers), wire) + COSTS.pauses
    run = found["ours"]
    print(f"the model: {cpu:.1f} CPU s = {cpu / run['cpu']:.2f} of the run, {wall:.0f} s = {wall / run['wall']:.2f}")


if __name__ == "__main__":
    main()
