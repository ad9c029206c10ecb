"""The tar writer writes USTAR with equal bytes. The walker accepts nothing else."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile

import numpy as np
import pytest

from pipeline.dataset.tars import BLOCK, FLUSH, MOST_BYTES, TarFault, TarWriter, header, headers, padding, walk

FILES = [(b"a.jpg", b"x" * 513), (b"a.json", b"{}"), (b"a.txt", b""), (b"b.jpg", bytes(1024))]


def add(writer: TarWriter, name: bytes, data: bytes) -> int:
    """Appends a member and reads its data into the buffer. Returns its offset."""
    at = writer.size + BLOCK
    writer.append(header(name, len(data)), len(data))[:] = data
    writer.append(padding(len(data)))
    return at


def tar(members: list[tuple[bytes, bytes]] = FILES) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out)
    for name, data in members:
        add(writer, name, data)
    writer.close()
    assert writer.size == len(out.getvalue())
    assert writer.sha256() == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue()


def test_python_reads_it_and_finds_nothing_of_this_machine() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar()), mode="r:") as found:
        members = found.getmembers()
        assert [(m.name.encode(), found.extractfile(m).read()) for m in members] == FILES  # type: ignore[union-attr]
    for m in members:
        assert (m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) == (0, 0, 0, "", "", 0o644, b"0")


def test_it_is_what_python_writes_as_ustar() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as theirs:
        for name, data in FILES:
            member = tarfile.TarInfo(name.decode())
            member.size = len(data)
            theirs.addfile(member, io.BytesIO(data))
    ours = tar()
    assert len(ours) % BLOCK == 0 and out.getvalue().startswith(ours)  # Python's file has zeros up to 10 KiB at its end


def test_the_longest_name_and_the_largest_member() -> None:
    assert header(b"n" * 99, 1)[:100] == b"n" * 99 + b"\0"
    assert header(b"n", 8**11 - 1)[124:136] == b"7" * 11 + b"\0"
    assert headers(np.full((1, 99), 97, np.uint8), np.array([8**11 - 1])).tobytes() == header(b"a" * 99, 8**11 - 1)


def test_offsets_lead_to_the_data() -> None:
    out = io.BytesIO()
    writer = TarWriter(out)
    places = [(add(writer, name, data), len(data)) for name, data in FILES]
    writer.close()
    assert [out.getvalue()[at : at + size] for at, size in places] == [data for _, data in FILES]
    assert [(m.offset, m.size) for m in walk(out.getvalue())] == places


def test_many_members_are_written_in_pieces() -> None:
    members = [(f"{n:04}.bin".encode(), bytes([n % 256]) * (n * 37 % 9000)) for n in range(700)]
    data = tar(members)
    found = [(m.name.encode(), data[m.offset : m.offset + m.size]) for m in walk(data)]
    assert found == members


def test_a_member_may_be_larger_than_the_buffer() -> None:
    members = [(b"a", b"x" * 700), (b"b", b"y" * (FLUSH + 5)), (b"c", b"z" * (2 * FLUSH)), (b"d", b"")]
    data = tar(members)
    assert [(m.name.encode(), data[m.offset : m.offset + m.size]) for m in walk(data)] == members


def test_what_a_file_does_not_take_at_once_is_written_again() -> None:
    class Slow(io.BytesIO):
        def write(self, data: memoryview) -> int:  # type: ignore[override]
            return super().write(data[:1000])

    out = Slow()
    writer = TarWriter(out)
    for name, data in FILES:
        add(writer, name, data)
    writer.close()
    assert out.getvalue() == tar()


def test_headers_of_many_are_the_headers_of_each() -> None:
    sizes = [0, 1, 7, 8, 511, 512, 27_123, 8**7 - 1, 8**10, MOST_BYTES]
    names = [f"{n:05}{'abcXYZ/~é'.encode()[n % 9]:02x}.jpg".encode() for n in range(len(sizes))]
    found = headers(np.array([list(name) for name in names], np.uint8), np.array(sizes, np.int64))
    assert [row.tobytes() for row in found] == list(map(header, names, sizes))
    assert headers(np.zeros((0, 4), np.uint8), np.zeros(0, np.int64)).shape == (0, BLOCK)
    for width, size in ((0, 1), (100, 1), (1, MOST_BYTES + 1)):
        with pytest.raises(ValueError, match="bytes"):
            headers(np.full((1, width), 97, np.uint8), np.array([size]))


@pytest.mark.parametrize(("name", "size"), [(b"", 1), (b"n" * 100, 1), (b"n", MOST_BYTES + 1)])
def test_what_the_format_cannot_hold_is_refused(name: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        header(name, size)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (3 * BLOCK, "the member 'a' is cut"),
        (3 * BLOCK + 88, "the member 'a' is cut"),
        (4 * BLOCK, "the file ends without the end of the archive"),
        (4 * BLOCK + 100, "the file ends without the end of the archive"),
    ],
)
def test_a_cut_is_named(size: int, reason: str) -> None:
    with pytest.raises(TarFault, match=reason):
        list(walk(tar([(b"a", b"x" * 1100)])[:size]))


def test_every_cut_is_noticed() -> None:
    data = tar()
    for length in range(0, len(data), 64):
        with pytest.raises(TarFault):
            list(walk(data[:length]))


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    data, rng = tar(), random.Random(1)
    for _ in range(300):
        bad = bytearray(data)
        at = rng.randrange(BLOCK)
        bad[at] ^= 1 << rng.randrange(8)
        with pytest.raises(TarFault) as fault:
            list(walk(bad))
        assert fault.value.offset == 0


def test_members_before_the_fault_are_given() -> None:
    data = bytearray(tar())
    third = list(walk(data))[2]
    data[third.offset - BLOCK] ^= 1
    names = []
    with pytest.raises(TarFault, match="broken header"):
        for member in walk(data):
            names.append(member.name)
    assert names == ["a.jpg", "a.json"]


def test_nothing_may_follow_the_end() -> None:
    with pytest.raises(TarFault, match="end as it should"):
        list(walk(tar() + b"more"))
