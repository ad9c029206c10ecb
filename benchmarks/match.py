"""Matching: our matcher against MetaCLIP's published Aho-Corasick file, on the same texts and queries.

    python -m benchmarks.match --texts DATA/captions --queries DATA/queries/queries_assembled.tsv.gz [--metaclip FOLDER]

`--metaclip` is metaclip/metaclip1 of a clone of facebookresearch/MetaCLIP, under CC BY-NC 4.0: its file
substr_matching_ahocorasick.py is run here, and nothing of it is copied. It needs pyahocorasick. Without the clone, the
method is run as the paper describes it. All ways run in one process on one core, in turns. A time is the CPU time of
the fastest round. The match sets must be equal, or the benchmark fails. The table goes to docs/benchmarks/match.md.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine import jit
from pipeline.text.matcher import MODES, Matcher
from queries.load import load_queries

NAIVE_TEXTS = 100  # MetaCLIP's default matcher takes a minute for 1,300
BATCH = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="folder of Parquet files with a column `text`")
    parser.add_argument("--queries", required=True, help="query list")
    parser.add_argument("--metaclip", type=Path, help="folder with MetaCLIP's substr_matching*.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="take so many texts at most, spread evenly")
    arguments = parser.parse_args()

    texts = read_texts(arguments.texts, arguments.limit)
    queries = load_queries(arguments.queries).queries
    mega = pc.sum(pc.binary_length(texts)).as_py() / 1e6
    print(f"{len(texts):,} distinct texts, {mega:.1f} MB, {len(queries):,} queries, {arguments.rounds} rounds\n")
    ways = {**peers(texts, queries, arguments.metaclip), **ours(texts, queries)}
    report(ways, rounds=arguments.rounds, texts=len(texts), mega=mega)


def read_texts(folder: Path, limit: int | None) -> pa.StringArray:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise SystemExit(f"no Parquet files in {folder}")
    columns = [pq.read_table(file, columns=["text"])["text"].cast(pa.string()) for file in files]
    texts = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks]))
    if limit and limit < len(texts):
        texts = texts.take(pa.array(np.linspace(0, len(texts) - 1, limit).astype(np.int64)))
    return texts


class Way:
    """One way to match all texts."""

    def __init__(
        self,
        run: Callable[[], object],
        *,
        build: float,
        megabytes: float | None = None,
        exact: str = "",
        kernels: bool = True,
    ) -> None:
        self.run, self.build, self.megabytes = run, build, megabytes
        self.exact = exact  # digest of the match sets; "" for a mode with other match sets
        self.kernels = kernels
        self.seconds: list[float] = []

    def time(self) -> None:
        gc.collect()
        with kernels(self.kernels):
            self.seconds.append(clock(self.run))


@contextlib.contextmanager
def kernels(allowed: bool) -> Iterator[None]:
    """The block uses compiled code, or the reference functions if kernels are not allowed."""
    choose = jit.kernel
    if not allowed:
        jit.kernel = lambda name, rows: None
    try:
        yield
    finally:
        jit.kernel = choose


def peers(texts: pa.StringArray, queries: pa.StringArray, folder: Path | None) -> dict[str, Way]:
    words, entries = texts.to_pylist(), queries.to_pylist()
    ways = {}
    if folder:
        sys.path.insert(0, str(folder))
        naive, automaton = map(importlib.import_module, ("substr_matching", "substr_matching_ahocorasick"))
        build = clock(lambda: automaton.substr_matching("x", entries))
        some = words[:: max(1, len(words) // NAIVE_TEXTS)][:NAIVE_TEXTS]
        seconds = clock(lambda: [naive.substr_matching(text, entries) for text in some])
        print(f"MetaCLIP's default matcher: {len(some) / seconds:.1f} texts/s\n")
        found = [automaton.substr_matching(text, entries) for text in words]
        ways["MetaCLIP Aho-Corasick, as published"] = Way(
            lambda: [automaton.substr_matching(text, entries) for text in words],
            build=build,
            exact=digest(map(len, found), (number for row in found for number in sorted(row))),
        )
    else:
        ways["Aho-Corasick as described (pyahocorasick)"] = described(words, entries)
    return ways


def described(texts: list[str], entries: list[str]) -> Way:
    import ahocorasick

    def make() -> None:
        for number, entry in enumerate(entries):
            automaton.add_word(f" {entry} ", number)
        automaton.make_automaton()

    def find(text: str) -> set[int]:
        text = f" {text} "
        for mark in ",.;:?!`":
            text = text.replace(mark, f" {mark} ")
        for blank in "\t\n\r":
            text = text.replace(blank, " ")
        return {number for _, number in automaton.iter(text)}

    automaton = ahocorasick.Automaton(ahocorasick.STORE_INTS)
    build = clock(make)
    found = [find(text) for text in texts]
    exact = digest(map(len, found), (number for row in found for number in sorted(row)))
    return Way(lambda: [find(text) for text in texts], build=build, exact=exact)


def ours(texts: pa.StringArray, queries: pa.StringArray) -> dict[str, Way]:
    ways = {}
    if jit.available():
        importlib.import_module("pipeline.text.matcher_kernel").warm()
        for mode, case in (("metaclip", "exact"), ("wide", "exact"), ("wide", "fold")):
            ways[f"{mode}, {case}, compiled"] = one_of_ours(texts, queries, mode=mode, case=case)
    for mode in MODES:
        ways[f"{mode}, exact, reference"] = reference_of_ours(texts, queries, mode=mode)
    return ways


def one_of_ours(texts: pa.StringArray, queries: pa.StringArray, *, mode: str, case: str) -> Way:
    build = min(clock(lambda: Matcher.build(queries, mode=mode, case=case)) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        Matcher.build(queries, mode=mode, case=case).save(folder)
        print(f"{mode}, {case}: load {1000 * clock(lambda: Matcher.load(folder)):.1f} ms")
        matcher = Matcher.load(folder)  # the maps outlive the folder
    found = matcher.match(texts)
    exact = digest(pc.list_value_length(found).to_numpy(), found.flatten().to_numpy())

    def run() -> list[pa.ListArray]:
        return [matcher.match(texts.slice(start, BATCH)) for start in range(0, len(texts), BATCH)]

    return Way(run, build=build, megabytes=matcher.nbytes / 2**20, exact=exact if mode == "metaclip" else "")


def reference_of_ours(texts: pa.StringArray, queries: pa.StringArray, *, mode: str) -> Way:
    with kernels(False):
        matcher = Matcher.build(queries, mode=mode)
        build = clock(lambda: matcher._tree)
        found = matcher.match(texts)
    exact = digest(pc.list_value_length(found).to_numpy(), found.flatten().to_numpy())

    def run() -> list[pa.ListArray]:
        return [matcher.match(texts.slice(start, BATCH)) for start in range(0, len(texts), BATCH)]

    return Way(run, build=build, exact=exact if mode == "metaclip" else "", kernels=False)


def report(ways: dict[str, Way], *, rounds: int, texts: int, mega: float) -> None:
    for _ in range(rounds):
        for way in ways.values():
            way.time()
    reference = next(iter(ways.values()))
    print("\n| way | texts/s | MB/s | times the first | build s | tables MiB |\n|---|---|---|---|---|---|")
    for name, way in ways.items():
        seconds = min(way.seconds)
        megabytes = "" if way.megabytes is None else f"{way.megabytes:.1f}"
        ratio = min(reference.seconds) / seconds
        print(
            f"| {name} | {texts / seconds:,.0f} | {mega / seconds:.1f} | {ratio:.1f} | {way.build:.2f} | {megabytes} |"
        )
    digests = {way.exact for way in ways.values()} - {""}
    print(f"\nmatch sets in metaclip mode: {'identical, ' + digests.pop()[:24] if len(digests) == 1 else 'DIFFERENT'}")
    if len(digests) > 1:
        raise SystemExit(1)


def digest(sizes: Iterable[int], ids: Iterable[int]) -> str:
    """A digest of match sets, given as (number of ids of each text, ascending ids text by text)."""
    state = hashlib.sha256(np.fromiter(sizes, np.int64).tobytes())
    state.update(np.fromiter(ids, np.int32).tobytes())
    return state.hexdigest()


def clock(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


if __name__ == "__main__":
    main()
