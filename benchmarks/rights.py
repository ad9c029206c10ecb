"""The share of rights in gather's CPU time: reading and cleaning with what concerns rights, and without it, in turns.

    python benchmarks/rights.py PAGES... [--copies 9] [--refusing 0.05] [--repeats 5]

PAGES are WARC files, or folders of *.html (*.html.gz): real pages. They become a WAT (`extract_wat.write_wat`), each
page `--copies` times under other hosts, with the headers of an ordinary server. A share of `--refusing` of the pages
says noai in a header. "Without" reads the same WAT with other names in the place of Headers, Metas and Link, so that
they are skipped, and drops no pair for them. The WARC files among PAGES are read, too. There "without" looks at no
header and no robots meta. No language model is loaded: it would make the share of rights smaller. Each run is a process
of its own. The best of the repeats is shown.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import extract_wat  # noqa: E402
from benchmarks.extract_html import find_pages  # noqa: E402

HEADERS = {
    "Content-Type": "text/html; charset=UTF-8",
    "Server": "nginx",
    "Date": "Sun, 01 Nov 2026 00:00:00 GMT",
    "Link": '<https://x.example/wp-json/>; rel="https://api.w.org/", </style.css>; rel="preload"; as="style"',
    "X-Crawler-Content-Encoding": "gzip",
    "Strict-Transport-Security": "max-age=31536000",
}

GATHER = r"""
import json, sys, time
from pipeline.engine import jit
from pipeline.engine.ledger import Ledger
from pipeline.sources import READERS, html
from pipeline.sources.base import Input, ReadSettings
from pipeline.stages.gather import Cleaning, Origin, clean_batch
from pipeline.stages.tally import Rejects, Tally
form, with_rights, *paths = sys.argv[1:]
rules = Cleaning()
if with_rights == "0":
    rules = Cleaning(opt_outs=())
    html.header_signals = html.directives = lambda _: set()
    html.header_licences = lambda _: []
for name in ("wat_kernel", "html_kernel"):
    if kernel := jit.kernel(f"pipeline.sources.{name}", 10**9):
        kernel.warm()
def read(path):
    tally = Tally("gather", Rejects("none"))
    for batch in READERS[form].read(Input(path, path, form), ledger=tally.ledger, images=[], settings=ReadSettings()):
        clean_batch(batch, tally, origin=Origin.of([path], [0]), rules=rules)
    return tally
for path in paths[:1]:
    read(path)
start = time.process_time()
tallies = [read(path) for path in paths]
seconds = time.process_time() - start
refused = sum(tally.ledger.dropped["opt_out"] for tally in tallies)
print(json.dumps({"seconds": seconds, "pairs": sum(t.ledger.rows_in for t in tallies), "refused": refused}))
"""


def write_wats(path: Path, pages: list[str], copies: int, refusing: float) -> tuple[str, str]:
    """Two WAT files of the pages: as they are, and with names that no reader knows in the place of what is said."""
    said, silent = str(path / "said.wat"), str(path / "silent.wat")
    extract_wat.HEADERS = HEADERS
    extract_wat.write_wat(said, find_pages(pages), copies)
    unpacked = gzip.decompress(Path(said).read_bytes())
    records = unpacked.split(b"WARC/1.0\r\n")[1:]
    for name, other in ((said, False), (silent, True)):
        with open(name, "wb") as file:
            for record in records:
                if zlib.crc32(record[:300]) < refusing * 2**32:
                    record = record.replace(b'"Server":"nginx"', b'"X-Robots-Tag":"noai"')
                if other:
                    for key in (b'"Headers":{', b'"Metas":[', b'"Link":['):
                        record = record.replace(key, key[:1] + b"_" + key[2:])
                head, _, block = record.partition(b"\r\n\r\n")
                size = len(block) - len(b"\r\n\r\n")
                lines = [
                    b"Content-Length: %d" % size if line.startswith(b"Content-Length") else line
                    for line in head.split(b"\r\n")
                ]
                file.write(gzip.compress(b"WARC/1.0\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + block, 6))
    return said, silent


def measure(form: str, with_rights: bool, paths: list[str]) -> dict[str, float]:
    """The figures of one process."""
    command = [sys.executable, "-c", GATHER, form, str(int(with_rights)), *paths]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+")
    parser.add_argument("--copies", type=int, default=9)
    parser.add_argument("--refusing", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        said, silent = write_wats(Path(folder), args.pages, args.copies, args.refusing)
        warcs = [page for page in args.pages if ".warc" in page]
        ways = [("wat", [said], [silent]), *([("warc", warcs, warcs)] if warcs else [])]
        print("| source | pairs | refused | CPU s with | CPU s without | rights |\n|---|---|---|---|---|---|")
        for form, with_rights, without in ways:
            runs = [(measure(form, True, with_rights), measure(form, False, without)) for _ in range(args.repeats)]
            best = [min(run[i]["seconds"] for run in runs) for i in range(2)]
            first = runs[0][0]
            share = f"{100 * (best[0] - best[1]) / best[0]:.1f} %"
            print(f"| {form} | {first['pairs']:,} | {first['refused']:,} | {best[0]:.3f} | {best[1]:.3f} | {share} |")


if __name__ == "__main__":
    main()
