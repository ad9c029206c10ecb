"""HTML pages -> pairs: our parser against MetaCLIP's on the same pages, and against the pairs in their WAT.

    python benchmarks/extract_html.py PAGES... [--metaclip FOLDER --peer-python PYTHON] [--repeats 3]

PAGES are WARC files, or folders of *.html (*.html.gz). They are first written into one WARC (one gzip member a record).
Every contestant reads this file from the disk. MetaCLIP (github.com/facebookresearch/MetaCLIP) runs its own
WARCCurator, in a Python of its own with `selectolax<0.4` and warcio. Its language filter and deduplication are off.
Figures are CPU seconds of the process and its children. The contestants take turns; the best of the repeats counts.

A WAT holds src, alt and title of every `<img>`. It also holds og:image, which is left out on both sides. A pair is
usable if its URL and text pass our cleaning and the URL is not a placeholder.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.engine.ledger import Ledger  # noqa: E402
from pipeline.schema import URL_SOURCES  # noqa: E402
from pipeline.sources import archive, html, html_kernel, links  # noqa: E402
from pipeline.sources.warc import read_warc  # noqa: E402
from pipeline.text import clean  # noqa: E402

# Runs in the peer's Python: MetaCLIP's curator as it is, or ("parse") its parser alone, without the forks.
PEER = r"""
import json, resource, sys, types
archive, folder, how = sys.argv[1:]
sys.modules["substr_matching"] = types.SimpleNamespace(substr_matching=None)  # compiled, and not wanted here
sys.path.insert(0, folder + "/metaclip/metaclip1")
import cc_matching
def cpu():
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in both)
curator = cc_matching.WARCCurator(dedup=False, lid=False)
import selectolax.parser, warcio.archiveiterator
pages = []
if how == "parse":
    with open(archive, "rb") as file:
        for record in warcio.archiveiterator.ArchiveIterator(file):
            if record.rec_type == "response":
                pages.append((record.raw_stream.read().strip(), record.rec_headers.get_header("WARC-Target-URI")))
start, data = cpu(), []
if how == "parse":
    curator.parse_htmls(pages, data)
else:
    data = curator.parse(archive)
print(json.dumps({"seconds": cpu() - start, "pairs": sum(len(row["texts"]) for row in data)}))
"""


def cpu() -> float:
    """CPU seconds of this process and of the children it waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in both)


def find_pages(paths: list[str]) -> Iterator[tuple[str, str | None, bytes]]:
    """(URL, charset, body) of every page behind the paths."""
    for path in paths:
        if not os.path.isdir(path):
            yield from pages_of_archive(path)
            continue
        for file in sorted(Path(path).rglob("*.html*")):
            data = file.read_bytes()
            body = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            yield f"http://site.example/{file.name}", None, body


def pages_of_archive(path: str) -> Iterator[tuple[str, str | None, bytes]]:
    """The pages of a WARC file."""
    for record in archive.read_records(path, ledger=Ledger()):
        response = archive.http_response(record)
        if response and response.status == 200:
            kind, _, rest = response.headers.get("content-type", "").partition(";")
            if kind.strip().lower() == "text/html":
                yield record.url, rest.partition("charset=")[2].strip() or None, response.body


def write_archive(path: str, pages: list[tuple[str, str | None, bytes]]) -> None:
    """One WARC with a gzip member a page."""
    with open(path, "wb") as file:
        for url, charset, body in pages:
            kind = "text/html" + (f"; charset={charset}" if charset else "")
            http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            head = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
                "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
                f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
            )
            file.write(gzip.compress(head.encode() + http + b"\r\n\r\n", 6))


def read_archive(path: str) -> int:
    """Reads the file into batches with our reader; returns the number of pairs."""
    return sum(batch.num_rows for batch in read_warc(path, ledger=Ledger()))


def parse(pages: list[tuple[str, str | None, bytes]], scan: html.Scanner) -> int:
    """Parses the pages' bytes with our parser; returns the number of pairs."""
    return sum(len(html.extract_pairs(body, url, charset=charset, scan=scan).urls) for url, charset, body in pages)


