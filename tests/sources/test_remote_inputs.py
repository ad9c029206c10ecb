"""Remote inputs give the rows of local files, from every kind of server. A broken transfer is never a whole file."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import re
import tarfile
import threading
import tracemalloc
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import lz4.frame
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zstandard

from clip_train import remote as shard_store
from clip_train.errors import TrainError
from pipeline import build
from pipeline.engine import opening, remote
from pipeline.engine.cli import BELOW, MISSING
from pipeline.engine.input_errors import InputError, MissingInputError
from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES
from pipeline.sources import READERS, archive
from pipeline.sources.base import Input, ReadSettings
from pipeline.sources.inputs import expand
from pipeline.sources.warc import read_image
from queries.load import QueryError, load_queries
from tests.archives import html_record, member, record, wat_record
from tests.webserver import picture
from tests.without_beam import without_beam  # noqa: F401

SERVERS = ["ranges", "capped", "forgetful", "plain", "chunked", "unsized"]
PAIRS = 300
CAP = 5_000  # the largest answer of the server with short answers, in bytes


# --------------------------------------------------------------------------------------------------------- the server


class FileServer(ThreadingHTTPServer):
    """Serves `files` below the name of a behaviour: /ranges/a.csv. `hits` counts requests by path."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.hits: Counter[str] = Counter()
        self.asked: dict[str, list[str]] = defaultdict(list)  # the ranges
        self.manner = "ranges"  # the behaviour below /any/

    def url(self, manner: str, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{manner}/{name}"

    def handle_error(self, request, client_address):  # type: ignore[no-untyped-def]
        """Ignores clients that close the connection early."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.server.hits[self.path] += 1
        self.server.asked[self.path].append(self.headers.get("Range", ""))
        manner, _, name = self.path.lstrip("/").partition("/")
        body = self.server.files.get(name)
        if body is None:
            self.send_error(404)
        else:
            getattr(self, manner)(body)

    def answer(self, body: bytes | memoryview, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        for start in range(0, len(body), 1 << 16):
            self.wfile.write(body[start : start + (1 << 16)])

    def ranges(self, body: bytes, cap: int = 1 << 40) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(body, Content_Length=len(body))
        first = int(asked[1])
        last = min(len(body) - 1, int(asked[2] or len(body)), first + cap - 1)
        if first >= len(body):
            return self.answer(b"", 416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
        found = f"bytes {first}-{last}/{len(body)}"
        return self.answer(
            memoryview(body)[first : last + 1], 206, Content_Range=found, Content_Length=last - first + 1
        )

    def capped(self, body: bytes) -> None:
        self.ranges(body, CAP)

    def forgetful(self, body: bytes) -> None:
        """Serves a range for the first request only."""
        return self.ranges(body) if self.server.hits[self.path] == 1 else self.plain(body)

    def plain(self, body: bytes) -> None:
        self.answer(body, Content_Length=len(body))

    def unsized(self, body: bytes) -> None:
        self.answer(body, Connection="close")

    def chunked(self, body: bytes, end: bytes = b"0\r\n\r\n") -> None:
        self.protocol_version = "HTTP/1.1"
        self.close_connection = True
        parts = [body[at : at + 7_000] for at in range(0, len(body), 7_000)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        self.answer(chunks + end, Transfer_Encoding="chunked", Connection="close")

    def cut(self, body: bytes) -> None:
        self.answer(body[: len(body) // 2], Content_Length=len(body))

    def cut_range(self, body: bytes) -> None:
        found = f"bytes 0-{len(body) - 1}/{len(body)}"
        self.answer(body[: len(body) // 2], 206, Content_Range=found, Content_Length=len(body))

    def cut_chunked(self, body: bytes) -> None:
        self.chunked(body[: len(body) // 2], end=b"")

    def any(self, body: bytes) -> None:
        getattr(self, self.server.manner)(body)

    def moved(self, body: bytes) -> None:
        self.send_response(302)
        self.send_header("Location", self.path.replace("/moved/", "/ranges/"))
        self.end_headers()

    def changed(self, body: bytes) -> None:
        self.ranges(body + bytes(self.server.hits[self.path]))

    def refused(self, body: bytes) -> None:
        self.send_error(403)


CUTTING = ["cut", "cut_range", "cut_chunked"]


# ---------------------------------------------------------------------------------------------------------- the files


def image_record(number: int) -> bytes:
    body = picture(number)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return record(head.encode() + body, url=f"https://img.example/{number}.jpg")


def make_files() -> dict[str, bytes]:
    """Archives and tables of each kind and packing, by name."""
    wat = [wat_record(number) for number in range(PAIRS)]
    warc = [make(number) for number in range(12) for make in (html_record, image_record)]
    files = {
        "a.wat": b"".join(wat),
        "a.wat.gz": b"".join(map(member, wat)),
        "whole.wat.gz": member(b"".join(wat)),
        "bad.wat.gz": b"".join(map(member, wat[:9])) + b"junk" * 99 + b"".join(map(member, wat[9:]))[:-20],
        "a.warc": b"".join(warc),
        "a.warc.gz": b"".join(map(member, warc)),
        "a.warc.zst": b"".join(map(zstandard.ZstdCompressor().compress, warc)),
        "a.warc.lz4": b"".join(map(lz4.frame.compress, warc)),
    }
    columns = {
        "url": [f"https://img.example/{number}.jpg" for number in range(PAIRS)],
        "text": [f"picture {number}" * 9 for number in range(PAIRS)],
    }
    table = pa.table(columns)
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(delimiter=delimiter, quoting_style="none"))
        files[name] = sink.getvalue().to_pybytes()
    files["a.jsonl"] = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        files[f"{name}.gz"] = gzip.compress(files[name])
        files[f"{name}.zst"] = zstandard.ZstdCompressor().compress(files[name])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=50, compression="none", use_dictionary=False)
    files["a.parquet"] = sink.getvalue().to_pybytes()
    return files


FILES = make_files()
ARCHIVES = [name for name in FILES if ".wa" in name]


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with FileServer(dict(FILES)) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def fresh_caches() -> Iterator[None]:
    """Each test starts without the archives and copies of other tests. A broken transfer is not tried again."""
    forget()
    with remote.configured(remote.RemoteSettings(patience=0)):
        yield
    forget()


def forget() -> None:
    archive.close_distant()
    while opening._copies:
        opening._copies.popitem()[1].close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    for name, data in FILES.items():
        (root / name).write_bytes(data)
    return root


def rows_of(path: str) -> tuple[list[dict], Ledger, list[dict]]:
    """(rows, ledger, images inside) of an input, read with the reader that `gather` uses."""
    name = path.rsplit("/", 1)[-1]
    form = "wat" if ".wat" in name else "warc" if re.search(r"[.](warc|wacz|zip)", name) else "table"
    ledger, images = Ledger(), []
    source = Input(name, path, form)
    batches = list(READERS[form].read(source, ledger=ledger, images=images, settings=ReadSettings()))
    inside = [row for batch in images for row in batch.to_pylist()]
    return pa.Table.from_batches(batches, CANDIDATES).to_pylist(), ledger, inside


# ---------------------------------------------------------------------------------------------------------- same rows


@pytest.mark.parametrize("manner", [*SERVERS, "moved"])
@pytest.mark.parametrize("name", FILES)
def test_rows_over_http_are_those_of_the_file(name: str, manner: str, server: FileServer, folder: Path) -> None:
    expected = rows_of(str(folder / name))
    assert len(expected[0]) >= 12
    assert rows_of(server.url(manner, name)) == expected


@pytest.mark.parametrize("name", FILES)
def test_rows_out_of_a_store_are_those_of_the_file(name: str, folder: Path) -> None:
    fsspec.filesystem("memory").pipe(f"/remote/{name}", FILES[name])
    assert rows_of(f"memory://remote/{name}") == rows_of(str(folder / name))


def test_a_too_large_record_is_passed_over_as_in_a_file(server: FileServer, tmp_path: Path) -> None:
    inner = html_record("inside")  # an archive in an archive: its records do not belong to the outer archive
    large = record((b"x" * 1000 + b"\r\n" + inner) * 40_000, url="https://large.example/")
    data = html_record(0) + large + html_record(1)
    server.files["large.warc"] = data
    (tmp_path / "large.warc").write_bytes(data)
    expected = rows_of(str(tmp_path / "large.warc"))
    assert len(expected[0]) == 2 and dict(expected[1].records_dropped) == {"too_large": 1}
    for manner in ("ranges", "plain"):
        tracemalloc.start()
        try:
            assert rows_of(server.url(manner, "large.warc")) == expected
            assert tracemalloc.get_traced_memory()[1] < 16 << 20  # the record is never in memory as a whole
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("manner", SERVERS)
def test_a_large_parquet_file_is_planned_and_read_in_parts(
    manner: str, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.tables.ROWS_PER_PART", 100)
    made = expand([server.url(manner, "a.parquet")])
    assert [item.part for item in made] == [(0, 2), (2, 4), (4, 6)]
    read = functools.partial(READERS["table"].read, ledger=Ledger(), images=[], settings=ReadSettings())
    texts = [text for item in made for batch in read(item) for text in batch["text"].to_pylist()]
    assert texts == [f"picture {number}" * 9 for number in range(PAIRS)]
    if manner in ("plain", "chunked", "unsized"):
        asked = server.hits[f"/{manner}/a.parquet"]
        rows_of(server.url(manner, "a.parquet"))
        assert server.hits[f"/{manner}/a.parquet"] == asked  # a copy was kept


@pytest.mark.parametrize("manner", SERVERS)
def test_a_wacz(manner: str, server: FileServer, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.wacz", "w") as pack:
        pack.writestr("archive/data.warc.gz", FILES["a.warc.gz"])
    server.files["a.wacz"] = (tmp_path / "a.wacz").read_bytes()
    (local,), (distant,) = expand([str(tmp_path / "a.wacz")]), expand([server.url(manner, "a.wacz")])
    assert rows_of(distant.path) == rows_of(local.path)
    with pytest.raises(InputError, match="none.warc.*cannot be opened"):
        rows_of(distant.path.replace("data.warc.gz", "none.warc"))
    server.files["a.zip"] = server.files["a.wacz"]
    (named,) = expand([f"zip://archive/data.warc.gz::{server.url(manner, 'a.zip')}"])  # as a user may spell it
    assert named.format == "warc" and rows_of(named.path)[0] == rows_of(local.path)[0]
    inside = rows_of(local.path)[2]
    for number, row in enumerate(inside):
        assert read_image(distant.path, row["offset"], max_bytes=1 << 20) == picture(number)


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_wacz_costs_some_records(packed: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.wacz", "w", packed) as pack:
        pack.writestr("archive/data.warc.gz", b"".join(member(html_record(number)) for number in range(400)))
    data = bytearray((tmp_path / "a.wacz").read_bytes())
    place = len(data) * 6 // 10
    data[place : place + 4] = b"\xff" * 4
    (tmp_path / "a.wacz").write_bytes(data)
    (made,) = expand([str(tmp_path / "a.wacz")])
    rows, ledger, _ = rows_of(made.path)
    assert 100 <= len(rows) < 400 and ledger.records_dropped.total() + ledger.notes["cut_file"] > 0


def test_a_crawl_and_a_list_over_http(server: FileServer) -> None:
    path = "crawl-data/CC-MAIN-2026-05/wat/00000.warc.wat.gz"
    for manner in SERVERS:
        server.files[path] = FILES["a.wat.gz"]
        server.files["crawl-data/CC-MAIN-2026-05/wat.paths.gz"] = gzip.compress(path.encode())
        base = server.url(manner, "").rstrip("/")
        (made,) = expand(["cc:CC-MAIN-2026-05"], cc_base=base)
        assert len(rows_of(made.path)[0]) == PAIRS
        with pytest.raises(InputError, match="Is 'CC-MAIN-2020-01' a crawl"):
            expand(["cc:CC-MAIN-2020-01"], cc_base=base)
    for manner in CUTTING:
        with pytest.raises(InputError, match="broke off"):
            expand(["cc:CC-MAIN-2026-05"], cc_base=server.url(manner, "").rstrip("/"))


# ------------------------------------------------------------------------------------------- images out of the archive


@pytest.mark.parametrize("name", [name for name in ARCHIVES if ".warc" in name])
@pytest.mark.parametrize("manner", SERVERS)
def test_images_out_of_a_remote_archive(name: str, manner: str, server: FileServer, folder: Path) -> None:
    url = server.url(manner, name)
    inside = rows_of(str(folder / name))[2]
    assert len(inside) == 12
    asked = server.hits[f"/{manner}/{name}"]
    for number in (7, 0, 11, 3, 3):  # in random order
        assert read_image(url, inside[number]["offset"], max_bytes=1 << 20) == picture(number)
    assert read_image(url, 7, max_bytes=1 << 20) is None
    assert read_image(url, 1 << 30, max_bytes=1 << 20) is None
    if manner in ("plain", "chunked", "unsized"):
        assert server.hits[f"/{manner}/{name}"] == asked + 1  # one pass for all images


def test_an_image_costs_a_window_of_the_archive(server: FileServer) -> None:
    filler = record(bytes(9 << 20), url="https://large.example/", kind="metadata")
    server.files["wide.warc"] = filler + image_record(1) + filler
    url = server.url("ranges", "wide.warc")
    assert read_image(url, len(filler), max_bytes=1 << 20) == picture(1)
    assert archive._distant(url, remote.settings()).stream.raw._answer is None  # type: ignore[attr-defined]  # no connection stays open
    last = len(filler) + remote.WINDOW - 1
    assert server.asked["/ranges/wide.warc"] == ["bytes=0-", f"bytes={len(filler)}-{last}"]


def test_images_out_of_a_store(folder: Path) -> None:
    for name in ("a.warc.gz", "a.warc.zst"):
        fsspec.filesystem("memory").pipe(f"/remote/{name}", FILES[name])
        for number, row in enumerate(rows_of(str(folder / name))[2]):
            assert read_image(f"memory://remote/{name}", row["offset"], max_bytes=1 << 20) == picture(number)


def test_copies_are_bounded(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(FILES["a.parquet"])
    monkeypatch.setattr(opening, "MAX_COPIES", size + 10)
    server.files["b.parquet"] = FILES["a.parquet"]
    for name in ("a.parquet", "b.parquet", "a.parquet"):
        assert len(rows_of(server.url("plain", name))[0]) == PAIRS
        assert sum(copy.size for copy in opening._copies.values()) <= size + 10
    monkeypatch.setattr(opening, "MAX_COPIES", size - 1)
    with pytest.raises(InputError, match="b.parquet.* no ranges: copy it first"):
        forget()
        rows_of(server.url("plain", "b.parquet"))


# --------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("manner", CUTTING)
@pytest.mark.parametrize("name", FILES)
def test_a_cut_body_is_an_error_that_names_the_input(name: str, manner: str, server: FileServer) -> None:
    with pytest.raises(InputError, match=rf"/{manner}/{re.escape(name)}' broke off after [\d,]+"):
        rows_of(server.url(manner, name))


def test_a_store_that_sends_less_than_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/remote/short.wat.gz", FILES["a.wat.gz"])
    size = property(lambda file: len(FILES["a.wat.gz"]) + 1)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.size", size)
    with pytest.raises(InputError, match="short.wat.gz' broke off after .* no more bytes came"):
        rows_of("memory://remote/short.wat.gz")


def test_an_empty_remote_archive_is_an_error(server: FileServer) -> None:
    server.files["empty.wat.gz"] = b""
    fsspec.filesystem("memory").pipe("/remote/empty.wat.gz", b"")
    for url in [*(server.url(manner, "empty.wat.gz") for manner in SERVERS), "memory://remote/empty.wat.gz"]:
        with pytest.raises(InputError, match="empty.wat.gz' is empty"):
            rows_of(url)


def test_a_file_that_changes_while_it_is_read(server: FileServer, folder: Path) -> None:
    inside = rows_of(str(folder / "a.warc.gz"))[2]
    with pytest.raises(InputError, match="it has changed"):
        read_image(server.url("changed", "a.warc.gz"), inside[5]["offset"], max_bytes=1 << 20)


def test_what_is_not_there_and_what_is_refused(server: FileServer) -> None:
    for name in ("none.wat.gz", "none.warc.gz", "none.csv", "none.parquet"):
        with pytest.raises(MissingInputError, match=f"{name}' is not there"):
            rows_of(server.url("ranges", name))
        with pytest.raises(MissingInputError, match=f"{name}' is not there"):
            rows_of(f"memory://remote/{name}")
    with pytest.raises(InputError, match="a.wat.gz' cannot be read: HTTP 403"):
        rows_of(server.url("refused", "a.wat.gz"))


@pytest.mark.parametrize(
    ("url", "code"),
    [("https://host.invalid/a.wat.gz", BELOW), ("http://127.0.0.1:9/a.warc.gz", BELOW), ("http://h:x/a.csv", MISSING)],
)
def test_a_server_out_of_reach_is_one_error_line(
    url: str, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--input", url, "--output", str(tmp_path / "out"), "--workers", "1", "--input-patience", "0"]
    assert build.main(given) == code
    said = capfd.readouterr().err
    assert url in said and len(said.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_missing_input_is_exit_code_4(
    server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--input", server.url("ranges", "none.warc.gz"), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert build.main(given) == MISSING
    assert "none.warc.gz' is not there" in capfd.readouterr().err and not (tmp_path / "out").exists()
    monkeypatch.setattr("pipeline.sources.base.MOST_OPENED", 0)  # normally the first inputs of a crawl are opened
    assert build.main(given) == MISSING
    said = capfd.readouterr().err
    assert "none.warc.gz' is not there" in said and "Traceback" not in said


@pytest.mark.parametrize(("manner", "workers"), [("cut", "1"), ("cut_range", "2"), ("cut_chunked", "1")])
def test_a_cut_archive_stops_the_run_in_a_line(
    manner: str, workers: str, server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--input", server.url(manner, "a.wat.gz"), "--output", str(tmp_path / "out"), "--workers", workers]
    assert build.main([*given, "--stages", "gather", "--input-patience", "0"]) == build.BELOW
    said = capfd.readouterr().err
    assert f"/{manner}/a.wat.gz' broke off" in said and "Run the same command again to continue." in said
    assert "Traceback" not in said and "InputError" not in said


def test_query_lists_over_http(server: FileServer) -> None:
    server.files["queries.txt.gz"] = gzip.compress(b"dog\nred\n")
    for manner in SERVERS:
        assert load_queries(server.url(manner, "queries.txt.gz")).queries.to_pylist() == ["dog", "red"]
    with pytest.raises(QueryError, match="broke off"):
        load_queries(server.url("cut", "queries.txt.gz"))


def test_the_trainer_takes_no_cut_answer_for_a_whole_one(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_store, "_WAIT", 0.0)
    assert shard_store.read_small(server.url("plain", "a.csv")) == FILES["a.csv"]
    with pytest.raises(TrainError, match="is cut"):
        shard_store.read_small(server.url("cut", "a.csv"))
    with pytest.raises(TrainError, match="is cut"):
        shard_store.fetch(shard_store.RemoteFile(server.url("cut", "a.csv")), tmp_path / "a")


# ------------------------------------------------------------------------------------------------------ the whole way


def command(spec: str, out: Path) -> list[str]:
    (out.parent / "queries.txt").write_text("picture\nnumber\n")
    given = ["--input", spec, "--output", str(out), "--queries", str(out.parent / "queries.txt")]
    return [*given, "--workers", "1", "--rows-per-shard", "8", "--allow-address", "127.0.0.0/8"]


@dataclasses.dataclass
class Published:
    """The published files of a run, without values that contain the name of the source (it is in the JSON, too)."""

    digest: str
    rows: list[dict]
    counts: list[tuple]
    members: dict[str, bytes]  # the images and texts in the tars


def published(out: Path) -> Published:
    manifest = json.loads((out / "manifest.json").read_text())
    assert json.loads((out / "stages/fetch/info.json").read_text())["archived_images"] == 12
    table = pq.read_table(sorted((out / "metadata").glob("*.parquet")))
    named = [name for name in table.column_names if name == "source_file" or re.search("_(offset|size)$", name)]
    members = {}
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if not info.name.endswith(".json"):
                    members[info.name] = (tar.extractfile(info) or tar).read()  # type: ignore[union-attr]
    counts = [(row["stage"], row["rows_in"], row["rows_out"], row["dropped"]) for row in manifest["ledger"]]
    return Published(manifest["digest"], table.drop_columns(named).to_pylist(), counts, members)


@pytest.mark.usefixtures("without_beam")
def test_the_whole_way_over_http_and_out_of_a_store(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "set.warc.gz").write_bytes(FILES["a.warc.gz"])
    server.files["set.warc.gz"] = FILES["a.warc.gz"]
    fsspec.filesystem("memory").pipe("/remote/set.warc.gz", FILES["a.warc.gz"])
    assert build.main(command(str(tmp_path / "set.warc.gz"), tmp_path / "local")) == build.DONE
    expected = published(tmp_path / "local")
    assert len(expected.rows) == 12 and len(expected.members) == 24
    digests = set()
    for server.manner in ("ranges", "capped", "plain", "chunked"):
        forget()
        assert build.main(command(server.url("any", "set.warc.gz"), tmp_path / server.manner)) == build.DONE
        found = published(tmp_path / server.manner)
        digests.add(found.digest)
        assert dataclasses.replace(found, digest=expected.digest) == expected, server.manner
    assert len(digests) == 1
    assert build.main(command("memory://remote/set.warc.gz", tmp_path / "store")) == build.DONE
    assert dataclasses.replace(published(tmp_path / "store"), digest=expected.digest) == expected


def test_images_of_an_archive_out_of_reach_are_fetched_later(server: FileServer, tmp_path: Path) -> None:
    server.files["set.warc.gz"] = FILES["a.warc.gz"]
    given = command(server.url("any", "set.warc.gz"), tmp_path / "out")
    server.manner = "ranges"
    assert build.main([*given, "--stages", "gather..balance"]) == build.DONE
    server.manner = "refused"
    forget()
    assert build.main([*given, "--stages", "fetch", "--fetch-rounds", "0", "--input-patience", "0"]) == build.BELOW
    info = json.loads((tmp_path / "out/stages/fetch/info.json").read_text())
    assert info["dropped"] == {"tcp": 12} and info["retryable"] == 12
    server.manner = "ranges"
    assert build.main([*given, "--retry-failed"]) == build.DONE
    assert len(published(tmp_path / "out").rows) == 12


@pytest.mark.parametrize("manner", ["ranges", "plain"])
def test_a_remote_archive_is_never_in_memory(manner: str, server: FileServer, tmp_path: Path) -> None:
    other = record(bytes(1 << 20), url="https://other.example/", kind="metadata")
    server.files["long.warc"] = other * 40 + image_record(1) + other * 40 + html_record(1)
    with zipfile.ZipFile(tmp_path / "long.wacz", "w") as pack:
        pack.writestr("archive/data.warc", server.files["long.warc"])
    server.files["long.wacz"] = (tmp_path / "long.wacz").read_bytes()
    tracemalloc.start()
    try:
        for name in ("long.warc", "long.wacz"):
            (made,) = expand([server.url(manner, name)])
            rows, _, inside = rows_of(made.path)
            assert len(rows) == 1
            assert read_image(made.path, inside[0]["offset"], max_bytes=1 << 20) == picture(1)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20  # of 80: zipfile skips 16 MB at a time
    finally:
        tracemalloc.stop()
