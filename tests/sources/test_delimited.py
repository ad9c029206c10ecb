"""CSV and TSV whose quotes are not right: no row is lost to another row's quote."""

import csv
import io
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.input_errors import InputError
from pipeline.engine.ledger import Ledger
from pipeline.schema import CANDIDATES
from pipeline.sources import delimited
from pipeline.sources.base import Input
from pipeline.sources.inputs import expand
from pipeline.sources.tables import read_table, table_columns
from pipeline.text import quoting
from pipeline.text.quoting import Shape
from tests.places import DATA
from tests.rows import with_both

FAULTS, CAPTIONS = (Path(DATA, name) for name in ("faults", "captions"))
needs_captions = pytest.mark.skipif(not CAPTIONS.is_dir(), reason="the shared captions are missing")
needs_faults = pytest.mark.skipif(not FAULTS.is_dir(), reason="the shared faults are missing")
COMMA = Shape(b",", 2, 0)


def read(path, **options):
    ledger = Ledger()
    batches = list(read_table(Input("a", str(path), "table", os.path.getsize(path)), ledger=ledger, **options))
    pairs = with_both(pa.Table.from_batches(batches, CANDIDATES), ledger)
    rows = [(row["url"], row["text"]) for row in pairs.to_pylist()]
    assert ledger.records_in == ledger.rows_in + sum(ledger.records_dropped.values())
    return rows, ledger


def written(rows, **dialect):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", **dialect).writerows(rows)
    return out.getvalue().encode()


def url(number):
    return f"http://x/{number}"


