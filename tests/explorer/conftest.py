"""A published set with its index, and a server that shows it on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.engine import storage
from pipeline.explorer import watch
from pipeline.explorer.answers import Explorer
from pipeline.explorer.server import Server
from pipeline.schema import DUPLICATES, DUPLICATES_FILE
from tests import samples

MARKUP = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
HOSTILE = {4: samples.ESCAPE, 5: MARKUP, 6: "nul \0 and \u202egnp.exe", 7: "t-shirt 富士山 " + "x" * 5000}


def publish(folder: Path, *, count: int = 30) -> None:
    """Thirty pairs in three shards, with hostile texts, and a duplicate of one of them."""
    twin = {"key": samples.uid(500).hex(), "keeper": samples.uid(13).hex(), "kind": "near_duplicate", "distance": 2}
    storage.write_published(str(folder / DUPLICATES_FILE), pa.Table.from_pylist([twin], DUPLICATES))
    samples.publish(folder, count=count, per_shard=12, texts=HOSTILE)


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("explored")
    publish(found)
    return found


@pytest.fixture(scope="package")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("indexes")


@pytest.fixture(scope="package")
def explorer(folder: Path, cache: Path) -> Explorer:
    return watch.open_explorer(str(folder), str(cache)).explorer


@pytest.fixture(scope="package")
def serve() -> Iterator[Callable[..., Server]]:
    """Serves an explorer until the tests end."""
    servers = []

    def start(explorer: Explorer, reopen: Callable[..., Explorer] | None = None) -> Server:
        server = Server(watch.Watched(explorer, reopen or (lambda progress: explorer)), "127.0.0.1", 0)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
