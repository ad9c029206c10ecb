"""`fasttext_model.Model` in compiled code, over Arrow's buffers.

A thread remembers the sums of words: 86 of 100 words of captions need no n-grams again. Of lid.176's n-grams 2 of 100
are kept, so a bit for each bucket tells first if there is a vector.

`_uncounted` compiles without numba's reference counts. A function of that kind allocates nothing. The counts are atomic
additions for each array and call, and they cost a third of the time.
"""

from __future__ import annotations

import functools
import math
import threading
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
_EIGHTH, _PLACE = U(3), U(7)  # of a bit: its byte, and the place in it
_SIGN, _WIDEN, _BITS = U(0x80), U(0xFFFFFF00), U(0xFFFFFFFF)
_TOP, _WIDEN_64 = U(0x80000000), U(0xFFFFFFFF00000000)
_MIX_LOW, _MIX_HIGH = U(0x9E3779B97F4A7C15), U(0xC2B2AE3D27D4EB4F)  # odd numbers that spread the bits (of xxHash)
_TOP_BITS = U(48)
_SLOTS = 1 << 16  # words that a thread remembers, at most
_MEMO_BYTES = 4 << 20  # of their sums
_LONGEST_WORD = 16  # bytes of a word that is remembered
_LEAST, _MOST = -(1 << 31), (1 << 31) - 1


class _Memo(NamedTuple):
    """The words that a thread has met, each at the slot of its hash, with the sums and the numbers of their vectors.

    Sums are whole numbers, so it does not matter whether they come from here. A free slot has the bytes 0, which are
    in no word. A new word takes the place of an old one.
    """

    words: npt.NDArray[np.uint64]  # (slots, 2): the bytes
    counts: npt.NDArray[np.int32]
    sums: npt.NDArray[np.int32]  # (slots, dim)


_local = threading.local()  # each thread writes its own memo
_uncounted = functools.partial(njit, _nrt=False)


class _Room(NamedTuple):
    """What is known of a text and of one of its words."""

    hashes: npt.NDArray[np.uint64]  # of the words of the text
    word: npt.NDArray[np.uint8]  # in brackets
    rows: npt.NDArray[np.int64]  # of `vectors`, of the word and what is inside it
    of_word: npt.NDArray[np.int64]  # their sum
    memo: _Memo


class _Tables(NamedTuple):
    """The arrays of a model, and its numbers: see `fasttext_file.Weights`."""

    vectors: npt.NDArray[np.int32]
    word_bytes: npt.NDArray[np.uint8]
    word_offsets: npt.NDArray[np.int64]
    word_table: npt.NDArray[np.int32]
    kept: npt.NDArray[np.int32]
    is_kept: npt.NDArray[np.uint8]  # a bit for each bucket: most n-grams are pruned, and the bits stay in the cache
    bucket: int
    shortest: int
    longest: int
    word_ngrams: int


@_uncounted
def _step(value, byte):  # noqa: ANN001, ANN202
    """One byte more for FNV-1a of 32 bits over signed bytes. numba widens 32-bit numbers, so the hash is in 64 bits."""
    wide = U(byte)
    return (value ^ (wide | _WIDEN if wide & _SIGN else wide)) * _PRIME & _BITS


@_uncounted
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


@_uncounted
def _add(value, tables, sums, row):  # noqa: ANN001, ANN202
    """Adds the vector of a hashed run of words; returns how many vectors that were."""
    bucket = np.int64(value % U(tables.bucket))
    found = np.int64(tables.kept[bucket]) if len(tables.kept) else len(tables.word_offsets) - 1 + bucket
    if found < 0:
        return 0
    for entry in range(sums.shape[1]):
        sums[row, entry] += tables.vectors[found, entry]
    return 1


@_uncounted
def _inside(word, size, tables, rows, count):  # noqa: ANN001, ANN202
    """Appends to `rows` those of the n-grams of a word of `size` bytes, brackets counted; returns the new count."""
    kept, is_kept, n_words, bucket = tables.kept, tables.is_kept, len(tables.word_offsets) - 1, U(tables.bucket)
    shortest, longest, prunes = tables.shortest, tables.longest, len(tables.kept) > 0
    for start in range(size):
        if word[start] & _TAIL_MASK == _TAIL:
            continue
        at, value, letters = U(start), _START, 0
        while at < U(size) and letters < longest:
            value = _step(value, word[at])
            at += U(1)
            while at < U(size) and word[at] & _TAIL_MASK == _TAIL:
                value = _step(value, word[at])
                at += U(1)
            letters += 1
            if letters < shortest or (letters == 1 and (start == 0 or at == U(size))):
                continue
            place = value % bucket
            if not prunes:
                rows[count] = np.int64(place) + n_words
                count += 1
            elif is_kept[place >> _EIGHTH] >> np.uint8(place & _PLACE) & 1:
                rows[count] = kept[place]
                count += 1
    return count


@_uncounted
def _is(data, first, last, word, whole):  # noqa: ANN001, ANN202
    """True if the token begins with `word`, and has no more bytes if `whole`."""
    if last - first < len(word) or (whole and last - first != len(word)):
        return False
    for at in range(len(word)):
        if data[first + at] != word[at]:
            return False
    return True


@_uncounted
def _runs(n_words, tables, room, sums, row):  # noqa: ANN001, ANN202
    """Adds the runs of words; returns their number."""
    count = 0
    for first in range(n_words):
        mixed = room.hashes[first]
        for other in range(first + 1, min(n_words, first + tables.word_ngrams)):
            mixed = mixed * _WORD_PRIME + room.hashes[other]
            count += _add(mixed, tables, sums, row)
    return count


