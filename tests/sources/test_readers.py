"""Readers: a new source is one file and one entry. Only `pipeline.sources` knows the names of formats."""

from __future__ import annotations

import ast
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import build, inspect_shards
from pipeline.engine.cli import CRASHED, DONE, MISSING
from pipeline.engine.ledger import Ledger
from pipeline.engine.options import declared
from pipeline.schema import CANDIDATES, TEXT_SOURCES
from pipeline.sources import READERS, set_reader, tables, tar_reader, warc, wat, web_archives
from pipeline.sources.base import BATCH_ROWS, Input, Reader, ReadSettings, candidates_of_pairs, read_whole
from pipeline.sources.inputs import InputError, expand, readable
from pipeline.stages.gather import GatherSettings
from tests.places import ROOT
from tests.rows import with_both
from tests.sources import pair_lists

PAIRS = [
    *({"image": f"https://a.example/{number}.jpg", "caption": f"a red dog, number {number}"} for number in range(6)),
    {"image": "https://a.example/cat.jpg", "caption": "a cat"},
    {"image": None, "caption": "a dog without a picture"},
    {"image": "https://a.example/nothing.jpg"},
]


@pytest.fixture
def pairs(shipped: None, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Adds the one entry that the new source needs."""
    monkeypatch.setitem(READERS, "pairs", pair_lists.Pairs())
    return READERS["pairs"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Inputs of the new source, files that no reader takes, and a query list."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.pairs.json").write_text(json.dumps(PAIRS))
    (tmp_path / "in" / "notes.json").write_text("[]")
    (tmp_path / "queries.txt").write_text("dog\n")
    return tmp_path


def arguments(folder: Path, *more: str, source: str = "in") -> list[str]:
    paths = ["--input", str(folder / source), "--queries", str(folder / "queries.txt"), "--output", str(folder / "out")]
    return [*paths, "--stages", "gather..balance", "--workers", "1", *more]


def rows_of(source: Input, ledger: Ledger | None = None) -> list[pa.RecordBatch]:
    reader, ledger = READERS[source.format], ledger or Ledger()
    batches = reader.read(source, ledger=ledger, images=[], settings=ReadSettings())
    return with_both(pa.Table.from_batches(batches, CANDIDATES), ledger).to_batches()


def info(folder: Path, stage: str) -> dict:
    return json.loads((folder / "out" / "stages" / stage / "info.json").read_text())


# ---------------------------------------------------------------------------------------------------- a new source


def test_a_new_source_goes_the_whole_way(pairs: Reader, folder: Path) -> None:
    assert build.main(arguments(folder)) == DONE
    gather = info(folder, "gather")
    assert (gather["records_in"], gather["rows_in"], gather["rows_out"]) == (9, 9, 7)
    assert gather["dropped"] == {"null_text": 1, "null_url": 1}
    assert gather["decided_by"]["language_model"] == "none"  # a list of pairs has no pages
    assert info(folder, "match")["dropped"] == {"no_query": 1} and info(folder, "balance")["rows_out"] == 6


def test_a_new_source_is_estimated(pairs: Reader, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "in" / "a.pairs.json").open("a") as file:
        file.write(" " * 120_000)
    assert build.main(arguments(folder, "--plan", "--json")) == DONE
    plan = json.loads(capsys.readouterr().out)
    size = (folder / "in" / "a.pairs.json").stat().st_size
    assert plan["bytes"] == {"pairs": size} and plan["estimate"]["pairs"] == 9
    assert plan["rows"]["match"] == {"low": 6, "value": 6, "high": 6} and plan["sample"]["whole"]
    assert not (folder / "out").exists()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_new_source_is_known_by_its_first_bytes(pairs: Reader, tmp_path: Path, pack) -> None:
    (tmp_path / "list").write_bytes(pack(json.dumps(PAIRS).encode()))
    (made,) = expand([str(tmp_path / "list")])
    assert (made.name, made.format) == ("list", "pairs")
    assert sum(map(len, rows_of(made))) == 7
    (tmp_path / "other").write_bytes(pack(b"[1, 2]"))
    with pytest.raises(
        InputError, match=r"has an unknown format, .* \*\.pairs\.json \(also \.gz\); or set --input-format"
    ):
        expand([str(tmp_path / "other")])


def test_a_file_of_another_kind_is_refused_before_anything_is_written(
    pairs: Reader, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in {"object": b"{}", "binary": b"\xff\xfe[]", "empty": b""}.items():
        (folder / f"{name}.pairs.json").write_bytes(data)
        for more in ([], ["--plan"]):
            assert build.main(arguments(folder, *more, source=f"{name}.pairs.json")) == MISSING
            assert f"'{name}.pairs.json' is no JSON array of pairs" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "data",
    [json.dumps(PAIRS).encode()[:100], b'[{"image": ' + b"[" * 100_000, b"[\xff\xfe]"],
    ids=["cut", "deep", "binary"],
)
def test_a_damaged_file_is_named_when_it_is_read(
    pairs: Reader, folder: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    (folder / "bad.pairs.json").write_bytes(data)
    assert build.main(arguments(folder, source="bad.pairs.json")) == CRASHED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pipeline.build: 'bad.pairs.json' is no JSON array of pairs (cut or damaged?): ")


@pytest.mark.parametrize("bad", [b'{"image": "a\xff"}', b'{"caption": 3}', b"7", b"null"])
def test_a_bad_record_is_a_counted_loss(pairs: Reader, tmp_path: Path, bad: bytes) -> None:
    whole = [json.dumps(pair).encode() for pair in PAIRS]
    data = b"\xef\xbb\xbf [" + b", ".join([*whole[:3], bad, *whole[3:]]) + b"]"
    (tmp_path / "a.pairs.json").write_bytes(data)
    (source,) = expand([str(tmp_path)])
    ledger = Ledger()
    assert [row["offset"] for batch in rows_of(source, ledger) for row in batch.to_pylist()] == [0, 1, 2, 4, 5, 6, 7]
    assert (ledger.records_in, ledger.records_dropped, ledger.rows_in) == (10, {"bad_record": 1}, 9)


def test_the_summary_tells_of_lost_records_and_of_inputs_without_pairs(
    pairs: Reader, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "in" / "bad.pairs.json").write_text('[{"image": 1}, 2, {"caption": []}]')
    (folder / "in" / "empty.pairs.json").write_text(" []")
    assert build.main(arguments(folder)) == DONE
    lines = ["    lost: 3 records (bad_record)", "    notes: input_without_pairs 2"]
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line in lines] == lines
    assert shown.index(lines[0]) < next(number for number, line in enumerate(shown) if line.startswith("match"))
    assert inspect_shards.main(["info", str(folder / "out")]) == DONE
    assert [line for line in capsys.readouterr().out.splitlines() if line in lines] == lines
    assert build.main(arguments(folder, "--json")) == DONE
    gather = json.loads(capsys.readouterr().out)["ledger"][0]
    assert (gather["records_dropped"], gather["notes"]) == ({"bad_record": 3}, {"input_without_pairs": 2})


class Broken(pair_lists.Pairs):
    """A reader with a bug."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self, source, *, ledger, images, settings):
        yield from super().read(source, ledger=ledger, images=images, settings=settings)
        raise self.error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "it is 'bad'"),
            "UnicodeDecodeError: 'utf-8' codec can't decode byte",
        ),
        (KeyError("image"), "KeyError: 'image'"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (AssertionError(), "AssertionError"),
        (gzip.BadGzipFile("CRC check failed"), "BadGzipFile: CRC check failed"),
    ],
)
def test_an_error_inside_a_reader_is_one_line_with_the_input_and_the_reader(
    pairs: Reader,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    text: str,
) -> None:
    monkeypatch.setitem(READERS, "pairs", Broken(error))
    assert build.main(arguments(folder)) == CRASHED
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"pipeline.build: 'a.pairs.json': the reader pairs failed: {text}")
    assert last.endswith(". Run the same command again to continue.") and "while running" not in last