def usable(pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """The distinct pairs that pass cleaning."""
    urls, url_codes = clean.canonical_urls(pa.array([url for url, _ in pairs], pa.string()))
    texts, text_codes = clean.clean_text(pa.array([text for _, text in pairs], pa.string()))
    rows = zip(urls.to_pylist(), texts.to_pylist(), (url_codes + text_codes).tolist(), strict=True)
    return {(url, text) for url, text, code in rows if code == 0 and not html.is_blank(url)}


def coverage(pages: list[tuple[str, str | None, bytes]]) -> list[str]:
    """The table of usable pairs: those of the WAT and ours, counted page by page."""
    wat = ours = alike = placeholders = 0
    for url, charset, body in pages:
        facts = html.scan_with_lexbor(html.to_utf8(body[: html.MAX_PAGE], charset))
        if facts is None:
            continue
        base = links.base_of(url, facts.base)
        seen, behind = [], set()
        for attributes, picture, _ in facts.images:
            src = attributes.get("src", "")
            if not src.strip() or html.is_data(src):
                continue
            for name in ("alt", "title"):
                if name in attributes:
                    seen.append((links.absolute(base, src)[1], attributes[name]))
                    if html.choose_url(attributes, picture)[0] != src:
                        behind.add(seen[-1])
        found = html.extract_pairs(body, url, charset=charset)
        first = usable(seen)
        rows = zip(found.urls, found.texts, found.url_sources, strict=True)
        second = usable([(image, text) for image, text, place in rows if URL_SOURCES[place] != "og:image"])
        wat, ours, alike = wat + len(first), ours + len(second), alike + len(first & second)
        placeholders += len(usable(list(behind)) - second)
    return [
        "| usable pairs, distinct on their page | |",
        "|---|---|",
        f"| WAT: src with alt or title | {wat:,} |",
        f"| of them a lazy image's stand-in in `src` (not the image) | {placeholders:,} |",
        f"| ours | {ours:,} ({100 * ours / wat - 100:+.1f} % over all of the WAT's, "
        f"{100 * ours / max(1, wat - placeholders) - 100:+.1f} % over its true ones) |",
        f"| in both | {alike:,} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+")
    parser.add_argument("--metaclip", help="a checkout of MetaCLIP")
    parser.add_argument("--peer-python", help="a Python with selectolax<0.4 and warcio")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    pages = list(find_pages(options.pages))
    size = sum(len(body) for _, _, body in pages)
    html_kernel.warm()
    with tempfile.TemporaryDirectory() as folder:
        packed = os.path.join(folder, "pages.warc.gz")
        write_archive(packed, pages)
        packed_size = os.path.getsize(packed)
        print(f"{len(pages):,} pages, {size / 1e6:.1f} MB of HTML, {packed_size / 1e6:.1f} MB compressed\n")
        contestants = {
            "parse only: ours, compiled tokenizer": lambda: parse(pages, html_kernel.scan),
            "parse only: ours, lexbor": lambda: parse(pages, html.scan_with_lexbor),
            "whole file: ours (reading too)": lambda: read_archive(packed),
        }
        peers = {}
        if options.metaclip and options.peer_python:
            command = [options.peer_python, "-c", PEER, packed, options.metaclip]
            peers = {
                "parse only: MetaCLIP's parse_htmls": [*command, "parse"],
                "whole file: MetaCLIP's WARCCurator.parse": [*command, "whole"],
            }
        best: dict[str, tuple[float, int]] = {}
        for _ in range(options.repeats):
            for name, work in contestants.items():
                start = cpu()
                pairs = work()
                best[name] = min(best.get(name, (1e9, 0)), (cpu() - start, pairs))
            for name, peer in peers.items():
                time.sleep(0.1)
                answer = json.loads(
                    subprocess.run(peer, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
                )
                best[name] = min(best.get(name, (1e9, 0)), (answer["seconds"], answer["pairs"]))
        print("| | CPU s | pages a CPU s | MB a CPU s | pairs |\n|---|---|---|---|---|")
        for name, (seconds, pairs) in sorted(best.items()):
            print(f"| {name} | {seconds:.2f} | {len(pages) / seconds:,.0f} | {size / 1e6 / seconds:,.0f} | {pairs:,} |")
    print("\n" + "\n".join(coverage(pages)))


if __name__ == "__main__":
    main()
