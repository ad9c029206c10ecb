"""Shards behind a URL: the batches of a local folder, a cache within its bound, errors that name the shard."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import itertools
import json
import os
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="clip_train needs torch: pip install openwit[train]")

import fsspec  # noqa: E402
import numpy as np  # noqa: E402

from clip_train import remote  # noqa: E402
from clip_train.data import Loader, LoaderOptions  # noqa: E402
from clip_train.errors import InputMissing, TrainError, UsageError  # noqa: E402
from clip_train.order import Stream  # noqa: E402
from clip_train.reader import open_reader  # noqa: E402
from clip_train.remote import RemoteFile, RemoteShards, ShardCache, is_url, public  # noqa: E402
from clip_train.shards import open_index  # noqa: E402
from clip_train.tokenizer import load_tokenizer  # noqa: E402


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "_WAIT", 0.0)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def store(request, tmp_path):
    """Copies a folder to a store of some kind. Returns its URL and a function that changes a file there."""
    system = fsspec.filesystem("memory")
    servers = []

    def put(folder: Path, kind: str):
        if kind == "memory":
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    system.pipe_file(f"/set/{path.relative_to(folder)}", path.read_bytes())

            def change(name: str, data: bytes | None) -> None:
                system.rm(f"/set/{name}")
                if data is not None:
                    system.pipe_file(f"/set/{name}", data)

            return "memory://set", change

        def change_file(name: str, data: bytes | None) -> None:
            (folder / name).unlink() if data is None else (folder / name).write_bytes(data)

        if kind == "file":
            return f"file://{folder}", change_file
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", change_file

    yield put
    for server in servers:
        server.shutdown()
        server.server_close()
    if system.exists("/set"):
        system.rm("/set", recursive=True)


def batches(index, vocabulary, count, *, window=2, seen=0, **changes):
    options = LoaderOptions(**{"image_size": 16, "context_length": 20, "batch_size": 8, "max_bad": 1.0, **changes})
    with Loader(Stream(index, seed=3, window=window), load_tokenizer(vocabulary), options) as loader:
        return [batch for step in itertools.islice(loader.steps(seen), count) for batch in step]


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a.samples, b.samples) and torch.equal(a.images, b.images)
        and torch.equal(a.text.tokens, b.text.tokens)
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


def in_cache(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.tar"))


def add_digests(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        entry["sha256"] = hashlib.sha256((folder / entry["path"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", ["memory", "file", "http"])
def test_a_published_set_gives_the_batches_of_a_local_folder(kind, published, store, vocabulary, tmp_path):
    folder = published(samples=60, numbers=(0, 2, 3, 70_000, 100_000), digits=6)
    add_digests(folder)
    local = batches(open_index(str(folder)), vocabulary, 20)
    url, _ = store(folder, kind)
    cache = tmp_path / "cache"
    index = open_index(url, cache=str(cache))
    assert len(index) == 60 and index.remote is not None and all(map(is_url, index.paths))
    assert same(batches(index, vocabulary, 20), local)  # nearly three epochs
    assert same(batches(index, vocabulary, 9, seen=8 * 11, threads=3, prefetch=0), local[11:])  # a resumed run
    assert not in_cache(cache)


@pytest.mark.parametrize("kind", ["memory", "http"])
def test_plain_tars_by_a_pattern(kind, tars, store, vocabulary, tmp_path, monkeypatch):
    folder = tars(samples=30, shards=3)
    local = batches(open_index(str(folder)), vocabulary, 10, window=1)
    url, _ = store(folder, kind)
    pattern = url + "/{00000..00002}.tar"
    index = open_index(pattern, cache=str(tmp_path / "cache"))
    assert same(batches(index, vocabulary, 10, window=1), local)
    monkeypatch.setattr(remote, "fetch", None)  # the index is saved: no shard is read again
    again = open_index(pattern, cache=str(tmp_path / "cache"))
    assert again.keys_of(range(30)) == index.keys_of(range(30)) and again.remote == index.remote


def test_a_folder_of_tars_is_listed_where_the_store_can(tars, store, tmp_path):
    url, _ = store(tars(samples=6, shards=3), "memory")
    index = open_index(url, cache=str(tmp_path))
    assert [path.rsplit("/", 1)[1] for path in index.paths] == ["00000.tar", "00001.tar", "00002.tar"]
    with pytest.raises(InputMissing, match=r"memory://nothing: no manifest.json and no .tar"):
        open_index("memory://nothing", cache=str(tmp_path))


def test_a_web_server_that_does_not_list_is_said(tars, store, tmp_path):
    url, _ = store(tars(samples=4, shards=1), "http")
    with pytest.raises(UsageError, match="a web server does not list files: name the shards"):
        open_index(url, cache=str(tmp_path))


def test_what_lies_here_stays_under_the_bound(tars, store, vocabulary, tmp_path, monkeypatch):
    folder = tars(samples=64, shards=8)
    local = batches(open_index(str(folder)), vocabulary, 24, batch_size=12)
    url, _ = store(folder, "memory")
    size = max(path.stat().st_size for path in folder.glob("*.tar"))
    index = open_index(url + "/{00000..00007}.tar", cache=str(tmp_path / "cache"), cache_gb=4.2 * size / 1e9)
    largest = []
    real = remote._write

    def watched(descriptor, block):
        real(descriptor, block)
        sizes = 0
        for path in (tmp_path / "cache").rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                sizes += path.stat().st_size * (path.suffix in (".tar", ".partial"))
        largest.append(sizes)

    monkeypatch.setattr(remote, "_write", watched)
    # four shards fit, and a batch may use two windows of two shards: at times the whole bound is needed
    assert same(batches(index, vocabulary, 24, threads=2, batch_size=12), local)
    assert 2 * size < max(largest) <= 4.2 * size


def test_a_batch_that_needs_more_than_the_bound_is_refused(tars, store, vocabulary, tmp_path):
    url, _ = store(tars(samples=64, shards=8), "memory")
    index = open_index(url, cache=str(tmp_path / "cache"), cache_gb=1e-5)
    with pytest.raises(UsageError, match=r"needs \d shards at a time, .* GB; --cache-gb allows 1e-05"):
        batches(index, vocabulary, 20)
    with pytest.raises(UsageError, match="copy the shards to this machine"):
        open_reader(index)
    with pytest.raises(UsageError, match="give --window"):
        batches(index, vocabulary, 1, window=0)
    assert not in_cache(tmp_path / "cache")


def test_evaluation_reads_all_of_it(tars, store, tmp_path):
    folder = tars(samples=12, shards=3)
    local, url = open_index(str(folder)), store(folder, "memory")[0]
    index = open_index(url, cache=str(tmp_path / "cache"))
    reader, files = open_reader(index), open_reader(local)
    for sample in (0, 11, 5):
        place = index.place("image", sample)
        assert reader.read(*place) == files.read(*place)
    assert len(in_cache(tmp_path / "cache")) == 3
    reader.close()
    files.close()
    assert not in_cache(tmp_path / "cache")


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_shard_that_vanishes_is_named(published, store, vocabulary, tmp_path):
    url, change = store(published(samples=40, shards=4), "memory")
    index = open_index(url, cache=str(tmp_path))
    change("shards/00002.tar", None)
    with pytest.raises(InputMissing, match=r"memory://set/shards/00002\.tar does not exist"):
        batches(index, vocabulary, 10)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("kind", ["memory", "http"])
def test_a_shard_that_comes_back_cut_is_named(kind, published, store, vocabulary, tmp_path):
    folder = published(samples=40, shards=4)
    url, change = store(folder, kind)
    index = open_index(url, cache=str(tmp_path))
    whole = (folder / "shards" / "00001.tar").read_bytes()
    change("shards/00001.tar", whole[:-1000])
    with pytest.raises(TrainError, match=r"shards/00001\.tar: is cut.*written anew\? \(tried 4 times\)"):
        batches(index, vocabulary, 10)
    change("shards/00001.tar", whole + bytes(512))
    with pytest.raises(TrainError, match=r"shards/00001\.tar: has grown"):
        batches(index, vocabulary, 10)


def test_a_shard_with_another_digest_is_named(published, store, vocabulary, tmp_path):
    folder = published(samples=40, shards=4)
    add_digests(folder)
    url, change = store(folder, "memory")
    index = open_index(url, cache=str(tmp_path))
    data = bytearray((folder / "shards" / "00003.tar").read_bytes())
    data[3000] ^= 1
    change("shards/00003.tar", bytes(data))
    with pytest.raises(TrainError, match=r"shards/00003\.tar: comes back with another sha256 than the manifest's"):
        batches(index, vocabulary, 10)


def test_a_store_that_stutters_is_asked_again(published, store, vocabulary, tmp_path, monkeypatch):
    folder = published(samples=40, shards=4)  # all in one window: no shard is released and read again
    local = batches(open_index(str(folder)), vocabulary, 5, window=4)
    url, _ = store(folder, "memory")
    index = open_index(url, cache=str(tmp_path))
    real, asked = remote.open_url, []

    def stuttering(name):
        asked.append(name)
        if asked.count(name) < 3:
            raise ConnectionResetError("connection reset")
        return real(name)

    monkeypatch.setattr(remote, "open_url", stuttering)
    assert same(batches(index, vocabulary, 5, window=4), local)
    assert {asked.count(name) for name in asked} == {3}
    monkeypatch.setattr(remote, "open_url", lambda name: (_ for _ in ()).throw(RuntimeError("the store's own error")))
    with pytest.raises(TrainError, match=r"the store's own error \(tried 4 times\)"):
        batches(index, vocabulary, 1)


def test_a_spoiled_manifest_or_table_is_named(published, store, tmp_path):
    folder = published(samples=8, shards=2)
    url, change = store(folder, "memory")
    metadata = (folder / "metadata" / "00001.parquet").read_bytes()
    change("metadata/00001.parquet", metadata[:-8] + bytes(8))
    with pytest.raises(TrainError, match=r"memory://set/metadata/00001\.parquet: "):
        open_index(url, cache=str(tmp_path))
    change("metadata/00001.parquet", metadata[:-1])
    with pytest.raises(TrainError, match=r"metadata/00001\.parquet: is cut"):
        open_index(url, cache=str(tmp_path))
    change("manifest.json", b"[" * 100_000)
    with pytest.raises(TrainError, match="is not a manifest"):
        open_index(url, cache=str(tmp_path))
    change("manifest.json", json.dumps({"files": [{"path": "shards/../../x", "bytes": 1}]}).encode())
    with pytest.raises(TrainError, match="lists an impossible file"):
        open_index(url, cache=str(tmp_path))
    assert not list(tmp_path.rglob("*.partial"))


def test_unknown_stores_and_secrets(tmp_path):
    with pytest.raises(UsageError, match="the protocol nonsense:// is unknown"):
        open_index("nonsense://bucket/x.tar", cache=str(tmp_path))
    with pytest.raises(TrainError, match=r"pip install openwit\[gcs\]|gcs") as caught:
        open_index("gs://bucket/x.tar", cache=str(tmp_path))
    assert "openwit[gcs]" in str(caught.value)
    assert public("https://me:secret@host/a.tar?signature=secret") == "https://host/a.tar"
    assert not is_url("/data/a.tar") and not is_url("C:\\x") and is_url("s3://b/a.tar")


# --- the cache --------------------------------------------------------------------------------------------------------


def shards_in(tmp_path: Path, count: int, size: int = 1000) -> tuple[RemoteShards, list[bytes]]:
    system, contents = fsspec.filesystem("memory"), []
    for number in range(count):
        contents.append(bytes([number]) * size)
        system.pipe_file(f"/set/{number}.tar", contents[-1])
    files = tuple(RemoteFile(f"memory://set/{number}.tar", size) for number in range(count))
    folder = remote.cache_folder(str(tmp_path))
    return RemoteShards(files, folder, 3 * size), contents


def test_the_next_window_comes_by_itself_and_goes_when_released(store, tmp_path):
    def here() -> list[str]:
        return [name[-6:-4] for name in in_cache(tmp_path)]

    shards, contents = shards_in(tmp_path, 6)
    cache = ShardCache(shards)
    cache.want(0, [0, 1])
    cache.want(1, [2, 3])  # 3 has no room yet
    assert cache.read(2, 0, 5, 1) == contents[2][:5] and cache.read(0, 990, 99) == contents[0][990:]
    assert cache.read(1, 0, 1) == b"\1" and here() == ["00", "01", "02"]
    cache.want(2, [1, 4])  # 1 is needed again: its new window comes after 3
    cache.release(1)
    assert cache.read(1, 0, 1, 2) == b"\1" and cache.read(3, 0, 1, 1) == b"\3" and here() == ["01", "02", "03"]
    cache.release(2)
    assert cache.read(4, 0, 1, 2) == b"\4" and here() == ["01", "04"]
    cache.close()
    assert not in_cache(tmp_path)


def test_what_a_killed_run_left_is_removed_and_what_is_in_use_is_not(store, tmp_path):
    shards, _ = shards_in(tmp_path, 2)
    (shards.folder / "old-00000000.tar").write_bytes(b"x")
    (shards.folder / "old-00000001.tar.99.partial").write_bytes(b"x")
    (tmp_path / "users own.tar").write_bytes(b"x")  # outside our folder
    first = ShardCache(shards)
    assert in_cache(tmp_path) == ["users own.tar"] and not list(tmp_path.rglob("*.partial"))
    first.want(0, [0])
    assert first.read(0, 0, 1) == b"\0"
    second = ShardCache(shards)
    second.want(0, [0])
    assert second.read(0, 0, 1) == b"\0" and len(in_cache(shards.folder)) == 1
    first.close()
    assert len(in_cache(shards.folder)) == 1  # the second cache still holds it
    second.close()
    assert not in_cache(shards.folder)


def bring(shards: RemoteShards, counted: str, barrier, done) -> None:
    """Runs in another process. Reads all shards of a store and logs each opened URL."""
    real = remote.open_url

    def open_counted(url: str):
        with open(counted, "a") as file:
            file.write(f"{url}\n")
        return real(url)

    remote.open_url = open_counted
    cache = ShardCache(shards)
    barrier.wait(120)
    cache.want(0, list(range(len(shards.files))))
    for shard in range(len(shards.files)):
        assert len(cache.read(shard, 0, 1000)) == 1000
    barrier.wait(120)
    cache.close()
    done.put(True)


def test_processes_of_a_host_share_the_files(tmp_path):
    from tests.clip_train.conftest import forks

    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.tar").write_bytes(bytes([number]) * 1000)
    files = tuple(RemoteFile(f"file://{source}/{number}.tar", 1000) for number in range(3))
    shards = RemoteShards(files, remote.cache_folder(str(tmp_path / "cache")), 3000)
    context = forks()
    barrier, done = context.Barrier(2), context.Queue()
    workers = [context.Process(target=bring, args=(shards, str(tmp_path / "asked"), barrier, done)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert sorted((tmp_path / "asked").read_text().split()) == sorted(file.url for file in files)  # each once
    assert not in_cache(tmp_path / "cache")


def test_leaving_while_a_shard_is_on_its_way_does_not_hang(store, tmp_path, monkeypatch):
    shards, _ = shards_in(tmp_path, 3)
    begun, go_on = threading.Event(), threading.Event()
    real = remote.open_url

    def slow(url):
        begun.set()
        go_on.wait(60)
        return real(url)

    monkeypatch.setattr(remote, "open_url", slow)
    cache = ShardCache(shards)
    cache.want(0, [0, 1, 2])
    assert begun.wait(60)
    cache.stop()
    go_on.set()
    with pytest.raises(TrainError, match="stopped"):
        cache.read(0, 0, 1)
    cache.close()
    assert not list(shards.folder.glob("*.tar*"))


def test_a_disk_that_is_full_is_said_at_once(store, tmp_path, monkeypatch):
    shards, _ = shards_in(tmp_path, 1)
    tries = []

    def full(descriptor, block):
        tries.append(1)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(remote, "_write", full)
    cache = ShardCache(shards)
    cache.want(0, [0])
    with pytest.raises(TrainError, match=r"No space left on device; see --cache"):
        cache.read(0, 0, 1)
    cache.close()
    assert len(tries) == 1 and not list(shards.folder.glob("*.partial"))
