"""Card, croissant.json and page: hostile text is escaped, facts about this machine are absent, numbers are right."""

from __future__ import annotations

import base64
import html.parser
import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset import report, shards, summary
from pipeline.engine import shuffle_files, storage
from pipeline.engine.display import sanitize, size
from tests import samples

HOSTILE = {
    0: "</figcaption><script>alert(1)</script>",
    1: '"><img src=x onerror=alert(1)>',
    2: "\x1b]0;title\x07 \x1b[31mred\x1b[0m",
    3: "\u202egnp.exe\u202c {{ 7*7 }} {% raw %}",
    4: "--- | ` <!-- ",
}
ALLOWED = set(
    "html head meta title style body h1 h2 p div b table tr th td bdi section svg g text rect figure img figcaption "
    "br small".split()
)


class Page(html.parser.HTMLParser):
    """Collects the elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    samples.publish(folder, count=60, per_shard=25, texts=HOSTILE)
    return folder


def test_the_page_holds_only_elements_of_the_template(folder: Path) -> None:
    text = (folder / "report/index.html").read_text()
    page = Page(text)
    assert set(page.tags) <= ALLOWED and page.open == []
    assert {name for _, name, _ in page.attributes} <= set(
        "lang charset http-equiv content name class width height role viewbox transform x y".split()
        + "text-anchor alt loading src".split()
    )
    assert all(value.startswith("data:image/jpeg;base64,") for _, name, value in page.attributes if name == "src")
    assert "default-src 'none'; img-src data:" in text
    assert '"><img src=x onerror=alert(1)>' in page.text  # of a rejected row, shown as text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert not re.search(r"""(src|href|url\()=?["']?(https?:)?//""", text)


def test_the_page_tells_the_numbers(folder: Path) -> None:
    text = Page((folder / "report/index.html").read_text()).text
    assert "60 image-text pairs" in text and "fetch: dns" in text and "gather: empty_text" in text
    assert "bilder.example.de" in text and "harbour" in text and "of 8 queries met" in text


def test_the_gallery_shows_stored_pictures_chosen_by_hash(folder: Path) -> None:
    page = Page((folder / "report/index.html").read_text())
    shown = [base64.b64decode(value.split(",")[1]) for _, name, value in page.attributes if name == "src"]
    assert len(shown) == report.PICTURES
    keys = [uid.hex() for uid in samples.fetched(60)["uid"].to_pylist()]
    chosen = sorted(range(60), key=lambda number: keys[number][16:])[: report.PICTURES]
    assert shown == [samples.jpeg(number) for number in chosen]


def test_the_card_has_a_head_that_the_hub_can_read(folder: Path) -> None:
    yaml = pytest.importorskip("yaml")
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["configs"] == [{"config_name": "default", "data_files": "shards/*.tar"}]
    assert yaml.safe_load(head)["size_categories"] == ["n<1K"]
    assert "| fetch | 73 | 63 | decode 1, dns 5, http 4 |" in body and "shards/{00000..00002}.tar" in body
    assert "- cap: `20000`" in body and "were left out" in body
    lines = body.splitlines()
    tables = [n for n, line in enumerate(lines) if line.startswith("|---")]
    assert len(tables) == 3 and all(lines[n - 2] == "" for n in tables)  # otherwise Markdown shows no table


def test_the_card_claims_only_what_was_done(folder: Path) -> None:
    facts = {"s": summary.Summary(), "shards": ["shards/00000.tar"], "ranges": 1, "queries": 0}
    text = report.card(facts, ledger=[], options={"balance": "none", "respect_opt_out": False})
    assert "balanced over" not in text and "undoes the balancing" not in text and "NOT left out" in text
    assert "balanced over" in (folder / "README.md").read_text()


def test_the_pages_show_no_facts_about_this_machine(folder: Path) -> None:
    for path in ("README.md", "report/index.html", "croissant.json"):
        text = (folder / path).read_text()
        assert str(folder) not in text and sys.version.split()[0] not in text
        assert not re.search(r"\b20\d\d-\d\d-\d\d\b", text)


def test_croissant_names_every_shard_and_column(folder: Path) -> None:
    data = json.loads((folder / "croissant.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    said = {item["contentUrl"]: item["sha256"] for item in data["distribution"] if "sha256" in item}
    assert said == {e["path"]: e["sha256"] for e in manifest["files"] if e["path"].endswith((".tar", ".parquet"))
                    and e["path"].startswith(("shards", "metadata"))}  # fmt: skip
    fields = {field["name"] for field in data["recordSet"][1]["field"]}
    assert fields == set(storage.read_published(str(folder / "metadata/00000.parquet")).column_names)


@pytest.mark.filterwarnings("ignore")
def test_mlcroissant_reads_it(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    extract = importlib.import_module("mlcroissant._src.operation_graph.operations.extract")
    # It caches extracted files by the name "shards/00000.tar" only: it would use an earlier set instead of this one.
    monkeypatch.setattr(extract, "EXTRACT_PATH", type(extract.EXTRACT_PATH)(tmp_path))
    monkeypatch.chdir(folder)
    dataset = mlcroissant.Dataset(jsonld="croissant.json")
    rows = list(dataset.records("samples"))
    assert len(rows) == 60 and rows[5]["samples/text"].decode() == samples.fetched(6)["text"][5].as_py()
    pictures = list(dataset.records("pictures"))
    assert {row["pictures/key"] for row in pictures} == {row["samples/key"] for row in rows}
    assert pictures[0]["pictures/image"].size == (40, 32)


def test_files_add_up_to_the_same_summary_however_they_are_cut() -> None:
    rows = pa.concat_tables([samples.fetched(50)])
    from pipeline.dataset.shards import describe

    table = describe(rows, 0)
    whole, parts = summary.Pick(7), summary.Pick(7)
    once = summary.summarise([table], pick=whole)
    cut = summary.summarise([table.slice(30), table.slice(0, 11), table.slice(11, 19)], pick=parts)
    assert once == cut and whole.table() == parts.table()
    assert once.samples == 50 and once.languages == {"en": 33, summary.NO_VALUE: 17}
    assert once.matched.counts.sum() == 100 and once.kept_by.counts.sum() == 25


@pytest.mark.parametrize("count", [1, 7])
def test_packed_shards_add_up_to_the_same_summary(tmp_path: Path, count: int) -> None:
    table = shards.describe(samples.fetched(90), 0)
    table = table.set_column(0, shards.METADATA.field("key"), pa.array([key[::-1] for key in table["key"].to_pylist()]))
    opt_out = pa.array([None, "noai", "noai,noindex"] * 30, pa.string())
    table = table.set_column(table.column_names.index("opt_out"), shards.METADATA.field("opt_out"), opt_out)
    whole, merged = summary.Pick(7), summary.Pick(7)
    once = summary.summarise([table], pick=whole)
    paths = []
    for number, (start, rows) in enumerate(((0, 30), (30, 1), (31, 0), (31, 59))):
        pick = summary.Pick(7)
        numbers = summary.summarise([table.slice(start, rows).select(summary.COLUMNS)] if rows else [], pick=pick)
        paths.append(str(tmp_path / f"{number}.summary"))
        shuffle_files.write(paths[-1], summary.pack(numbers, pick, count))
    assert summary.merge(paths, count, merged) == once
    assert merged.table() == whole.table().select(summary.PICKED.names)
    assert once.host_count == 4 and once.licensed == 18 and once.opt_outs == {"noai": 60, "noindex": 30}


def test_of_many_names_the_most_frequent_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "MOST_NAMES", 3)
    monkeypatch.setattr(summary, "ENTRIES_AT_ONCE", 5)  # forces partial sums
    paths = []
    for number in range(4):
        numbers = summary.Summary()
        numbers.hosts.update({f"h{host:02}": host // 2 for host in range(number, 30)})
        numbers.licenses.update({summary.NO_VALUE: 5})
        paths.append(str(tmp_path / f"{number}.summary"))
        shuffle_files.write(paths[-1], summary.pack(numbers, summary.Pick(2), 4))
    found = summary.merge(paths, 4, summary.Pick(2))
    assert found.hosts == {"h29": 56, "h28": 56, "h26": 52} and found.host_count == 30
    assert found.licenses == {summary.NO_VALUE: 20}
    numbers = summary.Summary()
    numbers.hosts.update(dict.fromkeys("dbeca", 7))  # with equal counts, the first by name stays
    shuffle_files.write(paths[0], summary.pack(numbers, summary.Pick(2), 1))
    assert summary.merge(paths[:1], 1, summary.Pick(2)).hosts == dict.fromkeys("abc", 7)


def test_counts_by_number_are_those_of_a_counter() -> None:
    numbers = [5, 0, 5, 2, 5, 9, 0]
    counts = summary.IdCounts()
    for part in (numbers[:3], [], numbers[3:]):
        counts.add(np.array(part, np.int32))
    counts.add(np.array([12, 2], np.int32), np.array([4, 1]))
    wanted = Counter(numbers + [12] * 4 + [2])
    assert dict(counts.items()) == wanted and len(counts) == len(wanted)
    assert [counts[number] for number in range(20)] == [wanted[number] for number in range(20)]
    assert summary.top(counts, 2) == [(12, 4), (5, 3)] and not summary.IdCounts()


def test_rejected_rows_are_the_first_of_each_reason(tmp_path: Path) -> None:
    rows = [(f"u{n}", f"t{n}", "gather" if n % 2 else "match", f"reason {n % 3}") for n in range(60)]
    table = pa.table(dict(zip(("url", "text", "stage", "reason"), zip(*rows, strict=True), strict=True)))
    storage.write_published(str(tmp_path / "rejected/a.parquet"), table.slice(0, 40))
    storage.write_published(str(tmp_path / "rejected/b.parquet"), table.slice(40))
    found = report._rejected(str(tmp_path))
    for why in {row[2:] for row in rows}:
        first = [row[0] for row in rows if row[2:] == why][: report.REJECTED_A_REASON]
        assert [row["url"] for row in found if (row["stage"], row["reason"]) == why] == first
    assert len(found) == 6 * report.REJECTED_A_REASON


def test_histogram_counts_every_value() -> None:
    edges = {name: getattr(summary.Summary(), name).edges for name in summary.HISTOGRAMS}
    assert edges == {
        "text_length": (5, 10, 20, 40, 80, 160, 320, 640, 1280),
        "short_side": (64, 128, 256, 512, 768, 1024, 1536, 2048, 4096),
        "aspect": (0.25, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 4),
        "kilobytes": (2, 4, 8, 16, 32, 64, 128, 256),
        "keep_probability": (0.001, 0.01, 0.1, 0.2, 0.4, 0.6, 0.8, 0.999),
    }
    histogram = summary.Histogram((1, 2, 4))
    histogram.add(np.array([0.5, 1, 1.5, 4, 9]))
    histogram.add(np.array([], np.float64))
    assert histogram.counts == [1, 2, 0, 2]
    assert histogram.rows() == [("< 1", 1), ("1 - 2", 2), ("2 - 4", 0), (">= 4", 2)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Brücke 赤い 👩‍👧", "Brücke 赤い 👩‍👧"),
        ("a\tb\nc", "a b c"),
        ("\x1b[31m", "\ufffd[31m"),
        ("\u202eabc\u2066", "\ufffdabc\ufffd"),
        ("\x9b0m\u2028x\U000e0041", "\ufffd0m x\ufffd"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert sanitize(text) == shown


def test_size() -> None:
    assert [size(n) for n in (0, 999, 1000, 123_456, 999_600, 2.5e9, 7e15)] == [
        "0 B", "999 B", "1.0 kB", "123 kB", "1.0 MB", "2.5 GB", "7000 TB"
    ]  # fmt: skip


def test_size_category() -> None:
    assert [report.size_category(n) for n in (0, 999, 1000, 99_999, 10**6, 10**13)] == [
        "n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "1M<n<10M", "n>1T"
    ]  # fmt: skip


def test_damaged_inputs_are_named_on_the_page_and_in_the_manifest(tmp_path: Path) -> None:
    found = {"count": 12, "of": 30, "inputs": [{"input": HOSTILE[0], "lost": {"bad_gzip": 1234}, "cut": True}]}
    made = {}
    for name, more in {"sound": {}, "damaged": {"damaged": found}}.items():
        (tmp_path / name).mkdir()
        more |= {"ranges": samples.ranges_of(4), "ledger": [], "options": {}, "versions": {}}
        made[name] = samples.finish(tmp_path / name, [], **more), (tmp_path / name / "report/index.html").read_text()
    manifest, text = made["damaged"]
    page = Page(text)
    assert set(page.tags) <= ALLOWED and not page.open
    assert "damaged inputs: 12 of 30" in page.text
    assert "alert(1)</script>: bad_gzip 1,234 lost, it ends too early" in page.text and "and 11 more" in page.text
    assert manifest["damaged_inputs"] == found
    assert "damaged_inputs" not in made["sound"][0] and "amaged" not in made["sound"][1]
