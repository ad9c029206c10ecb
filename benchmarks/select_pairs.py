"""select (gather .. balance) over tables: CPU seconds and peak memory of the whole process tree, by rows.

    python benchmarks/select_pairs.py --rows 1000000 5000000 20000000 --captions DIR --queries FILE [--peer]
    python benchmarks/select_pairs.py --rows 1000000 --captions DIR --queries FILE --base CHECKOUT --turns 3

The rows are captions drawn with repetition. Half of them have one word added. 13 % are exact copies, 16 % have a known
URL with another text, 1 % have one of twenty placeholder URLs. CPU is user + system time of all processes. Memory is
the peak of the sum of PSS, sampled ten times a second. "units" are the CPU seconds of the work itself, without imports,
the start of processes and the building of the query tables.

`--base` runs another checkout on the same rows, in turns with this one, and prints the ratios of the medians. The
kernels of both must be compiled (`python -m pipeline.engine.jit`). What stands after `--` goes to the runs of this
checkout alone.

`--peer` adds MetaCLIP's method on the same rows (see `peer`): one process, from the same Parquet files to a file of the
selected pairs. Its imports and the building of its automaton are not counted, so compare it with "units". For many rows
compare it with our total.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS_PER_FILE = 250_000
HERE = Path(__file__).resolve().parents[1]


def captions(folder: str) -> pa.Array:
    """The distinct texts of a folder of Parquet files."""
    tables = [pq.read_table(path, columns=["text"]) for path in sorted(Path(folder).glob("*.parquet"))]
    return pc.unique(pa.concat_tables(tables)["text"].cast(pa.string()).drop_null())


def write_rows(folder: Path, rows: int, texts: pa.Array, seed: int = 0) -> None:
    """Writes the benchmark's tables."""
    rng = np.random.default_rng(seed)
    words = pa.array([word for text in texts.slice(0, 20_000).to_pylist() for word in text.split()[:3]])
    done = 0
    urls: pa.Array = pa.array([], pa.string())
    while done < rows:
        count = min(ROWS_PER_FILE, rows - done)
        text = texts.take(pa.array(rng.integers(0, len(texts), count)))
        extra = words.take(pa.array(rng.integers(0, len(words), count)))
        text = pc.if_else(pa.array(rng.random(count) < 0.5), pc.binary_join_element_wise(text, extra, " "), text)
        number = np.arange(done, done + count)
        host = pa.array(rng.zipf(1.3, count) % 100_000).cast(pa.string())
        url = pc.binary_join_element_wise(
            "https://h", host, ".example/images/", pa.array(number * 7919 % 10**9).cast(pa.string()), ".jpg", ""
        )
        chance = rng.random(count)
        if len(urls):
            old = pa.array(rng.integers(0, len(urls), count))
            url = pc.if_else(pa.array(chance < 0.29), urls.take(old), url)
            text = pc.if_else(pa.array(chance < 0.13), texts.take(pc.bit_wise_and(old, 0x3FFF)), text)
        holder = pc.binary_join_element_wise("https://cdn.example/", pa.array(number % 20).cast(pa.string()), "")
        url = pc.if_else(pa.array(chance > 0.99), holder, url)
        page = pc.binary_join_element_wise("https://h", host, ".example/page", "")
        table = pa.table({"url": url, "text": text, "page_url": page})
        pq.write_table(table, folder / f"rows-{done:010d}.parquet", row_group_size=65536)
        urls = url
        done += count