@_uncounted
def _is_blank(byte):  # noqa: ANN001, ANN202
    return byte == _BLANK or byte == 0 or _TAB <= byte <= _RETURN


@_uncounted
def _word(data, place, n_words, tables, room):  # noqa: ANN001, ANN202
    """Sets `room.rows` to the rows of a word and of what is inside it; returns their number, -1 if it is none.

    Sets the hash of word `n_words` in `room`, too.
    """
    first, last = place
    value = _START
    for at in range(first, last):
        value = _step(value, data[at])
        room.word[at - first + 1] = data[at]
    word = _find(data, first, last, value, tables)
    if _is(data, first, last, _END_OF_LINE, True) or (word < 0 and _is(data, first, last, _LABEL, False)):
        return -1
    room.hashes[n_words] = value | _WIDEN_64 if value & _TOP else value
    count = 0
    if word >= 0:
        room.rows[0], count = word, 1
    if tables.longest > 0:
        room.word[0], room.word[last - first + 1] = _LESS, _GREATER
        count = _inside(room.word, last - first + 2, tables, room.rows, count)
    return count


@_uncounted
def _remember(memo, slot, low, high, count, of_word):  # noqa: ANN001, ANN202
    """Keeps the sums of a word, if they fit."""
    for entry in range(len(of_word)):
        if not _LEAST <= of_word[entry] <= _MOST:
            return
    memo.words[slot, 0], memo.words[slot, 1], memo.counts[slot] = low, high, count
    for entry in range(len(of_word)):
        memo.sums[slot, entry] = of_word[entry]


@_uncounted
def _words(data, place, tables, room, sums, row):  # noqa: ANN001, ANN202
    """Adds the words of a text and what is inside them; returns the number of vectors and of words."""
    memo = room.memo
    at, end = place
    count, n_words = 0, 0
    while at < end:
        if _is_blank(data[at]):
            at += 1
            continue
        first, low, high = at, U(0), U(0)
        while at < end and not _is_blank(data[at]):
            shift = U(8 * (at - first))
            if shift < U(64):
                low |= U(data[at]) << shift
            elif shift < U(128):
                high |= U(data[at]) << (shift - U(64))
            at += 1
        is_short = at - first <= _LONGEST_WORD and tables.word_ngrams == 1
        slot = (((low * _MIX_LOW) ^ high) * _MIX_HIGH >> _TOP_BITS) & U(len(memo.counts) - 1)
        if is_short and memo.words[slot, 0] == low and memo.words[slot, 1] == high:
            count += memo.counts[slot]
            for entry in range(sums.shape[1]):
                sums[row, entry] += memo.sums[slot, entry]
            continue
        found = _word(data, (first, at), n_words, tables, room)
        if found < 0:
            continue
        n_words += 1
        count += found
        room.of_word[:] = 0
        for place in range(found):
            for entry in range(sums.shape[1]):
                room.of_word[entry] += tables.vectors[room.rows[place], entry]
        for entry in range(sums.shape[1]):
            sums[row, entry] += room.of_word[entry]
        if is_short:
            _remember(memo, slot, low, high, found, room.of_word)
    return count, n_words


@_uncounted
def _feature_sums(data, offsets, tables, room, sums, counts):  # noqa: ANN001, ANN202
    for row in range(len(offsets) - 1):
        start = offsets[row]
        end = min(offsets[row + 1], start + MAX_TEXT)
        counts[row], n_words = _words(data, (start, end), tables, room, sums, row)
        if tables.word_ngrams > 1:
            counts[row] += _runs(n_words, tables, room, sums, row)


def _memo(model: Weights) -> tuple[_Memo, npt.NDArray[np.uint8]]:
    """What this thread remembers of a model, and which buckets of it are kept. It forgets the model before."""
    if getattr(_local, "model", None) is not model:
        slots, dim = _SLOTS, model.parameters.dim
        while slots > 1 and slots * dim * 4 > _MEMO_BYTES:
            slots //= 2
        _local.memo = _Memo(
            np.zeros((slots, 2), np.uint64), np.zeros(slots, np.int32), np.zeros((slots, dim), np.int32)
        )
        _local.is_kept = np.packbits(model.kept >= 0, bitorder="little")
        _local.model = model
    return _local.memo, _local.is_kept


def feature_sums(model: Weights, texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As `Model.feature_sums`; `texts` without nulls."""
    p = model.parameters
    sums, counts = np.zeros((len(texts), p.dim), np.int64), np.zeros(len(texts), np.int64)
    if not len(texts):
        return sums, counts
    _, offset_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer and data_buffer.size else np.zeros(1, np.uint8)
    memo, is_kept = _memo(model)
    room = _Room(
        np.empty(MAX_TEXT // 2 + 1, np.uint64),
        np.empty(MAX_TEXT + 2, np.uint8),
        np.empty((MAX_TEXT + 2) * max(1, p.longest) + 1, np.int64),
        np.empty(p.dim, np.int64),
        memo,
    )
    tables = _Tables(
        vectors=model.vectors,
        word_bytes=model.word_bytes,
        word_offsets=model.word_offsets,
        word_table=model.word_table,
        kept=model.kept,
        is_kept=is_kept,
        bucket=p.bucket,
        shortest=p.shortest,
        longest=p.longest,
        word_ngrams=p.word_ngrams,
    )
    _feature_sums(data, offsets, tables, room, sums, counts)
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
