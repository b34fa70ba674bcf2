"""The arithmetic of 16 frames at once: a vector's lanes are the frames of a lot, at one pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from .compiling import intrinsic
from .intrinsics import I8, I16, I32, I64, constant, load, pointer, shuffle, store, vector
from .late import types

F32, F64 = ir.FloatType(), ir.DoubleType()
_BYTES = vector(I8, 16)
_SHORTS = vector(I16, 16)
_WORDS = vector(I32, 16)
_FLOATS = vector(F32, 16)


def _unpacked(half: bool) -> list[int]:
    places: list[int] = []
    for lane in (0, 16):
        for i in range(8):
            place = lane + 8 * half + i
            places += [place, 32 + place]
    return places


@intrinsic
def interleave32(typing: Any, px: Any, offset: Any, stride: Any, to: Any, to_offset: Any) -> Any:
    """``(px, offset, stride, to, to_offset)``: 32 pixels of 16 frames, a row each, to 16 frames of 32 pixels.

    Four rounds within 128-bit lanes, as x86's unpack does. So pixels don't come in order: :func:`.tables.slot_of`.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        rows = []
        for frame in range(16):
            place = builder.add(given[1], builder.mul(given[2], ir.Constant(I64, frame)))
            rows.append(
                load(builder, pointer(context, builder, signature.args[0], given[0], place, 32), vector(I8, 32))
            )
        low, high = _unpacked(False), _unpacked(True)
        for _ in range(4):
            rows = [shuffle(builder, rows[i], rows[i + 8], half) for i in range(8) for half in (low, high)]
        for i, row in enumerate(rows):
            place = builder.add(given[4], ir.Constant(I64, 32 * i))
            store(builder, row, pointer(context, builder, signature.args[3], given[3], place, 32))
        return context.get_dummy_value()

    return types.void(px, types.int64, types.int64, to, types.int64), generate


def _row(context: Any, builder: Any, signature: Any, given: Any, entry: Any) -> Any:
    """Return the 16 bytes of the pixel that an entry names; ``given`` begins with the rows and the entries."""
    at = pointer(context, builder, signature.args[1], given[1], builder.mul(entry, ir.Constant(I64, 2)), 2)
    place = builder.zext(load(builder, at, I16), I64)
    return load(builder, pointer(context, builder, signature.args[0], given[0], place, 16), _BYTES)


def _add_to(context: Any, builder: Any, kind: Any, sums: Any, offset: Any, value: Any) -> None:
    at = pointer(context, builder, kind, sums, offset, 4 * value.type.count)
    store(builder, builder.add(load(builder, at, value.type), value), at)


