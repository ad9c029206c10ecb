"""Tables of scores: how they are joined, and which are refused. The stages with them are in tests/test_curation.py."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.engine.cli import UsageError
from pipeline.stages.scores import OWN, TABLES, Scores, column_names, read_scores

KEYS = [f"{number:02x}" * 15 + "00" for number in (7, 3, 255, 16)]  # the last byte is zero
UIDS = pa.array([bytes.fromhex(key) for key in KEYS], pa.binary(16))


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_tables_are_joined_by_key(tmp_path: Path) -> None:
    halves = pa.array([0.5, 0.25], pa.float16())
    some = parquet(tmp_path / "a.parquet", key=KEYS[:2], clip_score=halves, note=["x", "y"])
    more = parquet(tmp_path / "b.parquet", uid=UIDS.slice(2), clip_score=pa.array([1, 2]), width=[1, 2])
    text = tmp_path / "c.csv.gz"
    text.write_bytes(gzip.compress(f"nsfw,key,ok\n0.5,{KEYS[0].upper()},true\n,{KEYS[3]},false\n".encode()))
    scores = read_scores([some, more, str(text)])
    assert scores.columns.column_names == ["clip_score", "nsfw", "ok"]  # no text, no column of the set
    stranger = pa.array([b"\xfe" * 16], pa.binary(16))
    found = scores.of(pa.chunked_array([UIDS, stranger])).to_pydict()
    assert found == {
        "clip_score": [0.5, 0.25, 1.0, 2.0, None],
        "nsfw": [0.5, None, None, None, None],
        "ok": [True, None, None, False, None],
    }
    scores.write(str(tmp_path / "scores.arrow"))
    again = Scores.load(str(tmp_path / "scores.arrow"))
    assert again.columns.equals(scores.columns) and np.array_equal(again.uids, scores.uids)
    assert again.of(UIDS.slice(1, 2)).to_pydict()["clip_score"] == [0.25, 1.0]
    assert column_names([some, more, str(text)]) == sorted([*OWN, "clip_score", "note", "nsfw", "ok"])


def test_no_rows_and_the_digest(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", key=pa.array([], pa.string()), clip_score=pa.array([], pa.float32()))
    scores = read_scores([path])
    assert scores.of(UIDS).to_pydict() == {"clip_score": [None] * 4}
    other = parquet(tmp_path / "b.parquet", key=KEYS, clip_score=[1.0] * 4)
    assert TABLES.digest([path, other]) == TABLES.digest([other, path]) != TABLES.digest([path])
    assert TABLES.digest([]) is None


def test_a_column_of_32_bits_stays_one(tmp_path: Path) -> None:
    numbers = pa.array([1, 2, 3, 4])
    path = parquet(tmp_path / "a.parquet", key=KEYS, s=numbers.cast(pa.float32()), n=numbers.cast(pa.int8()))
    assert read_scores([path]).columns.schema.types == [pa.int8(), pa.float32()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no Parquet or CSV table"),
        (b"PAR1", "is no Parquet or CSV table"),
        (b"clip_score\n0.3\n", "has no column 'key' or 'uid' (columns: clip_score)"),
        (f"key,s\n{KEYS[0]},1\n{KEYS[1]},1\n{KEYS[0]},2\n".encode(), f"the key {KEYS[0]} comes twice (rows 1 and 3)"),
        (f"key,s\n{KEYS[0]},nan\n".encode(), f"s of the key {KEYS[0]} is nan: must be finite"),
        (f"key,s\n{KEYS[0]},-inf\n".encode(), "is -inf: must be finite"),
        (f"key,s\n{KEYS[0][:-1]},1\n".encode(), "(row 1) is no key of a set"),
        (b"key,s\n00000001,1\n", "the key '00000001' (row 1) is no key of a set"),
        (f"key,s\n{KEYS[0]},1\n,2\n".encode(), "(row 2) is no key of a set"),
        (f"key,s\n{KEYS[0]},high\n".encode(), "has no column of numbers"),
        (f"key,s\n{KEYS[0]},1,2\n".encode(), "is no Parquet or CSV table"),
    ],
)
def test_bad_tables(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_scores([str(path)])
    assert message in str(caught.value) and str(caught.value).startswith(f"--scores {path}: ")
    assert "\n" not in str(caught.value)


def test_tables_that_contradict_each_other(tmp_path: Path) -> None:
    one = parquet(tmp_path / "a.parquet", key=KEYS, s=[1.0] * 4)
    two = parquet(tmp_path / "b.parquet", key=KEYS[3:], s=[1.0])
    with pytest.raises(UsageError, match=f"b.parquet: the key {KEYS[3]} has a s in .*a.parquet too"):
        read_scores([one, two])
    flags = parquet(tmp_path / "c.parquet", key=["0" * 32], s=[True])
    with pytest.raises(UsageError, match="c.parquet: s has other types of values in"):
        read_scores([one, flags])
    numbers = parquet(tmp_path / "d.parquet", key=[1, 2], s=[1.0, 2.0])
    with pytest.raises(UsageError, match="the keys are of type int64"):
        read_scores([numbers])
