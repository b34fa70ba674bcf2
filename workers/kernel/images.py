"""Tiles to what is looked at as images: regions' sums and moments, pieces, smaller frames, sums of frames."""

from __future__ import annotations

from typing import Any

from . import operations as op
from .cleaning import BAD, VOID, clean
from .compiling import inner, merged
from .intrinsics import memory
from .operations import CROP, FIELDS, REGIONS, RUN, SHRINK
from .parts import LOT
from .pixels import add_moments, count_bytes, peak, put_values
from .shrinking import end_row, shrink
from .summing import end_sums, sum_tile


@inner
def add_images(
    px: Any, stride: int, itemsize: int, high: Any, frames: int, tile: int, pixels: int, plan: Any, state: Any
) -> None:
    """Add a tile of a lot.

    Parameters
    ----------
    px
        uint8, pixel i of byte j of frame f at ``(j * 16 + f) * stride + i``.
    high
        (16,) int64: how many bytes of a frame's pixels there are; from this one on they are 0 where they are covered.
    tile, pixels
        Which tile it is, and its pixels.
    """
    table = plan.operations
    number_of = table.size // FIELDS
    here = tile * number_of
    if plan.first[here] == plan.first[here + number_of]:
        return
    for lane in range(frames):
        known = -1  # the limit for which the tile has been cleaned
        left_out = 0
        kept = 0
        for number in range(number_of):
            begin, end = plan.first[here + number], plan.first[here + number + 1]
            if begin == end:
                continue
            at = number * FIELDS
            kind, limit = table[at + op.KIND], table[at + op.LIMIT]
            planes = high[lane]
            if kind == CROP:
                _crop(px, lane * stride, LOT * stride, planes, itemsize, lane, begin, end, at, plan, state)
                continue
            source, base, plane, dirty = px, lane * stride, LOT * stride, False
            if planes > 0 and limit < (1 << (8 * planes)) - 1:
                if known != limit:
                    known = limit
                    left_out, kept = clean(planes, px, base, plane, pixels, limit, plan.void[0], state.cleaned, stride)
                if left_out > 0:
                    source, base, plane, dirty, planes = state.cleaned, 0, stride, True, kept
            if kind == SHRINK:  # its rows are written even if they are 0
                shrink(source, base, plane, planes, dirty, lane, begin, end, at, stride, plan, state)
                if tile == table[at + op.LAST]:
                    end_row(lane, at, plan, state)
            elif planes > 0 or dirty:
                if kind == REGIONS:
                    _regions(source, base, plane, planes, dirty, lane, begin, end, at, stride, plan, state)
                else:
                    sum_tile(source, base, plane, planes, dirty, begin, end, at, stride, plan, state)
    end_sums(here, number_of, plan, state)


@merged
def _regions(
    source: Any, base: int, plane: int, planes: int, dirty: bool, lane: int, begin: int, end: int, at: int,
    stride: int, plan: Any, state: Any,
) -> None:  # fmt: skip
    """Add runs to their regions' numbers."""
    first = lane * plan.lanes[op.NUMBERS_LANE] + plan.operations[at + op.FIRST]
    for run in range(begin * RUN, end * RUN, RUN):
        start, length = int(plan.runs[run + op.START]), int(plan.runs[run + op.LENGTH])
        row, column = int(plan.runs[run + op.ROW]), int(plan.runs[run + op.COLUMN])
        to = first + plan.runs[run + op.TARGET] * op.NUMBERS
        for j in range(planes):
            add_moments(source, base + j * plane + start, length, column, row, state.numbers, to + j, 4)
        most = state.numbers[to + op.MOST]
        if plan.operations[at + op.PEAKS] != 0 and planes > 0 and most < (1 << (8 * planes)) - 1:
            state.numbers[to + op.MOST] = max(most, peak(planes, source, base + start, plane, length))
        if dirty:
            excluded = count_bytes(source, BAD * stride + start, length)
            if excluded > 0:
                state.numbers[to + op.EXCLUDED] += excluded
                state.numbers[to + op.SATURATED] += excluded - count_bytes(source, VOID * stride + start, length)


@inner
def _crop(
    px: Any, base: int, plane: int, planes: int, itemsize: int, lane: int, begin: int, end: int, at: int, plan: Any,
    state: Any,
) -> None:  # fmt: skip
    """Copy runs to their places in a piece."""
    piece = memory(state.targets[plan.operations[at + op.TARGETS] + lane], plan.operations[at + op.BYTES])
    for run in range(begin * RUN, end * RUN, RUN):
        start, length = int(plan.runs[run + op.START]), int(plan.runs[run + op.LENGTH])
        to = plan.runs[run + op.TARGET] * itemsize
        put_values(itemsize, planes, piece, to, px, base + start, plane, length)