def loop(
    builder: Any, count: Any, first: Sequence[Any], body: Callable[[Any, Sequence[Any]], Sequence[Any]]
) -> Sequence[Any]:
    """Run a loop ``count`` times, at least once; return what it carried along."""
    before, block, after = builder.block, builder.append_basic_block("each"), builder.append_basic_block("after")
    builder.branch(block)
    builder.position_at_end(block)
    k = builder.phi(I64)
    k.add_incoming(ir.Constant(I64, 0), before)
    carried = []
    for value in first:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        carried.append(phi)
    following = body(k, carried)
    more = builder.add(k, ir.Constant(I64, 1))
    k.add_incoming(more, builder.block)
    for phi, value in zip(carried, following, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", more, count), block, after)
    builder.position_at_end(after)
    return following


def _segment_sum(fixed: int) -> Callable[..., Any]:
    @intrinsic
    def add(typing: Any, rows: Any, slots: Any, entry: Any, count: Any, sums: Any, offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            def one(k: Any) -> Any:
                return builder.zext(_row(context, builder, signature, given, builder.add(given[2], k)), _SHORTS)

            if fixed:
                total = one(ir.Constant(I64, 0))
                for k in range(1, fixed):
                    total = builder.add(total, one(ir.Constant(I64, k)))
            else:
                (total,) = loop(
                    builder, given[3], [constant(_SHORTS, 0)], lambda k, carried: [builder.add(carried[0], one(k))]
                )
            _add_to(context, builder, signature.args[4], given[4], given[5], builder.zext(total, _WORDS))
            return context.get_dummy_value()

        return types.void(rows, slots, types.int64, types.int64, sums, types.int64), generate

    return add


add1, add2, add3, add4 = (_segment_sum(fixed) for fixed in (1, 2, 3, 4))
add_many = _segment_sum(0)


def _weighted_sum(squared: bool) -> Callable[..., Any]:
    @intrinsic
    def weigh(
        typing: Any, rows: Any, slots: Any, entry: Any, count: Any, weights: Any, factor: Any, sums: Any, offset: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            def product(k: Any) -> Any:
                entry = builder.add(given[2], k)
                row = _row(context, builder, signature, given, entry)
                place = builder.mul(entry, ir.Constant(I64, 4))
                weight = load(builder, pointer(context, builder, signature.args[4], given[4], place, 4), F32)
                if squared:
                    weight = builder.fmul(weight, weight)
                counts = builder.sitofp(builder.zext(row, _WORDS), _FLOATS)
                return builder.fmul(spread(builder, weight, 16), counts)

            zero = ir.Constant(_FLOATS, [ir.Constant(F32, 0.0)] * 16)
            (total,) = loop(builder, given[3], [zero], lambda k, carried: [builder.fadd(carried[0], product(k))])
            doubles = vector(F64, 16)
            exact = builder.fmul(builder.fpext(total, doubles), spread(builder, given[5], 16))
            at = pointer(context, builder, signature.args[6], given[6], given[7], 128)
            store(builder, builder.fadd(load(builder, at, doubles), exact), at)
            return context.get_dummy_value()

        return (
            types.void(rows, slots, types.int64, types.int64, weights, types.float64, sums, types.int64),
            generate,
        )

    return weigh


weigh, weigh_squared = _weighted_sum(False), _weighted_sum(True)
"""``(rows, slots, entry, count, weights, factor, sums, offset)``: add to 16 float64 the counts of so many entries, each
times its weight, or its weight squared, then all times a factor.

Products and sums are float32, one after the other in the entries' order, and never fused: so they are the same on any
CPU. (LLVM fuses only what is marked.)"""


@intrinsic
def above32(typing: Any, px: Any, offset: Any, value: Any) -> Any:
    """``(px, offset, value) -> int64``: of 32 bytes, a bit for each that is ``value`` or more."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = vector(I8, 32)
        row = load(builder, pointer(context, builder, signature.args[0], given[0], given[1], 32), kind)
        least = spread(builder, builder.trunc(given[2], I8), 32)
        return builder.zext(builder.bitcast(builder.icmp_unsigned(">=", row, least), I32), I64)

    return types.int64(px, types.int64, types.int64), generate


def spread(builder: Any, value: Any, count: int) -> Any:
    """Return a vector of so many times the same value."""
    kind = vector(value.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return shuffle(builder, one, one, [0] * count)


@intrinsic
def widen32(typing: Any, bits: Any, offset: Any, to: Any, to_offset: Any) -> Any:
    """``(bits, offset, to, to_offset)``: make 32 bits into 32 bytes, 0 or 255."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        word = load(builder, pointer(context, builder, signature.args[0], given[0], given[1], 4), I32)
        row = builder.sext(builder.bitcast(word, vector(ir.IntType(1), 32)), vector(I8, 32))
        store(builder, row, pointer(context, builder, signature.args[2], given[2], given[3], 32))
        return context.get_dummy_value()

    return types.void(bits, types.int64, to, types.int64), generate


@intrinsic
def sum_masked(typing: Any, px: Any, offset: Any, mask: Any, count: Any) -> Any:
    """``(px, offset, mask, count) -> int64``: the sum of ``count`` times 32 bytes, at most 4096, under a mask."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = vector(I8, 32)

        def one(k: Any, carried: Sequence[Any]) -> list[Any]:
            place = builder.mul(k, ir.Constant(I64, 32))
            at = pointer(context, builder, signature.args[0], given[0], builder.add(given[1], place), 32)
            kept = pointer(context, builder, signature.args[2], given[2], place, 32)
            both = builder.bitcast(builder.and_(load(builder, at, kind), load(builder, kept, kind)), _SHORTS)
            even = builder.and_(both, constant(_SHORTS, 255))
            return [builder.add(builder.add(carried[0], even), builder.lshr(both, constant(_SHORTS, 8)))]

        (total,) = loop(builder, given[3], [constant(_SHORTS, 0)], one)
        name = "llvm.vector.reduce.add.v16i32"
        function = builder.module.declare_intrinsic(name, (), ir.FunctionType(I32, [_WORDS]))
        return builder.zext(builder.call(function, [builder.zext(total, _WORDS)]), I64)

    return types.int64(px, types.int64, mask, types.int64), generate


@intrinsic
def less_one32(typing: Any, rows: Any, offset: Any) -> Any:
    """``(rows, offset)``: 32 bytes, each less by 1 unless it is 0."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = vector(I8, 32)
        at = pointer(context, builder, signature.args[0], given[0], given[1], 32)
        row = load(builder, at, kind)
        some = builder.zext(builder.icmp_unsigned("!=", row, constant(kind, 0)), kind)
        store(builder, builder.sub(row, some), at)
        return context.get_dummy_value()

    return types.void(rows, types.int64), generate


def _lesser(planes: int) -> Callable[..., Any]:
    @intrinsic
    def less(typing: Any, px: Any, offset: Any, distance: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kind = vector(I8, 32)
            places = [builder.add(given[1], builder.mul(given[2], ir.Constant(I64, j))) for j in range(planes)]
            at = [pointer(context, builder, signature.args[0], given[0], place, 32) for place in places]
            rows = [load(builder, each, kind) for each in at]
            some = rows[0]
            for row in rows[1:]:
                some = builder.or_(some, row)
            borrow = builder.zext(builder.icmp_unsigned("!=", some, constant(kind, 0)), kind)
            for row, each in zip(rows, at, strict=True):
                store(builder, builder.sub(row, borrow), each)
                borrow = builder.select(builder.icmp_unsigned("==", row, constant(kind, 0)), borrow, constant(kind, 0))
            return context.get_dummy_value()

        return types.void(px, types.int64, types.int64), generate

    return less


less_one_of2, less_one_of3, less_one_of4 = (_lesser(planes) for planes in (2, 3, 4))
"""``(px, offset, distance)``: 32 numbers of so many bytes, ``distance`` apart, each less by 1 unless it is 0."""
