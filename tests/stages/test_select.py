"""gather .. balance against an oracle of dictionaries and loops. The rows do not depend on how the work is split."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline import build, options
from pipeline.dataset import exports
from pipeline.engine import hashing
from pipeline.schema import STAGES
from pipeline.stages import selection
from pipeline.text.matcher import naive_match
from pipeline.text.normalize import normalize_text
from tests import archives
from tests.places import DATA

QUERIES = ["dog", "red dog", "cat", "a", "the sea", "tower", "blue", "rare bird", "never seen", "Tower Bridge"]
WORDS = "a dog cat red blue the sea tower Tower Bridge rare bird on of and small large house".split()
COLUMNS = ["uid", "url", "text", "page_url", "source_file", "source_offset"]


def draw_rows(count: int, seed: int = 1) -> list[tuple[str, str]]:
    """Pairs. Some are equal, some URLs have several texts, and there are a placeholder and bad rows."""
    rng = random.Random(seed)
    rows: list[tuple[str, str]] = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 7)))
        url = f"https://host{number % 17}.example/img/{number}.jpg"
        chance = rng.random()
        if rows and chance < 0.1:
            url, text = rng.choice(rows)
        elif rows and chance < 0.25:
            url = rng.choice(rows)[0]
        elif chance < 0.3:
            url = "https://cdn.example/placeholder.gif"
        elif chance < 0.33:
            url, text = rng.choice([("ftp://x.example/a.jpg", text), (url, ""), (url, "IMG_1234.jpg"), ("", text)])
        rows.append((url, text))
    return rows


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    pq.write_table(pa.table({"url": [row[0] for row in rows], "text": [row[1] for row in rows]}), path)


def run(tmp: Path, *more: str, name: str = "out", source: str = "in", stages: str = "gather..balance") -> Path:
    out = tmp / name
    arguments = ["--input", str(tmp / source), "--output", str(out), "--queries", str(tmp / "queries.txt")]
    code = build.main([*arguments, "--stages", stages, "--workers", "1", "--placeholder-bound", "5", *more])
    assert code == build.DONE
    return out


def info(out: Path, stage: str) -> dict:
    return json.loads((out / "stages" / stage / "info.json").read_text())


def digests(out: Path) -> dict[str, str]:
    return {stage: info(out, stage)["digest"] for stage in STAGES[:4]}


def exported(out: Path, stage: str, tmp: Path) -> list[dict]:
    exports.write_rows(str(out), stage, str(tmp / f"{stage}.parquet"))
    rows = pq.read_table(tmp / f"{stage}.parquet").to_pylist()
    return sorted(rows, key=lambda row: row["uid"]) if stage == "balance" else rows  # the inputs decide their order


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES))
    (tmp_path / "in").mkdir()
    rows = draw_rows(1500)
    for number, start in enumerate(range(0, len(rows), 500)):
        write_table(tmp_path / "in" / f"part{number}.parquet", rows[start : start + 500])
    return tmp_path


def oracle_select(pairs: list[dict], cap: int, seed: int) -> dict[bytes, list[str]]:
    """{uid: queries that picked it} from MATCHED rows: dedup rules, then the `cap` smallest hashes of each query."""
    by_url = defaultdict(set)
    for row in pairs:
        hashes = [xxhash.xxh3_128_intdigest(row[name].encode()) >> 64 for name in ("url", "text")]
        rank = int(hashing.mix(*(np.array([word], np.uint64) for word in hashes))[0])
        by_url[row["url"]].add((-len(row["text"].split()), rank, row["uid"]))
    kept = {min(texts)[2]: url for url, texts in by_url.items() if len(texts) <= 5}
    text = {row["uid"]: row["text"] for row in pairs}
    keys = hashing.query_keys(pa.array([normalize_text(query, "fold") for query in QUERIES]), seed)
    picked: dict[bytes, list[str]] = defaultdict(list)
    for number, query in enumerate(QUERIES):
        drawn = []
        for uid in kept:
            if number in naive_match(text[uid], QUERIES, mode="wide", case="fold"):
                high = np.array([int.from_bytes(uid[:8], "big")], np.uint64)
                drawn.append((int(selection.draw(high, keys[number : number + 1])[0]), uid))
        for _, uid in sorted(drawn)[:cap]:
            picked[uid].append(query)
    return dict(picked)


@pytest.mark.parametrize("cap", [1, 2, 7, 40])
def test_select_equals_the_oracle(folder: Path, cap: int) -> None:
    out = run(folder, "--cap", str(cap), "--seed", "3")
    matched = exported(out, "match", folder)
    expected = oracle_select(matched, cap, 3)
    queries = pq.read_table(out / "queries.parquet")["query"].to_pylist()
    selected = exported(out, "balance", folder)
    assert {row["uid"]: sorted(queries[i] for i in row["kept_by"]) for row in selected} == {
        uid: sorted(names) for uid, names in expected.items()
    }
    assert len(selected) == len(expected)


def test_every_match_is_the_oracles_and_uid_can_be_recomputed(folder: Path) -> None:
    out = run(folder, stages="gather..match")
    queries = pq.read_table(out / "queries.parquet")["query"].to_pylist()
    rows = exported(out, "match", folder)
    assert len(rows) > 500
    for row in rows:
        assert row["query_ids"] == naive_match(row["text"], queries, mode="wide", case="fold")
        digest = xxhash.xxh3_128_digest
        assert row["uid"] == digest(digest(row["url"].encode()) + digest(row["text"].encode()))


def test_the_ledger_adds_up_and_chains(folder: Path) -> None:
    out = run(folder, "--cap", "5")
    before = None
    for stage in STAGES[:4]:
        found = info(out, stage)
        assert found["rows_in"] == found["rows_out"] + sum(found["dropped"].values())
        assert before is None or found["rows_in"] == before
        before = found["rows_out"]
        assert (out / "stages" / stage / "COMPLETED").exists()
    assert {"options", "versions", "seconds", "cpu_seconds"} <= set(info(out, "gather"))
    assert info(out, "gather")["rows_in"] == 1500
    assert set(info(out, "dedup")["dropped"]) == {"same_pair", "other_text", "placeholder_url"}
    rejected = pq.read_table(out / "stages" / "dedup" / "rejected.parquet")
    assert rejected.num_rows == sum(info(out, "dedup")["dropped"].values())


@pytest.mark.parametrize(
    "more",
    [["--exchange", "shuffle"], ["--workers", "2"], ["--runner", "DirectRunner"], ["--keep-rejected", "all"]],
    ids=["shuffle", "two-workers", "direct", "all-rejected"],
)
def test_the_same_rows_however_it_runs(folder: Path, more: list[str]) -> None:
    expected = digests(run(folder, "--cap", "5", name="one"))
    assert digests(run(folder, "--cap", "5", *more, name="other")) == expected


def test_stages_one_by_one_give_the_same_rows(folder: Path) -> None:
    expected = digests(run(folder, "--cap", "5", name="one"))
    for stage in STAGES[:4]:
        out = run(folder, "--cap", "5", name="steps", stages=stage)
    assert digests(out) == expected
    assert len(exported(out, "gather", folder)) == info(out, "gather")["rows_out"]


def test_renamed_and_shuffled_inputs_select_the_same_pairs(folder: Path) -> None:
    first = {row["uid"] for row in exported(run(folder, "--cap", "5", name="one"), "balance", folder)}
    (folder / "again").mkdir()
    for number in range(3):
        table = pq.read_table(folder / "in" / f"part{number}.parquet")
        order = np.random.default_rng(number).permutation(len(table))
        pq.write_table(table.take(order), folder / "again" / f"{9 - number}.parquet")
    out = run(folder, "--cap", "5", name="other", source="again")
    assert {row["uid"] for row in exported(out, "balance", folder)} == first


def test_bernoulli_and_none(folder: Path) -> None:
    everything = run(folder, "--balance", "none", name="none")
    assert info(everything, "balance")["rows_out"] == info(everything, "dedup")["rows_out"]
    some = run(folder, "--balance", "bernoulli", "--cap", "20", name="bernoulli")
    rows = exported(some, "balance", folder)
    assert 0 < len(rows) < info(everything, "balance")["rows_out"]
    assert all(row["kept_by"] and 0 < row["keep_probability"] <= 1 for row in rows)


def test_target_pairs(folder: Path) -> None:
    out = run(folder, "--target-pairs", "100")
    assert 60 <= info(out, "balance")["rows_out"] <= 140


def test_a_done_run_does_nothing_and_other_options_are_refused(folder: Path, capsys: pytest.CaptureFixture) -> None:
    out = run(folder, "--cap", "5")
    before = (out / "stages" / "balance" / "info.json").stat().st_mtime_ns
    run(folder, "--cap", "5")
    assert (out / "stages" / "balance" / "info.json").stat().st_mtime_ns == before
    arguments = ["--input", str(folder / "in"), "--output", str(out), "--queries", str(folder / "queries.txt")]
    arguments += ["--stages", "gather..balance", "--placeholder-bound", "5", "--workers", "1"]
    assert build.main([*arguments, "--cap", "6"]) == build.USAGE
    assert "--redo balance" in capsys.readouterr().err
    assert build.main([*arguments, "--cap", "6", "--redo", "balance"]) == build.DONE
    assert info(out, "balance")["cap"] == 6
    refused = [*arguments, "--cap", "7", "--seed", "1", "--case", "exact", "--redo", "balance"]
    assert build.main(refused) == build.USAGE  # match has other options: the refused run must not remove any file
    assert "--redo gather" in capsys.readouterr().err and info(out, "balance")["cap"] == 6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--input", "nowhere.parquet", "--output", "o"], build.MISSING, "nowhere.parquet"),
        (["--inputt", "x", "--output", "o", "--input", "y"], build.USAGE, "did you mean --input"),
        (["--input", "x", "--output", "o", "--stages", "gahter"], build.USAGE, "did you mean gather?"),
        (["--output", "o"], build.USAGE, "--input"),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build.main(arguments) == code
    assert words in capsys.readouterr().err


def test_plan_says_and_does_nothing(folder: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--input", str(folder / "in"), "--output", str(folder / "planned"), "--plan"]
    assert build.main([*arguments, "--queries", str(folder / "queries.txt"), "--json"]) == build.DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan["inputs"] == 3 and plan["queries"] == len(QUERIES) and set(plan["stages"].values()) == {"to do"}
    assert build.main([*arguments, "--queries", str(folder / "queries.txt")]) == build.DONE
    assert "core-hours" in capsys.readouterr().out
    assert not (folder / "planned").exists()


def texts_after_dedup(tmp_path: Path, rows: list[tuple[str, str]], *more: str) -> tuple[dict[str, str], dict]:
    """{text: url} of the rows that dedup leaves, and its drops, for a list of pairs."""
    (tmp_path / "queries.txt").write_text("dog")
    (tmp_path / "in").mkdir()
    write_table(tmp_path / "in" / "pairs.parquet", rows)
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"]
    arguments += ["--queries", str(tmp_path / "queries.txt"), "--stages", "gather..dedup"]
    assert build.main([*arguments, *more]) == build.DONE
    out = tmp_path / "out"
    return {row["text"]: row["url"] for row in exported(out, "dedup", tmp_path)}, info(out, "dedup")["dropped"]


def test_a_url_with_many_texts_is_a_placeholder(tmp_path: Path) -> None:
    rows = [("https://a.example/pixel.gif", f"a dog number {number}") for number in range(40)]
    rows += [("https://a.example/eight.jpg", f"dog {number} of eight") for number in range(8)]
    kept, dropped = texts_after_dedup(tmp_path, rows)
    assert [*kept.values()] == ["https://a.example/eight.jpg"]
    assert dropped == {"placeholder_url": 40, "other_text": 7}


def test_the_richest_text_of_a_url_stays(tmp_path: Path) -> None:
    url = "https://a.example/1.jpg"
    texts = ["dog", "a brown dog runs", "dogdogdogdogdogdog dog"]
    kept, dropped = texts_after_dedup(tmp_path, [(url, text) for text in texts])
    assert kept == {"a brown dog runs": url} and dropped == {"other_text": 2}


def test_variants_of_an_image_are_one_image(tmp_path: Path) -> None:
    base = "://blog.example/wp-content/uploads/2020/01/dog"
    rows = [
        (f"http{base}-300x200.jpg", "my dog"),
        (f"https{base}.jpg?utm_source=feed", "my dog"),
        (f"http{base}.jpg", "my dog"),
        (f"https{base}-1024x683.jpg", "my dog"),
        (f"https{base}-1024x683.jpg", "dog"),
        ("https://blog.example/cat-or-dog.jpg", "my dog"),
    ]
    kept, dropped = texts_after_dedup(tmp_path, rows)
    assert len(kept) == 1 and dropped == {"same_pair": 3, "other_text": 1}  # both rows have one text


def test_a_text_of_many_images_is_boilerplate(tmp_path: Path) -> None:
    rows = [(f"https://a.example/{number}.jpg", "hot dog") for number in range(4)]
    rows += [(f"https://a.example/{number}.jpg", "cool dog") for number in range(3)]
    rows += [("http://a.example/2.jpg", "cool dog"), ("https://a.example/2-300x200.jpg", "cool dog")]  # variants
    kept, dropped = texts_after_dedup(tmp_path, rows, "--common-text-bound", "3")
    assert set(kept) == {"cool dog"} and dropped == {"common_text": 4, "same_pair": 2}


def test_the_bound_of_common_texts_is_on_for_archives(tmp_path: Path) -> None:
    table, queries = tmp_path / "a.csv", tmp_path / "queries.txt"
    table.write_text("url,text\nhttp://a.example/1.jpg,a red dog\n")
    queries.write_text("dog\n")
    warc = tmp_path / "b.warc"
    warc.write_bytes(b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 0\r\n\r\n\r\n\r\n")
    for inputs, more, wanted, exempt in (
        ([table], [], 0, ()),
        ([warc], [], 10, ()),
        ([table, warc], [], 10, (0,)),
        ([table, warc], ["--common-text-bound", "3"], 3, ()),
        ([warc], ["--common-text-bound", "3"], 3, ()),
    ):
        command = ["--input", *map(str, inputs), "--output", str(tmp_path / "out"), "--queries", str(queries), *more]
        (dedup,) = [stage for stage in build.plan(build.look_up(options.parse(command)[0])) if stage.name == "dedup"]
        assert (dedup.decided["common_text_bound"], dedup.exempt) == (wanted, exempt)


def test_the_bound_of_common_texts_does_not_touch_tables_beside_archives(tmp_path: Path) -> None:
    images = "".join(f'<img src="/{number}.jpg" alt="a hot dog stand">' for number in range(11))
    body = f"<html lang=en><p>{images}<img src=/x.jpg alt='a cool dog in the sun'></html>".encode()
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
    (tmp_path / "a.warc").write_bytes(archives.record(page, url="http://page.example/"))
    rows = [f"http://table.example/{number}.jpg,{text}" for number in range(12) for text in ("a hot dog stand",)]
    (tmp_path / "b.csv").write_text("\n".join(["url,text", *rows, "http://table.example/x.jpg,a dog"]))
    (tmp_path / "queries.txt").write_text("dog\n")
    for workers in ("1", "2"):
        command = ["--input", str(tmp_path / "a.warc"), str(tmp_path / "b.csv"), "--output", str(tmp_path / workers)]
        command += ["--queries", str(tmp_path / "queries.txt"), "--stages", "gather..dedup", "--workers", workers]
        assert build.main(command) == 0
        info = json.loads((tmp_path / workers / "stages/dedup/info.json").read_text())
        assert (info["rows_out"], info["dropped"]) == (14, {"common_text": 11})


# ---- several texts of an image

DOG = "://blog.example/wp-content/uploads/2020/01/dog"
CAPTIONS = [
    (f"http{DOG}-300x200.jpg", "my brown dog runs"),
    (f"https{DOG}-1024x683.jpg", "my cat"),
    (f"http{DOG}-1024x683.jpg", "my cat"),
    (f"http{DOG}-300x200.jpg", "dog"),
    ("https://a.example/x.jpg", "the dog"),
]


def run_on(tmp_path: Path, rows: list[tuple[str, str]], queries: list[str], *more: str) -> Path:
    (tmp_path / "queries.txt").write_text("\n".join(queries))
    (tmp_path / "in").mkdir(exist_ok=True)
    write_table(tmp_path / "in" / "pairs.parquet", rows)
    return run(tmp_path, *more, "--placeholder-bound", "8", name=f"out{len(list(tmp_path.iterdir()))}")


@pytest.mark.parametrize("captions", [1, 2, 8])
def test_a_sample_has_the_richest_texts_and_the_largest_variant(tmp_path: Path, captions: int) -> None:
    out = run_on(tmp_path, CAPTIONS, ["brown", "cat", "dog"], "--captions", str(captions), "--cap", "2")
    queries = pq.read_table(out / "queries.parquet")["query"].to_pylist()
    rows = {row["text"]: row for row in exported(out, "balance", tmp_path)}
    alone, row = rows["the dog"], rows["my brown dog runs"]
    assert alone["texts"] == ["the dog"] and alone["url_as_found"] is None
    assert row["texts"] == ["my brown dog runs", "my cat", "dog"][:captions]
    wanted = ["brown", "dog"] if captions == 1 else ["brown", "cat", "dog"]
    assert [queries[number] for number in row["query_ids"]] == wanted == [queries[number] for number in row["kept_by"]]
    assert row["url"] == f"https{DOG}-1024x683.jpg" and row["url_as_found"] == f"http{DOG}-300x200.jpg"
    digest = xxhash.xxh3_128_digest  # the uid is that of the richest text and its own URL
    assert row["uid"] == digest(digest(row["url_as_found"].encode()) + digest(row["text"].encode()))
    joined = {"joined_text": min(captions - 1, 2)} if captions > 1 else {}
    dropped = joined | {"same_pair": 1} | ({"other_text": 3 - captions} if captions < 3 else {})
    assert info(out, "dedup")["dropped"] == dropped and info(out, "dedup")["rows_out"] == 2
    assert exported(out, "dedup", tmp_path)[0]["texts"] == row["texts"]
    rejected = pq.read_table(out / "stages" / "dedup" / "rejected.parquet")["reason"].to_pylist()
    assert "joined_text" not in rejected and len(rejected) == sum(dropped.values()) - dropped.get("joined_text", 0)


def test_joined_texts_bring_the_signals_of_their_pages(tmp_path: Path) -> None:
    pages = {"index": "a dog", "gallery": "a dog on the lawn"}
    for name, text in pages.items():
        head = '<meta name="robots" content="noai">' if name == "index" else ""
        page = f'<html><head>{head}</head><img src="http://a.example/1.jpg" alt="{text}"></html>'.encode()
        http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page
        record = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/{name}\r\n"
        record += f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
        with open(tmp_path / "in.warc", "ab") as file:
            file.write(record.encode() + http + b"\r\n\r\n")
    (tmp_path / "queries.txt").write_text("dog")
    out = run(tmp_path, "--captions", "2", "--ignore-opt-out", "--placeholder-bound", "8", source="in.warc")
    (row,) = exported(out, "balance", tmp_path)
    assert row["texts"] == ["a dog on the lawn", "a dog"] and row["opt_out"] == "noai"


def test_samples_of_several_texts_do_not_depend_on_how_the_work_is_split(folder: Path) -> None:
    more = ["--cap", "5", "--captions", "3"]
    first = run(folder, *more, name="one")
    expected, rows = digests(first), exported(first, "balance", folder)
    assert sum(len(row["texts"]) > 1 for row in rows) > 10
    assert digests(run(folder, *more, "--workers", "2", "--exchange", "shuffle", name="two")) == expected
    inputs = [str(folder / "in" / f"part{number}.parquet") for number in (2, 0, 1)]
    out = folder / "order"
    command = ["--output", str(out), "--queries", str(folder / "queries.txt"), "--stages", "gather..balance"]
    assert build.main(["--input", *inputs, *command, "--workers", "1", "--placeholder-bound", "5", *more]) == build.DONE
    assert digests(out) == expected and exported(out, "balance", folder) == rows
    (folder / "again").mkdir()
    for number in range(3):
        table = pq.read_table(folder / "in" / f"part{number}.parquet")
        order = np.random.default_rng(number).permutation(len(table))
        pq.write_table(table.take(order), folder / "again" / f"{9 - number}.parquet")
    names = ("uid", "url", "text", "texts", "query_ids", "kept_by")
    moved = exported(run(folder, *more, name="moved", source="again"), "balance", folder)
    assert [[row[name] for name in names] for row in moved] == [[row[name] for name in names] for row in rows]


def test_captions_are_at_most_the_texts_of_an_image(capsys: pytest.CaptureFixture) -> None:
    command = ["--input", "x.csv", "--output", "out", "--captions"]
    for value, more, words in (
        ("0", [], "--captions 0"),
        ("9", [], "--captions 9"),
        ("6", ["--placeholder-bound", "5"], "--captions 6: must be at most --placeholder-bound 5"),
    ):
        assert build.main([*command, value, *more]) == build.USAGE
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1


def every_text_comes_through(tmp_path: Path, pairs: list[tuple[str, str]], *, too_short: int = 0) -> None:
    queries = sorted({word for _, text in pairs for word in text.split()})
    out = run_on(tmp_path, pairs, queries, "--captions", "8", "--cap", "1000000")
    given = defaultdict(set)
    for row in exported(out, "match", tmp_path):
        given[row["url"]].add(row["text"])
    dropped = {"too_short": too_short} if too_short else {}
    assert (info(out, "gather")["dropped"], info(out, "match")["dropped"]) == (dropped, {})
    found = {row["url"]: row["texts"] for row in exported(out, "balance", tmp_path)}
    assert {url: set(texts) for url, texts in found.items()} == given
    assert sum(map(len, found.values())) == sum(map(len, given.values()))  # each once
    assert info(out, "balance")["rows_out"] == len(given) == len({url for url, _ in pairs})


def test_every_text_of_every_image_comes_through(tmp_path: Path) -> None:
    texts = ["A girl in a pink dress .", "a girl climbs the stairs", "A  girl in a pink dress .", "two girls"]
    pairs = [(f"https://flickr.example/{number}.jpg", text) for number in range(5) for text in texts[number % 3 :]]
    every_text_comes_through(tmp_path, pairs)


def test_every_text_of_flickr8k_comes_through(tmp_path: Path) -> None:
    path = DATA / "captions" / "flickr8k_token.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    table = pq.read_table(path)
    names = [url.removeprefix("flickr8k:").partition("#")[0] for url in table["url"].to_pylist()]
    urls = [f"https://flickr.example/{name}" for name in names]
    every_text_comes_through(tmp_path, list(zip(urls, table["text"].to_pylist(), strict=True)), too_short=2)
