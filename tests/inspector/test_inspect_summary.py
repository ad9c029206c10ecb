"""The summary of training content: sections, sizes of domains, and what only the provider knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.dataset import training_summary
from pipeline.dataset.training_summary import Counted, domains, largest_domains
from pipeline.engine.cli import DONE, MISSING, USAGE


def test_the_summary_of_a_set(run: Any, published: Path, tmp_path: Path) -> None:
    code, text, _ = run("summary", published, "--json")
    found = json.loads(text)
    assert code == DONE and [name[0] for name in list(found)[1:]] == ["1", "2", "3"]
    crawl = found["2_list_of_data_sources"]["2.3_data_crawled_and_scraped"]
    assert crawl["domains"]["listed"] == 1 and crawl["domains"]["counted"] == 4
    size = found["1_general_information"]["1.3_modalities"]
    assert size["image"]["images"] == 30 and size["image"]["size"] == "less than 1 million images"
    assert sum(row["pairs"] for row in size["languages"]) == 30
    assert found["1_general_information"]["1.1_provider"]["name"] is None
    code, text, _ = run("summary", published)
    assert code == DONE and text.startswith("# Public summary") and not set("\x1b\x07") & set(text)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## 1. General information", "## 2. List of data sources", "## 3. Data processing aspects"
    ]  # fmt: skip
    assert text.count("[to be filled in by the provider of the model]") > 10
    assert run("summary", published, "--to", tmp_path / "s.md")[0] == DONE
    assert (tmp_path / "s.md").read_text() == text
    assert run("summary", published, "--to", tmp_path / "s.md")[0] == USAGE
    assert run("summary", tmp_path)[0] == MISSING


def test_sizes_go_to_the_hosts_of_images_and_pages() -> None:
    rows = {
        "url": ["https://WWW.a.example:8080/x.jpg", "http://u@b.example./y.jpg", "http://a.example/z.jpg"],
        "page_url": ["https://blog.c.example/1", "", "http://www.a.example/"],
        "text_source": ["alt", "table", "alt"],
        "source_file": ["crawl-data/CC-MAIN-2026-05/x.warc.gz", "t.csv", "crawl-data/CC-MAIN-2026-05/x.warc.gz"],
        "language": ["en", None, "de"],
        "jpg_size": [100, 50, 10],
        "txt_size": [7, 5, 3],
    }
    counted = Counted()
    counted.add(pa.table(rows))
    counted.add(pa.table(rows).slice(0, 0))
    assert counted.domains == {"a.example": 113, "b.example": 50, "blog.c.example": 7}
    assert counted.tables == {"t.csv": 1} and sum(counted.archives.values()) == 2 and counted.text_bytes == 15
    assert domains(pa.chunked_array([["no url"]])).to_pylist() == ["(none)"]


@pytest.mark.parametrize(
    ("count", "small", "listed"), [(1, False, 1), (95, False, 10), (95, True, 5), (40_000, True, 1_000), (0, False, 0)]
)
def test_the_largest_domains(count: int, small: bool, listed: int) -> None:
    found = largest_domains({f"d{number}": number for number in range(count)}, small=small)
    assert len(found) == listed and found == sorted(found, key=lambda row: -row[1])


def test_ranges_are_those_of_the_template() -> None:
    words = [training_summary._range(number, training_summary.IMAGE_RANGES) for number in (0, 10**6, 10**9, 10**9 + 1)]
    assert [text.split(" images")[0] for text in words] == [
        "less than 1 million", "1 million to 1 billion", "1 million to 1 billion", "more than 1 billion"
    ]  # fmt: skip
