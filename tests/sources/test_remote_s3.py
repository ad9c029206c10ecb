"""Inputs on S3, by fsspec's client: moto on loopback (5.2), and in front of it a server that misbehaves by a seed.

More seeds: python -m tests.sources.test_remote_s3 1000
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import build
from pipeline.engine import remote, transfers
from pipeline.engine.cli import MISSING
from pipeline.engine.input_errors import InputError, MissingInputError, RefusedInputError, TransferError
from pipeline.engine.remote import RemoteFile, RemoteSettings
from pipeline.sources.inputs import expand
from tests.sources.crawl_simulator import Crawl, _Handler, crawl
from tests.sources.test_remote_simulator import CONTENT, read_all, rows_of, wat
from tests.store import BUCKET, KEYS, forget, put, running
from tests.without_beam import without_beam  # noqa: F401

SEEDS = 1
FAULTS = ("slow_503", "busy_429", "cut", "drip", "reset", "silent")
PATIENT = RemoteSettings(patience=60.0)


class Front(Crawl):
    """Hands requests on to moto, or misbehaves."""

    behind = ("", 0)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.RequestHandlerClass = _Front
        self.lock = threading.Lock()


class _Front(_Handler):
    server: Front

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            fault = self.server.fault(path)
        if self.command == "HEAD" and fault in ("cut", "drip"):
            fault = ""
        getattr(self, f"_{fault}" if fault else "_serve")(path)

    def _slow_503(self, path: str) -> None:
        self._say(
            503, b"" if self.command == "HEAD" else b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>"
        )

    def _serve(self, path: str, *, share: float = 1.0, piece: int = 1 << 16, pause: float = 0.0) -> None:
        behind = http.client.HTTPConnection(*self.server.behind, timeout=60)
        with contextlib.closing(behind):
            behind.request(self.command, self.path, headers=dict(self.headers.items()))
            answer = behind.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
        body = body[: int(len(body) * share)]
        for start in range(0, len(body), piece):
            self.wfile.write(body[start : start + piece])
            time.sleep(pause)
        self.close_connection = True

    def _drip(self, path: str) -> None:
        self._serve(path, piece=50_000, pause=0.001)


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, int]]:
    with running() as address:
        yield address


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0005)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.002)
    monkeypatch.setattr(transfers, "STORE_BLOCK", 120_000)
    forget()


@contextlib.contextmanager
def front(moto: tuple[str, int], seed: int | None, faults: tuple[str, ...] = FAULTS) -> Iterator[Front]:
    """The misbehaving server in front of moto, as the endpoint of S3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Front, "behind", moto)
        patch.setattr("tests.sources.crawl_simulator.Crawl", Front)
        with crawl({}, seed, faults) as server:
            assert isinstance(server, Front)
            patch.setenv("AWS_ENDPOINT_URL", server.base.rstrip("/"))
            forget()
            yield server
            forget()


def check_seed(moto: tuple[str, int], seed: int, expected: tuple[list[dict], dict]) -> int:
    """One seed: the bytes in pieces, and the rows of an archive. Returns the number of requests."""
    with front(moto, seed) as server, remote.configured(PATIENT):
        rng = random.Random(seed)
        drawn = iter(lambda: rng.choice((700, 5_000, 90_000, 300_000)), None)
        assert read_all(RemoteFile(f"s3://{BUCKET}/a.bin"), drawn) == CONTENT, seed
        file = RemoteFile(f"s3://{BUCKET}/a.bin")
        for _ in range(4):
            place = rng.randrange(len(CONTENT))
            file.seek(place)
            found = file.read(1_000)
            assert found and CONTENT[place:].startswith(found), seed
        assert rows_of(f"s3://{BUCKET}/a.wat.gz") == expected, seed
        return sum(server.asked.values())


def prepared(moto: tuple[str, int], folder: Path) -> tuple[list[dict], dict]:
    """Puts the objects of `check_seed`; returns what it expects."""
    archive = wat(150)
    put(moto, {"a.bin": CONTENT, "a.wat.gz": archive})
    (folder / "a.wat.gz").write_bytes(archive)
    return rows_of(str(folder / "a.wat.gz"))


def test_every_seed_gives_the_bytes_and_rows_of_a_sound_store(moto: tuple[str, int], tmp_path: Path) -> None:
    expected = prepared(moto, tmp_path)
    assert len(expected[0]) == 150
    for seed in range(SEEDS):
        check_seed(moto, seed, expected)


