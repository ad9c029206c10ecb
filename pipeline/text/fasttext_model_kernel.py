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

from pipeline.engine.bits_kernel import load64, prefetch, set_bits, trailing_zeros
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
_WORD, _PLACE = U(6), U(63)  # of a bit: its word of 64, and the place in it
_SIGN, _WIDEN, _BITS = U(0x80), U(0xFFFFFF00), U(0xFFFFFFFF)
_TOP, _WIDEN_64 = U(0x80000000), U(0xFFFFFFFF00000000)
_MIX_LOW, _MIX_HIGH = U(0x9E3779B97F4A7C15), U(0xC2B2AE3D27D4EB4F)  # odd numbers that spread the bits (of xxHash)
_TOP_BITS = U(40)
_SLOTS = 1 << 17  # words that a thread remembers, at most
_LINE = 64  # bytes of a cache line
_MEMO_BYTES = 8 << 20  # of their sums
_LONGEST_WORD = 15  # bytes of a word that is remembered
_MOST_VECTORS, _COUNT_AT, _BYTES = 255, U(56), U((1 << 56) - 1)  # of a remembered word
_NO_BLANK, _HIGH_BITS = U(0x2121212121212121), U(0x8080808080808080)  # the least byte that is no blank; top bits
_NEAR = 64  # nodes of a tree near its root; 96 of 100 visits to inner nodes of lid.176 are to these
_LEAST, _MOST = -(1 << 31), (1 << 31) - 1
# Numbers of `_near_sigmoids`. The parts of ln(2) are those of fdlibm (e_exp.c).
_MOST_EXPONENT, _PER_LN_2, _TO_BITS = 700.0, 1 / math.log(2), 1.5 * 2.0**52
_LN_2_HIGH, _LN_2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_MANTISSA, _ONE_AS_BITS = 52, 1023 << 52
_LAST_TERM, _TERMS = 1 / math.factorial(12), tuple(1 / math.factorial(n) for n in range(11, -1, -1))
_ERROR = 1e-9  # of a share, and of thousandths: far more than it is


class _Memo(NamedTuple):
    """The words that a thread has met, each at the slot of its hash, with the sums and the number of their vectors.

    Sums are whole numbers, so it does not matter whether they come from here. A free slot has the bytes 0, which are
    in no word. A new word takes the place of an old one. The last byte of `words` is the number of vectors.
    """

    words: npt.NDArray[np.uint64]  # (slots, 2): the bytes
    sums: npt.NDArray[np.int32]  # (slots, dim), each at the start of a cache line


_local = threading.local()  # each thread writes its own memo
_uncounted = functools.partial(njit, _nrt=False)


class _Room(NamedTuple):
    """What is known of a text and of one of its words."""

    places: npt.NDArray[np.int64]  # (words, 3) of the text: start, end, slot in the memo
    keys: npt.NDArray[np.uint64]  # (words, 2) of the text: the first bytes
    hashes: npt.NDArray[np.uint64]  # of the words of the text
    word: npt.NDArray[np.uint8]  # in brackets
    rows: npt.NDArray[np.int64]  # of `vectors`, of the word and what is inside it
    of_word: npt.NDArray[np.int64]  # their sum
    memo: _Memo


class _Tables(NamedTuple):
    """The arrays of a model, and its numbers: see `fasttext_file.Weights`.

    Most buckets are pruned. The vectors of the others stand in the order of the buckets, after those of the words. So
    the place of a vector is a count of bits, and these small arrays stay in the cache.
    """

    vectors: npt.NDArray[np.int32]
    word_bytes: npt.NDArray[np.uint8]
    word_offsets: npt.NDArray[np.int64]
    word_table: npt.NDArray[np.int32]
    is_kept: npt.NDArray[np.uint64]  # a bit for each bucket; empty: all are kept
    kept_before: npt.NDArray[np.int32]  # for each word of `is_kept` the row of the vector of the next kept bucket
    bucket: int
    per_bucket: float  # 1 / bucket
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
def _row_of(value, tables):  # noqa: ANN001, ANN202
    """The row of `vectors` of the bucket of a hash of 32 bits; -1: it is pruned.

    The quotient of floating point is too small by one at most, and much faster than a division of whole numbers.
    """
    hashed = np.int64(value)
    place = hashed - np.int64(np.float64(hashed) * tables.per_bucket) * tables.bucket
    return _row_of_bucket(U(place - tables.bucket if place >= tables.bucket else place), tables)


