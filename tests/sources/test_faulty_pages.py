"""Small inputs that went wrong once, with their right values (shared/data/faults)."""

from pathlib import Path

import pytest

from pipeline.engine.ledger import Ledger
from pipeline.fetching.robots import Rules, forbidding_tag
from pipeline.sources.html import extract_pairs, largest_candidate
from pipeline.sources.warc import read_warc
from tests.archives import record
from tests.places import DATA

FAULTS = DATA / "faults"
pytestmark = pytest.mark.skipif(not FAULTS.is_dir(), reason="the shared faults are not here")


def content(name: str) -> bytes:
    return (FAULTS / name).read_bytes()


def pairs(name: str) -> list[tuple[str, str]]:
    page = extract_pairs(content(name), "http://h.example/d/p")
    return list(zip(page.urls, page.texts, strict=True))


def test_charsets() -> None:
    assert pairs("07_xml_declaration.html") == [("http://h.example/c.jpg", "кошка на окне")]
    assert pairs("08b_charset_in_description.html") == [("http://h.example/c.jpg", "café au lait")]


def test_links() -> None:
    assert [url for url, _ in pairs("09_backslash.html")] == ["http://h.example/images/c.jpg", "http://b.example/f.jpg"]
    assert [url for url, _ in pairs("29_triple_slash.html")] == ["http://d.example/d.jpg"]


def test_srcset() -> None:
    best = [largest_candidate(line) for line in content("11_srcset.txt").decode().splitlines()]
    assert best == ["b.jpg", "a.jpg", "a.jpg", "a.jpg", "data:,c"]


def test_opt_outs() -> None:
    headers = content("03_x_robots_tag_date.http").decode().splitlines()
    tags = [line.partition(":")[2] for line in headers if line.startswith("X-Robots-Tag")]
    assert forbidding_tag(tags, "OpenWIT") == "noimageai"
    assert not Rules(content("04_robots_version.txt"), "OpenWIT").allow("http://h.example/a.jpg")
    for agent in ("OpenWIT", "Other"):
        assert not Rules(content("04b_robots_unknown_line.txt"), agent).allow("http://h.example/a.jpg")


def test_records(tmp_path: Path) -> None:
    two_types = record(content("10_two_content_types.http"), url="http://h.example/p")
    for name, data in (("a.warc", two_types), ("b.warc", content("27_upper_scheme.warc"))):
        (tmp_path / name).write_bytes(data)
        batches = list(read_warc(str(tmp_path / name), ledger=Ledger()))
        assert [text for batch in batches for text in batch["text"].to_pylist()] == ["a small cat"]
