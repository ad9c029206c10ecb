"""Real sites from the shared data: archived, served on loopback, and built with their images.

The expected result is the site's own list of (page, image, alt).
"""

from __future__ import annotations

import gzip
import html
import json
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import build, inspect_shards
from pipeline.demo.smallweb import record, response
from tests.places import DATA

SITES = ["resilientwebdesign", "selva86.github.io"]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing."""


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    packed = DATA / "sites" / f"{request.param}.tar.zst"
    if not packed.exists():
        pytest.skip(f"the site {packed} is not here")
    import zstandard

    with open(packed, "rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file).read()
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=data, check=True)
    return tmp_path / request.param


def test_a_real_site_is_built_with_its_images(site: Path, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    pages = sorted(path for path in site.rglob("*.htm*") if path.is_file())
    members = [
        gzip.compress(record("response", f"{base}/{path.relative_to(site)}", response(path.read_bytes(), "text/html")))
        for path in pages
    ]
    (tmp_path / "site.warc.gz").write_bytes(b"".join(members))
    out = tmp_path / "out"
    try:
        arguments = ["--input", str(tmp_path / "site.warc.gz"), "--output", str(out), "--workers", "1"]
        assert build.main([*arguments, "--allow-address", "127.0.0.0/8", "--keep-rejected", "all"]) == build.DONE
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert inspect_shards.main(["verify", str(out)]) == 0
    ledger = {row["stage"]: row for row in json.loads((out / "manifest.json").read_text())["ledger"]}
    columns = ["url", "text", "text_source"]
    published = pq.read_table(sorted((out / "metadata").glob("*.parquet")), columns=columns)
    assert published.num_rows == ledger["publish"]["rows_out"] > 5
    truth = [line.split("\t") for line in (site / "_pairs.tsv").read_text().splitlines()]
    alts = {" ".join(html.unescape(alt).split()) for _, _, alt in truth}
    images = {image for _, image, _ in truth}
    rows = published.to_pylist()  # the text that an image keeps depends on the URL, and so on the server's port
    assert all(row["url"].removeprefix(base + "/") in images for row in rows)
    found = [row["text"] for row in rows if row["text_source"] == "alt"]
    assert len(found) >= 3 and sum(text in alts for text in found) >= 0.9 * len(found)
