"""What the loops over vectors are built of: masks, accumulators, pixels put together from byte planes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .intrinsics import I8, I32, I64, constant, load, pointer, shuffle, vector
from .late import cgutils


def splat(builder: Any, kind: ir.VectorType, value: Any) -> Any:
    """Return a vector that has ``value`` in each lane."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, constant(I32, 0))
    return shuffle(builder, first, first, [0] * kind.count)


def first_lanes(builder: Any, kind: ir.VectorType, left: Any) -> Any:
    """Return which of a vector's lanes are among the first ``left``."""
    numbers = ir.Constant(kind, list(range(kind.count)))
    return builder.icmp_unsigned("<", numbers, splat(builder, kind, builder.trunc(left, kind.element)))


def reduce(builder: Any, operation: str, value: Any) -> Any:
    """Return one number of a vector's lanes: LLVM's ``add``, ``or``, ``umax`` of them."""
    name = f"llvm.vector.reduce.{operation}.v{value.type.count}i{value.type.element.width}"
    function = builder.module.declare_intrinsic(name, (), ir.FunctionType(value.type.element, [value.type]))
    return builder.call(function, [value])


def accumulator(builder: Any, kind: ir.VectorType) -> Any:
    """Return a place for a vector that a loop adds to; LLVM keeps it in a register."""
    return cgutils.alloca_once_value(builder, constant(kind, 0))


def assemble(context: Any, builder: Any, kind: Any, given: Any, at: Any, planes: int, element: Any = I32) -> Any:
    """Return 16 pixels, put together from so many byte planes. ``given`` : source, offset, plane."""
    source, offset, plane = given
    wide = vector(element, 16)
    value = None
    for j in range(planes):
        place = builder.add(builder.add(offset, at), builder.mul(plane, constant(I64, j)))
        read = builder.zext(load(builder, pointer(context, builder, kind, source, place, 16), vector(I8, 16)), wide)
        if j:
            read = builder.shl(read, constant(wide, 8 * j))
        value = read if value is None else builder.or_(value, read)
    return value


def for_each(builder: Any, width: int, count: Any, step: Callable[[Any, Any], None]) -> None:
    """Call ``step(at, left)`` for every ``width`` of ``count``, and once more with what is ``left``."""
    bits = width.bit_length() - 1
    whole = builder.lshr(count, constant(I64, bits))
    with cgutils.for_range(builder, whole) as loop:
        step(builder.shl(loop.index, constant(I64, bits)), None)
    left = builder.and_(count, constant(I64, width - 1))
    with builder.if_then(builder.icmp_signed("!=", left, constant(I64, 0))):
        step(builder.shl(whole, constant(I64, bits)), left)
