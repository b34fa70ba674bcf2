"""Pixels that one frame leaves out: without data, or above the cutoff."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import inner
from .intrinsics import read32, read64
from .lanes import above32, interleave32
from .parts import LOT
from .tables import SLAB, pixel_of, shares


@inner
def exclude(
    px: Any,
    stride: int,
    high: int,
    frame: int,
    start: int,
    first_pixel: int,
    count: int,
    least: int,
    planes: int,
    used: Any,
    marks: Any,
) -> int:
    """Mark the pixels of a slab whose counts are ``least`` or more, and set them to 0.

    Nothing is looked at unless the tile has as many bytes as ``least`` (``planes``); then 32 pixels are compared at a
    time, by their highest bytes, and only what comes near is looked at closely.

    Returns
    -------
    How many there are.
    """
    found = 0
    distance = LOT * stride
    row = frame * stride + start
    leading = least >> (8 * (planes - 1))
    for i in range(0, count, 32):
        near = above32(px, row + i + (planes - 1) * distance, leading)
        for j in range(planes, high):
            near |= above32(px, row + i + j * distance, 1)
        near &= read32(used, (first_pixel + i) // 8)
        if near == 0:
            continue
        for k in range(min(32, count - i)):
            if near >> k & 1 == 0:
                continue
            value: Any = np.int64(0)
            for j in range(high):
                value |= np.int64(px[row + i + k + j * distance]) << (8 * j)
            if value >= least:
                found += 1
                marks[frame * SLAB + i + k] = 1
                for j in range(high):
                    px[row + i + k + j * distance] = 0
    return found


@inner
def subtract(slab: int, count: int, plan: Any, state: Any) -> None:
    """Take the marked pixels' share from what the bins' sums are divided by: in integers, so that no order matters."""
    program, norms = plan.program, plan.norms
    for k in range((count + 31) // 32):
        interleave32(state.marks, 32 * k, SLAB, state.mark_rows, 512 * k)
    state.marks[: LOT * SLAB] = 0
    weighted = program.weights.size > 0
    entry, segment = program.entries[slab], program.segments[slab]
    for each in range(program.classes[slab], program.classes[slab + 1]):
        n = np.int64(program.lengths[each])
        for q in range(segment, segment + np.int64(program.counts[each])):
            b = np.int64(program.bins[q])
            for e in range(entry, entry + n):
                at: Any = np.int64(program.slots[e])
                if read64(state.mark_rows, at) | read64(state.mark_rows, at + 8) == 0:
                    continue
                value = np.float64(program.weights[e]) if weighted else 1.0
                state.left_out[b] = 1
                norm, weight, square = shares(value, slab * SLAB + pixel_of(at // LOT), b, norms)
                for frame in range(LOT):
                    if state.mark_rows[at + frame] != 0:
                        state.less_norm[b * LOT + frame] += norm
                        state.less_weight[b * LOT + frame] += weight
                        state.less_square[b * LOT + frame] += square
            entry += n
        segment += np.int64(program.counts[each])
