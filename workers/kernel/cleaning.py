"""Leaving pixels out of a tile: above the count-rate cutoff, or without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .compiling import inner, intrinsic
from .intrinsics import I8, I64, constant, load, pointer, store, vector
from .late import types
from .vectors import accumulator, first_lanes, for_each, reduce, splat

BAD, VOID = 4, 5
"""The planes of a cleaned tile in which pixels left out, and among them those without data, are 1."""


def _cleaner_of(planes: int) -> Callable[..., Any]:
    """Compare byte by byte, the highest first, 32 pixels at a time: four times as many as whole values would be."""

    @intrinsic
    def clean(
        typing: Any, source: Any, offset: Any, plane: Any, count: Any, limit: Any, void: Any, to: Any, apart: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kind = vector(I8, 32)

            def byte(value: Any, j: int) -> Any:
                return splat(builder, kind, builder.trunc(builder.lshr(value, constant(I64, 8 * j)), I8))

            limits, voids = ([byte(given[place], j) for j in range(planes)] for place in (4, 5))
            # Without as many bytes as the value of a pixel without data has, none is one.
            possible = builder.icmp_unsigned("==", builder.lshr(given[5], constant(I64, 8 * planes)), constant(I64, 0))
            found, bits = accumulator(builder, kind), [accumulator(builder, kind) for _ in range(planes)]

            def step(at: Any, left: Any) -> None:
                above = same = nothing = None
                values: list[Any] = []
                for j in reversed(range(planes)):
                    place = builder.add(builder.add(given[1], at), builder.mul(given[2], constant(I64, j)))
                    value = load(builder, pointer(context, builder, signature.args[0], given[0], place, 32), kind)
                    if left is not None:
                        value = builder.select(first_lanes(builder, kind, left), value, constant(kind, 0))
                    values.insert(0, value)
                    more = builder.icmp_unsigned(">", value, limits[j])
                    equal = builder.icmp_unsigned("==", value, limits[j])
                    full = builder.icmp_unsigned("==", value, voids[j])
                    above = more if above is None else builder.or_(above, builder.and_(same, more))
                    same = equal if same is None else builder.and_(same, equal)
                    nothing = full if nothing is None else builder.and_(nothing, full)
                bad = builder.zext(above, kind)
                empty = builder.select(possible, builder.zext(builder.and_(nothing, above), kind), constant(kind, 0))
                builder.store(builder.or_(builder.load(found), bad), found)
                made = [builder.select(above, constant(kind, 0), value) for value in values]
                for seen, value in zip(bits, made, strict=True):
                    builder.store(builder.or_(builder.load(seen), value), seen)
                for number, written in [*enumerate(made), (BAD, bad), (VOID, empty)]:
                    place = builder.add(at, builder.mul(given[7], constant(I64, number)))
                    store(builder, written, pointer(context, builder, signature.args[6], given[6], place, 32))

            for_each(builder, 32, given[3], step)
            high = constant(I64, 0)
            for j, seen in enumerate(bits):
                any_bit = builder.icmp_unsigned("!=", reduce(builder, "or", builder.load(seen)), constant(I8, 0))
                high = builder.select(any_bit, constant(I64, j + 1), high)
            some = builder.zext(reduce(builder, "or", builder.load(found)), I64)
            return context.make_tuple(builder, signature.return_type, [some, high])

        given = (types.int64, types.int64, types.int64, types.int64, types.int64)
        return types.UniTuple(types.int64, 2)(source, *given, to, types.int64), generate

    return clean


_clean1, _clean2, _clean3, _clean4 = (_cleaner_of(planes) for planes in (1, 2, 3, 4))


@inner
def clean(
    planes: int, source: Any, offset: int, plane: int, count: int, limit: int, void: int, to: Any, apart: int
) -> Any:
    """Copy a tile with the pixels above ``limit`` set to 0.

    Parameters
    ----------
    void
        The value of pixels without data.
    to, apart
        Where byte plane j of the copy goes: to ``apart * j``; :data:`BAD` and :data:`VOID` say which are left out.

    Returns
    -------
    1 if some are left out, or 0; and how many byte planes the others need.
    """
    if planes == 1:
        return _clean1(source, offset, plane, count, limit, void, to, apart)
    if planes == 2:
        return _clean2(source, offset, plane, count, limit, void, to, apart)
    if planes == 3:
        return _clean3(source, offset, plane, count, limit, void, to, apart)
    return _clean4(source, offset, plane, count, limit, void, to, apart)
