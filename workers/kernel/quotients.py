"""Sums over bins to what comes of them: 16 bins of 16 frames at a time, which are then turned to rows of the frames.

A bin's sums of 16 frames are one line of the cache, a frame's results are far from the next one's: written bin by bin
they would take four times as long. Sums are set to 0 as they are read, for the next lot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir

from .binning import BINS, LEFT_OUT, PLANES, WEIGHTED
from .compiling import entry, inner, intrinsic
from .intrinsics import (
    I32,
    I64,
    constant,
    copy64,
    load,
    pointer,
    read32,
    read64,
    shuffle,
    store,
    vector,
    write32,
)
from .lanes import F32, F64, loop, spread
from .late import types
from .parts import LOT
from .tiles import clear

TILE: Final = 16
"""Bins: a row of them is 64 bytes of each frame's results."""

VALUE, SPREAD, BELOW, EXTRA, TOTAL, INTENSITY, SIGMA, TURNED, TILE_MEMORY = (
    0, 128, 256, 384, 512, 640, 1664, 2688, 3712,
)  # fmt: skip
"""Places in ``State.tile``, bytes: of one bin 16 float64 each, what is divided, what its root is divided, by what, and
what is added to the second; 16 int64, the frames' counts; then 16 × 16 float32 each, results, and those of one kind
turned."""

_DOUBLES = vector(F64, LOT)
_LONGS = vector(I64, LOT)
_WORDS = vector(I32, LOT)


