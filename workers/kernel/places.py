"""Rows of numbers as vectors of 8 lanes, for what is done with spectra.

All offsets are in elements. Groups are of 8 channels.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

from .intrinsics import I8, I32, I64, pointer, shuffle, vector

LANES: Final = 8
ROWS: Final = 3
"""Spectra at a time: they share what is read of templates and of totals."""

SINGLE, DOUBLE = ir.FloatType(), ir.DoubleType()
SINGLES, DOUBLES = vector(SINGLE, LANES), vector(DOUBLE, LANES)


class Place:
    """A range of an array's vectors, both ends of which were checked."""

    def __init__(
        self, context: Any, builder: Any, kind: Any, array: Any, first: Any, groups: Any, item: int, lanes: int = LANES
    ) -> None:
        self._builder, self._width = builder, item * lanes
        offset = builder.mul(first, ir.Constant(I64, item))
        last = builder.mul(builder.sub(groups, ir.Constant(I64, 1)), ir.Constant(I64, self._width))
        pointer(context, builder, kind, array, builder.add(offset, last), self._width)
        self._base = pointer(context, builder, kind, array, offset, self._width)

    def at(self, group: Any) -> Any:
        """Return where a vector is."""
        group = ir.Constant(I64, group) if isinstance(group, int) else group
        return self._builder.gep(self._base, [self._builder.mul(group, ir.Constant(I64, self._width))], source_etype=I8)


def splat(builder: Any, value: Any, count: int) -> Any:
    """Return a vector with this value in each lane."""
    empty = ir.Constant(vector(value.type, count), ir.Undefined)
    return shuffle(builder, builder.insert_element(empty, value, ir.Constant(I32, 0)), empty, [0] * count)