PROGRAM = """
import sys
from pipeline.sources import READERS
from tests.sources.pair_lists import Pairs
READERS["pairs"] = Pairs()
from pipeline import build, inspect_shards
sys.exit(build.main(sys.argv[1:]))
"""


def test_the_user_may_name_a_new_format(folder: Path) -> None:
    """Runs in a new process, where the entry exists before the options are declared."""
    (folder / "in" / "a.pairs.json").rename(folder / "list.txt")
    given = arguments(folder, "--input-format", "pairs", "--plan", "--json", source="list.txt")
    done = subprocess.run([sys.executable, "-c", PROGRAM, *given], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == DONE, done.stderr
    assert list(json.loads(done.stdout)["bytes"]) == ["pairs"]


def test_the_example_is_short() -> None:
    assert len(Path(pair_lists.__file__).read_text().splitlines()) <= 60


def test_contributing_shows_the_example() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert Path(pair_lists.__file__).read_text().strip() in text


# ------------------------------------------------------------------------------------------------------ what is there


def test_what_can_be_read_is_said_from_the_readers(pairs: Reader, tmp_path: Path) -> None:
    assert readable() == (
        "*.wat (also .gz, .lz4, .zst), *.warc *.arc (also .gz, .lz4, .zst), *.wacz, "
        "*.parquet, *.csv *.tsv *.jsonl *.ndjson *.json (also .gz, .zst), *.tar, *.pairs.json (also .gz)"
    )
    with pytest.raises(InputError, match=r"holds no file to read: expected .*\*\.pairs\.json"):
        expand([str(tmp_path)])
    with pytest.raises(InputError, match="use auto, wat, warc, table, set, webdataset or pairs"):
        expand([str(tmp_path)], input_format="what")


def test_the_option_offers_the_readers() -> None:
    (option,) = [item for item in declared(GatherSettings) if item.name == "input_format"]
    assert option.choices == ("auto", *READERS)


def test_readers_are_complete() -> None:
    for name, reader in READERS.items():
        assert reader.name == name and (reader.suffixes or reader.stores_images) and reader.bytes_per_pair > 0
        assert all(reader.claims(f"A{suffix.upper()}") for suffix in reader.suffixes)
        assert reader.expected_rows(Input("a", "a", name, 1_000_000)) >= 1_000_000 / reader.bytes_per_pair
        assert reader.expected_rows(Input("a", "a", name)) > 0
    assert (
        READERS["wat"].size(Input("a", "a", "wat")) == 350 << 20 and READERS["wat"].size(Input("a", "a", "wat", 7)) == 7
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("a.warc", "warc"), ("A.WARC.GZ", "warc"), ("a.arc.lz4", "warc"), ("a.wacz", "warc"), ("a.wacz.gz", None)),
        ("a.water.warc.gz", "warc"),
        *(("a.wat", "wat"), ("a.warc.wat.gz", "wat"), ("a.wat.0001.warc.gz", "wat"), ("a.arc.wat.zst", "wat")),
        *(("a.parquet", "table"), ("a.parquet.gz", None), ("a.ndjson.zst", "table"), ("a.csv.lz4", None)),
        *(("warc", None), ("a.warc.wet.gz", None), ("a.wat.txt", None), ("a.json", None)),
    ],
)
def test_names_tell_formats(shipped: None, name: str, expected: str | None) -> None:
    assert next((reader.name for reader in READERS.values() if reader.claims(name)), None) == expected