@entry
def take(
    frames: int,
    plan: Any,
    state: Any,
    intensity: Any,
    total: Any,
    sigma: Any,
    signal: Any,
    normalization: Any,
    count: Any,
    variance: Any,
) -> None:
    """Write a lot's results, (frames, bins) each, those that aren't empty; and leave the sums 0."""
    n_bins = plan.numbers[BINS]
    weighted = plan.numbers[WEIGHTED] != 0
    norms, tile, left_out = plan.norms, state.tile, state.left_out
    counts, squares = _planes(state, 0), _planes(state, 1)
    clear(tile, TOTAL, 8 * LOT)
    for first in range(0, n_bins, TILE):
        some = min(TILE, n_bins - first)
        for i in range(some):
            b = first + i
            scale = norms.scale[b]
            fill_doubles(tile, BELOW, float(norms.norm[b]) * norms.units[0] * scale)
            fill_doubles(tile, EXTRA, float(norms.square[b]) * norms.units[1] * scale * scale)
            if left_out[b] != 0:
                _divisors(b, plan, state)
            if weighted:
                move_doubles(state.weighted, 128 * b, tile, VALUE)
            else:
                add_planes(state.sums, 64 * b, 64 * n_bins, counts, tile, VALUE, TOTAL)
            divide(tile, VALUE, BELOW, INTENSITY + 64 * i)
            if sigma.size > 0:
                if weighted:
                    move_doubles(state.weighted, 128 * (n_bins + b), tile, SPREAD)
                else:
                    add_planes(state.sums, 64 * (PLANES * n_bins + b), 64 * n_bins, squares, tile, SPREAD, SPREAD)
                add_doubles(tile, SPREAD, EXTRA)
                divide_root(tile, SPREAD, BELOW, SIGMA + 64 * i)
            if signal.size > 0:
                for frame in range(frames):
                    signal[frame, b] = tile[VALUE // 8 + frame]
                    normalization[frame, b] = tile[BELOW // 8 + frame]
                    weight = norms.weight[b] - state.less_weight[b * LOT + frame]
                    count[frame, b] = float(weight) * norms.units[1] * scale
                    if variance.size > 0:
                        variance[frame, b] = tile[SPREAD // 8 + frame]
            if left_out[b] != 0:
                left_out[b] = 0
                for less in (state.less_norm, state.less_weight, state.less_square):
                    clear(less, 128 * b, 128)
        _put(tile, INTENSITY, intensity, first, some, frames, n_bins)
        if sigma.size > 0:
            _put(tile, SIGMA, sigma, first, some, frames, n_bins)
    for frame in range(frames):
        total[frame] = float(state.total[frame] if weighted else read64(tile, TOTAL + 8 * frame))
    clear(state.dirty, 0, 8 * (LEFT_OUT + 1))


@inner
def _planes(state: Any, kind: int) -> int:
    """Return how many byte planes hold anything, at least 1: with one, all lower ones do."""
    n = 1
    while n < PLANES and state.dirty[kind * PLANES + n] != 0:
        n += 1
    return n


@inner
def _divisors(b: int, plan: Any, state: Any) -> None:
    """Fill in by what a bin's sums are divided in each frame, and what 1 count in each of its pixels adds to them."""
    norms, tile = plan.norms, state.tile
    scale = norms.scale[b]
    for frame in range(LOT):
        less = b * LOT + frame
        tile[BELOW // 8 + frame] = float(norms.norm[b] - state.less_norm[less]) * norms.units[0] * scale
        square = float(norms.square[b] - state.less_square[less])
        tile[EXTRA // 8 + frame] = square * norms.units[1] * scale * scale


@inner
def _put(tile: Any, at: int, out: Any, first: int, some: int, frames: int, n_bins: int) -> None:
    """Write a tile's results of one kind to the frames' rows."""
    for half in (0, 1):
        for quarter in (0, 1):
            turn8(tile, at + 512 * half + 32 * quarter, TURNED + 512 * quarter + 32 * half)
    for frame in range(frames):
        to = 4 * (frame * n_bins + first)
        if some == TILE:
            copy64(out, to, tile, TURNED + 64 * frame)
        else:
            for i in range(some):
                write32(out, to + 4 * i, read32(tile, TURNED + 64 * frame + 4 * i))


@intrinsic
def add_planes(typing: Any, array: Any, offset: Any, apart: Any, planes: Any, tile: Any, to: Any, totals: Any) -> Any:
    """``(array, offset, apart, planes, tile, to, totals)``: put 16 numbers together, and set their parts to 0.

    Each has so many parts, uint32, ``apart`` bytes from one to the next, the lowest 8 bits first. They are written as
    float64 and added to 16 int64. As float64 all steps but the last are exact: it is rounded once, as the integer is.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        array, offset, apart, planes, tile, to, totals = given
        kind, of = signature.args[0], signature.args[4]

        def one(k: Any, carried: Sequence[Any]) -> list[Any]:
            plane = builder.sub(builder.sub(planes, constant(I64, 1)), k)
            at = pointer(context, builder, kind, array, builder.add(offset, builder.mul(plane, apart)), 64)
            read = load(builder, at, _WORDS)
            store(builder, constant(_WORDS, 0), at)
            exact = builder.add(builder.shl(carried[0], constant(_LONGS, 8)), builder.zext(read, _LONGS))
            value = builder.fmul(carried[1], _double(256.0))
            return [exact, builder.fadd(value, builder.uitofp(read, _DOUBLES))]

        exact, value = loop(builder, planes, [constant(_LONGS, 0), _double(0.0)], one)
        at = pointer(context, builder, of, tile, totals, 128)
        store(builder, builder.add(load(builder, at, _LONGS), exact), at)
        store(builder, value, pointer(context, builder, of, tile, to, 128))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, types.int64, tile, types.int64, types.int64), generate


def _double(value: float) -> ir.Constant:
    return ir.Constant(_DOUBLES, [ir.Constant(F64, value)] * LOT)


@intrinsic
def move_doubles(typing: Any, array: Any, offset: Any, tile: Any, to: Any) -> Any:
    """``(array, offset, tile, to)``: copy 16 float64, and set them to 0 there."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        at = pointer(context, builder, signature.args[0], given[0], given[1], 128)
        read = load(builder, at, _DOUBLES)
        store(builder, _double(0.0), at)
        store(builder, read, pointer(context, builder, signature.args[2], given[2], given[3], 128))
        return context.get_dummy_value()

    return types.void(array, types.int64, tile, types.int64), generate


@intrinsic
def fill_doubles(typing: Any, tile: Any, to: Any, value: Any) -> Any:
    """``(tile, to, value)``: write 16 times the same float64."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        at = pointer(context, builder, signature.args[0], given[0], given[1], 128)
        store(builder, spread(builder, given[2], LOT), at)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.float64), generate


@intrinsic
def add_doubles(typing: Any, tile: Any, to: Any, added: Any) -> Any:
    """``(tile, to, added)``: add 16 float64 to 16 others."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        to, added = (pointer(context, builder, signature.args[0], given[0], each, 128) for each in given[1:])
        store(builder, builder.fadd(load(builder, to, _DOUBLES), load(builder, added, _DOUBLES)), to)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), generate


def _divider(root: bool) -> Callable[..., Any]:
    @intrinsic
    def quotient(typing: Any, tile: Any, above: Any, below: Any, to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            above, below = (
                load(builder, pointer(context, builder, signature.args[0], given[0], each, 128), _DOUBLES)
                for each in given[1:3]
            )
            if root:
                kind = ir.FunctionType(_DOUBLES, [_DOUBLES])
                name = f"llvm.sqrt.v{LOT}f64"
                above = builder.call(builder.module.declare_intrinsic(name, (), kind), [above])
            some = builder.fcmp_ordered(">", below, _double(0.0))
            value = builder.select(some, builder.fdiv(above, below), _double(0.0))
            at = pointer(context, builder, signature.args[0], given[0], given[3], 64)
            store(builder, builder.fptrunc(value, vector(F32, LOT)), at)
            return context.get_dummy_value()

        return types.void(tile, types.int64, types.int64, types.int64), generate

    return quotient


divide, divide_root = _divider(False), _divider(True)
"""``(tile, above, below, to)``: of 16 float64, or their roots, and 16 others the quotients, float32; 0 unless what is
below is positive."""


_ZIPPED: Final = ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))
_HALVES: Final = ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))


@intrinsic
def turn8(typing: Any, tile: Any, offset: Any, to: Any) -> Any:
    """``(tile, offset, to)``: transpose 8 × 8 words of 32 bits; rows are 64 bytes apart."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        def at(first: Any, row: int) -> Any:
            place = builder.add(first, constant(I64, 64 * row))
            return pointer(context, builder, signature.args[0], given[0], place, 32)

        rows = [load(builder, at(given[1], row), vector(I32, 8)) for row in range(8)]
        for _ in range(3):  # within 128 bits, as x86's unpack does; then those are put in order
            rows = [shuffle(builder, rows[i], rows[i + 4], places) for i in range(4) for places in _ZIPPED]
        for half, places in enumerate(_HALVES):
            for i in range(4):
                store(builder, shuffle(builder, rows[2 * i], rows[2 * i + 1], places), at(given[2], 4 * half + i))
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), generate