def measure(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, float]:
    """Runs a command in a folder; returns the CPU seconds of its process tree, wall seconds and peak PSS in MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder, env=environment)
    peak = [0.0]
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.1):
            peak[0] = max(peak[0], sum(pss(pid) for pid in tree(process.pid)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    code = process.wait()
    stop.set()
    thread.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.perf_counter() - start, "pss": peak[0]}


def tree(root: int) -> list[int]:
    """The process ids of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def pss(pid: int) -> float:
    """Proportional memory of a process in MiB."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def tail_cap(rows: int) -> int:
    """The cap for so many rows: about 6 % of the matches belong to queries below it."""
    return max(1, round(49 * rows / 1_000_000))


def spaced(text: str) -> str:
    """A text as MetaCLIP matches it."""
    text = f" {text} "
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")


def peer(folder: Path, queries: str, cap: int) -> tuple[float, int]:
    """CPU seconds of MetaCLIP's method, and the number of pairs that it selects.

    It reads URL and text. It drops equal pairs with a set. It finds the queries of each text with pyahocorasick (which
    is C). For each file it makes an inverted index, an array of (query, pair). It counts and draws with numpy: each
    match with the probability cap / count. It writes URL and text of the selected pairs as JSON lines.

    Unlike ours it does not clean texts and URLs. It does not keep one text a URL in any order of the rows. It does not
    pick exactly. It keeps neither the rejected pairs nor the source and the queries of a pair. It writes no checksums
    and does not bound its memory.
    """
    import ahocorasick

    from queries.load import load_queries

    listed = load_queries(queries).table["query"].to_pylist()
    automaton = ahocorasick.Automaton()
    for number, query in enumerate(listed):
        automaton.add_word(f" {query} ", number)
    automaton.make_automaton()
    start = time.process_time()
    seen: set[tuple[str, str]] = set()
    shards: list[tuple[list[tuple[str, str]], np.ndarray]] = []
    counts = np.zeros(len(listed), np.int64)
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path, columns=["url", "text"], use_threads=False)
        pairs = []
        for pair in zip(table["url"].to_pylist(), table["text"].to_pylist(), strict=True):
            if pair not in seen:
                seen.add(pair)
                pairs.append(pair)
        matches = []
        for number, (_, text) in enumerate(pairs):
            matches += [[query, number] for query in {found for _, found in automaton.iter(spaced(text))}]
        index = np.array(matches, np.int64).reshape(-1, 2)
        counts += np.bincount(index[:, 0], minlength=len(listed))
        shards.append((pairs, index))
    chance, draw, selected = cap / np.maximum(counts, cap), np.random.default_rng(0), 0
    with tempfile.TemporaryFile("w") as out:
        for pairs, index in shards:
            kept = np.unique(index[draw.random(len(index)) < chance[index[:, 0]], 1]).tolist()
            for number in kept:
                out.write(json.dumps({"url": pairs[number][0], "text": pairs[number][1]}) + "\n")
            selected += len(kept)
    return time.process_time() - start, selected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--captions", required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peer", action="store_true", help="needs pyahocorasick")
    parser.add_argument("--base", help="another checkout, to compare with")
    parser.add_argument("--turns", type=int, default=1, help="runs of each checkout")
    parser.add_argument("more", nargs="*", help="options of pipeline.build for the runs of this checkout, after --")
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    options = parser.parse_args()
    texts = captions(options.captions)
    print(f"{len(texts):,} texts, {options.workers} workers")
    head = f"{'':>5} {'rows':>13} {'CPU s':>8} {'units':>7} {'wall s':>8} {'PSS MiB':>8} {'kept':>10} {'selected':>10}"
    print(f"{head} {'band/matches':>12}")
    for rows in options.rows:
        scratch = Path(tempfile.mkdtemp(dir=options.scratch))
        (scratch / "in").mkdir()
        write_rows(scratch / "in", rows, texts)
        found: dict[str, list[dict[str, float]]] = {"base": [], "here": []}
        for _ in range(options.turns):
            if options.base:
                found["base"].append(run("base", rows, scratch, options, Path(options.base).resolve(), []))
            found["here"].append(run("here", rows, scratch, options, HERE, options.more))
        if options.base:
            print_ratios(found)
        if options.peer:
            cpu, selected = peer(scratch / "in", options.queries, tail_cap(rows))
            print(f"{'the usual way':>19} {cpu:>8.1f} {'':>36} {selected:>10,}", flush=True)
        shutil.rmtree(scratch)


def run(
    name: str, rows: int, scratch: Path, options: argparse.Namespace, checkout: Path, more: list[str]
) -> dict[str, float]:
    """Builds with a checkout, prints a line and returns its figures."""
    out, queries = scratch / "out", Path(options.queries).resolve()
    command = [sys.executable, "-m", "pipeline.build", "--input", str(scratch / "in"), "--output", str(out)]
    command += ["--queries", str(queries), "--stages", "gather..balance", "--cap", str(tail_cap(rows))]
    # With this variable every process compiles every module again. `make` and the set-up unset it, too.
    unset = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    found = measure([*command, "--workers", str(options.workers), *more], checkout, environment)
    infos = {s: json.loads((out / f"stages/{s}/info.json").read_text()) for s in ("match", "dedup", "balance")}
    share = infos["balance"]["band_tuples"] / infos["balance"]["matches"]
    found["units"] = sum(info["cpu_seconds"] for info in infos.values())  # match's include gather's
    print(
        f"{name:>5} {rows:>13,} {found['cpu']:>8.1f} {found['units']:>7.1f} {found['wall']:>8.1f} {found['pss']:>8.0f} "
        f"{infos['dedup']['rows_out']:>10,} {infos['balance']['rows_out']:>10,} {share:>12.1%}",
        flush=True,
    )
    shutil.rmtree(out)
    return found


def print_ratios(found: dict[str, list[dict[str, float]]]) -> None:
    """Prints the medians of this checkout over those of the base."""
    parts = []
    for key in ("cpu", "units", "pss"):
        here, base = (statistics.median(line[key] for line in found[name]) for name in ("here", "base"))
        parts.append(f"{key} {here:.1f} / {base:.1f} = {here / base:.2f}")
    print("median, here over base: " + ", ".join(parts), flush=True)


if __name__ == "__main__":
    main()
