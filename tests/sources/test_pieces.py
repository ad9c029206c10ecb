"""Pieces of inputs for a sample: all pieces together hold each record once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.engine.ledger import Ledger
from pipeline.sources import READERS
from pipeline.sources.base import Input, ReadSettings
from tests.archives import html_record, member, wat_record


def read(item: Input) -> list[str]:
    """The URLs of an input."""
    batches = READERS[item.format].read(item, ledger=Ledger(), images=[], settings=ReadSettings())
    return [url for batch in batches for url in batch["url"].to_pylist()]


def pieces(path: Path, form: str, size: int) -> tuple[list[str], float, float]:
    """The URLs of all pieces, what they cover, and how much there is."""
    item = Input(path.name, str(path), form, path.stat().st_size)
    reader, urls, amount, total = READERS[form], [], 0.0, 0.0
    assert reader.slots(item, size) > 3
    for slot in range(reader.slots(item, size)):
        target = path.parent / f"piece-{slot}-{path.name}"
        piece = reader.cut(item, slot, size, str(target), ReadSettings())
        amount, total = amount + piece.amount, piece.total
        assert piece.slot == slot and not piece.is_head
        if target.exists():
            urls += read(Input(item.name, str(target), form, target.stat().st_size))
    assert reader.amount(item) == total
    return urls, amount, total


def long(number: int) -> list[dict]:
    """Links of a page, of which some pages have many."""
    return [
        {"path": "IMG@/src", "url": f"https://img.example/{number}-{place}.jpg", "alt": f"picture {number} of {place}"}
        for place in range(1 + 40 * (number % 7 == 0))
    ]


WAT = [wat_record(number, {"Envelope": wat["Envelope"]}) for number in range(60) for wat in [{"Envelope": {
    "WARC-Header-Metadata": {"WARC-Target-URI": f"https://site{number}.example/page.html", "WARC-Type": "response"},
    "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": long(number)}}}}}]]  # fmt: skip
HTML = [html_record(number) for number in range(60)]


@pytest.mark.parametrize(
    ("form", "name", "data"),
    [
        ("wat", "a.wat.gz", b"".join(map(member, WAT))),
        ("warc", "a.warc.gz", b"".join(map(member, HTML))),
        ("warc", "a.warc", b"".join(HTML)),
        ("table", "a.csv", b"url,text\n" + b"".join(b"https://a.example/%d.jpg,a red dog\n" % n for n in range(400))),
        ("table", "a.jsonl", b"".join(b'{"url": "https://a.example/%d", "text": "dog"}\n' % n for n in range(400))),
    ],
    ids=["wat", "packed warc", "warc", "csv", "json lines"],
)
def test_all_pieces_together_are_the_input(form: str, name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    urls, amount, total = pieces(tmp_path / name, form, 1_500)
    whole = read(Input(name, str(tmp_path / name), form, len(data)))
    assert sorted(urls) == sorted(whole) and len(whole) >= 60 and amount == total == len(data)


def test_pieces_of_parquet_count_rows_and_show_all_of_a_row_group(tmp_path: Path) -> None:
    url = [f"https://a.example/{number}.jpg" for number in range(5_000)]
    pq.write_table(
        pa.table({"more": url, "url": url, "text": ["dog"] * 5_000}), tmp_path / "a.parquet", row_group_size=3_000
    )
    urls, amount, total = pieces(tmp_path / "a.parquet", "table", 8_000)
    assert sorted(urls) == sorted(url) and amount == total == 5_000
    item = Input("a", str(tmp_path / "a.parquet"), "table", (tmp_path / "a.parquet").stat().st_size, (1, 2))
    target = str(tmp_path / "piece.parquet")
    piece = READERS["table"].cut(item, 10**6, 8_000, target, ReadSettings())
    places = [int(name.rpartition("/")[2][:-4]) for name in read(Input("a", target, "table"))]
    assert piece.total == 2_000 and min(places) >= 3_000 and max(places) - min(places) > 1_500


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv.gz", gzip.compress(b"url,text\n" + b"a,b\n" * 9)),
        ("a.json", json.dumps([{"url": "a", "text": "b"}] * 9).encode()),
    ],
    ids=["packed", "array"],
)
def test_what_cannot_be_cut_gives_its_head(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    item = Input(name, str(tmp_path / name), "table", len(data))
    piece = READERS["table"].cut(item, 3, 20, str(tmp_path / "piece"), ReadSettings())
    assert (piece.amount, piece.total, piece.slot, piece.is_head) == (20, len(data), 0, True)
    assert (tmp_path / "piece").read_bytes() == data[:20]
