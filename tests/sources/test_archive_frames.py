"""zstd and lz4 archives: damage loses its own record (or frame). The rest of the file is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.ledger import Ledger
from pipeline.sources import frames
from pipeline.sources.archive import read_at, read_records
from pipeline.sources.warc import read_warc
from tests.archives import Stream, html_record, record
from tests.fuzzing import SEED, cases

zstandard = pytest.importorskip("zstandard")
lz4 = pytest.importorskip("lz4.frame")

GOOD = 12
PACK: dict[str, Callable[[bytes], bytes]] = {
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "lz4": lambda data: lz4.compress(data, content_checksum=True, block_size=lz4.BLOCKSIZE_MAX64KB),
}


@pytest.fixture(params=PACK)
def pack(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    return PACK[request.param]


def reason(pack: Callable) -> str:
    return "bad_zstd" if pack is PACK["zstd"] else "bad_lz4"


def urls(source: Any) -> tuple[list[str], Ledger]:
    """The URLs of the records, and the ledger."""
    ledger = Ledger()
    return [found.url for found in read_records(source, ledger=ledger)], ledger


def url(number: int) -> str:
    return f"https://site{number}.example/page.html"


def noisy(number: int, size: int = 2000) -> bytes:
    """A record that hardly compresses."""
    return record(random.Random(number).randbytes(size), url=url(number))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :]


def test_every_record_of_sound_files_is_read_and_found_again(pack: Callable, tmp_path: Path) -> None:
    records = [html_record(number) for number in range(GOOD)]
    skippable = b"\x5a\x2a\x4d\x18\x05\0\0\0hello"
    for data in (
        b"".join(map(pack, records)),
        pack(b"".join(records)),
        skippable + skippable.join(map(pack, records)) + skippable,
        pack(b"") + b"".join(map(pack, records)),
    ):
        path = tmp_path / "x.warc"
        path.write_bytes(data)
        for source in (str(path), Stream(data, 77)):
            found, ledger = urls(source)
            assert found == [url(number) for number in range(GOOD)]
            assert not ledger.records_dropped and not ledger.notes
        for again in read_records(str(path), ledger=Ledger()):
            assert (read_at(str(path), again.offset) or again).url == again.url


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_damaged_frame_loses_itself_alone(pack: Callable, place: str, tmp_path: Path) -> None:
    packed = [pack(noisy(number)) for number in range(GOOD)]
    bad = {"first": 0, "middle": GOOD // 2, "last": GOOD - 1}[place]
    others = [url(number) for number in range(GOOD) if number != bad]
    path = tmp_path / "x.warc"
    size = len(packed[bad])
    for at in (*range(30), size // 2, *range(size - 8, size)):
        damaged = [*packed[:bad], flipped(packed[bad], at), *packed[bad + 1 :]]
        path.write_bytes(b"".join(damaged))
        for source in (str(path), Stream(b"".join(damaged), 333)):
            if bad == 0 and at < 20:  # then the format may not be recognised
                continue
            found, ledger = urls(source)
            if url(bad) in found:  # a bit that no reader needs, or a bit after the record
                assert sum(ledger.records_dropped.values()) <= 1 and len(found) == GOOD, at
                continue
            assert found == others, at
            assert sum(ledger.records_dropped.values()) == 1, (at, ledger)
            assert set(ledger.records_dropped) <= {reason(pack), "cut_record"}
            assert ledger.notes["cut_file"] == (place == "last"), at


@pytest.mark.parametrize("how", ["flipped", "zeros", "junk between", "piece gone", "piece twice"])
def test_what_lies_before_and_behind_damage_is_read(pack: Callable, how: str, tmp_path: Path) -> None:
    packed = [pack(noisy(number)) for number in range(GOOD)]
    middle = packed[5]
    damaged = {
        "flipped": flipped(middle, 900),
        "zeros": middle[:500] + bytes(700) + middle[1200:],
        "junk between": random.Random(1).randbytes(5000),
        "piece gone": middle[:900] + middle[950:],
        "piece twice": middle[:900] + middle[800:],
    }[how]
    path = tmp_path / "x.warc"
    path.write_bytes(b"".join([*packed[:5], damaged, *packed[6:]]))
    found, ledger = urls(str(path))
    assert found == [url(number) for number in range(GOOD) if number != 5]
    assert ledger.records_dropped == {reason(pack): 1} and not ledger.notes
    for again in read_records(str(path), ledger=Ledger()):
        there = read_at(str(path), again.offset)
        assert there is not None and there.content == again.content


def test_one_frame_gives_what_lies_before_the_damage(pack: Callable, tmp_path: Path) -> None:
    count = 400
    data = pack(b"".join(noisy(number) for number in range(count)))
    path = tmp_path / "x.warc"
    for gap in (bytes(3000), b"\xff" * 3000, random.Random(2).randbytes(200_000)):
        path.write_bytes(data[: len(data) // 2] + gap + data[len(data) // 2 + len(gap) :])
        found, ledger = urls(str(path))
        assert found[:150] == [url(number) for number in range(150)]
        assert sum(ledger.records_dropped.values()) >= 1


def test_blocks_of_4_mib_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.warc.lz4"
    path.write_bytes(lz4.compress(b"".join(noisy(n, 10_000) for n in range(600)), block_size=lz4.BLOCKSIZE_MAX4MB))
    for source in (str(path), Stream(path.read_bytes(), 99_999)):
        found, ledger = urls(source)
        assert len(found) == 600 and not ledger.records_dropped


def test_a_cut_file_gives_its_whole_records(pack: Callable, tmp_path: Path) -> None:
    packed = [pack(noisy(number)) for number in range(4)]
    data, path = b"".join(packed), tmp_path / "x.warc"
    start = len(b"".join(packed[:3]))
    for cut in (start + 1, start + 3, start + 10, start + 900, len(data) - 5, len(data) - 1):
        path.write_bytes(data[:cut])
        found, ledger = urls(str(path))
        assert found[:3] == [url(number) for number in range(3)] and len(found) <= 4
        assert ledger.notes["cut_file"] == 1, cut
    path.write_bytes(data[:start])
    assert urls(str(path))[1].notes["cut_file"] == 0


def test_a_wrong_length_of_a_block_swallows_nothing_behind_it(pack: Callable, tmp_path: Path) -> None:
    packed = [pack(noisy(number)) for number in range(GOOD)]
    head = 7 if pack is PACK["lz4"] else zstandard.frame_header_size(packed[3])
    longer = packed[3][:head] + b"\xff\xff\x01\x80"[:4] + packed[3][head + 4 :]
    path = tmp_path / "x.warc"
    path.write_bytes(b"".join([*packed[:3], longer, *packed[4:]]))
    found, ledger = urls(str(path))
    assert found == [url(number) for number in range(GOOD) if number != 3]
    assert ledger.records_dropped == {reason(pack): 1}


def test_damage_fails_no_stage(pack: Callable, tmp_path: Path) -> None:
    packed = [pack(html_record(number)) for number in range(GOOD)]
    path = tmp_path / "x.warc"
    path.write_bytes(b"".join([*packed[:5], packed[5][:-9] + b"123456789", *packed[6:]]))
    ledger = Ledger()
    pages = [page for batch in read_warc(str(path), ledger=ledger) for page in batch["page_url"].to_pylist()]
    assert pages == [url(number) for number in range(GOOD) if number != 5]
    assert ledger.records_dropped == {reason(pack): 1}


def test_what_comes_out_of_a_read_is_bounded(pack: Callable) -> None:
    bomb = pack(bytes(64 << 20))
    content = frames.Frames(frames.Whole(bomb), frames.format_of(bomb[: 256 << 10]) or frames.ZSTD)
    sizes = []
    while part := content.read():
        sizes.append(len(part))
    assert sum(sizes) == 64 << 20 and max(sizes) <= frames.HELD + (4 << 20)


def test_any_edit_fails_nothing_and_keeps_the_others(pack: Callable, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    packed = [pack(noisy(number, 300)) for number in range(6)]
    for _ in cases(400):
        number = chance.randrange(1, 6)
        bad = bytearray(packed[number])
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(bad))
            bad[at : at + chance.choice((0, 1, 1, 1, 30))] = chance.randbytes(chance.choice((0, 1, 1, 4)))
        found, ledger = urls(Stream(b"".join([*packed[:number], bytes(bad), *packed[number + 1 :]]), 500))
        others = [url(other) for other in range(6) if other != number]
        assert [one for one in found if one in others] == others, (SEED, bytes(bad))
        assert len(found) + sum(ledger.records_dropped.values()) in (5, 6, 7), (SEED, bytes(bad))