@_uncounted
def _row_of_bucket(place, tables):  # noqa: ANN001, ANN202
    if not len(tables.is_kept):
        return np.int64(place) + len(tables.word_offsets) - 1
    bits, bit = tables.is_kept[place >> _WORD], U(1) << (place & _PLACE)
    if not bits & bit:
        return -1
    row = np.int64(tables.kept_before[place >> _WORD]) + set_bits(bits & (bit - U(1)))
    prefetch(tables.vectors, row * tables.vectors.shape[1])
    return row


@_uncounted
def _inside(word, size, tables, rows, count):  # noqa: ANN001, ANN202
    """Appends to `rows` those of the n-grams of a word of `size` bytes, brackets counted; returns the new count."""
    for start in range(size):
        if word[start] & _TAIL_MASK == _TAIL:
            continue
        at, value, letters = start, _START, 0
        while at < size and letters < tables.longest:
            value = _step(value, word[at])
            at += 1
            while at < size and word[at] & _TAIL_MASK == _TAIL:
                value = _step(value, word[at])
                at += 1
            letters += 1
            if letters < tables.shortest or (letters == 1 and (start == 0 or at == size)):
                continue
            row = _row_of(value, tables)
            rows[count] = row
            count += row >= 0
    return count


@_uncounted
def _inside_ascii(word, size, tables, rows, count):  # noqa: ANN001, ANN202
    """`_inside` for a word whose bytes are all ASCII."""
    for start in range(size):
        value, first = _START, start + tables.shortest - 1
        for at in range(start, min(size, start + tables.longest)):
            value = (value ^ U(word[at])) * _PRIME & _BITS
            if at < first or (at == start and (start == 0 or at + 1 == size)):
                continue
            row = _row_of(value, tables)
            rows[count] = row
            count += row >= 0
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
def _add(table, row, sums):  # noqa: ANN001, ANN202
    """Adds a row of a table to `sums`."""
    for entry in range(len(sums)):
        sums[entry] += table[row, entry]


@_uncounted
def _runs(n_words, tables, room, sums):  # noqa: ANN001, ANN202
    """Adds the runs of words; returns their number."""
    count = 0
    for first in range(n_words):
        mixed = room.hashes[first]
        for other in range(first + 1, min(n_words, first + tables.word_ngrams)):
            mixed = mixed * _WORD_PRIME + room.hashes[other]
            row = _row_of_bucket(mixed % U(tables.bucket), tables)
            if row >= 0:
                _add(tables.vectors, row, sums)
                count += 1
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
    value, seen = _START, np.uint8(0)
    for at in range(first, last):
        value = _step(value, data[at])
        room.word[at - first + 1] = data[at]
        seen |= data[at]
    word = _find(data, first, last, value, tables)
    if _is(data, first, last, _END_OF_LINE, True) or (word < 0 and _is(data, first, last, _LABEL, False)):
        return -1
    room.hashes[n_words] = value | _WIDEN_64 if value & _TOP else value
    count = 0
    if word >= 0:
        room.rows[0], count = word, 1
    if tables.longest > 0:
        room.word[0], room.word[last - first + 1] = _LESS, _GREATER
        if seen & _TAIL:
            return _inside(room.word, last - first + 2, tables, room.rows, count)
        return _inside_ascii(room.word, last - first + 2, tables, room.rows, count)
    return count


