"""Learns a byte-pair vocabulary from captions (paper, section 2.4: lower-case BPE, 49,152 merges).

Words are counted once. Then the most frequent pair of neighbouring symbols is merged, again and again. Of equally
frequent pairs the first in sorted order is taken, so the same captions give the same vocabulary, byte for byte.
"""

from __future__ import annotations

import gzip
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_train.errors import InputMissing, TrainError, UsageError
from clip_train.tokenizer import MAX_MERGES, byte_symbols, split_words, write_merges

Pair = tuple[str, str]


def train_vocabulary(
    inputs: Sequence[str], output: str, *, column: str = "text", merges: int = MAX_MERGES, min_count: int = 2
) -> dict[str, Any]:
    """Reads captions, learns merges and writes the vocabulary file."""
    if not 1 <= merges <= MAX_MERGES:
        raise UsageError(f"--merges must be between 1 and {MAX_MERGES}")
    counts: Counter[str] = Counter()
    captions = 0
    for path in inputs:
        try:
            for text in read_captions(path, column):
                counts.update(split_words(text))
                captions += 1
        except (EOFError, OSError, ValueError) as error:  # gzip, the system, Parquet
            raise TrainError(f"{path} cannot be read or is truncated: {error}") from error
    if not counts:
        raise InputMissing(f"no words in {', '.join(inputs)}")
    learned = learn_merges(counts, merges=merges, min_count=min_count)
    file = Path(output)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_merges(file, learned)
    return {
        "output": output,
        "captions": captions,
        "words": counts.total(),
        "distinct_words": len(counts),
        "merges": len(learned),
        "vocabulary_size": 512 + len(learned) + 2,
    }


def read_captions(path: str, column: str) -> Iterator[str]:
    """Yields captions from a file or from shards.

    The form follows from the name: a text file (.txt, .txt.gz) has a caption per line, a Parquet file has a column of
    captions, a file of WordNet (`data.noun`) has words and glosses. Everything else is read as shards.
    """
    file = Path(path)
    if path.endswith((".txt", ".txt.gz")):
        if not file.exists():
            raise InputMissing(f"no such file: {path}")
        opened = gzip.open(file, "rt", encoding="utf-8", errors="replace") if path.endswith(".gz") else None
        with opened or open(file, encoding="utf-8", errors="replace") as lines:
            yield from (line.strip() for line in lines)
    elif file.stem == "data":
        yield from _read_wordnet(file)
    elif path.endswith(".parquet"):
        import pyarrow.parquet as pq

        if not file.exists():
            raise InputMissing(f"no such file: {path}")
        table = pq.ParquetFile(file)
        if column not in table.schema_arrow.names:
            raise TrainError(f"{path} has no column {column!r}: name one with --text-column")
        for batch in table.iter_batches(columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    else:
        from clip_train.reader import open_reader, read_member
        from clip_train.shards import open_index

        index = open_index(path)
        reader = open_reader(index)
        for sample in range(len(index)):
            yield read_member(reader, index, "text", sample).decode("utf-8", "replace")
        reader.close()


def _read_wordnet(file: Path) -> Iterator[str]:
    """Yields words and gloss of each synset.

    A line is `offset file type count word id word id ... | gloss`. Lines of the licence start with two blanks.
    """
    if not file.exists():
        raise InputMissing(f"no such file: {file} (Debian: apt install wordnet-base)")
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.startswith("  "):
                data, _, gloss = line.partition(" | ")
                fields = data.split()
                words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                yield f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}"


def learn_merges(counts: Counter[str], *, merges: int, min_count: int = 2) -> list[Pair]:
    """The merges, best first. They are fewer than `merges` if no other pair occurs `min_count` times."""
    symbols = byte_symbols()
    words: list[list[str]] = []
    weights: list[int] = []
    for word, count in sorted(counts.items()):
        pieces = [symbols[byte] for byte in word.encode("utf-8")]
        pieces[-1] += "</w>"
        words.append(pieces)
        weights.append(count)
    totals: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)  # words that contain, or contained, a pair
    for number, pieces in enumerate(words):
        for pair in zip(pieces, pieces[1:], strict=False):
            totals[pair] += weights[number]
            places[pair].add(number)
    heap = [(-count, pair) for pair, count in totals.items()]
    heapq.heapify(heap)

    learned: list[Pair] = []
    while heap and len(learned) < merges:
        count, best = heapq.heappop(heap)
        if -count != totals[best]:  # an outdated entry: the count of the pair has changed
            continue
        if -count < min_count:
            break
        learned.append(best)
        changed: Counter[Pair] = Counter()
        for number in places.pop(best):
            before = words[number]
            after = _merge(before, best)
            if len(after) == len(before):
                continue
            words[number] = after
            for pair in zip(before, before[1:], strict=False):
                changed[pair] -= weights[number]
            for pair in zip(after, after[1:], strict=False):
                changed[pair] += weights[number]
                places[pair].add(number)
        for pair, difference in changed.items():
            if difference:
                totals[pair] += difference
                if totals[pair] > 0:
                    heapq.heappush(heap, (-totals[pair], pair))
        del totals[best]
    return learned


def _merge(pieces: Sequence[str], pair: Pair) -> list[str]:
    """Merges all occurrences of the pair, from the left."""
    merged: list[str] = []
    at = 0
    while at < len(pieces):
        if at + 1 < len(pieces) and (pieces[at], pieces[at + 1]) == pair:
            merged.append(pair[0] + pair[1])
            at += 2
        else:
            merged.append(pieces[at])
            at += 1
    return merged


def count_words(captions: Iterable[str]) -> Counter[str]:
    """Counts the words of captions after the clean-up of the tokenizer."""
    return Counter(word for caption in captions for word in split_words(caption))
