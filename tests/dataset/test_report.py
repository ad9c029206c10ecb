"""Card, croissant.json and page: hostile text is escaped, facts about this machine are absent, numbers are right."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset import card, croissant, query_curve, report, report_facts, shards, summary
from pipeline.engine import shuffle_files, storage
from pipeline.engine.display import sanitize, size
from pipeline.schema import DUPLICATES
from tests import samples

HOSTILE = {
    0: "</figcaption><script>alert(1)</script>",
    1: '"><img src=x onerror=alert(1)>',
    2: "\x1b]0;title\x07 \x1b[31mred\x1b[0m",
    3: "\u202egnp.exe\u202c {{ 7*7 }} {% raw %}",
    4: "--- | ` <!-- ",
}
ALLOWED = set(
    "html head meta title style body h1 h2 h3 p div b a i nav table caption thead tr th td bdi section svg g text line "
    "polyline circle details summary ul li pre span figure img figcaption br small form label input select option "
    "button datalist script".split()
)
VOID = ("meta", "img", "br", "input", "option")


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
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == "option" or self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

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
    known = (
        "lang charset http-equiv content name class role viewbox x y x1 x2 y1 y2 cx cy r points style id href hidden "
        "alt text-anchor loading src aria-label scope tabindex autocomplete type list value data-l data-h data-q"
    )
    assert {name for _, name, _ in page.attributes} <= set(known.split())
    links = [value for _, name, value in page.attributes if name == "href"]
    assert page.tags.count("script") == 1 and all(value.startswith("#") for value in links)
    assert all(value.startswith("data:image/jpeg;base64,") for _, name, value in page.attributes if name == "src")
    assert "default-src 'none'; img-src data:" in text
    assert '"><img src=x onerror=alert(1)>' in page.text  # of a rejected row, shown as text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert not re.search(r"""(src|href|url\()=?["']?(https?:)?//""", text)


def test_the_page_tells_the_numbers(folder: Path) -> None:
    text = Page((folder / "report/index.html").read_text()).text
    assert "60 image-text pairs" in text and "fetch: dns 5" in text and "gather: empty_text 30" in text
    assert "bilder.example.de" in text and "harbour" in text and "of 8 queries met" in text


def test_the_gallery_shows_stored_pictures_chosen_by_hash(folder: Path) -> None:
    page = Page((folder / "report/index.html").read_text())
    shown = [base64.b64decode(value.split(",")[1]) for _, name, value in page.attributes if name == "src"]
    assert len(shown) == 60 < report.PICTURES
    keys = [uid.hex() for uid in samples.fetched(60)["uid"].to_pylist()]
    chosen = sorted(range(60), key=lambda number: keys[number][16:])
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
    about = croissant.About.of([], {}, None, languages=[], sources="web archives")
    text = card.card(facts, about=about, ledger=[], options={"balance": "none", "respect_opt_out": False})
    assert "balanced over" not in text and "undoes the balancing" not in text and "NOT left out" in text
    assert "balanced over" in (folder / "README.md").read_text()


def test_the_pages_show_no_facts_about_this_machine(folder: Path) -> None:
    for path in ("README.md", "report/index.html", "croissant.json"):
        text = (folder / path).read_text()
        assert str(folder) not in text and sys.version.split()[0] not in text
        assert not re.search(r"\b20\d\d-\d\d-\d\d\b", text)


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
    found = report_facts.rejected(str(tmp_path))
    for why in {row[2:] for row in rows}:
        first = [row[0] for row in rows if row[2:] == why][: report_facts.EXAMPLES]
        assert [row["url"] for row in found if (row["stage"], row["reason"]) == why] == first
    assert len(found) == 6 * report_facts.EXAMPLES


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
    assert [card.size_category(n) for n in (0, 999, 1000, 99_999, 10**6, 10**13)] == [
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


# ------------------------------------------------------------------------------------------------ what the page shows


def page_of(folder: Path, **more: Any) -> tuple[dict[str, Any], str]:
    """The manifest and the page of thirty pairs."""
    infos = [samples.write_shard(folder, list(range(start, start + 10)), ranges=samples.ranges_of(10))
             for start in (0, 10, 20)]  # fmt: skip
    queries = "a boat cat dog harbour lake map sea".split()
    table = pa.table({"id": pa.array(range(8), pa.int32()), "query": queries})
    storage.write_published(str(folder / "queries.parquet"), table)
    more = {"ranges": samples.ranges_of(10), "ledger": samples.ledger(30), "options": {}, "versions": {}} | more
    return samples.finish(folder, infos, **more), (folder / "report/index.html").read_text()


def test_the_policy_allows_the_script_and_nothing_else(folder: Path) -> None:
    text = (folder / "report/index.html").read_text()
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in text
    assert not re.search(r"https?:|fetch|eval|innerHTML", script)


def test_the_curve_has_both_lines_the_cap_and_the_names(tmp_path: Path) -> None:
    before = query_curve.thin(np.array([900, 5, 40, 0, 70]), ["a", "boat", "<b>cat", "dog", "harbour"])
    assert before == [[1, 900, "a"], [2, 70, "harbour"], [3, 40, "<b>cat"], [4, 5, "boat"]]
    manifest, text = page_of(tmp_path, balancing={"cap": 20, "before": before})
    assert manifest["balancing"] == {"cap": 20, "before": before}
    page = Page(text)
    assert page.tags.count("polyline") == 2 and "cap 20" in page.text and "<b>cat: 40 pairs, rank 3" in page.text
    assert "lake: 10 pairs" in page.text and page.open == [] and set(page.tags) <= ALLOWED
    _, text = page_of(tmp_path / "b", balancing=None)
    assert Page(text).tags.count("polyline") == 1 and "before balancing" not in text


def test_the_curve_is_logarithmic() -> None:
    counts = (1e6 / np.arange(1, 10_001)).astype(np.int64)
    drawing = query_curve.draw({"after": query_curve.thin(counts, [])}, 1000)
    assert drawing is not None and len(drawing.lines[0][2]) <= query_curve.POINTS
    places = [(x, y) for x, y, *_ in drawing.lines[0][2]]
    slopes = [(y - places[0][1]) / (x - places[0][0]) for x, y in places[5:]]
    assert max(slopes) - min(slopes) < 0.02  # Zipf is a straight line
    assert [label for _, label in drawing.across] == ["1", "10", "100", "1k", "10k"] and len(drawing.up) == 7
    assert drawing.cap is not None and drawing.cap[1] == "cap 1,000" and drawing.up[3][0] == drawing.cap[0]
    assert query_curve.draw({"after": [[1, 5, "a"], [2, 5, "b"]]}, 3) is None
    assert query_curve.draw({"after": query_curve.thin(counts, [])}, 10**7).cap is None  # type: ignore[union-attr]


def test_failures_are_told_by_class_and_host(tmp_path: Path) -> None:
    rows = [(f"http://h{n % 2}.example/{n}.jpg", "t", "fetch", "dns") for n in range(3)]
    rows += [("http://listed.example/x", "t", "fetch", "blocklisted")]
    table = pa.table(dict(zip(("url", "text", "stage", "reason"), zip(*rows, strict=True), strict=True)))
    storage.write_published(str(tmp_path / "rejected/fetch.parquet"), table)
    ledger = [{"stage": "fetch", "rows_in": 9, "rows_out": 3, "dropped": {"dns": 4, "blocklisted": 2}}]
    found = report_facts.failures(str(tmp_path), ledger)
    assert found[0] == {"reason": "dns", "count": 4, "kept": 3, "hosts": [("h0.example", 2), ("h1.example", 1)]}
    assert found[1] == {"reason": "blocklisted", "count": 2, "kept": 0, "hosts": []}
    _, text = page_of(tmp_path, ledger=ledger)
    assert "h0.example 2, h1.example 1 (among 3 rows that were kept)" in " ".join(Page(text).text.split())
    assert "listed.example" not in text


def test_duplicates_stand_side_by_side(tmp_path: Path) -> None:
    kinds = [
        (50, 3, "near_duplicate", 2),
        (51, 3, "same_image", 0),
        (52, 3, "same_pair", 0),
        (53, 700, "same_image", 0),
    ]
    rows = [{"key": samples.uid(a).hex(), "keeper": samples.uid(b).hex(), "kind": kind, "distance": bits}
            for a, b, kind, bits in kinds]  # fmt: skip
    storage.write_published(str(tmp_path / "duplicates.parquet"), pa.Table.from_pylist(rows, DUPLICATES))
    _, text = page_of(tmp_path, pictures={samples.uid(50).hex(): samples.jpeg(50), "other": samples.jpeg(77)})
    part = text.split('id="duplicates"')[1].split("<h2")[0]
    pictures = [base64.b64decode(found) for found in re.findall('base64,([^"]+)', part)]
    assert pictures == [samples.jpeg(3), samples.jpeg(50)]  # that of 51 is not known, the keeper of 53 is not published
    assert "near duplicate, 2 bits" in part and "same image, 0 bits" in part and "no picture here" in part
    assert part.count('class="group"') == 1 and samples.uid(52).hex()[:16] not in part


def test_examples_of_what_must_not_be_shown_are_left_out() -> None:
    ledger = [{"stage": "gather", "dropped": {"personal": 3, "too_short": 1}}]
    rows = [{"stage": "gather", "reason": reason, "url": "u", "text": "t"} for reason in ("personal", "too_short")]
    assert [(row["reason"], len(row["examples"])) for row in report_facts.drops(ledger, rows)] == [
        ("personal", 0), ("too_short", 1)
    ]  # fmt: skip


def test_a_chart_of_one_bar_is_a_sentence(folder: Path) -> None:
    text = (folder / "report/index.html").read_text()
    assert "<h3>Width / height</h3>" not in text and "Width / height: <bdi>1.25 - 1.5</bdi>" in text
    assert "<h3>Hosts of the images</h3>" in text


def test_the_page_stays_below_eight_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report_facts.MOST_PICTURES * 4 / 3 < 7_000_000
    monkeypatch.setattr(report_facts, "MOST_PICTURES", 5 * len(samples.jpeg(1)) + 500)
    _, text = page_of(tmp_path)
    assert 4 <= text.count("data:image/jpeg") <= 6
    monkeypatch.setattr(report_facts, "MOST_PICTURE", 10)
    assert "data:image/jpeg" not in page_of(tmp_path / "b")[1]


def test_figures_say_what_the_filter_asks(folder: Path) -> None:
    text = (folder / "report/index.html").read_text()
    row = samples.fetched(60).to_pylist()[7]
    (found,) = re.findall(
        rf'<figure data-l="([^"]*)" data-h="([^"]*)" data-q="([^"]*)">(?:(?!<figure).)*{row["uid"].hex()[:16]}', text
    )
    assert found == ("en", "bilder.example.de", "dog|map")
    assert '<option value="lake">' in text and "<option>en</option>" not in text  # one language is no choice
