"""Captions to token ids: lower-case byte-level BPE. With OpenAI's vocabulary the ids equal theirs.

A vocabulary file has a header line and one merge per line, gzipped or not: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or
a file of `clip_train tokenizer train`. The ids are 256 bytes, 256 bytes that end a word, the merges, start-of-text and
end-of-text. A caption never yields one of the two special tokens, whatever its text is.

Plain ASCII captions, which are nearly all, take a fast path: one regular expression, and a table of known words.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import html
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from clip_train.cleanup import repair
from clip_train.errors import InputMissing, TrainError

if TYPE_CHECKING:
    import torch

MAX_MERGES = 48894  # 49,408 ids in all (paper, table 18); OpenAI's file has more lines than that
VOCABULARY = "vocabulary.txt.gz"  # name of the file in the folder of a run, and of the packaged one
OWN_VOCABULARY = Path(__file__).parent / "data" / VOCABULARY
LONG_WORD = 100  # bytes; longer words are merged with a heap and are not cached
WORD_CACHE_SIZE = 1 << 20  # words; a web crawl always has new ones

_ASCII_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
_ASCII_ODD = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f&]")  # control characters and entities need the full clean-up
_BLANKS = re.compile(r"\s+")


@cache
def byte_symbols() -> tuple[str, ...]:
    """A printable character for each byte, as in GPT-2: printable bytes are themselves, others are above 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    return tuple(symbols[byte] for byte in range(256))


@cache
def _symbol_order() -> tuple[str, ...]:
    """The symbols in the order of their ids: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return tuple(byte_symbols()[byte] for byte in [*printable, *(b for b in range(256) if b not in printable)])


@cache
def _unicode_words() -> re.Pattern[str]:
    r"""OpenAI's split for any text, with \p{L} and \p{N} written out, because `re` does not know them.

    A word character of `re` that is neither "_" nor of category N is a letter.
    """
    import unicodedata

    alphanumeric = re.findall(r"[^\W_]", "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)])))
    points = [ord(char) for char in alphanumeric if unicodedata.category(char)[0] == "N"]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    numbers = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    # OpenAI's pattern ignores case: it takes the long s for an s, and the combining iota (U+0345), a mark whose upper
    # case is a letter, for neither a letter nor a mark
    letters, marks = f"[^\\W_{numbers}]+", r"(?:[^\w\s\u0345]|_)+"
    return re.compile(f"'[s\u017f]|'t|'re|'ve|'m|'ll|'d|{letters}|[{numbers}]|{marks}")


def split_words(text: str) -> list[str]:
    """The words of a caption after clean-up, in lower case and without blanks. Each digit is a word."""
    if text.isascii() and not _ASCII_ODD.search(text):
        return _ASCII_WORDS.findall(text.lower())
    text = html.unescape(html.unescape(repair(text))).strip()
    text = _BLANKS.sub(" ", text).strip().lower()
    return (_ASCII_WORDS if text.isascii() else _unicode_words()).findall(text)


class Tokenizer:
    """Byte-pair encoding with a list of merges, best first."""

    def __init__(self, merges: Iterable[tuple[str, str]], *, name: str) -> None:
        self.name = name  # where the merges come from
        self.merges = list(merges)[:MAX_MERGES]
        symbols = _symbol_order()
        vocabulary = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in self.merges)]
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.start_id, self.end_id = len(vocabulary), len(vocabulary) + 1
        self._ids = {token: number for number, token in enumerate(vocabulary)}
        self._tokens = vocabulary
        self._words: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """The number of ids, including the two special tokens."""
        return self.end_id + 1

    @property
    def tokens(self) -> list[str]:
        """The pieces by their ids, without the two special tokens."""
        return self._tokens

    @property
    def fingerprint(self) -> str:
        """A name for the vocabulary. Vocabularies with equal fingerprints give equal ids."""
        return hashlib.sha256(repr(self.merges).encode()).hexdigest()[:16]

    def __call__(self, texts: str | Sequence[str], *, context_length: int = 77) -> torch.Tensor:
        """(B, context_length) int64: ids of B captions with start- and end-of-text, padded with zeros.

        `model.encode_text` takes them. OpenAI's `clip.tokenize` has the same form. A single text is one caption.
        """
        from clip_train.text import pad

        captions = [texts] if isinstance(texts, str) else texts
        ids = [self.encode_caption(text, context_length=context_length) for text in captions]
        return pad(ids, context_length=context_length)

    def encode(self, text: str) -> list[int]:
        """Ids of a caption, without the special tokens."""
        words, ids = self._words, []
        for word in split_words(text):
            known = words.get(word)
            if known is None:
                known = self._learn(word)
            ids += known
        return ids

    def encode_caption(self, text: str, *, context_length: int) -> list[int]:
        """Start-of-text, ids of the caption, end-of-text. The caption is truncated to the context length."""
        return [self.start_id, *self.encode(text)[: context_length - 2], self.end_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, without the special tokens."""
        text = "".join(self._tokens[number] for number in ids if number < self.start_id)
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        parts = (bytes(byte_of[char] for char in part).decode("utf-8", "replace") for part in text.split("</w>"))
        return " ".join(parts).strip()

    def _learn(self, word: str) -> list[int]:
        symbols = byte_symbols()
        pieces = [symbols[byte] for byte in word.encode("utf-8")]
        pieces[-1] += "</w>"
        merge = merge_pieces if len(pieces) <= LONG_WORD else merge_long
        ids = [self._ids[piece] for piece in merge(pieces, self.ranks)]
        if len(self._words) < WORD_CACHE_SIZE and len(pieces) <= LONG_WORD:
            self._words[word] = ids
        return ids


