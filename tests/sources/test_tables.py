"""Tables as candidates: every format gives the same rows, and unreadable rows are counted."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES
from pipeline.sources import json_rows, tables
from pipeline.sources.inputs import Input, InputError, expand
from pipeline.sources.tables import BATCH_ROWS, read_table, table_columns
from tests.places import DATA
from tests.rows import with_both

ROWS = [
    ("http://x/1.jpg", "one"),
    ("http://x/2.jpg", 'two, "quoted"\nand a second line'),
    (None, "no url"),
    ("http://x/3.jpg", None),
    (None, None),
    ("http://x/ü.jpg", "späť 漢字"),
]
KEPT = [(0, *ROWS[0]), (1, *ROWS[1]), (5, *ROWS[5])]


def read(path, **options):
    ledger = Ledger()
    batches = [
        batch
        for source in expand([str(path)], input_format="table")
        for batch in read_table(source, ledger=ledger, **options)
    ]
    assert all(batch.schema == CANDIDATES and 0 < batch.num_rows <= BATCH_ROWS for batch in batches)
    table = pa.Table.from_batches(batches, CANDIDATES)
    table.validate(full=True)
    table = with_both(table, ledger)
    assert ledger.rows_in == table.num_rows + sum(ledger.dropped.values())
    assert ledger.records_in == ledger.rows_in + sum(ledger.records_dropped.values())
    return table, ledger


def rows(table):
    return list(zip(table["offset"].to_pylist(), table["url"].to_pylist(), table["text"].to_pylist(), strict=True))


def delimited(sign):
    def quote(value):
        return "" if value is None else '"' + value.replace('"', '""') + '"'

    return "".join(f"{quote(url)}{sign}7{sign}{quote(text)}\n" for url, text in [("url", "text"), *ROWS]).encode()


def json_lines():
    return "".join(json.dumps({"url": url, "n": {"deep": [1]}, "text": text}) + "\n" for url, text in ROWS).encode()


@pytest.mark.parametrize(
    "name",
    ["t.parquet", "t.csv", "t.csv.gz", "t.csv.zst", "t.tsv", "t.jsonl", "t.ndjson.gz", "t.jsonl.zst", "j", "c", "v"],
)
def test_every_form_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name == "t.parquet":
        pq.write_table(pa.table({"url": [r[0] for r in ROWS], "n": [1] * 6, "text": [r[1] for r in ROWS]}), path)
    else:
        data = (
            json_lines() if "json" in name or name == "j" else delimited("\t" if "tsv" in name or name == "v" else ",")
        )
        packers = {".gz": gzip.compress, ".zst": zstandard.compress}
        path.write_bytes(packers.get(path.suffix, bytes)(data))
    table, ledger = read(path)
    assert rows(table) == KEPT
    assert ledger.dropped == {"null_url": 2, "null_text": 1}
    assert set(table["page_url"].to_pylist()) == {""}
    assert table["opt_out"].null_count == table["license"].null_count == 3


def test_a_part_numbers_its_rows_as_the_whole_file_does(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_PART", 25)
    urls = [f"http://x/{number}" for number in range(100)]
    pq.write_table(pa.table({"url": urls, "text": urls}), tmp_path / "a.parquet", row_group_size=10)
    table, _ = read(tmp_path / "a.parquet")
    assert rows(table) == [(number, url, url) for number, url in enumerate(urls)]


@pytest.mark.parametrize(
    "columns",
    [
        ("URL", "TEXT"),
        ("image_url", "caption"),
        ("img_url", "alt"),
        ("text", "url"),
        ("Link", "Title"),
        ("url", "alt_text"),
    ],
)
def test_usual_column_names_are_found(tmp_path, columns):
    pq.write_table(pa.table({"id": ["x"], columns[0]: ["http://u"], columns[1]: ["a text"]}), tmp_path / "a.parquet")
    table, _ = read(tmp_path / "a.parquet")
    expected = ("a text", "http://u") if columns == ("text", "url") else ("http://u", "a text")
    assert rows(table) == [(0, *expected)]


def test_named_columns_and_the_page(tmp_path):
    pq.write_table(
        pa.table({"url": ["wrong"], "a": ["http://u"], "b": ["t"], "from": ["http://page"]}), tmp_path / "a.parquet"
    )
    table, _ = read(tmp_path / "a.parquet", url_column="a", text_column="b", page_column="from")
    assert table.select(["url", "text", "page_url"]).to_pylist() == [
        {"url": "http://u", "text": "t", "page_url": "http://page"}
    ]
    pq.write_table(
        pa.table({"url": ["u", "v"], "text": ["t", "s"], "page_url": ["http://p", None]}), tmp_path / "b.parquet"
    )
    assert read(tmp_path / "b.parquet")[0]["page_url"].to_pylist() == ["http://p", ""]


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"x": ["1"], "y": ["2"]}), path)
    else:
        path.write_text("x,y\n1,2\n" if name == "a.csv" else '{"x": "1", "y": "2"}\n')
    (source,) = expand([str(path)])
    for use in (table_columns, lambda source: list(read_table(source, ledger=Ledger()))):
        with pytest.raises(InputError, match="no column 'url'.*'x', 'y'.*--url-column"):
            use(source)
    with pytest.raises(InputError, match="no column 'nope'"):
        list(read_table(source, ledger=Ledger(), url_column="x", text_column="nope"))


def test_other_string_types_are_strings_and_lists_are_refused(tmp_path):
    url = pa.array(["http://u"] * 3, pa.large_string())
    for text in (pa.array(["t"] * 3).dictionary_encode(), pa.array([b"t"] * 3), pa.array(["t"] * 3, pa.string_view())):
        pq.write_table(pa.table({"url": url, "text": text}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet")[0]["text"].to_pylist() == ["t"] * 3
    pq.write_table(pa.table({"url": url, "text": [["t"]] * 3}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="holds list"):
        read(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "a"}], "text": ["t"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="'image' .* holds images, not their URLs: .*--url-column"):
        read(tmp_path / "a.parquet")
    pq.write_table(pa.table({"url": url, "text": pa.nulls(3)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[1].dropped == {"null_text": 3}


def test_bytes_that_are_no_utf8_become_replacement_signs(tmp_path):
    broken = pa.array([b"good", b"b\xffd"]).view(pa.string())
    pq.write_table(pa.table({"url": ["u", "v"], "text": broken}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_bytes(b"url,text\nu,good\nv,b\xffd\n")
    for name in ("a.parquet", "a.csv"):
        table, ledger = read(tmp_path / name)
        assert table["text"].to_pylist() == ["good", "b\ufffdd"]
        assert ledger.notes == {"invalid_utf8_replaced": 1}


def test_bad_rows_of_a_csv_are_counted_and_do_not_shift_the_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("url,text\nu0,a\nu1,b,too,many\nu2,c\nonly-one\nu4,d\n")
    table, ledger = read(tmp_path / "a.csv")
    assert rows(table) == [(0, "u0", "a"), (2, "u2", "c"), (4, "u4", "d")]
    assert ledger.records_dropped == {"bad_table_row": 2}


def test_bad_lines_of_json_are_counted(tmp_path):
    lines = [
        b'{"url": "u0", "text": "a"}',
        b"{broken",
        b'{"url": 5, "text": "number"}',
        b"[]",
        b"",
        b'{"text": "\xff"}',
        b'{"url": "' + b"x" * (2 << 20) + b'", "text": "t"}',
        b'{"url": "u7", "text": "\\ud800 lone"}',
        b'{"text": "z", "url": "u8"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    table, ledger = read(tmp_path / "a.jsonl")
    assert rows(table) == [(0, "u0", "a"), (2, "5", "number"), (7, "u7", "\ufffd lone"), (8, "u8", "z")]
    assert ledger.records_dropped == {"bad_table_row": 2, "table_line_too_long": 1}
    assert ledger.dropped == {"null_url": 1} and ledger.notes == {"invalid_utf8_replaced": 2}


def test_a_cut_file_keeps_what_came_before(tmp_path):
    random = np.random.default_rng(0)
    words = ["".join(map(chr, random.integers(97, 123, 30))) for _ in range(40_000)]
    csv = "url,text\n" + "".join(f"http://{word},{word}\n" for word in words)
    lines = "".join(f'{{"url": "http://{word}", "text": "{word}"}}\n' for word in words)
    for name, data in (("a.csv.gz", csv), ("a.jsonl.gz", lines)):
        packed = gzip.compress(data.encode())
        (tmp_path / name).write_bytes(packed[: len(packed) // 2])
        table, ledger = read(tmp_path / name)
        assert ledger.records_dropped["table_rest_unreadable"] == 1
        assert rows(table) == [(number, f"http://{word}", word) for number, word in enumerate(words[: table.num_rows])]
        assert table.num_rows > 10_000


def test_a_damaged_parquet_page_costs_its_row_group_and_is_never_silent(tmp_path):
    urls = [f"http://x/{number * 7919 % 200_003}" for number in range(200_000)]
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"url": urls, "text": urls}),
        path,
        row_group_size=70_000,
        write_page_checksum=True,
        use_dictionary=False,
    )
    group = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[group.data_page_offset + group.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    table, ledger = read(path)
    lost = ledger.records_dropped["damaged_table_page"]
    assert 0 < lost <= 70_000 and table.num_rows == 200_000 - lost
    assert all(url == urls[number] for number, url, _ in rows(table))
    assert rows(table)[-1][0] == 199_999


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_of_a_small_gzip_file_that_is_cut_every_whole_line_is_read(tmp_path, name):
    data = json_lines() if "json" in name else delimited(",")
    for packed, kept, lost in (
        (gzip.compress(data)[:-4], KEPT, 1),
        (gzip.compress(data[:90]) + gzip.compress(data[90:]) + bytes(512), KEPT, 0),
        (gzip.compress(data) + b"junk", KEPT, 1),
        (gzip.compress(data + b"http://cut.example/")[:-4], KEPT, 1),
    ):
        (tmp_path / name).write_bytes(packed)
        table, ledger = read(tmp_path / name)
        assert rows(table) == kept
        assert ledger.records_dropped == ({"table_rest_unreadable": 1} if lost else {})


@pytest.mark.parametrize("size", [1000, 20_000])
def test_damage_in_one_of_many_small_row_groups_costs_that_one(tmp_path, size):
    urls = [f"http://x/{number * 7919 % 200_003}" for number in range(150_000)]
    path = tmp_path / "a.parquet"
    table = pa.table({"url": urls, "text": urls})
    pq.write_table(table, path, row_group_size=size, write_page_checksum=True, use_dictionary=False)
    metadata, data = pq.read_metadata(path), bytearray(path.read_bytes())
    bad = (0, 2, metadata.num_row_groups - 1)
    for group in bad:
        column = metadata.row_group(group).column(1)
        data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    found, ledger = read(path)
    expected = [number for number in range(150_000) if number // size not in bad]
    assert [row for row, *_ in rows(found)] == expected
    assert all(url == urls[number] for number, url, _ in rows(found))
    assert ledger.records_dropped == {"damaged_table_page": 150_000 - len(expected)}


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json_lines())
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + delimited(","))
    for name in ("a.jsonl", "a.csv"):
        table, ledger = read(tmp_path / name)
        assert rows(table) == KEPT and not ledger.records_dropped


def test_a_line_nested_too_deep_is_a_bad_line(tmp_path):
    deep = b'{"url": "http://x/2", "text": "b", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    (tmp_path / "a.jsonl").write_bytes(deep + json_lines())
    table, ledger = read(tmp_path / "a.jsonl")
    assert [row for _, *row in rows(table)] == [list(row) for _, *row in KEPT]
    assert ledger.records_dropped == {"bad_table_row": 1}


def test_a_table_with_an_ambiguous_or_unreadable_header_is_an_input_error(tmp_path):
    pq.write_table(
        pa.Table.from_arrays([pa.array(["u"]), pa.array(["v"]), pa.array(["t"])], names=["url", "url", "text"]),
        tmp_path / "a.parquet",
    )
    (tmp_path / "b.csv").write_bytes(b"url,text,url\nu,t,v\n")
    (tmp_path / "c.csv").write_bytes("url,ü\nu,t\n".encode("latin-1"))
    (tmp_path / "d.csv").write_bytes("url,text\nu,t\n".encode("utf-16-le"))
    messages = {"a.parquet": "several columns", "b.csv": "several columns", "c.csv": "UTF-8", "d.csv": "zero bytes"}
    for name, message in messages.items():
        (source,) = expand([str(tmp_path / name)])
        for look in (table_columns, lambda source: list(read_table(source, ledger=Ledger()))):
            with pytest.raises(InputError, match=message):
                look(source)


def test_batches_are_bounded_and_parquet_is_fast(tmp_path):
    count = 500_000
    urls = pa.array([f"http://host{number % 977}.example/images/{number}.jpg" for number in range(count)])
    texts = pa.array([f"a picture of the number {number}" for number in range(count)])
    pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / "a.parquet")
    (source,) = expand([str(tmp_path / "a.parquet")])
    list(read_table(source, ledger=Ledger()))
    start = time.process_time()
    assert sum(batch.num_rows for batch in read_table(source, ledger=Ledger())) == count
    assert time.process_time() - start < 1.0  # 0.4 s a million on a quiet machine; this guards against rows in Python


def test_an_empty_table(tmp_path):
    pq.write_table(
        pa.table({"url": pa.array([], pa.string()), "text": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet")[0].num_rows == 0
    (tmp_path / "a.csv").write_text("url,text\n")
    assert read(tmp_path / "a.csv")[0].num_rows == 0
    for name in ("b.csv", "b.jsonl"):
        (tmp_path / name).write_text("")
        with pytest.raises(InputError, match="is empty|holds no JSON"):
            list(read_table(Input(name, str(tmp_path / name), "table"), ledger=Ledger()))


NESTED = {"deep": ["}", '"', "\\\\"]}
OBJECTS = [{"url": f"http://x/{number}", "n": NESTED, "text": f"t{{ {number}"} for number in range(50)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(OBJECTS),
        json.dumps(OBJECTS, indent=2),
        "\ufeff\n [\n" + ",\n".join(map(json.dumps, OBJECTS)) + "\n]\n",
        "\n".join(json.dumps(row, indent=1) for row in OBJECTS),
        "\n".join(map(json.dumps, OBJECTS)),
    ],
    ids=["array", "indented array", "array of lines", "indented objects", "lines"],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a"])
def test_json_objects_are_read_however_they_stand(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(json_rows, "PIECE", 37)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    table, ledger = read(tmp_path / name)
    assert list(zip(table["url"].to_pylist(), table["text"].to_pylist(), strict=True)) == [
        (row["url"], row["text"]) for row in OBJECTS
    ]
    assert not ledger.records_dropped and not ledger.notes


def test_a_json_array_that_is_cut_or_holds_a_giant(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "PIECE", 1000)
    monkeypatch.setattr(json_rows, "MAX_LINE", 2000)
    rows_ = [{"url": "u0", "text": "a"}, {"url": "u1", "text": "x" * 9000}, {"url": "u2", "text": "c"}]
    for text, dropped in (
        (json.dumps(rows_), {"table_line_too_long": 1}),
        (json.dumps(rows_)[:-1], {"table_line_too_long": 1}),
        (json.dumps(rows_)[:-2], {"table_line_too_long": 1, "bad_table_row": 1}),
        (json.dumps(rows_[:1])[:-1] + ", {", {"bad_table_row": 1}),
    ):
        (tmp_path / "a.json").write_text(text)
        table, ledger = read(tmp_path / "a.json")
        assert table["url"].to_pylist() in (["u0", "u2"], ["u0"])
        assert ledger.records_dropped == dropped


def test_missing_values_as_pandas_writes_them(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"url": "u0", "text": "a", "n": NaN}\n{"url": "u1", "text": NaN}\n{"url": "u2", "text": "c", "n": -Infinity}'
    )
    table, ledger = read(tmp_path / "a.jsonl")
    assert rows(table) == [(0, "u0", "a"), (2, "u2", "c")]
    assert ledger.dropped == {"null_text": 1} and not ledger.records_dropped


@pytest.mark.skipif(not Path(DATA, "faults").is_dir(), reason="the shared faults are missing")
@pytest.mark.parametrize(("name", "count"), [("13_nan.jsonl", 2), ("14_array.json", 2)])
def test_json_of_the_field(name, count):
    table, ledger = read(Path(DATA, "faults", name))
    assert table.num_rows == count and not ledger.records_dropped


@pytest.mark.parametrize("data", [b"PAR1" + b"\xff" * 8 + b"\x08\0\0\0PAR1", b"PAR1" * 8, b"PAR1\n\x1b[2J"])
def test_what_is_said_of_a_damaged_parquet_file_is_one_line(tmp_path, data):
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(InputError, match="no readable Parquet file: .") as caught:
        expand([str(tmp_path / "a.parquet")])
    assert str(caught.value).isprintable() and not str(caught.value).endswith(".")
