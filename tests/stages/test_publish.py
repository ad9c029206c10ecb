"""publish: the files of the fetch that it reads, and its error if they are missing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.engine import storage
from pipeline.engine.work import StepFolder
from pipeline.stages.publish import RawImages


def test_images_come_from_where_the_fetch_put_them(tmp_path: Path) -> None:
    def folder(number: int) -> StepFolder:
        return StepFolder(str(tmp_path / f"images-{number}"), "fingerprint")

    for number in range(2):
        Path(folder(number).path).mkdir()
        for unit in range(3):
            data = bytes(range(100 * number, 100 * number + 10)) * (unit + 1)
            Path(folder(number).file(unit, "raw", 1)).write_bytes(data)
    old = RawImages(folder, pa.table({"raw_attempt": [1], "raw_unit": [2], "raw_part": [1], "image_offset": [0]}))
    old(0, memoryview(bytearray(1)))  # a repeated fetch writes other files with the same names
    raw = Path(folder(1).file(2, "raw", 1))
    data = raw.read_bytes()
    raw.unlink()
    raw.write_bytes(data[1:] + data[:1])
    places = {"raw_attempt": [1, 0, 1], "raw_unit": [2, 0, 0], "raw_part": [1, 1, 1]}
    rows = pa.table(places | {"image_offset": [28, 5, 7]})
    read = RawImages(folder, rows)
    found = []
    for row in range(2):
        place = bytearray(2)
        read(row, memoryview(place))
        found.append(bytes(place))
    assert found == [bytes([109, 100]), bytes([5, 6])]
    with pytest.raises(storage.DamagedError, match=r"00000-001.raw is damaged \(it is cut: 4 bytes should lie at 7\)"):
        read(2, memoryview(bytearray(4)))