def test_what_is_not_there_what_is_refused_and_what_has_changed(
    moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(moto, {"a.bin": CONTENT})
    with front(moto, None) as server:
        with pytest.raises(MissingInputError, match="none.bin' is not there"):
            RemoteFile(f"s3://{BUCKET}/none.bin", PATIENT)
        file = RemoteFile(f"s3://{BUCKET}/a.bin", PATIENT)
        assert file.version and file.seekable() and file.read(1_000) == CONTENT[:1_000]
        file._drop()
        put(moto, {"a.bin": CONTENT[::-1]})
        with pytest.raises(TransferError, match="it has changed"):
            read_all(file)
        monkeypatch.setattr(server, "fault", lambda path: "denied")
        monkeypatch.setattr(_Front, "_denied", lambda self, path: self._say(403, b""), raising=False)
        with pytest.raises(RefusedInputError, match="cannot be read"):
            RemoteFile(f"s3://{BUCKET}/a.bin", PATIENT)
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with front(moto, None), pytest.raises(InputError):  # at once, not after the patience
        RemoteFile(f"s3://{BUCKET}/none.bin", PATIENT)


@pytest.mark.parametrize(
    "given",
    [{"AWS_ENDPOINT_URL": "foo"}, {"AWS_PROFILE": "nobody"}, {name: "" for name in KEYS}],
    ids=["endpoint", "profile", "credentials"],
)
def test_a_store_that_cannot_be_asked_is_one_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: dict[str, str]
) -> None:
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_EC2_METADATA_DISABLED": "true", **given}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    forget()
    (tmp_path / "a.csv").write_text("url,text\nhttp://a.org/1.jpg,a dog\n")
    for words in (
        ["--input", f"s3://{BUCKET}/a.csv", "--output", str(tmp_path / "out")],
        ["--input", f"s3://{BUCKET}/set", "--output", str(tmp_path / "out")],
        ["--input", str(tmp_path / "a.csv"), "--output", f"s3://{BUCKET}/out"],
        ["--input", str(tmp_path / "a.csv"), "--output", str(tmp_path / "out"), "--queries", f"s3://{BUCKET}/lists"],
    ):
        assert build.main(words) == MISSING
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and re.search("endpoint|profile|credentials", message)


def test_what_a_store_answers_is_said_without_an_errno() -> None:
    slow = OSError(16, "Please reduce your request rate.")
    assert str(transfers.store_failure(slow, known=False)) == "Please reduce your request rate."
    answer = {"Error": {"Code": "SlowDown", "Message": "slow"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
    slow.__cause__ = type("ClientError", (Exception,), {"response": answer})()
    for known in (False, True):
        failure = transfers.store_failure(slow, known=known)
        assert isinstance(failure, transfers.Broken) and str(failure) == "HTTP 503 SlowDown: slow"


def test_the_rate_holds_for_the_requests_of_the_client(moto: tuple[str, int], tmp_path: Path) -> None:
    put(moto, {"a.bin": CONTENT})
    settings = RemoteSettings(patience=60.0, rate=50.0, pace=str(tmp_path / "pace"))
    with front(moto, 2, ("slow_503", "cut", "reset")) as server:
        assert read_all(RemoteFile(f"s3://{BUCKET}/a.bin", settings)) == CONTENT
        times = server.times
    assert len(times) >= 8 and (len(times) - 1) / (times[-1] - times[0]) <= 50.0 * 1.05


@pytest.mark.usefixtures("without_beam")
def test_mirrors_in_order_https_then_s3(moto: tuple[str, int], tmp_path: Path) -> None:
    names = [f"crawl-data/CC-TEST/{number}.warc.wat.gz" for number in range(2)]
    files = {name: wat(40, 40 * number) for number, name in enumerate(names)}
    files["crawl-data/CC-TEST/wat.paths.gz"] = gzip.compress("\n".join(names).encode())
    put(moto, files)
    (tmp_path / "queries.txt").write_text("picture\n")
    digests = set()
    with front(moto, None) as store, crawl({}, None) as empty, crawl(files, 3, ("cdn_403", "reset")) as flaky:
        for mirrors in (f"{empty.base},s3", f"{flaky.base},s3", "s3"):
            out = tmp_path / str(len(list(tmp_path.iterdir())))
            given = ["--input", "cc:CC-TEST", "--output", str(out), "--cc-mirrors", mirrors, "--input-rate", "0"]
            given += ["--queries", str(tmp_path / "queries.txt"), "--stages", "gather..match"]
            assert build.main(given) == build.DONE
            digests.add(json.loads((out / "stages/match/info.json").read_text())["digest"])
        assert sum(store.asked.values()) and sum(flaky.asked.values())
    assert len(digests) == 1


def test_a_prefix_and_a_glob_are_listed_even_by_a_store_that_throttles(moto: tuple[str, int]) -> None:
    put(moto, {"set/a.warc.wat.gz": wat(2), "set/deep/b.warc.wat.gz": wat(3), "set/_c.txt": b"x"})
    with front(moto, 1, ("slow_503", "reset")), remote.configured(PATIENT):
        for spec in (f"s3://{BUCKET}/set/", f"s3://{BUCKET}/set/**/*.wat.gz"):
            assert [made.name.rpartition("/")[2] for made in expand([spec])] == ["a.warc.wat.gz", "b.warc.wat.gz"]
        with pytest.raises(InputError, match="no file to read matches"):
            expand([f"s3://{BUCKET}/none/"])
        with pytest.raises(InputError, match="no-such-bucket.* is not there"):
            expand(["s3://no-such-bucket/none/"])


def main(seeds: int) -> None:
    """More seeds by hand."""
    import os
    import tempfile

    os.environ.update(KEYS)
    remote.FIRST_PAUSE, remote.LONGEST_PAUSE, transfers.STORE_BLOCK = 0.0005, 0.002, 120_000
    with running() as address, tempfile.TemporaryDirectory() as folder:
        expected, start = prepared(address, Path(folder)), time.monotonic()
        requests = sum(check_seed(address, seed, expected) for seed in range(seeds))
    print(f"{seeds} seeds, {requests} requests, all equal, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS)
