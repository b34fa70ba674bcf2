"""Frames to smaller frames: n × n pixels are a cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import operations as op
from .cells import add_fives, add_pairs, add_threes, add_values, halve, move32, move64
from .cleaning import BAD
from .compiling import inner, merged
from .intrinsics import memory, read8, read16, read32, read64, write32, write64
from .operations import RUN
from .pixels import next_byte
from .tiles import clear


@merged
def shrink(
    source: Any, base: int, plane: int, planes: int, dirty: bool, lane: int, begin: int, end: int, at: int,
    stride: int, plan: Any, state: Any,
) -> None:  # fmt: skip
    """Add runs to the row of cells that is being filled; end it when the next begins.

    Rows of pixels, or of pairs of them, are added up as they are, and put together to cells at the end: so less memory
    is gone over.
    """
    table = plan.operations
    factor, width = table[at + op.FACTOR], table[at + op.WIDTH]
    rows = lane * plan.lanes[op.ROWS_LANE] + table[at + op.ROWS]
    left = lane * plan.lanes[op.LEFT_LANE] + table[at + op.LEFT]
    group = lane * plan.lanes[op.GROUPS_LANE] + table[at + op.GROUP]
    tops = rows + table[at + op.TOPS]
    for run in range(begin * RUN, end * RUN, RUN):
        start, length = int(plan.runs[run + op.START]), int(plan.runs[run + op.LENGTH])
        column, row = int(plan.runs[run + op.COLUMN]), int(plan.runs[run + op.ROW]) // factor
        if row != state.group[group]:
            end_row(lane, at, plan, state)
            state.group[group] = row
        if planes == 4:  # sums of the highest bytes may not fit into the row; few pixels have one
            top = base + 3 * plane + start
            i = next_byte(source, top, 0, length)
            while i < length:
                state.rows[tops] = 1
                state.rows[tops + 1 + (column + i) // factor] += np.uint32(read8(source, top + i))
                i = next_byte(source, top, i + 1, length)
        if planes > 0 and factor & 1 == 0:
            _add_pairs(min(planes, 3), state.rows, rows, column, source, base + start, plane, length)
        elif planes > 0:
            add_values(min(planes, 3), state.rows, rows + column, source, base + start, plane, length)
        if dirty and count_cells(source, BAD * stride + start, length, column, factor, state.left, left):
            state.left[left + width] = 1


@inner
def _add_pairs(
    planes: int, rows: Any, first: int, column: int, source: Any, offset: int, plane: int, length: int
) -> None:
    """Add a run to sums of two columns each."""
    if column & 1 == 1:
        value = 0
        for j in range(planes):
            value |= read8(source, offset + j * plane) << (8 * j)
        to = 4 * (first + column // 2)
        write32(rows, to, read32(rows, to) + value)
        column += 1
        offset += 1
        length -= 1
    if length > 0:
        add_pairs(planes, rows, first + column // 2, source, offset, plane, length)


@inner
def end_row(lane: int, at: int, plan: Any, state: Any) -> None:
    """Write a row of cells into the picture: sums, or all bits set where no pixel counts."""
    table = plan.operations
    group = lane * plan.lanes[op.GROUPS_LANE] + table[at + op.GROUP]
    row = state.group[group]
    if row < 0:
        return
    state.group[group] = -1
    factor, width = table[at + op.FACTOR], table[at + op.WIDTH]
    rows = lane * plan.lanes[op.ROWS_LANE] + table[at + op.ROWS]
    left = lane * plan.lanes[op.LEFT_LANE] + table[at + op.LEFT]
    tops = rows + table[at + op.TOPS]
    some = factor if factor & 1 == 1 else factor >> 1
    if factor <= 16:  # 16 · 16 values below 2²⁴ fit into 32 bits
        while some & 1 == 0:
            some >>= 1
            halve(state.rows, rows, width * some)
        if some == 3:
            add_threes(state.rows, rows, width)
            some = 1
        elif some == 5:
            add_fives(state.rows, rows, width)
            some = 1
    if some > 1:
        for cell in range(width):
            total = 0
            for pixel in range(rows + cell * some, rows + (cell + 1) * some):
                total += read32(state.rows, 4 * pixel)
            write32(state.rows, 4 * (rows + cell), total & 0xFFFFFF)
            if total >> 24 != 0:
                state.rows[tops] = 1
                state.rows[tops + 1 + cell] += np.uint32(total >> 24)
    picture = memory(state.targets[table[at + op.TARGETS] + lane], table[at + op.BYTES])
    cells = table[at + op.CELLS] + row * width
    wide = table[at + op.WIDE] != 0
    itemsize = 8 if wide else 4
    to = row * width * itemsize
    done = 0
    while done + 16 <= width or (done < width and width >= 16):
        done = min(done, width - 16)  # the last 16: some are written twice, as the same
        if wide:
            move64(picture, to + 8 * done, state.rows, rows + done, state.left, left + done, plan.cells, cells + done)
        else:
            move32(picture, to + 4 * done, state.rows, rows + done, state.left, left + done, plan.cells, cells + done)
        done += 16
    for cell in range(done, width):
        value = read32(state.rows, 4 * (rows + cell))
        if read16(state.left, 2 * (left + cell)) == read16(plan.cells, 2 * (cells + cell)):
            value = -1
        if wide:
            write64(picture, to + 8 * cell, value)
        else:
            write32(picture, to + 4 * cell, value)
    clear(state.rows, 4 * rows, 4 * table[at + op.TOPS])
    if state.rows[tops] != 0:
        for cell in range(width):
            more = read32(state.rows, 4 * (tops + 1 + cell)) << 24
            if more != 0 and wide:
                write64(picture, to + 8 * cell, read64(picture, to + 8 * cell) + more)
            elif more != 0:
                write32(picture, to + 4 * cell, read32(picture, to + 4 * cell) + more)
        clear(state.rows, 4 * tops, 4 * (width + 1))
    if state.left[left + width] != 0:  # a pixel was left out
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
