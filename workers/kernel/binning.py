"""Tiles to bins: a slab of 16 frames at a time, one byte of the pixels after the other."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiling import inner
from .exclusion import exclude, subtract
from .intrinsics import prefetch, read32
from .lanes import (
    add1,
    add2,
    add3,
    add4,
    add_many,
    interleave32,
    less_one32,
    less_one_of2,
    less_one_of3,
    less_one_of4,
    sum_masked,
    weigh,
    weigh_squared,
    widen32,
)
from .parts import LOT
from .tables import AHEAD, SLAB, Norms, Program

PLANES: Final = 4
"""Most bytes of a pixel."""

LEFT_OUT: Final = 2 * PLANES
"""Place in ``State.dirty``."""

WEIGHTED, VARIANCE, BINS, LEAST, LEAST_PLANES = range(5)
"""Places in ``Plan.numbers``: whether there are weights, whether the variance is wanted, how many bins, the least count
that is left out, bytes that this has."""


class BinsPlan(NamedTuple):
    """Tables; ``active`` : (1,) 1 if somebody wants bins; ``used`` : 1 bit per pixel that counts."""

    active: NDArray[np.int64]
    numbers: NDArray[np.int64]
    used: NDArray[np.uint8]
    program: Program
    norms: Norms


class BinsState(NamedTuple):
    """Sums of a lot.

    There are sums of two kinds: of the counts, and (for the variance) of what they have above 1. ``sums`` : int32,
    [kind][byte plane][bin][16 frames], if all weights are 1; ``weighted`` : float64, [kind][bin][16], if not. Between
    lots all are 0, unless a walk failed. ``dirty`` : int64, [kind][plane], which of them hold anything; then, whether
    pixels were left out. ``less_norm``, ``less_weight``, ``less_square`` : int64, [bin][16], of these; ``left_out`` :
    uint8, [bin], not 0 where there are any. ``total`` : (16,) int64, counts. ``rows``, ``marks``, ``mark_rows``,
    ``mask`` : uint8, memory for one slab; ``tile`` : float64, for the results of a few bins (:mod:`.quotients`).
    """

    sums: NDArray[np.int32]
    weighted: NDArray[np.float64]
    tile: NDArray[np.float64]
    less_norm: NDArray[np.int64]
    less_weight: NDArray[np.int64]
    less_square: NDArray[np.int64]
    total: NDArray[np.int64]
    dirty: NDArray[np.int64]
    rows: NDArray[np.uint8]
    marks: NDArray[np.uint8]
    mark_rows: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    left_out: NDArray[np.uint8]


def _nothing(kind: type[np.generic]) -> Any:
    return np.zeros(0, kind)


_INTEGERS: Final = _nothing(np.int64)
_BYTES: Final = _nothing(np.uint8)

INACTIVE: Final = (
    BinsPlan(
        np.zeros(1, np.int64),
        np.zeros(5, np.int64),
        _BYTES,
        Program(
            _INTEGERS, _INTEGERS, _INTEGERS, _nothing(np.int32), _nothing(np.int32), _nothing(np.uint32),
            _nothing(np.uint16), _nothing(np.float32),
        ),
        Norms(_nothing(np.float32), *(_INTEGERS,) * 3, *(_nothing(np.float64),) * 3),
    ),
    BinsState(_nothing(np.int32), *(_nothing(np.float64),) * 2, *(_INTEGERS,) * 5, *(_BYTES,) * 5),
)  # fmt: skip
"""Of the same types, where nobody wants bins."""


@inner
def add_bins(
    px: Any,
    stride: int,
    itemsize: int,
    top: int,
    high: Any,
    frames: int,
    tile: int,
    first_pixel: int,
    pixels: int,
    plan: Any,
    state: Any,
) -> int:
    """Add a tile of all frames of a lot; comes last, because pixels that are left out are set to 0.

    Parameters
    ----------
    px
        uint8, pixel i of byte j of frame f at ``(j * 16 + f) * stride + i``; bytes below ``top`` are there.
    high
        (16,) int64, per frame: bytes from this one on are 0 in all covered pixels.
    tile, first_pixel, pixels
        Which tile it is, its first pixel in the frame and how many it has.

    Returns
    -------
    0, or what is wrong.
    """
    weighted = plan.numbers[WEIGHTED] != 0
    kinds = 2 if plan.numbers[VARIANCE] != 0 else 1
    program = plan.program
    rows = state.rows
    distance = LOT * stride
    for start in range(0, pixels, SLAB):
        first = first_pixel + start
        slab = first // SLAB
        if top == 0 or program.classes[slab] == program.classes[slab + 1]:
            continue
        count = min(SLAB, pixels - start)
        groups = (count + 31) // 32
        _exclude(px, stride, high, frames, start, first, count, plan, state)
        if weighted:
            _add_total(px, stride, top, frames, start, first // 8, groups, plan.used, state)
        for kind in range(kinds):
            if kind == 1 and top > 1:
                for frame in range(frames):
                    _less_one(px, frame * stride + start, distance, top, groups)
            for plane in range(top):
                if kind == 0 or top > 1:
                    for k in range(groups):
                        interleave32(px, plane * distance + start + 32 * k, stride, rows, 512 * k)
                else:
                    for k in range(16 * groups):
                        less_one32(rows, 32 * k)
                state.dirty[kind * PLANES + plane] = 1
                if weighted:
                    _weigh(slab, program, rows, state.weighted, kind, plane, plan.numbers[BINS])
                else:
                    _add(slab, program, rows, state.sums, (kind * PLANES + plane) * plan.numbers[BINS])
    return 0


@inner
def _exclude(
    px: Any, stride: int, high: Any, frames: int, start: int, first: int, count: int, plan: Any, state: Any
) -> None:
    """Leave out of each frame the pixels of a slab that don't count in it."""
    excluded = 0
    for frame in range(frames):
        if high[frame] >= plan.numbers[LEAST_PLANES]:
            excluded += exclude(
                px, stride, high[frame], frame, start, first, count, plan.numbers[LEAST], plan.numbers[LEAST_PLANES],
                plan.used, state.marks,
            )  # fmt: skip
    if excluded != 0:
        state.dirty[LEFT_OUT] = 1
        subtract(slab=first // SLAB, count=count, plan=plan, state=state)


@inner
def _add_total(
    px: Any, stride: int, top: int, frames: int, start: int, used_at: int, groups: int, used: Any, state: Any
) -> None:
    """Add a slab's counts, whatever their bins."""
    for k in range(groups):
        widen32(used, used_at + 4 * k, state.mask, 32 * k)
    for plane in range(top):
        for frame in range(frames):
            total = sum_masked(px, (plane * LOT + frame) * stride + start, state.mask, groups)
            state.total[frame] += total << (8 * plane)


@inner
def _less_one(px: Any, offset: int, distance: int, top: int, groups: int) -> None:
    """Take 1 from all counts of a slab that aren't 0, in place."""
    for k in range(groups):
        if top == 2:
            less_one_of2(px, offset + 32 * k, distance)
        elif top == 3:
            less_one_of3(px, offset + 32 * k, distance)
        else:
            less_one_of4(px, offset + 32 * k, distance)


@inner
def _add(slab: int, program: Any, rows: Any, sums: Any, base: int) -> None:
    """Add a slab's rows to the bins, each with weight 1."""
    entry, segment = program.entries[slab], program.segments[slab]
    slots, bins = program.slots, program.bins
    for each in range(program.classes[slab], program.classes[slab + 1]):
        n, m = np.int64(program.lengths[each]), np.int64(program.counts[each])
        if n == 1:
            for k in range(segment, segment + m):
                prefetch(sums, (base + np.int64(read32(bins, 4 * (k + AHEAD)))) * 64)
                add1(rows, slots, entry, n, sums, (base + np.int64(read32(bins, 4 * k))) * 64)
                entry += 1
        elif n == 2:
            for k in range(segment, segment + m):
                prefetch(sums, (base + np.int64(read32(bins, 4 * (k + AHEAD)))) * 64)
                add2(rows, slots, entry, n, sums, (base + np.int64(read32(bins, 4 * k))) * 64)
                entry += 2
        elif n == 3:
            for k in range(segment, segment + m):
                prefetch(sums, (base + np.int64(read32(bins, 4 * (k + AHEAD)))) * 64)
                add3(rows, slots, entry, n, sums, (base + np.int64(read32(bins, 4 * k))) * 64)
                entry += 3
        elif n == 4:
            for k in range(segment, segment + m):
                prefetch(sums, (base + np.int64(read32(bins, 4 * (k + AHEAD)))) * 64)
                add4(rows, slots, entry, n, sums, (base + np.int64(read32(bins, 4 * k))) * 64)
                entry += 4
        else:
            for k in range(segment, segment + m):
                prefetch(sums, (base + np.int64(read32(bins, 4 * (k + AHEAD)))) * 64)
                add_many(rows, slots, entry, n, sums, (base + np.int64(read32(bins, 4 * k))) * 64)
                entry += n
        segment += m


@inner
def _weigh(slab: int, program: Any, rows: Any, sums: Any, kind: int, plane: int, n_bins: int) -> None:
    """Add a slab's rows to the bins, with their weights, or for the variance with their squares."""
    factor = np.float64(1 << (8 * plane))
    base = kind * n_bins
    entry, segment = program.entries[slab], program.segments[slab]
    slots, bins, weights = program.slots, program.bins, program.weights
    for each in range(program.classes[slab], program.classes[slab + 1]):
        n, m = np.int64(program.lengths[each]), np.int64(program.counts[each])
        for k in range(segment, segment + m):
            soon = (base + np.int64(read32(bins, 4 * (k + AHEAD)))) * 128
            prefetch(sums, soon)
            prefetch(sums, soon + 64)
            to = (base + np.int64(read32(bins, 4 * k))) * 128
            if kind == 0:
                weigh(rows, slots, entry, n, weights, factor, sums, to)
            else:
                weigh_squared(rows, slots, entry, n, weights, factor, sums, to)
            entry += n
        segment += m