def merge_pieces(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Applies the best merge, to all its places from the left, until no merge applies."""
    unknown = len(ranks)
    while len(pieces) > 1:
        pairs = list(zip(pieces, pieces[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks.get(pair, unknown))
        if best not in ranks:
            break
        merged, at = [], 0
        while at < len(pieces):
            if at + 1 < len(pieces) and (pieces[at], pieces[at + 1]) == best:
                merged.append(best[0] + best[1])
                at += 2
            else:
                merged.append(pieces[at])
                at += 1
        pieces = merged
    return pieces


def merge_long(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """The result of `merge_pieces` in n log n steps instead of n squared, for junk words of up to 60,000 letters.

    A heap has the pairs by rank, then by place. All places of the best pair are merged before the new pairs.
    """
    parts: list[str | None] = [*pieces]  # None: merged into an earlier part
    after, before = [*range(1, len(parts) + 1)], [*range(-1, len(parts) - 1)]

    def pair_at(left: int) -> tuple[str | None, str | None]:
        return parts[left], parts[after[left]] if after[left] < len(parts) else None

    heap = [(ranks[pair_at(at)], at) for at in range(len(parts) - 1) if pair_at(at) in ranks]  # type: ignore[index]
    heapq.heapify(heap)
    while heap:
        best, made = heap[0][0], []
        while heap and heap[0][0] == best:
            at = heapq.heappop(heap)[1]
            first, second = pair_at(at)
            if first is None or second is None or ranks.get((first, second)) != best:
                continue  # one of the two has been merged since
            gone = after[at]
            parts[at], parts[gone], after[at] = first + second, None, after[gone]
            if after[at] < len(parts):
                before[after[at]] = at
            made += [at] if before[at] < 0 else [before[at], at]
        for at in made:
            rank = ranks.get(pair_at(at))  # type: ignore[arg-type]
            if rank is not None:
                heapq.heappush(heap, (rank, at))
    return [part for part in parts if part is not None]


def find_vocabulary(path: str | Path | None = None) -> Path:
    """The vocabulary file to use: the given one, else that of an installed open_clip, else the packaged one."""
    if path is not None:
        return Path(path)
    installed = importlib.util.find_spec("open_clip")
    for folder in (installed.submodule_search_locations or []) if installed else []:
        file = Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
        if file.exists():
            return file
    return OWN_VOCABULARY


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of a vocabulary file, best first."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except FileNotFoundError:
        raise InputMissing(f"no vocabulary at {path}: name one by --bpe, or train one (tokenizer train)") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TrainError(f"{path} is not a BPE vocabulary: {error}") from error
    merges = []
    for number, line in enumerate(text.split("\n")[1:], start=2):  # the first line is a header
        if not line:
            continue
        pair = line.split()
        if len(pair) != 2:
            raise TrainError(f"{path}, line {number}: a merge is two symbols, not {line!r}")
        merges.append((pair[0], pair[1]))
    if not merges:
        raise TrainError(f"{path} holds no merges")
    return merges


def write_merges(path: Path, merges: Iterable[tuple[str, str]]) -> None:
    """Writes a vocabulary file in OpenAI's form. The same merges give the same bytes."""
    text = "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in merges)]) + "\n"
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
    os.replace(partial, path)


def load_tokenizer(path: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a vocabulary file. `find_vocabulary` says which file is the default."""
    file = find_vocabulary(path)
    return Tokenizer(read_merges(file), name=str(file))
