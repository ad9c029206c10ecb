"""Finished images outlive a killed fetch: they are kept in checksummed pieces, and are not asked for again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.fetching import downloader, pieces
from pipeline.fetching.downloader import fetch_rows
from pipeline.fetching.errors import Failure
from pipeline.fetching.options import FetchOptions
from pipeline.fetching.outcome import Outcome
from pipeline.fetching.picture import Picture
from pipeline.fetching.pieces import Pieces, opened
from tests.fetching.test_fetching_rows import OPTIONS, check, selected
from tests.places import ROOT
from tests.webserver import WebServer, picture

IMAGES = {0: b"first", 1: None, 2: b"third" * 20, 3: b""}


def outcome(image: bytes | None) -> Outcome:
    if image is None:
        failed = Outcome(image_sha256=b"s" * 32)
        failed.fail(Failure("tcp", "the body ended early", http_status=200))
        return failed
    return Outcome(
        http_status=200,
        final_url="http://a.example/é",
        image_sha256=b"o" * 32,
        picture=Picture(b"", 8, 9, 80, 90, "PNG", 2**64 - 1, bytes(range(192)), bytes(range(256)), 200),
        image_bytes=len(image),
        stored_sha256=b"j" * 32,
        stored_xxh3=2**63 + 1,
    )


def keep(path: Path, *, options: bytes = b"options") -> dict[int, Outcome]:
    """Keeps IMAGES in pieces of two rows."""
    outcomes = {row: outcome(image) for row, image in IMAGES.items()}
    with opened(str(path)) as file:
        kept = Pieces(file, asked=b"asked", options=options)
        for row, image in IMAGES.items():
            kept.add(row, outcomes[row], image)
            if row % 2:
                kept.write()
    return outcomes


def found(path: Path, *, asked: bytes = b"asked", options: bytes = b"options") -> dict[int, Outcome]:
    """The outcomes in the file. Each image must be whole."""
    with opened(str(path)) as file:
        kept = Pieces(file, asked=asked, options=options)
        for row, one in kept.found.items():
            if IMAGES[row] is not None:
                assert kept.image(one) == IMAGES[row]
        return kept.found


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    assert found(tmp_path / "new") == {}
    outcomes = keep(tmp_path / "pieces")
    assert found(tmp_path / "pieces") == outcomes
    assert found(tmp_path / "pieces") == outcomes  # reading changes nothing


def test_a_failure_under_other_options_is_not_taken(tmp_path: Path) -> None:
    outcomes = keep(tmp_path / "pieces")
    assert found(tmp_path / "pieces", options=b"other") == {row: outcomes[row] for row in (0, 2, 3)}
    assert found(tmp_path / "pieces", asked=b"other rows") == {}
    assert found(tmp_path / "pieces") == {}  # the file belongs to the other rows now


def test_a_cut_file_gives_the_pieces_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "pieces"
    outcomes = keep(path)
    whole = path.read_bytes()
    counts = []
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        left = found(path)
        assert left == {row: outcomes[row] for row in sorted(left)}
        counts.append(len(left))
    assert counts == sorted(counts) and set(counts) == {0, 2}


def test_a_flipped_bit_costs_its_piece_and_no_more_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "pieces"
    outcomes = keep(path)
    whole, rng = path.read_bytes(), random.Random(0)
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        left = found(path)
        assert left == {row: outcomes[row] for row in sorted(left)} and len(left) in (0, 2)


def test_rows_wait_for_their_piece_by_number_bytes_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "ROWS", 3)
    monkeypatch.setattr(pieces, "LARGEST", 1000)

    def add(image: bytes, times: int) -> int:
        path = tmp_path / f"{len(image)} {times}"
        with opened(str(path)) as file:
            kept = Pieces(file, asked=b"", options=b"")
            for row in range(times):
                kept.add(row, outcome(image), image)
            kept.write_old()
            with opened(str(path)) as again:
                return len(Pieces(again, asked=b"", options=b"").found)

    assert add(b"small", 2) == 0
    assert add(b"small", 4) == 3
    assert add(b"large" * 200, 2) == 2
    monkeypatch.setattr(pieces, "OLDEST_S", 0.0)
    monkeypatch.setattr(pieces, "SYNC_S", 0.0)
    assert add(b"small", 1) == 1


def test_a_process_that_was_left_over_cannot_write_into_the_pieces_of_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "pieces"
    outcomes = keep(path)
    with opened(str(path)) as old:  # its process is stopped here
        left = Pieces(old, asked=b"asked", options=b"options")
        with opened(str(path)) as new:
            kept = Pieces(new, asked=b"asked", options=b"options")
            assert kept.found == outcomes
            kept.add(6, outcome(b"new"), b"new")
            kept.write()
            left.add(7, outcome(b"late"), b"late")
            left.write()
    with opened(str(path)) as file:
        assert set(Pieces(file, asked=b"asked", options=b"options").found) == {*outcomes, 6}


def test_a_piece_of_a_run_that_has_ended_is_not_written(tmp_path: Path) -> None:
    def confirm() -> None:
        raise RuntimeError("ended")

    with opened(str(tmp_path / "pieces")) as file:
        kept = Pieces(file, asked=b"", options=b"", confirm=confirm)
        kept.add(0, outcome(b"late"), b"late")
        with pytest.raises(RuntimeError, match="ended"):
            kept.write()
    assert found(tmp_path / "pieces", asked=b"") == {}


KILLED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in the background inherits it as ignored
from tests.fetching.test_fetching_pieces import fetch
fetch(sys.argv[1], sys.argv[2])
"""


def fetch(base: str, folder: str) -> None:
    """Fetches 160 images, with pieces of 10 rows."""
    pieces.ROWS = 10
    rows = selected([f"{base}/img/{n}.jpg" for n in range(160)])
    options = FetchOptions(**{**OPTIONS.__dict__, "threads": 4, "delay_s": 0.005})
    out = fetch_rows(rows, options=options, raw_path=f"{folder}/raw", pieces_path=f"{folder}/pieces")
    os.unlink(f"{folder}/pieces")
    check(rows, out, Path(folder) / "raw")
    assert set(out["status"].to_pylist()) == {"ok"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_fetch_asks_for_little_again(how: signal.Signals, tmp_path: Path) -> None:
    images = {f"{n}.jpg": picture(n % 7) for n in range(160)}
    with WebServer(images) as server:
        for kill in (60, 110):
            process = subprocess.Popen(
                [sys.executable, "-c", KILLED, server.base, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
            )
            while len(server.hits) < kill and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(how)
            assert process.wait(60) != 0
        fetch(server.base, str(tmp_path))
        downloader.close_decoders()
        asked = [server.hits[f"/img/{name}"] for name in images]
    assert min(asked) == 1
    assert sum(asked) - len(asked) <= 2 * (10 + 3 * 4)  # of each kill: a piece, and what waited for the decoder
