"""Memory access by 64 bytes for compiled kernels: compares a block with a byte and returns one bit for each place.

Addresses are integers. The caller guarantees that the bytes exist: the `*_mask` functions read 64 bytes (the pair masks
65), and `copy64` reads and writes 64. So buffers end with PADDING bytes of their own. numba's bounds checks do not
cover these accesses. The code is portable LLVM. It uses AVX-512, AVX2, SSE2 or NEON, as the machine has them.

In a mask bit i stands for the byte at address + i; `lowest(mask)` is the first of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipeline.engine.jit import njit
from pipeline.sources import char_kernel as char

BLOCK = 64  # bytes that one mask covers
PADDING = 128

_BIT, _BYTE, _INT, _WORD = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_BLOCK = ir.VectorType(_BYTE, BLOCK)


def _load(builder: Any, address: Any) -> Any:
    block = builder.load(builder.inttoptr(address, _BLOCK.as_pointer()))
    block.align = 1
    return block


def _next(builder: Any, address: Any) -> Any:
    return _load(builder, builder.add(address, ir.Constant(address.type, 1)))


def _fill(builder: Any, byte: Any) -> Any:
    """A block of one byte."""
    empty = ir.Constant(_BLOCK, ir.Undefined)
    one = builder.insert_element(empty, byte, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_INT, BLOCK), [0] * BLOCK))


def _constant(byte: int) -> Any:
    return ir.Constant(_BLOCK, [byte] * BLOCK)


def _equal(builder: Any, left: Any, right: Any) -> Any:
    return builder.icmp_unsigned("==", left, right)


@njit
def address_of(array):
    """The address of an array's first byte. It is signed, since numba adds signed and unsigned numbers as floats."""
    return np.int64(array.ctypes.data)


@intrinsic
def equal_mask(typing: Any, address: Any, byte: Any) -> Any:
    """Where the byte is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(_equal(builder, _load(builder, args[0]), _fill(builder, args[1])), _WORD)

    return types.uint64(types.intp, types.uint8), generate


@intrinsic
def stop_mask(typing: Any, address: Any) -> Any:
    """Where a quotation mark, a backslash or a control character is. Each ends a simple piece of a JSON string."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        block = _load(builder, args[0])
        stops = builder.icmp_unsigned("<", block, _constant(char.BLANK))
        for byte in b'"\\':
            stops = builder.or_(stops, _equal(builder, block, _constant(byte)))
        return builder.bitcast(stops, _WORD)

    return types.uint64(types.intp), generate


@intrinsic
def pair_mask(typing: Any, address: Any, first: Any, second: Any) -> Any:
    """Where `first` stands with `second` after it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left = _equal(builder, _load(builder, args[0]), _fill(builder, args[1]))
        right = _equal(builder, _next(builder, args[0]), _fill(builder, args[2]))
        return builder.bitcast(builder.and_(left, right), _WORD)

    return types.uint64(types.intp, types.uint8, types.uint8), generate


@intrinsic
def folded_pair_mask(typing: Any, address: Any, first: Any, second: Any) -> Any:
    """As `pair_mask`, for two lower-case letters, in the text of either case."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        case = _constant(char.CASE)
        left = _equal(builder, builder.or_(_load(builder, args[0]), case), _fill(builder, args[1]))
        right = _equal(builder, builder.or_(_next(builder, args[0]), case), _fill(builder, args[2]))
        return builder.bitcast(builder.and_(left, right), _WORD)

    return types.uint64(types.intp, types.uint8, types.uint8), generate


@intrinsic
def unusual_mask(typing: Any, address: Any) -> Any:
    """Where a control character or a byte over 127 is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.icmp_signed("<", _load(builder, args[0]), _constant(char.BLANK)), _WORD)

    return types.uint64(types.intp), generate


@intrinsic
def copy64(typing: Any, to: Any, source: Any) -> Any:
    """Copies 64 bytes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store = builder.store(_load(builder, args[1]), builder.inttoptr(args[0], _BLOCK.as_pointer()))
        store.align = 1
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def lowest(typing: Any, mask: Any) -> Any:
    """The place of the lowest bit of a mask that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(_BIT, 1))

    return types.int64(types.uint64), generate


@intrinsic
def count_bits(typing: Any, mask: Any) -> Any:
    """The number of bits of a mask that are set."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), generate


@intrinsic
def load_byte(typing: Any, address: Any) -> Any:
    """The byte as a number from 0 to 255."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.load(builder.inttoptr(args[0], _BYTE.as_pointer())), _WORD)

    return types.int64(types.intp), generate


@intrinsic
def load_word(typing: Any, address: Any) -> Any:
    """Eight bytes as a little-endian number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.load(builder.inttoptr(args[0], _WORD.as_pointer()))
        word.align = 1
        return word

    return types.uint64(types.intp), generate


@intrinsic
def store_byte(typing: Any, address: Any, value: Any) -> Any:
    """Writes the low byte of a number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], _BYTE), builder.inttoptr(args[0], _BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), generate


@intrinsic
def store_int(typing: Any, address: Any, value: Any) -> Any:
    """Writes a number as four bytes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store = builder.store(builder.trunc(args[1], _INT), builder.inttoptr(args[0], _INT.as_pointer()))
        store.align = 1
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), generate


@intrinsic
def call_gunzip(typing: Any, function: Any, state: Any, packed: Any, plain: Any, sizes: Any) -> Any:
    """libdeflate_gzip_decompress_ex. Its address is an argument, so that the caller can be cached on disk.

    `packed` and `plain` are (address, size) of the input and of the output buffer. The call writes two words at the
    address `sizes`: the number of bytes that it read, and the number that it wrote.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function, state, packed, plain, sizes = args
        pieces = [builder.extract_value(piece, place) for piece in (packed, plain) for place in (0, 1)]
        written = builder.add(sizes, ir.Constant(_WORD, 8))
        pointer = builder.inttoptr(function, ir.FunctionType(_INT, [_WORD] * 7).as_pointer())
        return builder.sext(builder.call(pointer, [state, *pieces, sizes, written]), _WORD)

    piece = types.UniTuple(types.intp, 2)
    return types.int64(types.intp, types.intp, piece, piece, types.intp), generate
