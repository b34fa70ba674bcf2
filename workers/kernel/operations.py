"""The tables of image reductions: what each of them wants, where its results go.

All image parts of a walk are rows of one table, so that one compiled function serves any number of them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

REGIONS, CROP, SHRINK, SUM = range(4)

FIELDS: Final = 16
KIND, LIMIT, FIRST, TARGETS, BYTES, FACTOR, WIDTH, WIDE, ROWS, TOPS, LEFT, CELLS, GROUP, LAST, PEAKS, TILE = range(
    FIELDS
)
"""Columns of the table of operations.

``KIND`` : one of the above. ``LIMIT`` : pixels above it are left out. ``FIRST`` : where its results begin; regions' in
a lane. ``TARGETS``, ``BYTES`` : of a piece or a smaller frame, where the addresses of the lot's are, and how large one
is. ``FACTOR`` : pixels of a cell along each axis. ``WIDTH`` : cells in a row. ``WIDE`` : 1 if cells have 64 bits.
``ROWS``, ``LEFT``, ``GROUP`` : where its row of pixels, its counts of pixels left out and its row's number are in a
lane; ``TOPS`` : where the sums of the highest bytes are in the row. ``CELLS`` : where its cells are in the plan.
``LAST`` : its last tile. ``PEAKS`` : 1 if maxima are wanted. ``TILE`` : where its tile of sums is.
"""

PAD: Final = 64
"""Elements after each array that vectors may reach."""

RUN: Final = 5
START, LENGTH, ROW, COLUMN, TARGET = range(RUN)
"""Columns of the table of runs: first pixel in the tile, pixels; where it is in the frame; the region, or the first
pixel's place in a piece."""

NUMBERS: Final = 15
MOST, EXCLUDED, SATURATED = 12, 13, 14
"""A region's numbers: Σ v of each byte plane, 4; Σ v·column likewise; Σ v·row; the greatest value; how many pixels were
left out, and how many of those have data."""

LANES: Final = 4
NUMBERS_LANE, ROWS_LANE, LEFT_LANE, GROUPS_LANE = range(LANES)
"""How much of each array of the state a lane has."""


class ImagePlan(NamedTuple):
    """What image parts want.

    ``active`` : (1,) 1 if there are any. ``operations`` : :data:`FIELDS` each, int64. ``first`` : where the runs of a
    tile and an operation begin, at ``tile * operations + operation``, int64; one more for the end. ``runs`` :
    :data:`RUN` each, int32. ``cells`` : pixels that count in each cell of smaller frames, uint16. ``lanes`` :
    :data:`LANES`, int64. ``void`` : (1,) int64, the value of pixels without data.
    """

    active: NDArray[np.int64]
    operations: NDArray[np.int64]
    first: NDArray[np.int64]
    runs: NDArray[np.int32]
    cells: NDArray[np.uint16]
    lanes: NDArray[np.int64]
    void: NDArray[np.int64]


class ImageState(NamedTuple):
    """A lot's results, lane after lane, and what is needed on the way.

    ``numbers`` : of regions. ``targets`` : (operations, 16) int64, addresses of a lot's pieces and smaller frames: they
    are written where they belong. ``rows`` : a row of pixels of each, or of pairs of them, added up, without their
    highest bytes, which few have; then 1 if there are any, and their sums by cells. ``left`` : how many pixels were
    left out of each cell of a row, and at its end 1 if there are any. ``group`` : which row of cells these are for, −1
    for none. ``totals``, ``missing`` : of sums of frames, added up over a lot; ``tile`` : a tile of each. ``cleaned`` :
    a tile without what is left out.
    """

    numbers: NDArray[np.int64]
    targets: NDArray[np.int64]
    rows: NDArray[np.uint32]
    left: NDArray[np.uint16]
    group: NDArray[np.int64]
    totals: NDArray[np.int64]
    missing: NDArray[np.int64]
    tile: NDArray[np.uint32]
    cleaned: NDArray[np.uint8]
