"""A Common Crawl that misbehaves gives the rows of a sound one, at the rate of the options.

More seeds: python -m tests.sources.test_remote_simulator 1000
"""

from __future__ import annotations

import bisect
import gzip
import http.client
import json
import multiprocessing
import random
import sys
import tempfile
import time
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline import build
from pipeline.engine import remote, transfers
from pipeline.engine.input_errors import InputError, MissingInputError, TransferError
from pipeline.engine.ledger import Ledger
from pipeline.engine.remote import Pace, RemoteFile, RemoteSettings
from pipeline.sources import READERS
from pipeline.sources.base import Input, ReadSettings
from pipeline.sources.inputs import CC_BASE
from tests.archives import member, wat_record
from tests.sources.crawl_simulator import CDN_PAGE, DENIED, FAULTS, Crawl, crawl

SEEDS = 50
CONTENT = random.Random(1).randbytes(700_000)
PATIENT = RemoteSettings(patience=30.0)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0005)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.002)


def read_all(file: Any, sizes: Iterator[int] | None = None) -> bytes:
    """The bytes of a stream, read in pieces."""
    parts = []
    while part := file.read(next(sizes) if sizes else 1 << 16):
        parts.append(part)
    return b"".join(parts)


def wat(pages: int, first: int = 0) -> bytes:
    """A WAT file with a pair a page, one gzip member a record."""
    return b"".join(member(wat_record(page)) for page in range(first, first + pages))


def rows_of(url: str) -> tuple[list[dict], dict]:
    """The candidates of a WAT file and its ledger, as gather's unit reads them."""
    ledger = Ledger()
    source = Input("a.wat.gz", url, "wat", None)
    batches = READERS["wat"].read(source, ledger=ledger, images=[], settings=ReadSettings())
    return [row for batch in batches for row in batch.to_pylist()], ledger.to_json()


def check_seed(seed: int, archive: bytes, expected: tuple[list[dict], dict]) -> int:
    """One seed: the bytes in pieces, in leaps, and the rows of an archive. Returns the number of requests."""
    with crawl({"a.bin": CONTENT, "a.wat.gz": archive}, seed) as server, remote.configured(PATIENT):
        sizes = random.Random(seed)
        drawn = iter(lambda: sizes.choice((1, 700, 5_000, 90_000, 300_000)), None)
        assert read_all(RemoteFile(f"{server.base}a.bin"), drawn) == CONTENT, seed
        check_leaps(RemoteFile(f"{server.base}a.bin"), sizes)
        assert rows_of(f"{server.base}a.wat.gz") == expected, seed
        return sum(server.asked.values())


def check_leaps(file: RemoteFile, rng: random.Random) -> None:
    """Seeks and reads; a file that cannot seek, or that changed its version between two leaps, may refuse."""
    for _ in range(6):
        place = rng.randrange(len(CONTENT))
        try:
            if not file.seekable():
                return
            file.seek(place)
            found = file.read(1_000)
        except TransferError as error:
            assert "has changed" in str(error)  # its version did: the bytes in between were not read
            return
        assert CONTENT[place:].startswith(found) and found


def test_every_seed_gives_the_bytes_and_rows_of_a_sound_server(tmp_path: Path) -> None:
    archive = wat(150)
    (tmp_path / "a.wat.gz").write_bytes(archive)
    expected = rows_of(str(tmp_path / "a.wat.gz"))
    assert len(expected[0]) == 150
    for seed in range(SEEDS):
        check_seed(seed, archive, expected)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault: str) -> None:
    for seed in range(3):
        with crawl({"a.bin": CONTENT}, seed, (fault,)) as server:
            assert read_all(RemoteFile(f"{server.base}a.bin", PATIENT)) == CONTENT


def test_a_broken_transfer_goes_on_at_the_byte() -> None:
    with crawl({"a.bin": CONTENT}, 3, ("cut",)) as server:
        assert read_all(RemoteFile(f"{server.base}a.bin", PATIENT)) == CONTENT
        sent = sum(1 for _ in server.times)
    assert 1 < sent < 20


def test_a_throttled_file_is_not_a_refused_one() -> None:
    with crawl({}) as server:
        with pytest.raises(InputError, match="HTTP 403") as refused:
            RemoteFile(f"{server.base}none.bin", PATIENT)
        assert not isinstance(refused.value, TransferError)  # S3's AccessDenied: asked once
    with crawl({"a.bin": CONTENT}, 1, ("cdn_403",)) as server:
        assert read_all(RemoteFile(f"{server.base}a.bin", PATIENT)) == CONTENT


