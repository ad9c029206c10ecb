"""Prints the digests of the demo, and of inputs of your own: two equal outputs show that a change moved no row.

    python tools/digests.py > before.txt                 on the commit before the change
    python tools/digests.py > after.txt                  with it
    diff before.txt after.txt                            nothing: every stage and every published file is the same

A line a stage: name of the set, stage, rows in, rows out, digest of the rows. Then the digest of the manifest, which is
over all published files, and the digest of the data alone: the pages (README.md, croissant.json, report/) may change
in wording. The demo takes about 15 s. Its server listens on a fixed port of 127.0.0.1, because URLs decide rows.

Inputs that are named, archives or tables, are built as well. Their images are fetched only with --fetch.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout that this file lies in, whatever is installed

from pipeline import Options, build, errors, open_set
from pipeline.dataset.open_set import stages_of
from pipeline.demo.__main__ import main as demo

PORT = int(os.environ.get("OPENWIT_DEMO_PORT", "18087"))
PAGES = ("README.md", "croissant.json", "report/")


def lines(name: str, root: str) -> Iterator[str]:
    """The digests of one run."""
    for info in stages_of(root):
        yield f"{name} {info['stage']} {info['rows_in']} {info['rows_out']} {info['digest']}"
    if not os.path.exists(os.path.join(root, "manifest.json")):
        return
    manifest = open_set(root).manifest
    data = [(entry["path"], entry["sha256"]) for entry in manifest["files"] if not entry["path"].startswith(PAGES)]
    digest = hashlib.sha256("".join(f"{sha256}  {path}\n" for path, sha256 in sorted(data)).encode()).hexdigest()
    yield f"{name} manifest {manifest['digest']}"
    yield f"{name} data {len(data)} {digest}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 a build failed, 2 usage, 4 input missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="file or folder that is built beside the demo")
    parser.add_argument("--port", type=int, default=PORT, help="of the demo's server (default: %(default)s)")
    parser.add_argument("--pages", type=int, default=60, help="of the demo's small web (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--fetch", action="store_true", help="go on to publish with the inputs, too")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        words = [f"{folder}/demo", "--port", str(given.port), "--pages", str(given.pages)]
        words += ["--workers", str(given.workers)] if given.workers else []
        with contextlib.redirect_stdout(sys.stderr):
            code = demo(words)
        if code:
            return code
        print(*lines("demo", f"{folder}/demo/out"), sep="\n", flush=True)
        for number, source in enumerate(given.inputs):
            stages = "gather..publish" if given.fetch else "gather..balance"
            options = Options(input=(source,), output=f"{folder}/{number}", stages=stages, workers=given.workers)
            try:
                print(*lines(os.path.basename(os.path.abspath(source)), build(options).root), sep="\n", flush=True)
            except (errors.UsageError, errors.MissingInput, errors.JobFailed) as error:
                print(f"tools/digests.py: {error}", file=sys.stderr)
                return 4 if isinstance(error, errors.MissingInput) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
