"""croissant.json and the card: they say what is so, mlcroissant takes them without a warning and reads the records."""

from __future__ import annotations

import importlib
import json
import logging
import re
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.dataset import card, croissant
from pipeline.dataset.shards import FileEntry
from pipeline.dataset.summary import Summary
from pipeline.engine import storage
from tests import samples

CRAWLED = {"first": "2026-01-05", "last": "2026-01-19", "archives": 3}
ENTRIES = [FileEntry("shards/00000.tar", 10, 3, "ab"), FileEntry("metadata/00000.parquet", 5, 3, "cd")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    infos = [samples.write_shard(folder, list(range(start, start + 10)), ranges=samples.ranges_of(10))
             for start in (0, 10)]  # fmt: skip
    options = samples.OPTIONS | {"creator": "A. {Nobody}"}
    samples.finish(folder, infos, ranges=samples.ranges_of(10), ledger=samples.ledger(20), options=options,
                   versions={}, crawled=CRAWLED)  # fmt: skip
    return folder


def about(**options: str) -> croissant.About:
    return croissant.About.of(ENTRIES, options, CRAWLED, languages=["en"], sources="web archives")


def test_it_names_every_shard_and_column(folder: Path) -> None:
    data = json.loads((folder / "croissant.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    said = {item["contentUrl"]: item["sha256"] for item in data["distribution"] if "sha256" in item}
    assert said == {e["path"]: e["sha256"] for e in manifest["files"] if e["path"].endswith((".tar", ".parquet"))
                    and e["path"].startswith(("shards", "metadata"))}  # fmt: skip
    fields = {field["name"] for field in data["recordSet"][1]["field"]}
    assert fields == set(storage.read_published(str(folder / "metadata/00000.parquet")).column_names)
    assert manifest["crawled"] == CRAWLED


def test_mlcroissant_takes_it_without_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    extract = importlib.import_module("mlcroissant._src.operation_graph.operations.extract")
    # It caches extracted files by the name "shards/00000.tar" only: it would use an earlier set instead of this one.
    monkeypatch.setattr(extract, "EXTRACT_PATH", type(extract.EXTRACT_PATH)(tmp_path))
    monkeypatch.chdir(folder)
    with pytest.warns() as warned, caplog.at_level(logging.WARNING):  # of Python: its own libraries are old
        found = {}
        for name in ("samples", "pictures", "pairs"):  # a Dataset reads a record set once
            dataset = mlcroissant.Dataset(jsonld="croissant.json")
            found[name] = list(dataset.records(name))
    assert not dataset.metadata.ctx.issues.report() and not caplog.records
    assert all(issubclass(one.category, DeprecationWarning | ResourceWarning | FutureWarning) for one in warned)
    assert str(dataset.metadata.date_published)[:10] == "2026-01-19" and dataset.metadata.creators[0].name
    rows, pictures = found["samples"], found["pictures"]
    assert len(rows) == 20 and rows[5]["samples/text"].decode() == samples.fetched(6)["text"][5].as_py()
    assert {row["pictures/key"] for row in pictures} == {row["samples/key"] for row in rows}
    texts = {row["samples/key"]: row["samples/text"] for row in rows}
    assert {row["pairs/key"]: row["pairs/text"] for row in found["pairs"]} == texts
    assert {row["pairs/image"].size for row in found["pairs"]} == {(40, 32)}


def test_version_date_and_citation_follow_the_data() -> None:
    one, other = about(), about(date="2025-12-31", creator="A. {Nobody}\\")
    assert one.date == "2026-01-19" and other.date == "2025-12-31" and one.version == other.version
    assert re.fullmatch(r"1\.0\.0\+[0-9a-f]{12}", one.version)
    assert "author = {{A. Nobody}},\n  year = {2025}" in other.citation() and "3 pairs" in other.citation()
    changed = [FileEntry("shards/00000.tar", 10, 3, "ac"), *ENTRIES[1:], FileEntry("README.md", 1, 0, "ee")]
    assert croissant.version_of(changed) != one.version == croissant.version_of([*ENTRIES, changed[-1]])
    without = croissant.About.of(ENTRIES, {}, {}, languages=[], sources="tables")
    described = croissant.describe(without, ENTRIES, pa.schema([]))
    assert "datePublished" not in described and "rai:dataCollectionTimeframe" not in described


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"alt": 3}, "web archives"),
        ({"table": 3}, "tables of URLs and texts"),
        ({"table": 1, "alt": 2}, "web archives and tables of URLs and texts"),
    ],
)
def test_the_card_says_where_the_pairs_come_from(counts: dict[str, int], said: str) -> None:
    s = Summary(samples=3)
    s.text_sources.update(counts)
    assert card.sources_of(s) == said


def test_the_card_of_a_small_set(folder: Path) -> None:
    s = Summary(samples=1, licensed=1)
    refused = {"robots": {"seen": 9, "pairs": 2, "examples": []}}
    facts = {"s": s, "shards": ["shards/00000.tar"], "ranges": 1, "queries": 0}
    ledger = [{"stage": "fetch", "rows_in": 9, "rows_out": 7, "dropped": {"opt_out": 2}, "rights": refused}]
    text = card.card(facts, about=about(), ledger=ledger, options={})
    assert "1 pair of an image and its text in 1 shard (" in text and "1 pair comes from pages" in text
    assert "| robots | 9 | 2 |" in text and "not compared with evaluation sets" in text
    assert "Crawled: 2026-01-05 to 2026-01-19" in text and "- Date: 2026-01-19" in text
    text = (folder / "README.md").read_text()
    assert "20 pairs of an image and its text in 2 shards" in text and "author = {{A. Nobody}}" in text
