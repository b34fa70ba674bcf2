"""Frames added up, pixel by pixel or n × n pixels to a cell."""

from __future__ import annotations

from typing import Any

from . import operations as op
from .cells import add_longs, add_values
from .cleaning import BAD
from .compiling import inner
from .intrinsics import read8
from .operations import FIELDS, RUN, SUM
from .pixels import next_byte
from .shrinking import count_cells


@inner
def sum_tile(
    source: Any, base: int, plane: int, planes: int, dirty: bool, begin: int, end: int, at: int, stride: int,
    plan: Any, state: Any,
) -> None:  # fmt: skip
    """Add a frame's runs to a tile of the lot's own, in 32 bits: 16 values below 2²⁴ fit."""
    table = plan.operations
    tile = table[at + op.TILE]
    for run in range(begin * RUN, end * RUN, RUN):
        start, length = int(plan.runs[run + op.START]), int(plan.runs[run + op.LENGTH])
        if planes == 4:
            top = base + 3 * plane + start
            i = next_byte(source, top, 0, length)
            while i < length:
                state.totals[_cell(run, i, at, plan)] += read8(source, top + i) << 24
                i = next_byte(source, top, i + 1, length)
        if planes > 0:
            add_values(min(planes, 3), state.tile, tile + start, source, base + start, plane, length)
        if dirty:
            column = int(plan.runs[run + op.COLUMN])
            row = _cell(run, -column, at, plan)
            count_cells(source, BAD * stride + start, length, column, table[at + op.FACTOR], state.missing, row)


@inner
def end_sums(here: int, number_of: int, plan: Any, state: Any) -> None:
    """Add the lot's tile to the cells, and make it 0 again."""
    table = plan.operations
    for number in range(number_of):
        at = number * FIELDS
        begin, end = plan.first[here + number], plan.first[here + number + 1]
        if table[at + op.KIND] != SUM:
            continue
        factor = table[at + op.FACTOR]
        for run in range(begin * RUN, end * RUN, RUN):
            cell = _cell(run, 0, at, plan)
            pixel = table[at + op.TILE] + plan.runs[run + op.START]
            left = int(plan.runs[run + op.LENGTH])
            if factor == 1:
                add_longs(state.totals, cell, state.tile, pixel, left)
                continue
            some = factor - plan.runs[run + op.COLUMN] % factor  # pixels up to the cell's end
            while left > 0:
                some = min(some, left)
                total = 0
                for i in range(pixel, pixel + some):
                    total += int(state.tile[i])
                    state.tile[i] = 0
                state.totals[cell] += total
                cell += 1
                pixel += some
                left -= some
                some = factor


@inner
def _cell(run: int, pixel: int, at: int, plan: Any) -> Any:
    """Return the cell of a run's pixel."""
    table = plan.operations
    factor = table[at + op.FACTOR]
    row = int(plan.runs[run + op.ROW]) // factor
    return table[at + op.FIRST] + row * table[at + op.WIDTH] + (int(plan.runs[run + op.COLUMN]) + pixel) // factor
