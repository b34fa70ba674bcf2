"""Scalar products of spectra and templates, in float32, whose bits are the same everywhere.

The bits of a sum depend on the order of its additions and on where it is rounded; a BLAS chooses both by the CPU, the
number of rows and of threads. Here they are fixed. Channel c goes to lane c % 8. A lane adds its products in the order
of channels, each product rounded before it is added: no fused multiply-add, which not every CPU has. At the end of a
block of channels the lanes are added to float64 ones. LLVM keeps to that as long as no operation has a fast-math flag,
and makes of 8 lanes the vectors that a CPU has.

All offsets are in elements. Groups are of 8 channels.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .intrinsics import I8, I32, I64, constant, intrinsic, load, pointer, store, vector

LANES: Final = 8
TILE: Final = 5
"""Templates that are summed together, with two spectra: 10 sums, 2 rows and a few products fill AVX2's 16 registers.
With 3 × 4, 4 × 3 and 2 × 6 some are spilled, which costs a third."""

COUNTS, SINGLES, DOUBLES = vector(I32, LANES), vector(ir.FloatType(), LANES), vector(ir.DoubleType(), LANES)
TOTALS: Final = vector(I64, LANES)


class _Place:
    """A range of an array's vectors, both ends of which were checked."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any, first: Any, groups: Any, item: int) -> None:
        self._builder, self._width = builder, item * LANES
        offset = builder.mul(first, ir.Constant(I64, item))
        last = builder.mul(builder.sub(groups, ir.Constant(I64, 1)), ir.Constant(I64, self._width))
        pointer(context, builder, kind, array, builder.add(offset, last), self._width)
        self._base = pointer(context, builder, kind, array, offset, self._width)

    def at(self, group: Any) -> Any:
        """Return where a vector is."""
        group = ir.Constant(I64, group) if isinstance(group, int) else group
        return self._builder.gep(self._base, [self._builder.mul(group, ir.Constant(I64, self._width))], source_etype=I8)


def _splat(builder: Any, value: Any) -> Any:
    empty = ir.Constant(DOUBLES, ir.Undefined)
    places = constant(vector(I32, LANES), 0)
    return builder.shuffle_vector(builder.insert_element(empty, value, ir.Constant(I32, 0)), empty, places)


@intrinsic
def dots(
    typing: Any, spectra: Any, one: Any, two: Any, table: Any, tile: Any, groups: Any, sums: Any, to: Any, also: Any
) -> Any:
    """Multiply two rows with a tile of templates, add to their sums.

    ``spectra`` float32: a row's channels from ``one`` on, another's from ``two`` on. ``table`` float32: from ``tile``
    on, for each group TILE vectors. ``sums`` float64: TILE vectors from ``to`` on, and from ``also`` on. At least one
    group.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, count = signature.args, given[5]
        rows = [_Place(context, builder, kinds[0], given[0], first, count, 4) for first in given[1:3]]
        vectors = builder.mul(count, ir.Constant(I64, TILE))
        templates = _Place(context, builder, kinds[3], given[3], given[4], vectors, 4)
        ends = [_Place(context, builder, kinds[6], given[6], first, ir.Constant(I64, TILE), 8) for first in given[7:9]]
        before, loop, after = builder.block, builder.append_basic_block("dots"), builder.append_basic_block("flush")
        builder.branch(loop)
        builder.position_at_end(loop)
        group = builder.phi(I64)
        partial = [[builder.phi(SINGLES) for _ in range(TILE)] for _ in rows]
        values = [load(builder, row.at(group), SINGLES) for row in rows]
        first = builder.mul(group, ir.Constant(I64, TILE))
        following = builder.add(group, ir.Constant(I64, 1))
        for k in range(TILE):
            weights = load(builder, templates.at(builder.add(first, ir.Constant(I64, k))), SINGLES)
            for row, value in enumerate(values):
                phi = partial[row][k]
                phi.add_incoming(ir.Constant(SINGLES, [0.0] * LANES), before)
                partial[row][k] = builder.fadd(phi, builder.fmul(value, weights))
                phi.add_incoming(partial[row][k], loop)
        group.add_incoming(ir.Constant(I64, 0), before)
        group.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        for row, end in enumerate(ends):
            for k in range(TILE):
                total = builder.fadd(load(builder, end.at(k), DOUBLES), builder.fpext(partial[row][k], DOUBLES))
                store(builder, total, end.at(k))
        return context.get_dummy_value()

    places = types.int64, types.int64
    return types.void(spectra, *places, table, *places, sums, *places), generate


def _any_bit(builder: Any, bits: Any) -> Any:
    name = f"llvm.vector.reduce.or.v{LANES}i32"
    reduce = builder.module.declare_intrinsic(name, (), ir.FunctionType(I32, [COUNTS]))
    return builder.zext(builder.call(reduce, [builder.load(bits)]), I64)


def _tally(kind: ir.VectorType) -> Any:
    item = kind.element.width // 8

    @intrinsic
    def tally(typing: Any, counts: Any, first: Any, groups: Any, totals: Any, to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kinds = signature.args
            source = _Place(context, builder, kinds[0], given[0], given[1], given[2], 4)
            target = _Place(context, builder, kinds[3], given[3], given[4], given[2], item)
            bits = cgutils.alloca_once_value(builder, constant(COUNTS, 0))
            with cgutils.for_range(builder, given[2]) as loop:
                values = load(builder, source.at(loop.index), COUNTS)
                builder.store(builder.or_(builder.load(bits), values), bits)
                wide = values if item == 4 else builder.zext(values, kind)
                at = target.at(loop.index)
                store(builder, builder.add(load(builder, at, kind), wide), at)
            return _any_bit(builder, bits)

        return types.int64(counts, types.int64, types.int64, totals, types.int64), generate

    return tally


tally32, tally64 = _tally(COUNTS), _tally(TOTALS)
"""``(counts, first, groups, totals, to) -> int64``: add uint32 counts to uint32, or int64, totals; return all bits that
the counts have."""


@intrinsic
def tally_to_single(
    typing: Any, counts: Any, first: Any, groups: Any, totals: Any, to: Any, singles: Any, also: Any
) -> Any:
    """Do as ``tally32``, and write the counts as float32: right below 2³¹, faster than ``to_single``."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, count = signature.args, given[2]
        source = _Place(context, builder, kinds[0], given[0], given[1], count, 4)
        target = _Place(context, builder, kinds[3], given[3], given[4], count, 4)
        written = _Place(context, builder, kinds[5], given[5], given[6], count, 4)
        bits = cgutils.alloca_once_value(builder, constant(COUNTS, 0))
        with cgutils.for_range(builder, count) as loop:
            values = load(builder, source.at(loop.index), COUNTS)
            builder.store(builder.or_(builder.load(bits), values), bits)
            at = target.at(loop.index)
            store(builder, builder.add(load(builder, at, COUNTS), values), at)
            store(builder, builder.sitofp(values, SINGLES), written.at(loop.index))
        return _any_bit(builder, bits)

    places = types.int64, types.int64
    return types.int64(counts, *places, totals, types.int64, singles, types.int64), generate


