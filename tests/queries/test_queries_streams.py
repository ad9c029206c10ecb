"""Pieces of large files: every record is read once, by any worker, and damage is counted."""

from __future__ import annotations

import bz2
import gzip
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queries import streams
from queries.streams import Piece

Read = Callable[[Piece, Counter], Iterator[bytes]]


def by_page(piece: Piece, tally: Counter) -> Iterator[bytes]:
    return streams.records(piece, b"<page>", tally)


def by_line(piece: Piece, tally: Counter) -> Iterator[bytes]:
    return (line for block in streams.line_blocks(piece, tally) for line in block.split(b"\n"))


def read_in_steps(path: Path, step: int, packing: str, read: Read) -> list[bytes]:
    size = path.stat().st_size
    found: list[bytes] = []
    for start in range(0, size, step):
        found += read(Piece(str(path), start, min(start + step, size), packing), Counter())
    return [record for record in found if record]


@settings(deadline=None)
@given(
    parts=st.lists(st.sampled_from([b"a", b"<page>", b"\n", b"<pa", b"bb\n", b"ge>"]), max_size=60),
    step=st.integers(1, 9),
    chunk=st.integers(1, 8),
)
def test_pieces_of_plain_text_hold_every_record_once(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], step: int, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("plain") / "text"
    path.write_bytes(b"".join(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_CHUNK", chunk)
        for read, delimiter in ((by_page, b"<page>"), (by_line, b"\n")):
            wanted = [record for record in path.read_bytes().split(delimiter) if record]
            assert read_in_steps(path, step, "none", read) == wanted


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A bz2 file of two streams with several blocks each, and its contents."""
    random.seed(1)
    words = [bytes(random.choices(b"abcdefgh", k=5)) for _ in range(2000)]
    lines = [b" ".join(random.choices(words, k=8)) + (b"<page>" if n % 7 == 0 else b"") for n in range(16_000)]
    data = b"\n".join(lines)
    half = len(data) // 2
    path = tmp_path_factory.mktemp("bz2") / "dump.bz2"
    path.write_bytes(bz2.compress(data[:half], 1) + bz2.compress(data[half:], 1))
    return path, data


@pytest.mark.parametrize("step", [1 << 30, 100_000, 20_011, 3_001])
def test_bz2_is_read_block_by_block(blocks: tuple[Path, bytes], step: int) -> None:
    path, data = blocks
    for read, delimiter in ((by_page, b"<page>"), (by_line, b"\n")):
        if step > 3_001 or delimiter == b"\n":
            wanted = [record for record in data.split(delimiter) if record]
            assert read_in_steps(path, step, "bz2", read) == wanted


def test_a_cut_bz2_keeps_its_whole_blocks(blocks: tuple[Path, bytes], tmp_path: Path) -> None:
    path, data = blocks
    cut = tmp_path / "cut.bz2"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    tally: Counter[str] = Counter()
    found = b"".join(chunk for chunk, _ in streams.chunks(Piece(str(cut), 0, 1 << 40, "bz2"), tally))
    assert data.startswith(found) and len(found) > len(data) // 2
    assert tally == {"bz2_truncated": 1}


def test_a_damaged_block_costs_itself_alone(blocks: tuple[Path, bytes], tmp_path: Path) -> None:
    path, data = blocks
    spoiled = bytearray(path.read_bytes())
    spoiled[len(spoiled) // 3] ^= 0xFF
    bad = tmp_path / "bad.bz2"
    bad.write_bytes(spoiled)
    tally: Counter[str] = Counter()
    found = b"".join(chunk for chunk, _ in streams.chunks(Piece(str(bad), 0, 1 << 40, "bz2"), tally))
    assert tally == {"bz2_block_damaged": 1}
    assert len(data) - 101_000 < len(found) < len(data)


def test_gzip_members_and_its_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    for data, wanted, damage in (
        (gzip.compress(b"a\nb\n") + gzip.compress(b"c\n"), [b"a", b"b", b"c"], {}),
        (gzip.compress(b"a\n" * 9)[:-6], [b"a"] * 9, {"gzip_truncated": 1}),
        (gzip.compress(b"a\n") + b"no gzip", [b"a"], {"gzip_damaged": 1}),
    ):
        path.write_bytes(data)
        tally: Counter[str] = Counter()
        lines = [line for piece in streams.pieces(str(path)) for line in by_line(piece, tally) if line]
        assert (lines, dict(tally)) == (wanted, damage)


def test_pieces_depend_on_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PIECE", 10)
    path = tmp_path / "text"
    path.write_bytes(b"x" * 95)
    assert [(piece.start, piece.end) for piece in streams.pieces(str(path))] == [(0, 40), (40, 80), (80, 95)]
    path.write_text("als UTF-16\n" * 20, encoding="utf-16")
    (piece,) = streams.pieces(str(path))
    assert [line for line in by_line(piece, Counter()) if line] == [b"als UTF-16"] * 20
    path.write_bytes(b"")
    assert streams.pieces(str(path)) == []