@pytest.mark.parametrize(
    ("lines", "texts", "unclosed"),
    [
        (['http://x/0,"a', "http://x/1,b", "http://x/2,c"], ['"a', "b", "c"], 1),  # never closes
        (['http://x/0,"a', "http://x/1,b", 'http://x/2,c"'], ['"a', "b", 'c"'], 1),  # closes around whole rows
        (['http://x/0,"a', 'http://x/1,"b"'], ['"a', "b"], 1),
        (['http://x/0,"a', 'b"', "http://x/1,c"], ["a\nb", "c"], 0),  # a caption of two lines
        (['http://x/0,"a', "", 'b"', "", "http://x/1,c"], ["a\n\nb", "c"], 0),
        (['http://x/0,"a" she said', "http://x/1,b"], ['"a" she said', "b"], 1),
        (['http://x/0,"a, "b" c"', "http://x/1,b"], ['a, "b" c', "b"], 0),  # quotes that are not doubled
        (['http://x/0, "a, b"', "http://x/1,b"], ["a, b", "b"], 0),  # a blank before the quote
        (['http://x/0,5" screen', "http://x/1,b"], ['5" screen', "b"], 0),
        (['http://x/0,"a ""b"""', "http://x/1,b"], ['a "b"', "b"], 0),
        (['http://x/0,""', 'http://x/1,"""'], ['"'], 0),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_quote_costs_no_other_row(tmp_path, lines, texts, unclosed, newline):
    (tmp_path / "a.csv").write_bytes((newline.join(["url,text", *lines])).encode())
    rows, ledger = read(tmp_path / "a.csv")
    assert [text for _, text in rows] == [text.replace("\n", newline) for text in texts]
    assert ledger.notes == ({"unclosed_quote": unclosed} if unclosed else {})
    assert not ledger.records_dropped


def test_texts_before_the_url(tmp_path):
    (tmp_path / "a.csv").write_text('text,url\n"a,http://x/0\nb,http://x/1\n"c\nd",http://x/2\ne",http://x/3\n')
    rows, _ = read(tmp_path / "a.csv")
    assert rows == [(url(0), '"a'), (url(1), "b"), (url(2), "c\nd"), (url(3), 'e"')]


def test_a_tsv_is_read_without_quoting(tmp_path):
    texts = ['"a', 'b"', '"c"', 'd "e" f', '"', '""', "g, h", "i\rj"]
    body = "".join(f"{url(number)}\t{text}\n" for number, text in enumerate(texts))
    (tmp_path / "a.tsv").write_bytes(f"url\ttext\n\n{body}\n".encode())
    rows, ledger = read(tmp_path / "a.tsv")
    assert rows == [(url(number), text.replace("\r", " ")) for number, text in enumerate(texts)]
    assert not ledger.notes and not ledger.records_dropped


@pytest.mark.parametrize("quoting_of", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_that_is_quoted_is_seen_by_its_rows_or_by_its_header(tmp_path, quoting_of):
    rows = [(url(0), "a"), (url(1), 'b "c"'), (url(2), "d\te"), (url(3), "f\ng")]
    data = written([("url", "text"), *rows], delimiter="\t", quoting=quoting_of)
    (tmp_path / "a.tsv").write_bytes(data)
    assert read(tmp_path / "a.tsv")[0] == rows


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_another_delimiter_is_seen_in_the_header(tmp_path, sign):
    rows = [(url(0), "a, b"), (url(1), "c")]
    (tmp_path / "a.csv").write_bytes(written([("url", "text"), *rows], delimiter=sign))
    assert read(tmp_path / "a.csv")[0] == rows


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_other_unicode_encodings_are_told_by_their_mark(tmp_path, name, encoding):
    rows = [(url(0), "ž漢😀"), (url(1), "b")]
    data = written([("url", "text"), *rows], delimiter="\t" if name == "a.tsv" else ",").decode()
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / name).write_bytes((mark + data).encode(encoding))
    assert read(tmp_path / name)[0] == rows


def test_rows_of_another_width_and_blank_lines_do_not_shift_the_numbers(tmp_path):
    (tmp_path / "a.csv").write_text('url,text\nu0,a\n\nu1,b,too\n"u2","c\n\nd"\nonly\n\nu4,"e"\n')
    ledger = Ledger()
    (batch,) = read_table(Input("a", str(tmp_path / "a.csv"), "table"), ledger=ledger)
    found = [(row["offset"], row["url"], row["text"]) for row in batch.to_pylist()]
    assert found == [(0, "u0", "a"), (2, "u2", "c\n\nd"), (4, "u4", "e")]
    assert ledger.records_dropped == {"bad_table_row": 2}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_line_that_is_too_long_costs_itself(tmp_path, name, monkeypatch):
    monkeypatch.setattr(delimited, "BLOCK", 1000)
    sign = "," if name == "a.csv" else "\t"
    (tmp_path / name).write_text(f"url{sign}text\nu0{sign}a\nu1{sign}{'x' * 5000}\nu2{sign}c\n")
    rows, ledger = read(tmp_path / name)
    assert rows == [("u0", "a"), ("u2", "c")]
    assert ledger.records_dropped == {"table_line_too_long": 1}


def test_a_header_alone_is_a_table_of_no_rows(tmp_path):
    for text in ("url,text", "url,text\n", "url,text\r\n\r\n"):
        (tmp_path / "a.csv").write_bytes(text.encode())
        rows, ledger = read(tmp_path / "a.csv")
        assert rows == [] and ledger == Ledger()


CELLS = st.text(alphabet='ab",\n\t ', max_size=8)
ODD_LINES = st.lists(st.sampled_from(['http://x/,"', '"', '""', ",", "a", "\n", '"\n', "\n\n", '",', "http://x/,b"]))


@given(st.lists(st.tuples(CELLS, CELLS)), st.sampled_from([40, 1 << 20]))
def test_what_a_csv_writer_wrote_is_read_again(tmp_path_factory, rows, block):
    rows = [(f"u{first}", f"t{second}") for first, second in rows]
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(written([("url", "text"), *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "BLOCK", block)
        found, ledger = read(path)
    assert found == rows
    assert not ledger.records_dropped and not ledger.notes


def one_by_one(data):
    """All rows by `read_row`, without a search for suspicious lines."""
    rows, at, failed = [], 0, 0
    while at < len(data):
        row = quoting.read_row(data, at, COMMA, at_end=True, multiline=at >= failed)
        blank = not data[at : row.end].strip(b"\r\n")
        rows += [] if blank else [row.cells]
        at, failed = row.end, max(failed, row.tried)
    return rows


@given(ODD_LINES.map("".join), st.sampled_from([1, 3, 10, 1000]))
def test_blocks_give_the_rows_that_one_reading_gives(text, lines_at_once):
    data = text.encode()
    expected = one_by_one(data)
    lines, rest, found, count = data.splitlines(keepends=True), b"", b"", 0
    for first in range(0, max(1, len(lines)), lines_at_once):
        block = rest + b"".join(lines[first : first + lines_at_once])
        repaired = quoting.repair(block, COMMA, at_end=first + lines_at_once >= len(lines))
        found, rest, count = found + repaired.data, block[repaired.used :], count + repaired.rows
    assert rest == b"" and count == len(expected)
    assert one_by_one(found) == expected
    again = [[cell.encode() for cell in row] for row in csv.reader(io.StringIO(found.decode(), newline="")) if row]
    assert again == expected


PATTERNS = ['"', '"a', '""', 'x"""\n', '"\n"', '"a\n', 'a,"\n', '"a,"', '"\n",', "\r", "\n", ",", '" ,', ' "', '"""a,']


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_work_is_linear(pattern):
    def cost(size):
        data = (pattern * size)[:size].encode()
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            repaired = quoting.repair(quoting.without_lone_returns(data), COMMA, at_end=True)
            quoting.uses_quotes(repaired.data, COMMA)
            best = min(best, time.process_time() - start)
        return best

    assert cost(40_000) < 5 * cost(10_000) + 0.02


@needs_faults
@pytest.mark.parametrize(("name", "count"), [("02_lone_quote.tsv", 7), ("25_header_only_no_newline.csv", 0)])
def test_faults_of_the_field(name, count):
    rows, ledger = read(FAULTS / name)
    assert len(rows) == count and not ledger.records_dropped


@needs_captions
@pytest.mark.parametrize("name", ["web_alt_pages", "goodbooks", "amazon_in_products", "bing_wallpaper"])
def test_no_row_of_real_captions_is_lost(tmp_path, name):
    table = pq.read_table(CAPTIONS / f"{name}.parquet")
    columns = [field.name for field in table.schema if pa.types.is_string(field.type)]
    column = next((name for name in ("text", "caption", "alt") if name in columns), columns[-1])
    texts = [" ".join(text.split()) for text in table[column].to_pylist() if text and text.strip()]
    assert any('"' in text for text in texts)
    for sign, end in (("\t", "tsv"), (",", "csv")):
        wanted = [text.replace(sign, " ") for text in texts]
        lines = [f"url{sign}text", *(f"{url(number)}{sign}{text}" for number, text in enumerate(wanted))]
        (tmp_path / f"a.{end}").write_text("\n".join(lines), encoding="utf-8")
        rows, ledger = read(tmp_path / f"a.{end}")
        assert [address for address, _ in rows] == [url(number) for number in range(len(texts))]
        assert not ledger.records_dropped
        changed = sum(text != given_text for (_, text), given_text in zip(rows, wanted, strict=True))
        assert changed == 0 if end == "tsv" else changed < 10  # in a CSV, quotes around a whole caption are syntax


def test_columns_of_a_file_without_a_header_are_named(tmp_path):
    (tmp_path / "a.tsv").write_text(f"a cat\t{url(0)}\na dog\t{url(1)}\n")
    for name in ("columns", "table"):
        with pytest.raises(InputError, match=r"begins with a row, .*--columns text,url"):
            read(tmp_path / "a.tsv") if name == "table" else table_columns(Input("a", str(tmp_path / "a.tsv"), "table"))
    rows, _ = read(tmp_path / "a.tsv", given=("text", "url"))
    assert rows == [(url(0), "a cat"), (url(1), "a dog")]
    (tmp_path / "a.tsv").write_text(f"TEXT\tURL\na cat\t{url(0)}\n")  # the names stand there all the same
    assert read(tmp_path / "a.tsv", given=("text", "url"))[0] == [(url(0), "a cat")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mac.csv", "url,text\rhttp://x/0,a\rhttp://x/1,b\r"),
        ("excel.csv", "sep=;\r\nurl;text\r\nhttp://x/0;a\r\nhttp://x/1;b\r\n"),
        ("unpacked_by_the_server.csv.gz", "url,text\nhttp://x/0,a\nhttp://x/1,b\n"),
        ("pairs.txt", "caption\turl\na\thttp://x/0\nb\thttp://x/1\n"),
    ],
)
def test_files_as_other_programs_leave_them(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    (source,) = expand([str(tmp_path / name)])
    ledger = Ledger()
    rows = [(row["url"], row["text"]) for batch in read_table(source, ledger=ledger) for row in batch.to_pylist()]
    assert rows == [(url(0), "a"), (url(1), "b")] and not ledger.records_dropped