@_uncounted
def _remember(memo, slot, key, count, of_word):  # noqa: ANN001, ANN202
    """Keeps the sums of a word, if they fit."""
    if count > _MOST_VECTORS:
        return
    for entry in range(len(of_word)):
        if not _LEAST <= of_word[entry] <= _MOST:
            return
    memo.words[slot, 0], memo.words[slot, 1] = key[0], key[1] | U(count) << _COUNT_AT
    for entry in range(len(of_word)):
        memo.sums[slot, entry] = of_word[entry]


@_uncounted
def _bytes_before_blank(word):  # noqa: ANN001, ANN202
    """How many of the eight bytes of a word stand before the first one that may be a blank."""
    found = (word - _NO_BLANK) & ~word & _HIGH_BITS
    return np.int64(trailing_zeros(found) >> U(3)) if found else 8


@_uncounted
def _first_bytes(word, size):  # noqa: ANN001, ANN202
    """The first `size` bytes of a word of eight, at least one."""
    return word << U(64 - 8 * size) >> U(64 - 8 * size)


@_uncounted
def _read_word(data, first, end):  # noqa: ANN001, ANN202
    """The place after the word that begins at `first`, and its first 16 bytes as two numbers."""
    if first + _LONGEST_WORD < len(data):
        low = load64(data, first)
        size = min(_bytes_before_blank(low), end - first)
        if size < 8:
            if size and (first + size == end or _is_blank(data[first + size])):
                return first + size, _first_bytes(low, size), U(0)
        elif first + 8 == end or _is_blank(data[first + 8]):
            return first + 8, low, U(0)
    return _read_long_word(data, first, end)


@_uncounted
def _read_long_word(data, first, end):  # noqa: ANN001, ANN202
    """`_read_word` byte by byte."""
    at, low, high = first, U(0), U(0)
    while at < end and not _is_blank(data[at]):
        shift = U(8 * (at - first))
        if shift < U(64):
            low |= U(data[at]) << shift
        elif shift < U(128):
            high |= U(data[at]) << (shift - U(64))
        at += 1
    return at, low, high


@_uncounted
def _cut(data, place, room):  # noqa: ANN001, ANN202
    """Sets `room.places` and `room.keys` of the words of a text; returns their number."""
    at, end = place
    memo, count, mask = room.memo, 0, U(len(room.memo.words) - 1)
    while at < end:
        if _is_blank(data[at]):
            at += 1
            continue
        first = at
        at, low, high = _read_word(data, first, end)
        slot = np.int64((((low * _MIX_LOW) ^ high) * _MIX_HIGH >> _TOP_BITS) & mask)
        prefetch(memo.words, 2 * slot)
        prefetch(memo.sums, memo.sums.shape[1] * slot)
        room.places[count, 0], room.places[count, 1], room.places[count, 2] = first, at, slot
        room.keys[count, 0], room.keys[count, 1] = low, high
        count += 1
    return count


@_uncounted
def _words(data, place, tables, room, sums):  # noqa: ANN001, ANN202
    """Adds the words of a text and what is inside them to `sums`; returns the number of vectors and of words."""
    memo, count, n_words = room.memo, np.int64(0), 0
    for number in range(_cut(data, place, room)):
        first, last, slot = room.places[number, 0], room.places[number, 1], room.places[number, 2]
        is_short = last - first <= _LONGEST_WORD and tables.word_ngrams == 1
        low, high = room.keys[number, 0], room.keys[number, 1]
        if is_short and memo.words[slot, 0] == low and memo.words[slot, 1] & _BYTES == high:
            count += np.int64(memo.words[slot, 1] >> _COUNT_AT)
            _add(memo.sums, slot, sums)
            continue
        found = _word(data, (first, last), n_words, tables, room)
        if found < 0:
            continue
        n_words += 1
        count += found
        room.of_word[:] = 0
        for row in room.rows[:found]:
            _add(tables.vectors, row, room.of_word)
        for entry in range(len(sums)):
            sums[entry] += room.of_word[entry]
        if is_short:
            _remember(memo, slot, (low, high), found, room.of_word)
    return count, n_words


