"""The name of the writer in Parquet files: it is ours for any data, and nothing else changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.engine import parquet_footer, storage

NAME = parquet_footer.writer().decode()
TABLES = {
    "plain": pa.table({"a": [1, 2, None], "b": ["x", "", "é"], "c": [[1], [], None]}),
    "empty": pa.table({"a": pa.array([], pa.string())}),
    "no column": pa.table({}),
    "hostile": pa.table({NAME: [NAME, chr(len(NAME)) + NAME, "\x18" + chr(len(NAME)) + NAME]}),
    "many columns": pa.table({f"c{n}": [n] for n in range(300)}),
    "metadata": pa.table({"a": [1]}).replace_schema_metadata({"made by": "\x18" + chr(len(NAME)) + NAME}),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_only_the_name_is_another(tmp_path: Path, table: pa.Table) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, write_page_checksum=True)
    before, said, rows = path.read_bytes(), pq.read_metadata(path).to_dict(), pq.read_table(path)
    parquet_footer.set_created_by(str(path))
    after = path.read_bytes()
    assert len(before) - len(after) == len(NAME) - len(parquet_footer.WRITER)
    assert pq.read_table(path, page_checksum_verification=True).equals(rows, check_metadata=True)
    found = pq.read_metadata(path).to_dict()
    assert found.pop("created_by") == "openwit version 1" and said.pop("created_by") == NAME
    assert found.pop("serialized_size") + len(NAME) - len(parquet_footer.WRITER) == said.pop("serialized_size")
    assert found == said
    with pytest.raises(parquet_footer.FooterError):
        parquet_footer.set_created_by(str(path))
    assert path.read_bytes() == after


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(8), b"PAR1" + b"\x09\0\0\0PAR1", b"\xff" * 40])
def test_what_is_no_parquet_is_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    with pytest.raises(parquet_footer.FooterError):
        parquet_footer.set_created_by(str(path))
    assert path.read_bytes() == data


def test_the_bytes_of_a_table_stay(tmp_path: Path) -> None:
    """The same for each installed pyarrow (22 to 25), because the digest of a published set depends on it."""
    rows = 300
    table = pa.table(
        {
            "text": pa.array([f"a red boat {n * 7919 % 1000}" if n % 5 else None for n in range(rows)], pa.string()),
            "ids": pa.array([list(range(n % 4)) for n in range(rows)], pa.list_(pa.int32())),
            "score": pa.array([n / 7 for n in range(rows)], pa.float32()),
            "hash": pa.array([n * 0x9E3779B97F4A7C15 % 2**64 for n in range(rows)], pa.uint64()),
        }
    )
    storage.write_published(str(tmp_path / "a.parquet"), table)
    data = (tmp_path / "a.parquet").read_bytes()
    assert parquet_footer.writer() not in data
    assert hashlib.sha256(data).hexdigest() == "a499491b38e5c362975079160cbdc1e87915d0bbd46efe50531bc42fd925cfb9"
