"""WAT -> pairs: our reader against cc2dataset on the same file, in CPU seconds of a process.

    python benchmarks/extract_wat.py PAGES... [--copies 9] [--cc2dataset FOLDER --peer-python PYTHON] [--repeats 3]

PAGES are WARC files, or folders of *.html (*.html.gz): real pages. A small port of Common Crawl's extractor writes the
WAT (for each page a request, a response and a metadata record, a gzip member each). It writes each page `--copies`
times under other hosts. cc2dataset (github.com/rom1504/cc2dataset) runs its own `process_wat`, in a Python of its own
with fastwarc, pysimdjson, fsspec and loguru. Only pyspark is a stub. Each way runs in a process of its own, and the
ways take turns. The time leaves out imports and the loading of compiled code. The best of the repeats is shown.

The two lists of pairs are compared as multisets. cc2dataset joins an empty `src` to the page's URL, and so takes the
page for an image. Those pairs are counted separately.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.extract_html import find_pages  # noqa: E402
from pipeline.sources.html import to_utf8  # noqa: E402

OURS = r"""
import json, resource, sys
import pyarrow as pa
from pipeline.engine import jit
from pipeline.engine.ledger import Ledger
from pipeline.sources import wat, wat_reader
path, out = sys.argv[1:]
pa.array([""])  # pyarrow imports pandas, where it is installed, when it first sees a list
if kernel := jit.kernel("pipeline.sources.wat_kernel", 10**9):
    kernel.warm()
def cpu():
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime
start = cpu()
batches = list(wat_reader.read_wat(path, ledger=Ledger()))
seconds = cpu() - start
if out:
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.Table.from_batches(batches).select(["url", "text", "page_url"]), out)
print(json.dumps({"seconds": seconds, "pairs": sum(batch.num_rows for batch in batches)}))
"""

RECORDS = r"""
import json, resource, sys
from pipeline.engine.ledger import Ledger
from pipeline.sources.archive import read_records
def cpu():
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime
start = cpu()
for record in read_records(sys.argv[1], ledger=Ledger(), kinds=frozenset({"metadata"})):
    pass
