"""Words of 64 bits for compiled kernels: loads from bytes, the lowest set bit, and prefetching.

numba's bounds checks do not cover a load: the caller guarantees that the bytes exist.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array


def _unaligned_load(bits: int) -> Any:
    """An intrinsic: the little-endian word of `bits` bits that starts at byte i of an array, as uint64."""

    @intrinsic
    def load(typing_context, array, index):  # noqa: ANN001, ANN202
        def generate(context, builder, signature, arguments):  # noqa: ANN001, ANN202
            data = make_array(signature.args[0])(context, builder, arguments[0]).data
            word = ir.IntType(bits)
            place = builder.bitcast(cgutils.gep(builder, data, arguments[1]), word.as_pointer())
            value = builder.load(place, align=1)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.uint64(array, types.int64), generate

    return load


load64, load32 = _unaligned_load(64), _unaligned_load(32)


@intrinsic
def prefetch(typing_context, array, index):  # noqa: ANN001, ANN201
    """Prefetches the cache line of element `index`, without waiting for it."""

    def generate(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        pointer = builder.gep(make_array(signature.args[0])(context, builder, arguments[0]).data, [arguments[1]])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        call = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        to_read, keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(call, [builder.bitcast(pointer, byte), to_read, keep, data])
        return context.get_dummy_value()

    return types.none(array, types.int64), generate


@intrinsic
def trailing_zeros(typing_context, word):  # noqa: ANN001, ANN201
    """The place of the lowest set bit of a word that is not 0."""

    def generate(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def set_bits(typing_context, word):  # noqa: ANN001, ANN201
    """How many bits of a word are set."""

    def generate(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate
