"""The explorer on a large set: CPU, memory and disk of its index, and how long it takes to answer.

    python benchmarks/explore.py [--rows 1000000] [--fts] [--write docs/benchmarks/explore.md]

It first makes the metadata of a set: words, hosts and queries by Zipf's law, 396,742 queries, sparse files as tars.
Then it builds the index in a process of its own, and asks in another one: each search four times.
`--fts` also puts the texts into SQLite's FTS5, and asks it for the same counts. Peak is the highest resident memory of
a process, mapped pages of files included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

SOURCE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SOURCE))
SHARD = 10_000  # rows
QUERIES = 396_742
TAR = SHARD * 31_000  # bytes
SEARCHES = (
    ("all pairs", {}),
    ("a word in every third pair", {"q": "w1"}),
    ("two frequent words", {"q": "w1 w2"}),
    ("a phrase of two frequent words", {"q": '"w1 w2"'}),
    ("a frequent word less another", {"q": "w1 -w2"}),
    ("five words", {"q": "w2 w3 w5 w8 w13"}),
    ("a rare word", {"q": "w77777"}),
    ("the beginning of words", {"q": "w12*"}),
    ("a language", {"language": "de"}),
    ("a domain, and those below it", {"domain": "example.org"}),
    ("a frequent word, a language, a least side", {"q": "w1", "language": "en", "side": "800"}),
    ("a query", {"query": "query 1"}),
    ("a URL", {"q": "https://images1.example.org/a/000000000.jpg"}),
    ("pictures near a hash", {"like": "0123456789abcdef", "distance": "14"}),
    ("all pairs, sorted by size", {"sort": "largest"}),
    ("a frequent word, sorted", {"q": "w1", "sort": "rarest"}),
)


def make(folder: str, rows: int) -> None:
    """Writes the metadata, sparse tars, the list of queries and the manifest."""
    from pipeline.dataset import shards
    from pipeline.dataset.shards import FileEntry
    from pipeline.engine import storage

    os.makedirs(f"{folder}/shards")
    entries = []
    for number in range(rows // SHARD):
        given = columns(number)
        arrays = [given[field.name] if field.name in given else blank(field) for field in shards.METADATA]
        cast = [pa.array(one).cast(field.type) for one, field in zip(arrays, shards.METADATA, strict=True)]
        path, tar = shards.metadata_path(number), shards.tar_path(number)
        storage.write_published(f"{folder}/{path}", pa.table(cast, schema=shards.METADATA))
        with open(f"{folder}/{tar}", "wb") as file:
            file.truncate(TAR)
        entries += [FileEntry(path, os.path.getsize(f"{folder}/{path}"), SHARD, f"{number:064x}")]
        entries += [FileEntry(tar, TAR, SHARD, f"{number:064x}")]
    queries = pa.table({"id": np.arange(QUERIES, dtype=np.int32), "query": [f"query {n}" for n in range(QUERIES)]})
    storage.write_published(f"{folder}/queries.parquet", queries)
    shards.write_manifest(folder, entries, ledger=[], options={}, versions={}, shards={"ranges": rows // SHARD})


def columns(number: int) -> dict[str, Any]:
    """The columns of a shard that are not blank."""
    rng = np.random.default_rng(number)
    tails = rng.integers(0, 2**63, SHARD).tolist()
    keys = [f"{number:06x}{row:04x}{6:06x}{tail:016x}" for row, tail in enumerate(tails)]
    words = rng.zipf(1.25, int(SHARD * 12)).tolist()
    lengths = np.clip(rng.lognormal(2.3, 0.5, SHARD), 2, 40).astype(int)
    ends = np.cumsum(lengths) % (len(words) - 40)
    texts = [" ".join(f"w{n}" for n in words[end : end + size]) for end, size in zip(ends, lengths, strict=True)]
    hosts = rng.zipf(1.3, SHARD) % 1_000_000
    urls = [f"https://images{host}.example.{'org' if host % 3 else 'com'}/a/{number * SHARD + row:09d}.jpg"
            for row, host in enumerate(hosts.tolist())]  # fmt: skip
    urls[0] = urls[0] if number else "https://images1.example.org/a/000000000.jpg"
    places = np.concatenate([[0], np.cumsum(rng.integers(1, 9, SHARD))]).astype(np.int32)
    ids = pa.ListArray.from_arrays(places, (rng.zipf(1.2, places[-1]) % QUERIES).astype(np.int32))
    language = np.array(["en", "de", "fr", None], object)[rng.choice(4, SHARD, p=[0.6, 0.2, 0.15, 0.05])].tolist()
    sides = rng.integers(64, 3000, SHARD)
    return {
        "key": keys, "uid": keys, "text": texts, "texts": [[text] for text in texts], "url": urls,
        "query_ids": ids, "kept_by": ids, "language": language, "image_side": sides, "width": sides, "height": sides,
        "phash": rng.integers(0, 2**64, SHARD, np.uint64), "keep_probability": rng.random(SHARD),
        "text_source": ["alt"] * SHARD, "url_source": ["src"] * SHARD, "source_file": ["crawl.warc.gz"] * SHARD,
        "shard": np.full(SHARD, number), "jpg_offset": np.arange(SHARD) * 31_000 + 512,
        "jpg_size": np.full(SHARD, 30_000),
    }  # fmt: skip


def blank(field: Any) -> Any:
    return pa.nulls(SHARD, field.type) if field.nullable else pa.array([0] * SHARD).cast(field.type)


def work(way: str, folder: str) -> dict[str, Any]:
    """Runs one way, to be measured."""
    from pipeline.explorer import building, index
    from pipeline.explorer.answers import Explorer, Request

    source, place = building.open_source(f"{folder}/set"), f"{folder}/index"
    if way == "build":
        began = time.perf_counter()
        building.build(source, place)
        return {
            "seconds": time.perf_counter() - began,
            "disk": sum(file.stat().st_size for file in Path(place).iterdir()),
        }
    if way == "fts":
        return fts(source, folder)
    began = time.perf_counter()
    found = index.open_index(place, source.digest)
    assert found is not None
    explorer, answers = Explorer(source, found), []
    opening = time.perf_counter() - began
    for name, given in SEARCHES:
        request = Request.of({key: [value] for key, value in given.items()})
        first, cpu = explorer.search(request), []
        for _ in range(3):
            explorer.forget()
            began = time.process_time()
            explorer.search(request)
            cpu.append(1000 * (time.process_time() - began))
        answers.append((name, first["total"], first["ms"], min(cpu)))
    return {"opening": opening, "answers": answers}


def fts(source: Any, folder: str) -> dict[str, Any]:
    """CPU of FTS5 over the same texts, and of counting a word and the languages of its pairs."""
    path = f"{folder}/fts.sqlite"
    base = sqlite3.connect(path)
    base.executescript(
        "pragma journal_mode=off; pragma synchronous=off;"
        "create virtual table texts using fts5(text, content='', detail=full);"
        "create table pairs (id integer primary key, language text);"
    )
    began, row = time.process_time(), 0
    for table in source.pairs.tables(["text", "language"]):
        texts, languages = table["text"].to_pylist(), table["language"].to_pylist()
        base.executemany("insert into texts(rowid, text) values (?, ?)", enumerate(texts, row))
        base.executemany("insert into pairs values (?, ?)", enumerate(languages, row))
        row += len(texts)
    base.commit()
    built, times = time.process_time() - began, []
    for word in ("w1", "w1 w2", '"w1 w2"', "w77777"):
        began = time.perf_counter()
        base.execute("select count(*) from texts where texts match ?", (word,)).fetchone()
        counted = time.perf_counter()
        by_language = "select language, count(*) from texts join pairs on pairs.id = texts.rowid where texts match ?"
        base.execute(f"{by_language} group by language", (word,)).fetchall()
        times.append((word, 1000 * (counted - began), 1000 * (time.perf_counter() - counted)))
    return {"cpu": built, "disk": os.path.getsize(path), "times": times}


def measure(way: str, folder: str) -> dict[str, Any]:
    """What a way returns, with CPU seconds and peak MB of its process."""
    command = [sys.executable, __file__, "--way", way, "--folder", folder]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def page(rows: int, found: dict[str, Any]) -> str:
    """The page of the results."""
    build, ask = found["build"], found["ask"]
    million = rows / 1e6
    lines = [
        "# Explorer: the index of a set, and its answers", "",
        f"`python benchmarks/explore.py --rows {rows}{' --fts' if 'fts' in found else ''}`: {rows:,} rows of made-up "
        f"metadata in shards of {SHARD:,}, {QUERIES:,} queries; Python {platform.python_version()}, 2 cores that other "
        "work shared.", "",
        f"Index: {build['cpu']:.1f} CPU s ({build['cpu'] / million:.1f} a million rows), peak {build['peak']:,.0f} MB, "
        f"{build['disk'] / 1e6:,.0f} MB of disk. The server: peak {ask['peak']:,.0f} MB after all searches below, "
        f"mapped pages included; it opens the index in {ask['opening']:.2f} s.", "",
        "Answers with the first 60 pairs and all facets. First: ms on the clock of the first time, with pages of the "
        "index to read and other work on the machine. CPU: the least CPU ms of three more times, each without what the "
        "server keeps of earlier searches; one core works.", "",
        "| search | pairs | first, ms | CPU, ms |", "|---|---:|---:|---:|",
        *(f"| {name} | {total:,} | {first:.0f} | {cpu:.0f} |" for name, total, first, cpu in ask["answers"]), "",
    ]  # fmt: skip
    if "fts" in found:
        lines += [
            f"SQLite's FTS5 over the same texts: {found['fts']['cpu']:.1f} CPU s, "
            f"{found['fts']['disk'] / 1e6:,.0f} MB, for words and languages alone.", "",
            "| FTS5 | count, ms | count by language, ms |", "|---|---:|---:|",
            *(f"| `{word}` | {one:.0f} | {two:.0f} |" for word, one, two in found["fts"]["times"]), "",
        ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--fts", action="store_true")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--way")
    parser.add_argument("--folder")
    args = parser.parse_args()
    if args.way:
        found = work(args.way, args.folder)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({"cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss / 1e3} | found))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or temporary
        if not os.path.exists(f"{folder}/set/manifest.json"):
            make(f"{folder}/set", args.rows)
        ways = ("build", "ask", "fts") if args.fts else ("build", "ask")
        text = page(args.rows, {way: measure(way, folder) for way in ways})
    print(text)
    if args.write:
        args.write.write_text(text)


if __name__ == "__main__":
    main()
