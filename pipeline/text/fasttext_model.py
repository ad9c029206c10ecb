"""Reads supervised fastText models (.ftz, .bin) and computes with them, over Arrow's buffers.

Nothing of fastText is needed for it. `feature_sums` gives the sum of the input vectors of a text in fixed point. So the
sum does not depend on an order, and the vectors of several texts can be added and subtracted exactly. So the context of
a text on its page is found without reading the texts again. `evidence` gives P(label) of such sums.

Format and hashes: github.com/facebookresearch/fastText, src/{fasttext,dictionary,matrix,quantmatrix,loss}.cc at v0.9.2.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine import jit
from pipeline.engine.hashing import as_array

MAGIC = 793712314  # FASTTEXT_FILEFORMAT_MAGIC_INT32
VERSIONS = (11, 12)
SUPERVISED = 3
HIERARCHICAL, NEGATIVE, SOFTMAX, ONE_VS_ALL = 1, 2, 3, 4  # losses
END_OF_LINE = b"</s>"
LABEL = b"__label__"
BLANKS = b" \n\r\t\v\f\0"
ONE = 1 << 20  # of fixed point: a vector's entry is a multiple of 1 / ONE
LARGEST = 1 << 34  # bytes of a model file
LEAST_SHARE = 0.01  # smaller probabilities are no evidence
PER_LABEL = 1_024  # entries of `Model.evidence` are label * PER_LABEL + thousandths
EVIDENCE = pa.list_(pa.int32())
ROW_COST = 20  # a text without the kernel costs as much as so many rows of another kernel
MAX_TEXT = 10_000  # bytes of a text that are looked at; cleaning drops longer texts anyway

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What the hashes of a text need.

    Attributes:
        dim: entries of a vector.
        word_ngrams: longest run of words that has a vector; 1: single words only.
        bucket: number of hashes of n-grams before pruning.
        shortest, longest: characters of the n-grams inside words; longest 0: none.
        words: number of words with a vector of their own.
    """

    dim: int
    word_ngrams: int
    bucket: int
    shortest: int
    longest: int
    words: int


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in memory.

    Attributes:
        parameters: see above.
        labels: without fastText's prefix, in the order of the file.
        vectors: int32 (words + n-grams, dim), in units of 1 / ONE.
        word_bytes, word_offsets: the words, as Arrow stores texts.
        word_table: int32, open addressing by the hash of the word; -1: free.
        kept: int32, bucket -> row of `vectors`; -1: pruned. Empty if nothing was pruned.
        end: row of the vector of the end of the line; -1: it has none.
        output: float64 (rows, dim), of the labels or of the nodes of the tree.
        tree: for HIERARCHICAL int32 (labels - 1, 2), the children of each inner node, the last one is the root.
        loss: HIERARCHICAL, NEGATIVE, SOFTMAX or ONE_VS_ALL.
    """

    parameters: Parameters
    labels: tuple[str, ...]
    vectors: npt.NDArray[np.int32]
    word_bytes: npt.NDArray[np.uint8]
    word_offsets: Ints
    word_table: npt.NDArray[np.int32]
    kept: npt.NDArray[np.int32]
    end: int
    output: npt.NDArray[np.float64]
    tree: npt.NDArray[np.int32]
    loss: int

    def feature_sums(self, texts: pa.Array | pa.ChunkedArray) -> tuple[Ints, Ints]:
        """For each text the sum of its vectors, int64 (rows, dim) in units of 1 / ONE, and their number.

        The vector of the end of the line is left out. `evidence` adds it.
        """
        array = as_array(texts).cast(pa.large_string()).fill_null("")
        kernel = jit.kernel("pipeline.text.fasttext_kernel", len(array) * ROW_COST)
        if kernel:
            return kernel.feature_sums(self, array)
        sums, counts = np.zeros((len(array), self.parameters.dim), np.int64), np.zeros(len(array), np.int64)
        for row, text in enumerate(array.to_pylist()):
            rows = self._rows_of(text.encode()[:MAX_TEXT])
            counts[row] = len(rows)
            sums[row] = self.vectors[rows].sum(axis=0, dtype=np.int64)
        return sums, counts

    def evidence(self, sums: Ints, counts: Ints) -> pa.ListArray:
        """list<int32>: the labels of at least LEAST_SHARE of each row, in the order of `labels`, with their P.

        An entry is label * PER_LABEL + P in thousandths. A row without a vector has no entry.
        """
        kernel = jit.kernel("pipeline.text.fasttext_kernel", len(sums) * ROW_COST)
        if kernel:
            return kernel.evidence(self, sums, counts)
        entries = [self._entries(total.tolist(), count) for total, count in zip(sums, counts.tolist(), strict=True)]
        return pa.array(entries, EVIDENCE)

    def _entries(self, total: list[int], count: int) -> list[int]:
        if not count:
            return []
        if self.end >= 0:
            total = [entry + more for entry, more in zip(total, self.vectors[self.end].tolist(), strict=True)]
            count += 1
        hidden = [entry / (count * float(ONE)) for entry in total]
        shares = self._down_the_tree(hidden) if self.loss == HIERARCHICAL else self._flat(hidden)
        return sorted(label * PER_LABEL + round_half_up(p * 1000) for label, p in shares if p >= LEAST_SHARE)

    def _dot(self, row: int, hidden: list[float]) -> float:
        total = 0.0
        for weight, entry in zip(self._weights[row], hidden, strict=True):
            total += weight * entry
        return total

    def _flat(self, hidden: list[float]) -> list[tuple[int, float]]:
        logits = [self._dot(label, hidden) for label in range(len(self.labels))]
        if self.loss != SOFTMAX:
            return [(label, _sigmoid(logit)) for label, logit in enumerate(logits)]
        top, total = max(logits), 0.0
        powers = [math.exp(logit - top) for logit in logits]
        for power in powers:
            total += power
        return [(label, power / total) for label, power in enumerate(powers)]

    def _down_the_tree(self, hidden: list[float]) -> list[tuple[int, float]]:
        """The leaves of at least LEAST_SHARE. A branch below it is not followed."""
        n_labels, found, todo = len(self.labels), [], [(2 * len(self.labels) - 2, 1.0)]
        while todo:
            node, p = todo.pop()
            if p < LEAST_SHARE:
                continue
            if node < n_labels:
                found.append((node, p))
                continue
            right = _sigmoid(self._dot(node - n_labels, hidden))
            todo += [(int(self.tree[node - n_labels, 0]), p * (1.0 - right))]
            todo += [(int(self.tree[node - n_labels, 1]), p * right)]
        return found

    @functools.cached_property
    def _weights(self) -> list[list[float]]:
        return self.output.tolist()

    def _rows_of(self, text: bytes) -> list[int]:
        """The rows of `vectors` of a text, the slow way."""
        rows: list[int] = []
        hashes: list[int] = []
        for token in text.translate(bytes.maketrans(BLANKS, b" " * len(BLANKS))).split(b" "):
            word = self._numbers.get(token, -1)
            if not token or token == END_OF_LINE or (word < 0 and token.startswith(LABEL)):
                continue
            hashes.append(hash_bytes(token))
            rows += [word] if word >= 0 else []
            rows += self._inside(b"<" + token + b">") if self.parameters.longest else []
        for first, value in enumerate(hashes):
            mixed = _signed(value)
            for other in hashes[first + 1 : first + self.parameters.word_ngrams]:
                mixed = (mixed * 116049371 + _signed(other)) % 2**64
                rows += self._row_of_bucket(mixed % self.parameters.bucket)
        return rows

    def _inside(self, word: bytes) -> list[int]:
        """The rows of the n-grams of a word in brackets."""
        starts = [place for place, byte in enumerate(word) if byte & 0xC0 != 0x80] + [len(word)]
        rows: list[int] = []
        for first in range(len(starts) - 1):
            for size in range(self.parameters.shortest, self.parameters.longest + 1):
                last = first + size
                if last >= len(starts) or size == 1 and (first == 0 or last == len(starts) - 1):
                    continue
                rows += self._row_of_bucket(hash_bytes(word[starts[first] : starts[last]]) % self.parameters.bucket)
        return rows

    def _row_of_bucket(self, bucket: int) -> list[int]:
        if not len(self.kept):
            return [self.parameters.words + bucket]
        row = int(self.kept[bucket])
        return [row] if row >= 0 else []

    @functools.cached_property
    def _numbers(self) -> dict[bytes, int]:
        offsets, data = self.word_offsets, self.word_bytes.tobytes()
        return {data[offsets[word] : offsets[word + 1]]: word for word in range(self.parameters.words)}


def hash_bytes(data: bytes) -> int:
    """fastText's hash: FNV-1a of 32 bits over signed bytes."""
    value = 2166136261
    for byte in data:
        value = (value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619 % 2**32
    return value


def round_half_up(value: float) -> int:
    """The nearest whole number of a number that is not negative, the same way in both twins."""
    return int(value + 0.5)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


def _signed(value: int) -> int:
    """A 32-bit hash as fastText widens it to 64 bits."""
    return value if value < 2**31 else value + 2**64 - 2**32


def read_model(path: str | Path) -> Model:
    """The model in a file.

    Raises:
        ValueError: the file is no supervised fastText model, or is cut or damaged.
        OSError: it cannot be read.
    """
    if Path(path).stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    with open(path, "rb") as file:
        data = file.read()
    try:
        return _parse(_Reader(data))
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise ValueError("it is cut or damaged") from error


class _Reader:
    """Takes numbers and arrays from bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, kind: Any, count: int) -> np.ndarray:
        size = np.dtype(kind).itemsize * count
        if count < 0 or self.at + size > len(self.data):
            raise IndexError("an array ends behind the file")
        self.at += size
        return np.frombuffer(self.data, kind, count, self.at - size)

    def text(self) -> bytes:
        end = self.data.index(b"\0", self.at) if b"\0" in self.data[self.at : self.at + 65_536] else -1
        if end < 0:
            raise IndexError("a word without an end")
        text, self.at = self.data[self.at : end], end + 1
        return text


def _parse(reader: _Reader) -> Model:
    magic, version = reader.numbers("ii")
    if magic != MAGIC or version not in VERSIONS:
        raise ValueError("it does not begin as a fastText model of version 11 or 12")
    dim, _, _, _, _, word_ngrams, loss, kind, bucket, shortest, longest, _, _ = reader.numbers("12id")
    if kind != SUPERVISED or loss not in (HIERARCHICAL, NEGATIVE, SOFTMAX, ONE_VS_ALL):
        raise ValueError("it is no supervised model")
    words, labels, label_counts, kept = _dictionary(reader, bucket)
    quantised = reader.numbers("?")[0]
    vectors = _quantised_matrix(reader) if quantised else _matrix(reader)
    output_quantised = reader.numbers("?")[0]
    output = _quantised_matrix(reader) if quantised and output_quantised else _matrix(reader)
    longest = 0 if version == 11 else longest
    needs_buckets = longest > 0 or word_ngrams > 1
    n_grams = int(kept.max(initial=-1)) + 1 if len(kept) else bucket if needs_buckets else 0
    if vectors.shape[1] != dim or output.shape[1] != dim or len(output) < len(labels) - 1 or not labels:
        raise ValueError("its matrices do not fit each other")
    if len(vectors) < max(len(words), n_grams if len(kept) else len(words) + n_grams):
        raise ValueError("its matrix does not fit its words")
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Model(
        Parameters(dim, word_ngrams, max(1, bucket), shortest, longest, len(words)),
        tuple(labels),
        np.round(np.clip(vectors, -1000, 1000) * ONE).astype(np.int32),
        np.frombuffer(b"".join(words), np.uint8),
        offsets,
        _word_table(words),
        kept,
        words.index(END_OF_LINE) if END_OF_LINE in words else -1,
        output.astype(np.float64),
        _tree(label_counts) if loss == HIERARCHICAL else np.empty((0, 2), np.int32),
        loss,
    )


def _dictionary(
    reader: _Reader, bucket: int
) -> tuple[list[bytes], list[str], list[int], npt.NDArray[np.int32]]:
    """Words, labels, counts of the labels, and for a pruned model the row of each bucket."""
    size, n_words, n_labels, _, n_kept = reader.numbers("iiiqq")
    if min(size, n_words, n_labels) < 0 or n_words + n_labels != size:
        raise ValueError("its dictionary is damaged")
    words: list[bytes] = []
    labels: list[str] = []
    counts: list[int] = []
    for _ in range(size):
        word = reader.text()
        count, is_label = reader.numbers("qb")
        if is_label:
            labels.append(word.removeprefix(LABEL).decode())
            counts.append(count)
        else:
            words.append(word)
    if n_kept < 0:
        return words, labels, counts, np.empty(0, np.int32)
    pairs = reader.array("<i4", 2 * n_kept).reshape(-1, 2)
    kept = np.full(max(1, bucket), -1, np.int32)
    if len(pairs) and (pairs.min() < 0 or pairs[:, 0].max() >= bucket):
        raise ValueError("its dictionary is damaged")
    kept[pairs[:, 0]] = pairs[:, 1] + len(words)
    return words, labels, counts, kept


def _matrix(reader: _Reader) -> np.ndarray:
    rows, columns = reader.numbers("qq")
    return reader.array("<f4", rows * columns).reshape(rows, columns)


def _quantised_matrix(reader: _Reader) -> np.ndarray:
    """A product-quantised matrix, unpacked."""
    has_norms, rows, columns, size = reader.numbers("?qqi")
    codes = reader.array(np.uint8, size)
    centroids, starts = _quantizer(reader)
    if len(starts) - 1 <= 0 or size != rows * (len(starts) - 1) or starts[-1] != columns:
        raise ValueError("a matrix of it is damaged")
    codes = codes.reshape(rows, len(starts) - 1)
    found = np.empty((rows, columns), np.float32)
    for part, (first, last) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        block = centroids[first * 256 : last * 256].reshape(256, last - first)
        found[:, first:last] = block[codes[:, part]]
    if has_norms:
        norm_codes = reader.array(np.uint8, rows)
        norms, _ = _quantizer(reader)
        found *= norms[norm_codes][:, None]
    return found


def _quantizer(reader: _Reader) -> tuple[np.ndarray, list[int]]:
    """The centroids, and the first column of each part (and the end)."""
    dim, parts, width, _ = reader.numbers("iiii")
    if not 0 < dim <= 65_536 or width <= 0 or parts != -(-dim // width):
        raise ValueError("a matrix of it is damaged")
    return reader.array("<f4", dim * 256), [min(part * width, dim) for part in range(parts + 1)]


def _word_table(words: list[bytes]) -> npt.NDArray[np.int32]:
    size = 1 << max(4, (2 * len(words)).bit_length())
    table = np.full(size, -1, np.int32)
    for number, word in enumerate(words):
        place = hash_bytes(word) & (size - 1)
        while table[place] >= 0:
            place = (place + 1) & (size - 1)
        table[place] = number
    return table


def _tree(counts: list[int]) -> npt.NDArray[np.int32]:
    """The children of the inner nodes of the Huffman tree, in the order in which fastText makes them."""
    n_labels = len(counts)
    weights = [*counts, *[10**15] * (n_labels - 1)]
    tree = np.zeros((n_labels - 1, 2), np.int32)
    leaf, node = n_labels - 1, n_labels
    for made in range(n_labels - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                tree[made, side], leaf = leaf, leaf - 1
            else:
                tree[made, side], node = node, node + 1
        weights[n_labels + made] = weights[tree[made, 0]] + weights[tree[made, 1]]
    return tree
