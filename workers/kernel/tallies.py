"""Counts: added to totals, and made into float32 spectra, as they are or times weights.

Offsets and groups are as in :mod:`.places`. Counts are uint32. Of each row all bits that its counts have are returned.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .compiling import intrinsic
from .intrinsics import I32, I64, constant, load, store, vector
from .late import cgutils, types
from .places import LANES, ROWS, SINGLE, SINGLES, Place, splat

COUNTS, TOTALS = vector(I32, LANES), vector(I64, LANES)


def _any_bit(builder: Any, bits: Any) -> Any:
    name = f"llvm.vector.reduce.or.v{LANES}i32"
    reduce = builder.module.declare_intrinsic(name, (), ir.FunctionType(I32, [COUNTS]))
    return builder.zext(builder.call(reduce, [builder.load(bits)]), I64)


class _Counts:
    """ROWS rows of counts, and what they are added to."""

    def __init__(self, context: Any, builder: Any, signature: Any, given: Any) -> None:
        kinds, self._builder, self.groups = signature.args, builder, given[6]
        self._sources = [Place(context, builder, kinds[k], given[k], given[k + 1], self.groups, 4) for k in (0, 2, 4)]
        self._totals = Place(context, builder, kinds[7], given[7], given[8], self.groups, 4)
        self._bits = [cgutils.alloca_once_value(builder, constant(COUNTS, 0)) for _ in self._sources]

    def tallied(self, group: Any) -> list[Any]:
        """Add a group of each row to the totals; return them as float32, right below 2³¹."""
        builder, at = self._builder, self._totals.at(group)
        read, total = [load(builder, source.at(group), COUNTS) for source in self._sources], load(builder, at, COUNTS)
        for values, bits in zip(read, self._bits, strict=True):
            builder.store(builder.or_(builder.load(bits), values), bits)
            total = builder.add(total, values)
        store(builder, total, at)
        return [builder.sitofp(values, SINGLES) for values in read]

    def seen(self, context: Any, signature: Any) -> Any:
        """Return all bits of each row."""
        made = [_any_bit(self._builder, bits) for bits in self._bits]
        return context.make_tuple(self._builder, signature.return_type, made)


def _rows(context: Any, builder: Any, kind: Any, array: Any, first: Any, stride: Any, groups: Any) -> list[Place]:
    begins = [builder.add(first, builder.mul(stride, ir.Constant(I64, row))) for row in range(ROWS)]
    return [Place(context, builder, kind, array, begin, groups, 4) for begin in begins]


@intrinsic
def tally_single(
    typing: Any,
    one: Any,
    at: Any,
    two: Any,
    there: Any,
    three: Any,
    place: Any,
    groups: Any,
    totals: Any,
    to: Any,
    singles: Any,
    first: Any,
    stride: Any,
) -> Any:
    """Add three rows of uint32 counts to uint32 totals, write them as float32 from ``first`` on, ``stride`` apart.

    All bits that each of the rows has are returned. Where one is of 2³¹ or more, the float32 are wrong.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        counts = _Counts(context, builder, signature, given)
        written = _rows(context, builder, signature.args[9], given[9], given[10], given[11], counts.groups)
        with cgutils.for_range(builder, counts.groups) as loop:
            for values, row in zip(counts.tallied(loop.index), written, strict=True):
                store(builder, values, row.at(loop.index))
        return counts.seen(context, signature)

    number = types.int64
    sources = one, number, two, number, three, number, number
    return types.UniTuple(number, ROWS)(*sources, totals, number, singles, number, number), generate


@intrinsic
def tally_weighted(
    typing: Any,
    one: Any,
    at: Any,
    two: Any,
    there: Any,
    three: Any,
    place: Any,
    groups: Any,
    totals: Any,
    to: Any,
    singles: Any,
    first: Any,
    stride: Any,
    also: Any,
    weight: Any,
    second: Any,
    third: Any,
) -> Any:
    """Do as ``tally_single``, but add counts · weight to the float32; and counts · weight² to those ``also`` further.

    Weights are float64, one for each row, and rounded to float32, as each product and each sum is.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        counts, kind = _Counts(context, builder, signature, given), signature.args[9]
        squares = builder.add(given[10], given[12])
        once, twice = (
            _rows(context, builder, kind, given[9], begin, given[11], counts.groups) for begin in (given[10], squares)
        )
        weights = [_weights(builder, each) for each in given[13:16]]
        with cgutils.for_range(builder, counts.groups) as loop:
            for values, factors, places in zip(
                counts.tallied(loop.index), weights, zip(once, twice, strict=True), strict=True
            ):
                _add_weighted(builder, values, factors, [each.at(loop.index) for each in places])
        return counts.seen(context, signature)

    number, real = types.int64, types.float64
    sources = one, number, two, number, three, number, number
    return types.UniTuple(number, ROWS)(
        *sources, totals, number, singles, number, number, number, real, real, real
    ), generate


@intrinsic
def add_large(typing: Any, counts: Any, first: Any, groups: Any, weight: Any, singles: Any, to: Any, also: Any) -> Any:
    """Add one row of counts, of up to 2³² - 1, to float32 as ``tally_weighted`` does."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, count = signature.args, given[2]
        source = Place(context, builder, kinds[0], given[0], given[1], count, 4)
        squares = builder.add(given[5], given[6])
        places = [Place(context, builder, kinds[4], given[4], begin, count, 4) for begin in (given[5], squares)]
        factors = _weights(builder, given[3])
        with cgutils.for_range(builder, count) as loop:
            values = builder.uitofp(load(builder, source.at(loop.index), COUNTS), SINGLES)
            _add_weighted(builder, values, factors, [each.at(loop.index) for each in places])
        return context.get_dummy_value()

    number = types.int64
    return types.void(counts, number, number, types.float64, singles, number, number), generate


def _weights(builder: Any, weight: Any) -> list[Any]:
    """Return a weight and its square, in all lanes."""
    single = builder.fptrunc(weight, SINGLE)
    return [splat(builder, each, LANES) for each in (single, builder.fmul(single, single))]


def _add_weighted(builder: Any, values: Any, weights: list[Any], places: list[Any]) -> None:
    for weight, at in zip(weights, places, strict=True):
        store(builder, builder.fadd(load(builder, at, SINGLES), builder.fmul(values, weight)), at)


@intrinsic
def clear(typing: Any, array: Any, first: Any, count: Any) -> Any:
    """Set some elements to 0, at least one."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        item = ir.Constant(I64, array.dtype.bitwidth // 8)
        at = Place(context, builder, signature.args[0], given[0], given[1], given[2], array.dtype.bitwidth // 8, 1)
        cgutils.memset(builder, at.at(0), builder.mul(given[2], item), 0)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def tally(typing: Any, counts: Any, first: Any, groups: Any, totals: Any, to: Any) -> Any:
    """Add uint32 counts to int64 totals."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = signature.args
        source = Place(context, builder, kinds[0], given[0], given[1], given[2], 4)
        target = Place(context, builder, kinds[3], given[3], given[4], given[2], 8)
        with cgutils.for_range(builder, given[2]) as loop:
            at = target.at(loop.index)
            values = builder.zext(load(builder, source.at(loop.index), COUNTS), TOTALS)
            store(builder, builder.add(load(builder, at, TOTALS), values), at)
        return context.get_dummy_value()

    return types.void(counts, types.int64, types.int64, totals, types.int64), generate
