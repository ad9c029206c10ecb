"""Inputs that are damaged are named with what was lost. An input of which no byte can be understood ends a run."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import build, inspect_shards
from pipeline.engine.cli import DONE, MISSING
from pipeline.engine.ledger import Ledger, damaged_inputs, lines_on_inputs
from pipeline.sources import web_archives
from tests.archives import wat_record
from tests.without_beam import without_beam  # noqa: F401

HTML = b"<!DOCTYPE html>\n<html><body>503 Slow down</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"
RANDOM = random.Random(0).randbytes(2000)
TEXT = b"This is no archive.\n" * 50

# Files of which no byte can be understood: the name, the content, and what the message says of it.
UNREADABLE = [
    ("a.warc.gz", RANDOM, "no record of a web archive"),
    ("a.warc.gz", b"", "it is empty"),
    ("a.warc.gz", gzip.compress(b""), "no record of a web archive"),
    ("a.warc.gz", gzip.compress(HTML), "it is a web page"),
    ("a.warc", TEXT, "no record of a web archive"),
    ("a.warc", bytes(3000), "begins with zeros"),
    ("a.wat.gz", HTML, "it is a web page"),
    ("a.wat.gz", POINTER, "git lfs pull"),
    ("a.warc.zst", RANDOM, "no record of a web archive"),
    ("a.arc.gz", RANDOM, "no record of a web archive"),
    ("a.wacz", HTML, "no readable WACZ"),
    ("a.parquet", HTML, "it is a web page"),
    ("a.parquet", POINTER, "git lfs pull"),
    ("a.parquet", b"", "it is empty"),
    ("a.parquet", b"PAR1" + RANDOM, "cut or damaged?"),
    ("a.csv", HTML, "it is a web page"),
    ("a.csv", b"", "is empty"),
    ("a.csv.gz", RANDOM, "cannot be read as a table"),
    ("a.csv.zst", RANDOM, "cannot be read as a table"),
    ("a.tsv", POINTER, "git lfs pull"),
    ("a.jsonl", HTML, "it is a web page"),
    ("a.jsonl", b"", "it is empty"),
    ("a.jsonl.gz", RANDOM, "cannot be read as JSON"),
]


def arguments(folder: Path, *more: str) -> list[str]:
    (folder / "queries.txt").write_text("picture\n")
    paths = ["--queries", str(folder / "queries.txt"), "--output", str(folder / "out"), "--stages", "gather..balance"]
    return [*paths, "--workers", "1", *more]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The base URL of a web server with the files of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def good_table(folder: Path) -> str:
    (folder / "good.csv").write_text("url,text\nhttp://x.example/1.jpg,a picture\n")
    return str(folder / "good.csv")


def info(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert inspect_shards.main(["info", str(folder / "out"), "--json"]) == DONE
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("name", "data", "words"), UNREADABLE)
def test_an_unreadable_input_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    given = arguments(tmp_path, "--input", str(tmp_path / name), good_table(tmp_path))
    assert build.main(given) == MISSING
    message = capsys.readouterr().err
    assert name in message and words in message and "--skip-bad-inputs" in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_beam")
def test_skipped_inputs_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (name, data, _) in enumerate(UNREADABLE):
        (tmp_path / f"{number}{name}").write_bytes(data)
    paths = sorted(str(path) for path in tmp_path.glob("[0-9]*"))
    given = arguments(tmp_path, "--input", good_table(tmp_path), *paths, "--skip-bad-inputs")
    assert build.main(given) == DONE
    summary = capsys.readouterr().out
    count = len(UNREADABLE)
    assert f"damaged inputs: {count} of {count + 1}" in summary and f"and {count - 10} more" in summary
    (gather,) = (row for row in info(tmp_path, capsys)["stages"] if row["stage"] == "gather")
    assert gather["rows_out"] == 1 and gather["records_dropped"]["unreadable_input"] == count
    named = {item["input"]: item for item in gather["damaged_inputs"]["inputs"]}
    assert set(named) == {f"{number}{name}" for number, (name, *_) in enumerate(UNREADABLE)}
    assert all(item["lost"]["unreadable_input"] == 1 for item in named.values())


@pytest.mark.usefixtures("without_beam")
def test_partly_damaged_inputs_are_named_with_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [gzip.compress(wat_record(number)) for number in range(20)]
    whole = b"".join(members)
    (tmp_path / "whole.wat.gz").write_bytes(whole)
    (tmp_path / "cut.wat.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut_between.wat.gz").write_bytes(b"".join(members[:7])[:-1])
    damaged = bytearray(whole)
    damaged[len(b"".join(members[:3])) + 40] ^= 255
    (tmp_path / "damaged.wat.gz").write_bytes(damaged)
    (tmp_path / "one.wat.gz").write_bytes(members[0][:-50])  # its header can be read
    lines = "url,text\n" + "".join(f"http://x.example/{number}.jpg,a picture\n" for number in range(9))
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(lines.encode())[:-9])
    (tmp_path / "wide.csv").write_text(f"{lines}http://x.example/9.jpg,a picture,too,wide\n")
    assert (
        build.main(arguments(tmp_path, "--input", *map(str, tmp_path.glob("*.*z")), str(tmp_path / "wide.csv"))) == DONE
    )
    assert "damaged inputs: 6 of 7" in capsys.readouterr().out
    (gather,) = (row for row in info(tmp_path, capsys)["stages"] if row["stage"] == "gather")
    named = {item["input"]: (item["lost"], item["cut"]) for item in gather["damaged_inputs"]["inputs"]}
    assert named == {
        "cut.wat.gz": ({"cut_record": 1}, True),
        "cut_between.wat.gz": ({}, True),  # its last record is whole
        "one.wat.gz": ({"cut_record": 1}, True),
        "damaged.wat.gz": ({"bad_gzip": 1}, False),
        "cut.csv.gz": ({"table_rest_unreadable": 1}, False),
        "wide.csv": ({"bad_table_row": 1}, False),
    }


def test_an_input_that_no_check_saw_ends_the_run_and_the_flag_lets_it_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_archives, "MOST_LOCAL", 0)
    (tmp_path / "a.warc.gz").write_bytes(RANDOM)
    given = arguments(tmp_path, "--input", str(tmp_path / "a.warc.gz"), good_table(tmp_path))
    assert build.main(given) == MISSING
    message = capsys.readouterr().err
    assert "no byte of 'a.warc.gz' can be understood" in message and "--skip-bad-inputs" in message
    assert build.main([*given, "--skip-bad-inputs"]) == DONE
    assert "a.warc.gz: bad_header 1, unreadable_input 1 lost" in capsys.readouterr().out


@pytest.mark.usefixtures("without_beam")
def test_a_missing_url_of_a_list_can_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.wat.gz").write_bytes(gzip.compress(wat_record(1)))
    with served(tmp_path) as base:
        (tmp_path / "list").write_text(f"{base}/a.wat.gz\n{base}/gone.wat.gz\n{base}/gone.parquet\n")
        given = arguments(tmp_path, "--input", f"@{tmp_path}/list")
        assert build.main(given) == MISSING
        assert "gone." in capsys.readouterr().err
        assert build.main([*given, "--skip-bad-inputs"]) == DONE
    summary = capsys.readouterr().out
    assert "damaged inputs: 2 of 3" in summary and "gone.wat.gz: unreadable_input 1 lost" in summary


def test_many_damaged_inputs_are_bounded_and_the_worst_stand_first() -> None:
    ledgers = []
    for number in range(1000):
        ledger = Ledger()
        ledger.lose("bad_gzip", number)
        ledgers += [(f"{number:04}.gz", ledger)] * 2
    found = damaged_inputs(ledgers)
    assert (found["count"], found["of"], len(found["inputs"])) == (999, 1000, 100)
    assert found["inputs"][0] == {"input": "0999.gz", "lost": {"bad_gzip": 1998}, "cut": False}
    assert lines_on_inputs(found)[-1] == "  and 989 more" and damaged_inputs([("a", Ledger())]) == {}
