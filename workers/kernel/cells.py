"""Pixels added up in 32 bits, to what is there already or two and two; and then several to a cell, and written out.

``source`` is a tile's memory; a run begins at ``offset`` in its lowest byte plane, and the next one is ``plane`` bytes
on, as in :mod:`.pixels`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from .compiling import inner, intrinsic
from .intrinsics import I8, I16, I32, I64, constant, load, pointer, shuffle, store, vector
from .late import types
from .vectors import assemble, first_lanes, for_each

# --- from byte planes ------------------------------------------------------------------------------------------------


def _adder_of(planes: int) -> Callable[..., Any]:
    @intrinsic
    def add(typing: Any, to: Any, first: Any, source: Any, offset: Any, plane: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            wide = vector(I32, 16)

            def step(at: Any, left: Any) -> None:
                value = assemble(context, builder, signature.args[2], given[2:5], at, planes)
                if left is not None:
                    value = builder.select(first_lanes(builder, wide, left), value, constant(wide, 0))
                place = builder.shl(builder.add(given[1], at), constant(I64, 2))
                place = pointer(context, builder, signature.args[0], given[0], place, 64)
                store(builder, builder.add(load(builder, place, wide), value), place)

            for_each(builder, 16, given[5], step)
            return context.get_dummy_value()

        return types.void(to, types.int64, source, types.int64, types.int64, types.int64), generate

    return add


_add1, _add2, _add3 = (_adder_of(planes) for planes in (1, 2, 3))


@inner
def add_values(planes: int, to: Any, first: int, source: Any, offset: int, plane: int, count: int) -> None:
    """Add the lowest 24 bits of a run's pixels to uint32 from ``to[first]`` on.

    Up to 15 beyond are written as they are.
    """
    if planes == 1:
        _add1(to, first, source, offset, plane, count)
    elif planes == 2:
        _add2(to, first, source, offset, plane, count)
    else:
        _add3(to, first, source, offset, plane, count)


def _pair_adder_of(planes: int) -> Callable[..., Any]:
    @intrinsic
    def add(typing: Any, to: Any, first: Any, source: Any, offset: Any, plane: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            bytes32, words, wide = vector(I8, 32), vector(I16, 16), vector(I32, 16)

            def step(at: Any, left: Any) -> None:
                place = builder.shl(builder.add(given[1], builder.lshr(at, constant(I64, 1))), constant(I64, 2))
                place = pointer(context, builder, signature.args[0], given[0], place, 64)
                total = load(builder, place, wide)
                for j in range(planes):
                    byte = builder.add(builder.add(given[3], at), builder.mul(given[4], constant(I64, j)))
                    read = load(builder, pointer(context, builder, signature.args[2], given[2], byte, 32), bytes32)
                    if left is not None:
                        read = builder.select(first_lanes(builder, bytes32, left), read, constant(bytes32, 0))
                    both = builder.bitcast(read, words)
                    pair = builder.add(builder.and_(both, constant(words, 255)), builder.lshr(both, constant(words, 8)))
                    total = builder.add(total, builder.shl(builder.zext(pair, wide), constant(wide, 8 * j)))
                store(builder, total, place)

            for_each(builder, 32, given[5], step)
            return context.get_dummy_value()

        return types.void(to, types.int64, source, types.int64, types.int64, types.int64), generate

    return add


_pairs1, _pairs2, _pairs3 = (_pair_adder_of(planes) for planes in (1, 2, 3))


@inner
def add_pairs(planes: int, to: Any, first: int, source: Any, offset: int, plane: int, count: int) -> None:
    """Add the lowest 24 bits of a run's pixels, two and two, to uint32 from ``to[first]`` on.

    A last one alone is added alone. Up to 15 beyond are written as they are.
    """
    if planes == 1:
        _pairs1(to, first, source, offset, plane, count)
    elif planes == 2:
        _pairs2(to, first, source, offset, plane, count)
    else:
        _pairs3(to, first, source, offset, plane, count)


# --- from 32 bits ----------------------------------------------------------------------------------------------------


def _joiner_of(some: int) -> Callable[..., Any]:
    @intrinsic
    def join(typing: Any, array: Any, first: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kind = vector(I32, 8)

            def at(place: Any) -> Any:
                place = builder.shl(builder.add(given[1], place), constant(I64, 2))
                return pointer(context, builder, signature.args[0], given[0], place, 32)

            def step(begin: Any, left: Any) -> None:
                source = builder.mul(begin, constant(I64, some))
                rows = [load(builder, at(builder.add(source, constant(I64, 8 * k))), kind) for k in range(some)]
                total = None
                for k in range(some):
                    picked = _picked(builder, rows, range(k, 8 * some, some))
                    total = picked if total is None else builder.add(total, picked)
                store(builder, total, at(begin))

            for_each(builder, 8, given[2], step)
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int64), generate

    return join


def _picked(builder: Any, rows: list[Any], places: Sequence[int]) -> Any:
    """Return 8 elements of several vectors of 8."""
    made = shuffle(builder, rows[0], rows[1], [place if place < 16 else 0 for place in places])
    for k, row in enumerate(rows[2:], 2):
        made = shuffle(builder, made, row, [i if place // 8 < k else 8 + place % 8 for i, place in enumerate(places)])
    return made


halve, add_threes, add_fives = (_joiner_of(some) for some in (2, 3, 5))
"""``(array, first, count)``: of every 2, 3 or 5 uint32 from ``array[first]`` on make a sum, ``count`` in all, in their
place. Up to 7 more are written, of what lies behind."""


def _mover_of(bits: int) -> Callable[..., Any]:
    @intrinsic
    def move(
        typing: Any, to: Any, offset: Any, array: Any, first: Any, left: Any, left_first: Any, cells: Any, cell: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            def read(k: int, size: int, kind: Any) -> Any:
                place = builder.mul(given[k + 1], constant(I64, size))
                return load(builder, pointer(context, builder, signature.args[k], given[k], place, 16 * size), kind)

            kind, words = vector(ir.IntType(bits), 16), vector(I16, 16)
            value = read(2, 4, vector(I32, 16))
            value = value if bits == 32 else builder.zext(value, kind)
            nothing = builder.icmp_unsigned("==", read(4, 2, words), read(6, 2, words))
            value = builder.or_(value, builder.sext(nothing, kind))
            store(builder, value, pointer(context, builder, signature.args[0], given[0], given[1], 2 * bits))
            return context.get_dummy_value()

        numbers = types.int64
        return types.void(to, numbers, array, numbers, left, numbers, cells, numbers), generate

    return move


move32, move64 = _mover_of(32), _mover_of(64)
"""``(to, offset, array, first, left, left_first, cells, cell)``: write 16 uint32 from ``array[first]`` on as 32 or 64
bits; all bits set where as many were left out as there are pixels, uint16 each."""


@intrinsic
def add_longs(typing: Any, to: Any, to_first: Any, array: Any, first: Any, count: Any) -> Any:
    """``(to, to_first, array, first, count)``: add so many uint32 to int64, and set them to 0.

    Up to 15 of ``to`` beyond are written as they are.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        narrow, kind = vector(I32, 16), vector(I64, 16)

        def step(at: Any, left: Any) -> None:
            place = builder.shl(builder.add(given[3], at), constant(I64, 2))
            source = pointer(context, builder, signature.args[2], given[2], place, 64)
            value = load(builder, source, narrow)
            rest = constant(narrow, 0)
            if left is not None:
                mine = first_lanes(builder, narrow, left)
                value, rest = (builder.select(mine, *each) for each in ((value, rest), (rest, value)))
            store(builder, rest, source)
            place = builder.shl(builder.add(given[1], at), constant(I64, 3))
            target = pointer(context, builder, signature.args[0], given[0], place, 128)
            store(builder, builder.add(load(builder, target, kind), builder.zext(value, kind)), target)

        for_each(builder, 16, given[4], step)
        return context.get_dummy_value()

    return types.void(to, types.int64, array, types.int64, types.int64), generate
