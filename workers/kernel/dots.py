"""Scalar products of spectra and templates, in float32, whose bits are the same everywhere.

The bits of a sum depend on the order of its additions and on where it is rounded; a BLAS chooses both by the CPU, the
number of rows and of threads. Here they are fixed. Channel c goes to lane c % 8. A lane adds its products in the order
of channels, each product rounded before it is added: no fused multiply-add, which not every CPU has, and which gains
4 % on one that has. At the end of a block of channels halves of the lanes are added to halves, in float64. LLVM keeps
to that as long as no operation has a fast-math flag, and makes of 8 lanes the vectors that a CPU has.

Offsets and groups are as in :mod:`.places`.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

from .compiling import intrinsic
from .intrinsics import I8, I32, I64, load, pointer, shuffle, store, vector
from .late import cgutils, types
from .places import DOUBLE, DOUBLES, LANES, ROWS, SINGLES, Place, splat

TILE: Final = 3
"""Templates that are summed together: 9 sums, 3 rows and a few products fill AVX2's 16 registers. With 3 × 4 and 4 × 3
some are spilled, which costs a quarter; 2 × 5 is as fast, but leaves more of a tile empty."""

MIXED: Final = 16
"""Areas that are mixed at a time: their sums are in as many lanes, to be added at once."""

AREAS: Final = vector(DOUBLE, MIXED)


@intrinsic
def dots(
    typing: Any,
    spectra: Any,
    one: Any,
    two: Any,
    three: Any,
    table: Any,
    tile: Any,
    groups: Any,
    sums: Any,
    to: Any,
    also: Any,
    third: Any,
) -> Any:
    """Multiply three rows with a tile of templates, add to their sums.

    ``spectra`` float32: rows' channels from ``one``, ``two`` and ``three`` on. ``table`` float32: from ``tile`` on, for
    each group TILE vectors. ``sums`` float64: TILE numbers from ``to`` on, from ``also`` and from ``third`` on. At
    least one group.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, count = signature.args, given[6]
        rows = [Place(context, builder, kinds[0], given[0], first, count, 4) for first in given[1:4]]
        vectors = builder.mul(count, ir.Constant(I64, TILE))
        templates = Place(context, builder, kinds[4], given[4], given[5], vectors, 4)
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
        for row, first in enumerate(given[8:11]):
            at = builder.mul(first, ir.Constant(I64, 8))
            pointer(context, builder, kinds[7], given[7], builder.add(at, ir.Constant(I64, 8 * (TILE - 1))), 8)
            base = pointer(context, builder, kinds[7], given[7], at, 8)
            for k in range(TILE):
                end = builder.gep(base, [ir.Constant(I64, 8 * k)], source_etype=I8)
                store(builder, builder.fadd(load(builder, end, DOUBLE), _added(builder, partial[row][k])), end)
        return context.get_dummy_value()

    places = [types.int64] * ROWS
    return types.void(spectra, *places, table, types.int64, types.int64, sums, *places), generate


def _added(builder: Any, lanes: Any) -> Any:
    """Return the sum of float32 lanes in float64: halves are added to halves."""
    lanes = builder.fpext(lanes, DOUBLES)
    for count in (4, 2, 1):
        low, high = (shuffle(builder, lanes, lanes, range(first, first + count)) for first in (0, count))
        lanes = builder.fadd(low, high)
    return builder.extract_element(lanes, ir.Constant(I32, 0))


@intrinsic
def mix(
    typing: Any, sums: Any, first: Any, count: Any, table: Any, column: Any, row: Any, factor: Any, areas: Any, to: Any
) -> Any:
    """Write MIXED areas: the sum of ``count`` sums, each times its row of a table, times a factor. All are float64.

    The table's part begins at ``column``, its next row ``row`` further. At least one sum.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, one = signature.args, ir.Constant(I64, 1)
        numbers = Place(context, builder, kinds[0], given[0], given[1], given[2], 8, 1)
        last = builder.add(given[4], builder.mul(builder.sub(given[2], one), given[5]))
        pointer(context, builder, kinds[3], given[3], builder.mul(last, ir.Constant(I64, 8)), 8 * MIXED)
        base = Place(context, builder, kinds[3], given[3], given[4], one, 8, 1)
        target = Place(context, builder, kinds[7], given[7], given[8], one, 8, MIXED)
        total = cgutils.alloca_once_value(builder, ir.Constant(AREAS, [0.0] * MIXED))
        with cgutils.for_range(builder, given[2]) as loop:
            number = splat(builder, load(builder, numbers.at(loop.index), DOUBLE), MIXED)
            weights = load(builder, base.at(builder.mul(loop.index, given[5])), AREAS)
            builder.store(builder.fadd(builder.load(total), builder.fmul(number, weights)), total)
        store(builder, builder.fmul(builder.load(total), splat(builder, given[6], MIXED)), target.at(0))
        return context.get_dummy_value()

    number = types.int64
    return types.void(sums, number, number, table, number, number, types.float64, areas, number), generate