@intrinsic
def to_single(typing: Any, counts: Any, first: Any, groups: Any, singles: Any, to: Any) -> Any:
    """Write uint32 counts as float32, the nearest."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = signature.args
        source = _Place(context, builder, kinds[0], given[0], given[1], given[2], 4)
        target = _Place(context, builder, kinds[3], given[3], given[4], given[2], 4)
        with cgutils.for_range(builder, given[2]) as loop:
            values = load(builder, source.at(loop.index), COUNTS)
            store(builder, builder.uitofp(values, SINGLES), target.at(loop.index))
        return context.get_dummy_value()

    return types.void(counts, types.int64, types.int64, singles, types.int64), generate


@intrinsic
def add_weighted(
    typing: Any, counts: Any, first: Any, groups: Any, weight: Any, sums: Any, to: Any, squares: Any, also: Any
) -> Any:
    """Add uint32 counts · weight to float64 sums, and counts · weight² to others."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, count, weight = signature.args, given[2], given[3]
        source = _Place(context, builder, kinds[0], given[0], given[1], count, 4)
        once = _Place(context, builder, kinds[4], given[4], given[5], count, 8)
        twice = _Place(context, builder, kinds[6], given[6], given[7], count, 8)
        pairs = [(once, _splat(builder, weight)), (twice, _splat(builder, builder.fmul(weight, weight)))]
        with cgutils.for_range(builder, count) as loop:
            values = builder.uitofp(load(builder, source.at(loop.index), COUNTS), DOUBLES)
            for place, factor in pairs:
                at = place.at(loop.index)
                store(builder, builder.fadd(load(builder, at, DOUBLES), builder.fmul(values, factor)), at)
        return context.get_dummy_value()

    places = types.int64, types.int64
    return types.void(counts, *places, types.float64, sums, types.int64, squares, types.int64), generate


@intrinsic
def round_to_single(typing: Any, doubles: Any, first: Any, groups: Any, singles: Any, to: Any) -> Any:
    """Write float64 as float32, the nearest."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = signature.args
        source = _Place(context, builder, kinds[0], given[0], given[1], given[2], 8)
        target = _Place(context, builder, kinds[3], given[3], given[4], given[2], 4)
        with cgutils.for_range(builder, given[2]) as loop:
            store(
                builder, builder.fptrunc(load(builder, source.at(loop.index), DOUBLES), SINGLES), target.at(loop.index)
            )
        return context.get_dummy_value()

    return types.void(doubles, types.int64, types.int64, singles, types.int64), generate
