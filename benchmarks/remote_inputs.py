"""Remote reading of an archive against local reading: CPU seconds of the reader, and the time that it waits.

    python -m benchmarks.remote_inputs [--megabytes 40] [--rounds 3] [--latency 0.02] FILE.warc.gz ...

The server is another process on 127.0.0.1. Its answers begin after `--latency` seconds. The CPU seconds are those of
the reading process alone, all threads included. FILEs are WARC files that are repeated up to the size; the WAT file is
made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.engine.ledger import Ledger
from pipeline.sources import READERS
from pipeline.sources.base import Input, ReadSettings
from tests.archives import member, wat_json, wat_record
from tests.sources.crawl_simulator import Crawl, _Handler


def made_wat(megabytes: int) -> bytes:
    """A WAT file with 40 links a page, of which 20 are images, and the headers and metas of a usual page."""
    members, size, page = [], 0, 0
    while size < megabytes << 20:
        links = []
        for number in range(20):
            key = f"{page * 20 + number:x}{hash((page, number)) & 0xFFFFFFFFFF:x}"
            links.append({"path": "IMG@/src", "url": f"/images/{key}.jpg", "alt": f"picture {key} of a red {number}"})
            links.append({"path": "A@/href", "url": f"https://site.example/{key}/", "text": f"link {key}"})
        members.append(member(wat_record(page, wat_json(page, links))))
        size += len(members[-1])
        page += 1
    return b"".join(members)


def serve(paths: dict[str, str], latency: float, ready: Any) -> None:
    """Serves files for ever."""
    files = {name: Path(path).read_bytes() for name, path in paths.items()}

    class Handler(_Handler):
        def do_GET(self) -> None:
            time.sleep(latency)
            super().do_GET()

    class Server(Crawl):
        def __init__(self) -> None:
            super().__init__(files)
            self.RequestHandlerClass = Handler

    assert issubclass(Server, ThreadingHTTPServer)
    server = Server()
    ready.send(server.base)
    server.serve_forever()


def read(path: str, form: str) -> dict[str, Any]:
    """One read in this process."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    ledger = Ledger()
    source = Input(Path(path).name, path, form, None)
    batches = READERS[form].read(source, ledger=ledger, images=[], settings=ReadSettings())
    rows = sum(batch.num_rows for batch in batches)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"rows": rows, "cpu_s": round(cpu, 3), "wall_s": round(time.monotonic() - start, 3)}


def main() -> None:
    """Prints a line for each kind of file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.02)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contents = {"wat": ("a.warc.wat.gz", made_wat(given.megabytes))}
        if given.files:
            warcs = b"".join(Path(name).read_bytes() for name in given.files)
            contents["warc"] = ("a.warc.gz", warcs * max(1, (given.megabytes << 20) // len(warcs)))
        paths = {}
        for name, content in contents.values():
            paths[name] = f"{folder}/{name}"
            Path(paths[name]).write_bytes(content)
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=serve, args=(paths, given.latency, theirs), daemon=True)
        process.start()
        base = ours.recv()
        for form, (name, content) in contents.items():
            read(paths[name], form)  # loads the kernels
            runs = [(read(paths[name], form), read(f"{base}{name}", form)) for _ in range(given.rounds)]
            assert all(local["rows"] == remote["rows"] for local, remote in runs)
            local, remote = (min(run[side]["cpu_s"] for run in runs) for side in (0, 1))
            walls = [min(run[side]["wall_s"] for run in runs) for side in (0, 1)]
            found = {"bytes": len(content), "rows": runs[0][0]["rows"], "local_cpu_s": local, "remote_cpu_s": remote}
            found |= {"ratio": round(remote / local, 3), "local_wall_s": walls[0], "remote_wall_s": walls[1]}
            print(json.dumps({"form": form, **found}))
        process.terminate()


if __name__ == "__main__":
    main()
