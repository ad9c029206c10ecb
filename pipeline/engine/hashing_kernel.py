"""`hashing` in compiled code: XXH3's 128-bit hash (seed 0, default secret) straight from Arrow's buffers, 25 ns a text.

The algorithm is xxHash's own (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md, BSD-2-Clause). A test compares
every length of every branch with the reference library. Lengths fall into five classes. Each class has a function.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipeline.engine.bits_kernel import load32, load64
from pipeline.engine.jit import njit

Words = npt.NDArray[np.uint64]

U = np.uint64
_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)
_PRIME32_1, _PRIME32_2, _PRIME32_3 = U(0x9E3779B1), U(0x85EBCA77), U(0xC2B2AE3D)
_PRIME64_1, _PRIME64_2, _PRIME64_3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
_PRIME64_4, _PRIME64_5 = U(0x85EBCA77C2B2AE63), U(0x27D4EB2F165667C5)
_PRIME_MX1, _PRIME_MX2 = U(0x165667919E3779F9), U(0x9FB21C651E98DF25)
_LOW_32 = U(0xFFFFFFFF)


def _secret(offset: int, width: int = 8) -> int:
    """The little-endian word of the secret at a byte offset."""
    return int.from_bytes(_SECRET[offset : offset + width].tobytes(), "little")


_FLIP_0_LOW, _FLIP_0_HIGH = U(_secret(64) ^ _secret(72)), U(_secret(80) ^ _secret(88))
_FLIP_3_LOW, _FLIP_3_HIGH = U(_secret(0, 4) ^ _secret(4, 4)), U(_secret(8, 4) ^ _secret(12, 4))
_FLIP_8 = U(_secret(16) ^ _secret(24))
_FLIP_16_LOW, _FLIP_16_HIGH = U(_secret(32) ^ _secret(40)), U(_secret(48) ^ _secret(56))
_ACCUMULATORS = np.array(
    [_PRIME32_3, _PRIME64_1, _PRIME64_2, _PRIME64_3, _PRIME64_4, _PRIME32_2, _PRIME64_5, _PRIME32_1], np.uint64
)
_STRIPE, _BLOCK = 64, 1024  # bytes
_TWO_DIGESTS = 32  # bytes


@intrinsic
def _multiply_high(typing_context, a, b):  # noqa: ANN001, ANN202
    """The upper 64 bits of a 64 x 64 bit product."""

    def generate(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def _swap_bytes(typing_context, word):  # noqa: ANN001, ANN202
    def generate(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), generate


@njit
def _fold(a, b):
    """The XOR of the two halves of the 128-bit product."""
    return (a * b) ^ _multiply_high(a, b)


@njit
def _avalanche(h):
    h ^= h >> U(37)
    h *= _PRIME_MX1
    return h ^ (h >> U(32))


@njit
def _avalanche_64(h):
    """XXH64's own avalanche, used for the shortest inputs."""
    h ^= h >> U(33)
    h *= _PRIME64_2
    h ^= h >> U(29)
    h *= _PRIME64_3
    return h ^ (h >> U(32))


@njit
def _hash_1_to_3(data, start, length):
    first, middle, last = U(data[start]), U(data[start + (length >> 1)]), U(data[start + length - 1])
    low = (first << U(16)) | (middle << U(24)) | last | (U(length) << U(8))
    swapped = _swap_bytes(low) >> U(32)
    high = ((swapped << U(13)) | (swapped >> U(19))) & _LOW_32
    return _avalanche_64(high ^ _FLIP_3_HIGH), _avalanche_64(low ^ _FLIP_3_LOW)


@njit
def _hash_4_to_8(data, start, length):
    keyed = (load32(data, start) + (load32(data, start + length - 4) << U(32))) ^ _FLIP_8
    factor = _PRIME64_1 + (U(length) << U(2))
    low, high = keyed * factor, _multiply_high(keyed, factor)
    high += low << U(1)
    low ^= high >> U(3)
    low ^= low >> U(35)
    low *= _PRIME_MX2
    low ^= low >> U(28)
    return _avalanche(high), low