def test_pairs_become_candidates() -> None:
    ledger = Ledger()
    url, text, page = (
        pa.array(["u", None, "w", None]),
        pa.array(["t", "t", None, None]),
        pa.array([None, "p", "p", "p"]),
    )
    row, *others = candidates_of_pairs(url, text, pa.array([3, 4, 5, 6]).to_numpy(), ledger, page=page).to_pylist()
    assert [(other["url"], other["text"]) for other in others] == [(None, "t"), ("w", None), (None, None)]
    assert (row["url"], row["text"], row["page_url"], row["offset"]) == ("u", "t", "", 3)
    assert TEXT_SOURCES[row["text_source"]] == "table"
    assert (ledger.rows_in, dict(ledger.dropped)) == (4, {})  # gather drops and counts the others
    many = pa.nulls(BATCH_ROWS + 1, pa.string()).fill_null("x")
    with pytest.raises(ValueError, match=r"65537 rows; the most is 65536"):
        candidates_of_pairs(many, many, pa.array(range(BATCH_ROWS + 1)).to_numpy(), ledger)


def test_a_whole_file_is_bounded(tmp_path: Path) -> None:
    path, packed = tmp_path / "plain", tmp_path / "packed"
    path.write_bytes(b"x" * 1000)
    packed.write_bytes(gzip.compress(b"x" * 1000))
    assert read_whole(str(path), max_bytes=1000) == read_whole(str(packed), max_bytes=1000) == b"x" * 1000
    for each in (path, packed):
        with pytest.raises(InputError, match="has over 999 bytes unpacked"):
            read_whole(str(each), max_bytes=999)
    for damaged in (packed.read_bytes()[:-4], packed.read_bytes()[:12] + b"damage" + packed.read_bytes()[12:]):
        packed.write_bytes(damaged)
        with pytest.raises(InputError, match="no whole gzip file"):
            read_whole(str(packed))


