"""Query lists: every format gives the same table, and the error of a bad list names the fault."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from queries import load
from queries.load import QUERIES, QueryError, load_queries
from tests.places import DATA

EXPECTED = ["Zebra", "dog", "new york", "été", "東京"]  # by UTF-8 bytes


def write(path: Path, data: bytes) -> str:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


UNSORTED = ["dog", "東京", "Zebra", "new york", "été"]
FILES: dict[str, Any] = {
    "list.txt": "\n".join(UNSORTED),
    "crlf.txt": "\ufeff" + "\r\n".join(UNSORTED) + "\r\n",
    "metadata.json": json.dumps(UNSORTED),
    "counts.json": json.dumps({query: 3 for query in UNSORTED}),
    "bare.tsv": "".join(f"{query}\twiki\t3\n" for query in UNSORTED),
    "headed.tsv": "query\tsource\tcount\n" + "".join(f"{query}\twiki\t3\n" for query in UNSORTED),
    "moved.csv": "count,query\n" + "".join(f'3,"{query}"\n' for query in UNSORTED),
    "narrow.csv": "\n".join(UNSORTED),
    "table.parquet": parquet_bytes(pa.table({"n": [1] * 5, "query": UNSORTED, "count": [3] * 5})),
    "any_name.parquet": parquet_bytes(pa.table({"n": [1] * 5, "word": pa.array(UNSORTED, pa.large_string())})),
}


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_one_table(tmp_path, name, zipped):
    content = FILES[name]
    data = content if isinstance(content, bytes) else content.encode()
    loaded = load_queries(write(tmp_path / (name + zipped), data))
    assert loaded.table.schema == QUERIES
    assert loaded.queries.to_pylist() == EXPECTED
    assert loaded.table["id"].to_pylist() == [0, 1, 2, 3, 4]
    assert loaded.digest == hashlib.sha256("".join(f"{query}\n" for query in EXPECTED).encode()).hexdigest()
    assert (loaded.empties, loaded.duplicates, loaded.invalid) == (0, 0, 0)
    has_count = name not in ("list.txt", "crlf.txt", "metadata.json", "narrow.csv", "any_name.parquet")
    assert set(loaded.table["count"].to_pylist()) == {3 if has_count else 0}
    assert set(loaded.table["source"].to_pylist()) == {"wiki" if name.endswith("tsv") else ""}


def test_what_is_left_out_is_counted(tmp_path):
    lines = [b"dog", b"", b"  dog ", b"\xff\xfe", b"a\tb", b"   ", b"cat\r"]
    loaded = load_queries(write(tmp_path / "list.txt", b"\n".join(lines)))
    assert loaded.queries.to_pylist() == ["a b", "cat", "dog"]
    assert (loaded.empties, loaded.duplicates, loaded.invalid) == (2, 1, 1)
    assert len(loaded) + loaded.empties + loaded.duplicates + loaded.invalid == len(lines)


def test_long_lines_and_lines_of_another_encoding_are_counted(tmp_path):
    lines = [b"dog", "\u00e9t\u00e9".encode("latin-1"), b"x" * 10_000, b"y" * 1_000, b"c\0a"]
    loaded = load_queries(write(tmp_path / "list.txt", b"\xef\xbb\xbf" + b"\n".join(lines)))
    assert loaded.queries.to_pylist() == ["dog", "y" * 1_000]
    assert (loaded.invalid, loaded.too_long) == (2, 1)


@pytest.mark.parametrize("name", ["list.tsv", "list.csv", "list.parquet"])
def test_languages(tmp_path, name):
    table = pa.table({"query": ["Gift", "Gift", "dog"], "language": ["DE ", "en", None]})
    mark = {"list.tsv": "\t", "list.csv": ","}.get(name)
    rows = [[cell or "" for cell in row.values()] for row in table.to_pylist()]
    text = "\n".join((mark or "").join(row) for row in [table.column_names, *rows])
    loaded = load_queries(write(tmp_path / name, text.encode() if mark else parquet_bytes(table)))
    assert loaded.table.select(["query", "language"]).to_pylist() == [
        {"query": "Gift", "language": "de"},
        {"query": "dog", "language": ""},
        {"query": "Gift", "language": "en"},
    ]
    assert loaded.digest == hashlib.sha256(b"de\tGift\ndog\nen\tGift\n").hexdigest()


@pytest.mark.parametrize("name", ["list.tsv", "list.parquet"])
def test_flags(tmp_path, name):
    table = pa.table({"query": ["dog", "Oslo", "cat"], "flags": ["", " Name,  Other ", None]})
    text = "\n".join("\t".join(cell or "" for cell in row.values()) for row in table.to_pylist())
    data = parquet_bytes(table) if name.endswith("parquet") else f"query\tflags\n{text}".encode()
    loaded = load_queries(write(tmp_path / name, data))
    assert loaded.table["flags"].to_pylist() == ["name other", "", ""]
    assert loaded.digest == hashlib.sha256(b"Oslo\ncat\ndog\n").hexdigest()  # flags name no query


def test_json_entries_that_are_not_text(tmp_path):
    loaded = load_queries(write(tmp_path / "list.json", b'["dog", 7, null, ["x"], "\\ud800", "two\\nlines"]'))
    assert loaded.queries.to_pylist() == ["dog", "two lines"]
    assert loaded.invalid == 4


def test_tsv_rows_of_any_length_and_the_first_repeat_wins(tmp_path):
    data = b'"quoted\twordnet\t12\ndog\ncat\twiki\tmany\tmore\n\xff\t1\ndog\twiki\t5\n\t\t\n'
    loaded = load_queries(write(tmp_path / "list.tsv", data))
    rows = [tuple(row.values())[1:4] for row in loaded.table.to_pylist()]
    assert rows == [('"quoted', "wordnet", 12), ("cat", "wiki", 0), ("dog", "", 0)]
    assert (loaded.empties, loaded.duplicates, loaded.invalid) == (1, 1, 1)


@pytest.mark.parametrize("bad_line_first", [False, True])
def test_header_beside_a_bad_line(tmp_path, bad_line_first):
    rows = [b"query\tcount", b"dog\t1"]
    rows.insert(0 if bad_line_first else 1, b"\xff\t2")
    loaded = load_queries(write(tmp_path / "list.tsv", b"\n".join(rows)))
    assert loaded.table.select(["query", "count"]).to_pylist() == [{"query": "dog", "count": 1}]
    assert loaded.invalid == 1


DAMAGED_FOOTER = b"PAR1" + b"\xff" * 8 + b"\x08\0\0\0PAR1"  # Arrow raises OSError, and its message has two lines


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b"\n \n\t\n", "3 empty"),
        ("empty.json", b"[]", "is empty"),
        ("cut.json", b'["a', "not valid json"),
        ("deep.json", b"[" * 100_000, "not valid json"),
        ("number.json", b"7", "neither a list"),
        ("bytes.json", b'["\xff"]', "not valid json"),
        ("not.parquet", b"PAR1", "not valid parquet"),
        ("damaged.parquet", DAMAGED_FOOTER, "not valid parquet"),
        ("numbers.parquet", parquet_bytes(pa.table({"n": [1]})), "no text column"),
        ("list.docx", b"dog", "has an unknown format"),
        ("list", b"dog", "has an unknown format"),
        ("bad.tsv", b"\xff\n", "1 not UTF-8"),
        ("wide.txt", "dog\n".encode("utf-16") + b"\0", "is not valid txt"),
        ("wide_without_mark.txt", "dog\ncat\n".encode("utf-16-le"), "not UTF-8"),
        ("latin.txt", "\u00e9t\u00e9\n".encode("latin-1"), "1 not UTF-8"),
        ("long.txt", b"dog " * 2_500, "1 too long"),
        ("language.tsv", b"query\tlanguage\ndog\tin English\n", "names the language 'in english'"),
    ],
)
def test_unusable_lists_name_file_cause_and_remedy(tmp_path, name, data, says):
    path = write(tmp_path / name, data)
    with pytest.raises(QueryError, match=says) as caught:
        load_queries(path)
    assert path in str(caught.value) and str(caught.value).isprintable()


def test_a_list_of_many_blocks_has_the_digest_of_its_lines(tmp_path):
    text = "".join(f"query {number:06d}\n" for number in range(2 * load._BLOCK + 1))
    loaded = load_queries(write(tmp_path / "list.txt", b"\xef\xbb\xbf" + text.encode()))
    assert len(loaded) == 2 * load._BLOCK + 1 and loaded.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("error", [MemoryError, pa.ArrowCapacityError])
def test_a_list_that_does_not_fit_is_named(tmp_path, monkeypatch, error):
    def fail(data):
        raise error

    monkeypatch.setitem(load._READERS, ".txt", fail)
    with pytest.raises(QueryError, match="is too large for one list. Keep the queries with the highest counts"):
        load_queries(write(tmp_path / "list.txt", b"dog\n"))


def test_missing_and_damaged_files(tmp_path):
    for name in ("none.txt", ".txt/list.txt", "none", "lists/"):
        with pytest.raises(QueryError, match="is not there. Check the path"):
            load_queries(f"{tmp_path}/{name}")
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(gzip.compress(b"dog\n" * 100)[:-9])
    with pytest.raises(QueryError, match="damaged"):
        load_queries(str(cut))


def test_the_real_list(tmp_path):
    path = DATA / "queries" / "queries_assembled.tsv.gz"
    if not path.exists():
        pytest.skip(f"no real query list at {path}: set OPENWIT_DATA to the data folder")
    start = time.process_time()
    loaded = load_queries(str(path))
    assert time.process_time() - start < 3  # about 0.7 s on an idle core
    assert len(loaded) == 484_810
    assert loaded.digest == "c8bfd9391e1f59418c6a379d258042d58aa09980edbbb3ef9692a8298e5f4e26"
    assert {"wordnet", "wordfreq", "wiki_bigram"} <= set(loaded.table["source"].to_pylist())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize(
    ("name", "text"), [("a.txt", "dog\nž\n"), ("a.csv", "query,count\ndog,1\nž,2\n"), ("a.json", '["dog", "ž"]')]
)
def test_other_unicode_encodings_are_told_by_their_mark(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert load_queries(str(tmp_path / name)).queries.to_pylist() == ["dog", "ž"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('query,count\n"unclosed,5\nbird,6\nfish,7\n', {'"unclosed': 5, "bird": 6, "fish": 7}),
        ('query,count\n"open,5\nbird,6\nfish",7\n', {'"open': 5, "bird": 6, 'fish"': 7}),
        ('"open\nbird\nfish"\n', {'"open': 0, "bird": 0, 'fish"': 0}),
        ('query,count\n"two\nlines",5\n"a, b",6\n"a ""b""",7\n', {"two lines": 5, "a, b": 6, 'a "b"': 7}),
        ('query;count\n"a; b";5\n"c;6\n', {"a; b": 5, '"c': 6}),
        ("query\tcount\na b\t5\n", {"a b": 5}),
    ],
)
def test_a_quote_costs_no_other_query(tmp_path, text, expected):
    (tmp_path / "a.csv").write_text(text)
    table = load_queries(str(tmp_path / "a.csv")).table
    assert dict(zip(table["query"].to_pylist(), table["count"].to_pylist(), strict=True)) == expected


@pytest.mark.skipif(not Path(DATA, "faults").is_dir(), reason="the shared faults are missing")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("17_utf16_queries.txt", ["cat", "dog"]), ("18_unclosed_quote_queries.csv", ['"unclosed', "bird", "fish"])],
)
def test_lists_of_the_field(name, expected):
    assert load_queries(str(Path(DATA, "faults", name))).queries.to_pylist() == expected
