"""`fasttext_model.Model.feature_sums` in compiled code, over Arrow's buffers."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine.jit import njit
from pipeline.text.fasttext_file import (
    LEAST_SHARE,
    MAX_TEXT,
    NEGATIVE,
    ONE,
    ONE_VS_ALL,
    PER_LABEL,
    SOFTMAX,
    Weights,
    packaged_model,
    read_weights,
)

U = np.uint64
_START, _PRIME, _WORD_PRIME = U(2166136261), U(16777619), U(116049371)
_TAIL, _TAIL_MASK = 0x80, 0xC0  # of UTF-8: a byte inside a character
_BLANK, _TAB, _RETURN = 0x20, 0x09, 0x0D  # and all between the last two
_END_OF_LINE, _LABEL = np.frombuffer(b"</s>", np.uint8), np.frombuffer(b"__label__", np.uint8)
_LESS, _GREATER = np.uint8(ord("<")), np.uint8(ord(">"))
_SIGN, _WIDEN, _BITS = U(0x80), U(0xFFFFFF00), U(0xFFFFFFFF)
_TOP, _WIDEN_64 = U(0x80000000), U(0xFFFFFFFF00000000)


class _Tables(NamedTuple):
    """The arrays of a model, and its numbers: see `fasttext_file.Weights`."""

    vectors: npt.NDArray[np.int32]
    word_bytes: npt.NDArray[np.uint8]
    word_offsets: npt.NDArray[np.int64]
    word_table: npt.NDArray[np.int32]
    kept: npt.NDArray[np.int32]
    bucket: int
    shortest: int
    longest: int
    word_ngrams: int


@njit
def _step(value, byte):  # noqa: ANN001, ANN202
    """One byte more for FNV-1a of 32 bits over signed bytes. numba widens 32-bit numbers, so the hash is in 64 bits."""
    wide = U(byte)
    return (value ^ (wide | _WIDEN if wide & _SIGN else wide)) * _PRIME & _BITS


@njit
def _find(data, first, last, value, tables):  # noqa: ANN001, ANN202
    """The number of a word, or -1."""
    mask = len(tables.word_table) - 1
    place = np.int64(value) & mask
    while tables.word_table[place] >= 0:
        word = tables.word_table[place]
        start = tables.word_offsets[word]
        if tables.word_offsets[word + 1] - start == last - first:
            same = True
            for at in range(last - first):
                if data[first + at] != tables.word_bytes[start + at]:
                    same = False
                    break
            if same:
                return word
        place = (place + 1) & mask
    return np.int32(-1)


@njit
def _add(value, tables, sums):  # noqa: ANN001, ANN202
    """Adds the vector of a hashed n-gram; returns how many vectors that were."""
    bucket = np.int64(value % U(tables.bucket))
    row = np.int64(tables.kept[bucket]) if len(tables.kept) else len(tables.word_offsets) - 1 + bucket
    if row < 0:
        return 0
    for place in range(len(sums)):
        sums[place] += tables.vectors[row, place]
    return 1


@njit
def _byte(data, first, last, at):  # noqa: ANN001, ANN202
    """Byte `at` of the word in brackets."""
    if at == 0:
        return _LESS
    return _GREATER if at == last - first + 1 else data[first + at - 1]


@njit
def _inside(data, first, last, tables, sums):  # noqa: ANN001, ANN202
    """Adds the n-grams of a word in brackets; returns their number."""
    count, size = 0, last - first + 2
    for start in range(size):
        if _byte(data, first, last, start) & _TAIL_MASK == _TAIL:
            continue
        at, value, letters = start, _START, 0
        while at < size and letters < tables.longest:
            value = _step(value, _byte(data, first, last, at))
            at += 1
            while at < size and _byte(data, first, last, at) & _TAIL_MASK == _TAIL:
                value = _step(value, _byte(data, first, last, at))
                at += 1
            letters += 1
            if letters >= tables.shortest and not (letters == 1 and (start == 0 or at == size)):
                count += _add(value, tables, sums)
    return count


@njit
def _is(data, first, last, word, whole):  # noqa: ANN001, ANN202
    """True if the token begins with `word`, and has no more bytes if `whole`."""
    if last - first < len(word) or (whole and last - first != len(word)):
        return False
    for at in range(len(word)):
        if data[first + at] != word[at]:
            return False
    return True


@njit
def _runs(hashes, n_words, tables, sums):  # noqa: ANN001, ANN202
    """Adds the runs of words; returns their number."""
    count = 0
    for first in range(n_words):
        mixed = hashes[first]
        for other in range(first + 1, min(n_words, first + tables.word_ngrams)):
            mixed = mixed * _WORD_PRIME + hashes[other]
            count += _add(mixed, tables, sums)
    return count


@njit
def _is_blank(byte):  # noqa: ANN001, ANN202
    return byte == _BLANK or byte == 0 or _TAB <= byte <= _RETURN


@njit
def _words(data, place, tables, hashes, sums):  # noqa: ANN001, ANN202
    """Adds the words of a text and what is inside them; returns the number of vectors and of words."""
    at, end = place
    count, n_words = 0, 0
    while at < end:
        if _is_blank(data[at]):
            at += 1
            continue
        first, value = at, _START
        while at < end and not _is_blank(data[at]):
            value = _step(value, data[at])
            at += 1
        word = _find(data, first, at, value, tables)
        if _is(data, first, at, _END_OF_LINE, True) or (word < 0 and _is(data, first, at, _LABEL, False)):
            continue
        if tables.word_ngrams > 1:
            hashes[n_words] = value | _WIDEN_64 if value & _TOP else value
        n_words += 1
        if word >= 0:
            count += 1
            for entry in range(len(sums)):
                sums[entry] += tables.vectors[word, entry]
        if tables.longest > 0:
            count += _inside(data, first, at, tables, sums)
    return count, n_words


@njit
def _feature_sums(data, offsets, tables, sums, counts):  # noqa: ANN001, ANN202
    hashes = np.empty(MAX_TEXT // 2 + 1, np.uint64)
    for row in range(len(offsets) - 1):
        start = offsets[row]
        end = min(offsets[row + 1], start + MAX_TEXT)
        counts[row], n_words = _words(data, (start, end), tables, hashes, sums[row])
        if tables.word_ngrams > 1:
            counts[row] += _runs(hashes, n_words, tables, sums[row])


def feature_sums(model: Weights, texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As `Model.feature_sums`; `texts` without nulls."""
    p = model.parameters
    sums, counts = np.zeros((len(texts), p.dim), np.int64), np.zeros(len(texts), np.int64)
    if not len(texts):
        return sums, counts
    _, offset_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer and data_buffer.size else np.zeros(1, np.uint8)
    tables = _Tables(
        vectors=model.vectors,
        word_bytes=model.word_bytes,
        word_offsets=model.word_offsets,
        word_table=model.word_table,
        kept=model.kept,
        bucket=p.bucket,
        shortest=p.shortest,
        longest=p.longest,
        word_ngrams=p.word_ngrams,
    )
    _feature_sums(data, offsets, tables, sums, counts)
    return sums, counts


