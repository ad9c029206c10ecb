"""Shows a whole set in the browser: search, facets, a gallery, each pair with its provenance and why it was kept.

    python -m pipeline.explore OUT                          http://127.0.0.1:8642/
    python -m pipeline.explore OUT --port 0 --open          any free port, and the browser
    python -m pipeline.explore OUT --embeddings TABLE       similar pairs by embedding (columns: key, embedding)
    python -m pipeline.explore OUT --build-only --json      the index alone, and where it is

OUT is a published set, or tars that another tool has written. The first start indexes the set (5 CPU seconds for a
million pairs) in a cache folder of the user; OUT is only read. Only this machine can reach the page, unless --host says
otherwise. Ctrl-C ends it.
"""

from __future__ import annotations

from pipeline.engine import interrupts

if __name__ == "__main__":
    interrupts.install("pipeline.explore")  # before the imports, which take a second

import argparse
import contextlib
import ipaddress
import json
import os
import shutil
import signal
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.dataset.errors import Damaged, NotFound
from pipeline.engine import checks, completion, variables
from pipeline.engine.cli import BELOW, CRASHED, DONE, INTERRUPTED, MISSING, USAGE, Parser, UsageError, check_flags, fail
from pipeline.engine.display import sanitize
from pipeline.inspector.opening import exists, store_of

if TYPE_CHECKING:
    from pipeline.explorer.server import Server
    from pipeline.explorer.watch import Opened

PROGRAM = "pipeline.explore"
PORT = 8642
REDRAW_S = 0.2


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options.

    Raises:
        UsageError: the command line is not valid.
    """
    parser = Parser(prog=f"python -m {PROGRAM}", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("folder", metavar="OUT", help="a published set, a folder of tars, or a tar")
    add("--port", type=int, default=PORT, metavar="N", help="0: any free one (default: %(default)s)")
    add("--host", default="127.0.0.1", metavar="NAME",
        help="address to listen on; others than loopback let the network in (default: %(default)s)")  # fmt: skip
    add("--index", metavar="FOLDER", help="keeps indexes there (default: the user's cache folder)")
    add("--embeddings", action="append", default=[], metavar="TABLE", help="Parquet with the columns key and embedding")
    add("--open", action=argparse.BooleanOptionalAction, default=False, help="open the browser")
    add("--build-only", action="store_true", help="build the index, and end")
    add("--json", action="store_true", help="print one JSON document: the address, the index, pairs, seconds")
    add("--version", action="version", version=f"openwit {__version__}")
    completion.add_flag(parser, "openwit-explore")
    check_flags(argv, parser)
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port {args.port}: must be 0 to 65535")
    if args.index is not None and not args.index.strip():
        raise UsageError("--index: must name a folder")
    if args.index is not None:
        checks.flag("--index", args.index, lambda path: checks.local(path, "folder"))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 ended, 1 crash, 2 usage, 3 a damaged set, 4 missing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    codes = {UsageError: USAGE, NotFound: MISSING, Damaged: BELOW}
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        with store_of(args.folder):
            return run(args)
    except tuple(codes) as error:
        return fail(PROGRAM, sanitize(error), next(code for kind, code in codes.items() if isinstance(error, kind)))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:  # a full disk, or a cache folder that cannot be written
        return fail(PROGRAM, f"{sanitize(error)}: choose another folder for the index with --index", CRASHED)
    except KeyboardInterrupt:
        return INTERRUPTED


def run(args: argparse.Namespace) -> int:
    """Opens the set, and serves it until it is interrupted."""
    from pipeline.explorer import watch
    from pipeline.explorer.server import Server

    if not exists(args.folder):
        raise NotFound(f"there is no folder {args.folder!r}")
    cache = os.path.abspath(args.index or watch.cache_folder())
    began = time.perf_counter()
    with _progress(args.folder) as progress:
        opened = watch.open_explorer(args.folder, cache, args.embeddings, progress=progress)
    seconds = round(time.perf_counter() - began, 2)
    if args.build_only:
        return _say(args, opened, seconds, "")
    watched = watch.Watched(
        opened.explorer,
        lambda progress: watch.open_explorer(args.folder, cache, args.embeddings, progress=progress).explorer,
    )
    with _listening(Server, watched, args) as server:
        _say(args, opened, seconds, server.url)
        if args.open:
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        _serve(server)
    return DONE


@contextlib.contextmanager
def _listening(server: Any, watched: Any, args: argparse.Namespace) -> Iterator[Server]:
    try:
        found = server(watched, args.host, args.port)
    except PermissionError:
        raise UsageError(f"--port {args.port}: may not be used; choose one above 1023") from None
    except OSError as error:
        if args.port and error.errno is not None and "in use" in os.strerror(error.errno):
            raise UsageError(f"--port {args.port}: in use; choose another one, or --port 0 for any") from None
        raise UsageError(f"--host {args.host}: cannot listen there ({error.strerror or error})") from None
    with contextlib.closing(found.socket):
        yield found


def _serve(server: Server) -> None:
    """Serves until SIGINT or SIGTERM."""
    stop = threading.Event()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in interrupts.SIGNALS}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        while not stop.wait(1.0):
            pass
    finally:
        server.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"\n{PROGRAM}: ended", file=sys.stderr)


def _say(args: argparse.Namespace, opened: Opened, seconds: float, url: str) -> int:
    """Prints where the page and the index are."""
    pairs = len(opened.explorer.index)
    if args.json:
        facts = {"pairs": pairs, "digest": opened.explorer.source.digest, "index": opened.folder,
                 "built": opened.built, "seconds": seconds}  # fmt: skip
        print(json.dumps({"url": url} | facts if url else facts), flush=True)
        return DONE
    print(f"{pairs:,} pairs; the index {'took' if opened.built else 'was there; opening it took'} {seconds:.1f} s")
    print(f"index: {sanitize(opened.folder)}")
    if url:
        print(f"\n  {url}\n\nCtrl-C ends the server.", flush=True)
        if not _is_loopback(args.host):
            print(f"{PROGRAM}: --host {args.host}: others in your network can see this set", file=sys.stderr)
    return DONE


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _progress(folder: str) -> Iterator[Any]:
    """A callback that draws how far the index is, where stderr is a terminal."""
    shown = sys.stderr.isatty() and variables.is_on(variables.PROGRESS)
    last = 0.0

    def draw(done: int, rows: int) -> None:
        nonlocal last
        if shown and time.monotonic() - last > REDRAW_S:
            last = time.monotonic()
            share = f" of {rows:,} ({done / rows:.0%})" if rows else ""
            room = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{f'indexing {sanitize(os.path.basename(folder))}: {done:,}{share}'[:room]}")
            sys.stderr.flush()

    try:
        yield draw
    finally:
        if shown and last:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(interrupts.ending(main()))
