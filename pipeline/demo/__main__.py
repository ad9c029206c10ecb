"""The demo: all stages in a minute, on a web that the project draws itself: archives -> shards -> report.

    python -m pipeline.demo [FOLDER]         (default: demo-out)

It makes pages and pictures. It writes them as WARC and WAT, with the broken records, duplicates and opt-outs of a real
crawl. It serves the pictures on loopback, runs `python -m pipeline.build` on the archives, and checks the result.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence

from pipeline import __version__

MARK = ".made-by-the-demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo. Returns the exit code of the build, or that of the check after it."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="demo-out", help="where everything goes (default: %(default)s)")
    parser.add_argument("--pages", type=int, default=60, help="pages of the small web (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument(
        "--port", type=int, default=0, help="of the small web; the same port gives the same set (default: a free one)"
    )
    parser.add_argument("--version", action="version", version=f"openwit {__version__}")
    options = parser.parse_args(argv)
    if "://" in options.folder:
        print(f"pipeline.demo: {options.folder}: must be a folder of this machine", file=sys.stderr)
        return 2
    folder = os.path.abspath(options.folder)
    if os.path.exists(folder) and not os.path.exists(os.path.join(folder, MARK)):
        print(f"pipeline.demo: {folder} exists, and the demo did not make it: name another folder", file=sys.stderr)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return _run(folder, options.pages, options.workers, options.port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        print(f"pipeline.demo: port {options.port} is taken: name another --port", file=sys.stderr)
        return 1


def _run(folder: str, pages: int, workers: int | None, port: int) -> int:
    from pipeline import inspect_shards
    from pipeline.build import main as build
    from pipeline.demo import smallweb

    start = time.perf_counter()
    archives, out = os.path.join(folder, "archives"), os.path.join(folder, "out")
    os.makedirs(archives)
    with open(os.path.join(folder, MARK), "w"):
        pass
    with smallweb.serve(pages=pages, port=port) as web:
        half = pages // 2
        records = smallweb.write_warc(web, os.path.join(archives, "crawl-0.warc.gz"), pages=slice(0, half))
        records += smallweb.write_wat(web, os.path.join(archives, "crawl-1.warc.wat.gz"), pages=slice(half, None))
        print(f"a small web: {pages} pages, {len(web.pictures)} pictures, {records} archive records in {archives}")
        command = ["--input", archives, "--output", out, "--allow-address", "127.0.0.0/8"]
        command += ["--workers", str(workers)] if workers else []
        print("$ python -m pipeline.build " + shlex.join(command), flush=True)
        code = build(command)
    if code:
        return code
    print("$ python -m pipeline.inspect_shards verify " + shlex.quote(out), flush=True)
    code = inspect_shards.main(["verify", out])
    print(f"\nfrom archives to shards in {time.perf_counter() - start:.0f} s. Next:")
    print(f"  open {shlex.quote(out)}/report/index.html           the pictures, the funnel, what was dropped and why")
    print(f"  python -m pipeline.inspect_shards ls {shlex.quote(out)}")
    print("  python -m pipeline.build --input YOUR.warc.gz --output YOUR-SET")
    print("  sh tools/setup.sh train")
    print(f"  python -m clip_train train --data {shlex.quote(out)} --model ViT-Tiny --output RUN --steps 100")
    return code


if __name__ == "__main__":
    sys.exit(main())
