"""`matcher` in compiled code: a tree of tokens in two hash tables. Prepared texts are matched directly against it.

A prepared text is bytes in which one blank follows every token (`normalize_kernel.segment` or `space_out`). The
tables (see `Tables`) are flat arrays of 64-bit words, so that they can be saved and mapped:

- `tokens`: slots of four words. Three hold the token itself, up to 23 bytes, with its length; a longer one is held by
  two hashes and its length, and its bytes are compared in `long_bytes`. The fourth word tells what the token leads to.
- `edges`: slots of two words, for queries of several tokens: (the node before, the next token) and what this leads
  to. The node before is a slot of `tokens`, or a slot of `edges` marked with DEEPER. The next token is a slot of
  `tokens`.

- `first_edges`: a bit for each hash of an edge from a first token. Without the bit there is no such edge. It fits into
  the processor's inner cache, so most pairs of tokens are rejected here without a lookup.

What a slot leads to: the low half holds the id of the query that ends there, plus one. GOES_ON is set if some query
continues from there. SHARED is set if other queries have the same form (`siblings` chains their ids).

The tables are larger than the processor's caches, so most of the time is spent on waiting for memory. Therefore the
kernel takes a group of texts at a time. First it cuts them into tokens and prefetches each token's slot. Then it looks
up all tokens and prefetches the edges. Then it collects the queries text by text. Most of the other time is spent on
mispredicted branches. `first_edges` and the counting sort of `_sort_once` avoid these.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine.bits_kernel import load64, prefetch, trailing_zeros
from pipeline.engine.jit import njit
from pipeline.text import normalize_kernel
from pipeline.text.normalize_kernel import PADDING, Bytes, Offsets, frozen

Words = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int32]
U = np.uint64

_TOKEN_WORDS, _EDGE_WORDS = 4, 2
_FULLNESS = 0.6  # of the tables; a higher value makes them smaller and the lookups longer
_LINE = 64  # bytes of a cache line; no slot may cross two lines

_ID = U(0xFFFFFFFF)
_GOES_ON = U(1 << 32)
_SHARED = U(1 << 33)
_TAKEN = U(1 << 34)
_DEEPER = U(1 << 31)

_LENGTH_AT = U(56)  # the top byte of a token's third word is its length plus one
_LONG = U(255)  # marks a token that does not fit into the three words
_LONGEST = (1 << 24) - 1  # bits 32 to 55 hold its length; every token of a query must be shorter than this

_BLANKS = U(0x2020202020202020)
_ONES, _HIGH_BITS = U(0x0101010101010101), U(0x8080808080808080)
_MIX_1, _MIX_2, _MIX_3 = U(0x9E3779B97F4A7C15), U(0xD6E8FEB86659FD93), U(0xBF58476D1CE4E5B9)
_ZERO, _ONE, _THREE, _EIGHT, _HALF = U(0), U(1), U(3), U(8), U(32)
_SIX, _LAST_SIX = U(6), U(63)  # shift to the word of a bit, and mask of its place in the word

_GROUP_TEXTS, _GROUP_TOKENS = 64, 512
_FEW, _SOME = 16, 32  # numbers of ids that are sorted by counting; two sizes, so that loops have fixed lengths
_HIGHEST_ID = np.int32(0x7FFFFFFF)
_BITS_AN_EDGE = 4  # of `first_edges`, at least

_CLOSING = pa.scalar("", pa.large_string()), pa.scalar(" ", pa.large_string())  # the added string, the separator

_BLANK = 0x20
_LETTER, _SPACE, _MARK = 0, 1, 2  # what a byte does to a text in metaclip mode: nothing, a blank, a token of its own
_BREAK = np.full(256, _LETTER, np.uint8)
_BREAK[[ord(blank) for blank in " \t\n\r"]] = _SPACE
_BREAK[[ord(mark) for mark in ",.;:?!`"]] = _MARK
_BREAK.flags.writeable = False


class Tables(NamedTuple):
    """All queries of a list; read-only arrays."""

    tokens: Words
    edges: Words
    long_bytes: Bytes
    siblings: Ids
    first_edges: Words


class _Texts(NamedTuple):
    """Prepared texts: their bytes, the place where each begins, and the largest number of tokens of a text."""

    data: Bytes
    offsets: Offsets
    most: int


class _Token(NamedTuple):
    """A token of a text: its three words, and the place where it begins."""

    first: np.uint64
    second: np.uint64
    third: np.uint64
    start: int


class _Group(NamedTuple):
    """The tokens of a group of texts, and room for sorting."""

    first: Words
    second: Words
    third: Words
    start: Offsets
    slots: Offsets  # of `tokens`: where the search begins, later the slot that was found
    leads_to: Words
    bounds: Offsets  # the first token of each text, and the end of the last one
    box: Ids
    ranked: Ids


@njit
def _blank_in(word):  # noqa: ANN001, ANN202
    """Zero if no byte of the word is a blank; else its lowest set bit lies in the first blank."""
    other = word ^ _BLANKS
    return (other - _ONES) & ~other & _HIGH_BITS


@njit
def _token_at(data, start):  # noqa: ANN001, ANN202
    """The three words of the token that starts at `start`, and the place of the blank after it."""
    first = load64(data, start)
    found = _blank_in(first)
    if found:
        length = trailing_zeros(found) >> _THREE
        kept = first & ((_ONE << (length * _EIGHT)) - _ONE)
        return kept, _ZERO, (length + _ONE) << _LENGTH_AT, start + np.int64(length)
    second = load64(data, start + 8)
    found = _blank_in(second)
    if found:
        length = trailing_zeros(found) >> _THREE
        kept = second & ((_ONE << (length * _EIGHT)) - _ONE)
        return first, kept, (length + U(9)) << _LENGTH_AT, start + 8 + np.int64(length)
    third = load64(data, start + 16)
    found = _blank_in(third)
    if found:
        length = trailing_zeros(found) >> _THREE
        kept = third & ((_ONE << (length * _EIGHT)) - _ONE)
        return first, second, kept | ((length + U(17)) << _LENGTH_AT), start + 16 + np.int64(length)
    return _long_token(data, start)


@njit
def _long_token(data, start):  # noqa: ANN001, ANN202
    one, two = _MIX_2, _MIX_3
    end = start
    while True:
        word = load64(data, end)
        found = _blank_in(word)
        length = trailing_zeros(found) >> _THREE if found else _EIGHT
        if found:
            word &= (_ONE << (length * _EIGHT)) - _ONE
        one = (one ^ word) * _MIX_1
        one ^= one >> _HALF
        two = (two + word) * _MIX_2
        two ^= two >> U(29)
        end += np.int64(length)
        if found:
            break
    return one, two, (_LONG << _LENGTH_AT) | (U(min(end - start, _LONGEST)) << _HALF), end


@njit
def _home(first, second, third, size):  # noqa: ANN001, ANN202
    """The slot where the search for a token begins."""
    mixed = (first ^ (second * _MIX_2) ^ (third * _MIX_3)) * _MIX_1
    mixed = (mixed ^ (mixed >> _HALF)) * _MIX_2
    return np.int64(((mixed >> _HALF) * size) >> _HALF)


@njit
def _edge_hash(key):  # noqa: ANN001, ANN202
    mixed = key * _MIX_1
    return (mixed ^ (mixed >> _HALF)) * _MIX_3


@njit
def _edge_home(hashed, size):  # noqa: ANN001, ANN202
    return np.int64(((hashed >> _HALF) * size) >> _HALF)


@njit
def _find_token(tokens, long_bytes, slot, token, data):  # noqa: ANN001, ANN202
    """The token's slot, searched from `slot` on. If the token is not in the table: -1 - (the free slot for it)."""
    size = len(tokens) // _TOKEN_WORDS
    first, second, third, start = token
    while True:
        at = slot * _TOKEN_WORDS
        held = tokens[at + 2]
        if held == _ZERO:
            return -1 - slot
        if held == third and tokens[at] == first and tokens[at + 1] == second:
            return slot
        if (
            third >> _LENGTH_AT == _LONG
            and held >> _HALF == third >> _HALF
            and tokens[at] == first
            and tokens[at + 1] == second
        ):
            place = np.int64(held & _ID)
            length = np.int64((held >> _HALF) & U(_LONGEST))
            same = True
            for byte in range(length):
                if long_bytes[place + byte] != data[start + byte]:
                    same = False
                    break
            if same:
                return slot
        slot += 1
        if slot == size:
            slot = 0


