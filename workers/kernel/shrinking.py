"""Frames to smaller frames: n × n pixels are a cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import operations as op
from .compiling import inner
from .operations import RUN
from .pixels import BAD, add_values, value_of


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
        if planes == 4:  # a sum of such values may not fit into the row
            to = table[at + op.FIRST] + row * width
            for i in range(length):
                value = value_of(planes, source, base + start + i, plane)
                if value != 0:
                    _add(to + (column + i) // factor, value, lane, at, plan, state)
        elif planes > 0:
            add_values(planes, state.rows, rows + column, source, base + start, plane, length)
        if dirty:
            for i in range(length):
                if source[BAD * stride + start + i] != 0:
                    state.left[left + (column + i) // factor] += np.uint16(1)


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
    pixel = lane * plan.lanes[op.ROWS_LANE] + table[at + op.ROWS]
    left = lane * plan.lanes[op.LEFT_LANE] + table[at + op.LEFT]
    to = table[at + op.FIRST] + row * width
    cells = table[at + op.CELLS] + row * width
    for cell in range(width):
        total = 0
        for _ in range(factor):
            total += int(state.rows[pixel])
            state.rows[pixel] = 0
            pixel += 1
        if total != 0:
            _add(to + cell, total, lane, at, plan, state)
        if state.left[left + cell] != 0:
            if state.left[left + cell] == plan.cells[cells + cell]:
                _add(to + cell, -1, lane, at, plan, state)  # nothing is there yet: all bits are set
            state.left[left + cell] = 0


@inner
def _add(cell: int, value: int, lane: int, at: int, plan: Any, state: Any) -> None:
    if plan.operations[at + op.WIDE] != 0:
        state.wide[lane * plan.lanes[op.WIDE_LANE] + cell] += np.uint64(value)
    else:
        state.narrow[lane * plan.lanes[op.NARROW_LANE] + cell] += np.uint32(value)