print(json.dumps({"seconds": cpu() - start, "pairs": 0}))
"""

PEER = r"""
import json, resource, sys, types
path, folder, out = sys.argv[1:]
for name in ("pyspark", "pyspark.sql", "pyspark.sql.functions"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["pyspark"].SparkContext = sys.modules["pyspark.sql"].SparkSession = object
sys.modules["pyspark.sql.functions"].rand = None
sys.path.insert(0, folder)
from loguru import logger
logger.remove()
from cc2dataset.main import process_wat
def cpu():
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime
start = cpu()
rows = list(process_wat(path, "image"))
seconds = cpu() - start
if out:
    with open(out, "w") as file:
        json.dump([[url, alt, page] for _, url, alt, _, page in rows], file)
print(json.dumps({"seconds": seconds, "pairs": len(rows)}))
"""

# ---- a small port of Common Crawl's extractor: which attributes of which tags become links

LINKS = {
    "a": ("href", ("target", "alt", "title", "rel", "hreflang", "type")),
    "applet": ("codebase", ("alt", "archive")),
    "area": ("href", ("rel",)),
    "audio": ("src", ()),
    "blockquote": ("cite", ()),
    "body": ("background", ()),
    "embed": ("src", ()),
    "form": ("action", ("target", "method")),
    "iframe": ("src", ()),
    "img": ("src", ("alt", "title")),
    "input": ("src", ()),
    "object": ("data", ()),
    "source": ("src", ()),
    "td": ("background", ()),
    "video": ("src", ()),
}
META = ("name", "property", "http-equiv", "content")


def links_of(html: bytes) -> dict[str, Any]:
    """HTML-Metadata of a page, as the extractor orders it."""
    from selectolax.lexbor import LexborHTMLParser

    head: dict[str, Any] = {}
    links: list[dict[str, str]] = []
    for node in LexborHTMLParser(html).css("title, base, meta, link, script[src]," + ",".join(LINKS)):
        tag, attributes = node.tag, node.attributes
        if tag == "title":
            head.setdefault("Title", node.text().strip())
        elif tag == "base" and attributes.get("href"):
            head["Base"] = attributes["href"]
        elif tag == "meta":
            head.setdefault("Metas", []).append({name: attributes[name] or "" for name in META if name in attributes})
        elif tag == "link" and "href" in attributes:
            link = {"path": "LINK@/href", "url": attributes["href"] or ""}
            link |= {name: attributes[name] or "" for name in ("rel", "type") if name in attributes}
            head.setdefault("Link", []).append(link)
        elif tag == "script":
            link = {"path": "SCRIPT@/src", "url": attributes["src"] or ""}
            head.setdefault("Scripts", []).append(link | ({"type": attributes["type"]} if "type" in attributes else {}))
        elif tag in LINKS and LINKS[tag][0] in attributes:
            name, others = LINKS[tag]
            url = attributes[name] or ""
            link = {"path": f"{tag.upper()}@/{name}", "url": url[:21] if url[:5].lower() == "data:" else url}
            link |= {other: attributes[other] or "" for other in others if other in attributes}
            if tag == "a" and (text := node.text(strip=True)[:400]):
                link["text"] = text
            links.append(link)
    return {"Head": head, "Links": links}


def member(kind: str, url: str, content: dict[str, Any]) -> bytes:
    """A metadata record in a gzip member of its own."""
    container = {"Filename": "CC-MAIN-20261101000000-00000.warc.gz", "Compressed": True, "Offset": "80610308"}
    header = {"WARC-Type": kind, "WARC-Date": "2026-11-01T00:00:00Z", "WARC-Record-ID": "<urn:uuid:0>"}
    envelope = {
        "Payload-Metadata": content,
        "Format": "WARC/1.0",
        "WARC-Header-Length": "357",
        "WARC-Header-Metadata": {**header, "WARC-Target-URI": url},
    }
    record = {"Container": container, "Envelope": envelope}
    block = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    head = (
        f"WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-11-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:3d3f4785-c69a-4f8c-968c-d23302c55ef4>\r\n"
        "WARC-Refers-To: <urn:uuid:292f457d-203c-42f2-a1b5-69a4dabefd4f>\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + block + b"\r\n\r\n", 6)


HEADERS = {"Content-Type": "text/html; charset=UTF-8", "Server": "nginx", "X-Crawler-Content-Encoding": "gzip"}
REQUEST = {
    "HTTP-Request-Metadata": {"Headers": {"User-Agent": "CCBot/2.0", "Accept-Encoding": "br,gzip", "Host": "x.example"}}
}


def write_wat(path: str, pages: Iterable[tuple[str, str | None, bytes]], copies: int) -> None:
    """A WAT of the pages, each of them `copies` times under other hosts."""
    found = [(url, links_of(to_utf8(body, charset))) for url, charset, body in pages]
    with open(path, "wb") as file:
        for copy in range(copies):
            for number, (url, html) in enumerate(found):
                here = url.replace("://", f"://c{copy}.n{number}.", 1)
                response = {
                    "HTTP-Response-Metadata": {
                        "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
                        "Headers-Length": "300",
                        "Headers": HEADERS,
                        "HTML-Metadata": html,
                    }
                }
                file.write(member("request", here, REQUEST))
                file.write(member("response", here, response))
                file.write(member("metadata", here, {"WARC-Metadata-Metadata": {"Metadata-Records": []}}))


# ---- the comparison


def run(script: str, *arguments: str, python: str = "", kernels: bool = True) -> dict[str, Any]:
    """Runs a script in a process of its own; returns the JSON that it prints."""
    command = [python or sys.executable, "-c", script, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "OPENWIT_NO_KERNELS"}
    if not python:
        environment |= {"PYTHONPATH": str(ROOT)} | ({} if kernels else {"OPENWIT_NO_KERNELS": "1"})
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def differences(ours: str, theirs: str) -> Iterator[str]:
    """The differences of the two lists of pairs, as lines of text."""
    import pyarrow.parquet as pq

    table = pq.read_table(ours)
    mine = collections.Counter(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    other = collections.Counter(tuple(row) for row in json.loads(Path(theirs).read_text()))
    more, less = other - mine, mine - other
    pages = sum(count for (url, _, page), count in more.items() if url == page)
    blanks = sum(
        (less & collections.Counter({(url.strip(), *rest): count for (url, *rest), count in more.items()})).values()
    )
    yield f"pairs in both: {(mine & other).total():,}; only ours: {less.total():,}; only cc2dataset's: {more.total():,}"
    yield f"of cc2dataset's, an empty src taken for the page: {pages:,}; a blank left at the end of the URL: {blanks:,}"
    rest = [row for row in less if not row[0].startswith(tuple(url.strip() for url, *_ in more if url.strip()))]
    yield from (f"only ours: {url} {text}" for url, text, _ in rest[:5])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+")
    parser.add_argument("--copies", type=int, default=9)
    parser.add_argument("--cc2dataset", default="", help="a checkout of cc2dataset")
    parser.add_argument("--peer-python", default="", help="a Python with fastwarc, pysimdjson, fsspec and loguru")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wat", help="write the WAT here, or read it if it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.wat or os.path.join(folder, "made.warc.wat.gz")
        if not os.path.exists(path):
            write_wat(path, find_pages(options.pages), options.copies)
        size = os.path.getsize(path) / 1e6
        mine, theirs = os.path.join(folder, "ours.parquet"), os.path.join(folder, "theirs.json")
        seconds: dict[str, list[float]] = collections.defaultdict(list)
        pairs: dict[str, int] = {}
        for turn in range(options.repeats):
            answers = {
                "the records alone, by our reference reader": run(RECORDS, path),
                "ours, compiled": run(OURS, path, mine if turn == 0 else ""),
                "ours, reference": run(OURS, path, "", kernels=False),
            }
            if options.cc2dataset and options.peer_python:
                peer = (PEER, path, options.cc2dataset, theirs if turn == 0 else "")
                answers["cc2dataset"] = run(*peer, python=options.peer_python)
            for name, answer in answers.items():
                seconds[name].append(answer["seconds"])
                pairs[name] = answer["pairs"]
        print(f"{size:.1f} MB of WAT, Python {platform.python_version()}, best of {options.repeats}\n")
        print("| way | CPU s | MB a CPU s | pairs | times cc2dataset |\n|---|---|---|---|---|")
        peer_seconds = min(seconds.get("cc2dataset", [0]))
        for name, taken in seconds.items():
            best = min(taken)
            print(f"| {name} | {best:.2f} | {size / best:.0f} | {pairs[name]:,} | {peer_seconds / best:.1f} |")
        if os.path.exists(theirs):
            print("\n" + "\n".join(differences(mine, theirs)))


if __name__ == "__main__":
    main()