@pytest.mark.parametrize("text", ['{"url": "https://a.example/1.jpg", "text": "a dog"}\n', "url\ttext\nu\tt\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_text_table_without_a_telling_name_is_read_packed_or_not(tmp_path: Path, text: str, pack) -> None:
    (tmp_path / "list").write_bytes(pack(text.encode()))
    (source,) = expand([str(tmp_path / "list")], input_format="table")
    READERS["table"].check([source], ReadSettings())
    assert sum(map(len, rows_of(source))) == 1


# ---------------------------------------------------------------------------------------------- nobody else knows them


def formats_named(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, format) where code asks for a format by name: in a comparison, a `match`, an index or a dict of formats.

    A word alone is none: "pairs" is a unit, too.
    """
    for node in ast.walk(tree):
        asked: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                asked += side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Subscript) and "READERS" in ast.dump(node.value):
            asked = [node.slice]
        elif isinstance(node, ast.Dict) and len(set(map(literal, node.keys)) & set(READERS)) > 1:
            asked = [*node.keys]
        yield from ((node.lineno, name) for name in map(literal, asked) if name in READERS)


def literal(node: ast.expr | None) -> str:
    """The text of a literal; "" of anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_no_format_is_named_outside_the_sources(shipped: None) -> None:
    """Of the shipped readers: the name of a new one may be a word that has another meaning elsewhere ("rows")."""
    files = [path for path in (ROOT / "pipeline").rglob("*.py") if path.parent.name != "sources"]
    assert len(files) > 50
    found = [(path.name, *place) for path in files for place in formats_named(ast.parse(path.read_text()))]
    assert not found


@pytest.mark.parametrize(
    ("code", "count"),
    [
        *(("item.format == 'warc'", 1), ("'wat' != kind", 1), ("kind in ('wat', 'warc')", 2), ("READERS['table']", 1)),
        *(("{'wat': 1, 'warc': 2}", 2), ("match kind:\n case 'wat':\n  pass", 1)),
        *(("option(1, unit='pairs')", 0), ("TEXT_SOURCES = ('alt', 'table')", 0), ("{'pairs': 3, 'rows': 2}", 0)),
    ],
)
def test_what_counts_as_naming_a_format(pairs: Reader, code: str, count: int) -> None:
    assert len([*formats_named(ast.parse(code))]) == count


def test_only_the_registry_imports_the_readers() -> None:
    """Stages use `READERS`. A module that imports one reader would know its format."""
    known = {module.__name__ for module in (wat, warc, web_archives, tables, set_reader, tar_reader)}
    for path in (ROOT / "pipeline").rglob("*.py"):
        if path.parent.name == "sources":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not names & known, f"{path}:{node.lineno}"


def test_readers_are_light() -> None:
    """`--help` loads the readers, so they import heavy packages only when they read."""
    program = "import sys, pipeline.sources; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    heavy = {"numba", "selectolax", "zstandard", "lz4", "brotli", "deflate", "fsspec", "apache_beam"}
    parsers = {f"pipeline.sources.{name}" for name in ("archive", "html", "warc", "wat")}
    assert not (heavy | parsers) & set(out.split())


def test_every_reader_gives_candidates(tmp_path: Path, pairs: Reader, folder: Path) -> None:
    (tmp_path / "a.csv").write_text("url,text\nhttps://a.example/1.jpg,a dog\n")
    for path in (tmp_path / "a.csv", folder / "in" / "a.pairs.json"):
        (source,) = expand([str(path)])
        ledger = Ledger()
        batches = rows_of(source, ledger)
        assert all(batch.schema == CANDIDATES for batch in batches)
        assert ledger.rows_in == sum(map(len, batches)) + sum(ledger.dropped.values()) > 0
