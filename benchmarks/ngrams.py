"""Words and pairs of words, MB of text a second: MetaCLIP 2's n-gram functions against `queries.ngrams`.

    python benchmarks/ngrams.py DATA/wikitext/wikitext-2.*.txt [--times 3]

The reference below does what MetaCLIP 2's `build_ngram` does, written anew: HTML tags out by a regular expression, text
into tokens character by character (letters of scripts without blanks, and punctuation, alone), tokens into two
dictionaries one at a time. Ours counts words, articles of words, and pairs of the kept words, which is both passes.
Times are CPU times of one process, the best of some; the texts are held in memory. Memory and CPU time below are those
of a process that builds a list from 1, 8 and 32 times the text, by its command line: the vocabulary stays the same.

The table goes to docs/benchmarks/ngrams.md.
"""

from __future__ import annotations

import argparse
import collections
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

ROOT = Path(__file__).parents[1]
LEAST = 10
ENWIKI_TEXT = 22_000  # MB of plain text in English Wikipedia's dump
ENWIKI_BZ2 = 39_200  # MB of its CirrusSearch index

_TAGS = re.compile(r"<[^>]+>")
_ALONE = ((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0x20000, 0x3FFFF))


def stands_alone(character: str) -> bool:
    """True for punctuation and for letters of scripts without blanks."""
    if unicodedata.category(character)[0] == "P":
        return True
    return any(first <= ord(character) <= last for first, last in _ALONE)


def reference_tokens(text: str) -> Iterator[str]:
    """Character by character."""
    token = ""
    for character in text:
        if character.isspace():
            if token:
                yield token
            token = ""
        elif stands_alone(character):
            if token:
                yield token
            yield character
            token = ""
        else:
            token += character
    if token:
        yield token


def reference(text: str) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """MetaCLIP 2's counting; a token of punctuation alone is no word, and no pair reaches over it."""
    words: dict[str, int] = collections.defaultdict(int)
    pairs: dict[tuple[str, str], int] = collections.defaultdict(int)
    before = None
    for token in reference_tokens(_TAGS.sub(" ", text)):
        if all(unicodedata.category(character)[0] == "P" for character in token):
            before = None
            continue
        words[token] += 1
        if before is not None:
            pairs[before, token] += 1
        before = token
    return words, pairs


def ours(texts: pa.Array) -> tuple[int, int]:
    """Both passes: words in articles, then pairs of those that occur often enough."""
    from queries import ngrams
    from queries.bigrams import Vocabulary

    words, pairs = ngrams.WordCounter(), ngrams.PairCounter()
    batches = [texts.slice(at, 8192) for at in range(0, len(texts), 8192)]
    for batch in batches:
        words.add(ngrams.count_words(ngrams.tokenize(batch)))
    table = words.table()
    vocabulary = Vocabulary.of(table.select(["word", "count"]).rename_columns(["query", "count"]), min_count=LEAST)
    for batch in batches:
        pairs.add(*ngrams.count_pairs(ngrams.tokenize(batch), vocabulary.forms))
    return len(table), len(pairs.sums()[0])


def best(function: Callable[[], Any], times: int) -> tuple[float, Any]:
    """(CPU seconds of the fastest run, its result)."""
    found: list[float] = []
    for _ in range(times):
        start = time.process_time()
        result = function()
        found.append(time.process_time() - start)
    return min(found), result


def peak(files: list[str], copies: int) -> tuple[float, float]:
    """(peak MB, CPU s) of `queries.build` on so many copies of the texts, one worker, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        text = b"\n".join(Path(name).read_bytes() for name in files)
        with open(f"{folder}/text.txt", "wb") as file:
            for _ in range(copies):
                file.write(text + b"\n")
        command = [sys.executable, "-m", "queries.build", "--output", f"{folder}/out", "--text", f"{folder}/text.txt"]
        pid = os.fork()
        if not pid:
            os.chdir(ROOT)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.execv(sys.executable, [*command, "--min-count", str(LEAST), "--workers", "1"])
        _, status, usage = os.wait4(pid, 0)
        if status:
            raise subprocess.CalledProcessError(status, command)
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    text = "\n".join(Path(name).read_text(encoding="utf-8") for name in options.texts)
    megabytes = len(text.encode()) / 1e6
    lines = pa.array([line for line in text.split("\n") if line.strip()], pa.large_string())
    ours(pa.concat_arrays([lines] * 2))  # loads the kernels
    slow, (words, pairs) = best(lambda: reference(text), options.times)
    many = pa.concat_arrays([lines] * 8)
    fast, (our_words, our_pairs) = best(lambda: ours(many), options.times)
    rates = (megabytes / slow, 8 * megabytes / fast)
    rows = [
        "# n-grams: MB of text a second",
        "",
        str(__doc__).split("\n\n")[2].replace("\n", " "),
        "",
        f"Here: {megabytes:.1f} MB of wikitext-2 (8 times over for ours), one core, "
        f"Python {platform.python_version()}, pyarrow {pa.__version__}.",
        "",
        "| | MB/s | ratio | words | pairs |",
        "|---|---:|---:|---:|---:|",
        f"| MetaCLIP 2's functions | {rates[0]:.2f} | 1 | {len(words):,} | {len(pairs):,} |",
        f"| queries.ngrams, both passes | {rates[1]:.1f} | {rates[1] / rates[0]:.1f} | {our_words:,} | {our_pairs:,} |",
        "",
        "Ours counts pairs of words with 10 occurrences or more alone; its words are forms and lower-case forms.",
        "",
        "| text | peak memory | CPU s |",
        "|---:|---:|---:|",
    ]
    runs = []
    for copies in (1, 8, 32):
        memory, seconds = peak(options.texts, copies)
        runs.append((copies * megabytes, seconds))
        rows.append(f"| {copies * megabytes:.1f} MB | {memory:,.0f} MB | {seconds:.1f} |")
    whole = (runs[-1][0] - runs[1][0]) / (runs[-1][1] - runs[1][1])
    counting, all_in, before = (ENWIKI_TEXT / rate / 3600 for rate in (rates[1], whole, rates[0]))
    rows += [
        "",
        f"The last two rows say {whole:.1f} MB/s for the whole job: reading, both passes, the texts kept in between.",
        "",
        f"English Wikipedia has {ENWIKI_TEXT / 1000:.0f} GB of text in 39 GB of bz2. Counting it takes {counting:.1f} "
        f"core-hours, the whole job {all_in:.1f}, beside {ENWIKI_BZ2 / 3.0 / 3600:.1f} for bz2 at 3 MB/s; MetaCLIP 2's "
        f"functions would take {before:.1f} to count it.",
        "",
    ]
    print("\n".join(rows))
    (ROOT / "docs" / "benchmarks" / "ngrams.md").write_text("\n".join(rows))


if __name__ == "__main__":
    sys.exit(main())
