"""The cost model behind `--plan`: measured again, compared with recorded runs, and applied to a whole crawl.

    python -m benchmarks.cost_model measure --captions DIR     CPU seconds of select on this machine, by job and row
    python -m benchmarks.cost_model error                      the model beside the runs of docs/benchmarks/select.md
    python -m benchmarks.cost_model crawl --price 0.04         90,000 WATs on 100, 1,000 and 10,000 cores

`measure` builds tables of the benchmark of select (`benchmarks/select_pairs.py`) and prints what `pipeline/planning/
costs.py` holds. A crawl cannot be sampled here, so `crawl` takes what it is like from its options. Their defaults say
where they come from. The number of elements of a step, which bounds the cores that an engine can use, is asked of
`pipeline.engine.tasks`, and the number of buckets and groups of `pipeline.stages.run.Sizes`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.select_pairs import HERE, captions, tail_cap, write_rows
from pipeline.engine import tasks
from pipeline.planning.costs import COSTS, MACHINE, SIZES, speed
from pipeline.planning.takes import PARALLEL
from pipeline.stages.attempts import MAX_BUCKETS
from pipeline.stages.run import Sizes

# CPU seconds of gather and match, measured on MACHINE: --plan measures these on the user's own inputs instead.
TABLE_ROW = 3.6e-6  # a row of a table
WAT_ROW, WAT_BYTE = 20e-6, 1 / 88e6  # a pair of a WAT, beside unpacking and parsing a byte (docs/benchmarks/wat.md)
MATCHED_BYTES = 310  # of a matched row and its key
# Runs of docs/benchmarks/select.md, 2026-11-28: rows, CPU seconds of the process tree, those of the units.
RECORDED = ((1_000_000, 11.3, 5.4), (4_000_000, 23.9, 18.2), (20_000_000, 102.3, 95.0))
MATCHED, DISTINCT, SELECTED = 0.565, 0.462, 0.33  # of these rows


def select_seconds(rows: float, matched: float, distinct: float, selected: float, *, read: float) -> dict[str, float]:
    """CPU seconds of the steps of select. `read`: of gather and match."""
    return {
        "gather, match": read,
        "dedup": COSTS.dedup_row * matched,
        "balance": COSTS.balance_row * distinct + COSTS.selected_row * selected,
    }


def print_error() -> None:
    """The model beside the recorded runs."""
    print(f"{'rows':>12} {'CPU s: model':>13} {'run':>7} {'factor':>7} {'units: model':>13} {'run':>7} {'factor':>7}")
    for rows, cpu, units in RECORDED:
        found = select_seconds(rows, MATCHED * rows, DISTINCT * rows, SELECTED * rows, read=TABLE_ROW * rows)
        work = sum(found.values()) + COSTS.query * 327_581
        whole = work + COSTS.start + COSTS.workers + COSTS.kernels
        line = f"{rows:>12,} {whole:>13.1f} {cpu:>7.1f} {whole / cpu:>7.2f}"
        print(f"{line} {work:>13.1f} {units:>7.1f} {work / units:>7.2f}")


# ------------------------------------------------------------------------------------------------------------ crawl


def print_crawl(args: argparse.Namespace) -> None:
    """A whole crawl: core-hours, bytes, requests, and wall time and money by cores."""
    pages = args.wats * args.pages_per_wat
    read = pages * args.pairs_per_page
    matched, distinct = read * args.matched, read * args.matched * args.distinct
    selected = min(args.selected, distinct)
    gather = read * WAT_ROW + args.wats * (args.wat_mb * 1e6 * WAT_BYTE + COSTS.input + COSTS.unit)
    seconds = select_seconds(read, matched, distinct, selected, read=gather)
    hosts = args.hosts
    alive = selected * COSTS.alive[1]
    seconds["fetch"] = alive * COSTS.image + hosts * COSTS.host
    seconds["publish"] = alive * COSTS.published_row
    sizes = Sizes.of(read)
    units = {"gather, match": args.wats, "dedup": 1 << sizes.key_bits, "balance": sizes.groups}
    units |= {"fetch": MAX_BUCKETS, "publish": sizes.groups}
    rows = f"{pages / 1e9:.1f}G pages, {read / 1e9:.0f}G pairs read, {matched / 1e9:.1f}G matched"
    print(f"{rows}, {distinct / 1e9:.1f}G distinct")
    print(f"{selected / 1e6:.0f}M selected, {alive / 1e6:.0f}M fetched of them")
    hours = {name: value / 3600 for name, value in seconds.items()}
    print(
        "core-hours: "
        + ", ".join(f"{name} {value:,.0f}" for name, value in hours.items())
        + f", all {sum(hours.values()):,.0f}"
    )
    scratch = matched * (MATCHED_BYTES + SIZES.matched_row)
    scratch += selected * MATCHED_BYTES * (SIZES.selected_share + SIZES.parquet_share)
    images = alive * (COSTS.image_bytes + SIZES.fetched_row)
    published = alive * (COSTS.image_bytes + SIZES.tar_row + SIZES.metadata_row)
    shuffled = matched * 57 + selected * MATCHED_BYTES
    print(
        f"read {args.wats * args.wat_mb / 1e6:,.1f} TB, scratch {scratch / 1e12:,.1f} TB of rows and "
        f"{images / 1e12:,.1f} TB of images, exchanged {shuffled / 1e12:,.1f} TB, published {published / 1e12:,.1f} TB"
    )
    requests = selected * COSTS.tries + hosts * COSTS.host_requests
    print(f"requests: {2 * args.wats:,} for inputs, {requests / 1e6:,.0f}M for images and hosts")
    print(f"{'cores':>7} {'select h':>9} {'fetch h':>8} {'publish h':>10} {'all h':>7} {'$ at':>5} {args.price:g}")
    for cores in args.cores:
        used = {name: min(cores, tasks.elements_for(cores), count) for name, count in units.items()}
        wall = {name: hours[name] / (PARALLEL * used[name]) for name in hours}
        on_wire = selected * COSTS.tries * COSTS.seconds_on_wire / (COSTS.threads * used["fetch"]) / 3600
        wall["fetch"] = max(wall["fetch"], on_wire)
        select = sum(wall[name] for name in ("gather, match", "dedup", "balance"))
        whole = select + wall["fetch"] + wall["publish"]
        money = args.price * cores * whole  # all cores are paid until the end
        print(f"{cores:>7,} {select:>9.1f} {wall['fetch']:>8.1f} {wall['publish']:>10.2f} {whole:>7.1f} {money:>9,.0f}")


# ---------------------------------------------------------------------------------------------------------- measure


def print_measured(args: argparse.Namespace) -> None:
    """Builds one row, then --rows rows, and prints CPU seconds: without work, and by row of each stage."""
    texts = captions(args.captions)
    print(f"the costs are those of {MACHINE}; this machine takes {speed():.2f} times as long")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for rows, workers in ((1, 1), (1, 2), (args.rows, 2)):
            given = root / f"in{rows}"
            if not given.exists():
                given.mkdir()
                write_rows(given, rows, texts)
            out = root / f"out{rows}-{workers}"
            command = [sys.executable, "-m", "pipeline.build", "--input", str(given), "--output", str(out)]
            command += ["--stages", "gather..balance", "--workers", str(workers), "--cap", str(tail_cap(rows))]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            infos = {
                name: json.loads((out / f"stages/{name}/info.json").read_text())
                for name in ("match", "dedup", "balance")
            }
            work = {name: info["cpu_seconds"] for name, info in infos.items()}
            idle = cpu - sum(work.values())
            print(f"{rows:>10,} rows, {workers} workers: {cpu:.1f} CPU s, {idle:.1f} of them without work")
            if rows > 1:
                print(f"  gather and match: {work['match'] / rows * 1e6:.2f} us a row read")
                print(f"  dedup: {work['dedup'] / infos['dedup']['rows_in'] * 1e6:.2f} us a matched row")
                taken = infos["balance"]
                ours = COSTS.balance_row * taken["rows_in"] + COSTS.selected_row * taken["rows_out"]
                print(f"  balance: {work['balance']:.2f} s, and {ours:.2f} by the model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    measure = parts.add_parser("measure")
    measure.add_argument("--captions", required=True)
    measure.add_argument("--rows", type=int, default=1_000_000)
    parts.add_parser("error")
    crawl = parts.add_parser("crawl", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    crawl.add_argument("--wats", type=int, default=90_000, help="files of a crawl")
    crawl.add_argument("--wat-mb", type=float, default=350, help="of a file")
    crawl.add_argument("--pages-per-wat", type=float, default=35_600, help="3.2G pages in 90,000 files")
    crawl.add_argument("--pairs-per-page", type=float, default=10.6, help="images with a text (docs/benchmarks/wat.md)")
    crawl.add_argument("--matched", type=float, default=0.35, help="English, with a query, no boilerplate; assumed")
    crawl.add_argument("--distinct", type=float, default=0.3, help="of the matched pairs; assumed")
    crawl.add_argument("--selected", type=float, default=4e8, help="as MetaCLIP's set with a cap of 20,000")
    crawl.add_argument("--hosts", type=float, default=1e7, help="of the selected images; assumed")
    crawl.add_argument("--price", type=float, default=0.04, help="dollars a core-hour: cc2dataset's own figure")
    crawl.add_argument("--cores", type=int, nargs="+", default=[100, 1_000, 10_000])
    args = parser.parse_args()
    {"measure": print_measured, "error": lambda _: print_error(), "crawl": print_crawl}[args.what](args)


if __name__ == "__main__":
    main()