class Always(Crawl):
    """A server on which one fault never ends."""

    always = "cut"

    def fault(self, path: str) -> str:
        super().fault(path)
        return self.always


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cdn_403", "cannot be reached: HTTP 403 .*tries"),
        ("reset", "cannot be reached"),
        ("silent", "cannot be reached"),
    ],
)
def test_the_patience_ends(fault: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Always, "always", fault)
    monkeypatch.setattr("tests.sources.crawl_simulator.Crawl", Always)
    with crawl({"a.bin": CONTENT}) as server:
        with pytest.raises(TransferError, match=message):
            RemoteFile(f"{server.base}a.bin", RemoteSettings(patience=0.2))
        assert server.asked["a.bin"] > 3


ODD: dict[str, tuple[int, bytes, dict[str, str], str]] = {
    "loop": (302, b"", {"Location": "/loop"}, "HTTP 302 and redirects without end"),
    "ftp": (302, b"", {"Location": "ftp://127.0.0.1/x"}, "HTTP 302 and leads to no web server"),
    "file": (302, b"", {"Location": "file:///etc/passwd"}, "cannot be read: HTTP 302"),
    "nowhere": (302, b"", {}, "cannot be read: HTTP 302"),
    "short": (206, CONTENT[:99], {"Content-Range": "bytes 0-9/10"}, "Content-Range does not fit"),
    "beyond": (206, CONTENT[:99], {"Content-Range": "bytes 0-98/90"}, "Content-Range does not fit"),
    "no range": (206, CONTENT[:99], {"Content-Range": "all"}, "another range than the one requested"),
    "refused": (403, DENIED, {"Server": "CloudFront"}, "cannot be read: HTTP 403"),
    "plain 403": (403, b"no", {"Server": "nginx"}, "cannot be read: HTTP 403"),
    "throttled": (403, CDN_PAGE, {"Server": "CloudFront"}, r"HTTP 403 Forbidden \(throttled\?\)"),
    "law": (451, b"<h1>blocked</h1>", {}, "cannot be read: HTTP 451"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_answer_is_one_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status, body, headers, says = ODD[kind]

    def answer(handler: Any) -> None:
        handler._say(status, body, **{name.replace("-", "_"): value for name, value in headers.items()})

    monkeypatch.setattr("tests.sources.crawl_simulator._Handler.do_GET", answer)
    with crawl({}) as server, pytest.raises(InputError, match=says) as failed:
        RemoteFile(f"{server.base}a.bin", RemoteSettings(patience=0.02))
    assert len(str(failed.value).splitlines()) == 1 and str(failed.value).isprintable()


def test_the_words_of_a_server_are_shown_without_control_characters() -> None:
    error = urllib.error.HTTPError("http://h/", 418, "\x1b[31mred\x07", http.client.HTTPMessage(), None)
    assert str(transfers._failure(error, known=False)).isprintable()
    assert str(transfers.Broken(OSError("\x00\x1b"))).isprintable()


def test_a_failure_is_told_at_once_and_then_sparingly(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    slept: list[int] = []
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: slept.append(len(said)))
    monkeypatch.setattr(remote, "_on_wait", remote.sparingly(said.append))
    for name in "ab":
        with pytest.raises(TransferError, match="cannot be reached"):
            RemoteFile(f"http://127.0.0.1:9/{name}.bin", RemoteSettings(patience=60.0))
    assert slept[0] == 1 and len(slept) > 10  # before the first pause
    (line,) = said
    assert line.startswith("http://127.0.0.1:9/a.bin: ") and "it is asked again for up to 60 s" in line


def test_a_file_with_other_bytes_has_changed() -> None:
    with crawl({"a.bin": CONTENT}) as server:
        file = RemoteFile(f"{server.base}a.bin", PATIENT)
        assert file.read(1_000) == CONTENT[:1_000]
        file._drop()  # the transfer breaks
        server.files["a.bin"] = CONTENT[::-1]
        with pytest.raises(TransferError, match="it has changed"):
            read_all(file)


def test_a_mirror_takes_over_at_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{CC_BASE}crawl-data/a.bin"
    with crawl({}) as empty, crawl({"crawl-data/a.bin": CONTENT}, 2, ("cut", "reset")) as first:
        with crawl({"crawl-data/a.bin": CONTENT}) as second:
            bases = (empty.base, first.base, second.base)
            settings = RemoteSettings(patience=30.0, base=CC_BASE, mirrors=bases)
            file = RemoteFile(url, settings)
            assert read_all(file) == CONTENT and file.url == url
            monkeypatch.setattr(first, "fault", lambda path: "reset")
            assert read_all(RemoteFile(url, settings)) == CONTENT
            assert second.asked["crawl-data/a.bin"]
    with crawl({}) as empty, pytest.raises(InputError, match=r"crawl-data/a.bin' \(asked at .*cannot be read"):
        RemoteFile(url, RemoteSettings(patience=30.0, base=CC_BASE, mirrors=(empty.base, empty.base)))


def test_retry_after_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    answers = iter([transfers.Broken("HTTP 503", 17.0), transfers.Broken("HTTP 503")])

    def ask(*given: Any, **named: Any) -> Any:
        for failure in answers:
            raise failure
        raise transfers.EmptyFile

    monkeypatch.setattr(transfers, "ask", ask)
    assert RemoteFile("http://h/a", PATIENT).read(1) == b""
    assert slept[0] == 17.0 and slept[1] < 1


def wait_often(path: str, count: int) -> None:
    for _ in range(count):
        Pace(path, 100.0).wait()


def test_processes_share_one_rate(tmp_path: Path) -> None:
    start = time.monotonic()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=wait_often, args=(str(tmp_path / "pace"), 15)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert time.monotonic() - start >= 0.28  # the 30th request is sent 29 hundredths after the first


def test_without_a_file_a_process_keeps_its_rate_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    start = time.monotonic()
    wait_often("", 15)
    assert time.monotonic() - start >= 0.13 and not list(tmp_path.iterdir())


def test_a_pace_file_with_another_time_does_not_stop_the_job(tmp_path: Path) -> None:
    (tmp_path / "pace").write_bytes(b"\xff" * 7)
    Pace(str(tmp_path / "pace"), 1000.0).wait()
    import struct

    (tmp_path / "pace").write_bytes(struct.pack("<d", time.time() + 1e7))
    start = time.monotonic()
    Pace(str(tmp_path / "pace"), 1000.0).wait()
    assert time.monotonic() - start < 10


def test_a_store_that_breaks_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("/sim/a.bin", CONTENT)
    kind = type(fsspec.open("memory://sim/a.bin", "rb").open())
    read, rng = kind.read, random.Random(4)

    def flaky(file: Any, size: int = -1) -> bytes:
        if rng.random() < 0.4:
            raise OSError("the store is away")
        return read(file, size)

    monkeypatch.setattr(kind, "read", flaky)
    assert read_all(RemoteFile("memory://sim/a.bin", PATIENT)) == CONTENT
    with pytest.raises(MissingInputError):
        RemoteFile("memory://sim/none.bin", PATIENT)


def whole_builds(folder: Path, seeds: Sequence[int | None], *, rate: float) -> list[float]:
    """Builds of one crawl, by a server that misbehaves by each seed; all have one digest. Returns the requests/s."""
    names = [f"crawl-data/CC-TEST/{number}.warc.wat.gz" for number in range(3)]
    files = {name: wat(40, 40 * number) for number, name in enumerate(names)}
    files["crawl-data/CC-TEST/wat.paths.gz"] = gzip.compress("\n".join([*names, "crawl-data/none.wat.gz"]).encode())
    (folder / "queries.txt").write_text("picture\n")
    digests, rates = set(), []
    for seed in seeds:
        with crawl(files, seed) as server:
            out = folder / f"out-{seed}"
            given = ["--input", "cc:CC-TEST[0:3]", "--output", str(out), "--cc-host", server.base]
            given += ["--queries", str(folder / "queries.txt"), "--stages", "gather..balance", "--workers", "1"]
            assert build.main([*given, "--input-rate", str(rate)]) == build.DONE
            info = (out / "stages" / "balance" / "info.json").read_text()
            assert json.loads(info)["rows_out"] == 120
            digests.add(json.loads(info)["digest"])
            rates.append(most_in_a_second(server.times))
    assert len(digests) == 1
    return rates


def most_in_a_second(times: list[float]) -> float:
    """The most requests that came in any second."""
    ordered = sorted(times)
    return float(max(bisect.bisect_left(ordered, start + 1.0) - at for at, start in enumerate(ordered)))


def test_whole_builds_over_a_crawl(tmp_path: Path) -> None:
    rates = whole_builds(tmp_path, (None, 1), rate=40.0)
    assert max(rates) <= 40 + 4  # a second may begin with requests that waited for the lock


def main(seeds: int, builds: int) -> None:
    """More seeds and builds by hand."""
    remote.FIRST_PAUSE, remote.LONGEST_PAUSE = 0.0005, 0.002
    with tempfile.TemporaryDirectory() as folder:
        archive, path = wat(150), Path(folder) / "a.wat.gz"
        path.write_bytes(archive)
        expected, start = rows_of(str(path)), time.monotonic()
        requests = sum(check_seed(seed, archive, expected) for seed in range(seeds))
        print(f"{seeds} seeds, {requests} requests, all equal, {time.monotonic() - start:.0f} s", flush=True)
        if builds:
            rates = whole_builds(Path(folder), (None, *range(builds)), rate=40.0)
            print(f"{builds} whole builds, one digest, at most {max(rates):.1f} requests/s with a limit of 40")


if __name__ == "__main__":
    main(*([int(word) for word in sys.argv[1:]] or [SEEDS, 2]))
