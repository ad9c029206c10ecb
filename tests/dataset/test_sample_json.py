"""The JSON of samples: the column-wise code gives the bytes of the reference."""

from __future__ import annotations

import json
import random

import pyarrow as pa

from pipeline.dataset import shards
from pipeline.dataset.sample_json import hex_strings, reference_json, sample_json
from pipeline.schema import fill_texts
from tests import fuzzing, samples

KEYS = ("caption", "count", "phash", "score", "text", "texts", "url", "wide")
_TEXTS = pa.list_(pa.string())
HOSTILE = [
    *(chr(code) for code in range(0x180)),
    "",
    None,
    'say "hi",',
    '","',
    "\\",
    '\\","\\u001f',
    "\u2028\u2029\ufeff\U0001f600",
    '"' * 300,
]
FLOATS = [None, 0.0, -0.0, 0.1, 1.0, 1e-7, 3.4e38, 123456.79, 1 / 3, 1e16, -2.5e-45]


def table(count: int, rng: random.Random) -> pa.Table:
    def text() -> str | None:
        return "".join(rng.choice(HOSTILE) or "a" for _ in range(rng.randrange(6))) if rng.random() < 0.8 else None

    def some(values: list) -> list:
        return [rng.choice(values) for _ in range(count)]

    return pa.table(
        {
            "text": pa.array([text() for _ in range(count)], pa.string()),
            "texts": pa.array([[text() or "" for _ in range(rng.randint(1, 4))] for _ in range(count)], _TEXTS),
            "url": pa.array(some(HOSTILE), pa.string()),
            "count": pa.array(some([None, 0, -5, 2**31 - 1, -(2**31)]), pa.int32()),
            "wide": pa.array(some([None, 0, -(2**63), 2**63 - 1]), pa.int64()),
            "phash": pa.array(some([None, 0, 1, 2**64 - 1, 0x0123456789ABCDEF]), pa.uint64()),
            "score": pa.array(some(FLOATS), pa.float32()),
        }
    )


def test_columns_give_what_rows_give() -> None:
    rng = random.Random(fuzzing.SEED)
    for count in (0, 1, 2, 50, 700):
        rows = table(count, rng)
        assert sample_json(rows, KEYS).to_pylist() == reference_json(rows, KEYS)
        cut = pa.concat_tables([rows.slice(count // 3), rows.slice(0, count // 3)])
        assert sample_json(cut, KEYS).to_pylist() == reference_json(cut, KEYS)
        for batch in rows.slice(count // 4).to_batches(max_chunksize=11):  # slices of larger buffers
            assert sample_json(batch, KEYS).to_pylist() == reference_json(batch, KEYS)


def test_every_character_survives() -> None:
    rows = pa.table({"text": pa.array(HOSTILE, pa.string())})
    found = [json.loads(record)["caption"] for record in sample_json(rows, ("caption",)).to_pylist()]
    assert found == [text or "" for text in HOSTILE]


def test_published_rows() -> None:
    rows = shards.describe(samples.fetched(30), 0)
    assert sample_json(rows, shards.JSON_KEYS).to_pylist() == reference_json(rows, shards.JSON_KEYS)


def test_hex_strings() -> None:
    values = [b"\x00\xff", None, b"ab", b"\x10\x01"]
    column = pa.array(values, pa.binary(2))
    wanted = ["00ff", None, "6162", "1001"]
    assert hex_strings(column).to_pylist() == wanted and hex_strings(column.slice(2)).to_pylist() == wanted[2:]
    assert hex_strings(pa.chunked_array([column.slice(1), column.slice(0, 1)])).to_pylist() == wanted[1:] + wanted[:1]
    assert hex_strings(column.slice(0, 0)).to_pylist() == []


def test_a_row_without_other_texts_has_its_own() -> None:
    kind = pa.list_(pa.string())
    text = pa.array(["a", "b", "c"])
    assert fill_texts(text, pa.nulls(3, kind)).to_pylist() == [["a"], ["b"], ["c"]]
    assert fill_texts(text, pa.array([["a", "x"], None, []], kind)).to_pylist() == [["a", "x"], ["b"], []]
    whole = pa.array([["a"], ["b"], ["c", "y"]], kind)
    assert fill_texts(text, whole).equals(whole)
