"""Serves folders of images with captions while a command runs, so that the pipeline can read them by URL.

    python tools/serve_images.py FOLDER ... --table pairs.parquet -- \\
        python -m pipeline.build --input pairs.parquet --output OUT --allow-address 127.0.0.0/8

A caption lies beside its image: `cat.png` and `cat.txt`. Each line of the text file is a caption (the pipeline keeps
one for each URL). The table has the columns url and text. The server listens on 127.0.0.1 only, and ends with the
command. The exit code is the command's. SIGINT and SIGTERM go on to the command. With `--port` the URLs, and so the
shards, are the same in every run.
"""

from __future__ import annotations

import argparse
import errno
import functools
import os
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def _interrupted(*_: object) -> None:
    os.write(2, b"serve_images: interrupted\n")
    os._exit(130)


if __name__ == "__main__":  # before the slow imports
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, _interrupted)

import pyarrow as pa
import pyarrow.parquet as pq

IMAGES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}


class Handler(SimpleHTTPRequestHandler):
    """Serves the files of the folders: /0/... is the first, /1/... the second."""

    protocol_version = "HTTP/1.1"  # one connection for many images

    def __init__(self, *args: object, folders: Sequence[Path], **kwargs: object) -> None:
        self.folders = folders
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        """The file for a URL's path. It is always inside the folder that the URL names."""
        number, _, rest = urllib.parse.urlsplit(path).path.lstrip("/").partition("/")
        if not number.isdecimal() or int(number) >= len(self.folders):
            return "/nonexistent"
        self.directory = str(self.folders[int(number)])
        return super().translate_path("/" + rest)

    def list_directory(self, path: object) -> None:
        """Refuses to list a folder."""
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def captions(folder: Path) -> Iterator[tuple[Path, str]]:
    """(image, caption) for every caption of every image of the folder, in the order of the names."""
    for image in sorted(folder.rglob("*")):
        beside = image.with_suffix(".txt")
        if image.suffix.lower() in IMAGES and beside.is_file():
            for line in beside.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.strip():
                    yield image, line.strip()


def make_table(folders: Sequence[Path], address: str) -> pa.Table:
    """The columns url and text; `address` is http://host:port."""
    urls, texts = [], []
    for number, folder in enumerate(folders):
        for image, text in captions(folder):
            urls.append(f"{address}/{number}/{urllib.parse.quote(image.relative_to(folder).as_posix())}")
            texts.append(text)
    return pa.table({"url": pa.array(urls, pa.string()), "text": pa.array(texts, pa.string())})


def run(command: Sequence[str]) -> int:
    """Runs a command to its end, and sends it the signals that this process gets. Returns its exit code."""
    signals: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        signals.append(number)
        for process in started:
            # Ctrl-C goes to all processes of a terminal: those have it already
            if number == signal.SIGTERM or not os.isatty(0):
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        started.append(subprocess.Popen(command))
        for number in signals:  # one that came before the command was there
            started[0].send_signal(number)
        code = started[0].wait()
    except OSError as error:
        print(f"serve_images: the command {command[0]!r} cannot be run: {error.strerror}", file=sys.stderr)
        return 127
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code  # as a shell reports the signal that ended it


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code of the command that was run."""
    given = list(sys.argv[1:] if argv is None else argv)
    command = given[given.index("--") + 1 :] if "--" in given else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--table", required=True, type=Path, metavar="FILE", help="Parquet, columns url and text")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: any free one)")
    options = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    missing = [folder for folder in options.folders if not folder.is_dir()]
    if missing or not command:
        parser.error(f"{missing[0]} is not a folder" if missing else "name the command to run, after --")
    handler = functools.partial(Handler, folders=[folder.resolve() for folder in options.folders])
    try:
        return _serve(options, handler, command)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        problem = f"port {options.port} is taken: name another --port" if taken else str(error)
        parser.error(problem)
    except OverflowError:
        parser.error(f"--port {options.port}: must be 0 to 65535")


def _serve(options: argparse.Namespace, handler: Callable[..., Handler], command: Sequence[str]) -> int:
    with ThreadingHTTPServer(("127.0.0.1", options.port), handler) as server:
        table = make_table(options.folders, f"http://127.0.0.1:{server.server_address[1]}")
        if not table.num_rows:
            print("serve_images: no image in these folders has a caption in a .txt file beside it", file=sys.stderr)
            return 2
        pq.write_table(table, options.table)
        print(f"{table.num_rows} pairs in {options.table}", file=sys.stderr, flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            return run(command)
        finally:
            server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
