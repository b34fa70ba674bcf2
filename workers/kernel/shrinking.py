"""Frames to smaller frames: n × n pixels are a cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import operations as op
from .compiling import inner
from .intrinsics import read8
from .operations import PAD, RUN
from .pixels import BAD, add_values, halve, move32, move64, next_byte
from .tiles import clear


@inner
def shrink(
    source: Any, base: int, plane: int, planes: int, dirty: bool, lane: int, begin: int, end: int, at: int,
    stride: int, plan: Any, state: Any,
) -> None:  # fmt: skip
    """Add runs to the row of cells that is being filled; end it when the next begins.

    Rows of pixels are added up as they are, and put together to cells at the end: that is a vector's work.
    """
    table = plan.operations
    factor, width = table[at + op.FACTOR], table[at + op.WIDTH]
    rows = lane * plan.lanes[op.ROWS_LANE] + table[at + op.ROWS]
    left = lane * plan.lanes[op.LEFT_LANE] + table[at + op.LEFT]
    group = lane * plan.lanes[op.GROUPS_LANE] + table[at + op.GROUP]
    for run in range(begin * RUN, end * RUN, RUN):
        start, length = int(plan.runs[run + op.START]), int(plan.runs[run + op.LENGTH])
        column, row = int(plan.runs[run + op.COLUMN]), int(plan.runs[run + op.ROW]) // factor
        if row != state.group[group]:
            end_row(lane, at, plan, state)
            state.group[group] = row
        if planes == 4:  # sums of the highest bytes may not fit into the row; few pixels have one
            to = table[at + op.FIRST] + row * width
            top = base + 3 * plane + start
            i = next_byte(source, top, 0, length)
            while i < length:
                _add(to + (column + i) // factor, read8(source, top + i) << 24, lane, at, plan, state)
                i = next_byte(source, top, i + 1, length)
        if planes > 0:
            add_values(min(planes, 3), state.rows, rows + column, source, base + start, plane, length)
        if dirty and count_cells(source, BAD * stride + start, length, column, factor, state.left, left):
            state.left[left + width] = 1


@inner
def end_row(lane: int, at: int, plan: Any, state: Any) -> None:
    """Put a row of cells into the picture: sums, or all bits set where every pixel was left out."""
    table = plan.operations
    group = lane * plan.lanes[op.GROUPS_LANE] + table[at + op.GROUP]
    row = state.group[group]
    if row < 0:
        return
    state.group[group] = -1
    factor, width = table[at + op.FACTOR], table[at + op.WIDTH]
    rows = lane * plan.lanes[op.ROWS_LANE] + table[at + op.ROWS]
    left = lane * plan.lanes[op.LEFT_LANE] + table[at + op.LEFT]
    to = table[at + op.FIRST] + row * width
    wide = table[at + op.WIDE] != 0
    if factor & (factor - 1) == 0 and factor <= 16:  # 16 · 16 values below 2²⁴ fit into 32 bits
        some = factor
        while some > 1:
            some >>= 1
            halve(state.rows, rows, width * some)
        if wide:
            move64(state.wide, lane * plan.lanes[op.WIDE_LANE] + to, state.rows, rows, width)
        else:
            move32(state.narrow, lane * plan.lanes[op.NARROW_LANE] + to, state.rows, rows, width)
        clear(state.rows, 4 * (rows + width), 4 * (width * (factor - 1) + PAD))
    else:
        pixel = rows
        for cell in range(width):
            total = 0
            for _ in range(factor):
                total += int(state.rows[pixel])
                pixel += 1
            if total != 0:
                _add(to + cell, total, lane, at, plan, state)
        clear(state.rows, 4 * rows, 4 * width * factor)
    if state.left[left + width] != 0:  # a pixel was left out
        cells = table[at + op.CELLS] + row * width
        for cell in range(width):
            if state.left[left + cell] != 0 and state.left[left + cell] == plan.cells[cells + cell]:
                _add(to + cell, -1, lane, at, plan, state)  # nothing is there yet: all bits are set
        clear(state.left, 2 * left, 2 * (width + 1))


@inner
def count_cells(source: Any, offset: int, length: int, column: int, factor: int, counts: Any, first: int) -> bool:
    """Add the bytes that aren't 0 to the counts of their cells, and return whether there are any.

    ``counts[first]`` is of the cell that begins with column 0, and ``column`` the first byte's.
    """
    found = False
    i = next_byte(source, offset, 0, length)
    while i < length:
        cell = (column + i) // factor
        stop = min(length, (cell + 1) * factor - column)
        some = 0
        while i < stop:
            some += read8(source, offset + i)
            i += 1
        counts[first + cell] += some
        found = True
        i = next_byte(source, offset, i, length)
    return found


@inner
def _add(cell: int, value: int, lane: int, at: int, plan: Any, state: Any) -> None:
    if plan.operations[at + op.WIDE] != 0:
        state.wide[lane * plan.lanes[op.WIDE_LANE] + cell] += np.uint64(value)
    else:
        state.narrow[lane * plan.lanes[op.NARROW_LANE] + cell] += np.uint32(value)