@njit
def _find_edge(edges, key):  # noqa: ANN001, ANN202
    """The edge's slot. If the edge is not in the table: -1 - (the free slot for it)."""
    size = len(edges) // _EDGE_WORDS
    slot = _edge_home(_edge_hash(key), U(size))
    while True:
        at = slot * _EDGE_WORDS
        if edges[at + 1] == _ZERO:
            return -1 - slot
        if edges[at] == key:
            return slot
        slot += 1
        if slot == size:
            slot = 0


@njit
def _token_hashes(data, offsets, out):  # noqa: ANN001, ANN202
    """Writes one hash for each token of all texts, to count distinct tokens; returns the number of tokens."""
    count = 0
    at = offsets[0]
    while at < offsets[-1]:
        first, second, third, end = _token_at(data, at)
        if count < len(out):
            out[count] = (first * _MIX_1) ^ (second * _MIX_2) ^ (third * _MIX_3)
        count += 1
        at = end + 1
    return count


@njit
def _build(data, offsets, ids, tables):  # noqa: ANN001, ANN202
    """Fills the empty tables; returns the number of used bytes of `long_bytes`, or -1 if `tokens` is too small."""
    tokens, edges, long_bytes, siblings, _ = tables
    long_used = 1  # place 0 is not used: a token of a text has 0 there
    free = len(tokens) // _TOKEN_WORDS
    size = U(len(tokens) // _TOKEN_WORDS)
    for form in range(len(offsets) - 1):
        at = offsets[form]
        node = np.int64(-1)  # the slot reached so far
        is_edge = False
        while at < offsets[form + 1]:
            first, second, third, end = _token_at(data, at)
            home = _home(first, second, third, size)
            slot = _find_token(tokens, long_bytes, home, _Token(first, second, third, at), data)
            if slot < 0:
                slot = -1 - slot
                free -= 1
                if free == 0:  # a free slot must stay, or the search for one never ends
                    return -1
                tokens[slot * _TOKEN_WORDS] = first
                tokens[slot * _TOKEN_WORDS + 1] = second
                if third >> _LENGTH_AT == _LONG:
                    third |= U(long_used)
                    for byte in range(at, end):
                        long_bytes[long_used] = data[byte]
                        long_used += 1
                tokens[slot * _TOKEN_WORDS + 2] = third
            if node < 0:
                node = slot
            else:
                if is_edge:
                    edges[node * _EDGE_WORDS + 1] |= _GOES_ON
                else:
                    tokens[node * _TOKEN_WORDS + 3] |= _GOES_ON
                key = ((U(node) | (_DEEPER if is_edge else _ZERO)) << _HALF) | U(slot)
                node = _find_edge(edges, key)
                if node < 0:
                    node = -1 - node
                    edges[node * _EDGE_WORDS] = key
                    edges[node * _EDGE_WORDS + 1] = _TAKEN
                is_edge = True
            at = end + 1
        words = edges if is_edge else tokens
        place = node * _EDGE_WORDS + 1 if is_edge else node * _TOKEN_WORDS + 3
        held = words[place]
        if held & _ID:
            words[place] |= _SHARED
            before = np.int64(held & _ID) - 1
            siblings[ids[form]] = siblings[before]
            siblings[before] = ids[form]
        else:
            words[place] |= U(ids[form] + 1)
    return long_used


@njit
def _mark_first_edges(edges, shift, first_edges):  # noqa: ANN001, ANN202
    for slot in range(len(edges) // _EDGE_WORDS):
        key = edges[slot * _EDGE_WORDS]
        if edges[slot * _EDGE_WORDS + 1] and not (key >> _HALF) & _DEEPER:
            bit = _edge_hash(key) >> shift
            first_edges[bit >> _SIX] |= _ONE << (bit & _LAST_SIX)


@njit
def _collect(leads_to, siblings, values, written):  # noqa: ANN001, ANN202
    """Appends the queries that end here to `values`; returns the new end, or -1 if there is no room."""
    number = np.int64(leads_to & _ID) - 1
    while number >= 0:
        if written == len(values):
            return -1
        values[written] = number
        written += 1
        number = np.int64(siblings[number]) if leads_to & _SHARED else np.int64(-1)
    return written


@njit
def _rank(box, count, size, ranked):  # noqa: ANN001, ANN202
    """Puts each of the first `count` values at the number of smaller values. Equal values share one place."""
    for place in range(count):
        value = box[place]
        smaller = np.int32(0)
        for other in range(size):
            smaller += np.int32(box[other] < value)
        ranked[smaller] = value


@njit
def _sort_once(values, start, end, box, ranked):  # noqa: ANN001, ANN202
    """Sorts values[start:end] and drops repeats; returns the new end.

    `box` and `ranked` have room for _SOME values. `ranked` holds only -1, before and after.
    """
    count = end - start
    kept = start
    if count > _SOME:
        values[start:end].sort()
        for place in range(start, end):
            if place == start or values[place] != values[kept - 1]:
                values[kept] = values[place]
                kept += 1
        return kept
    for place in range(count):
        box[place] = values[start + place]
    for place in range(count, _SOME):
        box[place] = _HIGHEST_ID
    if count <= _FEW:
        _rank(box, count, _FEW, ranked)
    else:
        _rank(box, count, _SOME, ranked)
    for place in range(count):
        value = ranked[place]
        ranked[place] = -1
        values[kept] = value
        kept += np.int64(value >= 0)
    return kept


@njit
def _empty_group(most):  # noqa: ANN001, ANN202
    """An empty group for texts with at most `most` tokens each."""
    room = _GROUP_TOKENS + most
    return _Group(
        first=np.empty(room, np.uint64),
        second=np.empty(room, np.uint64),
        third=np.empty(room, np.uint64),
        start=np.empty(room, np.int64),
        slots=np.empty(room, np.int64),
        leads_to=np.empty(room, np.uint64),
        bounds=np.empty(_GROUP_TEXTS + 1, np.int64),
        box=np.empty(_SOME, np.int32),
        ranked=np.full(_SOME, np.int32(-1)),
    )


@njit
def _cut(texts, row, tokens, group):  # noqa: ANN001, ANN202
    """Cuts a group of texts, from `row` on, into tokens and prefetches their slots; returns the number of texts."""
    data, offsets = texts.data, texts.offsets
    first, second, third, start, slots = group.first, group.second, group.third, group.start, group.slots
    rows, size = len(offsets) - 1, U(len(tokens) // _TOKEN_WORDS)
    found, count = 0, 0
    while row + found < rows and found < _GROUP_TEXTS and count < _GROUP_TOKENS:
        group.bounds[found] = count
        at = offsets[row + found]
        end_of_text = offsets[row + found + 1]
        while at < end_of_text:
            one, two, three, end = _token_at(data, at)
            slot = _home(one, two, three, size)
            prefetch(tokens, slot * _TOKEN_WORDS)
            first[count], second[count], third[count] = one, two, three
            start[count], slots[count] = at, slot
            count += 1
            at = end + 1
        found += 1
    group.bounds[found] = count
    return found


@njit
def _look_up(data, tables, shift, count, group):  # noqa: ANN001, ANN202
    """Finds the first `count` tokens of the group and what they lead to. It prefetches the edges between them."""
    tokens, edges, long_bytes, _, first_edges = tables
    first, second, third, start, slots = group.first, group.second, group.third, group.start, group.slots
    leads_to = group.leads_to
    edge_size = U(len(edges) // _EDGE_WORDS)
    for number in range(count):
        token = _Token(first[number], second[number], third[number], start[number])
        slot = _find_token(tokens, long_bytes, slots[number], token, data)
        slots[number] = slot
        leads_to[number] = tokens[slot * _TOKEN_WORDS + 3] if slot >= 0 else _ZERO
        if number and leads_to[number - 1] & _GOES_ON:
            hashed = _edge_hash((U(slots[number - 1]) << _HALF) | U(slot))
            bit = hashed >> shift
            if slot >= 0 and (first_edges[bit >> _SIX] >> (bit & _LAST_SIX)) & _ONE:
                prefetch(edges, _edge_home(hashed, edge_size) * _EDGE_WORDS)
            else:
                leads_to[number - 1] &= ~_GOES_ON  # not with this neighbour


@njit
def _collect_group(tables, group, values, written, sizes):  # noqa: ANN001, ANN202
    """Writes the queries of the group's texts after the first `written` values, and the number of each text to `sizes`.

    Returns the number of texts that found room, and the end of their values.
    """
    _, edges, _, siblings, _ = tables
    slots, leads_to, bounds, box, ranked = group.slots, group.leads_to, group.bounds, group.box, group.ranked
    for text in range(len(sizes)):
        begin = written
        last = bounds[text + 1]
        for number in range(bounds[text], last):
            here = leads_to[number]
            written = _collect(here, siblings, values, written)
            node = U(slots[number])
            after = number + 1
            while written >= 0 and here & _GOES_ON and after < last and slots[after] >= 0:
                edge = _find_edge(edges, (node << _HALF) | U(slots[after]))
                if edge < 0:
                    break
                here = edges[edge * _EDGE_WORDS + 1]
                written = _collect(here, siblings, values, written)
                node = U(edge) | _DEEPER
                after += 1
            if written < 0:
                return text, begin
        written = _sort_once(values, begin, written, box, ranked)
        sizes[text] = written - begin
    return len(sizes), written


@njit
def _match(texts, tables, shift, begin, values, sizes):  # noqa: ANN001, ANN202
    """Matches texts from `begin` on until `values` is full; returns the next text and the end of the values."""
    rows = len(texts.offsets) - 1
    group = _empty_group(texts.most)
    written = np.int64(0)
    row = begin
    while row < rows:
        count = _cut(texts, row, tables.tokens, group)
        _look_up(texts.data, tables, shift, group.bounds[count], group)
        done, written = _collect_group(tables, group, values, written, sizes[row : row + count])
        row += done
        if done < count:
            break
    return row, written


@njit
def _space_out(data, offsets, breaks, out, out_offsets):  # noqa: ANN001, ANN202
    written = 0
    most = 0
    for row in range(len(offsets) - 1):
        tokens = 1
        for at in range(offsets[row], offsets[row + 1]):
            byte = data[at]
            kind = breaks[byte]
            if kind < _MARK:
                out[written] = _BLANK if kind else byte
                written += 1
                tokens += kind
            else:
                out[written] = _BLANK
                out[written + 1] = byte
                out[written + 2] = _BLANK
                written += 3
                tokens += 2
        out[written] = _BLANK
        written += 1
        out_offsets[row + 1] = written
        most = max(most, tokens)
    return most


def build(forms: pa.LargeStringArray, ids: Ids) -> Tables:
    """The tables for the queries `ids` (ascending). `forms` are their forms in a prepared text."""
    data, offsets = _closed(forms)
    hashes = np.empty(_token_hashes(data, offsets, np.empty(0, np.uint64)), np.uint64)
    _token_hashes(data, offsets, hashes)
    hashes.sort()
    different = 1 + int(np.count_nonzero(hashes[1:] != hashes[:-1]))
    longest = int(np.diff(offsets).max(initial=0))
    if longest > _LONGEST or len(data) >= 1 << 32:
        raise ValueError(f"the queries are too long for the matcher: {len(data)} bytes, the longest {longest}")
    n_edges = len(hashes) - len(ids)
    first_edges = np.zeros(1 << max(0, (_BITS_AN_EDGE * n_edges).bit_length() - 6), np.uint64)
    used = -1
    while used < 0:  # more than once only if the queries are made so that their hashes collide
        tokens = _aligned(_slots(different) * _TOKEN_WORDS)
        edges = _aligned(_slots(n_edges) * _EDGE_WORDS)
        long_bytes = np.zeros(len(data) + 1, np.uint8)
        siblings = np.full(int(ids[-1]) + 1 if len(ids) else 1, -1, np.int32)
        used = _build(data, offsets, ids, Tables(tokens, edges, long_bytes, siblings, first_edges))
        different *= 2
    if siblings.max(initial=-1) < 0:
        siblings = siblings[:1]  # all forms are distinct, so none is looked up
    _mark_first_edges(edges, _shift(first_edges), first_edges)
    tables = tokens, edges, long_bytes[:used].copy(), siblings.copy(), first_edges
    return Tables(*(frozen(table) for table in tables))


def match(tables: Tables, data: Bytes, offsets: Offsets, most: int) -> tuple[npt.NDArray[np.int64], Ids]:
    """(number of queries of each prepared text, their ids text after text).

    Args:
        tables: from `build`.
        data: prepared texts, with PADDING bytes after the last one.
        offsets: the place where each text begins.
        most: an upper bound of the number of tokens of a text.
    """
    rows = len(offsets) - 1
    sizes = np.zeros(rows, np.int64)
    values = np.empty(1024 + 8 * rows, np.int32)
    parts = []
    row = 0
    texts, shift = _Texts(frozen(data), frozen(offsets), most), _shift(tables.first_edges)
    while row < rows:
        begin = row
        row, written = _match(texts, tables, shift, begin, values, sizes)
        parts.append(values[:written].copy() if row < rows else values[:written])
        if row == begin:  # there was no room even for one text
            values = np.empty(2 * len(values), np.int32)
    return sizes, np.concatenate(parts) if len(parts) > 1 else values[: len(parts[0])] if parts else values[:0]


def _shift(first_edges: Words) -> np.uint64:
    """The shift that turns a hash into the number of its bit."""
    return U(64 - 6 - (len(first_edges).bit_length() - 1))


def space_out(texts: pa.Array) -> tuple[Bytes, Offsets, int]:
    """Texts prepared as in metaclip mode (see `matcher.naive_match`), and the largest number of tokens of a text."""
    data, offsets = normalize_kernel.buffers(texts)
    # A punctuation mark takes three bytes. Memory pages without a write cost nothing.
    out = np.empty(3 * int(offsets[-1] - offsets[0]) + len(texts) + PADDING, np.uint8)
    out_offsets = np.zeros(len(offsets), np.int64)
    most = _space_out(data, offsets, _BREAK, out, out_offsets)
    return out[: out_offsets[-1] + PADDING], out_offsets, most


def _closed(forms: pa.LargeStringArray) -> tuple[Bytes, Offsets]:
    """Forms with a blank after each, as in a prepared text."""
    data, offsets = normalize_kernel.buffers(pc.binary_join_element_wise(forms, *_CLOSING))
    data = np.concatenate([data[offsets[0] : offsets[-1]], np.zeros(PADDING, np.uint8)])
    return frozen(data), frozen(offsets - offsets[0])


def _slots(entries: int) -> int:
    """The number of slots for so many entries. At least one slot stays free and ends every search."""
    return max(2, int(entries / _FULLNESS) + 2)


def _aligned(words: int) -> Words:
    """Zeros that begin at the start of a cache line."""
    raw = np.zeros(words + _LINE // 8, np.uint64)
    skip = -(raw.ctypes.data // 8) % (_LINE // 8)
    return raw[skip : skip + words]


def warm() -> None:
    """Compiles the kernels, and those of the normaliser (or loads them from the cache)."""
    normalize_kernel.warm()
    texts = pa.array(["a b"])
    tables = build(texts.cast(pa.large_string()), np.zeros(1, np.int32))
    match(tables, *normalize_kernel.segment(texts, False, True))
    match(tables, *space_out(texts))