class _Output(NamedTuple):
    """What turns sums into shares: see `fasttext_file.Weights`."""

    end: npt.NDArray[np.int64]  # vector of the end of the line; empty: none
    output: npt.NDArray[np.float64]
    tree: npt.NDArray[np.int32]
    softmax: bool
    n_labels: int


@njit
def _dot(output, row, hidden):  # noqa: ANN001, ANN202
    total = 0.0
    for place in range(len(hidden)):
        total += output[row, place] * hidden[place]
    return total


@njit
def _sigmoid(value):  # noqa: ANN001, ANN202
    return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


@njit
def _down_the_tree(hidden, output, tree, stack, shares):  # noqa: ANN001, ANN202
    """Fills the shares of the leaves. A branch below LEAST_SHARE is not followed."""
    n_labels = len(shares)
    nodes, weights = stack
    nodes[0], weights[0], size = 2 * n_labels - 2, 1.0, 1
    while size:
        size -= 1
        node, share = nodes[size], weights[size]
        if share < LEAST_SHARE:
            continue
        if node < n_labels:
            shares[node] = share
            continue
        right = _sigmoid(_dot(output, node - n_labels, hidden))
        nodes[size], weights[size] = tree[node - n_labels, 0], share * (1.0 - right)
        nodes[size + 1], weights[size + 1] = tree[node - n_labels, 1], share * right
        size += 2


@njit
def _flat(hidden, output, softmax, shares):  # noqa: ANN001, ANN202
    top = -math.inf
    for label in range(len(shares)):
        shares[label] = _dot(output, label, hidden)
        top = max(top, shares[label])
    total = 0.0
    for label in range(len(shares)):
        shares[label] = math.exp(shares[label] - top) if softmax else _sigmoid(shares[label])
        total += shares[label]
    for label in range(len(shares) if softmax else 0):
        shares[label] /= total


@njit
def _evidence(sums, counts, model, sizes, entries):  # noqa: ANN001, ANN202
    """Fills the sizes of the rows and their entries; returns the number of entries."""
    end, output, tree, softmax, n_labels = model
    found = 0
    shares, hidden = np.empty(n_labels), np.empty(sums.shape[1])
    stack = (np.empty(2 * n_labels + 2, np.int64), np.empty(2 * n_labels + 2))
    for row in range(len(counts)):
        first = found
        if counts[row]:
            scale = (counts[row] + (1 if len(end) else 0)) * ONE
            for place in range(len(hidden)):
                hidden[place] = (sums[row, place] + (end[place] if len(end) else 0)) / scale
            shares[:] = 0.0
            if len(tree):
                _down_the_tree(hidden, output, tree, stack, shares)
            else:
                _flat(hidden, output, softmax, shares)
            for label in range(n_labels):
                if shares[label] >= LEAST_SHARE:
                    entries[found] = label * PER_LABEL + int(shares[label] * 1000 + 0.5)
                    found += 1
        sizes[row] = found - first
    return found


def evidence(model: Weights, sums: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> pa.ListArray:
    """As `Model.evidence`."""
    n_labels = len(model.labels)
    most = n_labels if model.loss in (NEGATIVE, ONE_VS_ALL) else min(n_labels, int(1 / LEAST_SHARE))
    sizes, entries = np.zeros(len(sums) + 1, np.int32), np.empty(len(sums) * most, np.int32)
    end = model.vectors[model.end].astype(np.int64) if model.end >= 0 else np.empty(0, np.int64)
    softmax = model.loss == SOFTMAX
    tables = _Output(end, model.output, model.tree, softmax, n_labels)
    found = _evidence(sums, counts, tables, sizes[1:], entries)
    offsets = np.cumsum(sizes, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(entries[:found].copy()))


def warm() -> None:
    """Compiles the kernel with the model that comes in a package."""
    path = packaged_model()
    if path is not None:
        model = read_weights(path)
        evidence(model, *feature_sums(model, pa.array(["warm"], pa.large_string())))