@njit
def _hash_9_to_16(data, start, length):
    first, last = load64(data, start), load64(data, start + length - 8)
    keyed = first ^ last ^ _FLIP_16_LOW
    low, high = keyed * _PRIME64_1, _multiply_high(keyed, _PRIME64_1)
    low += U(length - 1) << U(54)
    last ^= _FLIP_16_HIGH
    high += last + (last & _LOW_32) * (_PRIME32_2 - U(1))
    low ^= _swap_bytes(high)
    return _avalanche(_multiply_high(low, _PRIME64_2) + high * _PRIME64_2), _avalanche(low * _PRIME64_2)


@njit
def _mix_16(data, place, key):
    """Mixes 16 bytes of the input with 16 bytes of the secret."""
    return _fold(load64(data, place) ^ load64(_SECRET, key), load64(data, place + 8) ^ load64(_SECRET, key + 8))


@njit
def _mix_32(high, low, data, first, second, key):
    """Mixes two 16-byte pieces of the input into the two accumulators."""
    low = (low + _mix_16(data, first, key)) ^ (load64(data, second) + load64(data, second + 8))
    high = (high + _mix_16(data, second, key + 16)) ^ (load64(data, first) + load64(data, first + 8))
    return high, low


@njit
def _hash_17_to_240(data, start, length):
    high, low = U(0), U(length) * _PRIME64_1
    if length <= 128:
        for piece in range((length - 1) >> 5, -1, -1):  # pairs of pieces from both ends, the innermost first
            near, far = start + 16 * piece, start + length - 16 * (piece + 1)
            high, low = _mix_32(high, low, data, near, far, 32 * piece)
    else:
        for place in range(0, 128, 32):
            high, low = _mix_32(high, low, data, start + place, start + place + 16, place)
        high, low = _avalanche(high), _avalanche(low)
        for place in range(128, length - 31, 32):
            high, low = _mix_32(high, low, data, start + place, start + place + 16, place - 125)
        high, low = _mix_32(high, low, data, start + length - 16, start + length - 32, 103)
    joined = low * _PRIME64_1 + high * _PRIME64_4 + U(length) * _PRIME64_2
    return U(0) - _avalanche(joined), _avalanche(low + high)


@njit
def _add_stripe(sums, data, place, key):
    """Adds 64 bytes to the eight sums."""
    for lane in range(8):
        value = load64(data, place + 8 * lane)
        keyed = value ^ load64(_SECRET, key + 8 * lane)
        sums[lane ^ 1] += value
        sums[lane] += (keyed & _LOW_32) * (keyed >> U(32))