@_uncounted
def _feature_sums(data, offsets, tables, room, sums, counts):  # noqa: ANN001, ANN202
    for row in range(len(offsets) - 1):
        start = offsets[row]
        end = min(offsets[row + 1], start + MAX_TEXT)
        counts[row], n_words = _words(data, (start, end), tables, room, sums[row])
        if tables.word_ngrams > 1:
            counts[row] += _runs(n_words, tables, room, sums[row])


def _prepared(model: Weights) -> tuple[_Memo, _Tables]:
    """What this thread remembers of a model, and its tables. It forgets the model before."""
    if getattr(_local, "model", None) is not model:
        slots, dim = _SLOTS, model.parameters.dim
        while slots > 1 and slots * dim * 4 > _MEMO_BYTES:
            slots //= 2
        _local.memo = _Memo(np.zeros((slots, 2), np.uint64), _aligned_zeros(slots, dim))
        _local.tables = _tables(model)
        _local.model = model
    return _local.memo, _local.tables


def _tables(model: Weights) -> _Tables:
    p, vectors, is_kept, kept_before = model.parameters, model.vectors, np.empty(0, np.uint64), np.empty(0, np.int32)
    if len(model.kept):
        kept = np.flatnonzero(model.kept >= 0)
        is_kept = np.zeros(int(-(-len(model.kept) // 64)), np.uint64)
        np.bitwise_or.at(is_kept, kept >> 6, U(1) << (kept & 63).astype(np.uint64))
        counts = np.bincount(kept >> 6, minlength=len(is_kept))
        kept_before = (p.words + np.cumsum(counts) - counts).astype(np.int32)
        vectors = _aligned_zeros(p.words + len(kept), p.dim)
        vectors[: p.words], vectors[p.words :] = model.vectors[: p.words], model.vectors[model.kept[kept]]
    return _Tables(
        vectors=vectors,
        word_bytes=model.word_bytes,
        word_offsets=model.word_offsets,
        word_table=model.word_table,
        is_kept=is_kept,
        kept_before=kept_before,
        bucket=p.bucket,
        per_bucket=1 / p.bucket,
        shortest=p.shortest,
        longest=p.longest,
        word_ngrams=p.word_ngrams,
    )


def _aligned_zeros(rows: int, dim: int) -> npt.NDArray[np.int32]:
    """int32 (rows, dim) that begins with a cache line."""
    found = np.zeros(rows * dim + _LINE // 4, np.int32)
    start = -found.ctypes.data % _LINE // 4
    return found[start : start + rows * dim].reshape(rows, dim)


def feature_sums(model: Weights, texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As `Model.feature_sums`; `texts` without nulls."""
    p = model.parameters
    sums, counts = np.zeros((len(texts), p.dim), np.int64), np.zeros(len(texts), np.int64)
    if not len(texts):
        return sums, counts
    _, offset_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer and data_buffer.size else np.zeros(1, np.uint8)
    memo, tables = _prepared(model)
    most_words = MAX_TEXT // 2 + 1
    room = _Room(
        places=np.empty((most_words, 3), np.int64),
        keys=np.empty((most_words, 2), np.uint64),
        hashes=np.empty(most_words, np.uint64),
        word=np.empty(MAX_TEXT + 2, np.uint8),
        rows=np.empty((MAX_TEXT + 2) * max(1, p.longest) + 1, np.int64),
        of_word=np.empty(p.dim, np.int64),
        memo=memo,
    )
    _feature_sums(data, offsets, tables, room, sums, counts)
    return sums, counts


class _Output(NamedTuple):
    """What turns sums into shares: see `fasttext_file.Weights`."""

    end: npt.NDArray[np.int64]  # vector of the end of the line; empty: none
    output: npt.NDArray[np.float64]
    tree: npt.NDArray[np.int32]
    near: npt.NDArray[np.float64]  # (dim, _NEAR): the rows of `output` of the nodes near the root
    softmax: bool


class _Scratch(NamedTuple):
    """Room for the shares of one text."""

    hidden: npt.NDArray[np.float64]
    near: npt.NDArray[np.float64]  # for each node near the root the share of its right branch
    powers: npt.NDArray[np.float64]  # (2, _NEAR): whole powers of two
    bits: npt.NDArray[np.int64]  # the bits of `powers`
    nodes: npt.NDArray[np.int64]  # that are to be visited
    weights: npt.NDArray[np.float64]  # their shares


@_uncounted
def _dot(output, row, hidden):  # noqa: ANN001, ANN202
    total = 0.0
    for place in range(len(hidden)):
        total += output[row, place] * hidden[place]
    return total


@_uncounted
def _sigmoid(value):  # noqa: ANN001, ANN202
    return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


@_uncounted
def _near_products(near, scratch):  # noqa: ANN001, ANN202
    """The products of many nodes at once. Each is summed in the order of `_dot`, so it is the same number."""
    for node in range(_NEAR):
        scratch.near[node] = 0.0
    for place in range(len(near)):
        weight = scratch.hidden[place]
        for node in range(_NEAR):
            scratch.near[node] += near[place, node] * weight


# No check of the divisor: it would stop the vectorisation.
@functools.partial(_uncounted, error_model="numpy")
def _near_sigmoids(scratch):  # noqa: ANN001, ANN202
    """Turns the products of `_near_products` into `_sigmoid` of them, but for an error of at most 1e-13.

    exp(x) is 2**n * exp(r), where r is at most ln(2) / 2: the series of exp(r) needs few terms. Adding _TO_BITS rounds
    a number, and puts the whole number into the lowest bits. Each loop is a few instructions for many nodes.
    """
    values, powers, bits = scratch.near, scratch.powers, scratch.bits
    for node in range(_NEAR):
        values[node] = min(max(-values[node], -_MOST_EXPONENT), _MOST_EXPONENT)
        powers[0, node] = values[node] * _PER_LN_2 + _TO_BITS
    for node in range(_NEAR):
        bits[1, node] = (bits[0, node] << _MANTISSA) + _ONE_AS_BITS
    for node in range(_NEAR):
        n = powers[0, node] - _TO_BITS
        r = values[node] - n * _LN_2_HIGH - n * _LN_2_LOW
        series = _LAST_TERM
        for term in _TERMS:
            series = series * r + term
        values[node] = 1.0 / (1.0 + series * powers[1, node])


@_uncounted
def _down_the_tree(model, scratch, entries, found):  # noqa: ANN001, ANN202
    """Appends the entries of the leaves by label; returns the new count. A branch below LEAST_SHARE is not followed.

    The shares near the root have a small error first. If it could matter, all is computed again without it.
    """
    _near_products(model.near, scratch)
    _near_sigmoids(scratch)
    new = _visit(model, scratch, entries, found, True)
    return new if new >= 0 else _visit(model, scratch, entries, found, False)


@_uncounted
def _visit(model, scratch, entries, found, is_fast):  # noqa: ANN001, ANN202
    """`_down_the_tree` with the shares of the nodes near the root, if `is_fast`; -1 if their error may matter."""
    inner, nodes, weights = len(model.tree) + 1, scratch.nodes, scratch.weights
    first, near_from = found, 2 * inner - 1 - _NEAR if is_fast else 2 * inner - 1
    nodes[0], weights[0], size = 2 * inner - 2, 1.0, 1
    may_matter = False
    while size:
        size -= 1
        node, share = nodes[size], weights[size]
        if node < inner:
            rounded = share * 1000 + 0.5
            may_matter |= abs(rounded - np.floor(rounded + 0.5)) < _ERROR
            entry, place = np.int32(_entry(node, share)), found
            while place > first and entries[place - 1] > entry:
                entries[place] = entries[place - 1]
                place -= 1
            entries[place] = entry
            found += 1
            continue
        if node >= near_from:
            right = scratch.near[node - 2 * inner + 1 + _NEAR]
        else:
            right = _sigmoid(_dot(model.output, node - inner, scratch.hidden))
        for side, part in enumerate((share * (1.0 - right), share * right)):
            nodes[size], weights[size] = model.tree[node - inner, side], part
            size += part >= LEAST_SHARE
            may_matter |= abs(part - LEAST_SHARE) < _ERROR
    return -1 if is_fast and may_matter else found


@_uncounted
def _flat(model, scratch, entries, found):  # noqa: ANN001, ANN202
    """Appends the entries of the labels; returns the new count."""
    shares = scratch.weights[: len(model.output)]
    top = -math.inf
    for label in range(len(shares)):
        shares[label] = _dot(model.output, label, scratch.hidden)
        top = max(top, shares[label])
    total = 0.0
    for label in range(len(shares)):
        shares[label] = math.exp(shares[label] - top) if model.softmax else _sigmoid(shares[label])
        total += shares[label]
    for label in range(len(shares)):
        share = shares[label] / total if model.softmax else shares[label]
        if share >= LEAST_SHARE:
            entries[found] = _entry(label, share)
            found += 1
    return found


@_uncounted
def _entry(label, share):  # noqa: ANN001, ANN202
    return label * PER_LABEL + np.int64(share * 1000 + 0.5)


@_uncounted
def _evidence(features, model, scratch, sizes, entries):  # noqa: ANN001, ANN202
    """Fills the sizes of the rows and their entries; returns the number of entries."""
    sums, counts = features
    hidden, n_end = scratch.hidden, len(model.end)
    found = 0
    for row in range(len(counts)):
        first = found
        if counts[row]:
            scale = (counts[row] + (1 if n_end else 0)) * ONE
            for place in range(len(hidden)):
                hidden[place] = (sums[row, place] + (model.end[place] if n_end else 0)) / scale
            if len(model.tree):
                found = _down_the_tree(model, scratch, entries, found)
            else:
                found = _flat(model, scratch, entries, found)
        sizes[row] = found - first
    return found


def evidence(model: Weights, sums: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> pa.ListArray:
    """As `Model.evidence`."""
    n_labels = len(model.labels)
    most = n_labels if model.loss in (NEGATIVE, ONE_VS_ALL) else min(n_labels, int(1 / LEAST_SHARE))
    sizes, entries = np.zeros(len(sums) + 1, np.int32), np.empty(len(sums) * most + 1, np.int32)
    end = model.vectors[model.end].astype(np.int64) if model.end >= 0 else np.empty(0, np.int64)
    near = np.zeros((model.parameters.dim, _NEAR))
    if len(model.tree):
        last = model.output[: len(model.tree)][-_NEAR:]
        near[:, _NEAR - len(last) :] = last.T
    tables = _Output(end, model.output, model.tree, near, model.loss == SOFTMAX)
    nodes = 2 * n_labels + 2
    powers = np.empty((2, _NEAR))
    scratch = _Scratch(
        hidden=np.empty(model.parameters.dim),
        near=np.empty(_NEAR),
        powers=powers,
        bits=powers.view(np.int64),
        nodes=np.empty(nodes, np.int64),
        weights=np.empty(nodes),
    )
    found = _evidence((sums, counts), tables, scratch, sizes[1:], entries)
    offsets = np.cumsum(sizes, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(entries[:found].copy()))


def warm() -> None:
    """Compiles the kernel with the model that comes in a package."""
    path = packaged_model()
    if path is not None:
        model = read_weights(path)
        evidence(model, *feature_sums(model, pa.array(["warm"], pa.large_string())))