@njit
def _hash_long(data, start, length):
    sums = _ACCUMULATORS.copy()
    blocks = (length - 1) // _BLOCK
    for block in range(blocks):
        for stripe in range(_BLOCK // _STRIPE):
            _add_stripe(sums, data, start + block * _BLOCK + stripe * _STRIPE, 8 * stripe)
        for lane in range(8):
            sums[lane] = (sums[lane] ^ (sums[lane] >> U(47)) ^ load64(_SECRET, 128 + 8 * lane)) * _PRIME32_1
    done = blocks * _BLOCK
    for stripe in range((length - 1 - done) // _STRIPE):
        _add_stripe(sums, data, start + done + stripe * _STRIPE, 8 * stripe)
    _add_stripe(sums, data, start + length - _STRIPE, 121)
    low, high = U(length) * _PRIME64_1, ~(U(length) * _PRIME64_2)
    for pair in range(4):
        a, b, key = sums[2 * pair], sums[2 * pair + 1], 16 * pair
        low += _fold(a ^ load64(_SECRET, 11 + key), b ^ load64(_SECRET, 19 + key))
        high += _fold(a ^ load64(_SECRET, 117 + key), b ^ load64(_SECRET, 125 + key))
    return _avalanche(high), _avalanche(low)


@njit
def xxh3_128(data, start, length):
    """(high, low) of XXH3_128bits over data[start : start + length]; usable from other kernels."""
    if length > 240:
        return _hash_long(data, start, length)
    if length > 16:
        return _hash_17_to_240(data, start, length)
    if length > 8:
        return _hash_9_to_16(data, start, length)
    if length > 3:
        return _hash_4_to_8(data, start, length)
    if length > 0:
        return _hash_1_to_3(data, start, length)
    return _avalanche_64(_FLIP_0_HIGH), _avalanche_64(_FLIP_0_LOW)


@njit
def _hash_column(data, offsets, out):
    for row in range(len(offsets) - 1):
        out[row, 0], out[row, 1] = xxh3_128(data, offsets[row], offsets[row + 1] - offsets[row])


@njit
def _hash_pairs(urls, texts, url_hash, uid, digests):
    """`urls` and `texts` are (data, offsets). `digests` has room for four words.

    A uid is the hash of two big-endian digests: the URL's, then the text's.
    """
    url_data, url_offsets = urls
    text_data, text_offsets = texts
    digest_bytes = digests.view(np.uint8)
    for row in range(len(url_offsets) - 1):
        high, low = xxh3_128(url_data, url_offsets[row], url_offsets[row + 1] - url_offsets[row])
        url_hash[row] = high
        digests[0], digests[1] = _swap_bytes(high), _swap_bytes(low)
        high, low = xxh3_128(text_data, text_offsets[row], text_offsets[row + 1] - text_offsets[row])
        digests[2], digests[3] = _swap_bytes(high), _swap_bytes(low)
        uid[row, 0], uid[row, 1] = xxh3_128(digest_bytes, 0, _TWO_DIGESTS)


@njit
def _sums_of_lists(values, offsets, ids, out):
    for row in range(len(out)):
        total = U(0)
        for place in range(offsets[row], offsets[row + 1]):
            total += values[ids[place]]
        out[row] = total


@njit
def _partition(bucket_of_row, order, starts):
    for bucket in bucket_of_row:
        starts[bucket + 1] += 1
    for bucket in range(1, len(starts)):
        starts[bucket] += starts[bucket - 1]
    place = starts[:-1].copy()
    for row in range(len(bucket_of_row)):
        bucket = bucket_of_row[row]
        order[place[bucket]] = row
        place[bucket] += 1


def frozen(array: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray:
    """A contiguous read-only view (or copy) of one type, so that each kernel is compiled once, for one signature."""
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


def hash_strings(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Words:
    """See `hashing.hash_strings`."""
    out = np.empty((len(offsets) - 1, 2), np.uint64)
    _hash_column(frozen(data, np.uint8), frozen(offsets, np.int64), out)
    return out


def pair_keys(
    url_data: npt.NDArray[np.uint8],
    url_offsets: npt.NDArray[np.int64],
    text_data: npt.NDArray[np.uint8],
    text_offsets: npt.NDArray[np.int64],
) -> tuple[Words, Words]:
    """See `hashing.pair_keys`; the uids as words."""
    rows = len(url_offsets) - 1
    url_hash, uid, digests = np.empty(rows, np.uint64), np.empty((rows, 2), np.uint64), np.empty(4, np.uint64)
    urls = frozen(url_data, np.uint8), frozen(url_offsets, np.int64)
    texts = frozen(text_data, np.uint8), frozen(text_offsets, np.int64)
    _hash_pairs(urls, texts, url_hash, uid, digests)
    return url_hash, uid


def sums_of_lists(values: Words, offsets: npt.NDArray[np.int32], ids: npt.NDArray[np.int32]) -> Words:
    """See `hashing.sums_of_lists`."""
    inside = ids[offsets[0] : offsets[-1]]
    if len(inside) and not 0 <= int(inside.min()) <= int(inside.max()) < len(values):
        raise ValueError(f"ids outside 0 .. {len(values) - 1}")
    out = np.empty(len(offsets) - 1, np.uint64)
    _sums_of_lists(frozen(values, np.uint64), frozen(offsets, np.int32), frozen(ids, np.int32), out)
    return out


def partition(bucket_of_row: npt.NDArray[np.int64], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """See `hashing.partition`."""
    if len(bucket_of_row) and not 0 <= int(bucket_of_row.min()) <= int(bucket_of_row.max()) < count:
        raise ValueError(f"bucket numbers outside 0 .. {count - 1}")
    order, starts = np.empty(len(bucket_of_row), np.int64), np.zeros(count + 1, np.int64)
    _partition(frozen(bucket_of_row, np.int64), order, starts)
    return order, starts


def warm() -> None:
    """Compiles every kernel of this module."""
    data, offsets = np.zeros(300, np.uint8), np.array([0, 300], np.int64)
    hash_strings(data, offsets)
    pair_keys(data, offsets, data, offsets)
    partition(np.zeros(1, np.int64), 1)
    sums_of_lists(np.zeros(1, np.uint64), np.array([0, 1], np.int32), np.zeros(1, np.int32))
